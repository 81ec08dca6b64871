"""Critical points against hand arithmetic, and networks at saddles that are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.critical import classify, classify_network


def monkey(x):
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


@pytest.mark.parametrize(
    ("f", "x", "verdict", "eigenvalues"),
    [
        (lambda x: 0.1 * x[0] ** 2 + 2 * x[1] ** 2, [0.0, 0.0], "minimum", [0.2, 4]),
        (lambda x: x[0] ** 2 - x[1] ** 2, [0.0, 0.0], "saddle", [-2, 2]),
        (lambda x: -(x**2).sum(), torch.zeros(2, 2), "maximum", [-2] * 4),
        (lambda x: x**3, 0.0, "degenerate", [0]),
        (lambda x: x**4, 0.0, "degenerate", [0]),
        (monkey, [0.0, 0.0], "degenerate", [0, 0]),
        (lambda x: 0 * x.sum() + 7, [1.0, 2.0], "degenerate", [0, 0]),
        (lambda x: x.sum(), [1.0, 2.0], "not critical", [0, 0]),
        (lambda x: x.abs().sum(), [0.0, 0.0], "degenerate", [0, 0]),  # torch's derivatives are 0
        # [[802, -400], [-400, 200]], whose trace is 1002 and determinant 400.
        (rosenbrock, [1.0, 1.0], "minimum", 501 + math.sqrt(501**2 - 400) * np.array([-1, 1])),
        # Its value is 1e9 times less curved one way than the other, and that is no rounding.
        (lambda x: 1e9 * x[0] ** 2 + x[1] ** 2, [0.0, 0.0], "minimum", [2, 2e9]),
        (lambda x: x[0] ** 2 - x[1] ** 2 + x[2] ** 3, [0.0] * 3, "saddle", [-2, 0, 2]),
    ],
)  # fmt: skip
def test_hand_arithmetic(f, x, verdict, eigenvalues):
    found = classify(f, x)
    assert (found.verdict, found.method) == (verdict, "exact")
    # The smaller of Rosenbrock's is a difference of numbers a thousand times as large.
    np.testing.assert_allclose(found.eigenvalues, eigenvalues, rtol=1e-11, atol=1e-15)
    assert found.negative == sum(v < 0 for v in eigenvalues)


def test_where_second_derivatives_of_a_sine_vanish_by_rounding_only():
    # At the float64 next to π the second derivative of sin³ is -6 sin cos² and not zero.
    found = classify(lambda x: torch.sin(x) ** 3, math.pi)
    assert found.eigenvalues[0] != 0
    assert found.verdict == "degenerate"


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_what_an_optimizer_stopped_close_to(distance):
    """The verdict is that of the critical point, though no eigenvalue is zero here."""
    close = {"gradient_tolerance": 1e-2}
    for power in (3, 4, 5):
        assert classify(lambda x, p=power: x**p, distance, **close).verdict == "degenerate"
    for angle in (0.0, 0.3, 1.0):
        near = [distance * math.cos(angle), distance * math.sin(angle)]
        assert classify(monkey, near, **close).verdict == "degenerate"
    assert classify(lambda x: x**2 / 4 + x**3, distance, **close).verdict == "minimum"
    assert classify(lambda x: x[0] ** 2 - x[1] ** 2 / 9, [distance / 4] * 2, **close).negative == 1


def test_scale_of_the_function_does_not_matter():
    for scale in (1e-30, 1e30):
        assert classify(lambda x, s=scale: s * (x**2).sum(), [0.0, 0.0]).verdict == "minimum"
        assert classify(lambda x, s=scale: s * x.sum(), [0.0, 0.0]).verdict == "not critical"
        assert classify(lambda x, s=scale: s * torch.exp(-x), 20.0).verdict == "not critical"


def test_tolerances_decide_and_are_stated():
    def f(x):
        return x[0] ** 2 + 1e-3 * x[1] ** 2

    assert classify(f, [0.0, 0.0], tolerance=1e-2).verdict == "degenerate"
    found = classify(f, [1e-3, 0.0], gradient_tolerance=1e-3)
    assert found.verdict == "not critical"
    assert "0.002 is above 0.001" in found.why
    assert found.gradient_norm == pytest.approx(2e-3, rel=1e-12)
    # By default 1e-6 of the largest eigenvalue, 2, and of the point's norm, but at least 1.
    assert found.gradient_tolerance == 1e-3
    assert classify(f, [0.0, 0.0]).gradient_tolerance == pytest.approx(2e-6, rel=1e-12)


def test_escape_goes_where_the_function_is_lower():
    # Away from the saddle x² - y² + y³ both ways, further on the side of negative y.
    found = classify(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 3, torch.zeros(2))
    torch.testing.assert_close(found.escape, torch.tensor([0.0, -1.0], dtype=torch.float64))
    assert (found.step, found.lowered) == (1.0, -2.0)
    # Of a narrow maximum, only small steps tell: cos(1000 x) - 1 at 1e-3 is cos 1 - 1.
    narrow = classify(lambda x: torch.cos(1000 * x).sum(), torch.zeros(1, 1))
    assert narrow.escape.shape == (1, 1)
    assert narrow.lowered <= math.cos(1) - 1 + 1e-12
    assert classify(monkey, [0.0, 0.0]).escape is None
    assert classify(lambda x: x[0] - x[1] ** 2, [0.0, 0.0]).escape is None


def test_many_variables_go_by_lanczos():
    n = 1500
    scales = torch.linspace(1, 3, n, dtype=torch.float64)
    scales[7] = -0.5
    found = classify(lambda x: (scales * x.flatten() ** 2).sum() / 2, torch.zeros(30, 50))
    assert (found.verdict, found.method, found.negative) == ("saddle", "Lanczos", 1)
    assert found.eigenvalues[0] == pytest.approx(-0.5, rel=1e-9)
    assert found.eigenvalues[-1] == pytest.approx(3, rel=1e-9)
    assert found.escape.shape == (30, 50)
    assert abs(found.escape.flatten()[7]) == pytest.approx(1, abs=1e-6)
    assert found.lowered == pytest.approx(-0.25 * found.step**2, rel=1e-6)
    assert "at least" in found.why
    all_up = classify(lambda x: (scales.abs() * x**2).sum() / 2, torch.zeros(n))
    assert (all_up.verdict, all_up.negative) == ("minimum", 0)
    assert classify(lambda x: x.sum() * 0, torch.zeros(n)).verdict == "degenerate"


def test_a_function_with_parameters_of_its_own():
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert classify(lambda x: (weight * x).sum(), [0.0, 0.0]).verdict == "not critical"
    assert classify(lambda x: (weight * x**2).sum(), [0.0, 0.0]).verdict == "minimum"
    assert weight.grad is None


def test_gradients_switched_off_around_it():
    with torch.no_grad():
        assert classify(lambda x: (x**2).sum(), [0.0]).verdict == "minimum"


@pytest.mark.parametrize(
    ("f", "x", "argument", "says"),
    [
        (lambda x: x, [1.0, 2.0], "f", "scalar tensor; it gave (2,)"),
        (lambda x: 3.0, [1.0], "f", "it gave float"),
        (lambda x: x.detach().sum(), [1.0], "f", "does not depend on x"),
        (lambda x: torch.log(x), -1.0, "f", "is nan at (-1)"),
        (lambda x: torch.sqrt(x), 0.0, "f", "gradient is not finite at (0)"),
        (lambda x: x**1.5, 0.0, "f", "second derivatives are not finite"),
        (lambda x: x.sum(), [], "x", "no variables"),
        (lambda x: x.sum(), "here", "x", "'here'"),
        (lambda x: x.sum(), [math.inf], "x", "must be finite"),
    ],
)
def test_what_cannot_be_asked(f, x, argument, says):
    with pytest.raises(LandscapeError) as caught:
        classify(f, x)
    assert caught.value.argument == argument
    assert says in caught.value.problem


@pytest.mark.parametrize("limit", ["tolerance", "gradient_tolerance"])
def test_a_tolerance_below_zero(limit):
    with pytest.raises(LandscapeError, match="at least 0 and finite, got -1") as caught:
        classify(lambda x: x.sum(), [1.0], **{limit: -1})
    assert caught.value.argument == limit


def linear_network(*weights):
    layers = [nn.Linear(1, 1, bias=False) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    return nn.Sequential(*layers)


X = torch.tensor([[1.0], [2.0], [-1.0]])


def test_a_linear_network_of_two_layers():
    """(w₂ w₁ x - x)² of mean x² = 2: at zero ∂²/∂w₁∂w₂ is -4, at w₁ = w₂ = 1 it is a valley."""
    start = classify_network(linear_network(0, 0), "mse", (X, X))
    assert (start.verdict, start.negative, start.value) == ("saddle", 1, 2.0)
    np.testing.assert_allclose(start.eigenvalues, [-4, 4], rtol=1e-12)
    assert start.lowered < 0
    # Both down, with a step t of (1, 1) / √2 the loss is 2 (t² / 2 - 1)².
    assert start.lowered == pytest.approx(2 * (start.step**2 / 2 - 1) ** 2 - 2, rel=1e-9)
    end = classify_network(linear_network(1, 1), "mse", (X, X))
    assert (end.verdict, end.negative) == ("degenerate", 0)
    np.testing.assert_allclose(end.eigenvalues, [0, 8], atol=1e-12)
    # Of three layers at zero second derivatives vanish too.
    assert classify_network(linear_network(0, 0, 0), "mse", (X, X)).verdict == "degenerate"
    apart = classify_network(linear_network(0.5, 1), "mse", (X, X))
    assert apart.verdict == "not critical"
    # ∂/∂w₁ = 2 (w₂ w₁ - 1) w₂ 2 = -2 and ∂/∂w₂ = -1.
    assert apart.gradient_norm == pytest.approx(math.sqrt(5), rel=1e-12)


def test_a_large_network_that_zeros_hold_at_a_saddle():
    """Targets without a mean, and all weights zero: the gradient vanishes, curvature does not."""
    torch.manual_seed(0)
    x = torch.randn(50, 30)
    y = x @ torch.randn(30, 2) / 5
    y = y - y.mean(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = classify_network(model, "mse", (x, y), batch_size=20)
    assert (found.verdict, found.method) == ("saddle", "Lanczos")
    # The Hessian is zero but between the layers, -2 / (50 · 2) · Σ y xᵀ, for each hidden unit.
    expected = np.linalg.svd((y.double().T @ x.double()).numpy() / 50)[1][0]
    assert found.eigenvalues[0] == pytest.approx(-expected, rel=1e-6)
    assert found.lowered < 0


@pytest.mark.parametrize(
    ("y", "verdict"), [(10.0, "not critical"), (1e-8, "minimum"), (0.0, "minimum")]
)
def test_a_small_curvature_has_a_small_gradient_far_from_its_minimum(y, verdict):
    """Of (1e8 x² + y²) / 2 the gradient at (0, 10) is 10, and 1e8 the largest eigenvalue."""
    point = classify(lambda v: 0.5e8 * v[0] ** 2 + 0.5 * v[1] ** 2, [0.0, y])
    assert point.verdict == verdict
