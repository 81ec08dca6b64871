"""Moments in fewer bits: bytes that a step moves, and its time, against float32."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Row, alternate, shown
from benchmarks.sets import SETS
from benchmarks.step import LR, parameters
from thalweg.optim.registry import OPTIMIZERS, Entry

FEWER = ("bfloat16", "8bit")


def _moved(entry: Entry, state: str | None) -> float:
    """Bytes an element: read parameter and gradient, write the parameter, read and write state."""
    return 4 * 3 + 2 * entry.bytes_a_parameter({"lr": LR, "state": state})


def _stepper(entry: Entry, state: str | None) -> Callable[[], object]:
    arguments: dict[str, Any] = {"lr": LR, "state": state}
    optimizer = entry.constructor(parameters(SETS["transformer (30 M)"]), **arguments)
    if not entry.needs_closure(arguments):
        return optimizer.step
    loss = torch.zeros(())
    return lambda: optimizer.step(lambda: loss)


def memory() -> list[Row]:
    """Every optimizer with moments, in bfloat16 and in eight bits."""
    rows = []
    for name, entry in OPTIMIZERS.items():
        # A rule of whole matrices spends its time on their products.
        rule = entry.resolved({"lr": LR})
        if not rule.moments or rule.whole:
            continue
        plain = _moved(entry, None)
        found = alternate({str(state): _stepper(entry, state) for state in (None, *FEWER)})
        for state in FEWER:
            moved, goal = _moved(entry, state), state == "8bit" and name in ("adam", "adamw")
            rows.append(
                Row(
                    f"{entry.label}, {state}, bytes an element",
                    f"{moved:.4g}",
                    f"{plain:.4g}",
                    moved / plain,
                    "≤ 0.60" if goal else "",
                )
            )
            rows.append(
                Row(
                    f"{entry.label}, {state}, time",
                    shown(found[state]),
                    shown(found["None"]),
                    found["None"] / found[state],
                    "≥ 1" if goal else "",
                )
            )
    return rows
