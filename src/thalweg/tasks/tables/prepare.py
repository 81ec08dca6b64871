"""From what a person gives to values of columns, and which rows are for what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.tasks.divide import divide
from thalweg.tasks.memory import refuse_what_does_not_fit
from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.columns import Column, describe, read_features
from thalweg.tasks.tables.options import Declared, check_names
from thalweg.tasks.tables.read import Data, Table, nearest, quoted, read
from thalweg.tasks.tables.target import Target, fit_target, read_target
from thalweg.tasks.tables.values import Values, labelled, values

__all__ = ["Prepared", "features_of", "listed", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A table that is read, understood and divided.

    Attributes:
        main: where training rows are; of its columns only those that are no features.
        declared: what a person says about columns.
        names: of all columns, in order.
        features: values of what may be a feature.
        answers: values of the target.
        target: the target's column.
        answer: what is to be predicted.
        rows: of the main table, by part: train, and validation and test unless given.
        given: tables of the other parts, with values of the target and rows that have one.
        notes: what was done, a sentence each.
    """

    main: Table
    declared: Declared
    names: tuple[str, ...]
    features: Mapping[str, Values]
    answers: Values
    target: Column
    answer: Target
    rows: Mapping[str, NDArray[np.int64]]
    given: Mapping[str, tuple[Table, Values, NDArray[np.int64]]]
    notes: tuple[str, ...]


def prepare(
    given: Mapping[str, Data | None],
    declared: Declared,
    encodings: Mapping[str, tuple[str, ...]],
    reading: Mapping[str, Any],
) -> Prepared:
    """Read, understand and divide.

    Args:
        given: the table as ``task``, and ``validation`` and ``test`` or None.
        declared: what a person says about columns.
        encodings: to be compared, by column.
        reading: options of `thalweg.tasks.tables.read.read`.

    Raises:
        TaskError: for what cannot be read, understood or learned from.
    """
    tables = {part: read(d, part, **reading) for part, d in given.items() if d is not None}
    main = tables.pop("task")
    check_names(main, declared, encodings)
    names = tuple(main.columns)
    answers, column = read_target(main, declared)
    kept = np.flatnonzero(~answers.missing)
    notes = _without_target(main, declared.target, len(kept), main.rows)
    rows, how = _divided(main, declared, answers, kept, tuple(tables))
    answer = fit_target(column, answers, rows["train"])
    if answers.numbers is not None and np.ptp(answers.numbers[rows["train"]]) == 0:
        raise TaskError("target", f"{declared.target!r} is the same in all rows for training")
    others = {part: _other(t, declared, answer, answers) for part, t in tables.items()}
    for table, _, found in others.values():
        notes += _without_target(table, declared.target, len(found), table.rows)
    notes.append(how)
    features = read_features(main, declared)
    return Prepared(
        main, declared, names, features, answers, column, answer, rows, others, tuple(notes)
    )


def features_of(found: Prepared, encoding: Mapping[str, str]) -> list[Column]:
    """What each possible feature is taken for.

    Args:
        found: the table.
        encoding: of categories by column, that of all under the empty name.

    Raises:
        TaskError: if none is left, or if what is would not fit into memory.
    """
    train, usual = found.rows["train"], encoding.get("", "")
    columns = [
        describe(name, read, train, found.declared, encoding.get(name, usual))
        for name, read in found.features.items()
    ]
    _can_be_encoded(columns, encoding)
    used = [c for c in columns if c.encoding]
    if not used:
        reasons = "".join(f"; {c.name!r}: {c.why}" for c in columns)
        raise TaskError(
            "task",
            f"{found.main.name} has no column to learn {found.target.name!r} from{reasons}",
        )
    widths = [len(c.levels) + 1 if c.encoding == "onehot" else 2 for c in used]
    rows = len(found.answers.missing)
    # Inputs in single precision, and what scikit-learn holds while it is fitted.
    need = rows * (4 * sum(widths) + 20 * len(used))
    argument = found.main.argument
    refuse_what_does_not_fit(f"{found.main.name}, encoded,", argument, rows, need, need)
    return columns


def _can_be_encoded(columns: Sequence[Column], encoding: Mapping[str, str]) -> None:
    """Refuse encodings that no column, or not the one that is named, can have."""
    categories = [c.name for c in columns if c.levels]
    if "" in encoding and not categories:
        raise TaskError(
            "encodings", "can be compared of categories, and no column has any; see --nominal"
        )
    for name in encoding:
        if name and name not in categories:
            raise TaskError(
                "encodings",
                f"column {name!r} is not taken as categories; --nominal {quoted(name)} does that",
            )


def listed(found: Prepared, columns: Sequence[Column]) -> tuple[Column, ...]:
    """All columns of the table in its order, those included that are no features."""
    known = {c.name: c for c in columns} | {found.target.name: found.target}
    declared = found.declared
    for name in found.names:
        if name not in known:
            why = (
                "--drop" if name in declared.drop
                else "--group, which rows are divided by" if name == declared.group
                else "--time, which rows are divided by" if name == declared.time
                else "it has no name, as numbers of rows have none"
            )  # fmt: skip
            known[name] = Column(name, "ignored", why)
    return tuple(known[name] for name in found.names)


