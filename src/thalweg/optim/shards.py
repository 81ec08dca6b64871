"""DTensors, of which each process has a part: FSDP2's parameters, and tensor parallel ones.

An elementwise rule makes of the parts the parts of what it makes of the whole, so that each process
takes its own, as a plain tensor. What a rule sums over a tensor is summed over its parts at a
`Meeting`; a rule of whole matrices has them gathered (`whole`) and keeps its part (`put`).
"""

import sys
from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Meeting",
    "Meetings",
    "Shards",
    "check_layout",
    "is_sharded",
    "laid_out_alike",
    "laid_out_as",
    "layout_of",
    "part_of",
    "put",
    "side_by_side",
    "whole",
    "with_part",
]

Found = tuple["Meeting | None", NDArray[np.int64], NDArray[np.float64]]


def is_sharded(t: Tensor) -> TypeGuard["DTensor"]:
    """Whether this is a DTensor; where there is one, its module, slow to import, is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def part_of(t: Tensor) -> Tensor:
    """What of a tensor lies in this process: of a DTensor its own tensor, and else all of it."""
    # Not to_local(), which makes of a parameter's another one at each call.
    return t._local_tensor if is_sharded(t) else t


def layout_of(t: Tensor) -> Any:
    """How a tensor is laid out over processes, to compare and to print; None if it is not."""
    return (t.device_mesh, t.placements) if is_sharded(t) else None


def laid_out_alike(p: Tensor, t: Tensor) -> bool:
    """Whether the parts of two tensors of one shape are those of the same elements."""
    return bool(layout_of(p) == layout_of(t))


def laid_out_as(p: Tensor, t: Tensor) -> Tensor:
    """Of ``t`` the part of those elements that the part of ``p`` has.

    All processes have to ask, for where the two are not laid out alike they exchange parts.
    """
    if not is_sharded(p) or not is_sharded(t) or laid_out_alike(p, t):
        return part_of(t)
    return t.redistribute(p.device_mesh, p.placements)._local_tensor


def with_part(p: Tensor, part: Tensor) -> Tensor:
    """A tensor laid out as ``p``, whose part this is."""
    if not is_sharded(p):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def side_by_side(p: Tensor, own: Tensor, elements: int) -> Tensor:
    """What each process keeps of its part of ``p`` in another shape, as one tensor.

    A DTensor has the shape ``(parts, ..., length)``, one dimension for each of the mesh over which
    ``p`` is cut up, so that checkpoints have all of it.

    Args:
        p: a parameter.
        own: ``(length,)``, one for each so many elements of the part, rounded up.
        elements: how many.
    """
    if not is_sharded(p):
        return own
    from torch.distributed.tensor import DTensor, Replicate, Shard

    cut = _cut(p)
    # Parts are not of one length; the first is the longest.
    longest = list(p.shape)
    for dim in cut:
        along = p.placements[dim].dim  # type: ignore[attr-defined]
        longest[along] = -(-longest[along] // p.device_mesh.size(dim))
    length = -(-prod(longest) // elements)
    row = torch.nn.functional.pad(own, (0, length - len(own))).view(*[1] * len(cut), length)
    placements = [
        Shard(cut.index(dim)) if dim in cut else Replicate() for dim in range(p.device_mesh.ndim)
    ]
    return DTensor.from_local(row, p.device_mesh, placements, run_check=False)


def whole(some: Sequence[Tensor]) -> Tensor:
    """All of some tensors of one shape, ``(count, *shape)``.

    All processes have to ask, for they send each other their parts of DTensors.
    """
    if not any(map(is_sharded, some)):
        return some[0].detach()[None] if len(some) == 1 else torch.stack(list(some))
    placements = _of_stack(some)
    if placements is None:
        return torch.stack([t.full_tensor() if is_sharded(t) else t for t in some])
    from torch.distributed.tensor import DTensor

    mesh, shape = layout_of(some[0])[0], torch.Size((len(some), *some[0].shape))
    stride = torch.empty(shape, device="meta").stride()
    parts = torch.stack([part_of(t) for t in some])
    made = DTensor.from_local(parts, mesh, placements, run_check=False, shape=shape, stride=stride)
    return made.full_tensor()


@torch.no_grad()
def put(some: Sequence[Tensor], values: Tensor) -> None:
    """Write all of some tensors of one shape, of DTensors the own part, without any exchange.

    Args:
        some: where to.
        values: ``(count, *shape)``, the same in every process.
    """
    values = values.to(some[0].dtype)
    if not any(map(is_sharded, some)):
        torch._foreach_copy_(list(some), list(values.unbind(0)))
        return
    from torch.distributed.tensor import distribute_tensor

    def part(value: Tensor, mesh: Any, placements: Any) -> Tensor:
        # With no process to take it from, each takes its part from its own.
        return part_of(distribute_tensor(value, mesh, placements, src_data_rank=None))

    placements = _of_stack(some)
    if placements is not None:
        parts = list(part(values, layout_of(some[0])[0], placements).unbind(0))
    else:
        parts = [
            part(value, *layout_of(t)) if is_sharded(t) else value
            for t, value in zip(some, values, strict=True)
        ]
    torch._foreach_copy_([part_of(t) for t in some], parts)
    torch.autograd.graph.increment_version(some)


def _of_stack(some: Sequence[Tensor]) -> Any:
    """Placements of a stack of DTensors; None if they do not make one that is laid out so."""
    from torch.distributed.tensor import Replicate, Shard

    layout = layout_of(some[0])
    if layout is None or any(layout_of(t) != layout for t in some):
        return None
    if not all(isinstance(placement, Shard | Replicate) for placement in layout[1]):
        return None
    return [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in layout[1]]


def check_layout(p: Tensor, named: Iterable[tuple[str, Tensor]], owner: str) -> None:
    """Raise `TypeError` unless states, by name, are laid out as their parameter."""
    for name, t in named:
        if not laid_out_alike(p, t):
            raise TypeError(
                f"{owner}: its state {name!r} is {_described(t)} where the parameter is "
                f"{_described(p)}; load it by "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
            )


def _described(t: Tensor) -> str:
    return f"a DTensor with placements {t.placements}" if is_sharded(t) else "a plain tensor"


def _cut(p: "DTensor") -> list[int]:
    """Dimensions of the mesh over which a DTensor is cut up, not copied."""
    return [dim for dim, placement in enumerate(p.placements) if not placement.is_replicate()]


class Shards:
    """The DTensors among parameters: the kernel takes what of them lies in this process.

    That part, a plain tensor that FSDP2 made, has no gradient of its own. It is lent that of the
    DTensor, which the compiled reading of addresses then finds where it does for any parameter.
    """

    def __init__(self, parameters: Sequence[Tensor], states: Iterable[Tensor]) -> None:
        """Remember their parts, and those of their states."""
        self._parameters = [(p, p._local_tensor) for p in parameters if is_sharded(p)]
        self._states = [(t, t._local_tensor) for t in states if is_sharded(t)]

    def lend(self) -> bool:
        """Lend the gradients; False if a DTensor has another part now or a gradient laid out else.

        Autograd is told that the DTensors that have a gradient are about to be written to.
        """
        if any(t._local_tensor is not part for t, part in self._states):
            return False
        written = []
        for p, part in self._parameters:
            g = p.grad
            if p._local_tensor is not part or (g is not None and not laid_out_alike(p, g)):
                return False
            if g is not None:
                written.append(p)
            part.grad = None if g is None else part_of(g)
        torch.autograd.graph.increment_version(written)
        return True

    def take_back(self) -> None:
        """Leave the gradients to the DTensors alone, for ``zero_grad`` to free them."""
        for _, part in self._parameters:
            part.grad = None


class Meeting:
    """The processes that have parts of the same DTensors, to add up what each finds in its own.

    Attributes:
        parameters: all of them, in the order of the optimizer's groups, which is everywhere the
            same, whether they have a gradient here or not.
        terms: the most that one of them has to add up for its rule.
        place: number of the part that this process has, the same where it is copied to.
    """

    def __init__(self, p: "DTensor") -> None:
        """Meet over those dimensions of the mesh over which a DTensor is cut up."""
        mesh, here = p.device_mesh, p.device_mesh.get_coordinate()
        self.parameters: list[Tensor] = []
        self.terms = self.place = 0
        self._rows: dict[int, int] = {}
        self._device = mesh.device_type
        # A process outside of the mesh has nothing, and is not waited for.
        cut = _cut(p) if here is not None else []
        self._groups = [mesh.get_group(dim) for dim in cut]
        for dim in cut:
            self.place = self.place * mesh.size(dim) + here[dim]  # type: ignore[index]

    def join(self, p: Tensor, terms: int) -> None:
        """Take in a parameter, with how many terms its rule sums over it."""
        self._rows[id(p)] = len(self.parameters)
        self.parameters.append(p)
        self.terms = max(self.terms, terms)

    def seats(self, parameters: Sequence[Tensor]) -> NDArray[np.int64]:
        """Which of all parameters these are."""
        return np.array([self._rows[id(p)] for p in parameters], dtype=np.int64)

    def add_up(self, found: Sequence[Found], columns: int) -> None:
        """Add up, in place, what the processes have found; all have to, if they found nothing too.

        Args:
            found: whose, rows from `seats`, and float64 ``(rows, at most columns)`` to add up.
            columns: how many numbers a parameter has at most.
        """
        mine = [(seats, numbers) for whose, seats, numbers in found if whose is self]
        table = np.zeros((len(self.parameters), columns))
        for seats, numbers in mine:
            table[seats, : numbers.shape[1]] = numbers
        sums = torch.from_numpy(table).to(self._device)
        for group in self._groups:
            torch.distributed.all_reduce(sums, group=group)
        table = sums.cpu().numpy()
        for seats, numbers in mine:
            numbers[:] = table[seats, : numbers.shape[1]]


class Meetings:
    """All meetings of an optimizer, one for each mesh and its dimensions that cut DTensors up."""

    def __init__(self) -> None:
        self._all: dict[Any, Meeting] = {}

    def of(self, p: Tensor, terms: int) -> Meeting | None:
        """Where a parameter's sums are added up, None if this process has all of it."""
        if not is_sharded(p) or not _cut(p):
            return None
        key = p.device_mesh, tuple(_cut(p))
        if key not in self._all:
            self._all[key] = Meeting(p)
        self._all[key].join(p, terms)
        return self._all[key]

    def add_up(self, found: Sequence[Found], columns: int | None = None) -> None:
        """Add up, in place, at every meeting that has to; columns are its terms by default."""
        for meeting in self._all.values():
            width = meeting.terms if columns is None else columns
            if width:
                meeting.add_up(found, width)
