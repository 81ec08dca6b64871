"""Train one model to the end."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_map

from thalweg.files import held, try_to_write
from thalweg.schedules import Schedule
from thalweg.tasks import Loss, Task, TaskError, load
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import first_batch
from thalweg.train.arguments import FitError, device_of, positive, whole
from thalweg.train.batches import Pair
from thalweg.train.checkpoint import BEST, LAST, read
from thalweg.train.course import Best, Course, Plan, interruptions
from thalweg.train.engine import Engine
from thalweg.train.parallel import Ranks, joined
from thalweg.train.recipe import Maker, Recipe, checked
from thalweg.train.result import FitResult, Progress

__all__ = ["EPOCHS", "fit"]

EPOCHS = 30
EVERY = 30.0

# What a resumed training cannot change: its state would be another's.
FIXED = ("optimizer", "hyper", "batch_size", "accumulate", "ema_decay", "seed")


def fit(
    task: str | Task,
    *,
    optimizer: str | Maker | None = None,
    lr: float | None = None,
    schedule: str | Schedule | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    loss: str | Loss | Callable[[Any, Any], Tensor] | None = None,
    accumulate: int | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    ema_decay: float | None = None,
    precision: str | None = None,
    hybridize: bool | None = None,
    prefetch: int | None = None,
    patience: int | None = None,
    seed: int | None = None,
    loader: Iterable[Pair] | None = None,
    device: str = "cpu",
    shard: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: float = EVERY,
    tensorboard: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **hyper: Any,
) -> FitResult:
    """Train a task's model to the end, at the machine's speed.

    Started by torchrun, all its processes train one model together, and end where one alone would
    with the same ``batch_size``. The global random states are left as they were.

    A resumed training ends with the same weights, bit for bit, as one that never stopped, on the
    same machine. What is not given is then as it was; learning rate, schedule, epochs and what does
    not change the state may be others.

    Args:
        task: what `thalweg.tasks.load` takes, or a `thalweg.Task`.
        optimizer: name in `thalweg.optim`, as typed (``adamw:weight_decay=0.1``), or a function of
            a list of parameters that makes a `torch.optim.Optimizer`; "adam" by default.
        lr: learning rate; by default the middle of the optimizer's usual ones.
        schedule: what the rate follows, as typed (``warmup+cosine``) or a `Schedule` of steps.
        batch_size: samples a batch, of all processes together; the task's by default. The last
            batch of an epoch has what is left.
        epochs: passes over the training data; 30 by default.
        loss: in place of the task's.
        accumulate: batches a step, whose samples count alike; 1 by default.
        clip_norm: largest Euclidean norm of the gradient.
        clip_value: largest size of an element of it.
        ema_decay: of an exponential average of the weights, which is evaluated and kept; in [0, 1).
        precision: of forward passes: "float32", "bfloat16" by autocast, or "float16" with the loss
            scaled.
        hybridize: compile the model, as `thalweg.hybridize`.
        prefetch: batches that are made in the background, 0 for none; by default 2 where a loader
            has processes of its own, or batches have to be copied to a GPU. A loader that draws
            random numbers in this process does so beside the model then, and no seed repeats that.
        patience: stop after so many epochs without a better one.
        seed: of initial weights, order of batches and dropout; 0 by default.
        loader: training batches in place of the task's, ``(x, y)``: a ``DataLoader``, whose every
            iteration is an epoch.
        device: as torch names it, ``cpu`` or ``cuda``.
        shard: each process keeps its part of weights and state alone (FSDP2).
        out: folder for ``best.pt``, the best epoch's weights, and ``last.pt``, from which a
            training goes on; None to keep nothing.
        resume: go on with the training in ``out``, or begin it if there is none.
        overwrite: begin anew where ``out`` has another.
        checkpoint_every: seconds between two checkpoints.
        tensorboard: write events to ``out`` too.
        progress: called every tenth of a second or so.
        **hyper: further arguments of an optimizer by name: ``weight_decay=0.1``.

    Raises:
        FitError: for an argument that cannot be used.
        TaskError: for a task that cannot be trained.
        DivergenceError: if loss or weights become NaN or infinite; with the step, the layer, and
            the state before it in ``last.pt``.
        KeyboardInterrupt: after Ctrl-C, when all that was trained is in ``last.pt``.
        OSError: if a checkpoint cannot be written.
    """
    found = load(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise TaskError("task", f"must be a name or a thalweg.Task, got {task!r}")
    if loss is not None:
        found = found.with_loss(loss)
    given = {
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
        "ema_decay": ema_decay,
        "precision": precision,
        "hybridize": hybridize,
        "prefetch": prefetch,
        "seed": seed,
        "hyper": hyper or None,
    }
    given = {name: _python(value) for name, value in given.items() if value is not None}
    folder = None if out is None else Path(out)
    _check_folder(folder, needed={"resume": resume, "tensorboard": tensorboard})
    if resume and overwrite:
        raise FitError("overwrite", "begins anew, and resume goes on; give one of them")
    every = positive("checkpoint_every", checkpoint_every)
    device_of(device)
    again = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    with random_states(), joined(device) as ranks, interruptions() as asked:
        kept = _kept(folder, found) if again and folder is not None else None
        if kept is None and folder is not None and not (overwrite or again):
            _check_empty(folder)
        known = {} if kept is None else kept[0]["recipe"]
        recipe = _recipe(given, known)
        checked(recipe, len(found.train))
        if kept is None:
            first_batch(found, recipe.batch_size)
        last = whole("epochs", known.get("epochs", EPOCHS) if epochs is None else epochs)
        wait = known.get("patience") if patience is None else whole("patience", patience)
        engine = Engine(found, recipe, last, ranks=ranks, loader=loader, shard=shard)
        if kept is not None and kept[0]["engine"]["epoch"] > last:
            raise FitError(
                "epochs",
                f"{last} are fewer than the {kept[0]['engine']['epoch']} that the training in "
                f"{folder} has begun; give more",
            )
        about: dict[str, Any] = {}
        if folder is not None:
            described = _plain(recipe) | {"epochs": last, "patience": wait}
            about = {"task": found.name, "fingerprint": found.fingerprint, "recipe": described}
        plan = Plan(last, wait, folder, every, about, tensorboard)
        with nullcontext() if folder is None else _held(folder, ranks):
            if kept is None and folder is not None and ranks.first:
                _clear(folder)
            return Course(found, engine, plan, kept=kept, show=progress, asked=asked).run()


def _check_folder(folder: Path | None, needed: Mapping[str, bool]) -> None:
    """Refuse a folder that cannot be, and what needs one where there is none."""
    if folder is None:
        for name, asked in needed.items():
            if asked:
                raise FitError(name, "needs the folder of the training; give it as out")
        return
    try:
        try_to_write(folder / LAST)
    except OSError as error:
        raise FitError("out", f"cannot write to {folder} ({error.strerror})") from None


def _check_empty(folder: Path) -> None:
    """Leave another training alone."""
    for name in (LAST, BEST):
        if (folder / name).exists():
            raise FitError(
                "out",
                f"{folder} has a training already ({name}); go on with it by resume, give another "
                f"folder, or begin anew there by overwrite",
            )


def _clear(folder: Path) -> None:
    """Make room for a training that begins.

    One that ends before its first checkpoint must not be taken for the other.
    """
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _held(folder: Path, ranks: Ranks) -> Iterator[None]:
    """A training's folder while it is written to, by no other training."""
    with held(folder) if ranks.first else nullcontext(True) as is_ours:
        if ranks.most(not is_ours):
            raise FitError(
                "out",
                f"another training is writing to {folder} now; give another folder, or end that "
                f"one first",
            )
        if ranks.first:
            for left in (one for name in (LAST, BEST) for one in folder.glob(f".{name}.*")):
                left.unlink(missing_ok=True)  # of one that was killed while it wrote
        yield


