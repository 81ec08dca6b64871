"""Losses by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from thalweg.tasks.split import TaskError

__all__ = [
    "LOSSES",
    "alone",
    "as_loss",
    "bce",
    "cross_entropy",
    "focal",
    "huber",
    "label_smoothing",
    "mae",
    "mse",
]


@dataclass(frozen=True)
class Loss:
    """What training makes small.

    Attributes:
        name: one word, as typed.
        of: ``(outputs, targets) -> scalar tensor``, a mean over the batch.
        label: as axes print it; the name by default.
    """

    name: str
    of: Callable[[Any, Any], Tensor]
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)


# They are written with operations that the replicas' tape has, with which they train several times
# faster than with some of torch's own functions; the values are those of torch's.

# From here on softplus is its argument in float64 too: exp(-40) is less than its rounding.
_STRAIGHT = 40.0

# Torch leaves targets of one value out, by default -100; this one nobody has.
_NO_CLASS = -(2**62)


def _chosen(name: str, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the true classes, and where they stand: ``(batch, ..., 1)`` both."""
    _check_classes(name, outputs, y)
    index = y.long().unsqueeze(-1)
    return outputs.gather(-1, index), index


def _check_classes(name: str, outputs: Tensor, y: Tensor) -> None:
    if y.is_floating_point():
        raise TaskError("loss", _not_indices(name, y))
    if outputs.shape[-1] == 1 and y.shape in (outputs.shape, outputs.shape[:-1]):
        of_numbers = "targets.float()" + (".unsqueeze(-1)" if y.shape != outputs.shape else "")
        take = f"give {of_numbers}" if _KINDS[name].numbers else f"take mse and {of_numbers}"
        raise TaskError(
            "loss",
            f"{name} chooses between classes, but the model has one output a sample, "
            f"{tuple(outputs.shape)}; for a regression {take}, for targets that are 0 or 1 "
            f"take bce",
        )
    if outputs.shape[:-1] != y.shape:
        mend = (
            "; take the targets' last dimension away by targets.squeeze(-1)"
            if y.shape[-1:] == (1,) and outputs.shape[:-1] == y.shape[:-1]
            else "; move the classes to the last dimension by outputs.movedim(1, -1)"
            if outputs.ndim > 2 and (len(outputs), *outputs.shape[2:]) == y.shape
            else f"; turn one-hot vectors to class indices by {_INDICES}"
            if outputs.shape == y.shape
            else ""
        )
        raise TaskError(
            "loss",
            f"{name} takes targets of shape (batch, ...) and outputs of shape (batch, ..., "
            f"classes), a number for every class; the targets are {tuple(y.shape)} and the outputs "
            f"{tuple(outputs.shape)}{mend}",
        )


_INDICES = "targets.argmax(-1)"


def _not_indices(name: str, y: Tensor, otherwise: str = "") -> str:
    """Why a loss does not take these targets; ``otherwise`` says how they become classes."""
    mend = (
        f"turn one-hot vectors to class indices by {_INDICES}"
        if y.ndim > 1 and y.shape[-1] > 1
        else "turn class indices to integers by targets.long()"
    )
    return (
        f"{name} takes integer class indices as targets, and these are "
        f"{str(y.dtype).removeprefix('torch.')}; for these take {_listed(_REGRESSION)}, or "
        f"{otherwise or mend}"
    )


def _check_same(name: str, outputs: Tensor, y: Tensor) -> None:
    if outputs.shape != y.shape:
        mend = (
            "targets.unsqueeze(-1)"
            if (*y.shape, 1) == outputs.shape
            else "outputs.squeeze(-1) at the end of the model"
            if (*outputs.shape, 1) == y.shape
            else "targets.reshape(outputs.shape)"
            if outputs.numel() == y.numel()
            else "a model with as many outputs as there are targets"
        )
        raise TaskError(
            "loss",
            f"{name} compares outputs with targets of the same shape; the outputs are "
            f"{tuple(outputs.shape)} and the targets {tuple(y.shape)}: give {mend}",
        )


