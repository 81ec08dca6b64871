"""A straight line of float32 operations, run from end to end for one replica after another.

One operation over all replicas streams everything through memory, once for every operation; one
replica's step stays in the cache. It also makes a replica's numbers independent of its company, to
the last bit.

Every operation is a C function that is compiled when a tape first needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from thalweg.kernels.disk import c_function, keep
from thalweg.kernels.gemm import EDGE, product
from thalweg.kernels.memory import INNER, JIT, call, span

__all__ = ["COLUMNS", "EXACT", "OPERATIONS", "Each", "Update", "Workspace", "address", "run"]

COLUMNS = 17  # of an instruction
EXACT = 1 << 24  # up to here every integer is a float32

_F = np.float32
_ANY = 1 << 40  # elements: whatever the operands' sizes, nothing checks an index here
_SIZES = 9  # column


class Workspace:
    """Scratch of one thread.

    Attributes:
        memory: of intermediate results, float32.
        panel: of single operations.
        where: addresses of the slots for one replica.
    """

    def __init__(self, memory: int, panel: int, slots: int) -> None:
        # Zeros, because what a tile reads beyond its matrix is multiplied, and may not be slow.
        self.memory = np.zeros(memory, dtype=np.float32)
        self.panel = np.zeros(EDGE + panel, dtype=np.float32)
        self.where = np.zeros(slots, dtype=np.int64)


@dataclass(frozen=True)
class Update:
    """What follows the tape in every step: one step of a rule.

    Attributes:
        function: address of a `cpu.step_function`.
        lines: int64 ``(replicas, parameters, 2 + states)``, addresses of each parameter, its
            gradient and its state.
        sizes: int64 ``(parameters,)``, elements.
        rows: float32 ``(steps or 1, replicas, 3 + n)``, coefficients as `Rule.row` has them; one
            row of them serves all steps.
    """

    function: int
    lines: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.float32]


_NO_UPDATE = Update(
    0,
    np.zeros((0, 0, 0), dtype=np.int64),
    np.zeros(0, dtype=np.int64),
    np.zeros((1, 0, 0), dtype=np.float32),
)


def run(
    code: NDArray[np.int64],
    numbers: NDArray[np.float32],
    slots: NDArray[np.int64],
    workspace: Workspace,
    who: NDArray[np.int64],
    steps: int = 1,
    update: Update = _NO_UPDATE,
) -> bool:
    """Run a tape for one replica after another, for each of them step after step.

    Args:
        code: ``(instructions, COLUMNS)``: `address` of the operation; slot and byte offset of the
            result and of up to three operands; three sizes; up to five strides in elements.
        numbers: a constant for each instruction.
        slots: ``(slots, 3)``: address for the first replica and step; bytes from one replica to
            the next; bytes from one step to the next.
        workspace: of this thread.
        who: which replicas.
        steps: how many times each.
        update: what follows every time; its replicas are those of ``who``.

    Returns:
        Whether all went well; not with an index out of range or an integer beyond `EXACT`.
    """
    w, u = workspace, update
    tables = code, numbers, slots
    return bool(_run(*tables, who, steps, u.function, u.lines, u.sizes, u.rows, w.where, w.panel))


@njit(nogil=True, no_cfunc_wrapper=True, **JIT)
def _run(code, numbers, slots, who, steps, update, lines, sizes, rows, where, panel):
    for i in range(len(who)):
        for t in range(steps):
            for s in range(len(slots)):
                where[s] = slots[s, 0] + who[i] * slots[s, 1] + t * slots[s, 2]
            for q in range(len(code)):
                line, number = code[q].ctypes.data, numbers.ctypes.data + 4 * q
                if call(code[q, 0], (line, where.ctypes.data, number, panel.ctypes.data)) != 0:
                    return False
            if update != 0:
                row = rows[min(t, len(rows) - 1), i]
                count = len(sizes)
                call(update, (lines[i].ctypes.data, sizes.ctypes.data, count, row.ctypes.data))
    return True


keep(_run, _run.py_func)


_addresses: dict[str, int] = {}
_one_compiles = Lock()


def address(operation: str) -> int:
    """Address of the C function of one of the `OPERATIONS`, compiled if it was not."""
    with _one_compiles:
        if operation not in _addresses:
            _addresses[operation] = c_function(OPERATIONS[operation], (operation,))
        return _addresses[operation]


# An operation is given the addresses of its instruction, of the slots, of its constant and of the
# scratch, and says whether it failed. It takes them apart by these.


@njit(**INNER)
def _floats(line, where, operand):
    """The memory of the result, 0, or of an operand."""
    parts, slots = span(line, np.int64, COLUMNS), span(where, np.int64, _ANY)
    return span(slots[parts[1 + 2 * operand]] + parts[2 + 2 * operand], _F, _ANY)


@njit(**INNER)
def _wholes(line, where, operand):
    """The same of int64."""
    parts, slots = span(line, np.int64, COLUMNS), span(where, np.int64, _ANY)
    return span(slots[parts[1 + 2 * operand]] + parts[2 + 2 * operand], np.int64, _ANY)


@njit(**INNER)
def _sizes(line):
    """Three sizes, then five strides."""
    return span(line + 8 * _SIZES, np.int64, 8)


@njit(**INNER)
def _number(address):
    return span(address, _F, 1)[0]


# Functions of elements.


@intrinsic
def _power_of_two(typing, exponent):
    """``2 ** exponent`` as float32, for whole exponents from -126 to 127."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        bits = builder.shl(builder.add(arguments[0], kind(127)), kind(23))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(**INNER)
