"""What a study may vary besides optimizer, learning rate and seed: one entry of `FACTORS` each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.schedules import Schedule
from thalweg.tasks import Task
from thalweg.tasks.losses import LOSSES, Loss
from thalweg.tasks.split import TaskError

__all__ = [
    "FACTORS",
    "BatchSizes",
    "Crossed",
    "Factor",
    "Level",
    "Levels",
    "Losses",
    "Schedules",
    "StudyError",
    "Variant",
    "cross",
    "whole",
]

Losses: TypeAlias = str | Loss | Callable[..., Any] | Iterable[str | Loss | Callable[..., Any]]
Schedules: TypeAlias = str | Schedule | Iterable[str | Schedule]
BatchSizes: TypeAlias = int | str | Iterable[int]

Level: TypeAlias = str | int
# One level of each factor, in the order of `FACTORS`.
Levels: TypeAlias = tuple[Level, ...]


class StudyError(ArgumentError):
    """Something asked of a study that cannot be done."""


@dataclass(frozen=True, eq=False)
class Variant:
    """What one level of each factor makes of a task and its training.

    Attributes:
        task: what is trained.
        batch_size: samples a step.
        schedule: what the learning rate follows, as a person types it or made; None for a rate
            that stays.
    """

    task: Task
    batch_size: int
    schedule: str | Schedule | None = None


@dataclass(frozen=True)
class Factor:
    """Something that a study may vary besides optimizer, learning rate and seed.

    Attributes:
        name: its column in the record and in all data frames.
        levels: from a task and what a person asks for (None for nothing) the levels to be
            compared, by name, each with what ``apply`` needs; one where it is not varied.
        apply: a variant with a level.
        text: a level's name as tables print it.
        phrase: a level in a sentence, after "with".
        caution: what a reader has to know when levels are compared, a sentence, or nothing.
        start: whether levels differ in the loss, so that where training starts is of interest.
        plain: the level of a study that never heard of the factor, whose runs are known without
            it; None where the fingerprint of the task, or the study itself, tells levels apart.
    """

    name: str
    levels: Callable[[Task, Any], Mapping[Any, Any]]
    apply: Callable[[Variant, Any], Variant]
    text: Callable[[Any], str]
    phrase: Callable[[Any], str]
    caution: str = ""
    start: bool = False
    plain: Level | None = None

    @property
    def words(self) -> str:
        """In a sentence: "batch size"."""
        return self.name.replace("_", " ")


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
            loss = task.loss_of(one)
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


def _schedules(task: Task, asked: Schedules | None) -> dict[str, str | Schedule | None]:
    if asked is None:
        return {FIXED: None}
    if isinstance(asked, str):
        asked = [part.strip() for part in asked.split(",") if part.strip()]
    if isinstance(asked, Schedule):
        asked = [asked]
    if not isinstance(asked, Iterable):
        raise StudyError("schedules", f"must be names or schedules, got {asked!r}")
    found: dict[str, str | Schedule | None] = {}
    for one in asked:
        if not isinstance(one, str | Schedule):
            raise StudyError("schedules", f"must be names or schedules, got {one!r}")
        text = _tidy(one) if isinstance(one, str) else one.text
        found[text] = None if text == FIXED else one
    if not found:
        raise StudyError("schedules", "none given; `thalweg schedules` shows them all")
    return found


def _tidy(text: str) -> str:
    """A schedule as it is typed, its names as the registry has them."""
    parts = [part.strip().partition(":") for part in text.split("+")]
    return "+".join(name.lower().replace("-", "_") + mark + rest for name, mark, rest in parts)


def _batch_sizes(task: Task, asked: BatchSizes | None) -> dict[int, int]:
    if asked is None:
        asked = task.batch_size
    if isinstance(asked, str):
        parts = [part.strip() for part in asked.split(",") if part.strip()]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise StudyError("batch_size", f"{asked!r} is no list of whole numbers; write 16,64")
        asked = [int(part) for part in parts]
    sizes = asked if isinstance(asked, Iterable) else [asked]
    found = {size: size for size in sorted({whole("batch_size", size) for size in sizes})}
    if not found:
        raise StudyError("batch_size", "none given; write one, 32, or several, 16,64")
    if max(found) > len(task.train):
        raise StudyError(
            "batch_size",
            f"{max(found)} is more than the {len(task.train)} training samples of {task.name!r}; "
            f"give at most that",
        )
    return found


def whole(argument: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        StudyError: naming the argument, if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise StudyError(argument, f"must be a whole number of at least 1, got {value!r}")
    return int(value)


FIXED = "fixed"  # the schedule of a rate that stays


def _loss_text(level: str) -> str:
    # A name that a person gave is left as it was typed.
    name, _, _ = level.partition("=")  # "focal=2"
    return level.replace("_", "-") if name in LOSSES else level


FACTORS: tuple[Factor, ...] = (
    Factor(
        "loss",
        _losses,
        lambda v, loss: v if loss is None else replace(v, task=v.task.with_loss(loss)),
        _loss_text,
        _loss_text,
        "Losses have units of their own: where they differ, arms are compared by the metric alone.",
        start=True,
    ),
    Factor(
        "encoding",
        _encodings,
        # Another encoding is another task, which keeps the loss that was chosen for this one.
        lambda v, found: v if found is None else replace(v, task=found.with_loss(v.task.loss)),
        str,
        lambda level: f"{level} encoding",
    ),
    Factor(
        "schedule",
        _schedules,
        lambda v, schedule: replace(v, schedule=schedule),
        str,
        lambda level: "a fixed rate" if level == FIXED else f"{level} schedule",
        "The learning rate is what the schedule's factors multiply: the peak of most of them.",
        plain=FIXED,
    ),
    Factor(
        "batch_size",
        _batch_sizes,
        lambda v, size: replace(v, batch_size=size),
        "{:,}".format,
        "batch size {:,}".format,
        "For the same epochs a larger batch takes fewer steps; an incomplete last batch of an "
        "epoch is left out.",
    ),
)


@dataclass(frozen=True)
class Crossed:
    """A task with all combinations of the levels of all factors.

    Attributes:
        task: as it was given.
        factors: for each factor its levels; one where it is not varied.
        variants: for each combination, one level a factor, what it makes of the task.
    """

    task: Task
    factors: tuple[tuple[str, Levels], ...]
    variants: Mapping[Levels, Variant]


def cross(task: Task, **asked: Any) -> Crossed:
    """All variants of a task that a study compares.

    Args:
        task: what is trained.
        asked: for each factor, by its name, what a person asks for.

    Raises:
        StudyError: naming the argument, its value and what it may be.
    """
    levels = [factor.levels(task, asked.get(factor.name)) for factor in FACTORS]
    variants = {}
    for chosen in product(*(found.items() for found in levels)):
        variant = Variant(task, task.batch_size)
        for factor, (_, given) in zip(FACTORS, chosen, strict=True):
            variant = factor.apply(variant, given)
        variants[tuple(name for name, _ in chosen)] = variant
    samples = sorted({len(variant.task.train) for variant in variants.values()})
    if len(samples) > 1:
        raise StudyError(
            "task",
            f"the encodings of {task.name!r} have from {samples[0]} to {samples[-1]} training "
            f"samples; they must be the same samples",
        )
    factors = tuple((f.name, tuple(found)) for f, found in zip(FACTORS, levels, strict=True))
    return Crossed(task, factors, variants)
