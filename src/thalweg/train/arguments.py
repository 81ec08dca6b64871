"""What a person asks of a training, checked where it comes in."""

from functools import partial

from thalweg import errors
from thalweg.errors import ArgumentError

__all__ = ["FitError", "positive", "whole"]


class FitError(ArgumentError):
    """Something asked of a training that cannot be done."""


whole = partial(errors.whole, error=FitError)
positive = partial(errors.positive, error=FitError)
