"""Range tests of tasks, against plain training loops."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import optim, rules
from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.rates import RATE_COLUMNS
from thalweg.tasks import Task, TaskError, load
from thalweg.tune import TuneError, lr_range_test
from thalweg.tune.ranges import LOWER, widest


def own(samples=90, features=5, **others):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, features, generator=generator)
    y = (x[:, :3] - x[:, 2:5]).argmax(1)
    arguments = {"model": lambda: nn.Linear(features, 3), "train": (x, y), "name": "own"}
    return Task(**arguments | others)


def loop(task, optimizer, lrs, seed, size):
    """Losses of the batches of a plain loop with these rates."""
    torch.manual_seed(seed)
    model = task.model()
    made = optimizer(model.parameters(), lr=float(lrs[0]))
    order = torch.Generator().manual_seed(seed)
    losses = []
    while len(losses) < len(lrs):
        index = torch.randperm(len(task.train), generator=order)
        for i in range(len(task.train) // size):
            if len(losses) == len(lrs):
                break
            batch = index[i * size : (i + 1) * size]
            made.param_groups[0]["lr"] = float(lrs[len(losses)])
            made.zero_grad()
            loss = task.loss.of(model(task.train.x[batch]), task.train.y[batch])
            loss.backward()
            made.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "optimizer", "torchs", "scale"),
    [
        ("wine", "adam", torch.optim.Adam, "exponential"),
        ("digits", "sgd", torch.optim.SGD, "exponential"),
        ("diabetes", "momentum", lambda p, lr: torch.optim.SGD(p, lr, 0.9), "linear"),
        ("own", "adam", torch.optim.Adam, "exponential"),
    ],
)
def test_losses_are_those_of_a_plain_loop(name, optimizer, torchs, scale):
    task = own() if name == "own" else load(name)
    high = 0.01 if name == "diabetes" else 0.03
    found = lr_range_test(
        task, optimizer, lr=(1e-4, high), steps=30, seeds=[2, 5], scale=scale, batch_size=16,
        check=False,
    )  # fmt: skip
    for run, seed in zip(found.losses, (2, 5), strict=True):
        expected = loop(task, torchs, found.lrs, seed, 16)
        # Rounding of float32 grows with the steps.
        np.testing.assert_allclose(run, expected, rtol=2e-4)


def test_rates_rise_as_they_are_said_to():
    found = lr_range_test("wine", lr=(1e-5, 1e-1), steps=25, seeds=1, check=False)
    np.testing.assert_allclose(found.lrs, np.geomspace(1e-5, 1e-1, 25), rtol=1e-12)
    found = lr_range_test("wine", lr=(1e-5, 1e-1), steps=25, seeds=1, check=False, scale="linear")
    np.testing.assert_allclose(found.lrs, np.linspace(1e-5, 1e-1, 25), rtol=1e-12)


def test_by_default_a_hundred_times_beyond_what_is_usual():
    low, high = OPTIMIZERS["adam"].lr_range
    found = lr_range_test("wine", steps=20, seeds=1, check=False)
    assert (found.lrs[0], found.lrs[-1]) == pytest.approx((low / 100, high * 100), rel=1e-12)
    assert widest("no such name") == pytest.approx((1e-7, 10.0))


@pytest.fixture(scope="module")
def wine():
    return lr_range_test("wine", "sgd", steps=60, seeds=4)


@pytest.fixture(scope="module")
def diabetes():
    return lr_range_test("diabetes", "adam", steps=60, seeds=4)


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_fields(name, request):
    r = request.getfixturevalue(name)
    assert r.losses.shape == (4, 60)
    assert r.smoothed.shape == r.lrs.shape == (60,)
    assert r.lrs[0] < r.suggestion < r.lrs[-1]
    low, high = r.interval
    # Three digits, and no rate that was not asked for.
    assert r.suggestion == pytest.approx(max(r.lrs[0], LOWER * math.sqrt(low * high)), rel=0.005)
    assert set(r.checked["stage"]) == {1, 2}
    assert {low, high} <= set(r.checked.loc[r.checked["stage"] == 2, "lr"])
    assert r.bounds[0] < r.bounds[1]
    assert r.third == (r.bounds[1] / 3, r.bounds[1])
    assert list(r.metrics.columns) == ["lr", "metric", "low", "high"]
    assert (r.metrics["low"] <= r.metrics["metric"]).all()
    assert (r.metrics["metric"] <= r.metrics["high"]).all()
    assert set(r.metrics["lr"]) <= set(r.lrs)
    assert r.reason.startswith("Trained with from the start, ")
    assert f"the best validation {r.metric} after" in r.reason
    assert r.reason.count(".") >= 1
    assert "\n" not in r.reason


def test_what_a_metric_is(wine, diabetes):
    assert (wine.optimizer, wine.task, wine.metric, wine.percent) == ("SGD", "wine", "accuracy", 1)
    assert (diabetes.optimizer, diabetes.task) == ("Adam", "diabetes")
    assert (diabetes.metric, diabetes.percent) == ("mean absolute error", False)


def test_the_highest_rates_diverge(wine):
    gone = np.isnan(wine.losses).argmax(1)
    assert np.isnan(wine.losses).any(1).sum() >= 2
    steps = np.sort(np.where(np.isnan(wine.losses).any(1), gone, 10**6))
    assert wine.diverged_at == wine.lrs[steps[1]]  # the second of four
    for run, step in zip(wine.losses, gone, strict=True):
        if step:
            assert np.isnan(run[step:]).all()


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_the_interval_is_what_does_best_when_checked(name, request):
    r = request.getfixturevalue(name)
    stage = r.checked[r.checked["stage"] == 2]
    last = stage[stage["step"] == stage["step"].max()]
    found = {}
    for lr in sorted(set(last["lr"])):
        values = last.loc[last["lr"] == lr, "metric"]
        if values.notna().all():
            found[lr] = values.mean()
    if r.percent:  # half a percentage point
        good = [lr for lr, v in found.items() if v >= max(found.values()) - 0.005 - 1e-12]
    else:  # half a per cent of the error
        good = [lr for lr, v in found.items() if v <= min(found.values()) * 1.005 + 1e-12]
    assert r.interval == (min(good), max(good))


def test_the_trials_are_plain_training(wine):
    """What was seen at a rate that was checked is what training at it gives."""
    stage = wine.checked[wine.checked["stage"] == 1]
    lr = min(set(stage["lr"]), key=lambda lr: abs(math.log(lr / wine.suggestion)))
    task = load("wine")
    for seed in (0, 3):
        mine = stage[(stage["lr"] == lr) & (stage["seed"] == seed)].sort_values("step")
        assert list(mine["step"]) == list(range(6, 61, 6))
        losses = loop(task, torch.optim.SGD, np.full(60, lr), seed, task.batch_size)
        means = np.reshape(losses, (10, 6)).mean(1)
        np.testing.assert_allclose(mine["train_loss"], means, rtol=1e-3)


def test_the_picture_says_what_the_numbers_say(wine):
    frame = wine.rates
    assert list(frame.columns) == list(RATE_COLUMNS)
    low, high = wine.first
    by_rate = frame.groupby("lr")["verdict"].agg(["first", "nunique"])
    assert (by_rate["nunique"] == 1).all()
    assert 3 <= len(by_rate) <= 5
    for lr, verdict in by_rate["first"].items():
        expected = "too small" if lr < low else "too large" if lr > high else "right"
        assert verdict.partition(",")[0] == expected
    assert {"too small", "right"} <= set(by_rate["first"])
    at = wine.checked[wine.checked["stage"] == 1]
    for (lr, step), one in frame.groupby(["lr", "step"]):
        mean = at.loc[(at["lr"] == lr) & (at["step"] == step), "train_loss"].mean()
        assert np.isclose(one["loss"].item(), mean, rtol=1e-12, equal_nan=True)


def test_the_figure_has_it_all(wine):
    figure = wine.figure()
    names = [trace.name for trace in figure.data if trace.name]
    assert any(name.startswith("suggested: ") for name in names)
    assert any(name.startswith("half of the runs diverged: ") for name in names)
    assert any(name.startswith("bounds of a cycle: ") for name in names)
    assert "validation accuracy" in names
    assert figure.layout.xaxis.type == "log"


def test_a_figure_of_nothing_found():
    found = lr_range_test("wine", "sgd", lr=(1e-12, 1e-10), steps=20, seeds=2)
    assert [t.name for t in found.figure().data if t.name] == [
        "training loss, smoothed; range over runs",
        "validation accuracy",
    ]
    assert found.rates.empty


@pytest.mark.parametrize("name", ["digits", "wine", "diabetes"])
@pytest.mark.parametrize("seeds", [1, 8])
def test_rates_that_are_far_too_small(name, seeds):
    found = lr_range_test(name, "sgd", lr=(1e-12, 1e-9), steps=100, seeds=seeds)
    assert found.suggestion is None
    assert found.interval is None
    assert found.bounds is None
    assert found.third is None
    assert found.checked.empty
    assert found.rates.empty
    assert found.reason == "No rate from 1e-12 to 1e-09 lowers the loss by more than its noise."


def test_rates_that_are_all_too_large():
    found = lr_range_test("digits", "sgd", lr=(1e3, 1e6), steps=40, seeds=2)
    assert found.suggestion is None
    assert found.diverged_at is not None
    assert found.reason == "No rate from 1e+03 to 1e+06 lowers the loss by more than its noise."


@pytest.mark.parametrize("ends", [(0.001, 0.002), (1e-4, 1e-3), (0.003, 0.1)])
def test_no_rate_outside_of_those_asked_for_is_tried(ends):
    found = lr_range_test("digits", "adam", lr=ends, steps=60, seeds=2)
    assert found.suggestion is not None
    assert ends[0] <= found.checked["lr"].min()
    assert found.checked["lr"].max() <= ends[1]
    assert ends[0] <= found.suggestion <= ends[1]


def test_unchecked_it_is_the_valley():
    found = lr_range_test("wine", "sgd", steps=60, seeds=4, check=False)
    assert found.suggestion == found.marks.valley
    assert found.interval is None
    assert found.checked.empty
    assert found.reason == "It is the valley of the curve of losses, and was not checked."
    assert found.rates.empty


@pytest.mark.parametrize("seeds", [[7, 7, 2], (7, 2), np.array([7, 2]), range(7, 1, -5)])
def test_which_seeds(seeds):
    found = lr_range_test("wine", steps=20, seeds=seeds, check=False)
    alone = lr_range_test("wine", steps=20, seeds=[2], check=False)
    assert len(found.losses) == 2
    # A replica's numbers do not depend on who trains beside it.
    np.testing.assert_allclose(found.losses[1], alone.losses[0], rtol=1e-5)


def test_how_many_seeds():
    assert len(lr_range_test("wine", steps=20, check=False).losses) == 8
    assert len(lr_range_test("wine", steps=20, seeds=np.int64(3), check=False).losses) == 3


def test_a_rule_and_a_class_of_ones_own():
    rule = replace(rules.SGD, name="Mine")
    ends = {"lr": (1e-3, 1.0), "steps": 20, "seeds": 1, "check": False}
    sgd = lr_range_test("wine", "sgd", **ends)
    for mine in (rule, optim.from_rule(rule)):
        np.testing.assert_allclose(lr_range_test("wine", mine, **ends).losses, sgd.losses, 1e-4)


class Untaped(nn.Module):
    """Batch normalisation and dropout, which the tape does not take."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.layers(x)


