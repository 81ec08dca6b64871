"""Training one model to the end: the loop, and what it needs to run at the speed of the machine."""

from thalweg.train.arguments import FitError
from thalweg.train.background import waitall
from thalweg.train.engine import Engine
from thalweg.train.evaluate import Evaluation, evaluate
from thalweg.train.fit import fit
from thalweg.train.hybrid import Hybrid, hybridize, load_exported
from thalweg.train.nonfinite import DivergenceError
from thalweg.train.overlap import concurrently
from thalweg.train.prefetch import Prefetched, prefetch
from thalweg.train.recipe import Recipe
from thalweg.train.result import FitResult, Progress
from thalweg.train.trainer import Trainer

__all__ = [
    "DivergenceError",
    "Engine",
    "Evaluation",
    "FitError",
    "FitResult",
    "Hybrid",
    "Prefetched",
    "Progress",
    "Recipe",
    "Trainer",
    "concurrently",
    "evaluate",
    "fit",
    "hybridize",
    "load_exported",
    "prefetch",
    "waitall",
]
