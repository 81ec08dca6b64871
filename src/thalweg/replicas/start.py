"""Where training starts: the loss and its slope at the initial weights."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from thalweg.replicas.program import Program, build, stack
from thalweg.replicas.train import RandomStream, piece
from thalweg.tasks import Task

__all__ = ["SAMPLES", "at_start"]

# Of a larger training set as many, drawn at random: their mean gradient is close to that of all.
SAMPLES = 8192


def at_start(
    task: Task, seeds: Sequence[int], device: str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss, and norm of its gradient over all parameters, before any step.

    Both are of the training data, or of `SAMPLES` of a larger set; a model with batch
    normalisation sees these in as few batches as memory allows.

    Args:
        task: whose model and loss.
        seeds: of initial weights, one or more.
        device: as torch names it.

    Returns:
        The losses and the norms, ``(seeds,)`` each.
    """
    model, parameters, constants = stack(task, seeds, device)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    size = piece(task.train, len(seeds), len(order))
    losses = torch.zeros(len(seeds), dtype=torch.float64)
    gradients = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    programs: dict[int, Program] = {}
    for index in torch.split(order, size):
        x, y = task.train[index]
        batch = tree_map(lambda t: t.to(device), (x, y))
        if len(index) not in programs:  # passes are of one shape; the last batch may be another
            programs[len(index)] = build(
                task, model, parameters, constants, batch, shared=True, backend="eager"
            )
        program = programs[len(index)]
        share = len(index) / len(order)
        with RandomStream(0):
            loss, found, _ = program.step(parameters, constants, *batch)
        losses += share * loss.double().cpu()
        for total, gradient in zip(gradients, found, strict=True):
            total += share * gradient.double().cpu()
    squares = sum(g.flatten(1).square().sum(1) for g in gradients)
    return losses.numpy(), torch.as_tensor(squares).sqrt().numpy()
