"""What one step touches; made once, and good until something else than numbers changes."""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.kernels import addresses
from thalweg.kernels.cpu import Storage
from thalweg.kernels.objects import Items, Values
from thalweg.optim.device import Together, goes_together, is_host
from thalweg.optim.options import OPTIONS
from thalweg.optim.parts import Batch, Gathered, Group, Loose, Member, Stack, Sums2d, fits, refuse
from thalweg.optim.shards import Meeting, Meetings, check_layout, is_sharded, layout_of, part_of
from thalweg.optim.state import storage
from thalweg.rules.maths import minimum, sqrt
from thalweg.rules.rule import HEAD, Hyper, Rule, Sums

if TYPE_CHECKING:
    from thalweg.optim.base import RuleOptimizer

__all__ = ["Plan"]

Part: TypeAlias = Batch | Together | Loose | Stack

# Elements of matrices that are stacked at most; beyond, copying them costs more than it saves.
_STACK = 1 << 20


class Plan:
    """Which parameters take their step together."""

    def __init__(self, optimizer: "RuleOptimizer", rules: Sequence[Rule]) -> None:
        """Look at all parameters, and start the state of those that have a gradient.

        Args:
            optimizer: whose.
            rules: of its groups.

        Raises:
            TypeError: for a sparse or complex parameter or gradient.
            ValueError: for one that is to be captured in a CUDA graph and cannot be.
        """
        groups = optimizer.param_groups
        self.rules = list(rules)
        self.options = [_options(group) for group in groups]
        self.parameters = [Items(group["params"]) for group in groups]
        waiting: list[Tensor] = []
        kinds: dict[tuple[Rule, torch.dtype, Storage, Meeting | None], list[Member]] = {}
        elsewhere: dict[Any, list[Member]] = {}
        stacks: dict[Any, list[Member]] = {}
        self.batches: list[Batch] = []
        self.others: list[Together | Loose | Stack] = []
        self.meetings = Meetings()
        for index, group in enumerate(groups):
            for name, option in OPTIONS.items():
                option.check(f"{type(optimizer).__name__}, parameter group {index}", group[name])
            for place, p in enumerate(group["params"]):
                owner = f"{type(optimizer).__name__}, parameter group {index}, parameter {place}"
                refuse(p, owner)
                rule = optimizer.rule.resolve(group, tuple(p.shape))
                meeting = None
                if is_sharded(p) and not rule.whole:
                    meeting = self.meetings.of(p, _terms(rule, group))
                if p.grad is None and not _started(optimizer.state.get(p), rule):
                    waiting.append(p)
                    continue
                stored = storage(rule, p.dtype, group)
                member = p, index, optimizer.start_state(p, group), owner
                together = goes_together(rule, p, member[2])
                if group.get("capturable") and not together:
                    raise ValueError(f"{owner}: {_no_capture(rule, p)}")
                if rule.whole:
                    key = rule, p.shape, p.dtype, p.device, layout_of(p), stored
                    stacks.setdefault(key, []).append(member)
                    continue
                check_layout(p, [(name, member[2][name]) for name in rule.state], owner)
                if together:
                    options = bool(group.get("capturable")), not group.get("foreach")
                    place_of = rule, stored, p.dtype, p.device, options
                    elsewhere.setdefault(place_of, []).append(member)
                elif fits(rule, stored, p, member[2]):
                    kinds.setdefault((rule, p.dtype, stored, meeting), []).append(member)
                else:
                    self.others.append(Loose(rule, stored, member, len(self.others), meeting))
        for (rule, _, stored, meeting), members in kinds.items():
            if alone := self._apart(rule, stored, members, meeting):
                self.batches.append(Batch(rule, stored, alone, len(self.batches), meeting))
        for (rule, stored, _, _, options), members in elsewhere.items():
            if alone := self._apart(rule, stored, members):
                self.others.append(Together(rule, stored, alone, len(self.others), *options))
        for key, members in stacks.items():
            size = max(1, _STACK // max(1, members[0][0].numel()))
            shared = any(_overlap([part_of(p) for p, *_ in members]))
            if shared:
                size = 1  # one comes after the other
            for i in range(0, len(members), size):
                kind = Gathered if is_sharded(members[0][0]) else Stack
                stack = kind(key[0], key[-1], members[i : i + size], len(self.others))
                stack.shares_memory = shared
                self.others.append(stack)
        self.parts: list[Part] = [*self.batches, *self.others]
        self.measured = [part for part in self.parts if part.rule.terms is not None]
        self.waiting = addresses.Waiting(waiting) if waiting else None
        self.state = Values(optimizer.state)

    def _apart(
        self, rule: Rule, stored: Storage, members: list[Member], meeting: Meeting | None = None
    ) -> list[Member]:
        """Those that share no memory with another; the others take their steps one by one."""
        shared = _overlap([part_of(p) for p, *_ in members])
        self.others += [
            Loose(rule, stored, m, k, meeting, shares_memory=True)
            for k, (m, other) in enumerate(zip(members, shared, strict=True))
            if other
        ]
        return [m for m, other in zip(members, shared, strict=True) if not other]

    def holds(self, optimizer: "RuleOptimizer", rules: Sequence[Rule]) -> bool:
        """Whether groups, their rules and state are still what the plan was made for."""
        groups = optimizer.param_groups
        if not self.state.hold(optimizer.state) or len(groups) != len(self.rules):
            return False
        for i, group in enumerate(groups):
            read, options = self.options[i]
            if (
                rules[i] is not self.rules[i]
                or read(group) != options
                or not self.parameters[i].hold(group["params"])
            ):
                return False
        return all(batch.entries.hold() for batch in self.batches)

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

    def update(self, groups: Sequence[Group], rescale_grad: float = 1.0) -> None:
        """One step of every parameter that has a gradient; addresses were read just before."""
        parts = self.parts
        for part in parts:
            part.begin(groups)
        factors = self._sized(groups, rescale_grad)
        sums = self._sums()
        for part in parts:
            if part.shares_memory:
                # The one before may have been the same parameter.
                part.begin(groups)
                part.bound(factors)
            part.finish(sums.get(part))

    def _sized(self, groups: Sequence[Group], rescale_grad: float) -> dict[int, Any]:
        """Multiply the gradients of groups, found by `id`, by what: a factor, a bound of a norm."""
        factors: dict[int, Any] = {}
        if rescale_grad != 1.0:
            factors = {id(group): rescale_grad for group in groups}
        bounded = [group for group in groups if group["clip_norm"] is not None]
        if bounded:
            found = [(part, part.squares()) for part in self.parts]
            self.meetings.add_up(_arrays(found), 1)
            norm = rescale_grad * sqrt(_sum([squares.sum() for _, squares in found]))
            # As torch.nn.utils.clip_grad_norm_ has it; a norm of NaN makes all gradients NaN.
            # Tensors if some gradient is on a device; parts on the host then wait for it.
            for group in bounded:
                bound = minimum(float(group["clip_norm"]) / (norm + 1e-6), 1.0)
                factors[id(group)] = rescale_grad * bound
        if factors:
            for part in self.parts:
                part.bound(factors)
        return factors

    def _sums(self) -> dict[Part, Any]:
        """For each part whose rule has terms what they sum to over each parameter, or over all.

        As the part has found its own: an array for parts on the host, and for those on a device
        what it need not wait for.
        """
        if not self.measured:
            return {}
        sums = {part: part.sums() for part in self.measured}
        self.meetings.add_up(_arrays(sums.items()))
        joint: dict[Rule, list[Sums]] = {}
        for part, found in sums.items():
            if part.rule.joint:
                its = tuple(found.sum(axis=0)) if isinstance(found, np.ndarray) else found
                if its:  # nothing where there is no gradient
                    joint.setdefault(part.rule, []).append(its)
        totals = {rule: tuple(map(_sum, zip(*some, strict=True))) for rule, some in joint.items()}
        return {
            part: _like(found, totals[part.rule]) if part.rule in totals else found
            for part, found in sums.items()
        }

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameters to where their rules take the gradient, where that is elsewhere."""
        for part in self.parts:
            if part.rule.point is not None:
                part.shift(groups)


def _options(group: Group) -> tuple[Callable[[Group], Any], Any]:
    """How to read a group's options, and what they are now."""
    read = itemgetter(*(name for name in (*OPTIONS, "foreach") if name in group))
    return read, read(group)


def _terms(rule: Rule, group: Hyper) -> int:
    """How many terms a resolved rule has."""
    if rule.terms is None:
        return 0
    coefficients = len(rule.row(group, 1, rule.start_scalars(group))) - HEAD
    return len(rule.terms(*(1.0,) * (2 + len(rule.state) + coefficients)))


def _no_capture(rule: Rule, p: Tensor) -> str:
    """Why a step of a parameter cannot be part of a CUDA graph, and what to do."""
    if rule.whole:
        why = f"{rule.name} chooses its operations on the host"
    elif is_host(p.device):
        why = f"this parameter is on {p.device}, and capturable is for CUDA"
    else:
        why = f"this parameter is a {type(p).__name__} of {p.dtype} that goes one by one"
    return f"capturable=True, but {why}; leave capturable False for this group"


def _sum(some: Sequence[Any]) -> Any:
    """The sum of numbers, where there are tensors on the device of the first of them."""
    device = next((x.device for x in some if isinstance(x, Tensor)), None)
    return sum(x.to(device) if isinstance(x, Tensor) else x for x in some)


def _arrays(found: Iterable[tuple[Part, Any]]) -> list[tuple[Meeting | None, Any, Sums2d]]:
    """What parts on the host have found, as `Meetings.add_up` takes it."""
    return [(part.meeting, part.seats, x) for part, x in found if isinstance(x, np.ndarray)]


def _like(found: Any, totals: Sums) -> Any:
    """Totals as one part takes them: ``(1, terms)`` on the host, which waits for a device here."""
    return np.array([list(map(float, totals))]) if isinstance(found, np.ndarray) else totals


def _started(state: dict[str, Any] | None, rule: Rule) -> bool:
    return state is not None and all(state.get(name) is not None for name in ("step", *rule.state))


def _overlap(parameters: Sequence[Tensor]) -> list[bool]:
    """Which parameters share memory with another: they have to take their steps in turn."""
    first = np.array([p.data_ptr() for p in parameters])
    last = first + [p.nbytes if p.data_ptr() else 0 for p in parameters]  # meta has no memory
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
