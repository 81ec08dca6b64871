"""Options that say what a task's data are; shared by all commands that take a task."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from thalweg.tasks import Task
    from thalweg.tasks.tables import Column, TableTask

__all__ = ["DataOptions", "TaskName", "option_of", "print_columns", "sentence", "takes_data"]

TaskName = Annotated[
    str,
    typer.Argument(
        help="A built-in task (digits), a table (data.csv with --target), arrays (data.npz), or a "
        "function of your own that returns a thalweg.Task (my_module.py:task).",
        metavar="TASK",
    ),
]

TABLE, IMAGES = "a table", "images"

LEVELS = 4  # of a column, that are shown


@dataclass(frozen=True)
class DataOptions:
    """What a person says of a task's data; None or empty where nothing was said.

    Each field says in its metadata, under "of", what kind of data it is for.
    """

    target: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that is to be predicted. Of other tasks the validation "
            "metric that counts as trained, as --target-metric."
        ),
    ] = None
    nominal: Annotated[
        str | None,
        typer.Option(help="Columns of a table that are categories without order: color,shape."),
    ] = field(default=None, metadata={"of": TABLE})
    numeric: Annotated[
        str | None,
        typer.Option(help="Columns of a table that are numbers: age,income."),
    ] = field(default=None, metadata={"of": TABLE})
    ordinal: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of a table that is ordered categories, lowest first: "
            '"size=S<M<L<XL". May be given several times.'
        ),
    ] = field(default=None, metadata={"of": TABLE})
    drop: Annotated[
        str | None,
        typer.Option(help="Columns of a table to ignore: id,name."),
    ] = field(default=None, metadata={"of": TABLE})
    group: Annotated[
        str | None,
        typer.Option(
            help="Column of a table whose rows of one value stay together, in training, "
            "validation or test."
        ),
    ] = field(default=None, metadata={"of": TABLE})
    time: Annotated[
        str | None,
        typer.Option(
            help="Column of a table to split by: the latest rows are for test, those before for "
            "validation."
        ),
    ] = field(default=None, metadata={"of": TABLE})
    validation: Annotated[
        Path | None,
        typer.Option(help="Table of validation rows, instead of a split."),
    ] = field(default=None, metadata={"of": TABLE})
    test: Annotated[
        Path | None,
        typer.Option(help="Table of test rows, instead of a split."),
    ] = field(default=None, metadata={"of": TABLE})
    encodings: Annotated[
        str | None,
        typer.Option(
            help="How categories of a table become numbers, to be compared: onehot,ordinal; of "
            "one column color=onehot,ordinal."
        ),
    ] = field(default=None, metadata={"of": TABLE})
    hidden: Annotated[
        str | None,
        typer.Option(help="Widths of the hidden layers of a table's network. By default 64,64."),
    ] = field(default=None, metadata={"of": TABLE})
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="What separates the columns of a text file. By default a comma, in .tsv a tab."
        ),
    ] = field(default=None, metadata={"of": TABLE})
    charset: Annotated[
        str,
        typer.Option(help="Encoding of the characters of a text file, as Python names it."),
    ] = field(default="utf-8", metadata={"of": TABLE})
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Open a pickled table. Whoever made it can run anything on this machine.",
        ),
    ] = field(default=False, metadata={"of": TABLE})
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the images of mnist, fashion_mnist or cifar10 as torchvision "
            "lays them out, data by default. Nothing is downloaded."
        ),
    ] = field(default=None, metadata={"of": IMAGES})
    network: Annotated[
        str | None,
        typer.Option(help="Network for images: cnn, resnet or mlp. By default cnn."),
    ] = field(default=None, metadata={"of": IMAGES})

    def task(self, name: str) -> "Task":
        """The task of that name with these data.

        Raises:
            TaskError: if it cannot be had, or an option says nothing of such a task.
        """
        from thalweg.tasks import load
        from thalweg.tasks.images import IMAGES as NAMES
        from thalweg.tasks.images import images
        from thalweg.tasks.tables import is_table, table

        if is_table(name):
            self._refuse_but(TABLE, name)
            return table(
                name,
                self.target,
                nominal=_words(self.nominal),
                numeric=_words(self.numeric),
                ordinal=self.ordinal or (),
                drop=_words(self.drop),
                group=self.group,
                time=self.time,
                validation=self.validation,
                test=self.test,
                encodings=self.encodings or (),
                hidden=(64, 64) if self.hidden is None else _widths(self.hidden),
                delimiter=self.delimiter,
                charset=self.charset,
                trust_pickle=self.trust_pickle,
            )
        if name in NAMES:
            self._refuse_but(IMAGES, name)
            return images(name, self.folder or Path("data"), self.network or "cnn")
        self._refuse_but(None, name)
        return load(name)

    def _refuse_but(self, kind: str | None, name: str) -> None:
        from thalweg.tasks import TaskError

        for option in fields(self):
            meant = option.metadata.get("of", kind)
            if meant != kind and getattr(self, option.name) != option.default:
                raise TaskError(option.name, f"is for {meant}, and {name!r} is none")


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _widths(text: str) -> tuple[int, ...]:
    from thalweg.tasks import TaskError

    words = _words(text)
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise TaskError("hidden", f"{text!r} are no widths; write whole numbers from 1, 64,64 say")
    return tuple(map(int, words))


def print_columns(task: "TableTask") -> None:
    """Show, on standard error, what each column is taken for, so that a person can correct it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("column", overflow="fold")
    shown.add_column("taken for", no_wrap=True)
    shown.add_column("values", no_wrap=True, max_width=28)
    shown.add_column("missing", justify="right", no_wrap=True)
    shown.add_column("because")
    for column in task.columns:
        shown.add_row(
            Text(column.name),
            column.kind,
            Text(_values(column)),
            f"{column.missing:,}" if column.missing else "",
            Text(column.why),
        )
    console = Console(stderr=True)
    console.print(shown)
    console.print(
        f"{len(task.train):,} rows for training, {len(task.validation):,} for validation, "
        f"{len(task.test):,} for test. Wrong? --nominal, --numeric, --ordinal, --drop.",
        highlight=False,
    )
    for note in task.notes:
        console.print(sentence(note), style="dim", highlight=False, markup=False)


