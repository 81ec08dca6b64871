"""Our optimizers against the formulas of papers.py, step by step in float64.

With the arguments with which test_papers.py holds those formulas against other implementations,
and, for rules of matrices, with all others that change the maths.
"""

import pytest
import torch

from thalweg import optim

from .papers import step_all
from .test_papers import OPTAX, PEERS, TORCH

STEPS = 40
SHAPES = [(1,), (9,), (5, 7), (7, 5), (6, 6), (3, 4, 5), (2, 3, 4, 3)]


def side_by_side(name, arguments, shapes=SHAPES, **ours):
    """Our optimizer, the formula's parameters and their memories, after each step."""

    def numbers(shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(1)
    xs = [numbers(shape) for shape in shapes]
    memories = [{} for _ in xs]
    parameters = [x.clone() for x in xs]
    optimizer = getattr(optim, name)(parameters, **arguments, **ours)
    for t in range(1, STEPS + 1):
        # Of full rank, and another function at every step.
        gs = [0.4 * x + numbers(x.shape) for x in xs]
        for p, g in zip(parameters, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        xs = step_all(name, xs, gs, memories, t, **arguments)
        yield optimizer, xs, memories


def gap(optimizer, xs):
    """Greatest distance from our parameters, relative to the greatest entry."""
    pairs = zip(xs, optimizer.param_groups[0]["params"], strict=True)
    return float(max((x - p).abs().max() for x, p in pairs) / max(x.abs().max() for x in xs))


# Arguments under which a formula is compared with others; matrices have more of their own, below.
COMPARED = [
    *((name, arguments) for name, cases in TORCH.items() for arguments in cases),
    *((name, case[0]) for name, cases in PEERS.items() for case in cases),
    *((name, arguments) for name, (arguments, _) in OPTAX.items()),
]
MATRICES = {
    "Adafactor": [
        {"lr": 0.1, "beta2_decay": -0.5},
        {"lr": 10.0, "d": 0.3},
        {"eps": (1.0, 10.0), "weight_decay": 0.1},
    ],
    "Muon": [
        {"lr": 0.1},
        {"lr": 0.1, "nesterov": False, "momentum": 0.5},
        {"lr": 0.1, "adjust_lr_fn": "original", "weight_decay": 0.0},
        {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
        {"lr": 0.1, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 30.0, "maximize": True},
    ],
    "Shampoo": [
        {},
        {"epsilon": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"epsilon": 1.0, "update_freq": 7, "maximize": True},
        {"epsilon": 0.1, "max_precond_dim": 5},
        {"epsilon": 0.1, "max_precond_dim": 2, "update_freq": 3},
    ],
    "SOAP": [
        {"lr": 0.1, **turns, **more}
        for turns in ({}, {"precondition_frequency": 3}, {"precondition_frequency": 1})
        for more in (
            {},
            {"shampoo_beta": 0.8, "weight_decay": 0.0},
            {"betas": (0.8, 0.9), "correct_bias": False, "eps": 1e-2},
            {"max_precond_dim": 5, "maximize": True},
        )
    ],
}
# Both start from differences that are almost nothing, of which they make their rate.
TOLERANCE = {"Prodigy": 1e-8, "DAdaptAdam": 1e-8}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [case for case in COMPARED if case[0] not in MATRICES or case[0] == "Adafactor"],
)
def test_formulas(name, arguments):
    for optimizer, xs, memories in side_by_side(name, arguments):  # noqa: B007
        assert gap(optimizer, xs) < TOLERANCE.get(name, 1e-12)
    if name in ("ASGD", "ScheduleFreeSGD", "ScheduleFreeAdamW"):
        optimizer.eval()  # to the weights to evaluate with
        averages = [s["ax" if name == "ASGD" else "x"] for s in memories]
        assert gap(optimizer, averages) < 1e-12


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name, cases in MATRICES.items() for arguments in cases]
    # One gradient a step fills a vector's side, so that it is full by its first turn.
    + [("SOAP", {"lr": 0.1, "precondition_1d": True})],
)
def test_matrices(name, arguments):
    shapes, ours = SHAPES, {}
    if name == "Muon":
        shapes, ours = [s for s in SHAPES if len(s) > 1], {"ns_dtype": "parameter"}
    path = side_by_side(name, arguments, shapes, **ours)
    if name == "SOAP":
        optimizer, xs, memories = next(path)
        assert gap(optimizer, xs) == 0.0  # the first step only chooses the axes
        take_axes(optimizer, memories)
    for optimizer, xs, _ in path:
        assert gap(optimizer, xs) < 1e-12


