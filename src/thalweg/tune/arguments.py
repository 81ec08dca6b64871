"""What a person asks for, checked where it comes in; one sentence for what cannot be used."""

from functools import partial
from typing import TypeAlias

from thalweg import errors
from thalweg.errors import ArgumentError
from thalweg.optim.base import RuleOptimizer
from thalweg.optim.registry import OPTIMIZERS, enter, key
from thalweg.rules import Rule
from thalweg.tasks import devices

__all__ = ["Named", "TuneError", "device_of", "named", "positive", "seeds_of", "whole"]

Named: TypeAlias = str | Rule | type[RuleOptimizer]


class TuneError(ArgumentError):
    """Something asked of a range test, or of a measurement, that cannot be done."""


whole = partial(errors.whole, error=TuneError)
positive = partial(errors.positive, error=TuneError)
seeds_of = partial(errors.seeds_of, error=TuneError)
device_of = partial(devices.device_of, error=TuneError)


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
