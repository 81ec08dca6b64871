"""Parameters on a GPU, which take their step together, in few launches and without waiting for it.

The same part as those of `thalweg.optim.parts`. Coefficients come from the host, in one copy that
nobody waits for, and sums of terms and what follows from them stay on the device. With
``capturable`` step counts and scalars are there too and the coefficients are computed from them,
so that a step can be captured in a CUDA graph and replayed.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.kernels import lists
from thalweg.kernels.cpu import Storage
from thalweg.kernels.objects import Entries
from thalweg.kernels.storage import RANDOM16, SCALED, seeds
from thalweg.optim.parts import NUMPY, Group, Member, refuse
from thalweg.optim.state import scale_of
from thalweg.rules.rule import Hyper, Rule, Sums

__all__ = ["Together", "goes_together", "is_host"]

# Types of device: those whose tensors the other parts take, and those that steps compile for.
HOSTS = {"cpu"}
COMPILING = {"cuda"}
BACKEND: str | Callable[..., Any] = "inductor"
_FAILED: set[tuple[Rule, Storage]] = set()  # to compile


def is_host(device: torch.device) -> bool:
    """Whether a device is the one that coefficients are computed on."""
    return device.type in HOSTS


def goes_together(rule: Rule, p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether `Together` takes a parameter, its gradient and its state as they are now."""
    kept = [state[name] for name in rule.state]
    return (
        not rule.whole
        and not is_host(p.device)
        and type(p) in (Tensor, torch.nn.Parameter)
        and p.dtype in NUMPY
        and _gradient_fits(p)
        and all(type(t) is Tensor and t.device == p.device and t.shape == p.shape for t in kept)
    )


def _gradient_fits(p: Tensor) -> bool:
    g = p.grad
    return g is None or (g.dtype == p.dtype and g.device == p.device and type(g) is Tensor)


@dataclass
class _Share:
    """Members of a part that have their coefficients in common in one step."""

    members: list[int]
    group: Group
    hyper: Hyper  # of the group, as coefficients are computed from them
    count: Any  # of this step: a number, or a float64 tensor on the device
    scalars: Sums
    row: Sums


