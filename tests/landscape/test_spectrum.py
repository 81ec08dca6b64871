"""Eigenvalues, traces and densities against matrices whose spectrum is known."""

import re

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.stats import norm
from torch import nn
from torch.nn import functional

from thalweg.landscape import spectrum
from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.operators import empirical_fisher, gauss_newton, hessian
from thalweg.landscape.spectrum import eigenvalues, spectral_density, trace
from thalweg.tasks import load

N = 300


def rotated(values, seed=0):
    """A full matrix with these eigenvalues."""
    draw = np.random.default_rng(seed).standard_normal((len(values), len(values)))
    basis = np.linalg.qr(draw)[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


# As a loss's: a crowd around zero, some negative, a few large.
CROWD = np.sort(np.r_[-np.geomspace(1e-6, 0.3, 140), np.geomspace(1e-8, 40, 160)])
SPECTRA = {
    "crowd": CROWD,
    "of low rank": np.r_[np.zeros(N - 5), 1, 2, 5, 10, 40],
    "of rank one": np.r_[np.zeros(N - 1), 3],
    "below zero": np.sort(-CROWD),
    "zero": np.zeros(N),
}
ENDS = {
    "LA": lambda v: v[-6:],
    "SA": lambda v: v[:6],
    "LM": lambda v: np.sort(v[np.argsort(np.abs(v))[-6:]]),
    "both ends": lambda v: np.r_[v[:3], v[-3:]],
}


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues(name, which):
    """Errors are squares of residuals over gaps, and ten digits of the largest remain."""
    values = SPECTRA[name]
    matrix = rotated(values)
    found = eigenvalues(matrix, 6, which)
    largest = np.abs(values).max()
    np.testing.assert_allclose(found.values, ENDS[which](values), rtol=0, atol=1e-10 * largest)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(6), atol=1e-8)
    residuals = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-13 * largest)
    assert (residuals <= 3e-9 * largest).all()


@pytest.mark.parametrize("which", ENDS)
def test_eigenvalues_to_a_tolerance(which):
    """Fewer products, residuals within it of the largest, and errors within residuals."""
    matrix = rotated(CROWD)
    full, loose = (eigenvalues(matrix, 6, which, tolerance=t) for t in (None, 1e-3))
    assert loose.products < full.products
    assert full.residuals.max() < loose.residuals.max() <= 1e-3 * 40
    assert (np.abs(loose.values - ENDS[which](CROWD)) <= loose.residuals + 1e-13).all()
    with pytest.raises(LandscapeError, match="tolerance: must be positive"):
        eigenvalues(matrix, tolerance=0)


def test_a_matrix_smaller_than_the_basis():
    found = eigenvalues(np.diag([3.0, -5.0, 1.0, 0.5]), 3, "both ends")
    np.testing.assert_allclose(found.values, [-5, 1, 3], rtol=1e-14)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-14)
    np.testing.assert_allclose(eigenvalues(np.diag([2, -7]), 2).values, [-7, 2])
    assert eigenvalues(np.array([[4.0]])).values == [4]


