"""Losses by name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from thalweg.tasks.task import Loss, TaskError

__all__ = ["LOSSES", "as_loss", "cross_entropy"]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``(batch, classes)`` and class indices ``(batch,)``.

    The same value as `torch.nn.functional.cross_entropy` without its options, whose masks cost
    replicas a third of a step.
    """
    return (outputs.logsumexp(-1) - outputs.gather(-1, y.unsqueeze(-1)).squeeze(-1)).mean()


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(outputs, y)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, "cross-entropy"),
        Loss("mse", mse, "mean squared error"),
    )
}


def as_loss(given: str | Loss | Callable[[Any, Any], Tensor] | None, targets: Any) -> Loss:
    """The loss that a person means.

    Args:
        given: name, function or loss; None for the usual one of these targets.
        targets: of the training data.

    Raises:
        TaskError: if there is none of that name.
    """
    if isinstance(given, Loss):
        return given
    if given is None:
        given = "mse" if targets.is_floating_point() else "cross_entropy"
    if callable(given):
        return Loss(getattr(given, "__name__", type(given).__name__), given)
    if given not in LOSSES:
        raise TaskError("loss", f"there is no loss {given!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[given]
