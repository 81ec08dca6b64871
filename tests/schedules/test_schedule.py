import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from thalweg import schedules as s
from thalweg.schedules import Schedule, ScheduleError

finite = st.one_of(
    st.builds(s.cosine, st.integers(1, 40), st.floats(0, 1)),
    st.builds(s.linear, st.integers(1, 40), st.floats(0, 2), st.floats(0, 1)),
    st.builds(s.warmup, st.integers(1, 40)),
    st.builds(s.fixed, st.integers(1, 40)),
    st.builds(s.one_cycle, st.integers(1, 40)),
)
endless = st.one_of(
    st.builds(s.exp, st.floats(0.5, 1)),
    st.builds(s.step, st.integers(1, 9)),
    st.builds(s.sgdr, st.integers(1, 9), st.integers(1, 3)),
    st.builds(s.triangular, st.integers(1, 9), st.floats(0, 1)),
)
anything = st.one_of(finite, endless)


def steps_of(schedule):
    return range(60 if schedule.steps is None else schedule.steps + 1)


@given(anything)
def test_a_number_equals_its_place_in_an_array(schedule):
    t = steps_of(schedule)
    together = schedule(t)
    assert together.dtype == np.float64
    alone = [schedule(i) for i in t]
    assert all(type(a) is float for a in alone)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(schedule(np.array([t, t])), [together, together])


@given(finite, anything)
def test_sum_is_the_one_and_then_the_other(a, b):
    joined = a + b
    t = np.arange(a.steps)
    np.testing.assert_array_equal(joined(t), a(t))
    rest = np.array(steps_of(b))
    np.testing.assert_array_equal(joined(rest + a.steps), b(rest))
    assert joined.steps == (None if b.steps is None else a.steps + b.steps)


@given(finite, finite, anything)
def test_sum_is_associative(a, b, c):
    left, right = (a + b) + c, a + (b + c)
    assert left == right
    t = steps_of(left)
    np.testing.assert_array_equal(left(t), right(t))


@given(anything, anything, st.floats(0, 10))
def test_product(a, b, c):
    both, t = a * b, steps_of(a * b)
    np.testing.assert_array_equal(both(t), a(t) * b(t))
    np.testing.assert_array_equal((c * a)(steps_of(a)), c * a(steps_of(a)))
    np.testing.assert_array_equal((a * np.float64(c))(0), (np.float64(c) * a)(0))
    assert both.steps == min((n for n in (a.steps, b.steps) if n is not None), default=None)


@given(finite)
def test_hold(a):
    held = a.hold()
    assert held.steps is None
    np.testing.assert_array_equal(held(steps_of(a)), a(steps_of(a)))
    assert held(10**9) == a(a.steps)
    assert held.hold() is held


