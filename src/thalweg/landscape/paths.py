"""How optimizers move on a function of one or two variables, all of them at once, in float64.

Each optimizer, learning rate and start is a replica: they take their steps together, by the rules
of the registry as studies run them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError, not_negative, positive, seed_of, whole
from thalweg.landscape.functions import Box, Function, checked_box, function
from thalweg.landscape.points import Point, Points, critical_points, kind_at
from thalweg.optim.registry import OPTIMIZERS, key
from thalweg.replicas.update import Replica, Updates
from thalweg.rules import Rule
from thalweg.rules.rule import Flag, HyperparameterError, Number
from thalweg.schedules import ScheduleError
from thalweg.schedules import parse as parse_schedule

__all__ = ["DEFAULT", "STEPS", "TOLERANCE", "Descent", "Mover", "descend", "diverging", "limit"]

Array: TypeAlias = NDArray[np.float64]

DEFAULT = ("sgd", "momentum", "rmsprop", "adam")
STEPS = 1000
TOLERANCE = 1e-10  # of the squared norm of the gradient
RATES = np.logspace(-4, 2, 25)  # tried for each optimizer, unless rates are given
ALIKE = 1e-6  # of what the best run descends: values that close to the lowest count as equal
UPPER_RIGHT = (0.87, 0.72)  # of the range, off its diagonals
SEEN = 20  # steps that a fall without bound should take, so that its path can be seen
FAR = 1e6  # widths of the range, from which there is no way back

# Where divergence is looked for: six rates a decade, then between the two that matter, three times,
# which leaves five digits.
SCAN = np.logspace(-6, 4, 61)
BETWEEN, ROUNDS, SCANNED = 32, 3, 500
WINDOWS = 12  # of the last part of a run, over which growth is watched
SETTLING = 0.4  # of a run, before


@dataclass(frozen=True)
class Mover:
    """An optimizer with hyperparameters of its own.

    Attributes:
        text: as it was typed, ``momentum:momentum=0.5``.
        label: in tables and legends.
        rule: its update rule.
        hyper: what differs from the defaults, without the rate.
        lr: its rate, if it was given.
        color: ``#rrggbb``.
    """

    text: str
    label: str
    rule: Rule
    hyper: Mapping[str, Any]
    lr: float | None
    color: str

    def replica(self, lr: float, schedule: Any = None) -> Replica:
        """One that moves at this rate."""
        return Replica(self.rule, {**self.complete(), "lr": lr}, 0, schedule)

    def complete(self) -> dict[str, Any]:
        """All hyperparameters; no weight decay unless asked for, which is of another function."""
        return self.rule.complete({"weight_decay": 0.0, **self.hyper})


@dataclass(frozen=True)
class Descent:
    """Where optimizers went.

    Attributes:
        function: that they moved on.
        box: range of each variable that was looked at.
        movers: the optimizers.
        paths: a row a step: ``optimizer, lr, start, step, x, y, value, gradient_norm``; ``start``
            counts from 0, and ``y`` is missing of one variable.
        table: a row an optimizer and start: ``optimizer, lr, start, outcome, steps, x, y, value,
            kind, why, gradient_start, gradient_norm``. ``outcome`` is ``tolerance``, ``steps``,
            ``unbounded`` (the function falls without bound there), ``diverged`` or ``undefined``
            (so is the function there, or its derivative), ``steps`` when it came about, ``kind``
            what the end is: as `Point` has it, or ``not critical``.
        points: critical points in the range.
        starts: as given.
        steps: the limit.
        tolerance: of the squared norm of the gradient, at which a path ends.
        tuned: labels whose rate was the best of those tried.
    """

    function: Function
    box: Box
    movers: tuple[Mover, ...]
    paths: pd.DataFrame = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    points: Points = field(repr=False)
    starts: tuple[tuple[float, ...], ...]
    steps: int
    tolerance: float
    tuned: tuple[str, ...]


def descend(
    on: str | Function,
    optimizers: Iterable[str] = DEFAULT,
    *,
    lr: float | Mapping[str, float] | None = None,
    starts: Sequence[Sequence[float]] | None = None,
    box: Box | None = None,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
    noise: float = 0.0,
    seed: int = 0,
    schedule: str | None = None,
) -> Descent:
    """Move optimizers from their starts until the gradient vanishes.

    A path ends where the squared norm of the gradient is at most ``tolerance``, at the limit of
    steps, or once it is a million widths of the range away. A rate that is not given is tuned: of
    25 from 1e-4 to 100, and of those at which the path comes to rest without leaving the range if
    there are any, the one whose end is lowest (mean over starts), and of equally low ones the
    fastest. Where all go down and out of the range, the fastest that takes 20 steps for it.

    Args:
        on: a name or an expression, as `function` takes it.
        optimizers: names in the registry, with hyperparameters where wanted:
            ``momentum:momentum=0.5:lr=0.1``. Weights do not decay unless that asks for it.
        lr: of all, or by name.
        starts: points; by default the function's own, or one in the upper right of the range.
        box: range of each variable; the function's own by default.
        steps: at most so many.
        tolerance: of the squared norm of the gradient.
        noise: standard deviation of what is added to each entry of the gradient at each step, the
            same for all; where a path ends is decided without it.
        seed: of the noise, from 0.
        schedule: of the rate, as a person types it: ``cosine``.

    Raises:
        LandscapeError: for an argument that cannot be used.
    """
    f = function(on) if isinstance(on, str) else on
    movers = _with_rates([_read(text) for text in _listed(optimizers)], lr)
    box = f.range if box is None else checked_box(f, box)
    begin = _starts(f, starts, box)
    steps, tolerance = whole("steps", steps), positive("tolerance", tolerance)
    noise, seed = not_negative("noise", noise), seed_of(seed)
    factors = None
    if schedule is not None:
        try:
            factors = parse_schedule(schedule, steps, 1).hold()  # replicas look ahead of it
        except ScheduleError as error:
            raise LandscapeError("schedule", error.problem) from None
    runs = [
        (mover, float(rate), k)
        for mover in movers
        for rate in ([mover.lr] if mover.lr is not None else RATES)
        for k in range(len(begin))
    ]
    track = _follow(
        f,
        box,
        [mover.replica(rate, factors) for mover, rate, _ in runs],
        torch.tensor([begin[k] for _, _, k in runs], dtype=torch.float64),
        steps,
        tolerance,
        noise,
        seed,
    )
    points = critical_points(f, box)
    best = _best(track, runs, len(begin), box, bool(points.of("minimum")))
    paths = pd.concat([_path(track, i, f.variables, *runs[i]) for i in best], ignore_index=True)
    table = pd.DataFrame([_row(f, box, track, i, tolerance, *runs[i]) for i in best])
    tuned = tuple(mover.label for mover in movers if mover.lr is None)
    return Descent(f, box, tuple(movers), paths, table, points, begin, steps, tolerance, tuned)


def _listed(optimizers: Iterable[str]) -> list[str]:
    listed = [optimizers] if isinstance(optimizers, str) else list(optimizers)
    if not listed:
        raise LandscapeError("optimizers", f"none given; choose from {', '.join(OPTIMIZERS)}")
    return list(dict.fromkeys(listed))


def _read(text: str) -> Mover:
    """``momentum:momentum=0.5`` as a person types it."""
    if not isinstance(text, str):
        raise LandscapeError("optimizers", f"must be names, got {text!r}")
    name, *assignments = (word.strip() for word in text.split(":"))
    entry = OPTIMIZERS.get(key(name))
    if entry is None:
        near = get_close_matches(key(name), OPTIMIZERS, 1)
        meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(OPTIMIZERS)}"
        raise LandscapeError("optimizers", f"there is no {name!r}; {meant}")
    given: dict[str, Any] = {}
    for assignment in assignments:
        parameter, equals, value = (word.strip() for word in assignment.partition("="))
        if not (equals and value) or parameter in given:
            raise LandscapeError(
                "optimizers", f"{text!r}: write each hyperparameter once, {name}:lr=0.1 say"
            )
        given[parameter] = _value(entry.rule, parameter, value)
    try:
        entry.rule.check(given)
    except HyperparameterError as error:
        raise LandscapeError("optimizers", f"{text!r}: {error}") from None
    said = ", ".join(word.strip() for word in assignments)
    label = f"{entry.label} ({said})" if said else entry.label
    lr = given.pop("lr", None)
    return Mover(text, label, entry.rule, given, None if lr is None else float(lr), entry.color)


def _value(rule: Rule, name: str, text: str) -> Any:
    """As its hyperparameter takes it; what is none stays text, which the rule then refuses."""
    known = rule.every_hyper.get(name)
    if isinstance(known, Flag):
        return {"true": True, "false": False}.get(text.lower(), text)
    if text.lower() == "none":
        return None
    if not isinstance(known, Number):
        return text
    try:
        numbers = tuple(float(word) for word in text.split("/"))
    except ValueError:
        return text
    return (
        numbers if isinstance(known.default, tuple) else numbers[0] if len(numbers) == 1 else text
    )


def _with_rates(movers: list[Mover], lr: float | Mapping[str, float] | None) -> list[Mover]:
    if lr is None:
        return movers
    by_name = dict(lr) if isinstance(lr, Mapping) else {mover.text: lr for mover in movers}
    rates = {key(name): positive("lr", rate) for name, rate in by_name.items()}
    unknown = [name for name in by_name if key(name) not in {key(m.text) for m in movers}]
    if unknown:
        raise LandscapeError(
            "lr",
            f"{unknown[0]!r} is none of the optimizers: {', '.join(m.text for m in movers)}",
        )
    return [
        mover
        if mover.lr is not None or key(mover.text) not in rates
        else Mover(
            mover.text, mover.label, mover.rule, mover.hyper, rates[key(mover.text)], mover.color
        )
        for mover in movers
    ]


def _starts(
    f: Function, starts: Sequence[Sequence[float]] | None, box: Box
) -> tuple[tuple[float, ...], ...]:
    if starts is None:
        return (_usual_start(f, box),)
    wanted = f"must be a finite number for each of {' and '.join(f.variables)}"
    try:
        begin = tuple(tuple(map(float, start)) for start in starts)
    except (TypeError, ValueError):
        raise LandscapeError(
            "start",
            f"each {wanted}, in parentheses, {'(0.5,)' if len(box) == 1 else '(1, 2)'} "
            f"say, got {starts!r}",
        ) from None
    if not begin:
        raise LandscapeError("start", "none given")
    for one in begin:
        shown = ",".join(f"{value:g}" for value in one)
        if len(one) != len(f.variables) or not all(map(math.isfinite, one)):
            raise LandscapeError("start", f"{wanted}, got {shown}")
        if not _finite(f, [one])[0]:
            raise LandscapeError(
                "start", f"{f.name} or its gradient is not finite at {shown}; start elsewhere"
            )
    return begin


def _finite(f: Function, places: Any) -> NDArray[np.bool_]:
    values, slopes = f.slope(torch.tensor(places, dtype=torch.float64))
    return np.asarray((values.isfinite() & slopes.isfinite().all(1)).numpy())


def _usual_start(f: Function, box: Box) -> tuple[float, ...]:
    """The function's own start, or one to the upper right where it can start at all."""
    low, high = np.array(box).T
    if f.start and (np.array(f.start) >= low).all() and (np.array(f.start) <= high).all():
        return f.start
    shares = np.stack(np.meshgrid(*[np.linspace(0, 1, 61)] * len(box), indexing="ij"), -1)
    shares = shares.reshape(-1, len(box))
    distance = np.linalg.norm(shares - UPPER_RIGHT[: len(box)], axis=1)
    places = (low + shares * (high - low))[np.argsort(distance, kind="stable")]
    finite = _finite(f, places)
    if not finite.any():
        raise LandscapeError("range", f"{f.name} is not finite anywhere there; give another range")
    return tuple(places[int(np.argmax(finite))].tolist())


