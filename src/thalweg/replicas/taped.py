"""Tapes of a model's passes, ready to be run by any thread."""

from collections.abc import Sequence
from math import prod
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from thalweg.kernels import tape
from thalweg.replicas.lower import Lowering

__all__ = ["Tape", "TrainingTape"]


class _Runner:
    """What all tapes have: their tables, and a workspace for each thread."""

    def __init__(self, lowering: Lowering) -> None:
        tables = lowering.tables
        self._code = np.array(tables.code, dtype=np.int64)
        self._numbers = np.array(tables.numbers, dtype=np.float32)
        self._slots = tables.slots
        self._sizes = tables.memory, tables.panel
        self._inputs = [
            (v.slot, v.like.dtype, v.like.stride()[1:] if v.each else v.like.stride(), v.each)
            for v in lowering.inputs
        ]
        self._mine = local()

    def _workspace(self) -> tuple[tape.Workspace, NDArray[np.int64]]:
        """Of this thread, with a table of slots in which scratch has its addresses."""
        if not hasattr(self._mine, "workspace"):
            workspace = tape.Workspace(*self._sizes, len(self._slots))
            slots = np.zeros((len(self._slots), 3), dtype=np.int64)
            for line, place in zip(slots, self._slots, strict=True):
                if place is not None:
                    line[0] = workspace.memory.ctypes.data + 4 * place.start
            self._mine.workspace = workspace, slots
        mine: tuple[tape.Workspace, NDArray[np.int64]] = self._mine.workspace
        return mine

    def _locate(self, tensors: Sequence[Tensor], slots: NDArray[np.int64]) -> bool:
        """Write the inputs' addresses; False for inputs that the tape does not take."""
        for t, (slot, kind, strides, each) in zip(tensors, self._inputs, strict=True):
            if t.dtype != kind or t.stride()[1 if each else 0 :] != strides:
                return False
            slots[slot, 0] = t.data_ptr()
            slots[slot, 1] = t.stride(0) * t.element_size() if each else 0
        return True


class Tape(_Runner):
    """A program that runs for one replica after another.

    It takes tensors laid out as those that it was made from, for any number of replicas.

    Args:
        program: straight, as `straighten` makes it.
        each: of every input, whether each replica has its own.
        replicas: how many it was traced with.

    Raises:
        Refused: for an operation, a layout or a type that tapes do not have.
    """

    def __init__(self, program: GraphModule, each: Sequence[bool], replicas: int) -> None:
        lowering = Lowering(program, each, replicas)
        super().__init__(lowering)
        self._results = [
            (value, prod(owner.shape))
            for value, owner in zip(lowering.results, lowering.owners, strict=True)
        ]

    def results(self, replicas: int) -> list[Tensor]:
        """Room for the results of a run, ``(replicas, *)`` each; not initialised."""
        stacks: dict[int, Tensor] = {}
        found = []
        for value, size in self._results:
            if value.slot not in stacks:
                stacks[value.slot] = torch.empty(replicas, size)
            strides = (size, *value.like.stride()[1:])
            offset = value.like.storage_offset()
            found.append(stacks[value.slot].as_strided((replicas, *value.shape), strides, offset))
        return found

    def __call__(
        self, tensors: Sequence[Tensor], replicas: int, results: list[Tensor] | None = None
    ) -> list[Tensor] | None:
        """Run it.

        Args:
            tensors: the inputs, those of each replica ``(replicas, *)``.
            replicas: how many.
            results: from `results`, to be written again; new ones by default.

        Returns:
            The results; None for inputs that it does not take.
        """
        workspace, slots = self._workspace()
        if not self._locate(tensors, slots):
            return None
        results = self.results(replicas) if results is None else results
        for (value, size), result in zip(self._results, results, strict=True):
            slots[value.slot, :2] = result.data_ptr() - 4 * value.like.storage_offset(), 4 * size
        done = tape.run(self._code, self._numbers, slots, workspace, np.arange(replicas))
        return results if done else None


class TrainingTape(_Runner):
    """A training step that runs for one replica after another, for each of them step after step.

    Batches are read from the data, and gradients stay in scratch, where the rule takes them up, so
    that from its first step of an epoch to its last a replica does not leave the cache.

    Args:
        program: from parameters and a batch, inputs and targets, to loss and gradients.
        drawn: how many tensors a batch has.
        shared: whether it was traced with one batch for all replicas.
        replicas: how many it was traced with.

    Raises:
        Refused: for an operation, a layout or a type that tapes do not have.
    """

    def __init__(self, program: GraphModule, drawn: int, shared: bool, replicas: int) -> None:
        inputs = sum(node.op == "placeholder" for node in program.graph.nodes)
        each = [True] * (inputs - drawn) + [not shared] * drawn
        lowering = Lowering(program, each, replicas, drawn=drawn)
        super().__init__(lowering)
        self._data = lowering.data
        self._order = lowering.order
        self._batch = lowering.batch
        self._loss = lowering.results[0].slot
        self._gradients = [(v.slot, v.offset) for v in lowering.results[1:]]

    def holds(self, data: Sequence[Tensor]) -> bool:
        """Whether all of the data are numbers that the tape has: float32, or integers it keeps."""
        return all(
            t.dtype == torch.float32 or not t.numel() or int(t.abs().max()) <= tape.EXACT
            for t in data
        )

    def gradients(self) -> list[int]:
        """Where this thread's gradients of one replica lie: addresses, one a parameter."""
        _, slots = self._workspace()
        return [int(slots[slot, 0]) + offset for slot, offset in self._gradients]

    def train(
        self,
        parameters: Sequence[Tensor],
        data: Sequence[Tensor],
        order: Tensor,
        losses: Tensor,
        who: NDArray[np.int64],
        update: tape.Update,
    ) -> bool:
        """Train some replicas, in place, for as many steps as there are losses.

        Args:
            parameters: ``(replicas, *shape)`` each.
            data: all inputs and targets, contiguous.
            order: int64, which samples each replica sees, ``(replicas, samples)``, or all of them,
                ``(1, samples)``.
            losses: ``(steps, replicas)``, to be written for those who train.
            who: which replicas.
            update: their rule's step, with the gradients where `gradients` says.

        Returns:
            Whether all went well; not with an index out of range.
        """
        workspace, slots = self._workspace()
        if not self._locate(parameters, slots):
            raise AssertionError("the parameters do not lie as they were traced")
        for slot, t in zip(self._data, data, strict=True):
            slots[slot, 0] = t.data_ptr()
        each = 8 * order.stride(0) if len(order) > 1 else 0
        slots[self._order] = order.data_ptr(), each, 8 * self._batch
        slots[self._loss] = losses.data_ptr(), 4, 4 * losses.shape[1]
        return tape.run(self._code, self._numbers, slots, workspace, who, len(losses), update)