@pytest.fixture(scope="module")
def network():
    """Of 8x8 digits, 610 parameters, trained for a while; its Hessian whole, in float64."""
    task = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    x, y = task.train.x[:300].double(), task.train.y[:300]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    parameters = dict(model.named_parameters())

    def loss(vector):
        parts = vector.split([p.numel() for p in parameters.values()])
        moved = {n: t.reshape(parameters[n].shape) for n, t in zip(parameters, parts, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

    vector = torch.cat([p.detach().flatten() for p in parameters.values()])
    full = torch.autograd.functional.hessian(loss, vector)
    return model, (x, y), full.numpy()


def test_extreme_eigenvalues_of_a_network(network):
    """Within 1e-6 of the full matrix's, relative to each."""
    model, data, full = network
    expected = np.linalg.eigvalsh(full)
    op = hessian(model, "cross_entropy", data, batch_size=77)
    for which, mine in (("LA", expected[-5:]), ("SA", expected[:5])):
        np.testing.assert_allclose(eigenvalues(op, 5, which).values, mine, rtol=1e-6)
    ends = eigenvalues(op, 4, "both ends")
    np.testing.assert_allclose(ends.values, expected[[0, 1, -2, -1]], rtol=1e-6)
    single = hessian(model, "cross_entropy", data, dtype="float32")
    found = eigenvalues(single, 4, "both ends")
    # Products are rounded at 6e-8, which an eigenvalue sees relative to the largest.
    np.testing.assert_allclose(found.values, ends.values, atol=1e-6 * expected[-1])


def test_trace_and_density_of_a_network(network):
    model, data, full = network
    expected = np.linalg.eigvalsh(full)
    op = hessian(model, "cross_entropy", data)
    found = trace(op, products=60)
    assert found.products == 60
    assert 0 < found.error < 0.05 * expected.sum()
    # Of 20 probes, 4 standard errors are exceeded once in a thousand times; the seed is fixed.
    assert abs(found.value - expected.sum()) <= 4 * found.error
    density = spectral_density(op, steps=40, probes=10)
    for order, moment, error in density.moments.itertuples(index=False):
        assert 0 < error < moment
        # Of 10 probes, Student's t with 9 degrees of freedom: 4.3 once in 500 times.
        assert abs(moment - (expected**order).mean()) <= 4.3 * error
    np.testing.assert_allclose(density.nodes[:, 0], expected[0], rtol=0.02)
    np.testing.assert_allclose(density.nodes[:, -1], expected[-1], rtol=1e-6)
    for value in (-0.04, -1e-3, 0.0, 1e-2):
        share, low, high = density.share_below(value)
        assert low <= (expected < value).mean() <= high
        assert low <= share <= high
    assert density.share_below(-1)[:2] == (0, 0)
    assert density.share_below(2)[::2] == (1, 1)


def test_standard_errors_are_those_of_repeating_it():
    """Over 200 seeds the spread of estimates is what each says of itself, and the mean is right."""
    matrix = rotated(CROWD)
    n, exact = len(CROWD), CROWD.sum()
    found = [trace(matrix, products=30, seed=s) for s in range(200)]
    values, errors = np.array([t.value for t in found]), np.array([t.error for t in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) <= 3.5 * spread / np.sqrt(200)
    # A spread of 200 normal numbers is known to 5 %; of nearly normal ones to somewhat less.
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.2)
    densities = [spectral_density(matrix, steps=5, probes=4, seed=s) for s in range(200)]
    for order in range(1, 5):
        rows = [d.moments.iloc[order - 1] for d in densities]
        values, errors = np.array([r.moment for r in rows]), np.array([r.error for r in rows])
        spread = values.std(ddof=1)
        assert abs(values.mean() - (CROWD**order).sum() / n) <= 3.5 * spread / np.sqrt(200)
        assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.25)


def test_trace_beyond_hutchinson():
    """Of a matrix of low rank the subspace has it all, and nothing is left to estimate."""
    found = trace(rotated(SPECTRA["of low rank"]), products=30)
    assert found.value == pytest.approx(58, rel=1e-12)
    assert found.error <= 1e-10
    exact = trace(np.diag([1.0, 2.0, -5.0]))
    assert (exact.value, exact.error, exact.products) == (-2, 0, 3)


def test_density_of_a_spectrum_that_the_nodes_hold_whole():
    """Three eigenvalues: the nodes are these, and the curve is three normal ones."""
    values = np.repeat([-1.0, 0.5, 4.0], [50, 200, 50])
    found = spectral_density(rotated(values), steps=10, probes=40, width=0.1)
    heavy = found.nodes[found.weights > 1e-9].reshape(40, 3)
    np.testing.assert_allclose(heavy, [[-1, 0.5, 4]] * 40, atol=1e-10)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    x = found.curve["eigenvalue"].to_numpy()
    expected = sum(p * norm.pdf(x, v, 0.1) for v, p in ((-1, 1 / 6), (0.5, 2 / 3), (4, 1 / 6)))
    # At each peak one share decides: 40 probes, 4 standard errors are exceeded 3 times in 10,000.
    assert (np.abs(found.curve["density"] - expected) <= 4 * found.curve["error"] + 1e-12).all()
    assert np.trapezoid(found.curve["density"], x) == pytest.approx(1, abs=1e-5)
    _, low, high = found.share_below(0)
    assert low <= 1 / 6 <= high
    again = spectral_density(rotated(values), steps=10, probes=40, width=0.1)
    assert again.curve.equals(found.curve)


def test_density_of_what_has_no_width():
    for matrix, value in ((np.zeros((40, 40)), 0), (3 * np.eye(40), 3)):
        found = spectral_density(matrix, steps=5)
        assert found.moments["moment"][0] == pytest.approx(value, abs=1e-12)
        assert np.isfinite(found.curve.to_numpy()).all()


def test_the_caller_s_random_numbers_are_left():
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    matrix = rotated(CROWD)
    one = eigenvalues(matrix, 3, "LA"), trace(matrix).value
    assert str(np.random.get_state()) == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    other = eigenvalues(matrix, 3, "LA"), trace(matrix).value
    np.testing.assert_array_equal(one[0].vectors, other[0].vectors)
    assert one[1] == other[1]


def test_an_end_too_crowded_for_arpack():
    """As a Gauss-Newton matrix's at zero: how close LOBPCG comes is said."""
    values = np.geomspace(1e-16, 1, 400)
    matrix = rotated(values)
    for which in ("SA", "both ends"):
        found = eigenvalues(matrix, 4, which)
        mine = values[:4] if which == "SA" else values[[0, 1, -2, -1]]
        assert found.products > 1500  # ARPACK's, and then others
        assert (np.abs(found.values - mine) <= found.residuals + 1e-14).all()
        assert (found.residuals <= 1e-4).all()
    np.testing.assert_allclose(found.values[2:], mine[2:], rtol=1e-9)
    # The other way up, it is the largest that are crowded.
    upside = eigenvalues(-matrix, 2, "LA")
    assert (np.abs(upside.values) <= upside.residuals + 1e-14).all()


def test_where_nothing_gets_there(monkeypatch):
    monkeypatch.setattr(spectrum, "RESTARTS", 1)
    with pytest.raises(LandscapeError, match="k: 6 eigenvalues were not found in"):
        eigenvalues(rotated(np.linspace(-1, 1, N)), 6)


def broken(n):
    return LinearOperator((n, n), lambda v: v * np.nan, dtype=np.float64)


@pytest.mark.parametrize(
    ("call", "argument", "says"),
    [
        (lambda: eigenvalues(np.eye(3), 0), "k", "at least 1, got 0"),
        (lambda: eigenvalues(np.eye(3), 4), "k", "has 3 eigenvalues, and 4"),
        (lambda: eigenvalues(np.eye(3), 1, "SM"), "which", "got 'SM'"),
        (lambda: eigenvalues(np.ones((2, 3))), "op", "must be square, got 2 by 3"),
        (lambda: eigenvalues("H"), "op", "got str"),
        (lambda: eigenvalues(1j * np.eye(3)), "op", "real numbers"),
        (lambda: eigenvalues(np.triu(np.ones((50, 50)))), "op", "must be symmetric"),
        (lambda: eigenvalues(broken(50)), "op", "not finite"),
        (lambda: trace(broken(50), products=6), "op", "not finite"),
        (lambda: trace(np.eye(50), products=5), "products", "at least 6"),
        (lambda: spectral_density(np.eye(9), probes=1), "probes", "at least 2"),
        (lambda: spectral_density(np.eye(9), steps=0), "steps", "at least 1"),
        (lambda: spectral_density(np.eye(9), width=0), "width", "must be positive"),
        (lambda: spectral_density(broken(50)), "op", "not finite"),
    ],
)
def test_what_cannot_be_used(call, argument, says):
    with pytest.raises(LandscapeError) as caught:
        call()
    assert caught.value.argument == argument
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("call", "free", "says"),
    [
        # 21 of ARPACK's, and 2 of each; at least 20 of ARPACK's, with 5 it is 30 vectors.
        (lambda op: eigenvalues(op, 10), 300e9,
            "k: 10 take 41 vectors of 1,000,000,000 numbers, 328 GB of memory, where 300 GB are "
            "free; 5 would fit"),
        (lambda op: eigenvalues(op, 10), 30e9, "not even 1 would fit"),
        # Of the 100 vectors that may be taken 5 go together, three products each.
        (lambda op: trace(op), 1000e9,
            "products: 90 take 150 vectors of 1,000,000,000 numbers, 1.2e+03 GB of memory, where "
            "1e+03 GB are free; 62 would fit"),
        (lambda op: spectral_density(op), 300e9,
            "steps: 80 take 84 vectors of 1,000,000,000 numbers, 672 GB of memory, where 300 GB "
            "are free; 26 would fit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before(monkeypatch, call, free, says):
    """A thousand million parameters, of which a vector takes 8 GB; four fifths may be taken."""
    monkeypatch.setattr(spectrum, "available_memory", lambda: int(free))
    monkeypatch.setattr(spectrum._Counted, "_refuse_asymmetric", lambda self: None)
    n = 10**9
    huge = LinearOperator((n, n), lambda v: pytest.fail("computes"), dtype=np.float64)
    with pytest.raises(LandscapeError, match=re.escape(says)):
        call(huge)


# Its forward mode, through torch's own decompositions.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_against_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(4, (50,))
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    vectors = np.random.default_rng(0).standard_normal((81, 3))
    for ours, theirs in (
        (hessian, curvlinops.HessianLinearOperator),
        (gauss_newton, curvlinops.GGNLinearOperator),
        (empirical_fisher, curvlinops.EFLinearOperator),
    ):
        op = theirs(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
        expected = (op @ torch.from_numpy(vectors)).detach().numpy()
        found = ours(model, "cross_entropy", (x, y)) @ vectors
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward")  # which it does, and we do not
def test_against_pyhessian():
    pyhessian = pytest.importorskip("pyhessian")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(4, (50,))
    theirs = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    op = hessian(model, "cross_entropy", (x, y))
    vector = np.random.default_rng(0).standard_normal(op.shape[0])
    parts = list(op.split(vector).values())
    product = pyhessian.utils.hessian_vector_product(theirs.gradsH, theirs.params, parts)
    expected = torch.cat([t.flatten() for t in product]).numpy()
    np.testing.assert_allclose(op @ vector, expected, rtol=1e-9, atol=1e-12)
    # Power iteration ends where it changes by less than 1e-6, with an error of some times that.
    values, _ = theirs.eigenvalues(maxIter=2000, tol=1e-6)
    assert eigenvalues(op).values[0] == pytest.approx(values[0], rel=1e-3)
    for parameter in model.parameters():
        parameter.grad = None  # its graph refers to itself
