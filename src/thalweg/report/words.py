"""The cells of the summary, in words; shared by terminal, report and notebook."""

import math
from dataclasses import dataclass
from textwrap import fill
from typing import Any, TypeVar

import pandas as pd

from thalweg.numbers import number
from thalweg.studies import Factor, StudyResult

__all__ = [
    "Column",
    "columns",
    "effect_columns",
    "effect_rows",
    "metric_text",
    "summary_rows",
    "target_text",
]

_Cell = TypeVar("_Cell")


@dataclass(frozen=True)
class Column:
    """One column of the summary.

    Attributes:
        short: heading in a terminal, in two lines.
        long: heading where there is room, and in explanations.
        meaning: one sentence for the reader.
    """

    short: str
    long: str
    meaning: str


def metric_text(result: StudyResult, value: float) -> str:
    """A value of the metric: per cent with one decimal, or four digits; a dash for none."""
    if math.isnan(value):
        return "–"
    return _bare(result, value) + (" %" if result.task.percent else "")


def target_text(result: StudyResult) -> str:
    """The target in words, empty if there is none."""
    if result.spec.target is None:
        return ""
    value = f"{100 * result.spec.target:g} %" if result.task.percent else f"{result.spec.target:g}"
    return f"validation {result.task.metric} {value}"


def columns(result: StudyResult) -> list[Column]:
    """Headings of `summary_rows`."""
    metric, target = result.task.metric, target_text(result) or "the target (none was given)"
    near = "one percentage point" if result.task.percent else "one per cent"
    varied = [factor.words for factor in result.spec.varied]
    arms = "arms" if varied else "optimizers"
    what = Column("optimizer", "optimizer", "The update rule.")
    if varied:
        what = Column(
            "arm",
            "arm",
            f"What is compared: an optimizer with its {' and '.join(varied)}, at a learning rate "
            f"tuned for them.",
        )
    found = [
        Column("", "place", f"Order of test results; = marks {arms} tied with the first."),
        what,
        Column(
            "best\nlr",
            "best learning rate",
            "The rate with the best mean result on validation data over all seeds; * marks one at "
            "an end of the rates tried.",
        ),
        Column(
            f"{fill(f'test {metric}', 20)}\n(95 % interval)",
            f"test {metric}, mean and 95 % interval",
            "Result of that rate on test data at the end of training, over seeds.",
        ),
        Column(
            "epochs to\ntarget", "epochs to target", f"Epochs until {target}, median over seeds."
        ),
        Column(
            "seconds to\ntarget",
            "seconds to target",
            f"Training time of one run until {target}: its share of the time that all runs "
            "trained together took, median over seeds.",
        ),
        Column(
            "good lr\nrange",
            "good learning rates",
            f"Factor between the lowest and highest rate within {near} of the best, and the two; "
            "+ marks a range that touches an end of the rates tried, and may be wider.",
        ),
        Column("diverged\nruns", "diverged runs", "Runs whose loss blew up, of all runs."),
    ]
    return _of_target(result, found)


def _of_target(result: StudyResult, columns: list[_Cell]) -> list[_Cell]:
    """All columns, or those that are left where there is no target."""
    return columns if result.spec.target is not None else columns[:4] + columns[6:]


def summary_rows(result: StudyResult) -> list[list[str]]:
    """One row of text an arm, best first."""
    return [_row(result, i, row) for i, (_, row) in enumerate(result.summary.iterrows())]


def _row(result: StudyResult, i: int, row: "pd.Series[Any]") -> list[str]:
    found = not math.isnan(row["test_metric"])
    place = "–" if not found else "1=" if row["tied"] else str(i + 1)
    plus = "+" * bool(row["lr_clipped"])
    cells = [
        place,
        row["arm"],
        number(row["lr"]) + "*" * bool(row["edge"]) if found else "–",
        _interval(result, row),
        _or_dash(row["epochs_to_target"]),
        _or_dash(row["seconds_to_target"]),
        f"×{row['lr_factor']:.3g}{plus} ({number(row['lr_low'])}–{number(row['lr_high'])})"
        if found
        else "–",
        f"{row['diverged']} of {row['runs']}",
    ]
    return _of_target(result, cells)


def effect_columns(result: StudyResult, factor: Factor) -> list[Column]:
    """Headings of `effect_rows`."""
    return [column for column, _ in _effect_cells(result, factor)]