@dataclass(frozen=True)
class _Track:
    """Where replicas went, NaN from where they ended.

    Attributes:
        places: ``(steps + 1, replicas, variables)``.
        values: ``(steps + 1, replicas)``.
        squares: of the gradients' norms, likewise.
        ended: the last step of each, ``(replicas,)``.
        outcomes: how.
    """

    places: Array
    values: Array
    squares: Array
    ended: NDArray[np.int64]
    outcomes: list[str]


def _follow(
    f: Function,
    box: Box,
    replicas: Sequence[Replica],
    starts: Tensor,
    steps: int,
    tolerance: float,
    noise: float = 0.0,
    seed: int = 0,
) -> _Track:
    """Move all replicas, each from its start, ``(replicas, variables)``."""
    count, n = starts.shape
    low, high = torch.tensor(box, dtype=torch.float64).T
    middle, far = (low + high) / 2, FAR * (high - low)
    floor = np.minimum(_lowest(f, box), f.slope(starts)[0].numpy())
    places = np.full((steps + 1, count, n), np.nan)
    values, squares = np.full((2, steps + 1, count), np.nan)
    ended = np.full(count, -1)
    outcomes = ["steps"] * count
    place = starts.clone()
    updates = Updates(replicas, [place])
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps + 1):
        shown = updates.to_answers() if step else []  # an average of no steps is nowhere
        value, gradient = f.slope(place)
        square = gradient.square().sum(1)
        alive = ended < 0
        places[step, alive] = place.numpy()[alive]
        values[step, alive] = value.numpy()[alive]
        squares[step, alive] = square.numpy()[alive]
        far_away = ~((place - middle).abs() <= far).all(1)
        lost = ~(value.isfinite() & square.isfinite()) | far_away
        updates.return_from(shown)
        there = alive & (square <= tolerance).numpy()
        gone = alive & lost.numpy()
        out = (there | gone) if step < steps else alive
        for i in np.flatnonzero(out):
            ended[i] = step
            if there[i]:
                outcomes[i] = "tolerance"
            elif gone[i] or not _within(places[step, i], box, 1.0):
                known = np.flatnonzero(np.isfinite(values[: step + 1, i]))[-1]
                if values[known, i] < floor[i] and not _within(places[known, i], box):
                    outcomes[i] = "unbounded"
                elif gone[i]:
                    outcomes[i] = "diverged" if far_away[i] else "undefined"
        if (ended >= 0).all():
            break
        if out.any():
            updates.drop(np.flatnonzero(out).tolist())
        rest = torch.from_numpy(ended >= 0)
        place[rest] = starts[rest]  # what is not finite would trouble the matrices of others
        ahead = updates.look_ahead()
        if shown or ahead:
            _, gradient = f.slope(place)
        updates.return_from(ahead)
        if noise:
            gradient = gradient + noise * torch.randn(n, generator=generator, dtype=torch.float64)
        updates.step([torch.where(rest[:, None], 0.0, gradient)])
    return _Track(places, values, squares, ended, outcomes)


