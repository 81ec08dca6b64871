"""The batches of a training, epoch after epoch, from where a checkpoint left off."""

import random
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from thalweg.tasks import Split
from thalweg.train.arguments import FitError

__all__ = [
    "Batches",
    "InMemory",
    "Loaded",
    "Pair",
    "random_state",
    "seed_all",
    "set_random_state",
    "split_bytes",
]

Pair = tuple[Any, Any]  # inputs and targets of one batch

BLOCK = 1 << 22  # bytes of samples that are put in order at once


class Batches(Protocol):
    """Where batches come from.

    Attributes:
        count: batches an epoch.
    """

    count: int

    def epoch(self, first: int = 0) -> Iterator[Pair]:
        """The batches of the next epoch, the first ones left out."""
        ...

    def state(self) -> dict[str, Any]:
        """What the order of the present epoch comes from."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Let the next epoch be the one that the state was taken in.

        Raises:
            FitError: if it was taken of batches from elsewhere.
        """
        ...


class InMemory:
    """A task's own data, shuffled anew each epoch as studies shuffle them for the same seed.

    Args:
        split: the data, wherever it is.
        size: samples a batch; the last of an epoch has what is left.
        seed: of the order.
    """

    def __init__(self, split: Split, size: int, seed: int) -> None:
        self.count = -(-len(split) // size)
        self.device = split.tensors[0].device
        self._split, self._size = split, size
        self._generator = torch.Generator().manual_seed(seed)
        self._begun = self._generator.get_state()
        self._block = size * max(1, BLOCK // (size * max(1, split_bytes(split))))

    def epoch(self, first: int = 0) -> Iterator[Pair]:
        """See `Batches`."""
        self._begun = self._generator.get_state()
        order = torch.randperm(len(self._split), generator=self._generator)
        return self._taken(order[first * self._size :].to(self.device))

    def _taken(self, order: Tensor) -> Iterator[Pair]:
        leaves, shape = tree_flatten((self._split.x, self._split.y))
        for block in torch.split(order, self._block):
            parts = zip(
                *(torch.split(t.index_select(0, block), self._size) for t in leaves), strict=True
            )
            yield from (tree_unflatten(part, shape) for part in parts)

    def state(self) -> dict[str, Any]:
        """See `Batches`."""
        return {"generator": self._begun.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """See `Batches`."""
        if "generator" not in state:
            raise FitError(
                "loader", "this training takes its batches from one, which is yours; give it again"
            )
        self._generator.set_state(state["generator"])


class Loaded:
    """A loader of one's own: each iteration over it is an epoch.

    Its random numbers are torch's, NumPy's and Python's global ones, and its ``generator`` if it
    has one, as a ``DataLoader`` has; they are kept as they are when an epoch begins, so that a
    resumed training gets the batches that it would have got.

    Args:
        loader: gives ``(x, y)`` of tensors; with a length.
    """

    def __init__(self, loader: Iterable[Pair]) -> None:
        if not isinstance(loader, Sized) or not hasattr(loader, "__iter__"):
            raise FitError(
                "loader",
                f"must be a DataLoader or another sequence of batches (x, y) with a length, got a "
                f"{type(loader).__name__}",
            )
        self.count = len(loader)
        if not self.count:
            raise FitError("loader", "has no batches")
        self._loader = loader
        self._begun: dict[str, Any] = {}  # random states, when the present epoch began
        self._again: dict[str, Any] = {}  # and those of an epoch to go on with

    def epoch(self, first: int = 0) -> Iterator[Pair]:
        """See `Batches`."""
        own = getattr(self._loader, "generator", None)
        if not self._again:
            self._begun = random_state() | ({} if own is None else {"own": own.get_state()})
            return _pairs(iter(self._loader))
        now = random_state()
        self._begun, self._again = self._again, {}
        set_random_state(self._begun)
        if own is not None and "own" in self._begun:
            own.set_state(self._begun["own"])
        batches = iter(self._loader)
        for _ in islice(batches, first):
            pass
        set_random_state(now)
        return _pairs(batches)

    def state(self) -> dict[str, Any]:
        """See `Batches`."""
        return {"begun": dict(self._begun)}

    def load(self, state: dict[str, Any]) -> None:
        """See `Batches`."""
        if "begun" not in state:
            raise FitError(
                "loader", "this training takes the task's own batches; leave the loader out"
            )
        self._again = dict(state["begun"])


def _pairs(batches: Iterator[Any]) -> Iterator[Pair]:
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else "one part"
            raise FitError(
                "loader",
                f"must give batches of two parts, (x, y), and gave a "
                f"{type(batch).__name__} of {what}",
            )
        yield batch[0], batch[1]


def split_bytes(split: Split) -> int:
    """Of one sample."""
    return sum(t[:1].nbytes for t in split.tensors)


def seed_all(seed: int) -> None:
    """Seed the global random states."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The global random states, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    found = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda"])
