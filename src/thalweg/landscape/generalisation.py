"""Training risk, validation risk, and how sharp the solutions are that trainings end in.

Keskar et al. (2017), arXiv:1609.04836, and others hold that flat solutions generalise better; Dinh
et al. (2017), arXiv:1703.04933, that sharpness changes with a scaling of the weights that no
prediction notices. Here both numbers stand beside each other, for solutions of one network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from thalweg.landscape.arguments import LandscapeError, positive, seeds_of, whole
from thalweg.landscape.training_path import Array, Weights, entry_of, rate_of, task_of
from thalweg.replicas import Budget, Replica, Training
from thalweg.replicas.program import build, stack
from thalweg.replicas.start import SAMPLES
from thalweg.tasks import Split, Task
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
STARTS, ASCENTS = 4, 20  # of the search for the worst loss in a ball


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
        optimizers: names in the registry.
        batch_sizes: samples a step, each at most the training samples.
        lr: learning rate of all; by default the middle of each optimizer's usual ones.
        epochs: of every run.
        seeds: how many runs of each, or which.
        radius: of the ball in which the worst loss is looked for, as a share of the norm of all
            trained weights.

    Raises:
        LandscapeError: for an argument that cannot be used, or runs that all diverge.
        TaskError: for a task that cannot be trained.
    """
    found = task_of(task)
    entries = [entry_of(name) for name in optimizers]
    sizes = [whole("batch_sizes", size) for size in batch_sizes]
    chosen, radius = seeds_of(seeds), positive("radius", radius)
    epochs = whole("epochs", epochs)
    if not entries or not sizes:
        raise LandscapeError("optimizers" if sizes else "batch_sizes", "must be one or more")
    rates = {entry.name: rate_of(entry, lr) for entry in entries}
    curves, ends, settings = [], [], []
    for size in sizes:
        if size > len(found.train):
            raise LandscapeError(
                "batch_sizes", f"{size} is more than the {len(found.train)} training samples"
            )
        first_batch(found, size)
        mine = [(entry, seed) for entry in entries for seed in chosen]
        replicas = [
            Replica(e.rule, e.rule.complete({"lr": rates[e.name]}), seed) for e, seed in mine
        ]
        labels = [
            {"optimizer": e.label, "batch_size": size, "lr": rates[e.name], "seed": seed}
            for e, seed in mine
        ]
        curve, weights = _train(found, replicas, size, epochs)
        for label, rows, end in zip(labels, curve, weights, strict=True):
            if end is None:
                raise LandscapeError(
                    "lr",
                    f"{label['optimizer']} diverges at {label['lr']:.3g} with batches of {size}, "
                    f"seed {label['seed']}; give a smaller one",
                )
            settings.append(label)
            ends.append(end)
            curves.append(pd.DataFrame(rows).assign(**label))
    losses = [
        [sample_losses(found, end, split) for split in (found.train, found.validation)]
        for end in ends
    ]
    sharpness = worst_rise(found, ends, radius)
    rows = []
    for label, curve, (train, validation), end, rise in zip(
        settings, curves, losses, ends, sharpness, strict=True
    ):
        rows.append(
            {
                **label,
                "train_loss": float(train.mean()),
                "validation_loss": float(validation.mean()),
                "gap": float(validation.mean() - train.mean()),
                "overfits_from": overfitting_from(curve["validation_loss"].to_numpy()),
                "eigenvalue": top_eigenvalue(found, end),
                "sharpness": float(rise),
            }
        )
    runs = pd.DataFrame(rows).astype({"overfits_from": float})
    table = []
    for (name, size), group in runs.groupby(["optimizer", "batch_size"], sort=False):
        means = [
            np.mean([losses[i][part] for i in group.index], axis=0) for part in range(2)
        ]
        over = group["overfits_from"].dropna()
        mostly = len(over) > len(group) / 2
        late = _student(over if mostly else over[:0])
        low, high = gap_interval(*means)
        _, seed_low, seed_high = _student(group["gap"])
        table.append(
            {
                "optimizer": name,
                "batch_size": size,
                "lr": group["lr"].iloc[0],
                **group[["train_loss", "validation_loss", "gap"]].mean(),
                "low": low,
                "high": high,
                "seed_low": seed_low,
                "seed_high": seed_high,
                "overfits_from": late[0],
                "overfits_low": late[1],
                "overfits_high": late[2],
                "overfit_runs": len(over),
                "runs": len(group),
                **group[["eigenvalue", "sharpness"]].mean(),
            }
        )
    columns = ["optimizer", "batch_size", "seed", "epoch", "train_loss", "validation_loss"]
    return Generalisation(
        found.title, found.loss.label, pd.DataFrame(table), runs, pd.concat(curves)[columns], radius
    )


def _train(
    task: Task, replicas: Sequence[Replica], batch_size: int, epochs: int
) -> tuple[list[list[dict[str, float]]], list[Weights | None]]:
    """Losses after each epoch, and the last weights, of every replica; None where it diverged."""
    per_epoch = len(task.train) // batch_size
    training = Training(task, replicas, Budget(epochs * per_epoch, batch_size, per_epoch))
    curves: list[list[dict[str, float]]] = [[] for _ in replicas]
    with training.on_one_core():
        for epoch in range(epochs + 1):
            if epoch:
                training.advance(per_epoch)
            with training.answers():
                train, _ = training.evaluate(task.train)
                validation, _ = training.evaluate(task.validation)
                for place, rows in enumerate(curves):
                    rows.append(
                        {
                            "epoch": epoch,
                            "train_loss": float(train[place]),
                            "validation_loss": float(validation[place]),
                        }
                    )
                if epoch == epochs:
                    ends = [training.tensors_of(place) for place in range(len(replicas))]
    sound = [np.isfinite(rows[-1]["train_loss"]) for rows in curves]
    return curves, [end if good else None for end, good in zip(ends, sound, strict=True)]


def sample_losses(task: Task, weights: Weights, split: Split) -> Array:
    """The loss of each sample alone, in evaluation mode, ``(samples,)``.

    Raises:
        LandscapeError: for a loss that is no mean over samples.
    """
    model, _, _ = stack(task, [0], "cpu")
    parameters = [weights[name] for name in model.parameters]
    constants = [weights[name] for name in model.constants]

    def one(outputs: Tensor, y: Tensor) -> Tensor:
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
    # The first start of each solution goes along its gradient, the others anywhere.
    along = torch.arange(len(centre[0])) % STARTS == 0
    away = [
        torch.where(_like(along, g), g, torch.randn(g.shape, generator=draw)) for g in gradients
    ]
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


def top_eigenvalue(task: Task, weights: Weights) -> float:
    """The largest eigenvalue of the Hessian of the training loss."""
    return math.nan


def _student(values: "pd.Series[float]") -> tuple[float, float, float]:
    """Mean over seeds with its 95 % interval; NaN of too few."""
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half
