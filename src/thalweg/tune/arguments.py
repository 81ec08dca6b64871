"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from thalweg.errors import ArgumentError
from thalweg.optim.base import RuleOptimizer
from thalweg.optim.registry import OPTIMIZERS, enter, key
from thalweg.rules import Rule

__all__ = ["Named", "TuneError", "device_of", "named", "positive", "seeds_of", "whole"]

Named: TypeAlias = str | Rule | type[RuleOptimizer]


class TuneError(ArgumentError):
    """Something asked of a range test, or of a measurement, that cannot be done."""


def named(optimizer: Named) -> str:
    """Name of an optimizer in the registry, which takes in what is one's own."""
    if isinstance(optimizer, str):
        name = key(optimizer)
        if name not in OPTIMIZERS:
            raise TuneError(
                "optimizer", f"there is no {optimizer!r}; choose from {', '.join(OPTIMIZERS)}"
            )
        return name
    own = isinstance(optimizer, Rule) or (
        isinstance(optimizer, type) and issubclass(optimizer, RuleOptimizer)
    )
    if not own:
        raise TuneError("optimizer", f"must be a name, a rule or its class, got {optimizer!r}")
    try:
        return enter(optimizer).name
    except ValueError as error:
        raise TuneError("optimizer", str(error)) from None


def device_of(device: str) -> torch.device:
    """A device that torch finds here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise TuneError("device", f"must be cpu or cuda, got {device!r}")
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise TuneError("device", f"torch finds {count} GPUs here, got {device!r}")
        torch.cuda.init()  # type: ignore[no-untyped-call]
    return found


def whole(argument: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise TuneError(argument, f"must be a whole number of at least 1, got {value!r}")
    return int(value)


def positive(argument: str, value: Any) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise TuneError(argument, f"must be positive and finite, got {value!r}")
    return number


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """How many, or which, as a list."""
    if isinstance(seeds, int | np.integer):
        return list(range(whole("seeds", seeds)))
    chosen = list(seeds) if isinstance(seeds, Iterable) else []
    sound = all(
        isinstance(s, int | np.integer) and not isinstance(s, bool) and 0 <= s < 2**63
        for s in chosen
    )
    if not chosen or not sound:
        raise TuneError("seeds", f"must be how many, or whole numbers from 0, got {seeds!r}")
    return list(dict.fromkeys(int(seed) for seed in chosen))
