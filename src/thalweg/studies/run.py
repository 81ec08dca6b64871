"""The main job: factors to a verdict."""

import platform
from collections.abc import Callable, Iterable, Sequence
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from thalweg.replicas import Backend, Programs, at_start, step_seconds
from thalweg.studies.analyse import analyse
from thalweg.studies.arms import level_words, named
from thalweg.studies.arrange import Tried, arranged, backend_of, cut, joined, tried
from thalweg.studies.execute import Progress, execute, replica
from thalweg.studies.factors import (
    FACTORS,
    BatchSizes,
    Levels,
    Losses,
    Schedules,
    StudyError,
    Variant,
    cross,
)
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.sound import sound
from thalweg.studies.spec import LearningRates, Optimizer, Run, StudySpec, plan, specify
from thalweg.studies.store import Store
from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.blame import defined

__all__ = ["recorded", "study"]

# Compiling pays from about this much eager work (seconds): the first compilation on a machine takes
# half a minute, and on small networks saves a fifth of a step at the most. Measured in
# benchmarks/RESULTS.md.
COMPILE_FROM = 300.0


def study(
    task: str | Task = "digits",
    optimizers: Iterable[Optimizer] | None = None,
    lr: LearningRates | None = None,
    seeds: int | Sequence[int] = 5,
    epochs: int | None = None,
    *,
    losses: Losses | None = None,
    schedules: Schedules | None = None,
    steps: int | None = None,
    batch_size: BatchSizes | None = None,
    target: float | None = None,
    patience: int | None = None,
    name: str | None = None,
    db: str | Path | None = None,
    compile: bool | None = None,
    device: str = "cpu",
    resume: bool = False,
    time_limit: float | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> StudyResult:
    """Train a task with several optimizers at several learning rates and seeds; say which is best.

    Args:
        task: name of a built-in task, ``FILE.py:FUNCTION``, the path of an ``.npz`` file, or a
            `thalweg.Task`.
        optimizers: names in the registry, or rules and classes of one's own; by default `MAIN`.
        lr: learning rates for all optimizers: a list, one number, or "low:high:count" for
            log-spaced ones; or a mapping from optimizer to a list. By default 9 over the usual
            range of each.
        seeds: how many, or which. Every setting is trained once from each; all settings of a seed
            start from the same weights and see the same batches.
        epochs: passes over the training data of each run; 30 by default.
        losses: names in `thalweg.tasks.LOSSES`, separated by commas or in a list, functions or
            `Loss`es. One takes the place of the task's; several are compared, each with every
            optimizer and a learning rate of its own, as are the encodings of a task that has
            two or more.
        schedules: what the learning rate follows: names of `thalweg.schedules.SCHEDULES` with
            parameters as `thalweg.schedules.parse` takes them, separated by commas or in a list,
            or `Schedule`s. Several are compared, each with every optimizer and a learning rate of
            its own. A rate that stays by default, "fixed".
        steps: optimizer steps of each run, instead of ``epochs``.
        batch_size: samples a step, at most the training samples; the task's by default. Several,
            in a list or separated by commas, are compared like schedules.
        target: validation metric that counts as trained, for time to target.
        patience: stop a run after this many epochs without a better validation loss.
        name: of the study; the task's by default.
        db: SQLite file or database URL for the record; in memory by default.
        compile: whether passes go through `torch.compile`; by default where it pays.
        device: as torch names it.
        resume: go on with the last study of that name in ``db``, if there is one.
        time_limit: seconds after which what still trains is put on record as timed out.
        progress: called after every epoch of a chunk.

    Raises:
        StudyError: for an argument that cannot be used, naming it, its value and what it may be.
    """
    began = perf_counter()
    try:
        task = load(task) if isinstance(task, str) else task
    except TaskError as error:
        said = error.problem if error.argument == "task" else str(error)
        raise StudyError("task", said) from None
    if not isinstance(task, Task):
        raise StudyError("task", f"must be a name or a thalweg.Task, got {task!r}")
    with sound(task):
        crossed = cross(task, loss=losses, schedule=schedules, batch_size=batch_size)
        for variant in crossed.variants.values():
            # The person's code runs here first.
            _ = variant.task.parameters, variant.task.fingerprint
    spec = specify(
        crossed,
        optimizers=optimizers,
        lr=lr,
        seeds=seeds,
        epochs=epochs,
        steps=steps,
        target=target,
        patience=patience,
        name=name,
    )
    _check_device(device)
    if time_limit is not None and not time_limit > 0:
        raise StudyError("time_limit", f"must be above 0 seconds, got {time_limit!r}")
    # Before there is a record, so that a model that fails leaves none behind.
    ready = tried(spec, crossed.variants, device)
    store = Store(db)
    try:
        return _run(spec, task, ready, store, compile, device, resume, time_limit, progress, began)
    finally:
        store.close()


def _run(
    spec: StudySpec,
    task: Task,
    ready: Tried,
    store: Store,
    compile: bool | None,
    device: str,
    resume: bool,
    time_limit: float | None,
    progress: Callable[[Progress], None],
    began: float,
) -> StudyResult:
    before = store.latest(spec.name) if resume else None
    if before is not None and before[1].hash != spec.hash:
        raise StudyError("resume", _difference(before[1], spec))
    programs: Programs = {}
    cuts = cut(spec, ready, device)
    backends: dict[Levels, Backend] = {}
    for place, (levels, one) in enumerate(ready.items()):
        backend = one.program.backend
        if backend == "eager":
            # A resumed study goes on as it began, or its numbers would differ by rounding.
            if before is not None:
                backend = backend_of(before[2], place)
            elif compile is not None:
                backend = "compiled" if compile else "eager"
            elif one.program.tape is None:  # which compiled passes do not outrun
                backend = _choose(spec, one.variant, cuts[levels], device, programs)
        backends[levels] = backend
    probed = _notes(spec, ready, {})
    environment = _environment(device, joined(backends), "; ".join(probed))
    number = before[0] if before else store.begin(spec, environment, joined(backends))
    execute(
        spec,
        arranged(spec, cuts, ready, backends, device),
        store,
        number,
        device=device,
        workers=torch.get_num_threads(),
        programs=programs,
        time_limit=time_limit,
        progress=progress,
    )
    frame, curves = recorded(spec, store, number)
    found = analyse(spec, task.metric, frame, curves, _models(spec, ready, device))
    found.notes.extend(f"{n[0].upper()}{n[1:]}." for n in _notes(spec, ready, programs))
    variants = {levels: one.variant for levels, one in ready.items()}
    return StudyResult(
        spec,
        TaskSummary.of(task, [variant.task for variant in variants.values()]),
        frame,
        curves,
        found,
        environment,
        perf_counter() - began,
        None if store.where is None else str(store.where),
        variants,
    )


def _notes(spec: StudySpec, ready: Tried, programs: Programs) -> list[str]:
    """Why passes run as they do, of the variants that this is true of."""
    found: dict[str, list[Levels]] = {}
    for levels, one in ready.items():
        built = [p for key, p in programs.items() if key[0] == one.variant.task.fingerprint]
        for note in {p.note for p in (one.program, *built) if p.note}:
            found.setdefault(note, []).append(levels)
        if not one.repeats:
            found.setdefault(_drifting(one.variant.task), []).append(levels)
    return sorted(
        note if len(which) == len(ready) else f"{_which(spec, which)}: {note}"
        for note, which in found.items()
    )


def _drifting(task: Task) -> str:
    where = defined(task.model)
    return (
        f"the model starts from other weights under the same seed, so that runs do not repeat and "
        f"optimizers do not start alike: draw them with torch and not with NumPy or "
        f"Python{f' ({where})' if where else ''}"
    )


def _which(spec: StudySpec, some: Sequence[Levels]) -> str:
    """Some of all combinations of levels, by one level where it is just those that have it."""
    for i, factor in enumerate(FACTORS):
        for level in spec.levels(factor):
            if set(some) == {levels for levels in spec.combinations if levels[i] == level}:
                return f"with {factor.phrase(level)}"
    return "; ".join(f"with {level_words(spec, levels)}" for levels in some)


def _models(spec: StudySpec, ready: Tried, device: str) -> pd.DataFrame:
    """One row a variant: its size and, where losses are compared, where its training starts."""
    names = [factor.name for factor in FACTORS]
    starts: dict[str, tuple[float, float]] = {}
    rows = []
    for levels, one in ready.items():
        task = one.variant.task
        if any(factor.start for factor in spec.varied) and task.fingerprint not in starts:
            losses, norms = at_start(task, spec.seeds, device)
            starts[task.fingerprint] = float(losses.mean()), float(norms.mean())
        loss, norm = starts.get(task.fingerprint, (nan, nan))
        row: dict[str, Any] = dict(zip(names, levels, strict=True))
        rows.append(
            row | {"parameters": task.parameters, "start_loss": loss, "gradient_norm": norm}
        )
    return pd.DataFrame(rows)


def recorded(spec: StudySpec, store: Store, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A study's runs and curves, in the order of the plan, whichever chunk ended first."""
    place = {run.id: i for i, run in enumerate(plan(spec))}

    def in_order(frame: pd.DataFrame) -> pd.DataFrame:
        order = frame["run"].map(place).sort_values(kind="stable").index
        return named(spec, frame).loc[order].reset_index(drop=True)

    runs, curves = map(in_order, store.frames(number))
    return runs, curves


def _choose(
    spec: StudySpec,
    variant: Variant,
    chunks: Sequence[Sequence[Run]],
    device: str,
    programs: Programs,
) -> Backend:
    chunk = [replica(run) for run in chunks[0]]
    budget = spec.budget(chunks[0][0].levels)
    each = step_seconds(variant.task, chunk, budget, device=device, programs=programs)
    return "compiled" if each * budget.steps * len(chunks) > COMPILE_FROM else "eager"


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise StudyError("device", f"{device!r} cannot be used here: {first}") from None
    if torch.device(device).type == "meta":
        raise StudyError("device", "'meta' holds no data; give cpu or cuda")


def _difference(planned: StudySpec, asked: StudySpec) -> str:
    """Which argument of a resumed study is not what it was."""
    last = f"the last study named {planned.name!r}"
    for factor in FACTORS:
        # A study from before there was this factor did not vary it.
        was, now = planned.levels(factor), asked.levels(factor)
        if was != now and (was != ("",) or factor in asked.varied):
            return (
                f"{last} has {factor.words} {', '.join(map(str, was)) or 'of one kind'}, this one "
                f"asks for {', '.join(map(str, now))}; ask for the same, or give another name"
            )
    for field in planned.__dataclass_fields__:
        was, now = getattr(planned, field), getattr(asked, field)
        if field == "own" and was != now:
            changed = [name for name, code in now if dict(was).get(name) != code]
            return f"the code of {', '.join(changed)} is not that of {last}; give another name"
        if field in ("fingerprint", "variants") and was != now and planned.task == asked.task:
            return (
                f"the data, the model, the loss or the metric of {asked.task!r} is not that of "
                f"{last}; give another name"
            )
        if field != "name" and was != now:
            return (
                f"{last} has {field} {was}, this one asks for "
                f"{now}; ask for the same, or give another name"
            )
    raise AssertionError("specifications with different hashes are equal")


def _environment(device: str, backend: str, note: str) -> dict[str, Any]:
    from thalweg import __version__

    return {
        "thalweg": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": device,
        "backend": backend,
    } | ({"note": note} if note else {})


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
