"""What a person asks of a diagnosis, checked where it comes in."""

from functools import partial

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim import registry

__all__ = ["DiagnosisError", "entry_of", "positive", "seeds_of", "whole"]


class DiagnosisError(ArgumentError):
    """Something asked of a diagnosis that cannot be done."""


whole = partial(errors.whole, error=DiagnosisError)
positive = partial(errors.positive, error=DiagnosisError)
seeds_of = partial(errors.seeds_of, error=DiagnosisError)
entry_of = partial(registry.entry_of, error=DiagnosisError)
