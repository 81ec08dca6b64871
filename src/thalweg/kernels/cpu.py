"""How a rule runs on the CPU: one Numba kernel call per step for all tensors.

A kernel walks a table of segments. A segment is a run of contiguous memory with a parameter, its
gradient and its state at given addresses, and a row of coefficients; it is cut into blocks that fit
the cache and are shared out among threads. Storage stays where torch put it, and a replica of a
study is only one more segment with coefficients of its own.
"""

import marshal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import CodeType
from typing import Any

import numba
import numpy as np
from numba import prange
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple
from numpy.typing import NDArray

from thalweg.kernels.disk import c_function, keep
from thalweg.kernels.memory import INNER, JIT, span, view
from thalweg.rules import maths
from thalweg.rules.rule import Rule, prepare

__all__ = ["DTYPES", "Segments", "run", "shift", "step_function"]

Int64Array = NDArray[np.int64]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
BLOCK = 8192  # elements; four float32 arrays of it fill a quarter of a 512 KiB cache

# Elements that pay for waking the other cores; on a busy machine the wait for them is long.
_MANY = 32768

# A parallel kernel takes all cores; and where Numba has no OpenMP, its own pool of threads ends the
# process when two threads enter it.
_ONE_AT_A_TIME = Lock()

# Columns of the segment table before the addresses of the state.
_ROW, _PARAMETER, _GRADIENT, _STATE = range(4)


