"""Eigenvalues, trace and spectral density of a symmetric operator, by its products alone."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, aslinearoperator, eigsh, lobpcg

from thalweg.landscape.arguments import LandscapeError, positive, seed_of, whole
from thalweg.landscape.operators import NetworkOperator
from thalweg.tasks.memory import SHARE, available_memory, shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Density", "Eigenvalues", "Trace", "eigenvalues", "spectral_density", "trace"]

Array: TypeAlias = NDArray[np.floating[Any]]

WHICH = {"LA": "LA", "SA": "SA", "LM": "LM", "both ends": "BE"}
LOOSE = 1e-4  # tolerance, for which few vectors will do
RESTARTS = 40  # of ARPACK, after which an end is too crowded for it
SPARE, ITERATIONS = 6, 200  # of LOBPCG: vectors besides those asked for, and steps
POWERS = 4
TOGETHER = 8  # probes
EPSILON = float(np.finfo(np.float64).eps)
POINTS = 1000  # of a density's curve


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Some eigenvalues of a symmetric operator.

    Attributes:
        values: ascending, ``(k,)``.
        vectors: of unit length, columns in the same order, ``(n, k)``.
        residuals: ``|A v - value v|`` of each; an eigenvalue is at most so far away.
        products: with the operator that it took.
    """

    values: Array
    vectors: Array = field(repr=False)
    residuals: Array
    products: int


@dataclass(frozen=True)
class Trace:
    """The trace of an operator.

    Attributes:
        value: estimate, unbiased.
        error: its standard error; 0 where it is exact.
        products: with the operator that it took.
    """

    value: float
    error: float
    products: int


@dataclass(frozen=True, eq=False)
class Density:
    """The distribution of an operator's eigenvalues, by stochastic Lanczos quadrature.

    Attributes:
        nodes: of each probe's quadrature, ``(probes, steps)``; its extreme ones are close to the
            extreme eigenvalues.
        weights: of the nodes, 1 together for each probe.
        width: standard deviation of the normal curve that stands for an eigenvalue.
        curve: a row a point: ``eigenvalue, density, error``, the mean over probes and its
            standard error; the area is 1.
        moments: a row each of the first four: ``order, moment, error``, the mean of the
            eigenvalues' powers, unbiased.
        products: with the operator that it took.
    """

    nodes: Array = field(repr=False)
    weights: Array = field(repr=False)
    width: float
    curve: pd.DataFrame = field(repr=False)
    moments: pd.DataFrame
    products: int

    def share_below(self, value: float) -> tuple[float, float, float]:
        """Share of the eigenvalues below a value, and bounds.

        A quadrature with few nodes leaves open how its weight lies between them: of each probe the
        share is between the weights of all nodes but the last below the value, and those up to the
        first above it (the inequalities of Chebyshev, Markov and Stieltjes). The estimate goes
        straight from node to node; the bounds are means over probes, two standard errors further.

        Returns:
            Share, lower and upper bound, 0 to 1.
        """
        found = np.empty((len(self.nodes), 3))
        for i, (nodes, weights) in enumerate(zip(self.nodes, self.weights, strict=True)):
            total = np.concatenate([[0.0], np.cumsum(weights)])
            below = int(np.searchsorted(nodes, value))
            middle = np.interp(value, nodes, total[1:] - weights / 2, left=0.0, right=1.0)
            found[i] = middle, total[max(below - 1, 0)], total[min(below + 1, len(nodes))]
        (share, low, high), errors = _over_probes(found)
        return (
            float(share),
            max(0.0, float(low - 2 * errors[1])),
            min(1.0, float(high + 2 * errors[2])),
        )

    def figure(self, eigenvalues: "Eigenvalues | None" = None) -> "go.Figure":
        """Density on a logarithmic scale, with eigenvalues marked."""
        from thalweg.figures.curvature import spectral_density

        return spectral_density(
            self.curve, [] if eigenvalues is None else eigenvalues.values.tolist()
        )


