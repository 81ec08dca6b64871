"""The tasks that come with the package: real data that ships inside scikit-learn."""

from collections.abc import Callable
from typing import Any

import torch

from thalweg.tasks.divide import divide
from thalweg.tasks.networks import mlp
from thalweg.tasks.split import Split
from thalweg.tasks.task import Task

__all__ = ["TASKS"]


def _split(x: Any, y: Any, classes: bool) -> tuple[Split, Split, Split]:
    """60 % for training, 20 % each for validation and test; standardised on training data alone."""
    from sklearn.preprocessing import StandardScaler

    train, validation, test = divide(len(x), classes=y if classes else None)
    scale_x = StandardScaler().fit(x[train])
    scale_y = None if classes else StandardScaler().fit(y[train].reshape(-1, 1))

    def tensors(part: Any) -> Split:
        target = (
            torch.as_tensor(y[part], dtype=torch.int64)
            if scale_y is None
            else torch.as_tensor(scale_y.transform(y[part].reshape(-1, 1)), dtype=torch.float32)
        )
        return Split(torch.as_tensor(scale_x.transform(x[part]), dtype=torch.float32), target)

    return tensors(train), tensors(validation), tensors(test)


def _classification(name: str, title: str, loader: str, hidden: int, target: float) -> Task:
    from sklearn import datasets

    x, y = getattr(datasets, loader)(return_X_y=True)
    train, validation, test = _split(x, y, classes=True)
    model = mlp(x.shape[1], hidden, hidden, int(y.max()) + 1)
    return Task(
        name=name,
        title=title,
        model=model,
        train=train,
        validation=validation,
        test=test,
        loss="cross_entropy",
        metric="accuracy",
        target=target,
    )


def _regression(name: str, title: str, loader: str, hidden: int) -> Task:
    from sklearn import datasets

    x, y = getattr(datasets, loader)(return_X_y=True)
    train, validation, test = _split(x, y, classes=False)
    return Task(
        name=name,
        title=title,
        model=mlp(x.shape[1], hidden, hidden, 1),
        train=train,
        validation=validation,
        test=test,
        loss="mse",
        metric="mae",
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: _classification("digits", "handwritten digits", "load_digits", 64, 0.95),
    "breast_cancer": lambda: _classification(
        "breast_cancer", "breast cancer diagnosis", "load_breast_cancer", 32, 0.95
    ),
    "wine": lambda: _classification("wine", "wine cultivars", "load_wine", 32, 0.95),
    "diabetes": lambda: _regression(
        "diabetes", "diabetes progression (standardised)", "load_diabetes", 32
    ),
}
