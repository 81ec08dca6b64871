"""What a first batch says, against hand arithmetic; and what is in its way, with its line."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.trial import first_batch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 5))
CLASSES = RNG.integers(0, 3, 100)
NUMBERS = RNG.normal(size=100)
SHARED = nn.Linear(5, 3)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        return self.inner(x).log()  # of what may be negative


class TwoSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 3)
        self.second = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden)  # does not fit


class Nothing(nn.Linear):
    def forward(self, x):
        super().forward(x)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)
        self.register_buffer("kept", torch.zeros(7))
        self.used.bias.requires_grad_(False)

    def forward(self, x):
        return self.used(x)


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("width")  # in the factory


class Root(nn.Linear):
    def forward(self, x):
        return (super().forward(x) * 0).sqrt()  # has no slope at 0


class Evaluates(nn.Linear):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x[:, :4])  # evaluation


def linear(outputs=3):
    return partial(nn.Linear, 5, outputs)


def line(text):
    """Where a text stands in this file, the first time."""
    rows = Path(__file__).read_text().splitlines()
    return f"test_trial.py:{next(i for i, row in enumerate(rows, 1) if text in row)}"


def vector(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def raises(outputs, y):
    return outputs.nothing  # an attribute


def test_numbers_of_a_batch():
    found = first_batch(load("digits"))
    assert found.parameters == found.trainable == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert found.expected_loss == pytest.approx(math.log(10), rel=1e-6)
    assert abs(found.loss - math.log(10)) < 0.2
    assert [str(kind) for kind in (*found.inputs, *found.outputs, *found.targets)] == [
        "(32, 64) float32",
        "(32, 10) float32",
        "(32,) int64",
    ]
    found = first_batch(Task(model=Unused, train=(X, CLASSES)))
    assert (found.parameters, found.trainable, found.buffers) == (24, 21, 7)
    assert found.unused == ("unused.weight", "unused.bias")


def test_expected_loss_and_gradient_of_a_linear_model():
    y = 100 + NUMBERS[:, None]
    task = Task(model=linear(1), train=(X, y), validation=(X, y), test=(X, y), batch_size=100)
    found = first_batch(task)
    assert found.expected_loss == pytest.approx(NUMBERS.var(), rel=1e-4)
    torch.manual_seed(0)
    model = nn.Linear(5, 1).double()
    torch.manual_seed(0)
    model.load_state_dict(nn.Linear(5, 1).state_dict())
    residual = model(torch.tensor(X)).detach().numpy() - y
    assert found.loss == pytest.approx((residual**2).mean(), rel=1e-5)
    slope = 2 * np.append(X.T @ residual, residual.sum()) / 100
    assert found.gradient_norm == pytest.approx(np.linalg.norm(slope), rel=1e-5)


def test_the_random_state_stays_and_no_warning_is_given():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first_batch(load("wine"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sum_is_told_from_a_mean():
    def total(outputs, y):
        return F.cross_entropy(outputs, y, reduction="sum")

    assert not first_batch(Task(model=linear(), train=(X, CLASSES), loss=total)).is_mean
    assert first_batch(Task(model=linear(), train=(X, CLASSES))).is_mean


@pytest.mark.parametrize(
    "options",
    [
        {"loss": F.cross_entropy},
        {"loss": lambda o, y: F.cross_entropy(o, torch.where(y == 0, -100, y))},
        {"train": ((X, X), CLASSES), "model": lambda: nn.Bilinear(5, 5, 3)},
        {"train": ({"input": X}, CLASSES)},
        {
            "train": (X, NUMBERS),
            "model": linear(1),
            "loss": lambda o, y: F.l1_loss(o.squeeze(-1), y),
            "metric": lambda o, y: (o[:, 0] - y).abs().mean(),
        },
        {"train": (torch.tensor(X), CLASSES), "model": lambda: nn.Linear(5, 3).double()},
    ],
)
def test_what_is_sound_passes(options):
    first_batch(Task(**({"model": linear(), "train": (X, CLASSES)} | options)))


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"model": lambda: SHARED}, "gives the same module at every call", "lambda: SHARED"),
        (
            {"model": lambda: nn.Sequential(SHARED)},
            r"modules that share 0\.weight",
            "nn.Sequential(SHARED)",
        ),
        ({"model": lambda: None}, r"returned None, and not a torch\.nn\.Module", "lambda: None"),
        ({"model": Fails}, r"factory raises KeyError: 'width'", "# in the factory"),
        ({"model": lambda n: n}, "cannot be called without arguments", "lambda n: n"),
        ({"model": lambda: nn.LazyLinear(3)}, "has lazy layers", "nn.LazyLinear(3)"),
        ({"model": lambda: nn.ReLU()}, "has no parameters to train", "nn.ReLU()"),
        (
            {"model": TwoSizes},
            r"cannot be multiplied \(32x3 and 4x3\) in layer second \(Linear\(in_features=4.* "
            r"at .*its inputs were \(32, 5\) float32",
            "# does not fit",
        ),
        ({"model": Logarithm}, r"outputs .* are NaN or infinite at the very start", ""),
        (
            {"model": lambda: Evaluates(5, 3)},
            "in evaluation mode on the test data",
            "# evaluation",
        ),
        ({"model": lambda: Nothing(5, 3)}, "returned None, and no tensor; is a return", ""),
        ({"model": lambda: Root(5, 3), "loss": lambda o, y: o.mean()}, "gradient of .* is NaN", ""),
        ({"loss": vector}, r"shape \(32,\), and not one number; .*loss\.mean", "def vector"),
        ({"loss": raises}, "loss raises raises AttributeError", "# an attribute"),
        ({"loss": lambda o, y: o.mean().item()}, "returned a float, and not a tensor", ".item()}"),
        ({"loss": lambda o, y: o.detach().mean()}, "does not depend on the parameters", "o.detach"),
        ({"loss": lambda o, y: o.log().mean()}, "is nan at the very start", "o.log()"),
        ({"train": (X, CLASSES + 10)}, r"train data go up to 12, and the model has 3 outputs", ""),
        ({"train": (X, CLASSES - 1)}, r"go down to -1, and the model has 3 outputs", ""),
        (
            {"test": (X, CLASSES + 1), "loss": F.cross_entropy},
            r"targets of the test data go up to 3, and the model has 3 outputs, for the classes 0 "
            r"to 2",
            "",
        ),
        (
            {"train": (X, NUMBERS), "model": linear(1)},
            r"mse compares outputs with targets of the same shape; the outputs are \(32, 1\) and "
            r"the targets \(32,\): give targets\.unsqueeze\(-1\)",
            "",
        ),
        ({"train": (X, CLASSES * 1.0), "loss": F.cross_entropy}, r"give y\.astype\('int64'\)", ""),
        ({"train": (torch.tensor(X), CLASSES)}, r"float64, while the weights are float32", ""),
        ({"train": ((9 * X).astype(int), CLASSES)}, r"give x\.float\(\)", ""),
        ({"model": lambda: nn.Embedding(5, 3)}, r"an embedding takes integers", ""),
        ({"train": ((X, X), CLASSES)}, r"a tuple gives a model several inputs", ""),
        (
            {"metric": lambda o, y: o.argmax(-1) == y},
            r"metric <lambda> .*shape \(\d+,\), and not one number",
            "o.argmax(-1) == y}",
        ),
        ({"metric": lambda o, y: (o.argmax(-1) == y).sum()}, "int64, a count", "y).sum()}"),
        ({"metric": lambda o, y: 0.5}, "returned a float, and not a tensor", "y: 0.5"),
    ],
)
def test_what_is_in_the_way_is_one_sentence_with_its_line(options, message, where):
    task = Task(**({"model": linear(), "train": (X, CLASSES)} | options))
    with pytest.raises(TaskError, match=message) as caught:
        first_batch(task)
    assert caught.value.argument == "task"
    assert "\n" not in str(caught.value)
    if where:
        assert line(where) in str(caught.value)
