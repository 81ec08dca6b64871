"""What changes gain, by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from thalweg.diagnosis.scale import Scale, constant, effect, scale_of
from thalweg.diagnosis.setting import Outcome, Setting
from thalweg.optim.registry import OPTIMIZERS
from thalweg.tasks import Metric, Task, load
from thalweg.tasks.metrics import ACCURACY, ERROR
from thalweg.tasks.networks import mlp


def test_knowing_nothing_of_classes_is_the_most_frequent():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    x = torch.randn(100, 2)
    held = (torch.zeros(10, 2), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]))
    task = Task(model=mlp(2, 3), train=(x, y), validation=held, test=held)
    assert constant(task) == pytest.approx(0.4)


def test_knowing_nothing_of_numbers_is_the_median():
    y = torch.tensor([[1.0], [2.0], [9.0]] * 20)
    held = (torch.zeros(2, 2), torch.tensor([[2.0], [5.0]]))
    task = Task(model=mlp(2, 1), train=(torch.randn(60, 2), y), validation=held, test=held)
    assert constant(task) == pytest.approx(1.5)


def test_a_metric_that_cannot_be_asked_is_said_so():
    def own(outputs, y):
        raise ValueError

    task = Task(
        model=mlp(2, 3), train=(torch.randn(60, 2), torch.arange(60) % 3), metric=Metric("own", own)
    )
    assert math.isnan(constant(task))


def test_skill_goes_from_knowing_nothing_to_the_best():
    up = Scale(ACCURACY, floor=0.1, reach=0.9, perfect=1.0)
    assert up.span == pytest.approx(0.8)
    assert up.skill(np.array([0.1, 0.5, 0.9, 0.0])) == pytest.approx([0, 0.5, 1, 0])
    assert up.least == pytest.approx(0.1)
    down = Scale(ERROR, floor=2.0, reach=1.5, perfect=0.0)
    assert down.skill(np.array([2.0, 1.75, 1.5])) == pytest.approx([0, 0.5, 1])
    # 3 % of the way from 2 to 0 is 0.06, which is more than a tenth of 0.5.
    assert down.least == pytest.approx(0.12)


def test_where_nothing_is_learned_noise_is_no_scale():
    nothing = Scale(ACCURACY, floor=0.1, reach=0.11, perfect=1.0)
    assert nothing.span == pytest.approx(0.09)


def test_an_effect_is_paired_over_seeds():
    scale = Scale(ACCURACY, floor=0.0, reach=1.0, perfect=1.0)
    before, after = np.array([0.2, 0.3, 0.4, 0.5]), np.array([0.5, 0.5, 0.8, 0.8])
    found = effect(scale, before, after)
    gains = after - before
    low, high = stats.t.interval(0.95, 3, gains.mean(), stats.sem(gains))
    assert (found.gain, found.low, found.high) == pytest.approx((gains.mean(), low, high))
    sure = stats.t.cdf((gains.mean() - 0.1) / stats.sem(gains), 3)
    assert found.confidence == pytest.approx(min(sure, 0.99))
    assert effect(scale, after, before).confidence < 0.01


def _outcome(task, metrics, diverged=()):
    entry = OPTIMIZERS["sgd"]
    setting = Setting(task, entry.rule, entry.rule.complete({"lr": 0.1}), 32, len(metrics[0]))
    rows = [
        {"seed": s, "epoch": e + 1, "train_loss": 1.0, "validation_loss": 1.0,
         "validation_metric": value}
        for s, run in enumerate(metrics)
        for e, value in enumerate(run)
    ]  # fmt: skip
    at = {s: 7 if s in diverged else 0 for s in range(len(metrics))}
    return Outcome(setting, pd.DataFrame(rows), at, len(metrics[0]))


def test_a_best_value_is_that_of_three_epochs():
    task = load("digits")
    outcome = _outcome(task, [[0.1, 0.9, 0.1, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2, 0.8]])
    assert outcome.best("validation_metric", 0.0, True) == pytest.approx([0.5, 0.4])
    assert outcome.end("validation_metric", 0.0) == pytest.approx([0.5, 0.8])
    cut = outcome.upto(3)
    assert cut.best("validation_metric", 0.0, True) == pytest.approx([1.1 / 3, 0.2])


def test_a_run_that_diverged_counts_as_knowing_nothing():
    task = load("digits")
    outcome = _outcome(task, [[0.9, 0.9, 0.9], [0.8, 0.8, 0.8]], diverged=(1,))
    assert outcome.best("validation_metric", 0.1, True) == pytest.approx([0.9, 0.1])
    assert outcome.diverged == 0.5
    scale = scale_of(task, [outcome])
    assert math.isclose(scale.floor, constant(task))


def test_half_of_the_errors_that_are_left_count():
    scale = Scale(ACCURACY, floor=0.1, reach=0.97, perfect=1.0)
    # A tenth of the way is 0.087 of accuracy; half of the errors of 0.89 is 0.055.
    assert scale.counts(0.2) == pytest.approx(0.1)
    assert scale.counts(0.89) == pytest.approx(0.055 / 0.87)
    # Never less than 3 % of the way to no error, 0.027.
    assert scale.counts(0.96) == pytest.approx(0.027 / 0.87)
    # Of a mean absolute error nobody knows how much must be left.
    assert Scale(ERROR, floor=1.0, reach=0.1, perfect=0.0).counts(0.12) == pytest.approx(0.1)
