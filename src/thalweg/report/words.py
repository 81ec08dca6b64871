"""The cells of the summary, in words; shared by terminal, report and notebook."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from thalweg.figures import number
from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies import StudyResult

__all__ = ["Column", "columns", "metric_text", "summary_rows", "target_text"]


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
    return f"{100 * value:.1f} %" if result.task.percent else f"{value:.4g}"


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
    return [
        Column("", "place", "Order of test results; = marks optimizers tied with the first."),
        Column("optimizer", "optimizer", "The update rule."),
        Column(
            "best\nlr",
            "best learning rate",
            "The rate with the best mean result on validation data over all seeds; * marks one at "
            "an end of the rates tried.",
        ),
        Column(
            f"test {metric}\n(95 % interval)",
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


def summary_rows(result: StudyResult) -> list[list[str]]:
    """One row of text an optimizer, best first."""
    return [_row(result, i, row) for i, (_, row) in enumerate(result.summary.iterrows())]


def _row(result: StudyResult, i: int, row: "pd.Series[Any]") -> list[str]:
    found = not math.isnan(row["test_metric"])
    place = "–" if not found else "1=" if row["tied"] else str(i + 1)
    interval = metric_text(result, row["test_metric"])
    if not math.isnan(row["low"]):
        interval += f" ({_bare(result, row['low'])}–{_bare(result, row['high'])})"
    plus = "+" * bool(row["lr_clipped"])
    return [
        place,
        OPTIMIZERS[row["optimizer"]].label,
        number(row["lr"]) + "*" * bool(row["edge"]) if found else "–",
        interval,
        _or_dash(row["epochs_to_target"]),
        _or_dash(row["seconds_to_target"]),
        f"×{row['lr_factor']:.3g}{plus} ({number(row['lr_low'])}–{number(row['lr_high'])})"
        if found
        else "–",
        f"{row['diverged']} of {row['runs']}",
    ]


def _bare(result: StudyResult, value: float) -> str:
    return f"{100 * value:.1f}" if result.task.percent else f"{value:.4g}"


def _or_dash(value: float) -> str:
    return "–" if math.isnan(value) else number(value)
