"""Parameters that take their step together, by kernel, one by one, or as a stack of matrices.

Those on a GPU do in `thalweg.optim.device`.

Each part can do the same: `locate` its memory (False if a tensor belongs elsewhere now), `begin` a
step (coefficients), take the `squares` of the gradients and the `sums` of its rule's terms, which
the step of other parts may need too, and `finish` it; `shift` moves parameters to where the rule
takes the gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.kernels import addresses, cpu, tensors
from thalweg.kernels.objects import Entries
from thalweg.kernels.storage import SCALED
from thalweg.optim.state import scale_of
from thalweg.rules.rule import Row, Rule, Sums

__all__ = ["NUMPY", "Batch", "Group", "Loose", "Member", "Stack", "fits", "refuse", "seed_of"]

Group = dict[str, Any]
Member = tuple[Tensor, int, dict[str, Any], str]  # parameter, group, state, name in errors

# What a kernel computes a dtype in.
NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.float32,
    torch.float16: np.float32,
}
_SQUARE = Rule("square of the gradient", (), (), lambda hyper, step: (), lambda p, g: (p,))
_SQUARE = replace(_SQUARE, terms=lambda p, g: (g * g,))


class Batch:
    """Parameters of one rule and way of storing, which take their step in one kernel call.

    The step counts of all of them lie in one tensor, of which each parameter's ``state["step"]``
    is a view; so do the rule's other scalars.
    """

    def __init__(
        self, rule: Rule, storage: cpu.Storage, members: Sequence[Member], number: int
    ) -> None:
        parameters, groups, self.states, _ = zip(*members, strict=True)
        self.rule = rule
        self.number = number
        self.dtype = NUMPY[parameters[0].dtype]
        self.step = torch.tensor([float(state["step"]) for state in self.states])
        self.counts = self.step.numpy()
        self.scalars = np.array(
            [[float(state[name]) for state in self.states] for name in rule.scalars]
        ).reshape(len(rule.scalars), len(parameters))
        kept = torch.from_numpy(self.scalars)
        for i, state in enumerate(self.states):
            state["step"] = self.step[i]
            for k, name in enumerate(rule.scalars):
                state[name] = kept[k, i]
        scales = [
            scale_of(name) if kind in SCALED else name
            for name, kind in zip(rule.state, storage.states, strict=True)
        ]
        named = rule.state if storage.native else (*rule.state, *scales)
        self.entries = Entries(self.states, ("step", *dict.fromkeys(named), *rule.scalars))
        columns = [[state[name] for state in self.states] for name in named]
        self.located = addresses.Located(parameters, columns, self.counts)
        # Imaginary parts of conjugates: contiguous if of one element, and stored with the
        # opposite sign.
        self.singles = [p for p in parameters if p.numel() == 1]
        self.groups = sorted(set(groups))
        self.group_rows = np.searchsorted(self.groups, groups)
        self.segments = cpu.Segments.of(
            [p.numel() for p in parameters], self.group_rows.tolist(), len(rule.state), storage
        )
        self.blocks, self.segments.blocks = self.segments.blocks, self.segments.blocks[:0]
        self.which = self.group_rows
        self.even = False

    def locate(self) -> bool:
        """Read all addresses; False if a tensor is no longer one that the kernel takes."""
        taken, changed, even = self.located.read(self.segments.table)
        if changed:
            present = self.located.present.astype(bool)
            self.segments.blocks = self.blocks[present[self.blocks[:, 0]]]
        self.even = even
        return taken and not any(map(_negative, self.singles))

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients, one row for each group, step count and set of scalars."""
        self._find_rows(groups, self.located.upcoming)

    def _find_rows(self, groups: Sequence[Group], counts: NDArray[np.float32]) -> None:
        even = self.even
        if even and len(self.scalars):
            first = self.scalars[:, self.group_rows.searchsorted(range(len(self.groups)))]
            even = len(self.groups) == 1 and bool((self.scalars == first).all())
        if even:
            count = int(counts.item(0))
            scalars = tuple(self.scalars[:, 0].tolist())
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
        self.bounded = any(row[1] != float("inf") for row in self.rows)

    def _use(self, which: NDArray[np.int64]) -> None:
        """Tell the table whose row is which."""
        if which is not self.which:
            self.which = which
            self.segments.rows[:] = which

    def squares(self) -> float:
        """Sum of the squares of the gradients."""
        plain = np.tile(np.array([[1.0, np.inf, 0.0, 1.0]], self.dtype), (len(self.rows), 1))
        bare = replace(self.segments, storage=replace(self.segments.storage, states=()))
        return float(cpu.measure(_SQUARE, bare, plain).sum())

    def _measure(self) -> NDArray[np.float64]:
        rows = np.array(self.rows, dtype=self.dtype)
        return cpu.measure(self.rule, self.segments, rows, self.bounded)

    def sums(self) -> Sums:
        """Sums of the rule's terms over all parameters that have a gradient."""
        return tuple(self._measure().sum(axis=0).tolist())

    def finish(self, groups: Sequence[Group], factors: Mapping[int, Any], totals: Sums) -> None:
        """Take the step, and count it.

        Args:
            groups: of the optimizer.
            factors: for groups, by `id`, that bound the norm of the gradient, what to multiply it
                by.
            totals: for joint rules, their sums over all parts.
        """
        rows: Any = self.rows
        if factors:
            rows = self._bound_norm(factors)
        if self.rule.advance is not None:
            rows = self._advance(rows, totals)
        cpu.run(
            self.rule,
            self.segments,
            np.array(rows, dtype=self.dtype),
            self.bounded,
            seed_of(int(self.counts.max()), self.number),
        )
        self.counts[:] = self.located.upcoming

    def _bound_norm(self, factors: Mapping[int, Any]) -> list[Row]:
        self.rows = [
            (row[0] * float(factors.get(id(kind[0]), 1.0)), *row[1:])
            for row, kind in zip(self.rows, self.kinds, strict=True)
        ]
        return self.rows

    def _advance(self, rows: Sequence[Row], totals: Sums) -> NDArray[np.float64]:
        """Rows with what follows from the sums, and the scalars of the next step."""
        rule, which = self.rule, self.which
        totals = tuple(map(float, totals))  # another part's may be on a device
        if rule.terms is None or rule.joint:
            found = [rule.go_on(g, count, totals, scalars) for g, count, scalars in self.kinds]
            after = np.array([scalars for _, scalars in found]).reshape(len(found), -1)
            present = self.located.present.astype(bool)
            self.scalars[:, present] = after[which[present]].T
            return np.array([(*row, *extra) for row, (extra, _) in zip(rows, found, strict=True)])
        # A row of its own for every tensor.
        sums = self._measure()
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
        every = replace(self.segments, blocks=self.blocks)
        self._find_rows(groups, self.counts + 1)
        cpu.shift(self.rule, every, np.array(self.rows, dtype=self.dtype))


