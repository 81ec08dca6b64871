"""One optimizer step of every replica of a chunk, each by its own rule and coefficients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.kernels import cpu, tensors
from thalweg.kernels.tape import Update
from thalweg.replicas.taped import TrainingTape
from thalweg.rules import Rule
from thalweg.rules.rule import HEAD

__all__ = ["Factors", "Replica", "Updates"]

Factors: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float64]]

# Steps whose coefficients are found at once where learning rates follow a schedule: one step at a
# time they cost as much as a small network's passes.
AHEAD = 64


@dataclass(frozen=True)
class Replica:
    """What distinguishes one replica from the others of its chunk.

    Attributes:
        rule: its update rule.
        hyper: complete hyperparameters (`Rule.complete`).
        seed: of its initial weights and the order of its batches.
        schedule: from steps done, ``(n,)`` from 0, to factors on the learning rate, ``(n,)``; None
            for a rate that stays.
    """

    rule: Rule
    hyper: Mapping[str, Any]
    seed: int
    schedule: Factors | None = None


class Updates:
    """The optimizer states of a chunk and the step that advances them.

    Replicas with the same resolved rule are one group and one kernel call. A replica that is
    dropped keeps its place in the stacks, and no kernel touches it again.

    Attributes:
        seconds: time spent in each replica's update so far, ``(replicas,)``.
    """

    def __init__(self, replicas: Sequence[Replica], parameters: Sequence[Tensor]) -> None:
        """States for ``parameters``, each ``(replicas, *shape)`` and contiguous."""
        self._parameters = list(parameters)
        shapes = [tuple(p.shape[1:]) for p in parameters]
        by_rule: dict[Rule, dict[int, list[int]]] = {}  # members, and their parameters
        for i, replica in enumerate(replicas):
            for k, shape in enumerate(shapes):
                rule = replica.rule.resolve(replica.hyper, shape)
                by_rule.setdefault(rule, {}).setdefault(i, []).append(k)
        on_cpu = all(p.device.type == "cpu" for p in parameters) and all(
            p.dtype in (torch.float32, torch.float64) for p in parameters
        )
        same = on_cpu and len({p.dtype for p in parameters}) == 1
        self._groups: list[_Group] = []
        for rule, members in by_rule.items():
            group = _KernelGroup if same and not rule.whole else _TensorGroup
            followers = [replicas[i] for i in members]
            # All that follow a rule do so with parameters of the same shapes.
            places = next(iter(members.values()))
            self._groups.append(group(rule, list(members), followers, self._parameters, places))
        self._norms = [r.hyper["clip_norm"] for r in replicas]
        self.seconds = np.zeros(len(replicas))

    def look_ahead(self) -> list[tuple["_Group", list[Tensor]]]:
        """Move replicas whose rule asks for it to where it takes the gradient.

        Returns:
            What `return_from` needs to put them back.
        """
        return [(g, g.look_ahead()) for g in self._groups if g.rule.point is not None]

    def to_answers(self) -> list[tuple["_Group", list[Tensor]]]:
        """Put the weights to evaluate in place of those that are trained, where they differ.

        Returns:
            What `return_from` needs to put them back.
        """
        return [(g, g.to_answers()) for g in self._groups if g.rule.answer is not None]

    def return_from(self, moved: list[tuple["_Group", list[Tensor]]]) -> None:
        """Undo `look_ahead` or `to_answers`, exactly."""
        for group, saved in moved:
            group.restore(saved)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Advance all replicas by one step, in place.

        Args:
            gradients: one per parameter, ``(replicas, *shape)``.
        """
        gradients = [g.contiguous() for g in gradients]
        factors = self._factors(gradients)
        for group in self._groups:
            if len(group.alive):
                start = perf_counter()
                group.step([gradients[k] for k in group.places], factors)
                self.seconds[group.alive] += (perf_counter() - start) / len(group.alive)

    def _factors(self, gradients: Sequence[Tensor]) -> NDArray[np.float64]:
        """By what to multiply the gradients of each replica that bounds their norm."""
        factors = np.ones(len(self._norms))
        if any(bound is not None for bound in self._norms):
            each = [g.flatten(1).double().square().sum(1).cpu().numpy() for g in gradients]
            squares = np.sum(each, axis=0)
            for i, bound in enumerate(self._norms):
                if bound is not None:
                    factors[i] = np.minimum(bound / (np.sqrt(squares[i]) + 1e-6), 1.0)
        return factors

    @property
    def taped(self) -> bool:
        """Whether `train` can take the steps: all that a rule needs is its own element."""
        return all(
            isinstance(g, _KernelGroup) and g.rule.point is None and g.rule.terms is None
            for g in self._groups
        ) and all(bound is None for bound in self._norms)

    def train(
        self, tape: TrainingTape, data: Sequence[Tensor], order: Tensor, losses: Tensor
    ) -> None:
        """Advance all replicas by as many steps as there are losses, in place.

        Args:
            tape: their passes.
            data: all inputs and targets.
            order: int64, which samples each replica sees, ``(replicas or 1, samples)``.
            losses: ``(steps, replicas)``, to be written.

        Raises:
            IndexError: for targets that the model has no output for.
        """
        for group in self._groups:
            if len(group.alive):
                assert isinstance(group, _KernelGroup)
                update = group.update_on_tape(len(losses), tape.gradients())
                start = perf_counter()
                if not tape.train(self._parameters, data, order, losses, group.alive, update):
                    raise IndexError(
                        "a target of the training data is no index into the model's outputs; "
                        "classes are numbered from 0"
                    )
                self.seconds[group.alive] += (perf_counter() - start) / len(group.alive)

    def drop(self, replicas: Sequence[int]) -> None:
        """Leave these replicas out of all further steps."""
        for group in self._groups:
            group.drop(set(replicas))

    def compact(self, keep: Sequence[int], parameters: Sequence[Tensor]) -> None:
        """Go on with the replicas at these places alone, whose parameters were moved.

        Args:
            keep: places in the old stacks, ascending; all others were dropped.
            parameters: the new stacks, ``(len(keep), *shape)``.
        """
        self._parameters[:] = parameters
        self._norms = [self._norms[i] for i in keep]
        place = {old: new for new, old in enumerate(keep)}
        for group in self._groups:
            group.compact(place, self._parameters)
        self._groups = [group for group in self._groups if group.members]
        self.seconds = np.zeros(len(keep))