def _lowest(f: Function, box: Box) -> float:
    """The lowest value in the range, as a grid has it."""
    lines = [torch.linspace(*ends, 101, dtype=torch.float64) for ends in box]
    with torch.no_grad():
        values = f(torch.stack(torch.meshgrid(*lines, indexing="ij"), -1))
    values = values[values.isfinite()]
    return float(values.min()) if len(values) else math.inf


def _within(place: Array, box: Box, margin: float = 0.0) -> bool:
    """Whether a place is in the range, or outside by at most so many of its widths."""
    return all(
        low - margin * (high - low) <= x <= high + margin * (high - low)
        for x, (low, high) in zip(place, box, strict=True)
    )


def _best(
    track: _Track,
    runs: Sequence[tuple[Mover, float, int]],
    starts: int,
    box: Box,
    holds: bool,
) -> list[int]:
    """The runs of each optimizer's best rate, from all starts."""
    ends = track.values[track.ended, np.arange(len(runs))]
    ranks, falls = _ranks(track, box, holds)
    chosen: list[int] = []
    for mover in dict.fromkeys(mover.text for mover, _, _ in runs):
        mine = np.array([i for i, run in enumerate(runs) if run[0].text == mover])
        mine = mine.reshape(-1, starts)  # by rate, then start
        rank = ranks[mine].max(1)
        able = rank == rank.min()
        if rank.min() == falls:
            steps = np.array([[_leaves(track.places[:, i], box) for i in row] for row in mine])
            seen = able & (steps.mean(1) >= SEEN)
            able = seen if seen.any() else able
        else:
            mean, top = ends[mine].mean(1), track.values[0][mine].mean()
            lowest = mean[able].min()
            able &= mean <= lowest + ALIKE * max(top - lowest, 0.0)
            steps = track.ended[mine]
        chosen += mine[int(np.argmin(np.where(able, steps.mean(1), np.inf)))].tolist()
    return chosen


