"""What a study found to be best, as the training of one model takes it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sqlalchemy.engine import make_url

from thalweg.optim.registry import OPTIMIZERS
from thalweg.schedules import Schedule, ScheduleError, parse
from thalweg.studies.analyse import ranked
from thalweg.studies.arms import arms
from thalweg.studies.best import first_arm
from thalweg.studies.factors import FIXED, Levels, StudyError, Variant, cross
from thalweg.studies.result import StudyResult
from thalweg.studies.run import recorded
from thalweg.studies.spec import StudySpec, fingerprint, plan
from thalweg.studies.store import Store
from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.tables.read import nearest

__all__ = ["BestSetting", "best_setting"]


@dataclass(frozen=True, eq=False)
class BestSetting:
    """The setting of a study's first arm.

    Attributes:
        study: name of the study.
        studied: name of the task that was studied.
        task: what is to be trained, with the loss and the encoding that were best.
        same_task: whether it is what was studied, by data, model, loss and metric.
        optimizer: name in the registry.
        lr: learning rate.
        schedule: what it follows, as typed or made; None for a rate that stays.
        batch_size: samples a step.
        loss: name of the task's loss.
        encoding: name of its encoding, or None where it has but one.
        epochs: of each run of the study, the last one maybe cut short.
        steps: optimizer steps of each run.
    """

    study: str
    studied: str
    task: Task
    same_task: bool
    optimizer: str
    lr: float
    schedule: str | Schedule | None
    batch_size: int
    loss: str
    encoding: str | None
    epochs: int
    steps: int


def best_setting(
    study: str | StudyResult, task: Task | None = None, *, db: str | Path = "thalweg.db"
) -> BestSetting:
    """The setting that a study found to be best: that of the first row of its summary.

    Args:
        study: its result, or its name on record, of which the last one counts.
        task: what is to be trained, for a study on record, which has the task's name alone: the
            built-in task of that name by default. It may be another than what was studied.
        db: SQLite file or database URL of the record.

    Raises:
        StudyError: if there is no such study, if it completed no setting yet, or if what was best
            cannot be had from a record: an optimizer, a loss or a schedule made in Python.
    """
    if isinstance(study, StudyResult):
        if task is not None:
            raise StudyError("task", "is the study's own where a study's result is given")
        spec = study.spec
        first = _first(spec, study.summary, study.runs)
        return _setting(spec, first, study.variants[_levels(spec, first)])
    store = Store(_existing(db))
    try:
        number, spec = _latest(store, study)
        runs, _ = recorded(spec, store, number)
    finally:
        store.close()
    task = _by_name(spec) if task is None else task
    _, summary = ranked(spec, task.metric, runs)
    first = _first(spec, summary, runs)
    return _setting(spec, first, _variant(spec, task, _levels(spec, first)))


def _existing(db: str | Path) -> str | Path:
    """A record, which would be made if missing."""
    file: str | Path | None = db
    if "://" in str(db):
        url = make_url(str(db))
        file = url.database if url.get_backend_name() == "sqlite" else None
    if file and not Path(file).exists():
        raise StudyError("db", f"there is no file {file}; give that of `thalweg study --db`")
    return db


def _latest(store: Store, name: str) -> tuple[int, StudySpec]:
    found = store.latest(name)
    if found is None:
        names = store.names()
        there = nearest(name, names) if names else "it has none at all"
        raise StudyError("study", f"{store.where} has no study named {name!r}; {there}")
    number, spec, _ = found
    for optimizer in spec.optimizers:
        if optimizer not in OPTIMIZERS:
            raise StudyError(
                "study",
                f"{name!r} compares {optimizer!r}, an optimizer that is not registered here; "
                f"import what registers it first",
            )
    return number, spec


def _by_name(spec: StudySpec) -> Task:
    try:
        return load(spec.task)
    except TaskError:
        raise StudyError(
            "task", f"{spec.name!r} is a study of {spec.task!r}, no built-in task; give the task"
        ) from None


def _first(spec: StudySpec, summary: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    try:
        return first_arm(summary).iloc[0]
    except StudyError:
        raise StudyError(
            "study",
            f"{spec.name!r} has no setting that was completed from every seed; of its "
            f"{len(plan(spec))} runs {len(runs)} are on record, of which "
            f"{(runs['outcome'] == 'completed').sum()} were completed",
        ) from None


def _levels(spec: StudySpec, first: pd.Series) -> Levels:
    return next(arm.levels for arm in arms(spec) if arm.label == first["arm"])


def _variant(spec: StudySpec, task: Task, levels: Levels) -> Variant:
    """What levels on record make of a task."""
    loss, encoding, schedule, batch_size = levels
    best = f"the best arm of {spec.name!r}"
    if schedule != FIXED:
        budget = spec.budget(levels)
        try:
            parse(str(schedule), budget.steps, budget.steps_per_epoch)
        except ScheduleError:
            raise StudyError(
                "study",
                f"{best} has a schedule made in Python, {schedule}, of which the record has but "
                f"the text; give the schedule",
            ) from None
    try:
        crossed = cross(
            task,
            loss=None if loss == task.loss.name else str(loss),
            schedule=[str(schedule)],
            batch_size=[int(batch_size)],
        )
    except StudyError as error:
        raise StudyError("study", f"{best} does not suit the task {task.name!r}: {error}") from None
    if levels not in crossed.variants:
        raise StudyError(
            "study",
            f"{best} has the encoding {encoding!r}, which {task.name!r} is not given in here; give "
            f"it the encodings that the study compared (--encodings)",
        )
    return crossed.variants[levels]


def _setting(spec: StudySpec, first: pd.Series, variant: Variant) -> BestSetting:
    levels = _levels(spec, first)
    budget = spec.budget(levels)
    return BestSetting(
        spec.name,
        spec.task,
        variant.task,
        dict(spec.variants).get(levels, spec.fingerprint) == fingerprint(variant),
        str(first["optimizer"]),
        float(first["lr"]),
        variant.schedule,
        variant.batch_size,
        variant.task.loss.name,
        str(levels[1]) or None,
        -(-budget.steps // budget.steps_per_epoch),
        budget.steps,
    )
