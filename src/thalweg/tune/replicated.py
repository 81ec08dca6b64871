"""A range test of a task: all seeds, and all rates that are checked, as replicas."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from thalweg.replicas import Budget, Factors, Programs, Replica, Training
from thalweg.rules import Rule
from thalweg.tasks import Split, Task
from thalweg.tune.curve import Array, diverged

__all__ = ["Setup", "sweep", "trials"]

# Steps between looks at the metric, and samples that it is taken over: as many as show a trend.
EVERY = 4
SEEN = 512

POINTS = 10  # of the curve of a rate that is checked


@dataclass(frozen=True, eq=False)
class Setup:
    """What all runs of a range test share.

    Attributes:
        task: what is trained.
        rule: of the optimizer.
        batch_size: samples a step.
        device: as torch names it.
        programs: passes already built.
    """

    task: Task
    rule: Rule
    batch_size: int
    device: str
    programs: Programs = field(default_factory=dict)

    def start(self, replicas: Sequence[Replica]) -> Training:
        """Replicas before their first step."""
        per_epoch = len(self.task.train) // self.batch_size
        budget = Budget(per_epoch, self.batch_size, per_epoch)
        return Training(self.task, replicas, budget, device=self.device, programs=self.programs)


def sweep(
    setup: Setup, lr: float, factors: Factors, steps: int, seeds: Sequence[int]
) -> tuple[Array, pd.DataFrame]:
    """Train every seed once while the rate rises, until all have diverged.

    Args:
        setup: what is trained, and how.
        lr: rate of the first step.
        factors: what multiplies it at each.
        steps: to the end.
        seeds: of initial weights and order of batches.

    Returns:
        Losses of the batches, ``(seeds, steps)``, NaN from where a run diverged; and the metric on
        validation data, a row a run and look: ``step, run, metric``.
    """
    rule = setup.rule
    hyper = rule.complete({"lr": lr})
    training = setup.start([Replica(rule, hyper, seed, factors) for seed in seeds])
    validation = _some(setup.task.validation, setup.device)
    losses = np.full((len(seeds), steps), np.nan)
    looks: list[dict[str, Any]] = []
    done = 0
    with training.on_one_core():
        while done < steps and training.alive.any():
            count = min(EVERY, steps - done)
            seen = training.advance(count)
            with training.answers():
                _, metric = training.evaluate(validation)
            for place in np.flatnonzero(training.alive):
                run = int(training.present[place])
                losses[run, done : done + count] = seen[:, place]
                looks.append({"step": done + count - 1, "run": run, "metric": metric[place]})
            done += count
            over = np.isfinite(diverged(losses[:, :done]))[training.present] & training.alive
            if over.any():
                training.drop(over)
    for run, step in enumerate(diverged(losses)):
        if np.isfinite(step):
            losses[run, int(step) :] = np.nan
    frame = pd.DataFrame(looks, columns=["step", "run", "metric"])
    return losses, frame[np.isfinite(losses[frame["run"], frame["step"]])]


def trials(setup: Setup, lrs: Sequence[float], steps: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Train every seed at every rate, which stays, from the beginning.

    Returns:
        A row a rate, seed and look: ``lr, seed, step, train_loss`` (mean since the last look),
        ``loss, metric`` on validation data; numbers of a run that diverged are NaN from there on.
    """
    rule = setup.rule
    settings = [(lr, seed) for lr in lrs for seed in seeds]
    training = setup.start(
        [Replica(rule, rule.complete({"lr": lr}), seed) for lr, seed in settings]
    )
    validation = setup.task.validation.to(setup.device)
    rows: list[dict[str, Any]] = []
    start = np.zeros(len(settings))
    done = 0
    with training.on_one_core():
        for end in np.unique(np.linspace(0, steps, POINTS + 1).astype(int))[1:].tolist():
            seen = training.advance(end - done) if training.alive.any() else np.zeros((1, 0))
            found = {}
            if training.alive.any():
                with training.answers():
                    loss, metric = training.evaluate(validation)
                if not done:
                    start[training.present] = seen[0]
                mean = seen.mean(0)
                broken = ~(np.isfinite(mean) & np.isfinite(loss))
                broken |= mean > 1e3 * np.maximum(np.abs(start[training.present]), 1.0)
                for place in np.flatnonzero(training.alive & ~broken):
                    found[int(training.present[place])] = mean[place], loss[place], metric[place]
                training.drop(training.alive & broken)
            nothing = (np.nan, np.nan, np.nan)
            for i, (lr, seed) in enumerate(settings):
                a, b, c = found.get(i, nothing)
                rows.append(
                    {"lr": lr, "seed": seed, "step": end, "train_loss": a, "loss": b, "metric": c}
                )
            done = end
    return pd.DataFrame(rows)


def _some(split: Split, device: str) -> Split:
    """The first samples of a data set, whose order is no order."""
    return Split(*split[: min(SEEN, len(split))]).to(device)
