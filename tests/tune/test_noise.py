"""The gradient noise scale where it can be computed by hand, and the curve of steps."""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from thalweg.tasks import Task, TaskError
from thalweg.tune import TuneError, noise, noise_scale, sample_curve

D, SIGMA = 6, 2.0
STILL = {"optimizer": "sgd", "lr": 1e-12}  # the weights stay where they are


class Fixed(nn.Linear):
    """Starts from the same weights whatever the seed."""

    def __init__(self):
        super().__init__(D, 1, bias=False)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-1, 1, D)[None])


def regression(samples=1024, model=Fixed, seed=0, **others):
    """Targets x w + noise of known size, with w = 0.5 everywhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, D, generator=generator)
    y = x.sum(1, keepdim=True) * 0.5 + SIGMA * torch.randn(samples, 1, generator=generator)
    part = (x[:8], y[:8])
    return Task(model=model, train=(x, y), validation=part, test=part, loss="mse", **others)


def by_hand(task):
    """tr S and |G|² of a data set, from the gradients of all its samples one by one.

    Batches are drawn from it without putting back, so tr S has one degree of freedom less.
    """
    x, y = task.train.x.double(), task.train.y.double()
    w = torch.linspace(-1, 1, D)[:, None].double()
    each = 2 * (x @ w - y) * x
    mean = each.mean(0)
    scatter = float(((each - mean) ** 2).sum() / (len(x) - 1))
    return scatter, float(mean @ mean)


@pytest.mark.parametrize("batch_size", [32, 7, 1])
def test_unbiased_against_all_gradients_one_by_one(batch_size):
    task = regression(256)
    found = noise_scale(task, batch_size=batch_size, epochs=300, seeds=8, **STILL)
    scatter, square = by_hand(task)
    n = len(found.curve)
    assert n >= 20
    for column, expected in (("noise", scatter), ("gradient", square)):
        seen = found.curve[column]
        error = seen.std(ddof=1) / math.sqrt(n)
        assert abs(seen.mean() - expected) < 4 * error  # by chance in 1 of 16,000
        assert error < 0.1 * expected
    assert found.value == pytest.approx(found.curve["noise"].sum() / found.curve["gradient"].sum())


def test_linear_regression_in_closed_form():
    """With x normal and w off by d: |G|² = 4 |d|², tr S = 4 ((D + 1) |d|² + D σ²)."""
    task = regression(20_000)
    off = float(((torch.linspace(-1, 1, D) - 0.5) ** 2).sum())
    found = noise_scale(task, batch_size=256, epochs=1, seeds=4, **STILL)
    # Of 20,000 samples the closed form holds to two per cent or so, which is checked.
    scatter, square = by_hand(task)
    assert scatter == pytest.approx(4 * ((D + 1) * off + D * SIGMA**2), rel=0.05)
    assert square == pytest.approx(4 * off, rel=0.05)
    expected = D + 1 + D * SIGMA**2 / off
    assert found.interval[0] < expected < found.interval[1]
    assert found.value == pytest.approx(expected, rel=0.15)


def test_of_all_samples_the_sum_is_exact():
    """Of |G|² nothing is left to chance where the samples are all there are."""
    task = regression(8)
    found = noise_scale(task, batch_size=8, epochs=1, seeds=1, **STILL)
    # Four batches of two.
    _, square = by_hand(task)
    row = found.curve.iloc[0]
    assert row["gradient"] == pytest.approx(square, rel=1e-5)


def test_the_interval_holds_what_it_should():
    inside = 0
    for seed in range(20):
        task = regression(512, seed=seed)
        scatter, square = by_hand(task)
        found = noise_scale(task, epochs=3, seeds=10, **STILL)
        low, high = found.interval
        assert low < found.value < high
        inside += low < scatter / square < high
    # At 95 % fewer than 16 of 20 has chance 3e-3.
    assert inside >= 16


class Watched(Fixed):
    """Its value is taken out, which vmap cannot follow."""

    def forward(self, x):
        assert x.abs().max().item() < 100
        return super().forward(x)


def test_models_that_vmap_cannot_take():
    one = noise_scale(regression(64, Watched), epochs=2, seeds=2, **STILL)
    two = noise_scale(regression(64), epochs=2, seeds=2, **STILL)
    np.testing.assert_allclose(one.curve, two.curve, rtol=1e-4)
    assert one.value == pytest.approx(two.value, rel=1e-4)


def normalised():
    return nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def dropping():
    return nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("batch_size", [32, 4, 2])
def test_batch_normalisation(batch_size):
    found = noise_scale(regression(64, normalised), batch_size=batch_size, epochs=2, seeds=2)
    assert np.isfinite(found.curve[["noise", "gradient"]]).all().all()
    assert "batch normalisation mixes samples" in found.note
    assert "batch normalisation" not in noise_scale(regression(64), epochs=1, seeds=2).note


def test_dropout_adds_to_the_noise_and_can_be_repeated():
    one, two = (
        noise_scale(regression(256, dropping), epochs=4, seeds=4, **STILL) for _ in range(2)
    )
    pd.testing.assert_frame_equal(one.curve, two.curve)
    dry = noise_scale(
        regression(256, lambda: nn.Sequential(dropping()[0], nn.Dropout(0.0), *dropping()[2:])),
        epochs=4, seeds=4, **STILL,
    )  # fmt: skip
    assert one.curve["noise"].mean() > dry.curve["noise"].mean()


def test_it_grows_as_training_goes_on():
    task = regression(512)
    found = noise_scale(task, optimizer="sgd", lr=0.01, epochs=6, seeds=4)
    still = noise_scale(task, epochs=6, seeds=4, **STILL)
    assert found.curve["gradient"].iloc[-1] < 0.2 * found.curve["gradient"].iloc[0]
    assert found.value > still.value
    assert list(found.curve.columns) == ["step", "epoch", "noise", "gradient", "value"]
    assert found.curve["step"].is_monotonic_increasing
    np.testing.assert_allclose(found.curve["epoch"], found.curve["step"] / 16)
    assert found.batch_size == 32


def test_it_costs_at_most_a_fifth_of_the_training():
    found = noise_scale(regression(1024), epochs=3, seeds=2, **STILL)
    measured = len(found.curve) * 8 * 8  # eight batches of eight
    assert measured <= 0.2 * 3 * 1024 + 8 * 8


def test_a_gradient_that_is_all_noise():
    """Pairs of samples whose gradients cancel, so that the mean gradient of all is zero."""
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(32, D, generator=generator), torch.randn(32, 1, generator=generator)
    w = torch.linspace(-1, 1, D)[:, None]
    x, y = torch.cat([x, -x]), torch.cat([x @ w + e, -x @ w + e])
    part = (x[:8], y[:8])
    task = Task(model=Fixed, train=(x, y), validation=part, test=part, loss="mse")
    found = noise_scale(task, epochs=1, seeds=3, **STILL)
    assert math.isnan(found.value)
    assert all(map(math.isnan, found.interval))
    assert found.note == "the gradient cannot be told from its noise; more seeds or epochs may"
    assert found.figure().data


def test_one_seed_gives_no_interval():
    found = noise_scale(regression(), epochs=1, seeds=1, **STILL)
    assert math.isfinite(found.value)
    assert math.isnan(found.interval[0])
    assert found.note == "one seed gives no interval"


def test_runs_that_diverge_are_counted():
    found = noise_scale(regression(256), optimizer="sgd", lr=1e6, epochs=4, seeds=3)
    assert found.note.endswith("3 of 3 runs diverged at learning rate 1e+06")


def test_the_figure():
    found = noise_scale(regression(256), epochs=2, seeds=3, **STILL)
    names = [t.name for t in found.figure().data]
    assert names == [
        "at one moment, mean over seeds", "all of it, with its interval",
        "batch size of the training",
    ]  # fmt: skip
    assert noise_scale(regression(64), epochs=1, seeds=1, **STILL).figure().data


def test_random_states_are_left_alone():
    task = regression(64, dropping)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    noise_scale(task, epochs=1, seeds=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "argument", "problem"),
    [
        ({"task": 3}, "task", "must be a name or a thalweg.Task, got 3"),
        ({"optimizer": "adm"}, "optimizer", "there is no 'adm'; did you mean adam"),
        ({"lr": 0}, "lr", "must be positive and finite, got 0"),
        ({"lr": math.nan}, "lr", "must be positive and finite, got nan"),
        ({"lr": "fast"}, "lr", "must be positive and finite, got 'fast'"),
        ({"batch_size": 0}, "batch_size", "must be a whole number of at least 1, got 0"),
        ({"batch_size": 1000}, "batch_size", "1000 is more than the 106 training samples"),
        ({"epochs": 0}, "epochs", "must be a whole number of at least 1, got 0"),
        ({"seeds": 0}, "seeds", "must be a whole number of at least 1, got 0"),
        ({"seeds": [0.5]}, "seeds", "must be how many, or whole numbers from 0, got [0.5]"),
        ({"device": "gpu"}, "device", "must be cpu or cuda, got 'gpu'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, argument, problem):
    with pytest.raises(TuneError) as caught:
        noise_scale(**({"task": "wine"} | arguments))
    assert caught.value.argument == argument
    assert caught.value.problem.startswith(problem)
    assert "\n" not in str(caught.value)


def test_tasks_that_cannot_be_measured():
    class Raises(Fixed):
        def forward(self, x):
            raise KeyError("weights")

    with pytest.raises(TaskError, match="the model raises KeyError"):
        noise_scale(regression(16, Raises))
    x = torch.ones(1, D)
    part = (x, x[:, :1])
    with pytest.raises(TuneError, match="has one training sample; a variance needs two"):
        noise_scale(Task(model=Fixed, train=part, validation=part, test=part, loss="mse"))


def reached(steps, critical, sizes, seeds=5, spread=0.0, seed=0):
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {
                "batch_size": size,
                "seed": s,
                "steps": steps * (1 + critical / size) * math.exp(spread * draw.standard_normal()),
            }
            for size in sizes
            for s in range(seeds)
        ]
    )


SIZES = [1, 4, 16, 64, 256]


@pytest.mark.parametrize("critical", [2.0, 30.0, 200.0])
def test_the_curve_is_recovered(critical):
    found = sample_curve(reached(120, critical, SIZES))
    assert found.value == pytest.approx(critical, rel=1e-4)
    assert found.steps == pytest.approx(120, rel=1e-4)
    assert found.samples == pytest.approx(120 * critical, rel=1e-4)
    assert found.interval == pytest.approx((critical, critical), rel=1e-4)


def test_its_interval_holds_the_truth(monkeypatch):
    monkeypatch.setattr(noise, "RESAMPLED", 100)
    inside = 0
    for seed in range(30):
        low, high = sample_curve(reached(120, 30.0, SIZES, 8, 0.2, seed)).interval
        inside += low < 30 < high
    # A bootstrap of eight seeds covers 87 % or so; fewer than 20 of 30 then has chance 1e-3.
    assert inside >= 20


def test_sizes_that_did_not_get_there_are_left_out():
    table = reached(120, 30.0, [*SIZES, 1024])
    bad = (table["batch_size"] == 1024) & (table["seed"] < 3)
    table.loc[bad, "steps"] = np.nan
    table.loc[(table["batch_size"] == 1024) & ~bad, "steps"] = 1e6  # of two seeds in five
    found = sample_curve(table)
    assert found.value == pytest.approx(30, rel=1e-4)
    few = table["batch_size"].isin([4, 16]) & (table["seed"] == 0)
    table.loc[few, "steps"] = np.nan
    assert sample_curve(table).value == pytest.approx(30, rel=1e-4)


@pytest.mark.parametrize("sizes", [[], [8], [8, 32]])
def test_too_few_sizes(sizes):
    table = reached(120, 30.0, sizes) if sizes else pd.DataFrame(
        {"batch_size": [], "seed": [], "steps": []}
    )  # fmt: skip
    found = sample_curve(table)
    assert all(map(math.isnan, (found.value, *found.interval, found.steps, found.samples)))


def test_one_seed_gives_no_interval_of_the_curve():
    found = sample_curve(reached(120, 30.0, SIZES, seeds=1))
    assert found.value == pytest.approx(30, rel=1e-4)
    assert math.isnan(found.interval[0])
