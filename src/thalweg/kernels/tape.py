"""A straight line of float32 operations, run from end to end for one replica after another.

One operation over all replicas streams everything through memory, once for every operation; one
replica's step stays in the cache. It also makes a replica's numbers independent of its company, to
the last bit.
"""

from enum import IntEnum

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from thalweg.kernels.gemm import EDGE, product
from thalweg.kernels.memory import INNER, JIT, view

__all__ = ["COLUMNS", "EXACT", "Op", "Workspace", "run"]

COLUMNS = 18  # of an instruction
EXACT = 1 << 24  # up to here every integer is a float32


class Op(IntEnum):
    """What an instruction does; operands are contiguous but for COPY, INTEGERS and PRODUCT."""

    COPY, INTEGERS, FILL, PRODUCT = range(4)
    ADD, SUB, MUL, DIV, SQUARED_DIFFERENCE, MAXIMUM, MINIMUM = range(10, 17)
    EQUAL, NOT_EQUAL, GREATER, LESS, WHERE = range(20, 25)
    RELU, NEG, EXP, LOG, TANH, SIGMOID, ABSOLUTE, SQRT = range(30, 38)
    THRESHOLD_BACKWARD, TANH_BACKWARD, SIGMOID_BACKWARD = range(40, 43)
    SUM, MEAN, LARGEST, ARGMAX = range(50, 54)
    LOGSUMEXP, LOG_SOFTMAX, LOG_SOFTMAX_BACKWARD = range(60, 63)
    GATHER, SCATTER, SCATTER_ADD = range(70, 73)


class Workspace:
    """Scratch of one thread.

    Attributes:
        memory: of intermediate results, float32.
        panel: of `product`, and of reductions.
        edge: of `product`.
        where: addresses of the slots for one replica.
    """

    def __init__(self, memory: int, panel: int, slots: int) -> None:
        # Zeros, because what a tile reads beyond its matrix is multiplied, and may not be slow.
        self.memory = np.zeros(memory, dtype=np.float32)
        self.panel = np.zeros(panel, dtype=np.float32)
        self.edge = np.zeros(EDGE, dtype=np.float32)
        self.where = np.zeros(slots, dtype=np.int64)


def run(
    code: NDArray[np.int64],
    numbers: NDArray[np.float32],
    base: NDArray[np.int64],
    step: NDArray[np.int64],
    replicas: int,
    workspace: Workspace,
) -> bool:
    """Run a tape for all replicas.

    Args:
        code: ``(instructions, COLUMNS)``: operation; slot and byte offset of the result and of up
            to three operands; three sizes; up to six strides in elements; index of a number.
        numbers: constants of instructions.
        base: addresses of the slots for the first replica.
        step: bytes from one replica to the next, of each slot.
        replicas: how many.
        workspace: of this thread.

    Returns:
        Whether all went well; not with an index out of range or an integer beyond `EXACT`.
    """
    w = workspace
    return bool(_run(code, numbers, base, step, replicas, w.where, w.panel, w.edge))


@intrinsic
def _power_of_two(typing, exponent):
    """``2 ** exponent`` as float32, for whole exponents from -126 to 127."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        bits = builder.shl(builder.add(arguments[0], kind(127)), kind(23))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(types.int32), generate


_F = np.float32
_ANY = 1 << 40


@njit(**INNER)
def _exp(x):
    """Within two units in the last place (Cephes); unlike the C library's, it vectorises."""
    bounded = min(max(x, _F(-87.0)), _F(88.0))
    n = np.floor(bounded * _F(1.44269504088896341) + _F(0.5))
    r = bounded - n * _F(0.693359375) + n * _F(2.12194440e-4)
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    value = (p * r * r + r + _F(1.0)) * _power_of_two(np.int32(n))
    value = _F(0.0) if x < _F(-87.0) else value
    value = _F(np.inf) if x > _F(88.0) else value
    return x if x != x else value


@njit(**INNER)
def _tanh(x):
    size = abs(x)
    z = x * x
    p = _F(-5.70498872745e-3)
    p = p * z + _F(2.06390887954e-2)
    p = p * z + _F(-5.37397155531e-2)
    p = p * z + _F(1.33314422036e-1)
    p = p * z + _F(-3.33332819422e-1)
    near = p * z * x + x
    far = _F(1.0) - _F(2.0) / (_exp(size + size) + _F(1.0))
    far = -far if x < _F(0.0) else far
    return near if size < _F(0.625) else far


@njit(**INNER)
def _sigmoid(x):
    return _F(1.0) / (_F(1.0) + _exp(-x))


# Loops run over slices from zero: an index that is a sum might be negative for all that the compiler
# knows, and would be checked instead of vectorised.


