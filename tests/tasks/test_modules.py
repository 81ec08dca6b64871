"""A person's own file: what it gives, and each of its mistakes as one sentence with its line."""

import pickle
import sys

import numpy as np
import pytest
import torch

from thalweg.tasks import Task, TaskError, load, load_module

GOOD = """
import torch
from dataclasses import dataclass
import thalweg
from layers import WIDTH

@dataclass
class Settings:
    width: int = WIDTH

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, Settings().width)

def task():
    from late import SEED
    g = torch.Generator().manual_seed(SEED)
    x = torch.randn(40, 3, generator=g)
    return thalweg.Task(model=Net, train=(x, x[:, :2].argmax(-1)))

named = thalweg.Task(
    model=Net, train=(torch.eye(3).repeat(9, 1), torch.arange(27) % 2), name="mine"
)
"""


@pytest.fixture
def folder(tmp_path):
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def write(folder, name="mine.py", text=GOOD, width=2):
    (folder / "layers.py").write_text(f"WIDTH = {width}\n")
    (folder / "late.py").write_text("SEED = 1\n")
    (folder / name).write_text(text)
    return folder / name


def test_a_function_in_a_file(folder):
    path, before = write(folder), list(sys.path)
    task = load_module(f"{path}:task")
    assert isinstance(task, Task)
    assert (task.name, task.title) == ("mine", "mine")
    assert len(task.train) == 24
    assert sys.path == before
    module = task.model()
    assert torch.equal(pickle.loads(pickle.dumps(module)).weight, module.weight)
    assert load(f"{path}:named").name == "mine"
    other = write(folder, "two.py", GOOD + "def wide():\n    return task()\n")
    assert load(f"{other}:wide").name == load(f"{other}:wide").title == "two-wide"
    assert load(f"{path}:task").fingerprint == task.fingerprint
    path.write_text(GOOD.replace("x[:, :2]", "-x[:, :2]"))
    assert load_module(f"{path}:task").fingerprint != task.fingerprint


def test_siblings_are_those_of_the_file(folder):
    for width, name in ((2, "a"), (5, "b")):
        (folder / name).mkdir()
        write(folder / name, width=width)
    found = [load_module(f"{folder / name / 'mine.py'}:task").model() for name in "ab"]
    assert [model.out_features for model in found] == [2, 5]


@pytest.mark.parametrize("name", ["random.py", "torch.py", "my task.py", "json.py"])
def test_a_file_named_like_a_library_replaces_nothing(folder, name):
    import random

    text = (
        GOOD if name != "torch.py" else GOOD.replace("import torch\n", "import torch\ntorch.nn\n")
    )
    path = write(folder, name, text)
    if name == "torch.py":
        assert torch is sys.modules["torch"]
    assert load_module(f"{path}:task").name == path.stem
    assert sys.modules["random"] is random
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (GOOD, "tsk", r"mine.py has no 'tsk'; did you mean task\? it has task, named"),
        (GOOD, "zzz", r"mine.py has no 'zzz'; it has task, named"),
        ("x = 1\n", "x", "mine.py:x is a int; it must be a function that returns"),
        ("import os\n\n1 / 0\n", "task", "mine.py:3 raises ZeroDivisionError: division by zero"),
        ("def task():\n    return (\n", "task", r"mine.py:2 raises SyntaxError: '\(' was never"),
        ("import nothere\n", "task", "mine.py:1 raises ModuleNotFoundError: .*; install it"),
        ("import sys\nsys.exit(3)\n", "task", r"mine.py:2 ends Python .*SystemExit: 3.*__main__"),
        ("def task():\n    sum(3)\n", "task", r"mine.py:2 raises TypeError: .* in task\(\)"),
        ("def task():\n    exit(0)\n", "task", "mine.py:2 ends Python"),
        ("def task(n):\n    pass\n", "task", "mine.py:task cannot be called without arguments"),
        ("def task():\n    pass\n", "task", r"returned None \(is a return missing\?\); it must"),
        ("def task():\n    return 3\n", "task", "mine.py:task returned a int; it must return a"),
        (
            "import thalweg, torch\ndef task():\n    return thalweg.Task(\n"
            "        model=lambda: torch.nn.Linear(1, 1), train=([[1.0]], [1.0, 2.0]))\n",
            "task",
            "mine.py:3: train: has 1 inputs and 2 targets",
        ),
        ("import json\njson.loads('{')\n", "task", "mine.py:2 raises JSONDecodeError"),
    ],
)
def test_mistakes_name_their_line(folder, text, name, message):
    path, before = write(folder, text=text), list(sys.path)
    with pytest.raises(TaskError, match=message) as caught:
        load_module(f"{path}:{name}")
    assert caught.value.argument == "task"
    assert "\n" not in str(caught.value)
    assert sys.path == before


def test_mistakes_in_a_sibling_name_its_line(folder):
    path = write(folder)
    (folder / "layers.py").write_text("\n\nWIDTH = undefined\n")
    # The person's file comes first: its own line is the one that led there.
    with pytest.raises(TaskError, match=r"mine.py:5 raises NameError"):
        load_module(f"{path}:task")


def test_paths_that_lead_nowhere(folder):
    path = write(folder)
    with pytest.raises(TaskError, match=r"there is no file .*min.py; did you mean mine.py"):
        load_module(f"{folder / 'min.py'}:task")
    with pytest.raises(TaskError, match=r"does not say which function .* the file has task"):
        load(str(path))
    with pytest.raises(TaskError, match="does not say which function"):
        load(f"{path}:")
    with pytest.raises(TaskError, match="is a folder"):
        load_module(f"{folder}:task")
    with pytest.raises(TaskError, match=r"thalweg.table\('a.csv', COLUMN\)"):
        load("a.csv")
    with pytest.raises(TaskError, match="there is no task 'nothing'; there are digits"):
        load("nothing")


def test_an_interruption_passes(folder):
    path = write(folder, text="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_module(f"{path}:task")


def test_an_archive_is_a_task(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (90, 4, 4), dtype=np.uint8)
    y = np.repeat([3, 7, 11], 30)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    task = load(str(tmp_path / "a.npz"))
    assert (task.name, task.loss.name, task.metric.name) == ("a", "cross_entropy", "accuracy")
    assert task.train.x.shape == (54, 16)
    assert task.train.x.mean(0).abs().max() < 1e-5
    assert sorted(set(task.train.y.tolist())) == [0, 1, 2]
    assert task.model()(task.train.x).shape == (54, 3)
    np.savez(
        tmp_path / "b.npz", x_train=x, y_train=x[:, 0, 0] * 2.5, x_val=x[:9], y_val=y[:9] * 1.0
    )
    task = load(str(tmp_path / "b.npz"))
    assert (task.loss.name, len(task.validation), len(task.test)) == ("mse", 9, 18)
    assert task.model()(task.train.x).shape == task.train.y.shape == (72, 1)
    assert abs(task.train.y.std(0, correction=0).item() - 1) < 1e-5
    np.savez(tmp_path / "c.npz", x_train=x)
    with pytest.raises(TaskError, match=r"c.npz has x_train alone; each part needs x and y"):
        load(str(tmp_path / "c.npz"))
    np.savez(tmp_path / "d.npz", a=x, b=y)
    with pytest.raises(TaskError, match=r"needs arrays x and y, or x_train and y_train; it has a"):
        load(str(tmp_path / "d.npz"))
