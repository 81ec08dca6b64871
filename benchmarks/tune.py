"""What it costs to ask for a learning rate or a batch size, and to follow a schedule."""

import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

from benchmarks.measure import Row, alternate, report, shown
from thalweg import study
from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Budget, Replica, Training
from thalweg.schedules import cosine
from thalweg.tasks import load
from thalweg.tune.noise import Measure

ROUNDS = 5
RATES = [1e-3, 3e-3, 1e-2, 3e-2]
EPOCHS = 10

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()"]


def _wall(*arguments: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        nothing = subprocess.DEVNULL
        subprocess.run(
            [*COMMAND, *arguments], cwd=folder, env=os.environ, check=True, stdout=nothing,
            stderr=nothing,
        )  # fmt: skip
        return perf_counter() - start


def _range_test() -> Row:
    """The whole command, from the start of its process, beside the imports that it cannot avoid."""
    ours, bare = [], []
    _wall("lr", "digits")  # compiled code is on disk from then on
    for _ in range(ROUNDS):
        ours.append(_wall("lr", "digits", "--seeds", "8"))
        start = perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, numba, pandas, plotly"], check=True)
        bare.append(perf_counter() - start)
        report(f"range test: {ours[-1]:.2f} s")
    a, b = median(ours), median(bare)
    return Row(
        "`thalweg lr digits`, 8 seeds, whole process; imports alone", shown(a), shown(b), b / a,
        "under 5 s",
    )  # fmt: skip


def _noise(batch_size: int) -> Row:
    """Epochs in which the noise scale is measured beside those in which it is not."""
    task = load("digits")
    rule = OPTIMIZERS["adam"].rule
    per_epoch = len(task.train) // batch_size
    budget = Budget(EPOCHS * per_epoch, batch_size, per_epoch)

    def training() -> Training:
        replicas = [Replica(rule, rule.complete({"lr": 1e-3}), seed) for seed in range(8)]
        return Training(task, replicas, budget)

    plain, watched = training(), training()
    measure = Measure.of(task, batch_size)

    def bare() -> None:
        plain.advance(EPOCHS * per_epoch)

    def with_noise() -> None:
        for _ in measure.along(watched, EPOCHS * per_epoch):
            pass

    with plain.on_one_core():
        found = alternate({"bare": bare, "noise": with_noise}, ROUNDS, span=0.5)
    return Row(
        f"an epoch of 8 runs at batch size {batch_size}, noise scale measured or not",
        shown(found["noise"] / EPOCHS),
        shown(found["bare"] / EPOCHS),
        found["bare"] / found["noise"],
        "at least 0.77",
    )


def _schedules(optimizer: str) -> Row:
    """The same study with a rate that stays and with one that follows a cosine."""
    task = load("digits")
    given = cosine(EPOCHS * (len(task.train) // task.batch_size))

    def run(schedule: object) -> None:
        study(task, [optimizer], RATES, 20, EPOCHS, schedules=[schedule])

    found = alternate(
        {"fixed": lambda: run("fixed"), "cosine": lambda: run(given)}, ROUNDS, span=1.0
    )
    return Row(
        f"a study of {OPTIMIZERS[optimizer].label}, 80 runs, by a cosine or at a fixed rate",
        shown(found["cosine"]),
        shown(found["fixed"]),
        found["fixed"] / found["cosine"],
        "at least 0.99",
    )


def tune() -> list[Row]:
    """All rows."""
    return [
        _range_test(),
        *(_noise(size) for size in (32, 128)),
        *(_schedules(name) for name in ("sgd", "adam")),
    ]
