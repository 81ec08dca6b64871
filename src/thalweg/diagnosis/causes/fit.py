"""Causes in what is made small, and how far."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.changes import classified, of_probabilities, rounded
from thalweg.diagnosis.setting import Setting
from thalweg.numbers import number
from thalweg.studies.intervals import shown
from thalweg.tasks import LOSSES
from thalweg.tasks.trial import called

__all__ = ["overfitting", "wrong_loss"]

# A validation loss that rises by so much after its best epoch, or less if the metric falls too.
RISE = 1.5
RISE_WITH_METRIC = 1.1
LEVELS = 20  # whole numbers that targets may be, to be suspected of being classes
OFTEN = 5


def wrong_loss(case: Case) -> Suspicion | None:
    """A loss that is not for such targets or outputs, where the usual one does better."""
    task = case.setting.task
    y = task.train.y
    if not isinstance(y, Tensor):
        return None
    x, some = task.train[: min(256, len(task.train))]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        outputs = called(task.model().eval(), x)
    if not isinstance(outputs, Tensor) or not bool(outputs.isfinite().all()):
        return None
    if y.is_floating_point():
        return _of_numbers(case, outputs, y)
    return _of_classes(case, outputs, some, int(y.max()) + 1)


def _of_numbers(case: Case, outputs: Tensor, y: Tensor) -> Suspicion | None:
    task, loss = case.setting.task, case.setting.task.loss
    levels, counts = torch.unique(y, return_counts=True)
    whole = bool((levels == levels.round()).all()) and bool((levels >= 0).all())
    alone = outputs.numel() == len(outputs)
    if whole and alone and 2 < len(levels) <= LEVELS and int(counts.min()) >= OFTEN:
        classes = int(levels.max()) + 1
        return Suspicion(
            "wrong_loss",
            f"The targets are {len(levels)} whole numbers, from {number(float(levels.min()))} to "
            f"{number(float(levels.max()))}, as classes are, and {loss.label} takes a 3 that is "
            f"taken for a 7 for a larger error than one that is taken for a 4.",
            (
                Trial(
                    f"give the network an output for each of the {classes} classes, and train it "
                    f"with cross_entropy on targets.long()",
                    case.setting.but(task=classified(task, classes)),
                    against=_best(case).but(task=rounded(task)),
                ),
            ),
        )
    built_in = any(loss.of is known.of for known in LOSSES.values())
    if built_in or outputs.shape[1:] != y.shape[1:]:
        return None
    return _usual(case, "mse", "targets that are numbers")


def _of_classes(case: Case, outputs: Tensor, y: Tensor, classes: int) -> Suspicion | None:
    task, loss = case.setting.task, case.setting.task.loss
    if outputs.numel() == len(outputs) and classes > 2:
        return Suspicion(
            "wrong_loss",
            f"The targets are {classes} classes, and the network gives one number for all of them, "
            f"which {loss.label} compares with the number of a class, as if they were ordered.",
            (
                Trial(
                    f"give the network an output for each of the {classes} classes and train it "
                    f"with cross_entropy",
                    case.setting.but(task=classified(task, classes)),
                ),
            ),
        )
    if outputs.shape != (*y.shape, outputs.shape[-1]) or outputs.shape[-1] < 2:
        return None
    usual = LOSSES["cross_entropy"]
    is_usual = bool(torch.isclose(_value(loss.of, outputs, y), usual.of(outputs, y), rtol=1e-4))
    sums = outputs.sum(-1)
    if bool((outputs >= 0).all()) and bool(torch.isclose(sums, sums.new_ones(()), atol=1e-4).all()):
        if not is_usual:
            return None
        return Suspicion(
            "wrong_loss",
            f"The network's outputs are probabilities already (0 or more, sums of 1: a softmax at "
            f"its end), and {loss.label} takes their softmax once more: no output can be further "
            f"from another than 1, so that the loss cannot go below "
            f"{number(float(np.log1p((classes - 1) * np.exp(-1))))} and gradients are small.",
            (
                Trial(
                    "leave out the softmax at the end of the network",
                    case.setting.but(task=of_probabilities(task)),
                ),
            ),
            confidence=0.97,
            advice="The loss takes logits: a network for it ends without a softmax, and has one "
            "only where probabilities are wanted.",
        )
    if is_usual:
        return None
    return _usual(case, "cross_entropy", "classes")


def _value(of: Callable[..., Tensor], outputs: Tensor, y: Tensor) -> Tensor:
    return of(outputs, y).detach().float()


def _usual(case: Case, name: str, targets: str) -> Suspicion:
    """The usual loss against the given one, each at the best of the rates that were tried."""
    task = case.setting.task
    best = _best(case)
    first, last = case.base.grid("train_loss")[:, [0, -1]].mean(0)
    went = (
        f"the loss went from {number(float(first))} to {number(float(last))} in training"
        if np.isfinite(last)
        else "runs diverged"
    )
    return Suspicion(
        "wrong_loss",
        f"The loss is {task.loss.name!r}, and for {targets} {LOSSES[name].label} is usual; "
        f"{went}, and it comes to {case.said(case.base)}.",
        tuple(
            Trial(
                f"train with the loss {name}"
                + ("" if factor == 1 else f" and a learning rate of {number(factor * best.lr)}"),
                best.but(task=task.with_loss(name), lr=factor * best.lr),
                against=best,
            )
            for factor in (1.0, 0.1, 10.0)
        ),
    )


def _best(case: Case) -> Setting:
    """The training with the best of the learning rates that were tried."""
    every = (case.base, *case.rates.values())
    return max(every, key=lambda o: case.scale.skill(case.scores(o)).mean()).setting


def overfitting(case: Case) -> Suspicion | None:
    """A validation loss that rises for good while the training loss falls on."""
    validation, train = case.base.grid("validation_loss"), case.base.grid("train_loss")
    metric = case.base.grid("validation_metric")
    whole = np.isfinite(validation).all(1)
    if not whole.any() or validation.shape[1] < 5:
        return None
    validation, train, metric = validation[whole], train[whole], metric[whole]
    curve = validation.mean(0)
    epoch = int(curve.argmin())
    last = max(1, validation.shape[1] // 10)
    end = validation[:, -last:].mean(1)
    rises = np.log(np.maximum(end, 1e-12) / np.maximum(validation[:, epoch], 1e-12))
    skills = case.scale.skill(metric[:, epoch]) - case.scale.skill(metric[:, -last:].mean(1))
    falls = bool(skills.mean() > case.scale.least / 2)
    least = np.log(RISE_WITH_METRIC if falls else RISE)
    if not rises.mean() > least or not train[:, -1].mean() < train[:, epoch].mean():
        return None
    n = len(rises)
    error = max(float(rises.std(ddof=1)) if n > 1 else np.inf, 0.02) / np.sqrt(n)
    sure = float(stdtr(n - 1, rises.mean() / error)) if n > 1 else 0.7
    setting = case.setting
    shorter = [Trial(f"stop after epoch {epoch + 1}", setting.but(epochs=epoch + 1), ends=True)]
    decayed = []
    if "weight_decay" in setting.hyper:
        decay = max(10 * float(setting.hyper["weight_decay"]), 1e-2)
        decayed = [
            Trial(
                f"raise the weight decay to {number(decay)}",
                setting.but(hyper={"weight_decay": decay}),
                ends=True,
            )
        ]
    gap = float(end.mean() - train[:, -last:].mean())
    return Suspicion(
        "overfitting",
        f"From epoch {epoch + 1} on the validation loss rises, from {number(float(curve[epoch]))} "
        f"to {number(float(end.mean()))} at the end, while the training loss falls to "
        f"{number(float(train[:, -last:].mean()))}: a gap of {number(gap)}. The "
        f"{case.scale.metric.name} goes from "
        f"{shown(case.scale.metric, float(metric[:, epoch].mean()))} to "
        f"{shown(case.scale.metric, float(metric[:, -last:].mean()))}.",
        (*shorter, *decayed),
        confidence=min(sure, 0.99),
        gain=float(max(skills.mean(), 0.0)),
        advice=f"Stop after epoch {epoch + 1}, or take more data, a smaller network, dropout or "
        f"weight decay.",
    )
