import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.generalisation import (
    gap_interval,
    generalisation,
    overfitting_from,
    sample_losses,
    worst_rise,
)
from thalweg.tasks import Task, load


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def found(digits):
    return generalisation(digits, ["sgd", "adam"], [32, 256], epochs=8, seeds=3)


def fresh(task, seed=0):
    torch.manual_seed(seed)
    return task.model()


def test_losses_of_samples_alone(digits):
    module = fresh(digits)
    each = sample_losses(digits, module.state_dict(), digits.validation)
    with torch.no_grad():
        outputs = module(digits.validation.x)
        expected = functional.cross_entropy(outputs, digits.validation.y, reduction="none")
    np.testing.assert_allclose(each, expected.double(), rtol=1e-5)


def test_a_loss_that_is_no_mean_is_refused(digits):
    def total(outputs, y):
        return functional.cross_entropy(outputs, y, reduction="sum")

    def fussy(outputs, y):
        loss = functional.cross_entropy(outputs, y)
        return loss if loss.item() > 0 else -loss

    for loss, message in (
        (total, "total is no mean over samples: of all it"),
        (fussy, "fussy can"),
    ):
        task = Task(model=digits.model, train=digits.train, validation=digits.validation, loss=loss)
        with pytest.raises(LandscapeError) as error:
            sample_losses(task, fresh(task).state_dict(), task.train)
        assert str(error.value).startswith(f"task: the loss {message}")


def test_the_gaps_interval_is_that_of_two_means():
    draw = np.random.default_rng(1)
    train, validation = draw.exponential(1.0, 4000), draw.exponential(3.0, 1500)
    low, high = gap_interval(train, validation)
    gap = validation.mean() - train.mean()
    half = 1.96 * math.sqrt(train.var() / 4000 + validation.var() / 1500)
    # Ends are quantiles of 2,000 resampled values, known to 4 % of the half width each.
    assert low == pytest.approx(gap - half, abs=0.12 * half)
    assert high == pytest.approx(gap + half, abs=0.12 * half)
    assert gap_interval(np.ones(5), np.full(5, 3.0)) == (2, 2)


def test_where_over_fitting_begins():
    falling = np.exp(-np.arange(30) / 5)
    assert overfitting_from(falling) is None
    vee = np.abs(np.arange(30) - 11.0)  # second differences are 0 but at the corner: no noise
    assert overfitting_from(vee) == 11
    assert overfitting_from(vee[:15]) == 11
    assert overfitting_from(vee[:14]) is None  # two epochs higher are not for good
    assert overfitting_from(vee[:3]) is None
    noise = 0.1 * np.random.default_rng(0).standard_normal(200)
    assert overfitting_from(1 + noise) is None
    epochs = np.arange(200)
    rising = np.where(epochs < 40, 0.0, 0.02 * (epochs - 40))
    # It leaves the noise of its lowest value, -0.23 or so plus three of 0.1, near 0.1 / 0.02 later.
    assert 40 <= overfitting_from(rising + noise) <= 65


def quadratic_task(samples=40):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=draw) * torch.tensor([3.0, 1.0, 0.3])
    y = torch.randn(samples, 1, generator=draw)
    return Task(
        model=lambda: nn.Linear(3, 1, bias=False), train=(x, y), validation=(x, y), name="q"
    )


def test_the_worst_loss_in_a_ball_of_a_quadratic_is_the_trust_regions():
    """max g'e + e'He / 2 over |e| <= r is at (m - H) e = g with m above H's eigenvalues."""
    task = quadratic_task()
    ends = [{"weight": torch.tensor([w])} for w in ([0.5, -2.0, 1.0], [0.0, 0.1, 3.0])]
    x, y = task.train.x.double(), task.train.y.double()
    h = 2 * (x.T @ x) / len(x)
    values, axes = np.linalg.eigh(h.numpy())
    expected = []
    for end in ends:
        w = end["weight"].double()
        g = axes.T @ (2 * x.T @ (x @ w.T - y) / len(x)).numpy().ravel()
        r = 0.1 * w.norm().item()
        far = brentq(
            lambda m, g=g, r=r: np.linalg.norm(g / (m - values)) - r,
            values[-1] + 1e-9, values[-1] + 1e6,
        )  # fmt: skip
        e = g / (far - values)
        expected.append(g @ e + (values * e * e).sum() / 2)
    np.testing.assert_allclose(worst_rise(task, ends, 0.1), expected, rtol=1e-4)


