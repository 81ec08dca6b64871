"""Where a training ended: the gap between its risks, and the curvature there."""

from dataclasses import dataclass, field

import numpy as np

from thalweg.diagnosis.setting import Outcome
from thalweg.landscape.generalisation import gap_interval, sample_losses
from thalweg.landscape.spectrum import Density, spectral_density
from thalweg.landscape.surface import hessian_at
from thalweg.tasks import Split

__all__ = ["Ending", "ending"]

SAMPLES = 2048
STEPS, PROBES = 40, 4


@dataclass(frozen=True, eq=False)
class Ending:
    """Of the first seed's run.

    Attributes:
        train_loss, validation_loss: mean over the samples, in evaluation mode.
        gap: of the two.
        low, high: 95 % interval of the gap, by resampling samples.
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
    """Look at the weights that a training ended with; None if it diverged.

    Args:
        outcome: whose weights were kept.
    """
    task, weights = outcome.setting.task, outcome.weights
    if not weights or not all(bool(w.isfinite().all()) for w in weights.values()):
        return None
    train = sample_losses(task, dict(weights), task.train)
    validation = sample_losses(task, dict(weights), task.validation)
    if not (np.isfinite(train).all() and np.isfinite(validation).all()):
        return None
    some = Split(*task.train[: min(SAMPLES, len(task.train))])
    op = hessian_at(task, dict(weights), data=some)
    low, high = gap_interval(train, validation)
    return Ending(
        float(train.mean()),
        float(validation.mean()),
        float(validation.mean() - train.mean()),
        low,
        high,
        float(np.linalg.norm(op.gradient())),
        spectral_density(op, steps=min(STEPS, op.shape[0]), probes=PROBES),
    )
