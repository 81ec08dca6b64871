"""Products of the small matrices of one replica, which stay in the cache.

A BLAS is made for large matrices: at 64 by 64 half of its time goes elsewhere than into products,
and MKL leaves half the width of other makers' vector units unused. Here a tile of the result stays
in vector registers while its sum runs (Goto and van de Geijn, 2008, Anatomy of High-Performance
Matrix Multiplication, ACM TOMS 34, without the blocking for matrices that exceed the cache).
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from thalweg.kernels.memory import INNER, view

__all__ = ["EDGE", "LANES", "product"]

_WIDE = bool(llvm.get_host_cpu_features().get("avx512f"))
LANES = 16 if _WIDE else 8  # float32 numbers of one vector
_COLUMNS = 4 if _WIDE else 2  # vectors side by side in a tile of four rows

_BROAD = LANES * _COLUMNS
EDGE = 8 * LANES * _COLUMNS  # numbers of the largest tile, for those that stick out

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _tile(rows: int, vectors: int) -> Any:
    """``(a, a_row, a_column, present, b, b_row, depth, c, c_row, add)``: one tile of ``c``.

    Addresses, strides in elements. Of the tile's rows only the first ``present`` are in ``a``; the
    others repeat the last. ``add`` keeps what ``c`` holds and adds to it.
    """

    @intrinsic
    def tile(typing, a, a_row, a_column, present, b, b_row, depth, c, c_row, add):
        def generate(context, builder, signature, arguments):
            a, a_row, a_column, present, b, b_row, depth, c, c_row, add = arguments
            integer, size = (lambda n: ir.Constant(_INT, n)), ir.Constant(_INT, 4)
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
            )

            def at(address, kind):
                return builder.inttoptr(address, kind.as_pointer())

            def load(address):
                return builder.load(at(address, _VECTOR), align=4)

            def everywhere(number):
                undefined = ir.Constant(_VECTOR, ir.Undefined)
                one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
                first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                return builder.shuffle_vector(one, undefined, first)

            final = builder.sub(present, integer(1))
            starts = []
            for i in range(rows):
                row = builder.select(builder.icmp_signed("<", integer(i), final), integer(i), final)
                starts.append(builder.add(a, builder.mul(builder.mul(row, a_row), size)))
            a_step, b_step = builder.mul(a_column, size), builder.mul(b_row, size)
            places = [
                [
                    builder.add(
                        builder.add(c, builder.mul(builder.mul(integer(i), c_row), size)),
                        integer(4 * LANES * j),
                    )
                    for j in range(vectors)
                ]
                for i in range(rows)
            ]
            keeps = builder.icmp_signed("!=", add, integer(0))
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            begun = [builder.select(keeps, load(p), zero) for row in places for p in row]
            before = builder.block
            loop, after = builder.append_basic_block("sum"), builder.append_basic_block("store")
            builder.branch(loop)

            builder.position_at_end(loop)
            k, a_offset, b_now = (builder.phi(_INT) for _ in range(3))
            sums = [builder.phi(_VECTOR) for _ in range(rows * vectors)]
            b_vectors = [load(builder.add(b_now, integer(4 * LANES * j))) for j in range(vectors)]
            grown = []
            for i, start in enumerate(starts):
                factor = everywhere(builder.load(at(builder.add(start, a_offset), _FLOAT)))
                grown += [
                    builder.call(fma, (factor, b_vectors[j], sums[i * vectors + j]))
                    for j in range(vectors)
                ]
            following = builder.add(k, integer(1))
            changes = [
                (k, integer(0), following),
                (a_offset, integer(0), builder.add(a_offset, a_step)),
                (b_now, b, builder.add(b_now, b_step)),
                *zip(sums, begun, grown, strict=True),
            ]
            for variable, first, then in changes:
                variable.add_incoming(first, before)
                variable.add_incoming(then, loop)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

            builder.position_at_end(after)
            for sum_, place in zip(grown, (p for row in places for p in row), strict=True):
                builder.store(sum_, at(place, _VECTOR), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), generate

    return tile


_broad_tile = _tile(4, _COLUMNS)
_narrow_tile = _tile(8, 1)


@intrinsic
def _turn(typing, source, source_row, present, target, target_row):
    """Transpose a square of `LANES`; of the source's rows beyond the first ``present`` any do."""

    def generate(context, builder, signature, arguments):
        source, source_row, present, target, target_row = arguments
        integer = lambda n: ir.Constant(_INT, n)  # noqa: E731
        final = builder.sub(present, integer(1))

        def at(start, row, stride):
            address = builder.add(start, builder.mul(builder.mul(row, stride), integer(4)))
            return builder.inttoptr(address, _VECTOR.as_pointer())

        lines = []
        for i in range(LANES):
            row = builder.select(builder.icmp_signed("<", integer(i), final), integer(i), final)
            lines.append(builder.load(at(source, row, source_row), align=4))
        half = 1
        while half < LANES:  # exchange ever larger corners
            for i in (i for i in range(LANES) if not i & half):
                upper, lower = lines[i], lines[i + half]
                for place, first in ((i, 0), (i + half, half)):
                    mask = [
                        p + first if not p & half else LANES + p - half + first
                        for p in range(LANES)
                    ]
                    chosen = ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                    lines[place] = builder.shuffle_vector(upper, lower, chosen)
            half *= 2
        for i, line in enumerate(lines):
            builder.store(line, at(target, integer(i), target_row), align=4)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), generate


