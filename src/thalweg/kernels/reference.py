"""How a rule runs when only being right matters: NumPy, float64, one array at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.rules.rule import HEAD, Rule, Sums, decay, prepare

__all__ = ["descend", "start", "step"]

Array = NDArray[np.float64]


def start(rule: Rule, p: Array, hyper: Mapping[str, Any]) -> tuple[Array, ...]:
    """The state that a resolved rule begins with at a parameter."""
    return tuple(
        p.copy() if value is None else np.full(rule.shapes.get(name, tuple)(p.shape), value)
        for name, value in zip(rule.state, rule.start(hyper), strict=True)
    )


def step(
    rule: Rule,
    p: Array,
    g: Array,
    state: Sequence[Array],
    hyper: Mapping[str, Any],
    count: int,
    scalars: Sums = (),
) -> tuple[tuple[Array, ...], Sums]:
    """One step of a rule on one array, which is all that the optimizer has.

    Args:
        rule: any rule; what ``hyper`` and the shape ask for is used.
        p: parameter, float64, any shape.
        g: gradient, same shape.
        state: the rule's state arrays.
        hyper: complete hyperparameters (`Rule.complete`).
        count: the number of this step, from 1.
        scalars: as the step before left them.

    Returns:
        New parameter and new state, and new scalars; nothing is changed in place.
    """
    rule = rule.resolve(hyper, p.shape)
    row = [np.float64(c) for c in rule.row(hyper, count, scalars)]
    # Numbers beyond all bounds are what a diverging run looks like; the other executors, too,
    # go on without a warning.
    with np.errstate(all="ignore"):
        if hyper["clip_norm"] is not None:
            row[0] *= np.minimum(hyper["clip_norm"] / (np.sqrt((g * g).sum()) + 1e-6), 1.0)
        head = tuple(row)
        decayed, prepared = decay(p, head), prepare(p, g, head)
        if rule.whole:
            return _whole(rule, decayed, prepared, state, row[HEAD:]), scalars
        sums: Sums = ()
        if rule.terms is not None:
            sums = tuple(np.sum(t) for t in rule.terms(p, prepared, *state, *row[HEAD:]))
        extra, scalars = rule.go_on(hyper, count, sums, scalars)
        new = rule.update(decayed, prepared, *state, *row[HEAD:], *extra)
        return tuple(np.asarray(a) for a in new), scalars


def _whole(
    rule: Rule, p: Array, g: Array, state: Sequence[Array], row: Sequence[float]
) -> tuple[Array, ...]:
    import torch

    arrays = (torch.as_tensor(np.ascontiguousarray(a))[None] for a in (p, g, *state))
    return tuple(t[0].numpy() for t in rule.update(*arrays, *row))


def descend(
    rule: Rule,
    start_at: Array,
    gradient: Callable[[Array], Array],
    steps: int,
    **hyper: Any,
) -> Array:
    """The path of a rule on a function given by its gradient.

    Args:
        rule: any rule.
        start_at: first point, shape ``(n,)``.
        gradient: maps a point of shape ``(n,)`` to the gradient there.
        steps: how many to take.
        hyper: hyperparameters; defaults for the rest.

    Returns:
        Points, shape ``(steps + 1, n)``, float64, the first being ``start_at``.

    Raises:
        HyperparameterError: for a hyperparameter that the rule lacks or a value out of range.
    """
    complete = rule.complete(hyper)
    p = np.asarray(start_at, dtype=np.float64)
    rule = rule.resolve(complete, p.shape)
    state = start(rule, p, complete)
    scalars: Sums = rule.start_scalars(complete)
    path = [p]
    for count in range(1, steps + 1):
        at = p
        if rule.point:
            at = rule.point(p, *state, *rule.row(complete, count, scalars)[HEAD:])
        (p, *rest), scalars = step(rule, p, gradient(at), state, complete, count, scalars)
        state = tuple(rest)
        path.append(p)
    return np.stack(path)
