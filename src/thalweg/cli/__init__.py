"""The command ``thalweg``: parse, call, print. Nothing heavy is imported before it is needed."""

import gc
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from thalweg import __version__
from thalweg.alive import speaks
from thalweg.cli.batch import batch
from thalweg.cli.check import check
from thalweg.cli.diagnose import diagnose
from thalweg.cli.fit import fit
from thalweg.cli.lr import lr
from thalweg.cli.optimizers import optimizers
from thalweg.cli.predict import predict
from thalweg.cli.profile import profile
from thalweg.cli.schedules import schedules
from thalweg.cli.study import study
from thalweg.cli.surface import surface

__all__ = ["app", "main"]

app = typer.Typer(
    help="Which optimizer and learning rate train your network best, with evidence.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("study")(study)
app.command("lr")(lr)
app.command("batch")(batch)
app.command("diagnose")(diagnose)
app.command("fit")(fit)
app.command("profile")(profile)
app.command("predict")(predict)
app.command("check")(check)
app.command("optimizers")(optimizers)
app.command("schedules")(schedules)
# An expression may begin with a minus.
app.command("surface", context_settings={"ignore_unknown_options": True})(surface)


def _version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"thalweg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    With 0 when done, 1 if a check found a failure, 2 for a bad value, 130 when interrupted.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    from typer.exceptions import TyperException
    from typer.main import get_command

    # Imports make half a million objects that live to the end; searching them for cycles again and
    # again, and once more on the way out, measured a tenth of the study's time.
    gc.set_threshold(100_000, 20, 100)
    try:
        code = get_command(app).main(
            None if arguments is None else list(arguments),
            prog_name="thalweg",
            standalone_mode=False,
        )
    except (typer.Abort, KeyboardInterrupt):
        if speaks():
            print("thalweg: interrupted", file=sys.stderr)
        sys.exit(130)
    except TyperException as error:
        # One line, where the default prints the usage and a box around the message.
        if speaks():
            print(f"thalweg: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.freeze()
    sys.exit(code if isinstance(code, int) else 0)