def sentence(note: str) -> str:
    """A note with a capital and a full stop."""
    return f"{note[0].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def _values(column: "Column") -> str:
    if column.levels:
        count = f"{len(column.levels):,}: " if len(column.levels) > LEVELS else ""
        return count + (" < " if column.kind == "ordinal" else ", ").join(column.levels[:LEVELS])
    if column.low is None or column.high is None:
        return ""
    if column.kind == "date":
        return " to ".join(
            str(date(1970, 1, 1) + timedelta(days=d)) for d in (column.low, column.high)
        )
    return f"{column.low:.4g} to {column.high:.4g}"


def option_of(argument: str) -> str:
    """What a person types for an argument: ``--batch-size`` for ``batch_size``."""
    return "TASK" if argument == "task" else f"--{argument.replace('_', '-')}"


def takes_data(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `DataOptions` to a command, which gets them as its argument ``data``."""
    names = [option.name for option in fields(DataOptions)]

    @wraps(command)
    def run(**given: Any) -> None:
        options = DataOptions(**{name: given.pop(name) for name in names})
        command(**given, data=options)

    own = [p for name, p in inspect.signature(command).parameters.items() if name != "data"]
    hints = get_type_hints(DataOptions, include_extras=True)
    added = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=hints[option.name],
        )
        for option in fields(DataOptions)
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    mine = get_type_hints(command, include_extras=True)
    run.__annotations__ = {p.name: mine[p.name] for p in own} | {
        p.name: p.annotation for p in added
    }
    del run.__wrapped__
    return run