def _kept(folder: Path, task: Task) -> tuple[dict[str, Any], Best | None] | None:
    """What a training left in a folder, and its best weights."""
    if not (folder / LAST).exists():
        return None
    found = read(folder / LAST)
    if "engine" not in found:
        raise FitError(
            "resume",
            f"{folder / LAST} has weights alone, as {BEST} has: there is nothing to go on from; "
            f"put {LAST} back, or begin anew by overwrite",
        )
    if found["fingerprint"] != task.fingerprint:
        raise FitError(
            "resume",
            f"{folder / LAST} is of the task {found['task']!r} with other data, another model, "
            f"loss or metric than {task.name!r} has now; give another folder by out, or overwrite",
        )
    best = None
    if found["best"] is not None and (folder / BEST).exists():
        beside = read(folder / BEST)
        # A later one, which was written before the end came, will be found again.
        if beside["epoch"] == found["best"]["epoch"]:
            best = Best(found["best"], beside["model"])
    return found, best


def _python(value: Any) -> Any:
    """NumPy's numbers as Python's, which a checkpoint is read again with."""
    return tree_map(lambda v: v.item() if isinstance(v, np.generic) else v, value)


def _recipe(given: Mapping[str, Any], known: Mapping[str, Any]) -> Recipe:
    """How a task is trained: what is said now, else what was said before."""
    if not known:
        return Recipe(**given)
    for name in FIXED:
        before = known[name]
        if name in given and before != _said(given[name]):
            raise FitError(
                name,
                f"this training has {before!r}, which it cannot change to {given[name]!r}; leave "
                f"it out, or begin another training in another folder",
            )
    taken = {**{f.name: known[f.name] for f in fields(Recipe)}, **given}
    for name in ("optimizer", "schedule"):
        if isinstance(taken[name], dict):
            raise FitError(
                name,
                f"this training was begun with {taken[name]['own']}, which is yours; give it again",
            )
    return Recipe(**taken)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of a recipe."""
    return {f.name: _said(getattr(recipe, f.name)) for f in fields(Recipe)}


def _said(value: Any) -> Any:
    """A plain value as it is; what is a person's own by its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {name: _said(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_said(one) for one in value)
    return {"own": getattr(value, "text", getattr(value, "__name__", type(value).__name__))}
