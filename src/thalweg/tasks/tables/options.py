"""What a person says about columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.read import Table, listing, nearest

__all__ = ["Declared", "Encoding", "check_names", "encodings_of", "orders"]

Encoding: TypeAlias = Literal["onehot", "ordinal"]
Orders: TypeAlias = Mapping[str, Sequence[str]] | Sequence[str]


@dataclass(frozen=True)
class Declared:
    """What a person says about columns, by name.

    Attributes:
        target: what is to be predicted.
        numeric, nominal: columns to be read so.
        ordinal: labels from low to high.
        drop: columns to be left out.
        group, time: by what rows are divided.
    """

    target: str
    numeric: tuple[str, ...]
    nominal: tuple[str, ...]
    ordinal: Mapping[str, tuple[str, ...]]
    drop: tuple[str, ...]
    group: str | None
    time: str | None


def orders(given: Orders) -> dict[str, tuple[str, ...]]:
    """Labels from low to high of ordinal columns, from a mapping or from ``size=S<M<L``.

    Raises:
        TaskError: if a column has no order, or a label twice.
    """
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Mapping):
        cut = [text.partition("=") for text in given]
        given = {name: [v for v in order.split("<") if v.strip()] for name, _, order in cut}
    found = {}
    for name, order in given.items():
        labels = tuple(str(label).strip() for label in order)
        if len(labels) < 2:
            raise TaskError(
                "ordinal",
                f"column {name!r} needs its values from low to high: --ordinal '{name}=low<high'",
            )
        if len(set(labels)) < len(labels):
            raise TaskError("ordinal", f"the order of column {name!r} has a value twice")
        found[name] = labels
    return found


def encodings_of(
    given: Sequence[str] | Mapping[str, Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """Encodings to be compared, by column; those of all columns under the empty name.

    Raises:
        TaskError: if there is no such encoding, or not two of them.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        found = {name: tuple(ways) for name, ways in given.items()}
    else:
        found = {}
        for text in given:
            name, equals, ways = text.rpartition("=")
            key = name if equals else ""
            cut = tuple(w.strip() for w in ways.split(",") if w.strip())
            found[key] = (*found.get(key, ()), *cut)
    known = get_args(Encoding)
    for name, chosen in found.items():
        for way in chosen:
            if way not in known:
                raise TaskError(
                    "encodings", f"there is no encoding {way!r}; there are {' and '.join(known)}"
                )
        if len(set(chosen)) < 2:
            shown = f"{name}=" if name else ""
            raise TaskError(
                "encodings", f"needs two to compare, as in --encodings {shown}onehot,ordinal"
            )
    return found


def check_names(table: Table, declared: Declared, encodings: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse names that no column has, and columns that are said to be two things.

    Raises:
        TaskError: naming the option and the column.
    """
    names = list(table.columns)
    if not declared.target:
        raise TaskError(
            "target", f"say which column of {table.name} is to be predicted: {listing(names)}"
        )
    single = {"target": declared.target, "group": declared.group, "time": declared.time}
    said = {k: (v,) for k, v in single.items() if v is not None} | {
        "numeric": declared.numeric,
        "nominal": declared.nominal,
        "ordinal": tuple(declared.ordinal),
        "drop": declared.drop,
        "encodings": tuple(n for n in encodings if n),
    }
    for option, columns in said.items():
        for column in columns:
            if column not in names:
                raise TaskError(
                    option, f"{table.name} has no column {column!r}; {nearest(column, names)}"
                )
    if declared.group is not None and declared.time is not None:
        raise TaskError("time", "rows are divided by --group or by --time, not by both")
    for one, other in _APART:
        both = set(said.get(one, ())) & set(said.get(other, ()))
        if both:
            raise TaskError(
                other, f"column {min(both)!r} is given with --{one} too; it can be only one of both"
            )


_APART = (
    ("numeric", "nominal"), ("numeric", "ordinal"), ("nominal", "ordinal"), ("target", "ordinal"),
    ("target", "drop"), ("target", "group"), ("target", "time"), ("target", "encodings"),
    ("group", "drop"), ("time", "drop"), ("numeric", "encodings"),
    ("drop", "encodings"),
)  # fmt: skip
