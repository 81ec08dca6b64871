import math

import numpy as np
import pytest
import torch

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.functions import FUNCTIONS, function
from thalweg.landscape.points import critical_points


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# Values typed in from the papers' formulas.
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("rosenbrock", (-1.2, 1.0), 24.2),
        ("rosenbrock", (1.0, 1.0), 0.0),
        ("beale", (3.0, 0.5), 0.0),
        ("beale", (1.0, 1.0), 14.203125),
        ("himmelblau", (3.0, 2.0), 0.0),
        ("himmelblau", (0.0, 0.0), 170.0),
        ("rastrigin", (0.0, 0.0), 0.0),
        ("rastrigin", (0.5, 0.5), 40.5),
        ("styblinski_tang", (1.0, 1.0), -10.0),
        ("monkey_saddle", (1.0, 2.0), -11.0),
        ("canyon", (-5.0, -2.0), 10.5),
        ("saddle", (3.0, 1.0), 8.0),
        ("risk", (1.0,), -1.0),
        ("empirical", (1.0,), -1.2),
        ("cubic", (2.0,), 8.0),
        ("tanh", (4.0,), math.tanh(4)),
    ],
)
def test_named_functions_are_those_of_their_papers(name, at, value):
    assert float(FUNCTIONS[name](tensor(at))) == pytest.approx(value, abs=1e-12)


def test_the_gradient_of_tanh_vanishes():
    _, gradient = FUNCTIONS["tanh"].slope(tensor([[4.0]]))
    assert float(gradient) == pytest.approx(1 - math.tanh(4) ** 2, rel=1e-12)
    assert round(float(gradient), 4) == 0.0013


def test_the_minima_of_risk_and_empirical_risk_differ():
    found = [critical_points(FUNCTIONS[name]).of("minimum")[0] for name in ("risk", "empirical")]
    # x tan(pi x) = 1/pi of the risk, by hand to four digits; the other from a fine grid.
    grid = np.linspace(-1, 2, 3_000_001)
    empirical = grid * np.cos(np.pi * grid) + 0.2 * np.cos(5 * np.pi * grid)
    assert found[0].x[0] == pytest.approx(1.0904, abs=5e-5)
    assert math.tan(math.pi * found[0].x[0]) * found[0].x[0] == pytest.approx(1 / math.pi)
    assert found[1].x[0] == pytest.approx(grid[empirical.argmin()], abs=2e-6)
    assert found[0].x[0] - found[1].x[0] > 0.05


def test_values_gradients_and_curvature_of_many_points():
    f = function("x**2*y + y**3")
    at = tensor([[1.0, 2.0], [-3.0, 0.5]])
    assert f(at).tolist() == [10.0, 4.625]
    values, gradient = f.slope(at)
    assert values.tolist() == [10.0, 4.625]
    assert gradient.tolist() == [[4.0, 13.0], [-3.0, 9.75]]
    gradient, hessian = f.curvature(at)
    assert gradient.tolist() == [[4.0, 13.0], [-3.0, 9.75]]
    assert hessian.tolist() == [[[4, 2], [2, 12]], [[1, -6], [-6, 3]]]
    assert not at.requires_grad


def test_a_linear_function_has_no_curvature():
    _, hessian = function("2*x - y").curvature(tensor([[1.0, 2.0]]))
    assert hessian.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rosenbrock", "rosenbrock"),
        ("Styblinski-Tang", "styblinski_tang"),
        ("Monkey saddle", "monkey_saddle"),
        ("tanh", "tanh"),
        ("x^2-y^2", "saddle"),
    ],
)
def test_names_as_people_type_them(typed, name):
    assert function(typed) is FUNCTIONS[name]


@pytest.mark.parametrize(("typed", "value"), [("x²", 4.0), ("x³", 8.0), ("x¹⁰", 1024.0)])
def test_a_power_in_superscript_is_no_name(typed, value):
    assert float(function(typed)(tensor([2.0]))) == value


def test_an_expression_is_a_function_of_its_own():
    f = function("exp(x) - y")
    assert (f.name, f.text, f.variables) == ("exp(x) - y", "exp(x) - y", ("x", "y"))
    assert f.range == ((-3.0, 3.0), (-3.0, 3.0))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("rosenbrok", "there is no function 'rosenbrok'; did you mean rosenbrock?"),
        ("ackley", "there is no function 'ackley'; choose from risk, empirical"),
        ("sin", "has no variable"),
        ("x y", "column 3: no sign"),
        ("πx", "column 2: no sign"),
        ("x" * 2000, f"there is no function '{'x' * 80}…';"),
    ],
)
def test_what_is_no_function(typed, message):
    with pytest.raises(LandscapeError, match=message):
        function(typed)


def test_a_grid_with_the_share_that_is_lower():
    frame = function("log(x)").grid(((-1.0, 3.0),), 5)
    assert frame["x"].tolist() == [-1, 0, 1, 2, 3]
    assert frame["value"].isna().tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(frame["share"][2:], [1 / 3, 2 / 3, 1])
    plane = function("x + 10*y").grid(((0.0, 1.0), (0.0, 2.0)), 2)
    assert plane[["x", "y", "value"]].to_numpy().tolist() == [
        [0, 0, 0],
        [0, 2, 20],
        [1, 0, 1],
        [1, 2, 21],
    ]
