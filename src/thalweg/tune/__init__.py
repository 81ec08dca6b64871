"""What to set before training: how large a batch fits."""

from thalweg.tune.arguments import TuneError
from thalweg.tune.fits import Fit, largest_batch
from thalweg.tune.noise import NoiseScale, SampleCurve, noise_scale, sample_curve
from thalweg.tune.ranges import LRRange, lr_range_test

__all__ = [
    "Fit",
    "LRRange",
    "NoiseScale",
    "SampleCurve",
    "TuneError",
    "largest_batch",
    "lr_range_test",
    "noise_scale",
    "sample_curve",
]