def _ranks(track: _Track, box: Box, holds: bool) -> tuple[NDArray[np.int64], int]:
    """How well each run went, 0 the best, whatever its end is worth.

    Args:
        track: of the runs.
        box: the range.
        holds: whether there is a minimum in it, so that leaving it downwards is no success.

    Returns:
        Ranks, and which of them is of those that left it downwards.
    """
    low, high = np.array(box).T
    first, last = track.places[0], track.places[track.ended, np.arange(len(track.ended))]
    low, high = np.minimum(low, first), np.maximum(high, first)
    with np.errstate(invalid="ignore"):
        left = ((track.places < low) | (track.places > high)).any((0, 2))
        stays = ((last >= low) & (last <= high)).all(1)
    how = np.array(track.outcomes)
    settled = (how == "tolerance") & stays
    falls = (how == "unbounded") | ((how == "tolerance") & ~stays)
    rank = 3 if holds else 2
    return np.select(
        [settled & ~left, settled, falls, how == "steps"], [0, 1, rank, 5 - rank], 4
    ), rank


def _leaves(places: Array, box: Box) -> int:
    """Step at which a path leaves the range."""
    low, high = np.array(box).T
    with np.errstate(invalid="ignore"):
        outside = ~((places >= low) & (places <= high)).all(1)
    return int(np.argmax(outside)) if outside.any() else len(places)


