"""The learning rate range test: which rate to begin with, from one short run of rising rates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.optim.registry import OPTIMIZERS, key
from thalweg.studies.intervals import NEAR, margin
from thalweg.studies.rates import RATE_COLUMNS, few_rates
from thalweg.tasks import Metric, Task, load
from thalweg.tasks.losses import LOSSES
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import first_batch
from thalweg.tune.arguments import Named, TuneError, device_of, entry_of, seeds_of, whole
from thalweg.tune.borrowed import Borrowed
from thalweg.tune.curve import Array, Marks, diverged, marks, noise, smooth, turning
from thalweg.tune.replicated import Setup, sweep, trials

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["LRRange", "lr_range_test", "widest"]

# Rates looked at beyond the usual ones of an optimizer, on either side.
BEYOND = 100.0
USUAL = (1e-5, 1e-1)  # of an optimizer that is not in the registry

# Rates are checked twice: so far apart around those that the curve points at, for as long as the
# test; then closer around the best of these and longer, as what is best at first is often too large
# later on: for this many epochs, a study's, or this many times as long if that is less.
APART = math.sqrt(10)
CHECKED = 10
CHECK_SEEDS = 4
CLOSER = 10**0.25
EPOCHS = 30
LONGER = 4
# What is best for that long is still a little too large for longer: a little lower hits the good
# range of a full study more often (benchmarks/suggestions.py).
LOWER = 0.8
CLOSE = 0.005  # "as good as the best", the second time; the first as in a study


_CHECKED = ["stage", "lr", "seed", "step", "train_loss", "loss", "metric"]


@dataclass(frozen=True)
class LRRange:
    """What a range test found.

    Attributes:
        optimizer: as tables print it.
        task: name of what was trained.
        lrs: rate of each step, ascending, ``(steps,)``.
        losses: of the batches, ``(runs, steps)``; NaN from where a run diverged.
        smoothed: their mean over runs and neighbours, ``(steps,)``.
        metrics: the metric on validation data as the rate rises, a row a rate: ``lr, metric,
            low, high``, mean and range over the runs that had not diverged; empty where there is
            none.
        marks: rates that the curve of losses points at.
        diverged_at: the rate at which half of the runs had diverged; None if they had not.
        bounds: low and high for a cyclical schedule: where the metric starts to rise, and where it
            is best and then turns (Smith, 2017); of the loss where there is no metric. None if it
            never gets better.
        checked: rates that were trained with from the start, and stayed, a row a rate, seed and
            step: ``stage``, 1 for those far apart and 2 for those closer and longer, ``lr, seed,
            step, train_loss, loss, metric``, the last two on validation data.
        suggestion: the rate to begin with; None if there is none.
        interval: the rates that were as good when checked, low and high.
        reason: why this rate, or why none, a sentence.
        metric: name of the metric, empty for none.
        percent: whether it is a fraction, to be shown in per cent.
        first: the rates that were as good when checked the first time, for as long as the test.
    """

    optimizer: str
    task: str
    lrs: Array
    losses: Array
    smoothed: Array
    metrics: pd.DataFrame = field(repr=False)
    marks: Marks
    diverged_at: float | None
    bounds: tuple[float, float] | None
    checked: pd.DataFrame = field(repr=False)
    suggestion: float | None
    interval: tuple[float, float] | None
    reason: str
    metric: str = ""
    percent: bool = False
    first: tuple[float, float] | None = None

    @property
    def third(self) -> tuple[float, float] | None:
        """Bounds by the rule of the third: from a third of the highest rate that still helps."""
        return None if self.bounds is None else (self.bounds[1] / 3, self.bounds[1])

    @property
    def rates(self) -> pd.DataFrame:
        """Up to five of the rates that were checked, from too small to too large.

        A row a rate and look: ``optimizer, lr, verdict, step, loss, low, high``, the training loss
        as mean and range over seeds.
        """
        wide = self.checked[self.checked["stage"] == 1]
        if wide.empty or self.first is None:
            return pd.DataFrame(columns=list(RATE_COLUMNS))
        low, high = self.first
        right = min(set(wide["lr"]), key=lambda lr: abs(math.log(lr * lr / (low * high))))
        curves = wide.drop(columns="loss").rename(columns={"train_loss": "loss"})
        return few_rates(self.optimizer, curves, self.first, right)

    def figure(self) -> "go.Figure":
        """Loss and metric against the rate, and what was found."""
        from thalweg.figures import range_test

        known = np.isfinite(self.losses)
        low, high = (
            how(np.where(known, self.losses, fill), axis=0)
            for how, fill in ((np.min, np.inf), (np.max, -np.inf))
        )
        named = {
            "steepest": self.marks.steepest,
            "a tenth of the lowest": self.marks.minimum,
            "valley": self.marks.valley,
        }
        return range_test(
            pd.DataFrame({"lr": self.lrs, "loss": self.smoothed, "low": low, "high": high}),
            self.metrics,
            {name: at for name, at in named.items() if at is not None},
            self.suggestion,
            self.bounds,
            self.diverged_at,
            self.metric,
            self.percent,
        )


@random_states()
def lr_range_test(
    task: str | Task | nn.Module,
    optimizer: Named | Optimizer = "adam",
    *,
    lr: tuple[float, float] | None = None,
    steps: int = 200,
    scale: Literal["exponential", "linear"] = "exponential",
    seeds: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    check: bool = True,
    device: str = "cpu",
    loss: str | Callable[..., Tensor] | None = None,
    data: Any = None,
) -> LRRange:
    """Raise the learning rate over a short run, from several seeds at once, and suggest one.

    Smith (2017), arXiv:1506.01186, section 3.3. A suggestion is then checked: rates around what the
    curve points at are each trained with from the start, those around the best of them again,
    closer and longer, and a rate a little below the middle of those that do best is suggested.

    Args:
        task: what `thalweg.study` takes; or a module of one's own as it stands, with ``loss`` and
            ``data``. Neither it nor its optimizer is touched: copies are trained.
        optimizer: a name in the registry, a rule or class of one's own; with a module any
            `torch.optim.Optimizer` over its parameters, whose groups keep the ratio of their rates.
        lr: lowest and highest rate; by default a hundred times beyond what is usual.
        steps: of the run, at least 20.
        scale: how the rate rises.
        seeds: how many runs, or which: 8 by default, which train together; of a module 1.
        batch_size: samples a step of a task; its own by default.
        check: whether the suggestion is checked, of a module once; else it is the curve's valley.
        device: as torch names it; with a module that of its parameters counts.
        loss: with a module: a name in `thalweg.tasks.LOSSES` or a function.
        data: with a module: what gives batches ``(inputs, targets)`` each time it is gone through.

    Raises:
        TuneError: for an argument that cannot be used, naming it, its value and what it may be.
        TaskError: for a task that cannot be trained.
    """
    steps = whole("steps", steps)
    chosen = seeds_of((1 if isinstance(task, nn.Module) else 8) if seeds is None else seeds)
    if steps < 20:
        raise TuneError("steps", f"{steps} are too few to see a trend; give at least 20")
    if scale not in ("exponential", "linear"):
        raise TuneError("scale", f"must be exponential or linear, got {scale!r}")
    if isinstance(task, nn.Module):
        if batch_size is not None:
            raise TuneError("batch_size", "is for a task; with a module its data say")
        borrowed, label, usual = _borrowed(task, optimizer, loss, data)
        low, high = _ends(lr, usual)
        factors = _ramp(low, high, steps, scale)
        return _range(
            label,
            type(task).__name__,
            None,
            low * factors(np.arange(steps)),
            lambda: borrowed.sweep(low, factors, steps, chosen),
            (lambda rates, steps: borrowed.trials(rates, steps, chosen[:1])) if check else None,
            [steps],
        )
    for argument, value in (("loss", loss), ("data", data)):
        if value is not None:
            raise TuneError(argument, "is for a module of one's own; a task has its own")
    found = load(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise TuneError("task", f"must be a name, a thalweg.Task or a module, got {task!r}")
    if isinstance(optimizer, Optimizer):
        raise TuneError("optimizer", "is of another model; with a task give a name or a rule")
    entry = entry_of(optimizer)
    size = found.batch_size if batch_size is None else whole("batch_size", batch_size)
    if size > len(found.train):
        raise TuneError("batch_size", f"{size} is more than the {len(found.train)} samples")
    low, high = _ends(lr, widest(entry.name))
    device_of(device)
    first_batch(found, size)
    factors = _ramp(low, high, steps, scale)
    run = Setup(found, entry.rule, size, device)
    return _range(
        entry.label,
        found.name,
        found.metric,
        low * factors(np.arange(steps)),
        lambda: sweep(run, low, factors, steps, chosen),
        (lambda rates, steps: trials(run, rates, steps, chosen[:CHECK_SEEDS])) if check else None,
        [steps, max(steps, min(LONGER * steps, EPOCHS * (len(found.train) // size)))],
    )


def _range(
    optimizer: str,
    task: str,
    metric: Metric | None,
    lrs: Array,
    raise_it: Callable[[], tuple[Array, pd.DataFrame]],
    try_at: Callable[[Sequence[float], int], pd.DataFrame] | None,
    lengths: Sequence[int],
) -> LRRange:
    losses, looks = raise_it()
    if not np.isfinite(losses[:, 0]).any():
        raise TuneError(
            "task", f"the loss of {task} is not finite at its first step, before any rate is tried"
        )
    smoothed = smooth(losses)
    uncertain = noise(losses)
    ended = diverged(losses)
    gone = np.sort(np.where(np.isfinite(ended), ended, np.inf))[(len(ended) - 1) // 2]
    diverged_at = float(lrs[int(gone)]) if np.isfinite(gone) else None
    # Beyond that the few runs that are left, the lucky ones, tell of themselves.
    most = math.inf if diverged_at is None else diverged_at
    pointed = marks(lrs, np.where(lrs < most, smoothed, np.nan), uncertain)
    curve = _metrics(lrs, looks)
    if metric is None or curve.empty:
        bounds = turning(lrs, np.where(lrs <= most, smoothed, np.nan), False, uncertain)
    else:
        values = smooth(curve["metric"].to_numpy()[None])
        rates_seen = curve["lr"].to_numpy()
        values = np.where(rates_seen <= most, values, np.nan)
        bounds = turning(rates_seen, values, metric.higher_is_better)
    stages: list[pd.DataFrame] = []
    wide: tuple[float, float] | None = None
    suggestion, interval = pointed.valley, None
    reason = "It is the valley of the curve of losses, and was not checked."
    if suggestion is None:
        reason = (
            f"No rate from {lrs[0]:.3g} to {lrs[-1]:.3g} lowers the loss by more than its noise."
        )
    elif try_at is not None:
        rates, near = _around(lrs, pointed, diverged_at), NEAR
        for stage, length in enumerate(lengths, start=1):
            found = try_at(rates, length)
            stages.append(found.assign(stage=stage))
            suggestion, interval, reason = _best(found, metric, near)
            wide = interval if stage == 1 else wide
            if interval is None:
                break
            rates, near = _closer(lrs, *interval), CLOSE
    if suggestion is not None:
        suggestion = float(np.clip(suggestion, lrs[0], lrs[-1]))
    if interval is not None and (interval[0] <= lrs[0] or interval[1] >= lrs[-1]):
        reason += " They reach an end of the rates of the test; a wider range may do better."
    return LRRange(
        optimizer, task, lrs, losses, smoothed, curve, pointed, diverged_at, bounds,
        pd.concat(stages) if stages else pd.DataFrame(columns=_CHECKED), suggestion, interval,
        reason, "" if metric is None else metric.name,
        metric is not None and metric.percent, wide,
    )  # fmt: skip


def _metrics(lrs: Array, looks: pd.DataFrame) -> pd.DataFrame:
    """The metric against the rate, over the runs that are left."""
    columns = ["lr", "metric", "low", "high"]
    if looks.empty:
        return pd.DataFrame(columns=columns)
    steps = looks.groupby("step")["metric"].agg(["mean", "min", "max"])
    rates = lrs[steps.index.to_numpy(dtype=int)]
    return pd.DataFrame(dict(zip(columns, (rates, *steps.to_numpy().T), strict=True)))


def _around(lrs: Array, pointed: Marks, diverged_at: float | None) -> list[float]:
    """Rates to check: from well below what the curve points at to where runs diverge."""
    found = [m for m in (pointed.steepest, pointed.minimum, pointed.valley) if m is not None]
    high = min(lrs[-1], diverged_at or math.inf, 10 * max(found) * APART)
    low = max(lrs[0], min(found) / 30)  # far enough to be too small
    count = int(math.log(high / low) / math.log(APART)) + 1
    return _within(lrs, high / APART ** np.arange(max(3, min(CHECKED, count)))[::-1])


def _closer(lrs: Array, low: float, high: float) -> list[float]:
    """Rates from two steps below those that did best to two above."""
    count = round(math.log(high / low) / math.log(CLOSER))
    return _within(lrs, low * CLOSER ** np.arange(-2, count + 3))


def _within(lrs: Array, rates: NDArray[Any]) -> list[float]:
    """Rates in three digits, none outside of those that were asked for."""
    ends = lrs[0], lrs[-1]
    return sorted({float(np.clip(float(f"{rate:.3g}"), *ends)) for rate in rates})


def _best(
    checked: pd.DataFrame, metric: Metric | None, near: float
) -> tuple[float | None, tuple[float, float] | None, str]:
    """The middle of the rates that do best, those, and why."""
    last = checked[checked["step"] == checked["step"].max()]
    of = "train_loss" if metric is None else "metric"
    sound = last.groupby("lr").filter(lambda one: bool(one[of].notna().all()))
    if sound.empty:
        return None, None, "Every rate that was checked diverged from some seed."
    means = sound.groupby("lr")[of].mean()
    sign = 1.0 if metric is not None and metric.higher_is_better else -1.0
    top = (sign * means).max()
    # A training loss tells less, by its last batches.
    within = 10 * near * abs(top) if metric is None else margin(metric, top, near)
    good = means.index[sign * means >= top - within - 1e-12]
    low, high = float(good.min()), float(good.max())
    name = "training loss" if metric is None else f"validation {metric.name}"
    reason = (
        f"Trained with from the start, rates from {low:.3g} to {high:.3g} had the best {name} "
        f"after {last['step'].iloc[0]} steps; the suggestion is a little below their middle."
        if high > low
        else f"Trained with from the start, {low:.3g} had the best {name} after "
        f"{last['step'].iloc[0]} steps; the suggestion is a little below, for longer training."
    )
    return float(f"{LOWER * math.sqrt(low * high):.3g}"), (low, high), reason


def _ramp(low: float, high: float, steps: int, scale: str) -> Callable[[Any], Array]:
    """Factors on the lowest rate; a rate beyond the last step stays."""

    def rising(step: Any) -> Array:
        part = np.minimum(np.asarray(step, dtype=np.float64) / (steps - 1), 1.0)
        if scale == "linear":
            return np.asarray(1 + (high / low - 1) * part)
        return np.asarray((high / low) ** part)

    return rising


def widest(optimizer: str) -> tuple[float, float]:
    """The rates that a test runs through unless told otherwise.

    Args:
        optimizer: a name in the registry; what is usual of any for another.
    """
    name = key(optimizer)
    low, high = OPTIMIZERS[name].lr_range if name in OPTIMIZERS else USUAL
    return low / BEYOND, high * BEYOND


def _ends(lr: tuple[float, float] | None, widest: tuple[float, float]) -> tuple[float, float]:
    if lr is None:
        return widest
    try:
        low, high = map(float, lr)
    except (TypeError, ValueError):
        raise TuneError("lr", f"must be two rates, low and high, got {lr!r}") from None
    if not (0 < low < math.inf and 0 < high < math.inf):
        raise TuneError("lr", f"rates must be positive and finite, got {low:g} and {high:g}")
    if low >= high:
        raise TuneError("lr", f"the low end {low:g} must be below the high end {high:g}")
    return low, high


def _borrowed(
    model: nn.Module, optimizer: Named | Optimizer, loss: Any, data: Any
) -> tuple[Borrowed, str, tuple[float, float]]:
    if not isinstance(optimizer, Optimizer):
        raise TuneError("optimizer", f"with a module give its optimizer, got {optimizer!r}")
    if loss is None or data is None:
        raise TuneError("loss" if loss is None else "data", "is needed with a module of one's own")
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise TuneError("loss", f"there is no {loss!r}; choose from {', '.join(LOSSES)}")
        loss = LOSSES[loss].of
    if not callable(loss):
        raise TuneError("loss", f"must be a name or a function, got {loss!r}")
    name = type(optimizer).__name__
    return Borrowed(model, optimizer, loss, data), name, widest(name)
