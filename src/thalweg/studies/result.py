"""What a study found, as a person holds it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from thalweg.studies.analyse import Analysis
from thalweg.studies.factors import FACTORS, Levels, Variant
from thalweg.studies.spec import StudySpec
from thalweg.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from thalweg.studies.best import Trained

__all__ = ["StudyResult", "TaskSummary"]


@dataclass(frozen=True)
class TaskSummary:
    """What a report needs to know of the task.

    Attributes:
        name, title: as `thalweg.tasks.Task` has them.
        metric, percent, higher_is_better: of the task's metric.
        loss: what axes call the loss; of several all of them.
        parameters: how many the model has; of several the fewest.
        n_train, n_validation, n_test: samples.
        most_parameters: of several models.
        losses: what axes call each loss, by its name.
        notes: what was done to the data, a sentence each.
    """

    name: str
    title: str
    metric: str
    percent: bool
    higher_is_better: bool
    loss: str
    parameters: int
    n_train: int
    n_validation: int
    n_test: int
    most_parameters: int
    losses: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, tasks: Sequence[Task]) -> "TaskSummary":
        """The summary of a task and its variants."""
        losses = {variant.loss.name: variant.loss.label for variant in tasks}
        parameters = [variant.parameters for variant in tasks]
        return cls(
            task.name,
            task.title,
            task.metric.name,
            task.metric.percent,
            task.metric.higher_is_better,
            ", ".join(losses.values()),
            min(parameters),
            len(task.train),
            len(task.validation),
            len(task.test),
            max(parameters),
            losses,
            tuple(dict.fromkeys(note for variant in tasks for note in variant.notes)),
        )


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study and what they say.

    Attributes:
        spec: what was run.
        task: what was trained.
        runs: one row a run: ``run, arm, levels, optimizer, lr, seed, loss, encoding,
            schedule, batch_size, outcome, step, epoch, train_loss, validation_loss,
            validation_metric, test_loss, test_metric, epochs_to_target, seconds_to_target,
            seconds``. ``arm`` is what is
            compared, as tables print it, the optimizer with a level of each factor that is
            varied; ``levels`` are these levels alone. ``outcome`` is "completed", "diverged",
            "stopped" or "timed out"; numbers a run does not have are NaN.
        curves: one row a run and epoch: ``run, arm, levels, optimizer, loss, encoding,
            schedule, batch_size, lr, seed, epoch, step, train_loss, validation_loss,
            validation_metric, seconds``.
        analysis: tables derived from these.
        environment: versions, machine and backend.
        seconds: wall time of the study, the part before a resume left out.
        database: where the records are, None for memory.
        variants: what each combination of levels, one a factor, makes of the task.
    """

    spec: StudySpec
    task: TaskSummary
    runs: pd.DataFrame
    curves: pd.DataFrame
    analysis: Analysis
    environment: Mapping[str, Any]
    seconds: float
    database: str | None = None
    variants: Mapping[Levels, Variant] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> str:
        """One sentence: which arm trains the task best, by how much, how sure."""
        return self.analysis.verdict

    @property
    def notes(self) -> list[str]:
        """What a careful reader should know besides: methods and warnings, a sentence each."""
        return self.analysis.notes

    @property
    def summary(self) -> pd.DataFrame:
        """One row an arm at its best setting, best first."""
        return self.analysis.summary

    @property
    def trials(self) -> pd.DataFrame:
        """One row a setting: its test metric over seeds and what became of its runs."""
        return self.analysis.trials

    @property
    def comparisons(self) -> pd.DataFrame:
        """First place against each other arm: paired difference, interval, whether tied."""
        return self.analysis.comparisons

    @property
    def best_curves(self) -> pd.DataFrame:
        """Each arm at its best setting: median and range over seeds, epoch by epoch."""
        return self.analysis.best_curves

    @property
    def effects(self) -> pd.DataFrame:
        """One row a level of each factor that is varied, and each context that it is seen in.

        ``factor`` and ``level`` with ``context``, the optimizer and the levels of other factors;
        at the arm's best setting the test metric with its interval, and its paired ``difference``
        over seeds to the factor's first level, from ``difference_low`` to ``difference_high`` at
        ``confidence``, ``tied`` where that includes zero; what it costs: ``parameters`` of the
        model, ``seconds`` a run, epochs and seconds to the target, diverged runs; of losses also
        ``start_loss`` and ``gradient_norm`` at the initial weights, means over seeds.
        """
        return self.analysis.effects

    @property
    def rates(self) -> pd.DataFrame:
        """Training at a few rates of each optimizer's best arm, too small, right and too large.

        A row a rate and epoch: ``optimizer, lr, verdict, step, loss, low, high``, mean and range of
        the training loss over seeds.
        """
        return self.analysis.rates

    def train_best(self) -> "Trained":
        """Train the best run of the first arm once more and keep its weights.

        Raises:
            StudyError: if no setting was completed from every seed.
        """
        from thalweg.studies.best import best_weights

        return best_weights(self)

    def figures(self) -> "dict[str, go.Figure]":
        """All figures of the report, by name."""
        from thalweg.report import figures

        return figures(self)

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline, and return its path.

        Raises:
            OSError: if it cannot be written; nothing half-written stays behind.
        """
        from thalweg.report import write

        return write(self, path)

    def to_json(self) -> str:
        """The result for machines: specification, verdict and tables, missing numbers as null."""

        def rows(frame: pd.DataFrame) -> Any:
            return json.loads(frame.to_json(orient="records", double_precision=15))

        return json.dumps(
            {
                "verdict": self.verdict,
                "notes": self.notes,
                "spec": {
                    **asdict(self.spec),
                    "lrs": dict(self.spec.lrs),
                    "factors": dict(self.spec.factors),
                    "variants": [
                        {**dict(zip((f.name for f in FACTORS), levels, strict=True)), "hash": found}
                        for levels, found in self.spec.variants
                    ],
                    "hash": self.spec.hash,
                },
                "task": asdict(self.task),
                "summary": rows(self.summary),
                "effects": rows(self.effects),
                "comparisons": rows(self.comparisons),
                "trials": rows(self.trials),
                "runs": rows(self.runs),
                "environment": dict(self.environment),
                "seconds": self.seconds,
                "database": self.database,
            }
        )

    def _repr_html_(self) -> str:
        from thalweg.report import result_html

        return result_html(self)
