import json

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


def test_a_page_and_a_table(here, wine, capsys, chromium):
    network_surface(wine, epochs=3, points=5, seed=2)
    out, error = capsys.readouterr()
    assert error == ""
    lines = out.splitlines()
    rows = [line.split()[0] for line in lines]
    assert rows.index("optimizer") < rows.index("SGD") < rows.index("Adam")
    assert "from SGD's solution to Adam's the training loss" in " ".join(lines)
    assert lines[-1] == "Page: thalweg-surface-wine.html"
    assert [p.name for p in here.iterdir()] == ["thalweg-surface-wine.html"]
    page = chromium.new_page()
    trouble = []
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url),
    )
    page.goto((here / "thalweg-surface-wine.html").as_uri())
    page.wait_for_selector(".plotly .trace", state="attached")
    assert trouble == []
    assert page.title() == f"Loss surface of {wine.title}"
    assert page.locator(".js-plotly-plot").count() == 2 * 5 + 1
    assert page.locator("h2").all_inner_texts() == [
        "Path of SGD",
        "Around the solution of SGD",
        "Where the loss around the solution of SGD curves most",
        "Path of Adam",
        "Around the solution of Adam",
        "Where the loss around the solution of Adam curves most",
        "Between two solutions",
        "How it was done",
    ]
    page.close()


def test_as_json_it_is_what_the_networks_give(here, wine, capsys):
    network_surface(
        wine, optimizers=["adam"], lr=0.003, epochs=2, points=3, batch_size=16, json=True
    )
    out, error = capsys.readouterr()
    assert error == "Page: thalweg-surface-wine.html\n"
    found = json.loads(out)
    assert set(found) == {"task", "loss", "metric", "solutions", "between"}
    assert (found["loss"], found["metric"], found["between"]) == ("cross-entropy", "accuracy", None)
    (one,) = found["solutions"]
    assert (one["optimizer"], one["lr"], one["seed"]) == ("Adam", 0.003, 0)
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


def test_two_solutions_have_a_barrier(here, wine, capsys):
    network_surface(wine, optimizers=["sgd", "adam"], epochs=1, points=2, json=True)
    between = json.loads(capsys.readouterr()[0])["between"]
    assert len(between["grid"]) == 8
    assert between["barrier"] >= 0
    assert [mark["name"] for mark in between["marks"]] == ["SGD's solution", "Adam's solution"]


def test_bad_values_are_refused_before_anything_is_written(here, wine):
    for arguments, message in (
        ({"optimizers": []}, "optimizers: none given; `thalweg optimizers` lists them"),
        ({"optimizers": ["sdg"]}, "optimizers: there is no 'sdg'; choose from sgd, "),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: must be a whole number from 0, got -1"),
        ({"batch_size": 999}, "batch_size: 999 is more than the 106 training samples"),
    ):
        with pytest.raises(LandscapeError) as error:
            network_surface(wine, **arguments)
        assert str(error.value).startswith(message)
    assert not list(here.iterdir())
