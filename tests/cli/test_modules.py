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
    assert (code, error) == (0, "")
    assert "(o[k],y[k])#see[/docs]`" in "".join(out.split())
