"""The gradient noise scale: how many samples a step can use.

McCandlish, Kaplan, Amodei et al. (2018), arXiv:1812.06162: the simple noise scale is the sum of the
variances of a sample's gradient over the squared norm of the true gradient, tr S / |G|². Below that
many samples a step twice as many nearly halve the steps, far above they hardly save any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.optimize import least_squares
from scipy.special import stdtrit
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Budget, Replica, Training
from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.trial import first_batch
from thalweg.tune.arguments import TuneError, device_of, named, positive, seeds_of, whole
from thalweg.tune.curve import Array
from thalweg.tune.states import random_states

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["NoiseScale", "SampleCurve", "noise_scale", "sample_curve"]

# A measurement takes this many small batches, each of a quarter of the training batch, once in so
# many steps that all of it costs at most a fifth of the training.
BATCHES = 8
COST = 0.2
BYTES = 24 << 20  # of copies of parameters, as in a study's chunks
RESAMPLED = 400


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale of a task, over a stretch of training.

    Attributes:
        value: in samples; NaN where the true gradient cannot be told from 0.
        interval: 95 %, over seeds by the jackknife of the ratio's logarithm; low and high.
        curve: how it changes, a row a measurement: ``step, epoch, noise`` (tr S), ``gradient``
            (|G|²), ``value``, means over seeds.
        batch_size: that training went on with.
        note: what a reader has to know, or nothing.
    """

    value: float
    interval: tuple[float, float]
    curve: pd.DataFrame = field(repr=False)
    batch_size: int
    note: str = ""

    def figure(self) -> "go.Figure":
        """Noise scale against epochs."""
        from thalweg.figures import noise

        return noise(self.curve, self.value, self.interval, self.batch_size)