def _exp(x):
    """Within two units in the last place (Cephes); unlike the C library's, it vectorises."""
    bounded = min(max(x, _F(-105.0)), _F(89.0))
    n = np.floor(bounded * _F(1.44269504088896341) + _F(0.5))
    r = bounded - n * _F(0.693359375) + n * _F(2.12194440e-4)
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    # In two steps, because the power of the largest results is not a float32.
    half = np.floor(n * _F(0.5))
    value = (p * r * r + r + _F(1.0)) * _power_of_two(np.int32(half))
    value *= _power_of_two(np.int32(n - half))
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


class Each(IntEnum):
    """Operations element by element: of up to two operands, or of those and a constant."""

    FILL, ADD, SUB, MUL, DIV, NEG, RELU, EXP, THRESHOLD_BACKWARD, EQ = range(10)
    ABS, SQRT, LOG, TANH, SIGMOID, TANH_BACKWARD, SIGMOID_BACKWARD = range(20, 27)
    NE, GT, LT, MAXIMUM, MINIMUM, SQUARED_DIFFERENCE = range(30, 36)
    SGN, GE, LE, POW, LOG1P, SOFTPLUS, SOFTPLUS_BACKWARD, HUBER, HUBER_BACKWARD = range(40, 49)

    @property
    def function(self) -> str:
        """Which of the `OPERATIONS` has it; its number goes to the first stride."""
        return "usual" if self < 20 else "rarer" if self < 40 else "rarest"


# Three functions, because of compile time: one for each operation takes far longer in all, and one
# for all of them is longer than most programs need.


def _usual(line, where, number, scratch):
    out, x, y = _floats(line, where, 0), _floats(line, where, 1), _floats(line, where, 2)
    constant, parts = _number(number), _sizes(line)
    n, what = parts[0], parts[3]
    if what == Each.FILL:
        for i in range(n):
            out[i] = constant
    elif what == Each.ADD:
        for i in range(n):
            out[i] = x[i] + y[i]
    elif what == Each.SUB:
        for i in range(n):
            out[i] = x[i] - y[i]
    elif what == Each.MUL:
        for i in range(n):
            out[i] = x[i] * y[i]
    elif what == Each.DIV:
        for i in range(n):
            out[i] = x[i] / y[i]
    elif what == Each.NEG:
        for i in range(n):
            out[i] = -x[i]
    elif what == Each.RELU:
        for i in range(n):
            out[i] = _F(0.0) if x[i] <= _F(0.0) else x[i]
    elif what == Each.EXP:
        for i in range(n):
            out[i] = _exp(x[i])
    elif what == Each.THRESHOLD_BACKWARD:
        for i in range(n):
            out[i] = _F(0.0) if y[i] <= constant else x[i]
    else:
        for i in range(n):
            out[i] = _F(1.0) if x[i] == y[i] else _F(0.0)
    return 0


