import math
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.stats import binom
from torch.nn import functional

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.random_matrices import (
    exact_share,
    leading_law,
    negative_share,
    random_symmetric,
)
from thalweg.tasks import Task, load
from thalweg.tasks.networks import mlp


def test_the_exact_share_of_two_by_two_is_the_integral_of_the_density():
    """Of eigenvalues (x, y) the density is |x - y| exp(-(x² + y²) / 2), but for a constant."""

    def weight(y, x):
        return abs(x - y) * math.exp(-(x * x + y * y) / 2)

    inside, _ = dblquad(weight, 0, 12, 0, lambda x: x)  # y below x, so that nothing is rough
    whole, _ = dblquad(weight, -12, 12, -12, lambda x: x)
    assert exact_share(2) == pytest.approx(inside / whole, rel=1e-6)


def test_shares_against_numpy_and_what_is_known():
    samples = 60_000
    table = random_symmetric((1, 2, 3, 4), samples, seed=5).table
    for size, count in zip(table["size"], table["positive"], strict=True):
        if size <= 3:
            assert table.set_index("size")["exact"][size] == exact_share(size)
            low, high = binom.ppf([0.0005, 0.9995], samples, exact_share(size))
            assert low <= count <= high
    # of size 4, by eigenvalues and NumPy's numbers
    entries = np.random.default_rng(0).standard_normal((samples, 4, 4))
    theirs = (np.linalg.eigvalsh(entries + entries.transpose(0, 2, 1)) > 0).all(1).sum()
    ours = table["positive"][3]
    assert abs(ours - theirs) < 4 * math.sqrt(ours + theirs)  # four standard deviations
    assert math.isnan(table["exact"][3])


def test_intervals_hold_the_share_and_none_found_has_a_bound():
    table = random_symmetric((2, 12), 1000).table
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()
    assert (table["positive"][1], table["low"][1]) == (0, 0)
    assert table["high"][1] == pytest.approx(1 - 0.025 ** (1 / 1000))


def test_the_law_is_three_to_the_minus_a_quarter_of_the_square():
    assert leading_law(4) == pytest.approx(3**-4)
    # What is exact declines as the law says: second differences of the logarithm are ln(3) / 2,
    # where terms linear in the size drop out.
    logs = [math.log(exact_share(n)) for n in (1, 2, 3)]
    assert np.diff(logs, 2)[0] == pytest.approx(-math.log(3) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "sizes: must be one or more whole numbers, got none"),
        ({"sizes": [2, 0]}, "sizes: must be a whole number of at least 1, got 0"),
        ({"samples": -1}, "samples: must be a whole number of at least 1, got -1"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(LandscapeError) as error:
        random_symmetric(**arguments)
    assert str(error.value) == message


@pytest.fixture(scope="module")
def small():
    digits = load("digits")
    return Task(
        model=mlp(64, 4, 10), train=digits.train, validation=digits.validation, test=digits.test,
        name="small",
    )  # fmt: skip


def test_signs_are_those_of_the_whole_hessian(small):
    found = negative_share(small, epochs=3, seed=1)
    assert (found.method, found.parameters) == ("exact", 64 * 4 + 4 + 40 + 10)
    assert list(found.table["moment"]) == ["start", "middle", "end"]
    assert list(found.table["step"]) == [0, 49, 99]
    # at the start, by torch's own Hessian in float64
    torch.manual_seed(1)
    module = small.model().double()
    names = [name for name, _ in module.named_parameters()]
    x, y = small.train.x.double(), small.train.y

    def loss(flat):
        parts = torch.split(flat, [p.numel() for p in module.parameters()])
        weights = {
            n: part.reshape(p.shape)
            for n, part, p in zip(names, parts, module.parameters(), strict=True)
        }
        return functional.cross_entropy(torch.func.functional_call(module, weights, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).numpy()
    mine = found.eigenvalues[found.eigenvalues["moment"] == 0]["eigenvalue"]
    np.testing.assert_allclose(np.sort(mine), values, atol=1e-9)
    zero = 1e-6 * np.abs(values).max()
    row = found.table.iloc[0]
    assert row["negative"] == pytest.approx((values < -zero).mean())
    assert row["positive"] == pytest.approx((values > zero).mean())
    assert row["zero"] == pytest.approx(1 - row["negative"] - row["positive"])
    assert row["negative_size"] == pytest.approx(
        np.abs(values[values < -zero]).sum() / np.abs(values).sum()
    )
    assert (row["lowest"], row["highest"]) == pytest.approx((values[0], values[-1]))
    assert row["low"] == row["high"] == row["negative"]
    bars = [t for t in found.figure().data if t.xaxis in (None, "x")]  # of the first panel
    assert sum(sum(t.y) for t in bars) == pytest.approx(100 * (1 - row["zero"]))


def test_a_large_networks_shares_are_near_those_of_all_eigenvalues(small, monkeypatch):
    exact = negative_share(small, epochs=1)
    monkeypatch.setattr(sys.modules["thalweg.landscape.random_matrices"], "EXACT", 100)
    estimated = negative_share(small, epochs=1)
    assert estimated.method == "Lanczos"
    for moment in (0, 1, 2):
        ours, theirs = estimated.table.iloc[moment], exact.table.iloc[moment]
        assert ours["highest"] == pytest.approx(theirs["highest"], rel=1e-6)
        assert ours["lowest"] == pytest.approx(theirs["lowest"], rel=1e-3)
        assert 0 < ours["tolerance"] < 0.1 * ours["highest"]  # more counts as zero here
        every = exact.eigenvalues[exact.eigenvalues["moment"] == moment]["eigenvalue"]
        assert ours["low"] <= (every < -ours["tolerance"]).mean() <= ours["high"]
        assert 0 <= ours["low"] <= ours["negative"] <= ours["high"] <= ours["low"] + 0.3
        assert ours[["negative", "zero", "positive"]].sum() == pytest.approx(1)
