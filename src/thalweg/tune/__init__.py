"""What to set before training: how large a batch fits."""

from thalweg.tune.fits import Fit, largest_batch

__all__ = ["Fit", "largest_batch"]
