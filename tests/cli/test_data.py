"""What a person brings, as they type it: tables, arrays, a module; and what is wrong with it.

In this process, as each start of another costs seconds; `test_cli` has the command as such.
"""

import csv
import gzip
import json
import pickle
import sqlite3

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

QUICK = ["--optimizers", "adam,sgd", "--lr", "0.003,0.03", "--seeds", "2", "--epochs", "3"]


def iris(path):
    """The real table, with the names of its classes and a nominal column made of a measure."""
    data = datasets.load_iris(as_frame=True)
    frame = data.frame.rename(columns=lambda c: c.removesuffix(" (cm)"))
    frame["species"] = data.target_names[frame.pop("target")]
    frame["width"] = np.where(frame["sepal width"] > 3, "wide", "narrow")
    frame.to_csv(path, index=False)
    return frame


def test_from_a_table_to_predictions(here, run):
    frame = iris(here / "iris.csv")
    code, out, error = run("study", "iris.csv", "--target", "species", *QUICK)
    assert code == 0, error
    # The types are shown, so that a person can correct them.
    for column in frame:
        assert column in error
    for kind in ("numeric", "nominal", "target"):
        assert kind in error
    assert out.splitlines()[-3:] == [
        "Report: thalweg-iris.html",
        "Model: thalweg-iris.model",
        "Record: thalweg.db",
    ]
    new = frame.drop(columns="species").iloc[[0, 60, 140], ::-1]
    new.to_csv("new.csv", index=False)
    code, out, error = run("predict", "iris", "new.csv")
    assert code == 0, error
    said = list(csv.DictReader(out.splitlines()))
    assert [row["prediction"] for row in said] == ["setosa", "versicolor", "virginica"]
    for row in said:
        shares = [float(v) for k, v in row.items() if k.startswith("probability of ")]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    code, out, _ = run("predict", "thalweg-iris.model", "new.csv", "--out", "deep/said.csv")
    assert (code, out) == (0, "Predictions: deep/said.csv\n")
    assert list(pd.read_csv("deep/said.csv")["prediction"]) == [r["prediction"] for r in said]


def test_numbers_are_predicted_in_their_own_units(here, run):
    frame = datasets.load_diabetes(as_frame=True, scaled=False).frame
    frame.to_parquet("d.parquet")
    code, out, error = run(
        "study", "d.parquet", "--target", "target", *QUICK[:-1], "20", "--hidden", "16", "--json"
    )
    assert code == 0, error
    found = json.loads(out)
    assert found["task"]["parameters"] == 10 * 16 + 16 + 16 + 1
    code, out, _ = run("predict", "d", "d.parquet")
    predicted = pd.read_csv(pd.io.common.StringIO(out))["prediction"]
    assert np.corrcoef(predicted, frame["target"])[0, 1] > 0.6
    assert 100 < predicted.mean() < 200  # the mean of what was measured is 152


MODULE = """
import torch
from torch import nn
import thalweg

def task():
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    y = (x.sum(1) > 0).long()
    return thalweg.Task(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
        train=(x[:200], y[:200]), validation=(x[200:250], y[200:250]), test=(x[250:], y[250:]),
        loss=nn.functional.cross_entropy, metric="accuracy",
    )
"""


def test_a_persons_module(here, run):
    (here / "mine.py").write_text(MODULE)
    code, out, error = run("study", "mine.py:task", *QUICK, "--losses", "cross_entropy,mse")
    assert code == 0, error
    assert "Report: thalweg-mine.html" in out
    assert "mse" in out
    with sqlite3.connect("thalweg.db") as connection:
        assert connection.execute("select count(*) from outcomes").fetchone() == (16,)
        assert dict(connection.execute("select loss, count(*) from outcomes group by loss")) == {
            "cross_entropy": 8,
            "mse": 8,
        }
    code, out, error = run("check", "mine.py:task")
    assert code == 0, error
    assert "58" in out  # parameters: 4 x 8 + 8 + 8 x 2 + 2


def test_arrays(here, run):
    x, y = datasets.load_wine(return_X_y=True)
    np.savez("wine.npz", x=x, y=y)
    code, out, error = run("study", "wine.npz", *QUICK)
    assert code == 0, error
    assert "Report: thalweg-wine.html" in out


def test_two_encodings_of_the_same_column(here, run):
    frame = iris(here / "iris.csv")
    assert frame["width"].nunique() == 2
    code, out, error = run(
        "study",
        "iris.csv",
        "--target",
        "species",
        "--encodings",
        "onehot,ordinal",
        "--json",
        *QUICK,
    )
    assert code == 0, error
    effects = [row for row in json.loads(out)["effects"] if row["factor"] == "encoding"]
    by_level = {row["level"]: row for row in effects}
    assert set(by_level) == {"onehot", "ordinal"}
    # One column more in the first layer: 64 weights.
    assert by_level["onehot"]["parameters"] == by_level["ordinal"]["parameters"] + 64


