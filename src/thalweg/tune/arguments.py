"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

from functools import partial

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim import registry
from thalweg.optim.registry import Named
from thalweg.tasks import devices

__all__ = ["Named", "TuneError", "device_of", "entry_of", "positive", "seeds_of", "whole"]


class TuneError(ArgumentError):
    """Something asked of a range test, or of a measurement, that cannot be done."""


whole = partial(errors.whole, error=TuneError)
positive = partial(errors.positive, error=TuneError)
seeds_of = partial(errors.seeds_of, error=TuneError)
device_of = partial(devices.device_of, error=TuneError)
entry_of = partial(registry.entry_of, error=TuneError)
