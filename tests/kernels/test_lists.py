"""Many tensors that compute as one: every operator, on every kind of operand."""

import operator

import numpy as np
import pytest
import torch

from tests.kernels.executors import gap, start
from thalweg import rules
from thalweg.kernels import lists, tensors
from thalweg.kernels.codecs import decoded, encoded
from thalweg.kernels.cpu import Storage
from thalweg.kernels.lists import Tensors
from thalweg.kernels.storage import seeds
from thalweg.rules import maths

OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow),
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
    *(maths.maximum, maths.minimum),
    lambda x, y: maths.where(x > y, x, y),
    lambda x, y: maths.where(y <= x, 0.25, x * y),
]
OPERANDS = {
    "a number": lambda dtype: 0.3,
    "NumPy's": lambda dtype: np.float64(0.3),
    "a tensor for all": lambda dtype: torch.tensor(0.3, dtype=dtype),
    "a number each": lambda dtype: Tensors([torch.tensor(x, dtype=dtype) for x in (0.3, 1, 2)]),
    "as many": lambda dtype: _three(dtype, seed=1),
}


def _three(dtype, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (), (5,)]
    return Tensors(
        [torch.rand(s, generator=generator).round(decimals=1).to(device, dtype) for s in shapes]
    )


def _entry(operand, i):
    return operand.items[i] if isinstance(operand, Tensors) else operand


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operand", OPERANDS.values(), ids=list(OPERANDS))
@pytest.mark.parametrize("function", OPERATORS)
def test_operators_are_those_of_every_tensor(function, operand, dtype):
    some, other = _three(dtype), operand(dtype)
    for a, b in ((some, other), (other, some)):
        found = function(a, b)
        assert isinstance(found, Tensors)
        for i, item in enumerate(found.items):
            # NumPy's numbers would make an array of a tensor on their right.
            x, y = (
                float(v) if isinstance(v, np.float64) else v for v in (_entry(a, i), _entry(b, i))
            )
            expected = function(x, y)
            assert item.shape == some.items[i].shape
            assert item.dtype == (torch.bool if expected.dtype == torch.bool else dtype)
            torch.testing.assert_close(item, expected.to(item.dtype), equal_nan=True)


@pytest.mark.parametrize("function", [operator.neg, maths.sqrt, maths.absolute, maths.sign])
def test_functions_are_those_of_every_tensor(function):
    strange = torch.tensor([np.nan, np.inf, -np.inf, 0.0, -2.0], dtype=torch.float64)
    found = function(Tensors([strange, strange[:2]]))
    for item, t in zip(found.items, (strange, strange[:2]), strict=True):
        torch.testing.assert_close(item, function(t), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("function", OPERATORS)
def test_no_operator_looks_at_a_value(function):
    # A meta tensor has none to look at.
    some, number = _three(torch.float32, device="meta"), torch.zeros((), device="meta")
    for a, b in ((some, number), (number, some), (some, 0.5), (some, some)):
        assert isinstance(function(a, b), Tensors)


def test_an_infinite_parameter_is_not_decayed_by_nothing():
    # Zero times infinity would make it NaN.
    row = rules.SGD.row(rules.SGD.complete({"lr": 0.5}), 1)
    for given in (row, torch.tensor(row, dtype=torch.float64)):
        p = [torch.tensor([np.inf, 1.0], dtype=torch.float64)]
        g = [torch.ones(2, dtype=torch.float64)]
        lists.step(rules.SGD, Storage("", ()), p, g, [], [], given)
        assert p[0].tolist() == [np.inf, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    p, g, (m, s) = start(rules.ADAM, (3, 50))
    held = [torch.from_numpy(a).to(dtype) for a in (p, g, m, s)]
    row = rules.ADAM.row(rules.ADAM.complete({"lr": 0.1}), 3)
    exact = [t.double() for t in held]
    expected = tensors.stepped(rules.ADAM, exact[0], exact[1], exact[2:], row)
    name = str(dtype).removeprefix("torch.")
    found = [list(t.clone().unbind()) for t in held]
    storage = Storage(name, (name, name))
    lists.step(rules.ADAM, storage, found[0], found[1], found[2:], [[], []], row)
    for slices, value in zip((found[0], *found[2:]), expected, strict=True):
        # Computed in float32, whose rounding may decide between two neighbours.
        torch.testing.assert_close(
            torch.stack(slices), value.to(dtype), rtol=torch.finfo(dtype).eps, atol=0
        )
        assert (torch.stack(slices) == value.to(dtype)).double().mean() > 0.98


@pytest.mark.parametrize("count", [7, torch.tensor(7)], ids=["a number", "a tensor"])
def test_eight_bits_and_rounding_at_random(count):
    storage = Storage("bfloat16 at random", ("signed8", "unsigned8"), clear=True)
    generator = torch.Generator().manual_seed(0)
    p, g = ([torch.randn(n, generator=generator).bfloat16() for n in (300, 700)] for _ in range(2))
    values = [[torch.rand(t.shape, generator=generator) for t in p] for _ in range(2)]
    kept = [
        [encoded(kind, v, 3) for v in some]
        for kind, some in zip(storage.states, values, strict=True)
    ]
    states = [[stored for stored, _ in some] for some in kept]
    scales = [[scale for _, scale in some] for some in kept]
    row = rules.ADAM.row(rules.ADAM.complete({"lr": 0.1}), 3)
    opened = [
        [decoded(kind, t, a).double() for t, a in zip(s, c, strict=True)]
        for kind, s, c in zip(storage.states, states, scales, strict=True)
    ]
    wanted = [
        tensors.stepped(rules.ADAM, p[i].double(), g[i].double(), [o[i] for o in opened], row)
        for i in range(2)
    ]
    lists.step(rules.ADAM, storage, p, g, states, scales, row, (), seeds(count, 3))
    assert all((t == 0).all() for t in g)
    for i in range(2):
        # To one of the two neighbours, and to both equally often.
        error = (p[i].double() - wanted[i][0]) / wanted[i][0].abs()
        assert error.abs().max() < 2**-7
        assert abs(error.mean()) < 2**-10
        for k, kind in enumerate(storage.states):
            found = decoded(kind, states[k][i], scales[k][i])
            # Eight codes an octave: apart by an eighth at most.
            gap_of_codes = gap([found.double().numpy()], [wanted[i][k + 1].numpy()])
            assert gap_of_codes < 0.125 / 6**0.5