ROWS = [["size", "price", "color"]] + [
    [str(i % 7), str(10 * (i % 7) + i % 3), ("red", "blue", "green")[i % 3]] for i in range(60)
]


def text(rows, delimiter=","):
    return "".join(delimiter.join(row) + "\n" for row in rows)


def changed(line, column, value):
    rows = [list(row) for row in ROWS]
    rows[line - 1][ROWS[0].index(column)] = value
    return text(rows)


def with_column(name, value):
    """The table with one more column."""
    return text([[*row, name if i == 0 else value(i)] for i, row in enumerate(ROWS)])


# File, its content, options, and what the one line has to say.
TABLES = {
    "empty file": ("a.csv", "", ["--target", "price"], ["a.csv", "empty"]),
    "header only": ("a.csv", "size,price\n", ["--target", "price"], ["a.csv", "header", "no rows"]),
    "wrong delimiter": (
        "a.csv",
        text(ROWS, ";"),
        ["--target", "price"],
        ["a.csv", "--delimiter", "';'"],
    ),
    "no such column": (
        "a.csv",
        text(ROWS),
        ["--target", "prize"],
        ["--target", "'prize'", "price"],
    ),
    "no target said": ("a.csv", text(ROWS), [], ["--target", "a.csv", "color"]),
    "constant target": (
        "a.csv",
        with_column("one", lambda i: "1"),
        ["--target", "one"],
        ["a.csv", "'one'", "'1' in all rows"],
    ),
    "target unique in each row": (
        "a.csv",
        with_column("name", lambda i: f"n{i}"),
        ["--target", "name"],
        ["a.csv", "'name'", "another value in each"],
    ),
    "empty column": (
        "a.csv",
        with_column("nothing", lambda i: ""),
        ["--target", "price"],
        ["a.csv", "'nothing'", "--drop nothing"],
    ),
    "infinite": (
        "a.csv",
        changed(17, "size", "inf"),
        ["--target", "price"],
        ["a.csv", "line 17", "'size'", "inf"],
    ),
    "mixed types": (
        "a.csv",
        changed(23, "size", "large"),
        ["--target", "price"],
        ["a.csv", "line 23", "'size'", "'large'", "--nominal size"],
    ),
    "the same name twice": (
        "a.csv",
        with_column("size", str),
        ["--target", "price"],
        ["a.csv", "'size'", "more than once"],
    ),
    "not UTF-8": (
        "a.csv",
        changed(9, "color", "grün").encode("latin-1"),
        ["--target", "price"],
        ["a.csv", "line 9", "--charset latin-1"],
    ),
    "a class with one sample": (
        "a.csv",
        changed(31, "color", "violet"),
        ["--target", "color"],
        ["a.csv", "'color'", "'violet'", "line 31"],
    ),
    "too many fields": (
        "a.csv",
        text([*ROWS[:12], [*ROWS[12], "more"], *ROWS[13:]]),
        ["--target", "price"],
        ["a.csv", "line 13", "4", "3"],
    ),
    "too few fields": (
        "a.csv",
        text([*ROWS[:12], ROWS[12][:2], *ROWS[13:]]),
        ["--target", "price"],
        ["a.csv", "line 13", "2", "3"],
    ),
    "pickled": (
        "a.pkl",
        pickle.dumps(pd.DataFrame({"x": [1, 2]})),
        ["--target", "x"],
        ["a.pkl", "--trust-pickle"],
    ),
    "a spreadsheet": ("a.xlsx", b"PK", ["--target", "x"], ["a.xlsx", "CSV"]),
    "no Parquet": ("a.parquet", b"PAR1 not really", ["--target", "x"], ["a.parquet"]),
    "compressed junk": ("a.csv.gz", b"no gzip", ["--target", "x"], ["a.csv.gz"]),
    "binary": ("a.csv", bytes(range(256)) * 9, ["--target", "x"], ["a.csv"]),
    "unknown column dropped": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--drop", "colour"],
        ["--drop", "'colour'", "color"],
    ),
    "no order": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--ordinal", "color"],
        ["--ordinal", "color"],
    ),
    "outside the order": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--ordinal", "color=red<blue"],
        ["--ordinal", "'green'", "a.csv"],
    ),
    "no widths": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--hidden", "64,x"],
        ["--hidden", "'64,x'"],
    ),
    "no such encoding": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--encodings", "onehot,twohot"],
        ["--encodings", "'twohot'", "ordinal"],
    ),
    "no such loss": (
        "a.csv",
        text(ROWS),
        ["--target", "color", "--losses", "cross_entropie"],
        ["--losses", "'cross_entropie'", "cross_entropy"],
    ),
    "a loss of numbers on classes' names": (
        "a.csv",
        text(ROWS),
        ["--target", "price", "--losses", "focal"],
        ["--losses", "focal"],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_used(case, here, run):
    name, content, options, said = TABLES[case]
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(run("study", name, *options, *QUICK[2:]), said)
    assert [p.name for p in here.iterdir()] == [name]


def refused(done, said):
    code, out, error = done
    assert code == 2, error
    assert out == ""
    last = error.splitlines()[-1]
    assert last.startswith("thalweg: ")
    assert "Traceback" not in error
    assert not [part for part in said if part not in last], last


# What stands in a person's module instead of what is right, the word by which its line is known,
# and what the one line has to say.
MODULES = {
    "raises on import": (
        ("import thalweg", "import thalweg\n1 / 0  # here"),
        ["ZeroDivisionError"],
    ),
    "does not parse": (("def task():", "def task(:  # here"), ["SyntaxError"]),
    "a missing package": (("import thalweg", "import thalweg, nosuch  # here"), ["nosuch"]),
    "leaves": (("import thalweg", "import thalweg, sys; sys.exit(3)  # here"), ["ends Python"]),
    "another name": (("def task", "def tusk"), ["'task'", "tusk"]),
    "returns nothing": (("return thalweg", "thalweg"), ["thalweg.Task", "None"]),
    "wants an argument": (("def task()", "def task(folder)"), ["folder"]),
    "loss of every sample": (
        ("loss=nn.functional.cross_entropy,", "loss=nn.CrossEntropyLoss(reduction='none'),"),
        ["(32,)", "mean"],
    ),
    "the model gives NaN": (
        (
            "nn.Linear(8, 2)",
            "nn.Linear(8, 2), type('Bad', (nn.Module,), "
            "{'forward': lambda self, x: x * float('nan')})()",
        ),
        ["NaN"],
    ),
    "the shapes do not fit": (("nn.Linear(4, 8)", "nn.Linear(5, 8)"), ["(32, 4)"]),
    "too few outputs": (("y = (x.sum(1) > 0).long()", "y = (x.sum(1) > 0).long() + 3"), ["2", "4"]),
    "nothing to train on": (
        ("train=(x[:200], y[:200])", "train=(x[:0], y[:0])"),
        ["train"],
    ),
    "data that is not finite": (
        ("x = torch.randn(300, 4)", "x = torch.randn(300, 4); x[7, 1] = float('nan')"),
        ["train", "7"],
    ),
    "more targets than inputs": (
        ("train=(x[:200], y[:200])", "train=(x[:200], y)"),
        ["200", "300"],
    ),
    "a model instead of its maker": (
        ("model=lambda: nn.", "model=nn."),
        ["function", "Sequential"],
    ),
}


@pytest.mark.parametrize("command", ["study", "check"])
@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_cannot_be_used(case, command, here, run):
    (old, new), said = MODULES[case]
    assert old in MODULE
    source = MODULE.replace(old, new)
    (here / "mine.py").write_text(source)
    if "# here" in source:
        line = next(i for i, text in enumerate(source.splitlines(), 1) if "# here" in text)
        said = [*said, f"mine.py:{line}"]
    code, out, error = run(command, "mine.py:task")
    if command == "check" and not error:  # that lists what it found, on standard output
        assert "fail" in out
        out, error = "", "thalweg: " + " ".join(out.split())
    refused((code, out, error), [*said, "mine.py"])
    assert {p.name for p in here.iterdir()} <= {"mine.py", "__pycache__"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.csv", ["no file nowhere.csv"]),
        ("nowhere.py:task", ["nowhere.py"]),
        ("nowhere.npz", ["nowhere.npz"]),
        ("mnist", ["MNIST", "--folder"]),
        ("digitz", ["'digitz'", "digits"]),
    ],
)
def test_a_task_that_is_not_there(name, said, here, run):
    refused(run("study", name, "--target", "0.5"), said)
    assert list(here.iterdir()) == []


