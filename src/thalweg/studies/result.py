"""What a study found, as a person holds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from thalweg.studies.analyse import Analysis
from thalweg.studies.spec import StudySpec
from thalweg.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["StudyResult", "TaskSummary"]


@dataclass(frozen=True)
class TaskSummary:
    """What a report needs to know of the task.

    Attributes:
        name, title: as `thalweg.tasks.Task` has them.
        metric, percent, higher_is_better: of the task's metric.
        loss: name of the loss.
        parameters: how many the model has.
        n_train, n_validation, n_test: samples.
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

    @classmethod
    def of(cls, task: Task) -> "TaskSummary":
        """The summary of a task."""
        return cls(
            task.name,
            task.title,
            task.metric.name,
            task.metric.percent,
            task.metric.higher_is_better,
            task.loss.label,
            task.parameters,
            len(task.train),
            len(task.validation),
            len(task.test),
        )


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study and what they say.

    Attributes:
        spec: what was run.
        task: what was trained.
        runs: one row a run: ``run, optimizer, lr, seed, batch_size, outcome, step, epoch,
            train_loss, validation_loss, validation_metric, test_loss, test_metric,
            epochs_to_target, seconds_to_target, seconds``. ``outcome`` is "completed", "diverged",
            "stopped" or "timed out"; numbers a run does not have are NaN.
        curves: one row a run and epoch: ``run, optimizer, lr, seed, epoch, step, train_loss,
            validation_loss, validation_metric, seconds``.
        analysis: tables derived from these.
        environment: versions, machine and backend.
        seconds: wall time of the study, the part before a resume left out.
        database: where the records are, None for memory.
    """

    spec: StudySpec
    task: TaskSummary
    runs: pd.DataFrame
    curves: pd.DataFrame
    analysis: Analysis
    environment: Mapping[str, Any]
    seconds: float
    database: str | None = None

    @property
    def verdict(self) -> str:
        """One sentence: which optimizer trains the task best, by how much, how sure."""
        return self.analysis.verdict

    @property
    def notes(self) -> list[str]:
        """What a careful reader should know besides: methods and warnings, a sentence each."""
        return self.analysis.notes

    @property
    def summary(self) -> pd.DataFrame:
        """One row an optimizer at its best setting, best first."""
        return self.analysis.summary

    @property
    def trials(self) -> pd.DataFrame:
        """One row a setting: its test metric over seeds and what became of its runs."""
        return self.analysis.trials

    @property
    def comparisons(self) -> pd.DataFrame:
        """First place against each other optimizer: paired difference, interval, whether tied."""
        return self.analysis.comparisons

    @property
    def best_curves(self) -> pd.DataFrame:
        """Each optimizer at its best setting: median and range over seeds, epoch by epoch."""
        return self.analysis.best_curves

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
                "spec": {**asdict(self.spec), "lrs": dict(self.spec.lrs), "hash": self.spec.hash},
                "task": asdict(self.task),
                "summary": rows(self.summary),
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
