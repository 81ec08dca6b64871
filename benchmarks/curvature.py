"""What products with a Hessian cost, beside gradients and beside other libraries for it."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.measure import Row, alternate, report, shown
from thalweg.landscape.operators import NetworkOperator, hessian
from thalweg.landscape.spectrum import eigenvalues, spectral_density, trace
from thalweg.tasks import load
from thalweg.tasks.memory import shown as shown_bytes
from thalweg.tasks.networks import cnn, mlp, resnet

ROUNDS = 7
SPAN = 0.3
# Of products, which peers' differ from by some percent: many short turns.
MANY, SHORT = 40, 0.03
VECTORS = (8, 32)
PRODUCTS, STEPS, PROBES = 90, 40, 4
LARGE = (64, 1000, 1000, 10)  # a million parameters


def _cases(quick: bool) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    torch.manual_seed(0)
    digits = load("digits")
    x, y = digits.train.x, digits.train.y
    images = x.reshape(-1, 1, 8, 8)
    found = {
        "MLP of digits": (digits.model(), x, y),
        "CNN": (cnn((1, 8, 8), 10)(), images[:512], y[:512]),
    }
    if not quick:
        found["MLP of 85,002 parameters"] = (mlp(64, 256, 256, 10)(), x, y)
        found["ResNet-8"] = (resnet((1, 8, 8), 10)(), images[:128], y[:128])
    for model, some, targets in found.values():
        _trained(model, some, targets)
    return found


def _trained(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A little, so that the spectrum has large eigenvalues apart."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()


def _cost(name: str, model: nn.Module, x: Tensor, y: Tensor) -> list[Row]:
    """Products beside gradients of the same batches."""
    op = hessian(model, "cross_entropy", (x, y))
    parameters = list(model.parameters())
    batches = list(zip(x.split(op.batch_size), y.split(op.batch_size), strict=True))
    loss = nn.CrossEntropyLoss()
    draw = np.random.default_rng(0)

    def gradient() -> None:
        for some, targets in batches:
            torch.autograd.grad(loss(model(some), targets), parameters)

    def times(columns: int) -> Callable[[], object]:
        given = draw.standard_normal((op.shape[0], columns)).astype(np.float32)
        return lambda: op @ (given if columns > 1 else given[:, 0])

    counts = (1, *VECTORS)
    found = alternate(
        {"gradient": gradient, **{str(k): times(k) for k in counts}}, ROUNDS, span=SPAN
    )
    return [
        Row(
            f"{name}: a product with the Hessian"
            + (f", one of {k} at once" if k > 1 else "")
            + "; a gradient",
            shown(found[str(k)] / k),
            shown(found["gradient"]),
            found[str(k)] / k / found["gradient"],
            "at most 2.5",
        )
        for k in counts
    ]


def _curvlinops(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> object:
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False
    )


def _pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> object:
    import pyhessian

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    torch.eig = eig  # which torch had when PyHessian was written
    return pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def _row(
    name: str,
    what: str,
    calls: dict[str, Callable[[], object]],
    rounds: int = ROUNDS,
    span: float = SPAN,
) -> list[Row]:
    """Ours beside each of the others'."""
    found = alternate(calls, rounds, span)
    report(f"{name}, {what}: { ({k: shown(v) for k, v in found.items()}) }")
    return [
        Row(
            f"{name}: {what}; {peer}'s",
            shown(found["ours"]),
            shown(found[peer]),
            found[peer] / found["ours"],
            "at least 1",
        )
        for peer in calls
        if peer != "ours"
    ]


def _peers(name: str, model: nn.Module, x: Tensor, y: Tensor) -> list[Row]:
    from curvlinops import hutchpp_trace, lanczos_approximate_spectrum
    from pyhessian.utils import hessian_vector_product

    op: NetworkOperator = hessian(model, "cross_entropy", (x, y))
    batches = list(zip(x.split(op.batch_size), y.split(op.batch_size), strict=True))
    linear = _curvlinops(model, batches)
    py = _pyhessian(model, x, y)
    vector = np.random.default_rng(0).standard_normal(op.shape[0]).astype(np.float32)
    as_tensor = torch.from_numpy(vector)
    parts = list(op.split(vector).values())
    eight = np.random.default_rng(0).standard_normal((op.shape[0], 8)).astype(np.float32)
    columns = torch.from_numpy(eight)
    as_scipy = linear.to_scipy()
    rows = _row(
        name,
        "a product",
        {
            "ours": lambda: op @ vector,
            "curvlinops": lambda: linear @ as_tensor,
            "PyHessian": lambda: hessian_vector_product(py.gradsH, py.params, parts),
        },
        MANY,
        SHORT,
    )
    rows += _row(
        name, "8 products", {"ours": lambda: op @ eight, "curvlinops": lambda: linear @ columns}
    )
    rows += _row(
        name,
        "the top eigenvalue to 1e-7",
        {
            "ours": lambda: eigenvalues(op, 1),
            "curvlinops": lambda: eigsh(as_scipy, 1, which="LM", v0=vector, tol=1e-7),
            "PyHessian": lambda: py.eigenvalues(maxIter=10_000, tol=1e-7),
        },
    )
    rows += _row(
        name,
        "the top eigenvalue to PyHessian's own 1e-3",
        {
            "ours": lambda: eigenvalues(op, 1, "LM", tolerance=1e-3),
            "curvlinops": lambda: eigsh(as_scipy, 1, which="LM", v0=vector, tol=1e-3),
            "PyHessian": lambda: py.eigenvalues(),
        },
    )
    rows += _row(
        name,
        f"the trace by {PRODUCTS} products",
        {
            "ours": lambda: trace(op, products=PRODUCTS),
            "curvlinops": lambda: hutchpp_trace(linear, PRODUCTS),
            "PyHessian": lambda: py.trace(maxIter=PRODUCTS, tol=0),
        },
    )
    rows += _row(
        name,
        f"the density by {PROBES} probes of {STEPS} steps",
        {
            "ours": lambda: spectral_density(op, steps=STEPS, probes=PROBES),
            "curvlinops": lambda: lanczos_approximate_spectrum(linear, STEPS, num_repeats=PROBES),
            "PyHessian": lambda: py.density(iter=STEPS, n_v=PROBES),
        },
    )
    for parameter in model.parameters():
        parameter.grad = None  # PyHessian's, whose graph refers to itself
    return rows


def _memory() -> Row:
    """What eigenvalues of a large network take, in a process of their own."""
    code = "from benchmarks.curvature import most; print(most())"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    taken, size = map(int, found.split())
    return Row(
        f"memory for 5 eigenvalues of {size:,} parameters; their Hessian",
        shown_bytes(taken),
        shown_bytes(4 * size**2),
        4 * size**2 / taken,
        "at least 1,000",
    )


def most() -> str:
    """Bytes that eigenvalues of a large network add to the most that the process has taken."""
    torch.manual_seed(0)
    digits = load("digits")
    model = mlp(*LARGE)()
    _trained(model, digits.train.x, digits.train.y)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    op = hessian(model, "cross_entropy", digits.train)
    eigenvalues(op, 5, "LA")
    return f"{_peak() - before} {op.shape[0]}"


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def curvature(quick: bool = False) -> list[Row]:
    """All rows."""
    warnings.simplefilter("ignore")  # PyHessian's and torch's own
    cases = _cases(quick)
    rows = [row for name, case in cases.items() for row in _cost(name, *case)]
    for name in ("MLP of digits", "CNN"):
        rows += _peers(name, *cases[name])
    return [*rows, _memory()]
