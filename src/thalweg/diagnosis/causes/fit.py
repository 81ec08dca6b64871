"""Causes in what is made small, and how far."""

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor
from torch.nn import functional

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.changes import classified, of_probabilities, rounded, without_end
from thalweg.diagnosis.scale import constant_outputs
from thalweg.diagnosis.setting import Setting
from thalweg.numbers import number
from thalweg.studies.intervals import shown
from thalweg.tasks import LOSSES
from thalweg.tasks.trial import called

__all__ = ["overfitting", "wrong_loss"]

# A validation loss that rises by so much after its best epoch, or less if the metric falls too.
RISE = 1.5
RISE_WITH_METRIC = 1.1
UNLEARNT = 0.25  # of what was learnt by the best epoch, that a rise without the metric undoes
DOUBTFUL = 0.6  # how sure it is that a loss is wrong which is unusual and may do as well
LEVELS = 20  # whole numbers that targets may be, to be suspected of being classes
OFTEN = 5
FEW = 16  # samples whose loss is looked at alone
# Activations that a network may end in by mistake, and where their values are.
ENDS: Mapping[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
    "ReLU": (0.0, np.inf),
    "ReLU6": (0.0, 6.0),
    "Softplus": (0.0, np.inf),
}


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
                    against=case.best.setting.but(task=rounded(task)),
                ),
            ),
        )
    ended = _of_end(case, outputs, y[: len(outputs)])
    if ended is not None:
        return ended
    built_in = any(loss.of is known.of for known in LOSSES.values())
    if built_in or outputs.shape[1:] != y.shape[1:]:
        return None
    bottomless = _bottomless(loss.of, outputs, y[: len(outputs)], torch.ones_like(outputs))
    return _usual(case, "mse", "targets that are numbers", bottomless)


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
    is_usual = _is(loss.of, usual.of, outputs, y)
    sums = outputs.sum(-1)
    away = functional.one_hot(y.long(), outputs.shape[-1]).to(outputs)
    are_logarithms = bool(outputs.logsumexp(-1).abs().max() < 1e-3)
    bottomless = not are_logarithms and _bottomless(loss.of, outputs, y, away)
    if bool((outputs >= 0).all()) and bool(torch.isclose(sums, sums.new_ones(()), atol=1e-4).all()):
        if not is_usual and not bottomless:
            return None
        wants = (
            f"{loss.label} takes their softmax once more: no output can be further from another "
            f"than 1, so that the loss cannot go below "
            f"{number(float(np.log1p((classes - 1) * np.exp(-1))))} and gradients are small"
            if is_usual
            else f"{loss.label} is not a loss of probabilities: it has no lowest value, as one "
            f"that takes logarithms of them"
        )
        return Suspicion(
            "wrong_loss",
            f"The network's outputs are probabilities already (0 or more, sums of 1: a softmax at "
            f"its end), and {wants}.",
            (
                Trial(
                    "leave out the softmax at the end of the network"
                    + " and train it with cross_entropy" * (not is_usual),
                    case.setting.but(task=of_probabilities(task)),
                ),
            ),
            confidence=0.97,
            gain=1.0,
            advice="Cross-entropy takes logits: a network for it ends without a softmax, and has "
            "one only where probabilities are wanted.",
        )
    if is_usual:
        return _of_end(case, outputs, y)
    if _of_differences(loss.of, outputs, away, y):
        return Suspicion(
            "wrong_loss",
            f"The targets are classes, and {loss.label} is a loss of differences, for numbers: "
            f"where the network is sure of a wrong class it has next to no gradient, or as much "
            f"as where it is sure of the right one. Here it comes to {case.said(case.base)}.",
            (Trial("train with the loss cross_entropy", _with_loss(case, usual.name)),),
            confidence=DOUBTFUL,
            advice="The usual loss for classes is cross_entropy.",
        )
    return _usual(case, "cross_entropy", "classes", bottomless)


def _with_loss(case: Case, name: str) -> Setting:
    return case.setting.but(task=case.setting.task.with_loss(name))


def _of_differences(of: Callable[..., Tensor], outputs: Tensor, one_hot: Tensor, y: Tensor) -> bool:
    """Whether a loss of classes is a mean of differences from one-hot vectors."""
    known = (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss)
    sides = (outputs, outputs.softmax(-1))
    scales = (1.0, 0.5, float(outputs.shape[-1]))  # halved, or summed over classes
    found = _value(of, outputs, y)
    return any(
        bool(torch.isclose(found, scale * loss(side, one_hot), rtol=1e-4))
        for loss in known
        for side in sides
        for scale in scales
    )


