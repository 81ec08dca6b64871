"""What a step keeps in memory, by kind, counted tensor by tensor."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

__all__ = ["Memory", "Saved", "memory_of"]


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step holds, each piece of memory counted once.

    Attributes:
        parameters: of the model, frozen ones among them.
        gradients: of those that are trained.
        optimizer_state: all tensors that the optimizer keeps.
        activations: what the forward pass saves for the backward pass, when it ends: outputs of
            layers, masks, copies in another precision. Parameters, buffers and the batch itself,
            which are saved too, are not counted again.
        buffers: of the model, running means say.
        batch: inputs and targets.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    buffers: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


class Saved:
    """What autograd saves for the backward pass while this context is open.

    A piece of memory counts once, however many views of it are saved, and in full, as a view keeps
    all of it; what was let go again before it is asked for does not count.
    """

    def __init__(self) -> None:
        self._found: dict[StorageWeakRef, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._seen, lambda tensor: tensor)

    def _seen(self, tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            self._found[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, an operator's output would keep the operator alive

    def __enter__(self) -> "Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__(*_)

    def bytes_beside(self, others: Iterable[Tensor]) -> int:
        """Bytes that are still kept, but for those of other tensors."""
        known = {_key(t) for t in others}
        kept = {key: n for key, n in self._found.items() if not key.expired()}  # type: ignore[no-untyped-call]
        return sum(n for key, n in kept.items() if key not in known)


def memory_of(
    module: nn.Module, optimizer: Optimizer, batch: Any, loss: Callable[[], Tensor]
) -> Memory:
    """What a step holds; gradients are added to the parameters'.

    Args:
        module: what is trained.
        optimizer: that has taken a step.
        batch: inputs and targets, tensors in tuples and dictionaries.
        loss: of the batch, by a forward pass.
    """
    given = [t for t in tree_leaves(batch) if isinstance(t, Tensor)]
    parameters, buffers = list(module.parameters()), list(module.buffers())
    with Saved() as saved:
        found = loss()
    activations = saved.bytes_beside([*parameters, *buffers, *given])
    found.backward()  # type: ignore[no-untyped-call]
    return Memory(
        parameters=_bytes(parameters),
        gradients=_bytes(p.grad for p in parameters if p.grad is not None),
        optimizer_state=_bytes(_tensors(dict(optimizer.state))),
        activations=activations,
        buffers=_bytes(buffers),
        batch=sum(t.nbytes for t in given),  # which may be views of all data
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each piece once."""
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


def _key(tensor: Tensor) -> StorageWeakRef:
    # By its address alone a piece of memory could be taken for one that was let go before it.
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _tensors(kept: Any) -> Iterator[Tensor]:
    """All tensors in what an optimizer keeps, which may nest."""
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, dict):
        for value in kept.values():
            yield from _tensors(value)
    elif isinstance(kept, list | tuple):
        for value in kept:
            yield from _tensors(value)
