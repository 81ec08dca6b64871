"""Parameters that take their step together, by kernel, one by one, or as a stack of matrices.

Those on a GPU do in `thalweg.optim.device`.

Each part can do the same: `locate` its memory (False if a tensor belongs elsewhere now), `begin` a
step (coefficients), take the `squares` of the gradients, `bound` their norm, take the `sums` of its
rule's terms, which the step of other parts may need too, and `finish` it; `shift` moves parameters
to where the rule takes the gradient. Squares and sums are arrays where they are found on the host,
and tensors without dimensions where nobody is to wait for a device.

Of DTensors a part takes what lies in this process, and its squares and sums are of that alone: they
are added up at its ``meeting``, where its parameters have the rows ``seats``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import inf, isfinite
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import profiler

from thalweg.kernels import addresses, cpu, tensors
from thalweg.kernels.codecs import encoded
from thalweg.kernels.objects import Entries
from thalweg.kernels.storage import (
    NEXT_ARRAY,
    NEXT_SEGMENT,
    RANDOM16,
    SCALED,
    scales,
    seeds,
)
from thalweg.optim.shards import (
    Meeting,
    Shards,
    is_sharded,
    laid_out_alike,
    laid_out_as,
    part_of,
    put,
    whole,
    with_part,
)
from thalweg.optim.state import scale_of
from thalweg.rules.rule import Row, Rule

__all__ = [
    "NUMPY",
    "Batch",
    "Gathered",
    "Group",
    "Loose",
    "Member",
    "Stack",
    "Sums2d",
    "fits",
    "refuse",
]

Group = dict[str, Any]
Sums2d: TypeAlias = NDArray[np.float64]  # (parameters, terms)
Member = tuple[Tensor, int, dict[str, Any], str]  # parameter, group, state, name in errors

LABEL = "thalweg::step"  # of the kernel, in profilers

# What a kernel computes a dtype in.
NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.float32,
    torch.float16: np.float32,
}
_SQUARE = Rule("square of the gradient", (), (), lambda hyper, step: (), lambda p, g: (p,))
_SQUARE = replace(_SQUARE, terms=lambda p, g: (g * g,))


@cache
def _plain(rows: int, dtype: type[np.floating[Any]]) -> cpu.Rows:
    """Rows of coefficients that leave gradients as they are."""
    return np.tile(np.array([[1.0, inf, 0.0, 1.0]], dtype), (rows, 1))


class Batch:
    """Parameters of one rule and way of storing, which take their step in one kernel call.

    The step counts of all of them lie in one tensor, of which each parameter's ``state["step"]``
    is a view; so do the rule's other scalars.
    """

    shares_memory = False

    def __init__(
        self,
        rule: Rule,
        storage: cpu.Storage,
        members: Sequence[Member],
        number: int,
        meeting: Meeting | None = None,
    ) -> None:
        whole_parameters, groups, self.states, _ = zip(*members, strict=True)
        self.rule = rule
        self.number = number
        self.meeting, self.seats = meeting, _seats(meeting, whole_parameters)
        self.parameters = whole_parameters
        self.dtype = NUMPY[whole_parameters[0].dtype]
        counts = [float(state["step"]) for state in self.states]
        self.step = torch.tensor(counts, dtype=torch.float32)
        self.counts = self.step.numpy()
        self.scalars = np.array(
            [[float(state[name]) for state in self.states] for name in rule.scalars]
        ).reshape(len(rule.scalars), len(members))
        scalars = torch.from_numpy(self.scalars)
        for i, state in enumerate(self.states):
            state["step"] = self.step[i]
            for k, name in enumerate(rule.scalars):
                state[name] = scalars[k, i]
        its_scales = [
            scale_of(name) if kind in SCALED else name
            for name, kind in zip(rule.state, storage.states, strict=True)
        ]
        named = rule.state if storage.native else (*rule.state, *its_scales)
        self.entries = Entries(self.states, ("step", *dict.fromkeys(named), *rule.scalars))
        self.shards: Shards | None = None
        if any(map(is_sharded, whole_parameters)):
            kept = [state[name] for state in self.states for name in named]
            self.shards = Shards(whole_parameters, kept)
        parameters = [part_of(p) for p in whole_parameters]
        columns = [[part_of(state[name]) for state in self.states] for name in named]
        self.located = addresses.Located(parameters, columns, self.counts)
        # Imaginary parts of conjugates: contiguous if of one element, and stored with the
        # opposite sign.
        self.singles = [p for p in parameters if p.numel() == 1]
        self.groups = sorted(set(groups))
        self.group_rows = np.searchsorted(self.groups, groups)
        self.segments = cpu.Segments.of(
            [p.numel() for p in parameters], self.group_rows.tolist(), len(rule.state), storage
        )
        self.blocks = self.segments.blocks
        self.segments = replace(self.segments, blocks=self.blocks[:0])
        self.which = self.group_rows
        self.even = False

    def locate(self) -> bool:
        """Read all addresses; False if a tensor is no longer one that the kernel takes."""
        if self.shards is not None and not self.shards.lend():
            return False
        taken, changed, even = self.located.read(self.segments.table)
        if changed:
            present = self.located.present.astype(bool)
            blocks = self.blocks[present[self.blocks[:, 0]]]
            self.segments = replace(self.segments, blocks=blocks)
        self.even = even
        return taken and not any(map(_negative, self.singles))

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients, one row for each group, step count and set of scalars."""
        self._find_rows(groups, self.located.upcoming)

    def _find_rows(self, groups: Sequence[Group], counts: NDArray[np.float32]) -> None:
        even = self.even
        scalars: tuple[float, ...] = ()
        if even and len(self.scalars):
            same = self.scalars == self.scalars[:, :1]
            even = len(self.groups) == 1 and bool(same.all())
            scalars = tuple(self.scalars[:, 0].tolist())
        if even:
            count = int(counts.item(0))
            self.kinds = [(groups[g], count, scalars) for g in self.groups]
            self._use(self.group_rows)
        else:
            distinct, which = np.unique(
                np.stack([self.group_rows, counts, *self.scalars], axis=1),
                axis=0,
                return_inverse=True,
            )
            # A parameter that never had a gradient takes no step, and its row is not used.
            self.kinds = [
                (groups[self.groups[int(g)]], max(int(count), 1), tuple(scalars))
                for g, count, *scalars in distinct.tolist()
            ]
            self._use(which.ravel())
        self.rows = [self.rule.row(*kind) for kind in self.kinds]
        self.bounded = any(row[1] != inf for row in self.rows)

    def _use(self, which: NDArray[np.int64]) -> None:
        """Tell the table whose row is which."""
        if which is not self.which:
            self.which = which
            self.segments.rows[:] = which

    def squares(self) -> Sums2d:
        """Sums of the squares of the gradients, ``(parameters, 1)``."""
        found = cpu.measure(_SQUARE, self.segments.stateless, _plain(len(self.rows), self.dtype))
        # Squares of float32 may be beyond float32 where the norm is not.
        if not isfinite(found.sum()):
            for i in np.flatnonzero(~np.isfinite(found[:, 0])):
                gradient = self.parameters[i].grad
                if gradient is not None:
                    found[i] = float(part_of(gradient).double().square().sum())
        return found

    def bound(self, factors: Mapping[int, Any]) -> None:
        """Multiply gradients.

        Args:
            factors: for groups, by `id`, that bound the norm of the gradient, by what.
        """
        self.rows = [
            (row[0] * float(factors.get(id(kind[0]), 1.0)), *row[1:])
            for row, kind in zip(self.rows, self.kinds, strict=True)
        ]

    def sums(self) -> Sums2d:
        """Sums of the rule's terms, ``(parameters, terms)``; zeros where there is no gradient."""
        rows = np.array(self.rows, dtype=self.dtype)
        return cpu.measure(self.rule, self.segments, rows, self.bounded)

    def finish(self, sums: Sums2d | None) -> None:
        """Take the step, and count it.

        Args:
            sums: of the rule's terms over each whole parameter, or for joint rules ``(1, terms)``
                over all parts; None for rules without terms.
        """
        rows: Any = self.rows
        if self.rule.advance is not None:
            rows = self._advance(rows, sums)
        random = 0, 0
        if not self.segments.storage.native:
            random = _seeds(int(self.counts.max()), self.number, self.meeting)
        kernel = self.rule, self.segments, np.array(rows, self.dtype), self.bounded, random
        if profiler._is_profiler_enabled:  # they see nothing of it unless they are told
            with profiler.record_function(LABEL):
                cpu.run(*kernel)
        else:
            cpu.run(*kernel)
        self.counts[:] = self.located.upcoming
        if self.shards is not None:
            self.shards.take_back()

    def _advance(self, rows: Sequence[Row], sums: Sums2d | None) -> NDArray[np.float64]:
        """Rows with what follows from the sums, and the scalars of the next step."""
        rule, which = self.rule, self.which
        if sums is None or rule.joint:
            totals = () if sums is None else tuple(sums[0].tolist())
            found = [rule.go_on(g, count, totals, scalars) for g, count, scalars in self.kinds]
            after = np.array([scalars for _, scalars in found]).reshape(len(found), -1)
            present = self.located.present.astype(bool)
            self.scalars[:, present] = after[which[present]].T
            return np.array([(*row, *extra) for row, (extra, _) in zip(rows, found, strict=True)])
        # A row of its own for every tensor.
        every = np.array(rows)[which]
        extras: NDArray[np.float64] | None = None
        for k, (group, count, scalars) in enumerate(self.kinds):
            mine = which == k
            extra, _ = rule.go_on(group, count, tuple(sums[mine].T), scalars)
            if extras is None:
                extras = np.zeros((len(every), len(extra)))
            extras[mine] = np.stack(extra, axis=1)
        assert extras is not None
        self._use(np.arange(len(every)))
        return np.concatenate([every, extras], axis=1)

    def shift(self, groups: Sequence[Group]) -> None:
        """Move all parameters to where the next step takes the gradient."""
        self.even = False
        self._find_rows(groups, self.counts + 1)
        storage = self.segments.storage
        if storage.native:
            every = replace(self.segments, blocks=self.blocks)
            cpu.shift(self.rule, every, np.array(self.rows, dtype=self.dtype))
        else:
            # That kernel takes everything as stored in the type that it computes in.
            for p, state, row in zip(self.parameters, self.states, self.which, strict=True):
                arrays = _opened(self.rule, storage, p, state)
                tensors.shift(self.rule, part_of(p), arrays, self.rows[row])
        if self.shards is not None:
            self.shards.take_back()


