import math
from collections import Counter

import numpy as np
import pytest

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.functions import FUNCTIONS, function
from thalweg.landscape.points import critical_points, kind_at


def found(text, box=None):
    return critical_points(function(text), box)


def kinds(points):
    return dict(Counter(point.kind for point in points.points))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x**2 - 2*x", [(1.0, "minimum", False)]),
        ("x**3 - 3*x", [(1.0, "minimum", False), (-1.0, "maximum", False)]),
        ("sin(x)", [(-math.pi / 2, "minimum", False), (math.pi / 2, "maximum", False)]),
        ("x**3", [(0.0, "saddle", True)]),
        ("(x - 1/3)**3", [(1 / 3, "saddle", True)]),  # on no grid
        ("x**3 - x**2 + x/3", [(1 / 3, "saddle", True)]),  # the same, expanded
        ("x**5", [(0.0, "saddle", True)]),
        ("(x - 0.2)**4", [(0.2, "minimum", True)]),
        ("-(x - 0.2)**6", [(0.2, "maximum", True)]),
        ("abs(x - 0.2)", [(0.2, "minimum", False)]),
        ("abs(x)", [(0.0, "minimum", False)]),  # where torch's derivative is 0
        ("-abs(x) + x/4", [(0.0, "maximum", False)]),
        ("sqrt(abs(x - 0.3))", [(0.3, "minimum", False)]),
        ("abs(x - 0.2)**1.5", [(0.2, "minimum", True)]),  # smooth, on no grid
        ("abs(x)**1.5", [(0.0, "minimum", True)]),  # without a second derivative
        ("x*log(x)", [(1 / math.e, "minimum", False)]),  # half of the range without values
        ("tanh(x)", []),
        ("exp(x)", []),
        ("1/x**2", []),  # a pole is no maximum
        ("log(abs(x - 0.3))", []),  # and none a minimum
    ],
)
def test_all_points_of_one_variable(text, expected):
    points = found(text).points
    # (x - a)^6 is flat to rounding within 1e-3 of a.
    wide = 1e-2 if "6" in text else 1e-6
    assert [(p.kind, p.degenerate) for p in points] == [e[1:] for e in expected]
    assert [p.x[0] for p in points] == pytest.approx([e[0] for e in expected], abs=wide)


def test_the_risk_has_two_minima_and_a_maximum():
    points = found("risk").points
    assert [p.kind for p in points] == ["minimum", "minimum", "maximum"]
    for p in points:  # x tan(pi x) = 1 / pi where the derivative is zero
        assert p.x[0] * math.tan(math.pi * p.x[0]) == pytest.approx(1 / math.pi, rel=1e-10)


def test_a_kink_says_so():
    (point,) = found("abs(x - 0.2) + x/2").points
    assert "kink" in point.why
    assert point.eigenvalues == ()
    assert point.value == pytest.approx(0.1)


def test_a_flat_stretch_is_said():
    points = found("relu(x)")
    assert points.points == ()
    assert points.note == "it is flat, in part or all along, from x = -3 to 0"


# Himmelblau (1972) and Styblinski and Tang (1990) to the digits printed.
HIMMELBLAU = [(3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)]


@pytest.mark.parametrize(
    ("name", "minima", "counts"),
    [
        ("himmelblau", HIMMELBLAU, {"minimum": 4, "saddle": 4, "maximum": 1}),
        ("rosenbrock", [(1.0, 1.0)], {"minimum": 1}),
        ("beale", [(3.0, 0.5)], {"minimum": 1, "saddle": 2}),
        ("canyon", [(0.0, 0.0)], {"minimum": 1}),
        ("saddle", [], {"saddle": 1}),
        ("monkey_saddle", [], {"saddle": 1}),
    ],
)
def test_known_points_of_two_variables(name, minima, counts):
    points = critical_points(FUNCTIONS[name])
    assert kinds(points) == counts
    places = np.array([p.x for p in points.of("minimum")]).reshape(-1, 2)
    for minimum in minima:
        assert np.abs(places - minimum).max(1).min() < 2e-6  # of what is printed


