"""What the losses of a range test say of a learning rate: pure functions of arrays."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

__all__ = ["DIVERGED", "Marks", "diverged", "marks", "noise", "smooth", "turning"]

Array: TypeAlias = NDArray[np.float64]

# A run has diverged when its averaged loss is above the start and so many times its best: fastai's
# and Lightning's rule, but for the start, which keeps a loss near 0 from diverging by noise.
DIVERGED = 4.0
MEMORY = 0.9  # of the average that decides so, causal as the run goes on
WIDTH = 0.02  # of the smoothing kernel, of the whole range: a standard deviation
NOISE = 0.02  # of a loss, within which a drop counts as none
# So many standard deviations of a smoothed curve from its start to its lowest point come from noise
# alone in 3 of 1,000 curves, be they of 20 steps or of 1,000.
CERTAIN = 6.0


@dataclass(frozen=True)
class Marks:
    """Learning rates that a curve of losses points at; None where it does not.

    Attributes:
        steepest: where the loss falls fastest, against the logarithm of the rate.
        minimum: a tenth of where the loss is lowest (fastai's rule of thumb).
        valley: halfway into the longest fall, as fastai computes it (its documentation says two
            thirds).
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
    count = np.isfinite(losses).sum(0).astype(np.float64)
    total = np.where(np.isfinite(losses), losses, 0.0).sum(0)
    width = _width(losses.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        smoothed = _blurred(total, width) / _blurred(count, width)
    return np.where(count > 0, smoothed, np.nan)


def _width(steps: int) -> float:
    return max(1.0, WIDTH * steps)


def _blurred(values: Array, width: float) -> Array:
    """Sums of neighbours, weighted by a Gaussian; there is nothing beyond the ends."""
    found: Array = gaussian_filter1d(values, width, mode="constant", truncate=8.0)
    return found


def noise(losses: Array) -> float:
    """Standard deviation that a smoothed curve owes to its batches, away from its ends.

    From the differences of successive losses, of which most are noise.

    Args:
        losses: as `smooth` takes them.
    """
    known = losses[:, np.isfinite(losses).all(0)].mean(0)
    if len(known) < 3:
        return 0.0
    each = 1.4826 * float(np.median(np.abs(np.diff(known)))) / np.sqrt(2)
    return float(each / np.sqrt(2 * np.sqrt(np.pi) * _width(losses.shape[1])))


def marks(lrs: Array, smoothed: Array, noise: float = 0.0) -> Marks:
    """What a smoothed curve points at.

    Args:
        lrs: ascending, ``(steps,)``.
        smoothed: losses, ``(steps,)``; NaN at the end where all runs had diverged.
        noise: standard deviation of these.
    """
    known = np.isfinite(smoothed)
    x, y = np.log(lrs[known]), smoothed[known]
    if len(y) < 3:
        return Marks(None, None, None)
    bottom = int(y.argmin())
    drop = y[0] - y[bottom]
    if bottom < 2 or drop <= max(NOISE * abs(y[0]), CERTAIN * noise, 1e-12):
        return Marks(None, None, None)
    slope = np.gradient(y[: bottom + 1], x[: bottom + 1])
    steepest = float(np.exp(x[int(slope.argmin())]))
    return Marks(steepest, float(np.exp(x[bottom])) / 10, float(np.exp(x[_valley(y)])))


def _valley(y: Array) -> int:
    """Where fastai's rule points: at the middle of the longest fall.

    That is the longest falling subsequence, taken to lie together before its end.
    """
    length = np.ones(len(y), dtype=int)
    for i in range(1, len(y)):
        length[i] += length[:i][y[:i] > y[i]].max(initial=0)
    last = int(length.argmax())
    first = last - int(length[last])
    third = (last - first) / 3
    return max(0, first + int(third) + int(third / 2))


def turning(
    lrs: Array, values: Array, higher_is_better: bool, noise: float = 0.0
) -> tuple[float, float] | None:
    """Bounds of a cyclical schedule from a metric against the rate (Smith, 2017, section 3.3).

    Args:
        lrs: ascending, ``(points,)``.
        values: the metric, smooth; NaN where there is none.
        higher_is_better: whether it rises as training goes well.
        noise: standard deviation of the values.

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
    if top == 0 or rise <= max(NOISE * abs(start), CERTAIN * noise, 1e-12):
        return None
    begins = int(np.argmax(y[: top + 1] >= start + 0.1 * rise))
    return float(x[begins]), float(x[top])
