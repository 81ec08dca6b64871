"""What a person asks of a training, checked where it comes in."""

from functools import partial

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim import registry
from thalweg.tasks import devices

__all__ = ["FitError", "device_of", "entry_of", "positive", "seed_of", "whole"]


class FitError(ArgumentError):
    """Something asked of a training that cannot be done."""


whole = partial(errors.whole, error=FitError)
positive = partial(errors.positive, error=FitError)
seed_of = partial(errors.seed_of, error=FitError)
device_of = partial(devices.device_of, error=FitError)
entry_of = partial(registry.entry_of, error=FitError)
