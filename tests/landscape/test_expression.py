import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.expression import CALLS, LONGEST, parse


def value(text, x, y=None):
    variables, evaluate = parse(text)
    at = [torch.tensor([v], dtype=torch.float64) for v in (x, y) if v is not None]
    assert len(variables) == len(at)
    return float(evaluate(at))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", 1.5),
        ("-x^2", -2.25),  # the sign binds less than the power
        ("x^3^2", 1.5**9),  # powers from the right
        ("2^-x", 2**-1.5),
        ("x*cos(pi*x) + 0.2*cos(5*pi*x)", 1.5 * math.cos(1.5 * math.pi)),  # cos(7.5 pi) = 0
        ("e^x", math.exp(1.5)),
        ("x²−x¹⁰", 2.25 - 1.5**10),
        (" 2×π·x÷3 ", math.pi),
        ("1/(1 + 1/x)", 0.6),
        ("+x - -x", 3.0),
        ("maximum(x, 2)*min(x, 1)", 2.0),
        ("relu(-x) + softplus(0*x)", math.log(2)),
        ("1e1*x + .5", 15.5),
        ("(x\n+ 1)", 2.5),
        ("x ** 2 ** 0.5", 1.5 ** math.sqrt(2)),
    ],
)
def test_means_what_it_means_in_mathematics(text, expected):
    assert value(text, 1.5) == pytest.approx(expected, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("name", [name for name, (count, _) in CALLS.items() if count == 1])
def test_every_function_is_the_one_of_that_name(name):
    expected = {
        "ln": math.log,
        "abs": abs,
        "sign": lambda v: math.copysign(1, v),
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "relu": lambda v: max(v, 0.0),
        "softplus": lambda v: math.log(1 + math.exp(v)),
    }.get(name) or getattr(math, name)
    assert value(f"{name}(x)", 0.3) == pytest.approx(expected(0.3), rel=1e-14)


def test_two_variables_in_their_order():
    assert value("x - 10*y", 3.0, 0.5) == -2.0
    assert value("y + 0*x", 3.0, 0.5) == 0.5


def test_differentiable_as_often_as_needed():
    _, evaluate = parse("x**3")
    x = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    derivative = evaluate([x])
    for expected in ([0.0, 12.0], [0.0, 12.0], [6.0, 6.0]):
        (derivative,) = torch.autograd.grad(derivative.sum(), x, create_graph=True)
        assert derivative.tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2x", "'2x', column 2: no sign stands between '2' and 'x'; write 2*x"),
        ("x cos(x)", "column 3: no sign stands between 'x' and 'cos'; write x*cos"),
        ("(x)(x)", "column 4: no sign stands between ')' and '('"),
        ("sin x", "column 5: no sign stands between 'sin' and 'x'; write sin(x)"),
        ("πx", "column 2: no sign stands between 'pi' and 'x'"),  # where it was typed
        ("3 + sine(x)", "column 5: there is no 'sine'; did you mean sin?"),
        ("X**2", "column 1: there is no 'X'; did you mean x?"),
        ("x + q", "column 5: there is no 'q'; there are x, y, pi, e, sin"),
        ("x² + §", "column 6: '§' means nothing here"),
        ("x +", "column 4: nothing follows '+'"),
        ("x ** * 2", "column 6: '*' cannot stand here"),
        ("2*(x + 1", "column 3: this '(' is never closed"),
        ("x + 1)", "column 6: this ')' closes nothing"),
        ("sin(x, x)", "column 1: sin takes one number, got 2"),
        ("maximum(x)", "column 1: maximum takes two numbers, got 1"),
        ("x + sin", "column 5: sin is a function; write sin(x)"),
        ("x // 2", "column 1: 'x // 2' is no sum"),
        ("0,5*x", "column 1: '0,5*x' is more than one number; the decimal point is '.'"),
        ("x + 1/0", "column 5: '1/0' is no finite number"),
        ("x + 10^400", "column 5: '10^400' is no finite number"),
        ("9" * 400 + "*x", "column 1: '999"),
        ("x + (-8)^0.5", "column 5: '(-8)^0.5' is no finite number"),
        ("x²^3", "column 3: a power of a power"),
        ("x = 2", "column 3: '=' means nothing here"),
        ("x.real", "column 2: '.' means nothing here"),
        ("x[0]", "column 2: '[' means nothing here"),
        ("'x'", 'column 1: "\'" means nothing here'),
        ("__import__('os')", "column 1: there is no '__import__'"),
        ("lambda x: x", "there is no 'lambda'"),
        ("sin(*x)", "column 5: '*x' is no sum"),
        ("", "is empty"),
        ("3 + pi", "has no variable"),
        ("y**2", "has y and no x"),
        ("x+" * 600 + "x", f"has 1,201 characters, and at most {LONGEST:,} are taken"),
        ("(" * 300 + "x" + ")" * 300, "more than 200 operations within each other"),
        ("-" * 300 + "x", "more than 200 operations within each other"),
        ("x" + "+x" * 450, "more than 200 operations within each other"),
    ],
)
def test_what_is_not_understood_is_said_with_its_place(text, message):
    with pytest.raises(LandscapeError) as error:
        parse(text)
    assert message in str(error.value)
    assert error.value.argument == "expression"
    assert "\n" not in error.value.problem


@given(st.text(st.sampled_from("xy0123456789.e+-*/^() ,sincopexbπ²×"), max_size=30))
def test_anything_typed_is_a_function_or_one_error(text):
    try:
        variables, evaluate = parse(text)
    except LandscapeError:
        return
    at = [torch.full((2,), 0.5, dtype=torch.float64)] * len(variables)
    assert evaluate(at).shape == (2,)
