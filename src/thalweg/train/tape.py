"""A small network's passes on the tape that studies run on.

Torch spends some 5 µs on every operation and its gradient, whatever little there is to compute. On
the tape all operations of a step are one call of compiled code.
"""

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thalweg.replicas.program import Model, build
from thalweg.tasks import LOSSES, Task

__all__ = ["is_short", "shortcut"]

# Parameters times samples of a batch. On two cores the tape was twice as fast as torch at a fourth
# of it, 1.2 times at this, and 1.1 times at three times as many.
LARGEST = 1 << 24


def shortcut(
    task: Task, model: nn.Module, sizes: Collection[int]
) -> Callable[[Any, Any], Tensor | None] | None:
    """What computes the loss of a batch and sets the parameters' gradients, by a tape.

    A tape holds operations, and no Python between them: so it is for models that are made of
    torch's own layers alone, and losses that go by a name, where there is none that could matter.

    Args:
        task: for loss and data.
        model: in training mode, on the CPU; its parameters stay where they are.
        sizes: samples of the batches, at least one.

    Returns:
        ``(x, y) -> loss``, None for a batch of another shape; None where the step is not for it.
        Gradients of one shape of batch are the same tensors at every step.
    """
    if not is_short(task, model, max(sizes)):
        return None
    named = dict(model.named_parameters())
    parameters = list(named.values())
    stacks = [p.detach().unsqueeze(0) for p in parameters]
    training, evaluating = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    layout = Model(training, evaluating, tuple(named), ())
    lines = {}
    for size in sizes:
        batch = task.train[:size]
        line = build(task, layout, stacks, [], batch, True, "eager").line
        if line is None:
            return None
        results = line.results(1)
        (loss,), gradients = results[0], [g[0] for g in results[1:]]
        lines[tuple(t.shape for t in tree_leaves(batch))] = line, results, loss, gradients

    def run(x: Any, y: Any) -> Tensor | None:
        data = tree_leaves((x, y))
        found = lines.get(tuple(t.shape for t in data))
        if found is None:
            return None
        line, results, loss, gradients = found
        if line([*stacks, *data], 1, results) is None:
            return None
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        value: Tensor = loss.clone()
        return value

    return run


def is_short(task: Task, model: nn.Module, size: int) -> bool:
    """Whether a step with batches of that size is one for a tape.

    No code of a person's runs in it, nor anything but operations on float32, and it is so small
    that torch would not be faster.
    """
    of = task.loss.of
    known = {one.of.func if isinstance(one.of, partial) else one.of for one in LOSSES.values()}
    return (
        (of.func if isinstance(of, partial) else of) in known
        and next(model.buffers(), None) is None
        and all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
        and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
        and all(_is_torchs(part) for part in model.modules())
        and size * sum(p.numel() for p in model.parameters()) <= LARGEST
    )


def _is_torchs(part: nn.Module) -> bool:
    hooks = (
        part._forward_hooks,
        part._forward_pre_hooks,
        part._backward_hooks,
        part._backward_pre_hooks,
    )
    return type(part).__module__.startswith("torch.nn.modules.") and not any(hooks)