def _path(
    track: _Track, i: int, variables: Sequence[str], mover: Mover, lr: float, start: int
) -> pd.DataFrame:
    end = int(track.ended[i]) + 1
    where = track.places[:end, i]
    return pd.DataFrame(
        {
            "optimizer": mover.label,
            "lr": lr,
            "start": start,
            "step": np.arange(end),
            "x": where[:, 0],
            "y": where[:, 1] if len(variables) > 1 else np.nan,
            "value": track.values[:end, i],
            "gradient_norm": np.sqrt(track.squares[:end, i]),
        }
    )


def _row(
    f: Function,
    box: Box,
    track: _Track,
    i: int,
    tolerance: float,
    mover: Mover,
    lr: float,
    start: int,
) -> dict[str, Any]:
    end, outcome = int(track.ended[i]), track.outcomes[i]
    where = track.places[end, i]
    point = None
    if outcome == "tolerance":
        # The norm up to which the gradient counts as zero is that at which the path ended.
        point = kind_at(f, where, _width(box), math.sqrt(tolerance) * (1 + 1e-9))
    return {
        "optimizer": mover.label,
        "lr": lr,
        "start": start,
        "outcome": outcome,
        "steps": end,
        "x": float(where[0]),
        "y": float(where[1]) if len(where) > 1 else math.nan,
        "value": float(track.values[end, i]),
        "kind": "not critical" if point is None else point.kind,
        "why": "the path did not end at a critical point" if point is None else point.why,
        "gradient_start": math.sqrt(track.squares[0, i]),
        "gradient_norm": math.sqrt(track.squares[end, i]),
    }


def _width(box: Box) -> float:
    return max(high - low for low, high in box)


def diverging(descent: Descent) -> pd.DataFrame:
    """The learning rate from which on each optimizer runs away, beside theory.

    Looked for from the first start, without noise and schedule: of 61 rates from 1e-6 to 1e4 the
    lowest at which the path runs away within 500 steps, be it to where the function is not defined,
    then closer. A path that does not is still one that diverges if its value rises, steadily and no
    slower in the end.

    Args:
        descent: whose optimizers and start are meant; theory is about the minimum next to the end
            of each path.

    Returns:
        A row an optimizer: ``optimizer, lr`` (the path's), ``diverges_at`` (NaN if at no rate, or
        where there is no minimum to stay at), ``sharpness`` (the largest eigenvalue of the Hessian
        at the minimum), ``theory`` (NaN without) and ``formula``.
    """
    f, box = descent.function, descent.box
    first = descent.table[descent.table["start"] == 0]
    minima = [
        _reached(np.array([x, y])[: len(box)], descent.points)
        if outcome in ("tolerance", "steps")
        else None
        for x, y, outcome in zip(first["x"], first["y"], first["outcome"], strict=True)
    ]
    asked = [m for m, minimum in zip(descent.movers, minima, strict=True) if minimum is not None]
    found = _edges(f, box, asked, descent.starts[0])
    edges = dict(zip((m.text for m in asked), found, strict=True))
    rows = []
    for mover, minimum, lr in zip(descent.movers, minima, first["lr"], strict=True):
        sharpness = max(minimum.eigenvalues, default=math.nan) if minimum else math.nan
        theory, formula = limit(mover, sharpness)
        rows.append(
            {
                "optimizer": mover.label,
                "lr": lr,
                "diverges_at": edges.get(mover.text, math.nan),
                "sharpness": sharpness,
                "theory": theory,
                "formula": formula,
            }
        )
    return pd.DataFrame(rows)


