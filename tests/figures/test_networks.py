import numpy as np
import pandas as pd
import pytest

from thalweg.figures import escape as minima
from thalweg.figures import generalisation, networks


@pytest.fixture
def grid():
    alpha, beta = np.meshgrid([-1.0, 0.0, 1.0], [-2.0, 2.0], indexing="ij")
    flat = pd.DataFrame({"alpha": alpha.ravel(), "beta": beta.ravel()})
    return flat.assign(train_loss=np.arange(1.0, 7), validation_loss=np.arange(2.0, 8))


PATH = pd.DataFrame(
    {
        "name": ["start", "on the way", "end"],
        "alpha": [-1.0, 0.5, 0.0],
        "beta": [0.0, 1.0, 0.0],
        "step": [0, 5, 10],
        "own_loss": [3.0, 2.0, 1.0],
        "train_loss": [3.1, 2.1, 1.0],
    }
)


def named(figure, name):
    return [t for t in figure.data if t.name == name]


def test_a_contour_has_every_point_at_its_place_and_one_scale(grid):
    figure = networks.loss_contour(grid, PATH, ("a", "b"), "loss")
    for name, column in (("training", "train_loss"), ("validation", "validation_loss")):
        (trace,) = named(figure, name)
        for _, row in grid.iterrows():
            i, k = list(trace.y).index(row["beta"]), list(trace.x).index(row["alpha"])
            assert trace.z[i, k] == pytest.approx(np.log10(row[column]))
        assert (trace.zmin, trace.zmax) == pytest.approx((0, np.log10(7)))
    ways = named(figure, "training path")
    assert len(ways) == 2
    assert list(ways[0].x) == list(PATH["alpha"])
    assert (list(named(figure, "end")[0].x), list(named(figure, "start")[0].x)) == ([0], [-1])
    assert figure.layout.xaxis.title.text == figure.layout.xaxis2.title.text == "a"
    assert figure.layout.yaxis.title.text == "b"


def test_a_surface_carries_the_path(grid):
    figure = networks.loss_surface(grid, PATH, ("a", "b"), "loss")
    np.testing.assert_allclose(10 ** figure.data[0].z, [[1, 3, 5], [2, 4, 6]])
    (way,) = named(figure, "training path")
    # a little above the ground
    assert (way.z > np.log10(PATH["train_loss"])).all()
    np.testing.assert_allclose(10**way.z, PATH["train_loss"], rtol=0.05)
    assert figure.layout.scene.zaxis.title.text == "training loss"


def test_named_points_are_in_the_legend_and_zero_loss_is_a_hole(grid):
    marks = pd.DataFrame({"name": ["A", "B"], "alpha": [0.0, 1.0], "beta": 0.0, "train_loss": 1.0})
    holed = grid.assign(train_loss=[0.0, np.nan, 1, 2, 3, 4])
    figure = networks.loss_contour(holed, marks, ("a", "b"), "loss")
    assert np.isnan(named(figure, "training")[0].z).sum() == 2
    assert [len(named(figure, name)) for name in "AB"] == [2, 2]
    assert len(networks.loss_surface(holed, marks, ("a", "b"), "loss").data) == 2


@pytest.mark.parametrize("shift", [-4.0, -10.0, np.nan])
def test_losses_below_zero_are_drawn_as_they_are(grid, shift):
    """Some, or all: a likelihood's logarithm has no sign of its own. And all zero."""
    low = grid.add([0, 0, shift, shift]).fillna(0.0)
    mark = pd.DataFrame({"name": ["A"], "alpha": [0.0], "beta": [0.0], "train_loss": [shift]})
    contour = networks.loss_contour(low, mark, ("a", "b"), "loss")
    drawn = named(contour, "training")[0]
    expected = low["train_loss"].to_numpy().reshape(3, 2).T
    np.testing.assert_array_equal(drawn.z, expected)
    losses = low[["train_loss", "validation_loss"]].to_numpy()
    assert drawn.zmin == losses.min()
    assert drawn.zmax == pytest.approx(losses.max(), abs=1e-5)
    assert named(contour, "validation")[0].colorbar.ticktext is None  # those of the axis itself
    np.testing.assert_array_equal(
        networks.loss_surface(low, mark, ("a", "b"), "loss").data[0].z, expected
    )


