"""Which batch size: what each costs and gives with a learning rate of its own."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Replica, Training
from thalweg.rules import Rule
from thalweg.studies import Progress, StudyResult, study
from thalweg.studies.effects import by_seed
from thalweg.studies.intervals import interval, margin, shown
from thalweg.tasks import Metric, Task, load
from thalweg.tasks.memory import shown as shown_bytes
from thalweg.tune.arguments import Named, TuneError, entry_of, seeds_of, whole
from thalweg.tune.fits import Fit, largest_batch
from thalweg.tune.noise import NoiseScale, SampleCurve, noise_scale, sample_curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["BatchSizes", "batch_sizes"]

# Batch sizes four times apart with rates twice apart: the linear rule is then two rates further
# and the square root one, both among those tried.
TIMES = 4
RATES = 2.0
LOOK = 1.1  # times the steps, from one look at the metric to the next
ROUNDING = 1e-6  # of a metric, a mean of float32
RULES = {"linear": 1.0, "sqrt": 0.5}
SAME = 1.02  # times, within which a rate is the one of a rule


@dataclass(frozen=True)
class BatchSizes:
    """What training at several batch sizes costs and gives.

    Attributes:
        task: name of it.
        optimizer: as tables print it.
        table: a row a batch size: ``batch_size``; ``lr``, tuned on validation data, and ``edge``,
            whether it is at an end of the rates tried; ``test_metric`` with its interval ``low``
            to ``high`` and ``tied``, whether seeds do not tell it from the best; ``steps_to_target,
            samples_to_target, epochs_to_target``, medians over seeds, and ``reached``, how many
            did; ``samples_per_second`` of one model trained alone, measured, and with it
            ``seconds_to_target`` and ``seconds_per_epoch``; and for the rules "linear" and "sqrt",
            from the rate of the reference size, ``linear_lr`` and ``linear_metric`` with
            ``linear_low`` to ``linear_high``, likewise ``sqrt_``; NaN where no seed was trained at
            it to the end.
        reference: the batch size that the rules start from.
        target: the validation metric that counts as trained.
        noise: the gradient noise scale within steps.
        critical: the critical batch size from steps against samples.
        fit: the largest batch that fits in memory.
        recommended: the batch size to use here: of those that tie with the best and whose mean is
            within one percentage point of it, or 1 % of an error, the one soonest at the target.
        why: in a sentence or two.
        study: all runs.
    """

    task: str
    optimizer: str
    table: pd.DataFrame = field(repr=False)
    reference: int
    target: float
    noise: NoiseScale
    critical: SampleCurve
    fit: Fit
    recommended: int
    why: str
    study: StudyResult = field(repr=False)

    @property
    def metric(self) -> Metric:
        """Of the task."""
        return next(iter(self.study.variants.values())).task.metric

    @property
    def notes(self) -> list[str]:
        """What a careful reader should know besides, a sentence each."""
        spec, noise, critical = self.study.spec, self.noise, self.critical
        lrs = spec.lrs[0][1]
        goal = shown(self.metric, self.target)
        notes = [
            f"{self.optimizer}; {len(lrs)} learning rates from {lrs[0]:.3g} to {lrs[-1]:.3g}, "
            f"{len(spec.seeds)} seeds and {spec.epochs} epochs for every batch size; = marks those "
            f"whose test {self.metric.name} seeds do not tell from the best.",
            f"The target is a validation {self.metric.name} of {goal}; steps are medians over "
            f"seeds. Seconds are those of one model trained alone on "
            f"{self.study.environment['device']}, at the samples a second that were measured then, "
            f"with the machine as busy as it was.",
        ]
        if math.isfinite(critical.value):
            said = f"The critical batch size, from steps against samples, is {critical.value:.3g}"
            if math.isfinite(critical.interval[0]):
                said += f" ({critical.interval[0]:.3g} to {critical.interval[1]:.3g})"
            notes.append(
                f"{said}: with as many samples a step it takes twice as many steps, and twice as "
                f"many samples, as at best."
            )
        else:
            notes.append(
                "The critical batch size cannot be told from steps against samples: at least three "
                "batch sizes have to reach the target, some of them with more samples than others."
            )
        if math.isfinite(noise.value):
            said = f"The gradient noise scale, within steps, is {noise.value:.3g}"
            if math.isfinite(noise.interval[0]):
                said += f" ({noise.interval[0]:.3g} to {noise.interval[1]:.3g}, 95 % over seeds)"
            notes.append(f"{said}, over the first epochs at batch size {noise.batch_size}.")
        if noise.note:
            notes.append(f"Of the noise scale: {noise.note}.")
        limit = (
            "all that were asked for fit"
            if self.fit.limit == "data"
            else f"more do not fit in the {shown_bytes(self.fit.available)} available"
        )
        notes.append(
            f"The largest batch tried in memory has {self.fit.size:,} samples and takes "
            f"{shown_bytes(self.fit.bytes)}; {limit}."
        )
        if self.table["edge"].any():
            sizes = self.table.loc[self.table["edge"], "batch_size"]
            notes.append(
                f"* The best rate of batch size {', '.join(f'{n:,}' for n in sizes)} is at an end "
                f"of those tried; a wider range may do better."
            )
        return notes

    def figure(self) -> "go.Figure":
        """Cost, result and learning rate against batch size."""
        from thalweg.figures import batch_sizes

        task = self.study.task
        sizes = np.geomspace(self.table["batch_size"].min(), self.table["batch_size"].max(), 60)
        fitted = pd.DataFrame(
            {"batch_size": sizes, "steps": self.critical.steps * (1 + self.critical.value / sizes)}
        )
        return batch_sizes(
            self.table,
            fitted.dropna(),
            (self.critical.value, *self.critical.interval),
            (self.noise.value, *self.noise.interval),
            self.recommended,
            task.metric,
            task.percent,
        )


def batch_sizes(
    task: str | Task,
    *,
    optimizer: Named = "adam",
    sizes: Sequence[int] | None = None,
    epochs: int = 20,
    seeds: int | Sequence[int] = 3,
    target: float | None = None,
    maximum: int | None = None,
    device: str = "cpu",
    db: str | Path | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> BatchSizes:
    """Train a task at several batch sizes, each with a learning rate of its own.

    All sizes train for the same epochs, from the same weights, at the same learning rates, so that
    none gets more tuning than another. At its best rate each is trained once more, with a look at
    the metric after every few steps, for the steps that it takes to the target.

    Args:
        task: what `thalweg.study` takes.
        optimizer: a name in the registry, or a rule or class of one's own.
        sizes: batch sizes, at most the training samples; by default powers of four.
        epochs: of every run.
        seeds: runs of every setting.
        target: validation metric that counts as trained; the task's by default, or what all runs
            get to at their tuned rates.
        maximum: largest batch to try in memory; the training samples by default.
        device: as torch names it.
        db: file for the record of all runs, as `thalweg.study` takes it.
        progress: called after every epoch of a chunk.

    Raises:
        TuneError, StudyError: for an argument that cannot be used, naming it, its value and what
            it may be.
        TaskError: for a task that cannot be trained.
    """
    found = load(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise TuneError("task", f"must be a name or a thalweg.Task, got {task!r}")
    name = entry_of(optimizer).name
    entry = OPTIMIZERS[name]
    asked = None if sizes is None else _sizes(sizes, len(found.train))
    epochs, chosen_seeds = whole("epochs", epochs), seeds_of(seeds)
    fit = largest_batch(found, optimizer=name, device=device, maximum=maximum)
    if asked is not None and asked[-1] > fit.size:
        what = (
            f"is more than the maximum, {fit.size}"
            if fit.limit == "data"
            else f"does not fit in memory; at most {fit.size} do"
        )
        raise TuneError("sizes", f"{asked[-1]} {what}")
    least = int(fit.tried.loc[fit.tried["fits"], "batch_size"].min())
    most = min(len(found.train), fit.size)
    chosen = _powers(least, most) if asked is None else asked
    low, high = entry.lr_range
    count = math.ceil(math.log(high / low) / math.log(RATES)) + 1
    result = study(
        found,
        [optimizer],
        [float(f"{low * RATES**i:.6g}") for i in range(count)],
        chosen_seeds,
        epochs,
        batch_size=chosen,
        target=target,
        name=f"{found.name}-batch",
        db=db,
        device=device,
        progress=progress,
    )
    if result.summary["test_metric"].isna().any():
        lost = result.summary.loc[result.summary["test_metric"].isna(), "batch_size"]
        raise TuneError(
            "sizes",
            f"at batch size {', '.join(map(str, lost))} no learning rate from {low:g} to {high:g} "
            f"was completed from every seed; leave it out",
        )
    reference = min(chosen, key=lambda size: abs(math.log(size / found.batch_size)))
    goal = result.spec.target if result.spec.target is not None else _reached_by_all(result)
    reached = _steps_to(result, entry.rule, goal, device)

    def train_at(size: int, rate: float) -> "pd.Series[Any] | None":
        """The trial of a rate that no batch size was given, or nothing if it diverged."""
        at = study(
            found, [optimizer], rate, result.spec.seeds, epochs, batch_size=size, device=device
        ).trials.iloc[0]
        return at if at["n"] else None

    table = _table(result, reached, fit, reference, train_at)
    rate = float(table.set_index("batch_size")["lr"][reference])
    noise = noise_scale(
        found,
        optimizer=name,
        lr=rate,
        batch_size=reference,
        epochs=min(10, epochs),
        device=device,
    )
    critical = sample_curve(reached)
    recommended, why = _advice(table, found.metric, goal, noise, fit)
    return BatchSizes(
        found.name, entry.label, table, reference, goal, noise, critical, fit, recommended, why,
        result,
    )  # fmt: skip


def _powers(least: int, most: int) -> list[int]:
    found = [least * TIMES**i for i in range(int(math.log(most / least, TIMES) + 1e-9) + 1)]
    if len(found) < 2:
        raise TuneError("sizes", f"at most {most} samples can be had; there is nothing to compare")
    return found


def _sizes(sizes: Sequence[int], samples: int) -> list[int]:
    if not isinstance(sizes, Iterable):
        raise TuneError("sizes", f"must be a list of batch sizes, got {sizes!r}")
    found = sorted({whole("sizes", size) for size in sizes})
    if len(found) < 2:
        raise TuneError("sizes", f"give at least two to compare, got {found}")
    if found[-1] > samples:
        raise TuneError("sizes", f"{found[-1]} is more than the {samples} training samples")
    return found


def _reached_by_all(result: StudyResult) -> float:
    """The validation metric that every tuned run gets to, whatever its batch size and seed."""
    curves = result.curves.merge(result.summary[["batch_size", "lr"]], on=["batch_size", "lr"])
    runs = curves.groupby(["batch_size", "seed"])["validation_metric"]
    return float(runs.max().min() if result.task.higher_is_better else runs.min().max())


def _steps_to(result: StudyResult, rule: Rule, target: float, device: str) -> pd.DataFrame:
    """Steps to the target at the tuned rates, a row a run: ``batch_size, seed, steps``.

    The metric is looked at after every step at first, and then a tenth further on each time; in
    between it is taken to go straight. NaN where the target was not reached.
    """
    sign = 1.0 if result.task.higher_is_better else -1.0
    rates = result.summary.set_index("batch_size")["lr"]
    seeds = list(result.spec.seeds)
    rows = []
    for levels, variant in result.variants.items():
        budget, task = result.spec.budget(levels), variant.task
        hyper = rule.complete({"lr": float(rates[variant.batch_size])})
        training = Training(task, [Replica(rule, hyper, s) for s in seeds], budget, device=device)
        validation = task.validation.to(device)
        found = np.full(len(seeds), np.nan)
        before = np.full(len(seeds), np.nan)
        done = 0
        with training.on_one_core():
            while done < budget.steps and np.isnan(found).any():
                count = min(budget.steps - done, max(1, round(done * (LOOK - 1))))
                training.advance(count)
                with training.answers():
                    ahead = sign * (training.evaluate(validation)[1] - target)
                for i in np.flatnonzero(np.isnan(found) & (ahead >= -ROUNDING)):
                    part = -before[i] / (ahead[i] - before[i]) if before[i] < ahead[i] else 1.0
                    found[i] = done + min(1.0, part) * count
                before = ahead
                done += count
        rows += [
            {"batch_size": variant.batch_size, "seed": seed, "steps": float(steps)}
            for seed, steps in zip(seeds, found, strict=True)
        ]
    return pd.DataFrame(rows)


def _table(
    result: StudyResult,
    reached: pd.DataFrame,
    fit: Fit,
    reference: int,
    train_at: Callable[[int, float], "pd.Series[Any] | None"],
) -> pd.DataFrame:
    summary = result.summary.set_index("batch_size").sort_index()
    trials = result.trials
    start = float(summary["lr"][reference])
    samples = result.task.n_train
    first = result.summary.iloc[0]
    rows: list[dict[str, Any]] = []
    for size, arm in summary.iterrows():
        mine = reached[reached["batch_size"] == size]["steps"]
        steps = float(mine.fillna(math.inf).median())
        steps = steps if math.isfinite(steps) else math.nan
        speed = _speed(fit, int(size))
        row = {
            "batch_size": int(size),
            "lr": arm["lr"],
            "edge": bool(arm["edge"]),
            "test_metric": arm["test_metric"],
            "low": arm["low"],
            "high": arm["high"],
            "tied": _tied(result, first, arm.to_dict() | {"batch_size": size}),
            "steps_to_target": steps,
            "samples_to_target": steps * size,
            "epochs_to_target": steps / (samples // size),
            "reached": int(mine.notna().sum()),
            "samples_per_second": speed,
            "seconds_to_target": steps * size / speed,
            "seconds_per_epoch": samples / speed,
        }
        for rule, power in RULES.items():
            rate = start * (size / reference) ** power
            at = trials[(trials["batch_size"] == size) & (trials["n"] > 0)]
            near = at[(at["lr"] / rate).between(1 / SAME, SAME)]
            one = near.iloc[0] if len(near) else train_at(int(size), rate)
            row[f"{rule}_lr"] = rate
            for column, of in (("metric", "test_metric"), ("low", "low"), ("high", "high")):
                row[f"{rule}_{column}"] = math.nan if one is None else one[of]
        rows.append(row)
    return pd.DataFrame(rows)


def _tied(result: StudyResult, first: "pd.Series[Any]", arm: dict[str, Any]) -> bool:
    """Whether seeds do not tell an arm's test metric from the best one's."""
    if arm["batch_size"] == first["batch_size"]:
        return True
    difference = (by_seed(result.runs, first) - by_seed(result.runs, pd.Series(arm))).dropna()
    found = interval(difference)
    return not (found.low > 0 or found.high < 0)


def _speed(fit: Fit, size: int) -> float:
    """Samples a second of one model, between the sizes that were tried."""
    known = fit.tried[fit.tried["fits"]].sort_values("batch_size")
    logs = np.log(known["batch_size"].to_numpy(dtype=float))
    return float(
        np.exp(np.interp(math.log(size), logs, np.log(known["samples_per_second"].to_numpy())))
    )


def _advice(
    table: pd.DataFrame, metric: Metric, target: float, noise: NoiseScale, fit: Fit
) -> tuple[int, str]:
    """The batch size to use, and why."""
    results = table["test_metric"]
    top = results.max() if metric.higher_is_better else results.min()
    # A few seeds tie what is plainly worse, so the mean has to be close too.
    good = table[table["tied"] & ((results - top).abs() <= margin(metric, top) + 1e-9)]
    there = good[good["seconds_to_target"].notna()]
    if there.empty:
        fastest = good.loc[good["seconds_per_epoch"].idxmin()]
        size = int(fastest["batch_size"])
        return size, (
            f"Use {size:,}: none of those with the best test {metric.name} reached "
            f"{shown(metric, target)} on validation data, and of these its epochs are the shortest."
        )
    best = there.loc[there["seconds_to_target"].idxmin()]
    size = int(best["batch_size"])
    why = [
        f"Use {size:,} at learning rate {best['lr']:.3g}: of the batch sizes whose test "
        f"{metric.name} is as good as the best ({shown(metric, best['test_metric'])} here, "
        f"{shown(metric, top)} at best) it reaches {shown(metric, target)} on validation data "
        f"soonest, in "
        f"{best['seconds_to_target']:.3g} s and {math.ceil(best['steps_to_target'])} steps."
    ]
    if math.isfinite(noise.value):
        said = f"The gradient noise scale is about {noise.value:.3g}"
        if math.isfinite(noise.interval[0]):
            said += f" ({noise.interval[0]:.3g} to {noise.interval[1]:.3g})"
        why.append(
            f"{said}: batches far above that save hardly any steps"
            + (", so a faster device would not ask for more." if size >= noise.value else ".")
        )
    if fit.limit == "memory":
        why.append(f"At most {fit.size:,} samples fit in memory.")
    return size, " ".join(why)
