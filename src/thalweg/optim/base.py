"""A rule as a `torch.optim.Optimizer`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import Parameter, Signature, cleandoc, signature
from numbers import Real
from types import FunctionType, new_class
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import optimizer as torchs
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg.optim.options import OPTIONS, TORCHS
from thalweg.rules.rule import HEAD, Hyper, Number, Row, Rule

if TYPE_CHECKING:
    from thalweg.optim.plan import Plan

__all__ = ["RuleOptimizer", "define", "from_rule", "meaning"]

Group = dict[str, Any]


class RuleOptimizer(Optimizer):
    """A rule as a `torch.optim.Optimizer`; each subclass has its own.

    ``class Own(RuleOptimizer, rule=RULE)`` takes the rule's hyperparameters as keyword arguments,
    or with ``like`` what that class of torch.optim takes, in its order, and the rest as keywords.
    """

    rule: ClassVar[Rule]
    torchs_arguments: ClassVar[frozenset[str]] = frozenset()
    torchs: ClassVar[type[Optimizer] | None] = None  # whose checkpoints it takes
    for_torch: ClassVar[dict[str, Any]] = {}  # what a class of torch's has to find in a checkpoint
    _plan: "Plan | None" = None

    def __init_subclass__(
        cls, rule: Rule | None = None, like: type[Optimizer] | None = None, **others: Any
    ) -> None:
        super().__init_subclass__(**others)
        if rule is not None:
            cls.rule = rule
            cls.torchs_arguments = frozenset(signature(like).parameters if like else ())
            cls.torchs = like or cls.torchs
            cls.__signature__ = _signature(rule, like)  # type: ignore[attr-defined]
            cls.__doc__ = _documentation(cls, cls.__doc__ or "")

    def __init__(self, params: ParamsT, *arguments: Any, **hyper: Any) -> None:
        given = self.hyperparameters(params, *arguments, **hyper)
        super().__init__(given.pop("params"), given)

    @classmethod
    def hyperparameters(cls, *arguments: Any, **hyper: Any) -> Group:
        """The constructor's arguments by name, checked, with defaults for the rest."""
        taken = cls.signature()
        unknown = [name for name in hyper if name not in taken.parameters]
        if unknown:
            raise TypeError(
                f"{cls.__name__}: there is no argument {unknown[0]!r}; "
                f"it takes {', '.join(taken.parameters)}"
            )
        bound = taken.bind(*arguments, **hyper)
        bound.apply_defaults()
        given = {**bound.arguments, **cls.for_torch}
        cls.check_group(given, cls.__name__)
        return given

    @classmethod
    def signature(cls) -> Signature:
        """What the constructor takes."""
        found: Signature = cls.__signature__  # type: ignore[attr-defined]
        return found

    @classmethod
    def check_group(cls, group: Group, owner: str) -> None:
        """Raise `ValueError` for hyperparameters that this optimizer cannot take."""
        if group.get("differentiable"):
            raise ValueError(f"{owner}: differentiable must be False: a step is no part of a graph")
        cls.rule.check({name: group[name] for name in cls.rule.defaults if name in group}, owner)
        for name, option in OPTIONS.items():
            if name in group:
                option.check(owner, group[name])

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
        from thalweg.optim.state import start

        return start(self.state[p], self.rule.resolve(group, tuple(p.shape)), p, group)

    def step(self, closure: Callable[[], Any] | None = None, *, rescale_grad: float = 1.0) -> Any:
        """One step of every parameter that has a gradient.

        Args:
            closure: evaluates the model, its loss and the gradients, and returns the loss. Needed
                where the rule takes the gradient elsewhere than at the parameters.
            rescale_grad: what gradients are multiplied by before anything else is done with them,
                within the step; they themselves stay as they are. In (0, inf).

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: if a closure is needed and there is none; for ``capturable`` parameters
                that cannot be; for another factor.
            RuntimeError: between `eval` and `train`; in a CUDA graph without ``capturable``.
            TypeError: for a sparse or complex gradient; the message names the parameter.
        """
        if torch.compiler.is_compiling():
            # Nothing of it is a graph of tensors. Said here, and not by a decorator, because that
            # imports the compiler.
            step = torch.compiler.disable(self._step)  # type: ignore[no-untyped-call]
            return step(closure, rescale_grad)
        if self._is_watched():
            given: list[Any] = [closure] if closure else []
            if rescale_grad != 1.0:
                given = [closure, rescale_grad]
            return self._watched_step(*given)
        return self._step(closure, rescale_grad)

    def _step(self, closure: Callable[[], Any] | None = None, rescale_grad: float = 1.0) -> Any:
        if not 0 < rescale_grad < float("inf"):
            raise ValueError(
                f"{type(self).__name__}: rescale_grad must be in (0, inf), got {rescale_grad!r}"
            )
        self._accelerator_graph_capture_health_check()
        groups, loss = self.param_groups, None
        rules = [self.rule.resolve(group) for group in groups]
        looks_ahead = False
        for group, rule in zip(groups, rules, strict=True):
            looks_ahead |= rule.point is not None
            if group.get("evaluating"):
                raise RuntimeError(
                    f"{type(self).__name__}: since eval() the parameters hold averaged weights; "
                    "call train() before step()"
                )
        if closure is not None:
            with self._moved_ahead(rules) if looks_ahead else nullcontext(), torch.enable_grad():
                loss = closure()
            rules = [self.rule.resolve(group) for group in groups]
        elif looks_ahead:
            raise ValueError(
                f"{type(self).__name__}: the gradient is taken at another point than the "
                "parameters; step() needs a closure that evaluates the loss and its gradient"
            )
        self._located_plan(rules).update(groups, rescale_grad)
        return loss

    # What torch would make of `step` itself: with hooks, and a label for profilers, which takes as
    # long as the step of a small model whether anyone looks on or not.
    _watched_step = Optimizer.profile_hook_step(_step)
    step.hooked = True  # type: ignore[attr-defined]

    def _is_watched(self) -> bool:
        """Whether somebody profiles or has hooks, of which torch does not take care already."""
        watched = (
            profiler._is_profiler_enabled
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torchs._global_optimizer_pre_hooks
            or torchs._global_optimizer_post_hooks
        )
        # Torch wraps a subclass's own.
        return bool(watched) and type(self).step is RuleOptimizer.step

    @torch.no_grad()
    def eval(self) -> None:
        """Put the weights to evaluate and keep in place of those that are trained.

        They differ for rules that average (`ASGD`, the Schedule-Free ones) and with ``ema_decay``;
        for all others nothing happens. `train` puts the trained ones back, exactly.
        """
        for group, p, state in self._started(evaluating=False):
            rule = self.rule.resolve(group, tuple(p.shape))
            if rule.answer is not None:
                state["trained"] = p.detach().clone()
                p.copy_(rule.answer(p, *(state[name] for name in rule.state), group))
        self._mark(evaluating=True)

    @torch.no_grad()
    def train(self) -> None:
        """Undo `eval`."""
        for _, p, state in self._started(evaluating=True):
            if "trained" in state:
                p.copy_(state.pop("trained"))
        self._mark(evaluating=False)

    def _started(self, evaluating: bool) -> Iterator[tuple[Group, Tensor, dict[str, Any]]]:
        """Parameters that have taken a step, of groups in that mode."""
        for group in self.param_groups:
            if group.get("evaluating", False) == evaluating:
                for p in group["params"]:
                    if self.state.get(p):
                        yield group, p, self.state[p]

    def _mark(self, evaluating: bool) -> None:
        for group in self.param_groups:
            if self.rule.resolve(group).answer is not None:
                group["evaluating"] = evaluating

    def _located_plan(self, rules: Sequence[Rule]) -> "Plan":
        """A plan that holds for the groups' rules, with addresses read from where everything is."""
        plan = self._plan
        if plan is None or not plan.holds(self, rules) or not plan.locate():
            from thalweg.optim.plan import Plan  # Numba costs half a second to import

            plan = self._plan = Plan(self, rules)
            if not plan.locate():
                raise RuntimeError("a parameter changed while its step was being planned")
        return plan

    @contextmanager
    def _moved_ahead(self, rules: Sequence[Rule]) -> Iterator[None]:
        """Parameters at the points where their rules take the gradient; put back exactly."""
        with torch.no_grad():
            plan = self._located_plan(rules)
            parameters = [
                p
                for group, rule in zip(self.param_groups, rules, strict=True)
                if rule.point is not None
                for p in group["params"]
                if p in self.state
            ]
            here = [p.detach().clone() for p in parameters]
            plan.shift(self.param_groups)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, saved in zip(parameters, here, strict=True):
                    p.copy_(saved)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, of this class or of its namesake in torch.optim.

        Raises:
            ValueError: for one of other parameter groups, or of another optimizer.
        """
        own = set(self.signature().parameters) | set(self.for_torch)
        # How a step is carried out is no optimizer's own: torch adds some of it to all.
        foreign = _arguments_of_all() - own - {*OPTIONS, *TORCHS}
        if self.torchs is not None:
            foreign -= set(signature(self.torchs).parameters)
        for group in state_dict["param_groups"]:
            if found := sorted(foreign & set(group)):
                raise ValueError(
                    f"{type(self).__name__}: the checkpoint has {found[0]!r}, which this optimizer "
                    "does not take: it is another optimizer's"
                )
        super().load_state_dict(state_dict)
        from thalweg.optim.state import keep_types

        keep_types(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        # What torch.optim's checkpoints do not say; those from before there was maximize had none.
        for group in self.param_groups:
            group.setdefault("maximize", False)
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def from_rule(rule: Rule, name: str | None = None) -> type[RuleOptimizer]:
    """The optimizer of a rule: a class that takes the rule's hyperparameters.

    It can be pickled if it is bound, in its module, to its own name, as with named tuples.

    Args:
        rule: from `thalweg.rules`, or one's own.
        name: of the class; the rule's, made an identifier, by default.

    Raises:
        TypeError: for what is no rule, or one whose update cannot be computed.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"from_rule takes a thalweg.rules.Rule, got {rule!r}")
    if not (rule.whole or rule.advance or rule.variant or rule.part):
        _check_update(rule)
    made = name or "".join(c if c.isalnum() else "_" for c in rule.name)
    home = sys._getframe(1).f_globals.get("__name__", __name__)
    return _class(rule, made, home)


