"""Curves whose steepest point, minimum and end are known."""

import warnings

import numpy as np
import pytest

from thalweg.tune.curve import DIVERGED, Marks, diverged, marks, noise, smooth, turning
from thalweg.tune.curve import _valley as place_of_valley

LRS = np.geomspace(1e-5, 1e1, 601)
X = np.log(LRS)
NOTHING = Marks(None, None, None)


def fastai(lrs, losses):
    """fastai's `valley`, retyped from what it computes: a longest falling subsequence."""
    lengths = []
    start = end = 0
    for i, loss in enumerate(losses):
        before = [lengths[j] for j in range(i) if losses[j] > loss]
        lengths.append(1 + max(before, default=0))
        if lengths[i] > lengths[end]:
            end, start = i, i - lengths[i]
    third = (end - start) / 3
    return lrs[start + int(third) + int(third / 2)]


def fall(steepest, width=1.0, high=2.0, low=0.5):
    """A step in the logarithm of the rate, steepest where it is said."""
    return low + (high - low) / (1 + np.exp((X - np.log(steepest)) / width))


def bowl(at, depth=1.0):
    """Falls as a parabola in the logarithm, lowest where it is said, and rises."""
    return 0.3 + depth * (X - np.log(at)) ** 2


@pytest.mark.parametrize("at", [1e-3, 1e-2, 0.05])
def test_the_steepest_point_is_where_the_derivative_is(at):
    found = marks(LRS, fall(at))
    # d/dx of a logistic step is largest in its middle; rates are 2.3 % apart.
    assert found.steepest == pytest.approx(at, rel=0.024)


@pytest.mark.parametrize("at", [1e-3, 0.1, 1.0])
def test_a_tenth_of_where_it_is_lowest(at):
    assert marks(LRS, bowl(at)).minimum == pytest.approx(at / 10, rel=0.012)


def test_steepness_is_against_the_logarithm_also_where_rates_rise_linearly():
    lrs = np.linspace(1e-3, 1, 2000)
    x = np.log(lrs)
    losses = 1 / (1 + np.exp((x - np.log(0.1)) / 0.5))
    # Against the rate itself the slope is s (1 - s) / lr, steepest well below 0.1.
    assert lrs[np.gradient(losses, lrs).argmin()] < 0.08
    assert marks(lrs, losses).steepest == pytest.approx(0.1, rel=0.006)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["walk", "noise", "falling", "ties"])
def test_the_valley_is_fastais(kind, seed):
    draw = np.random.default_rng(seed)
    losses = {
        "walk": draw.standard_normal(120).cumsum(),
        "noise": draw.standard_normal(120),
        "falling": 5 - np.linspace(0, 3, 120) + 0.2 * draw.standard_normal(120),
        "ties": draw.integers(0, 12, 120).astype(float),
    }[kind]
    lrs = np.geomspace(1e-5, 1, 120)
    assert lrs[place_of_valley(losses)] == fastai(lrs, losses)


def test_the_valley_of_a_clean_fall_is_its_middle():
    # Falls over steps 100 to 400, which fastai takes for 99 to 400: 99 + 100 + 50.
    losses = np.concatenate([np.full(100, 2.0), np.linspace(2, 1, 301), np.linspace(1, 9, 200)])
    assert marks(LRS, losses).valley == pytest.approx(LRS[249], rel=1e-12)


def test_nothing_to_point_at():
    assert marks(LRS, np.full(601, 2.0)) == NOTHING
    assert marks(LRS, np.linspace(1, 2, 601)) == NOTHING
    assert marks(LRS, np.linspace(2, 1.97, 601)) == NOTHING  # 1.5 %
    assert marks(LRS, np.zeros(601)) == NOTHING
    assert marks(LRS, np.full(601, np.nan)) == NOTHING
    assert marks(LRS[:2], np.array([2.0, 1.0])) == NOTHING
    assert marks(LRS, np.linspace(2, 1, 601)) != NOTHING


def test_a_loss_below_zero_has_its_marks():
    assert marks(LRS, fall(1e-2) - 5).steepest == marks(LRS, fall(1e-2)).steepest


def test_what_has_diverged_is_not_looked_at():
    whole = fall(1e-3)
    cut = np.where(LRS > 1.0, np.nan, whole)
    until = LRS <= 1.0
    assert marks(LRS, cut) == marks(LRS[until], whole[until])


@pytest.mark.parametrize("steps", [20, 200, 1000])
@pytest.mark.parametrize("runs", [1, 8])
def test_noise_alone_points_at_nothing(runs, steps):
    draw = np.random.default_rng(0)
    lrs = np.geomspace(1e-9, 1e-7, steps)
    pointed = 0
    for _ in range(100):
        losses = 1 + 0.4 * draw.standard_normal((runs, steps))
        found = marks(lrs, smooth(losses), noise(losses))
        bound = turning(lrs, smooth(losses), False, noise(losses))
        pointed += (found != NOTHING) + (bound is not None)
    # 3 of 1,000 at six standard deviations, looked at twice: more than 6 of 200 has chance 1e-5.
    assert pointed <= 6


