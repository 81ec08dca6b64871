"""Gradient descent: SGD, Momentum in three forms, NAG in two.

All forms of momentum are one line of maths, ``v' = keep v + gain g``, and differ in three
coefficients only.
"""

from dataclasses import replace
from typing import Any

from thalweg.rules.rule import Choice, Flag, Hyper, Number, Row, Rule

__all__ = ["MOMENTUM", "NAG", "SGD"]


def _lr(default: float) -> Number:
    return Number("lr", default, low=0.0)


_MOMENTUM = Number("momentum", 0.9, low=0.0, high=1.0, high_open=True)
_DAMPENING = Number("dampening", 0.0)


def _sgd_coefficients(hyper: Hyper, step: int) -> Row:
    return (float(hyper["lr"]),)


def _sgd(p: Any, g: Any, lr: Any) -> tuple[Any, ...]:
    return (p - lr * g,)


# Robbins and Monro (1951), as torch.optim.SGD without momentum: x <- x - lr g.
SGD = Rule("SGD", (_lr(1e-3),), (), _sgd_coefficients, _sgd, settles=lambda hyper: 1)


def _momentum_coefficients(hyper: Hyper, step: int) -> Row:
    lr, mu = float(hyper["lr"]), hyper["momentum"]
    if hyper["form"] == "sutskever":
        return mu, -lr, 1.0
    if hyper["form"] == "ewma":
        correction = 1.0 - mu**step if hyper["bias_correction"] else 1.0
        return mu, 1.0 - mu, -lr / correction
    return mu, 1.0 if step == 1 else 1.0 - hyper["dampening"], -lr


def _momentum_settles(hyper: Hyper) -> float:
    return float("inf") if hyper["form"] == "ewma" and hyper["bias_correction"] else 2


def _momentum(p: Any, g: Any, v: Any, keep: Any, gain: Any, move: Any) -> tuple[Any, ...]:
    v = keep * v + gain * g
    return p + move * v, v


# Polyak (1964); Sutskever et al. (2013), equations 1 and 2, for form="sutskever".
#   torch:      v <- mu v + (1 - dampening) g, v = g at step 1;  x <- x - lr v
#   sutskever:  v <- mu v - lr g;                                x <- x + v
#   ewma:       v <- mu v + (1 - mu) g;                          x <- x - lr v / (1 - mu^t or 1)
MOMENTUM = Rule(
    "Momentum",
    (
        _lr(1e-3),
        _MOMENTUM,
        _DAMPENING,
        Choice("form", "torch", ("torch", "sutskever", "ewma")),
        Flag("bias_correction"),
    ),
    ("momentum_buffer",),
    _momentum_coefficients,
    _momentum,
    settles=_momentum_settles,
)


def _nag_coefficients(hyper: Hyper, step: int) -> Row:
    lr, mu = float(hyper["lr"]), hyper["momentum"]
    if hyper["form"] == "lookahead":
        return mu, -lr, 0.0, 1.0
    return mu, 1.0 if step == 1 else 1.0 - hyper["dampening"], -lr, -lr * mu


def _nag(p: Any, g: Any, v: Any, keep: Any, gain: Any, move_g: Any, move_v: Any) -> tuple[Any, ...]:
    v = keep * v + gain * g
    return p + move_g * g + move_v * v, v


def _nag_point(p: Any, v: Any, keep: Any, gain: Any, move_g: Any, move_v: Any) -> Any:
    return p + keep * v


def _nag_variant(hyper: Hyper) -> Rule:
    return _NAG_LOOKAHEAD if hyper["form"] == "lookahead" else NAG


# Nesterov (1983); Sutskever et al. (2013), equations 3 and 4, for form="lookahead".
#   torch:      v <- mu v + (1 - dampening) g;      x <- x - lr (g + mu v)
#   lookahead:  v <- mu v - lr g(x + mu v);         x <- x + v
NAG = Rule(
    "NAG",
    (_lr(1e-3), _MOMENTUM, _DAMPENING, Choice("form", "torch", ("torch", "lookahead"))),
    ("momentum_buffer",),
    _nag_coefficients,
    _nag,
    variant=_nag_variant,
    settles=lambda hyper: 2,
)
_NAG_LOOKAHEAD = replace(NAG, point=_nag_point)