def define(**defaults: float) -> Callable[[Callable[..., Any]], type[RuleOptimizer]]:
    """Make an optimizer of a few lines of maths.

    For example::

        @optim.define(lr=1e-3, beta=0.9)
        def SignedAverage(p, g, average, lr, beta):
            average = beta * average + (1 - beta) * g
            return p - lr * sign(average), average

    The function is elementwise maths of a parameter, its gradient, the state (all further
    arguments that have no default here, zero at first), the hyperparameters, and, where there is
    an argument of that name, the ``step`` from 1; with ``+ - * / **``, the functions of
    `thalweg.rules.maths` (`where` in place of ``if``), and others made of these. It returns the
    new parameter and the new state. Numbers of its module are taken as they are at the first step.
    A ``weight_decay`` among its hyperparameters is its own; without one it has that of all
    optimizers. ``state=`` has no effect on it: which state is a moment a `Rule` says.

    Args:
        defaults: of the hyperparameters, ``lr`` among them.

    Raises:
        TypeError: for a function or defaults that make no rule; the message says why.
    """
    for name, default in defaults.items():
        if isinstance(default, bool) or not isinstance(default, Real):
            raise TypeError(f"define: {name} must be a number, got {default!r}")
        if name in _TAKEN:
            raise TypeError(f"define: every optimizer has {name!r} already; rename yours")
    if "lr" not in defaults:
        raise TypeError("define: give the learning rate a default, define(lr=1e-3)")

    def made(update: Callable[..., Any]) -> type[RuleOptimizer]:
        if not isinstance(update, FunctionType):
            raise TypeError(f"define: it takes a function, got {update!r}")
        name = update.__name__
        asked = list(signature(update).parameters)
        state = [n for n in asked[2:] if n not in defaults and n != "step"]
        numbers = [n for n in asked[2:] if n in defaults or n == "step"]
        if asked[2:] != state + numbers or {*asked[:2]} & {*defaults, "step"}:
            raise TypeError(f"{name}: its arguments must be p, g, state, then hyperparameters")
        missing = sorted({*defaults} - set(asked))
        if missing:
            raise TypeError(f"{name}: it does not take {missing[0]!r}, which it must")
        kept = sorted({*state} & {"ema", "trained", *defaults, *_TAKEN})
        if kept:
            raise TypeError(f"{name}: a state cannot be named {kept[0]!r}; rename it")

        def coefficients(hyper: Hyper, step: int) -> Row:
            return tuple(step if n == "step" else hyper[n] for n in numbers)

        own = tuple(
            Number(n, default, low=0.0 if n == "lr" else float("-inf"), meaning=_MEANINGS.get(n, n))
            for n, default in defaults.items()
        )
        decays = "weight_decay" in defaults
        rule = Rule(name, own, tuple(state), coefficients, update, own_decay=decays)
        _check_update(rule)
        return _class(rule, name, update.__module__, update.__doc__)

    return made


