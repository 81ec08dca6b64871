"""``thalweg predict``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli.data import option_of
from thalweg.cli.training import refuse, refuse_unwritable
from thalweg.files import whole

__all__ = ["predict"]


def predict(
    model: Annotated[
        Path,
        typer.Argument(help="What `thalweg study` of a table wrote: thalweg-NAME.model, or NAME."),
    ],
    rows: Annotated[Path, typer.Argument(help="Table of new rows, with the columns of the first.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write. By default standard output.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="What separates the columns of a text file. By default a comma."),
    ] = None,
    charset: Annotated[
        str, typer.Option(help="Encoding of the characters of a text file, as Python names it.")
    ] = "utf-8",
) -> None:
    """Predict the target of new rows with the network that a study of a table found best."""
    if out is not None:
        refuse_unwritable("--out", out)
    import thalweg

    named = Path(f"thalweg-{model}.model")
    try:
        predictor = thalweg.Predictor.load(named if named.exists() else model)
        found = predictor.predict(rows, delimiter=delimiter, charset=charset)
    except thalweg.TaskError as error:
        names = {"model": "MODEL", "data": "ROWS"}
        option = names.get(error.argument, option_of(error.argument))
        raise typer.BadParameter(error.problem, param_hint=option) from None
    if out is None:
        found.to_csv(sys.stdout, index=False)
        return
    try:
        with whole(out) as file:
            found.to_csv(file, index=False)
    except OSError as error:
        refuse("--out", f"cannot write {out} ({error.strerror})")
    print(f"Predictions: {out}")
