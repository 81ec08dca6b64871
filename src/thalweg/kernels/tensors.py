"""How a rule runs on any dense torch tensor: the same maths as torch operations.

Slower than the CPU kernel, and takes what that cannot: other devices, non-contiguous storage, rules
that need whole matrices. Half precision is computed in float32 and rounded once, when it is stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.kernels.codecs import DTYPES, HALF, computed, decoded, encoded
from thalweg.kernels.storage import SCALED
from thalweg.rules.rule import HEAD, Rule, Sums, decay, prepare

__all__ = ["DTYPES", "close", "measure", "opened", "shift", "step", "stepped"]


@torch.no_grad()
def measure(
    rule: Rule, p: Tensor, g: Tensor, state: Sequence[Tensor], row: Sums, lead: int = 0
) -> Sums:
    """Sums of a resolved rule's terms over a tensor, without its ``lead`` first dimensions.

    The other arguments are as `stepped` takes them.
    """
    assert rule.terms is not None
    if p.dtype in HALF:
        p, g, state = p.float(), g.float(), [s.float() for s in state]
    over = tuple(range(lead, p.ndim))
    terms = rule.terms(p, prepare(p, g, row), *state, *row[HEAD:])
    # Without dimensions torch would sum over all of them.
    return tuple(t.double().sum(over) if over else t.double() for t in terms)


@torch.no_grad()
def stepped(
    rule: Rule, p: Tensor, g: Tensor, state: Sequence[Tensor], row: Sums, extra: Sums = ()
) -> tuple[Tensor, ...]:
    """New parameter and state after one step of a resolved rule; float32 for half precision.

    Args:
        rule: a resolved rule (`Rule.resolve`).
        p: parameter, any shape, floating point, any device; ``(count, *shape)`` for a rule of whole
            tensors.
        g: gradient, same shape, dtype and device.
        state: the rule's state tensors.
        row: `Rule.row` of this step; an entry may also be a tensor that broadcasts over ``p``, one
            value a replica.
        extra: further coefficients (`Rule.go_on`).
    """
    if p.dtype in HALF:
        p, g, state = p.float(), g.float(), [s.float() for s in state]
    return rule.update(decay(p, row), prepare(p, g, row), *state, *row[HEAD:], *extra)


@torch.no_grad()
def step(
    rule: Rule, p: Tensor, g: Tensor, state: Sequence[Tensor], row: Sums, extra: Sums = ()
) -> None:
    """The same in place; the arguments are as `stepped` takes them."""
    new = stepped(rule, p, g, state, row, extra)
    for old, value in zip((p, *state), new, strict=True):
        old.copy_(value)


def opened(kind: str, stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A state as it is computed with, which is in float32 if the parameter's dtype is half."""
    if kind not in SCALED and stored.dtype == dtype:
        return stored
    return decoded(kind, stored, scale).to(computed(dtype))


@torch.no_grad()
def close(
    kind: str, stored: Tensor, scale: Tensor | None, value: Tensor, place: int, turn: int
) -> None:
    """Store a result in its way, in place."""
    made, its_scale = encoded(kind, value, place, turn)
    stored.copy_(made)
    if scale is not None and its_scale is not None:
        scale.copy_(its_scale)


@torch.no_grad()
def shift(rule: Rule, p: Tensor, state: Sequence[Tensor], row: Sums) -> None:
    """Move a tensor, in place, to the point where the rule takes its gradient."""
    assert rule.point is not None
    here = p
    if p.dtype in HALF:
        here, state = p.float(), [s.float() for s in state]
    p.copy_(rule.point(here, *state, *row[HEAD:]))