def _rarer(line, where, number, scratch):
    out, x, y = _floats(line, where, 0), _floats(line, where, 1), _floats(line, where, 2)
    parts = _sizes(line)
    n, what = parts[0], parts[3]
    if what == Each.ABS:
        for i in range(n):
            out[i] = abs(x[i])
    elif what == Each.SQRT:
        for i in range(n):
            out[i] = np.sqrt(x[i])
    elif what == Each.LOG:
        for i in range(n):
            out[i] = np.log(x[i])
    elif what == Each.TANH:
        for i in range(n):
            out[i] = _tanh(x[i])
    elif what == Each.SIGMOID:
        for i in range(n):
            out[i] = _F(1.0) / (_F(1.0) + _exp(-x[i]))
    elif what == Each.TANH_BACKWARD:
        for i in range(n):
            out[i] = x[i] * (_F(1.0) - y[i] * y[i])
    elif what == Each.SIGMOID_BACKWARD:
        for i in range(n):
            out[i] = x[i] * (_F(1.0) - y[i]) * y[i]
    elif what == Each.NE:
        for i in range(n):
            out[i] = _F(1.0) if x[i] != y[i] else _F(0.0)
    elif what == Each.GT:
        for i in range(n):
            out[i] = _F(1.0) if x[i] > y[i] else _F(0.0)
    elif what == Each.LT:
        for i in range(n):
            out[i] = _F(1.0) if x[i] < y[i] else _F(0.0)
    elif what == Each.MAXIMUM:
        for i in range(n):
            out[i] = x[i] if x[i] > y[i] or x[i] != x[i] else y[i]
    elif what == Each.MINIMUM:
        for i in range(n):
            out[i] = x[i] if x[i] < y[i] or x[i] != x[i] else y[i]
    else:
        for i in range(n):
            out[i] = (x[i] - y[i]) * (x[i] - y[i])
    return 0


def _rarest(line, where, number, scratch):
    out, x, y = _floats(line, where, 0), _floats(line, where, 1), _floats(line, where, 2)
    constant, parts = _number(number), _sizes(line)
    n, what = parts[0], parts[3]
    if what == Each.SGN:
        for i in range(n):
            above = _F(1.0) if x[i] > _F(0.0) else _F(0.0)
            out[i] = _F(-1.0) if x[i] < _F(0.0) else above
    elif what == Each.GE:
        for i in range(n):
            out[i] = _F(1.0) if x[i] >= y[i] else _F(0.0)
    elif what == Each.LE:
        for i in range(n):
            out[i] = _F(1.0) if x[i] <= y[i] else _F(0.0)
    elif what == Each.POW:
        if constant == _F(2.0):
            for i in range(n):
                out[i] = x[i] * x[i]
        elif constant == _F(3.0):
            for i in range(n):
                out[i] = x[i] * x[i] * x[i]
        elif constant == _F(0.5):
            for i in range(n):
                out[i] = np.sqrt(x[i])
        else:
            for i in range(n):
                out[i] = x[i] ** constant
    elif what == Each.LOG1P:
        for i in range(n):
            out[i] = np.log1p(x[i])
    elif what == Each.SOFTPLUS:
        for i in range(n):
            out[i] = _exp(x[i])
        # Above the threshold the exponential may be infinite.
        for i in range(n):
            out[i] = x[i] if x[i] > constant else np.log1p(out[i])
    elif what == Each.SOFTPLUS_BACKWARD:
        for i in range(n):
            power = _exp(y[i])
            out[i] = x[i] if y[i] > constant else x[i] * (power / (power + _F(1.0)))
    elif what == Each.HUBER:
        for i in range(n):
            size = abs(x[i] - y[i])
            square, beyond = _F(0.5) * size * size, constant * (size - _F(0.5) * constant)
            out[i] = beyond if size > constant else square
    else:
        for i in range(n):
            below = -constant if y[i] <= -constant else y[i]
            out[i] = x[i] * (constant if y[i] >= constant else below)
    return 0


def _where(line, where, number, scratch):
    out, chosen = _floats(line, where, 0), _floats(line, where, 1)
    x, y = _floats(line, where, 2), _floats(line, where, 3)
    for i in range(_sizes(line)[0]):
        out[i] = x[i] if chosen[i] != _F(0.0) else y[i]
    return 0


# Loops run over slices from zero: an index that is a sum might be negative for all that the
# compiler knows, and would be checked instead of vectorised.