def test_a_fall_in_noise_is_found_where_it_is():
    draw = np.random.default_rng(0)
    losses = fall(1e-2) + 0.2 * draw.standard_normal((8, 601))
    found = marks(LRS, smooth(losses), noise(losses))
    # The logistic step falls by four fifths within 2.2 of its width to either side.
    assert abs(np.log(found.steepest / 1e-2)) < 1
    assert abs(np.log(found.valley / 1e-2)) < 3


def test_the_noise_of_a_smoothed_curve():
    draw = np.random.default_rng(0)
    losses = fall(1e-2) + 0.3 * draw.standard_normal((300, 601))
    smoothed = np.array([smooth(one[None]) for one in losses])[:, 150:450]
    each = np.array([noise(one[None]) for one in losses])
    assert each.mean() == pytest.approx(smoothed.std(0, ddof=1).mean(), rel=0.05)
    assert noise(losses[:9]) == pytest.approx(each.mean() / 3, rel=0.15)
    assert noise(np.full((3, 50), 2.0)) == 0
    assert noise(np.full((3, 50), np.nan)) == 0


def test_smoothing_is_the_mean_by_a_gaussian():
    draw = np.random.default_rng(0)
    losses = draw.standard_normal((3, 150))
    losses[0, 100:] = np.nan
    losses[1, 120:] = np.nan
    losses[2, 140:] = np.nan
    found = smooth(losses)
    for t in (0, 1, 70, 99, 105, 139):
        weights = np.exp(-0.5 * ((np.arange(150) - t) / 3.0) ** 2)  # 2 % of 150
        total = count = 0.0
        for run in losses:
            for weight, loss in zip(weights, run, strict=True):
                if np.isfinite(loss):
                    total += weight * loss
                    count += weight
        assert found[t] == pytest.approx(total / count, rel=1e-10, abs=1e-12)
    assert np.isnan(found[140:]).all()
    assert np.isfinite(found[:140]).all()


def test_smoothing_keeps_a_line_and_does_not_lag():
    found = smooth(np.linspace(2, 1, 200)[None])
    np.testing.assert_allclose(found[30:170], np.linspace(2, 1, 200)[30:170], rtol=1e-9)
    assert smooth(bowl(0.1)[None]).argmin() == bowl(0.1).argmin()


def test_a_long_curve_needs_no_square_of_its_length():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = smooth(np.ones((1, 20_000)))  # 3.2 GB as a matrix
    np.testing.assert_allclose(found, 1, rtol=1e-12)


def first_beyond(losses):
    """When the corrected average first is four times its best and above its start, in NumPy."""
    steps = np.arange(len(losses))
    weights = 0.9 ** (steps[:, None] - steps[None, :]) * (steps[:, None] >= steps[None, :])
    mean = weights @ losses / weights.sum(1)
    best = np.minimum.accumulate(mean)
    return int(np.argmax((mean > DIVERGED * best) & (mean > mean[0] + 3 * np.abs(best))))


def test_a_run_diverges_at_four_times_its_best():
    losses = np.concatenate([np.linspace(2, 1, 50), 1.2 ** np.arange(60)])
    found = diverged(np.stack([losses, np.linspace(2, 1, 110), np.full(110, 3.0)]))
    assert found[0] == first_beyond(losses)
    assert 50 < found[0] < 70
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [0, 7, 19])
def test_a_run_diverges_where_it_is_no_number(broken, step):
    losses = np.ones((1, 20))
    losses[0, step] = broken
    assert diverged(losses)[0] == step


def test_a_loss_near_zero_does_not_diverge_by_noise():
    draw = np.random.default_rng(0)
    learnt = np.geomspace(2, 1e-4, 100)
    then = np.abs(1e-4 * draw.standard_cauchy(100)).clip(max=0.05)
    losses = np.concatenate([learnt, then])
    assert losses[100:].max() > 100 * losses.min()
    assert np.isnan(diverged(losses[None])[0])
    below = np.concatenate([np.linspace(1, -2, 50), np.linspace(-2, -1, 50)])
    assert np.isnan(diverged(below[None])[0])


def test_bounds_of_a_cycle():
    # Accuracy at chance up to step 200, rising in a line to step 400, and falling from there.
    rising = np.linspace(0.1, 0.9, 201)
    values = np.concatenate([np.full(200, 0.1), rising, np.linspace(0.9, 0.1, 200)])
    low, high = turning(LRS, values, True)
    assert low == pytest.approx(LRS[220])  # a tenth of the way up
    assert high == pytest.approx(LRS[400])
    assert turning(LRS, -values, False) == (low, high)
    assert turning(LRS, values, False) is None or turning(LRS, values, False)[1] < low
    cut = np.where(np.arange(601) > 450, np.nan, values)
    assert turning(LRS, cut, True) == (low, high)


def test_no_bounds_where_it_never_gets_better():
    assert turning(LRS, np.full(601, 0.1), True) is None
    assert turning(LRS, np.linspace(0.9, 0.1, 601), True) is None
    assert turning(LRS, np.linspace(0.5, 0.509, 601), True) is None
    assert turning(LRS, np.full(601, np.nan), True) is None
    assert turning(LRS[:2], np.array([0.1, 0.9]), True) is None
