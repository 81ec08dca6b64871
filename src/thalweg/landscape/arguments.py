"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

from functools import partial

from thalweg import errors
from thalweg.errors import ArgumentError

__all__ = ["LandscapeError", "positive", "seeds_of", "whole"]


class LandscapeError(ArgumentError):
    """Something asked of a function, a Hessian or a surface that cannot be done."""


whole = partial(errors.whole, error=LandscapeError)
positive = partial(errors.positive, error=LandscapeError)
seeds_of = partial(errors.seeds_of, error=LandscapeError)
