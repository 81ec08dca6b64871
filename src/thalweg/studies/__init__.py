"""Plan, execute, store, analyse: from factors to a verdict."""

from thalweg.studies.best import Trained, best_weights
from thalweg.studies.checker import Check, Finding, check
from thalweg.studies.execute import Progress
from thalweg.studies.factors import FACTORS, Factor, StudyError
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.run import study
from thalweg.studies.setting import BestSetting, best_setting
from thalweg.studies.spec import StudySpec

__all__ = [
    "FACTORS",
    "BestSetting",
    "Check",
    "Factor",
    "Finding",
    "Progress",
    "StudyError",
    "StudyResult",
    "StudySpec",
    "TaskSummary",
    "Trained",
    "best_setting",
    "best_weights",
    "check",
    "study",
]
