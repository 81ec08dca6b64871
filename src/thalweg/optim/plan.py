"""What one step touches; made once, and good until something else than numbers changes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg.kernels import addresses
from thalweg.kernels.cpu import Storage
from thalweg.kernels.objects import Items, Values
from thalweg.optim.parts import (
    Batch,
    Gathered,
    Group,
    Loose,
    Member,
    Part,
    Stack,
    Sums2d,
    fits,
    refuse,
)
from thalweg.optim.shards import Meeting, Meetings, check_layout, is_sharded, layout_of, part_of
from thalweg.optim.state import storage
from thalweg.rules.rule import HEAD, Hyper, Rule

if TYPE_CHECKING:
    from thalweg.optim.base import RuleOptimizer

__all__ = ["Plan"]

# Elements of matrices that are stacked at most; beyond, copying them costs more than it saves.
_STACK = 1 << 20


class Plan:
    """Which parameters take their step together."""

    def __init__(self, optimizer: "RuleOptimizer") -> None:
        """Look at all parameters, and start the state of those that have a gradient.

        Raises:
            TypeError: for a sparse or complex parameter or gradient.
        """
        groups = optimizer.param_groups
        self.rules = [optimizer.rule.resolve(group) for group in groups]
        self.options = [_options(group) for group in groups]
        self.parameters = [Items(group["params"]) for group in groups]
        waiting: list[Tensor] = []
        kinds: dict[tuple[Rule, torch.dtype, Storage, Meeting | None], list[Member]] = {}
        stacks: dict[Any, list[Member]] = {}
        self.batches: list[Batch] = []
        self.others: list[Loose | Stack] = []
        self.meetings = Meetings()
        for index, group in enumerate(groups):
            for place, p in enumerate(group["params"]):
                owner = f"{type(optimizer).__name__}, parameter group {index}, parameter {place}"
                refuse(p, owner)
                rule = optimizer.rule.resolve(group, tuple(p.shape))
                meeting = None if rule.whole else self.meetings.of(p, _terms(rule, group))
                if p.grad is None and not _started(optimizer.state.get(p), rule):
                    waiting.append(p)
                    continue
                stored = storage(rule, p.dtype, group)
                member = p, index, optimizer.start_state(p, group), owner
                if rule.whole:
                    key = rule, p.shape, p.dtype, p.device, layout_of(p), stored
                    stacks.setdefault(key, []).append(member)
                    continue
                check_layout(p, [(name, member[2][name]) for name in rule.state], owner)
                if fits(rule, stored, p, member[2]):
                    kinds.setdefault((rule, p.dtype, stored, meeting), []).append(member)
                else:
                    self.others.append(Loose(rule, stored, member, len(self.others), meeting))
        for (rule, _, stored, meeting), members in kinds.items():
            apart = _overlap([part_of(p) for p, *_ in members])
            together = [m for m, other in zip(members, apart, strict=True) if not other]
            self.others += [
                Loose(rule, stored, m, k, meeting, shares_memory=True)
                for k, (m, other) in enumerate(zip(members, apart, strict=True))
                if other
            ]
            if together:
                self.batches.append(Batch(rule, stored, together, len(self.batches), meeting))
        for key, members in stacks.items():
            size = max(1, _STACK // max(1, members[0][0].numel()))
            for i in range(0, len(members), size):
                kind = Gathered if is_sharded(members[0][0]) else Stack
                self.others.append(kind(key[0], key[-1], members[i : i + size], len(self.others)))
        self.waiting = addresses.Waiting(waiting) if waiting else None
        self.state = Values(optimizer.state)

    @property
    def parts(self) -> list[Part]:
        """All of them."""
        return [*self.batches, *self.others]

    def holds(self, optimizer: "RuleOptimizer") -> bool:
        """Whether groups, rules and state are still the objects that the plan was made for."""
        groups = optimizer.param_groups
        return (
            self.state.hold(optimizer.state)
            and len(groups) == len(self.rules)
            and all(
                optimizer.rule.resolve(group) is rule
                and _options(group) == options
                and parameters.hold(group["params"])
                for group, rule, options, parameters in zip(
                    groups, self.rules, self.options, self.parameters, strict=True
                )
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
            and all(other.locate() for other in self.others)
        )

    def update(self, groups: Sequence[Group]) -> None:
        """One step of every parameter that has a gradient; addresses were read just before."""
        parts = self.parts
        for part in parts:
            part.begin(groups)
        self._bound_norm(groups)
        sums = self._sums()
        for part in parts:
            part.finish(sums.get(part))

    def _bound_norm(self, groups: Sequence[Group]) -> None:
        """Multiply the gradients of those groups that bound their norm."""
        bounded = [group for group in groups if group["clip_norm"] is not None]
        if not bounded:
            return
        found = [(part.meeting, part.seats, part.squares()) for part in self.parts]
        self.meetings.add_up(found, 1)
        norm = np.sqrt(sum(squares.sum() for _, _, squares in found))
        # As torch.nn.utils.clip_grad_norm_ has it; a norm of NaN makes all gradients NaN.
        factors = {
            id(group): float(np.minimum(float(group["clip_norm"]) / (norm + 1e-6), 1.0))
            for group in bounded
        }
        for part in self.parts:
            part.bound(factors)

    def _sums(self) -> dict[Part, Sums2d]:
        """For each part whose rule has terms what they sum to over each parameter, or over all."""
        sums = {part: part.sums() for part in self.parts if part.rule.terms is not None}
        self.meetings.add_up([(part.meeting, part.seats, found) for part, found in sums.items()])
        totals: dict[Rule, Sums2d] = {}
        for part, found in sums.items():
            if part.rule.joint and found.size:
                total = found.sum(axis=0, keepdims=True)
                totals[part.rule] = totals.get(part.rule, 0.0) + total
        return {part: totals.get(part.rule, found) for part, found in sums.items()}

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameters to where their rules take the gradient, where that is elsewhere."""
        for part in self.parts:
            if part.rule.point is not None:
                part.shift(groups)


def _options(group: Group) -> tuple[Any, ...]:
    return group.get("state"), group.get("stochastic_rounding"), group.get("clear_grad")


def _terms(rule: Rule, group: Hyper) -> int:
    """How many terms a resolved rule has."""
    if rule.terms is None:
        return 0
    coefficients = len(rule.row(group, 1, rule.start_scalars(group))) - HEAD
    return len(rule.terms(*(1.0,) * (2 + len(rule.state) + coefficients)))


def _started(state: dict[str, Any] | None, rule: Rule) -> bool:
    return state is not None and all(state.get(name) is not None for name in ("step", *rule.state))


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
