"""From a task and how it is trained to what is wrong with it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from thalweg.diagnosis.arguments import DiagnosisError, entry_of, positive, seeds_of, whole
from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.causes import CAUSES, HEALTHY, IN_LAYERS
from thalweg.diagnosis.changes import cleaned, from_weights, judged
from thalweg.diagnosis.checkpoint import weights_of
from thalweg.diagnosis.result import Diagnosis, Finding
from thalweg.diagnosis.scale import Effect, Scale, effect, scale_of
from thalweg.diagnosis.setting import FEWEST, Array, Outcome, Setting, flushed, outcomes, possible
from thalweg.landscape.flow import trained_under_watch
from thalweg.numbers import number
from thalweg.optim.registry import Named
from thalweg.replicas import Programs, Replica, Training
from thalweg.schedules import Schedule
from thalweg.studies.intervals import shown
from thalweg.studies.sound import sound
from thalweg.tasks import Task, load
from thalweg.tasks.data import nonfinite_taken
from thalweg.tasks.trial import NonFiniteError, first_batch

__all__ = ["diagnose"]

EPOCHS = 30
LONGEST = 60.0  # seconds that the training takes, unless a person says how many epochs
# Other learning rates, by the factor on the one that is set.
FACTORS = (1e-4, 1e-3, 1e-2, 1e-1, 10**-0.5, 10**0.5, 1e1, 1e2, 1e3, 1e4)
FEW = (1e-2, 1e-1, 1e1, 1e2)  # where the training itself takes so long (seconds)
SLOW = 4.0
SECONDS = 20.0  # that trainings of one model with changes may take
STEPS = 5  # that are timed
WATCHED = 60  # steps
# What explains nearly as much as the best explanation, and is more special, goes before it.
NEARLY = 0.75
BELIEVED = 0.5
LITTLE = 0.03  # that a healthy training could gain, and is told of


@flushed()
def diagnose(
    task: str | Task | Callable[[], Task],
    optimizer: Named = "adam",
    lr: float | None = None,
    *,
    schedule: str | Schedule | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    loss: Any = None,
    seeds: int | Sequence[int] = 4,
    weights: str | Path | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Diagnosis:
    """Say what is wrong with a training, how sure that is, and what mends it.

    The training is run as it is set, from a few seeds; so are trainings with other learning rates,
    and with each change that what was seen speaks for: all seeds, and all settings of one model, as
    replicas. A cause is found if mending it gains what counts, or if what was seen leaves no doubt.

    Args:
        task: a name as `thalweg.study` takes it, a `thalweg.Task`, or a function that makes one:
            only there may data have NaN, which a task is not made with otherwise.
        optimizer: a name in the registry, a rule or a class of one's own.
        lr: its learning rate; by default the middle of its usual ones.
        schedule: what the rate follows, as `thalweg.schedules.parse` takes it; none by default.
        batch_size: samples a step; the task's by default.
        epochs: of every training; 30 by default, or fewer where these take longer than a minute.
        loss: in place of the task's.
        seeds: how many, or which, of initial weights and order of batches.
        weights: a checkpoint to train on from, in place of fresh weights: the file of a state
            dictionary, see `thalweg.diagnosis.checkpoint`.
        progress: called with what is being done.

    Raises:
        ArgumentError: for an argument that cannot be used, or a task that cannot be trained.
    """
    setting = _setting(task, optimizer, lr, schedule, batch_size, epochs, loss)
    chosen = seeds_of(seeds)
    programs: Programs = {}
    given = setting.task
    setting = setting.but(task=judged(cleaned(given)))
    if weights is not None:
        start_at = weights_of(weights, setting.task)
        setting = setting.but(task=from_weights(setting.task, start_at))
    with sound(setting.task):
        with suppress(NonFiniteError):  # which is what a diagnosis is for
            first_batch(setting.task, setting.batch_size)
        pace = _pace(setting, chosen, programs)
        if epochs is None:
            fit = int(LONGEST / (pace * setting.steps_per_epoch))
            setting = setting.but(epochs=max(FEWEST, min(EPOCHS, fit)))
        progress("training as it is set")
        (base,) = outcomes([setting], chosen, programs, keep=True)
    factors = FACTORS if pace * setting.budget.steps < SLOW else FEW
    progress("training with other learning rates")
    grid = {f: setting.but(lr=f * setting.lr) for f in _with_usual(factors, setting)}
    others = outcomes(list(grid.values()), chosen, programs, seconds=SECONDS)
    rates = dict(zip(grid, others, strict=True))
    scale = scale_of(setting.task, [base, *others])
    progress("watching activations and gradients")
    flow = trained_under_watch(
        setting.task,
        entry_of(optimizer).name,
        setting.lr,
        steps=min(WATCHED, setting.budget.steps),
        seed=chosen[0],
        batch_size=setting.batch_size,
    ).flow
    case = Case(given, setting, chosen, base, rates, scale, flow)
    suspicions = [s for cause in CAUSES if (s := cause(case)) is not None]
    tried = {id(o.setting): o for o in (base, *others)}
    wanted = {
        id(one): one
        for s in suspicions
        for trial in s.trials
        for one in (trial.setting, trial.against, trial.beyond)
        if one is not None and id(one) not in tried
    }
    if wanted:
        progress(f"trying {len(wanted)} change{'s' * (len(wanted) > 1)}")
        for outcome in possible(list(wanted.values()), chosen, programs, seconds=SECONDS):
            tried[id(outcome.setting)] = outcome
    of_task = [o for o in tried.values() if o.setting.task.metric is scale.metric]
    case = replace(case, scale=scale_of(setting.task, of_task))
    return _diagnosis(case, suspicions, tried)


def _with_usual(factors: Sequence[float], setting: Setting) -> list[float]:
    """Of a rate that is beyond all these from the usual ones, the middle of those as well."""
    low, high = setting.rule.lr_range
    away = setting.rule.usual_lr / setting.lr
    usual = any(low <= f * setting.lr <= high for f in (1.0, *factors))
    return sorted(factors if usual else [*factors, away])


def _pace(setting: Setting, seeds: Sequence[int], programs: Programs) -> float:
    """Seconds of a step of all seeds."""
    replicas = [Replica(setting.rule, setting.hyper, seed) for seed in seeds]
    training = Training(setting.task, replicas, setting.budget, programs=programs)
    training.advance(1)
    start = perf_counter()
    training.advance(STEPS)
    return (perf_counter() - start) / STEPS


def _setting(
    task: str | Task | Callable[[], Task],
    optimizer: Named,
    lr: float | None,
    schedule: str | Schedule | None,
    batch_size: int | None,
    epochs: int | None,
    loss: Any,
) -> Setting:
    with nonfinite_taken():
        given = load(task) if isinstance(task, str) else task() if callable(task) else task
    if not isinstance(given, Task):
        raise DiagnosisError("task", f"must be a thalweg.Task or its name, got {given!r}")
    if loss is not None:
        given = given.with_loss(loss)
    entry = entry_of(optimizer)
    rate = entry.rule.usual_lr if lr is None else positive("lr", lr)
    size = given.batch_size if batch_size is None else whole("batch_size", batch_size)
    if size > len(given.train):
        raise DiagnosisError(
            "batch_size", f"{size} is more than the {len(given.train)} training samples"
        )
    count = EPOCHS if epochs is None else whole("epochs", epochs)
    return Setting(given, entry.rule, entry.rule.complete({"lr": rate}), size, count, schedule)


def _diagnosis(
    case: Case, suspicions: Sequence[Suspicion], tried: Mapping[int, Outcome]
) -> Diagnosis:
    weighed = [(s, _effects(case, s, tried)) for s in suspicions]
    findings = [f for s, effects in weighed if (f := _finding(s, effects)) is not None]
    most = max((f.gain for f in findings), default=0.0)
    place = {cause.__name__: i for i, cause in enumerate(CAUSES)}

    def order(finding: Finding) -> tuple[bool, float]:
        explains = finding.gain >= NEARLY * most
        return not explains, place[finding.cause] if explains else -finding.gain

    findings.sort(key=order)
    findings = _folded(findings)
    named = {f.cause for f in findings}
    rows = {
        trial.words: {
            "cause": s.cause,
            "change": trial.words,
            "gain": e.gain,
            "low": e.low,
            "high": e.high,
            "metric": float(case.scores(tried[id(trial.setting)]).mean()),
        }
        # Where several causes had a change tried, it is told of the one that was found.
        for s, effects in sorted(weighed, key=lambda pair: pair[0].cause in named)
        for trial, e in effects
    }
    columns = ["cause", "change", "gain", "low", "high", "metric"]
    trials = pd.DataFrame(rows.values(), columns=columns).sort_values(
        "gain", ascending=False, ignore_index=True
    )
    found = findings or [_healthy(case, len(tried) - 1, trials)]
    return Diagnosis(case, tuple(found), trials)


def _folded(findings: Sequence[Finding]) -> list[Finding]:
    """Of causes in weights and layers the first, with what else was seen of them.

    Each of them brings others along: weights of 0 have dead units, saturated ones small gradients.
    """
    first = next((i for i, f in enumerate(findings) if f.cause in IN_LAYERS), None)
    if first is None:
        return list(findings)
    rest = [f for f in findings[first + 1 :] if f.cause in IN_LAYERS]
    found = [f for f in findings if f not in rest]
    seen = " ".join(f"Also: {_first_sentence(f.evidence)}" for f in rest)
    one = found[first]
    found[first] = replace(one, evidence=f"{one.evidence} {seen}".strip())
    return found


def _first_sentence(text: str) -> str:
    first = text.partition(". As it is set")[0].removesuffix(".")
    return f"{first[0].lower()}{first[1:]}."


def _effects(
    case: Case, suspicion: Suspicion, tried: Mapping[int, Outcome]
) -> list[tuple[Trial, Effect]]:
    found = []
    for trial in suspicion.trials:
        after = tried.get(id(trial.setting))
        before = case.base if trial.against is None else tried.get(id(trial.against))
        beyond = before if trial.beyond is None else tried.get(id(trial.beyond))
        if after is None or before is None or beyond is None:  # a model that takes no such change
            continue
        scale = case.scale
        if after.setting.task.metric is not scale.metric:
            scale = scale_of(after.setting.task, [before, beyond, after])
        compared = [before, beyond, after]
        if not trial.ends:  # as far as all came
            epochs = min(o.epochs for o in compared)
            compared = [o.upto(epochs) for o in compared]
        old, other, new = (_scores(o, scale, trial.ends) for o in compared)
        gained = effect(scale, old, new, suspicion.suffices)
        surpassed = effect(scale, other, new, suspicion.suffices)
        sure = min(gained.confidence, surpassed.confidence)
        found.append((trial, replace(gained, confidence=sure)))
    return found


def _scores(outcome: Outcome, scale: Scale, ends: bool) -> Array:
    if ends:
        return outcome.end("validation_metric", scale.floor)
    return outcome.best("validation_metric", scale.floor, scale.metric.higher_is_better)


def _finding(suspicion: Suspicion, effects: Sequence[tuple[Trial, Effect]]) -> Finding | None:
    best = max(effects, key=lambda pair: (pair[1].confidence, pair[1].gain), default=None)
    sure = suspicion.confidence
    if sure is None:
        if best is None or best[1].confidence < BELIEVED:
            return None
        sure = best[1].confidence
    gain = suspicion.gain
    if gain is None:
        gain = 0.0 if best is None else max(best[1].gain, 0.0)
    return Finding(suspicion.cause, sure, suspicion.evidence, _advice(suspicion, effects), gain)


def _advice(suspicion: Suspicion, effects: Sequence[tuple[Trial, Effect]]) -> str:
    helped = sorted(
        (pair for pair in effects if pair[1].gain > 0 and pair[1].confidence >= BELIEVED),
        key=lambda pair: -pair[1].gain,
    )
    said: dict[str, str] = {}
    for trial, e in helped:
        # Of one change at two learning rates the better one.
        if not any(trial.words.startswith(w) or w.startswith(trial.words) for w in said):
            said[trial.words] = f"{trial.words} (tried: {_gained(e)})"
    first = "; or ".join(said.values())
    sentence = f"{first[0].upper()}{first[1:]}." if first else ""
    return " ".join(part for part in (sentence, suspicion.advice) if part)


def _gained(e: Effect) -> str:
    low, high = max(e.low, 0.0), min(e.high, 1.0)
    return f"gains {e.gain:.0%} of what can be reached, {low:.0%} to {high:.0%}"


def _healthy(case: Case, trials: int, tried: pd.DataFrame) -> Finding:
    metric = case.scale.metric
    lr = number(case.setting.lr)
    if case.scale.nothing:
        return Finding(
            HEALTHY,
            0.1,
            f"None of the causes that are known was found; but training comes to "
            f"{case.said(case.base)}, and none of {trials} other trainings gets further than "
            f"{shown(metric, case.scale.reach)}, where knowing nothing gets "
            f"{shown(metric, case.scale.floor)}.",
            "Look at samples, outputs and loss by hand, and whether a model this size learns ten "
            "samples by heart.",
            0.0,
        )
    helps = tried[(tried["low"] > 0) & (tried["gain"] > LITTLE)].sort_values("gain").tail(1)
    more = "".join(
        f" A little could be gained: {row.change} (tried: {row.gain:.0%} of what can be reached)."
        for row in helps.itertuples()
    )
    return Finding(
        HEALTHY,
        min(0.99, max(0.5, case.skill)),
        f"Training comes to {case.said(case.base)}, which is {case.skill:.0%} of the way from "
        f"knowing nothing ({shown(metric, case.scale.floor)}) to the best of {trials} other "
        f"trainings ({shown(metric, case.scale.reach)}); no change that was tried gains enough to "
        f"count.",
        f"Train on as it is, with a learning rate of {lr}.{more}",
        0.0,
    )
