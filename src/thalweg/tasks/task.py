"""What is trained: a model factory, data in three parts, a loss and a metric."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["Metric", "Split", "Task"]


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        x: inputs, ``(samples, *features)``.
        y: targets, ``(samples, *)``.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """

    x: Shaped[Tensor, "samples *features"]
    y: Shaped[Tensor, "targets *target"]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(
                f"a Split needs as many targets as inputs, and at least one; it got {len(self.x)} "
                f"inputs and {len(self.y)} targets"
            )

    def __len__(self) -> int:
        """How many samples."""
        return len(self.x)

    def to(self, device: str) -> "Split":
        """The same on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Metric:
    """What results are compared by: a mean over samples of how well each is predicted.

    Attributes:
        name: as tables print it.
        of: ``(outputs, targets) -> scalar tensor``, a mean over the batch, without side effects.
        higher_is_better: True for an accuracy, False for an error.
        percent: whether it is a fraction, to be printed in per cent.
    """

    name: str
    of: Callable[[Tensor, Tensor], Float[Tensor, ""]]
    higher_is_better: bool = True
    percent: bool = False


@dataclass(frozen=True)
class Task:
    """A model, data, a loss and a metric.

    Attributes:
        name: one word, as typed.
        title: a few words, as reports print it.
        model: makes a freshly initialised module; called under a seed.
        train: what gradients come from.
        validation: what settings are chosen on.
        test: what the chosen settings are reported on.
        loss: ``(outputs, targets) -> scalar tensor``, a mean over the batch.
        metric: see `Metric`.
        target: the validation metric that counts as trained, for time to target; None for none.
        loss_name: as axes print it.
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    train: Split
    validation: Split
    test: Split
    loss: Callable[[Tensor, Tensor], Float[Tensor, ""]]
    metric: Metric
    target: float | None = None
    loss_name: str = field(default="loss")

    @cached_property
    def parameters(self) -> int:
        """How many trainable parameters the model has."""
        return sum(p.numel() for p in self.model().parameters() if p.requires_grad)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is trained: the data, the printed model, the names of loss and metric."""
        digest = sha256(f"{self.name} {self.model()} {self.loss_name} {self.metric.name}".encode())
        for split in (self.train, self.validation, self.test):
            for tensor in (split.x, split.y):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
