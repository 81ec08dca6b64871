"""Clipping, zeroing and averaging in the step, against the same by calls of torch's own."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.measure import Row, alternate, shown
from benchmarks.peers import LR
from benchmarks.sets import SETS
from benchmarks.step import parameters
from thalweg import optim

DECAY = 0.999
NORM = 1e9  # never reached, so that every round does the same

Parameters = list[torch.nn.Parameter]


def _clip(made: Parameters) -> Callable[[], object]:
    return partial(clip_grad_norm_, made, NORM, foreach=True)


def _zero(made: Parameters) -> Callable[[], object]:
    return lambda: torch._foreach_zero_([p.grad for p in made if p.grad is not None])


def _average(made: Parameters) -> Callable[[], object]:
    """As torch.optim.swa_utils.get_ema_multi_avg_fn has it."""
    kept = [p.detach().clone() for p in made]

    def average() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(kept, [p.detach() for p in made], 1 - DECAY)

    return average


# Name, argument of ours, torch's own before the step, and after it.
EXTRAS = {
    "clip by norm": ({"clip_norm": NORM}, (_clip,), ()),
    "zero the gradients": ({"clear_grad": True}, (), (_zero,)),
    "average the weights": ({"ema_decay": DECAY}, (), (_average,)),
    "all three": (
        {"clip_norm": NORM, "clear_grad": True, "ema_decay": DECAY},
        (_clip,),
        (_average, _zero),
    ),
}


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    def every() -> None:
        for call in calls:
            call()

    return every


def extras() -> list[Row]:
    """Adam with each of them, and with all, on every set."""
    rows = []
    for set_name, shapes in SETS.items():
        for name, (arguments, before, after) in EXTRAS.items():
            ours = optim.Adam(parameters(shapes), lr=LR, **arguments).step
            made = parameters(shapes)
            step = torch.optim.Adam(made, lr=LR, fused=True).step
            apart = [*(f(made) for f in before), step, *(f(made) for f in after)]
            found = alternate({"ours": ours, "torch": _in_turn(apart)})
            ratio = found["torch"] / found["ours"]
            times = shown(found["ours"]), shown(found["torch"])
            rows.append(Row(f"Adam, {name}, {set_name}", *times, ratio, "≥ 1"))
    return rows
