"""What kind of point a function is at, by its gradient and its Hessian's eigenvalues."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError

__all__ = ["CriticalPoint", "classify"]

Array: TypeAlias = NDArray[np.float64]

EXACT = 1000  # variables, up to which all of the Hessian is made
ROWS = 64  # of it at once
CLOSE = 1e-6  # to a critical point, relative: what six digits of its place leave
ROUNDING = 100 * float(np.finfo(np.float64).eps)
STEPS = 10.0 ** -np.arange(7.0)


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """What a point is, with what told.

    Attributes:
        value: of the function there.
        gradient_norm: Euclidean.
        eigenvalues: of the Hessian, ascending; all where ``method`` is exact, else both ends.
        verdict: ``minimum``, ``maximum``, ``saddle``, ``degenerate`` where eigenvalues that are
            zero leave it open, or ``not critical``.
        negative: directions of negative curvature; at least so many where not all are known.
        tolerance: an eigenvalue up to this, in absolute value, counts as zero.
        gradient_tolerance: a gradient up to this norm counts as zero.
        method: ``exact``, or ``Lanczos`` on products with the Hessian.
        escape: unit direction of the most negative eigenvalue, of the point's shape, to the side
            where the function is lower; None without negative curvature or away from a critical
            point.
        step: along it, of those tried the one that lowers the function most.
        lowered: by which the function changes with this step; below 0 where it escapes.
        why: the verdict's reason, one sentence.
    """

    value: float
    gradient_norm: float
    eigenvalues: Array = field(repr=False)
    verdict: str
    negative: int
    tolerance: float
    gradient_tolerance: float
    method: str
    escape: Tensor | None = field(repr=False)
    step: float | None
    lowered: float | None
    why: str


def classify(
    f: Callable[[Tensor], Tensor],
    x: Any,
    *,
    gradient_tolerance: float | None = None,
    tolerance: float | None = None,
) -> CriticalPoint:
    """Tell a minimum, a maximum and a saddle apart.

    In float64, whatever the type of ``x``. By default a gradient counts as zero up to 1e-6 times
    the largest eigenvalue and the point's norm (at least 1): what is left of it at a critical
    point that is known to six digits. An eigenvalue counts as zero up to rounding, relative to
    the largest; and up to what it may be at a critical point itself, of which this point, to
    judge by its gradient, is only close: Kantorovich's condition, that the gradient's norm times
    the change of the eigenvalue is small against its square, tells x² at 0.001 from x³ there.

    Args:
        f: differentiable function of a tensor to a scalar.
        x: the point, of any shape.
        gradient_tolerance: a gradient up to this norm counts as zero.
        tolerance: an eigenvalue up to this absolute value counts as zero.

    Raises:
        LandscapeError: for a function or a point that this cannot be asked of.
    """
    limits = [_limit("gradient_tolerance", gradient_tolerance), _limit("tolerance", tolerance)]
    place = _place(x)
    there = place.clone().requires_grad_()
    with torch.enable_grad():
        value = _value(f, there)
        if not value.requires_grad:
            raise LandscapeError("f", "does not depend on x by operations that torch can follow")
        slope = torch.autograd.grad(
            value, there, create_graph=True, allow_unused=True, materialize_grads=True
        )[0]
    if not bool(slope.isfinite().all()):
        raise LandscapeError("f", f"its gradient is not finite at {_shown(place)}")
    matrix = _hessian(slope, there)
    if not np.isfinite(matrix).all():
        raise LandscapeError("f", f"its second derivatives are not finite at {_shown(place)}")
    values, vectors = np.linalg.eigh(matrix)
    gradient = slope.detach().flatten().numpy()

    def drift(vector: Array) -> float:
        """How fast an eigenvalue changes where the point moves: the norm of its gradient."""
        along = torch.from_numpy(vector).reshape(place.shape)
        once = _derivative(slope, there, along)
        return float(torch.linalg.vector_norm(_derivative(once, there, along).detach()))

    def at(moved: Array) -> float:
        with torch.no_grad():
            return float(_value(f, torch.from_numpy(moved).reshape(place.shape), finite=False))

    return _judge(
        float(value.detach()), place, gradient, values, vectors, drift, at, limits, "exact"
    )


def _judge(
    value: float,
    place: Tensor,
    gradient: Array,
    values: Array,
    vectors: Array,
    drift: Callable[[Array], float],
    at: Callable[[Array], float],
    limits: list[float | None],
    method: str,
) -> CriticalPoint:
    norm = float(np.linalg.norm(gradient))
    size = max(1.0, float(torch.linalg.vector_norm(place)))
    largest = float(np.abs(values).max())
    flat, zero = limits
    if flat is None:
        flat = CLOSE * largest * size
    if zero is None:
        zero = place.numel() * ROUNDING * largest
        if norm <= flat:
            change = drift(vectors[:, np.abs(values).argmin()])
            # Of x ** k all k > 2 have gradient times change at least half the eigenvalue's square.
            zero = max(zero, 2 * math.sqrt(change * norm), change * size * ROUNDING)
    negative, positive = int((values < -zero).sum()), int((values > zero).sum())
    verdict, why = _verdict(norm, flat, values, zero, negative, positive, method)
    escape, step, lowered = None, None, None
    if negative and verdict != "not critical":
        direction = vectors[:, 0]
        escape, step, lowered = _escape(value, place, size, direction, at)
        if not lowered < 0:
            why += "; yet no step along the escape direction lowers it"
    return CriticalPoint(
        value, norm, values, verdict, negative, zero, flat, method, escape, step, lowered, why
    )


def _verdict(
    norm: float, flat: float, values: Array, zero: float, negative: int, positive: int, method: str
) -> tuple[str, str]:
    if norm > flat:
        return "not critical", f"the gradient's norm {norm:.3g} is above {flat:.3g}"
    count = len(values)
    none = count - negative - positive
    some = "" if method == "exact" else "at least "
    open_ = f"{some}{none} of {count} eigenvalues {_are(none)} zero within {zero:.3g}"
    if negative and positive:
        also = f"; {open_}" if none else ""
        return "saddle", (
            f"{some}{negative} of {count} eigenvalues {_are(negative)} negative, down to "
            f"{values[0]:.3g}, and {some}{positive} positive, up to {values[-1]:.3g}{also}"
        )
    if none:
        rest = "negative" if negative else "positive"
        others = f", the others {rest}" if negative or positive else ""
        return "degenerate", f"{open_}{others}: second derivatives do not tell"
    if positive:
        return "minimum", f"all eigenvalues are positive, from {values[0]:.3g} on"
    return "maximum", f"all eigenvalues are negative, up to {values[-1]:.3g}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _escape(
    value: float, place: Tensor, size: float, direction: Array, at: Callable[[Array], float]
) -> tuple[Tensor, float, float]:
    """Direction, step and change of the value, of both signs and a line of steps the lowest."""
    start = place.flatten().numpy()
    changes = np.array(
        [[at(start + sign * step * size * direction) - value for step in STEPS] for sign in (1, -1)]
    )
    changes = np.where(np.isnan(changes), np.inf, changes)
    side, best = np.unravel_index(changes.argmin(), changes.shape)
    signed = torch.from_numpy((1, -1)[int(side)] * direction).reshape(place.shape)
    return signed, float(STEPS[best] * size), float(changes[side, best])


def _place(x: Any) -> Tensor:
    try:
        place = torch.as_tensor(x, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise LandscapeError("x", f"must be a tensor of numbers, got {x!r}") from None
    if not place.numel():
        raise LandscapeError("x", "has no variables")
    if not bool(place.isfinite().all()):
        raise LandscapeError("x", f"must be finite, got {_shown(place)}")
    return place


def _limit(argument: str, given: float | None) -> float | None:
    if given is None:
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise LandscapeError(argument, f"must be at least 0 and finite, got {given!r}")
    return number


def _value(f: Callable[[Tensor], Tensor], x: Tensor, finite: bool = True) -> Tensor:
    found = f(x)
    if not isinstance(found, Tensor) or found.numel() != 1:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise LandscapeError("f", f"must give one number, a scalar tensor; it gave {kind}")
    if finite and not bool(found.isfinite().all()):
        raise LandscapeError("f", f"is {float(found):g} at {_shown(x.detach())}")
    return found.reshape(())


def _shown(x: Tensor) -> str:
    listed = x.flatten().tolist()
    return f"({', '.join(f'{v:g}' for v in listed[:4])}{', ...' if len(listed) > 4 else ''})"


def _derivative(of: Tensor, x: Tensor, along: Tensor) -> Tensor:
    """Gradient of a tensor's inner product with a direction, to be differentiated once more."""
    if not of.requires_grad:
        return torch.zeros_like(x)
    with torch.enable_grad():
        return torch.autograd.grad(
            of, x, along, create_graph=True, allow_unused=True, materialize_grads=True
        )[0]


def _hessian(slope: Tensor, x: Tensor) -> Array:
    n = x.numel()
    if not slope.requires_grad:  # of a linear function
        return np.zeros((n, n))
    rows = [
        torch.autograd.grad(
            slope,
            x,
            some.reshape(-1, *x.shape),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )[0].reshape(-1, n)
        for some in torch.split(torch.eye(n, dtype=torch.float64), ROWS)
    ]
    found = torch.cat(rows).detach().numpy()
    return np.asarray((found + found.T) / 2)
