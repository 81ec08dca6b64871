"""One step of a training: forward, backward and update."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from thalweg.tasks.trial import called
from thalweg.train.parallel import Ranks

__all__ = ["PRECISIONS", "Mark", "Share", "Step", "full", "in_precision", "unmarked"]

Mark = Callable[[str], None]  # called at the end of each part of a step
Share = tuple[Any, Any, float]  # a batch, and what its mean counts in that of the step

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def unmarked(part: str) -> None:
    """Nobody wants to know."""


def in_precision(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Where forward passes run in a precision of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Step:
    """Takes the optimizer's steps, each by the mean gradient of one or several batches.

    Args:
        module: in training mode.
        loss: ``(outputs, targets) -> scalar tensor``, a mean over the batch.
        optimizer: of the module's parameters.
        ranks: who else takes the step.
        precision: of forward passes, one of `PRECISIONS`; with float16 the loss is scaled, and a
            step whose gradients overflow is left out.
        clip: what happens to gradients before the update, if that is not the optimizer's own.
        needs_closure: whether the optimizer evaluates the gradient itself, elsewhere.

    Attributes:
        scaler: of the loss in float16, else None.
        shortcut: what computes a batch's loss and sets the gradients faster, where it takes the
            batch; None elsewhere.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        optimizer: Optimizer,
        ranks: Ranks,
        *,
        precision: str = "float32",
        clip: Callable[[], Any] | None = None,
        needs_closure: bool = False,
    ) -> None:
        self._module, self._loss, self._optimizer = module, loss, optimizer
        self._ranks, self._clip, self._needs_closure = ranks, clip, needs_closure
        self._cast = precision != "float32"
        self._precision = in_precision(precision, ranks.device)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.shortcut: Callable[[Any, Any], Tensor | None] | None = None
        self.scaler = torch.amp.GradScaler(ranks.device.type) if precision == "float16" else None

    def __call__(self, window: Sequence[Share], mark: Mark = unmarked) -> Tensor:
        """One step.

        Args:
            window: batches on the device.
            mark: told of "forward" and "backward", for each batch, and "optimizer".

        Returns:
            What the batches' losses come to, each by its share; on the device.
        """
        if self._needs_closure:

            def evaluate() -> Tensor:
                self.forget()
                return self.gradients(window, mark)

            loss: Tensor = self._optimizer.step(evaluate)  # type: ignore[arg-type,assignment]
        else:
            loss = self.gradients(window, mark)
            self.update()
        self.forget()
        mark("optimizer")
        return loss

    def gradients(self, window: Sequence[Share], mark: Mark = unmarked) -> Tensor:
        """Set the gradients of the parameters to the batches'; their loss."""
        if self.shortcut is not None and len(window) == 1:
            (x, y, _), *_ = window
            found = self.shortcut(x, y)
            if found is not None:
                mark("forward")
                mark("backward")
                return found
        total = None
        last = len(window) - 1
        for i, (x, y, share) in enumerate(window):
            with nullcontext() if i == last else self._ranks.without_sync(self._module):
                loss = self.loss(x, y)
                if share != 1.0:
                    loss = loss * share
                mark("forward")
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
                mark("backward")
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def loss(self, x: Any, y: Any) -> Tensor:
        """Of one batch, in float32 whatever precision the model runs in."""
        with self._precision:
            outputs = called(self._module, x)
        return self._loss(full(outputs) if self._cast else outputs, y)

    def update(self) -> None:
        """Move the parameters by their gradients."""
        if self.scaler is None:
            if self._clip is not None:
                self._clip()
            self._optimizer.step()
            return
        self.scaler.unscale_(self._optimizer)
        if self._clip is not None:
            self._clip()
        self.scaler.step(self._optimizer)
        self.scaler.update()

    def forget(self) -> None:
        """Leave the parameters without gradients."""
        # Optimizer.zero_grad takes longer than the rest of a small model's step leaves for it.
        for p in self._parameters:
            p.grad = None


def full(outputs: Any) -> Any:
    """Outputs in float32 where they are in half precision."""
    half = (torch.bfloat16, torch.float16)
    return tree_map(
        lambda t: t.float() if isinstance(t, Tensor) and t.dtype in half else t, outputs
    )
