"""What a training came to, and how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from thalweg.tasks import Task

__all__ = ["FitResult", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch, epochs: the present one, from 1, and how many there will be at most.
        step, steps: how many have been taken, of how many.
        loss: mean training loss of the present epoch so far.
        metric: of the validation data after the last whole epoch; None before.
        lr: learning rate of the last step.
        samples_per_second: lately.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: float | None
    lr: float
    samples_per_second: float


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained model. Losses and metrics are those of its best epoch.

    Attributes:
        task: what was trained.
        weights: of the best epoch, a state dictionary of ``task.model()``, on the CPU.
        epoch: the best epoch, from 1: with the best metric of the validation data, and of equal
            ones the lowest loss.
        train_loss: mean over that epoch's samples, each as it was trained on.
        validation_loss, metric: of the validation data.
        test_loss, test_metric: of the test data, which nothing was chosen on.
        epochs, steps: that were trained, those before a resume among them.
        seconds: wall time of all of them, evaluation included.
        outcome: "completed", or "stopped" early, as patience ran out.
        history: a row an epoch: ``epoch, step, train_loss, validation_loss, metric, lr, seconds``.
        checkpoint: file of the best epoch's weights; None where no folder was given.
    """

    task: Task = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    epoch: int
    train_loss: float
    validation_loss: float
    metric: float
    test_loss: float
    test_metric: float
    epochs: int
    steps: int
    seconds: float
    outcome: str
    history: pd.DataFrame = field(repr=False)
    checkpoint: Path | None

    def module(self) -> nn.Module:
        """The model with the best epoch's weights, in evaluation mode, on the CPU."""
        module = self.task.model()
        module.load_state_dict(self.weights)
        return module.eval()

    def plain(self) -> dict[str, Any]:
        """Numbers and words alone, for JSON; None for a number that is NaN or infinite."""
        names = (
            "train_loss", "validation_loss", "metric", "test_loss", "test_metric", "epoch",
            "epochs", "steps", "seconds", "outcome",
        )  # fmt: skip
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        found = {name: getattr(self, name) for name in names} | {"checkpoint": checkpoint}
        return {
            n: None if isinstance(v, float) and not isfinite(v) else v for n, v in found.items()
        }
