"""Small tasks for trainings: of several inputs, with dropout and batch norm, of odd sizes."""

import torch
from torch import nn

import thalweg
from thalweg.tasks import Split


class TwoInputs(nn.Module):
    """Takes a dictionary's parts by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
        self.last = nn.Sequential(nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, a, b):
        return self.last(self.left(a) + self.right(b))


def split(n, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, 4, generator=g), torch.randn(n, 3, generator=g)
    y = (a[:, 0] + b[:, 0] > 0).long() + (a[:, 1] > 1).long()
    return Split({"a": a, "b": b}, y)


def dropout_task():
    """101 samples for training, which no batch size divides; dropout draws random numbers."""
    return thalweg.Task(
        model=TwoInputs, train=split(101, 0), validation=split(37, 1), test=split(29, 2),
        batch_size=16, name="two",
    )  # fmt: skip


def plain(n=101, dtype=torch.float64, model=None, **others):
    """Regression of nothing random but the start; float64, so that sums agree to 1e-12."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n + 60, 5, generator=g, dtype=dtype)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(n + 60, 1, generator=g, dtype=dtype)

    def made():
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).to(dtype)

    parts = (slice(0, n), slice(n, n + 33), slice(n + 33, None))
    train, validation, test = (Split(x[part], y[part]) for part in parts)
    given = {"name": "plain", "batch_size": 16, **others}
    return thalweg.Task(model=model or made, train=train, validation=validation, test=test, **given)
