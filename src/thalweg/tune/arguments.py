"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

from functools import partial
from typing import TypeAlias

import torch

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim.base import RuleOptimizer
from thalweg.optim.registry import OPTIMIZERS, enter, key
from thalweg.rules import Rule

__all__ = ["Named", "TuneError", "device_of", "named", "positive", "seeds_of", "whole"]

Named: TypeAlias = str | Rule | type[RuleOptimizer]


class TuneError(ArgumentError):
    """Something asked of a range test, or of a measurement, that cannot be done."""


whole = partial(errors.whole, error=TuneError)
positive = partial(errors.positive, error=TuneError)
seeds_of = partial(errors.seeds_of, error=TuneError)


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