@random_states()
def noise_scale(
    task: str | Task,
    *,
    optimizer: str = "adam",
    lr: float | None = None,
    batch_size: int | None = None,
    epochs: int = 3,
    seeds: int | Sequence[int] = 8,
    device: str = "cpu",
) -> NoiseScale:
    """Measure the gradient noise scale while a task is trained.

    In between steps the gradients of a few small batches are taken at the weights of that moment.
    From the squared norms of each, and of their mean, follow unbiased estimates of tr S and |G|²
    (appendix A.1 of the paper), which are summed over the training before the one is divided by
    the other.

    Args:
        task: what `thalweg.study` takes.
        optimizer: a name in the registry, that the task is trained by.
        lr: its learning rate; by default the middle of its usual ones.
        batch_size: samples a step of that training; the task's by default.
        epochs: of it.
        seeds: how many runs, or which; the interval is over these.
        device: as torch names it.

    Raises:
        TuneError: for an argument that cannot be used, naming it, its value and what it may be.
        TaskError: for a task that cannot be trained.
    """
    found = load(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise TuneError("task", f"must be a name or a thalweg.Task, got {task!r}")
    entry = OPTIMIZERS[named(optimizer)]
    rate = math.sqrt(math.prod(entry.lr_range)) if lr is None else positive("lr", lr)
    size = found.batch_size if batch_size is None else whole("batch_size", batch_size)
    samples = len(found.train)
    if size > samples:
        raise TuneError("batch_size", f"{size} is more than the {samples} training samples")
    if samples < 2:
        raise TuneError("task", f"{found.name!r} has one training sample; a variance needs two")
    chosen, epochs = seeds_of(seeds), whole("epochs", epochs)
    device_of(device)
    first_batch(found, size)
    small = max(_least(found, size), size // 4)
    count = max(2, min(BATCHES, samples // small))
    small = min(small, samples // count)
    per_epoch = samples // size
    every = math.ceil(count * small / (COST * size))
    hyper = entry.rule.complete({"lr": rate})
    training = Training(
        found,
        [Replica(entry.rule, hyper, seed) for seed in chosen],
        Budget(epochs * per_epoch, size, per_epoch),
        device=device,
    )
    draw = torch.Generator().manual_seed(0)
    rows = []
    done = 0
    while done < epochs * per_epoch:
        noise, gradient = _measured(training, samples, count, small, found.parameters, draw)
        for place in np.flatnonzero(training.alive):
            if math.isfinite(noise[place]):
                run = int(training.present[place])
                rows.append((done, run, noise[place], gradient[place]))
        piece = min(every, epochs * per_epoch - done)
        seen = training.advance(piece)
        broken = training.alive & ~np.isfinite(seen).all(0)
        if broken.any():
            training.drop(broken)
        done += piece
        if not training.alive.any():
            break
    frame = pd.DataFrame(rows, columns=["step", "run", "noise", "gradient"])
    if frame.empty:
        raise TuneError("task", f"the gradient of {found.name!r} is not finite at the start")
    by_run = frame.groupby("run")[["noise", "gradient"]].sum().to_numpy()
    value, interval = _ratio(by_run)
    curve = frame.groupby("step", as_index=False)[["noise", "gradient"]].mean()
    curve["epoch"] = curve["step"] / per_epoch
    curve["value"] = curve["noise"] / curve["gradient"].where(curve["gradient"] > 0)
    lost = len(chosen) - int(training.alive.sum())
    note = _note(value, interval, lost, len(chosen), rate)
    if _normalised(found):
        mixed = "batch normalisation mixes samples, whose gradients depend on the batch then"
        note = f"{note}; {mixed}" if note else mixed
    return NoiseScale(
        value,
        interval,
        curve[["step", "epoch", "noise", "gradient", "value"]],
        size,
        note,
    )


def _normalised(task: Task) -> bool:
    return any(isinstance(module, _BatchNorm) for module in task.model().modules())


def _least(task: Task, size: int) -> int:
    """Samples that a small batch needs at least: two where one alone cannot be trained on."""
    if size // 4 > 1:
        return 1
    try:
        first_batch(task, 1)
    except TaskError:
        return 2
    return 1


def _measured(
    training: Training, samples: int, count: int, small: int, parameters: int, draw: torch.Generator
) -> tuple[Array, Array]:
    """Unbiased estimates of tr S and |G|² for each place, from ``count`` batches of ``small``."""
    places = len(training.present)
    index = torch.stack(
        [
            torch.randperm(samples, generator=draw)[: count * small].reshape(count, small)
            for _ in range(places)
        ]
    )
    together = max(1, min(count, BYTES // max(1, 4 * parameters * places)))
    each = np.zeros((places, count))
    mean: list[torch.Tensor] = []
    for start in range(0, count, together):
        gradients = training.gradients(index[:, start : start + together])
        squares = [g.flatten(2).double().square().sum(2) for g in gradients]
        each[:, start : start + together] = torch.stack(squares).sum(0).cpu().numpy()
        sums = [g.sum(1) for g in gradients]
        mean = sums if not mean else [a + b for a, b in zip(mean, sums, strict=True)]
    total = sum((m / count).flatten(1).double().square().sum(1) for m in mean)
    large = torch.as_tensor(total).cpu().numpy()
    n = count * small
    little = each.mean(1)
    # (A.1) with B_small and B_big, of which the large batch is all of the small ones.
    gradient = (n * large - small * little) / (n - small)
    noise = (little - large) / (1 / small - 1 / n)
    return noise, gradient


def _ratio(by_run: Array) -> tuple[float, tuple[float, float]]:
    """Ratio of sums, and its interval over runs by the jackknife of its logarithm."""
    noise, gradient = by_run.sum(0)
    if not gradient > 0 or not noise > 0:
        return (math.nan if not gradient > 0 else 0.0), (math.nan, math.nan)
    value = float(noise / gradient)
    n = len(by_run)
    rest = np.array([noise, gradient]) - by_run
    if n < 2 or not (rest > 0).all():
        return value, (math.nan, math.nan)
    logs = np.log(rest[:, 0] / rest[:, 1])
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    half = float(stdtrit(n - 1, 0.975)) * error
    return value, (value * math.exp(-half), value * math.exp(half))


def _note(value: float, interval: tuple[float, float], lost: int, runs: int, rate: float) -> str:
    notes = []
    if math.isnan(value):
        notes.append("the gradient cannot be told from its noise; more seeds or epochs may")
    elif math.isnan(interval[0]):
        notes.append("one seed gives no interval")
    if lost:
        notes.append(f"{lost} of {runs} runs diverged at learning rate {rate:.3g}")
    return "; ".join(notes)


@dataclass(frozen=True)
class SampleCurve:
    """Steps against samples to a target, S = S_min (1 + B_crit / B).

    Attributes:
        value: B_crit, the critical batch size, in samples; NaN where nothing can be fitted.
        interval: 95 %, seeds resampled; low and high.
        steps: S_min, steps that no batch size can save.
        samples: E_min, samples that a batch of one sample needs.
    """

    value: float
    interval: tuple[float, float]
    steps: float
    samples: float


def sample_curve(reached: pd.DataFrame) -> SampleCurve:
    """The critical batch size from what training at several batch sizes took to one target.

    McCandlish et al. (2018), equation 5.1, fitted in logarithms.

    Args:
        reached: a row a run: ``batch_size, seed, steps``, NaN where the target was not reached.
    """
    table = reached.pivot_table("steps", "seed", "batch_size", dropna=False)
    # A size that half of the seeds never got there with tells of no size's middle.
    table = table.loc[:, table.notna().mean() > 0.5]
    nothing = SampleCurve(math.nan, (math.nan, math.nan), math.nan, math.nan)
    if table.shape[1] < 3:
        return nothing
    sizes = table.columns.to_numpy(dtype=float)
    steps, critical = _fitted(sizes, np.log(table).mean().to_numpy())
    draw = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLED if len(table) > 1 else 0):
        some = table.iloc[draw.integers(len(table), size=len(table))]
        means = np.log(some).mean().to_numpy()
        known = np.isfinite(means)
        if known.sum() > 2:
            again.append(_fitted(sizes[known], means[known])[1])
    low, high = np.quantile(again, [0.025, 0.975]) if again else (math.nan, math.nan)
    return SampleCurve(critical, (float(low), float(high)), steps, steps * critical)


def _fitted(sizes: Array, logs: Array) -> tuple[float, float]:
    """S_min and B_crit of the least squares in logarithms."""

    def residuals(at: Array) -> Array:
        found: Array = at[0] + np.logaddexp(0.0, at[1] - np.log(sizes)) - logs
        return found

    start = np.array([logs.min(), np.log(sizes).mean()])
    # Within what the sizes can tell: a hundred times beyond either end.
    ends = np.log(sizes.min() / 100), np.log(sizes.max() * 100)
    fit = least_squares(residuals, start, bounds=([-np.inf, ends[0]], [np.inf, ends[1]]))
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))