def test_separable_functions_have_the_products_of_their_points():
    one = critical_points(function("(x**4 - 16*x**2 + 5*x)/2"), ((-5.0, 5.0),))
    both = critical_points(FUNCTIONS["styblinski_tang"])
    expected = {(round(p.x[0], 6), round(q.x[0], 6)) for p in one.points for q in one.points}
    assert {(round(p.x[0], 6), round(p.x[1], 6)) for p in both.points} == expected
    assert both.points[0].value == pytest.approx(2 * one.points[0].value)
    assert both.points[0].value == pytest.approx(-78.33233, abs=1e-5)
    # 11 minima and 10 maxima a side
    assert kinds(critical_points(FUNCTIONS["rastrigin"])) == {
        "minimum": 11 * 11,
        "maximum": 10 * 10,
        "saddle": 2 * 11 * 10,
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("x**4 + y**4", "minimum"),
        ("x**3 + y**3", "saddle"),
        ("x**2 - y**4", "saddle"),
        ("-x**2 - y**4", "maximum"),
        ("x**3 - 3*x*y**2", "saddle"),
        ("(x - 0.1)**6 + (y + 0.7)**2", "minimum"),
    ],
)
def test_degenerate_points_by_what_is_around(text, kind):
    (point,) = found(text).points
    assert (point.kind, point.degenerate) == (kind, True)
    assert "second derivatives do not tell" in point.why


def test_a_ring_of_minima_is_said_and_the_maximum_within_kept():
    points = found("(x**2 + y**2 - 1)**2")
    assert "fill a line" in points.note
    assert [p.x for p in points.of("maximum")] == [(0.0, 0.0)]
    assert all(math.hypot(*p.x) == pytest.approx(1, abs=1e-6) for p in points.of("minimum"))
    assert len(points.points) < 20


@pytest.mark.parametrize("text", ["x + y", "x**2 + y", "exp(x + y)", "exp(-x**2)*exp(y)"])
def test_no_points_where_there_are_none(text):
    assert found(text).points == ()


def test_only_points_in_the_range():
    assert found("sin(x)", ((0.0, 10.0),)).of("maximum")[0].x[0] == pytest.approx(math.pi / 2)
    assert kinds(found("sin(x)", ((0.0, 10.0),))) == {"maximum": 2, "minimum": 1}
    assert found("x**2 + y**2", ((1.0, 2.0), (-1.0, 1.0))).points == ()


def test_nothing_finite_in_the_range():
    with pytest.raises(LandscapeError, match=r"range: .*not finite anywhere there"):
        found("log(x - 10)")


def test_where_a_gradient_vanishes_without_a_critical_point():
    f = FUNCTIONS["tanh"]
    point = kind_at(f, [8.0], 10.0, gradient=1e-5)
    assert (point.kind, point.degenerate) == ("flat", True)
    assert "no critical point is near" in point.why
    assert kind_at(f, [1.0], 10.0).kind == "not critical"
    # a descent that ends next to the saddle of x**3
    assert kind_at(FUNCTIONS["cubic"], [1.8e-3], 4.0, gradient=1e-5).kind == "saddle"


def test_a_table_of_them():
    table = found("x**3 - 3*x").table
    assert table["kind"].tolist() == ["minimum", "maximum"]
    assert table["value"].tolist() == pytest.approx([-2, 2])
    assert table["y"].isna().all()


def test_a_small_gradient_far_from_the_minimum_is_no_minimum():
    # 4.4e-8 at x = 2.2, which is 0.37 of the range away from the only critical point
    point = kind_at(function("1e-8*x**2"), [2.2], 6.0, gradient=1e-5)
    assert point.kind == "flat"
    assert "no critical point is near" in point.why
    assert kind_at(function("1e-8*x**2"), [1e-3], 6.0, gradient=1e-5).kind == "minimum"
    # Most of this gradient is across, where the minimum is near: 1e-6 along and 5e-6 across.
    narrow = function("1e-6*x**2 + 1e3*y**2")
    assert kind_at(narrow, [1e-6, 5e-9], 6.0, gradient=1e-4).kind == "minimum"


def test_the_end_of_a_path_in_a_valley_is_what_the_valley_is():
    # of x²y² every point with y = 0 is a minimum; Newton's method runs along the valley
    point = kind_at(function("x**2*y**2"), [1.46, 1e-6], 6.0, gradient=1e-5)
    assert (point.kind, point.degenerate) == ("minimum", True)


@pytest.mark.parametrize(
    "box",
    [((-1.0, 1.0),), ((-1, 1),) * 3, ((1, -1), (0, 1)), ((0, math.nan), (0, 1)), "ab", 3, (-1, 1),
     ((-1e308, 1e308), (0, 1))],
)  # fmt: skip
def test_a_range_that_is_not_the_functions(box):
    with pytest.raises(LandscapeError, match=r"range: must be a lowest and a higher value of each"):
        found("x**2 + y**2", box)


def test_an_expression_for_a_function_is_refused():
    with pytest.raises(LandscapeError, match="function: must be one that `function` gives"):
        critical_points("x**2")