def test_random_states_are_left_alone():
    task = own(model=Untaped)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = lr_range_test(task, "adam", steps=30, seeds=2)
    assert found.suggestion is not None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


def test_twice_is_the_same():
    one, two = (lr_range_test("wine", "adam", steps=40, seeds=3) for _ in range(2))
    np.testing.assert_array_equal(one.losses, two.losses)
    assert (one.suggestion, one.interval, one.reason) == (two.suggestion, two.interval, two.reason)


@pytest.mark.parametrize(
    ("arguments", "argument", "problem"),
    [
        ({"lr": (0, 1)}, "lr", "rates must be positive and finite, got 0 and 1"),
        ({"lr": (-1, 1)}, "lr", "rates must be positive and finite, got -1 and 1"),
        ({"lr": (1e-3, math.inf)}, "lr", "rates must be positive and finite, got 0.001 and inf"),
        ({"lr": (math.nan, 1)}, "lr", "rates must be positive and finite, got nan and 1"),
        ({"lr": (1, 0.1)}, "lr", "the low end 1 must be below the high end 0.1"),
        ({"lr": (1, 1)}, "lr", "the low end 1 must be below the high end 1"),
        ({"lr": 0.1}, "lr", "must be two rates, low and high, got 0.1"),
        ({"lr": (1, 2, 3)}, "lr", "must be two rates, low and high, got (1, 2, 3)"),
        ({"lr": ("a", "b")}, "lr", "must be two rates, low and high, got ('a', 'b')"),
        ({"lr": "1e-3"}, "lr", "must be two rates, low and high, got '1e-3'"),
        ({"steps": 19}, "steps", "19 are too few to see a trend; give at least 20"),
        ({"steps": 0}, "steps", "must be a whole number of at least 1, got 0"),
        ({"steps": 30.0}, "steps", "must be a whole number of at least 1, got 30.0"),
        ({"steps": True}, "steps", "must be a whole number of at least 1, got True"),
        ({"scale": "log"}, "scale", "must be exponential or linear, got 'log'"),
        ({"seeds": 0}, "seeds", "must be a whole number of at least 1, got 0"),
        ({"seeds": []}, "seeds", "must be how many, or whole numbers from 0, got []"),
        ({"seeds": [-1]}, "seeds", "must be how many, or whole numbers from 0, got [-1]"),
        ({"seeds": [[1]]}, "seeds", "must be how many, or whole numbers from 0, got [[1]]"),
        ({"seeds": 2.5}, "seeds", "must be how many, or whole numbers from 0, got 2.5"),
        ({"seeds": "12"}, "seeds", "must be how many, or whole numbers from 0, got '12'"),
        ({"batch_size": 0}, "batch_size", "must be a whole number of at least 1, got 0"),
        ({"batch_size": 1000}, "batch_size", "1000 is more than the 106 samples"),
        ({"device": "gpu"}, "device", "must be cpu or cuda, got 'gpu'"),
        ({"device": 3.5}, "device", "must be cpu or cuda, got 3.5"),
        ({"device": "cuda:99"}, "device", "torch finds "),
        ({"optimizer": "adm"}, "optimizer", "there is no 'adm'; did you mean adam"),
        ({"optimizer": ""}, "optimizer", "there is no ''; choose from sgd, "),
        ({"optimizer": 3}, "optimizer", "must be a name, a rule or its class, got 3"),
        ({"optimizer": torch.optim.SGD}, "optimizer", "must be a name, a rule or its class, got"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
            "optimizer",
            "is of another model; with a task give a name or a rule",
        ),
        ({"task": 3}, "task", "must be a name, a thalweg.Task or a module, got 3"),
        ({"loss": "mse"}, "loss", "is for a module of one's own; a task has its own"),
        ({"data": []}, "data", "is for a module of one's own; a task has its own"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, argument, problem):
    with pytest.raises(TuneError) as caught:
        lr_range_test(**({"task": "wine"} | arguments))
    assert caught.value.argument == argument
    assert caught.value.problem.startswith(problem)
    assert "\n" not in str(caught.value)


class Raises(nn.Linear):
    def forward(self, x):
        raise KeyError("weights")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (lambda: Raises(5, 3), "the model raises KeyError: 'weights'"),
        (lambda: nn.Linear(4, 3), "the model raises RuntimeError"),
        (lambda: 3, "returned a int, and not a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_trained(model, problem):
    with pytest.raises(TaskError) as caught:
        lr_range_test(own(model=model), "sgd")
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)


def test_not_a_task_by_that_name():
    with pytest.raises(TaskError):
        lr_range_test("wines")


def test_a_loss_that_is_never_finite():
    def infinite(outputs, y):
        return nn.functional.cross_entropy(outputs, y) * torch.inf

    with pytest.raises((TuneError, TaskError), match="finite") as caught:
        lr_range_test(own(loss=infinite), "sgd", steps=20)
    assert "\n" not in str(caught.value)
