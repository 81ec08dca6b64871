"""The analysis on records made by hand, whose answers are known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import thalweg
from thalweg.studies.analyse import analyse, interval
from thalweg.studies.spec import StudySpec
from thalweg.tasks.metrics import ACCURACY, ERROR

NAN = math.nan


def records(results, metric_of=lambda v: v, target_epochs=None):
    """``results``: optimizer -> lr -> per seed a test metric, or the word of another outcome.

    The validation metric equals the test metric, unless a pair (validation, test) is given.
    """
    rows = []
    for optimizer, rates in results.items():
        for lr, values in rates.items():
            for seed, value in enumerate(values):
                failed = isinstance(value, str)
                pair = value if isinstance(value, tuple) else (value, value)
                rows.append(
                    {
                        "run": f"{optimizer}{lr}{seed}",
                        "optimizer": optimizer,
                        "loss": "",
                        "encoding": "",
                        "schedule": "fixed",
                        "batch_size": 32,
                        "lr": lr,
                        "seed": seed,
                        "outcome": value if failed else "completed",
                        # A diverged run may well have been good before.
                        "validation_metric": 0.999 if failed else pair[0],
                        "validation_loss": 0.1,
                        "test_metric": NAN if failed else pair[1],
                        "epochs_to_target": NAN
                        if target_epochs is None
                        else target_epochs[optimizer][seed],
                        "seconds_to_target": NAN,
                        "seconds": 1.0,
                    }
                )
    spec = StudySpec(
        "hand",
        "hand",
        "x",
        tuple((o, tuple(r)) for o, r in results.items()),
        tuple(range(len(next(iter(next(iter(results.values())).values()))))),
        32,
        100,
        10,
        0.9,
        None,
    )
    curves = pd.DataFrame(
        columns=[
            "run",
            "optimizer",
            "loss",
            "encoding",
            "schedule",
            "batch_size",
            "lr",
            "seed",
            "epoch",
            "step",
            "train_loss",
            "validation_loss",
            "validation_metric",
            "seconds",
        ]
    )
    return spec, pd.DataFrame(rows), curves


def run(results, metric=ACCURACY, **options):
    spec, runs, curves = records(results, **options)
    return analyse(spec, metric, runs, curves)


def test_student_interval_by_hand():
    x = [0.95, 0.96, 0.97, 0.95, 0.98]
    found = interval(x)
    half = 2.7764451051977934 * np.std(x, ddof=1) / math.sqrt(5)
    assert found.low == pytest.approx(np.mean(x) - half, rel=1e-12)
    assert found.high == pytest.approx(np.mean(x) + half, rel=1e-12)
    assert found.method == "Student's t, 5 seeds"


def test_student_interval_covers_as_it_says():
    rng = np.random.default_rng(1)
    trials = 2000
    hits = sum((i := interval(rng.normal(3.0, 2.0, 5))).low <= 3.0 <= i.high for _ in range(trials))
    # Fixed in number: a two-sided z-test of the share at one in ten thousand.
    z = (hits / trials - 0.95) / math.sqrt(0.95 * 0.05 / trials)
    assert abs(z) < stats.norm.ppf(1 - 0.5e-4)


def test_bootstrap_from_ten_seeds():
    x = np.random.default_rng(0).normal(0.9, 0.02, 10)
    found = interval(x)
    assert found.method == "bootstrap, 10 seeds"
    assert found.low < x.mean() < found.high
    assert interval(x[:9]).method == "Student's t, 9 seeds"
    assert interval(x) == found


def test_one_value_has_no_interval():
    found = interval([0.9])
    assert found.mean == 0.9
    assert math.isnan(found.low)
    assert found.method == "no interval, 1 seed"
    assert math.isnan(interval([]).mean)


def test_equal_values_are_a_point():
    assert (interval([0.5] * 12).low, interval([0.5] * 3).high) == (0.5, 0.5)


def test_chosen_on_validation_reported_on_test():
    found = run({"sgd": {0.1: [(0.90, 0.99)] * 3, 1.0: [(0.92, 0.80)] * 3}})
    row = found.summary.iloc[0]
    assert row["lr"] == 1.0
    assert row["test_metric"] == pytest.approx(0.80)


def test_a_setting_with_a_failed_seed_is_not_chosen():
    found = run({"sgd": {0.1: [0.9, 0.9, 0.9], 1.0: [0.99, 0.99, "diverged"]}})
    assert found.summary.iloc[0]["lr"] == 0.1
    assert found.summary.iloc[0]["diverged"] == 1


@pytest.mark.parametrize("outcome", ["diverged", "stopped", "timed out"])
def test_failed_runs_enter_no_mean(outcome):
    found = run({"sgd": {0.1: [0.9, 0.8, outcome]}})
    trial = found.trials.iloc[0]
    assert trial["test_metric"] == pytest.approx(0.85)
    assert trial["n"] == 2
    assert trial[outcome.replace(" ", "_")] == 1
    assert math.isnan(found.summary.iloc[0]["test_metric"])
    assert "no verdict" in found.verdict


def test_a_clear_winner():
    found = run({"adam": {0.1: [0.97, 0.96, 0.98]}, "sgd": {0.1: [0.87, 0.86, 0.88]}})
    assert found.summary["optimizer"].tolist() == ["adam", "sgd"]
    assert not found.summary["tied"].any()
    assert found.verdict.startswith("Adam at learning rate 0.1 (test accuracy 97.0 %, 95 %")
    assert "beats the other" in found.verdict


def test_a_tie_is_called_a_tie():
    found = run({"adam": {0.1: [0.97, 0.90, 0.95]}, "sgd": {0.1: [0.91, 0.96, 0.94]}})
    assert found.comparisons["tied"].tolist() == [True]
    assert found.summary["tied"].all()
    assert found.verdict.startswith("A tie")
    assert "SGD" in found.verdict


def test_pairing_over_seeds_tells_apart_what_overlaps():
    # Seeds differ by far more than the optimizers, which differ by one point on each.
    hard = np.array([0.60, 0.70, 0.80, 0.90])
    found = run(
        {"adam": {0.1: list(hard + 0.01)}, "sgd": {0.1: list(hard + np.array([0, 1e-4, 0, -1e-4]))}}
    )
    assert not found.comparisons["tied"].any()


def test_correction_for_the_number_of_comparisons():
    best, other = [0.970, 0.960, 0.980, 0.965], [0.962, 0.957, 0.971, 0.962]
    difference = np.subtract(best, other)
    p = stats.ttest_1samp(difference, 0).pvalue
    assert 0.05 / 3 < p < 0.05
    alone = run({"adam": {0.1: best}, "sgd": {0.1: other}})
    assert not alone.comparisons["tied"].any()
    low = [0.1, 0.2, 0.15, 0.12]
    crowd = run(
        {"adam": {0.1: best}, "sgd": {0.1: other}, "nag": {0.1: low}, "rmsprop": {0.1: low}}
    )
    assert crowd.comparisons["confidence"][0] == pytest.approx(1 - 0.05 / 3)
    assert dict(zip(crowd.comparisons["optimizer"], crowd.comparisons["tied"], strict=True)) == {
        "sgd": True,
        "nag": False,
        "rmsprop": False,
    }
    assert "beats the other 2" in crowd.verdict


def test_one_seed_decides_nothing():
    found = run({"adam": {0.1: [0.97]}, "sgd": {0.1: [0.5]}})
    assert found.comparisons["tied"].all()
    assert "one seed cannot" in found.verdict


def test_sensitivity_is_the_width_within_one_point():
    accuracies = {1e-3: 0.5, 1e-2: 0.96, 1e-1: 0.97, 1.0: 0.961, 10.0: 0.9599}
    found = run({"sgd": {lr: [a] * 2 for lr, a in accuracies.items()}})
    row = found.summary.iloc[0]
    assert (row["lr_low"], row["lr_high"]) == (1e-2, 1.0)
    assert row["lr_factor"] == pytest.approx(100)
    assert not row["lr_clipped"]
    edge = run({"sgd": {0.1: [0.9] * 2, 1.0: [0.97] * 2}}).summary.iloc[0]
    assert edge["edge"]
    assert edge["lr_clipped"]


def test_time_to_target_is_a_median_in_which_never_is_for_ever():
    result = {"sgd": {0.1: [0.9] * 3}, "adam": {0.1: [0.8] * 3}}
    found = run(result, target_epochs={"sgd": [4, NAN, 6], "adam": [NAN, 3, NAN]})
    by = found.summary.set_index("optimizer")
    assert by.loc["sgd", "epochs_to_target"] == 6
    assert by.loc["sgd", "reached"] == 2
    assert math.isnan(by.loc["adam", "epochs_to_target"])
    assert by.loc["adam", "reached"] == 1


def test_lower_is_better():
    found = run(
        {"adam": {0.1: [0.50, 0.52], 0.2: [0.4, 0.41]}, "sgd": {0.1: [0.9, 0.8]}}, metric=ERROR
    )
    assert found.summary["optimizer"].tolist() == ["adam", "sgd"]
    assert found.summary.iloc[0]["lr"] == 0.2
    assert found.summary.iloc[0]["lr_factor"] == 1


def test_a_target_is_reached_whichever_way_float32_rounds_it():
    found = thalweg.study("digits", ["momentum"], lr=[0.01], seeds=5, epochs=9, target=0.95)
    right = (found.curves["validation_metric"] * 360).round()
    reached = found.curves[right >= 0.95 * 360].groupby("run")["epoch"].min()
    runs = found.runs.set_index("run")["epochs_to_target"]
    assert runs.to_dict() == reached.to_dict()
    assert (right == 0.95 * 360).any()  # the case in point


def test_an_interval_of_shares_ends_where_shares_do():
    found = thalweg.study("wine", ["sgd"], lr=[0.1], seeds=2, epochs=1).trials.iloc[0]
    assert 0 <= found["low"] < found["test_metric"] < found["high"] <= 1


def test_an_interval_of_an_error_ends_at_0_and_has_a_true_minus():
    results = {"adam": {0.1: [1.0, 40.0]}, "sgd": {0.1: [60.0, 61.0]}}
    found = run(results, metric=ERROR)
    assert found.trials["low"].tolist()[0] == 0
    assert "95 % interval 0 to 268.3" in found.verdict
    score = replace(ERROR, name="score", nonnegative=False)
    assert "95 % interval −227.3 to 268.3" in run(results, metric=score).verdict
