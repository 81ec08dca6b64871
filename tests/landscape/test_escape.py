import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.escape import DOMAIN, GLOBAL, HILL, LOCAL, escape


def f(x):
    return x * np.cos(np.pi * x)


def df(x):
    return np.cos(np.pi * x) - np.pi * x * np.sin(np.pi * x)


def test_where_the_minima_and_the_hill_are():
    for root, a, b in ((LOCAL, -0.5, 0), (HILL, 0, 0.5), (GLOBAL, 0.9, 1.3)):
        assert root == pytest.approx(brentq(df, a, b, xtol=1e-15), abs=1e-12)
    x = np.linspace(*DOMAIN, 300001)
    y = f(x)
    # the lowest of all, the lowest left of the hill, and nothing lower at either end
    assert x[y.argmin()] == pytest.approx(GLOBAL, abs=1e-5)
    left = x < HILL
    assert x[left][y[left].argmin()] == pytest.approx(LOCAL, abs=1e-5)
    between = (x > LOCAL) & (x < GLOBAL)
    assert x[between][y[between].argmax()] == pytest.approx(HILL, abs=1e-5)


def test_without_noise_nobody_leaves_whatever_the_optimizer():
    for optimizer in ("sgd", "nag", "adam"):
        (row,) = escape([0], optimizer=optimizer, runs=5, steps=50).table.to_dict("records")
        assert (row["left"], row["share"], row["low"], row["stayed"]) == (0, 0, 0, 1)
        assert row["high"] == pytest.approx(1 - 0.025 ** (1 / 5))  # Clopper and Pearson of none
        assert math.isnan(row["median_step"])


def chain(noise, lr, steps, cells=1500):
    """Probability to have reached the global minimum, from SGD's Markov chain on cells.

    A step from x ends at a Gaussian about x - lr f'(x), clipped to the domain; what comes to the
    minimum stays there, counted.
    """
    edges = np.linspace(DOMAIN[0], GLOBAL, cells + 1)
    x = (edges[1:] + edges[:-1]) / 2
    below = norm.cdf(edges[None], loc=(x - lr * df(x))[:, None], scale=lr * noise)
    below[:, 0] = 0  # what would leave on the left ends in the first cell
    moves = np.diff(below, axis=1)
    at = np.zeros(cells)
    at[np.searchsorted(edges, LOCAL) - 1] = 1.0
    for _ in range(steps):
        at = at @ moves
    return 1 - at.sum()


def test_shares_are_those_of_the_markov_chain():
    noises, runs, steps = [1.5, 2.0, 2.5], 3000, 300
    table = escape(noises, lr=0.05, runs=runs, steps=steps).table
    for noise, left in zip(noises, table["left"], strict=True):
        # cells of 0.0014 against a step's spread of 0.075 and more
        p = chain(noise, 0.05, steps)
        low, high = binom.ppf([0.0005, 0.9995], runs, p)
        assert low <= left <= high, (noise, left / runs, p)
    # Kramers' rate is for low temperatures: near the chain where the hill is 6 T high
    assert table["theory"][0] == pytest.approx(chain(1.5, 0.05, steps), rel=0.25)
    hot = escape([3.0], lr=0.05, runs=1, steps=1).table
    assert math.isnan(hot["theory"][0])  # 0.356 high, T = 0.225


def test_more_noise_lets_more_leave_and_sooner():
    table = escape([1.0, 1.5, 2.0, 3.0], runs=1000, steps=400).table
    assert (np.diff(table["share"]) > 0).all()
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()
    assert math.isnan(table["median_step"][0])
    assert table["median_step"][3] < 400


def test_the_same_seed_gives_the_same():
    a, b, c = (escape([2.0], runs=500, steps=200, seed=s).table["left"][0] for s in (1, 1, 2))
    assert a == b != c


def test_another_rule_takes_the_same_steps_as_torch():
    import torch

    noise, lr, runs, steps = 4.0, 0.1, 50, 300
    left = escape([noise], optimizer="adam", lr=lr, runs=runs, steps=steps, seed=3).table["left"][0]
    x = torch.full((runs,), LOCAL, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=lr)
    draw = torch.Generator().manual_seed(3)
    reached = torch.zeros(runs, dtype=torch.bool)
    for _ in range(steps):
        x.grad = torch.as_tensor(df(x.detach().numpy()))
        x.grad += noise * torch.randn(runs, generator=draw, dtype=torch.float64)
        adam.step()
        with torch.no_grad():
            x.clamp_(*DOMAIN)
        reached |= x.detach() >= GLOBAL
    assert 0 < left < runs
    assert left == int(reached.sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noises": [-1.0]}, "noises: must be positive and finite, got -1.0"),
        ({"noises": []}, "noises: must be one or more standard deviations, got none"),
        ({"optimizer": "sdg"}, "optimizer: there is no 'sdg'; did you mean sgd?"),
        ({"optimizer": "lamb"}, "optimizer: a step of LAMB depends on all of a tensor, and here"),
        ({"lr": 0}, "lr: must be positive and finite, got 0"),
        ({"runs": 0}, "runs: must be a whole number of at least 1, got 0"),
        ({"steps": 1.5}, "steps: must be a whole number of at least 1, got 1.5"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(LandscapeError) as error:
        escape(**arguments)
    assert str(error.value).startswith(message)
