"""Every operation of the tape, alone, against NumPy and torch in float64."""

from collections.abc import Callable, Sequence
from itertools import product as every
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch.nn import functional

from thalweg.kernels import tape
from thalweg.kernels.gemm import EDGE, LANES
from thalweg.kernels.tape import EXACT, Each

Array = NDArray[Any]

EPS = float(np.finfo(np.float32).eps)
LEAST = float(np.finfo(np.float32).smallest_subnormal)
MOST = float(np.finfo(np.float32).max)
GUARD = np.float32(-12345.0)
SPECIAL = np.array(
    [
        0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-38, -1e-38, 1e-45,
        1, -1, 2, 0.5, 1e4, -1e4, 88.5, -88.5, -100,
    ],
    dtype=np.float32,
)  # fmt: skip


def run(
    operation: str | Each,
    out: Array,
    operands: Sequence[Array],
    sizes: Sequence[int],
    strides: Sequence[int] = (),
    number: float = 0.0,
    panel: int = 0,
) -> Array | None:
    """One instruction, on a copy of ``out``; None if it fails.

    Scratch is full of NaN before, and nothing but the result may have changed after.
    """
    if isinstance(operation, Each):
        operation, strides = operation.function, [int(operation)]
    guarded = np.full(out.size + 128, GUARD)
    held = guarded[64:-64]
    held[:] = out.ravel()
    before = [x.tobytes() for x in operands]
    arrays = [held, *operands]
    places = [n for i in range(1, len(arrays)) for n in (i, 0)] + [0, 0] * (4 - len(arrays))
    line = [
        tape.address(operation), 0, 0, *places,
        *sizes, *[1] * (3 - len(sizes)), *strides, *[0] * (5 - len(strides)),
    ]  # fmt: skip
    assert len(line) == tape.COLUMNS
    workspace = tape.Workspace(1, panel + 64, len(arrays))
    workspace.panel[:] = np.nan
    workspace.panel[EDGE + panel :] = GUARD
    done = tape.run(
        np.array([line], dtype=np.int64),
        np.array([number], dtype=np.float32),
        np.array([[a.ctypes.data, 0, 0] for a in arrays], dtype=np.int64),
        workspace,
        np.arange(1),
    )
    assert (guarded[:64] == GUARD).all()
    assert (guarded[-64:] == GUARD).all()
    assert (workspace.panel[EDGE + panel :] == GUARD).all()
    assert [x.tobytes() for x in operands] == before
    return held.reshape(out.shape) if done else None


def blank(*shape: int) -> Array:
    return np.full(shape, np.float32(777.0))


def floats(random: np.random.Generator, *shape: int, scale: float = 3.0) -> Array:
    return random.normal(size=shape, scale=scale).astype(np.float32)


def wide(x: Array) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


def strange(random: np.random.Generator, rows: int, n: int) -> Array:
    """Rows of ordinary numbers, of one special number among them, and of special numbers alone."""
    x = floats(random, rows, n)
    for i, value in enumerate(SPECIAL):
        x[i % rows, random.integers(n)] = value
    return np.concatenate([x, random.choice(SPECIAL, (rows, n)), np.repeat(SPECIAL[:, None], n, 1)])


def agree(found: Array | None, expected: Array | torch.Tensor, error: Any = 0.0) -> None:
    """The same NaN, the same infinities, and all else within the error."""
    assert found is not None
    with np.errstate(over="ignore"):
        rounded = np.asarray(expected).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(rounded))
    infinite = np.isinf(rounded)
    np.testing.assert_array_equal(np.isinf(found), infinite)
    np.testing.assert_array_equal(found[infinite], rounded[infinite])
    finite = np.isfinite(rounded)
    with np.errstate(invalid="ignore"):
        apart = np.abs(found.astype(np.float64) - np.asarray(expected, dtype=np.float64))
        allowed = np.broadcast_to(error, rounded.shape)[finite]
    if np.any(allowed):
        assert (apart[finite] <= allowed).all(), (apart[finite] - allowed).max()
    else:
        np.testing.assert_array_equal(found[finite], rounded[finite])


def ulps(found: Array, expected: Array) -> Array:
    size = np.abs(expected).astype(np.float32)
    return np.abs(found.astype(np.float64) - expected) / np.spacing(size).astype(np.float64)


# Products.

SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 31, 63, 64, 65, 70)


def laid_out(x: Array, layout: str) -> tuple[Array, int, int]:
    """The memory of a matrix and its strides in elements; all of it but the matrix is NaN."""
    rows, columns = x.shape
    if layout == "rows":
        return np.ascontiguousarray(x), columns, 1
    if layout == "columns":
        return np.ascontiguousarray(x.T), 1, rows
    apart = np.full((rows, 2 * columns + 3), np.float32(np.nan))
    apart[:, : 2 * columns : 2] = x
    return apart, 2 * columns + 3, 2


def multiply(
    a: Array, b: Array, layouts: tuple[str, str] = ("rows", "rows"), onto: Array | None = None
) -> Array:
    (m, depth), n = a.shape, b.shape[1]
    (a_held, *a_strides), (b_held, *b_strides) = map(laid_out, (a, b), layouts)
    found = run(
        "product",
        blank(m, n) if onto is None else onto,
        [a_held, b_held],
        [m, n, depth],
        [*a_strides, *b_strides, onto is not None],
        panel=-(-depth // LANES) * LANES * 4 * LANES,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("add", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("layouts", list(every(("rows", "columns", "apart"), repeat=2)))
def test_products(layouts: tuple[str, str], add: bool) -> None:
    random = np.random.default_rng(0)
    for m, n, depth in every(SIZES, repeat=3):
        a, b, c = (floats(random, *shape) for shape in ((m, depth), (depth, n), (m, n)))
        found = multiply(a, b, layouts, c if add else None)
        a, b, c = (x.astype(np.float64) for x in (a, b, c))
        # As many roundings as summands, each of at most all of them together.
        size = depth * (np.abs(a) @ np.abs(b)) + (np.abs(c) + np.abs(a) @ np.abs(b) if add else 0)
        assert (np.abs(found - (a @ b + c * add)) <= EPS * size).all(), (m, n, depth)


@pytest.mark.parametrize("layouts", list(every(("rows", "columns"), repeat=2)))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(
    value: float, layouts: tuple[str, str]
) -> None:
    random = np.random.default_rng(1)
    for m, n, depth in every((1, 5, 16, 17, 64, 67), repeat=3):
        a, b = floats(random, m, depth), floats(random, depth, n)
        i, j, k, other = (int(random.integers(size)) for size in (m, n, depth, depth))
        for x, place in ((a, (i, k)), (b, (other, j))):
            held = x[place]
            x[place] = value
            found = multiply(a, b, layouts)
            with np.errstate(invalid="ignore"):
                expected = a.astype(np.float64) @ b
            agree(found, expected, EPS * depth * 1e3)
            bad = ~np.isfinite(found)
            assert bad.sum() == (n if x is a else m)
            x[place] = held


# Element by element.

EACH: dict[Each, Callable[..., torch.Tensor]] = {
    Each.ADD: torch.add,
    Each.SUB: torch.sub,
    Each.MUL: torch.mul,
    Each.DIV: torch.div,
    Each.NEG: torch.neg,
    Each.RELU: torch.relu,
    Each.EXP: torch.exp,
    Each.EQ: torch.eq,
    Each.ABS: torch.abs,
    Each.SQRT: torch.sqrt,
    Each.LOG: torch.log,
    Each.TANH: torch.tanh,
    Each.SIGMOID: torch.sigmoid,
    Each.NE: torch.ne,
    Each.GT: torch.gt,
    Each.LT: torch.lt,
    Each.MAXIMUM: torch.maximum,
    Each.MINIMUM: torch.minimum,
    Each.SQUARED_DIFFERENCE: lambda x, y: (x - y) ** 2,
    Each.FILL: lambda number: number,
    Each.THRESHOLD_BACKWARD: torch.ops.aten.threshold_backward.default,
    Each.TANH_BACKWARD: torch.ops.aten.tanh_backward.default,
    Each.SIGMOID_BACKWARD: torch.ops.aten.sigmoid_backward.default,
    Each.SGN: torch.sgn,
    Each.GE: torch.ge,
    Each.LE: torch.le,
    Each.POW: torch.pow,
    Each.LOG1P: torch.log1p,
    Each.SOFTPLUS: lambda x, t: functional.softplus(x, threshold=t),
    Each.SOFTPLUS_BACKWARD: lambda g, x, t: torch.ops.aten.softplus_backward(g, x, 1, t),
    Each.HUBER: lambda x, y, bound: functional.huber_loss(x, y, reduction="none", delta=bound),
    # Of a gradient and of a difference.
    Each.HUBER_BACKWARD: lambda g, d, bound: torch.ops.aten.huber_loss_backward(
        g, d, torch.zeros_like(d), 0, bound
    ),
}
ONE = (
    Each.NEG, Each.RELU, Each.EXP, Each.ABS, Each.SQRT, Each.LOG, Each.TANH, Each.SIGMOID,
    Each.SGN, Each.LOG1P,
)  # fmt: skip
# Their operands, and numbers that they are tried with.
WITH_NUMBER: dict[Each, tuple[int, tuple[float, ...]]] = {
    Each.FILL: (0, (0.0, -0.5, 1.0, 3e38)),
    Each.THRESHOLD_BACKWARD: (2, (0.0, -0.5, 1.0, 3e38)),
    Each.POW: (1, (2.0, 3.0, 0.5, 1.5, -1.0, -2.0, 0.0)),
    Each.SOFTPLUS: (1, (20.0, 40.0)),
    Each.SOFTPLUS_BACKWARD: (2, (20.0, 40.0)),
    Each.HUBER: (2, (1.0, 0.1, 3e4)),
    Each.HUBER_BACKWARD: (2, (1.0, 0.1, 3e4)),
}
GRADIENTS = (Each.TANH_BACKWARD, Each.SIGMOID_BACKWARD)
# Units in the last place; all others are rounded once and so have no choice.
ULPS = {
    Each.EXP: 2.0, Each.LOG: 1.0, Each.TANH: 2.0, Each.SIGMOID: 3.0,
    Each.SQUARED_DIFFERENCE: 3.0, Each.TANH_BACKWARD: 3.0, Each.SIGMOID_BACKWARD: 3.0,
    Each.POW: 2.0, Each.LOG1P: 1.0, Each.SOFTPLUS: 3.0, Each.SOFTPLUS_BACKWARD: 3.0,
    Each.HUBER: 4.0, Each.HUBER_BACKWARD: 1.0,
}  # fmt: skip


def each(op: Each, x: Array, *others: Array, number: float = 0.0) -> Array:
    found = run(op, np.full_like(x, 777.0), [x, *others], [x.size], number=number)
    assert found is not None
    return found


@pytest.mark.parametrize("op", Each)
def test_elementwise(op: Each) -> None:
    random = np.random.default_rng(op)
    # The special numbers against each other, then ordinary ones.
    x, y = (np.append(s, floats(random, 1003, scale=8)) for s in np.meshgrid(SPECIAL, SPECIAL))
    y[-3:] = x[-3:]
    if op in GRADIENTS:  # of an output, which is bounded
        low = 0 if op is Each.SIGMOID_BACKWARD else -1
        y = np.where(np.isnan(y), y, random.uniform(low, 1, y.size).astype(np.float32))
    if op in WITH_NUMBER:
        count, numbers = WITH_NUMBER[op]
        if op is Each.HUBER:  # a difference that float32 does not hold
            x, y = (np.where(np.abs(a) == np.float32(3e38), np.float32(7), a) for a in (x, y))
        for number in numbers:
            given = [x, y][:count]
            found = run(op, blank(x.size), given, [x.size], number=number)
            constant = float(np.float32(number))
            wanted = np.broadcast_to(EACH[op](*map(wide, given), constant), x.shape)
            with np.errstate(invalid="ignore"):
                size = np.nan_to_num(np.abs(wanted.astype(np.float64)), posinf=0)
            error: Any = (ULPS[op] * EPS * size + LEAST) if op in ULPS else 0.0
            if op is Each.SOFTPLUS_BACKWARD:  # times an exponential that may be denormal
                error = error + LEAST * np.nan_to_num(np.abs(x.astype(np.float64)), posinf=0)
            agree(found, wanted, error)
        return
    operands = [x] if op in ONE else [x, y]
    expected = EACH[op](*map(wide, operands)).double().numpy()
    error = 0.0
    if op in ULPS:
        size = np.where(np.isfinite(expected), np.abs(expected), 0.0)
        if op is Each.TANH_BACKWARD:  # 1 - y y loses what y y rounds
            size = np.abs(np.nan_to_num(x.astype(np.float64)))
        # One divided by what is infinite in float32 is zero, to torch as well.
        error = ULPS[op] * EPS * size + (1 / MOST if op is Each.SIGMOID else LEAST)
    agree(each(op, *operands), expected, error)


def test_exp_over_all_that_float32_holds() -> None:
    x = np.linspace(-87, 88, 2_000_001).astype(np.float32)
    assert ulps(each(Each.EXP, x), np.exp(x.astype(np.float64))).max() < 1.1
    # The last before zero are denormal, and rounded twice.
    x = np.linspace(-110, -87, 500_001).astype(np.float32)
    found = each(Each.EXP, x)
    assert ulps(found, np.exp(x.astype(np.float64))).max() < 1.6
    assert not found[x < -104].any()


def test_exp_is_finite_up_to_the_largest_float32() -> None:
    x = np.linspace(88, 88.722, 100_001).astype(np.float32)
    found = each(Each.EXP, x)
    assert np.isfinite(found).all(), f"infinite from {x[np.isinf(found)].min()}"
    assert ulps(found, np.exp(x.astype(np.float64))).max() < 1.1
    x = np.append(np.linspace(88.723, 91, 1001), SPECIAL[SPECIAL > 91]).astype(np.float32)
    assert np.isposinf(each(Each.EXP, x)).all()


def test_tanh_over_all_sizes() -> None:
    x = np.linspace(-12, 12, 2_000_001).astype(np.float32)
    assert ulps(each(Each.TANH, x), np.tanh(x.astype(np.float64))).max() < 1.5
    x = np.geomspace(1e-44, 3e38, 1_000_001).astype(np.float32)
    for s in (x, -x):
        assert ulps(each(Each.TANH, s), np.tanh(s.astype(np.float64))).max() < 1.5


def test_sigmoid_is_as_accurate_as_torchs() -> None:
    x = np.linspace(-86, 86, 1_000_001).astype(np.float32)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    theirs = ulps(torch.from_numpy(x).sigmoid().numpy(), expected).max()
    assert ulps(each(Each.SIGMOID, x), expected).max() <= theirs + 0.5


# All other operations.


def copies(op: str, values: Callable[[int], Array]) -> None:
    for shape, order in every([(3, 4, 5), (1, 1, 37), (2, 1, 16), (5, 3, 1)], range(6)):
        axes = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[order]
        x = values(int(np.prod(shape))).reshape(shape)
        walks = [x.transpose(axes), np.broadcast_to(x[:, :1], (shape[0], 4, shape[2]))]
        walks += [np.broadcast_to(x[..., :1], (*shape[:2], 7)), x[:, :, ::2], x[:, 0:1]]
        for walk in walks:
            strides = [s // x.itemsize for s in walk.strides]
            found = run(op, blank(*walk.shape), [x], walk.shape, strides)
            agree(found, as_strided(x, walk.shape, walk.strides).astype(np.float32))


def copy() -> None:
    random = np.random.default_rng(2)
    copies("copy", lambda n: random.choice(np.append(SPECIAL, floats(random, 40)), n))


def integers() -> None:
    random = np.random.default_rng(3)
    copies("integers", lambda n: random.integers(-EXACT, EXACT, n, endpoint=True))


def rows(op: str = "rows") -> None:
    random = np.random.default_rng(4)
    for n, picked in every((1, 5, 64), (1, 7)):
        x = floats(random, 9, n)
        if op == "rows":
            x[3] = random.choice(SPECIAL, n)
        else:
            x = random.integers(-EXACT, EXACT, (9, n), endpoint=True)
        index = random.integers(0, 9, picked)
        agree(run(op, blank(picked, n), [x, index], [picked, n]), x[index].astype(np.float32))


def one_product() -> None:
    a, b = np.float32([[1, 2], [3, 4]]), np.float32([[5], [6]])
    np.testing.assert_array_equal(multiply(a, b), [[17], [39]])


def elementwise(function: str) -> Callable[[], None]:
    def case() -> None:
        assert {op for op in Each if op.function == function} <= EACH.keys()

    return case


def where() -> None:
    random = np.random.default_rng(5)
    x, y = random.choice(SPECIAL, 99), random.choice(SPECIAL, 99)
    chosen = random.integers(0, 2, 99).astype(np.float32)
    agree(run("where", blank(99), [chosen, x, y], [99]), np.where(chosen == 1, x, y))


def reduced(check: Callable[[Array, tuple[int, int, int]], None]) -> Callable[[], None]:
    def case() -> None:
        random = np.random.default_rng(6)
        for outer, n, inner in every((1, 3), (1, 2, 33), (1, 4, 17)):
            shape = outer, n, inner
            check(floats(random, *shape), shape)
            check(random.choice(SPECIAL[:8], shape).astype(np.float32), shape)
            check(random.integers(0, 3, shape).astype(np.float32), shape)  # ties

    return case


def sums(x: Array, shape: tuple[int, int, int]) -> None:
    x = np.where(np.abs(x) == np.float32(3e38), np.float32(1), x)  # they overflow in some orders
    for factor in (1.0, 1 / shape[1]):
        found = run("sum", blank(shape[0], shape[2]), [x], shape, number=factor)
        with np.errstate(invalid="ignore"):
            expected = x.astype(np.float64).sum(1) * np.float32(factor)
        size = np.nan_to_num(np.abs(x.astype(np.float64)), posinf=0).sum(1) * factor
        agree(found, expected, EPS * (shape[1] + 1) * size + LEAST)


def amax(x: Array, shape: tuple[int, int, int]) -> None:
    agree(run("amax", blank(shape[0], shape[2]), [x], shape), wide(x).amax(1))


def argmax(x: Array, shape: tuple[int, int, int]) -> None:
    agree(run("argmax", blank(shape[0], shape[2]), [x], shape), x.argmax(1).astype(np.float32))


def softmax_inputs() -> list[Array]:
    random = np.random.default_rng(7)
    ordinary = [floats(random, 40, n, scale=s) for n in (1, 2, 3, 10, 33) for s in (0.1, 3, 50)]
    return [*ordinary, *(strange(random, 30, n) for n in (1, 2, 10)), ordinary[4] + 1e4]


def largest(x: Array) -> Array:
    size = np.abs(x.astype(np.float64))
    return np.where(np.isfinite(size), size, 0).max(-1)


def logsumexp() -> None:
    for x in softmax_inputs():
        rows, n = x.shape
        found = run("logsumexp", blank(rows), [x], [rows, n], panel=rows * (n + 2))
        # The largest is subtracted and added again; the sum of n has as many roundings.
        agree(found, wide(x).logsumexp(-1), EPS * (2 * largest(x) + n + 2))


def log_softmax() -> None:
    for x in softmax_inputs():
        rows, n = x.shape
        found = run("log_softmax", blank(rows, n), [x], [rows, n], panel=3 * rows * n)
        agree(found, wide(x).log_softmax(-1), EPS * (4 * largest(x)[:, None] + n + 2))


def log_softmax_backward() -> None:
    random = np.random.default_rng(8)
    for n in (1, 2, 10, 33):
        for gradient in (floats(random, 48, n), strange(random, 16, n)):
            rows = len(gradient)
            gradient = np.where(np.abs(gradient) == np.float32(3e38), np.float32(1), gradient)
            output = wide(floats(random, rows, n)).log_softmax(-1).float().numpy()
            output[0] = np.nan
            output[1, 0] = -np.inf
            found = run("log_softmax_backward", blank(rows, n), [gradient, output], [rows, n])
            expected = torch.ops.aten._log_softmax_backward_data.default(
                wide(gradient), wide(output), -1, torch.float64
            )
            size = np.abs(gradient.astype(np.float64))
            size = np.where(np.isfinite(size), size, 0).sum(-1, keepdims=True)
            agree(found, expected, EPS * (n + 4) * size + LEAST)


def softmax() -> None:
    for x in softmax_inputs():
        rows, n = x.shape
        found = run("softmax", blank(rows, n), [x], [rows, n], panel=3 * rows * n)
        # A difference of large numbers is rounded, and with it the exponential's logarithm.
        expected = wide(x).softmax(-1).numpy()
        error = np.nan_to_num(expected) * EPS * (2 * largest(x)[:, None] + n + 4) + LEAST
        agree(found, expected, error)


def softmax_backward() -> None:
    random = np.random.default_rng(11)
    for n in (1, 2, 10, 33):
        for gradient in (floats(random, 48, n), strange(random, 16, n)):
            rows = len(gradient)
            gradient = np.where(np.abs(gradient) == np.float32(3e38), np.float32(1), gradient)
            output = wide(floats(random, rows, n)).softmax(-1).float().numpy()
            output[0] = np.nan
            output[1, 0] = 0
            found = run("softmax_backward", blank(rows, n), [gradient, output], [rows, n])
            expected = torch.ops.aten._softmax_backward_data.default(
                wide(gradient), wide(output), -1, torch.float64
            )
            size = np.abs(gradient.astype(np.float64))
            size = np.where(np.isfinite(size), size, 0).sum(-1, keepdims=True)
            agree(found, expected, EPS * (n + 4) * size + LEAST)


def gather() -> None:
    random = np.random.default_rng(9)
    for n, picks in every((1, 3, 20), (1, 2, 7)):
        x = strange(random, 16, n)
        index = random.integers(0, n, (len(x), picks))
        found = run("gather", blank(len(x), picks), [x, np.float32(index)], [len(x), n, picks])
        agree(found, np.take_along_axis(x, index, 1))


def scatter(op: str) -> Callable[[], None]:
    def case() -> None:
        random = np.random.default_rng(10)
        for n, picks in every((1, 3, 20), (1, 2, 7)):
            out, x = floats(random, 30, n), floats(random, 30, picks)
            index = random.integers(0, n, (30, picks))
            x[3] = random.choice(SPECIAL[:5], picks)
            expected = out.copy()
            for i, k in every(range(30), range(picks)):
                before = expected[i, index[i, k]] if op == "scatter_add" else np.float32(0)
                with np.errstate(invalid="ignore"):
                    expected[i, index[i, k]] = before + x[i, k]
            agree(run(op, out, [x, index.astype(np.float32)], [30, n, picks]), expected)

    return case


CASES: dict[str, Callable[[], None]] = {
    "copy": copy,
    "integers": integers,
    "rows": rows,
    "integer_rows": lambda: rows("integer_rows"),
    "product": one_product,
    "usual": elementwise("usual"),
    "rarer": elementwise("rarer"),
    "rarest": elementwise("rarest"),
    "where": where,
    "sum": reduced(sums),
    "amax": reduced(amax),
    "argmax": reduced(argmax),
    "logsumexp": logsumexp,
    "softmax": softmax,
    "softmax_backward": softmax_backward,
    "log_softmax": log_softmax,
    "log_softmax_backward": log_softmax_backward,
    "gather": gather,
    "scatter": scatter("scatter"),
    "scatter_add": scatter("scatter_add"),
}


@pytest.mark.parametrize("operation", tape.OPERATIONS)
def test_operations(operation: str) -> None:
    CASES[operation]()


def test_nothing_is_left_out() -> None:
    assert CASES.keys() == tape.OPERATIONS.keys()
    assert EACH.keys() == set(Each)


# What stops a tape.


@pytest.mark.parametrize("value", [EXACT + 1, -EXACT - 1, 2**62, -(2**63)])
@pytest.mark.parametrize("operation", ["integers", "integer_rows"])
def test_integers_that_float32_does_not_hold(operation: str, value: int) -> None:
    x = np.array([[1, EXACT], [-EXACT, 2]])
    given, sizes, strides = (
        ([x], [1, 2, 2], [0, 2, 1])
        if operation == "integers"
        else ([x, np.array([1, 0])], [2, 2], [])
    )
    assert run(operation, blank(2, 2), given, sizes, strides) is not None
    for place in every((0, 1), repeat=2):
        before, x[place] = x[place], value
        assert run(operation, blank(2, 2), given, sizes, strides) is None
        x[place] = before


@pytest.mark.parametrize("place", [3, -1, EXACT, -EXACT])
@pytest.mark.parametrize("operation", ["gather", "scatter", "scatter_add"])
def test_an_index_out_of_range(operation: str, place: int) -> None:
    index = np.float32([[0, 2], [1, 0]])
    x = blank(2, 3) if operation == "gather" else blank(2, 2)
    out = blank(2, 2) if operation == "gather" else blank(2, 3)
    assert run(operation, out, [x, index], [2, 3, 2]) is not None
    for i in every((0, 1), repeat=2):
        before, index[i] = index[i], place
        assert run(operation, out, [x, index], [2, 3, 2]) is None
        index[i] = before
