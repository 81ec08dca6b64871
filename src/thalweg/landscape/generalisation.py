"""Training risk, validation risk, and how sharp the solutions are that trainings end in.

Keskar et al. (2017), arXiv:1609.04836, and others hold that flat solutions generalise better; Dinh
et al. (2017), arXiv:1703.04933, that sharpness changes with a scaling of the weights that no
prediction notices. Here both numbers stand beside each other, for solutions of one network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from thalweg.landscape.arguments import LandscapeError, entry_of, positive, seeds_of, whole
from thalweg.landscape.spectrum import eigenvalues
from thalweg.landscape.surface import hessian_at
from thalweg.landscape.training_path import Array, Weights, rate_of, task_of
from thalweg.optim.registry import Entry, key
from thalweg.replicas import Budget, Replica, Training
from thalweg.replicas.program import build, stack
from thalweg.replicas.start import SAMPLES
from thalweg.tasks import Batch, Split, Task
from thalweg.tasks.trial import first_batch

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "Generalisation",
    "gap_interval",
    "generalisation",
    "overfitting_from",
    "sample_losses",
    "worst_rise",
]

RESAMPLED = 2000
NOISE = 3  # standard deviations of the validation loss that a rise has to exceed
AFTER = 3  # epochs that it has to last
STARTS, ASCENTS = 8, 20  # of the search for the worst loss in a ball


@dataclass(frozen=True, eq=False)
class Generalisation:
    """What each way of training ended in.

    Attributes:
        task: its title.
        loss: as axes print it.
        table: a row an optimizer and batch size: ``optimizer, batch_size, lr, train_loss,
            validation_loss, gap`` (means over seeds), ``low, high`` (95 %, samples resampled),
            ``seed_low, seed_high`` (95 % over seeds, Student's t; NaN of one seed),
            ``overfits_from`` (epoch, mean over the seeds that over-fit; NaN unless most do) with
            ``overfits_low, overfits_high`` (likewise), ``overfit_runs, runs``, and means over seeds
            of ``eigenvalue`` (the largest of the Hessian of the training loss) and ``sharpness``
            (how far the training loss rises within the ball).
        runs: the same of every run, with its ``seed`` and without intervals.
        curves: a row a run and epoch: ``optimizer, batch_size, seed, epoch, train_loss,
            validation_loss``, of the whole sets.
        radius: of the ball, as a share of the norm of the trained weights.
    """

    task: str
    loss: str
    table: pd.DataFrame = field(repr=False)
    runs: pd.DataFrame = field(repr=False)
    curves: pd.DataFrame = field(repr=False)
    radius: float

    def figure(self) -> "go.Figure":
        """Gap against sharpness, a point a run."""
        from thalweg.figures.generalisation import gap_against_sharpness

        return gap_against_sharpness(self.runs, self.loss, self.radius)

    def curves_figure(self) -> "go.Figure":
        """Training and validation loss over epochs, and where over-fitting begins."""
        from thalweg.figures.generalisation import risks

        return risks(self.curves, self.table, self.loss)


def generalisation(
    task: str | Task,
    optimizers: Sequence[str] = ("sgd", "adam"),
    batch_sizes: Sequence[int] = (16, 128),
    *,
    lr: float | None = None,
    epochs: int = 60,
    seeds: int | Sequence[int] = 3,
    radius: float = 0.05,
) -> Generalisation:
    """Train by several optimizers and batch sizes, and compare what they end in.

    Runs of one batch size train together as replicas. Losses are in evaluation mode.

    The gap is the mean validation loss less the mean training loss. Its interval over samples
    resamples both sets, with the losses of each sample averaged over seeds: how much it depends on
    which samples there are, the networks as they are. That over seeds says how much it depends on
    initial weights and order of batches.

    Args:
        task: name of a built-in task, or a `thalweg.Task` whose loss is a mean over samples.
        optimizers: names in the registry, each once.
        batch_sizes: samples a step, each at most the training samples.
        lr: learning rate of all; by default the middle of each optimizer's usual ones.
        epochs: of every run.
        seeds: how many runs of each, or which.
        radius: of the ball in which the worst loss is looked for, as a share of the norm of all
            trained weights.

    Raises:
        LandscapeError: for an argument that cannot be used, or a run that diverges.
        TaskError: for a task that cannot be trained.
    """
    found = task_of(task)
    entries = [entry_of(name, "optimizers") for name in dict.fromkeys(map(key, optimizers))]
    sizes = [whole("batch_sizes", size) for size in dict.fromkeys(batch_sizes)]
    chosen, radius = seeds_of(seeds), positive("radius", radius)
    epochs = whole("epochs", epochs)
    if not entries or not sizes:
        raise LandscapeError("optimizers" if sizes else "batch_sizes", "must be one or more")
    done = [
        run
        for size in sizes
        for run in _trained(
            found, [(e, rate_of(e, lr), s) for e in entries for s in chosen], size, epochs
        )
    ]
    rises = worst_rise(found, [run.weights for run in done], radius)
    runs = pd.DataFrame(
        {
            **run.label,
            "train_loss": float(run.train.mean()),
            "validation_loss": float(run.validation.mean()),
            "gap": float(run.validation.mean() - run.train.mean()),
            "overfits_from": _or_nan(overfitting_from(run.curve["validation_loss"].to_numpy())),
            "eigenvalue": float(eigenvalues(hessian_at(found, run.weights), 1, "LA").values[0]),
            "sharpness": float(rise),
        }
        for run, rise in zip(done, rises, strict=True)
    )
    table = [
        _summary(group, [done[i] for i in group.index], epochs)
        for _, group in runs.groupby(["optimizer", "batch_size"], sort=False)
    ]
    curves = pd.concat([run.curve.assign(**run.label) for run in done], ignore_index=True)
    return Generalisation(
        found.title,
        found.loss.label,
        pd.DataFrame(table),
        runs,
        curves.drop(columns="lr"),
        radius,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """What one run ended in: losses of each sample, and of the whole sets after each epoch."""

    label: dict[str, Any]
    weights: Weights
    curve: pd.DataFrame
    train: Array
    validation: Array


def _trained(
    task: Task, settings: Sequence[tuple[Entry, float, int]], batch_size: int, epochs: int
) -> list[_Run]:
    """Train optimizers, each with its rate and from a seed, with one batch size."""
    if batch_size > len(task.train):
        raise LandscapeError(
            "batch_sizes", f"{batch_size} is more than the {len(task.train)} training samples"
        )
    first_batch(task, batch_size)
    per_epoch = len(task.train) // batch_size
    replicas = [Replica(e.rule, e.rule.complete({"lr": lr}), seed) for e, lr, seed in settings]
    training = Training(task, replicas, Budget(epochs * per_epoch, batch_size, per_epoch))
    losses = np.empty((2, epochs + 1, len(replicas)))
    with training.on_one_core():
        for epoch in range(epochs + 1):
            if epoch:
                training.advance(per_epoch)
            with training.answers():
                losses[0, epoch], _ = training.evaluate(task.train)
                losses[1, epoch], _ = training.evaluate(task.validation)
        with training.answers():
            ends = [training.tensors_of(place) for place in range(len(replicas))]
    runs = []
    for place, ((entry, lr, seed), end) in enumerate(zip(settings, ends, strict=True)):
        if not np.isfinite(losses[0, -1, place]):
            raise LandscapeError(
                "lr",
                f"{entry.label} diverges at {lr:.3g} with batches of {batch_size}, seed {seed}; "
                f"give a smaller one",
            )
        curve = pd.DataFrame(losses[..., place].T, columns=["train_loss", "validation_loss"])
        curve.insert(0, "epoch", range(epochs + 1))
        each = [sample_losses(task, end, split) for split in (task.train, task.validation)]
        label = {"optimizer": entry.label, "batch_size": batch_size, "lr": lr, "seed": seed}
        runs.append(_Run(label, end, curve, *each))
    return runs


def _summary(group: pd.DataFrame, runs: Sequence[_Run], epochs: int) -> dict[str, Any]:
    """A row of the table, from the runs of one optimizer and batch size."""
    low, high = gap_interval(
        np.mean([run.train for run in runs], axis=0),
        np.mean([run.validation for run in runs], axis=0),
    )
    _, seed_low, seed_high = _student(group["gap"])
    over = group["overfits_from"].dropna()
    epoch, *ends = _student(over if len(over) > len(group) / 2 else over[:0])
    return {
        **group.iloc[0][["optimizer", "batch_size", "lr"]],
        **group[["train_loss", "validation_loss", "gap"]].mean(),
        "low": low,
        "high": high,
        "seed_low": seed_low,
        "seed_high": seed_high,
        "overfits_from": epoch,
        **dict(zip(("overfits_low", "overfits_high"), np.clip(ends, 0, epochs), strict=True)),
        "overfit_runs": len(over),
        "runs": len(group),
        **group[["eigenvalue", "sharpness"]].mean(),
    }


def _or_nan(value: int | None) -> float:
    return math.nan if value is None else float(value)


def sample_losses(task: Task, weights: Weights, split: Split) -> Array:
    """The loss of each sample alone, in evaluation mode, ``(samples,)``.

    Raises:
        LandscapeError: for a loss that is no mean over samples.
    """
    model, _, _ = stack(task, [0], "cpu")
    parameters = [weights[name] for name in model.parameters]
    constants = [weights[name] for name in model.constants]

    def one(outputs: Any, y: Batch) -> Tensor:
        return task.loss.of(*tree_map(lambda t: t.unsqueeze(0), (outputs, y)))

    with torch.no_grad():
        outputs = model.call(model.evaluate, parameters, constants, split.x)
        mean = float(task.loss.of(outputs, split.y))
        try:
            each = vmap(one)(outputs, split.y).double().numpy()
        except Exception as error:
            raise LandscapeError(
                "task",
                f"the loss {task.loss.name} cannot be taken of each sample alone ({error}), and "
                f"the gap's interval needs that",
            ) from error
    # Rounding of a float32 mean of many is below this by far.
    if not math.isclose(each.mean(), mean, rel_tol=1e-3, abs_tol=1e-6):
        raise LandscapeError(
            "task",
            f"the loss {task.loss.name} is no mean over samples: of all it is {mean:.4g}, and the "
            f"mean of each alone is {each.mean():.4g}; the gap's interval needs a mean",
        )
    losses: Array = each
    return losses


def gap_interval(train: Array, validation: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two means, by the bootstrap: both sets are resampled.

    Args:
        train: losses of the training samples.
        validation: of the validation samples.
        confidence: in (0, 1).
    """
    draw = np.random.default_rng(0)
    # As many numbers as fit the memory of any machine.
    found = [
        np.mean(validation[draw.integers(len(validation), size=len(validation))])
        - np.mean(train[draw.integers(len(train), size=len(train))])
        for _ in range(RESAMPLED)
    ]
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def overfitting_from(losses: Array) -> int | None:
    """The epoch from which the validation loss rises for good.

    It is the last epoch whose loss is within the noise of the lowest one; None if fewer than three
    epochs come after it. The noise is three standard deviations of a single loss about its trend,
    estimated from second differences, robustly: 1.4826 times the median of their absolute values,
    over sqrt(6), as a second difference of independent values has six times their variance.

    Args:
        losses: on validation data after each epoch, from epoch 0, before the first.
    """
    losses = np.asarray(losses, dtype=float)
    if len(losses) < AFTER + 2:
        return None
    noise = 1.4826 * np.median(np.abs(np.diff(losses, 2))) / math.sqrt(6)
    last = int(np.flatnonzero(losses <= losses.min() + NOISE * noise)[-1])
    return last if last < len(losses) - AFTER else None


def worst_rise(task: Task, ends: Sequence[Weights], radius: float) -> Array:
    """How far the training loss rises in a ball around each of several solutions.

    The highest loss within ``radius`` times the norm of a solution's trained weights, less the loss
    there: what SAM (Foret et al. 2021, arXiv:2010.01412) holds down. It is looked for by projected
    gradient ascent, from the edge of the ball along the gradient (SAM's own point) and from random
    points on it, so that what is found is a lower bound. All solutions and starts ascend together.
    The loss is that of the whole training set, of its first 8,192 samples if it is larger, in
    evaluation mode.

    Args:
        task: whose training loss.
        ends: weights by name, each of one solution.
        radius: above 0.

    Returns:
        ``(solutions,)``, at least 0.
    """
    model, _, _ = stack(task, [0], "cpu")
    model = replace(model, train=model.evaluate)  # steps are taken for their gradients alone
    draw = torch.Generator().manual_seed(0)

    def stacked(names: Sequence[str]) -> list[Tensor]:
        return [
            torch.stack([end[name] for end in ends]).repeat_interleave(STARTS, 0).contiguous()
            for name in names
        ]

    centre, constants = stacked(model.parameters), stacked(model.constants)
    batch = task.train[: min(SAMPLES, len(task.train))]
    program = build(task, model, centre, constants, batch, shared=True, backend="eager")
    step = program.single or program.step
    bound = radius * _norms(centre)
    start, gradients, _ = step(centre, constants, *batch)
    # The first start of each solution goes along its gradient; the others are the same for all.
    away = []
    for g in gradients:
        anywhere = torch.randn((STARTS, *g.shape[1:]), generator=draw)
        anywhere = anywhere.repeat(len(ends), *[1] * (g.ndim - 1))
        anywhere[::STARTS] = g[::STARTS]
        away.append(anywhere)
    away = _scaled(away, bound / _norms(away).clamp_min(1e-30))
    best = start.clone()
    for _ in range(ASCENTS):
        moved = [c + a for c, a in zip(centre, away, strict=True)]
        losses, gradients, _ = step(moved, constants, *batch)
        best = torch.maximum(best, losses)
        stride = 0.25 * bound / _norms(gradients).clamp_min(1e-30)
        away = [a + g for a, g in zip(away, _scaled(gradients, stride), strict=True)]
        away = _scaled(away, (bound / _norms(away).clamp_min(1e-30)).clamp_max(1.0))
    moved = [c + a for c, a in zip(centre, away, strict=True)]
    best = torch.maximum(best, step(moved, constants, *batch)[0])
    rises: Array = (best - start).double().reshape(len(ends), STARTS).amax(1).numpy()
    return rises


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.flatten(1).square().sum(1) for t in tensors]).sum(0).sqrt()


def _like(each: Tensor, other: Tensor) -> Tensor:
    return each.reshape(-1, *[1] * (other.ndim - 1))


def _scaled(tensors: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    return [t * _like(factors, t) for t in tensors]


def _student(values: "pd.Series[float]") -> tuple[float, float, float]:
    """Mean over seeds with its 95 % interval; NaN of too few."""
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half
