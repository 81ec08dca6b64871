"""All minima, maxima and saddle points of a function of one or two variables in a range."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import bisect

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.critical import classify
from thalweg.landscape.functions import Box, Function, checked_box

__all__ = ["CLOSE", "Point", "Points", "critical_points", "kind_at"]

Array: TypeAlias = NDArray[np.float64]

SAMPLES = 4097  # of a derivative of one variable: odd, so that the middle is among them
CELLS = 160  # along each of two variables
STARTS = 41  # of Newton's method besides, likewise, for points where no derivative changes sign
NEWTON = 60  # steps: at a degenerate point each still takes a third of the way
EXACT = 1e-6  # of the range: Newton's last step, and of the usual gradient: what is left of it
APART = 1e-4  # of the range: what is closer is one point
NEAR = 1e-9  # of the range, on both sides of a kink
JUMP = 0.1  # of the derivative's neighbours: more than a root of it would change so close by
DOUBLE = 1e-8  # of the derivative's neighbours: what is left of it at a double root
CLOSE = 1e-2  # of the range: what is near
AROUND = (1e-3, 1e-2)  # of the range: how far a look around a degenerate point goes
FILL = 30  # more degenerate points than that are a line of them, or an area
LISTED = 12  # of these


@dataclass(frozen=True)
class Point:
    """Where a function neither rises nor falls.

    Attributes:
        x: where, a number a variable.
        value: of the function.
        kind: ``minimum``, ``maximum``, ``saddle`` or ``flat``. Where second derivatives leave it
            open, by the values close around.
        degenerate: whether they leave it open.
        eigenvalues: of the Hessian, ascending; none at a kink.
        why: one sentence.
    """

    x: tuple[float, ...]
    value: float
    kind: str
    degenerate: bool
    eigenvalues: tuple[float, ...]
    why: str


@dataclass(frozen=True)
class Points:
    """What was found in a range.

    Attributes:
        points: lowest first.
        note: what a reader has to know, or nothing: stretches or lines of points that were left
            out.
    """

    points: tuple[Point, ...]
    note: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """A row a point: ``x, y, value, kind, degenerate, why``; ``y`` is NaN of one variable."""
        rows = [
            ((*p.x, math.nan)[0], (*p.x, math.nan)[1], p.value, p.kind, p.degenerate, p.why)
            for p in self.points
        ]
        return pd.DataFrame(rows, columns=["x", "y", "value", "kind", "degenerate", "why"])

    def of(self, kind: str) -> tuple[Point, ...]:
        """Those of a kind."""
        return tuple(point for point in self.points if point.kind == kind)


def critical_points(function: Function, box: Box | None = None) -> Points:
    """Find and classify all critical points in a range.

    Of one variable, by the signs of the derivative at 4097 places, a root between each two that
    differ, and the double roots where it touches zero; kinks, as of ``abs(x)``, are found too. Of
    two, by Newton's method from all of 160 x 160 cells in which both derivatives change sign, and
    from a coarser grid. Points closer to each other than that may be missed.

    Args:
        function: of one or two variables.
        box: lowest and highest value of each; the function's own range by default.

    Raises:
        LandscapeError: for a range that is none of this function, or in which it is not finite
            anywhere.
    """
    if not isinstance(function, Function):
        raise LandscapeError("function", f"must be one that `function` gives, got {function!r}")
    box = function.range if box is None else checked_box(function, box)
    if len(box) == 1:
        return _on_line(function, box[0])
    return _on_plane(function, box)


def kind_at(function: Function, x: Any, width: float, gradient: float | None = None) -> Point:
    """What kind of point this is.

    Args:
        function: of any number of variables.
        x: the point.
        width: of the range, from which follows how far a look around goes.
        gradient: norm up to which it counts as zero; as `classify` has it by default.

    Returns:
        The point; its kind may also be ``not critical``.
    """
    place = tuple(float(value) for value in x)
    try:
        found = classify(function, place, gradient_tolerance=gradient)
    except LandscapeError as error:
        value = float(function(torch.tensor(place, dtype=torch.float64)))
        kind, seen = _look_around(function, place, width)
        return Point(place, value, kind, True, (), f"{error.problem}; {seen}")
    kind, why = found.verdict, found.why
    degenerate, reach = kind == "degenerate", CLOSE * width
    # A bound on Newton's step: where it is small there is a critical point, and it is near.
    far = found.gradient_norm > reach * float(np.abs(found.eigenvalues).min())
    if kind != "not critical" and (degenerate or far):
        centre = _centre(function, place, found.tolerance, reach)
        if centre is None:
            kind, seen = "flat", "the gradient vanishes, and yet no critical point is near"
            why = f"{why}; {seen}"
        elif degenerate:
            kind, seen = _look_around(function, centre, width)
            why = f"{why}; {seen}"
    return Point(place, found.value, kind, degenerate, tuple(found.eigenvalues.tolist()), why)


def _centre(
    function: Function, place: tuple[float, ...], flat: float, reach: float
) -> tuple[float, ...] | None:
    """The critical point within reach, if there is one.

    First without the directions whose curvature counts as zero, as those along a valley, in which
    Newton's method would run away; with all where that leaves much of the gradient, as of x³.
    """
    for least, share in ((flat, 1e-3), (0.0, math.inf)):
        centre, before, after = _settled(function, place, least)
        if math.dist(centre, place) <= reach and after <= share * before:
            return centre
    return None


def _settled(
    function: Function, place: tuple[float, ...], least: float
) -> tuple[tuple[float, ...], float, float]:
    """Where Newton's method ends up, and the gradient's norm before and after.

    Args:
        function: likewise.
        place: likewise.
        least: directions with no more curvature than that are left alone.
    """
    at, norms = np.array(place), []
    for _ in range(NEWTON):
        gradient, hessian = (t[0].numpy() for t in function.curvature(torch.tensor(at[None])))
        if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            norms.append(math.inf)
            break
        norms.append(float(np.linalg.norm(gradient)))
        values, vectors = np.linalg.eigh(hessian)
        curved = np.abs(values) > max(least, 1e-15 * float(np.abs(values).max()))
        along = vectors[:, curved]
        at = at - along @ ((along.T @ gradient) / values[curved])
    return tuple(at.tolist()), norms[0], norms[-1]


def _look_around(function: Function, place: tuple[float, ...], width: float) -> tuple[str, str]:
    """Kind of a point by the values close around."""
    value = float(function(torch.tensor(place, dtype=torch.float64)))
    angles = torch.arange(64, dtype=torch.float64) * (2 * torch.pi / 64)
    sides = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    directions = sides if len(place) == 1 else torch.stack([angles.cos(), angles.sin()], 1)
    for part in AROUND:
        with torch.no_grad():
            found = function(torch.tensor(place, dtype=torch.float64) + part * width * directions)
        found = found[found.isfinite()]
        if not len(found):
            continue
        rounding = 64 * float(np.finfo(np.float64).eps) * max(abs(value), float(found.abs().max()))
        lower, higher = (
            bool((found < value - rounding).any()),
            bool((found > value + rounding).any()),
        )
        if lower and higher:
            return "saddle", "around it the function is higher on one side and lower on another"
        if lower or higher:
            words = "lower" if lower else "higher"
            return ("maximum" if lower else "minimum"), f"around it the function is {words}"
    return "flat", "around it the function does not change"


def _sampled(function: Function, places: Array) -> tuple[Array, Array, float]:
    """Values, gradients, and up to which norm a gradient is as good as zero."""
    found, slope = function.slope(torch.from_numpy(places))
    values, slopes = found.numpy(), slope.numpy()
    finite = np.isfinite(values) & np.isfinite(slopes).all(1)
    if not finite.any():
        raise LandscapeError(
            "range", f"{function.name} is not finite anywhere there; give another range"
        )
    norms = np.hypot.reduce(slopes[finite], axis=1)  # which no square overflows in
    usual = np.median(norms[norms > 0]) if (norms > 0).any() else 0.0
    return values, slopes, EXACT * float(usual)


def _sorted(points: list[Point], note: str = "") -> Points:
    return Points(tuple(sorted(points, key=lambda point: (point.value, point.x))), note)


def _on_line(function: Function, ends: tuple[float, float]) -> Points:
    width = ends[1] - ends[0]
    places = np.linspace(*ends, SAMPLES)
    _, slopes, small = _sampled(function, places[:, None])
    slope = slopes[:, 0]

    def first(x: float) -> float:
        slope = float(function.slope(torch.tensor([[x]], dtype=torch.float64))[1])
        return 0.0 if math.isnan(slope) else slope  # on a pole, which the search then ends at

    def second(x: float) -> float:
        return float(function.curvature(torch.tensor([[x]], dtype=torch.float64))[1])

    def root(of: Any, left: Any, right: Any) -> float:
        # By halves: what is faster elsewhere is slower at a root of third or higher order.
        return float(bisect(of, places[left], places[right], xtol=1e-15 * width, rtol=1e-15))

    def at(x: float) -> Point:
        return kind_at(function, [x], width, max(small, 2 * abs(first(x))))

    found: list[Point] = []
    sign = np.where(np.isfinite(slope), np.sign(slope), np.nan)
    for i in np.flatnonzero(sign[:-1] * sign[1:] < 0):
        x = root(first, i, i + 1)
        if _jumps(first, x, width, slope[i : i + 2]):
            found += _kink(function, x, width, rises=slope[i + 1] > 0)
        else:
            found.append(at(x))
    zero = sign == 0
    flat = zero & (np.roll(zero, 1) | np.roll(zero, -1))
    for k in np.flatnonzero(zero & ~flat):
        # On a kink torch's derivative, that of abs at 0 say, is 0 as well.
        sides = slope[max(int(k) - 1, 0) : k + 2][[0, -1]]
        if sides[0] * sides[1] < 0 and _jumps(first, places[k], width, sides):
            found += _kink(function, places[k], width, rises=sides[1] > 0)
        else:
            found.append(at(places[k]))
    size = np.abs(slope)
    touches = (size[1:-1] < size[:-2]) & (size[1:-1] < size[2:]) & (sign[:-2] * sign[2:] > 0)
    for i in np.flatnonzero(touches & ~zero[1:-1]) + 1:
        if second(places[i - 1]) * second(places[i + 1]) < 0:
            x = root(second, i - 1, i + 1)
            if abs(first(x)) <= DOUBLE * min(size[i - 1], size[i + 1]):
                found.append(at(x))
    note = ""
    if flat.any():
        stretch = places[flat]
        note = f"it is flat, in part or all along, from x = {stretch[0]:.3g} to {stretch[-1]:.3g}"
    return _sorted(found, note)


def _jumps(first: Any, x: float, width: float, slopes: Array) -> bool:
    """Whether the derivative changes its sign without a zero."""
    jump = abs(first(x + NEAR * width) - first(x - NEAR * width))
    return not jump <= JUMP * float(np.abs(slopes).max())


def _kink(function: Function, x: float, width: float, rises: bool) -> list[Point]:
    """The extremum at a kink; none at a pole, where values grow the closer one comes."""
    near = x + width * np.array([0.0, 1e-12, 1e-9, 1e-6])
    with torch.no_grad():
        values = function(torch.from_numpy(near[:, None])).numpy()
    at, one, two, three = values
    if not (np.isfinite(values).all() and abs(two - one) < abs(three - two) / 2):
        return []
    kind = "minimum" if rises else "maximum"
    why = "a kink: the derivative jumps from one sign to the other"
    return [Point((float(x),), float(at), kind, False, (), why)]


def _on_plane(function: Function, box: Box) -> Points:
    low, high = np.array(box).T
    width = high - low
    corners = _grid(box, CELLS + 1)
    _, slopes, small = _sampled(function, corners.reshape(-1, 2))
    field = slopes.reshape(CELLS + 1, CELLS + 1, 2)
    around = np.stack([field[:-1, :-1], field[1:, :-1], field[:-1, 1:], field[1:, 1:]])
    changes = ((around.min(0) <= 0) & (around.max(0) >= 0)).all(-1)
    centres = (corners[:-1, :-1] + corners[1:, 1:])[changes] / 2
    starts = np.concatenate([centres, _grid(box, STARTS).reshape(-1, 2)])
    places, norms = _newton(function, starts, low, high, small)
    kept = _apart(places[np.argsort(norms, kind="stable")] / width, APART) * width
    kept = np.where(np.abs(kept) < NEAR * width, 0.0, kept)
    scale = float(width.max())
    open_ = _open(function, kept)
    note = ""
    if open_.sum() > FILL:
        note = (
            "critical points fill a line or an area, of which a few are listed, besides those "
            "that stand alone"
        )
        some = np.flatnonzero(open_)
        some = some[np.linspace(0, len(some) - 1, LISTED).astype(int)]
        kept = np.concatenate([kept[~open_], kept[some]])
    return _sorted([kind_at(function, x, scale, small) for x in kept], note)


def _grid(box: Box, count: int) -> Array:
    """``(count, count, 2)``."""
    return np.stack(np.meshgrid(*(np.linspace(*ends, count) for ends in box), indexing="ij"), -1)


def _newton(
    function: Function, starts: Array, low: Array, high: Array, small: float
) -> tuple[Array, Array]:
    """Where Newton's method for a zero of the gradient settles within the range."""
    width = high - low
    places = starts
    step = np.full_like(places, np.inf)
    for _ in range(NEWTON):
        gradient, hessian = (t.numpy() for t in function.curvature(torch.from_numpy(places)))
        fine = np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2))
        fine &= ((places >= low - width / 10) & (places <= high + width / 10)).all(1)
        places, gradient, hessian = places[fine], gradient[fine], hessian[fine]
        if not len(places):
            break
        values, vectors = np.linalg.eigh(hessian)
        # Directions without curvature are left alone: along them there is nothing to solve.
        rounding = 1e-14 * np.abs(values).max(1, keepdims=True)
        inverse = np.where(np.abs(values) > rounding, 1 / np.where(values == 0, 1, values), 0)
        along = (vectors * gradient[:, :, None]).sum(1)
        step = -(vectors * (inverse * along)[:, None, :]).sum(-1)
        longest = np.abs(step / width).max(1, keepdims=True)
        step = step / np.maximum(1, longest / 0.02)  # so that it stays near its start
        places = places + step
    if not len(places):
        return places, np.zeros(0)
    _, gradient_there = function.slope(torch.from_numpy(places))
    norms = np.linalg.norm(gradient_there.numpy(), axis=1)
    edge = NEAR * width
    settled = (np.abs(step) <= EXACT * width).all(1) & (norms <= small)
    settled &= ((places >= low - edge) & (places <= high + edge)).all(1)
    return places[settled], norms[settled]


def _apart(places: Array, distance: float) -> Array:
    """The first of each heap of places that are closer to each other than that."""
    kept = np.zeros((0, places.shape[1]))
    left = places
    while len(left):
        kept = np.concatenate([kept, left[:1]])
        left = left[(np.abs(left - left[0]) > distance).any(1)]
    return kept


def _open(function: Function, places: Array) -> NDArray[np.bool_]:
    """Where an eigenvalue is next to nothing beside the other."""
    if not len(places):
        return np.zeros(0, dtype=bool)
    _, hessian = function.curvature(torch.from_numpy(places))
    sizes = np.abs(np.linalg.eigvalsh(hessian.numpy()))
    return np.asarray(sizes.min(1) <= EXACT * sizes.max(1))