def _without_target(table: Table, name: str, kept: int, rows: int) -> list[str]:
    left = rows - kept
    said = "row has" if left == 1 else "rows have"
    return [f"{left:,} {said} no {name!r} in {table.name}: left out."] if left else []


def _divided(
    main: Table, declared: Declared, answers: Values, kept: NDArray[np.int64], given: Sequence[str]
) -> tuple[dict[str, NDArray[np.int64]], str]:
    """Rows of the main table by part, and a sentence on how."""
    for option, name in (("group", declared.group), ("time", declared.time)):
        if name is not None and len(given) == 2:
            raise TaskError(
                option, "divides rows into three parts, and files for two of them are given"
            )
    if len(given) == 2:
        return {"train": kept}, "Validation and test are the tables given."
    by, argument = _by(main, declared, kept)
    classes = None
    if answers.labels is not None:
        classes = answers.labels.categories.to_numpy(dtype=object)[answers.labels.codes[kept]]
    try:
        train, validation, test = divide(
            len(kept), classes=None if "order" in by else classes, **by
        )
    except ValueError as error:
        rare = _rarest(main, classes, kept) if argument == "target" and classes is not None else ""
        raise TaskError(
            argument,
            f"column {getattr(declared, argument)!r} of {main.name} cannot divide the rows: "
            f"{error}{rare}",
        ) from None
    rows = {"train": kept[train], "validation": kept[validation], "test": kept[test]}
    for part in given:
        # The rest is two parts: four fifths for training, and the last for what is not given.
        rows = {"train": np.concatenate([rows["train"], rows["validation"]])} | {
            p: rows["test"] for p in ("validation", "test") if p != part
        }
    if answers.labels is not None:
        _all_in_training(main, argument, answers, rows)
    how = (
        f"by group {declared.group!r}" if declared.group is not None
        else f"by time {declared.time!r}, the latest for the test" if declared.time is not None
        else "at random, by class" if classes is not None
        else "at random"
    )  # fmt: skip
    counts = ", ".join(f"{len(r):,} {part}" for part, r in rows.items())
    return rows, f"Rows are divided {how}: {counts}."


def _rarest(main: Table, classes: NDArray[Any], kept: NDArray[np.int64]) -> str:
    """Where the rarest class stands first, and what to do about it."""
    names, first, counts = np.unique(classes.astype(str), return_index=True, return_counts=True)
    place = main.place(int(kept[first[counts.argmin()]]))
    return (
        f"; {str(names[counts.argmin()])!r:.60} is in {place}: give more rows of it, "
        f"take these out, or give files with --validation and --test"
    )


def _by(
    main: Table, declared: Declared, kept: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], str]:
    """What rows are divided by, as `divide` takes it, and which argument said so."""
    name = declared.group or declared.time
    if name is None:
        return {}, "target"
    argument = "group" if declared.group is not None else "time"
    found = values(main, name, "nominal" if argument == "group" else None, argument)
    if found.missing[kept].any():
        row = int(kept[np.argmax(found.missing[kept])])
        raise TaskError(
            argument,
            f"column {name!r} of {main.name} has no value in {main.place(row)}; fill it in, or "
            f"leave the row out",
        )
    if found.labels is not None and argument == "time":
        raise TaskError(
            "time",
            f"column {name!r} of {main.name} has neither numbers nor dates such as 2026-01-31; "
            f"{found.labels.categories[0]!r:.40} is one of its values",
        )
    if found.numbers is not None:
        return {"order": found.numbers[kept]}, argument
    return {"groups": labelled(found).labels.codes[kept]}, argument  # type: ignore[union-attr]


def _all_in_training(
    main: Table, argument: str, answers: Values, rows: Mapping[str, NDArray[np.int64]]
) -> None:
    assert answers.labels is not None
    there = set(answers.labels.codes[rows["train"]].tolist())
    for part, index in rows.items():
        new = sorted(set(answers.labels.codes[index].tolist()) - there)
        if new:
            raise TaskError(
                argument,
                f"class {str(answers.labels.categories[new[0]])!r} of {main.name} is in the rows "
                f"for {part} and not in those for training, so that nothing can learn it",
            )


def _other(
    table: Table, declared: Declared, answer: Target, answers: Values
) -> tuple[Table, Values, NDArray[np.int64]]:
    """Another table, with its target as that of the main one is read."""
    name = declared.target
    if name not in table.columns:
        raise TaskError(
            table.argument,
            f"{table.name} has no column {name!r}, the target; "
            f"{nearest(name, list(table.columns))}",
        )
    found = values(table, name, "nominal" if answers.labels is not None else "numeric")
    if found.missing.all():
        raise TaskError(table.argument, f"column {name!r} of {table.name} has no values at all")
    rows = np.flatnonzero(~found.missing)
    if found.labels is not None:
        indices = answer.encode(found, rows).numpy()
        if indices.min() < 0:
            row = int(rows[np.argmin(indices)])
            raise TaskError(
                table.argument,
                f"column {name!r} of {table.name} has {str(found.labels[row])!r:.60} in "
                f"{table.place(row)}, a class that the training rows never have",
            )
    return table, found, rows
