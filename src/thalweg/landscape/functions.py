"""Functions of one and two variables: those with a name, and any that a person types."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.expression import CALLS, CONSTANTS, SHOWN, VARIABLES, Evaluate, parse
from thalweg.optim.registry import key

__all__ = ["FUNCTIONS", "Box", "Function", "checked_box", "function"]

Box = tuple[tuple[float, float], ...]

_NAME = re.compile(r"[^\W\dπ](?:[^\W²³¹⁰⁴-⁹π]|[ '–-])*")

USUAL = (-3.0, 3.0)  # of each variable, for what a person types


@dataclass(frozen=True)
class Function:
    """A function of one or two variables.

    Attributes:
        name: what a person types for it; the expression for one without a name.
        text: the expression.
        variables: ``("x",)`` or ``("x", "y")``.
        range: lowest and highest value of each variable that is worth a look.
        start: where optimizers start; empty where nothing is known of it.
        about: what it shows, and where it comes from.
        twin: name of the function that is minimised in place of this one, if there is one.
    """

    name: str
    text: str
    variables: tuple[str, ...]
    range: Box
    start: tuple[float, ...]
    about: str = ""
    twin: str | None = None
    evaluate: Evaluate = field(repr=False, kw_only=True, compare=False)

    def __call__(self, points: Tensor) -> Tensor:
        """Values at ``points``, ``(..., variables)``, of shape ``(...)`` and their dtype."""
        return self.evaluate(points.unbind(-1))

    def grid(self, box: Box, count: int) -> pd.DataFrame:
        """Values on a grid, NaN where there is none.

        Args:
            box: lowest and highest value of each variable.
            count: of places along each.

        Returns:
            Columns ``x``, ``y`` if there is one, ``value`` and ``share``: of the grid, that is
            lower.
        """
        lines = [torch.linspace(*ends, count, dtype=torch.float64) for ends in box]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(box))
        with torch.no_grad():
            values = self(places)
        frame = pd.DataFrame(places.numpy(), columns=list(self.variables))
        frame["value"] = np.where(values.isfinite(), values, np.nan)
        frame["share"] = frame["value"].rank(pct=True)
        return frame

    def slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients at points that do not know of each other.

        Args:
            points: ``(count, variables)``.

        Returns:
            ``(count,)`` and ``(count, variables)``.
        """
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            values = self(at)
            (gradient,) = torch.autograd.grad(values.sum(), at)
        return values.detach(), gradient

    def curvature(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and Hessians, likewise: ``(count, n)`` and ``(count, n, n)``."""
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(at).sum(), at, create_graph=True)
            rows = [
                torch.autograd.grad(one.sum(), at, retain_graph=True, materialize_grads=True)[0]
                if one.requires_grad
                else torch.zeros_like(at)
                for one in gradient.unbind(-1)
            ]
        return gradient.detach(), torch.stack(rows, dim=-2)


def _named(
    name: str,
    text: str,
    box: Box,
    start: tuple[float, ...],
    about: str,
    twin: str | None = None,
) -> Function:
    variables, evaluate = parse(text)
    return Function(name, text, variables, box, start, about, twin, evaluate=evaluate)


def _square(half: float) -> Box:
    return ((-half, half),) * 2


FUNCTIONS: Mapping[str, Function] = {
    one.name: one
    for one in (
        _named(
            "risk",
            "x*cos(pi*x)",
            ((-1.0, 2.0),),
            (-0.9,),
            "a local and a global minimum: the risk, which is meant but not seen; what is "
            "minimised is the empirical risk",
            twin="empirical",
        ),
        _named(
            "empirical",
            "x*cos(pi*x) + 0.2*cos(5*pi*x)",
            ((-1.0, 2.0),),
            (-0.9,),
            "the empirical risk: the risk with the wiggles of a finite sample, whose minima are "
            "elsewhere",
        ),
        _named(
            "cubic",
            "x**3",
            ((-2.0, 2.0),),
            (0.9,),
            "a saddle point of one variable: at 0 the gradient vanishes, and yet it goes down on",
        ),
        _named(
            "tanh",
            "tanh(x)",
            ((-5.0, 5.0),),
            (4.0,),
            "a vanishing gradient: at x = 4 the derivative is 0.0013, and a step by it next to "
            "nothing; what divides by the size of the gradient does not mind",
        ),
        _named(
            "saddle",
            "x**2 - y**2",
            _square(2.0),
            (1.5, 0.01),
            "a saddle point: a minimum along x, a maximum along y",
        ),
        _named(
            "canyon",
            "0.1*x**2 + 2*y**2",
            ((-6.0, 6.0), (-3.0, 3.0)),
            (-5.0, -2.0),
            "a canyon: 20 times as steep across as along",
        ),
        _named(
            "monkey_saddle",
            "x**3 - 3*x*y**2",
            _square(2.0),
            (1.0, 0.5),
            "a saddle with three ways down, two for the legs and one for the tail, where all "
            "second derivatives vanish",
        ),
        _named(
            "rosenbrock",
            "(1 - x)**2 + 100*(y - x**2)**2",
            ((-2.0, 2.0), (-1.0, 3.0)),
            (-1.2, 1.0),
            "a narrow bent valley: easy to enter, slow to follow (Rosenbrock, 1960, The Computer "
            "Journal 3)",
        ),
        _named(
            "beale",
            "(1.5 - x + x*y)**2 + (2.25 - x + x*y**2)**2 + (2.625 - x + x*y**3)**2",
            _square(4.5),
            (1.0, 1.0),
            "plateaus, and cliffs at the corners (Beale, 1958; problem 5 of Moré, Garbow and "
            "Hillstrom, 1981, ACM TOMS 7)",
        ),
        _named(
            "himmelblau",
            "(x**2 + y - 11)**2 + (x + y**2 - 7)**2",
            _square(5.0),
            (0.0, 0.0),
            "four minima, all as low (Himmelblau, 1972, Applied Nonlinear Programming)",
        ),
        _named(
            "rastrigin",
            "20 + x**2 - 10*cos(2*pi*x) + y**2 - 10*cos(2*pi*y)",
            _square(5.12),
            (3.4, -2.7),
            "a bowl full of local minima (Rastrigin, 1974; in two variables as Törn and Žilinskas, "
            "1989, have it)",
        ),
        _named(
            "styblinski_tang",
            "(x**4 - 16*x**2 + 5*x + y**4 - 16*y**2 + 5*y)/2",
            _square(5.0),
            (0.5, 1.0),
            "four minima of different depth (Styblinski and Tang, 1990, Neural Networks 3)",
        ),
    )
}


def _bare(text: str) -> str:
    return text.replace(" ", "").replace("^", "**")


def function(text: str) -> Function:
    """The function of that name, or of that expression.

    Args:
        text: ``rosenbrock``, of `FUNCTIONS`, or an expression in x, or x and y, as
            `thalweg.landscape.expression.parse` takes it.

    Raises:
        LandscapeError: if it is neither.
    """
    own_words = {*VARIABLES, *CONSTANTS, *CALLS}.isdisjoint(re.findall(r"\w+", text))
    if text in FUNCTIONS or (_NAME.fullmatch(text) and own_words):
        by_key = {key(name): name for name in FUNCTIONS}
        if key(text) in by_key:
            return FUNCTIONS[by_key[key(text)]]
        near = get_close_matches(key(text), by_key, 1)
        meant = (
            f"did you mean {by_key[near[0]]}?"
            if near
            else f"choose from {', '.join(FUNCTIONS)}, or write an expression in x, or x and y"
        )
        shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
        raise LandscapeError("expression", f"there is no function {shown!r}; {meant}")
    for one in FUNCTIONS.values():
        if _bare(one.text) == _bare(text):
            return one
    variables, evaluate = parse(text)
    return Function(text, text, variables, (USUAL,) * len(variables), (), evaluate=evaluate)


def checked_box(f: Function, box: Any) -> Box:
    """The range of a function's variables that was asked for.

    Raises:
        LandscapeError: unless it is a lowest and a higher value of each, a finite way apart.
    """
    wanted = f"must be a lowest and a higher value of each of {' and '.join(f.variables)}"
    try:
        pairs = [tuple(map(float, ends)) for ends in box]
    except (TypeError, ValueError):
        raise LandscapeError("range", f"{wanted}, got {box!r}") from None
    sound = all(len(p) == 2 and 0 < p[1] - p[0] < math.inf for p in pairs)
    if len(pairs) != len(f.variables) or not sound:
        shown = ", ".join(":".join(f"{end:g}" for end in pair) for pair in pairs)
        raise LandscapeError("range", f"{wanted}, got {shown}")
    return tuple((low, high) for low, high in pairs)