def _one_hot(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(outputs).scatter(-1, y.long().unsqueeze(-1), 1.0)


def _compared(name: str, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a loss of differences compares: outputs and targets, or probabilities and one-hot."""
    if y.is_floating_point():
        _check_same(name, outputs, y)
        return outputs, y
    _check_classes(name, outputs, y)
    return outputs.softmax(-1), _one_hot(outputs, y)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits and class indices.

    The same value as `torch.nn.functional.cross_entropy` without its options, whose masks cost
    replicas a third of a step.

    Args:
        outputs: logits, ``(batch, ..., classes)``.
        y: class indices, integers, ``(batch, ...)``.

    Raises:
        TaskError: for targets of another type or shape.
    """
    true, _ = _chosen("cross_entropy", outputs, y)
    return (outputs.logsumexp(-1) - true.squeeze(-1)).mean()


def _torchs_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """The same by torch's own function."""
    _check_classes("cross_entropy", outputs, y)
    if outputs.ndim > 2:
        outputs = outputs.movedim(-1, 1)
    return functional.cross_entropy(outputs, y.long(), ignore_index=_NO_CLASS)


def alone(loss: Loss) -> Callable[[Any, Any], Tensor]:
    """What computes a loss fastest where one model trains: torch's own function, if there is one.

    Its values are those of ``loss.of`` within rounding.
    """
    return _torchs_cross_entropy if loss.of is cross_entropy else loss.of


def label_smoothing(outputs: Tensor, y: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross-entropy against the one-hot target mixed with the uniform distribution.

    The target has ``1 - smoothing + smoothing / classes`` for the true class and ``smoothing /
    classes`` for every other (Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567), as
    in `torch.nn.functional.cross_entropy` with ``label_smoothing``.

    Args:
        outputs: as `cross_entropy` takes them.
        y: likewise.
        smoothing: share of the uniform distribution, 0 to below 1.

    Raises:
        TaskError: for targets of another type or shape.
    """
    true, _ = _chosen("label_smoothing", outputs, y)
    target = (1 - smoothing) * true.squeeze(-1) + smoothing * outputs.mean(-1)
    return (outputs.logsumexp(-1) - target).mean()


def focal(outputs: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss: ``-(1 - p)**gamma * log(p)``, where ``p`` is the true class's probability.

    Samples that are classified well count less (Lin et al. 2017, equation 4,
    https://arxiv.org/abs/1708.02002); with ``gamma=0`` it is the cross-entropy.

    Args:
        outputs: as `cross_entropy` takes them.
        y: likewise.
        gamma: focusing parameter, at least 0.

    Raises:
        TaskError: for targets of another type or shape.
    """
    true, index = _chosen("focal", outputs, y)
    others = outputs.scatter(-1, index, float("-inf")).logsumexp(-1)
    # p is the sigmoid of the margin. Of 1 - p itself nothing is left where p is almost 1, and the
    # derivative of its power is infinite there for gamma below 1.
    margin = true.squeeze(-1) - others
    weight = (-gamma * functional.softplus(margin, threshold=_STRAIGHT)).exp()
    return (weight * functional.softplus(-margin, threshold=_STRAIGHT)).mean()


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error.

    Args:
        outputs: predictions of the shape of ``y``, or logits ``(batch, ..., classes)``.
        y: floating point; or class indices ``(batch, ...)``, integers, whose one-hot vectors are
            then compared with the logits' softmax (mean over classes as over samples).

    Raises:
        TaskError: for targets of another shape.
    """
    return functional.mse_loss(*_compared("mse", outputs, y))


def mae(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error, of what `mse` takes.

    Raises:
        TaskError: for targets of another shape.
    """
    return functional.l1_loss(*_compared("mae", outputs, y))


def huber(outputs: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
    """Mean of Huber's loss, of what `mse` takes.

    Half the squared error of errors up to ``delta``, and from there on the line that continues it
    (Huber 1964, https://doi.org/10.1214/aoms/1177703732). Between probabilities no error exceeds
    1, so that with ``delta=1`` and class indices it is half of `mse`.

    Args:
        outputs: as `mse` takes them.
        y: likewise.
        delta: in units of the targets, above 0.

    Raises:
        TaskError: for targets of another shape.
    """
    return functional.huber_loss(*_compared("huber", outputs, y), delta=delta)


def bce(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits, over all of them.

    Args:
        outputs: logits: of the shape of ``y``; for integer targets also ``(batch, ..., 1)``, or
            ``(batch, ..., classes)`` for each class against the rest.
        y: probabilities, floating point, 0 to 1; or integers ``(batch, ...)``: 0 or 1 with one
            logit a sample, class indices with several.

    Raises:
        TaskError: for targets of another shape.
    """
    if not y.is_floating_point():
        if (*y.shape, 1) == outputs.shape:
            y = y.unsqueeze(-1)
        if y.shape == outputs.shape and y.shape[1:] in ((), (1,)):
            # By way of two classes, so that any other is out of range, as everywhere.
            pair = outputs.new_zeros((*y.shape, 2))
            y = pair.scatter(-1, y.long().unsqueeze(-1), 1.0).select(-1, 1)
        else:
            _check_classes("bce", outputs, y)
            y = _one_hot(outputs, y)
    _check_same("bce", outputs, y)
    return (functional.softplus(outputs, threshold=_STRAIGHT) - outputs * y).mean()


@dataclass(frozen=True)
class _Kind:
    """A loss as it is asked for by name.

    Attributes:
        of: see `Loss`; with a parameter, if it has one, by the name ``parameter``.
        label: see `Loss`.
        indices, numbers: whether it takes class indices, and floating-point targets.
        parameter, default: of its one parameter, if it has one.
        symbol: the parameter's, for the label.
        least, most: its range; ``least`` is in it where ``closed``, ``most`` is not.
    """

    of: Callable[..., Tensor]
    label: str
    indices: bool = True
    numbers: bool = True
    parameter: str = ""
    default: float = 0.0
    symbol: str = ""
    least: float = 0.0
    closed: bool = True
    most: float = float("inf")

    def loss(self, name: str, value: float | None = None) -> Loss:
        """With a value of the parameter; None for the default."""
        if value is None or value == self.default:
            return Loss(name, self.of, self.label)
        typed = str(value).removesuffix(".0")
        of = partial(self.of, **{self.parameter: value})
        return Loss(f"{name}={typed}", of, f"{self.label} ({self.symbol} = {typed})")

    @property
    def range(self) -> str:
        """Which values the parameter takes, in words."""
        least = f"{'at least' if self.closed else 'above'} {self.least:g}"
        return f"{least} and below {self.most:g}" if isfinite(self.most) else least

    def takes(self, value: float) -> bool:
        """Whether a value of the parameter is in its range."""
        above = value >= self.least if self.closed else value > self.least
        return above and value < self.most


_KINDS: dict[str, _Kind] = {
    "cross_entropy": _Kind(cross_entropy, "cross-entropy", numbers=False),
    "mse": _Kind(mse, "mean squared error"),
    "mae": _Kind(mae, "mean absolute error"),
    "huber": _Kind(
        huber, "Huber loss", parameter="delta", default=1.0, symbol="δ", closed=False
    ),
    "bce": _Kind(bce, "binary cross-entropy"),
    "label_smoothing": _Kind(
        label_smoothing, "cross-entropy with smoothed labels", numbers=False,
        parameter="smoothing", default=0.1, symbol="ε", most=1.0,
    ),
    "focal": _Kind(
        focal, "focal loss", numbers=False, parameter="gamma", default=2.0, symbol="γ"
    ),
}  # fmt: skip
_REGRESSION = [name for name, kind in _KINDS.items() if kind.numbers]

LOSSES: dict[str, Loss] = {name: kind.loss(name) for name, kind in _KINDS.items()}


def as_loss(
    given: str | Loss | Callable[[Any, Any], Tensor] | None, targets: Any, otherwise: str = ""
) -> Loss:
    """The loss that a person means.

    Args:
        given: name, with ``=value`` for one with a parameter (``focal=1.5``); a function or a
            loss; None for the usual one of these targets.
        targets: of the training data.
        otherwise: how a person makes classes of numbers, where it is not by tensors.

    Raises:
        TaskError: if there is none of that name, or it does not take this value or such targets.
    """
    if isinstance(given, Loss):
        return given
    if callable(given):
        return Loss(getattr(given, "__name__", type(given).__name__), given)
    if not isinstance(targets, Tensor):
        raise TaskError(
            "loss",
            f"{given!r} takes one tensor of targets, and this task has a "
            f"{type(targets).__name__} of them: give a function (outputs, targets) -> scalar",
        )
    numbers = targets.is_floating_point()
    if given is None:
        given = "mse" if numbers else "cross_entropy"
    if not isinstance(given, str):
        raise TaskError("loss", f"must be a name or a function, got {given!r}")
    name, equals, typed = given.partition("=")
    name = name.strip()
    if name not in _KINDS:
        near = get_close_matches(name, _KINDS, 1)
        meant = f"did you mean {near[0]}? The losses are" if near else "choose from"
        raise TaskError("loss", f"there is no loss {name!r}; {meant} {', '.join(_KINDS)}")
    kind = _KINDS[name]
    value = _value(given, kind, typed) if equals else None
    if numbers and not kind.numbers:
        raise TaskError("loss", _not_indices(name, targets, otherwise))
    if kind.of is bce:
        _check_binary(targets)
    return kind.loss(name, value)


def _value(given: str, kind: _Kind, typed: str) -> float:
    if not kind.parameter:
        raise TaskError("loss", f"{given!r}: this loss has no parameter; give its name alone")
    try:
        value = float(typed)
    except ValueError:
        value = float("nan")
    if not kind.takes(value):
        raise TaskError(
            "loss", f"{given!r}: {kind.parameter} must be a number {kind.range}, got {typed!r}"
        )
    return value


def _check_binary(targets: Tensor) -> None:
    """Whether the targets of a binary cross-entropy are probabilities, or indices."""
    if not targets.is_floating_point() and targets.shape[1:] != (1,):
        return  # as many classes as the model has outputs
    apart = (targets < 0) | (targets > 1)
    if bool(apart.any()):
        raise TaskError(
            "loss",
            f"bce takes targets between 0 and 1, and one of these is {targets[apart][0].item():g}",
        )


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
