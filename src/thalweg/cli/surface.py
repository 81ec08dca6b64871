"""``thalweg surface``."""

import json as jsons
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.data import DataOptions, option_of, sentence, takes_data
from thalweg.cli.training import (
    keep_memory,
    leaving_at_once,
    names,
    refuse,
    refuse_unwritable,
    write_page,
)

if TYPE_CHECKING:
    import pandas as pd

    from thalweg.landscape.functions import Box, Function
    from thalweg.landscape.paths import Descent
    from thalweg.landscape.points import Points

__all__ = ["surface"]

# Which options are for which of the two that a surface can be asked of.
FUNCTION = ("start", "range", "steps", "tolerance", "noise", "schedule")
TASK = ("epochs", "batch_size")

CURVE, GROUND = 2001, 121  # places of a curve; of a plane, along each side
LISTED = 40  # points on the page
FINE = 1e-4  # of the range: what is closer to 0 is written as 0
PRINTED = 6  # in a terminal
PLURALS = {
    "minimum": "minima",
    "maximum": "maxima",
    "saddle": "saddle points",
    "flat": "flat points",
}
STAYS = ("tolerance", "steps")
ENDS = {
    "steps": "still moving",
    "diverged": "diverged",
    "undefined": "undefined there",
    "unbounded": "unbounded",
}


