"""Tasks and losses that studies of factors need."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from thalweg.tasks import Split, Task, load


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    """Half the summed squared error to the class as zeros and a one, a mean over the batch."""
    true = torch.nn.functional.one_hot(y, outputs.shape[-1]).to(outputs.dtype)
    return 0.5 * (outputs - true).square().sum(-1).mean()


def _coded(x: Tensor, edges: Tensor) -> Tensor:
    bins = torch.stack(
        [torch.bucketize(column.contiguous(), e) for column, e in zip(x.T, edges, strict=True)], 1
    )
    return nn.functional.one_hot(bins, 4).flatten(1).float()


def wine_in_two_encodings() -> Task:
    """Wine as it is, and with each measurement as one of four classes between quartiles."""
    plain = load("wine")
    edges = torch.quantile(plain.train.x, torch.tensor([0.25, 0.5, 0.75]), dim=0).T.contiguous()
    parts = {
        part: Split(_coded(split.x, edges), split.y)
        for part in ("train", "validation", "test")
        for split in [getattr(plain, part)]
    }

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(52, 32), nn.ReLU(), nn.Linear(32, 3))

    shared = {"name": "wine2", "metric": "accuracy", "target": 0.95}
    numeric = Task(
        model=plain.model, train=plain.train, validation=plain.validation, test=plain.test,
        notes=("Measurements are standardised on training data.",), **shared,
    )  # fmt: skip
    quartiles = Task(
        model=model, notes=("Each measurement is one of four classes.",), **parts, **shared
    )
    return replace(numeric, encodings={"numeric": numeric, "quartiles": quartiles})