class Loose:
    """A parameter that takes its step by torch operations: a transposed view, another device."""

    def __init__(
        self,
        rule: Rule,
        storage: cpu.Storage,
        member: Member,
        number: int,
        meeting: Meeting | None = None,
        shares_memory: bool = False,
    ) -> None:
        self.rule, self.storage, self.number = rule, storage, number
        self.shares_memory = shares_memory  # with another, so that one has to come after the other
        self.p, self.group, self.state, self.owner = member
        self.meeting, self.seats = meeting, _seats(meeting, [self.p])
        self.gradient: Tensor | None = None

    def locate(self) -> bool:
        """Whether the kernel still could not take it.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        refuse(self.p, self.owner)
        return self.shares_memory or not fits(self.rule, self.storage, self.p, self.state)

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients of this step, and the gradient laid out as the parameter."""
        g = self.p.grad
        self.gradient = None if g is None else laid_out_as(self.p, g)
        if g is not None:
            self._find_row(groups)

    def _find_row(self, groups: Sequence[Group]) -> None:
        self.hyper = groups[self.group]
        self.count = int(self.state["step"]) + 1
        self.scalars = tuple(float(self.state[name]) for name in self.rule.scalars)
        self.row = self.rule.row(self.hyper, self.count, self.scalars)

    def _arrays(self) -> tuple[Tensor, ...]:
        return _opened(self.rule, self.storage, self.p, self.state)

    def squares(self) -> Sums2d:
        """Sum of the squares of the gradient, ``(1, 1)``."""
        g = self.gradient
        return np.array([[0.0 if g is None else float(g.double().square().sum())]])

    def bound(self, factors: Mapping[int, Any]) -> None:
        """Multiply the gradient by the factor of its group, if that is there by its `id`."""
        if self.gradient is not None:
            self.row = (self.row[0] * float(factors.get(id(self.hyper), 1.0)), *self.row[1:])

    def sums(self) -> Sums2d:
        """Sums of the rule's terms, ``(1, terms)``; no terms without a gradient."""
        if self.gradient is None:
            return np.zeros((1, 0))
        part, state = part_of(self.p), self._arrays()
        found = tensors.measure(self.rule, part, self.gradient, state, self.row)
        return np.array([[float(s) for s in found]])

    def finish(self, sums: Sums2d | None) -> None:
        """Take the step, if there is a gradient."""
        g, p = self.gradient, part_of(self.p)
        if g is None:
            return
        if self.shares_memory and sums is not None and not self.rule.joint:
            sums = self.sums()  # after the step of the others
        totals = () if sums is None else tuple(sums[0].tolist())
        extra, scalars = self.rule.go_on(self.hyper, self.count, totals, self.scalars)
        new = tensors.stepped(self.rule, p, g, self._arrays(), self.row, extra)
        place, turn = _seeds(self.count - 1, self.number, self.meeting)
        tensors.close(self.storage.parameter, p, None, new[0], place, turn)
        kept = zip(self.storage.states, self.rule.state, new[1:], strict=True)
        for k, (kind, name, value) in enumerate(kept, start=2):
            part, own = part_of(self.state[name]), place + NEXT_ARRAY * k
            tensors.close(kind, part, _scale(self.p, self.state, name), value, own, turn)
        for name, number in zip(self.rule.scalars, scalars, strict=True):
            self.state[name].fill_(float(number))
        self.state["step"] += 1
        self._written()
        if self.storage.clear:
            assert self.p.grad is not None
            part_of(self.p.grad).zero_()
        self.gradient = None

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameter to where the next step takes the gradient."""
        self._find_row(groups)
        tensors.shift(self.rule, part_of(self.p), self._arrays(), self.row)
        self._written()

    def _written(self) -> None:
        """Tell autograd of a DTensor what it sees of its part by itself."""
        if is_sharded(self.p):
            torch.autograd.graph.increment_version(self.p)


class Stack:
    """Parameters of one shape whose rule needs them whole, taken as one tensor of all of them."""

    meeting, seats = None, np.zeros(0, dtype=np.int64)
    shares_memory = False

    def __init__(
        self, rule: Rule, storage: cpu.Storage, members: Sequence[Member], number: int
    ) -> None:
        self.rule, self.storage, self.number = rule, storage, number
        self.parameters, self.indices, self.states, self.owners = map(
            list, zip(*members, strict=True)
        )
        for state in self.states:
            # In checkpoints from before torch 1.12 it is a number.
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32)
        kinds = zip(rule.state, storage.states, strict=True)
        self.named = *rule.state, *(scale_of(name) for name, kind in kinds if kind in SCALED)
        self._stack()
        self.entries = Entries(self.states, ("step", *self.named))
        self.dtype, self.shape = self.parameters[0].dtype, self.parameters[0].shape

    def _stack(self) -> None:
        """Keep each state of all of them in one tensor, of which those of each are views."""
        if len(self.states) == 1:
            # Left where it is: a parameter given twice has its state in two parts.
            self.kept = {name: self.states[0][name][None] for name in self.named}
            return
        self.kept = {
            name: torch.stack([state[name] for state in self.states]) for name in self.named
        }
        for i, state in enumerate(self.states):
            for name in self.named:
                state[name] = self.kept[name][i]

    def locate(self) -> bool:
        """Whether all are what they were.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        for p, owner in zip(self.parameters, self.owners, strict=True):
            refuse(p, owner)
        return (
            self.entries.hold()
            and all(p.dtype == self.dtype and p.shape == self.shape for p in self.parameters)
            and all(
                state[name].data_ptr() == slot.data_ptr()
                for name, kept in self.kept.items()
                for state, slot in zip(self.states, kept, strict=True)
            )
        )

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients, and who of the stack takes them."""
        shares: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                count = int(self.states[i]["step"]) + 1
                shares.setdefault((self.indices[i], count), []).append(i)
        self.shares = [
            (members, groups[g], count, self.rule.row(groups[g], count))
            for (g, count), members in shares.items()
        ]

    @torch.no_grad()
    def squares(self) -> Sums2d | Tensor:
        """Sum of the squares of the gradients: ``(1, 1)``, or a tensor if they are on a device."""
        present = [p.grad for p in self.parameters if p.grad is not None]
        total = self.parameters[0].new_zeros((), dtype=torch.float64)
        for g in present:
            total += g.double().square().sum()
        return np.array([[float(total)]]) if total.device.type == "cpu" else total

    def bound(self, factors: Mapping[int, Any]) -> None:
        """Multiply the gradients of groups, to be found by `id`, by their factors."""
        device = self.parameters[0].device
        self.shares = [
            (members, group, count, (row[0] * _on(device, factors.get(id(group), 1.0)), *row[1:]))
            for members, group, count, row in self.shares
        ]

    def sums(self) -> Sums2d:
        """Rules of whole tensors have no terms."""
        return np.zeros((0, 0))

    @torch.no_grad()
    def finish(self, sums: Sums2d | None) -> None:
        """Take the step of all that have a gradient."""
        for members, _, count, row in self.shares:
            gradients = [g for i in members if (g := self.parameters[i].grad) is not None]
            p, g = whole([self.parameters[i] for i in members]), whole(gradients)
            new = tensors.stepped(self.rule, p, g, self._open(members), row)
            place, turn = seeds(count - 1, self.number)
            values, _ = encoded(self.storage.parameter, new[0], place, turn)
            put([self.parameters[i] for i in members], values)
            kept = zip(self.storage.states, self.rule.state, new[1:], strict=True)
            for k, (kind, name, value) in enumerate(kept, start=2):
                self._close(members, kind, name, value, place + NEXT_ARRAY * k, turn)
            for i in members:
                self.states[i]["step"] += 1
            if self.storage.clear:
                torch._foreach_zero_([part_of(g) for g in gradients])

    def _open(self, members: list[int]) -> list[Tensor]:
        """Each state of some of the stack as it is computed with, ``(members, *shape)``."""
        kept = self.kept
        if len(members) < len(self.parameters):
            # Not by an index of who they are, which would be sent to a device, and waited for.
            kept = {n: torch.stack([self.states[i][n] for i in members]) for n in self.named}
        return [
            tensors.opened(kind, kept[name], kept.get(scale_of(name)), self.dtype)
            for kind, name in zip(self.storage.states, self.rule.state, strict=True)
        ]

    def _close(
        self, members: list[int], kind: str, name: str, value: Tensor, place: int, turn: int
    ) -> None:
        """Store one state of some of the stack, ``(members, *shape)``, in its way."""
        made, scale = encoded(kind, value, place, turn, stacked=True)
        for key, stored in ((name, made), (scale_of(name), scale)):
            if stored is None:
                continue
            if len(members) == len(self.parameters):
                self.kept[key].copy_(stored)
            else:
                torch._foreach_copy_([self.states[i][key] for i in members], list(stored.unbind(0)))

    def shift(self, groups: Sequence[Group]) -> None:
        """Rules of whole tensors take the gradient where the parameters are."""


class Gathered(Stack):
    """The same of DTensors, whose parts are gathered at each step.

    Every process takes the whole step and keeps its part of the parameters, and of states of their
    shape; what else a rule keeps of a parameter every process has all of.
    """

    def _stack(self) -> None:
        """Leave the states the DTensors that they are."""
        self.kept = {}

    def squares(self) -> Sums2d:
        """Sums of the squares of the gradients, ``(parameters with one, 1)``."""
        present = [p.grad for p in self.parameters if p.grad is not None]
        return np.array([[float(whole([g.double().square().sum()]))] for g in present])

    def _open(self, members: list[int]) -> list[Tensor]:
        # Opened before they are gathered, for each process has scales of its own.
        found: list[list[Tensor]] = [[] for _ in self.rule.state]
        for i in members:
            parts = _opened(self.rule, self.storage, self.parameters[i], self.states[i])
            for some, name, part in zip(found, self.rule.state, parts, strict=True):
                some.append(with_part(self.states[i][name], part))
        return [whole(some) for some in found]

    def _close(
        self, members: list[int], kind: str, name: str, value: Tensor, place: int, turn: int
    ) -> None:
        kept = [self.states[i][name] for i in members]
        if kind not in (RANDOM16, *SCALED):
            put(kept, value)
            return
        parts = [torch.empty_like(t, dtype=torch.float32) for t in kept]
        put(parts, value)
        for k, (i, stored, part) in enumerate(zip(members, kept, parts, strict=True)):
            scale = _scale(self.parameters[i], self.states[i], name)
            own = place + NEXT_SEGMENT * k
            tensors.close(kind, part_of(stored), scale, part_of(part), own, turn)


def _on(device: torch.device, factor: Any) -> Any:
    """A number as it is, a tensor on a device."""
    return factor.to(device) if isinstance(factor, Tensor) else factor


def _scale(p: Tensor, state: Mapping[str, Any], name: str) -> Tensor | None:
    """The scales of a state of a parameter's part, where it has some."""
    scale = state.get(scale_of(name))
    return None if scale is None else part_of(scale).view(-1)[: scales(part_of(p).numel())]


