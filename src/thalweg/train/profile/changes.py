"""What is worth trying, and what each gained when it was tried."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from thalweg.optim.base import RuleOptimizer
from thalweg.optim.registry import OPTIMIZERS, key
from thalweg.tasks import Task
from thalweg.tasks.blame import raised
from thalweg.tasks.memory import shown
from thalweg.train.profile.machine import free_memory
from thalweg.train.profile.memory import Memory
from thalweg.train.profile.running import Gain, Running, gain_of, running
from thalweg.train.recipe import Recipe, make
from thalweg.train.tape import is_short

__all__ = ["Change", "Tried", "changes_for", "speed", "threshold_of", "together", "tried"]

LITTLE = 0.02  # up to which a gain does not matter, however sure it is
NOTHING = "nothing"
DEPTH = 2  # batches in flight
TIMES = (2, 4, 8)  # the batch size
# How a step is carried out, which is not what the optimizer computes.
WAYS = {"params", "foreach", "fused", "capturable", "differentiable"}


@dataclass(frozen=True)
class Change:
    """Something that a training could do another way.

    Attributes:
        kind: "hybridize", "prefetch", "optimizer", "batch_size", "precision" or "threads"; of one
            kind only one is possible at a time. "nothing" for no change at all.
        words: what it is, for tables.
        fields: of the recipe, that become other ones.
        threads: that torch has, if other than now.
        caution: what else it changes than time; empty if nothing.
        refused: why it is not even tried; empty if it is.
    """

    kind: str
    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    caution: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Tried:
    """What came of a change.

    Attributes:
        change: what was tried.
        gain: over the present setting; None if it could not be tried.
        once: seconds that it takes once, to compile say.
        reason: why it could not be tried; empty if it was.
    """

    change: Change
    gain: Gain | None
    once: float = 0.0
    reason: str = ""

    def verdict(self, threshold: float) -> str:
        """Whether it is "faster", "slower", "none" of both for sure, or "not tried".

        Args:
            threshold: by which its whole interval has to differ.
        """
        if self.gain is None:
            return "not tried"
        if self.gain.low > threshold:
            return "faster"
        return "slower" if self.gain.high < -threshold else "none"


def changes_for(
    task: Task, recipe: Recipe, device: torch.device, threads: int, memory: Memory
) -> list[Change]:
    """What could be done another way, those that compile last.

    Args:
        task: what is trained.
        recipe: how, at present.
        device: where.
        threads: that torch has at present.
        memory: that a step holds at present.
    """
    found = [Change(NOTHING, "nothing, a second time")]
    size = recipe.batch_size or task.batch_size
    if device.type == "cpu" and is_short(task, task.model(), size):
        found.append(Change("taped", "the step on a tape", {"taped": True}))
    found += _optimizers(recipe)
    if not recipe.prefetch:
        words = f"prefetch, {DEPTH} batches in flight"
        found.append(Change("prefetch", words, {"prefetch": DEPTH}))
    found += _batch_sizes(task, recipe, device, memory)
    if recipe.precision == "float32":
        caution = "numbers change, so look at the loss"
        found.append(Change("precision", "bfloat16", {"precision": "bfloat16"}, caution=caution))
    else:
        found.append(Change("precision", "float32", {"precision": "float32"}))
    if device.type == "cpu":
        cores = _cores()
        counts = dict.fromkeys((1, max(1, cores // 2), cores))
        found += [
            Change("threads", f"{n} thread{'s' * (n > 1)}", threads=n)
            for n in counts
            if n != threads
        ]
    if not recipe.hybridize:
        found.append(Change("hybridize", "hybridize", {"hybridize": True}))
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batch_sizes(
    task: Task, recipe: Recipe, device: torch.device, memory: Memory
) -> Iterator[Change]:
    now = recipe.batch_size or task.batch_size
    free = free_memory(device)
    for times in TIMES:
        size = times * now
        if size > len(task.train):
            return
        # What grows with the batch, gradients of activations at their peak included.
        need = times * (memory.batch + 2 * memory.activations)
        yield Change(
            "batch_size",
            f"batches of {size:,}",
            {"batch_size": size},
            caution="that is another training, whose learning rate has to be chosen anew",
            refused=f"needs about {shown(need)}, {shown(free)} are free" if need > free else "",
        )


def _optimizers(recipe: Recipe) -> Iterator[Change]:
    """The same optimizer by other code: torch's for Thalweg's, and the other way round."""
    made = make(recipe, [nn.Parameter(torch.zeros(2, 2))]).optimizer
    group = made.param_groups[0]
    if isinstance(made, RuleOptimizer):
        theirs = made.torchs
        if theirs is None or not _is_plain(made, theirs):
            return
        arguments = _taken(theirs, group)
        yield _other(f"torch's {theirs.__name__} instead of Thalweg's", theirs, arguments)
        if "fused" in signature(theirs).parameters:
            words = f"torch's fused {theirs.__name__} instead of Thalweg's"
            yield _other(words, theirs, {**arguments, "fused": True})
        return
    cls = type(made)
    entry = OPTIMIZERS.get(key(cls.__name__))
    if entry is not None and entry.constructor.torchs is cls:
        ours = entry.constructor
        words = f"Thalweg's {ours.__name__} instead of torch's"
        yield _other(words, ours, _taken(ours, group))
    if "fused" in signature(cls).parameters and not group.get("fused"):
        words = f"torch's fused {cls.__name__}"
        yield _other(words, cls, {**_taken(cls, group), "fused": True})


def _other(words: str, cls: type[Optimizer], arguments: Mapping[str, Any]) -> Change:
    maker: Callable[..., Optimizer] = partial(cls, **arguments)
    return Change("optimizer", words, {"optimizer": maker, "lr": None, "hyper": {}})


def _taken(cls: type[Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a group's hyperparameters those that a class takes."""
    return {n: group[n] for n in signature(cls).parameters if n in group and n not in WAYS}


