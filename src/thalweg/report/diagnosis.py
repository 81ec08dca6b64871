"""A diagnosis as one HTML file."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from thalweg.diagnosis.causes import HEALTHY
from thalweg.diagnosis.ending import Ending, ending
from thalweg.diagnosis.result import Diagnosis
from thalweg.figures import diagnosis as figures
from thalweg.figures import flow
from thalweg.figures.html import page, table
from thalweg.numbers import number
from thalweg.studies.intervals import shown

__all__ = ["diagnosis_html"]

HEADS = ("finding", "how sure", "what was seen", "what to try")


def diagnosis_html(found: Diagnosis) -> str:
    """The page: findings, the training, what was tried, layers, and where it ended."""
    case = found.case
    setting, metric = case.setting, case.scale.metric
    rows = [(f.title, f"{f.confidence:.0%}", f.evidence, f.advice) for f in found.findings]
    parts: list[tuple[str, str, go.Figure | Markup]] = [("", "", table(HEADS, rows, text=True))]
    if not case.base.curves.empty:
        parts.append(
            (
                "The training as it is set",
                f"Mean and range of {len(case.seeds)} runs from different seeds.",
                figures.curves(
                    case.base.curves, setting.task.loss.label, metric.name, metric.percent
                ),
            )
        )
    epochs = min(outcome.epochs for outcome in case.rates.values())
    parts.append(
        (
            "Other learning rates",
            f"Each was trained from the same seeds, for {epochs} epochs. Knowing nothing gets "
            f"{shown(metric, case.scale.floor)}.",
            figures.rates(_rates(found), setting.lr, metric.name, metric.percent),
        )
    )
    if not found.trials.empty:
        parts.append(
            (
                "What was tried",
                "Each change was trained from the same seeds as the training as it is set; the "
                "gain is that of the validation metric, with its 95 % interval over seeds.",
                figures.trials(found.trials),
            )
        )
    parts += _layers(case.flow.frame)
    parts += _end(ending(case.base))
    return page(f"Diagnosis of {setting.task.title}", _lead(found), parts)


def _lead(found: Diagnosis) -> str:
    case = found.case
    s = case.setting
    how = (
        f"{s.rule.name} at a learning rate of {number(s.lr)}, batches of {s.batch_size:,}, "
        f"{s.epochs} epochs"
    )
    first = found.findings[0]
    said = "Healthy" if first.cause == HEALTHY else f"First of all: {first.title}"
    return f"{said} ({how})."


def _rates(found: Diagnosis) -> pd.DataFrame:
    case = found.case
    rows = []
    for outcome in (case.base, *case.rates.values()):
        scores = case.scores(outcome)
        rows.append(
            {
                "lr": outcome.setting.lr,
                "metric": float(scores.mean()),
                "low": float(scores.min()),
                "high": float(scores.max()),
                "diverged": outcome.diverged,
            }
        )
    return pd.DataFrame(rows)


def _layers(frame: pd.DataFrame) -> list[tuple[str, str, go.Figure | Markup]]:
    found: list[tuple[str, str, go.Figure | Markup]] = []
    gradients = frame["what"].isin(["gradient", "weight gradient"])
    if gradients.any() and np.isfinite(frame.loc[gradients, "rms"]).any():
        found.append(
            (
                "Gradients, layer by layer",
                "Of one run's first steps. Where colours change from top to bottom, gradients "
                "vanish or explode.",
                flow.gradients(frame),
            )
        )
    if (frame["what"] == "activation").any():
        found.append(("Activations, layer by layer", "Of the same steps.", flow.activations(frame)))
    if frame[["saturated", "dead", "silent"]].notna().any(axis=None):
        found.append(("Saturated and dead units", "", flow.shares(frame)))
    return found


def _end(end: Ending | None) -> list[tuple[str, str, go.Figure | Markup]]:
    if end is None:
        return []
    share, low, high = end.density.share_below(0.0)
    interval = (
        f" ({number(end.low)} to {number(end.high)}, 95 % interval by resampling samples)"
        if np.isfinite(end.low)
        else ""
    )
    said = (
        f"The loss is {number(end.train_loss)} on training and {number(end.validation_loss)} on "
        f"validation data: a gap of {number(end.gap)}{interval}. The gradient of the training "
        f"loss has the norm {number(end.gradient_norm)}; the eigenvalues of its Hessian go up to "
        f"{number(end.sharpness)}, and {share:.0%} of them are negative ({low:.0%} to {high:.0%})."
    )
    return [("Where the first run ended", said, end.density.figure())]
