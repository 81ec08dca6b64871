"""A real network on real data, trained by whatever takes a step, for the optimizer tests."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn

BATCH = 32


@cache
def data(dtype):
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=dtype), torch.tensor(y)


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    ).to(dtype)


def loss_of(model, step):
    x, y = data(next(model.parameters()).dtype)
    rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
    return nn.functional.cross_entropy(model(x[rows]), y[rows])


def closure(model, optimizer, step):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return evaluate


def train(model, optimizer, steps, first=0, after=lambda step: None):
    for step in range(first, first + steps):
        optimizer.step(closure(model, optimizer, step))
        after(step)
    return model


def distance(model, other):
    """Largest ‖a - b‖ / ‖b‖ over weight tensors, Euclidean."""
    return max(
        float((a.detach() - b.detach()).norm() / b.detach().norm())
        for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