def test_a_larger_ball_holds_a_higher_loss(digits):
    end = fresh(digits).state_dict()
    rises = [worst_rise(digits, [end], radius)[0] for radius in (1e-3, 0.01, 0.05)]
    assert 0 < rises[0] < rises[1] < rises[2]
    # Within a small ball it is the gradient's norm times the radius.
    module = fresh(digits)
    functional.cross_entropy(module(digits.train.x), digits.train.y).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters()))
    size = math.sqrt(sum(p.square().sum().item() for p in module.parameters()))
    assert rises[0] == pytest.approx(norm * size * 1e-3, rel=0.02)


def test_batch_normalisation_is_left_as_it_is():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=draw)
    task = Task(
        model=lambda: nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)),
        train=(x, (x[:, 0] > 0).long()), validation=(x, (x[:, 0] > 0).long()), name="bn",
    )  # fmt: skip
    module = fresh(task)
    module[0].running_mean += 1.0
    (rise,) = worst_rise(task, [module.state_dict()], 1e-3)
    module.eval()
    functional.cross_entropy(module(task.train.x), task.train.y).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters()))
    size = math.sqrt(sum(p.square().sum().item() for p in module.parameters()))
    assert rise == pytest.approx(norm * size * 1e-3, rel=0.02)


def test_the_table_is_what_the_runs_say(found, digits):
    table, runs, curves = found.table, found.runs, found.curves
    assert list(zip(table["optimizer"], table["batch_size"], strict=True)) == [
        ("SGD", 32), ("Adam", 32), ("SGD", 256), ("Adam", 256),
    ]  # fmt: skip
    assert len(runs) == 12
    assert len(curves) == 12 * 9
    for _, row in table.iterrows():
        mine = runs[
            (runs["optimizer"] == row["optimizer"]) & (runs["batch_size"] == row["batch_size"])
        ]
        for of in ("train_loss", "validation_loss", "gap", "eigenvalue", "sharpness"):
            assert row[of] == pytest.approx(mine[of].mean())
        assert row["gap"] == pytest.approx(row["validation_loss"] - row["train_loss"])
        t = stats.t.interval(0.95, 2, mine["gap"].mean(), stats.sem(mine["gap"]))
        assert (row["seed_low"], row["seed_high"]) == pytest.approx(t)
        assert row["low"] < row["gap"] < row["high"]
    last = curves[curves["epoch"] == 8]
    np.testing.assert_allclose(last["train_loss"], runs["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(last["validation_loss"], runs["validation_loss"], rtol=1e-5)
    # all runs of a seed start from the same weights
    first = curves[curves["epoch"] == 0].groupby("seed")["train_loss"]
    assert (first.max() - first.min()).max() < 1e-6
    with torch.no_grad():
        expected = functional.cross_entropy(fresh(digits)(digits.train.x), digits.train.y).item()
    assert first.mean()[0] == pytest.approx(expected, rel=1e-5)
    assert (runs["sharpness"] > 0).all()


def test_runs_do_not_depend_on_who_trains_beside_them(found, digits):
    alone = generalisation(digits, ["adam"], [32], epochs=8, seeds=[1]).runs.iloc[0]
    beside = found.runs[
        (found.runs["optimizer"] == "Adam")
        & (found.runs["batch_size"] == 32)
        & (found.runs["seed"] == 1)
    ].iloc[0]
    # The same float32 operations, but for sums of products that a larger stack may take otherwise.
    for of in ("train_loss", "validation_loss", "gap", "eigenvalue"):
        assert alone[of] == pytest.approx(beside[of], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizers": ["sdg"]}, "optimizers: there is no 'sdg'; did you mean sgd?"),
        ({"optimizers": []}, "optimizers: must be one or more"),
        ({"batch_sizes": []}, "batch_sizes: must be one or more"),
        ({"batch_sizes": [0]}, "batch_sizes: must be a whole number of at least 1, got 0"),
        ({"batch_sizes": [4000]}, "batch_sizes: 4000 is more than the 1077 training samples"),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1, got 0"),
        ({"seeds": 0}, "seeds: must be a whole number of at least 1, got 0"),
        ({"radius": 0}, "radius: must be positive and finite, got 0"),
        (
            {"lr": 1e6, "epochs": 1, "batch_sizes": [128], "optimizers": ["sgd"], "seeds": 1},
            "lr: SGD diverges at 1e+06 with batches of 128, seed 0; give a smaller one",
        ),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(LandscapeError) as error:
        generalisation("digits", **arguments)
    assert str(error.value).startswith(message)
