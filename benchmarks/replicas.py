"""A chunk of replicas as large as those of the default study, trained by Thalweg."""

import numpy as np
from numpy.typing import NDArray

from thalweg.optim.registry import MAIN, OPTIMIZERS
from thalweg.replicas import Backend, Budget, Programs, Replica, train
from thalweg.tasks import load

SEEDS = (0, 1, 2)
EPOCHS = 10
TASK = load("digits")
PER_EPOCH = len(TASK.train) // 32
BUDGET = Budget(EPOCHS * PER_EPOCH, 32, PER_EPOCH)


def rates(optimizer: str) -> NDArray[np.float64]:
    """Five of the nine of a study, none of which diverges: both must do all the work."""
    return np.geomspace(*OPTIMIZERS[optimizer].lr_range, 9)[1:6]


def train_here(backend: Backend = "eager", programs: Programs | None = None) -> NDArray[np.float64]:
    """Train them; validation accuracy at the end, ``(optimizers, seeds, rates)``."""
    replicas = [
        Replica(entry.rule, entry.rule.complete({"lr": float(lr)}), seed)
        for name, entry in zip(MAIN, map(OPTIMIZERS.__getitem__, MAIN), strict=True)
        for seed in SEEDS
        for lr in rates(name)
    ]
    accuracy = np.full(len(replicas), np.nan)
    for evaluation in train(TASK, replicas, BUDGET, backend=backend, programs=programs):
        accuracy[evaluation.replicas] = evaluation.validation_metric
        if evaluation.diverged_at.any():
            raise AssertionError("a replica diverged, so that this is not the same work")
    return accuracy.reshape(len(MAIN), len(SEEDS), -1)
