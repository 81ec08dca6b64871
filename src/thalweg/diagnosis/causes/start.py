"""Causes in where training starts, and where it stays."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.causes.mends import initialise, leave, trials
from thalweg.diagnosis.changes import from_weights, moved
from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.critical import CriticalPoint, classify_network
from thalweg.landscape.operators import hessian
from thalweg.landscape.surface import module_at
from thalweg.landscape.symptoms import vanishing
from thalweg.numbers import number
from thalweg.replicas import at_start
from thalweg.tasks import Split

__all__ = ["saddle", "zero_init"]

# A training is looked at as stuck if its gradient has come down to this share of what it was at the
# start, and its loss by less than this share over the last third.
CALM = 0.1
STILL = 0.05
# Weights are alike if they are no further apart than this share of what keeps the size of inputs.
ALIKE = 1e-3
SAMPLES = 2048


def zero_init(case: Case) -> Suspicion | None:
    """Weights that start all alike, so that units stay alike or nothing reaches them."""
    task = case.setting.task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seeds[0])
        weights = {n: p.detach() for n, p in task.model().named_parameters() if p.ndim > 1}
    alike = {n: w for n, w in weights.items() if w.numel() > 1 and _apart(w) < ALIKE}
    if not alike:
        return None
    exact = all(_apart(w) == 0 for w in alike.values())
    values = sorted(
        {float(w.flatten()[0]) if exact else round(float(w.mean()), 3) for w in alike.values()}
    )
    zero = values == [0.0]
    why = (
        "what comes back through weights of 0 is 0, and units that are alike stay alike"
        if zero
        else "units that are alike get the same gradient and stay alike"
    )
    return Suspicion(
        "zero_init",
        f"{len(alike)} of {len(weights)} weight matrices start with all values at "
        f"{'' if exact else 'or next to '}{', '.join(map(number, values))} "
        f"({', '.join(list(alike)[:4])}{', …' if len(alike) > 4 else ''}): {why}. As it is set the "
        f"training comes to {case.said(case.base)}.",
        trials(case, (leave, initialise), slower=False),
    )


def _apart(weight: Tensor) -> float:
    """Standard deviation of a matrix in units of what keeps the size of its inputs, 0 if alike."""
    if bool((weight == weight.flatten()[0]).all()):
        return 0.0
    return float(weight.double().std(correction=0)) * math.sqrt(weight[0].numel())


def saddle(case: Case) -> Suspicion | None:
    """A point that has no slope and is no minimum, which training does not leave."""
    train = case.base.grid("train_loss")
    if not case.base.weights or not np.isfinite(train[0]).all() or train.shape[1] < 3:
        return None
    third = train.shape[1] // 3
    before, after = train[0, -2 * third : -third].mean(), train[0, -third:].mean()
    if before - after > STILL * abs(before):
        return None
    frame = case.flow.frame
    if vanishing(frame[frame["step"] == 0]) is not None:
        return None  # whose Hessian is nearly 0 everywhere, which says nothing and takes long
    task = case.setting.task
    _, (slope,) = at_start(task, case.seeds[:1])
    some = Split(*task.train[: min(SAMPLES, len(task.train))])
    calm = CALM * float(slope)
    module = module_at(task, case.base.weights)
    try:
        if np.linalg.norm(hessian(module, task.loss, some).gradient()) > calm:
            return None
        point = classify_network(module, task.loss, some, gradient_tolerance=calm)
    except LandscapeError:  # of a loss that is a sum, or a model that has no second derivatives
        return None
    if point.verdict != "saddle" or point.escape is None or not (point.lowered or 0.0) < 0:
        return None
    setting = case.setting
    stays = setting.but(task=from_weights(task, case.base.weights))
    leaves = setting.but(
        task=moved(stays.task, _by_name(module, point.escape), float(point.step or 0.0))
    )
    length, drop = point.step or 0.0, -(point.lowered or 0.0)
    return Suspicion(
        "saddle",
        f"The training loss has come to rest at {number(after)}, with a gradient of norm "
        f"{number(point.gradient_norm)} ({number(float(slope))} at the start), and its Hessian has "
        f"{_at_least(point)} negative eigenvalues, the lowest "
        f"{number(float(point.eigenvalues[0]))}: a saddle. A step of {number(length)} along its "
        f"direction lowers the loss by {number(drop)}.",
        (
            Trial(
                "add a small random number to each weight, or take the step along the direction of "
                "most negative curvature, and train on",
                leaves,
                against=stays,
            ),
        ),
    )


def _at_least(point: CriticalPoint) -> str:
    return f"{'' if point.method == 'exact' else 'at least '}{point.negative:,}"


def _by_name(module: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Parts of a vector of all trained parameters, by their names."""
    found, at = {}, 0
    for name, p in module.named_parameters():
        if p.requires_grad:
            found[name] = vector[at : at + p.numel()].reshape(p.shape)
            at += p.numel()
    return found
