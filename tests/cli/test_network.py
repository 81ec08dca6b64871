import json
import re

import pandas as pd
import pytest
import torch
from torch.nn import functional

from thalweg.cli.network import network_surface
from thalweg.landscape.arguments import LandscapeError
from thalweg.tasks import load


@pytest.fixture
def wine():
    return load("wine")


def test_a_page_and_a_table(here, wine, capsys):
    network_surface(wine, optimizers=["sgd"], epochs=3, points=5, seed=2)
    out, error = capsys.readouterr()
    assert error == ""
    lines = out.splitlines()
    assert sum(line.startswith("SGD   ") for line in lines) == 1
    assert lines[-2].startswith("SGD ends at a training loss of ")
    assert lines[-1] == "Page: thalweg-surface-wine.html"
    assert [p.name for p in here.iterdir()] == ["thalweg-surface-wine.html"]
    page = (here / "thalweg-surface-wine.html").read_text()
    assert f"<title>Loss surface of {wine.title}</title>" in page
    assert page.count('class="plotly-graph-div"') == 5
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Path of SGD",
        "Around the solution of SGD",
        "Where the loss around the solution of SGD curves most",
        "How it was done",
    ]


def test_as_json_it_is_what_the_networks_give(here, wine, capsys):
    network_surface(
        wine, optimizers=["adam", "sgd"], lr=0.003, epochs=2, points=3, batch_size=16, json=True
    )
    out, error = capsys.readouterr()
    assert error == "Page: thalweg-surface-wine.html\n"
    page = (here / "thalweg-surface-wine.html").read_text()
    assert "<h2>Between two solutions</h2>" in page
    found = json.loads(out)
    assert set(found) == {"task", "loss", "metric", "solutions", "between"}
    assert (found["loss"], found["metric"]) == ("cross-entropy", "accuracy")
    between = found["between"]
    assert len(between["grid"]) == 12
    assert between["barrier"] >= 0
    assert [mark["name"] for mark in between["marks"]] == ["Adam's solution", "SGD's solution"]
    one, other = found["solutions"]
    assert (one["optimizer"], one["lr"], one["seed"]) == ("Adam", 0.003, 0)
    assert other["optimizer"] == "SGD"
    curve = pd.DataFrame(one["curve"])
    assert curve["step"].iloc[-1] == 2 * (len(wine.train) // 16)
    for of in ("path", "random", "curvature"):
        grid = pd.DataFrame(one[of]["grid"])
        assert len(grid) == 9
        assert set(grid) == {
            "alpha", "beta", "train_loss", "train_metric", "validation_loss", "validation_metric",
        }  # fmt: skip
        last = one[of]["marks"][-1]
        assert (last["alpha"], last["beta"]) == (0, 0)
        assert last["train_loss"] == pytest.approx(curve["train_loss"].iloc[-1], rel=1e-4)
    torch.manual_seed(0)
    start = functional.cross_entropy(wine.model()(wine.train.x), wine.train.y).item()
    assert one["path"]["marks"][0]["own_loss"] == pytest.approx(start, rel=1e-5)
    assert 0 < sum(one["path"]["values"]) <= 1
    assert one["curvature"]["values"][0] >= one["curvature"]["values"][1]


def test_bad_values_are_refused_before_anything_is_written(here, wine):
    for arguments, message in (
        ({"optimizers": []}, "optimizers: none given; `thalweg optimizers` lists them"),
        ({"optimizers": ["sdg"]}, "optimizers: there is no 'sdg'; did you mean sgd?"),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: must be a whole number from 0, got -1"),
        ({"batch_size": 999}, "batch_size: 999 is more than the 106 training samples"),
    ):
        with pytest.raises(LandscapeError) as error:
            network_surface(wine, **arguments)
        assert str(error.value).startswith(message)
    assert not list(here.iterdir())
