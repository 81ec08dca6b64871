"""Causes in where training starts, and where it stays."""

import torch

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.changes import initialised, reset
from thalweg.numbers import number

__all__ = ["zero_init"]


def zero_init(case: Case) -> Suspicion | None:
    """Weights that start all alike, so that units stay alike or nothing reaches them."""
    task = case.setting.task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seeds[0])
        weights = {n: p.detach() for n, p in task.model().named_parameters() if p.ndim > 1}
    alike = {n: w for n, w in weights.items() if w.numel() > 1 and bool((w == w.flatten()[0]).all())}
    if not alike:
        return None
    values = sorted({float(w.flatten()[0]) for w in alike.values()})
    zero = values == [0.0]
    why = (
        "what comes back through weights of 0 is 0, and units that are alike stay alike"
        if zero
        else "units that are alike get the same gradient and stay alike"
    )
    return Suspicion(
        "zero_init",
        f"{len(alike)} of {len(weights)} weight matrices start with all values at "
        f"{', '.join(map(number, values))} ({', '.join(list(alike)[:4])}"
        f"{', …' if len(alike) > 4 else ''}): {why}. The {case.said(case.base)}.",
        (
            Trial(
                "leave the weights as torch's layers initialise them (reset_parameters)",
                case.setting.but(task=reset(task)),
            ),
            Trial(
                "draw the weights at random with variance gain²/inputs (He or Glorot) and set the "
                "biases to 0",
                case.setting.but(task=initialised(task)),
            ),
        ),
    )
