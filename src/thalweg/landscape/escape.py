"""How noise of the gradient leaves a local minimum.

The function is x cos(pi x) on [-1, 2]: a local minimum at -0.274, a hill at 0.274, the global
minimum at 1.09. Exact gradients lead from the left of the hill to the local minimum and no further.
Those of mini-batches are noisy, and some noise is enough to get across.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError, entry_of, positive, whole
from thalweg.replicas.update import Replica, Updates

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["DOMAIN", "GLOBAL", "HILL", "LOCAL", "Escape", "escape", "slope"]

DOMAIN = (-1.0, 2.0)
# Where cos(pi x) = pi x sin(pi x), the roots of the derivative in the domain.
LOCAL, HILL, GLOBAL = -0.2738526868008509, 0.2738526868008509, 1.0904082219467213

NOISES = (0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class Escape:
    """How many runs leave a local minimum, against the noise of their gradients.

    Attributes:
        optimizer: as tables print it.
        lr: its learning rate.
        steps: of every run.
        table: a row a noise: ``noise`` (standard deviation of a gradient), ``runs``, ``left``
            (runs that came as far as the global minimum), ``share``, ``low, high`` (95 %, Clopper
            and Pearson), ``stayed`` (share that end to its side of the hill, at the last step),
            ``median_step`` (by which half of the runs had left; NaN if they had not), ``theory``.
    """

    optimizer: str
    lr: float
    steps: int
    table: pd.DataFrame = field(repr=False)

    def figure(self) -> "go.Figure":
        """Share of runs that leave against the noise."""
        from thalweg.figures.escape import escape_share

        return escape_share(self.table, self.optimizer, self.lr, self.steps)


def value(x: Tensor) -> Tensor:
    """The function, x cos(pi x)."""
    return x * torch.cos(math.pi * x)


def slope(x: Tensor) -> Tensor:
    """Its derivative, cos(pi x) - pi x sin(pi x)."""
    return torch.cos(math.pi * x) - math.pi * x * torch.sin(math.pi * x)


def escape(
    noises: Sequence[float] = NOISES,
    *,
    optimizer: str = "sgd",
    lr: float = 0.05,
    runs: int = 2000,
    steps: int = 1000,
    seed: int = 0,
) -> Escape:
    """Start many runs in the local minimum of x cos(pi x), and count those that leave it.

    A run's gradient is the derivative plus Gaussian noise, independent at each step, as the mean
    over a mini-batch has; half the noise is four times the batch. It has left when it comes as far
    as the global minimum. A step that would leave the domain [-1, 2] ends at its edge. All runs of
    all noises are one vector, which the optimizer's own rule moves.

    For SGD ``theory`` is Kramers' rate (1940, Physica 7, 284), as a small learning rate makes it a
    diffusion of temperature T = lr noise² / 2: 1 - exp(-r t), where r = sqrt(f''(local)
    |f''(hill)|) exp(-height / T) / (2 pi) and t = lr steps. It is for hills that are high beside T;
    NaN where they are less than twice as high, and for other optimizers.

    Args:
        noises: standard deviations of the gradient's noise, at least 0.
        optimizer: name in the registry, of one whose step is elementwise.
        lr: its learning rate.
        runs: of every noise.
        steps: of every run, at most.
        seed: of the noise.

    Raises:
        LandscapeError: for an argument that cannot be used.
    """
    entry = entry_of(optimizer)
    rate = positive("lr", lr)
    levels = [_noise(n) for n in noises]
    if not levels:
        raise LandscapeError("noises", "must be one or more standard deviations, got none")
    runs, steps = whole("runs", runs), whole("steps", steps)
    hyper = entry.rule.complete({"lr": rate})
    rule = entry.rule.resolve(hyper, (runs,))
    if rule.whole or rule.terms is not None:
        raise LandscapeError(
            "optimizer",
            f"a step of {entry.label} depends on all of a tensor, and here every element is a run "
            f"of its own; choose one whose step is elementwise, sgd or adam say",
        )
    noise = torch.tensor(levels, dtype=torch.float64).repeat_interleave(runs)
    x = torch.full((1, len(noise)), LOCAL, dtype=torch.float64)
    updates = Updates([Replica(rule, hyper, 0)], [x])
    draw = torch.Generator().manual_seed(seed)
    left_at = torch.full((len(noise),), math.inf, dtype=torch.float64)
    for step in range(1, steps + 1):
        moved = updates.look_ahead()
        gradient = slope(x)
        updates.return_from(moved)
        gradient += noise * torch.randn(len(noise), generator=draw, dtype=torch.float64)
        updates.step([gradient])
        x.clamp_(*DOMAIN)
        left_at[(x[0] >= GLOBAL) & left_at.isinf()] = step
    crossed = left_at.reshape(len(levels), runs).numpy()
    stayed = (x[0] < HILL).double().reshape(len(levels), runs).mean(1).numpy()
    rows = []
    for level, times, inside in zip(levels, crossed, stayed, strict=True):
        left = int(np.isfinite(times).sum())
        low, high = proportion(left, runs)
        middle = float(np.sort(times)[(runs - 1) // 2])
        rows.append(
            {
                "noise": level,
                "runs": runs,
                "left": left,
                "share": left / runs,
                "low": low,
                "high": high,
                "stayed": float(inside),
                "median_step": middle if math.isfinite(middle) else math.nan,
                "theory": _kramers(level, rate, steps) if entry.name == "sgd" else math.nan,
            }
        )
    return Escape(entry.label, rate, steps, pd.DataFrame(rows))


def _noise(given: float) -> float:
    return 0.0 if given == 0 else positive("noises", given)


def _curvature(x: float) -> float:
    return -2 * math.pi * math.sin(math.pi * x) - math.pi**2 * x * math.cos(math.pi * x)


def _kramers(noise: float, lr: float, steps: int) -> float:
    """Share that has left, by Kramers' rate; NaN where that does not hold."""
    temperature = lr * noise**2 / 2
    height = HILL * math.cos(math.pi * HILL) - LOCAL * math.cos(math.pi * LOCAL)
    if temperature == 0:
        return 0.0
    if height < 2 * temperature:
        return math.nan
    pace = math.sqrt(_curvature(LOCAL) * abs(_curvature(HILL))) / (2 * math.pi)
    return -math.expm1(-pace * math.exp(-height / temperature) * lr * steps)


def proportion(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share, by Clopper and Pearson (1934): never too short."""
    from scipy.stats import binomtest  # takes half a second to import

    found = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)
