"""One rule, three executors: equal in float64, state included."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.executors import by_kernel, by_lists, by_reference, by_tensors, gap, start
from tests.optim.cases import ALL, name_of
from thalweg import rules
from thalweg.kernels import cpu, tensors
from thalweg.rules import maths
from thalweg.rules.rule import Number, Rule

OTHERS = {
    "kernel": by_kernel,
    "tensors": by_tensors,
    "lists": by_lists,
    "lists, coefficients as data": partial(by_lists, data=True),
}


@pytest.mark.parametrize("executor", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("pair", ALL, ids=name_of)
@pytest.mark.parametrize("shape", [(3, 700), (3, cpu._MANY)], ids=["one thread", "all threads"])
def test_executors_agree(pair, executor, shape):
    case, valid = pair
    if executor not in (by_kernel, by_tensors) and shape[1] == cpu._MANY:
        pytest.skip("threads are the kernel's")
    rule = case.resolved(valid.arguments, shape)
    if rule.whole:
        if executor is not by_tensors:
            pytest.skip("whole tensors are work for torch operations alone")
        shape = (3, 70)
        rule = case.resolved(valid.arguments, shape)
    hyper = case.constructor([torch.zeros(1)], **valid.arguments).param_groups[0]
    p, g, state = start(rule, shape)
    state = [
        # So that what is taken from it, centered, leaves it positive.
        s + 100.0 if name == "square_avg" else s
        for name, s in zip(rule.state, state, strict=True)
    ]
    expected = found = p, *state
    scalars = its_scalars = rule.start_scalars(hyper)
    for count in range(1, 8):
        expected, scalars = by_reference(rule, expected[0], g, expected[1:], hyper, count, scalars)
        found, its_scalars = executor(rule, found[0], g, found[1:], hyper, count, its_scalars)
        # A few units in the last place: products and sums are fused in one and not the other,
        # and sums taken in another order.
        assert gap(found, expected) < (1e-9 if rule.whole else 1e-13)
        np.testing.assert_allclose(its_scalars, scalars, rtol=1e-12)
    assert gap(found[:1], (p,)) > 1e-6


LENGTHS = [0, 1, 7, cpu.BLOCK - 1, cpu.BLOCK, cpu.BLOCK + 1, 2 * cpu.BLOCK + 3]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=6),
    rates=st.lists(st.floats(0, 10), min_size=1, max_size=3),
    data=st.data(),
)
def test_a_table_of_segments(lengths, rates, data):
    rule = rules.MOMENTUM
    rows = [data.draw(st.integers(0, len(rates) - 1)) for _ in lengths]
    held = [start(rule, n, seed) for seed, n in enumerate(lengths)]
    hypers = [rule.complete({"lr": lr, "weight_decay": 0.1 * i}) for i, lr in enumerate(rates)]
    expected = [
        by_reference(rule, p, g, s, hypers[r], 2)[0]
        for (p, g, s), r in zip(held, rows, strict=True)
    ]
    segments = cpu.Segments.of(lengths, rows, 1)
    segments.parameters[:] = [p.ctypes.data for p, _, _ in held]
    segments.gradients[:] = [g.ctypes.data for _, g, _ in held]
    segments.states[:, 0] = [s[0].ctypes.data for _, _, s in held]
    cpu.run(rule, segments, np.array([rule.row(h, 2) for h in hypers]))
    for (p, _, s), wanted in zip(held, expected, strict=True):
        assert gap((p, *s), wanted) < 1e-14


def test_blocks_cover_every_element_once():
    segments = cpu.Segments.of(LENGTHS, [0] * len(LENGTHS), 0)
    covered = {i: [] for i in range(len(LENGTHS))}
    for segment, first, last in segments.blocks.tolist():
        assert 0 < last - first <= cpu.BLOCK
        covered[segment] += range(first, last)
    assert [covered[i] for i in covered] == [list(range(n)) for n in LENGTHS]


def _all_of_maths(p, g, s, a, b):
    u = maths.sqrt(maths.absolute(g)) + maths.maximum(p, s) - maths.minimum(g, s)
    return p - a * maths.sign(g) * maths.where(g > b, u, u * u) ** 2, maths.where(p < s, p, s)


ALL_OF_MATHS = Rule(
    "all of maths",
    (Number("lr", 0.1), Number("b", 0.2)),
    ("s",),
    lambda hyper, step: (hyper["lr"], hyper["b"]),
    _all_of_maths,
)


@pytest.mark.parametrize("executor", OTHERS.values(), ids=list(OTHERS))
def test_every_function_a_rule_may_use(executor):
    p, g, state = start(ALL_OF_MATHS, 200)
    strange = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0])
    p, g, s = (np.concatenate([a, b.ravel()]) for a, b in zip(
        (p, g, state[0]), np.meshgrid(strange, strange, strange), strict=True
    ))  # fmt: skip
    hyper = ALL_OF_MATHS.complete({})
    expected, _ = by_reference(ALL_OF_MATHS, p, g, [s], hyper, 1)
    for a, b in zip(executor(ALL_OF_MATHS, p, g, [s], hyper, 1)[0], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shift_moves_to_the_look_ahead_point(dtype):
    rule = rules.NAG.resolve(rules.NAG.complete({"form": "lookahead"}))
    row = rule.row(rule.complete({"form": "lookahead", "momentum": 0.7}), 3)
    p, _, [v] = start(rule, cpu.BLOCK + 5, dtype=dtype)
    wanted = p + 0.7 * v
    by_torch = torch.from_numpy(p.copy())
    tensors.shift(rule, by_torch, [torch.from_numpy(v)], row)
    segments = cpu.Segments.of([len(p)], [0], 1)
    segments.table[0, 1:] = p.ctypes.data, 0, v.ctypes.data
    cpu.shift(rule, segments, np.array([row], dtype=dtype))
    tolerance = 1e-6 if dtype == np.float32 else 1e-15
    assert np.linalg.norm(p - wanted) < tolerance * np.linalg.norm(wanted)
    assert np.linalg.norm(by_torch.numpy() - wanted) < tolerance * np.linalg.norm(wanted)


def test_decay_of_one_group_does_not_touch_the_infinite_parameters_of_another():
    # Zero times infinity would make them NaN.
    rule = rules.SGD
    p, g = np.array([np.inf, 1.0]), np.array([1.0, 1.0])
    segments = cpu.Segments.of([1, 1], [0, 1], 0)
    segments.table[:, 1] = p.ctypes.data, p.ctypes.data + 8
    segments.table[:, 2] = g.ctypes.data, g.ctypes.data + 8
    hypers = [rule.complete({"lr": 0.5, "weight_decay": d}) for d in (0.0, 1.0)]
    cpu.run(rule, segments, np.array([rule.row(h, 1) for h in hypers]))
    assert p.tolist() == [np.inf, 0.0]
