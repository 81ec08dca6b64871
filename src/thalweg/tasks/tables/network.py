"""The network of a table: a multilayer perceptron, whose first layer may look weights up."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn

__all__ = ["LookupLinear", "network"]


class LookupLinear(nn.Module):
    """`torch.nn.Linear` on numbers next to one-hot categories, which are never written out.

    The same function of weights as the linear layer on the whole width, from the same
    distribution: a category's column of weights is looked up by its number.

    Args:
        dense: how many numbers a sample has.
        levels: how many categories there are, of all columns together.
        outputs: width of the output.
    """

    def __init__(self, dense: int, levels: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / sqrt(dense + levels)
        self.dense, self.levels = dense, levels
        # Optimizers need not take a parameter without elements.
        self.weight = (
            nn.Parameter(torch.empty(outputs, dense).uniform_(-bound, bound)) if dense else None
        )
        self.table = nn.Parameter(torch.empty(outputs, levels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Outputs ``(batch, outputs)``.

        Args:
            x: ``(batch, dense)``.
            codes: numbers of categories, ``(batch, columns)``, each column's after the last's;
                ``levels`` for a category that there is none of, which adds exactly zero.
        """
        # Of the ways to look up, `gather` along the last dimension is the one on replicas' tape.
        known = codes < self.levels
        places = torch.where(known, codes, 0).reshape(1, -1).expand(len(self.bias), -1)
        columns = self.table.gather(1, places).reshape(-1, *codes.shape)
        summed = (columns * known.to(columns.dtype)).sum(-1).T
        if self.weight is None:
            return summed + self.bias
        return summed + nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Widths, as modules print them."""
        return f"dense={self.dense}, levels={self.levels}, outputs={len(self.bias)}"


class _Looking(nn.Module):
    """A first layer that takes numbers and categories, and layers that take its output."""

    def __init__(self, first: LookupLinear, rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(x, codes))
        return out


def network(dense: int, levels: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    """A multilayer perceptron with ReLU between its layers.

    Args:
        dense: how many numbers a sample has.
        levels: how many categories are looked up; with none, the network takes numbers alone.
        hidden: widths of the hidden layers.
        outputs: width of the output.
    """
    widths = [dense, *hidden, outputs]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        if i or not levels:
            layers += [nn.Linear(before, after)]
    if not levels:
        return nn.Sequential(*layers)
    return _Looking(LookupLinear(dense, levels, widths[1]), nn.Sequential(*layers))
