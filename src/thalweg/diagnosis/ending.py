"""Where a training ended: the gap between its risks, and the curvature there."""

import math
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from thalweg.diagnosis.setting import Outcome
from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.generalisation import gap_interval, sample_losses
from thalweg.landscape.operators import hessian
from thalweg.landscape.spectrum import Density, spectral_density
from thalweg.landscape.surface import module_at
from thalweg.tasks import Split
from thalweg.tasks.trial import called

__all__ = ["Ending", "ending"]

SAMPLES = 2048
STEPS, PROBES = 40, 4


@dataclass(frozen=True, eq=False)
class Ending:
    """Of the first seed's run.

    Attributes:
        train_loss, validation_loss: mean over the samples, in evaluation mode.
        gap: of the two.
        low, high: 95 % interval of the gap, by resampling samples; NaN for a loss that is no mean
            over samples, as a weighted one.
        gradient_norm: Euclidean, of the training loss.
        density: of the eigenvalues of its Hessian.
    """

    train_loss: float
    validation_loss: float
    gap: float
    low: float
    high: float
    gradient_norm: float
    density: Density = field(repr=False)

    @property
    def sharpness(self) -> float:
        """Largest eigenvalue of the Hessian, as the quadrature has it."""
        return float(self.density.nodes.max())


def ending(outcome: Outcome) -> Ending | None:
    """Look at the weights that a training ended with; None if it diverged, or has no Hessian.

    Args:
        outcome: whose weights were kept.
    """
    task, weights = outcome.setting.task, outcome.weights
    if not weights or not all(bool(w.isfinite().all()) for w in weights.values()):
        return None
    splits = (task.train, task.validation)
    module = module_at(task, weights).eval()
    with torch.no_grad():
        train, validation = (float(task.loss.of(called(module, s.x), s.y)) for s in splits)
    if not (math.isfinite(train) and math.isfinite(validation)):
        return None
    low = high = math.nan
    with suppress(LandscapeError):  # of a loss that is no mean over samples
        each = [sample_losses(task, dict(weights), s) for s in splits]
        low, high = gap_interval(each[0], each[1])
    some = Split(*task.train[: min(SAMPLES, len(task.train))])
    try:
        op = hessian(module, task.loss, some)
        norm = float(np.linalg.norm(op.gradient()))
        density = spectral_density(op, steps=min(STEPS, op.shape[0]), probes=PROBES)
    except LandscapeError:  # of a loss that is a sum, or a model that has no second derivatives
        return None
    return Ending(train, validation, validation - train, low, high, norm, density)
