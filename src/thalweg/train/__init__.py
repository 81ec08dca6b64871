"""Training one model to the end: the loop, and what it needs to run at the speed of the machine."""

from thalweg.train.arguments import FitError
from thalweg.train.engine import Engine
from thalweg.train.evaluate import Evaluation, evaluate
from thalweg.train.fit import fit
from thalweg.train.nonfinite import DivergenceError
from thalweg.train.recipe import Recipe
from thalweg.train.result import FitResult, Progress

__all__ = [
    "DivergenceError",
    "Engine",
    "Evaluation",
    "FitError",
    "FitResult",
    "Progress",
    "Recipe",
    "evaluate",
    "fit",
]
