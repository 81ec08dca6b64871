"""How much a step computes and moves, and what that comes to a second."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from thalweg.train.profile.memory import Memory
from thalweg.train.step import Share, Step

__all__ = ["Work", "flops_of", "moved"]


@dataclass(frozen=True)
class Work:
    """What a part of a step does at the least.

    Attributes:
        flops: floating point operations.
        bytes: that are read or written.
    """

    flops: int
    bytes: int


def flops_of(step: Step, batch: Share) -> tuple[int, int]:
    """Floating point operations of the forward and of the backward pass; gradients are added.

    Counted are matrix products, convolutions and attention, two for each multiplication and
    addition, by the shapes that `torch.utils.flop_counter` sees; not what is elementwise, nor what
    code outside of torch does.
    """
    x, y, _ = batch
    with FlopCounterMode(display=False) as counter:
        loss = step.loss(x, y)
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
    return forward, counter.get_total_flops() - forward


def moved(memory: Memory) -> dict[str, int]:
    """Bytes that each part of a step reads and writes at the least.

    Each tensor counts once for each part that needs it: the forward pass reads batch and parameters
    and writes activations; the backward pass reads both again and writes gradients; the optimizer
    reads gradients, and reads and writes parameters and its state, as its rule does in one pass.
    What lies in a cache in between comes cheaper; what is read several times costs more.
    """
    m = memory
    return {
        "forward": m.batch + m.parameters + m.activations,
        "backward": m.batch + m.parameters + m.activations + m.gradients,
        "optimizer": m.gradients + 2 * m.parameters + 2 * m.optimizer_state,
    }


def dtype_of(precision: str) -> torch.dtype:
    """What products are computed in."""
    found: torch.dtype = getattr(torch, precision)
    return found
