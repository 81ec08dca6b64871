"""What kind of point a function is at, by its gradient and its Hessian's eigenvalues."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from thalweg.landscape.arguments import LandscapeError, not_negative
from thalweg.landscape.operators import LossLike, hessian
from thalweg.landscape.spectrum import eigenvalues

__all__ = ["CriticalPoint", "classify", "classify_network"]

Array: TypeAlias = NDArray[np.floating[Any]]

EXACT = 1000  # variables, up to which all of the Hessian is made
ENDS = 6  # eigenvalues at either end, where there are more variables
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
    point that is known to six digits; and where all of the Hessian is known, only if Newton's step
    is so short too, as the gradient along a direction of small curvature is small far away. An
    eigenvalue counts as zero up to rounding, relative to the largest; and up to what it may be at
    a critical point itself, of which this point, to judge by its gradient, is only close:
    Kantorovich's condition, that the gradient's norm times the change of the eigenvalue is small
    against its square, tells x² at 0.001 from x³ there.

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
    slope = _derivative(value, there, torch.ones_like(value))
    gradient = slope.detach().flatten().numpy(force=True)
    if not np.isfinite(gradient).all():
        raise LandscapeError("f", f"its gradient is not finite at {_shown(place)}")
    n = place.numel()

    def times(vector: Array) -> Array:
        along = torch.from_numpy(np.array(vector, np.float64)).reshape(place.shape)
        return _derivative(slope, there, along).detach().flatten().numpy(force=True)

    products = LinearOperator((n, n), times, dtype=np.float64)
    exact = n <= EXACT
    matrix = np.stack([times(row) for row in np.eye(n)]) if exact else products @ np.ones(n)
    if not np.isfinite(matrix).all():
        raise LandscapeError("f", f"its second derivatives are not finite at {_shown(place)}")
    spectrum = _spectrum(matrix if exact else products)

    def drift(vector: Array) -> float:
        """How fast an eigenvalue changes where the point moves: the norm of its gradient."""
        along = torch.from_numpy(vector).reshape(place.shape)
        once = _derivative(slope, there, along)
        return float(torch.linalg.vector_norm(_derivative(once, there, along).detach()))

    def at(moved: Array) -> float:
        with torch.no_grad():
            return float(_value(f, torch.from_numpy(moved).reshape(place.shape), finite=False))

    point = place.flatten().numpy()
    found = _judge(float(value.detach()), point, gradient, spectrum, drift, at, limits)
    if found.escape is None:
        return found
    return replace(found, escape=found.escape.reshape(place.shape))


def classify_network(
    model: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    parameters: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    gradient_tolerance: float | None = None,
    tolerance: float | None = None,
) -> CriticalPoint:
    """Tell whether a network's weights are at a minimum, a saddle or no critical point of its loss.

    The mean loss over all of the data in evaluation mode, in float64, as a function of the
    weights. As `classify`, without the change of eigenvalues along the weights, which a network
    with kinks does not have.

    Args:
        model: as `thalweg.landscape.hessian` takes it.
        loss: likewise.
        data: likewise.
        parameters: likewise.
        batch_size: likewise.
        gradient_tolerance: a gradient up to this norm counts as zero.
        tolerance: an eigenvalue up to this absolute value counts as zero.

    Returns:
        The point; ``escape`` is a vector of the parameters in order.

    Raises:
        LandscapeError, TaskError: for an argument that cannot be used, naming it.
    """
    limits = [_limit("gradient_tolerance", gradient_tolerance), _limit("tolerance", tolerance)]
    op = hessian(
        model, loss, data, parameters=parameters, batch_size=batch_size, dtype=torch.float64
    )
    point = op.point()
    exact = len(point) <= EXACT
    spectrum = _spectrum(op @ np.eye(len(point)) if exact else op)
    return _judge(
        op.loss(),
        point,
        op.gradient(),
        spectrum,
        None,
        lambda moved: op.loss(moved - point),
        limits,
    )


@dataclass(frozen=True)
class _Spectrum:
    """Eigenvalues, ascending, with their vectors; all of them or both ends.

    Attributes:
        values, vectors: see `thalweg.landscape.Eigenvalues`.
        error: of the values, at most.
        exact: whether these are all.
    """

    values: Array
    vectors: Array
    error: float
    exact: bool


def _spectrum(of: Any) -> _Spectrum:
    if isinstance(of, np.ndarray):
        values, vectors = np.linalg.eigh((of + of.T) / 2)
        return _Spectrum(values, vectors, 0.0, True)
    found = eigenvalues(of, 2 * ENDS, "both ends")
    return _Spectrum(found.values, found.vectors, float(found.residuals.max()), False)


def _judge(
    value: float,
    point: Array,
    gradient: Array,
    spectrum: _Spectrum,
    drift: Callable[[Array], float] | None,
    at: Callable[[Array], float],
    limits: list[float | None],
) -> CriticalPoint:
    values = spectrum.values
    norm, size = float(np.linalg.norm(gradient)), max(1.0, float(np.linalg.norm(point)))
    largest = float(np.abs(values).max())
    flat, zero = limits
    if flat is None:
        flat = CLOSE * largest * size
    if zero is None:
        zero = max(len(point) * ROUNDING * largest, 2 * spectrum.error)
        if drift is not None and norm <= flat:
            change = drift(spectrum.vectors[:, np.abs(values).argmin()])
            # Of x ** k all k > 2 have gradient times change at least half the eigenvalue's square.
            zero = max(zero, 2 * math.sqrt(change * norm), change * size * ROUNDING)
    negative = int((values < -zero).sum())
    verdict, why = _verdict(norm, flat, spectrum, zero)
    if limits[0] is None and spectrum.exact and norm <= flat:
        left = _newton(gradient, spectrum, zero, ROUNDING * largest * size)
        if left > CLOSE * size:
            verdict = "not critical"
            why = (
                f"the gradient's norm {norm:.3g} is small beside the largest curvature, and not "
                f"beside that of its own direction: Newton's step is {left:.3g} long"
            )
    escape, step, lowered = None, None, None
    if negative and verdict != "not critical":
        signed, step, lowered = _escape(value, point, size, spectrum.vectors[:, 0], at)
        escape = torch.from_numpy(signed)
        if not lowered < 0:
            why += "; yet no step that was tried along the escape direction lowers it"
    return CriticalPoint(
        value,
        norm,
        values,
        verdict,
        negative,
        zero,
        flat,
        "exact" if spectrum.exact else "Lanczos",
        escape,
        step,
        lowered,
        why,
    )


def _newton(gradient: Array, spectrum: _Spectrum, zero: float, rounding: float) -> float:
    """Length of Newton's step in the directions that are curved, what is rounding left out."""
    curved = np.abs(spectrum.values) > zero
    along = spectrum.vectors.T[curved] @ gradient
    steps = np.where(np.abs(along) > rounding, along, 0.0) / spectrum.values[curved]
    return float(np.linalg.norm(steps))


