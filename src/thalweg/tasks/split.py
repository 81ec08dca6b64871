"""One part of a data set, and the error of what cannot be used."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.errors import ArgumentError

__all__ = ["Batch", "Split", "TaskError"]

# A model with several inputs takes a tuple as its positional arguments, a dictionary by name.
Batch: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]


class TaskError(ArgumentError):
    """Data, a model, a loss or a metric that cannot be used."""


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        x: inputs, ``(samples, *features)``; of a model with several inputs a tuple or dictionary
            of such tensors.
        y: targets, ``(samples, *)``, likewise.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """

    x: Batch
    y: Batch

    def __post_init__(self) -> None:
        inputs, targets = ([len(t) for t in tree_leaves(part)] for part in (self.x, self.y))
        counts = {*inputs, *targets}
        if len(counts) != 1 or not inputs or not targets or not counts - {0}:
            raise ValueError(
                f"a Split needs as many targets as inputs, and at least one; it got "
                f"{_counts(inputs)} inputs and {_counts(targets)} targets"
            )

    def __len__(self) -> int:
        """How many samples."""
        return len(tree_leaves(self.y)[0])

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        """Inputs and targets of some samples; ``index`` as tensors take it."""
        chosen: tuple[Any, Any] = tree_map(lambda t: t[index], (self.x, self.y))
        return chosen

    def to(self, device: str) -> "Split":
        """The same on another device."""
        return Split(*tree_map(lambda t: t.to(device), (self.x, self.y)))

    @property
    def tensors(self) -> list[Tensor]:
        """All of inputs and targets, one after another."""
        return list(tree_leaves((self.x, self.y)))


def _counts(lengths: list[int]) -> str:
    return " and ".join(map(str, dict.fromkeys(lengths))) or "no"
