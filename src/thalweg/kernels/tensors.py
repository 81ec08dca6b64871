"""How a rule runs on any dense torch tensor: the same maths as torch operations.

Slower than the CPU kernel, and takes what that cannot: other devices, half precision,
non-contiguous storage. Half precision is computed in float32 and rounded once, when it is stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.rules.rule import Row, Rule, prepare

__all__ = ["shift", "step"]


@torch.no_grad()
def step(rule: Rule, p: Tensor, g: Tensor, state: Sequence[Tensor], row: Row) -> None:
    """One step of a resolved rule on one tensor, in place.

    Args:
        rule: a resolved rule (`Rule.resolve`).
        p: parameter, any shape, floating point, any device.
        g: gradient, same shape, dtype and device.
        state: the rule's state tensors, the same again.
        row: `Rule.row` of this step; an entry may also be a tensor that broadcasts over ``p``, one
            value a replica.
    """
    sign, coupled, shrink, *coefficients = row
    stored = p, *state
    if p.dtype in (torch.float16, torch.bfloat16):
        p, g, state = p.float(), g.float(), [s.float() for s in state]
    # Zero times an infinite parameter would be NaN where torch.optim adds nothing.
    skip = isinstance(coupled, float) and coupled == 0
    decayed, prepared = (shrink * p, sign * g) if skip else prepare(p, g, sign, coupled, shrink)
    new = rule.update(decayed, prepared, *state, *coefficients)
    for old, value in zip(stored, new, strict=True):
        old.copy_(value)


@torch.no_grad()
def shift(rule: Rule, p: Tensor, state: Sequence[Tensor], row: Row) -> None:
    """Move a tensor, in place, to the point where the rule takes its gradient."""
    assert rule.point is not None
    p.copy_(rule.point(p, *state, *row[3:]))
