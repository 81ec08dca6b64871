"""Why a training may fail, a function each: from what was seen to a suspicion and what to try.

To add one: its function in the module where it belongs, and its line here.
"""

from collections.abc import Callable

from thalweg.diagnosis.case import Case, Suspicion
from thalweg.diagnosis.causes.data import inputs_not_normalised, labels_random, nan_in_data
from thalweg.diagnosis.causes.fit import overfitting, wrong_loss
from thalweg.diagnosis.causes.layers import (
    dead_relu,
    exploding_gradient,
    saturation,
    vanishing_gradient,
)
from thalweg.diagnosis.causes.rates import batch_too_large, lr_too_high, lr_too_low
from thalweg.diagnosis.causes.start import saddle, zero_init

__all__ = ["CAUSES", "HEALTHY", "IN_LAYERS"]

HEALTHY = "healthy"

# The more special before the more general: where two explain a failure as well, the first is it.
# What data, weights or layers do wrong, another learning rate often mends in part.
CAUSES: tuple[Callable[[Case], Suspicion | None], ...] = (
    nan_in_data,
    labels_random,
    wrong_loss,
    zero_init,
    inputs_not_normalised,
    dead_relu,
    saturation,
    exploding_gradient,
    vanishing_gradient,
    saddle,
    batch_too_large,
    lr_too_high,
    lr_too_low,
    overfitting,
)

# Of these one brings others along.
IN_LAYERS = frozenset(
    cause.__name__
    for cause in (
        zero_init,
        dead_relu,
        saturation,
        exploding_gradient,
        vanishing_gradient,
        saddle,
    )
)
