"""What is trained: a model factory, data in three parts, a loss and a metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.rules.code import digest
from thalweg.tasks.data import DEFAULT_BATCH, parts
from thalweg.tasks.losses import Loss, as_loss
from thalweg.tasks.metrics import Metric, as_metric
from thalweg.tasks.split import Split, TaskError

__all__ = ["Task"]


@dataclass(frozen=True, init=False)
class Task:
    """A model, data, a loss and a metric.

    Args:
        model: makes a freshly initialised module; called under a seed. A module with several
            inputs is called with a tuple's parts, or with a dictionary's by name.
        train: what gradients come from: ``(x, y)`` of tensors or arrays, a `Split`, a torch
            ``Dataset`` or ``DataLoader`` (whose ``collate_fn`` is applied to the whole of its data
            set, once), or the path of an ``.npz`` file with arrays ``x`` and ``y``.
        validation: what settings are chosen on, likewise; by default a fifth of all samples,
            taken from those for training, in fixed random order and by class.
        test: what the chosen settings are reported on, likewise.
        loss: name in `thalweg.tasks.LOSSES`, with ``=value`` for one with a parameter
            (``label_smoothing=0.2``); a function ``(outputs, targets) -> scalar tensor`` that is a
            mean over the batch, or a `Loss`. By default cross-entropy for targets that are
            integers, the mean squared error for others.
        metric: name in `thalweg.tasks.METRICS`, a function ``(outputs, targets) -> scalar tensor``
            of which more is better, or a `Metric`, which says whether it is; of a whole set, so
            that it need not be a mean. By default accuracy for integers and for the loss ``bce``,
            the mean absolute error for others.
        name: one word, as typed.
        title: a few words, as reports print it; the name by default.
        target: the validation metric that counts as trained, for time to target; None for none.
        batch_size: samples a step unless told otherwise; that of a loader by default, or 32.
        notes: what was done to the data, a sentence each, for a careful reader.
        encodings: the same data encoded in other ways, this task among them, by name; a study
            takes them as levels of a factor.

    Attributes are the arguments, each in the form documented last.

    Raises:
        TaskError: for data, a loss or a metric that cannot be used, naming it.
    """

    model: Callable[[], nn.Module]
    train: Split
    validation: Split
    test: Split
    loss: Loss
    metric: Metric
    name: str
    title: str
    target: float | None
    batch_size: int
    notes: tuple[str, ...]
    encodings: Mapping[str, "Task"]

    def __init__(
        self,
        *,
        model: Callable[[], nn.Module],
        train: Any,
        validation: Any = None,
        test: Any = None,
        loss: "str | Loss | Callable[[Any, Any], Tensor] | None" = None,
        metric: "str | Metric | Callable[[Any, Any], Tensor] | None" = None,
        name: str = "task",
        title: str = "",
        target: float | None = None,
        batch_size: int | None = None,
        notes: tuple[str, ...] = (),
        encodings: "Mapping[str, Task] | None" = None,
    ) -> None:
        if not callable(model):
            raise TaskError("model", f"must be a function that makes a module, got {model!r}")
        if isinstance(model, nn.Module):
            raise TaskError(
                "model",
                f"must be a function that makes a fresh module, as each run starts from its own "
                f"weights; this is a {type(model).__name__} itself: give the function that made it",
            )
        found = parts(train, validation, test)
        fields = {
            "model": model,
            "train": found.train,
            "validation": found.validation,
            "test": found.test,
            "loss": (chosen := as_loss(loss, found.train.y)),
            "metric": as_metric(metric, found.train.y, chosen),
            "name": name,
            "title": title or name,
            "target": target,
            "batch_size": batch_size or min(found.batch_size or DEFAULT_BATCH, len(found.train)),
            "notes": tuple(dict.fromkeys((*notes, *found.notes, *_direction(metric)))),
            "encodings": encodings or {},
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def loss_of(self, given: "str | Loss | Callable[[Any, Any], Tensor] | None") -> Loss:
        """The loss that a person means, for these targets.

        Raises:
            TaskError: if there is none of that name, or it does not take such targets.
        """
        return as_loss(given, self.train.y)

    def with_loss(self, loss: "str | Loss | Callable[[Any, Any], Tensor]") -> "Task":
        """The same with another loss.

        Raises:
            TaskError: if there is none of that name.
        """
        return replace(self, loss=loss)  # type: ignore[arg-type]

    @cached_property
    def parameters(self) -> int:
        """How many trainable parameters the model has."""
        with torch.random.fork_rng(devices=[]):
            return sum(p.numel() for p in self.model().parameters() if p.requires_grad)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is trained: the data, the model, the loss and the metric, by their code."""
        code = digest((self.model, self.loss.of, self.metric.of))
        with torch.random.fork_rng(devices=[]):  # whose numbers are the caller's
            digested = sha256(f"{self.name} {self.model()} {code}".encode())
        for split in (self.train, self.validation, self.test):
            for tensor in split.tensors:
                digested.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digested.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        return digested.hexdigest()[:16]


def _direction(metric: Any) -> list[str]:
    """What is assumed of a metric that says nothing of it."""
    if isinstance(metric, (str, Metric)) or metric is None:
        return []
    name = getattr(metric, "__name__", type(metric).__name__)
    return [
        f"more of the metric {name} is taken for better; for an error give thalweg.Metric(NAME, "
        f"FUNCTION, higher_is_better=False)"
    ]