def _opened(
    rule: Rule, storage: cpu.Storage, p: Tensor, state: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """The states of a parameter's part as they are computed with."""
    return tuple(
        tensors.opened(kind, part_of(state[name]), _scale(p, state, name), p.dtype)
        for kind, name in zip(storage.states, rule.state, strict=True)
    )


def _seats(meeting: Meeting | None, parameters: Sequence[Tensor]) -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64) if meeting is None else meeting.seats(parameters)


def _seeds(count: int, number: int, meeting: Meeting | None) -> tuple[int, int]:
    """What is rounded at random: different for each process's share too."""
    return seeds(count, number + (0 if meeting is None else meeting.place << 16))


def refuse(p: Tensor, owner: str) -> None:
    """Raise `TypeError` or `ValueError` for a parameter or gradient that no part can take."""
    for what, t in (("parameter", p), ("gradient", p.grad)):
        if t is not None and (t.layout != torch.strided or not t.is_floating_point()):
            raise TypeError(
                f"{owner}: the {what} is {t.dtype} with layout {t.layout}; "
                "only dense tensors of real floating point are taken"
            )
    if p.grad is not None and p.grad.shape != p.shape:
        raise ValueError(
            f"{owner}: the gradient has shape {tuple(p.grad.shape)} and the parameter "
            f"{tuple(p.shape)}; clear the gradients when a parameter gets another shape"
        )
    if is_sharded(p):
        if any(placement.is_partial() for placement in p.placements):
            raise TypeError(
                f"{owner}: the parameter is a DTensor with placements {p.placements}, whose parts "
                "have still to be added up; redistribute it before"
            )
        if p.grad is not None and not is_sharded(p.grad):
            raise TypeError(
                f"{owner}: the parameter is a DTensor and its gradient a plain tensor; make the "
                "gradient one by torch.distributed.tensor.distribute_tensor"
            )


