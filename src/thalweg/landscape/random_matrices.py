"""How rare minima are among critical points: the signs of eigenvalues, at random and of networks.

At a critical point the signs of the Hessian's eigenvalues say what it is. Were they those of a
random symmetric matrix, nearly every critical point of a large network would be a saddle (Dauphin
et al. 2014, arXiv:1406.2572).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from thalweg.landscape.arguments import LandscapeError, whole
from thalweg.landscape.escape import proportion

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PositiveShare", "exact_share", "leading_law", "random_symmetric"]

NUMBERS = 1 << 21  # of float64, sampled at once


@dataclass(frozen=True, eq=False)
class PositiveShare:
    """Share of random symmetric matrices whose eigenvalues are all positive.

    Attributes:
        table: a row a size: ``size, samples, positive, share, low, high`` (95 %, Clopper and
            Pearson), ``exact`` (up to size 3, NaN beyond), ``law`` (its leading term for large
            sizes).
    """

    table: pd.DataFrame = field(repr=False)

    def figure(self) -> "go.Figure":
        """Share against size, with what is known of it."""
        from thalweg.figures.escape import positive_share

        return positive_share(self.table)


def random_symmetric(
    sizes: Sequence[int] = (1, 2, 3, 4, 5, 6, 7), samples: int = 200_000, seed: int = 0
) -> PositiveShare:
    """Sample symmetric Gaussian matrices, and count those whose eigenvalues are all positive.

    The Gaussian orthogonal ensemble: entries off the diagonal have half the variance of those on
    it. All eigenvalues are positive where a Cholesky factor exists, which is tried of thousands of
    matrices at once. The share falls so fast with the size (`leading_law`) that a plain count ends
    soon: of 200,000 matrices of size 6 about one is positive. Nothing is done to reach further;
    where none was found, ``high`` is what is known.

    Args:
        sizes: of the matrices, each at least 1.
        samples: of every size.
        seed: of the entries.

    Raises:
        LandscapeError: for an argument that cannot be used.
    """
    if not list(sizes):
        raise LandscapeError("sizes", "must be one or more whole numbers, got none")
    samples = whole("samples", samples)
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for size in (whole("sizes", n) for n in sizes):
        positive, left = 0, samples
        while left:
            count = min(left, max(1, NUMBERS // size**2))
            entries = torch.randn((count, size, size), generator=draw, dtype=torch.float64)
            failed = torch.linalg.cholesky_ex(entries + entries.mT).info
            positive += int((failed == 0).sum())
            left -= count
        low, high = proportion(positive, samples)
        rows.append(
            {
                "size": size,
                "samples": samples,
                "positive": positive,
                "share": positive / samples,
                "low": low,
                "high": high,
                "exact": exact_share(size),
                "law": leading_law(size),
            }
        )
    return PositiveShare(pd.DataFrame(rows))


def exact_share(size: int) -> float:
    """The probability that all eigenvalues are positive, up to size 3; NaN beyond.

    1/2, (2 - sqrt 2) / 4 and (pi - 2 sqrt 2) / (4 pi) (Dean and Majumdar 2008, arXiv:0801.1730,
    appendix).
    """
    known = {1: 0.5, 2: (2 - math.sqrt(2)) / 4, 3: (math.pi - 2 * math.sqrt(2)) / (4 * math.pi)}
    return known.get(size, math.nan)


def leading_law(size: int) -> float:
    """Its leading term for large sizes, exp(-(ln 3 / 4) size²).

    Dean and Majumdar (2006), Physical Review Letters 97, 160201: exp(-beta theta size²) with theta
    = ln 3 / 4, and beta = 1 for real symmetric matrices. Terms of lower order, a power of e to the
    size among them, are left out, so that of small sizes it gives the decline and not the value.
    """
    return math.exp(-math.log(3) / 4 * size**2)
