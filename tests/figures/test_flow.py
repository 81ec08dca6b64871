import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.figures.flow import activations, curve, gradients, shares
from thalweg.landscape.activations import curve as points
from thalweg.landscape.flow import INPUT, watch


@pytest.fixture(scope="module")
def frame():
    """Four recorded steps of a network with a tanh, a ReLU and a frozen first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(300, 6), torch.randint(3, (300,))
    with watch(model, optimizer, every=2) as flow:
        for _ in range(8):
            optimizer.zero_grad()
            functional.cross_entropy(model(3 * x), y).backward()
            optimizer.step()
    return flow.frame


def sizes(frame, what):
    return frame[frame["what"] == what].pivot_table("rms", "depth", "step").to_numpy()


def test_gradients_are_decades_by_layer_and_step(frame):
    figure = gradients(frame)
    assert [t.type for t in figure.data] == ["heatmap", "heatmap"]
    for trace, what in zip(figure.data, ("gradient", "weight gradient"), strict=True):
        np.testing.assert_allclose(trace.z, np.log10(sizes(frame, what)))
        assert list(trace.x) == [0, 2, 4, 6]
    assert list(figure.data[1].y) == ["0  Linear", "2  Linear", "4  Linear"]
    assert figure.layout.yaxis.autorange == "reversed"
    low, high = figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax
    both = np.concatenate([sizes(frame, what).ravel() for what in ("gradient", "weight gradient")])
    assert low <= np.log10(both).min() < np.log10(both).max() <= high


def test_what_is_0_or_not_finite_stays_white_and_is_said(frame):
    broken = frame.copy()
    at = (broken["layer"] == "0") & (broken["what"] == "weight gradient")
    broken.loc[at & (broken["step"] == 0), "rms"] = 0.0
    broken.loc[at & (broken["step"] == 2), "rms"] = np.nan
    broken.loc[at & (broken["step"] == 4), "rms"] = 1e-300
    figure = gradients(broken)
    assert list(np.isnan(figure.data[1].z[0])) == [True, True, False, False]
    titles = [a.text for a in figure.layout.annotations]
    assert "white" not in titles[0]
    assert "white" in titles[1]
    assert figure.layout.coloraxis.cmin == figure.layout.coloraxis.cmax - 12


def test_activations_are_their_quantiles_at_three_steps(frame):
    figure = activations(frame)
    assert [a.text for a in figure.layout.annotations] == ["step 0", "step 4", "step 6"]
    mine = frame[(frame["step"] == 4) & (frame["what"] == "activation")]
    wide, middle, median = figure.data[3:6]
    low, quarter = (np.asarray(t.base, float) for t in (wide, middle))
    np.testing.assert_allclose(low, mine["q05"])
    np.testing.assert_allclose(low + wide.y, mine["q95"])
    np.testing.assert_allclose(quarter + middle.y, mine["q75"])
    np.testing.assert_allclose(median.y, mine["q50"])
    assert list(wide.x) == [INPUT, "0  Linear", "1  Tanh", "2  Linear", "3  ReLU", "4  Linear"]


def test_shares_are_of_the_layers_that_have_them(frame):
    figure = shares(frame)
    assert [list(t.y) for t in figure.data] == [["1  Tanh"], ["3  ReLU"], ["3  ReLU"]]
    mine = frame[(frame["layer"] == "1") & (frame["what"] == "activation")]
    np.testing.assert_allclose(figure.data[0].z[0], mine["saturated"])
    assert figure.layout.coloraxis.cmax == 1


def test_of_nothing_there_is_an_empty_figure():
    with watch(nn.Linear(2, 2)) as flow:
        pass
    for draw in (gradients, activations, shares):
        assert len(draw(flow.frame).data) == 0


def test_curve_shades_where_the_derivative_vanishes():
    figure = curve(points())
    left, right = figure.layout.shapes
    edge = np.arctanh(np.sqrt(0.95))  # 1 - tanh² = 0.05
    step = 12 / 480
    assert (left.x0, right.x1) == (-6, 6)
    assert left.x1 == pytest.approx(-edge, abs=step)
    assert right.x0 == pytest.approx(edge, abs=step)
    assert figure.layout.annotations[0].text == "derivative at 4: 0.00134"
    assert len(curve(pd.DataFrame(points(torch.sin)).assign(flat=False), "sin", None).data) == 2