def test_an_interpolation_has_both_sets_and_its_ends():
    line = pd.DataFrame(
        {
            "alpha": [0.0, 1.0], "train_loss": [1.0, 2.0], "validation_loss": [2.0, 3.0],
            "train_metric": [0.9, 0.8], "validation_metric": [0.7, 0.6],
        }
    )  # fmt: skip
    marks = pd.DataFrame({"name": ["A", "B"], "alpha": [0.0, 1.0]})
    figure = networks.interpolation(line, marks, "way", "loss", "accuracy", percent=True)
    assert [list(t.y) for t in named(figure, "training")] == [[1, 2], [90, 80]]
    assert [list(t.y) for t in named(figure, "validation")] == [[2, 3], [70, 60]]
    assert [a.text for a in figure.layout.annotations] == ["A", "B"]
    assert [shape.x0 for shape in figure.layout.shapes] == [0, 0, 1, 1]  # in both panels


def test_gaps_stand_at_their_sharpness():
    runs = pd.DataFrame(
        {
            "optimizer": ["SGD", "SGD", "Adam"], "batch_size": [16, 128, 16], "seed": 0,
            "gap": [0.1, 0.2, 0.3], "eigenvalue": [1.0, 2.0, 3.0], "sharpness": [4.0, 5.0, 6.0],
        }
    )  # fmt: skip
    figure = generalisation.gap_against_sharpness(runs, "loss", 0.05)
    left, right = named(figure, "SGD, batches of 128")
    assert (left.x[0], left.y[0], right.x[0], right.y[0]) == (2, 0.2, 5, 0.2)
    colors = {t.name.split(",")[0]: t.marker.color for t in figure.data}
    symbols = {t.name.split(" ")[-1]: t.marker.symbol for t in figure.data}
    assert len(set(colors.values())) == len(set(symbols.values())) == 2
    assert "5 %" in figure.layout.xaxis2.title.text


def test_risks_mark_where_over_fitting_begins():
    curves = pd.DataFrame(
        [
            {"optimizer": o, "batch_size": 16, "seed": s, "epoch": e,
             "train_loss": 1 / (e + 1), "validation_loss": 2.0}
            for o in ("SGD", "Adam") for s in (0, 1) for e in range(3)
        ]
    )  # fmt: skip
    table = pd.DataFrame(
        {"optimizer": ["SGD", "Adam"], "batch_size": 16, "overfits_from": [np.nan, 1.5]}
    )
    figure = generalisation.risks(curves, table, "loss")
    assert len(named(figure, "training")) == len(named(figure, "validation")) == 4
    assert [shape.x0 for shape in figure.layout.shapes] == [1.5]
    assert [a.text for a in figure.layout.annotations] == [
        "SGD, batches of 16", "Adam, batches of 16",
    ]  # fmt: skip


def test_escape_share_has_intervals_and_theory_where_it_holds():
    table = pd.DataFrame(
        {
            "noise": [1.0, 2.0], "runs": 100, "share": [0.1, 0.9], "low": [0.05, 0.8],
            "high": [0.2, 0.95], "theory": [0.12, np.nan],
        }
    )  # fmt: skip
    figure = minima.escape_share(table, "SGD", 0.05, 1000)
    shares, theory = figure.data
    np.testing.assert_allclose(shares.y + shares.error_y.array, [20, 95])
    np.testing.assert_allclose(shares.y - shares.error_y.arrayminus, [5, 80])
    assert "SGD, learning rate 0.05, 1,000 steps, 100 runs" in shares.name
    assert (list(theory.x), list(theory.y)) == ([1], [12])


def test_positive_share_says_what_was_not_found():
    table = pd.DataFrame(
        {
            "size": [1, 6], "samples": 1000, "positive": [500, 0], "share": [0.5, 0.0],
            "low": [0.47, 0.0], "high": [0.53, 0.004], "exact": [0.5, np.nan], "law": [0.76, 5e-5],
        }
    )  # fmt: skip
    figure = minima.positive_share(table)
    (below,) = named(figure, "none found: below this")
    assert (list(below.x), list(below.y)) == ([6], [0.004])
    assert list(figure.data[0].x) == [1]
    assert list(named(figure, "exact")[0].y) == [0.5]


def test_eigenvalue_signs_sum_to_their_shares():
    frame = pd.DataFrame(
        {
            "moment": [0, 0, 0, 1, 1], "eigenvalue": [-0.1, 1.0, 0.0, 2.0, 3.0],
            "weight": [0.25, 0.5, 0.25, 0.5, 0.5],
        }
    )  # fmt: skip
    figure = minima.eigenvalue_signs(frame, ["start", "end"])
    assert [sum(t.y) for t in named(figure, "negative")] == [25, 0]
    assert [sum(t.y) for t in named(figure, "positive")] == [50, 100]
    assert list(named(figure, "negative")[0].x) == [-1]
    assert [a.text for a in figure.layout.annotations] == ["start", "end"]
