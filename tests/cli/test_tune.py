import json
import math

import pandas as pd
import pytest

from thalweg.tune import fits
from thalweg.tune.batch import BatchSizes

QUICK = ["--steps", "40", "--seeds", "2"]
SMALL = ["--sizes", "8,32,96", "--epochs", "3", "--seeds", "2"]


@pytest.fixture(autouse=True)
def _two_steps(monkeypatch):
    monkeypatch.setattr(fits, "TIMED", 0)
    monkeypatch.setattr(fits, "_free", lambda: None)


def test_lr_says_a_rate_and_writes_a_page(here, run, opened):
    code, out, error = run("lr", "wine", "--optimizers", "sgd,adam", *QUICK)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert "learning" in lines[0]
    assert "optimizer" in lines[1]  # heads go over two lines in 80 columns
    rows = [line.split()[0] for line in lines]
    assert rows.index("SGD") < rows.index("Adam") < rows.index("SGD:") < rows.index("Adam:")
    assert "SGD: Trained with from the start, " in out
    assert lines[-1] == "Page: thalweg-lr-wine.html"
    assert [p.name for p in here.iterdir()] == ["thalweg-lr-wine.html"]
    page, trouble = opened(here / "thalweg-lr-wine.html")
    assert trouble == []
    assert page.title() == "Learning rate for wine"
    assert page.locator(".js-plotly-plot").count() == 3  # the rates, and each optimizer
    text = page.locator("body").inner_text()
    assert "SGD: begin at " in text
    assert page.locator("h2").all_inner_texts() == [
        "Too small, right, too large",
        "SGD",
        "Adam",
    ]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_boxes_scrolls_sideways(width, here, run, opened):
    run("lr", "wine", *QUICK)
    page, trouble = opened(here / "thalweg-lr-wine.html", width)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert trouble == []


def test_lr_as_json(here, run):
    options = ["--low", "1e-4", "--high", "10", "--scale", "linear", "--batch-size", "16"]
    code, out, error = run("lr", "wine", "--optimizers", "sgd", *QUICK, *options, "--json")
    assert code in (0, 1)
    assert error == "Page: thalweg-lr-wine.html\n"
    (found,) = json.loads(out)
    assert set(found) == {
        "optimizer", "task", "suggestion", "interval", "reason", "bounds", "third", "diverged_at",
        "marks", "lrs", "losses", "smoothed", "metrics", "checked", "metric",
    }  # fmt: skip
    assert (found["optimizer"], found["task"], found["metric"]) == ("SGD", "wine", "accuracy")
    assert found["lrs"] == pytest.approx([1e-4 + i * (10 - 1e-4) / 39 for i in range(40)])
    assert [len(run) for run in found["losses"]] == [40, 40]
    assert set(found["marks"]) == {"steepest", "minimum", "valley"}
    assert set(found["metrics"][0]) == {"lr", "metric", "low", "high"}
    for row in found["checked"]:
        assert set(row) == {"stage", "lr", "seed", "step", "train_loss", "loss", "metric"}


def test_lr_unchecked(here, run):
    code, out, _ = run("lr", "wine", "--no-check", "--json", "--out", "deep/a.html", *QUICK)
    (found,) = json.loads(out)
    assert code == 0
    assert found["suggestion"] == found["marks"]["valley"]
    assert (found["interval"], found["checked"]) == (None, [])
    assert (here / "deep" / "a.html").exists()


def test_no_rate_to_suggest_is_exit_code_1(here, run, opened):
    ends = ["--low", "1e-12", "--high", "1e-10"]
    code, out, error = run("lr", "wine", "--optimizers", "sgd", *QUICK, *ends)
    assert (code, error) == (1, "")
    assert "SGD: No rate from 1e-12 to 1e-10 lowers the loss by more than its noise." in out
    page, trouble = opened(here / "thalweg-lr-wine.html")
    assert trouble == []
    assert "SGD: no rate to suggest" in page.locator("body").inner_text()


@pytest.fixture
def table(here):
    rows = [(i % 7, "red" if i % 3 else "blue", i % 7 + 2 * (i % 3 > 0)) for i in range(120)]
    pd.DataFrame(rows, columns=["size", "color", "price"]).to_csv("data.csv", index=False)
    return here