@njit(inline="always", **INNER)
def _pack(b, b_row, b_column, depth, present, width, panel):
    """Columns of ``b`` as contiguous rows of ``width``; those beyond ``present`` hold anything."""
    start = 0
    if b_row == 1:
        start = depth - depth % LANES
        for k in range(0, start, LANES):
            for j in range(0, present, LANES):
                block = panel.ctypes.data + 4 * (k * width + j)
                _turn(b + 4 * (j * b_column + k), b_column, present - j, block, width)
    source = view(b, panel, 0, (depth - 1) * b_row + (present - 1) * b_column + 1)
    for k in range(start, depth):
        for j in range(present):
            panel[k * width + j] = source[k * b_row + j * b_column]


@njit(inline="always", **INNER)
def product(a, a_row, a_column, b, b_row, b_column, c, m, n, depth, add, panel, edge):
    """``c = a b``, or with ``add`` ``c += a b``, in float32.

    ``a`` is ``(m, depth)``, ``b`` ``(depth, n)`` and ``c`` a contiguous ``(m, n)``, all sizes at
    least 1, given by their addresses and, but for ``c``, their strides in elements. ``panel`` is
    scratch of ``depth`` times four vectors, ``edge`` of `EDGE`.
    """
    j = 0
    while j < n:
        broad = n - j > LANES
        width = _BROAD if broad else LANES
        height = 4 if broad else 8
        columns = min(width, n - j)
        if b_column == 1 and columns == width:
            b_now, b_step = b + 4 * j, b_row
        else:
            _pack(b + 4 * j * b_column, b_row, b_column, depth, columns, width, panel)
            b_now, b_step = panel.ctypes.data, width
        for i in range(0, m, height):
            rows = min(height, m - i)
            a_now = a + 4 * i * a_row
            c_now = c + 4 * (i * n + j)
            inside = rows == height and columns == width
            target, c_row, onto = (c_now, n, add) if inside else (edge.ctypes.data, width, 0)
            if broad:
                _broad_tile(a_now, a_row, a_column, rows, b_now, b_step, depth, target, c_row, onto)
            else:
                _narrow_tile(
                    a_now, a_row, a_column, rows, b_now, b_step, depth, target, c_row, onto
                )
            if not inside:
                out = view(c_now, panel, 0, (rows - 1) * n + columns)
                for r in range(rows):
                    for q in range(columns):
                        value = edge[r * width + q]
                        out[r * n + q] = out[r * n + q] + value if add else value
        j += columns
