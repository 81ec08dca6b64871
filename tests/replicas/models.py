"""Models and data of the replica tests."""

import torch
from torch import Tensor, nn

from thalweg.tasks import Metric, Split, Task


def data(n: int, seed: int, features: int = 12, classes: int = 3) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    # Learnable: the class is where three projections of the input are largest.
    y = (x[:, :classes] + 0.5 * x[:, classes : 2 * classes]).argmax(-1)
    return Split(x, y)


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.argmax(-1) == y).float().mean()


def task(model, name: str = "small", loss=nn.functional.cross_entropy) -> Task:
    return Task(
        name=name,
        model=model,
        train=data(96, 1),
        validation=data(48, 2),
        test=data(48, 3),
        loss=loss,
        metric=Metric("accuracy", accuracy, percent=True),
        target=0.9,
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))


class Branches(nn.Module):
    """Looks at values, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out * 2 if out.sum() > 0 else out


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.b = nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)
    )
