"""Means over seeds and how sure they are, in numbers and in words."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from thalweg.tasks import Metric

__all__ = ["CONFIDENCE", "NEAR", "Interval", "interval", "margin", "points", "shown"]

CONFIDENCE = 0.95
# "As good as the best": one percentage point, or 1 % of an error.
NEAR = 0.01
# Below this many seeds a bootstrap covers too little, and Student's t is used.
BOOTSTRAP_FROM = 10
STUDENT = "Student's t"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and how sure it is.

    Attributes:
        mean: NaN of no values.
        low, high: NaN of fewer than two values.
        method: "Student's t, 5 seeds".
    """

    mean: float
    low: float
    high: float
    method: str


def interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of a mean over seeds.

    Student's t below ten values; from there the bias-corrected and accelerated bootstrap (Efron,
    1987) of `scipy.stats.bootstrap`, with a fixed seed.

    Args:
        values: one finite number a seed.
        confidence: in (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        mean = float(x[0]) if n else math.nan
        return Interval(mean, math.nan, math.nan, f"no interval, {n} seed{'s' * (n != 1)}")
    mean = float(x.mean())
    method = f"{'bootstrap' if n >= BOOTSTRAP_FROM else STUDENT}, {n} seeds"
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, method)
    if n < BOOTSTRAP_FROM:
        half = stdtrit(n - 1, 0.5 + confidence / 2) * x.std(ddof=1) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, method)
    from scipy import stats  # takes half a second to import

    with warnings.catch_warnings():
        # Values that take few distinct levels make SciPy warn; the interval stands.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (x,),
            np.mean,
            confidence_level=confidence,
            n_resamples=9999,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), method)


def margin(metric: Metric, best: float, share: float = NEAR) -> float:
    """How far from the best still counts as as good.

    Args:
        metric: of the task.
        best: value of it.
        share: of a metric in per cent itself, else of the best value.
    """
    return share if metric.percent else share * abs(best)


def shown(metric: Metric, *values: float) -> str:
    """Values of a metric in a sentence: "96.0 to 97.6 %"."""
    return points(metric, *values) + (" %" if metric.percent else "")


def points(metric: Metric, *values: float) -> str:
    """Differences of a metric likewise, without a unit: "12.3 to 14.5"."""
    texts = (f"{100 * v:.1f}" if metric.percent else f"{v:.4g}" for v in values)
    return " to ".join(texts).replace("-", "−")  # as tables have it