def test_options_of_tables_are_for_tables(here, run):
    refused(run("study", "digits", "--nominal", "color"), ["--nominal", "a table", "'digits'"])
    refused(run("study", "digits", "--network", "cnn"), ["--network", "images"])
    refused(run("study", "digits", "--target", "price"), ["--target", "'price'"])
    refused(run("study", "digits", "--model", "a.model"), ["--model", "a table"])


def test_predictions_that_cannot_be_had(here, run):
    frame = iris(here / "iris.csv")
    run("study", "iris.csv", "--target", "species", *QUICK)
    frame.drop(columns=["sepal width", "species"]).to_csv("few.csv", index=False)
    refused(run("predict", "iris", "few.csv"), ["few.csv", "'sepal width'"])
    refused(run("predict", "nothing", "iris.csv"), ["MODEL", "nothing"])
    refused(run("predict", "iris.csv", "iris.csv"), ["MODEL", "iris.csv"])
    refused(run("predict", "iris", "nowhere.csv"), ["nowhere.csv"])
    (here / "bad.model").write_bytes((here / "thalweg-iris.model").read_bytes()[:1000])
    refused(run("predict", "bad.model", "iris.csv"), ["MODEL", "bad.model"])
    with gzip.open("evil.model", "wb") as file:
        pickle.dump(frame, file)
    refused(run("predict", "evil.model", "iris.csv"), ["MODEL", "evil.model"])