@njit(**INNER)
def _copy(o, a, n0, n1, n2, s0, s1, s2):
    for i in range(n0):
        for j in range(n1):
            row, source = o[(i * n1 + j) * n2 :], a[i * s0 + j * s1 :]
            if s2 == 1:
                for k in range(n2):
                    row[k] = source[k]
            elif s2 == 0:
                for k in range(n2):
                    row[k] = source[0]
            else:
                for k in range(n2):
                    row[k] = source[k * s2]


@njit(**INNER)
def _elementwise(op, o, a, b, c, n, number):
    if op == Op.FILL:
        for i in range(n):
            o[i] = number
    elif op == Op.ADD:
        for i in range(n):
            o[i] = a[i] + b[i]
    elif op == Op.SUB:
        for i in range(n):
            o[i] = a[i] - b[i]
    elif op == Op.MUL:
        for i in range(n):
            o[i] = a[i] * b[i]
    elif op == Op.DIV:
        for i in range(n):
            o[i] = a[i] / b[i]
    elif op == Op.SQUARED_DIFFERENCE:
        for i in range(n):
            o[i] = (a[i] - b[i]) * (a[i] - b[i])
    elif op == Op.MAXIMUM:
        for i in range(n):
            o[i] = a[i] if a[i] > b[i] or a[i] != a[i] else b[i]
    elif op == Op.MINIMUM:
        for i in range(n):
            o[i] = a[i] if a[i] < b[i] or a[i] != a[i] else b[i]
    elif op == Op.EQUAL:
        for i in range(n):
            o[i] = _F(1.0) if a[i] == b[i] else _F(0.0)
    elif op == Op.NOT_EQUAL:
        for i in range(n):
            o[i] = _F(1.0) if a[i] != b[i] else _F(0.0)
    elif op == Op.GREATER:
        for i in range(n):
            o[i] = _F(1.0) if a[i] > b[i] else _F(0.0)
    elif op == Op.LESS:
        for i in range(n):
            o[i] = _F(1.0) if a[i] < b[i] else _F(0.0)
    elif op == Op.WHERE:
        for i in range(n):
            o[i] = b[i] if a[i] != _F(0.0) else c[i]
    elif op == Op.RELU:
        for i in range(n):
            o[i] = _F(0.0) if a[i] <= _F(0.0) else a[i]
    elif op == Op.NEG:
        for i in range(n):
            o[i] = -a[i]
    elif op == Op.EXP:
        for i in range(n):
            o[i] = _exp(a[i])
    elif op == Op.LOG:
        for i in range(n):
            o[i] = np.log(a[i])
    elif op == Op.TANH:
        for i in range(n):
            o[i] = _tanh(a[i])
    elif op == Op.SIGMOID:
        for i in range(n):
            o[i] = _sigmoid(a[i])
    elif op == Op.ABSOLUTE:
        for i in range(n):
            o[i] = abs(a[i])
    elif op == Op.SQRT:
        for i in range(n):
            o[i] = np.sqrt(a[i])
    elif op == Op.THRESHOLD_BACKWARD:
        for i in range(n):
            o[i] = _F(0.0) if b[i] <= number else a[i]
    elif op == Op.TANH_BACKWARD:
        for i in range(n):
            o[i] = a[i] * (_F(1.0) - b[i] * b[i])
    elif op == Op.SIGMOID_BACKWARD:
        for i in range(n):
            o[i] = a[i] * (_F(1.0) - b[i]) * b[i]


@njit(**INNER)
def _sum(o, a, outer, n, inner):
    for i in range(outer):
        if inner == 1:
            row, total = a[i * n :], 0.0
            for k in range(n):
                total += row[k]
            o[i] = total
            continue
        into = o[i * inner :]
        for j in range(inner):
            into[j] = 0
        for k in range(n):
            row = a[(i * n + k) * inner :]
            for j in range(inner):
                into[j] += row[j]


@njit(**INNER)
def _largest(op, o, a, outer, n, inner):
    for i in range(outer):
        for j in range(inner):
            line, place = a[i * n * inner + j :], 0
            largest = line[0]
            for k in range(1, n):
                value = line[k * inner]
                # NaN counts as largest, the first of them, as torch has it.
                if value > largest or (value != value and largest == largest):
                    largest, place = value, k
            o[i * inner + j] = _F(place) if op == Op.ARGMAX else largest


@njit(**INNER)
def _shifted(scratch, a, rows, n, largest):
    """Rows less their largest number, which is kept."""
    for i in range(rows):
        row, into = a[i * n :], scratch[i * n :]
        most = row[0]
        for k in range(1, n):
            most = row[k] if row[k] > most or row[k] != row[k] else most
        # All minus infinity, or some infinity: the difference would be NaN.
        shift = most if abs(most) < _F(np.inf) else _F(0.0)
        largest[i] = shift
        for k in range(n):
            into[k] = row[k] - shift


