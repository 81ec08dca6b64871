"""One optimizer step of every replica of a chunk, each by its own rule and coefficients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.kernels import cpu, tensors
from thalweg.kernels.tape import Update
from thalweg.replicas.taped import TrainingTape
from thalweg.rules import Rule

__all__ = ["Replica", "Updates"]


@dataclass(frozen=True)
class Replica:
    """What distinguishes one replica from the others of its chunk.

    Attributes:
        rule: its update rule.
        hyper: complete hyperparameters (`Rule.complete`).
        seed: of its initial weights and the order of its batches.
    """

    rule: Rule
    hyper: Mapping[str, Any]
    seed: int


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
        by_rule: dict[Rule, list[int]] = {}
        for i, replica in enumerate(replicas):
            by_rule.setdefault(replica.rule.resolve(replica.hyper), []).append(i)
        on_cpu = all(p.device.type == "cpu" for p in parameters) and all(
            p.dtype in (torch.float32, torch.float64) for p in parameters
        )
        same = len({p.dtype for p in parameters}) == 1
        group = _KernelGroup if on_cpu and same else _TensorGroup
        self._groups = [
            group(rule, members, [replicas[i].hyper for i in members], self._parameters)
            for rule, members in by_rule.items()
        ]
        self.seconds = np.zeros(len(replicas))

    def look_ahead(self) -> list[tuple["_Group", list[Tensor]]]:
        """Move replicas whose rule asks for it to where it takes the gradient.

        Returns:
            What `return_from` needs to put them back.
        """
        return [(g, g.look_ahead()) for g in self._groups if g.rule.point is not None]

    def return_from(self, moved: list[tuple["_Group", list[Tensor]]]) -> None:
        """Undo `look_ahead`, exactly."""
        for group, saved in moved:
            group.restore(saved)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Advance all replicas by one step, in place.

        Args:
            gradients: one per parameter, ``(replicas, *shape)``.
        """
        gradients = [g.contiguous() for g in gradients]
        addresses = np.array([g.data_ptr() for g in gradients])
        for group in self._groups:
            if len(group.alive):
                start = perf_counter()
                group.step(gradients, addresses)
                self.seconds[group.alive] += (perf_counter() - start) / len(group.alive)

    @property
    def taped(self) -> bool:
        """Whether `train` can take the steps: no rule takes its gradient elsewhere."""
        return all(isinstance(g, _KernelGroup) and g.rule.point is None for g in self._groups)

    def train(
        self, tape: TrainingTape, data: tuple[Tensor, Tensor], order: Tensor, losses: Tensor
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
        place = {old: new for new, old in enumerate(keep)}
        for group in self._groups:
            group.compact(place)
        self._groups = [group for group in self._groups if group.members]
        self.seconds = np.zeros(len(keep))


class _Group:
    """Replicas that share a resolved rule."""

    def __init__(
        self,
        rule: Rule,
        members: list[int],
        hypers: list[Mapping[str, Any]],
        parameters: list[Tensor],
    ) -> None:
        self.rule = rule
        self.members = members
        self.alive = np.asarray(members)
        self._hypers = hypers
        self._parameters = parameters
        self._count = 0
        self._settles = max(rule.settles(h) for h in hypers)
        self._rows = np.zeros((len(members), 0))
        starts = np.array([rule.start(h) for h in hypers]).reshape(len(members), -1)
        # One tensor per parameter and state, (members, *shape).
        self._states = [
            [
                torch.as_tensor(starts[:, s], dtype=p.dtype, device=p.device)
                .reshape(-1, *[1] * (p.ndim - 1))
                .expand(-1, *p.shape[1:])
                .contiguous()
                for s in range(len(rule.state))
            ]
            for p in parameters
        ]

    def _next_rows(self) -> bool:
        """Advance the step count; whether the coefficients changed with it."""
        self._count += 1
        if self._count > self._settles:
            return False
        self._rows = np.array([self.rule.row(h, self._count) for h in self._hypers])
        return True

    def _rows_ahead(self) -> Any:
        """Coefficients of the step to come."""
        return np.array([self.rule.row(h, self._count + 1) for h in self._hypers])

    def look_ahead(self) -> list[Tensor]:
        saved = [p[self.members] for p in self._parameters]
        self._shift()
        return saved

    def restore(self, saved: list[Tensor]) -> None:
        for p, s in zip(self._parameters, saved, strict=True):
            p[self.members] = s

    def drop(self, replicas: set[int]) -> None:
        self.alive = np.array([m for m in self.alive if m not in replicas], dtype=np.int64)

    def compact(self, place: Mapping[int, int]) -> None:
        kept = [i for i, m in enumerate(self.members) if m in place]
        self.members = [place[self.members[i]] for i in kept]
        self.alive = np.asarray(self.members, dtype=np.int64)
        self._hypers = [self._hypers[i] for i in kept]
        self._rows = self._rows[kept]
        self._states = [[s[kept].contiguous() for s in states] for states in self._states]

    def step(self, gradients: list[Tensor], addresses: NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _shift(self) -> None:
        raise NotImplementedError


class _KernelGroup(_Group):
    """Every tensor of every member is a segment of one call of the CPU kernel."""

    def __init__(
        self,
        rule: Rule,
        members: list[int],
        hypers: list[Mapping[str, Any]],
        parameters: list[Tensor],
    ) -> None:
        super().__init__(rule, members, hypers, parameters)
        self._dtype = np.dtype(str(parameters[0].dtype).removeprefix("torch."))
        self._coefficients = np.zeros((len(members), 0), dtype=self._dtype)
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

    def compact(self, place: Mapping[int, int]) -> None:
        super().compact(place)
        self._coefficients = self._rows.astype(self._dtype)
        self._lay_out()

    def step(self, gradients: list[Tensor], addresses: NDArray[np.int64]) -> None:
        if self._next_rows():
            self._coefficients = self._rows.astype(self._dtype)
        self._segments.gradients[:] = (addresses + self._offsets).ravel()
        cpu.run(self.rule, self._segments, self._coefficients)

    def update_on_tape(self, steps: int, gradients: list[int]) -> Update:
        """The next steps of the living members, whose gradients are at these addresses."""
        living = np.isin(self.members, self.alive)
        rows: list[NDArray[np.float64]] = []
        for _ in range(steps):
            if self._next_rows() or not rows:
                rows.append(self._rows[living])
        self._coefficients = self._rows.astype(self._dtype)
        lines = np.empty((len(self.alive), len(gradients), 2 + len(self.rule.state)), np.int64)
        table = self._segments
        lines[..., 0] = table.parameters.reshape(len(self.alive), -1)
        lines[..., 1] = gradients
        lines[..., 2:] = table.states.reshape(*lines.shape[:2], -1)
        return Update(
            cpu.step_function(self.rule.update, len(self.rule.state), self._rows.shape[1] - 3),
            lines,
            np.array([p[0].numel() for p in self._parameters], dtype=np.int64),
            np.array(rows, dtype=np.float32),
        )

    def _shift(self) -> None:
        cpu.shift(self.rule, self._segments, self._rows_ahead().astype(self._dtype))


class _TensorGroup(_Group):
    """The same with torch operations, for devices that the CPU kernel cannot reach."""

    def _broadcast(self, rows: Any, like: Tensor) -> tuple[Any, ...]:
        shape = (-1, *[1] * (like.ndim - 1))
        return tuple(
            torch.as_tensor(c, dtype=like.dtype, device=like.device).reshape(shape) for c in rows.T
        )

    def step(self, gradients: list[Tensor], addresses: NDArray[np.int64]) -> None:
        self._next_rows()
        for p, g, states in zip(self._parameters, gradients, self._states, strict=True):
            mine = p[self.members]
            row = self._broadcast(self._rows, p)
            tensors.step(self.rule, mine, g[self.members], states, row)
            p[self.members] = mine

    def _shift(self) -> None:
        for p, states in zip(self._parameters, self._states, strict=True):
            mine = p[self.members]
            tensors.shift(self.rule, mine, states, self._broadcast(self._rows_ahead(), p))
            p[self.members] = mine
