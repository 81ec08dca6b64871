"""Plan, execute, store, analyse: from factors to a verdict."""

from thalweg.studies.best import Trained, best_weights
from thalweg.studies.execute import Progress
from thalweg.studies.factors import FACTORS, Factor, StudyError
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.run import study
from thalweg.studies.spec import StudySpec

__all__ = [
    "FACTORS",
    "Factor",
    "Progress",
    "StudyError",
    "StudyResult",
    "StudySpec",
    "TaskSummary",
    "Trained",
    "best_weights",
    "study",
]
