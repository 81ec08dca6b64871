"""Every schedule that torch has too, step by step, and the others against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as theirs

from thalweg import schedules as ours

STEPS = 1000
LR = 0.5


def rates(make, lr=LR):
    """Those of torch's scheduler before each of the steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=lr)
    scheduler = make(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(1, STEPS):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return np.array(found)


# Where torch multiplies its last rate by the next quotient, a rounding error stays and is divided
# by what falls: near the end of a cosine or a power it is relative to the first rate. There the
# tolerance is absolute, in units of the first rate.
PAIRS = {
    "fixed": (ours.fixed(), lambda o: theirs.ConstantLR(o, 1.0), 0),
    "step": (ours.step(30, 0.9), lambda o: theirs.StepLR(o, 30, 0.9), 0),
    "multistep": (
        ours.multistep([1, 100, 640, 999], 0.3),
        lambda o: theirs.MultiStepLR(o, [1, 100, 640, 999], 0.3),
        0,
    ),
    "exp": (ours.exp(0.99), lambda o: theirs.ExponentialLR(o, 0.99), 0),
    "poly": (ours.poly(STEPS, 0.9), lambda o: theirs.PolynomialLR(o, STEPS, 0.9), 0),
    "poly, square": (ours.poly(STEPS, 2), lambda o: theirs.PolynomialLR(o, STEPS, 2), 0),
    "cosine": (ours.cosine(STEPS), lambda o: theirs.CosineAnnealingLR(o, STEPS), 1e-13),
    "cosine to an end": (
        ours.cosine(STEPS, end=0.1),
        lambda o: theirs.CosineAnnealingLR(o, STEPS, 0.1 * LR),
        1e-13,
    ),
    "linear": (
        ours.linear(STEPS, 1, 0.01),
        lambda o: theirs.LinearLR(o, 1.0, 0.01, STEPS),
        1e-13,
    ),
    "warmup, held": (
        ours.warmup(300, start=0.1).hold(),
        lambda o: theirs.LinearLR(o, 0.1, 1.0, 300),
        0,
    ),
    "a constant, then 1": (
        0.25 * ours.fixed(200) + ours.fixed(),
        lambda o: theirs.ConstantLR(o, 0.25, 200),
        0,
    ),
    "sgdr": (ours.sgdr(70), lambda o: theirs.CosineAnnealingWarmRestarts(o, 70), 1e-15),
    "sgdr, doubling": (
        ours.sgdr(60, multiplier=2, end=0.02),
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 60, 2, 0.02 * LR),
        1e-15,
    ),
    "warmup + cosine": (
        ours.warmup(100, start=0.2) + ours.cosine(901, end=0.1),
        lambda o: theirs.SequentialLR(
            o,
            [
                theirs.LinearLR(o, 0.2, 1.0, 100),
                theirs.CosineAnnealingLR(o, 901, 0.1 * LR),
            ],
            [100],
        ),
        1e-13,
    ),
    "product": (
        ours.exp(0.995) * ours.step(40, 0.7),
        lambda o: theirs.ChainedScheduler(
            [theirs.ExponentialLR(o, 0.995), theirs.StepLR(o, 40, 0.7)]
        ),
        0,
    ),
    "inv": (
        ours.inv(1e-2, 0.75),
        lambda o: theirs.LambdaLR(o, lambda t: (1 + 1e-2 * t) ** -0.75),
        0,
    ),
    "sigmoid": (
        ours.sigmoid(500, 0.02),
        lambda o: theirs.LambdaLR(o, lambda t: 1 / (1 + math.exp(0.02 * (t - 500)))),
        0,
    ),
    "noam": (
        ours.noam(100, d_model=512),
        lambda o: theirs.LambdaLR(
            o, lambda t: 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * 100**-1.5)
        ),
        0,
    ),
    "by epoch": (
        ours.exp(0.8).by_epoch(33),
        lambda o: theirs.LambdaLR(o, lambda t: 0.8 ** (t // 33)),
        0,
    ),
    "wsd": (
        ours.wsd(STEPS, 50, 200, end=0.1),
        lambda o: theirs.LambdaLR(
            o, lambda t: (t + 1) / 51 if t < 50 else 1 - 0.9 * max(0, t - 800) / 200
        ),
        0,
    ),
    "inverse_sqrt": (
        ours.inverse_sqrt(50),
        lambda o: theirs.LambdaLR(o, lambda t: (t + 1) / 51 if t < 50 else (50 / t) ** 0.5),
        0,
    ),
    "constant_with_warmup": (
        ours.constant_with_warmup(50),
        lambda o: theirs.LambdaLR(o, lambda t: min(1, (t + 1) / 51)),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name):
    schedule, make, absolute = PAIRS[name]
    t = np.arange(STEPS)
    np.testing.assert_allclose(LR * schedule(t), rates(make), rtol=1e-12, atol=absolute * LR)


def test_every_schedule_is_compared():
    spoken = " ".join(PAIRS) + " one_cycle triangular triangular2 exp_range warmup"
    assert set(ours.SCHEDULES) <= set(spoken.replace(",", "").split())


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("start", "three"), [(0.3, False), (0.3, True), (0.45, True), (0.0, False), (1.0, False)]
)
def test_one_cycle_equals_torch(anneal, start, three):
    found = rates(
        lambda o: theirs.OneCycleLR(
            o, LR, STEPS, pct_start=start, anneal_strategy=anneal, cycle_momentum=False,
            div_factor=20, final_div_factor=100, three_phase=three,
        )
    )  # fmt: skip
    schedule = ours.one_cycle(STEPS, start, 20, 100, anneal, three)
    # 1 + cos of torch's has an error of its own near the end, in units of the peak.
    np.testing.assert_allclose(LR * schedule(np.arange(STEPS)), found, rtol=1e-12, atol=1e-15)


def test_one_cycle_where_torch_has_none():
    """It divides by zero where the rise ends at step 0, and rises again after its last step."""
    assert ours.one_cycle(2, pct_start=0.5)([0, 1]).tolist() == [1, 4e-6]
    last = ours.one_cycle(100)(99)
    assert ours.one_cycle(100)(100) == last == pytest.approx(4e-6, rel=1e-12)


@pytest.mark.parametrize("down", [None, 35])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclical_equal_torch(mode, down):
    gamma = 0.997 if mode == "exp_range" else 1.0
    found = rates(
        lambda o: theirs.CyclicLR(
            o, 0.2 * LR, LR, 40, down, mode=mode, gamma=gamma, cycle_momentum=False
        )
    )
    more = {"gamma": gamma} if mode == "exp_range" else {}
    schedule = getattr(ours, mode)(40, low=0.2, down=down, **more)
    # torch takes the place in a cycle from the quotient of step and cycle, less the cycles before:
    # of its digits the cycles take some.
    np.testing.assert_allclose(LR * schedule(np.arange(STEPS)), found, rtol=1e-12, atol=1e-13)


def test_the_default_warmup_wastes_no_step_and_ends_at_1():
    np.testing.assert_array_equal(ours.warmup(4)(range(5)), [0.2, 0.4, 0.6, 0.8, 1])


def test_noam_without_a_width_is_the_paper_scaled_to_a_peak_of_1():
    scaled = ours.noam(100)(range(STEPS))
    paper = ours.noam(100, d_model=64)(range(STEPS))
    np.testing.assert_allclose(scaled, paper / paper.max(), rtol=1e-14)
    assert scaled.argmax() == 99


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (ours.cosine(7), 0),
        (ours.cosine(7, end=0.3), 0.3),
        (ours.linear(7, 0.5, 0.1), 0.1),
        (ours.poly(7, 3, end=0.2), 0.2),
        (ours.wsd(7, 2, 3, end=0.1), 0.1),
        (ours.warmup(7), 1),
    ],
)
def test_the_end_is_exact(schedule, last):
    assert schedule(7) == last


def test_restarts_are_exact_at_any_step():
    """A logarithm of the step puts some of these into the cycle before."""
    schedule = ours.sgdr(10, multiplier=3)
    restarts = [10 * (3**n - 1) // 2 for n in range(25)]
    np.testing.assert_array_equal(schedule(restarts), 1)
    assert (schedule(np.array(restarts[1:]) - 1) < 0.03).all()


def test_small_factors_keep_their_digits():
    t = 10**6 - 1
    assert ours.cosine(10**6)(t) == pytest.approx((math.pi / 2 * 1e-6) ** 2, rel=1e-9)
    assert ours.sigmoid(10, 5)(100) == pytest.approx(math.exp(-450), rel=1e-12)
    assert ours.sigmoid(1000, 5)(0) == 1
