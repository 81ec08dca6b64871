"""Modules of a person's own at the command line: what it says of their models, losses, metrics."""

import pytest

QUICK = ["--optimizers", "adam", "--lr", "0.01", "--seeds", "2", "--epochs", "2"]

START = """\
import torch
from torch import nn

import thalweg

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long()
NUMBERS = X[:, :1] * 2


def model(outputs=2):
    return lambda: nn.Linear(4, outputs)


"""


@pytest.fixture
def module(here):
    """Write a module after `START`; what names its function ``task``."""

    def write(text, name="mine.py"):
        (here / name).write_text(START + text)
        return f"{name}:task"

    return write


def test_what_looks_like_markup_is_printed_as_it_is(module, run):
    own = module(
        "def masked(o, y):\n"
        "    k = y >= 0\n"
        "    return nn.functional.cross_entropy(o[k], y[k])  # see [/docs]\n\n\n"
        "def task():\n"
        "    return thalweg.Task(\n"
        "        model=model(), train=(X, CLASSES), loss=masked, name='da[red]ta'\n"
        "    )\n"
    )
    code, out, error = run("study", own, *QUICK, "--name", "da")
    assert code == 0, error
    assert "(o[k],y[k])#see[/docs]`" in "".join(out.split())


ERROR = "def own_mae(o, y):\n    return (o - y).abs().mean()\n\n\n"
TOKENS = """\
WORDS = torch.arange(360).reshape(120, 3) % 50


def embed():
    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(24, 2))


def task():
    words, valid = WORDS.clone(), WORDS[:40].clone()
    {part}[35, 1] = 77
    return thalweg.Task(
        model=embed,
        train=(words, CLASSES),
        validation=(valid, CLASSES[:40]),
        test=(WORDS[:40], CLASSES[:40]),
    )
"""
LATE = """\
class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 40:
            raise RuntimeError("late trouble")
        return self.layer(x)


def task():
    return thalweg.Task(model=Late, train=(X, CLASSES))
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def task():\n"
            "    whole = (X[:, 0] * 10).long()\n"
            "    square = lambda o, y: ((o - y) ** 2).mean()\n"
            "    return thalweg.Task(model=model(1), train=(X, whole), loss=square)\n",
            ["compares every output with every target; give y.float().unsqueeze(1) as targets"],
        ),
        (
            ERROR + "def task():\n"
            "    return thalweg.Task(model=model(1), train=(X, NUMBERS), metric=own_mae)\n",
            [
                "own_mae sounds like an error",
                "thalweg.Metric('own_mae', own_mae, higher_is_better=False)",
            ],
        ),
        (TOKENS.format(part="words"), ["on the train data", "go from 0 to 77", "give it 78"]),
        (TOKENS.format(part="valid"), ["on the validation data", "has 50 rows"]),
    ],
    ids=["crosswise", "error", "train", "validation"],
)
def test_what_would_go_wrong_later_is_refused_first(text, said, module, run, here):
    code, out, error = run("study", module(text), *QUICK)
    assert (code, out) == (2, "")
    assert error.startswith("thalweg: Invalid value for TASK: ")
    assert error.count("\n") == 1
    for words in said:
        assert words in error
    assert [path.name for path in here.iterdir() if path.is_file()] == ["mine.py"]


def test_an_accuracy_of_integers_is_not_taken_for_crosswise(module, run):
    """Which guesses, swapped, are right as often by chance."""
    own = module(
        "def share(o, y):\n    return (o.argmax(-1) == y).float().mean()\n\n\n"
        "def task():\n"
        "    return thalweg.Task(\n"
        "        model=model(), train=(X, CLASSES), metric=share, batch_size=2\n"
        "    )\n"
    )
    code, out, error = run("study", own, *QUICK)
    assert code == 0, error
    assert "More of the metric share is taken for better" in " ".join(out.split())


def test_trouble_after_the_first_batch_is_one_sentence(module, run):
    own = module(LATE)
    code, out, error = run("study", own, *QUICK, "--epochs", "40")
    assert (code, out) == (2, "")
    assert error.splitlines()[-1].startswith("thalweg: Invalid value for TASK: 'mine' was in tra")
    assert "RuntimeError: late trouble at mine.py:" in error
    assert "Traceback" not in error
    code, out, error = run("check", own)
    assert (code, error) == (1, "")
    assert "late trouble at mine.py:" in " ".join(out.split())


def test_weights_that_numpy_drew_are_noted(module, run):
    own = module(
        "def drawn():\n"
        "    import numpy as np\n\n"
        "    made = model()()\n"
        "    made.weight.data = torch.tensor(np.random.randn(2, 4), dtype=torch.float32)\n"
        "    return made\n\n\n"
        "def task():\n    return thalweg.Task(model=drawn, train=(X, CLASSES))\n"
    )
    code, out, error = run("study", own, *QUICK)
    assert code == 0, error
    assert "draw them with torch and not with NumPy or Python (mine.py:" in " ".join(out.split())
