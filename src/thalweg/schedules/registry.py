"""All schedules: the one place where one is added. Command, text form, docs and tests read it."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from math import expm1, log
from typing import Any

from thalweg.schedules import presets
from thalweg.schedules.schedule import Schedule

__all__ = ["SCHEDULES", "Entry"]

# By default drops come at thirds, or at a half and three quarters, of the training; a warm-up is a
# twentieth of it and wsd's decay a fifth; there are three triangular cycles, and cosines of one,
# two and four sevenths. What approaches 0 without an end comes to this factor with the training's.
_LAST = 0.01


@dataclass(frozen=True)
class Entry:
    """A schedule by name.

    Attributes:
        factory: makes it of its parameters.
        meaning: one line.
        defaults: the parameters that it gets for a training of so many steps, at least 1.
        opens: whether it is the beginning of something: it lasts a part of the training by
            default, and what it reaches is kept if nothing follows.
    """

    factory: Callable[..., Schedule]
    meaning: str
    defaults: Callable[[int], dict[str, Any]]
    opens: bool = False

    @property
    def name(self) -> str:
        """As it is typed."""
        return self.factory.__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(signature(self.factory).parameters)

    def filled(self, steps: int) -> dict[str, Any]:
        """All parameters in a training of so many steps, but for those that are None."""
        own = {p.name: p.default for p in signature(self.factory).parameters.values()}
        return {k: v for k, v in {**own, **self.defaults(steps)}.items() if v is not None}


def _share(steps: int, percent: float) -> int:
    return max(1, round(steps * percent / 100))


def _shortly(value: float) -> float:
    """Three digits, which a table has place for."""
    return float(f"{value:.3g}")


def _gamma(steps: int) -> float:
    """Whose power ``steps`` is the last factor."""
    return round(1 - _shortly(-expm1(log(_LAST) / steps)), 15)


def _milestones(steps: int) -> list[int]:
    return sorted({max(1, steps // 2), max(1, 3 * steps // 4)})


def _wsd(steps: int) -> dict[str, int]:
    decay = _share(steps, 20)
    return {"steps": steps, "warmup": min(_share(steps, 5), steps - decay), "decay": decay}


SCHEDULES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(presets.fixed, "the same rate throughout", lambda n: {}),
        Entry(presets.step, "drops at equal distances", lambda n: {"size": -(-n // 3)}),
        Entry(
            presets.multistep,
            "drops at given steps",
            lambda n: {"milestones": _milestones(n)},
        ),
        Entry(
            presets.exp,
            "the same fraction off each step",
            lambda n: {"gamma": _gamma(n)},
        ),
        Entry(
            presets.inv,
            "falls as a power of the step",
            lambda n: {"gamma": _shortly((_LAST**-0.5 - 1) / n), "power": 2.0},
        ),
        Entry(
            presets.poly,
            "falls as a power of what is left",
            lambda n: {"steps": n, "power": 2.0},
        ),
        Entry(
            presets.sigmoid,
            "stays high, falls, stays low",
            lambda n: {
                "size": max(1, n // 2),
                "gamma": _shortly(log(1 / _LAST - 1) / (n - n // 2)),
            },
        ),
        Entry(presets.cosine, "half a cosine down to its end", lambda n: {"steps": n}),
        Entry(presets.linear, "a line down to its end", lambda n: {"steps": n}),
        Entry(
            presets.warmup,
            "a line up, then what follows",
            lambda n: {"steps": _share(n, 5)},
            opens=True,
        ),
        Entry(
            presets.constant_with_warmup,
            "warm-up, then the same rate",
            lambda n: {"warmup": _share(n, 5)},
        ),
        Entry(
            presets.wsd,
            "warm-up, stable, decay",
            _wsd,
        ),
        Entry(presets.one_cycle, "up, then down far below the start", lambda n: {"steps": n}),
        Entry(
            presets.noam,
            "a line up, then 1 / sqrt(step)",
            lambda n: {"warmup": _share(n, 5)},
        ),
        Entry(
            presets.inverse_sqrt,
            "warm-up, then 1 / sqrt(step)",
            lambda n: {"warmup": _share(n, 5)},
        ),
        Entry(
            presets.triangular,
            "up and down on lines, repeated",
            lambda n: {"half": -(-n // 6)},
        ),
        Entry(
            presets.triangular2,
            "triangular, each half as high",
            lambda n: {"half": -(-n // 6)},
        ),
        Entry(
            presets.exp_range,
            "triangular, falling as exp",
            lambda n: {"half": -(-n // 6), "gamma": _gamma(n)},
        ),
        Entry(
            presets.sgdr,
            "cosine with warm restarts",
            lambda n: {"period": -(-n // 7), "multiplier": 2},
        ),
    )
}
