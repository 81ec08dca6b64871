"""The gradient noise scale: how many samples a step can use.

McCandlish, Kaplan, Amodei et al. (2018), arXiv:1812.06162: the simple noise scale is the sum of the
variances of a sample's gradient over the squared norm of the true gradient, tr S / |G|². Below that
many samples a step twice as many nearly halve the steps, far above they hardly save any.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.replicas import Budget, Replica, Training
from thalweg.tasks import Task, load
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import first_batch
from thalweg.tune.arguments import TuneError, device_of, entry_of, positive, seeds_of, whole
from thalweg.tune.curve import Array

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Measure", "NoiseScale", "SampleCurve", "noise_scale", "sample_curve"]

# A measurement takes this many small batches, of twice the training batch together or of this many
# samples if that is more: what is known of |G|² grows with their square. There is one in so many
# steps that their passes are a thirtieth of the training's.
BATCHES = 8
SAMPLES = 128
COST = 1 / 30
AT_LEAST = 5  # measurements, in a training too short for that
BYTES = 24 << 20  # of copies of parameters, as in a study's chunks
RESAMPLED = 400
FAR = 10  # times beyond the batch sizes that were tried, where they tell nothing of a critical one


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
    epochs: int = 10,
    seeds: int | Sequence[int] = 8,
    device: str = "cpu",
) -> NoiseScale:
    """Measure the gradient noise scale while a task is trained.

    In between steps the gradients of a few small batches are taken at the weights of that moment.
    From the squared norms of each, and of their mean, follow unbiased estimates of tr S and |G|²
    (appendix A.1 of the paper, for a finite set of samples), which are summed over the training
    before the one is divided by the other.

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
    entry = entry_of(optimizer)
    rate = entry.rule.usual_lr if lr is None else positive("lr", lr)
    size = found.batch_size if batch_size is None else whole("batch_size", batch_size)
    samples = len(found.train)
    if size > samples:
        raise TuneError("batch_size", f"{size} is more than the {samples} training samples")
    if samples < 2:
        raise TuneError("task", f"{found.name!r} has one training sample; a variance needs two")
    chosen, epochs = seeds_of(seeds), whole("epochs", epochs)
    device_of(device)
    first_batch(found, size)
    per_epoch = samples // size
    steps = epochs * per_epoch
    hyper = entry.rule.complete({"lr": rate})
    replicas = [Replica(entry.rule, hyper, seed) for seed in chosen]
    training = Training(found, replicas, Budget(steps, size, per_epoch), device=device)
    with training.on_one_core():
        rows = [
            (step, int(training.present[place]), noise[place], gradient[place])
            for step, noise, gradient in Measure.of(found, size).along(training, steps)
            for place in np.flatnonzero(training.alive & np.isfinite(noise))
        ]
    frame = pd.DataFrame(rows, columns=["step", "run", "noise", "gradient"])
    if frame.empty:
        raise TuneError("task", f"the gradient of {found.name!r} is not finite at the start")
    by_run = frame.groupby("run")[["noise", "gradient"]].sum().to_numpy()
    value, interval = _ratio(by_run, samples)
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


