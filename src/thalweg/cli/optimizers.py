"""``thalweg optimizers``."""

from typing import Annotated

import typer

__all__ = ["optimizers"]


def optimizers(
    name: Annotated[
        str | None, typer.Argument(help="One of them, adamw for one, to read its page.")
    ] = None,
) -> None:
    """List all optimizers, with the bytes of state that they keep a parameter."""
    from thalweg.optim.registry import OPTIMIZERS, key

    if name is None:
        _table()
        return
    from thalweg.optim.reference import AROUND, around, part

    if key(name) in AROUND:
        typer.echo("\n".join(around(key(name))).strip())
        return
    if key(name) not in OPTIMIZERS:
        known = ", ".join((*OPTIMIZERS, *AROUND))
        raise typer.BadParameter(
            f"there is no optimizer {name!r}; choose from {known}", param_hint="NAME"
        )
    typer.echo("\n".join(part(OPTIMIZERS[key(name)])).strip())


def _table() -> None:
    from rich.console import Console
    from rich.table import Table

    from thalweg.optim.reference import AROUND
    from thalweg.optim.registry import OPTIMIZERS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name")
    table.add_column("thalweg.optim")
    for column in ("bytes", "bfloat16", "8bit"):
        table.add_column(column, justify="right")
    table.add_column("usual lr", no_wrap=True)
    for row in OPTIMIZERS.values():
        low, high = row.lr_range
        sizes = [row.bytes_a_parameter({"state": s}) for s in (None, "bfloat16", "8bit")]
        reduced = [f"{size:.3g}" if size < sizes[0] else "" for size in sizes[1:]]
        table.add_row(
            row.name,
            row.constructor.__name__,
            f"{sizes[0]:.3g}",
            *reduced,
            f"{low:g} to {high:g}",
        )
    Console().print(table)
    typer.echo(
        "Bytes of state for each float32 of a matrix of 1024 by 1024; with state=bfloat16, 8bit.\n"
        f"Around any of them: {', '.join(AROUND)}.\n"
        "thalweg optimizers NAME prints the page of one."
    )
