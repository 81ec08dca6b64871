"""How a rule runs on the CPU: one Numba kernel call per step for all tensors.

A kernel walks a table of segments. A segment is a run of contiguous memory with a parameter, its
gradient and its state at given addresses, and a row of coefficients; it is cut into blocks that fit
the cache and are shared out among threads. Storage stays where torch put it, and a replica of a
study is only one more segment with coefficients of its own.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from threading import Lock
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba import prange
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple
from numpy.typing import NDArray

from thalweg.kernels.disk import c_function, keep
from thalweg.kernels.memory import INNER, JIT, SUM, address, call, load, scratch, span, view
from thalweg.kernels.storage import CHUNK, DECODE, ENCODE, NATIVE, NEXT_ARRAY, NEXT_SEGMENT
from thalweg.rules import maths
from thalweg.rules.code import instructions, leans_on
from thalweg.rules.rule import HEAD, Rule

__all__ = ["DTYPES", "Segments", "Storage", "measure", "run", "shift", "step_function"]

Int64Array = NDArray[np.int64]
Rows = NDArray[np.floating[Any]]
F = TypeVar("F", bound=Callable[..., Any])

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
BLOCK = 8192  # elements; four float32 arrays of it fill a quarter of a 512 KiB cache

# Elements that pay for waking the other cores; on a busy machine the wait for them is long.
_MANY = 32768

# A parallel kernel takes all cores; and where Numba has no OpenMP, its own pool of threads ends the
# process when two threads enter it.
_ONE_AT_A_TIME = Lock()

# Columns of the segment table before the addresses of the state.
_ROW, _PARAMETER, _GRADIENT, _STATE = range(4)

_NO_SEEDS = np.zeros(2, dtype=np.int64)


class Storage(NamedTuple):
    """How the arrays of a step lie in memory; computed is in float32 unless all are native.

    Attributes:
        parameter: way of storing parameters and gradients (`thalweg.kernels.storage`).
        states: way of storing each state.
        clear: gradients are set to zero after use.
    """

    parameter: str
    states: tuple[str, ...]
    clear: bool = False

    @property
    def native(self) -> bool:
        """Whether everything is stored as it is computed."""
        return self.parameter == NATIVE and not any(self.states)


def _columns(storage: Storage) -> int:
    """Of a segment table."""
    return _STATE + len(storage.states) * (1 if storage.native else 2)


@dataclass(frozen=True)
class Segments:
    """Which memory a kernel works on.

    Attributes:
        table: int64 ``(segments, 3 + states + states)``: row of coefficients, then the addresses
            of parameter, gradient and each state, and of the scales of states of eight bits.
        blocks: int64 ``(blocks, 3)``: segment, first element, one past the last element.
        elements: of all segments together.
        storage: how the arrays lie in memory.
    """

    table: Int64Array
    blocks: Int64Array
    elements: int
    storage: Storage

    @cached_property
    def given(self) -> tuple[int, int, int, int]:
        """The blocks, their number, the table and the bytes of its lines, for compiled code."""
        return address(self.blocks), len(self.blocks), address(self.table), self.table.strides[0]

    @cached_property
    def starts(self) -> tuple[Int64Array, Int64Array]:
        """The segments that have blocks, and the first of each; a segment's follow one another."""
        return np.unique(self.blocks[:, 0], return_index=True)

    @cached_property
    def stateless(self) -> "Segments":
        """The same for what looks at parameters and gradients alone."""
        return replace(self, storage=self.storage._replace(states=()))

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        rows: Sequence[int],
        states: int,
        storage: Storage | None = None,
    ) -> "Segments":
        """A table with the given lengths (elements) and coefficient rows; addresses are zero."""
        storage = storage or Storage(NATIVE, (NATIVE,) * states)
        table = np.zeros((len(lengths), _columns(storage)), dtype=np.int64)
        table[:, _ROW] = rows
        size = np.asarray(lengths, dtype=np.int64)
        pieces = -(-size // BLOCK)
        segment = np.repeat(np.arange(len(size)), pieces)
        first = BLOCK * (np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        last = np.minimum(first + BLOCK, size[segment])
        blocks = np.stack([segment, first, last], axis=1).astype(np.int64)
        return cls(table, blocks, int(size.sum()), storage)

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
        return self.table[:, _STATE : _STATE + len(self.storage.states)]


def run(
    rule: Rule,
    segments: Segments,
    rows: Rows,
    bounded: bool = False,
    seeds: tuple[int, int] = (0, 0),
) -> None:
    """One step of a resolved rule over all segments, in place.

    Args:
        rule: a resolved rule.
        segments: addresses of contiguous memory, of the dtype of ``rows`` where it is stored as it
            is computed, alive during the call.
        rows: `Rule.row` of each coefficient row, float32 or float64, shape ``(rows, HEAD + n)``.
        bounded: whether some row bounds the entries of the gradient.
        seeds: of what is rounded at random (`thalweg.kernels.storage.seeds`).
    """
    function = _step(rule.update, rows.shape[1] - HEAD, rows.dtype, segments.storage, bounded)
    _over_blocks(function, segments, rows, _NO_SEEDS if seeds == (0, 0) else np.array(seeds))


def measure(
    rule: Rule, segments: Segments, rows: Rows, bounded: bool = False
) -> NDArray[np.float64]:
    """Sums of the rule's terms over each segment, ``(segments, terms)``; nothing is changed."""
    assert rule.terms is not None
    function, terms = _sum(rule.terms, rows.shape[1] - HEAD, rows.dtype, segments.storage, bounded)
    parts = np.zeros((len(segments.blocks), terms))
    _over_blocks(function, segments, rows, parts, each=8 * terms)
    sums = np.zeros((len(segments.table), terms))
    which, first = segments.starts
    if len(first):
        sums[which] = np.add.reduceat(parts, first)
    return sums


def shift(rule: Rule, segments: Segments, rows: Rows) -> None:
    """Move all parameters, in place, to the points where the rule takes its gradient."""
    assert rule.point is not None
    function = _shift(rule.point, len(rule.state), rows.shape[1] - HEAD, rows.dtype)
    _over_blocks(function, segments, rows, rows)


def _over_blocks(
    function: int, segments: Segments, rows: Rows, other: NDArray[Any], each: int = 0
) -> None:
    """Call a C function for every block, on all cores where that pays.

    Args:
        function: its address; it is given the address of the block's line, its first element and
            their number, the addresses of its row of coefficients and of what else it needs, and
            the number of the segment.
        segments: the blocks.
        rows: of coefficients.
        other: what else it needs.
        each: bytes of that for each block; 0 if all are given the same.
    """
    rows = np.ascontiguousarray(rows)
    given = *segments.given, address(rows), rows.strides[0], address(other), each
    if _wants_all_cores(segments):
        with _ONE_AT_A_TIME:
            _on_all_cores(function, *given)
    else:
        _on_one_core(function, *given)


def _wants_all_cores(segments: Segments) -> bool:
    return segments.elements >= _MANY and numba.get_num_threads() > 1


def _drive(function, blocks, count, table, width, rows, length, other, each):
    for b in prange(count):
        block = blocks + 24 * b
        segment = load(block, np.int64)
        first = load(block + 8, np.int64)
        n = load(block + 16, np.int64) - first
        line = table + width * segment
        row = rows + length * load(line, np.int64)
        call(function, (line, first, n, row, other + each * b, segment))


def _driver(parallel: bool) -> Any:
    compiled = numba.njit(nogil=True, parallel=parallel, **JIT)(_drive)
    keep(compiled, _drive, parallel)
    return compiled


# Compiled once for all rules: what takes long to compile is the use of several cores.
_on_one_core, _on_all_cores = _driver(parallel=False), _driver(parallel=True)


@cache
def _step(
    update: Callable[..., Any],
    coefficients: int,
    dtype: np.dtype[Any],
    storage: Storage,
    bounded: bool,
) -> int:
    """Address of a C function that takes the step of a block."""
    number: Callable[[float], Any] = dtype.type
    segment = _segment(update, number, bounded, storage.clear)
    slots, length = (0,) * len(storage.states), HEAD + coefficients
    size = dtype.itemsize

    def block(line, first, n, row, other, which):
        table = span(line, np.int64, 3 + len(slots))
        numbers = span(row, number, length)
        p = span(table[1] + size * first, number, n)
        g = span(table[2] + size * first, number, n)
        state = _views(slots, table, 3, numbers, first, n)
        segment(p, g, state, n, to_fixed_tuple(numbers, length))
        return 0

    opened, closed, room = _opener(storage), _closer(storage), _room(storage)
    columns = _columns(storage)

    def through_work(line, first, n, row, other, which):
        table = to_fixed_tuple(span(line, np.int64, columns), columns)
        numbers = to_fixed_tuple(span(row, number, length), length)
        work = room()
        place = load(other, np.int64) + NEXT_SEGMENT * which
        turn = load(other + 8, np.int64)
        for start in range(first, first + n, CHUNK):
            m = min(CHUNK, first + n - start)
            arrays = opened(table, work, start, m)
            segment(arrays[0], arrays[1], arrays[2:], m, numbers)
            closed(table, work, start, m, place, turn)
        return 0

    key = _key(update, "step", coefficients, dtype.name, repr(storage), bounded)
    return c_function(block if storage.native else through_work, key, 6)


@cache
def step_function(update: Callable[..., Any], states: int, coefficients: int, bounded: bool) -> int:
    """Address of a C function that takes one step by a rule's update, float32, on this core.

    ``(lines, sizes, count, row)``: addresses of the ``count`` segments' lines, int64, each of the
    addresses of parameter, gradient and states; of their numbers of elements, int64; of the
    coefficients, float32, as `Rule.row` has them. It returns 0.
    """
    segment = _segment(update, np.float32, bounded, False)
    slots, width = (0,) * states, 2 + states
    length = HEAD + coefficients

    def kernel(lines, sizes, count, row):
        table = span(lines, np.int64, count * width)
        lengths = span(sizes, np.int64, count)
        numbers = span(row, np.float32, length)
        coefficients = to_fixed_tuple(numbers, length)
        for k in range(count):
            line, n = table[k * width :], lengths[k]
            p = span(line[0], np.float32, n)
            g = span(line[1], np.float32, n)
            segment(p, g, _views(slots, line, 2, numbers, 0, n), n, coefficients)
        return 0

    return c_function(kernel, _key(update, "function", states, coefficients, bounded))


def _segment(
    update: Callable[..., Any], kind: Callable[[float], Any], bounded: bool, clear: bool
) -> Callable[..., None]:
    """The loop over the elements of one segment."""
    update = _in_dtype(update, kind)
    gradient = _bounded if bounded else _free
    leave = _zero if clear else _as_it_is

    def segment(p, g, state, n, row):
        sign, bound, coupled, shrink = row[:HEAD]
        c = row[HEAD:]
        for i in range(n):
            prepared = gradient(g[i], sign, bound)
            # Zero times an infinite parameter would be NaN.
            if coupled != 0:
                prepared += coupled * p[i]
            new = update(shrink * p[i], prepared, *_load(state, i), *c)
            p[i] = new[0]
            leave(g, i)
            _store(state, i, new[1:])

    jitted: Callable[..., None] = register_jitable(**INNER)(segment)
    return jitted


@cache
def _sum(
    terms: Callable[..., Any],
    coefficients: int,
    dtype: np.dtype[Any],
    storage: Storage,
    bounded: bool,
) -> tuple[int, int]:
    """Address of a C function that sums terms over a block, and how many terms there are."""
    number: Callable[[float], Any] = dtype.type
    asked = _in_dtype(terms, number)
    gradient = _bounded if bounded else _free
    slots, length = (0,) * len(storage.states), HEAD + coefficients
    size = dtype.itemsize

    def add(totals, p, g, state, n, row):
        sign, bound, coupled, _ = row[:HEAD]
        c = row[HEAD:]
        for i in range(n):
            prepared = gradient(g[i], sign, bound)
            if coupled != 0:
                prepared += coupled * p[i]
            totals = _plus(totals, asked(p[i], prepared, *_load(state, i), *c))
        return totals

    add = register_jitable(**SUM)(add)
    count = len(terms(*(1.0,) * (2 + len(slots) + coefficients)))
    zeros = (0.0,) * count

    def block(line, first, n, row, other, which):
        table = span(line, np.int64, 3 + len(slots))
        numbers = span(row, number, length)
        p = span(table[1] + size * first, number, n)
        g = span(table[2] + size * first, number, n)
        state = _views(slots, table, 3, numbers, first, n)
        found = add(zeros, p, g, state, n, to_fixed_tuple(numbers, length))
        _store_all(span(other, np.float64, count), found)
        return 0

    opened, room, columns = _opener(storage), _room(storage), _columns(storage)

    def through_work(line, first, n, row, other, which):
        table = to_fixed_tuple(span(line, np.int64, columns), columns)
        numbers = to_fixed_tuple(span(row, number, length), length)
        work = room()
        totals = zeros
        for start in range(first, first + n, CHUNK):
            m = min(CHUNK, first + n - start)
            arrays = opened(table, work, start, m)
            totals = add(totals, arrays[0], arrays[1], arrays[2:], m, numbers)
        _store_all(span(other, np.float64, count), totals)
        return 0

    key = _key(terms, "sum", coefficients, dtype.name, repr(storage), bounded)
    return c_function(block if storage.native else through_work, key, 6), count


@cache
def _shift(point: Callable[..., Any], states: int, coefficients: int, dtype: np.dtype[Any]) -> int:
    """Address of a C function that moves a block to where its rule takes the gradient."""
    number: Callable[[float], Any] = dtype.type
    moved = _in_dtype(point, number)
    slots, length = (0,) * states, HEAD + coefficients
    size = dtype.itemsize

    def block(line, first, n, row, other, which):
        table = span(line, np.int64, 3 + len(slots))
        numbers = span(row, number, length)
        p = span(table[1] + size * first, number, n)
        state = _views(slots, table, 3, numbers, first, n)
        c = to_fixed_tuple(numbers, length)[HEAD:]
        for i in range(n):
            p[i] = moved(p[i], *_load(state, i), *c)
        return 0

    return c_function(block, _key(point, "shift", states, coefficients, dtype.name), 6)


# Arrays that are stored in another way are taken through a chunk of float32 work space each.


def _room(storage: Storage) -> Callable[[], int]:
    """Returns the address of the work space."""
    return scratch(4 * CHUNK * (2 + len(storage.states)))


@register_jitable(**INNER)
def _work(work, k, n):
    return span(work + 4 * CHUNK * k, np.float32, n)


def _opener(storage: Storage) -> Callable[..., Any]:
    """Takes a line, address of work space, first element and length; returns all arrays."""
    n_states = len(storage.states)
    kinds = (storage.parameter, storage.parameter, *storage.states)

    def chain(k: int) -> Callable[..., Any]:
        if k == len(kinds):
            return register_jitable(**INNER)(lambda line, work, first, n: ())
        rest, column = chain(k + 1), 1 + k
        if kinds[k] == NATIVE:

            def native(line, work, first, n):
                array = span(line[column] + 4 * first, np.float32, n)
                return array, *rest(line, work, first, n)

            return register_jitable(**INNER)(native)
        decode, scale = DECODE[kinds[k]], column + n_states if k > 1 else 0

        def decoded(line, work, first, n):
            array = _work(work, k, n)
            decode(line[column], line[scale], array, first, n)
            return array, *rest(line, work, first, n)

        return register_jitable(**INNER)(decoded)

    return chain(0)


def _closer(storage: Storage) -> Callable[..., None]:
    """Takes the same and two seeds, and stores what is not stored as it is computed."""
    n_states = len(storage.states)
    kinds = (storage.parameter, storage.parameter, *storage.states)
    stored = [k for k, kind in enumerate(kinds) if kind and (k != 1 or storage.clear)]

    def chain(left: list[int]) -> Callable[..., None]:
        if not left:
            return register_jitable(**INNER)(lambda line, work, first, n, place, turn: None)
        (k, *others), column = left, 1 + left[0]
        rest, scale = chain(others), column + n_states if k > 1 else 0
        encode = ENCODE[kinds[k]]

        def encoded(line, work, first, n, place, turn):
            array, place_of_it = _work(work, k, n), place + NEXT_ARRAY * k
            encode(line[column], line[scale], array, first, n, place_of_it, turn)
            rest(line, work, first, n, place, turn)

        return register_jitable(**INNER)(encoded)

    return chain(stored)


@cache
def _in_dtype(function: F, kind: Callable[[float], Any]) -> F:
    """A function of rules, and those it calls or closes over, for compiling, constants in a dtype.

    A bare number among float32s would make all of them float64.
    """

    def converted(value: Any) -> Any:
        if isinstance(value, float):
            return kind(value)
        return _in_dtype(value, kind) if _is_plain(value) else value

    code = function.__code__
    constants = tuple(kind(c) if type(c) in (int, float) else c for c in code.co_consts)
    found = {name: converted(value) for name, value in leans_on(function).items()}
    made = FunctionType(
        code.replace(co_consts=constants),
        function.__globals__ | found,
        function.__name__,
        function.__defaults__,
        tuple(CellType(found[name]) for name in code.co_freevars),
    )
    compiled: F = register_jitable(**INNER)(made)
    return compiled


def _is_plain(value: Any) -> bool:
    """Whether this is a function of Python's that is not one of those that rules are made of."""
    return isinstance(value, FunctionType) and value.__module__ != maths.__name__


def _key(maths_of_rule: Callable[..., Any], *kind: Any) -> tuple[Any, ...] | None:
    """What tells a rule's compiled code from others on disk; None where keeping it is not safe."""
    fingerprint = _fingerprint(maths_of_rule)
    return None if fingerprint is None else (fingerprint, *kind)


def _fingerprint(function: Callable[..., Any]) -> tuple[Any, ...] | None:
    """What the maths is, or None when it leans on something whose changes we could not see."""
    code = getattr(function, "__code__", None)
    if code is None or any(isinstance(c, CodeType) for c in code.co_consts):
        return None
    if function.__defaults__ or function.__kwdefaults__:
        return None
    # A compiled kernel imports the module again; one loaded by its path alone it would not find.
    if function.__module__ not in sys.modules:
        return None
    inside = []
    for name, value in leans_on(function).items():
        part: Any = repr(value)
        if _is_plain(value):
            part = _fingerprint(value)
        elif isinstance(value, FunctionType):
            part = value.__name__
        elif value is maths:
            part = maths.__name__
        elif not isinstance(value, int | float):
            return None
        if part is None:
            return None
        inside.append((name, part))
    return instructions(code), function.__module__, *inside


@register_jitable(**INNER)
def _free(g, sign, bound):
    return sign * g


@register_jitable(**INNER)
def _bounded(g, sign, bound):
    return maths.maximum(maths.minimum(sign * g, bound), -bound)


@register_jitable(**INNER)
def _as_it_is(g, i):
    pass


@register_jitable(**INNER)
def _zero(g, i):
    g[i] = 0


# Tuples of any length, taken apart by recursion so that the loop over elements vectorises.


def _views(slots, segment, column, like, first, n):
    raise NotImplementedError


def _load(views, i):
    raise NotImplementedError


def _store(views, i, values):
    raise NotImplementedError


def _plus(totals, values):
    raise NotImplementedError


def _store_all(array, values):
    raise NotImplementedError


@overload(_plus, jit_options=SUM)
def _compiled_plus(totals, values):
    if len(totals) == 0:
        return lambda totals, values: ()
    return lambda totals, values: (totals[0] + values[0], *_plus(totals[1:], values[1:]))


@overload(_store_all, jit_options=INNER)
def _compiled_store_all(array, values):
    if len(values) == 0:
        return lambda array, values: None

    def store(array, values):
        array[0] = values[0]
        _store_all(array[1:], values[1:])

    return store


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
