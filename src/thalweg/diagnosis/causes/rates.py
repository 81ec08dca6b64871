"""Causes in how large the steps are and how many samples they see."""

import numpy as np

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.setting import Outcome
from thalweg.numbers import number
from thalweg.studies.intervals import shown

__all__ = ["batch_too_large", "lr_too_high", "lr_too_low"]

# A batch is suspected if it is this share of the training data, and more than a small one.
SHARE = 1 / 8
SMALL = 32


def lr_too_high(case: Case) -> Suspicion | None:
    """Lower rates do better, and not because they train less."""
    return _rate(case, "lr_too_high", "lower", [f for f in case.rates if f < 1])


def lr_too_low(case: Case) -> Suspicion | None:
    """Higher rates get further in as many steps."""
    return _rate(case, "lr_too_low", "raise", [f for f in case.rates if f > 1])


def _rate(case: Case, cause: str, verb: str, factors: list[float]) -> Suspicion | None:
    floor = case.scale.floor
    better = {
        f: case.rates[f]
        for f in factors
        # One that generalises better while it fits worse mends over-fitting, not the rate.
        if _loss(case.rates[f]) < _loss(case.base.upto(case.rates[f].epochs))
    }
    if not better:
        return None
    skills = {f: float(case.scale.skill(case.scores(o)).mean()) for f, o in better.items()}
    top = max(skills.values())
    # Of rates as good as the best the one in the middle: those at the ends are good by a hair.
    good = sorted(f for f in skills if skills[f] >= top - 0.02)
    chosen = good[len(good) // 2]
    best = better[chosen]
    metric = case.scale.metric
    diverged = case.base.diverged
    went = (
        f"{diverged:.0%} of the runs diverged, the first at step "
        f"{min(s for s in case.base.diverged_at.values() if s):,}"
        if diverged
        else f"after {case.setting.epochs} epochs the training loss is "
        f"{number(_loss(case.base))}, {_moved(case)}"
    )
    return Suspicion(
        cause,
        f"With a learning rate of {number(case.setting.lr)} {went}; with "
        f"{number(best.setting.lr)} it is {number(_loss(best))}, and the {metric.name} "
        f"{shown(metric, float(case.scores(best).mean()))} in place of "
        f"{shown(metric, float(case.scores(case.base).mean()))} ("
        f"{shown(metric, floor)} knows nothing).",
        (Trial(f"{verb} the learning rate to {number(best.setting.lr)}", best.setting),),
    )


def _moved(case: Case) -> str:
    first = float(np.nanmean(case.base.grid("train_loss")[:, 0]))
    return f"in the first epoch it was {number(first)}"


def _loss(outcome: Outcome) -> float:
    """Training loss at the end, infinite if runs diverged."""
    return float(outcome.end("train_loss", np.inf).mean())


def batch_too_large(case: Case) -> Suspicion | None:
    """A smaller batch does better in as many epochs."""
    size, samples = case.setting.batch_size, len(case.setting.task.train)
    if size <= SMALL or size < SHARE * samples:
        return None
    steps = case.setting.steps_per_epoch
    return Suspicion(
        "batch_too_large",
        f"A batch of {size:,} is {size / samples:.0%} of the {samples:,} training samples, so that "
        f"an epoch has {steps} step{'s' * (steps != 1)} and the training "
        f"{case.setting.budget.steps:,}.",
        tuple(
            Trial(f"take a batch size of {small}", case.setting.but(batch_size=small))
            for small in sorted({SMALL, max(8, size // 16)})
            if small < size / 2
        ),
    )