def take_axes(optimizer, memories):
    """Checks our first eigenvectors, and gives them to the formula.

    One gradient leaves eigenvalues of 0 where a side is longer than all others together, and their
    eigenvectors are anybody's choice. Later all eigenvalues differ.
    """
    for p, s in zip(optimizer.param_groups[0]["params"], memories, strict=True):
        for i in [key[1] for key in s if key[0] == "axes"]:
            q, side = optimizer.state[p][f"Q_{i}"], s["side", i]
            values = torch.linalg.eigvalsh(side).flip(0)  # the largest first
            assert torch.allclose(q.T @ side @ q, torch.diag(values), atol=1e-13)
            assert torch.allclose(q.T @ q, torch.eye(len(q), dtype=q.dtype), atol=1e-13)
            s["axes", i] = q.clone()


@pytest.mark.parametrize("arguments", MATRICES["Muon"][:4])
def test_torchs_muon(arguments, monkeypatch):
    # Both iterate in bfloat16, here in float64.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    ends = []
    for constructor in (optim.Muon, torch.optim.Muon):
        generator = torch.Generator().manual_seed(2)
        parameters = [torch.zeros(s, dtype=torch.float64) for s in SHAPES if len(s) == 2]
        optimizer = constructor(parameters, **arguments)
        for _ in range(STEPS):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            optimizer.step()
        ends.append(parameters)
    assert gap(optimizer, ends[0]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shampoo_of_a_large_gradient_of_low_rank(dtype):
    """Whose eigenvalues, but one, are what rounding leaves: some of them negative."""
    generator = torch.Generator().manual_seed(0)
    column, row = (torch.randn(n, generator=generator).double() for n in (32, 64))
    moved = []
    for kind in (torch.float64, dtype):
        p = torch.zeros(32, 64, dtype=kind)
        p.grad = (100 * torch.outer(column, row)).to(kind)
        optim.Shampoo([p], lr=0.1).step()
        moved.append(p.double())
    assert (moved[1] - moved[0]).abs().max() < 1.0 * moved[0].abs().max()


@pytest.mark.parametrize("name", ["Shampoo", "SOAP"])
def test_a_gradient_that_is_no_number_makes_weights_that_are_none(name):
    p = torch.ones(4, 5)
    optimizer = getattr(optim, name)([p])
    for gradient in (torch.randn(4, 5), torch.full((4, 5), torch.nan)):
        p.grad = gradient
        optimizer.step()
    assert p.isnan().all()


def test_square_states_of_half_precision_are_in_float32_and_stay_so():
    p = torch.ones(4, 5, dtype=torch.bfloat16)
    p.grad = torch.randn(4, 5).bfloat16()
    for name in ("Shampoo", "SOAP"):
        first, second = (getattr(optim, name)([p.clone()]) for _ in range(2))
        first.param_groups[0]["params"][0].grad = p.grad.clone()
        first.step()
        second.load_state_dict(first.state_dict())
        (kept,), (loaded,) = first.state.values(), second.state.values()
        wide = [key for key, value in kept.items() if value.shape in ((4, 4), (5, 5))]
        assert len(wide) == 4
        for key in wide:
            assert kept[key].dtype == loaded[key].dtype == torch.float32
            assert torch.equal(kept[key], loaded[key])
