"""What one step touches; made once, and good until something else than numbers changes."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from thalweg.kernels import addresses, cpu, tensors
from thalweg.kernels.objects import Entries, Items, Values
from thalweg.rules.rule import Row, Rule

if TYPE_CHECKING:
    from thalweg.optim.base import RuleOptimizer

__all__ = ["Plan"]

Group = dict[str, Any]
Member = tuple[Tensor, int, dict[str, Any], str]  # parameter, group, state, name in errors

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Shards:
    """The DTensors of a batch: the kernel takes what of them lies in this process.

    That part, a plain tensor that FSDP2 made, has no gradient of its own. It is lent that of the
    DTensor, which the compiled reading of addresses then finds where it does for any parameter.
    """

    def __init__(self, rule: Rule, members: Sequence[tuple[Tensor, dict[str, Any]]]) -> None:
        self._parameters = [(p, _part(p)) for p, _ in members]
        self._states = [
            (state[name], _part(state[name])) for _, state in members for name in rule.state
        ]

    def lend(self) -> bool:
        """Lend the gradients; False if a DTensor has another part now or a gradient laid out else.

        Autograd is told that the DTensors that have a gradient are about to be written to.
        """
        if any(_part(t) is not part for t, part in (*self._parameters, *self._states)):
            return False
        written = []
        for p, part in self._parameters:
            if p.grad is not None:
                if not _laid_out_alike(p, p.grad):
                    return False
                written.append(p)
            part.grad = None if p.grad is None else _part(p.grad)
        torch.autograd.graph.increment_version(written)
        return True

    def take_back(self) -> None:
        """Leave the gradients to the DTensors alone, for ``zero_grad`` to free them."""
        for _, part in self._parameters:
            part.grad = None


class Batch:
    """Parameters of one rule and dtype, which take their step in one kernel call.

    The step counts of all of them lie in one tensor, of which each parameter's ``state["step"]``
    is a view.
    """

    def __init__(self, rule: Rule, members: Sequence[Member]) -> None:
        parameters, groups, self.states, _ = zip(*members, strict=True)
        self.rule = rule
        self.dtype = _NUMPY[parameters[0].dtype]
        self.step = torch.tensor([float(state["step"]) for state in self.states])
        self.counts = self.step.numpy()
        for i, state in enumerate(self.states):
            state["step"] = self.step[i]
        self.entries = Entries(self.states, ("step", *rule.state))
        sharded = [(p, s) for p, s in zip(parameters, self.states, strict=True) if _is_sharded(p)]
        self.shards = Shards(rule, sharded) if sharded else None
        parts = [_part(p) for p in parameters]
        states = [[_part(state[name]) for state in self.states] for name in rule.state]
        self.located = addresses.Located(parts, states, self.counts)
        # Imaginary parts of conjugates: contiguous if of one element, and stored with the
        # opposite sign.
        self.singles = [p for p in parts if p.numel() == 1]
        self.groups = sorted(set(groups))
        self.group_rows = np.searchsorted(self.groups, groups)
        self.segments = cpu.Segments.of(
            [p.numel() for p in parts], self.group_rows.tolist(), len(rule.state)
        )
        self.blocks, self.segments.blocks = self.segments.blocks, self.segments.blocks[:0]
        self.which = self.group_rows
        self.even = False

    def locate(self) -> bool:
        """Read all addresses; False if a tensor is no longer one that the kernel takes."""
        if self.shards is not None and not self.shards.lend():
            return False
        taken, changed, even = self.located.read(self.segments.table)
        if changed:
            present = self.located.present.astype(bool)
            self.segments.blocks = self.blocks[present[self.blocks[:, 0]]]
        self.even = even
        return taken and not any(map(_negative, self.singles))

    def update(self, groups: Sequence[Group]) -> None:
        """One step of the parameters that have a gradient; they were located just before."""
        upcoming = self.located.upcoming
        cpu.run(self.rule, self.segments, self._rows(groups, upcoming))
        self.counts[:] = upcoming
        if self.shards is not None:
            self.shards.take_back()

    def shift(self, groups: Sequence[Group]) -> None:
        """Move all parameters to where the next step takes the gradient."""
        self.even = False
        every = replace(self.segments, blocks=self.blocks)
        cpu.shift(self.rule, every, self._rows(groups, self.counts + 1))
        if self.shards is not None:
            self.shards.take_back()

    def _rows(self, groups: Sequence[Group], counts: NDArray[np.float32]) -> NDArray[Any]:
        """Coefficients, one row per group and step count; the table is told which is whose."""
        rows: list[Row]
        if self.even:
            count = int(counts.item(0))
            rows = [self.rule.row(groups[g], count) for g in self.groups]
            which = self.group_rows
        else:
            pairs, which = np.unique(
                np.stack([self.group_rows, counts], axis=1), axis=0, return_inverse=True
            )
            # A parameter that never had a gradient takes no step, and its row is not used.
            rows = [
                self.rule.row(groups[self.groups[int(g)]], max(int(count), 1)) for g, count in pairs
            ]
        if which is not self.which:
            self.which = which
            self.segments.rows[:] = which.ravel()
        return np.array(rows, dtype=self.dtype)


class Loose:
    """A parameter that takes its step by torch operations: half precision, a transposed view."""

    def __init__(self, rule: Rule, member: Member, shares_memory: bool) -> None:
        self.rule = rule
        self.shares_memory = shares_memory  # with another, so that one has to come after the other
        self.p, self.group, self.state, self.owner = member

    def holds(self) -> bool:
        """Whether the kernel still could not take it.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        _refuse(self.p, self.owner)
        return self.shares_memory or not _fits(self.rule, self.p, self.state)

    def update(self, groups: Sequence[Group]) -> None:
        """One step, if it has a gradient."""
        if self.p.grad is not None:
            row = self._row(groups)
            tensors.step(self.rule, self.p, self.p.grad, self._states(), row)
            self.state["step"] += 1

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameter to where the next step takes the gradient."""
        tensors.shift(self.rule, self.p, self._states(), self._row(groups))

    def _states(self) -> list[Tensor]:
        return [self.state[name] for name in self.rule.state]

    def _row(self, groups: Sequence[Group]) -> Row:
        return self.rule.row(groups[self.group], int(self.state["step"]) + 1)


class Plan:
    """Which parameters take their step together."""

    def __init__(self, optimizer: "RuleOptimizer") -> None:
        """Look at all parameters, and start the state of those that have a gradient.

        Raises:
            TypeError: for a sparse or complex parameter or gradient.
        """
        groups = optimizer.param_groups
        self.rules = [optimizer.rule_of(group).resolve(group) for group in groups]
        self.parameters = [Items(group["params"]) for group in groups]
        waiting: list[Tensor] = []
        kinds: dict[tuple[Rule, torch.dtype], list[Member]] = {}
        self.loose: list[Loose] = []
        for index, (group, rule) in enumerate(zip(groups, self.rules, strict=True)):
            for place, p in enumerate(group["params"]):
                owner = f"{type(optimizer).__name__}, parameter group {index}, parameter {place}"
                _refuse(p, owner)
                if p.grad is None and not _started(optimizer.state.get(p), rule):
                    waiting.append(p)
                    continue
                member = p, index, optimizer.start_state(p, group), owner
                if _fits(rule, p, member[2]):
                    kinds.setdefault((rule, p.dtype), []).append(member)
                else:
                    self.loose.append(Loose(rule, member, shares_memory=False))
        self.batches: list[Batch] = []
        for (rule, _), members in kinds.items():
            apart = _overlap([_part(p) for p, *_ in members])
            together = [m for m, other in zip(members, apart, strict=True) if not other]
            self.loose += [
                Loose(rule, m, shares_memory=True)
                for m, other in zip(members, apart, strict=True)
                if other
            ]
            if together:
                self.batches.append(Batch(rule, together))
        self.waiting = addresses.Waiting(waiting) if waiting else None
        self.state = Values(optimizer.state)

    def holds(self, optimizer: "RuleOptimizer") -> bool:
        """Whether groups, rules and state are still the objects that the plan was made for."""
        groups = optimizer.param_groups
        return (
            self.state.hold(optimizer.state)
            and len(groups) == len(self.rules)
            and all(
                optimizer.rule_of(group).resolve(group) is rule and parameters.hold(group["params"])
                for group, rule, parameters in zip(groups, self.rules, self.parameters, strict=True)
            )
            and all(batch.entries.hold() for batch in self.batches)
        )

    def locate(self) -> bool:
        """Read all addresses; False if some parameter belongs elsewhere now.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        return (
            not (self.waiting is not None and self.waiting.over())
            and all(batch.locate() for batch in self.batches)
            and all(loose.holds() for loose in self.loose)
        )

    def update(self, groups: Sequence[Group]) -> None:
        """One step of every parameter that has a gradient; addresses were read just before."""
        for batch in self.batches:
            batch.update(groups)
        for loose in self.loose:
            loose.update(groups)

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameters to where their rules take the gradient, where that is elsewhere."""
        for batch in self.batches:
            if batch.rule.point is not None:
                batch.shift(groups)
        for loose in self.loose:
            if loose.rule.point is not None:
                loose.shift(groups)


def _started(state: dict[str, Any] | None, rule: Rule) -> bool:
    return state is not None and all(state.get(name) is not None for name in ("step", *rule.state))


def _refuse(p: Tensor, owner: str) -> None:
    for what, t in (("parameter", p), ("gradient", p.grad)):
        if t is not None and (t.layout != torch.strided or not t.is_floating_point()):
            raise TypeError(
                f"{owner}: the {what} is {t.dtype} with layout {t.layout}; "
                "only dense tensors of real floating point are taken"
            )


def _negative(p: Tensor) -> bool:
    return p.grad is not None and p.grad.is_neg()


def _fits(rule: Rule, p: Tensor, state: dict[str, Any]) -> bool:
    """Whether the kernel takes a parameter, its gradient and its state as they are now."""
    needed = [p, *(state[name] for name in rule.state)]
    if p.grad is not None:
        needed.append(p.grad)
    if _is_sharded(p):
        if not all(_laid_out_alike(p, t) for t in needed):
            return False
        needed = [_part(t) for t in needed]
        p = needed[0]
        # A part is lent a gradient, which only a leaf can have.
        if not p.is_leaf:
            return False
    return type(p) in (Tensor, Parameter) and all(
        t.dtype == p.dtype
        and p.dtype in _NUMPY
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and t.numel() == p.numel()
        and t.is_contiguous()
        and not t.is_neg()
        and not t.is_inference()
        and (t.numel() == 0 or t.data_ptr() != 0)
        for t in needed
    )


def _is_sharded(t: Tensor) -> bool:
    """Whether this is a DTensor; where there is one, its module, slow to import, is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(t) is module.DTensor


