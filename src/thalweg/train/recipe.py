"""How a task is trained: what a person says of it, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from thalweg.optim import SAM
from thalweg.optim.registry import Entry
from thalweg.rules.rule import HyperparameterError
from thalweg.schedules import Schedule, ScheduleError, parse
from thalweg.train.arguments import FitError, entry_of, positive, seed_of, whole
from thalweg.train.step import PRECISIONS

__all__ = ["Made", "Maker", "Recipe", "checked", "factors", "make", "typed_optimizer"]

Maker = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Recipe:
    """How a task is trained.

    Attributes:
        optimizer: name in `thalweg.optim`, with arguments if need be as a person types them
            (``adamw:weight_decay=0.1:betas=0.9/0.95``); or a function that makes a
            `torch.optim.Optimizer` of parameters.
        lr: learning rate; by default the middle of the optimizer's usual ones. A function has its
            own.
        hyper: further arguments of an optimizer by name.
        schedule: what the learning rate follows, as typed or made; None for one that stays.
        batch_size: samples a batch, of all ranks together; the task's by default.
        accumulate: batches a step.
        clip_norm, clip_value: bounds of the gradients' norm, and of each of their elements.
        ema_decay: of an average of the weights, which is then what is evaluated and kept.
        precision: of forward passes: "float32", "bfloat16", or "float16" with a scaled loss.
        hybridize: whether the model is compiled.
        taped: whether a small network of torch's own layers takes its steps on a tape, one call
            each; else, and where that cannot be, as torch takes them.
        prefetch: batches that are prepared in the background; None for as many as pay and change
            nothing.
        seed: of initial weights, order of batches and dropout.
    """

    optimizer: str | Maker = "adam"
    lr: float | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | Schedule | None = None
    batch_size: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    ema_decay: float | None = None
    precision: str = "float32"
    hybridize: bool = False
    taped: bool = True
    prefetch: int | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Made:
    """An optimizer, and what a step has to know of it.

    Attributes:
        optimizer: of the parameters.
        label: as messages call it.
        clip: what is done to gradients first, if it does not do so itself.
        needs_closure: whether its step evaluates the gradient.
    """

    optimizer: Optimizer
    label: str
    clip: Callable[[], Any] | None = None
    needs_closure: bool = False


def typed_optimizer(text: str) -> tuple[Entry, dict[str, Any]]:
    """The optimizer that a person typed, and its arguments.

    Raises:
        FitError: if there is none of that name, or an argument cannot be read.
    """
    name, *assignments = (word.strip() for word in text.split(":"))
    entry = entry_of(name)
    arguments: dict[str, Any] = {}
    for assignment in assignments:
        argument, equals, value = (word.strip() for word in assignment.partition("="))
        if not (argument and equals and value):
            raise FitError("optimizer", f"{text!r}: {assignment!r} says nothing; write name=value")
        arguments[argument] = _value(value)
    return entry, arguments


def _value(text: str) -> Any:
    """A number, several between slashes, true, false, none, or the word itself."""
    if "/" in text:
        return tuple(_value(part) for part in text.split("/"))
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def checked(recipe: Recipe, samples: int) -> None:
    """Refuse what cannot be, before anything is made.

    Raises:
        FitError: naming it.
    """
    whole("accumulate", recipe.accumulate)
    if recipe.batch_size is not None and whole("batch_size", recipe.batch_size) > samples:
        raise FitError(
            "batch_size", f"{recipe.batch_size} is more than the {samples} training samples"
        )
    for name in ("lr", "clip_norm", "clip_value"):
        value = getattr(recipe, name)
        if value is not None:
            positive(name, value)
    if recipe.precision not in PRECISIONS:
        raise FitError(
            "precision", f"must be one of {', '.join(PRECISIONS)}, got {recipe.precision!r}"
        )
    depth = recipe.prefetch
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise FitError("prefetch", f"must be a whole number from 0, got {depth!r}")
    seed_of(recipe.seed)
    make(recipe, [nn.Parameter(torch.zeros(2, 2))])


def make(recipe: Recipe, parameters: list[nn.Parameter]) -> Made:
    """The optimizer of a recipe, for some parameters.

    Raises:
        FitError: for one that there is not, or arguments that it does not take.
    """
    made = (
        _named(recipe, parameters)
        if isinstance(recipe.optimizer, str)
        else _own(recipe, parameters)
    )
    if made.needs_closure and recipe.precision == "float16":
        raise FitError(
            "precision",
            f"float16 scales the loss, which {made.label} does not allow as its step evaluates "
            f"the gradient; take bfloat16",
        )
    if made.needs_closure and made.clip is not None:
        raise FitError(
            "clip_norm" if recipe.clip_value is None else "clip_value",
            f"cannot be had with {made.label}, whose step evaluates the gradient itself; leave it "
            f"out",
        )
    return made


def _named(recipe: Recipe, parameters: list[nn.Parameter]) -> Made:
    assert isinstance(recipe.optimizer, str)
    entry, typed = typed_optimizer(recipe.optimizer)
    arguments = {**typed, **recipe.hyper}
    if "lr" in arguments and recipe.lr is not None and arguments["lr"] != recipe.lr:
        raise FitError("lr", f"is {recipe.lr!r}, and {arguments['lr']!r} in {recipe.optimizer!r}")
    arguments.setdefault("lr", entry.rule.usual_lr if recipe.lr is None else recipe.lr)
    for name in ("clip_norm", "clip_value", "ema_decay"):
        if getattr(recipe, name) is not None:
            arguments[name] = getattr(recipe, name)
    taken = list(entry.constructor.signature().parameters)[1:]
    for name in arguments:
        if name not in taken:
            near = get_close_matches(name, taken, 1)
            meant = f"did you mean {near[0]}?" if near else f"it takes {', '.join(taken)}"
            raise FitError("optimizer", f"{entry.label} has no argument {name!r}; {meant}")
    try:
        optimizer = entry.constructor(parameters, **arguments)
        needs_closure = entry.needs_closure(arguments)
    except HyperparameterError as error:
        raise FitError("optimizer", str(error)) from None
    except (TypeError, ValueError) as error:
        raise FitError("optimizer", f"{entry.label}: {error}") from None
    return Made(optimizer, entry.label, None, needs_closure)


def _own(recipe: Recipe, parameters: list[nn.Parameter]) -> Made:
    """Of a function of the person's."""
    for name in ("lr", "ema_decay"):
        if getattr(recipe, name) is not None:
            raise FitError(name, "is for an optimizer by its name; give it in your function")
    if recipe.hyper:
        raise FitError(
            next(iter(recipe.hyper)), "is for an optimizer by its name; give it in your function"
        )
    if not callable(recipe.optimizer):
        raise FitError(
            "optimizer",
            f"must be a name or a function of parameters that makes an optimizer, got "
            f"{recipe.optimizer!r}",
        )
    optimizer = recipe.optimizer(parameters)
    if not isinstance(optimizer, Optimizer):
        raise FitError(
            "optimizer",
            f"the function must make a torch.optim.Optimizer, and made a "
            f"{type(optimizer).__name__}",
        )
    clip = partial(_clipped, parameters, recipe.clip_norm, recipe.clip_value)
    clips = recipe.clip_norm is not None or recipe.clip_value is not None
    closure = isinstance(optimizer, torch.optim.LBFGS | SAM)
    return Made(optimizer, type(optimizer).__name__, clip if clips else None, closure)


def _clipped(parameters: Sequence[nn.Parameter], norm: float | None, value: float | None) -> None:
    if value is not None:
        nn.utils.clip_grad_value_(parameters, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)


def factors(
    schedule: str | Schedule | None, steps: int, steps_per_epoch: int
) -> NDArray[np.float64] | None:
    """What multiplies the learning rate at each step, ``(steps,)``; None for nothing.

    Raises:
        FitError: for a schedule that means nothing, or ends before the training does.
    """
    if schedule is None:
        return None
    try:
        made = parse(schedule, steps, steps_per_epoch) if isinstance(schedule, str) else schedule
        if not isinstance(made, Schedule):
            raise ScheduleError("schedule", f"must be a text or a Schedule, got {schedule!r}")
        if made.steps is not None and made.steps < steps:
            raise ScheduleError(
                "schedule", f"ends after {made.steps} steps and the training after {steps}"
            )
        return np.broadcast_to(np.asarray(made(np.arange(steps)), dtype=np.float64), (steps,))
    except ScheduleError as error:
        raise FitError("schedule", error.problem) from None
