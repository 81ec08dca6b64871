"""What is to be predicted: classes by name, or numbers in their units."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.columns import Column, counts_rows, sorted_labels
from thalweg.tasks.tables.options import Declared
from thalweg.tasks.tables.read import Table, quoted
from thalweg.tasks.tables.values import Values, labelled, number_label, values

__all__ = ["Target", "fit_target", "read_target"]

# Whole numbers with at most so many values, each on average as often, are names of classes.
CLASSES = 20
ROWS_A_CLASS = 5


@dataclass(frozen=True)
class Target:
    """What a network's outputs mean.

    Attributes:
        name: of the column.
        classes: as they were in the table, by output; None for a regression.
        mean, scale: of the training rows, of a regression: targets are standardised.
    """

    name: str
    classes: NDArray[Any] | None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def labels(self) -> list[str]:
        """Names of the classes as text."""
        return [] if self.classes is None else [_label(c) for c in self.classes]

    @property
    def outputs(self) -> int:
        """How many the network has."""
        return 1 if self.classes is None else len(self.classes)

    def encode(self, read: Values, rows: NDArray[np.int64]) -> Tensor:
        """Class indices ``(rows,)`` in int64, or standardised numbers ``(rows, 1)`` in float32."""
        if self.classes is None:
            assert read.numbers is not None
            standard = (read.numbers[rows] - self.mean) / self.scale
            return torch.from_numpy(standard.astype(np.float32)).reshape(-1, 1)
        named = labelled(read).labels
        assert named is not None
        places = {label: i for i, label in enumerate(self.labels)}
        lookup = np.array([places.get(str(c), -1) for c in named.categories], dtype=np.int64)
        return torch.from_numpy(lookup[named.codes[rows]])

    def decode(self, outputs: Tensor) -> NDArray[Any]:
        """Classes, or numbers in their units, ``(rows,)``, of a network's outputs."""
        if self.classes is None:
            found: NDArray[Any] = outputs[:, 0].double().numpy() * self.scale + self.mean
            return found
        chosen: NDArray[Any] = self.classes[outputs.argmax(-1).numpy()]
        return chosen


def _label(value: Any) -> str:
    if isinstance(value, bool | np.bool_ | str):
        return str(value)
    return number_label(float(value))


def read_target(table: Table, declared: Declared) -> tuple[Values, Column]:
    """Values of the target, and what it is taken for.

    Raises:
        TaskError: if nothing can be learned of it.
    """
    name = declared.target
    numeric, nominal = name in declared.numeric, name in declared.nominal
    if numeric:
        read = values(table, name, "numeric", "numeric")
    else:
        read = values(table, name, "nominal" if nominal else None)
    known = ~read.missing
    if not known.any():
        raise TaskError("target", f"column {name!r} of {table.name} has no values at all")
    if read.kind == "date":
        raise TaskError(
            "target",
            f"column {name!r} of {table.name} has dates, which cannot be predicted; give "
            f"--nominal {quoted(name)} to take them as names of classes",
        )
    column = Column(name, "target", "", missing=int((~known).sum()))
    if read.numbers is None:
        return read, _classes(table, column, read, "--nominal" if nominal else "text")
    numbers = read.numbers[known]
    distinct = np.unique(numbers)
    if len(distinct) == 1:
        raise _constant(table, name, number_label(distinct[0]))
    whole = bool((distinct == np.round(distinct)).all())
    few = whole and len(distinct) <= min(CLASSES, len(numbers) // ROWS_A_CLASS)
    if few and not numeric:
        why = f"whole numbers with {len(distinct)} values; --numeric {quoted(name)} for numbers"
        return labelled(read), _classes(table, column, labelled(read), why)
    counting = len(numbers) > CLASSES and counts_rows(numbers, np.flatnonzero(known))
    if counting and not numeric:
        raise TaskError(
            "target",
            f"column {name!r} of {table.name} counts the rows and says nothing about them; "
            f"give another, or --numeric {quoted(name)} if it is meant",
        )
    why = "--numeric" if numeric else f"numbers; --nominal {quoted(name)} for classes"
    low, high = float(distinct[0]), float(distinct[-1])
    return read, replace(
        column, why=why, low=low, high=high, treatment="standardised", encoding="number"
    )


def _classes(table: Table, column: Column, read: Values, why: str) -> Column:
    assert read.labels is not None
    codes = read.labels.codes[~read.missing]
    present, counts = np.unique(codes, return_counts=True)
    if len(present) == 1:
        raise _constant(table, column.name, str(read.labels.categories[present[0]]))
    if counts.max() == 1:
        raise TaskError(
            "target",
            f"column {column.name!r} of {table.name} has another value in each of its "
            f"{len(codes):,} rows, as of an identifier; nothing can be learned of it: give another",
        )
    names = sorted_labels(str(read.labels.categories[c]) for c in present)
    return replace(column, why=why, levels=names)


def _constant(table: Table, name: str, value: str) -> TaskError:
    return TaskError(
        "target",
        f"column {name!r} of {table.name} is {value!r:.60} in all rows; there is nothing to "
        f"predict: give another",
    )


def classes_of(read: Values, labels: tuple[str, ...]) -> NDArray[Any]:
    """Classes as they were in the table: numbers, truth values or text."""
    if read.dtype is not None and read.dtype.kind in "iuf":
        return np.array([float(label) for label in labels]).astype(read.dtype)
    if {*labels} <= {"True", "False"}:
        return np.array([label == "True" for label in labels])
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return np.array(labels, dtype=object)
    # A number that is written another way than we would, 007 say, is a name.
    if [number_label(n) if np.isfinite(n) else "" for n in numbers] != [*labels]:
        return np.array(labels, dtype=object)
    whole = all(n.is_integer() for n in numbers)
    return np.array(numbers, dtype=np.int64 if whole else np.float64)


def fit_target(column: Column, read: Values, rows: NDArray[np.int64]) -> Target:
    """A target by its training rows.

    Args:
        column: as `read_target` gives it.
        read: its values in all rows.
        rows: which of them are for training.
    """
    if read.numbers is None or column.levels:
        return Target(column.name, classes_of(read, column.levels))
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(read.numbers[rows].reshape(-1, 1))
    return Target(column.name, None, float(scaler.mean_[0]), float(scaler.scale_[0]))