@dataclass
class Segments:
    """Which memory a kernel works on.

    Attributes:
        table: int64 ``(segments, 3 + states)``: row of coefficients, then the addresses of
            parameter, gradient and each state.
        blocks: int64 ``(blocks, 3)``: segment, first element, one past the last element.
        elements: of all segments together.
    """

    table: Int64Array
    blocks: Int64Array
    elements: int

    @classmethod
    def of(cls, lengths: Sequence[int], rows: Sequence[int], states: int) -> "Segments":
        """A table with the given lengths (elements) and coefficient rows; addresses are zero."""
        table = np.zeros((len(lengths), _STATE + states), dtype=np.int64)
        table[:, _ROW] = rows
        size = np.asarray(lengths, dtype=np.int64)
        pieces = -(-size // BLOCK)
        segment = np.repeat(np.arange(len(size)), pieces)
        first = BLOCK * (np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        last = np.minimum(first + BLOCK, size[segment])
        blocks = np.stack([segment, first, last], axis=1).astype(np.int64)
        return cls(table, blocks, int(size.sum()))

    @property
    def rows(self) -> Int64Array:
        """Column of coefficient rows, to be written in place."""
        return self.table[:, _ROW]

    @property
    def parameters(self) -> Int64Array:
        """Column of parameter addresses, to be written in place."""
        return self.table[:, _PARAMETER]

    @property
    def gradients(self) -> Int64Array:
        """Column of gradient addresses, to be written in place."""
        return self.table[:, _GRADIENT]

    @property
    def states(self) -> Int64Array:
        """Columns of state addresses, to be written in place."""
        return self.table[:, _STATE:]


def run(rule: Rule, segments: Segments, rows: NDArray[np.floating[Any]]) -> None:
    """One step of a resolved rule over all segments, in place.

    Args:
        rule: a resolved rule.
        segments: addresses of contiguous memory of the dtype of ``rows``, alive during the call.
        rows: `Rule.row` of each coefficient row, float32 or float64, shape ``(rows, 3 + n)``.
    """
    parallel = _wants_all_cores(segments)
    kernel = _step_kernel(rule.update, len(rule.state), rows.shape[1] - 3, parallel)
    with _ONE_AT_A_TIME if parallel else nullcontext():
        kernel(segments.blocks, segments.table, rows)


def shift(rule: Rule, segments: Segments, rows: NDArray[np.floating[Any]]) -> None:
    """Move all parameters, in place, to the points where the rule takes its gradient."""
    assert rule.point is not None
    parallel = _wants_all_cores(segments)
    kernel = _shift_kernel(rule.point, len(rule.state), rows.shape[1] - 3, parallel)
    with _ONE_AT_A_TIME if parallel else nullcontext():
        kernel(segments.blocks, segments.table, rows)


def _wants_all_cores(segments: Segments) -> bool:
    return segments.elements >= _MANY and numba.get_num_threads() > 1


@cache
def _step_kernel(
    update: Callable[..., Any], states: int, coefficients: int, parallel: bool
) -> Callable[..., None]:
    segment = _segment(update, coefficients)
    slots = (0,) * states

    def kernel(blocks, table, rows):
        for b in prange(blocks.shape[0]):
            line = table[blocks[b, 0]]
            first = blocks[b, 1]
            n = blocks[b, 2] - first
            p = view(line[1], rows, first, n)
            g = view(line[2], rows, first, n)
            segment(p, g, _views(slots, line, 3, rows, first, n), n, rows[line[0]])

    return _compile(kernel, update, parallel, states, coefficients)


@cache
def step_function(update: Callable[..., Any], states: int, coefficients: int) -> int:
    """Address of a C function that takes one step by a rule's update, float32, on this core.

    ``(lines, sizes, count, row)``: addresses of the ``count`` segments' lines, int64, each of the
    addresses of parameter, gradient and states; of their numbers of elements, int64; of the
    coefficients, float32, as `Rule.row` has them. It returns 0.
    """
    segment = _segment(update, coefficients)
    slots, width = (0,) * states, 2 + states

    def kernel(lines, sizes, count, row):
        table = span(lines, np.int64, count * width)
        lengths = span(sizes, np.int64, count)
        numbers = span(row, np.float32, 3 + coefficients)
        for k in range(count):
            line, n = table[k * width :], lengths[k]
            p = span(line[0], np.float32, n)
            g = span(line[1], np.float32, n)
            segment(p, g, _views(slots, line, 2, numbers, 0, n), n, numbers)
        return 0

    return c_function(kernel, _key(update, "function", states, coefficients))


def _segment(update: Callable[..., Any], coefficients: int) -> Callable[..., None]:
    """The loop over the elements of one segment."""
    update = register_jitable(**INNER)(update)

    def segment(p, g, state, n, row):
        sign, coupled, shrink = row[0], row[1], row[2]
        c = to_fixed_tuple(row[3:], coefficients)
        for i in range(n):
            if coupled != 0:
                decayed, prepared = _prepare(p[i], g[i], sign, coupled, shrink)
            else:
                # Zero times an infinite parameter would be NaN.
                decayed, prepared = shrink * p[i], sign * g[i]
            new = update(decayed, prepared, *_load(state, i), *c)
            p[i] = new[0]
            _store(state, i, new[1:])

    jitted: Callable[..., None] = register_jitable(**INNER)(segment)
    return jitted


@cache
def _shift_kernel(
    point: Callable[..., Any], states: int, coefficients: int, parallel: bool
) -> Callable[..., None]:
    point = register_jitable(**INNER)(point)
    slots = (0,) * states

    def kernel(blocks, table, rows):
        for b in prange(blocks.shape[0]):
            segment = table[blocks[b, 0]]
            first = blocks[b, 1]
            n = blocks[b, 2] - first
            c = to_fixed_tuple(rows[segment[0]][3:], coefficients)
            p = view(segment[1], rows, first, n)
            state = _views(slots, segment, 3, rows, first, n)
            for i in range(n):
                p[i] = point(p[i], *_load(state, i), *c)

    return _compile(kernel, point, parallel, states, coefficients)


def _compile(
    kernel: Callable[..., Any], maths_of_rule: Callable[..., Any], parallel: bool, *shape: int
) -> Any:
    """Compile a kernel lazily, for each dtype once, cached on disk where that is safe."""
    compiled = numba.njit(parallel=parallel, nogil=True, no_cfunc_wrapper=True, **JIT)(kernel)
    key = _key(maths_of_rule, parallel, *shape)
    if key is not None:
        keep(compiled, kernel, *key)
    return compiled


def _key(maths_of_rule: Callable[..., Any], *kind: Any) -> tuple[Any, ...] | None:
    """What tells a rule's compiled code from others on disk; None where keeping it is not safe."""
    fingerprint = _fingerprint(maths_of_rule)
    if fingerprint is None:
        return None
    return fingerprint, maths_of_rule.__module__, _fingerprint(prepare), *kind


def _fingerprint(function: Callable[..., Any]) -> bytes | None:
    """What the maths is, or None when it leans on something whose changes we could not see."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_freevars or any(isinstance(c, CodeType) for c in code.co_consts):
        return None
    for name in code.co_names:
        used = function.__globals__.get(name, maths)
        if used is not maths and getattr(used, "__module__", None) != maths.__name__:
            return None
    if function.__defaults__ or function.__kwdefaults__:
        return None
    # A compiled kernel imports the module again; one loaded by its path alone it would not find.
    if function.__module__ not in sys.modules:
        return None
    # Version 2 of the format is the last whose bytes do not depend on reference counts.
    return marshal.dumps(code.replace(co_filename="", co_firstlineno=1), 2)


_prepare = register_jitable(**INNER)(prepare)


# Tuples of any length, taken apart by recursion so that the loop over elements vectorises.


def _views(slots, segment, column, like, first, n):
    raise NotImplementedError


def _load(views, i):
    raise NotImplementedError


def _store(views, i, values):
    raise NotImplementedError


@overload(_views, jit_options=INNER)
def _compiled_views(slots, segment, column, like, first, n):
    if len(slots) == 0:
        return lambda slots, segment, column, like, first, n: ()
    return lambda slots, segment, column, like, first, n: (
        view(segment[column], like, first, n),
        *_views(slots[1:], segment, column + 1, like, first, n),
    )


@overload(_load, jit_options=INNER)
def _compiled_load(views, i):
    if len(views) == 0:
        return lambda views, i: ()
    return lambda views, i: (views[0][i], *_load(views[1:], i))


@overload(_store, jit_options=INNER)
def _compiled_store(views, i, values):
    if len(views) == 0:
        return lambda views, i, values: None

    def store(views, i, values):
        views[0][i] = values[0]
        _store(views[1:], i, values[1:])

    return store


@overload(maths.sqrt, jit_options=INNER)
def _sqrt(x):
    return lambda x: np.sqrt(x)


@overload(maths.absolute, jit_options=INNER)
def _absolute(x):
    return lambda x: abs(x)


@overload(maths.sign, jit_options=INNER)
def _sign(x):
    return lambda x: np.sign(x)


@overload(maths.maximum, jit_options=INNER)
def _maximum(x, y):
    return lambda x, y: x if x > y or x != x else y


@overload(maths.minimum, jit_options=INNER)
def _minimum(x, y):
    return lambda x, y: x if x < y or x != x else y


@overload(maths.where, jit_options=INNER)
def _where(condition, x, y):
    return lambda condition, x, y: x if condition else y