def test_lr_of_a_table(table, run):
    code, out, error = run("lr", "data.csv", "--target", "price", "--numeric", "price", *QUICK)
    assert code == 0
    assert "color" in error + out  # columns as they were understood
    assert "Page: thalweg-lr-data.html" in out
    assert (table / "thalweg-lr-data.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wines"], "TASK"),
        (["wine", "--optimizers", "adm"], "--optimizers: there is no 'adm'; did you mean adam"),
        (["wine", "--optimizers", ","], "--optimizers: none given"),
        (["wine", "--low", "0"], "--low, --high: rates must be positive and finite, got 0 and"),
        (["wine", "--low", "nan"], "--low, --high: rates must be positive and finite, got nan"),
        (["wine", "--low", "1", "--high", "0.1"], "--low, --high: the low end 1 must be below the"),
        (["wine", "--high", "x"], "--high"),
        (["wine", "--steps", "19"], "--steps: 19 are too few to see a trend; give at least 20"),
        (["wine", "--steps", "0"], "--steps: must be a whole number of at least 1, got 0"),
        (["wine", "--scale", "log"], "--scale: must be exponential or linear, got 'log'"),
        (["wine", "--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["wine", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
        (["wine", "--batch-size", "999"], "--batch-size: 999 is more than the 106 samples"),
        (["wine", "--device", "gpu"], "--device: must be cpu or cuda, got 'gpu'"),
        (["wine", "--out", "."], "--out: . is a folder"),
        (["nothing.csv", "--target", "y"], "nothing.csv"),
        (["wine", "--nonsense"], "--nonsense"),
    ],
)
def test_lr_bad_values_get_one_line_and_exit_code_2(arguments, message, here, run):
    code, out, error = run("lr", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize("command", [["lr", "wine", *QUICK], ["batch", "wine", *SMALL]])
def test_a_page_that_cannot_be_written_is_known_before_training(command, here, run):
    (here / "file").write_text("kept")
    code, out, error = run(*command, "--out", "file/a.html")
    assert (code, out) == (2, "")
    assert error.startswith("thalweg: Invalid value for --out: cannot write file/a.html")
    assert error.count("\n") == 1
    assert [p.name for p in here.iterdir()] == ["file"]
    assert (here / "file").read_text() == "kept"


def test_batch_says_a_size_and_writes_page_and_record(here, run, opened):
    code, out, error = run("batch", "wine", *SMALL, "--optimizer", "sgd")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    rows = [line for line in lines if line.split()[0] in ("8", "32", "96")]
    assert [line.split()[0] for line in rows] == ["8", "32", "96"]
    assert sum("←" in line for line in rows) == 1
    assert any(line.startswith("Use ") for line in lines)
    assert lines[-2:] == ["Page: thalweg-batch-wine.html", "Record: thalweg.db"]
    assert {p.name for p in here.iterdir()} >= {"thalweg-batch-wine.html", "thalweg.db"}
    page, trouble = opened(here / "thalweg-batch-wine.html")
    assert trouble == []
    assert page.title() == "Batch size for wine"
    assert page.locator(".js-plotly-plot").count() == 2
    text = page.locator("body").inner_text()
    assert "Use " in text
    assert "How it was done" in text


def test_batch_as_json(here, run):
    options = ["--target-metric", "0.5", "--max", "100", "--db", "own.db", "--out", "b.html"]
    code, out, error = run("batch", "wine", *SMALL, *options, "--json")
    assert code == 0
    assert error == "Page: b.html\nRecord: own.db\n"
    found = json.loads(out)
    assert set(found) == {
        "task", "optimizer", "recommended", "why", "target", "reference", "table", "noise_scale",
        "critical", "largest", "notes", "database",
    }  # fmt: skip
    assert (found["task"], found["optimizer"], found["target"]) == ("wine", "Adam", 0.5)
    assert found["reference"] == 32
    assert found["largest"]["size"] == 100
    assert [row["batch_size"] for row in found["table"]] == [8, 32, 96]
    columns = " ".join(BatchSizes.__doc__.split())
    for column in found["table"][0]:
        assert column in columns or column.replace("sqrt_", "linear_") in columns
    # 96 is three times 32: the rates of the rules are not among those that were tuned over.
    assert 0 <= found["table"][2]["linear_metric"] <= 1
    assert math.isfinite(found["table"][1]["linear_metric"])
    assert {p.name for p in here.iterdir()} >= {"b.html", "own.db"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wines"], "TASK"),
        (["wine", "--optimizer", "adm"], "--optimizer: there is no 'adm'; did you mean adam"),
        (["wine", "--sizes", "8"], "--sizes: give at least two to compare, got [8]"),
        (["wine", "--sizes", "8,x"], "--sizes: '8,x' is no list of whole numbers from 1; write"),
        (["wine", "--sizes", "0,8"], "--sizes: '0,8' is no list of whole numbers from 1; write"),
        (["wine", "--sizes", ","], "--sizes: ',' is no list of whole numbers from 1; write"),
        (["wine", "--sizes", "8,999"], "--sizes: 999 is more than the 106 training samples"),
        (["wine", "--sizes", "8,64", "--max", "32"], "--sizes: 64 is more than the maximum, 32"),
        (["wine", "--max", "0"], "--max: must be a whole number of at least 1, got 0"),
        (["wine", "--max", "1"], "--sizes: at most 1 samples can be had"),
        (["wine", "--epochs", "0"], "--epochs: must be a whole number of at least 1, got 0"),
        (["wine", "--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["wine", *SMALL, "--target-metric", "2"], "--target-metric: 2 is no accuracy; give a"),
        (["wine", "--device", "gpu"], "--device: must be cpu or cuda, got 'gpu'"),
        (["wine", "--out", "."], "--out: . is a folder"),
        (["wine", "--nonsense"], "--nonsense"),
    ],
)
def test_batch_bad_values_get_one_line_and_exit_code_2(arguments, message, here, run):
    code, out, error = run("batch", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


def test_both_are_helped_with(run):
    for command in ("lr", "batch"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "--json" in out
