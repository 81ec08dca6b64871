"""What the losses of a range test say of a learning rate: pure functions of arrays."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIVERGED", "Marks", "diverged", "marks", "smooth", "turning"]

Array: TypeAlias = NDArray[np.float64]

# A run has diverged when its averaged loss is above the start and so many times its best: fastai's
# and Lightning's rule, but for the start, which keeps a loss near 0 from diverging by noise.
DIVERGED = 4.0
MEMORY = 0.9  # of the average that decides so, causal as the run goes on
WIDTH = 0.02  # of the smoothing kernel, of the whole range: a standard deviation
NOISE = 0.02  # of a drop in loss, that counts as none


@dataclass(frozen=True)
class Marks:
    """Learning rates that a curve of losses points at; None where it does not.

    Attributes:
        steepest: where the loss falls fastest.
        minimum: a tenth of where the loss is lowest (Smith's rule of thumb).
        valley: two thirds into the longest fall (fastai's).
    """

    steepest: float | None
    minimum: float | None
    valley: float | None


def diverged(losses: Array) -> Array:
    """At which step each run of a range test diverged.

    Args:
        losses: ``(runs, steps)``, NaN or infinite where a run has broken down.

    Returns:
        The step, from 0, as a float; NaN for a run that has not. ``(runs,)``.
    """
    found = np.full(len(losses), np.nan)
    for i, run in enumerate(losses):
        mean = start = best = 0.0
        for t, loss in enumerate(run):
            if not np.isfinite(loss):
                found[i] = t
                break
            mean = MEMORY * mean + (1 - MEMORY) * loss
            value = mean / (1 - MEMORY ** (t + 1))
            if t == 0:
                start = best = value
            best = min(best, value)
            if value > start + (DIVERGED - 1) * abs(best) and value > DIVERGED * best:
                found[i] = t
                break
    return found


def smooth(losses: Array) -> Array:
    """Losses, averaged over runs and then over their neighbours by a Gaussian.

    The average has no lag: all losses are known when it is taken.

    Args:
        losses: ``(runs, steps)``; NaN from where a run has diverged.

    Returns:
        ``(steps,)``; NaN where no run is left.
    """
    known = np.isfinite(losses)
    count = known.sum(0)
    mean = np.where(known, losses, 0.0).sum(0) / np.maximum(count, 1)
    steps = np.arange(losses.shape[1])
    width = max(1.0, WIDTH * len(steps))
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2) * count
    with np.errstate(invalid="ignore", divide="ignore"):
        smoothed = weights @ mean / weights.sum(1)
    return np.where(count > 0, smoothed, np.nan)


def marks(lrs: Array, smoothed: Array) -> Marks:
    """What a smoothed curve points at.

    Args:
        lrs: ascending, ``(steps,)``.
        smoothed: losses, ``(steps,)``; NaN at the end where all runs had diverged.
    """
    known = np.isfinite(smoothed)
    x, y = np.log(lrs[known]), smoothed[known]
    if len(y) < 3:
        return Marks(None, None, None)
    bottom = int(y.argmin())
    drop = y[0] - y[bottom]
    if bottom < 2 or drop <= NOISE * max(abs(y[0]), 1e-12):
        return Marks(None, None, None)
    slope = np.gradient(y[: bottom + 1], x[: bottom + 1])
    steepest = float(np.exp(x[int(slope.argmin())]))
    first, last = _longest_fall(y)
    return Marks(
        steepest,
        float(np.exp(x[bottom])) / 10,
        float(np.exp(x[first + (last - first) * 2 // 3])),
    )


def _longest_fall(y: Array) -> tuple[int, int]:
    """First and last index of the longest falling subsequence's span, as fastai has it."""
    length, origin = np.ones(len(y), dtype=int), np.arange(len(y))
    for i in range(1, len(y)):
        above = np.flatnonzero(y[:i] > y[i])
        if len(above):
            j = above[length[above].argmax()]
            length[i], origin[i] = length[j] + 1, origin[j]
    last = int(length.argmax())
    return int(origin[last]), last


def turning(lrs: Array, values: Array, higher_is_better: bool) -> tuple[float, float] | None:
    """Bounds of a cyclical schedule from a metric against the rate (Smith, 2017, section 3.3).

    Args:
        lrs: ascending, ``(points,)``.
        values: the metric, smooth; NaN where there is none.
        higher_is_better: whether it rises as training goes well.

    Returns:
        Where it starts to get better, a tenth of the way, and where it is best and then turns; None
        if it never gets better.
    """
    known = np.isfinite(values)
    x, y = lrs[known], values[known] if higher_is_better else -values[known]
    if len(y) < 3:
        return None
    top = int(y.argmax())
    start = float(y[: max(1, len(y) // 10)].mean())
    rise = y[top] - start
    if top == 0 or rise <= NOISE * max(abs(start), 1e-12):
        return None
    begins = int(np.argmax(y[: top + 1] >= start + 0.1 * rise))
    return float(x[begins]), float(x[top])
