"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

import math
from functools import partial
from typing import Any

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim import registry

__all__ = [
    "LandscapeError",
    "entry_of",
    "not_negative",
    "positive",
    "seed_of",
    "seeds_of",
    "whole",
]


class LandscapeError(ArgumentError):
    """Something asked of a function, a Hessian or a surface that cannot be done."""


whole = partial(errors.whole, error=LandscapeError)
positive = partial(errors.positive, error=LandscapeError)
seed_of = partial(errors.seed_of, error=LandscapeError)
seeds_of = partial(errors.seeds_of, error=LandscapeError)
entry_of = partial(registry.entry_of, error=LandscapeError)


def not_negative(argument: str, value: Any) -> float:
    """A finite number from 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise LandscapeError(argument, f"must be at least 0 and finite, got {value!r}")
    return number
