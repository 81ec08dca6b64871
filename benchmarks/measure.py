"""How everything here is measured: alternating, medians, a ratio."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """One line of a table: what was compared, both times, their ratio and the goal."""

    what: str
    ours: str
    theirs: str
    ratio: float
    goal: str = ""


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Mean wall time of a call over ``times`` in a row."""
    start = perf_counter()
    for _ in range(times):
        call()
    return (perf_counter() - start) / times


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, span: float = 0.05
) -> dict[str, float]:
    """Median seconds of each call, taken in turns so that all see the same machine.

    Args:
        calls: what to time, by name; each is called a few times beforehand.
        rounds: turns of each.
        span: seconds that a turn should last; short calls are repeated within one.
    """
    times = {}
    for name, call in calls.items():
        # The first calls compile, and would make the turns too short.
        first = seconds(call)
        fastest = min(seconds(call) for _ in range(1 if first > 1 else 3))
        times[name] = max(1, int(span / max(fastest, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(seconds(call, times[name]))
    return {name: median(values) for name, values in found.items()}


def report(text: str) -> None:
    """Say on standard error how far a long measurement is."""
    print(text, file=sys.stderr, flush=True)


def shown(value: float) -> str:
    """Seconds in the unit a person would choose."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def table(rows: list[Row], ours: str, theirs: str) -> str:
    """Rows as Markdown."""
    lines = [f"| | {ours} | {theirs} | ratio | goal |", "|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.ours} | {r.theirs} | {r.ratio:.3g} | {r.goal} |" for r in rows]
    return "\n".join(lines)
