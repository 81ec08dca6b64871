"""Causes in how activations and gradients go from layer to layer."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.changes import has_activations, initialised, normalised, rectified, reset
from thalweg.diagnosis.setting import Setting
from thalweg.landscape.symptoms import Symptom, dead, exploding, nonfinite, saturated, vanishing
from thalweg.numbers import number
from thalweg.tasks import Task

__all__ = ["dead_relu", "exploding_gradient", "saturation", "vanishing_gradient"]

SLOWER = 0.1  # a rate that is tried besides the one that is set, as a factor on it
CLIP = 1.0


def vanishing_gradient(case: Case) -> Suspicion | None:
    """Gradients that get too small on the way back to be of use."""
    return _suspicion(case, vanishing, (_initialise, _normalise, _rectify))


def exploding_gradient(case: Case) -> Suspicion | None:
    """Activations and gradients that grow from layer to layer."""
    first = case.flow.first_nonfinite
    if first is not None and first.step == 0 and first.what == "activation":
        # Beyond the range of numbers, where no size is left to compare.
        return _with_trials(case, nonfinite(case.flow), (_initialise, _normalise))
    return _suspicion(case, exploding, (_initialise, _normalise, _clip))


def saturation(case: Case) -> Suspicion | None:
    """Bounded activations that are flat where they are used."""
    return _suspicion(case, saturated, (_initialise, _normalise, _rectify))


def dead_relu(case: Case) -> Suspicion | None:
    """ReLU units that are active for no sample, and so get no gradient."""
    return _suspicion(case, dead, (_reset, _initialise, _rectify))


Change = Callable[[Case], "tuple[str, Task | Setting] | None"]


def _initialise(case: Case) -> tuple[str, Task | Setting] | None:
    return (
        "draw the weights at random with variance gain²/inputs (He before ReLU, Glorot before "
        "tanh) and set the biases to 0",
        initialised(case.setting.task, case.flow.layers),
    )


def _reset(case: Case) -> tuple[str, Task | Setting] | None:
    return "leave weights and biases as torch's layers initialise them", reset(case.setting.task)


def _normalise(case: Case) -> tuple[str, Task | Setting] | None:
    return (
        "normalise each hidden layer's outputs (LayerNorm; GroupNorm after convolutions)",
        normalised(case.setting.task),
    )


def _rectify(case: Case) -> tuple[str, Task | Setting] | None:
    task = case.setting.task
    if not has_activations(task):
        return None
    return (
        "take leaky ReLU for the activations, with weights initialised for it",
        rectified(task, case.flow.layers),
    )


def _clip(case: Case) -> tuple[str, Task | Setting] | None:
    return (
        f"clip the norm of the gradient to {CLIP:g}",
        case.setting.but(hyper={"clip_norm": CLIP}),
    )


def _suspicion(
    case: Case,
    symptom: Callable[[pd.DataFrame], Symptom | None],
    changes: tuple[Change, ...],
) -> Suspicion | None:
    frame = case.flow.frame
    # What is so before the first step is no consequence of how large the steps are.
    found = symptom(frame[frame["step"] == 0])
    if found is None:
        later = symptom(frame)
        # Whether a unit is dead takes later samples to tell.
        dead_at_start = later is not None and symptom is dead and later.step == 0
        found = later if dead_at_start or not _mended_by_rate(case) else None
    return _with_trials(case, found, changes)


def _with_trials(
    case: Case, found: Symptom | None, changes: tuple[Change, ...]
) -> Suspicion | None:
    if found is None:
        return None
    trials = []
    for change in changes:
        made = change(case)
        if made is None:
            continue
        words, what = made
        setting = what if isinstance(what, Setting) else case.setting.but(task=what)
        trials.append(Trial(words, setting))
        slower = number(SLOWER * setting.lr)
        trials.append(
            Trial(
                f"{words}, and lower the learning rate to {slower}",
                replace(setting, hyper={**setting.hyper, "lr": SLOWER * setting.lr}),
            )
        )
    when = "Before the first step" if found.step == 0 else f"From step {found.step} on,"
    return Suspicion(
        "exploding_gradient" if found.cause == "nonfinite" else found.cause,
        f"{when} {found.evidence}. The {case.said(case.base)}.",
        tuple(trials),
    )


def _mended_by_rate(case: Case) -> bool:
    lower = [o for f, o in case.rates.items() if f < 1]
    skills = [float(case.scale.skill(case.scores(o)).mean()) for o in lower]
    return max(skills, default=0.0) > case.skill + case.scale.least
