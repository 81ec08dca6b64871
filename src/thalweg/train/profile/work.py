"""How much a step computes and moves, and what that comes to a second."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from thalweg.train.profile.memory import Memory

__all__ = ["Work", "flops_of", "moved", "work_of"]


@dataclass(frozen=True)
class Work:
    """What a part of a step does at the least.

    Attributes:
        flops: floating point operations.
        bytes: that are read or written.
    """

    flops: int
    bytes: int


def flops_of(loss: Callable[[], Tensor]) -> dict[str, int]:
    """Floating point operations of the parts of a step; gradients are added to the parameters'.

    Counted are matrix products, convolutions and attention, two for each multiplication and
    addition, by the shapes that `torch.utils.flop_counter` sees; not what is elementwise, nor the
    optimizer, nor what code outside of torch does.

    Args:
        loss: of a batch, by a forward pass.
    """
    with FlopCounterMode(display=False) as counter:
        found = loss()
        forward = counter.get_total_flops()
        found.backward()  # type: ignore[no-untyped-call]
        both = counter.get_total_flops()
    return {"forward": forward, "backward": both - forward, "optimizer": 0}


def work_of(flops: Mapping[str, int], memory: Memory, share: float) -> dict[str, Work]:
    """What the parts of an average step do.

    Args:
        flops: of a full batch (`flops_of`).
        memory: with a full batch.
        share: of a full batch that there is on average, as the last of an epoch may be smaller.
    """
    samples = replace(
        memory, batch=round(share * memory.batch), activations=round(share * memory.activations)
    )
    size = moved(samples)
    return {part: Work(round(share * flops[part]), size[part]) for part in size}


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
