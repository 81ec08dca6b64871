"""How numbers lie in memory where that is not as they are computed: half precision, 8 bits.

Each way of storing has a decoder and an encoder in compiled code, for a chunk of at most `CHUNK`
elements; `thalweg.kernels.codecs` has the same in torch operations.

Eight bits hold a moment block-wise: every `CHUNK` elements in a row share a scale a, the largest
power of two that is not above their largest absolute value. A number x is kept as the code

    k = F(|x| / a + c) - F(c),    F(z) = floor(log2 z) and the first 3 bits of what follows it

of seven bits after that of the sign, with c = 1.25 / 2^15, or for what is never negative of eight
bits, with c = 1.25 / 2^31. So there are eight codes an octave, as in the eight-bit floats of
Micikevicius et al. (2022), arXiv:2209.05433, relative to a block as in Dettmers et al. (2022),
arXiv:2110.02861, and below c, thanks to the offset, even steps down to zero. It takes a few
additions and shifts of a float's bits. What is not finite makes its whole block NaN.

Such codes, and bfloat16 where it is asked for, are rounded up or down at random, so that what is
kept is right in the mean: an average over 1000 steps moves by a fraction of a code at each. At
turn t element i draws ``hash(i) + hash(t)`` modulo 1. (Golden ratio times t in place of hash(t)
would make its draws more even, but not independent of what it became: averages would drift.)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from thalweg.kernels.memory import INNER, span

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BFLOAT16",
    "CHUNK",
    "DECODE",
    "ENCODE",
    "FLOAT16",
    "NATIVE",
    "NEXT_ARRAY",
    "NEXT_SEGMENT",
    "RANDOM16",
    "SCALED",
    "SIGNED8",
    "UNSIGNED8",
    "scales",
    "seeds",
]

CHUNK = 256  # elements that share a scale

# Ways of storing.
NATIVE, BFLOAT16, FLOAT16 = "", "bfloat16", "float16"
RANDOM16, SIGNED8, UNSIGNED8 = "bfloat16 at random", "signed8", "unsigned8"
SCALED = (SIGNED8, UNSIGNED8)

_INFINITE, _NAN = 0x7F800000, 0x7FC00000  # of float32, as bits
_CUT = 20  # bits of a float32 that a code has not
_SIGNS = {SIGNED8: 0x80, UNSIGNED8: 0}
_OFFSET = {SIGNED8: 1.25 * 2.0**-15, UNSIGNED8: 1.25 * 2.0**-31}
_LEAST, _GREATEST = 0x00800000, 0x7E800000  # scales: beyond 2^127 a number counts as infinite

# What spreads elements, and steps, evenly over 32 bits: 2^32 over the golden ratio.
_GOLDEN = 0x9E3779B1
# From the place of an array to those of the same parameter's next array, and the next parameter's.
NEXT_ARRAY, NEXT_SEGMENT = 0xC2B2AE35, 0x3C6EF35F


def scales(elements: int) -> int:
    """How many scales a tensor of so many elements has."""
    return -(-elements // CHUNK)


@overload
def seeds(step: int, number: int) -> tuple[int, int]: ...
@overload
def seeds(step: "Tensor", number: int) -> tuple[int, "Tensor"]: ...
def seeds(step: Any, number: int) -> tuple[int, Any]:
    """Place and turn of what is rounded at random.

    Args:
        step: how many were taken before: a number, or an int64 tensor, whose turn is one too.
        number: of what takes its step together.
    """
    turn = (step + 1) * _GOLDEN & 0xFFFFFFFF
    turn = (turn ^ turn >> 16) * 0x7FEB352D & 0xFFFFFFFF
    turn = (turn ^ turn >> 15) * 0x846CA68B & 0xFFFFFFFF
    return number * 0x85EBCA6B & 0xFFFFFFFF, turn ^ turn >> 16


def _on_bits(build: Callable[[Any, Any, Any], Any]) -> Any:
    """Arithmetic of two uint32, which Numba by itself would do in 64 bits."""

    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, *arguments)

        return types.uint32(types.uint32, types.uint32), codegen

    return operation


_plus = _on_bits(lambda builder, a, b: builder.add(a, b))
_minus = _on_bits(lambda builder, a, b: builder.sub(a, b))
_times = _on_bits(lambda builder, a, b: builder.mul(a, b))
_and = _on_bits(lambda builder, a, b: builder.and_(a, b))
_xor = _on_bits(lambda builder, a, b: builder.xor(a, b))
_right = _on_bits(lambda builder, a, b: builder.lshr(a, b))
_left = _on_bits(lambda builder, a, b: builder.shl(a, b))
_larger = _on_bits(lambda builder, a, b: builder.select(builder.icmp_unsigned(">", a, b), a, b))


def _converter(result: Any, given: Any, build: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def conversion(typing_context: Any, number: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, arguments[0])

        return result(given), codegen

    return conversion


_HALF, _SINGLE = ir.HalfType(), ir.FloatType()
_BITS16, _BITS32 = ir.IntType(16), ir.IntType(32)

_bits = _converter(types.uint32, types.float32, lambda builder, x: builder.bitcast(x, _BITS32))
_number = _converter(types.float32, types.uint32, lambda builder, x: builder.bitcast(x, _SINGLE))
_from_half = _converter(
    types.float32,
    types.uint16,
    lambda builder, x: builder.fpext(builder.bitcast(x, _HALF), _SINGLE),
)
_to_half = _converter(
    types.uint16,
    types.float32,
    lambda builder, x: builder.bitcast(builder.fptrunc(x, _HALF), _BITS16),
)


@register_jitable(**INNER)
def _noise(place, turn, i):
    """Bits that look random, the upper ones more so; `place` is that of a chunk."""
    x = _plus(place, _times(np.uint32(i), np.uint32(_GOLDEN)))
    return _plus(_times(_xor(x, _right(x, np.uint32(13))), np.uint32(0x846CA68B)), turn)


@register_jitable(**INNER)
def _chunk(place, first):
    return _plus(np.uint32(place), _times(np.uint32(first), np.uint32(_GOLDEN)))


# A decoder writes n elements, from the one numbered `first`, of the memory at `address` into
# `work`; an encoder writes them back. `scale` is the address of the scales.


@register_jitable(**INNER)
def _decode_bfloat16(address, scale, work, first, n):
    source = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        work[i] = _number(_left(np.uint32(source[i]), np.uint32(16)))


@register_jitable(**INNER)
def _encode_bfloat16(address, scale, work, first, n, place, turn):
    target = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        bits = _bits(work[i])
        odd = _and(_right(bits, np.uint32(16)), np.uint32(1))
        even = _right(_plus(_plus(bits, np.uint32(0x7FFF)), odd), np.uint32(16))
        target[i] = np.uint16(even) if work[i] == work[i] else np.uint16(_NAN >> 16)


@register_jitable(**INNER)
def _encode_bfloat16_at_random(address, scale, work, first, n, place, turn):
    target = span(address + 2 * first, np.uint16, n)
    place, turn = _chunk(place, first), np.uint32(turn)
    for i in range(n):
        noise = _right(_noise(place, turn, i), np.uint32(16))
        rounded = _right(_plus(_bits(work[i]), noise), np.uint32(16))
        target[i] = np.uint16(rounded) if work[i] == work[i] else np.uint16(_NAN >> 16)


@register_jitable(**INNER)
def _decode_float16(address, scale, work, first, n):
    source = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        work[i] = _from_half(source[i])


@register_jitable(**INNER)
def _encode_float16(address, scale, work, first, n, place, turn):
    target = span(address + 2 * first, np.uint16, n)
    for i in range(n):
        target[i] = _to_half(work[i])


@register_jitable(**INNER)
def _rescale(scale, work, first, n):
    """Store the scale of a chunk, NaN if some element is not finite, and return one over it."""
    largest = np.uint32(0)
    for i in range(n):
        largest = _larger(largest, _and(_bits(work[i]), np.uint32(0x7FFFFFFF)))
    power = _larger(_and(largest, np.uint32(_INFINITE)), np.uint32(_LEAST))
    kept = np.uint32(_NAN) if power > np.uint32(_GREATEST) else power
    span(scale + 4 * (first // CHUNK), np.uint32, 1)[0] = kept
    return _number(_minus(np.uint32(254 << 23), power))


@register_jitable(**INNER)
def _scale_of(scale, first):
    return span(scale + 4 * (first // CHUNK), np.float32, 1)[0]


def _eight(kind: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Decoder and encoder of eight bits."""
    signs, offset = np.uint32(_SIGNS[kind]), np.float32(_OFFSET[kind])
    zero, cut = np.uint32(offset.view(np.uint32)), np.uint32(_CUT)
    least = np.uint32(0 if _SIGNS[kind] else 1)
    rest, up = np.uint32(0xFF ^ _SIGNS[kind]), np.uint32(24)

    @register_jitable(**INNER)
    def decode(address, scale, work, first, n):
        source = span(address + first, np.uint8, n)
        a = span(scale + 4 * (first // CHUNK), np.float32, 1)[0]
        for i in range(n):
            code = np.uint32(source[i])
            z = _number(_plus(_left(_and(code, rest), cut), zero))
            sign = _left(_and(code, signs), up)
            work[i] = _number(_xor(_bits((z - offset) * a), sign))

    @register_jitable(**INNER)
    def encode(address, scale, work, first, n, place, turn):
        target = span(address + first, np.uint8, n)
        inverse = _rescale(scale, work, first, n)
        place, turn = _chunk(place, first), np.uint32(turn)
        for i in range(n):
            x = work[i]
            z = _minus(_bits(abs(x) * inverse + offset), zero)
            noise = _right(_noise(place, turn, i), np.uint32(32 - _CUT))
            code = _right(_plus(z, noise), cut)
            # A second moment of zero would let the step explode where the first moment is not.
            if x > 0:
                code = _larger(code, least)
            target[i] = np.uint8(_plus(code, _and(_right(_bits(x), up), signs)))

    return decode, encode


_decode_signed8, _encode_signed8 = _eight(SIGNED8)
_decode_unsigned8, _encode_unsigned8 = _eight(UNSIGNED8)

DECODE: dict[str, Callable[..., Any]] = {
    BFLOAT16: _decode_bfloat16,
    RANDOM16: _decode_bfloat16,
    FLOAT16: _decode_float16,
    SIGNED8: _decode_signed8,
    UNSIGNED8: _decode_unsigned8,
}
ENCODE: dict[str, Callable[..., Any]] = {
    BFLOAT16: _encode_bfloat16,
    RANDOM16: _encode_bfloat16_at_random,
    FLOAT16: _encode_float16,
    SIGNED8: _encode_signed8,
    UNSIGNED8: _encode_unsigned8,
}
