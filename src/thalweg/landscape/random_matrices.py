"""How rare minima are among critical points: the signs of eigenvalues, at random and of networks.

At a critical point the signs of the Hessian's eigenvalues say what it is. Were they those of a
random symmetric matrix, nearly every critical point of a large network would be a saddle (Dauphin
et al. 2014, arXiv:1406.2572).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from thalweg.landscape.arguments import LandscapeError, positive, whole
from thalweg.landscape.escape import proportion
from thalweg.landscape.spectrum import spectral_density
from thalweg.landscape.surface import hessian_at
from thalweg.landscape.training_path import task_of, training_paths
from thalweg.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "NegativeShare",
    "PositiveShare",
    "exact_share",
    "leading_law",
    "negative_share",
    "random_symmetric",
]

NUMBERS = 1 << 21  # of float64, sampled at once
EXACT = 2000  # parameters, up to which all eigenvalues are found
MOMENTS = ("start", "middle", "end")


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
        found, left = 0, samples
        while left:
            count = min(left, max(1, NUMBERS // size**2))
            entries = torch.randn((count, size, size), generator=draw, dtype=torch.float64)
            failed = torch.linalg.cholesky_ex(entries + entries.mT).info
            found += int((failed == 0).sum())
            left -= count
        low, high = proportion(found, samples)
        rows.append(
            {
                "size": size,
                "samples": samples,
                "positive": found,
                "share": found / samples,
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


@dataclass(frozen=True, eq=False)
class NegativeShare:
    """Signs of the eigenvalues of a network's Hessian while it trains.

    Attributes:
        task: its title.
        optimizer: as tables print it.
        lr: its learning rate.
        parameters: how many the network has, and so eigenvalues.
        table: a row a moment: ``moment`` (start, middle, end), ``step, epoch, train_loss,
            negative, zero, positive`` (shares of all eigenvalues), ``low, high`` (bounds of the
            share of negative ones; itself where all were found), ``tolerance`` (an eigenvalue up to
            this, in absolute value, counts as zero), ``negative_size`` (the negative ones' share of
            the sum of all absolute values), ``lowest, highest``.
        eigenvalues: ``moment`` (0, 1, 2), ``eigenvalue, weight`` (its share of all); where not all
            were found the nodes of the stochastic Lanczos quadrature.
        method: ``exact`` or ``Lanczos``.
    """

    task: str
    optimizer: str
    lr: float
    parameters: int
    table: pd.DataFrame = field(repr=False)
    eigenvalues: pd.DataFrame = field(repr=False)
    method: str

    def figure(self) -> "go.Figure":
        """Sizes of the eigenvalues that are not zero, at each moment."""
        from thalweg.figures.escape import eigenvalue_signs

        titles = [
            f"{row['moment']}: {100 * row['negative']:.1f} % negative, "
            f"{100 * row['zero']:.1f} % zero"
            for _, row in self.table.iterrows()
        ]
        zero = self.eigenvalues["moment"].map(self.table["tolerance"])
        return eigenvalue_signs(
            self.eigenvalues[self.eigenvalues["eigenvalue"].abs() > zero], titles
        )


def negative_share(
    task: str | Task = "digits",
    *,
    optimizer: str = "adam",
    lr: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> NegativeShare:
    """Train a network, and count the signs of its Hessian's eigenvalues on the way.

    Of the training loss over the whole training set, in evaluation mode and float64: at the initial
    weights, after half of the steps and at the end. Up to 2,000 parameters all eigenvalues are
    found; of larger networks the shares are those of a stochastic density (`spectral_density`). Its
    nodes tell eigenvalues from zero as far as they are apart there, and what is closer counts as
    zero.

    Args:
        task: name of a built-in task, or a `thalweg.Task`.
        optimizer: name in the registry.
        lr: its learning rate; by default the middle of the usual ones.
        epochs: of training.
        seed: of initial weights and order of batches.
        tolerance: an eigenvalue up to this share of the largest, in absolute value, counts as zero:
            a network has many along which the loss does not change.

    Raises:
        LandscapeError: for an argument that cannot be used, or a run that diverges.
        TaskError: for a task that cannot be trained.
    """
    found, tolerance = task_of(task), positive("tolerance", tolerance)
    (path,) = training_paths(found, [optimizer], lr=lr, epochs=epochs, seed=seed, moments=3)
    exact = found.parameters <= EXACT
    rows, parts = [], []
    for moment, name in enumerate(MOMENTS[-len(path.curve) :]):
        operator = hessian_at(found, path.at(moment), "float64")
        if exact:
            matrix = operator @ np.eye(operator.shape[0])
            values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
            weights = np.full(len(values), 1 / len(values))
            zero = tolerance * float(np.abs(values).max())
            negative, above = float((values < -zero).mean()), float((values > zero).mean())
            low = high = negative
        else:
            density = spectral_density(operator, seed=seed)
            values, weights = density.nodes.ravel(), density.weights.ravel() / len(density.nodes)
            zero = max(tolerance * float(np.abs(values).max()), _resolved(density.nodes))
            negative, low, high = density.share_below(-zero)
            above = 1 - density.share_below(zero)[0]
        sizes = weights * np.abs(values)
        rows.append(
            {
                "moment": name,
                "step": int(path.curve["step"][moment]),
                **path.curve.loc[moment, ["epoch", "train_loss"]],
                "negative": negative,
                "zero": 1 - negative - above,
                "positive": above,
                "low": low,
                "high": high,
                "tolerance": zero,
                "negative_size": float(sizes[values < -zero].sum() / max(sizes.sum(), 1e-300)),
                "lowest": float(values.min()),
                "highest": float(values.max()),
            }
        )
        parts.append(pd.DataFrame({"moment": moment, "eigenvalue": values, "weight": weights}))
    return NegativeShare(
        found.title,
        path.optimizer,
        path.lr,
        found.parameters,
        pd.DataFrame(rows),
        pd.concat(parts, ignore_index=True),
        "exact" if exact else "Lanczos",
    )


def _resolved(nodes: "NDArray[np.floating[Any]]") -> float:
    """The widest gap that quadratures ``(probes, steps)`` have around zero."""
    above = np.where(nodes >= 0, nodes, np.inf).min(1)
    below = np.where(nodes < 0, nodes, -np.inf).max(1)
    gaps = (above - below)[np.isfinite(above - below)]
    return float(gaps.max()) if len(gaps) else 0.0
