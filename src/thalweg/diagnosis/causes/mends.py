"""Changes to weights and layers that several causes would have tried, each made once."""

from collections.abc import Callable, Sequence
from functools import partial

from thalweg.diagnosis.case import Case, Trial
from thalweg.diagnosis.changes import has_activations, initialised, normalised, rectified, reset
from thalweg.diagnosis.setting import Setting
from thalweg.numbers import number

__all__ = ["Mend", "clip", "initialise", "leave", "normalise", "rectify", "trials"]

SLOWER = 0.1  # a rate that is tried besides the one that is set, as a factor on it
CLIP = 1.0

Mend = Callable[[Case], "tuple[str, Callable[[], Setting]] | None"]


def trials(case: Case, mends: Sequence[Mend], slower: bool = True) -> tuple[Trial, ...]:
    """Each change at the rate that is set, and at a lower one."""
    found = []
    for mend in mends:
        made = mend(case)
        if made is None:
            continue
        words, setting = made
        mended = case.made(words, setting)
        found.append(Trial(words, mended))
        if slower:
            lr = SLOWER * case.setting.lr
            both = f"{words}, and lower the learning rate to {number(lr)}"
            found.append(Trial(both, case.made(both, partial(mended.but, lr=lr))))
    return tuple(found)


def leave(case: Case) -> tuple[str, Callable[[], Setting]]:
    """Torch's own initialisation."""
    return (
        "leave weights and biases as torch's layers initialise them",
        lambda: case.setting.but(task=reset(case.setting.task)),
    )


def initialise(case: Case) -> tuple[str, Callable[[], Setting]]:
    """He's initialisation, or Glorot's."""
    return (
        "draw the weights at random with variance gain²/inputs (He before ReLU, Glorot before "
        "tanh) and set the biases to 0",
        lambda: case.setting.but(task=initialised(case.setting.task, case.flow.layers)),
    )


def normalise(case: Case) -> tuple[str, Callable[[], Setting]]:
    """Normalisation layers."""
    return (
        "normalise each hidden layer's outputs (LayerNorm; GroupNorm after convolutions)",
        lambda: case.setting.but(task=normalised(case.setting.task)),
    )


def rectify(case: Case) -> tuple[str, Callable[[], Setting]] | None:
    """Another activation."""
    if not has_activations(case.setting.task):
        return None
    return (
        "take leaky ReLU for the activations, with weights initialised for it",
        lambda: case.setting.but(task=rectified(case.setting.task, case.flow.layers)),
    )


def clip(case: Case) -> tuple[str, Callable[[], Setting]]:
    """A bound on the gradient."""
    return (
        f"clip the norm of the gradient to {CLIP:g}",
        lambda: case.setting.but(hyper={"clip_norm": CLIP}),
    )
