"""From what a person has to the parts of a data set."""

from dataclasses import dataclass
from typing import Any

from thalweg.tasks.task import Split, TaskError

__all__ = ["DEFAULT_BATCH", "Parts", "parts"]

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Parts:
    """A data set in its three parts.

    Attributes:
        train, validation, test: see `thalweg.tasks.Task`.
        batch_size: of the loader that was given, or None.
        notes: what was done to the data, a sentence each.
    """

    train: Split
    validation: Split
    test: Split
    batch_size: int | None = None
    notes: tuple[str, ...] = ()


def parts(train: Any, validation: Any, test: Any) -> Parts:
    """Tensors of what `thalweg.tasks.Task` takes as data.

    Raises:
        TaskError: naming the part and what stands against it.
    """
    found = []
    for part, given in (("train", train), ("validation", validation), ("test", test)):
        if isinstance(given, Split):
            found.append(given)
        elif isinstance(given, tuple) and len(given) == 2:
            found.append(Split(*given))
        else:
            raise TaskError(part, f"got {given!r}")
    return Parts(found[0], found[1], found[2])
