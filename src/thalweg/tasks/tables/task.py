"""A task from a table: ``table("houses.csv", "price")``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from thalweg.tasks.losses import Loss, as_loss
from thalweg.tasks.metrics import ERROR, Metric
from thalweg.tasks.split import Split, TaskError
from thalweg.tasks.tables.columns import Column
from thalweg.tasks.tables.encode import Encoder, check_orders, conform, fit, unseen
from thalweg.tasks.tables.network import network
from thalweg.tasks.tables.options import Declared, Orders, encodings_of, orders
from thalweg.tasks.tables.predictor import Predictor
from thalweg.tasks.tables.prepare import Prepared, features_of, listed, prepare
from thalweg.tasks.tables.read import Data, quoted
from thalweg.tasks.tables.target import Target
from thalweg.tasks.tables.values import Values
from thalweg.tasks.task import Task

__all__ = ["TableTask", "table"]


@dataclass(frozen=True, init=False)
class TableTask(Task):
    """A task that was made of a table.

    Attributes:
        columns: of the table, in its order, each as what it is taken for.
        encoder: what makes the network's inputs of rows.
        answer: what the network's outputs mean.
        hidden: widths of the hidden layers.
    """

    columns: tuple[Column, ...]
    encoder: Encoder
    answer: Target
    hidden: tuple[int, ...]

    def __init__(
        self,
        *,
        columns: tuple[Column, ...],
        encoder: Encoder,
        answer: Target,
        hidden: tuple[int, ...],
        **task: Any,
    ) -> None:
        super().__init__(**task)
        own = {"columns": columns, "encoder": encoder, "answer": answer, "hidden": hidden}
        for field, value in own.items():
            object.__setattr__(self, field, value)

    def loss_of(self, given: str | Loss | Callable[[Any, Any], Tensor] | None) -> Loss:
        """As of any task; classes are made of numbers by an option."""
        return as_loss(given, self.train.y, _as_classes(self.answer.name))

    def predictor(self, weights: Mapping[str, Tensor], **meta: Any) -> Predictor:
        """What predicts new rows.

        Args:
            weights: of a trained copy of `model`, by name.
            meta: what is to be kept with it, as JSON has it.

        Raises:
            TaskError: if these are no weights of this model.
        """
        return Predictor(self.encoder, self.answer, self.hidden, dict(weights), meta)


def table(
    data: Data,
    target: str | None = None,
    *,
    numeric: Sequence[str] = (),
    nominal: Sequence[str] = (),
    ordinal: Orders = (),
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    charset: str = "utf-8",
    validation: Data | None = None,
    test: Data | None = None,
    group: str | None = None,
    time: str | None = None,
    hidden: Sequence[int] = (64, 64),
    loss: str | Loss | Callable[[Any, Any], Tensor] | None = None,
    metric: str | Metric | Callable[[Any, Any], Tensor] | None = None,
    encodings: Sequence[str] | Mapping[str, Sequence[str]] = (),
    trust_pickle: bool = False,
    name: str | None = None,
) -> TableTask:
    """A task from a table: columns become inputs of a multilayer perceptron.

    Numbers and dates are standardised, categories one-hot encoded, those of more than 100 levels
    looked up; everything is fitted on the training rows alone. 60 % of the rows are for training,
    20 % each for validation and test, by class if there are classes.

    Args:
        data: path of a CSV, TSV or Parquet file, or a data frame.
        target: the column to be predicted; it has to be said. Text, truth values and whole numbers
            with at most 20 values, each five times on average, are classes; other numbers a
            regression.
        numeric: columns to be taken as numbers, the target may be one.
        nominal: columns to be taken as names, the target may be one.
        ordinal: labels of columns from low to high, by column, or as ``size=S<M<L<XL``.
        drop: columns to be left out.
        delimiter: of columns in a text file; a comma, or in ``.tsv`` a tab, by default.
        charset: of a text file, as Python names it.
        validation: another table of rows to choose settings on; with it, and without ``test``,
            80 % of ``data`` are for training and the rest for the test.
        test: another table of rows to report on, likewise.
        group: column whose rows of one value stay in one part.
        time: column by which the earliest rows are for training and the latest for the test.
        hidden: widths of the hidden layers; none for a linear model.
        loss: as `thalweg.tasks.Task` takes it.
        metric: as `thalweg.tasks.Task` takes it; of a regression by default the mean absolute
            error in the units of the table, though the network learns standardised numbers.
        encodings: of ``onehot`` and ``ordinal``, to be compared: for all categories, or by column,
            in a mapping or as ``color=onehot,ordinal``.
        trust_pickle: whether a pickle may be read, which runs the code in it.
        name: of the task; that of the file by default.

    Raises:
        TaskError: for what cannot be read, understood or learned from, in a sentence.
    """
    declared = Declared(
        target or "", tuple(numeric), tuple(nominal), orders(ordinal), tuple(drop), group, time
    )
    ways = encodings_of(encodings)
    widths = _widths(hidden)
    given = {"task": data, "validation": validation, "test": test}
    reading = {"delimiter": delimiter, "charset": charset, "trust_pickle": trust_pickle}
    found = prepare(given, declared, ways, reading)
    short = name or (Path(data).name.split(".")[0] if isinstance(data, str | Path) else "table")
    title = f"{target} in {short}"

    def build(encoding: Mapping[str, str]) -> TableTask:
        columns = features_of(found, encoding)
        encoder, parts, notes = _encoded(found, [c for c in columns if c.encoding])
        outputs = found.answer.outputs
        every = listed(found, columns)
        return TableTask(
            columns=every,
            encoder=encoder,
            answer=found.answer,
            hidden=widths,
            model=partial(network, encoder.dense, sum(encoder.levels), widths, outputs),
            loss=as_loss(loss, parts["train"].y, _as_classes(found.answer.name)),
            metric=metric if metric is not None else _metric(found.answer),
            name=short,
            title=title,
            notes=(*found.notes, *_told(every), *notes),
            **parts,
        )

    if not ways:
        return build({})
    tasks = {
        way: build({n: way for n, chosen in ways.items() if way in chosen})
        for way in dict.fromkeys(w for chosen in ways.values() for w in chosen)
    }
    told = _said_of_which(tasks)
    every: dict[str, Task] = {**told}
    first = next(iter(told))
    every[first] = task = replace(told[first], encodings=every)
    return task


def _said_of_which(tasks: Mapping[str, TableTask]) -> dict[str, TableTask]:
    """The same, whose notes that are not true of all encodings say of which."""
    true = set.intersection(*(set(task.notes) for task in tasks.values()))
    return {
        way: replace(
            task, notes=tuple(n if n in true else f"With {way} encoding: {n}" for n in task.notes)
        )
        for way, task in tasks.items()
    }


def _as_classes(name: str) -> str:
    return f"take {name!r} as classes by --nominal {quoted(name)}"


def _metric(answer: Target) -> Metric | None:
    """The mean absolute error in the target's own units; of classes what is usual."""
    if answer.classes is not None:
        return None
    return replace(ERROR, of=partial(_error, answer.scale))


