import numpy as np
import pandas as pd
import pytest

from thalweg.figures.functions import descent_on_line, descent_on_plane, progress, twins
from thalweg.landscape.functions import function
from thalweg.landscape.paths import descend


def colors_of(descent):
    return {mover.label: mover.color for mover in descent.movers}


@pytest.fixture(scope="module")
def plane():
    return descend("canyon", ["sgd", "momentum"], lr=0.1, starts=[(-5, -2), (4, 1)], steps=300)


@pytest.fixture(scope="module")
def line():
    return descend("risk", ["sgd", "adam"], lr=0.05, steps=40)


def drawn(figure, plane, label):
    return [t for t in figure.data if t.name == label and t.type == plane]


def test_paths_on_a_plane_grow_with_the_steps(plane):
    ground = plane.function.grid(plane.box, 31)
    figure = descent_on_plane(ground, plane.points.table, plane.paths, colors_of(plane))
    contour, surface = figure.data[:2]
    # A function of x and y is drawn with y upwards.
    at = contour.customdata[3][5]
    assert at == pytest.approx(0.1 * contour.x[5] ** 2 + 2 * contour.y[3] ** 2)
    assert np.asarray(surface.z)[3][5] == pytest.approx(at)
    assert len(drawn(figure, "scatter", "SGD")) == len(drawn(figure, "scatter3d", "SGD")) == 2
    assert [t.showlegend for t in drawn(figure, "scatter", "SGD")] == [True, False]
    path = plane.paths[(plane.paths["optimizer"] == "SGD") & (plane.paths["start"] == 0)]
    whole = drawn(figure, "scatter", "SGD")[0]
    assert (whole.x[0], whole.y[0]) == (-5, -2)
    assert whole.x[-1] == pytest.approx(path["x"].iloc[-1])
    steps = [int(frame.name) for frame in figure.frames]
    assert steps[:4] == [0, 1, 2, 3]
    assert steps == sorted(set(steps))
    assert 40 <= len(steps) <= 60
    frame = figure.frames[3]
    traces = [figure.data[i] for i in frame.traces]
    assert len(traces) == 8
    for before, after in zip(traces, frame.data, strict=True):
        np.testing.assert_allclose(after.x, before.x[:4])
        assert np.max(np.asarray(after.customdata)[:, 0]) == 3
    assert [step.label for step in figure.layout.sliders[0].steps] == [f"{s:,}" for s in steps]


def test_a_path_that_leaves_the_picture_ends_its_animation():
    descent = descend("saddle", ["sgd"], lr=0.1, steps=1000)
    ground = descent.function.grid(descent.box, 21)
    figure = descent_on_plane(ground, descent.points.table, descent.paths, colors_of(descent))
    # y grows by 1.2 a step from 0.01, and is above 2 from the 30th on.
    assert 0.01 * 1.2**29 < 2 < 0.01 * 1.2**30
    assert figure.frames[-1].name == "30"
    (above,) = drawn(figure, "scatter3d", "SGD")
    assert np.max(above.y) < 2


def test_the_surface_is_cut_off_above_what_matters():
    descent = descend("rosenbrock", ["sgd"], lr=0.001, steps=5)
    ground = descent.function.grid(descent.box, 41)
    figure = descent_on_plane(ground, descent.points.table, descent.paths, colors_of(descent))
    highest = np.max(np.asarray(figure.data[1].z))
    assert 24.2 < highest < ground["value"].max() / 3


def test_missing_values_leave_gaps():
    descent = descend("log(x) + y**2", ["sgd"], lr=0.01, steps=5)
    ground = descent.function.grid(descent.box, 11)
    figure = descent_on_plane(ground, descent.points.table, descent.paths, colors_of(descent))
    assert np.isnan(np.asarray(figure.data[0].z)[:, :5]).all()
    assert not figure.data[1].contours.z.show


def test_paths_on_a_line(line):
    curve = line.function.grid(line.box, 101)
    figure = descent_on_line(curve, line.points.table, line.paths, colors_of(line))
    assert [t.name for t in figure.data[1:]] == ["SGD", "Adam", "minimum", "maximum"]
    texts = [a.text for a in figure.layout.annotations]
    assert texts[0] == "minimum<br>x = 1.09, value -1.05"
    assert texts[2] == "maximum<br>x = 0.274, value 0.179"
    # The value's range is that of the curve, wherever paths go.
    low, high = figure.layout.yaxis.range
    assert low < curve["value"].min() < curve["value"].max() < high
    assert len(figure.frames) == 41


def test_many_points_have_no_labels():
    descent = descend("empirical", ["sgd"], lr=0.01, steps=5)
    curve = descent.function.grid(descent.box, 101)
    figure = descent_on_line(curve, descent.points.table, descent.paths, colors_of(descent))
    assert len(descent.points.points) == 13
    assert not figure.layout.annotations


def test_colours_that_repeat_are_told_apart_by_dashes():
    descent = descend("canyon", ["sgd:lr=0.1", "sgd:lr=0.4"], steps=5)
    figure = progress(descent.paths, 1e-10, colors_of(descent))
    first, second = figure.data[:2]
    assert first.line.color == second.line.color
    assert first.line.dash != second.line.dash


def test_the_gradient_against_steps(plane):
    figure = progress(plane.paths, plane.tolerance, colors_of(plane))
    assert figure.layout.yaxis.type == "log"
    assert len(drawn(figure, "scatter", "SGD")) == 2
    assert figure.data[-1].name == "paths end at 1e-5"
    assert figure.data[0].y[0] == pytest.approx(np.hypot(1, 8))


def test_twins_and_their_minima():
    risk, empirical = function("risk"), function("empirical")
    curves = risk.grid(risk.range, 51).rename(columns={"value": "risk"})
    curves["empirical"] = empirical.grid(risk.range, 51)["value"]
    minima = pd.DataFrame(
        [("risk", 1.0904, -1.0467, -1.0467), ("empirical", 1.017, -1.2085, -1.0155)],
        columns=["name", "x", "value", "risk"],
    )
    figure = twins(curves, minima)
    assert [t.name for t in figure.data] == [
        "risk",
        "empirical risk",
        "minimum of the risk: x = 1.09, where the risk is -1.05",
        "minimum of the empirical risk: x = 1.02, where the risk is -1.02",
    ]
    assert [shape.x0 for shape in figure.layout.shapes] == [1.0904, 1.017]
