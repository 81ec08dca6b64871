"""Plan, execute, store, analyse: from factors to a verdict."""

from thalweg.studies.checker import Check, Finding, check
from thalweg.studies.execute import Progress
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.run import study
from thalweg.studies.spec import StudyError, StudySpec

__all__ = [
    "Check",
    "Finding",
    "Progress",
    "StudyError",
    "StudyResult",
    "StudySpec",
    "TaskSummary",
    "check",
    "study",
]
