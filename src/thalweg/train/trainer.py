"""Any optimizer behind the interface of Gluon's Trainer, by its names and with its numbers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from thalweg.files import whole
from thalweg.optim.base import RuleOptimizer
from thalweg.optim.options import OPTIONS, TORCHS
from thalweg.optim.registry import OPTIMIZERS, Entry
from thalweg.optim.shards import is_sharded
from thalweg.optim.wrappers import GD, SAM, Lookahead
from thalweg.rules.rule import HyperparameterError, Number
from thalweg.schedules.schedule import Schedule
from thalweg.tasks.blame import first_line
from thalweg.train.arguments import FitError, entry_of, positive

__all__ = ["Trainer"]

Params: TypeAlias = (
    nn.Module | Mapping[str, Tensor] | Iterable[Tensor] | Iterable[tuple[str, Tensor]]
)
LRScheduler: TypeAlias = Schedule | Callable[[int], float]


@dataclass(frozen=True)
class _Style:
    """What an optimizer of MXNet 1.9 has that Thalweg's of the same name has not by default.

    Attributes:
        names: its own names of hyperparameters, and Thalweg's.
        numbers: its defaults and conventions, by Thalweg's names.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)


# What all of MXNet's optimizers call otherwise.
_NAMES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "clip_gradient": "clip_value",
    "epsilon": "eps",
}

# How MXNet carries a step out; no matter for dense parameters.
_NO_EFFECT = ("aggregate_num", "lazy_update", "use_fused_step")

# By apache/mxnet 1.9, python/mxnet/optimizer/optimizer.py and src/operator/optimizer_op-inl.h;
# AdamW and LARS by 2.0, python/mxnet/optimizer/adamW.py and lars.py.
_STYLES = {
    "sgd": _Style(numbers={"lr": 1e-2}),
    "nag": _Style(numbers={"lr": 1e-2, "momentum": 0.0, "form": "sutskever"}),
    "adagrad": _Style(
        numbers={"lr": 1e-2, "eps": 1e-7, "eps_in_sqrt": True, "decoupled_weight_decay": True}
    ),
    "rmsprop": _Style(
        {"gamma1": "alpha", "rho": "alpha", "gamma2": "momentum"},
        {"lr": 1e-3, "alpha": 0.9, "eps_in_sqrt": True, "lr_in_momentum": True},
    ),
    "adadelta": _Style(numbers={"eps": 1e-5, "decoupled_weight_decay": True}),
    "adam": _Style(numbers={"eps_hat": True}),
    "adamw": _Style(numbers={"eps": 1e-6, "eps_hat": True, "weight_decay": 0.0}),
    # It has none. This one is lost in rounding, and keeps 0 / 0 from being NaN.
    "adamax": _Style(numbers={"eps": 1e-30}),
    "nadam": _Style({"schedule_decay": "momentum_decay"}, {"lr": 1e-3}),
    "signum": _Style({"wd_lh": "weight_decay"}, {"lr": 1e-2}),
    "lars": _Style({"eta": "trust_coefficient"}, {"momentum": 0.0}),
}


