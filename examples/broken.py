"""Trainings that go wrong, each for one reason, and some that do not.

    thalweg diagnose examples/broken.py:dead_relu

The ten that `benchmarks/RESULTS.md` has a table of, and others. Three need no task of their own:

    thalweg diagnose digits --lr 1
    thalweg diagnose digits --lr 1e-6
    thalweg diagnose digits --batch-size 1077
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.tasks import Split, Task, load
from thalweg.tasks.networks import mlp


def _raw_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)


def _digits(**changed: object) -> Task:
    task = load("digits")
    given = {
        "model": task.model,
        "train": task.train,
        "validation": task.validation,
        "test": task.test,
        "loss": task.loss,
        "metric": task.metric,
    }
    return Task(**{**given, **changed})  # type: ignore[arg-type]


def deep_tanh() -> Task:
    """Thirty layers of tanh, initialised as torch does by default."""

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        width = 64
        for _ in range(30):
            layers += [nn.Linear(width, 64), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return _digits(model=model, name="deep_tanh")


def dead_relu() -> Task:
    """Biases so low that no unit is ever active."""

    def model() -> nn.Module:
        network = mlp(64, 64, 64, 10)()
        for layer in list(network)[:-1]:  # type: ignore[arg-type]
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, -20.0)
        return network

    return _digits(model=model, name="dead_relu")


def not_normalised() -> Task:
    """Wine as it was measured: from 0.1 to 1,700."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    return Task(
        model=mlp(13, 32, 32, 3),
        train=(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)),
        name="not_normalised",
    )


def shuffled_labels() -> Task:
    """Digits with somebody else's labels."""
    x, y = _raw_digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return Task(model=mlp(64, 64, 64, 10), train=(x / 16 - 0.3, y[order]), name="shuffled_labels")


def number_for_class() -> Task:
    """Classes predicted as one number, by the squared error."""
    task = load("digits")

    def of(split: Split) -> Split:
        return Split(split.x, split.y.float().unsqueeze(1))

    return Task(
        model=mlp(64, 64, 64, 1),
        train=of(task.train),
        validation=of(task.validation),
        test=of(task.test),
        loss="mse",
        name="number_for_class",
    )


def softmax_twice() -> Task:
    """A softmax at the end, and a cross-entropy that takes its own."""

    def model() -> nn.Module:
        return nn.Sequential(*mlp(64, 64, 64, 10)(), nn.Softmax(-1))

    return _digits(model=model, name="softmax_twice")


def negative_likelihood() -> Task:
    """The negative logarithm of likelihoods that are none: a loss without a bottom."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(outputs, y)

    return _digits(loss=loss, name="negative_likelihood")


def zero_weights() -> Task:
    """All weights and biases at 0."""

    def model() -> nn.Module:
        network = mlp(64, 64, 64, 10)()
        for p in network.parameters():
            nn.init.zeros_(p)
        return network

    return _digits(model=model, name="zero_weights")


def missing_values() -> Task:
    """A few values of digits that were never measured."""
    x, y = _raw_digits()
    x = x / 16
    rng = np.random.default_rng(0)
    rows = rng.choice(len(x), 20, replace=False)
    x[rows, rng.integers(0, 64, 20)] = float("nan")
    return Task(model=mlp(64, 64, 64, 10), train=(x, y), name="missing_values")


def saturated_tanh() -> Task:
    """Weights so large that every tanh is at its ends."""

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(4):
            layer = nn.Linear(64, 64)
            nn.init.normal_(layer.weight, std=3.0)
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return _digits(model=model, name="saturated_tanh")


def exploding() -> Task:
    """Weights so large that activations grow from layer to layer."""

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(10):
            layer = nn.Linear(64, 64)
            nn.init.normal_(layer.weight, std=1.0)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return _digits(model=model, name="exploding")


def at_a_saddle() -> Task:
    """Hidden units that are copies of each other: by symmetry no step makes them differ."""

    def model() -> nn.Module:
        first, last = nn.Linear(64, 32), nn.Linear(32, 10)
        with torch.no_grad():
            first.weight.copy_(first.weight[:1].expand_as(first.weight))
            first.bias.copy_(first.bias[:1].expand_as(first.bias))
            last.weight.copy_(last.weight[:, :1].expand_as(last.weight))
        return nn.Sequential(first, nn.Tanh(), last)

    return _digits(model=model, name="at_a_saddle")


def noisy_labels() -> Task:
    """Few samples, three in ten mislabelled: a large network learns them by heart."""
    task = load("digits")
    x, y = task.train[:200]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=generator) < 0.3
    drawn = torch.randint(0, 10, y.shape, generator=generator)
    return _digits(
        train=Split(x, torch.where(wrong, drawn, y)),
        model=mlp(64, 256, 256, 10),
        name="noisy_labels",
    )


def convolutions() -> Task:
    """A healthy convolutional network."""
    from thalweg.tasks.networks import cnn

    x, y = _raw_digits()
    return Task(
        model=cnn((1, 8, 8), 10), train=((x / 16).reshape(-1, 1, 8, 8), y), name="convolutions"
    )


def normalised_tanh() -> Task:
    """A healthy network of tanh with layer normalisation."""

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(6):
            layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return _digits(model=model, name="normalised_tanh")


def last_layer_zero() -> Task:
    """A healthy network whose last layer alone begins at 0."""

    def model() -> nn.Module:
        network = mlp(64, 64, 64, 10)()
        nn.init.zeros_(network[-1].weight)  # type: ignore[index]
        return network

    return _digits(model=model, name="last_layer_zero")


def infinite() -> Task:
    """Weights so large that outputs are infinite before the first step."""

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(12):
            layer = nn.Linear(64, 64)
            nn.init.normal_(layer.weight, std=1e4)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return _digits(model=model, name="infinite")


class Stubborn(nn.Module):
    """Uses its layers' weights in its own way, and saturates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)
        nn.init.normal_(self.first.weight, std=4.0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = functional.linear(x, self.first.weight, self.first.bias)
        return self.second(self.first(torch.tanh(hidden)).tanh())


def stubborn() -> Task:
    """A model that not every change can be made to."""
    return _digits(model=Stubborn, name="stubborn")