class Loose:
    """A parameter that takes its step by torch operations: a transposed view, another device."""

    def __init__(
        self,
        rule: Rule,
        storage: cpu.Storage,
        member: Member,
        number: int,
        shares_memory: bool = False,
    ) -> None:
        self.rule, self.storage, self.number = rule, storage, number
        self.shares_memory = shares_memory  # with another, so that one has to come after the other
        self.p, self.group, self.state, self.owner = member

    def locate(self) -> bool:
        """Whether the kernel still could not take it.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        refuse(self.p, self.owner)
        return self.shares_memory or not fits(self.rule, self.storage, self.p, self.state)

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients of this step."""
        if self.p.grad is not None:
            self._find_row(groups)

    def _find_row(self, groups: Sequence[Group]) -> None:
        group = groups[self.group]
        self.count = int(self.state["step"]) + 1
        self.scalars = tuple(float(self.state[name]) for name in self.rule.scalars)
        self.row = self.rule.row(group, self.count, self.scalars)

    def _arrays(self) -> tuple[Tensor, ...]:
        assert self.p.grad is not None
        kinds = self.storage.states
        return tuple(
            tensors.opened(kind, self.state[name], self.state.get(scale_of(name)), self.p.dtype)
            for kind, name in zip(kinds, self.rule.state, strict=True)
        )

    def squares(self) -> Any:
        """Sum of the squares of the gradient."""
        return 0.0 if self.p.grad is None else float(self.p.grad.double().square().sum())

    def sums(self) -> Sums:
        """Sums of the rule's terms."""
        if self.p.grad is None:
            return ()
        found = tensors.measure(self.rule, self.p, self.p.grad, self._arrays(), self.row)
        return tuple(float(s) for s in found)

    def finish(self, groups: Sequence[Group], factors: Mapping[int, Any], totals: Sums) -> None:
        """Take the step, if there is a gradient."""
        if self.p.grad is None:
            return
        group = groups[self.group]
        if id(group) in factors:
            self.row = (self.row[0] * factors[id(group)], *self.row[1:])
        joint = self.rule.terms is None or self.rule.joint
        sums = tuple(map(float, totals)) if joint else self.sums()
        extra, scalars = self.rule.go_on(group, self.count, sums, self.scalars)
        state = self._arrays()
        new = tensors.stepped(self.rule, self.p, self.p.grad, state, self.row, extra)
        seed = seed_of(self.count - 1, self.number)
        tensors.close(self.storage.parameter, self.p, None, new[0], self.storage.at_random, seed)
        for kind, name, value in zip(self.storage.states, self.rule.state, new[1:], strict=True):
            scale = self.state.get(scale_of(name))
            tensors.close(kind, self.state[name], scale, value, False, seed)
        for name, number in zip(self.rule.scalars, scalars, strict=True):
            self.state[name].fill_(float(number))
        self.state["step"] += 1
        if self.storage.clear:
            self.p.grad.zero_()

    def shift(self, groups: Sequence[Group]) -> None:
        """Move the parameter to where the next step takes the gradient."""
        self._find_row(groups)
        tensors.shift(self.rule, self.p, self._arrays(), self.row)