class Trainer:
    """Takes an optimizer's steps by gradients of sums over batches, as Gluon's (Apache MXNet) does.

    ::

        trainer = Trainer(model.parameters(), "adam", {"learning_rate": 1e-3})
        for x, y in batches:
            loss(model(x), y).sum().backward()
            trainer.step(len(x))

    Names of hyperparameters are that style's or Thalweg's own. What is not given is as MXNet 1.9
    has it, places of epsilon and forms of momentum included, so that a script moved over gives the
    same numbers; docs/gluon.md has all names and what differs.

    Gradients are cleared after each step: a backward pass overwrites them there, and adds to them
    here. Several passes before a step add up, as with ``grad_req="add"``.

    Args:
        params: a module, its ``parameters()`` or ``named_parameters()``, a dict of parameters by
            name, or a list of them. Those that do not require a gradient are left alone.
        optimizer: name of one in `thalweg.optim`, or an optimizer of these parameters.
        optimizer_params: its hyperparameters by name. For all: ``learning_rate``, ``wd``,
            ``clip_gradient`` (a bound on each entry, after rescaling), ``rescale_grad`` (a factor
            on gradients besides 1 / ``batch_size``) and ``lr_scheduler``: a `Schedule`, the factor
            on the learning rate, or a function of the number of updates, 1 for the first, that
            returns the rate, such as MXNet's schedulers, whose ``base_lr`` is set to the learning
            rate if there is one.

    Attributes:
        optimizer: the optimizer.
        num_update: steps taken.

    Raises:
        FitError: for a name that there is not, with the nearest, or a value out of range.
    """

    def __init__(
        self,
        params: Params,
        optimizer: str | Optimizer,
        optimizer_params: Mapping[str, Any] | None = None,
    ) -> None:
        self._params = _named(params)
        given = dict(optimizer_params or {})
        self.num_update = 0
        self._rescale_grad = positive("rescale_grad", given.pop("rescale_grad", 1.0))
        self._scheduler: LRScheduler | None = given.pop("lr_scheduler", None)
        if isinstance(optimizer, str):
            if given.get("learning_rate", 0) is None:
                del given["learning_rate"]
            _check_precision(self._params, given.pop("multi_precision", False))
            entry, arguments = _translated(optimizer, given)
            self.optimizer: Optimizer = _made(entry, list(self._params.values()), arguments)
        else:
            self.optimizer = _checked(optimizer, self._params, optimizer_params)
        if _evaluates(self.optimizer):
            raise FitError(
                "optimizer",
                f"the step of {type(self.optimizer).__name__} evaluates the model itself, and that "
                "of a Trainer does not; call optimizer.step(closure) without one",
            )
        self._lr = self.learning_rate
        if self._scheduler is not None:
            _check_scheduler(self._scheduler)
            if hasattr(self._scheduler, "base_lr") and {"learning_rate", "lr"} & given.keys():
                self._scheduler.base_lr = self._lr
            self._set_lr(self._scheduled(1))

    @property
    def learning_rate(self) -> float:
        """Of the last step, and before the first that of the first."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_learning_rate(self, lr: float) -> None:
        """Take this learning rate from the next step on.

        Raises:
            FitError: if a schedule sets it, or it is not in [0, inf).
        """
        if self._scheduler is not None:
            raise FitError("lr", f"cannot be {lr!r}: the lr_scheduler sets it at every step")
        self._lr = _rate("lr", lr)
        self._set_lr(self._lr)

    def step(self, batch_size: float, ignore_stale_grad: bool = False) -> None:
        """Sum gradients over processes, if there are several, and take a step by their mean.

        Args:
            batch_size: samples that the loss was summed over, in all processes; 1 for a loss that
                is a mean already.
            ignore_stale_grad: leave out parameters that have no gradient since the last step.

        Raises:
            FitError: for another ``batch_size``, or a parameter without a gradient.
        """
        self.allreduce_grads()
        self.update(batch_size, ignore_stale_grad)

    def allreduce_grads(self) -> None:
        """Sum gradients over the processes of `torch.distributed`; nothing if there are no others.

        Call it, and then `update`, where gradients are to be changed in between. A parameter
        without a gradient in one process counts there as 0. Gradients that are sharded (FSDP) are
        summed already.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        params = [p for p in self._trained() if not is_sharded(p)]
        if not params:
            return
        here = torch.tensor([float(p.grad is not None) for p in params], device=params[0].device)
        dist.all_reduce(here)
        alike: dict[Any, list[Tensor]] = {}
        for p, somewhere in zip(params, here.tolist(), strict=True):
            if somewhere:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                alike.setdefault((p.grad.dtype, p.grad.device), []).append(p.grad)
        for gradients in alike.values():
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            totals = torch.split(flat, [g.numel() for g in gradients])
            for g, total in zip(gradients, totals, strict=True):
                g.copy_(total.view_as(g))

    def update(self, batch_size: float, ignore_stale_grad: bool = False) -> None:
        """Take a step by gradients as they are in this process; arguments as for `step`.

        Raises:
            FitError: as `step`.
        """
        scale = self._rescale_grad / positive("batch_size", batch_size)
        if not ignore_stale_grad:
            self._refuse_stale()
        if self._scheduler is not None:
            self._set_lr(self._scheduled(self.num_update + 1))
        if _rescales(self.optimizer):
            step: Any = self.optimizer.step
            step(rescale_grad=scale)
        else:
            for p in self._trained():
                if p.grad is not None:
                    p.grad.mul_(scale)
            self.optimizer.step()
        self.num_update += 1
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget all gradients, as after each step."""
        for p in self._params.values():
            p.grad = None

    def save_states(self, fname: str | Path) -> None:
        """Write the optimizer's state, its hyperparameters and the number of updates to a file.

        Raises:
            OSError: if it cannot be written; what stood there is as it was.
        """
        states = {
            "optimizer": type(self.optimizer).__name__,
            "state": self.optimizer.state_dict(),
            "num_update": self.num_update,
            "learning_rate": self._lr,
        }
        with whole(fname) as temporary:
            torch.save(states, temporary)

    def load_states(self, fname: str | Path) -> None:
        """Go on from where `save_states` was called, on a trainer of the same parameters.

        Raises:
            FitError: for a file of anything else.
            OSError: if it cannot be read.
        """
        try:
            states = torch.load(fname, map_location="cpu", weights_only=True)
            name, state = states["optimizer"], states["state"]
            num_update, lr = states["num_update"], states["learning_rate"]
        except (UnpicklingError, RuntimeError, TypeError, KeyError, EOFError) as error:
            raise FitError(
                "fname", f"{fname} was not written by Trainer.save_states: {first_line(error)}"
            ) from error
        own = type(self.optimizer).__name__
        if name != own:
            raise FitError(
                "fname", f"{fname} has the states of {name}, and this trainer's is {own}"
            )
        try:
            self.optimizer.load_state_dict(state)
        except ValueError as error:
            raise FitError("fname", f"{fname} does not fit this trainer: {error}") from error
        self.num_update, self._lr = num_update, lr

    def _trained(self) -> list[Tensor]:
        return [p for p in self._params.values() if p.requires_grad]

    def _refuse_stale(self) -> None:
        for name, p in self._params.items():
            if p.grad is None and p.requires_grad:
                raise FitError(
                    "params",
                    f"{name} has no gradient since the last step, so that the loss may not depend "
                    "on it; if that is meant, call step(batch_size, ignore_stale_grad=True)",
                )

    def _scheduled(self, update: int) -> float:
        """The rate of an update, counting from 1."""
        scheduler = self._scheduler
        if isinstance(scheduler, Schedule):
            return self._lr * scheduler(update - 1)
        assert scheduler is not None
        return _rate("lr_scheduler", scheduler(update))

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def _rate(argument: str, lr: Any) -> float:
    try:
        found = float(lr)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < float("inf"):
        raise FitError(argument, f"a learning rate must be a number in [0, inf), got {lr!r}")
    return found


def _named(params: Any) -> dict[str, Tensor]:
    """Parameters by name, each once."""
    if isinstance(params, DistributedDataParallel):
        raise FitError(
            "params",
            "a Trainer sums gradients over processes itself; give the module that is inside "
            "DistributedDataParallel, and train that",
        )
    if isinstance(params, nn.Module):
        params = params.named_parameters()
    if isinstance(params, Mapping):
        params = params.items()
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise FitError("params", f"must be a module or its parameters, got {params!r}")
    found: dict[Tensor, str] = {}
    for i, one in enumerate(params):
        name, p = one if isinstance(one, tuple) and len(one) == 2 else (f"parameter {i}", one)
        if not isinstance(p, Tensor):
            raise FitError("params", f"{name} must be a parameter, got {type(p).__name__}")
        if is_lazy(p):
            raise FitError("params", f"{name} has no shape yet; call the model with a batch first")
        found.setdefault(p, name)
    if not found:
        raise FitError("params", "there are none; give model.parameters()")
    return {name: p for p, name in found.items()}


def _check_precision(params: Mapping[str, Tensor], multi_precision: Any) -> None:
    for name, p in params.items():
        if multi_precision and p.dtype in (torch.float16, torch.bfloat16):
            raise FitError(
                "multi_precision",
                f"no copies in float32 are kept of parameters such as {name}, {p.dtype}; keep the "
                "model in float32 and call it under torch.autocast",
            )


def _check_scheduler(scheduler: Any) -> None:
    if not callable(scheduler):
        raise FitError(
            "lr_scheduler",
            "must be a thalweg Schedule or a function of the number of updates, got a "
            f"{type(scheduler).__name__}; torch's schedulers are made of trainer.optimizer",
        )


def _checked(
    optimizer: Any, params: Mapping[str, Tensor], optimizer_params: Mapping[str, Any] | None
) -> Optimizer:
    """An optimizer that a person made, if it is of these parameters."""
    if not isinstance(optimizer, Optimizer):
        raise FitError("optimizer", f"must be a name or an optimizer, got {optimizer!r}")
    own = {p for group in optimizer.param_groups for p in group["params"]}
    if own != set(params.values()):
        raise FitError("optimizer", "has other parameters than params; give both the same")
    others = set(optimizer_params or ()) - {"rescale_grad", "lr_scheduler"}
    if others:
        raise FitError(
            "optimizer_params",
            f"{sorted(others)[0]!r} is for an optimizer by name; this one has its own already",
        )
    return optimizer


def _evaluates(optimizer: Optimizer) -> bool:
    """Whether a step needs a closure."""
    if isinstance(optimizer, RuleOptimizer):
        return any(optimizer.rule.resolve(g).point is not None for g in optimizer.param_groups)
    return isinstance(optimizer, SAM | GD | LBFGS)


def _rescales(optimizer: Optimizer) -> bool:
    """Whether the step multiplies gradients itself, at no cost."""
    while isinstance(optimizer, Lookahead):
        optimizer = optimizer.base
    return isinstance(optimizer, RuleOptimizer) and type(optimizer).step is RuleOptimizer.step


def _nearest(name: object, names: Iterable[str]) -> str:
    near = get_close_matches(str(name), [*names], 3)
    return f"did you mean {' or '.join(near)}?" if near else f"give one of {', '.join(names)}"


def _translated(optimizer: str, given: Mapping[str, Any]) -> tuple[Entry, dict[str, Any]]:
    """An optimizer, and what its constructor takes for what a person gave in MXNet's names."""
    entry = entry_of(optimizer)
    style = _STYLES.get(entry.name, _Style())
    numbers = dict(style.numbers)
    # Torch's form of momentum has the rate outside; who names what only that has gets that.
    if entry.name == "sgd" and given.get("momentum") and not {"nesterov", "dampening"} & {*given}:
        entry, numbers["form"] = OPTIMIZERS["momentum"], "sutskever"
    taken = [n for n in entry.constructor.signature().parameters if n not in {"params", *TORCHS}]
    names = {typed: own for typed, own in _NAMES.items() if own in taken} | dict(style.names)
    if "betas" in taken:
        count = len(entry.rule.defaults["betas"])
        names |= {f"beta{i + 1}": f"betas {i}" for i in range(count)}
    names |= {own: own for own in taken}
    arguments: dict[str, Any] = {}
    typed_as: dict[str, str] = {}
    for typed, value in given.items():
        if typed in _NO_EFFECT:
            continue
        if typed not in names:
            meant = _nearest(typed, [*names, "lr_scheduler", "rescale_grad"])
            raise FitError("optimizer_params", f"{entry.label} has no {typed!r}; {meant}")
        own = names[typed]
        other = typed_as.setdefault(own, typed)
        if other != typed:
            raise FitError("optimizer_params", f"{other!r} and {typed!r} are the same; give one")
        _check_value(entry, own, typed, value)
        arguments[own] = value
    arguments = _with_betas(entry, arguments)
    return entry, {**numbers, **_conventions(entry, arguments, given), **arguments}


