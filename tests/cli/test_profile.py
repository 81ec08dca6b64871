import json

import pytest

# A model that nothing compiles, which would take longer than all the rest.
MODULE = """
import torch
from torch import nn

import thalweg


class Model(nn.Sequential):
    def forward(self, x):
        return super().forward(x if float(x.sum()) < 1e30 else -x)


def task():
    x = torch.randn(80, 8)
    return thalweg.Task(
        model=lambda: Model(nn.Linear(8, 4)), train=(x, x[:, :4]), loss="mse", name="small"
    )


def broken():
    x = torch.randn(80, 8)
    return thalweg.Task(model=lambda: nn.Linear(9, 4), train=(x, x[:, :4]))
"""


@pytest.fixture
def module(here):
    (here / "mine.py").write_text(MODULE)


def test_tables_and_a_page(here, module, run, opened):
    code, out, error = run("profile", "mine.py:task", "--optimizer", "torch.sgd", "--lr", "0.1")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["small", lines[1]]
    assert lines[1].startswith("torch.optim.SGD at a learning rate of 0.1, batches of 32, float32")
    for head in ("a step", "memory", "reached", "change"):
        assert any(line.startswith(f"{head} ") for line in lines)
    first = [line.split("  ")[0] for line in lines]
    for row in ("data", "Python overhead", "whole step", "activations", "this machine"):
        assert row in first
    assert "Thalweg's SGD instead of torch's" in out
    assert lines[-1] == "Page: thalweg-profile-small.html"
    page, trouble = opened(here / "thalweg-profile-small.html")
    assert trouble == []
    assert page.locator("h2").all_inner_texts() == [
        "Where a step's time goes",
        "What lies in memory",
        "What is reached of what this machine reaches",
        "What was tried",
    ]
    assert page.locator(".plotly").count() == 4


def test_json_is_one_object(here, module, run):
    code, out, error = run("profile", "mine.py:task", "--json", "--out", "deep/page.html")
    assert (code, error) == (0, "Page: deep/page.html\n")
    found = json.loads(out)
    assert sum(found["stages"].values()) == pytest.approx(found["step_seconds"])
    assert found["memory"]["parameters"] == 4 * (8 * 4 + 4)
    assert found["optimizer"] == "Adam"
    assert (here / "deep" / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "TASK: there is no task 'nosuch'"),
        (["mine.py:broken"], "TASK: "),
        (["wine", "--optimizer", "adm"], "--optimizer: there is no 'adm'"),
        (["wine", "--optimizer", "torch.adm"], "--optimizer: there is no 'torch.adm'"),
        (["wine", "--lr", "-1"], "--lr: must be positive and finite, got -1.0"),
        (["wine", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
        (["wine", "--batch-size", "500"], "--batch-size: 500 is more than the 106"),
        (["wine", "--precision", "half"], "--precision: must be one of float32, bfloat16"),
        (["wine", "--device", "tpu"], "--device: must be cpu or cuda, got 'tpu'"),
        (["wine", "--out", "."], "--out: . is a folder"),
    ],
)
def test_what_cannot_be_is_one_line(here, module, run, arguments, said):
    before = set(here.iterdir())
    code, out, error = run("profile", *arguments)
    assert code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("thalweg: ")
    assert said in error
    assert set(here.iterdir()) - {here / "__pycache__"} == before