class Stack:
    """Parameters of one shape whose rule needs them whole, taken as one tensor of all of them."""

    def __init__(self, rule: Rule, storage: cpu.Storage, members: Sequence[Member]) -> None:
        self.rule, self.storage = rule, storage
        self.parameters, self.indices, self.states, self.owners = map(
            list, zip(*members, strict=True)
        )
        self.kept = {
            name: torch.stack([state[name] for state in self.states]) for name in rule.state
        }
        for i, state in enumerate(self.states):
            for name in rule.state:
                state[name] = self.kept[name][i]
        self.entries = Entries(self.states, ("step", *rule.state))
        self.dtype, self.shape = self.parameters[0].dtype, self.parameters[0].shape

    def locate(self) -> bool:
        """Whether all are what they were.

        Raises:
            TypeError: for a sparse or complex gradient.
        """
        for p, owner in zip(self.parameters, self.owners, strict=True):
            refuse(p, owner)
        return self.entries.hold() and all(
            p.dtype == self.dtype and p.shape == self.shape for p in self.parameters
        )

    def begin(self, groups: Sequence[Group]) -> None:
        """Coefficients, and who of the stack takes them."""
        shares: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                count = int(self.states[i]["step"]) + 1
                shares.setdefault((self.indices[i], count), []).append(i)
        self.shares = [
            (members, groups[g], self.rule.row(groups[g], count))
            for (g, count), members in shares.items()
        ]

    def squares(self) -> Any:
        """Sum of the squares of the gradients."""
        present = [p.grad for p in self.parameters if p.grad is not None]
        return sum(g.double().square().sum() for g in present)

    def sums(self) -> Sums:
        """Rules of whole tensors have no terms."""
        return ()

    @torch.no_grad()
    def finish(self, groups: Sequence[Group], factors: Mapping[int, Any], totals: Sums) -> None:
        """Take the step of all that have a gradient."""
        for members, group, row in self.shares:
            row = (row[0] * factors.get(id(group), 1.0), *row[1:])
            chosen = [self.parameters[i] for i in members]
            gradients = [p.grad for p in chosen if p.grad is not None]
            everyone = len(members) == len(self.parameters)
            # Not by an index of who they are, which would be sent to a device, and waited for.
            states = [[self.states[i][name] for i in members] for name in self.kept]
            kept = list(self.kept.values())
            state = kept if everyone else [torch.stack(some) for some in states]
            p, g = _stacked(chosen), _stacked(gradients)
            new = tensors.stepped(self.rule, p, g, state, row, ())
            torch._foreach_copy_(chosen, list(new[0].to(self.dtype).unbind(0)))
            for whole, some, value in zip(kept, states, new[1:], strict=True):
                if everyone:
                    whole.copy_(value)
                else:
                    torch._foreach_copy_(some, list(value.unbind(0)))
            for i in members:
                self.states[i]["step"] += 1
            if self.storage.clear:
                torch._foreach_zero_(gradients)

    def shift(self, groups: Sequence[Group]) -> None:
        """Rules of whole tensors take the gradient where the parameters are."""


def _stacked(some: Sequence[Tensor]) -> Tensor:
    return some[0].detach()[None] if len(some) == 1 else torch.stack(list(some))


def seed_of(count: Any, number: int) -> Any:
    """Different at each step and for each part, the same when resumed."""
    return (count * 0x9E3779B1 + number * 0x85EBCA6B) & 0x7FFFFFFF


def refuse(p: Tensor, owner: str) -> None:
    """Raise `TypeError` for a parameter or gradient that no part can take."""
    for what, t in (("parameter", p), ("gradient", p.grad)):
        if t is not None and (t.layout != torch.strided or not t.is_floating_point()):
            raise TypeError(
                f"{owner}: the {what} is {t.dtype} with layout {t.layout}; "
                "only dense tensors of real floating point are taken"
            )


def _negative(p: Tensor) -> bool:
    return p.grad is not None and p.grad.is_neg()


def fits(rule: Rule, storage: cpu.Storage, p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the kernel takes a parameter, its gradient and its state as they are now."""
    same = [p] if p.grad is None else [p, p.grad]
    kept = [state[name] for name in rule.state]
    return (
        not rule.whole
        and type(p) in (Tensor, torch.nn.Parameter)
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
            and t.numel() == p.numel()
            and t.is_contiguous()
            and not t.is_neg()
            and not t.is_inference()
            and (t.numel() == 0 or t.data_ptr() != 0)
            for t in (*same, *kept)
        )
    )
