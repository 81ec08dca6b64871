"""Who trains: one process, or several that each take a part of every batch."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["ALONE", "Ranks", "joined"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, as one of them sees it.

    Attributes:
        rank: its own number, from 0.
        size: how many there are.
        device: its own.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module, shard: bool = False) -> nn.Module:
        """The module as it is called to train on all ranks."""
        return module

    def part(self, batch: tuple[Any, Any]) -> tuple[tuple[Any, Any], int]:
        """This rank's rows of a batch, and how many of them count."""
        return batch, len(tree_leaves(batch[1])[0])

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Sums over the ranks."""
        return list(values)

    def gather(self, outputs: T, rows: int) -> T:
        """Of a batch of so many rows the outputs of all ranks, in its order."""
        return outputs

    def most(self, value: float) -> float:
        """The largest of what all ranks say."""
        return value

    def all_of(self, value: T) -> list[T]:
        """What each rank says, in their order; plain values and tensors on the CPU."""
        return [value]

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """For backward passes whose gradients are not those of the step yet."""
        return nullcontext()

    def model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of all weights on the CPU, under the model's own names."""
        return _copied(module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """A copy on the CPU of the optimizer's state."""
        return _copied(optimizer.state_dict())

    def load_model(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Take such weights."""
        module.load_state_dict(state)

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take such a state, which may become the optimizer's own."""
        optimizer.load_state_dict(state)


def _copied(state: Any) -> dict[str, Any]:
    found: Any = tree_map(
        lambda t: t.detach().to("cpu", copy=True) if isinstance(t, Tensor) else copy.copy(t),
        dict(state),
    )
    return dict(found)


ALONE = Ranks(0, 1, torch.device("cpu"))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes, if torchrun has started some."""
    yield Ranks(0, 1, torch.device(device))
