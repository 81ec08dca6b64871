"""What a study may vary besides optimizer, learning rate and seed: one entry of `FACTORS` each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from thalweg.errors import ArgumentError
from thalweg.tasks import Task
from thalweg.tasks.losses import LOSSES, Loss, as_loss
from thalweg.tasks.split import TaskError

__all__ = ["FACTORS", "Crossed", "Factor", "Levels", "Losses", "StudyError", "cross"]

Losses: TypeAlias = str | Loss | Callable[..., Any] | Iterable[str | Loss | Callable[..., Any]]

# One level of each factor, in the order of `FACTORS`.
Levels: TypeAlias = tuple[str, ...]


class StudyError(ArgumentError):
    """Something asked of a study that cannot be done."""


@dataclass(frozen=True)
class Factor:
    """Something that a study may vary besides optimizer, learning rate and seed.

    Attributes:
        name: one word; its column in the record and in all data frames.
        levels: from a task and what a person asks for (None for nothing) the levels to be
            compared, by name, each with what ``apply`` needs; one where it is not varied.
        apply: the task with a level. A factor that leaves the task alone gives it back.
        text: a level's name as tables print it.
        phrase: a level in a sentence, after "with".
        caution: what a reader has to know when levels are compared, a sentence, or nothing.
        start: whether levels differ in the loss, so that where training starts is of interest.
    """

    name: str
    levels: Callable[[Task, Any], Mapping[str, Any]]
    apply: Callable[[Task, Any], Task]
    text: Callable[[str], str]
    phrase: Callable[[str], str]
    caution: str = ""
    start: bool = False


def _losses(task: Task, asked: Losses | None) -> dict[str, Loss | None]:
    if asked is None:
        return {task.loss.name: None}
    if isinstance(asked, str):
        asked = [part.strip() for part in asked.split(",") if part.strip()]
    if isinstance(asked, Loss) or callable(asked):
        asked = [asked]
    if not isinstance(asked, Iterable):
        raise StudyError("losses", f"must be names or functions, got {asked!r}")
    found: dict[str, Loss | None] = {}
    for one in asked:
        if not isinstance(one, str | Loss) and not callable(one):
            raise StudyError("losses", f"must be names or functions, got {one!r}")
        try:
            loss = as_loss(one, task.train.y)
        except TaskError as error:
            raise StudyError("losses", error.problem) from None
        before = found.setdefault(loss.name, loss)
        if before is not None and before.of is not loss.of:
            raise StudyError("losses", f"two of them are named {loss.name!r}; rename one")
    if not found:
        raise StudyError("losses", f"none given; choose from {', '.join(LOSSES)}")
    return found


def _encodings(task: Task, _: None) -> dict[str, Task | None]:
    if len(task.encodings) < 2:
        return {next(iter(task.encodings), ""): None}
    return dict(task.encodings)


def _loss_text(level: str) -> str:
    # A name that a person gave is left as it was typed.
    name, _, _ = level.partition("=")  # "focal=2"
    return level.replace("_", "-") if name in LOSSES else level


FACTORS: tuple[Factor, ...] = (
    Factor(
        "loss",
        _losses,
        lambda task, loss: task if loss is None else task.with_loss(loss),
        _loss_text,
        _loss_text,
        "Losses have units of their own: where they differ, arms are compared by the metric alone.",
        start=True,
    ),
    Factor(
        "encoding",
        _encodings,
        # Another encoding is another task, which keeps the loss that was chosen for this one.
        lambda task, encoded: task if encoded is None else encoded.with_loss(task.loss),
        lambda level: level,
        lambda level: f"{level} encoding",
    ),
)


@dataclass(frozen=True)
class Crossed:
    """A task with all combinations of the levels of all factors.

    Attributes:
        task: as it was given.
        factors: for each factor its levels; one where it is not varied.
        tasks: the task with each combination, one level a factor.
    """

    task: Task
    factors: tuple[tuple[str, Levels], ...]
    tasks: Mapping[Levels, Task]


def cross(task: Task, **asked: Any) -> Crossed:
    """All variants of a task that a study compares.

    Args:
        task: what is trained.
        asked: for each factor, by its name, what a person asks for.

    Raises:
        StudyError: naming the argument, its value and what it may be.
    """
    levels = [factor.levels(task, asked.get(factor.name)) for factor in FACTORS]
    tasks = {}
    for chosen in product(*(found.items() for found in levels)):
        variant = task
        for factor, (_, given) in zip(FACTORS, chosen, strict=True):
            variant = factor.apply(variant, given)
        tasks[tuple(name for name, _ in chosen)] = variant
    samples = sorted({len(variant.train) for variant in tasks.values()})
    if len(samples) > 1:
        raise StudyError(
            "task",
            f"the encodings of {task.name!r} have from {samples[0]} to {samples[-1]} training "
            f"samples; they must be the same samples",
        )
    factors = tuple((f.name, tuple(found)) for f, found in zip(FACTORS, levels, strict=True))
    return Crossed(task, factors, tasks)