def _verdict(norm: float, flat: float, spectrum: _Spectrum, zero: float) -> tuple[str, str]:
    if norm > flat:
        return "not critical", f"the gradient's norm {norm:.3g} is above {flat:.3g}"
    values = spectrum.values
    negative, positive = int((values < -zero).sum()), int((values > zero).sum())
    none = len(values) - negative - positive
    some = "" if spectrum.exact else "at least "

    def counted(count: int, what: str) -> str:
        of = f"{count} of {len(values)} eigenvalues" if spectrum.exact else f"{count} eigenvalues"
        if len(values) == 1:
            of = "the eigenvalue"
        elif count == 1:
            of = of if spectrum.exact else "1 eigenvalue"
        return f"{some}{of} {'is' if count == 1 else 'are'} {what}"

    if negative and positive:
        why = (
            f"{counted(negative, 'negative')}, down to {values[0]:.3g}, and {some}{positive} "
            f"positive, up to {values[-1]:.3g}"
        )
        return "saddle", why + (f"; {counted(none, f'zero within {zero:.3g}')}" if none else "")
    if none:
        others = (
            "" if none == len(values) else ", others negative" if negative else ", others positive"
        )
        return "degenerate", (
            f"{counted(none, f'zero within {zero:.3g}')}{others}: second derivatives do not tell"
        )
    if positive:
        return "minimum", f"all eigenvalues are positive, from {values[0]:.3g} on"
    return "maximum", f"all eigenvalues are negative, up to {values[-1]:.3g}"


def _escape(
    value: float, point: Array, size: float, direction: Array, at: Callable[[Array], float]
) -> tuple[Array, float, float]:
    """Direction, step and change of the value, of both signs and a line of steps the lowest."""
    changes = np.array(
        [[at(point + sign * step * size * direction) - value for step in STEPS] for sign in (1, -1)]
    )
    changes = np.where(np.isnan(changes), np.inf, changes)
    side, best = np.unravel_index(changes.argmin(), changes.shape)
    return (1, -1)[int(side)] * direction, float(STEPS[best] * size), float(changes[side, best])


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
    return None if given is None else not_negative(argument, given)


def _value(f: Callable[[Tensor], Tensor], x: Tensor, finite: bool = True) -> Tensor:
    found = f(x)
    if not isinstance(found, Tensor) or found.numel() != 1:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise LandscapeError("f", f"must give one number, a scalar tensor; it gave {kind}")
    if finite and not bool(found.isfinite().all()):
        raise LandscapeError("f", f"is {float(found.detach()):g} at {_shown(x.detach())}")
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
