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


NEARLY_ALL = 0.9  # of a layer's units: where so many are dead, next to nothing comes through


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
    return _suspicion(case, _dead, (leave, initialise, rectify))


def _dead(frame: pd.DataFrame) -> Symptom | None:
    """But for the half of a deep network's units that a signal which vanished leaves off.

    Of what no longer depends on the sample a unit is on for all samples or for none.
    """
    found = dead(frame)
    if found is None or found.value >= NEARLY_ALL:
        return found
    return None if vanishing(frame[frame["step"] == frame["step"].min()]) else found


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
        dead_at_start = later is not None and symptom is _dead and later.step == 0
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
