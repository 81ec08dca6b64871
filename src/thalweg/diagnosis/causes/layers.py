"""Causes in how activations and gradients go from layer to layer."""

from collections.abc import Callable

import pandas as pd

from thalweg.diagnosis.case import Case, Suspicion
from thalweg.diagnosis.causes.mends import (
    Mend,
    clip,
    initialise,
    leave,
    normalise,
    rectify,
    trials,
)
from thalweg.landscape.symptoms import Symptom, dead, exploding, nonfinite, saturated, vanishing

__all__ = ["dead_relu", "exploding_gradient", "saturation", "vanishing_gradient"]


def vanishing_gradient(case: Case) -> Suspicion | None:
    """Gradients that get too small on the way back to be of use."""
    return _suspicion(case, vanishing, (initialise, normalise, rectify))


def exploding_gradient(case: Case) -> Suspicion | None:
    """Activations and gradients that grow from layer to layer."""
    first = case.flow.first_nonfinite
    if first is not None and first.step == 0 and first.what == "activation":
        # Beyond the range of numbers, where no size is left to compare.
        return _with_trials(case, nonfinite(case.flow), (initialise, normalise))
    return _suspicion(case, exploding, (initialise, normalise, clip))


def saturation(case: Case) -> Suspicion | None:
    """Bounded activations that are flat where they are used."""
    return _suspicion(case, saturated, (initialise, normalise, rectify))


def dead_relu(case: Case) -> Suspicion | None:
    """ReLU units that are active for no sample, and so get no gradient."""
    return _suspicion(case, dead, (leave, initialise, rectify))


def _suspicion(
    case: Case,
    symptom: Callable[[pd.DataFrame], Symptom | None],
    mends: tuple[Mend, ...],
) -> Suspicion | None:
    frame = case.flow.frame
    # What is so before the first step is no consequence of how large the steps are.
    found = symptom(frame[frame["step"] == 0])
    if found is None:
        later = symptom(frame)
        # Whether a unit is dead takes later samples to tell.
        dead_at_start = later is not None and symptom is dead and later.step == 0
        found = later if dead_at_start or not _mended_by_rate(case) else None
    return _with_trials(case, found, mends)


def _with_trials(case: Case, found: Symptom | None, mends: tuple[Mend, ...]) -> Suspicion | None:
    if found is None:
        return None
    when = "Before the first step" if found.step == 0 else f"From step {found.step} on,"
    return Suspicion(
        "exploding_gradient" if found.cause == "nonfinite" else found.cause,
        f"{when} {found.evidence}. As it is set the training comes to {case.said(case.base)}.",
        trials(case, mends),
    )


def _mended_by_rate(case: Case) -> bool:
    lower = [o for f, o in case.rates.items() if f < 1]
    skills = [float(case.scale.skill(case.scores(o)).mean()) for o in lower]
    return max(skills, default=0.0) > case.skill + case.scale.least
