"""The ways of storing of `thalweg.kernels.storage` in torch operations.

For whatever the CPU kernel does not take; apart from it, because a process that only compiles
kernels need not import torch.
"""

import torch
from torch import Tensor

from thalweg.kernels.storage import (
    _CUT,
    _GOLDEN,
    _GREATEST,
    _INFINITE,
    _LEAST,
    _NAN,
    _OFFSET,
    _SIGNS,
    BFLOAT16,
    CHUNK,
    FLOAT16,
    RANDOM16,
    SCALED,
    SIGNED8,
    UNSIGNED8,
)

__all__ = ["DTYPES", "HALF", "computed", "decoded", "encoded"]

HALF = (torch.float16, torch.bfloat16)

DTYPES = {
    BFLOAT16: torch.bfloat16,
    RANDOM16: torch.bfloat16,
    FLOAT16: torch.float16,
    SIGNED8: torch.int8,
    UNSIGNED8: torch.uint8,
}


def computed(dtype: torch.dtype) -> torch.dtype:
    """In which dtype the step of a parameter of a dtype is computed."""
    return torch.float32 if dtype in HALF else dtype


def decoded(kind: str, stored: Tensor, scale: Tensor | None) -> Tensor:
    """What a stored tensor stands for, float32 of the same shape, by torch operations.

    Args:
        kind: way of storing.
        stored: of any shape, of its dtype in `DTYPES`.
        scale: float32 ``(scales(stored.numel()),)`` for the ways in `SCALED`; with a dimension
            before that, as `encoded` makes it, for a stack of tensors.
    """
    if kind not in SCALED:
        return stored.float()
    assert scale is not None
    offset, code = _offset(kind, stored.device), stored.view(torch.uint8).int()
    size = code & (0xFF ^ _SIGNS[kind])
    z = ((size << _CUT) + offset.view(torch.int32)).view(torch.float32)
    plain = (z - offset) * _spread(scale, stored)
    return torch.where((code & _SIGNS[kind]) != 0, -plain, plain)


def encoded(
    kind: str,
    values: Tensor,
    place: int | Tensor = 0,
    turn: int | Tensor = 0,
    stacked: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Values as they are stored, and their scales where they have some.

    Args:
        kind: way of storing.
        values: of any shape; what is rounded at random or scaled goes through float32.
        place: of `seeds`; what rounds at random rounds the same way for the same seeds.
        turn: of `seeds`. Both are numbers or int64 tensors without dimensions.
        stacked: they are ``(count, *shape)``, tensors with scales of their own.
    """
    if kind not in (RANDOM16, *SCALED):
        return values.to(DTYPES.get(kind, values.dtype)), None
    values = values.float()
    if kind == RANDOM16:
        noise = _noises(place, turn, values) >> 16
        rounded = (_as_bits(values) + noise) & 0xFFFF0000
        return torch.where(values.isnan(), values, _as_numbers(rounded)).to(torch.bfloat16), None
    rows = values.flatten(1) if stacked else values.flatten()
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % CHUNK))
    largest = (_as_bits(padded) & 0x7FFFFFFF).unflatten(-1, (-1, CHUNK)).amax(-1)  # type: ignore[no-untyped-call]
    power = (largest & _INFINITE).clamp(min=_LEAST)
    scale = _as_numbers(power.where(power <= _GREATEST, _NAN))
    inverse = _spread(_as_numbers((254 << 23) - power), values)
    offset = _offset(kind, values.device)
    z = _as_bits(values.abs() * inverse + offset) - _as_bits(offset)
    code = ((z + (_noises(place, turn, values) >> (32 - _CUT))) >> _CUT) & 0xFF
    if kind == UNSIGNED8:
        code = torch.where(values > 0, code.clamp(min=1), code)
    code = code + ((_as_bits(values) >> 24) & _SIGNS[kind])
    return code.to(torch.uint8).view(DTYPES[kind]), scale


def _offset(kind: str, device: torch.device) -> Tensor:
    # Filled in, for a copy from the host would be waited for.
    return torch.full((), _OFFSET[kind], dtype=torch.float32, device=device)


def _as_bits(numbers: Tensor) -> Tensor:
    """Bits of float32, as int64 that are not negative."""
    return numbers.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def _as_numbers(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _spread(scale: Tensor, like: Tensor) -> Tensor:
    """To every element the scale of its chunk."""
    each = like.numel() // scale.shape[:-1].numel()  # of a stack's tensors
    return scale.repeat_interleave(CHUNK, -1)[..., :each].reshape(like.shape)


def _noises(place: int | Tensor, turn: int | Tensor, like: Tensor) -> Tensor:
    """32 random bits for every element, as the compiled encoders have them, int64."""
    mask = 0xFFFFFFFF
    i = torch.arange(like.numel(), device=like.device).view(like.shape)
    x = (place + i * _GOLDEN) & mask
    return ((x ^ (x >> 13)) * 0x846CA68B + turn) & mask
