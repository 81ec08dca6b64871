"""Which optimizer, learning rate and schedule train your network best, with evidence.

Names are imported when first used, so that ``import thalweg`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg import optim
    from thalweg.studies import Check, StudyError, StudyResult, check, study
    from thalweg.tasks import Metric, Split, Task, TaskError

__version__ = "0.1.0"
__all__ = [
    "Check",
    "Metric",
    "Split",
    "StudyError",
    "StudyResult",
    "Task",
    "TaskError",
    "check",
    "optim",
    "study",
]

_HOMES = {
    "Check": "thalweg.studies",
    "Metric": "thalweg.tasks",
    "Split": "thalweg.tasks",
    "StudyError": "thalweg.studies",
    "StudyResult": "thalweg.studies",
    "Task": "thalweg.tasks",
    "TaskError": "thalweg.tasks",
    "check": "thalweg.studies",
    "study": "thalweg.studies",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "optim":
        return import_module("thalweg.optim")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
