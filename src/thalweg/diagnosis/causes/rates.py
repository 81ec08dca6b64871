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
# A rate that is usual for its optimizer is wrong if another gains so many times what counts: among
# the usual ones a better rate is nearly always to be had, and is told of, but is no fault.
USUAL = 3.0


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
    diverged = [step for step in case.base.diverged_at.values() if step]
    lr, other = number(case.setting.lr), number(best.setting.lr)
    went = (
        f"{len(diverged)} of {len(case.seeds)} runs diverge at a learning rate of {lr}, the first "
        f"at step {min(diverged):,}"
        if diverged
        else f"With a learning rate of {lr} the training loss is {number(_loss(case.base))} after "
        f"{_epochs(case)}"
    )
    return Suspicion(
        cause,
        f"{went}; with {other} it ends at {number(_loss(best))}, and the validation {metric.name} "
        f"comes to {shown(metric, float(case.scores(best).mean()))}, in place of "
        f"{shown(metric, float(case.scores(case.base).mean()))}. Knowing nothing gets "
        f"{shown(metric, floor)}.",
        (Trial(f"{verb} the learning rate to {other}", best.setting),),
        suffices=USUAL if _is_usual(case) else 1.0,
    )


def _is_usual(case: Case) -> bool:
    """Whether a rate is in the middle half of those that are looked through, by its logarithm."""
    low, high = np.log(case.setting.rule.lr_range)
    edge = 0.25 * (high - low)
    return bool(low + edge <= np.log(case.setting.lr) <= high - edge)


def _epochs(case: Case) -> str:
    if case.setting.epochs == 1:
        return "an epoch"
    first = number(float(np.nanmean(case.base.grid("train_loss")[:, 0])))
    return f"{case.setting.epochs} epochs ({first} in the first)"


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
