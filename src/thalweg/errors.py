"""What is raised for a person's mistake, and what checks the arguments that all rooms have."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["ArgumentError", "positive", "seed_of", "seeds_of", "whole"]


class ArgumentError(ValueError):
    """Something asked for that cannot be done.

    Attributes:
        argument: the argument at fault, ``batch_size`` say.
        problem: one sentence with the value, where it came from and what to do.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem


def whole(argument: str, value: Any, error: type[ArgumentError] = ArgumentError) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise error(argument, f"must be a whole number of at least 1, got {value!r}")
    return int(value)


def positive(argument: str, value: Any, error: type[ArgumentError] = ArgumentError) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise error(argument, f"must be positive and finite, got {value!r}")
    return number


def seed_of(value: Any, error: type[ArgumentError] = ArgumentError) -> int:
    """A whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise error("seed", f"must be a whole number from 0, got {value!r}")
    return int(value)


def seeds_of(seeds: int | Sequence[int], error: type[ArgumentError] = ArgumentError) -> list[int]:
    """How many, or which, as a list."""
    if isinstance(seeds, int | np.integer):
        return list(range(whole("seeds", seeds, error)))
    chosen = list(seeds) if isinstance(seeds, Iterable) else []
    sound = all(
        isinstance(s, int | np.integer) and not isinstance(s, bool) and 0 <= s < 2**63
        for s in chosen
    )
    if not chosen or not sound:
        raise error("seeds", f"must be how many, or whole numbers from 0, got {seeds!r}")
    return list(dict.fromkeys(int(seed) for seed in chosen))