@njit(**INNER)
def _logsumexp(o, a, rows, n, scratch):
    largest = scratch[rows * n :]
    _shifted(scratch, a, rows, n, largest)
    for i in range(rows * n):
        scratch[i] = _exp(scratch[i])
    _sum(o, scratch, rows, n, 1)
    for i in range(rows):
        o[i] = np.log(o[i]) + largest[i]


@njit(**INNER)
def _log_softmax(o, a, rows, n, scratch):
    shares, sums = scratch[rows * n :], scratch[2 * rows * n :]
    _shifted(scratch, a, rows, n, sums)
    for i in range(rows * n):
        shares[i] = _exp(scratch[i])
    _sum(sums, shares, rows, n, 1)
    for i in range(rows):
        shift, into, out = np.log(sums[i]), scratch[i * n :], o[i * n :]
        for k in range(n):
            out[k] = into[k] - shift


@njit(**INNER)
def _log_softmax_backward(o, gradient, output, rows, n, scratch):
    sums = scratch[rows * n :]
    _sum(sums, gradient, rows, n, 1)
    for i in range(rows * n):
        scratch[i] = _exp(output[i])
    for i in range(rows):
        g, share, out = gradient[i * n :], scratch[i * n :], o[i * n :]
        for k in range(n):
            out[k] = g[k] - share[k] * sums[i]


@njit(**INNER)
def _look_up(op, o, a, index, rows, n, picks):
    """Between rows of ``n`` and rows of ``picks``; False for an index out of range."""
    for i in range(rows):
        for k in range(picks):
            place = int(index[i * picks + k])
            if place < 0 or place >= n:
                return False
            if op == Op.GATHER:
                o[i * picks + k] = a[i * n + place]
            elif op == Op.SCATTER:
                o[i * n + place] = a[i * picks + k]
            else:
                o[i * n + place] += a[i * picks + k]
    return True


@njit(**INNER)
def _integers(o, a, n0, n1, n2, s0, s1, s2):
    exact = True
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                value = a[i * s0 + j * s1 + k * s2]
                exact &= -EXACT <= value <= EXACT
                o[(i * n1 + j) * n2 + k] = value
    return exact


@njit(cache=True, nogil=True, no_cfunc_wrapper=True, **JIT)
def _run(code, numbers, base, step, replicas, where, panel, edge):
    whole = np.empty(0, dtype=np.int64)
    for r in range(replicas):
        for s in range(len(base)):
            where[s] = base[s] + r * step[s]
        for q in range(len(code)):
            line = code[q]
            op, n0, n1, n2 = line[0], line[9], line[10], line[11]
            to = where[line[1]] + line[2]
            first = where[line[3]] + line[4]
            second = where[line[5]] + line[6]
            third = where[line[7]] + line[8]
            if op == Op.PRODUCT:
                product(
                    first,
                    line[12],
                    line[13],
                    second,
                    line[14],
                    line[15],
                    to,
                    n0,
                    n1,
                    n2,
                    line[16],
                    panel,
                    edge,
                )
                continue
            size = n0 * n1 * n2
            o = view(to, panel, 0, _ANY)
            if op == Op.INTEGERS:
                source = view(first, whole, 0, _ANY)
                if not _integers(o, source, n0, n1, n2, line[12], line[13], line[14]):
                    return False
                continue
            # Whatever the operands' sizes: nothing checks an index here.
            a = view(first, panel, 0, _ANY)
            b = view(second, panel, 0, _ANY)
            if op == Op.COPY:
                _copy(o, a, n0, n1, n2, line[12], line[13], line[14])
            elif op >= Op.GATHER:
                if not _look_up(op, o, a, b, n0, n1, n2):
                    return False
            elif op == Op.LOGSUMEXP:
                _logsumexp(o, a, n0, n1, panel)
            elif op == Op.LOG_SOFTMAX:
                _log_softmax(o, a, n0, n1, panel)
            elif op == Op.LOG_SOFTMAX_BACKWARD:
                _log_softmax_backward(o, a, b, n0, n1, panel)
            elif op >= Op.LARGEST:
                _largest(op, o, a, n0, n1, n2)
            elif op >= Op.SUM:
                _sum(o, a, n0, n1, n2)
                if op == Op.MEAN:
                    for i in range(n0 * n2):
                        o[i] /= _F(n1)
            else:
                c = view(third, panel, 0, _ANY)
                _elementwise(op, o, a, b, c, size, numbers[line[17]])
    return True