def _copy(line, where, number, scratch):
    out, x = _floats(line, where, 0), _floats(line, where, 1)
    parts = _sizes(line)
    n0, n1, n, s0 = parts[0], parts[1], parts[2], parts[3]
    s1, stride = parts[4], parts[5]
    for i in range(n0):
        for j in range(n1):
            row, source = out[(i * n1 + j) * n :], x[i * s0 + j * s1 :]
            if stride == 1:
                for k in range(n):
                    row[k] = source[k]
            elif stride == 0:
                for k in range(n):
                    row[k] = source[0]
            else:
                for k in range(n):
                    row[k] = source[k * stride]
    return 0


def _integers(line, where, number, scratch):
    out, x = _floats(line, where, 0), _wholes(line, where, 1)
    parts = _sizes(line)
    n0, n1, n2, s0 = parts[0], parts[1], parts[2], parts[3]
    s1, s2 = parts[4], parts[5]
    exact, place = True, 0
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                value = x[i * s0 + j * s1 + k * s2]
                exact &= -EXACT <= value <= EXACT
                out[place] = value
                place += 1
    return 0 if exact else 1


def _rows(line, where, number, scratch):
    out, x, index = _floats(line, where, 0), _floats(line, where, 1), _wholes(line, where, 2)
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    for i in range(rows):
        into, row = out[i * n :], x[index[i] * n :]
        for k in range(n):
            into[k] = row[k]
    return 0


def _integer_rows(line, where, number, scratch):
    out, x, index = _floats(line, where, 0), _wholes(line, where, 1), _wholes(line, where, 2)
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    exact = True
    for i in range(rows):
        for k in range(n):
            value = x[index[i] * n + k]
            exact &= -EXACT <= value <= EXACT
            out[i * n + k] = value
    return 0 if exact else 1


def _product(line, where, number, scratch):
    parts = _sizes(line)
    m, n, depth, a_row = parts[0], parts[1], parts[2], parts[3]
    a_column, b_row, b_column, add = parts[4], parts[5], parts[6], parts[7]
    a, b = _floats(line, where, 1).ctypes.data, _floats(line, where, 2).ctypes.data
    out, edge = _floats(line, where, 0).ctypes.data, span(scratch, _F, EDGE)
    panel = span(scratch + 4 * EDGE, _F, _ANY)
    product(a, a_row, a_column, b, b_row, b_column, out, m, n, depth, add, panel, edge)
    return 0


# Reductions, over the middle of three sizes.


def _sum(line, where, number, scratch):
    out, x, factor = _floats(line, where, 0), _floats(line, where, 1), _number(number)
    parts = _sizes(line)
    outer, n, inner = parts[0], parts[1], parts[2]
    for i in range(outer):
        if inner == 1:
            row, total = x[i * n :], 0.0
            for k in range(n):
                total += row[k]
            out[i] = total * factor
            continue
        into = out[i * inner :]
        for j in range(inner):
            into[j] = 0
        for k in range(n):
            row = x[(i * n + k) * inner :]
            for j in range(inner):
                into[j] += row[j]
        for j in range(inner):
            into[j] *= factor
    return 0


def _largest(place: bool) -> Callable[..., int]:
    def operation(line, where, number, scratch):
        out, x = _floats(line, where, 0), _floats(line, where, 1)
        parts = _sizes(line)
        outer, n, inner = parts[0], parts[1], parts[2]
        for i in range(outer):
            for j in range(inner):
                row, best = x[i * n * inner + j :], 0
                largest = row[0]
                for k in range(1, n):
                    value = row[k * inner]
                    # NaN counts as largest, the first of them, as torch has it.
                    if value > largest or (value != value and largest == largest):
                        largest, best = value, k
                out[i * inner + j] = _F(best) if place else largest
        return 0

    return operation


@njit(inline="always", **INNER)
def _exponentials(out, x, rows, n, shifts, sums, differences, finite):
    """Of rows less their largest number: exponentials, shifts and sums; and the differences.

    With ``finite``, rows of an infinite largest number stay as they are.
    """
    for i in range(rows):
        row, into = x[i * n :], differences[i * n :]
        most = row[0]
        for k in range(1, n):
            most = row[k] if row[k] > most or row[k] != row[k] else most
        shift = _F(0.0) if finite and abs(most) == _F(np.inf) else most
        shifts[i] = shift
        for k in range(n):
            into[k] = row[k] - shift
    for i in range(rows * n):
        out[i] = _exp(differences[i])
    for i in range(rows):
        row, total = out[i * n :], _F(0.0)
        for k in range(n):
            total += row[k]
        sums[i] = total