# Names that mean something in every optimizer; all but ``weight_decay``, which a rule may own.
_TAKEN = {*Rule("", (), (), lambda h, t: (), lambda p, g: (p,)).every_hyper, *OPTIONS, "params"} - {
    "weight_decay"
}
_MEANINGS = {"lr": "learning rate; a tensor of one element too", "weight_decay": "of the weights"}


def _check_update(rule: Rule) -> None:
    """Raise `TypeError` unless a rule's update does with arrays what an update has to."""
    import numpy as np

    hyper = rule.defaults
    scalars = rule.start_scalars(hyper)
    try:
        row = rule.row(hyper, 1, scalars)
        arrays = [np.full(2, 0.5) for _ in range(2 + len(rule.state))]
        with np.errstate(all="ignore"):
            new = rule.update(*arrays, *row[HEAD:])
    except Exception as error:
        raise TypeError(
            f"{rule.name}: its function cannot be computed ({type(error).__name__}: {error}); it "
            "may use + - * / **, the functions of thalweg.rules.maths (where(condition, a, b) in "
            "place of if), and others made of these"
        ) from error
    if not isinstance(new, tuple) or len(new) != 1 + len(rule.state):
        wanted = ", ".join(("p", *rule.state))
        comma = "," if not rule.state else ""
        what = f"{len(new)} values" if isinstance(new, tuple) else f"a {type(new).__name__}"
        raise TypeError(f"{rule.name}: it must return ({wanted}{comma}), and returns {what}")
    for name, value in zip(("p", *rule.state), new, strict=True):
        if not isinstance(value, np.ndarray | Real) or np.asarray(value).shape not in ((), (2,)):
            raise TypeError(f"{rule.name}: the new {name} is no number an element: {value!r}")


