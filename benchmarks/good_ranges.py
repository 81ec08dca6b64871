"""Pairs of a task and an optimizer, and the learning rates that are good for each.

``python -m benchmarks.good_ranges [task ...]`` finds them again by full studies and writes them to
``good_ranges.csv``, in about ten minutes for all.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from benchmarks.measure import report
from thalweg import Split, StudyResult, Task, study, table
from thalweg.optim.registry import OPTIMIZERS
from thalweg.tasks import load

FILE = Path(__file__).with_suffix(".csv")
CHOSEN = (
    "sgd", "momentum", "nag", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "nadam", "lion",
)  # fmt: skip
A_DECADE = 4  # rates tried
HALF_STEP = 10 ** (0.5 / A_DECADE)
WIDENED = 3  # times that a grid is, where its end is still good


def _layers(inner: Callable[[int], list[nn.Module]], depth: int) -> nn.Module:
    return nn.Sequential(*(m for _ in range(depth) for m in inner(64)), nn.Linear(64, 10))


def _deep() -> nn.Module:
    return _layers(lambda width: [nn.Linear(width, width), nn.Tanh()], 5)


def _normalised() -> nn.Module:
    return _layers(lambda w: [nn.Linear(w, w), nn.BatchNorm1d(w), nn.ReLU()], 2)


def _convolutions() -> nn.Module:
    # Strides instead of pooling: a study of `thalweg.tasks.networks.cnn` takes an hour.
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _narrowing() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(),
        nn.Linear(32, 64),
    )  # fmt: skip


def _digits(name: str, model: Callable[[], nn.Module]) -> Task:
    return replace(load("digits"), name=name, model=model)


def _images() -> Task:
    digits = _digits("digits_cnn", _convolutions)
    parts = {n: Split(p.x.reshape(-1, 8, 8), p.y) for n, p in _parts(digits).items()}
    return replace(digits, **parts)


def _autoencoder() -> Task:
    from sklearn.datasets import load_digits

    # Not standardised: the error would be that of the few pixels that are hardly ever inked.
    x = (load_digits().data / 16).astype("float32")
    return Task(name="digits_autoencoder", model=_narrowing, train=(x, x), loss="mse", metric="mse")


def _parts(task: Task) -> dict[str, Split]:
    return {"train": task.train, "validation": task.validation, "test": task.test}


def _gapminder() -> Task:
    from plotly.data import gapminder

    columns = ["continent", "year", "pop", "gdpPercap", "lifeExp"]
    return replace(table(gapminder()[columns], "lifeExp"), name="gapminder")


@dataclass(frozen=True)
class Tried:
    """A task of the table.

    Attributes:
        make: what makes it.
        epochs: of its study: those of any study unless told otherwise, and more where an epoch is
            few steps. More than these on diabetes only overfit; fewer where a step is slow.
        seeds: of its study; fewer where steps are slow.
    """

    make: Callable[[], Task]
    epochs: int = 30
    seeds: int = 5


TASKS = {
    "digits": Tried(lambda: load("digits")),
    "breast_cancer": Tried(lambda: load("breast_cancer"), 100),
    "wine": Tried(lambda: load("wine"), 100),
    "diabetes": Tried(lambda: load("diabetes")),
    "gapminder": Tried(_gapminder, 60),
    "digits_autoencoder": Tried(_autoencoder, 120, seeds=3),
    "digits_deep_tanh": Tried(lambda: _digits("digits_deep_tanh", _deep), seeds=3),
    "digits_batchnorm": Tried(lambda: _digits("digits_batchnorm", _normalised), seeds=3),
    "digits_cnn": Tried(_images, 15, seeds=3),
}

PAIRS = [(task, optimizer) for task in TASKS for optimizer in CHOSEN]


@cache
def task_of(name: str) -> Task:
    """The task of this name in `TASKS`."""
    return TASKS[name].make()


def good_ranges() -> pd.DataFrame:
    """One row a pair, indexed by ``task`` and ``optimizer``: the range, as it was found.

    From ``low`` to ``high`` the mean validation metric over seeds is as good as the best, by the
    convention of `StudyResult.summary`: within one percentage point, or 1 % of an error, and no
    seed diverged. The truth is known only to the grid, so both ends are half a step of it further
    out. ``best`` is the best rate, ``validation_metric`` what it reaches, and ``holes`` how many
    rates between the ends are not as good, which the convention passes over.
    """
    return pd.read_csv(FILE).set_index(["task", "optimizer"])


def _grid(low: float, high: float) -> list[float]:
    """Rates between powers of ten."""
    first, last = round(np.log10(low)), round(np.log10(high))
    count = (last - first) * A_DECADE + 1
    return [float(f"{rate:.4g}") for rate in np.logspace(first, last, count)]


def find(name: str) -> pd.DataFrame:
    """The good range of every optimizer on a task, by a full study."""
    task, tried = task_of(name), TASKS[name]
    ends = {o: OPTIMIZERS[o].lr_range for o in CHOSEN}
    ends = {o: (low / 10, high * 10) for o, (low, high) in ends.items()}
    found: dict[str, dict[str, object]] = {}
    left = list(CHOSEN)
    for _ in range(1 + WIDENED):
        rates = {o: _grid(*ends[o]) for o in left}
        result = study(task, left, rates, tried.seeds, tried.epochs)
        for row in result.summary.itertuples():
            low, high = ends[row.optimizer]
            ends[row.optimizer] = (
                low / 10 if row.lr_low == rates[row.optimizer][0] else low,
                high * 10 if row.lr_high == rates[row.optimizer][-1] else high,
            )
            found[row.optimizer] = _range(result, row.optimizer, name)
            if ends[row.optimizer] == (low, high):
                left.remove(row.optimizer)
        report(f"{name}: {result.seconds:.0f} s, {len(result.runs)} runs; wider: {left}")
        if not left:
            break
    return pd.DataFrame([found[o] for o in CHOSEN])


def _range(result: StudyResult, optimizer: str, name: str) -> dict[str, object]:
    row = result.summary.set_index("optimizer").loc[optimizer]
    trials = result.trials[result.trials["optimizer"] == optimizer]
    best = trials.loc[trials["best"], "validation_metric"].iloc[0]
    metric = task_of(name).metric
    margin = 0.01 if metric.percent else 0.01 * abs(best)
    inside = trials[trials["lr"].between(row["lr_low"], row["lr_high"])]
    near = (inside["validation_metric"] - best).abs() <= margin + 1e-9
    good = near & (inside["completed"] == TASKS[name].seeds)
    return {
        "task": name,
        "optimizer": optimizer,
        "low": float(f"{row['lr_low'] / HALF_STEP:.4g}"),
        "high": float(f"{row['lr_high'] * HALF_STEP:.4g}"),
        "best": row["lr"],
        "validation_metric": float(f"{best:.6g}"),
        "holes": int((~good).sum()),
        "epochs": TASKS[name].epochs,
        "seeds": TASKS[name].seeds,
    }


def main(names: list[str]) -> None:
    kept = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=["task"])
    for name in names:
        kept = pd.concat([kept[kept["task"] != name], find(name)], ignore_index=True)
        place = kept["task"].map(list(TASKS).index)
        kept.loc[place.sort_values(kind="stable").index].to_csv(FILE, index=False)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TASKS))