def eigenvalues(
    op: Any, k: int = 1, which: str = "LM", *, tolerance: float | None = None, seed: int = 0
) -> Eigenvalues:
    """Extreme eigenvalues of a symmetric operator, by SciPy's ``eigsh`` (ARPACK).

    From a start vector of its own seed. Of an operator so small that ARPACK's basis would be all of
    the space all eigenvalues are computed. Residuals come down to about 1e-9 of the largest
    eigenvalue, in float32 to the products' own rounding, 1e-6; an eigenvalue's error is at most the
    residual, and no more than its square over the distance to the next. At an end so crowded that
    ARPACK gives up, that of a Gauss-Newton matrix at zero say, SciPy's LOBPCG goes on, whose
    residuals may be 1e-4 of the largest eigenvalue.

    Args:
        op: symmetric, ``(n, n)``: of a network, any other ``LinearOperator``, or a matrix.
        k: how many.
        which: ``LA`` the largest, ``SA`` the smallest, ``LM`` the largest in absolute value,
            ``both ends`` as many of the smallest as of the largest (of an odd number one more).
        tolerance: residuals at which SciPy stops, in parts of the eigenvalue (at the lower end, of
            the largest one); by default what the products' precision allows. Where no other is
            close, an eigenvalue's own error is about its square.
        seed: of the start vector.

    Raises:
        LandscapeError: for an argument that cannot be used; if memory for the basis is missing,
            with what fits; or if nothing gets there.
    """
    k, counted = whole("k", k), _Counted(op)
    n = counted.shape[0]
    if which not in WHICH:
        raise LandscapeError("which", f"must be one of {', '.join(WHICH)}, got {which!r}")
    if tolerance is not None:
        # ARPACK's is in parts of what is moved there, up to four times the largest eigenvalue.
        part = positive("tolerance", tolerance) / (4 if which in ("SA", "both ends") else 1)
        counted.tolerance = max(counted.tolerance, part)
    if k > n:
        raise LandscapeError("k", f"the operator has {n} eigenvalues, and {k} were asked for")
    basis = _basis(k, which, counted.tolerance)
    # ARPACK's basis, the vectors that come of it, and their products.
    _refuse("k", k, n, lambda few: min(_basis(few, which, counted.tolerance), n) + 2 * few)
    if basis >= n:
        matrix = _finite(counted @ np.eye(n))
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        chosen = _chosen(values, k, which)
        values, vectors = values[chosen], vectors[:, chosen]
        image = matrix @ vectors
    else:
        vectors = _extreme(counted, k, which, seed)
        image = counted @ vectors
        values = np.einsum("ij,ij->j", vectors, image)
        order = np.argsort(values)
        values, vectors, image = values[order], vectors[:, order], image[:, order]
    residuals = np.linalg.norm(image - vectors * values, axis=0)
    return Eigenvalues(values, vectors, residuals, counted.products)


def _basis(k: int, which: str, tolerance: float) -> int:
    """Vectors that ARPACK keeps, and makes before it looks whether they will do."""
    if which in ("SA", "both ends"):  # the lower end of a loss's spectrum is crowded
        return max(2 * k + 1, 60)
    return max(2 * k + 1, 20 if tolerance < LOOSE else 8)


