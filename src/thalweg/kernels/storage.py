"""How numbers lie in memory where that is not as they are computed: half precision, 8 bits.

Each way of storing has a decoder and an encoder in compiled code, for a chunk of at most `CHUNK`
elements, and the same in torch operations for whatever the CPU kernel does not take.

Eight bits hold a moment block-wise: every `CHUNK` elements in a row share a float32 scale, their
largest absolute value a. With a sign, code k in -127 to 127 stands for ``a sign(k) (k / 127)^2``;
without, k in 0 to 255 for ``a (k / 255)^4``: small numbers get finer steps, as in the dynamic
quantisation of Dettmers et al. (2022), arXiv:2110.02861, but by arithmetic that vectorises. Codes
are rounded up or down at random, so that a moving average can move by less than a step of its code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from torch import Tensor

from thalweg.kernels.memory import INNER, span

__all__ = [
    "CHUNK",
    "DECODE",
    "DTYPES",
    "ENCODE",
    "NATIVE",
    "SCALED",
    "decoded",
    "encoded",
    "scales",
]

CHUNK = 256  # elements that share a scale

# Ways of storing.
NATIVE, BFLOAT16, FLOAT16, SIGNED8, UNSIGNED8 = "", "bfloat16", "float16", "signed8", "unsigned8"
SCALED = (SIGNED8, UNSIGNED8)

DTYPES = {
    BFLOAT16: torch.bfloat16,
    FLOAT16: torch.float16,
    SIGNED8: torch.int8,
    UNSIGNED8: torch.uint8,
}


def scales(elements: int) -> int:
    """How many scales a tensor of so many elements has."""
    return -(-elements // CHUNK)


@intrinsic
def _bits(typing_context: Any, number: Any) -> Any:
    """The bits of a float32 as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _number(typing_context: Any, bits: Any) -> Any:
    """The float32 that has these bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _from_half(typing_context: Any, bits: Any) -> Any:
    """The float32 of the bits of a float16."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _to_half(typing_context: Any, number: Any) -> Any:
    """The bits of the float16 nearest to a float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@register_jitable(**INNER)
def _random(seed, i):
    """32 bits that look random, the same for the same seed and place (Wellons' lowbias32)."""
    x = np.uint32(seed) + np.uint32(i) * np.uint32(0x9E3779B1)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@register_jitable(**INNER)
def _uniform(seed, i):
    """A float32 in [0, 1)."""
    return np.float32(np.int32(_random(seed, i) >> np.uint32(8))) * np.float32(2**-24)


# A decoder writes n elements, from the one numbered `first`, of the memory at `address` into
# `work`; an encoder writes them back. `scale` is the address of the scales.


@register_jitable(**INNER)
def _decode_bfloat16(address, scale, work, first, n):
    source = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        work[i] = _number(np.uint32(source[i]) << np.uint32(16))


@register_jitable(**INNER)
def _encode_bfloat16(address, scale, work, first, n, seed):
    target = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        bits = _bits(work[i])
        even = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint16(even >> np.uint32(16))
        target[i] = rounded if work[i] == work[i] else np.uint16(0x7FC0)


@register_jitable(**INNER)
def _encode_bfloat16_at_random(address, scale, work, first, n, seed):
    target = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        noise = _random(seed, first + i) & np.uint32(0xFFFF)
        rounded = np.uint16((_bits(work[i]) + noise) >> np.uint32(16))
        target[i] = rounded if work[i] == work[i] else np.uint16(0x7FC0)


@register_jitable(**INNER)
def _decode_float16(address, scale, work, first, n):
    source = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        work[i] = _from_half(source[i])


@register_jitable(**INNER)
def _encode_float16(address, scale, work, first, n, seed):
    target = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        target[i] = _to_half(work[i])


@register_jitable(**INNER)
def _largest(work, n):
    """Largest absolute value; NaN is greater than all, as its bits are."""
    largest = np.uint32(0)
    for i in range(n):
        largest = max(largest, _bits(work[i]) & np.uint32(0x7FFFFFFF))
    return _number(largest)


@register_jitable(**INNER)
def _decode_signed8(address, scale, work, first, n):
    source = span(address + first, np.int8, n)
    a = span(scale + 4 * (first // CHUNK), np.float32, 1)[0] * np.float32(1 / 127**2)
    for i in range(n):
        k = np.float32(source[i])
        work[i] = a * k * abs(k)


@register_jitable(**INNER)
def _encode_signed8(address, scale, work, first, n, seed):
    target = span(address + first, np.int8, n)
    a = _largest(work, n)
    span(scale + 4 * (first // CHUNK), np.float32, 1)[0] = a
    ratio = np.float32(127**2) / a if a > 0 else np.float32(0)
    for i in range(n):
        y = abs(work[i]) * ratio
        k = np.float32(np.int32(np.sqrt(y)))
        up = y - k * k > _uniform(seed, first + i) * (k + k + np.float32(1))
        k = min(k + (np.float32(1) if up else np.float32(0)), np.float32(127))
        target[i] = np.int8(np.int32(k if work[i] >= 0 else -k))


@register_jitable(**INNER)
def _decode_unsigned8(address, scale, work, first, n):
    source = span(address + first, np.uint8, n)
    a = span(scale + 4 * (first // CHUNK), np.float32, 1)[0] * np.float32(1 / 255**4)
    for i in range(n):
        k = np.float32(source[i])
        k = k * k
        work[i] = a * (k * k)


@register_jitable(**INNER)
def _encode_unsigned8(address, scale, work, first, n, seed):
    target = span(address + first, np.uint8, n)
    a = _largest(work, n)
    span(scale + 4 * (first // CHUNK), np.float32, 1)[0] = a
    ratio = np.float32(255**4) / a if a > 0 else np.float32(0)
    for i in range(n):
        y = work[i] * ratio
        k = np.float32(np.int32(np.sqrt(np.sqrt(y))))
        low = k * k
        high = (k + np.float32(1)) * (k + np.float32(1))
        low, high = low * low, high * high
        up = y - low > _uniform(seed, first + i) * (high - low)
        k = min(k + (np.float32(1) if up else np.float32(0)), np.float32(255))
        # A second moment of zero would let the step explode where the first moment is not.
        least = np.float32(1) if work[i] > 0 else np.float32(0)
        target[i] = np.uint8(np.int32(max(k, least)))


DECODE: dict[str, Callable[..., Any]] = {
    BFLOAT16: _decode_bfloat16,
    FLOAT16: _decode_float16,
    SIGNED8: _decode_signed8,
    UNSIGNED8: _decode_unsigned8,
}
# By way of storing, and whether it rounds at random; eight bits always do.
ENCODE: dict[tuple[str, bool], Callable[..., Any]] = {
    (BFLOAT16, False): _encode_bfloat16,
    (BFLOAT16, True): _encode_bfloat16_at_random,
    (FLOAT16, False): _encode_float16,
    (SIGNED8, False): _encode_signed8,
    (UNSIGNED8, False): _encode_unsigned8,
}


def decoded(kind: str, stored: Tensor, scale: Tensor | None) -> Tensor:
    """What a stored tensor stands for, float32 of the same shape, by torch operations.

    Args:
        kind: way of storing.
        stored: of any shape, of its dtype in `DTYPES`.
        scale: float32 ``(scales(stored.numel()),)`` for the ways in `SCALED`.
    """
    if scale is None:
        return stored.float()
    a = _spread(scale, stored)
    k = stored.float()
    return a / 127**2 * k * k.abs() if kind == SIGNED8 else a / 255**4 * ((k * k) * (k * k))


def encoded(
    kind: str, values: Tensor, seed: int | Tensor, at_random: bool
) -> tuple[Tensor, Tensor | None]:
    """Float32 values as they are stored, and their scales where they have some.

    Args:
        kind: way of storing.
        values: float32 of any shape.
        seed: 32 bits, a number or an int64 tensor without dimensions; what rounds at random
            rounds the same way for the same seed.
        at_random: of bfloat16: round at random; eight bits always do.
    """
    if kind not in SCALED:
        if at_random and kind == BFLOAT16:
            noise = _noise(seed, values) & 0xFFFF
            bits = values.contiguous().view(torch.int32).long() + noise
            rounded = (bits & ~0xFFFF).to(torch.int32).view(torch.float32)
            return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16), None
        return values.to(DTYPES[kind]), None
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % CHUNK))
    scale = flat.view(-1, CHUNK).abs().amax(1)
    most, power = (127, 2) if kind == SIGNED8 else (255, 4)
    a = _spread(scale, values)
    y = values.abs() * torch.where(a > 0, most**power / a, 0.0)
    k = (y.sqrt() if kind == SIGNED8 else y.sqrt().sqrt()).floor()
    low, high = k**power, (k + 1) ** power
    uniform = (_noise(seed, values) >> 8).float() * 2.0**-24
    k = (k + (y - low > uniform * (high - low))).clamp(max=most)
    k = k * values.sign() if kind == SIGNED8 else torch.maximum(k, (values > 0).float())
    return k.nan_to_num().to(DTYPES[kind]), scale


def _spread(scale: Tensor, like: Tensor) -> Tensor:
    """To every element the scale of its chunk."""
    return scale.repeat_interleave(CHUNK)[: like.numel()].view(like.shape)


def _noise(seed: int | Tensor, like: Tensor) -> Tensor:
    """32 random bits for every element, as the compiled encoders have them, int64."""
    mask = 0xFFFFFFFF
    i = torch.arange(like.numel(), device=like.device).view(like.shape)
    x = (seed + i * 0x9E3779B1) & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)
