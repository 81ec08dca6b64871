import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.surface import (
    Surface,
    barrier,
    between,
    curvature_plane,
    path_plane,
    random_plane,
    surface,
    task_of_module,
)
from thalweg.landscape.training_path import training_paths
from thalweg.tasks import Metric, Task, load
from thalweg.tasks.networks import mlp

COLUMNS = ["train_loss", "train_metric", "validation_loss", "validation_metric"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def paths(digits):
    return training_paths(digits, ["sgd", "adam"], epochs=4, moments=12)


def direct(task, weights):
    """Loss and accuracy of weights by a plain module, on training and validation data."""
    module = task.model().eval()
    module.load_state_dict(weights)
    found = []
    with torch.no_grad():
        for split in (task.train, task.validation):
            outputs = module(split.x)
            found += [
                functional.cross_entropy(outputs, split.y).item(),
                (outputs.argmax(1) == split.y).double().mean().item(),
            ]
    return found


def assert_same(found, expected, samples=359):
    """Float32 losses in another order of sums; and no more than one sample near a tie."""
    np.testing.assert_allclose(found[::2], expected[::2], rtol=2e-5)
    np.testing.assert_allclose(found[1::2], expected[1::2], atol=1.01 / samples)


def test_the_centre_and_points_of_the_grid_are_what_the_model_gives(digits, paths):
    end = paths[0].at(-1)
    found = surface(digits, random_plane(end, seed=2), points=9)
    (centre,) = found.grid[(found.grid["alpha"] == 0) & (found.grid["beta"] == 0)].to_numpy()
    assert_same(centre[2:], direct(digits, end))
    assert_same(found.marks.loc[0, COLUMNS].to_numpy(dtype=float), direct(digits, end))
    draw = np.random.default_rng(0)
    for i in draw.choice(len(found.grid), 5, replace=False):
        row = found.grid.loc[i]
        weights = found.plane.weights(row["alpha"], row["beta"])
        assert_same(row[COLUMNS].to_numpy(), direct(digits, weights))
    assert (found.task, found.loss) == (digits.title, "cross-entropy")
    assert sorted(set(found.grid["alpha"])) == list(np.linspace(-1, 1, 9))


def test_random_directions_have_the_norms_of_the_filters(paths):
    weights = {
        "conv": torch.randn(3, 2, 5, 5),
        "linear": torch.randn(4, 6),
        "bias": torch.randn(4),
        "count": torch.tensor(3),
        "nothing": torch.zeros(2, 3),
    }
    first, second = random_plane(weights, seed=1).directions
    assert set(first) == set(second) == {"conv", "linear", "nothing"}
    for direction in (first, second):
        for name in ("conv", "linear"):
            for mine, filtered in zip(direction[name], weights[name], strict=True):
                assert mine.norm().item() == pytest.approx(filtered.norm().item(), rel=1e-5)
        assert not direction["nothing"].any()
    assert not torch.equal(first["linear"], second["linear"])
    again = random_plane(weights, seed=1).directions
    assert torch.equal(again[0]["conv"], first["conv"])
    assert len(random_plane(weights, count=1).directions) == 1


def test_the_line_between_two_solutions_meets_both(digits, paths):
    ends = [path.at(-1) for path in paths]
    line = surface(digits, between(*ends, names=("a", "b")), points=13)
    for i, end in enumerate(ends):
        (row,) = line.grid[np.isclose(line.grid["alpha"], i)].to_numpy()
        assert_same(row[2:], direct(digits, end))
    assert list(line.marks["name"]) == ["a", "b"]
    middle = {n: (ends[0][n] + ends[1][n]) / 2 for n in ends[0]}
    (half,) = line.grid[np.isclose(line.grid["alpha"], 0.5)].to_numpy()
    assert_same(half[2:], direct(digits, middle))


def test_a_barrier_is_the_rise_above_the_straight_line():
    alpha = np.linspace(-0.5, 1.5, 9)
    losses = np.array([9, 9, 1.0, 2.5, 4.0, 3.0, 3.0, 9, 9])  # at 0, 1/4, ... 1
    grid = pd.DataFrame({"alpha": alpha, "train_loss": losses})
    marks = pd.DataFrame({"train_loss": [1.0, 3.0]})
    plane = between({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    line = Surface("", "", load("digits").metric, plane, grid, marks)
    assert barrier(line) == pytest.approx(4.0 - 2.0)
    flat = replace(line, grid=grid.assign(train_loss=1 + 2 * alpha - 0.1))
    assert barrier(flat) == 0


def test_the_plane_through_three_solutions(digits, paths):
    first, second, third = paths[0].at(-1), paths[1].at(-1), paths[0].at(0)
    plane = between(first, second, third)
    a, b = plane.directions
    assert sum((a[n] * b[n]).sum().item() for n in a) == pytest.approx(0, abs=1e-4)
    norms = [math.sqrt(sum(d[n].square().sum().item() for n in d)) for d in (a, b)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for mark, weights in zip(plane.marks.to_numpy(), (first, second, third), strict=True):
        at = plane.weights(*mark[1:])
        for name in weights:
            torch.testing.assert_close(at[name], weights[name], rtol=0, atol=1e-6)
    for (low, high), of in zip(plane.spans, ("alpha", "beta"), strict=True):
        assert low < plane.marks[of].min() <= plane.marks[of].max() < high


def test_the_plane_of_a_path_is_its_principal_components(digits, paths):
    from sklearn.decomposition import PCA

    path = paths[1]
    plane = path_plane(path)
    flat = np.concatenate(
        [path.weights[n].flatten(1).numpy() for n in path.weights], 1, dtype=np.float64
    )
    pca = PCA(2, svd_solver="full").fit(flat)
    np.testing.assert_allclose(plane.values, pca.explained_variance_ratio_, rtol=1e-6)
    mine = np.stack(
        [np.concatenate([d[n].flatten() for n in path.weights]) for d in plane.directions]
    )
    np.testing.assert_allclose(np.abs((mine * pca.components_).sum(1)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        plane.marks[["alpha", "beta"]], (flat - flat[-1]) @ mine.T, atol=1e-5
    )
    assert f"{100 * plane.values[0]:.0f} %" in plane.labels[0]
    found = surface(digits, plane, points=3)
    last = found.marks.iloc[-1]
    assert (last["name"], last["alpha"], last["beta"], last["step"]) == ("end", 0, 0, 132)
    assert last["train_loss"] == pytest.approx(last["own_loss"], rel=1e-5)
    assert last["own_loss"] == pytest.approx(direct(digits, path.at(-1))[0], rel=1e-5)


def test_along_eigenvectors_the_loss_curves_as_their_eigenvalues_say(digits, paths):
    end = paths[1].at(-1)
    plane = curvature_plane(digits, end, span=1e-3)
    first, second = plane.values
    assert first > second > 0
    size = math.sqrt(sum(t.square().sum().item() for t in end.values()))
    a, b = plane.directions
    assert math.sqrt(sum(t.square().sum().item() for t in a.values())) == pytest.approx(size, 1e-4)
    assert sum((a[n] * b[n]).sum().item() for n in a) == pytest.approx(0, abs=1e-3 * size**2)
    module = digits.model().double()

    def loss(alpha, beta):
        module.load_state_dict({n: end[n].double() + alpha * a[n].double() + beta * b[n].double()
                                for n in end})  # fmt: skip
        with torch.no_grad():
            return functional.cross_entropy(module(digits.train.x.double()), digits.train.y).item()

    h = 1e-6  # in norms of the weights: so short that no ReLU switches; rounding is 1e-5 of it
    for value, (i, j) in ((first, (h, 0)), (second, (0, h))):
        curvature = (loss(i, j) - 2 * loss(0, 0) + loss(-i, -j)) / (h * size) ** 2
        assert curvature == pytest.approx(value, rel=1e-3)


def test_paths_are_the_runs_that_are_trained_alone(digits, paths):
    (alone,) = training_paths(digits, ["adam"], epochs=4, moments=12)
    both = paths[1]
    assert list(both.curve["step"]) == [*np.linspace(0, 132, 12).astype(int)]
    assert both.parameters == tuple(dict(digits.model().named_parameters()))
    for name, stack in both.weights.items():
        torch.testing.assert_close(stack, alone.weights[name], rtol=0, atol=1e-6)
    torch.manual_seed(0)
    torch.testing.assert_close(both.at(0), dict(digits.model().state_dict()), rtol=0, atol=0)
    row = both.curve.iloc[5]
    expected = direct(digits, both.at(5))
    assert_same(row[COLUMNS].to_numpy(), expected)


def test_batch_normalisation_stays_as_trained_and_moves_between_solutions():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = (x[:, 0] > x[:, 1]).long()

    def model():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))

    task = Task(model=model, train=(x, y), name="bn", batch_size=20)
    first, second = training_paths(task, ["sgd", "adam"], epochs=3, moments=4)
    end = first.at(-1)
    assert end["1.running_mean"].abs().sum() > 0
    found = surface(task, random_plane(end), points=3)
    assert_same(found.grid.loc[4, COLUMNS].to_numpy(), direct(task, end), len(task.validation))
    corner = found.plane.weights(-1, 1)
    for name in ("1.weight", "1.bias", "0.bias", "1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(corner[name], end[name])
    assert_same(found.grid.loc[2, COLUMNS].to_numpy(), direct(task, corner), len(task.validation))
    line = surface(task, between(end, second.at(-1)), points=4)
    for i, path in enumerate((first, second)):
        row = line.marks.loc[i, COLUMNS].to_numpy(dtype=float)
        assert_same(row, direct(task, path.at(-1)), len(task.validation))


def test_a_module_of_ones_own(digits):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(64, 10)).train()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    data = (digits.train.x, digits.train.y)
    task, weights = task_of_module(module, functional.cross_entropy, data, digits.validation)
    found = surface(task, random_plane(weights), points=3)
    assert_same(found.grid.loc[4, COLUMNS].to_numpy(), direct(task, before))
    assert module.training
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_a_metric_that_is_no_mean_is_of_the_whole_set(paths, digits):
    def spread(outputs, y):
        return outputs.std()

    task = Task(
        model=mlp(64, 64, 64, 10), train=digits.train, validation=digits.validation,
        metric=Metric("spread", spread, higher_is_better=False),
    )  # fmt: skip
    end = paths[0].at(-1)
    found = surface(task, random_plane(end), points=3)
    module = task.model()
    module.load_state_dict(end)
    expected = module(task.train.x).std().item()
    assert found.grid["train_metric"][4] == pytest.approx(expected, rel=1e-5)


def test_what_vmap_cannot_take_goes_one_by_one(digits):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            outputs = self.linear(x)
            return outputs if outputs.sum().item() > -1e9 else -outputs

    task = Task(model=Asks, train=digits.train, validation=digits.validation)
    (path,) = training_paths(task, ["sgd"], epochs=1, moments=2)
    found = surface(task, random_plane(path.at(-1)), points=2)
    assert "one after another" in found.note
    row = found.grid.iloc[1]
    assert_same(
        row[COLUMNS].to_numpy(), direct(task, found.plane.weights(row["alpha"], row["beta"]))
    )


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (2.0, 1.0)])
def test_both_ways_give_the_same(seconds, digits, paths, monkeypatch):
    """Whichever measured faster, one point after another first, is taken."""
    taken = iter(seconds)
    home = sys.modules["thalweg.landscape.surface"]
    monkeypatch.setattr(home, "_seconds", lambda *_: next(taken))
    end = paths[0].at(-1)
    found = surface(digits, random_plane(end, seed=2), points=3)
    assert ("one after another" in found.note) == (seconds[0] < seconds[1])
    row = found.grid.iloc[7]
    weights = found.plane.weights(row["alpha"], row["beta"])
    assert_same(row[COLUMNS].to_numpy(), direct(digits, weights))


def raised(call):
    with pytest.raises(LandscapeError) as error:
        call()
    return str(error.value)


def test_bad_values_are_named(digits, paths):
    end = paths[0].at(-1)
    plane = random_plane(end)
    few = {n: t for n, t in end.items() if n != "0.bias"}
    other = {**end, "0.bias": torch.zeros(3)}
    straight = replace(paths[0], weights={n: t[:2] for n, t in paths[0].weights.items()},
                       curve=paths[0].curve[:2])  # fmt: skip
    for call, message in [
        (lambda: surface(digits, plane, 1), "points: must be at least 2, got 1"),
        (lambda: surface(3, plane), "task: must be a name or a thalweg.Task, got 3"),
        (lambda: random_plane(end, count=3), "count: must be 1 for a line or 2 for a plane"),
        (
            lambda: surface(digits, random_plane(few)),
            "weights: '0.bias' of the model of 'digits' is (64,), and is missing; give",
        ),
        (
            lambda: surface(digits, random_plane(other)),
            "weights: '0.bias' of the model of 'digits' is (64,), and is of shape (3,); give",
        ),
        (lambda: between(end, few), "second: must have the tensors of the first, and has no"),
        (lambda: between(end, end), "second: has the same weights as the first; there is no"),
        (
            lambda: between(end, paths[1].at(-1), between(end, paths[1].at(-1)).weights(0.5)),
            "third: lies on the line through the others; there is no plane",
        ),
        (lambda: path_plane(straight), "path: is a straight line or a point, which no plane"),
        (lambda: surface(digits, plane, 2).figure("3d"), "kind: must be contour or surface"),
        (lambda: training_paths(digits, ["sdg"]), "optimizers: there is no 'sdg'; did you mean"),
        (lambda: training_paths(digits, "sdg"), "optimizers: there is no 'sdg'; did you mean"),
        (lambda: training_paths(digits, ["sgd:momentum=0.9"]), "optimizers: there is no 'sgd:m"),
        (lambda: training_paths(digits, seed=0.5), "seed: must be a whole number from 0, got 0.5"),
        (lambda: random_plane(end, seed="a"), "seed: must be a whole number from 0, got 'a'"),
        (lambda: random_plane(end, span=0), "span: must be positive and finite, got 0"),
        (lambda: curvature_plane(digits, end, span=-1), "span: must be positive and finite, got"),
        (lambda: training_paths(digits, batch_size=2000), "batch_size: 2000 is more than the 1077"),
        (lambda: training_paths(digits, epochs=0), "epochs: must be a whole number of at least 1"),
        (lambda: training_paths(digits, ["sgd"], lr=1e6, epochs=1), "lr: SGD diverges within"),
        (lambda: training_paths(digits, lr=-1.0), "lr: must be positive and finite, got -1.0"),
    ]:
        assert raised(call).startswith(message)