def _negative(p: Tensor) -> bool:
    return p.grad is not None and p.grad.is_neg()


def fits(rule: Rule, storage: cpu.Storage, p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the kernel takes a parameter, its gradient and its state as they are now."""
    kept = [state[name] for name in rule.state]
    same = [p] if p.grad is None else [p, p.grad]
    if is_sharded(p):
        if not all(laid_out_alike(p, t) for t in same):
            return False
        kept, same = [part_of(t) for t in kept], [part_of(t) for t in same]
        # A part is lent a gradient, which only a leaf can have; and one may be on its way, as a
        # class of its own.
        plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in (*kept, *same))
        if not plain or not same[0].is_leaf:
            return False
    return (
        not rule.whole
        and type(same[0]) in (Tensor, torch.nn.Parameter)
        and p.dtype in NUMPY
        and (storage.native or p.dtype != torch.float64)
        and all(t.dtype == p.dtype for t in same)
        and all(
            t.dtype == (tensors.DTYPES.get(kind) or p.dtype)
            for t, kind in zip(kept, storage.states, strict=True)
        )
        and all(
            t.device.type == "cpu"
            and t.layout == torch.strided
            and t.numel() == same[0].numel()
            and t.is_contiguous()
            and not t.is_neg()
            and not t.is_inference()
            and (t.numel() == 0 or t.data_ptr() != 0)
            for t in (*same, *kept)
        )
    )