def _part(t: Tensor) -> Tensor:
    """What of a tensor lies in this process: of a DTensor its own tensor, and else all of it."""
    # Not to_local(), which makes of a parameter's another one at each call.
    part: Tensor = t._local_tensor if _is_sharded(t) else t  # type: ignore[attr-defined]
    return part


def _laid_out_alike(p: Tensor, t: Tensor) -> bool:
    """Whether what an elementwise rule makes of the parts is the part of what it makes of all.

    Parts that still have to be summed are not; and a part may be on its way, as a class of its own.
    """
    if not _is_sharded(t):
        return False
    a, b = p._spec, t._spec  # type: ignore[attr-defined]
    return (
        a.mesh == b.mesh
        and a.placements == b.placements
        and p.dtype == t.dtype
        and not any(placement.is_partial() for placement in a.placements)
        and type(_part(t)) in (Tensor, Parameter)
    )


def _overlap(parameters: Sequence[Tensor]) -> list[bool]:
    """Which parameters share memory with another: they have to take their steps in turn."""
    first = np.array([p.data_ptr() for p in parameters])
    last = first + [p.nbytes for p in parameters]
    order = np.argsort(first, kind="stable")
    # Sorted by its first byte, one starts before the last byte of any earlier one.
    reach = np.maximum.accumulate(last[order])
    with_earlier = np.zeros(len(order), dtype=bool)
    with_earlier[1:] = first[order][1:] < reach[:-1]
    apart = with_earlier.copy()
    apart[:-1] |= with_earlier[1:]
    shared = np.empty_like(apart)
    shared[order] = apart
    return [bool(s) for s in shared]