def _logsumexp(line, where, number, scratch):
    out, x = _floats(line, where, 0), _floats(line, where, 1)
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    shares = span(scratch, _F, _ANY)
    sums = shares[rows * n :]
    _exponentials(shares, x, rows, n, out, sums, shares, True)
    for i in range(rows):
        out[i] += np.log(sums[i])
    return 0


def _log_softmax(line, where, number, scratch):
    out, x = _floats(line, where, 0), _floats(line, where, 1)
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    shares = span(scratch, _F, _ANY)
    shifts, sums = shares[rows * n :], shares[rows * (n + 1) :]
    _exponentials(shares, x, rows, n, shifts, sums, out, False)
    for i in range(rows):
        row, total = out[i * n :], np.log(sums[i])
        for k in range(n):
            row[k] -= total
    return 0


def _softmax(line, where, number, scratch):
    out, x = _floats(line, where, 0), _floats(line, where, 1)
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    differences = span(scratch, _F, _ANY)
    shifts, sums = differences[rows * n :], differences[rows * (n + 1) :]
    _exponentials(out, x, rows, n, shifts, sums, differences, False)
    for i in range(rows):
        row, total = out[i * n :], sums[i]
        for k in range(n):
            row[k] /= total
    return 0


def _softmax_backward(line, where, number, scratch):
    out, gradient, output = (
        _floats(line, where, 0),
        _floats(line, where, 1),
        _floats(line, where, 2),
    )
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    for i in range(rows):
        row, g, shares, total = out[i * n :], gradient[i * n :], output[i * n :], _F(0.0)
        for k in range(n):
            total += g[k] * shares[k]
        for k in range(n):
            row[k] = (g[k] - total) * shares[k]
    return 0


def _log_softmax_backward(line, where, number, scratch):
    out, gradient, output = (
        _floats(line, where, 0),
        _floats(line, where, 1),
        _floats(line, where, 2),
    )
    parts = _sizes(line)
    rows, n = parts[0], parts[1]
    for i in range(rows * n):
        out[i] = _exp(output[i])
    for i in range(rows):
        row, g, total = out[i * n :], gradient[i * n :], _F(0.0)
        for k in range(n):
            total += g[k]
        for k in range(n):
            row[k] = g[k] - row[k] * total
    return 0


def _gather(line, where, number, scratch):
    out, x, index = _floats(line, where, 0), _floats(line, where, 1), _floats(line, where, 2)
    parts = _sizes(line)
    rows, n, picks = parts[0], parts[1], parts[2]
    for i in range(rows):
        for k in range(picks):
            place = int(index[i * picks + k])
            if place < 0 or place >= n:
                return 1
            out[i * picks + k] = x[i * n + place]
    return 0


def _scatter(add: bool) -> Callable[..., int]:
    def operation(line, where, number, scratch):
        out, x, index = _floats(line, where, 0), _floats(line, where, 1), _floats(line, where, 2)
        parts = _sizes(line)
        rows, n, picks = parts[0], parts[1], parts[2]
        for i in range(rows):
            for k in range(picks):
                place = int(index[i * picks + k])
                if place < 0 or place >= n:
                    return 1
                before = out[i * n + place] if add else _F(0.0)
                out[i * n + place] = before + x[i * picks + k]
        return 0

    return operation


# Operands are contiguous but for copy, integers and product. Integers and the rows' indices are
# int64, all else is float32.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "copy": _copy,
    "integers": _integers,
    "rows": _rows,
    "integer_rows": _integer_rows,
    "product": _product,
    "usual": _usual,
    "rarer": _rarer,
    "rarest": _rarest,
    "where": _where,
    "sum": _sum,
    "amax": _largest(place=False),
    "argmax": _largest(place=True),
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax": _log_softmax,
    "log_softmax_backward": _log_softmax_backward,
    "gather": _gather,
    "scatter": _scatter(add=False),
    "scatter_add": _scatter(add=True),
}
