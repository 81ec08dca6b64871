"""How a rule runs when only being right matters: NumPy, float64, one array at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.rules.rule import Rule, prepare

__all__ = ["descend", "step"]

Array = NDArray[np.float64]


def step(
    rule: Rule, p: Array, g: Array, state: Sequence[Array], hyper: Mapping[str, Any], count: int
) -> tuple[Array, ...]:
    """One step of a rule on one array.

    Args:
        rule: any rule; the variant that ``hyper`` asks for is used.
        p: parameter, float64, any shape.
        g: gradient, same shape.
        state: the rule's state arrays, each of the same shape.
        hyper: complete hyperparameters (`Rule.complete`).
        count: the number of this step, from 1.

    Returns:
        New parameter and new state; nothing is changed in place.
    """
    rule = rule.resolve(hyper)
    row = [np.float64(c) for c in rule.row(hyper, count)]
    # Numbers beyond all bounds are what a diverging run looks like; the other executors, too,
    # go on without a warning.
    with np.errstate(all="ignore"):
        sign, coupled, shrink = row[:3]
        # Zero times an infinite parameter would be NaN.
        p, g = prepare(p, g, sign, coupled, shrink) if coupled else (shrink * p, sign * g)
        return tuple(np.asarray(a) for a in rule.update(p, g, *state, *row[3:]))


def descend(
    rule: Rule,
    start: Array,
    gradient: Callable[[Array], Array],
    steps: int,
    **hyper: Any,
) -> Array:
    """The path of a rule on a function given by its gradient.

    Args:
        rule: any rule.
        start: first point, shape ``(n,)``.
        gradient: maps a point of shape ``(n,)`` to the gradient there.
        steps: how many to take.
        hyper: hyperparameters; defaults for the rest.

    Returns:
        Points, shape ``(steps + 1, n)``, float64, the first being ``start``.

    Raises:
        HyperparameterError: for a hyperparameter that the rule lacks or a value out of range.
    """
    complete = rule.complete(hyper)
    rule = rule.resolve(complete)
    p = np.asarray(start, dtype=np.float64)
    state: tuple[Array, ...] = tuple(np.full_like(p, s) for s in rule.start(complete))
    path = [p]
    for count in range(1, steps + 1):
        at = rule.point(p, *state, *rule.row(complete, count)[3:]) if rule.point else p
        p, *rest = step(rule, p, gradient(at), state, complete, count)
        state = tuple(rest)
        path.append(p)
    return np.stack(path)