@takes_data
def surface(
    function: Annotated[
        str | None,
        typer.Argument(
            help="A function by name (rosenbrock; --list shows all), an expression in x, or x and "
            'y ("x**2 - y**2"), or a task, as `thalweg study` takes it: the loss around its '
            "trained network.",
            metavar="FUNCTION",
            show_default=False,
        ),
    ] = None,
    *,
    data: DataOptions,
    show: Annotated[
        bool, typer.Option("--list", help="List the functions that have a name.")
    ] = False,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas, on functions with hyperparameters where wanted: "
            "sgd:lr=0.1,momentum:momentum=0.5. By default sgd,momentum,rmsprop,adam on a "
            "function, sgd,adam on a task."
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate of all, or of some: 0.1; sgd=0.4,adam=0.1. On a function by "
            "default the best of 25 for each."
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Where paths on a function start: 0.5, or 1,2. May be given several times."
        ),
    ] = None,
    range: Annotated[
        str | None,
        typer.Option(
            help="Range of a function's variables: -2:2 of all, -2:2,0:3 of x and y. By default "
            "-3:3, or what suits the function."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps on a function, at most. 1000 by default.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Squared norm of the gradient at which paths on a function end. 1e-10 by default."
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation of noise on a function's gradient. 0 by default."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Of the learning rate on a function: cosine, step:size=100."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, or of a task's training.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs that a task is trained for. 20 by default.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples a step of a task. By default the task's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page. By default thalweg-surface-FUNCTION.html.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Show optimizers on a function, or the loss around a trained network."""
    if show:
        _print_list()
        return
    if function is None:
        refuse("FUNCTION", "none given; --list shows those with a name")
    if function.startswith("--"):
        refuse(function.split("=")[0], "there is no such option; `thalweg surface --help`")
    refuse_unwritable("--out", out or Path("thalweg-surface-FUNCTION.html"))
    keep_memory()
    given: dict[str, Any] = {
        "start": start, "range": range, "steps": steps, "tolerance": tolerance, "noise": noise,
        "schedule": schedule, "epochs": epochs, "batch_size": batch_size,
    }  # fmt: skip
    chosen = names(optimizers)
    with leaving_at_once():
        is_task = _is_task(function)
        from thalweg.errors import ArgumentError
    try:
        if is_task:
            _refuse_others(given, FUNCTION, f"is for a function, and {function!r} is a task")
            from thalweg.cli.network import network_surface

            asked = {"optimizers": chosen, "epochs": epochs, "batch_size": batch_size}
            more: dict[str, Any] = {n: v for n, v in asked.items() if v is not None}
            network_surface(
                data.task(function),
                lr=None if lr is None else _number("--lr", lr),
                seed=seed,
                out=out,
                json=json,
                **more,
            )
            return
        _refuse_others(given, TASK, f"is for a task, and {function!r} is a function")
        for option in fields(data):
            if getattr(data, option.name) != option.default:
                refuse(option_of(option.name), f"is for a task, and {function!r} is a function")
        _function_surface(function, chosen, lr, given, seed, out, json)
    except ArgumentError as error:
        places = {"expression": "FUNCTION"}
        refuse(places.get(error.argument, option_of(error.argument)), error.problem)


def _is_task(text: str) -> bool:
    """Whether it is a name or a file that `thalweg study` takes."""
    from thalweg.tasks.builtin import TASKS
    from thalweg.tasks.images import IMAGES
    from thalweg.tasks.tables import is_table

    file = Path(text).suffix.lower() in (".npz", ".npy") or ".py" in text.lower()
    return text in TASKS or text in IMAGES or file or is_table(text)


def _refuse_others(given: dict[str, Any], options: Sequence[str], problem: str) -> None:
    for name in options:
        if given[name] not in (None, []):
            refuse(option_of(name), problem)


def _function_surface(
    text: str,
    optimizers: list[str] | None,
    lr: str | None,
    given: dict[str, Any],
    seed: int,
    out: Path | None,
    json: bool,
) -> None:
    from thalweg.landscape.functions import function
    from thalweg.landscape.paths import DEFAULT, descend, diverging

    f = function(text)
    box = f.range if given["range"] is None else _box(given["range"], f.variables)
    asked = {name: given[name] for name in ("steps", "tolerance", "noise", "schedule")}
    descent = descend(
        f,
        DEFAULT if optimizers is None else optimizers,
        lr=None if lr is None else _rates(lr),
        starts=[_place(one) for one in given["start"]] if given["start"] else None,
        box=box,
        seed=seed,
        **{name: value for name, value in asked.items() if value is not None},
    )
    rates = diverging(descent)
    out = Path(f"thalweg-surface-{_slug(f.name)}.html") if out is None else out
    _write(out, descent, rates)
    if json:
        sys.stdout.write(jsons.dumps(_plain(descent, rates)) + "\n")
    else:
        _print(descent, rates)
    typer.echo(f"Page: {out}", err=json)


def _slug(name: str) -> str:
    """As a part of a file's name."""
    words = "".join(c if (c.isalnum() and c.isascii()) or c == "_" else " " for c in name).split()
    return "-".join(words)[:60]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        refuse(option, f"{text!r} is no number")


def _rates(text: str) -> float | dict[str, float]:
    if "=" not in text:
        return _number("--lr", text)
    rates = {}
    for pair in text.split(","):
        name, equals, rate = (word.strip() for word in pair.rpartition("="))
        if not (name and equals):
            refuse("--lr", f"{pair.strip()!r} is no pair; write sgd=0.4,adam=0.1, or one number")
        rates[name] = _number("--lr", rate)
    return rates


def _place(text: str) -> list[float]:
    return [_number("--start", word) for word in text.split(",")]


def _box(text: str, variables: Sequence[str]) -> "Box":
    pairs, named = [], []
    for one in text.split(","):
        name, equals, ends = one.rpartition("=")
        low, colon, high = ends.partition(":")
        if not colon:
            refuse("--range", f"{one.strip()!r} is no range; write lowest:highest, -2:2 say")
        pairs.append((_number("--range", low), _number("--range", high)))
        named += [name.strip()] * len(equals)
    if named:
        if sorted(named) != sorted(variables) or len(named) != len(pairs):
            refuse("--range", f"{text!r} must name {' and '.join(variables)}, each once, or none")
        pairs = [pairs[named.index(variable)] for variable in variables]
    return tuple(pairs * len(variables) if len(pairs) == 1 else pairs)


def _print_list() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from thalweg.landscape.functions import FUNCTIONS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "expression", "what it shows"):
        table.add_column(head, overflow="fold", no_wrap=head == "name")
    for one in FUNCTIONS.values():
        table.add_row(Text(one.name), Text(one.text), Text(one.about))
    Console().print(table)


def _shown(value: float, form: Callable[[float], str] | None = None) -> str:
    from thalweg.numbers import number

    if not math.isfinite(value):
        return "–"
    return (form or number)(0.0 if abs(value) < 1e-12 else value)


def _at(place: Sequence[float], box: "Box") -> str:
    """A place, to a ten thousandth of the range or three digits."""
    words = [
        _shown(0.0 if abs(x) < FINE * (high - low) else x)
        for x, (low, high) in zip(place, box, strict=False)
    ]
    return words[0] if len(words) == 1 else f"({', '.join(words)})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _found(points: "Points", box: "Box") -> str:
    """What critical points there are, in a sentence."""
    counts = {kind: len(points.of(kind)) for kind in PLURALS if points.of(kind)}
    if not counts:
        return points.note or "no minimum, maximum or saddle point in this range"
    kinds = [
        f"{n} {PLURALS[kind]}" if n > 1 else f"one {kind}{' point' if kind == 'saddle' else ''}"
        for kind, n in counts.items()
    ]
    words = _listed(kinds)
    for lowest in points.of("minimum")[:1]:
        which = "the lowest" if counts["minimum"] > 1 else "the"
        words += f"; {which} minimum is {_shown(lowest.value)} at {_at(lowest.x, box)}"
    return f"{points.note}; listed: {words}" if points.note else words


def _first(descent: "Descent") -> str:
    """Who came to rest first, in a sentence."""
    rest = descent.table[descent.table["outcome"] == "tolerance"]
    if rest.empty:
        fell = descent.table[descent.table["outcome"] == "unbounded"]["optimizer"]
        if len(fell):
            return f"the function falls without bound, and {_listed(list(fell.unique()))} with it"
        return f"none of the optimizers came to rest within {descent.steps:,} steps"
    best = rest.sort_values("steps").iloc[0]
    kind = {"saddle": "a saddle point", "flat": "a plateau"}.get(best["kind"], f"a {best['kind']}")
    return (
        f"{best['optimizer']} was the first to come to rest, at {kind} after {best['steps']:,} "
        f"step{'s' if best['steps'] != 1 else ''}"
    )


HEADS = (
    "optimizer", "learning rate", "start", "steps", "end", "value", "what it is",
    "gradient at start", "at end",
)  # fmt: skip


def _rows(descent: "Descent") -> list[list[str]]:
    box = descent.box
    return [
        [
            row.optimizer,
            _shown(row.lr),
            _at(descent.starts[row.start], box),
            f"{row.steps:,}",
            _at((row.x, row.y), box) if row.outcome in STAYS else "–",
            _shown(row.value) if row.outcome in STAYS else "–",
            ENDS.get(row.outcome, row.kind),
            _shown(row.gradient_start),
            _shown(row.gradient_norm),
        ]
        for row in descent.table.itertuples()
    ]


RATE_HEADS = ("optimizer", "diverges from", "theory", "formula", "L")


def _rate_rows(rates: "pd.DataFrame") -> list[list[str]]:
    return [
        [
            row.optimizer,
            _shown(row.diverges_at, "{:.4g}".format),
            _shown(row.theory, "{:.4g}".format),
            row.formula or "–",
            _shown(row.sharpness),
        ]
        for row in rates.itertuples()
    ]


POINT_HEADS = ("kind", "where", "value", "why")


def _point_rows(points: "Points", box: "Box") -> list[list[str]]:
    return [[p.kind, _at(p.x, box), _shown(p.value), p.why] for p in points.points[:LISTED]]


def _print(descent: "Descent", rates: "pd.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def table(heads: Sequence[str], rows: list[list[str]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        for i, head in enumerate(heads):
            shown.add_column(head, justify="right" if i else "left")
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)

    console = Console(highlight=False, markup=False)
    f, points = descent.function, descent.points
    console.print(f"{f.text}{f': {f.about}' if f.about else ''}")
    console.print(sentence(_found(points, descent.box)))
    if len(points.points) <= PRINTED:
        for p in points.points:
            at = _at(p.x, descent.box)
            console.print(f"  {p.kind} at {at}: {p.why}", style="dim")
    console.print()
    table(HEADS, _rows(descent))
    console.print(sentence(_first(descent)))
    if descent.tuned:
        console.print(sentence(_tuning(descent)), style="dim")
    if rates["diverges_at"].notna().any():
        console.print()
        table(RATE_HEADS, _rate_rows(rates))


def _tuning(descent: "Descent") -> str:
    all_ = len(descent.tuned) == len(descent.movers)
    return (
        f"learning rates{'' if all_ else ' of ' + ', '.join(descent.tuned)}: for each the best of "
        "the same 25 from 1e-4 to 100, by how low it ends and then by how soon"
    )


def _said_of_ends(descent: "Descent") -> str:
    said = [sentence(_tuning(descent))] if descent.tuned else []
    if (descent.table["outcome"] == "unbounded").any():
        said.append("Unbounded: the function falls on and on where the path went.")
    return " ".join(said)


def _write(out: Path, descent: "Descent", rates: "pd.DataFrame") -> None:
    from thalweg.figures.functions import descent_on_line, descent_on_plane, progress
    from thalweg.figures.html import page, table

    f, box, points = descent.function, descent.box, descent.points
    colors = {mover.label: mover.color for mover in descent.movers}
    draw = descent_on_line if len(box) == 1 else descent_on_plane
    ground = f.grid(box, CURVE if len(box) == 1 else GROUND)
    turn = "" if len(box) == 1 else " The surface turns with the pointer."
    parts: list[tuple[str, str, Any]] = [
        (
            "",
            f"{sentence(f.about) + ' ' if f.about else ''}Each path grows with its steps: press ▶, "
            f"or pull the slider.{turn}",
            draw(ground, points.table, descent.paths, colors),
        ),
        (
            "Where the paths end",
            f"A path ends where the squared norm of the gradient is at most "
            f"{descent.tolerance:g}, or after {descent.steps:,} steps. {_said_of_ends(descent)}",
            table(HEADS, _rows(descent)),
        ),
        ("The gradient along the way", "", progress(descent.paths, descent.tolerance, colors)),
    ]
    if rates["diverges_at"].notna().any():
        parts.append(
            (
                "The learning rate at which each diverges",
                "Found by trying, from the first start: the lowest rate at which the path runs "
                "away. Theory is of a quadratic with the largest curvature L of the minimum next "
                "to the path's end: beyond that rate the minimum holds nothing. On a quadratic "
                "both agree; elsewhere a path may be thrown out before, where it is steeper on the "
                "way, or be held by what lies around.",
                table(RATE_HEADS, _rate_rows(rates)),
            )
        )
    if points.points:
        listed = f" The lowest {LISTED} are listed." if len(points.points) > LISTED else ""
        parts.append(
            (
                "Critical points",
                f"{sentence(_found(points, descent.box))}{listed}",
                table(POINT_HEADS, _point_rows(points, box)),
            )
        )
    if f.twin is not None:
        parts.insert(0, _twins(f, box))
    lead = f"{sentence(_found(points, descent.box))} {sentence(_first(descent))}"
    write_page(out, page(f.text if f.name == f.text else f"{f.name}: {f.text}", lead, parts))


def _twins(f: "Function", box: "Box") -> tuple[str, str, Any]:
    """The risk and the empirical risk, with the lowest minimum of each."""
    import pandas as pd

    from thalweg.figures.functions import twins
    from thalweg.landscape.functions import FUNCTIONS
    from thalweg.landscape.points import critical_points

    other = FUNCTIONS[f.twin or ""]
    curves = f.grid(box, CURVE).rename(columns={"value": "risk"})
    curves["empirical"] = other.grid(box, CURVE)["value"]
    rows = []
    for name, one in (("risk", f), ("empirical", other)):
        lowest = next(iter(critical_points(one, box).of("minimum")), None)
        if lowest is not None:
            rows.append((name, lowest.x[0], lowest.value, _value(f, lowest.x)))
    minima = pd.DataFrame(rows, columns=["name", "x", "value", "risk"])
    told = ""
    if len(minima) == 2:
        (a, b), (low, high) = minima["x"], minima["risk"]
        told = (
            f" Its minimum is at {_shown(b)}, that of the risk at {_shown(a)}: who minimises what "
            f"is seen ends with a risk of {_shown(high)}, where {_shown(low)} could be had."
        )
    return (
        "What is meant and what is minimised",
        f"The risk is over all there is; training sees a sample, and with it the empirical risk, "
        f"{other.text}.{told}",
        twins(curves, minima),
    )


def _value(f: "Function", x: Sequence[float]) -> float:
    import torch

    return float(f(torch.tensor(x, dtype=torch.float64)))


def _plain(descent: "Descent", rates: "pd.DataFrame") -> dict[str, Any]:
    """For machines; missing numbers as null."""

    def rows(table: "pd.DataFrame") -> Any:
        return jsons.loads(table.to_json(orient="records", double_precision=15))

    f, points = descent.function, descent.points
    return {
        "function": f.name,
        "expression": f.text,
        "variables": f.variables,
        "range": descent.box,
        "steps": descent.steps,
        "tolerance": descent.tolerance,
        "points": rows(points.table),
        "note": points.note,
        "paths": rows(descent.table),
        "tuned": descent.tuned,
        "divergence": rows(rates),
    }