def _class(rule: Rule, name: str, module: str, text: str | None = None) -> type[RuleOptimizer]:
    body = {"__module__": module, "__doc__": text}
    found: type[RuleOptimizer] = new_class(
        name, (RuleOptimizer,), {"rule": rule}, lambda found: found.update(body)
    )
    return found


def _arguments_of_all() -> set[str]:
    """What some optimizer takes."""
    classes = [RuleOptimizer]
    for cls in classes:
        classes += cls.__subclasses__()
    return {name for cls in classes[1:] for name in cls.signature().parameters}


def _signature(rule: Rule, like: type[Optimizer] | None) -> Signature:
    known = rule.every_hyper
    theirs = list(signature(like).parameters.values()) if like else []
    taken = [Parameter("params", Parameter.POSITIONAL_OR_KEYWORD)]
    for parameter in theirs[1:]:
        taken.append(Parameter(parameter.name, parameter.kind, default=parameter.default))
    names = {parameter.name for parameter in taken}
    # Without a class of torch's to agree with, a rule's own numbers are taken by position.
    by_position = {h.name for h in rule.hyper if isinstance(h, Number) and not like}
    rest = [(name, h.default) for name, h in {**known, **OPTIONS}.items() if name not in names]
    for name, default in sorted(rest, key=lambda pair: pair[0] not in by_position):
        kind = Parameter.POSITIONAL_OR_KEYWORD if name in by_position else Parameter.KEYWORD_ONLY
        taken.append(Parameter(name, kind, default=default))
    return Signature(taken)


def meaning(rule: Rule, argument: str) -> str:
    """What an argument of a rule's optimizer is, as a clause."""
    if argument in TORCHS:
        return TORCHS[argument]
    return ({**rule.every_hyper, **OPTIONS})[argument].meaning


def _documentation(cls: type[RuleOptimizer], text: str) -> str:
    rule = cls.rule
    known = {**rule.every_hyper, **OPTIONS}

    def lines() -> Iterable[str]:
        yield cleandoc(text) or f"{rule.name} as a `torch.optim.Optimizer`."
        if rule.formula:
            yield ""
            yield from (f"    {line}" for line in rule.formula.splitlines())
        if rule.paper:
            yield f"\n{rule.paper}."
        yield "\nArgs:"
        yield "    params: parameters, groups or named parameters, as torch.optim takes them."
        for name in list(cls.signature().parameters)[1:]:
            limits = f" In {known[name].range}." if name in known else ""
            yield f"    {name}: {meaning(rule, name)}.{limits}"
        yield "\nRaises:\n    HyperparameterError: for a value outside its range."

    return "\n".join(lines())