def _reached(end: Array, points: Points) -> Point | None:
    """The minimum next to the end of a path."""
    minima = points.of("minimum")
    return min(minima, key=lambda p: float(np.linalg.norm(p.x - end)), default=None)


def limit(mover: Mover, sharpness: float) -> tuple[float, str]:
    """The learning rate beyond which a minimum cannot hold an optimizer, and its formula.

    On a quadratic whose largest eigenvalue is L, a step is linear in position and velocity, and
    its matrix has the characteristic polynomial z² - t z + d, whose roots are inside the unit
    circle if and only if |d| < 1 and |t| < 1 + d. With a = lr L and s for what the velocity takes
    of the gradient (1, less the dampening; of a moving average 1 - mu):

    - heavy ball: t = 1 + mu - s a, d = mu, so that lr < 2 (1 + mu) / (s L); without momentum 2 / L.
    - Nesterov, in both forms: t = 1 + mu - a (1 + mu s), d = mu (1 - a), so that
      lr < 2 (1 + mu) / ((1 + mu + mu s) L), which is 2 (1 + mu) / ((1 + 2 mu) L) without dampening.

    Args:
        mover: an optimizer.
        sharpness: L.

    Returns:
        NaN and an empty text for optimizers of which there is no such formula, or with weight
        decay or a bound on the gradient.
    """
    hyper = mover.complete()
    plain = not hyper["weight_decay"] and not hyper["maximize"]
    bounded = hyper["clip_value"] is not None or hyper["clip_norm"] is not None
    name = mover.rule.name
    if name not in ("SGD", "Momentum", "NAG") or not plain or bounded or not sharpness > 0:
        return math.nan, ""
    mu, taken = hyper["momentum"], 1 - hyper["dampening"]
    if hyper.get("form") in ("sutskever", "ewma", "lookahead"):
        taken = 1 - mu if hyper["form"] == "ewma" else 1.0
    if not mu:
        return 2 / sharpness, "2/L"
    if not taken:  # the velocity keeps the first gradient, and there is no path of this kind
        return math.nan, ""
    by = "" if taken == 1 else f" · {taken:g}"
    if name == "NAG" or hyper.get("nesterov"):
        formula = "2(1+μ)/((1+2μ)L)" if taken == 1 else f"2(1+μ)/((1+μ+μ{by})L)"
        return 2 * (1 + mu) / ((1 + mu + mu * taken) * sharpness), formula
    return 2 * (1 + mu) / (taken * sharpness), f"2(1+μ)/(L{by})" if by else "2(1+μ)/L"


def _edges(f: Function, box: Box, movers: Sequence[Mover], start: Sequence[float]) -> list[float]:
    """The lowest rate at which each runs away, NaN if it never does."""
    tried = [SCAN for _ in movers]
    found = [math.nan for _ in movers]
    for _ in range(1 + ROUNDS):
        left = [k for k in range(len(movers)) if len(tried[k])]
        if not left:
            break
        pairs = [(k, rate) for k in left for rate in tried[k].tolist()]
        track = _follow(
            f,
            box,
            [movers[k].replica(rate) for k, rate in pairs],
            torch.tensor([tuple(start)] * len(pairs), dtype=torch.float64),
            SCANNED,
            0.0,
        )
        away = np.array([o not in ("tolerance", "steps") for o in track.outcomes])
        away |= _rises(track.values)
        for k in left:
            rates, runs = tried[k], away[[i for i, pair in enumerate(pairs) if pair[0] == k]]
            first = int(np.argmax(runs)) if runs.any() else len(runs)
            high = rates[first] if first < len(runs) else found[k]
            found[k] = float(high)
            low = rates[first - 1] if first else math.nan
            between = math.isfinite(low) and math.isfinite(high) and low < high
            tried[k] = np.geomspace(low, high, BETWEEN + 2)[:-1] if between else np.zeros(0)
    return found


def _rises(values: Array) -> NDArray[np.bool_]:
    """Whether the value rises steadily and does not slow down, ``(replicas,)``.

    Its maxima over stretches of the run, so that swinging to and fro does not count; what comes to
    rest on a cycle slows down.
    """
    late = values[int(SETTLING * len(values)) :]
    rise = np.diff([part.max(0) for part in np.array_split(late, WINDOWS)], axis=0)
    half = len(rise) // 2
    return np.asarray((rise > 0).all(0) & (rise[-half:].sum(0) >= 0.9 * rise[:half].sum(0)))