def _check_value(entry: Entry, own: str, typed: str, value: Any) -> None:
    """Refuse a value out of range, by the name that the person typed."""
    name, _, place = own.partition(" ")
    known = {**entry.rule.every_hyper, **OPTIONS}[name]
    if place:
        assert isinstance(known, Number)
        known = replace(known, default=0.0)
    try:
        replace(known, name=typed).check(entry.label, value)
    except HyperparameterError as error:
        raise FitError("optimizer_params", str(error)) from None


def _with_betas(entry: Entry, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same with one tuple for those that were given one by one."""
    single = {own: value for own, value in arguments.items() if own.startswith("betas ")}
    if not single:
        return arguments
    if "betas" in arguments:
        raise FitError("optimizer_params", "'betas' has 'beta1' in it already; give one")
    betas = list(entry.rule.defaults["betas"])
    for own, value in single.items():
        betas[int(own.split()[1])] = value
    return {**{n: v for n, v in arguments.items() if n not in single}, "betas": tuple(betas)}


def _conventions(
    entry: Entry, arguments: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What follows in MXNet from what was given."""
    if entry.name == "rmsprop" and arguments.get("centered"):
        return {"momentum": 0.9}
    if entry.name == "rmsprop" and "gamma2" in given:
        raise FitError(
            "optimizer_params",
            "'gamma2' has an effect with 'centered': True alone; leave it out, or give both",
        )
    if entry.name == "signum" and ("wd_lh" in given or arguments.get("momentum") == 0):
        return {"decoupled_weight_decay": True}
    return {}


def _made(entry: Entry, params: list[Tensor], arguments: Mapping[str, Any]) -> Optimizer:
    try:
        return entry.constructor(params, **arguments)
    except (TypeError, ValueError) as error:
        raise FitError("optimizer_params", str(error)) from error
