"""Batch sizes with a learning rate of their own: what the table says, and how it was come by."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from thalweg import rules
from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies import StudyError
from thalweg.tasks import Task, TaskError
from thalweg.tune import TuneError, batch, batch_sizes, fits
from thalweg.tune.batch import _advice, _steps_to


@pytest.fixture(scope="module", autouse=True)
def _two_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "TIMED", 0)
        patch.setattr(fits, "_free", lambda: None)
        yield


@pytest.fixture(scope="module")
def wine():
    return batch_sizes("wine", sizes=[64, 4, 16, 16], epochs=5, seeds=3)


@pytest.fixture(scope="module")
def numbers():
    """A regression without a target."""
    return batch_sizes("diabetes", optimizer="sgd", sizes=[8, 32], epochs=3, seeds=2)


COLUMNS = [
    "batch_size", "lr", "edge", "test_metric", "low", "high", "tied", "steps_to_target",
    "samples_to_target", "epochs_to_target", "reached", "samples_per_second", "seconds_to_target",
    "seconds_per_epoch", "linear_lr", "linear_metric", "linear_low", "linear_high", "sqrt_lr",
    "sqrt_metric", "sqrt_low", "sqrt_high",
]  # fmt: skip


def test_the_table_has_what_is_documented(wine, numbers):
    for found, sizes in ((wine, [4, 16, 64]), (numbers, [8, 32])):
        assert list(found.table.columns) == COLUMNS
        assert list(found.table["batch_size"]) == sizes
        text = " ".join(batch.BatchSizes.__doc__.split())
        for column in COLUMNS:
            assert column in text or column.replace("sqrt_", "linear_") in text


def test_costs_belong_together(wine):
    t = wine.table
    samples = wine.study.task.n_train
    np.testing.assert_allclose(t["samples_to_target"], t["steps_to_target"] * t["batch_size"])
    np.testing.assert_allclose(
        t["epochs_to_target"], t["steps_to_target"] / (samples // t["batch_size"])
    )
    seconds = t["samples_to_target"] / t["samples_per_second"]
    np.testing.assert_allclose(t["seconds_to_target"], seconds)
    np.testing.assert_allclose(t["seconds_per_epoch"], samples / t["samples_per_second"])
    assert (t["low"] <= t["test_metric"]).all()
    assert (t["test_metric"] <= t["high"]).all()


def test_every_size_has_the_same_budget(wine):
    runs = wine.study.runs
    low, high = OPTIMIZERS["adam"].lr_range
    rates = sorted(set(runs["lr"]))
    assert rates[0] == low
    assert high <= rates[-1] < 2 * high
    np.testing.assert_allclose(np.diff(np.log2(rates)), 1, rtol=1e-5)
    counts = runs.groupby("batch_size").size()
    assert list(counts) == [len(rates) * 3] * 3
    samples = runs.groupby("batch_size")["steps"].max() if "steps" in runs else None
    if samples is not None:
        assert list(samples * samples.index) == [5 * (106 // b) * b for b in samples.index]


def test_rates_are_tuned_on_validation_and_reported_on_test(wine):
    trials = wine.study.trials
    for _, row in wine.table.iterrows():
        mine = trials[(trials["batch_size"] == row["batch_size"]) & (trials["n"] > 0)]
        chosen = mine[mine["lr"] == row["lr"]].iloc[0]
        assert chosen["validation_metric"] == mine["validation_metric"].max()
        assert chosen["test_metric"] == row["test_metric"]


def test_rules_start_at_the_reference_and_are_on_the_grid(wine):
    assert wine.reference == 16  # wine's own are 32, as near to 16 as to 64
    t = wine.table.set_index("batch_size")
    start = t.loc[16, "lr"]
    trials = wine.study.trials.set_index(["batch_size", "lr"])
    for size in (4, 16, 64):
        assert t.loc[size, "linear_lr"] == pytest.approx(start * size / 16)
        assert t.loc[size, "sqrt_lr"] == pytest.approx(start * math.sqrt(size / 16))
        for rule in ("linear", "sqrt"):
            rates = trials.loc[size].index.to_numpy()
            near = rates[np.abs(np.log(rates / t.loc[size, f"{rule}_lr"])).argmin()]
            # Rates are typed in six digits; the rule's is one of them but for that.
            assert near == pytest.approx(t.loc[size, f"{rule}_lr"], rel=1e-5)
            assert t.loc[size, f"{rule}_metric"] == trials.loc[(size, near), "test_metric"]
            assert t.loc[size, f"{rule}_low"] == trials.loc[(size, near), "low"]
    for rule in ("linear", "sqrt"):
        assert t.loc[16, f"{rule}_metric"] == t.loc[16, "test_metric"]


def test_steps_to_the_target_are_medians_between_looks(wine):
    assert wine.target == 0.95
    reached = _steps_to(wine.study, OPTIMIZERS["adam"].rule, 0.95, "cpu")
    steps = reached.groupby("batch_size")["steps"].median()
    np.testing.assert_array_equal(wine.table["steps_to_target"], steps)
    curves = wine.study.curves
    for row in reached.itertuples():
        lr = wine.table.set_index("batch_size").loc[row.batch_size, "lr"]
        mine = curves[
            (curves["batch_size"] == row.batch_size)
            & (curves["lr"] == lr)
            & (curves["seed"] == row.seed)
        ]
        # No later than at the end of the epoch that the study saw it in.
        assert 0 < row.steps <= mine.loc[mine["validation_metric"] >= 0.95, "step"].min()
    assert (reached["steps"] % (106 // reached["batch_size"]) != 0).any()


def test_the_recommended_is_the_soonest_of_the_tied(wine):
    near = wine.table["test_metric"] >= wine.table["test_metric"].max() - 0.01 - 1e-9
    tied = wine.table[wine.table["tied"] & near]
    assert wine.table.loc[wine.table["test_metric"].idxmax(), "tied"]
    soonest = tied.loc[tied["seconds_to_target"].idxmin()]
    assert wine.recommended == soonest["batch_size"]
    assert wine.why.startswith(f"Use {wine.recommended} at learning rate {soonest['lr']:.3g}: ")
    assert (
        f"{soonest['seconds_to_target']:.3g} s and {math.ceil(soonest['steps_to_target'])} steps"
        in (wine.why)
    )


def test_without_a_target_it_is_what_every_tuned_run_gets_to(numbers):
    task = numbers.study.task
    assert numbers.study.spec.target is None
    assert not task.higher_is_better
    best = numbers.study.curves.merge(numbers.study.summary[["batch_size", "lr"]])
    assert numbers.target == best.groupby(["batch_size", "seed"])["validation_metric"].min().max()
    assert list(numbers.table["reached"]) == [2, 2]
    assert numbers.table["steps_to_target"].notna().all()


def test_two_sizes_are_no_curve_which_is_said(numbers):
    assert math.isnan(numbers.critical.value)
    assert any(note.startswith("The critical batch size cannot be told") for note in numbers.notes)


def test_notes(wine):
    notes = " ".join(wine.notes)
    assert "15 learning rates from 1e-05 to 0.164, 3 seeds and 5 epochs" in notes
    assert "The target is a validation accuracy of 95.0 %" in notes
    assert f"The gradient noise scale, within steps, is {wine.noise.value:.3g}" in notes
    assert f"The critical batch size, from steps against samples, is {wine.critical.value:.3g}" in (
        notes
    )
    assert "The largest batch tried in memory has 106 samples" in notes
    assert wine.fit.size == 106
    assert (" is at an end of those tried" in notes) == wine.table["edge"].any()
    assert all(note.endswith(".") and "\n" not in note for note in wine.notes)


def test_the_figure(wine, numbers):
    figure = wine.figure()
    names = [trace.name for trace in figure.data if trace.name]
    assert "measured, median over seeds" in names
    assert "S_min (1 + B_crit / B)" in names
    assert f"recommended: {wine.recommended}" in names
    assert "S_min (1 + B_crit / B)" not in [trace.name for trace in numbers.figure().data]
    result = next(trace for trace in figure.data if trace.name == "learning rate tuned")
    np.testing.assert_allclose(result.y, 100 * wine.table["test_metric"])


def made_up(seconds, tied):
    sizes = [4, 16, 64]
    return pd.DataFrame(
        {
            "batch_size": sizes,
            "lr": 0.01,
            "tied": tied,
            "test_metric": 0.9,
            "seconds_to_target": seconds,
            "steps_to_target": 30.0,
            "seconds_per_epoch": [3.0, 2.0, 1.0],
        }
    )


@pytest.mark.parametrize(
    ("seconds", "tied", "size"),
    [
        ([3.0, 2.0, 1.0], [True, True, True], 64),
        ([3.0, 2.0, 1.0], [True, True, False], 16),
        ([1.0, 2.0, math.nan], [True, True, True], 4),
        ([math.nan, math.nan, 1.0], [True, True, False], 16),
    ],
)
def test_advice(wine, seconds, tied, size):
    found, why = _advice(made_up(seconds, tied), wine.metric, 0.8, wine.noise, wine.fit)
    assert found == size
    assert why.startswith(f"Use {size}")
    assert ("epochs are the shortest" in why) == math.isnan(seconds[tied.index(True)])
    limited = replace(wine.fit, limit="memory")
    with_limit = _advice(
        made_up([3.0, 2.0, 1.0], [True] * 3), wine.metric, 0.8, wine.noise, limited
    )
    assert with_limit[1].endswith("At most 106 samples fit in memory.")


def test_what_a_few_seeds_tie_but_is_plainly_worse_is_not_recommended(wine):
    table = made_up([3.0, 2.0, 1.0], [True] * 3).assign(test_metric=[0.9, 0.895, 0.87])
    found, why = _advice(table, wine.metric, 0.8, wine.noise, wine.fit)
    assert found == 16
    assert "as good as the best (89.5 % here, 90.0 % at best)" in why


def small(model=lambda: nn.Linear(4, 2), samples=40, **others):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    part = (x[:16], y[:16])
    return Task(model=model, train=(x, y), validation=part, test=part, name="small", **others)


def test_a_rule_of_ones_own_powers_of_four_and_a_record(tmp_path):
    rule = replace(rules.SGD, name="Mine")
    found = batch_sizes(
        small(batch_size=8), optimizer=rule, epochs=2, seeds=2, target=0.5, db=tmp_path / "r.db"
    )
    assert found.optimizer == "Mine"
    assert list(found.table["batch_size"]) == [1, 4, 16]
    assert found.reference in (4, 16)
    assert found.target == 0.5
    assert (tmp_path / "r.db").exists()
    assert list(found.table["reached"]) == [2, 2, 2]


class Blind(nn.Linear):
    """Sees one class alone."""

    def forward(self, x):
        return super().forward(x) * 0 + torch.tensor([1.0, 0.0])


def test_a_target_that_is_out_of_reach():
    found = batch_sizes(small(lambda: Blind(4, 2)), sizes=[4, 8], epochs=1, seeds=2, target=1.0)
    assert list(found.table["reached"]) == [0, 0]
    assert found.table["steps_to_target"].isna().all()
    assert found.table["seconds_to_target"].isna().all()
    assert "reached" in found.why
    assert "its epochs are the shortest" in found.why
    assert found.figure().data


@pytest.mark.parametrize(
    ("arguments", "kind", "argument", "problem"),
    [
        ({"sizes": [8]}, TuneError, "sizes", "give at least two to compare, got [8]"),
        ({"sizes": [8, 8]}, TuneError, "sizes", "give at least two to compare, got [8]"),
        ({"sizes": []}, TuneError, "sizes", "give at least two to compare, got []"),
        ({"sizes": [0, 8]}, TuneError, "sizes", "must be a whole number of at least 1, got 0"),
        ({"sizes": [8, 41]}, TuneError, "sizes", "41 is more than the 40 training samples"),
        ({"sizes": [8, 32], "maximum": 16}, TuneError, "sizes", "32 is more than the maximum, 16"),
        ({"sizes": None, "maximum": 3}, TuneError, "sizes", "at most 3 samples can be had"),
        ({"sizes": 8}, TuneError, "sizes", "must be a list of batch sizes, got 8"),
        ({"sizes": ["8", "16"]}, TuneError, "sizes", "must be a whole number of at least 1"),
        ({"maximum": 0}, TuneError, "maximum", "must be a whole number of at least 1, got 0"),
        ({"optimizer": "adm"}, TuneError, "optimizer", "there is no 'adm'; did you mean adam"),
        ({"device": "gpu"}, TuneError, "device", "must be cpu or cuda, got 'gpu'"),
        ({"task": 3}, TuneError, "task", "must be a name or a thalweg.Task, got 3"),
        ({"epochs": 0}, TuneError, "epochs", "must be a whole number of at least 1, got 0"),
        ({"seeds": 0}, TuneError, "seeds", "must be a whole number of at least 1, got 0"),
        ({"target": 1.5}, StudyError, "target", "1.5 is no accuracy; give a fraction"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, kind, argument, problem):
    with pytest.raises(kind) as caught:
        batch_sizes(**({"task": small(), "sizes": [4, 8]} | arguments))
    assert caught.value.argument == argument
    assert caught.value.problem.startswith(problem)
    assert "\n" not in str(caught.value)


class Raises(nn.Linear):
    def forward(self, x):
        raise KeyError("weights")


def test_a_task_that_cannot_be_trained():
    with pytest.raises(TaskError, match="the model raises KeyError"):
        batch_sizes(small(lambda: Raises(4, 2)), sizes=[4, 8])