@given(anything, st.integers(1, 7))
def test_by_epoch(a, n):
    counted = a.by_epoch(n)
    assert counted.steps == (None if a.steps is None else n * a.steps)
    t = np.array(steps_of(counted))
    np.testing.assert_array_equal(counted(t), a(t // n))


@given(anything)
def test_copies(a):
    made = (2 * (a * a)).hold()
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other == made
        np.testing.assert_array_equal(other(range(2)), made(range(2)))


def test_text_is_what_was_written():
    a, b = s.warmup(100), s.cosine(900)
    assert (a + b).text == "warmup(100) + cosine(900)"
    assert str((a + b) * s.exp(0.5)).startswith(
        "Schedule(text='(warmup(100) + cosine(900)) * exp(0.5)', steps=1000"
    )
    assert (0.5 * (a + b)).by_epoch(3).text == "(0.5 * (warmup(100) + cosine(900))).by_epoch(3)"
    assert s.cosine(9, end=0).text == "cosine(9)"
    assert s.cosine(9, end=0.25).text == "cosine(9, end=0.25)"
    assert s.multistep((1, 2), 0.5).text == "multistep([1, 2], gamma=0.5)"
    assert s.one_cycle(9, anneal="linear").text == "one_cycle(9, anneal='linear')"
    assert s.step(np.int64(3), np.float64(0.5)) == s.step(3, 0.5)
    assert s.step(3, 0.5) != s.step(3, 0.4)


def test_own_function():
    own = Schedule("half", 10, lambda t: np.full_like(t, 0.5))
    assert (own + own)(range(20)).tolist() == [0.5] * 20
    with pytest.raises(ScheduleError, match=r"of: scalar made \(\) of steps \(2,\); it must be"):
        Schedule("scalar", None, lambda t: 0.5)([0, 1])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: s.cosine(9)(10), r"step: cosine\(9\) lasts 9 steps and is asked for step 10; mak"),
        (lambda: s.cosine(9)([0, 12, 3]), "step 12"),
        (lambda: s.exp(0.5)(-1), r"step: exp\(0.5\) is asked for step -1; steps are whole"),
        (lambda: s.exp(0.5)(1.5), "asked for step 1.5;"),
        (lambda: s.exp(0.5)([0, float("nan")]), "asked for step nan"),
        (lambda: s.exp(0.5)(float("inf")), "asked for step inf"),
        (lambda: s.exp(0.5)("3"), "takes whole numbers of steps, got '3'"),
        (lambda: s.exp(0.5)(True), "got True"),
        (lambda: s.exp(10)(4000), r"exp\(10\) is no finite number at step 4000"),
        (lambda: s.exp(0.5) + s.fixed(), r"exp\(0.5\) never ends, so that fixed\(\) would never"),
        (lambda: -1 * s.exp(0.5), r"multiplied by a number in \[0, inf\), got -1"),
        (lambda: s.exp(0.5) * float("nan"), "got nan"),
        (lambda: s.exp(0.5).by_epoch(0), "steps_per_epoch: must be at least 1, got 0"),
        (lambda: s.exp(0.5).by_epoch(2.5), "steps_per_epoch: must be a whole number, got 2.5"),
        (lambda: s.cosine(0), r"steps: cosine takes as steps a whole number in \[1, inf\), got 0"),
        (lambda: s.cosine(2.5), "a whole number .* got 2.5"),
        (lambda: s.cosine(None), "got None"),
        (lambda: s.step(10, gamma=0), r"gamma: step takes as gamma a number in \(0, inf\), got 0"),
        (lambda: s.step(10, gamma="x"), "got 'x'"),
        (lambda: s.linear(10, start=-1), "start"),
        (lambda: s.multistep([3, 2]), r"that increase, got \[3, 2\]"),
        (lambda: s.multistep([]), "that increase"),
        (lambda: s.multistep([0, 2]), "of at least 1"),
        (lambda: s.multistep([1.5]), "whole numbers"),
        (lambda: s.multistep(3), "got 3"),
        (lambda: s.wsd(10, 6, 6), "6 steps of warmup and 6 of decay, more than its 10"),
        (lambda: s.one_cycle(10, 1.5), r"pct_start a number in \[0, 1\], got 1.5"),
        (lambda: s.one_cycle(10, 0.6, three_phase=True), r"takes pct_start in \[0, 0.5\]"),
        (lambda: s.one_cycle(10, anneal="sin"), "anneal 'cos' or 'linear', got 'sin'"),
        (lambda: s.one_cycle(10, three_phase=1), "three_phase True or False, got 1"),
        (lambda: s.noam(0), r"warmup a whole number in \[1, inf\), got 0"),
        (lambda: s.inverse_sqrt(0), r"warmup a whole number in \[1, inf\), got 0"),
        (lambda: s.noam(10, d_model=0), "d_model"),
        (lambda: s.triangular(10, low=2), r"low a number in \[0, 1\], got 2"),
        (lambda: s.sgdr(10, multiplier=1.5), "multiplier a whole number .* got 1.5"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(ask, message):
    with pytest.raises(ScheduleError, match=message) as found:
        ask()
    assert "\n" not in str(found.value)
    assert isinstance(found.value, ValueError)


def test_what_is_no_schedule_cannot_be_added():
    with pytest.raises(TypeError):
        s.cosine(3) + 1
    with pytest.raises(TypeError):
        s.cosine(3) * "2"


def test_exported():
    assert thalweg.schedules is s
    assert thalweg.ScheduleError is ScheduleError
    assert all(hasattr(s, name) for name in s.__all__)


def test_frame():
    made = s.frame({"a": s.cosine(5), "b": s.exp(0.5)}, 5)
    assert list(made.columns) == ["name", "step", "factor"]
    np.testing.assert_array_equal(made[made["name"] == "b"]["factor"], 0.5 ** np.arange(5))
    long = s.frame({"a": s.fixed()}, 10**6)
    assert len(long) == 2000
    assert (long["step"].iloc[0], long["step"].iloc[-1]) == (0, 10**6 - 1)
