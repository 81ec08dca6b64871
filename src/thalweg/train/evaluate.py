"""The loss and the metric of a model over one part of a task's data."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from thalweg.replicas.train import piece
from thalweg.tasks import Split, Task
from thalweg.tasks.trial import called
from thalweg.train.parallel import ALONE, Ranks
from thalweg.train.step import full

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        loss, metric: the task's, of all samples.
    """

    loss: float
    metric: float


@torch.no_grad()
def evaluate(
    module: nn.Module,
    task: Task,
    split: Split,
    *,
    ranks: Ranks = ALONE,
    precision: AbstractContextManager[Any] | None = None,
) -> Evaluation:
    """Evaluate a model, which is in evaluation mode meanwhile.

    Args:
        module: on the ranks' device.
        task: whose loss and metric.
        split: the part of its data; every rank gives all of it, and takes its share.
        ranks: who evaluates.
        precision: what forward passes run in, float32 by default.
    """
    training = module.training
    module.eval()
    ranks.share_buffers(module)
    inside = nullcontext() if precision is None else precision
    whole = not task.metric.mean
    size = piece(split, 1, len(split))
    kept, sums = [], torch.zeros(3, dtype=torch.float64, device=ranks.device)
    try:
        for first in range(0, len(split), size):
            (x, y), count = ranks.part(split[first : first + size])
            x, y = tree_map(lambda t: t.to(ranks.device, non_blocking=True), (x, y))
            with inside:
                outputs = full(called(module, x))
            if whole:
                rows = min(size, len(split) - first)
                kept.append((ranks.gather(outputs, rows), ranks.gather(y, rows)))
                continue
            if count:  # else a metric of nobody's sample may be NaN
                found = [task.loss.of(outputs, y), task.metric.of(outputs, y)]
                sums += count * torch.stack([*(f.double() for f in found), sums.new_ones(())])
    finally:
        module.train(training)
    if whole:
        outputs, y = tree_map(lambda *t: torch.cat(t), *kept)
        return Evaluation(float(task.loss.of(outputs, y)), float(task.metric.of(outputs, y)))
    loss, metric, samples = ranks.sum(sums)[0].tolist()
    return Evaluation(loss / samples, metric / samples)
