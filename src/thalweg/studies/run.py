"""The main job: factors to a verdict."""

import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from thalweg.replicas import Backend, Programs, probe, step_seconds
from thalweg.studies.analyse import analyse
from thalweg.studies.execute import Progress, chunks, execute, replica
from thalweg.studies.result import StudyResult, TaskSummary
from thalweg.studies.spec import LearningRates, Optimizer, Run, StudyError, StudySpec, plan, specify
from thalweg.studies.store import Store
from thalweg.tasks import Task, TaskError, load

__all__ = ["study"]

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
    steps: int | None = None,
    batch_size: int = 32,
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
        steps: optimizer steps of each run, instead of ``epochs``.
        batch_size: samples a step, at most the training samples.
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
    spec = specify(
        task,
        optimizers=optimizers,
        lr=lr,
        seeds=seeds,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        target=target,
        patience=patience,
        name=name,
    )
    _check_device(device)
    if time_limit is not None and not time_limit > 0:
        raise StudyError("time_limit", f"must be above 0 seconds, got {time_limit!r}")
    store = Store(db)
    try:
        return _run(spec, task, store, compile, device, resume, time_limit, progress, began)
    finally:
        store.close()


def _run(
    spec: StudySpec,
    task: Task,
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
    probed = probe(task, spec.batch_size, device)
    backend, note = probed.backend, probed.note
    runs = plan(spec)
    threads = torch.get_num_threads() if probed.concurrent and device == "cpu" else 1
    cut = chunks(runs, task.parameters, backend, workers=threads)
    if backend == "eager":
        # A resumed study goes on as it began, or its numbers would differ by rounding.
        if before is not None:
            backend = "compiled" if before[2] == "compiled" else "eager"
        elif compile is not None:
            backend = "compiled" if compile else "eager"
        elif probed.tape is None:  # which compiled passes do not outrun
            backend = _choose(spec, task, cut, device, programs)
    environment = _environment(device, backend, note)
    number = before[0] if before else store.begin(spec, environment, backend)
    execute(
        spec,
        task,
        cut,
        store,
        number,
        backend=backend,
        device=device,
        workers=threads if backend == "eager" else 1,
        programs=programs,
        time_limit=time_limit,
        progress=progress,
    )
    notes = sorted({p.note for p in programs.values() if p.note} | ({note} if note else set()))
    frame, curves = (_in_order(found, runs) for found in store.frames(number))
    found = analyse(spec, task.metric, frame, curves)
    found.notes.extend(f"{n[0].upper()}{n[1:]}." for n in notes)
    return StudyResult(
        spec,
        TaskSummary.of(task),
        frame,
        curves,
        found,
        environment,
        perf_counter() - began,
        None if store.where is None else str(store.where),
    )


def _in_order(frame: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Rows in the order of the plan, whichever chunk ended first."""
    place = {run.id: i for i, run in enumerate(runs)}
    order = frame["run"].map(place).sort_values(kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _choose(
    spec: StudySpec,
    task: Task,
    cut: Sequence[Sequence[Run]],
    device: str,
    programs: Programs,
) -> Backend:
    chunk = [replica(run) for run in cut[0]]
    each = step_seconds(task, chunk, spec.budget, device=device, programs=programs)
    return "compiled" if each * spec.steps * len(cut) > COMPILE_FROM else "eager"


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
    for field in planned.__dataclass_fields__:
        was, now = getattr(planned, field), getattr(asked, field)
        if field == "own" and was != now:
            changed = [name for name, code in now if dict(was).get(name) != code]
            return (
                f"the code of {', '.join(changed)} is not that of the last study named "
                f"{planned.name!r}; give another name"
            )
        if field != "name" and was != now:
            return (
                f"the last study named {planned.name!r} has {field} {was}, this one asks for "
                f"{now}; ask for the same, or give another name"
            )
    raise AssertionError("specifications with different hashes are equal")


def _environment(device: str, backend: Backend, note: str) -> dict[str, Any]:
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
