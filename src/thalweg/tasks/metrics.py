"""Metrics by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from thalweg.tasks.losses import Loss
from thalweg.tasks.split import TaskError

__all__ = ["ACCURACY", "ERROR", "METRICS", "accuracy", "as_metric", "mae", "mse"]


@dataclass(frozen=True)
class Metric:
    """What results are compared by.

    Attributes:
        name: as tables print it.
        of: ``(outputs, targets) -> scalar tensor``, without side effects.
        higher_is_better: True for an accuracy, False for an error.
        percent: whether it is a fraction, to be printed in per cent.
        mean: whether it is a mean over samples, so that parts of a large set may be measured
            apart, which is faster. False is always right.
        nonnegative: whether it is never below 0, where intervals then end.
    """

    name: str
    of: Callable[[Any, Any], Tensor]
    higher_is_better: bool = True
    percent: bool = False
    mean: bool = False
    nonnegative: bool = False


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Share of the targets that are predicted right.

    Args:
        outputs: logits, ``(batch, ..., classes)``, of which the largest counts; or one logit for
            every target, of the shape of ``y`` or ``(batch, ..., 1)``, which says 1 above 0.
        y: class indices ``(batch, ...)``; 0 or 1 where there is one logit each.

    Raises:
        TaskError: for outputs of any other shape.
    """
    if outputs.shape == (*y.shape, 1):
        outputs = outputs.squeeze(-1)
    if outputs.shape == y.shape:
        right = (outputs > 0).to(outputs.dtype) == y
    elif outputs.shape[:-1] == y.shape and not y.is_floating_point():
        right = outputs.argmax(-1) == y
    else:
        raise TaskError(
            "metric",
            f"accuracy compares class indices with a number for every class, (batch, ..., "
            f"classes), or targets that are 0 or 1 with one number each; the outputs are "
            f"{tuple(outputs.shape)} and the targets {tuple(y.shape)}, {y.dtype}",
        )
    return right.to(outputs.dtype).mean()


def _apart(name: str, outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.shape != y.shape:
        raise TaskError(
            "metric",
            f"{name} compares outputs with targets of the same shape; the outputs are "
            f"{tuple(outputs.shape)} and the targets {tuple(y.shape)}",
        )
    return outputs - y


def mae(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of outputs and targets of one shape.

    Raises:
        TaskError: if they have not.
    """
    return _apart("mae", outputs, y).abs().mean()


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of outputs and targets of one shape.

    Raises:
        TaskError: if they have not.
    """
    return _apart("mse", outputs, y).square().mean()


ACCURACY = Metric("accuracy", accuracy, percent=True, mean=True)
ERROR = Metric("mean absolute error", mae, higher_is_better=False, mean=True, nonnegative=True)

# A function of whose name one of these is a part.
_ERRORS = {
    "error", "errors", "err", "loss", "mae", "mse", "rmse", "msle", "rmsle", "mape", "smape", "nll",
    "bce", "perplexity", "deviance", "brier", "ece", "wer", "cer", "distance", "regret",
}  # fmt: skip
_WORDS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

METRICS: dict[str, Metric] = {
    "accuracy": ACCURACY,
    "mae": ERROR,
    "mse": replace(ERROR, name="mean squared error", of=mse),
}


def as_metric(
    given: str | Metric | Callable[[Any, Any], Tensor] | None,
    targets: Any,
    loss: Loss | None = None,
) -> Metric:
    """The metric that a person means.

    Args:
        given: name, function or metric; None for the usual one of these targets and this loss:
            accuracy for integers and where the loss is ``bce``, else the mean absolute error.
        targets: of the training data.
        loss: what is trained with.

    Raises:
        TaskError: if there is none of that name, or it does not take such targets.
    """
    if isinstance(given, Metric):
        return given
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        if _ERRORS & set(map(str.lower, _WORDS.findall(name))):
            raise TaskError(
                "metric",
                f"of a function more is taken for better, and {name} sounds like an error; give "
                f"thalweg.Metric({name!r}, {name}, higher_is_better=False), or =True if more is "
                f"better indeed",
            )
        return Metric(name, given)
    if not isinstance(targets, Tensor):
        raise TaskError(
            "metric",
            f"{given!r} takes one tensor of targets, and this task has a "
            f"{type(targets).__name__} of them: give a function (outputs, targets) -> scalar",
        )
    numbers = targets.is_floating_point()
    binary = not numbers or bool(((targets == 0) | (targets == 1)).all())
    if given is None:
        classifies = not numbers or (binary and loss is not None and loss.name == "bce")
        given = "accuracy" if classifies else "mae"
    if given not in METRICS:
        near = get_close_matches(given, METRICS, 1)
        meant = f"did you mean {near[0]}? The metrics are" if near else "choose from"
        raise TaskError("metric", f"there is no metric {given!r}; {meant} {', '.join(METRICS)}")
    if given == "accuracy" and not binary:
        raise TaskError(
            "metric",
            "accuracy takes class indices, integers, or targets that are 0 or 1, and these are "
            "other numbers; take mae or mse, or turn class indices to integers by targets.long()",
        )
    if given != "accuracy" and not numbers:
        raise TaskError(
            "metric",
            f"{given} takes floating-point targets, and these are integers; take accuracy for "
            f"classes, or turn numbers to floating point by targets.float()",
        )
    return METRICS[given]
