"""What each column is taken for, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.options import Declared
from thalweg.tasks.tables.read import Table, quoted
from thalweg.tasks.tables.values import Values, number_label, values

__all__ = ["MANY", "Column", "Kind", "counts_rows", "describe", "read_features", "sorted_labels"]

Kind: TypeAlias = Literal["numeric", "date", "nominal", "ordinal", "ignored", "target"]

MANY = 100  # levels of a column beyond which they are looked up and not written out
# Fewer rows than these are like an identifier or a row number by chance.
ROWS_TO_TELL = 10
UNIQUE = 0.9
# Of text that has numbers in this share of its rows, a person may have meant numbers.
NUMBERS_TO_TELL = 0.1


@dataclass(frozen=True)
class Column:
    """A column of a table, as a person may want to correct it.

    Attributes:
        name: as in the table.
        kind: what it is taken for.
        why: what speaks for that, or what a person said.
        levels: labels of a nominal or ordinal one in the training rows; classes of a target.
        low, high: range of a numeric one in the training rows; of dates in days since 1970.
        missing: rows of the table, the training file that is, without a value.
        treatment: what is done about missing values and scale.
        encoding: how the network gets it: ``number``, ``onehot``, ``ordinal`` (its place in an
            order, as a number), or ``lookup``, which is one-hot with more than 100 levels; empty
            for the target and what is ignored.
    """

    name: str
    kind: Kind
    why: str
    levels: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    missing: int = 0
    treatment: str = ""
    encoding: str = ""


def read_features(table: Table, declared: Declared) -> dict[str, Values]:
    """Values of all columns that may be features; their text is let go of, to free memory.

    Raises:
        TaskError: for what cannot be read as what it is said to be.
    """
    aside = {declared.target, declared.group, declared.time, *declared.drop, *table.unnamed}
    aside -= {*declared.numeric, *declared.nominal, *declared.ordinal}
    aside |= {declared.target}
    found = {}
    for name in list(table.columns):
        if name in aside:
            continue
        if name in declared.numeric:
            read = values(table, name, "numeric", "numeric")
            if read.missing.all():
                raise TaskError("numeric", f"column {name!r} of {table.name} has no values at all")
        elif name in declared.nominal or name in declared.ordinal:
            read = values(table, name, "nominal")
        else:
            read = values(table, name)
            if read.missing.all():
                raise TaskError(
                    "task",
                    f"column {name!r} of {table.name} has no value in any row; leave it out with "
                    f"--drop {quoted(name)}",
                )
        found[name] = read
        del table.columns[name]
    return found


def describe(
    name: str, read: Values, rows: NDArray[np.int64], declared: Declared, encoding: str
) -> Column:
    """What a feature is taken for, by its training rows alone.

    Args:
        name: of the column.
        read: its values in all rows.
        rows: which of them are for training.
        declared: what a person says.
        encoding: of categories: ``onehot``, ``ordinal``, or empty for the usual one.
    """
    missing = int(read.missing.sum())
    known = rows[~read.missing[rows]]
    if not len(known):
        return Column(name, "ignored", "it has no values in the training rows", missing=missing)
    if read.numbers is not None:
        return _numeric(name, read, np.sort(rows), name in declared.numeric, missing)
    assert read.labels is not None
    codes = read.labels.codes[known]
    present, counts = np.unique(codes, return_counts=True)
    names = [str(read.labels.categories[c]) for c in present]
    order = declared.ordinal.get(name) or read.order
    chosen = name in declared.nominal or bool(order)
    if len(present) == 1 and len(known) == len(rows):
        return Column(name, "ignored", f"it is {names[0]!r} in all training rows", missing=missing)
    if not chosen and len(present) > ROWS_TO_TELL and len(present) >= UNIQUE * len(known):
        return Column(
            name,
            "ignored",
            f"its {len(known):,} values in the training rows are {len(present):,} different texts, "
            f"as of names or numbers of rows; --nominal {quoted(name)} keeps it",
            missing=missing,
        )
    kind: Kind
    if order:
        why = f"--ordinal: {' < '.join(order)}" if name in declared.ordinal else "it has an order"
        levels, kind = order, "ordinal"
    else:
        why = "--nominal" if name in declared.nominal else _text(name, names, counts)
        kind = "nominal"
        levels = sorted_labels(names)
    way = encoding or ("ordinal" if kind == "ordinal" else "onehot")
    way = "lookup" if way == "onehot" and len(levels) > MANY else way
    return Column(
        name,
        kind,
        why,
        levels,
        missing=missing,
        treatment=_treatment(way, missing),
        encoding=way,
    )


def _text(name: str, names: list[str], counts: NDArray[np.int64]) -> str:
    """Why a column is no numbers, and what to do if many of its values are."""
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").notna().to_numpy()
    share = counts[numbers].sum() / counts.sum()
    if not NUMBERS_TO_TELL <= share < 1:
        return "text"
    other = names[int(np.argmax(np.where(numbers, 0, counts)))]
    return (
        f"text, but {100 * share:.0f} % are numbers: correct the rest ({other!r:.40}) if all "
        f"should be, or give --nominal {quoted(name)}"
    )


def sorted_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Labels by number if all are numbers, else by alphabet."""
    names = list(names)
    try:
        return tuple(sorted(names, key=lambda n: (float(n), n)))
    except ValueError:
        return tuple(sorted(names))


def counts_rows(numbers: NDArray[np.float64], rows: NDArray[np.int64]) -> bool:
    """Whether numbers go up by one from row to row."""
    return bool(np.ptp(numbers - rows) == 0)


def _treatment(encoding: str, missing: int) -> str:
    if encoding != "ordinal":
        return "missing: a category of its own" if missing else ""
    return (
        "missing: the commonest of the training rows; standardised" if missing else "standardised"
    )


def _numeric(
    name: str, read: Values, rows: NDArray[np.int64], chosen: bool, missing: int
) -> Column:
    assert read.numbers is not None
    numbers = read.numbers[rows]
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if low == high:
        shown = number_label(low)
        return Column(name, "ignored", f"it is {shown} in all training rows", missing=missing)
    plain = read.kind == "numeric" and not chosen  # a date for each row is a date
    if plain and len(rows) >= ROWS_TO_TELL and counts_rows(numbers, rows):
        return Column(
            name,
            "ignored",
            f"it counts the rows, one after another; --numeric {quoted(name)} keeps it",
            missing=missing,
        )
    kind: Kind = "date" if read.kind == "date" else "numeric"
    why = "--numeric" if chosen else "dates, as days" if kind == "date" else "all are numbers"
    return Column(
        name,
        kind,
        why,
        low=low,
        high=high,
        missing=missing,
        treatment="missing: median of the training rows; standardised" if missing
        else "standardised",
        encoding="number",
    )  # fmt: skip
