"""Which optimizer, learning rate and schedule train your network best, with evidence.

Names are imported when first used, so that ``import thalweg`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg import landscape, optim, schedules, train
    from thalweg.diagnosis import Diagnosis, DiagnosisError, Finding, diagnose
    from thalweg.landscape import LandscapeError
    from thalweg.schedules import ScheduleError
    from thalweg.studies import Check, StudyError, StudyResult, check, study
    from thalweg.tasks import Loss, Metric, Split, Task, TaskError
    from thalweg.tasks.images import images
    from thalweg.tasks.tables import Predictor, TableTask, table
    from thalweg.train import DivergenceError, FitError, FitResult
    from thalweg.train.background import waitall
    from thalweg.train.fit import fit
    from thalweg.train.hybrid import Hybrid, hybridize, load_exported
    from thalweg.train.prefetch import prefetch
    from thalweg.train.profile import Profile, profile
    from thalweg.train.trainer import Trainer
    from thalweg.tune import (
        BatchSizes,
        Fit,
        LRRange,
        NoiseScale,
        TuneError,
        batch_sizes,
        largest_batch,
        lr_range_test,
        noise_scale,
    )

__version__ = "0.1.0"
__all__ = [
    "BatchSizes",
    "Check",
    "Diagnosis",
    "DiagnosisError",
    "DivergenceError",
    "Finding",
    "Fit",
    "FitError",
    "FitResult",
    "Hybrid",
    "LRRange",
    "LandscapeError",
    "Loss",
    "Metric",
    "NoiseScale",
    "Predictor",
    "Profile",
    "ScheduleError",
    "Split",
    "StudyError",
    "StudyResult",
    "TableTask",
    "Task",
    "TaskError",
    "Trainer",
    "TuneError",
    "batch_sizes",
    "check",
    "diagnose",
    "fit",
    "hybridize",
    "images",
    "landscape",
    "largest_batch",
    "load_exported",
    "lr_range_test",
    "noise_scale",
    "optim",
    "prefetch",
    "profile",
    "schedules",
    "study",
    "table",
    "train",
    "waitall",
]

_HOMES = {
    **dict.fromkeys(("Check", "StudyError", "StudyResult", "check", "study"), "thalweg.studies"),
    **dict.fromkeys(("Loss", "Metric", "Split", "Task", "TaskError"), "thalweg.tasks"),
    **dict.fromkeys(("Predictor", "TableTask", "table"), "thalweg.tasks.tables"),
    **dict.fromkeys(
        (
            "BatchSizes",
            "Fit",
            "LRRange",
            "NoiseScale",
            "TuneError",
            "batch_sizes",
            "largest_batch",
            "lr_range_test",
            "noise_scale",
        ),
        "thalweg.tune",
    ),
    **dict.fromkeys(("Diagnosis", "DiagnosisError", "Finding", "diagnose"), "thalweg.diagnosis"),
    **dict.fromkeys(("DivergenceError", "FitError", "FitResult", "fit"), "thalweg.train"),
    **dict.fromkeys(("Profile", "profile"), "thalweg.train.profile"),
    "Trainer": "thalweg.train.trainer",
    **dict.fromkeys(("Hybrid", "hybridize", "load_exported"), "thalweg.train.hybrid"),
    "prefetch": "thalweg.train.prefetch",
    "waitall": "thalweg.train.background",
    "LandscapeError": "thalweg.landscape.arguments",
    "images": "thalweg.tasks.images",
    "ScheduleError": "thalweg.schedules",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("landscape", "optim", "schedules", "train"):
        return import_module(f"thalweg.{name}")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
