"""A rule as a `torch.optim.Optimizer`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg.rules.rule import Rule

if TYPE_CHECKING:
    from thalweg.optim.plan import Plan

__all__ = ["Real", "RealOrTensor", "RuleOptimizer"]

# Spelled out because a run-time check of types does not take an int for a float.
Real: TypeAlias = float | int
RealOrTensor: TypeAlias = float | int | Tensor

Group: TypeAlias = dict[str, Any]


class RuleOptimizer(Optimizer):
    """A rule as a `torch.optim.Optimizer`.

    Serves a rule of one's own as it is: ``RuleOptimizer(model.parameters(), rule, lr=0.1)``.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        rule: the update rule; subclasses that have one as class attribute pass None.
        hyper: hyperparameters of the rule; its defaults for the rest.

    Raises:
        HyperparameterError: for a hyperparameter that the rule lacks or a value out of range.
        TypeError: for parameters that are sparse, complex or not floating point.
    """

    rule: Rule
    _plan: "Plan | None" = None

    def __init__(self, params: ParamsT, rule: Rule | None, **hyper: Any) -> None:
        if rule is not None:
            rule.check(hyper)
            self.rule = rule
            hyper = {**rule.defaults, **hyper}
        self.check_group(hyper, type(self).__name__ if rule is None else rule.name)
        super().__init__(params, hyper)

    def rule_of(self, group: Group) -> Rule:
        """The rule that a parameter group follows, before its variant is chosen."""
        return self.rule

    def check_group(self, group: Group, owner: str) -> None:
        """Raise `ValueError` for hyperparameters that this optimizer cannot take."""
        for name in ("capturable", "differentiable"):
            if group.get(name):
                raise ValueError(f"{owner}: {name} must be False: the step is one CPU kernel call")
        rule = self.rule_of(group)
        rule.check({name: group[name] for name in rule.defaults if name in group}, owner)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, with its own hyperparameters where it names them.

        Raises:
            HyperparameterError: for a value out of range; the message names the group's index.
            TypeError: for parameters that are sparse, complex or not floating point.
        """
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        group = self.param_groups[index]
        owner = f"{type(self).__name__}, parameter group {index}"
        try:
            self.check_group(group, owner)
            for i, p in enumerate(group["params"]):
                if not p.is_floating_point() or p.layout != torch.strided:
                    raise TypeError(
                        f"{owner}: parameter {i} is {p.dtype} with layout {p.layout}; "
                        "only dense real floating point is supported"
                    )
        except Exception:
            self.param_groups.pop()
            raise

    def start_state(self, p: Tensor, group: Group) -> dict[str, Any]:
        """Make what is missing of the state of one parameter, and return it."""
        rule = self.rule_of(group).resolve(group)
        state: dict[str, Any] = self.state[p]
        missing = [name for name in rule.state if state.get(name) is None]
        if "step" not in state or (missing and len(missing) == len(rule.state)):
            # torch.optim.SGD keeps no count: any step after the first will do for its buffers.
            began = bool(rule.state) and not missing
            state["step"] = torch.tensor(float(began), dtype=torch.float32)
        for name, value in zip(rule.state, rule.start(group), strict=True):
            if name in missing:
                state[name] = torch.full_like(p, value, memory_format=torch.preserve_format)
        return state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Args:
            closure: evaluates the model, its loss and the gradients, and returns the loss. Needed
                where the rule takes the gradient elsewhere than at the parameters.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: if a closure is needed and there is none.
            TypeError: for a sparse or complex gradient; the message names the parameter.
        """
        loss = None
        looks_ahead = any(
            self.rule_of(group).resolve(group).point is not None for group in self.param_groups
        )
        if closure is not None:
            with self._moved_ahead() if looks_ahead else nullcontext(), torch.enable_grad():
                loss = closure()
        elif looks_ahead:
            raise ValueError(
                f"{type(self).__name__}: the gradient is taken at another point than the "
                "parameters; step() needs a closure that evaluates the loss and its gradient"
            )
        self._located_plan().update(self.param_groups)
        return loss

    def _located_plan(self) -> "Plan":
        """A plan that holds, with addresses read from where everything is now."""
        plan = self._plan
        if plan is None or not plan.holds(self) or not plan.locate():
            from thalweg.optim.plan import Plan  # Numba costs half a second to import

            plan = self._plan = Plan(self)
            if not plan.locate():
                raise RuntimeError("a parameter changed while its step was being planned")
        return plan

    @contextmanager
    def _moved_ahead(self) -> Iterator[None]:
        """Parameters at the points where their rules take the gradient, and back exactly."""
        plan = self._located_plan()
        with torch.no_grad():
            parameters = [
                p
                for group in self.param_groups
                if self.rule_of(group).resolve(group).point is not None
                for p in group["params"]
            ]
            here = [p.detach().clone() for p in parameters]
            plan.shift(self.param_groups)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, saved in zip(parameters, here, strict=True):
                    p.copy_(saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        # What torch.optim's checkpoints do not say.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        own = {"rule": self.rule} if "rule" in self.__dict__ else {}
        return {**super().__getstate__(), **own}