def effect_rows(result: StudyResult, factor: Factor) -> list[list[str]]:
    """One row of text a context and level of a factor."""
    return [list(row) for row in zip(*(c for _, c in _effect_cells(result, factor)), strict=True)]


def _effect_cells(result: StudyResult, factor: Factor) -> list[tuple[Column, list[str]]]:
    """Columns with their cells; those that say the same of all rows are left out."""
    metric = result.task.metric
    mine = result.effects[result.effects["factor"] == factor.name]
    rows = [row for _, row in mine.iterrows()]
    confidence = mine["confidence"].dropna()
    at = f"{100 * confidence.iloc[0]:.3g}" if len(confidence) else "95"
    first = rows[0]["level"]
    what = "with" if len(result.spec.varied) > 1 else "optimizer"
    contexts = [row["context"] for row in rows]
    new = [a != b for a, b in zip(contexts, ["", *contexts], strict=False)]

    def numbers(name: str) -> list[str]:
        return [_or_dash(row[name]) for row in rows]

    found = [
        (
            Column(what, what, "What is the same in the rows that follow each other."),
            [context * is_new for context, is_new in zip(contexts, new, strict=True)],
        ),
        (Column(factor.words, factor.words, "The level."), [row["level"] for row in rows]),
        (
            Column(
                f"{fill(f'test {metric}', 20)}\n(95 % interval)",
                f"test {metric}, mean and 95 % interval",
                "At the arm's best learning rate, over seeds.",
            ),
            [_interval(result, row) for row in rows],
        ),
        (
            Column(
                f"against {first}\n({at} % interval)",
                f"difference to {first} and {at} % interval",
                f"Mean of the differences at the same seed{', in points' * result.task.percent}; "
                f"= marks one that does not exclude zero.",
            ),
            [_difference(result, row) for row in rows],
        ),
        (Column("best\nlr", "best learning rate", "As in the first table."), numbers("lr")),
    ]
    if result.spec.target is not None:
        found += [
            (Column(f"{unit} to\ntarget", f"{unit} to target", "As in the first table."), cells)
            for unit in ("epochs", "seconds")
            for cells in [numbers(f"{unit}_to_target")]
        ]
    found.append(
        (
            Column(
                "seconds\na run",
                "seconds a run",
                "Training time of one run, its share, mean over seeds.",
            ),
            numbers("seconds"),
        )
    )
    if len(set(mine["parameters"])) > 1:
        found.append(
            (
                Column("parameters", "parameters", "Of the model."),
                [f"{n:,.0f}" for n in mine["parameters"]],
            )
        )
    found.append(
        (
            Column("diverged\nruns", "diverged runs", "Runs whose loss blew up, of all runs."),
            [f"{row['diverged']} of {row['runs']}" for row in rows],
        )
    )
    if factor.start:
        found += [
            (
                Column(
                    "loss at\nstart", "loss at start", "At the initial weights, on training data."
                ),
                numbers("start_loss"),
            ),
            (
                Column(
                    "gradient\nnorm",
                    "gradient norm at start",
                    "Euclidean norm of its gradient over all parameters there, mean over seeds: "
                    "where it is larger, the same learning rate takes a larger step.",
                ),
                numbers("gradient_norm"),
            ),
        ]
    return found


def _difference(result: StudyResult, row: "pd.Series[Any]") -> str:
    if math.isnan(row["difference"]):
        return "–"
    mean, low, high = (
        _signed(result, row[end]) for end in ("difference", "difference_low", "difference_high")
    )
    interval = "" if math.isnan(row["difference_low"]) else f" ({low} to {high})"
    return f"{mean}{interval}{' =' * bool(row['tied'])}"


def _signed(result: StudyResult, value: float) -> str:
    text = f"{100 * value:+.1f}" if result.task.percent else f"{value:+.3g}"
    return text.replace("-", "−")


def _interval(result: StudyResult, row: "pd.Series[Any]") -> str:
    text = metric_text(result, row["test_metric"])
    if not math.isnan(row["low"]):
        text += f" ({_bare(result, row['low'])}–{_bare(result, row['high'])})"
    return text


def _bare(result: StudyResult, value: float) -> str:
    text = f"{100 * value:.1f}" if result.task.percent else f"{value:.4g}"
    return text.replace("-", "−")


def _or_dash(value: float) -> str:
    return "–" if math.isnan(value) else number(value)
