import numpy as np
import pytest

from thalweg.figures import learning_curves, metric_against_lr, time_to_target
from thalweg.numbers import number
from thalweg.optim.registry import OPTIMIZERS


def traces(figure, name):
    return [t for t in figure.data if t.name == name]


def test_metric_against_lr_draws_the_trials(small_result):
    figure = metric_against_lr(small_result.trials, "accuracy", percent=True)
    means = traces(figure, "mean over seeds, 95 % interval")
    for trace, name in zip(means, ["sgd", "adam"], strict=True):
        mine = small_result.trials[small_result.trials["optimizer"] == name]
        mine = mine[mine["test_metric"].notna()]
        np.testing.assert_array_equal(trace.x, mine["lr"])
        np.testing.assert_allclose(trace.y, 100 * mine["test_metric"])
        np.testing.assert_allclose(trace.y + trace.error_y.array, 100 * mine["high"])
        np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, 100 * mine["low"])
        assert trace.line.color == OPTIMIZERS[name].color


def test_diverged_settings_are_marked_and_not_drawn_as_results(small_result):
    figure = metric_against_lr(small_result.trials, "accuracy", percent=True)
    marks = traces(figure, "some or all seeds diverged")
    assert [list(t.x) for t in marks] == [[1e30], []]
    assert 1e30 not in traces(figure, "mean over seeds, 95 % interval")[0].x


def test_chosen_settings_are_ringed(small_result):
    figure = metric_against_lr(small_result.trials, "accuracy", percent=True)
    rings = [list(t.x) for t in traces(figure, "chosen on validation data")]
    best = small_result.summary.set_index("optimizer")["lr"]
    assert rings == [[best["sgd"]], [best["adam"]]]


def test_learning_curves_are_median_and_range(small_result):
    curves = small_result.best_curves
    figure = learning_curves(curves, ["adam", "sgd"], "cross-entropy", "accuracy", percent=True)
    mine = curves[curves["optimizer"] == "adam"]
    lines = traces(figure, "validation accuracy")
    np.testing.assert_allclose(lines[0].y, 100 * mine["validation_metric_median"])
    band = next(t for t in figure.data if t.fill == "toself" and max(t.y) > 50)
    assert max(band.y) == pytest.approx(100 * mine["validation_metric_high"].max())
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["Adam", "SGD"]


def test_time_to_target_says_what_was_not_reached(small_result):
    summary = small_result.summary.copy()
    summary.loc[summary["optimizer"] == "sgd", ["epochs_to_target", "seconds_to_target"]] = np.nan
    bars = time_to_target(summary, "validation accuracy 95 %").data[0]
    said = dict(zip(bars.y, bars.text, strict=True))
    assert said["SGD"] == "not reached"
    assert said["Adam"] == number(summary.set_index("optimizer").loc["adam", "epochs_to_target"])


def test_every_axis_has_a_title(small_result):
    for name, figure in small_result.figures().items():
        assert figure.layout.xaxis.title.text or len(figure.data) > 4, name
        assert figure.layout.xaxis.type != "log" or figure.layout.yaxis.title.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0003162, "0.000316"), (3.162e-5, "3.16e-5"), (31.62, "31.6"), (1234.5, "1234")],
)
def test_number(value, text):
    assert number(value) == text
