"""Plan, execute, store, analyse: from factors to a verdict."""

from thalweg.studies.execute import Progress
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.spec import StudyError, StudySpec
from thalweg.studies.run import study

__all__ = ["Progress", "StudyError", "StudyResult", "StudySpec", "TaskSummary", "study"]