def _of_end(case: Case, outputs: Tensor, y: Tensor) -> Suspicion | None:
    """A network that ends in an activation, for a loss whose outputs may be any number."""
    task, loss = case.setting.task, case.setting.task.loss
    layers = case.flow.layers
    if layers.empty or layers["kind"].iloc[-1] not in ENDS:
        return None
    kind, name = layers["kind"].iloc[-1], layers["layer"].iloc[-1]
    low, high = ENDS[kind]
    if bool((outputs < low).any()) or bool((outputs > high).any()):
        return None  # something comes after it
    logits = outputs.shape == y.shape and _is(loss.of, LOSSES["bce"].of, outputs, y)
    if y.is_floating_point() and not logits:
        beyond = float(((y < low) | (y > high)).double().mean())
        if outputs.shape != y.shape or beyond == 0:
            return None
        why = f"{beyond:.0%} of the targets are outside of that"
    else:
        why = f"{loss.label} takes logits, which may be any number"
    # A sigmoid before a loss that has its own squashes twice; others may be meant.
    twice = kind == "Sigmoid" and (logits or not y.is_floating_point())
    return Suspicion(
        "wrong_loss",
        f"The network ends in {kind}, whose values go from {number(low)} to {number(high)}, and "
        f"{why}. It comes to {case.said(case.base)}.",
        (
            Trial(
                f"leave out the {kind} at the end of the network",
                case.setting.but(task=without_end(task, name, kind)),
            ),
        ),
        confidence=0.97 if twice else None,
        gain=1.0 if twice else None,
        advice="The loss takes logits: a network for it ends without a sigmoid, and has one only "
        "where probabilities are wanted."
        if twice
        else "",
    )


def _bottomless(of: Callable[..., Tensor], outputs: Tensor, y: Tensor, away: Tensor) -> bool:
    """Whether the loss of some sample falls without end as its outputs go away in a direction."""
    for i in range(min(FEW, len(y))):
        for sign in (1.0, -1.0):
            with suppress(Exception):  # a loss of one's own may want more than one sample
                near, far = (
                    float(_value(of, outputs[i : i + 1] + sign * s * away[i : i + 1], y[i : i + 1]))
                    for s in (1e3, 1e4)
                )
                if near < 0 and far < 3 * near:
                    return True
    return False


def _is(of: Callable[..., Tensor], known: Callable[..., Tensor], *given: Tensor) -> bool:
    """Whether two losses have the same value."""
    with suppress(Exception):  # which do not take such outputs or targets
        return bool(torch.isclose(_value(of, *given), _value(known, *given), rtol=1e-4))
    return False


def _value(of: Callable[..., Tensor], outputs: Tensor, y: Tensor) -> Tensor:
    return of(outputs, y).detach().float()


def _usual(case: Case, name: str, targets: str, bottomless: bool) -> Suspicion:
    """The usual loss, at several rates, which has to beat the given one at its best rate."""
    task, best = case.setting.task, case.best.setting
    usual = _with_loss(case, name)
    rates = dict.fromkeys([case.setting.lr, *(factor * best.lr for factor in (1.0, 0.1, 10.0))])
    first, last = case.base.grid("train_loss")[:, [0, -1]].mean(0)
    went = (
        f"the loss went from {number(float(first))} to {number(float(last))} in training"
        if np.isfinite(last)
        else "runs diverged"
    )
    return Suspicion(
        "wrong_loss",
        f"The loss is {task.loss.name!r}, and for {targets} {LOSSES[name].label} is usual; "
        + "it has no lowest value, but falls without end as outputs grow: is its sign right, and "
        "are the outputs what it takes? "
        * bottomless
        + f"{went}, and it comes to {case.said(case.base)}.",
        tuple(
            Trial(
                f"train with the loss {name}"
                + ("" if lr == case.setting.lr else f" and a learning rate of {number(lr)}"),
                usual.but(lr=lr),
                beyond=best,
            )
            for lr in rates
        ),
        confidence=0.97 if bottomless else None,
        gain=1.0 if bottomless else None,
        advice=f"Train with the loss {name}." if bottomless else "",
    )


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
    best = case.scores(case.base)[whole]
    skills = case.scale.skill(best) - case.scale.skill(metric[:, -last:].mean(1))
    falls = bool(skills.mean() > case.scale.least)
    least = np.log(RISE_WITH_METRIC if falls else RISE)
    learnt = _knowing_nothing(case, float(curve[0])) - float(curve[epoch])
    if not falls and float(end.mean() - curve[epoch]) < UNLEARNT * learnt:
        return None
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
        f"{case.scale.metric.name} goes from {shown(case.scale.metric, float(best.mean()))} to "
        f"{shown(case.scale.metric, float(metric[:, -last:].mean()))}.",
        (*shorter, *decayed),
        confidence=min(sure, 0.99),
        gain=float(max(skills.mean(), 0.0)),
        advice=f"Stop after epoch {epoch + 1}, or take more data, a smaller network, dropout or "
        f"weight decay.",
    )


def _knowing_nothing(case: Case, first: float) -> float:
    """Validation loss of a prediction that does not look at its input, or of the first epoch."""
    task = case.setting.task
    outputs = constant_outputs(task)
    with suppress(Exception):  # a loss of one's own may want what only the model gives
        if outputs is not None:
            return max(first, float(task.loss.of(outputs, task.validation.y)))
    return first