def _is_plain(made: RuleOptimizer, theirs: type[Optimizer]) -> bool:
    """Whether what an optimizer of Thalweg's has beyond torch's is left as it is by default."""
    known = {**signature(theirs).parameters, **dict.fromkeys(WAYS)}
    group = made.param_groups[0]
    return all(
        group[name] == parameter.default
        for name, parameter in made.signature().parameters.items()
        if name not in known
    )


def tried(
    present: Running,
    task: Task,
    recipe: Recipe,
    changes: Sequence[Change],
    doing: Callable[[str], None],
) -> list[Tried]:
    """Try changes one after the other, each in turns with the present setting.

    Args:
        present: the setting that they are compared with.
        task: what is trained.
        recipe: how, at present.
        changes: to try.
        doing: called with what is tried.
    """
    found = []
    for change in changes:
        doing(f"trying {change.words}")
        found.append(_tried(present, task, recipe, change))
    return found


def _tried(present: Running, task: Task, recipe: Recipe, change: Change) -> Tried:
    if change.refused:
        return Tried(change, None, reason=change.refused)
    other = replace(recipe, **change.fields)
    threads = change.threads or present.threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is said in the table
        try:
            with running(task, other, present.device, threads) as it:
                plain = getattr(it.engine.module, "reason", None) if other.hybridize else None
                if plain is None:
                    return Tried(change, gain_of(present, it), it.once)
        except Exception as error:
            plain = raised(error)
    return Tried(change, None, reason=plain)


def threshold_of(found: Sequence[Tried]) -> float:
    """From which a gain counts: what the present setting gains over itself, or what matters."""
    itself = [t.gain.gain for t in found if t.change.kind == NOTHING and t.gain]
    return max(LITTLE, *map(abs, itself))


def together(found: Sequence[Tried], threshold: float) -> list[Change]:
    """The changes that help, at once: those that leave the training as it is, and all of them."""
    best: dict[str, Tried] = {}
    for one in sorted(found, key=speed):
        if one.verdict(threshold) == "faster":
            best[one.change.kind] = one
    every = [one.change for one in best.values()]
    same = [change for change in every if not change.caution]
    several = [some for some in (same, every) if len(some) > 1]
    return [_joined(some) for i, some in enumerate(several) if several.index(some) == i]


def speed(one: Tried) -> float:
    """What it gains, to sort by; what could not be tried is last."""
    return one.gain.gain if one.gain else -1.0


def _joined(changes: Sequence[Change]) -> Change:
    fields: dict[str, Any] = {}
    for change in changes:
        fields |= change.fields
    return Change(
        "together",
        " + ".join(change.words for change in changes),
        fields,
        next((change.threads for change in changes if change.threads), None),
        "; ".join(change.caution for change in changes if change.caution),
    )
