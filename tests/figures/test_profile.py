import numpy as np
import pandas as pd
import pytest

from thalweg.figures.profile import changes, memory, reached, step

PARTS = pd.DataFrame(
    {
        "part": ["data", "copy", "forward", "synchronisation", "python"],
        "seconds": [1e-5, 1e-6, 4e-4, 0.0, 5.89e-4],
        "share": [0.01, 0.001, 0.4, 0.0, 0.589],
    }
)


def test_a_step_is_one_bar_of_all_parts_that_take_time():
    figure = step(PARTS)
    assert figure.layout.barmode == "stack"
    assert [bar.x[0] for bar in figure.data] == [0.01, 0.001, 0.4, 0.589]
    assert [bar.name for bar in figure.data] == [
        "data, 10 µs", "copy, 1 µs", "forward, 400 µs", "Python overhead, 589 µs",
    ]  # fmt: skip
    # There is room for words on large parts alone.
    assert [bar.text for bar in figure.data] == ["", "", "40%", "59%"]
    assert len({bar.marker.color for bar in figure.data}) == 4


def test_memory_is_one_bar_of_all_kinds():
    kinds = ["parameters", "activations"]
    frame = pd.DataFrame({"kind": kinds, "bytes": [1500, 4500], "share": [0.25, 0.75]})
    figure = memory(frame)
    assert [bar.name for bar in figure.data] == ["parameters, 1.5 kB", "activations, 4.5 kB"]
    assert [bar.x[0] for bar in figure.data] == [0.25, 0.75]


def test_parts_stand_under_the_roof():
    frame = pd.DataFrame(
        {
            "part": ["forward", "optimizer", "whole step"],
            "flops": [1e6, np.nan, 4e6],
            "bytes": [1e5, 1e5, 2e5],
            "flops_per_second": [5e8, np.nan, 1e9],
            "of_possible": [0.05, np.nan, 0.05],
        }
    )
    figure = reached(frame, flops=2e10, rate=1e9)  # the ridge is at 20 operations a byte
    roof, *rest = figure.data
    assert roof.x[1] == 20
    np.testing.assert_allclose(roof.y, [1e9 * roof.x[0], 2e10, 2e10])
    assert roof.x[0] < 10
    assert roof.x[2] > 20
    drops, points = rest[::2], rest[1::2]
    assert [(p.x[0], p.y[0]) for p in points] == [(10, 5e8), (20, 1e9)]
    assert [d.y[0] for d in drops] == [1e10, 2e10]  # memory is the limit of the first
    assert points[0].name == "forward: 500 MFLOP/s, 5.0% of the roof"
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_gains_are_ratios_with_intervals_best_on_top():
    frame = pd.DataFrame(
        {
            "change": ["batches of 64", "nothing, a second time", "2 threads", "hybridise"],
            "gain": [1.0, 0.01, -0.5, np.nan],
            "low": [0.8, -0.1, -0.6, np.nan],
            "high": [1.1, 0.2, -0.4, np.nan],
            "verdict": ["faster", "none", "slower", "not tried"],
        }
    )
    figure = changes(frame)
    (points,) = figure.data
    assert list(figure.layout.yaxis.ticktext) == [
        "2 threads", "nothing, a second time", "batches of 64",
    ]  # fmt: skip
    np.testing.assert_allclose(points.x, [0.5, 1.01, 2.0])
    np.testing.assert_allclose(points.error_x.array, [0.1, 0.19, 0.1])
    np.testing.assert_allclose(points.error_x.arrayminus, [0.1, 0.11, 0.2])
    assert len(set(points.marker.color)) == 3
    assert figure.layout.xaxis.type == "log"
    assert "×2" in figure.layout.xaxis.ticktext


@pytest.mark.parametrize("gain", [0.0, 30.0])
def test_a_single_change_has_a_figure(gain):
    frame = pd.DataFrame(
        {"change": ["a"], "gain": [gain], "low": [gain], "high": [gain], "verdict": ["none"]}
    )
    assert "×1" in changes(frame).layout.xaxis.ticktext
