"""How much a change gains, as a share of what there is to gain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

from thalweg.diagnosis.setting import Array, Outcome
from thalweg.studies.intervals import CONFIDENCE
from thalweg.tasks import Metric, Task

__all__ = [
    "Effect",
    "Scale",
    "constant",
    "constant_outputs",
    "effect",
    "error_of_constant",
    "scale_of",
]

# What a change has to gain to count: of what the best of all trainings reached, and of all that
# there is between knowing nothing and making no error. Below it a training is well set.
SHARE = 0.1
OF_ALL = 0.03


@dataclass(frozen=True)
class Scale:
    """What validation metrics of one task mean.

    Attributes:
        metric: of the task.
        floor: of a prediction that does not look at its input.
        reach: of the best training there was.
        perfect: of no error; the best reached where a metric does not say.
    """

    metric: Metric
    floor: float
    reach: float
    perfect: float

    @property
    def span(self) -> float:
        """How far the best training came from knowing nothing, at least a tenth of all there is."""
        return max(abs(self.reach - self.floor), 0.1 * abs(self.perfect - self.floor), 1e-12)

    @property
    def least(self) -> float:
        """What a change has to gain to count, as a share of the span."""
        return max(SHARE, OF_ALL * abs(self.perfect - self.floor) / self.span)

    def counts(self, before: float) -> float:
        """What a change has to gain over such a metric to count, as a share of the span.

        `least`; or half of the error that is left, if that is less, for a fraction, of which none
        need be left. From 89 to 97 % is not a tenth of the way from 10 %, but 7 errors of 11.
        """
        if not self.metric.percent:
            return self.least
        half = 0.5 * abs(self.perfect - before) / self.span
        return min(self.least, max(half, OF_ALL * abs(self.perfect - self.floor) / self.span))

    @property
    def nothing(self) -> bool:
        """Whether the best training comes a tenth of the way to no error at most."""
        return abs(self.reach - self.floor) <= 0.1 * abs(self.perfect - self.floor)

    def skill(self, values: Array) -> Array:
        """0 for knowing nothing, 1 for the best training there was."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        clipped = np.clip(sign * (values - self.floor) / self.span, 0.0, None)
        return np.asarray(clipped)


@dataclass(frozen=True)
class Effect:
    """What a change gained over the training as it was set, in shares of a scale's span.

    Attributes:
        gain: mean over seeds.
        low, high: its 95 % interval by Student's t.
        confidence: how sure it is that the change gains enough to count, by the same t.
    """

    gain: float
    low: float
    high: float
    confidence: float


def constant(task: Task) -> float:
    """Validation metric of one prediction for all samples: class frequencies, or the median.

    NaN for a metric or targets that take none.
    """
    outputs = constant_outputs(task)
    try:
        return math.nan if outputs is None else float(task.metric.of(outputs, task.validation.y))
    except Exception:  # a metric of one's own may want what only the model gives
        return math.nan


def error_of_constant(task: Task) -> float:
    """Standard error of `constant`, as validation data are a sample; 0 where it is not known."""
    outputs, y = constant_outputs(task), task.validation.y
    if outputs is None or not isinstance(y, Tensor) or not task.metric.mean:
        return 0.0
    try:
        each = [float(task.metric.of(outputs[i : i + 1], y[i : i + 1])) for i in range(len(y))]
    except Exception:  # as above
        return 0.0
    return float(np.std(each)) / math.sqrt(len(each))


def constant_outputs(task: Task) -> Tensor | None:
    """The same outputs for all validation samples."""
    y, train = task.validation.y, task.train.y
    if not (isinstance(y, Tensor) and isinstance(train, Tensor)):
        return None
    if y.is_floating_point():
        row = train.median(0).values if train.ndim else train
        return row.expand(y.shape).contiguous()
    counts = torch.bincount(train.flatten(), minlength=int(max(train.max(), y.max())) + 1)
    return (counts + 1e-6).log().expand(*y.shape, len(counts)).contiguous()


def scale_of(task: Task, outcomes: Sequence[Outcome]) -> Scale:
    """The scale of a task whose trainings these are."""
    metric = task.metric
    higher = metric.higher_is_better
    worst = -math.inf if higher else math.inf
    means = [o.best("validation_metric", worst, higher).mean() for o in outcomes]
    known = [m for m in means if math.isfinite(m)]
    reach = (max(known) if higher else min(known)) if known else math.nan
    floor = constant(task)
    if not math.isfinite(floor):
        first = [g[0] for o in outcomes for g in o.grid("validation_metric")]
        seen = [v for v in first if math.isfinite(v)]
        floor = (min(seen) if higher else max(seen)) if seen else 0.0
    if not math.isfinite(reach):
        reach = floor
    perfect = 1.0 if metric.percent else 0.0 if metric.nonnegative else reach
    return Scale(metric, floor, reach, perfect)


def effect(scale: Scale, before: Array, after: Array, suffices: float = 1.0) -> Effect:
    """What a change gained.

    Args:
        scale: of both.
        before: validation metrics as it was, ``(seeds,)``.
        after: with the change, from the same seeds.
        suffices: share of what counts elsewhere that does here; above 1, of the scale's `least`.
    """
    gains = scale.skill(after) - scale.skill(before)
    n = len(gains)
    mean = float(gains.mean())
    # Seeds that agree to the last sample know no more than a sample of validation data.
    deviation = max(float(gains.std(ddof=1)) if n > 1 else math.inf, 0.01)
    error = deviation / math.sqrt(n)
    # Where more is asked for than elsewhere, few errors less of few are not enough.
    least = suffices * (scale.counts(float(before.mean())) if suffices <= 1 else scale.least)
    if n < 2:
        return Effect(mean, math.nan, math.nan, 0.8 if mean >= least else 0.0)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * error
    sure = float(stdtr(n - 1, (mean - least) / error))
    return Effect(mean, mean - half, mean + half, min(sure, 0.99))
