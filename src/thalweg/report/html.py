"""The report: one HTML file that opens offline, verdict first."""

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from thalweg.figures import (
    effect,
    learning_curves,
    metric_against_lr,
    rates,
    time_to_target,
)
from thalweg.figures.html import embed
from thalweg.files import whole
from thalweg.numbers import number
from thalweg.optim.registry import OPTIMIZERS
from thalweg.report.words import (
    columns,
    effect_columns,
    effect_rows,
    metric_text,
    summary_rows,
    target_text,
)
from thalweg.studies import StudyResult
from thalweg.studies.spec import StudySpec

__all__ = ["figures", "result_html", "write"]


def figures(result: StudyResult) -> dict[str, go.Figure]:
    """All figures of a study, by name, in the report's order."""
    task = result.task
    drawn = {
        "metric_against_lr": metric_against_lr(result.trials, task.metric, task.percent),
        "learning_curves": learning_curves(
            result.best_curves,
            list(dict.fromkeys(result.summary["optimizer"])),
            task.losses if len(task.losses) > 1 else task.loss,
            task.metric,
            task.percent,
        ),
    }
    if len(result.rates):
        drawn["rates"] = rates(result.rates)
    if result.spec.target is not None:
        drawn["time_to_target"] = time_to_target(result.summary, target_text(result))
    for factor in result.spec.varied:
        mine = result.effects[result.effects["factor"] == factor.name]
        drawn[f"effect_of_{factor.name}"] = effect(
            mine, task.metric, task.percent, start=factor.start
        )
    return drawn


def write(result: StudyResult, path: str | Path) -> Path:
    """Write the report of a study.

    Args:
        result: of the study.
        path: of the file; its folder is made if missing.

    Returns:
        The path.

    Raises:
        OSError: if it cannot be written; a report that stood there before is then untouched.
    """
    path = Path(path)
    page = _render(
        "report.html",
        result=result,
        target=target_text(result),
        figures={name: embed(figure, name) for name, figure in figures(result).items()},
        plotly=Markup(get_plotlyjs()),
        runs=_runs(result),
        metric_text=lambda value: metric_text(result, value),
        method=_method(result),
        effects=[
            (factor, effect_columns(result, factor), effect_rows(result, factor))
            for factor in result.spec.varied
        ],
    )
    with whole(path) as file:
        file.write_text(page, encoding="utf-8")
    return path


def result_html(result: StudyResult) -> str:
    """What a notebook shows: verdict and summary."""
    return _render("notebook.html", result=result)


def _render(template: str, result: StudyResult, **values: Any) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: (files("thalweg.report") / "templates" / name).read_text("utf-8")
        ),
    )
    return environment.get_template(template).render(
        result=result, columns=columns(result), rows=summary_rows(result), **values
    )


def _runs(result: StudyResult) -> tuple[list[str], list[list[tuple[str, Any]]]]:
    """Heading and cells of the table of all runs: what is shown, and what it sorts by."""
    metric = result.task.metric
    heads = [
        "arm" if result.spec.varied else "optimizer",
        "learning rate",
        "seed",
        "outcome",
        "last step",
        "training loss",
        "validation loss",
        f"validation {metric}",
        f"test {metric}",
        "epochs to target",
        "seconds",
    ]
    rows = []
    for run in result.runs.itertuples():
        numbers = (run.train_loss, run.validation_loss)
        metrics = (run.validation_metric, run.test_metric)
        rows.append(
            [
                (run.arm, run.arm),
                (number(run.lr), run.lr),
                (str(run.seed), run.seed),
                (run.outcome, run.outcome),
                (str(run.step), run.step),
                *((_shown(v, number), v) for v in numbers),
                *((metric_text(result, v), v) for v in metrics),
                (_shown(run.epochs_to_target, number), run.epochs_to_target),
                (_shown(run.seconds, number), run.seconds),
            ]
        )
    return heads, [[(text, "" if _missing(key) else key) for text, key in row] for row in rows]


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: float, how: Any) -> str:
    return "–" if math.isnan(value) else how(value)


def _steps(spec: StudySpec) -> str:
    """What each run may spend: "1320 steps of 32 samples (30 epochs)"."""
    budgets = dict.fromkeys(map(spec.budget, spec.combinations))
    steps = " or ".join(f"{b.steps} steps of {b.batch_size} samples" for b in budgets)
    epochs = list(dict.fromkeys(f"{b.steps / b.steps_per_epoch:.3g}" for b in budgets))
    return f"{steps} ({' or '.join(epochs)} epochs)"


def _method(result: StudyResult) -> list[tuple[str, str]]:
    """How it was done: what, and in words."""
    spec, task, machine = result.spec, result.task, result.environment
    rates = "; ".join(
        f"{OPTIMIZERS[name].label} {len(values)} from {number(values[0])} to {number(values[-1])}"
        for name, values in spec.lrs
    )
    varied = spec.varied
    arms = "arm" if varied else "optimizer"
    size = f"{task.parameters:,}"
    if task.most_parameters > task.parameters:
        size += f" to {task.most_parameters:,}"
    return [
        (
            "Task",
            f"{task.name}: {task.title}; {task.n_train} samples for training, {task.n_validation} "
            f"for validation, {task.n_test} for test; {task.loss}; a model of "
            f"{size} parameters",
        ),
        *[("Data", note) for note in task.notes],
        *[(f.words.capitalize(), ", ".join(map(f.text, spec.levels(f)))) for f in varied],
        (
            "Budget",
            f"{_steps(spec)} for every run, the same number of settings and seeds for every {arms}",
        ),
        ("Learning rates", rates),
        (
            "Seeds",
            f"{', '.join(map(str, spec.seeds))}. A seed sets initial weights and the order of "
            f"batches, the same for all {arms}s",
        ),
        (
            "Selection",
            "the learning rate by its mean on validation data at the end of training, among those "
            "that no seed failed at; what is reported comes from test data, which nothing was "
            "chosen on",
        ),
        (
            "Failed runs",
            "diverged (a loss that is not finite, or 1,000 times that of the first step), stopped "
            "and timed out runs are counted and shown, and enter no mean",
        ),
        ("Learning curves", "at the chosen learning rate; median and range over seeds"),
        (
            "Machine",
            f"{machine['processor']}, {machine['threads']} threads, device {machine['device']}; "
            f"Thalweg {machine['thalweg']}, torch {machine['torch']}, Python {machine['python']}; "
            f"{machine['backend']} passes; the study took {result.seconds:.1f} seconds",
        ),
        ("Specification", f"{spec.hash} (the same hash, the same numbers)"),
    ]
