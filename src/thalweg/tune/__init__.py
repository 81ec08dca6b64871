"""What to set before training: learning rate and batch size."""

from thalweg.tune.arguments import TuneError
from thalweg.tune.batch import BatchSizes, batch_sizes
from thalweg.tune.fits import Fit, largest_batch
from thalweg.tune.noise import NoiseScale, SampleCurve, noise_scale, sample_curve
from thalweg.tune.ranges import LRRange, lr_range_test

__all__ = [
    "BatchSizes",
    "Fit",
    "LRRange",
    "NoiseScale",
    "SampleCurve",
    "TuneError",
    "batch_sizes",
    "largest_batch",
    "lr_range_test",
    "noise_scale",
    "sample_curve",
]