class Together:
    """Parameters of one rule, dtype, device and way of storing."""

    meeting, seats = None, np.zeros(0, dtype=np.int64)

    shares_memory = False

    def __init__(
        self,
        rule: Rule,
        storage: Storage,
        members: Sequence[Member],
        number: int,
        capturable: bool = False,
        compiles: bool = True,
    ) -> None:
        """Take them, wherever their step counts and scalars are so far.

        Args:
            rule: a resolved rule.
            storage: of all of them.
            members: at least one.
            number: of this part.
            capturable: keep step counts on the device.
            compiles: by ``torch.compile`` where that makes code for the device.
        """
        self.rule, self.storage, self.number, self.capturable = rule, storage, number, capturable
        self.parameters, self.indices, self.states, self.owners = map(
            list, zip(*members, strict=True)
        )
        first: Tensor = self.parameters[0]
        self.device, self.dtype = first.device, first.dtype
        self.computed = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.compiles = (
            compiles and first.device.type in COMPILING and (rule, storage) not in _FAILED
        )
        # What follows from sums is on the device, where the sums are.
        self.scalars_here = capturable or rule.terms is not None
        counts = [float(state["step"]) for state in self.states]
        numbers = [tuple(float(state[name]) for name in rule.scalars) for state in self.states]
        self._place(counts)
        self.columns = [[state[name] for state in self.states] for name in rule.state]
        self.scales: list[list[Tensor]] = [
            [state[scale_of(name)] for state in self.states] if kind in SCALED else []
            for name, kind in zip(rule.state, storage.states, strict=True)
        ]
        scaled = [scale_of(n) for n, s in zip(rule.state, self.scales, strict=True) if s]
        self.entries = Entries(self.states, ("step", *rule.state, *scaled, *rule.scalars))
        # Whoever has one label has had the same step count and scalars so far. That is known
        # without looking at those on the device: who has a gradient takes part in a step, and a
        # label whose bearers do not all take part is divided.
        apart = bool(rule.scalars) and rule.terms is not None and not rule.joint
        kinds = list(zip(self.indices, counts, numbers, range(len(counts)), strict=True))
        known: dict[Any, int] = {}
        self.labels = [known.setdefault(kind if apart else kind[:3], len(known)) for kind in kinds]
        self.shares: list[_Share] = []

    def _place(self, counts: list[float]) -> None:
        """Put step counts and scalars where this part keeps them."""
        here = self.device if self.capturable else torch.device("cpu")
        if not self.capturable:
            step = torch.tensor(counts, dtype=torch.float32)
            self.counts = step.numpy()
            for i, state in enumerate(self.states):
                state["step"] = step[i]
        for state in self.states:
            # A tensor that is in place stays the same: a captured graph may know its address.
            state["step"] = state["step"].to(here, torch.float32)
            for name in self.rule.scalars:
                home = self.device if self.scalars_here else torch.device("cpu")
                state[name] = state[name].to(home, torch.float64)

    def locate(self) -> bool:
        """Whether all are what they were.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        for p, owner in zip(self.parameters, self.owners, strict=True):
            refuse(p, owner)
        return self.entries.hold() and all(
            p.dtype == self.dtype and p.device == self.device and _gradient_fits(p)
            for p in self.parameters
        )

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients, and who takes them."""
        self._divide([i for i, p in enumerate(self.parameters) if p.grad is not None], groups)

    def _divide(self, present: Sequence[int], groups: Sequence[Group]) -> None:
        found: dict[Any, list[int]] = {}
        for i in present:
            found.setdefault(self._kind(i), []).append(i)
        taken = set(present)
        left = {label for i, label in enumerate(self.labels) if i not in taken}
        self.shares = []
        for members in found.values():
            if self.labels[members[0]] in left:
                fresh = max(self.labels) + 1
                for i in members:
                    self.labels[i] = fresh
            self.shares.append(self._share(members, groups[self.indices[members[0]]]))

    def _kind(self, i: int) -> Any:
        """What members of one share have in common."""
        if self.capturable:
            return self.labels[i]
        if self.scalars_here:
            return self.labels[i], self.counts.item(i)
        return self.labels[i], self.counts.item(i), *map(float, self._scalars(i))

    def _scalars(self, i: int) -> Sums:
        return tuple(self.states[i][name] for name in self.rule.scalars)

    def _share(self, members: list[int], group: Group) -> _Share:
        first = members[0]
        hyper = self._numbers(group)
        count: Any
        if self.capturable:
            count = self.states[first]["step"].double() + 1.0
        else:
            count = int(self.counts.item(first)) + 1
        scalars = self._scalars(first)
        if not self.scalars_here:
            scalars = tuple(map(float, scalars))
        row = self.rule.raw_row(hyper, count, scalars)
        return _Share(members, group, hyper, count, scalars, row)

    def _numbers(self, group: Group) -> Hyper:
        """A group with numbers for tensors of one element, or float64 ones on the device."""

        def number(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # One on the device is not looked at, unless scalars on the host follow from it. Its
            # own precision is not that of coefficients.
            on_host = value.device.type == "cpu" or (self.rule.scalars and not self.scalars_here)
            return float(value) if on_host else value.detach().double().reshape(())

        betas = group.get("betas", ())
        if not any(isinstance(value, Tensor) for value in (group["lr"], *betas)):
            return group
        return {**group, "lr": number(group["lr"]), "betas": tuple(map(number, betas))}

    def _of(self, share: _Share) -> tuple[Any, ...]:
        """What `lists.step` and `lists.measure` are given: all tensors of a share."""

        def chosen(some: Sequence[Any]) -> list[Any]:
            return [some[i] for i in share.members] if some else []

        parameters = chosen(self.parameters)
        return (
            parameters,
            [p.grad for p in parameters],
            [chosen(column) for column in self.columns],
            [chosen(column) for column in self.scales],
        )

    @torch.no_grad()
    def squares(self) -> Tensor:
        """Sum of the squares of the gradients, float64 on the device."""
        present = [p.grad for p in self.parameters if p.grad is not None]
        if not present:
            return self._here(0.0)
        norms = torch._foreach_norm(present, 2, dtype=torch.float64)
        return torch.stack(norms).square().sum()

    def bound(self, factors: Mapping[int, Any]) -> None:
        """Multiply the gradients of groups, to be found by `id`, by their factors."""
        for share in self.shares:
            factor = factors.get(id(share.group))
            if isinstance(factor, Tensor):
                factor = factor.to(self.device)
            if factor is not None:
                share.row = (share.row[0] * factor, *share.row[1:])

    @torch.no_grad()
    def _measure(self, share: _Share) -> Tensor:
        """Sums of the rule's terms, ``(terms, members)``."""
        found: Tensor = self._call("measure", *self._of(share), self._packed(share.row))
        return found

    def sums(self) -> Sums:
        """For joint rules, sums of the terms over all parameters that have a gradient.

        Others measure each parameter when they `finish`.
        """
        if not self.rule.joint:
            return ()
        found = [self._measure(share).sum(1) for share in self.shares]
        return tuple(torch.stack(found).sum(0).unbind()) if found else ()

    @torch.no_grad()
    def finish(self, totals: Sums | None) -> None:
        """Take the step of all that have a gradient.

        Args:
            totals: for joint rules, their sums over all parts.
        """
        for share in self.shares:
            sums: Sums = ()
            if self.rule.joint and totals is not None:
                sums = tuple(map(self._here, totals))
            elif self.rule.terms is not None:
                sums = tuple(self._measure(share))
            extra, scalars = self.rule.raw_go_on(share.hyper, share.count, sums, share.scalars)
            rows = self._packed(share.row), self._packed(extra)
            self._call("step", *self._of(share), *rows, self._seeds(share))
            self._keep(share, scalars)

    def _here(self, number: Any) -> Tensor:
        """A number, or what another device has, as a float64 tensor on this one."""
        if isinstance(number, Tensor):
            return number.to(self.device, torch.float64)
        # Filled in, for a copy from the host would be waited for.
        return torch.full((), float(number), dtype=torch.float64, device=self.device)

    def _seeds(self, share: _Share) -> lists.Seeds:
        """Of what is rounded at random; tensors where a number would be part of compiled code."""
        kinds = self.storage.parameter, *self.storage.states
        if not any(kind in (RANDOM16, *SCALED) for kind in kinds):
            return 0, 0
        if self.capturable:
            place, turn = seeds((share.count - 1.0).long(), self.number)
            return torch.full((), place, dtype=torch.int64, device=self.device), turn
        numbers = seeds(share.count - 1, self.number)
        if not self.compiles:
            return numbers
        place, turn = self._sent(numbers, torch.int64).unbind()
        return place, turn

    def _keep(self, share: _Share, scalars: Sums) -> None:
        """Count the step, and keep the scalars."""
        states = [self.states[i] for i in share.members]
        if self.capturable:
            torch._foreach_add_([state["step"] for state in states], 1.0)
        else:
            self.counts[share.members] += 1.0
        if not scalars:
            return
        if self.scalars_here:
            # Stacked first: a scalar may become what another was.
            each = _together(list(map(self._here, scalars))).reshape(len(scalars), -1)
            new = each.expand(-1, len(states)).flatten().unbind()
            old = [state[name] for name in self.rule.scalars for state in states]
            torch._foreach_copy_(old, list(new))
            return
        for name, value in zip(self.rule.scalars, scalars, strict=True):
            for state in states:
                state[name].fill_(float(value))

    def _packed(self, row: Sums) -> Any:
        """Coefficients in the dtype that is computed in: one tensor for compiled code."""
        made = [c.double() for c in row if isinstance(c, Tensor)]
        if not self.compiles:
            each = iter(_together(made).to(self.computed).unbind() if made else ())
            return tuple(next(each) if isinstance(c, Tensor) else float(c) for c in row)
        if not row:
            return ()
        # In a graph, a replay would read the host's memory again, which is another's by then.
        if made or self.capturable:
            return _together(list(map(self._here, row))).to(self.computed)
        return self._sent([float(c) for c in row], self.computed)

    def _sent(self, numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Numbers on the device, by a copy that nobody waits for."""
        host = torch.tensor(numbers, dtype=dtype, pin_memory=self.device.type == "cuda")
        return host.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _call(self, what: str, *arguments: Any) -> Any:
        """`lists.step` or `lists.measure`, compiled if that can be had."""
        if self.compiles:
            try:
                return lists.compiled(what, self.rule, self.storage, BACKEND)(*arguments)
            except (torch._dynamo.exc.TorchDynamoException, ImportError) as error:
                self.compiles = False
                _FAILED.add((self.rule, self.storage))
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                warnings.warn(
                    f"the step of {self.rule.name} on {self.device} does not compile and goes by "
                    f"torch's multi-tensor operations, which takes several times as long; "
                    f"foreach=True asks for that without this warning ({reason})",
                    stacklevel=2,
                )
        return getattr(lists, what)(self.rule, self.storage, *arguments)

    def shift(self, groups: Sequence[Group]) -> None:
        """Move all parameters to where the next step takes the gradient."""
        self._divide(range(len(self.parameters)), groups)
        for share in self.shares:
            parameters, _, states, scales = self._of(share)
            row = self._packed(share.row)
            lists.shift(self.rule, self.storage, parameters, states, scales, row)


def _together(some: Sequence[Tensor]) -> Tensor:
    """Numbers as one tensor ``(n,)``, or numbers and vectors as ``(n, length)``."""
    return torch.stack(list(torch.broadcast_tensors(*some)))  # type: ignore[no-untyped-call]