def _chosen(values: Array, k: int, which: str) -> NDArray[np.intp]:
    """Which of all eigenvalues, ascending, are meant."""
    n = len(values)
    if which == "LM":
        return np.sort(np.argsort(np.abs(values))[n - k :])
    low = {"LA": 0, "SA": k, "both ends": k // 2}[which]
    return np.concatenate([np.arange(low), np.arange(n - k + low, n)])


def _extreme(op: "_Counted", k: int, which: str, seed: int) -> Array:
    """Eigenvectors, in any order."""
    n = op.shape[0]
    draw = np.random.default_rng(seed_of(seed))
    start = draw.standard_normal(n)
    image = _finite(op @ start)
    if not image.any():  # with probability 1 it is zero everywhere
        return np.asarray(np.linalg.qr(draw.standard_normal((n, k)))[0])
    size = _size(op, image) if which in ("SA", "both ends") else 0.0
    found = _arpack(op, k, which, start, size)
    if found is not None:
        return found
    if which == "LM":
        raise LandscapeError(
            "k",
            f"{k} eigenvalues were not found in {op.products} products; ask for fewer, or for one "
            f"end",
        )
    size = size or _size(op, image)
    parts = [(k // 2, "SA"), (k - k // 2, "LA")] if which == "both ends" else [(k, which)]
    ends = [
        _arpack(op, count, end, start, size) if end == "LA" != which else None
        for count, end in parts
    ]
    return np.hstack(
        [
            _lobpcg(op, count, end, draw, size) if found is None else found
            for found, (count, end) in zip(ends, parts, strict=True)
            if count
        ]
    )


def _size(op: "_Counted", image: Array) -> float:
    """About the largest eigenvalue's absolute value, by power iteration."""
    for _ in range(POWERS):
        before, image = image, op @ image
    return float(np.linalg.norm(image) / np.linalg.norm(before))


def _arpack(op: "_Counted", k: int, which: str, start: Array, size: float) -> Array | None:
    """Eigenvectors, or nothing where ARPACK gives up; ``size`` is about the largest eigenvalue."""
    # ARPACK's tolerance is relative to each eigenvalue, of which there may be none but tiny ones
    # at the lower end; away from zero it is relative to the largest.
    shift = {"SA": -3, "both ends": 3}.get(which, 0) * size
    moved = LinearOperator(op.shape, lambda v: op @ v + shift * v, dtype=np.float64)
    basis = _basis(k, which, op.tolerance)
    try:
        found = eigsh(
            moved, k, which=WHICH[which], v0=start, ncv=basis, tol=op.tolerance, maxiter=RESTARTS
        )
    except ArpackNoConvergence:
        return None
    return np.asarray(found[1])


def _lobpcg(op: "_Counted", k: int, which: str, draw: np.random.Generator, size: float) -> Array:
    """Eigenvectors at a crowded end, which a block comes close to where ARPACK gives up."""
    start = draw.standard_normal((op.shape[0], min(k + SPARE, op.shape[0] // 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its residuals say how close it came
        _, vectors = lobpcg(
            op, start, largest=which == "LA", tol=op.tolerance * size, maxiter=ITERATIONS
        )
    return np.asarray(vectors[:, :k])


def trace(op: Any, *, products: int = 90, seed: int = 0) -> Trace:
    """The trace of a symmetric operator by Hutch++.

    Meyer, Musco, Musco and Woodruff (2021), arXiv:2010.09649, algorithm 1: a third of the products
    finds a subspace that has most of the operator, one takes the trace in it exactly, one
    estimates that of the rest by Hutchinson's method. Its standard error is over these last probes.

    Args:
        op: as `eigenvalues` takes it.
        products: with the operator, at most; with as many as it has rows the trace is exact.
        seed: of the probes.

    Raises:
        LandscapeError: for an argument that cannot be used, or if memory is missing.
    """
    counted = _Counted(op)
    n = counted.shape[0]
    each = whole("products", products) // 3
    if n <= products:
        found = _finite(counted @ np.eye(n))
        return Trace(float(np.trace(found)), 0.0, counted.products)
    if each < 2:
        raise LandscapeError(
            "products", f"must be at least 6, for a standard error, got {products}"
        )
    _refuse("products", products, n, lambda few: 5 * (few // 3))
    draw = np.random.default_rng(seed_of(seed))
    basis = np.linalg.qr(_finite(counted @ _signs(draw, n, each)))[0]
    inside = float(np.einsum("ij,ij->", basis, counted @ basis))
    probes = _signs(draw, n, each)
    probes -= basis @ (basis.T @ probes)
    outside = np.einsum("ij,ij->j", probes, counted @ probes)
    rest, error = _over_probes(outside)
    return Trace(inside + float(rest), float(error), counted.products)


def spectral_density(
    op: Any, *, steps: int = 80, probes: int = 8, width: float | None = None, seed: int = 0
) -> Density:
    """The distribution of a symmetric operator's eigenvalues.

    Stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159, section 2):
    of each probe, a vector of random signs, Lanczos' method with full reorthogonalisation makes a
    quadrature of as many nodes as steps, whose mean over probes stands for the eigenvalues.

    Args:
        op: as `eigenvalues` takes it.
        steps: of Lanczos' method; at most as many as the operator has rows.
        probes: at least 2, as the standard errors are over these.
        width: standard deviation of the normal curve around each node; by default 1/200 of the
            range of the nodes.
        seed: of the probes.

    Raises:
        LandscapeError: for an argument that cannot be used, or if memory is missing for the basis,
            ``steps`` vectors, of one probe.
    """
    counted = _Counted(op)
    n = counted.shape[0]
    steps, probes = min(whole("steps", steps), n), whole("probes", probes)
    if probes < 2:
        raise LandscapeError("probes", f"must be at least 2, for standard errors, got {probes}")
    width = None if width is None else positive("width", width)
    _refuse("steps", steps, n, lambda few: few + 4)
    together = int(SHARE * available_memory() / (8 * n * (steps + 4)))
    together = max(1, min(together, TOGETHER, probes))
    draw = np.random.default_rng(seed_of(seed))
    parts = [
        _quadrature(counted, _signs(draw, n, min(together, probes - i)), steps)
        for i in range(0, probes, together)
    ]
    nodes, weights = (np.concatenate(side) for side in zip(*parts, strict=True))
    moments = [(order, *_over_probes((weights * nodes**order).sum(1))) for order in range(1, 5)]
    curve, width = _curve(nodes, weights, width)
    return Density(
        nodes,
        weights,
        width,
        curve,
        pd.DataFrame(moments, columns=["order", "moment", "error"]),
        counted.products,
    )


def _quadrature(op: "_Counted", starts: Array, steps: int) -> tuple[Array, Array]:
    """Nodes and weights ``(probes, steps)`` of Lanczos' method from several vectors, columns."""
    n, probes = starts.shape
    basis = np.zeros((probes, steps, n), op.kind)
    matrix = np.zeros((probes, steps, steps))
    vectors, lengths = starts.T / math.sqrt(n), np.zeros(probes)
    for j in range(steps):
        basis[:, j] = vectors
        images = _finite((op @ vectors.T).T)
        for i, image in enumerate(images):
            matrix[i, j, j] = image @ vectors[i]
            if j + 1 == steps:
                continue
            image -= matrix[i, j, j] * vectors[i]
            if j:
                image -= lengths[i] * basis[i, j - 1]
            seen = basis[i, : j + 1]
            long = np.linalg.norm(image)
            image -= (seen @ image.astype(op.kind)) @ seen
            if np.linalg.norm(image) < long / 2:  # twice is enough
                image -= (seen @ image.astype(op.kind)) @ seen
            # Where nothing but rounding is left, the probe has seen all that it reaches: what
            # follows are zeros, of no weight.
            length = np.linalg.norm(image)
            least = 10 * math.sqrt(n) * EPSILON * np.abs(matrix[i]).max()
            lengths[i] = length if length > least else 0.0
            vectors[i] = image / length if length > least else 0.0
            matrix[i, j, j + 1] = matrix[i, j + 1, j] = lengths[i]
    nodes, turned = np.linalg.eigh(matrix)
    return nodes, turned[:, 0] ** 2


def _curve(nodes: Array, weights: Array, width: float | None) -> tuple[pd.DataFrame, float]:
    there = nodes[weights > EPSILON]
    low, high = float(there.min()), float(there.max())
    if width is None:
        width = (high - low) / 200 or max(abs(high), 1.0) / 200
    grid = np.linspace(low - 5 * width, high + 5 * width, POINTS)
    each = np.empty((len(nodes), POINTS))
    for i, (places, shares) in enumerate(zip(nodes, weights, strict=True)):
        away = (grid[:, None] - places) / width
        each[i] = np.exp(-(away**2) / 2) @ shares / (width * math.sqrt(2 * math.pi))
    density, error = _over_probes(each)
    return pd.DataFrame({"eigenvalue": grid, "density": density, "error": error}), width


class _Counted(LinearOperator):  # type: ignore[misc]
    """A symmetric operator in float64, whose products are counted."""

    def __init__(self, op: Any) -> None:
        try:
            self._op = aslinearoperator(op)
        except TypeError:
            raise LandscapeError(
                "op", f"must be a LinearOperator or a matrix, got {type(op).__name__}"
            ) from None
        rows, columns = self._op.shape
        if rows != columns or not rows:
            raise LandscapeError("op", f"must be square, got {rows} by {columns}")
        dtype = np.dtype(self._op.dtype)
        if dtype.kind == "c":
            raise LandscapeError("op", "must be of real numbers, got complex ones")
        self.kind = dtype if dtype == np.float32 else np.dtype(np.float64)
        self.products = 0
        # In float32, what its products' rounding leaves.
        self.tolerance = 1e-7 if dtype == np.float32 else 1e-10
        super().__init__(np.float64, (rows, columns))
        if not isinstance(op, NetworkOperator):
            self._refuse_asymmetric()
            self.products = 0

    def _matvec(self, vector: Array) -> Array:
        self.products += 1
        return np.asarray(self._op.matvec(vector), np.float64)

    def _matmat(self, matrix: Array) -> Array:
        self.products += matrix.shape[1]
        return np.asarray(self._op.matmat(matrix), np.float64)

    def _refuse_asymmetric(self) -> None:
        one, other = np.random.default_rng(0).standard_normal((2, self.shape[0]))
        image, reflected = _finite(self @ one), _finite(self @ other)
        apart = abs(other @ image - one @ reflected)
        size = np.linalg.norm(other) * np.linalg.norm(image)
        if apart > math.sqrt(self.tolerance) * size:
            raise LandscapeError("op", "must be symmetric, and its products say that it is not")


def _refuse(argument: str, asked: int, n: int, vectors: Callable[[int], int]) -> None:
    free = available_memory()
    room = SHARE * free / (8 * n)  # vectors
    if vectors(asked) <= room:
        return
    fits = next((few for few in range(asked - 1, 0, -1) if vectors(few) <= room), 0)
    raise LandscapeError(
        argument,
        f"{asked} take {vectors(asked)} vectors of {n:,} numbers, {shown(8 * n * vectors(asked))} "
        f"of memory, where {shown(free)} are free; {fits or 'not even 1'} would fit",
    )


def _finite(products: Array) -> Array:
    if not np.isfinite(products).all():
        raise LandscapeError("op", "its products are not finite; look for NaN in weights and data")
    return products


def _signs(draw: np.random.Generator, n: int, count: int) -> Array:
    return draw.integers(0, 2, (count, n)).T * 2.0 - 1.0


def _over_probes(values: Array) -> tuple[Array, Array]:
    """Mean over the first dimension, and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
