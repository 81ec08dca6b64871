"""From a task and how it is trained to where its time goes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from thalweg.errors import ArgumentError
from thalweg.optim.registry import key
from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.blame import raised
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import first_batch
from thalweg.train.arguments import FitError, device_of, positive
from thalweg.train.profile.changes import changes_for, threshold_of, together, tried
from thalweg.train.profile.machine import measured
from thalweg.train.profile.memory import Memory, memory_of
from thalweg.train.profile.result import Profile
from thalweg.train.profile.running import Running, running
from thalweg.train.profile.stages import stages_of
from thalweg.train.profile.work import Work, flops_of, work_of
from thalweg.train.recipe import Maker, Recipe, checked

__all__ = ["profile"]

TORCHS = "torch."  # before the name of an optimizer in torch.optim


@contextmanager
def _threads_left() -> Iterator[None]:
    """Give torch back as many threads as it has."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@random_states()
@_threads_left()
def profile(
    task: str | Task,
    optimizer: str | Maker = "adam",
    lr: float | None = None,
    *,
    batch_size: int | None = None,
    precision: str = "float32",
    device: str = "cpu",
    progress: Callable[[str], None] = lambda doing: None,
) -> Profile:
    """Say where a training step's time and memory go, and what would make it faster.

    Steps are timed as `thalweg.fit` has torch take them; where it takes them on a tape, by itself,
    that is the first of the changes. Each change that is listed was tried right there,
    in turns with the training as it is set.

    Args:
        task: a name as `thalweg.study` takes it, or a `thalweg.Task`.
        optimizer: name in `thalweg.optim`, with arguments if need be (``adamw:weight_decay=0.1``);
            in torch.optim with ``torch.`` before it (``torch.Adam``), or a class or function that
            makes an optimizer of parameters.
        lr: its learning rate; by default the middle of its usual ones, or torch's default.
        batch_size: samples a step; the task's by default.
        precision: of forward passes: float32, bfloat16 or float16.
        device: as torch names it, ``cpu`` or ``cuda``.
        progress: called with what is being done.

    Raises:
        ArgumentError: for an argument that cannot be used, or a task that cannot be trained.
    """
    given = load(task) if isinstance(task, str) else task
    if not isinstance(given, Task):
        raise TaskError("task", f"must be a name or a thalweg.Task, got {task!r}")
    where = device_of(device)
    recipe = _recipe(optimizer, lr, batch_size, precision)
    samples, size = len(given.train), batch_size or given.batch_size
    checked(recipe, samples)
    threads = torch.get_num_threads()
    first_batch(given, recipe.batch_size)
    progress("measuring what this machine reaches")
    machine = measured(where, getattr(torch, precision))
    with _started(given, recipe, where, threads) as present:
        progress("taking a step apart")
        stages = stages_of(present)
        memory, work = _contents(present, samples, size)
        changes = changes_for(given, recipe, where, threads, memory)
        found = tried(present, given, recipe, changes, progress)
        threshold = threshold_of(found)
        joint = tried(present, given, recipe, together(found, threshold), progress)
        engine = present.engine
    return Profile(
        task=given.title,
        name=given.name,
        optimizer=_name(engine.made.optimizer),
        lr=engine.lr,
        batch_size=size,
        precision=precision,
        device=str(where),
        threads=threads,
        samples_per_second=samples / engine.steps_per_epoch / stages.step,
        stages=stages,
        memory=memory,
        work=work,
        machine=machine,
        tried=tuple(found),
        together=tuple(joint),
        threshold=threshold,
    )


def _recipe(
    optimizer: str | Maker, lr: float | None, batch_size: int | None, precision: str
) -> Recipe:
    recipe = Recipe(optimizer, lr, batch_size=batch_size, precision=precision, taped=False)
    if isinstance(optimizer, str) and optimizer.startswith(TORCHS):
        optimizer = _of_torch(optimizer)
    if not isinstance(optimizer, type):
        return recipe
    hyper = {} if lr is None else {"lr": positive("lr", lr)}
    return replace(recipe, optimizer=partial(optimizer, **hyper), lr=None)


def _of_torch(name: str) -> type[Optimizer]:
    known = {
        key(cls.__name__): cls
        for cls in vars(torch.optim).values()
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
    }
    found = known.get(key(name.removeprefix(TORCHS)))
    if found is None:
        names = ", ".join(cls.__name__ for cls in known.values())
        raise FitError("optimizer", f"there is no {name!r}; torch.optim has {names}")
    return found


def _name(optimizer: Optimizer) -> str:
    cls = type(optimizer)
    return f"torch.optim.{cls.__name__}" * cls.__module__.startswith("torch.") or cls.__name__


@contextmanager
def _started(task: Task, recipe: Recipe, device: torch.device, threads: int) -> Iterator[Running]:
    """The training as it is set."""
    with ExitStack() as open_:
        try:
            present = open_.enter_context(running(task, recipe, device, threads))
        except ArgumentError:
            raise
        except Exception as error:
            raise FitError(
                "task", f"the first steps of its training raise {raised(error)}"
            ) from error
        yield present


def _contents(present: Running, samples: int, size: int) -> tuple[Memory, dict[str, Work]]:
    """What a step of a full batch holds, and what an average one does."""
    engine = present.engine
    step = engine.taken
    x, y, _ = engine.window()[0]
    if len(tree_leaves(y)[0]) < size:  # the last of an epoch
        x, y, _ = engine.window()[0]
    memory = memory_of(engine.module, engine.made.optimizer, (x, y), lambda: step.loss(x, y))
    step.forget()
    flops = flops_of(lambda: step.loss(x, y))
    step.forget()
    return memory, work_of(flops, memory, samples / engine.steps_per_epoch / size)