class _Group:
    """Replicas that share a resolved rule, with those of their parameters that follow it."""

    def __init__(
        self,
        rule: Rule,
        members: list[int],
        replicas: Sequence[Replica],
        parameters: Sequence[Tensor],
        places: list[int],
    ) -> None:
        self.rule = rule
        self.members = members
        self.places = places
        self.alive = np.asarray(members)
        self._replicas = list(replicas)
        self._hypers = hypers = [r.hyper for r in replicas]
        self._parameters = [parameters[k] for k in places]
        self._count = 0
        self._scheduled = any(r.schedule is not None for r in replicas)
        # Those of whole matrices ask for values in their coefficients.
        self._at_once = not rule.scalars and not rule.whole
        self._ahead = self._count, np.ones((0, len(members))), np.zeros((0, len(members), 0))
        constant = not rule.scalars and not self._scheduled
        self._settles = max(rule.settles(h) for h in hypers) if constant else np.inf
        self._rows = np.zeros((len(members), 0))
        first = self._hypers_at(1)
        self._scalars = [rule.start_scalars(h) for h in first]
        starts = [rule.start(h) for h in first]
        # One tensor per parameter and state, (members, *shape).
        self._states = [
            [
                self._start(p, name, [start[s] for start in starts])
                for s, name in enumerate(rule.state)
            ]
            for p in self._parameters
        ]

    def _start(self, p: Tensor, name: str, values: list[float | None]) -> Tensor:
        if values[0] is None:
            return p[self.members].clone()
        shape = tuple(p.shape[1:])
        shape = self.rule.shapes[name](shape) if name in self.rule.shapes else shape
        first = torch.tensor(values, dtype=p.dtype, device=p.device)
        return first.reshape(-1, *[1] * len(shape)).expand(-1, *shape).contiguous()

    def _next_rows(self) -> bool:
        """Advance the step count; whether the coefficients changed with it."""
        self._count += 1
        if self._count > self._settles:
            return False
        self._rows = self._rows_of(self._count)
        return True

    def _rows_of(self, count: int) -> Any:
        """Coefficients of a step, ``(members, n)``."""
        if self._scheduled and self._at_once:
            return self._look_up(count)[1]
        pairs = zip(self._hypers_at(count), self._scalars, strict=True)
        return np.array([self.rule.row(h, count, scalars) for h, scalars in pairs])

    def _hypers_at(self, count: int) -> list[Mapping[str, Any]]:
        """The members' hyperparameters at a step, their rates by their schedules."""
        if not self._scheduled:
            return self._hypers
        factors = self._look_up(count)[0]
        return [
            {**h, "lr": float(h["lr"]) * f}
            for h, f in zip(self._hypers, factors.tolist(), strict=True)
        ]

    def _look_up(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Factors on the rates of a step, ``(members,)``, and its coefficients, ``(members, n)``.

        Those that are not found at once have no columns.
        """
        first, factors, rows = self._ahead
        if not first <= count < first + len(factors):
            first, (factors, rows) = count, self._found_at_once(count)
            self._ahead = first, factors, rows
        return factors[count - first], rows[count - first]

    def _found_at_once(
        self, first: int, count: int = AHEAD
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same of several steps, along the first dimension."""
        steps = np.arange(first, first + count)
        found: dict[int, NDArray[np.float64]] = {}
        for r in self._replicas:
            if r.schedule is not None and id(r.schedule) not in found:
                found[id(r.schedule)] = r.schedule(steps - 1)
        still = np.ones(len(steps))
        factors = np.stack([found.get(id(r.schedule), still) for r in self._replicas], axis=1)
        members = len(self._replicas)
        if not self._at_once:
            return factors, np.zeros((len(steps), members, 0))
        rows: Any = None
        for others, mine in _by_others(self._hypers):
            rates = np.array([float(self._hypers[i]["lr"]) for i in mine]) * factors[:, mine]
            raw = self.rule.raw_row({**others, "lr": rates}, steps[:, None].astype(float))
            if rows is None:
                rows = np.empty((len(steps), members, len(raw)))
            for k, coefficient in enumerate(raw):
                rows[:, mine, k] = coefficient
        return factors, rows

    def _go_on(self, sums: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Further coefficients of every member from its sums; its scalars go on."""
        hypers = self._hypers_at(self._count)
        found = [
            self.rule.go_on(h, self._count, s, scalars)
            for h, s, scalars in zip(hypers, sums, self._scalars, strict=True)
        ]
        self._scalars = [tuple(float(x) for x in scalars) for _, scalars in found]
        return [extra for extra, _ in found]

    def look_ahead(self) -> list[Tensor]:
        saved = self._save()
        self._shift()
        return saved

    def to_answers(self) -> list[Tensor]:
        saved = self._save()
        assert self.rule.answer is not None
        for p, states in zip(self._parameters, self._states, strict=True):
            for i, (member, hyper) in enumerate(zip(self.members, self._hypers, strict=True)):
                p[member] = self.rule.answer(p[member], *(s[i] for s in states), hyper)
        return saved

    def _save(self) -> list[Tensor]:
        return [p[self.members] for p in self._parameters]

    def restore(self, saved: list[Tensor]) -> None:
        for p, s in zip(self._parameters, saved, strict=True):
            p[self.members] = s

    def drop(self, replicas: set[int]) -> None:
        self.alive = np.array([m for m in self.alive if m not in replicas], dtype=np.int64)

    def compact(self, place: Mapping[int, int], parameters: Sequence[Tensor]) -> None:
        kept = [i for i, m in enumerate(self.members) if m in place]
        self.members = [place[self.members[i]] for i in kept]
        self.alive = np.asarray(self.members, dtype=np.int64)
        self._parameters = [parameters[k] for k in self.places]
        self._replicas = [self._replicas[i] for i in kept]
        self._hypers = [r.hyper for r in self._replicas]
        first, factors, rows = self._ahead
        self._ahead = first, factors[:, kept], rows[:, kept]
        self._scalars = [self._scalars[i] for i in kept]
        self._rows = self._rows[kept]
        self._states = [[s[kept].contiguous() for s in states] for states in self._states]

    def step(self, gradients: list[Tensor], factors: NDArray[np.float64]) -> None:
        raise NotImplementedError

    def _shift(self) -> None:
        raise NotImplementedError


def _by_others(hypers: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Places of hyperparameters that differ in the learning rate alone, with these others."""
    found: list[tuple[Mapping[str, Any], list[int]]] = []
    for i, hyper in enumerate(hypers):
        others = {name: value for name, value in hyper.items() if name != "lr"}
        mine = next((places for same, places in found if same == others), None)
        if mine is None:
            found.append((others, [i]))
        else:
            mine.append(i)
    return found


class _KernelGroup(_Group):
    """Every tensor of every member is a segment of one call of the CPU kernel."""

    def __init__(
        self,
        rule: Rule,
        members: list[int],
        replicas: Sequence[Replica],
        parameters: Sequence[Tensor],
        places: list[int],
    ) -> None:
        super().__init__(rule, members, replicas, parameters, places)
        self._dtype = np.dtype(str(parameters[0].dtype).removeprefix("torch."))
        self._coefficients = np.zeros((len(members), 0), dtype=self._dtype)
        self._bounded = any(h["clip_value"] is not None for h in self._hypers)
        self._lay_out()

    def _lay_out(self) -> None:
        """Segments in the order (living member, parameter); storage never moves."""
        place = {m: i for i, m in enumerate(self.members)}
        lengths = [p[0].numel() for p in self._parameters]
        size = np.array([n * self._dtype.itemsize for n in lengths])
        rows = np.array([place[m] for m in self.alive], dtype=np.int64)
        segments = cpu.Segments.of(
            lengths * len(rows),
            np.repeat(rows, len(lengths)).tolist(),
            len(self.rule.state),
        )
        self._which = segments.rows.copy()
        self._offsets = self.alive[:, None] * size
        base = np.array([p.data_ptr() for p in self._parameters])
        segments.parameters[:] = (base + self._offsets).ravel()
        for s in range(len(self.rule.state)):
            state = np.array([states[s].data_ptr() for states in self._states])
            segments.states[:, s] = (state + rows[:, None] * size).ravel()
        self._segments = segments

    def drop(self, replicas: set[int]) -> None:
        before = len(self.alive)
        super().drop(replicas)
        if len(self.alive) < before:
            self._lay_out()

    def compact(self, place: Mapping[int, int], parameters: Sequence[Tensor]) -> None:
        super().compact(place, parameters)
        self._coefficients = self._rows.astype(self._dtype)
        self._lay_out()

    def step(self, gradients: list[Tensor], factors: NDArray[np.float64]) -> None:
        changed = self._next_rows()
        addresses = np.array([g.data_ptr() for g in gradients])
        self._segments.gradients[:] = (addresses + self._offsets).ravel()
        bounds = factors[self.members]
        if changed or (bounds != 1.0).any() or self._coefficients.shape != self._rows.shape:
            rows = self._rows.copy()
            rows[:, 0] *= bounds
            self._coefficients = rows.astype(self._dtype)
        if self.rule.advance is None:
            cpu.run(self.rule, self._segments, self._coefficients, self._bounded)
            return
        every = self._with_extra()
        cpu.run(self.rule, self._segments, every.astype(self._dtype), self._bounded)
        self._segments.rows[:] = self._which

    def _with_extra(self) -> NDArray[np.float64]:
        """Coefficients with what follows from the sums: a row a member, or one a segment."""
        rule, members = self.rule, len(self.members)
        if rule.terms is None:
            return np.concatenate([self._coefficients, self._go_on([()] * members)], axis=1)
        self._segments.rows[:] = self._which
        sums = cpu.measure(rule, self._segments, self._coefficients, self._bounded)
        # (members, parameters, terms); those who left have none.
        by_member = np.zeros((members, len(self.places), sums.shape[1]))
        by_member[np.isin(self.members, self.alive)] = sums.reshape(
            len(self.alive), len(self.places), -1
        )
        if rule.joint:
            extra = self._go_on([tuple(s.sum(0).tolist()) for s in by_member])
            return np.concatenate([self._coefficients, np.array(extra).reshape(members, -1)], 1)
        extra = self._go_on([tuple(s.T) for s in by_member])
        by_segment = np.stack([np.stack(e, axis=1) for e in extra])  # (members, parameters, n)
        living = by_segment[np.isin(self.members, self.alive)].reshape(len(self._which), -1)
        self._segments.rows[:] = np.arange(len(self._which))
        return np.concatenate([self._coefficients[self._which], living], axis=1)

    def _in_turn(self, steps: int) -> NDArray[np.float64]:
        """Coefficients of the next steps, ``(steps, members, n)``; of one for all that share it."""
        rows: list[NDArray[np.float64]] = []
        for _ in range(steps):
            if self._next_rows() or not rows:
                rows.append(self._rows)
            if self.rule.advance is not None:
                self._go_on([()] * len(self.members))
        return np.array(rows)

    def update_on_tape(self, steps: int, gradients: list[int]) -> Update:
        """The next steps of the living members, whose gradients are at these addresses."""
        living = np.isin(self.members, self.alive)
        if self._scheduled and self._at_once and self.rule.advance is None:
            _, every = self._found_at_once(self._count + 1, steps)
            self._count += steps
            self._rows = every[-1]
            rows = every[:, living]
        else:
            rows = self._in_turn(steps)[:, living]
        self._coefficients = self._rows.astype(self._dtype)
        mine = [gradients[k] for k in self.places]
        lines = np.empty((len(self.alive), len(mine), 2 + len(self.rule.state)), np.int64)
        table = self._segments
        lines[..., 0] = table.parameters.reshape(len(self.alive), -1)
        lines[..., 1] = mine
        lines[..., 2:] = table.states.reshape(*lines.shape[:2], -1)
        coefficients = self._rows.shape[1] - HEAD
        return Update(
            cpu.step_function(self.rule.update, len(self.rule.state), coefficients, self._bounded),
            lines,
            np.array([p[0].numel() for p in self._parameters], dtype=np.int64),
            np.ascontiguousarray(rows, dtype=np.float32),
        )

    def _shift(self) -> None:
        rows = self._rows_of(self._count + 1).astype(self._dtype)
        cpu.shift(self.rule, self._segments, rows)


class _TensorGroup(_Group):
    """The same with torch operations: for other devices, and for rules of whole matrices."""

    def _broadcast(self, rows: Any, like: Tensor) -> tuple[Any, ...]:
        shape = (-1, *[1] * (like.ndim - 1))
        return tuple(
            torch.as_tensor(c, dtype=like.dtype, device=like.device).reshape(shape) for c in rows.T
        )

    def step(self, gradients: list[Tensor], factors: NDArray[np.float64]) -> None:
        self._next_rows()
        rows = self._rows.copy()
        rows[:, 0] *= factors[self.members]
        given = [
            (p[self.members], g[self.members], states, self._broadcast(rows, p))
            for p, g, states in zip(self._parameters, gradients, self._states, strict=True)
        ]
        sums: list[Any] = [()] * len(given)
        if self.rule.terms is not None:
            sums = [torch.stack(tensors.measure(self.rule, *args, lead=1), 1) for args in given]
            if self.rule.joint:
                sums = [sum(sums)] * len(given)
        extras: list[Any] = [()] * len(given)
        if self.rule.advance is not None:
            before = self._scalars
            for k, found in enumerate(sums):
                self._scalars = before
                each = [tuple(s.tolist()) for s in found] or [()] * len(self.members)
                extras[k] = self._broadcast(np.array(self._go_on(each)), given[k][0])
        for p, (mine, g, states, row), extra in zip(self._parameters, given, extras, strict=True):
            tensors.step(self.rule, mine, g, states, row, extra)
            p[self.members] = mine

    def _shift(self) -> None:
        rows = self._rows_of(self._count + 1)
        for p, states in zip(self._parameters, self._states, strict=True):
            mine = p[self.members]
            tensors.shift(self.rule, mine, states, self._broadcast(rows, p))
            p[self.members] = mine