def _error(scale: float, outputs: Tensor, y: Tensor) -> Tensor:
    return scale * ERROR.of(outputs, y)


def _widths(hidden: Sequence[int]) -> tuple[int, ...]:
    for width in hidden:
        if width < 1:
            raise TaskError("hidden", f"widths of layers are 1 or more, got {width}")
    return tuple(hidden)


def _encoded(
    found: Prepared, used: Sequence[Column]
) -> tuple[Encoder, dict[str, Split], list[str]]:
    """An encoder of the training rows, the three parts encoded, and what is to be told."""
    check_orders(found.main, used, found.features)
    encoder = fit(used, found.features, found.rows["train"])
    parts: dict[str, Split] = {}
    notes: list[str] = []
    read: Mapping[str, Values]
    for part in ("train", "validation", "test"):
        if part in found.given:
            table, answers, rows = found.given[part]
            read, where = conform(table, used), table.name
        else:
            read, answers, rows, where = found.features, found.answers, found.rows[part], part
        notes += unseen(where, used, read, rows) if part != "train" else []
        parts[part] = Split(encoder.inputs(read, rows), found.answer.encode(answers, rows))
    return encoder, parts, notes


def _told(columns: Sequence[Column]) -> list[str]:
    """A sentence on each thing that was done to the columns."""
    told = [
        f"Column {c.name!r} is ignored: {c.why}."
        for c in columns
        if c.kind == "ignored" and c.why != "--drop"
    ]
    for c in columns:
        if c.missing and c.encoding and c.kind != "target":  # whose rows are left out
            filled, _, _ = c.treatment.removeprefix("missing: ").partition(";")
            rows = "row has" if c.missing == 1 else "rows have"
            told.append(f"{c.missing:,} {rows} no value of {c.name!r}, taken as {filled}.")
        if c.kind == "date":
            told.append(f"Column {c.name!r} has dates, taken as days.")
        if c.encoding == "lookup":
            told.append(
                f"Column {c.name!r} has {len(c.levels):,} categories: one-hot, kept sparse."
            )
    return told