@dataclass(frozen=True)
class Measure:
    """How the noise scale is measured along a training.

    Attributes:
        samples: of the training data.
        count: small batches of a measurement.
        small: samples of each.
        every: steps from one measurement to the next, of a long training.
        together: small batches whose gradients are taken at once, by what their copies of the
            parameters need.
    """

    samples: int
    count: int
    small: int
    every: int
    together: int

    @classmethod
    def of(cls, task: Task, batch_size: int, replicas: int = 8) -> "Measure":
        """The measure of a task that is trained at a batch size.

        Args:
            task: with at least two training samples.
            batch_size: samples a step.
            replicas: that train together.
        """
        samples = len(task.train)
        count = min(BATCHES, max(2, samples // 2))  # batch normalisation needs two in each
        small = min(max(2 * batch_size, SAMPLES), samples) // count
        together = BYTES // max(1, 4 * task.parameters * replicas)
        every = math.ceil(count * small / (COST * batch_size))
        return cls(samples, count, small, every, max(1, min(count, together)))

    def along(self, training: Training, steps: int) -> Iterator[tuple[int, Array, Array]]:
        """Train, and measure in between; replicas that diverge are dropped.

        Yields:
            Steps done, and for each place unbiased estimates of tr S and |G|².
        """
        draw = torch.Generator().manual_seed(0)
        every = min(self.every, max(1, steps // AT_LEAST))
        done = 0
        while done < steps and training.alive.any():
            yield done, *self._now(training, draw)
            piece = min(every, steps - done)
            seen = training.advance(piece)
            broken = training.alive & ~np.isfinite(seen).all(0)
            if broken.any():
                training.drop(broken)
            done += piece

    def _now(self, training: Training, draw: torch.Generator) -> tuple[Array, Array]:
        places, count, small = len(training.present), self.count, self.small
        index = torch.stack(
            [
                torch.randperm(self.samples, generator=draw)[: count * small].reshape(count, small)
                for _ in range(places)
            ]
        )
        each: list[torch.Tensor] = []
        total: list[torch.Tensor] = []
        for part in torch.split(index, self.together, dim=1):
            gradients = training.gradients(part)
            norms = [torch.linalg.vector_norm(g.flatten(2), dim=2) for g in gradients]
            each.append(torch.stack(norms).double().square().sum(0))
            sums = [g.sum(1) for g in gradients]
            total = sums if not total else [a + b for a, b in zip(total, sums, strict=True)]
        norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in total]
        large = torch.stack(norms).double().square().sum(0) / count**2
        # (A.1) with B_small and B_big, of which the large batch is all of the small ones.
        n = count * small
        big, little = large.cpu().numpy(), torch.cat(each, 1).mean(1).cpu().numpy()
        noise = (little - big) / (1 / small - 1 / n)
        gradient = (n * big - small * little) / (n - small)
        # No sample is drawn twice, which makes the mean of n of N closer to that of all.
        return noise, gradient + noise / self.samples


def _normalised(task: Task) -> bool:
    return any(isinstance(module, _BatchNorm) for module in task.model().modules())


def _ratio(by_run: Array, samples: int) -> tuple[float, tuple[float, float]]:
    """Ratio of sums, and its interval over runs by the jackknife of its logarithm."""
    noise, gradient = by_run.sum(0)
    # Of so small a rest of differences of float32 nothing is known.
    if not gradient > max(0.0, 1e-6 * noise / samples) or not noise > 0:
        return (0.0 if gradient > 0 and not noise > 0 else math.nan), (math.nan, math.nan)
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
        few = "one seed gives no interval"
        notes.append(few if runs == 1 else "seeds differ too much for an interval")
    if lost:
        notes.append(f"{lost} of {runs} runs diverged at learning rate {rate:.3g}")
    return "; ".join(notes)


@dataclass(frozen=True)
class SampleCurve:
    """Steps against samples to a target, S = S_min (1 + B_crit / B).

    Attributes:
        value: B_crit, the critical batch size, in samples; NaN where nothing can be fitted, or it
            is so far from the batch sizes that they do not tell it.
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
    if not _told(sizes, critical):
        return nothing
    draw = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLED if len(table) > 1 else 0):
        some = table.iloc[draw.integers(len(table), size=len(table))]
        means = np.log(some).mean().to_numpy()
        known = np.isfinite(means)
        if known.sum() > 2:
            again.append(_fitted(sizes[known], means[known])[1])
    low, high = np.quantile(again, [0.025, 0.975]) if again else (math.nan, math.nan)
    if not (_told(sizes, low) and _told(sizes, high)):  # one end is as far as was looked
        low = high = math.nan
    return SampleCurve(critical, (float(low), float(high)), steps, steps * critical)


def _told(sizes: Array, critical: float) -> bool:
    """Whether a critical batch size is within what batch sizes can tell."""
    return bool(sizes.min() / FAR * 1.1 < critical < sizes.max() * FAR / 1.1)


def _fitted(sizes: Array, logs: Array) -> tuple[float, float]:
    """S_min and B_crit of the least squares in logarithms."""
    from scipy.optimize import least_squares  # takes a quarter of a second to import

    def residuals(at: Array) -> Array:
        found: Array = at[0] + np.logaddexp(0.0, at[1] - np.log(sizes)) - logs
        return found

    start = np.array([logs.min(), np.log(sizes).mean()])
    ends = np.log(sizes.min() / FAR), np.log(sizes.max() * FAR)
    fit = least_squares(residuals, start, bounds=([-np.inf, ends[0]], [np.inf, ends[1]]))
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))
