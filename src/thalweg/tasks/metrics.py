"""Metrics by name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from thalweg.tasks.task import Metric, TaskError

__all__ = ["ACCURACY", "ERROR", "METRICS", "as_metric"]

ACCURACY = Metric(
    "accuracy",
    lambda outputs, y: (outputs.argmax(-1) == y).to(outputs.dtype).mean(),
    percent=True,
)
ERROR = Metric(
    "mean absolute error",
    lambda outputs, y: (outputs - y).abs().mean(),
    higher_is_better=False,
)

METRICS: dict[str, Metric] = {"accuracy": ACCURACY, "mae": ERROR}


def as_metric(given: str | Metric | Callable[[Any, Any], Tensor] | None, targets: Any) -> Metric:
    """The metric that a person means.

    Args:
        given: name, function or metric; None for the usual one of these targets.
        targets: of the training data.

    Raises:
        TaskError: if there is none of that name.
    """
    if isinstance(given, Metric):
        return given
    if given is None:
        given = "mae" if targets.is_floating_point() else "accuracy"
    if callable(given):
        return Metric(getattr(given, "__name__", type(given).__name__), given)
    if given not in METRICS:
        raise TaskError("metric", f"there is no metric {given!r}; choose from {', '.join(METRICS)}")
    return METRICS[given]
