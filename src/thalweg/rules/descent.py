"""Gradient descent: SGD, Momentum in three forms, NAG in two, and the average of ASGD.

All forms of momentum are one line of maths, ``v' = keep v + gain g``, and differ in three
coefficients only.
"""

from dataclasses import replace
from typing import Any

from thalweg.rules.hyper import lr, unit
from thalweg.rules.maths import maximum, where
from thalweg.rules.rule import Choice, Flag, Hyper, Number, Row, Rule, Sums

__all__ = ["ASGD", "MOMENTUM", "NAG", "SGD"]

_MOMENTUM = unit("momentum", 0.9, "mu, what is kept of the velocity")
_DAMPENING = Number(
    "dampening", 0.0, meaning="tau in v <- mu v + (1 - tau) g; the first step takes v = g"
)


def _sgd_coefficients(hyper: Hyper, step: int) -> Row:
    return (hyper["lr"],)


def _sgd(p: Any, g: Any, lr: Any) -> tuple[Any, ...]:
    return (p - lr * g,)


def _gain(hyper: Hyper, step: Any) -> Any:
    return where(step == 1, 1.0, 1.0 - hyper["dampening"])


def _momentum_coefficients(hyper: Hyper, step: int) -> Row:
    lr, mu = hyper["lr"], hyper["momentum"]
    form = hyper.get("form", "torch")
    if form == "sutskever":
        return mu, -lr, 1.0
    if form == "ewma":
        correction = 1.0 - mu**step if hyper["bias_correction"] else 1.0
        return mu, 1.0 - mu, -lr / correction
    return mu, _gain(hyper, step), -lr


def _momentum_settles(hyper: Hyper) -> float:
    moving = hyper.get("form") == "ewma" and hyper["bias_correction"]
    return float("inf") if moving else 2


def _momentum(p: Any, g: Any, v: Any, keep: Any, gain: Any, move: Any) -> tuple[Any, ...]:
    v = keep * v + gain * g
    return p + move * v, v


def _nag_coefficients(hyper: Hyper, step: int) -> Row:
    lr, mu = hyper["lr"], hyper["momentum"]
    if hyper.get("form") == "lookahead":
        return mu, -lr, 0.0, 1.0
    if hyper.get("form") == "sutskever":
        return mu, -lr, -lr, mu
    return mu, _gain(hyper, step), -lr, -lr * mu


def _nag(p: Any, g: Any, v: Any, keep: Any, gain: Any, move_g: Any, move_v: Any) -> tuple[Any, ...]:
    v = keep * v + gain * g
    return p + move_g * g + move_v * v, v


def _nag_point(p: Any, v: Any, keep: Any, gain: Any, move_g: Any, move_v: Any) -> Any:
    return p + keep * v


def _nag_variant(hyper: Hyper) -> Rule:
    return _NAG_LOOKAHEAD if hyper["form"] == "lookahead" else NAG


MOMENTUM = Rule(
    "Momentum",
    (
        lr(1e-3),
        _MOMENTUM,
        _DAMPENING,
        Choice(
            "form",
            "torch",
            ("torch", "sutskever", "ewma"),
            'where the rate sits: "torch" outside the velocity, so that a change of rate acts at '
            'once; "sutskever" (textbooks) v <- mu v - lr g; x <- x + v; "ewma" a moving average, '
            "v <- mu v + (1 - mu) g, an effective rate lower by 1 - mu",
        ),
        Flag("bias_correction", meaning='divide the average of form "ewma" by 1 - mu^t'),
    ),
    ("momentum_buffer",),
    _momentum_coefficients,
    _momentum,
    settles=_momentum_settles,
    moments={"momentum_buffer": True},
    paper="Polyak (1964), Some methods of speeding up the convergence of iteration methods; "
    "Sutskever et al. (2013), On the importance of initialization and momentum, ICML, equations 1 "
    "and 2",
    formula="v <- mu v + g;  x <- x - lr v",
    helps="Narrow valleys: the steps along add up, those across cancel.",
    fails="Overshoots where the slope turns; needs a lower rate than SGD by about 1 - mu.",
    lr_range=(1e-4, 1e0),
)

NAG = Rule(
    "NAG",
    (
        lr(1e-3),
        _MOMENTUM,
        _DAMPENING,
        Choice(
            "form",
            "torch",
            ("torch", "sutskever", "lookahead"),
            'where the gradient is taken: "torch" at x, and "sutskever" (MXNet) too, with the rate '
            'inside the velocity, v <- mu v - lr g; x <- x + mu v - lr g; "lookahead" (textbooks, '
            "Keras) at x + mu v, for which step needs a closure; torch's x is this form's x + mu v",
        ),
    ),
    ("momentum_buffer",),
    _nag_coefficients,
    _nag,
    variant=_nag_variant,
    settles=lambda hyper: 2,
    moments={"momentum_buffer": True},
    paper="Nesterov (1983), A method for solving the convex programming problem with convergence "
    "rate O(1/k^2); Sutskever et al. (2013), ICML, equations 3 and 4",
    formula="v <- mu v + g;  x <- x - lr (g + mu v)",
    helps="As Momentum, with less overshoot: the gradient is of where the velocity leads.",
    fails="With noisy gradients little better than Momentum.",
    lr_range=(1e-4, 1e0),
)
_NAG_LOOKAHEAD = replace(NAG, point=_nag_point)


def _sgd_variant(hyper: Hyper) -> Rule:
    if hyper["nesterov"]:
        return _SGD_NESTEROV
    return _SGD_MOMENTUM if hyper["momentum"] else SGD


def _sgd_conflict(hyper: Hyper) -> str | None:
    if hyper["nesterov"] and (not hyper["momentum"] or hyper["dampening"]):
        return "nesterov needs a momentum above 0 and dampening 0"
    return None


SGD = Rule(
    "SGD",
    (
        lr(1e-3),
        replace(_MOMENTUM, default=0.0),
        _DAMPENING,
        Flag("nesterov", meaning="step along g + mu v; needs momentum and no dampening"),
    ),
    (),
    _sgd_coefficients,
    _sgd,
    variant=_sgd_variant,
    settles=lambda hyper: 1,
    conflict=_sgd_conflict,
    paper="Robbins and Monro (1951), A stochastic approximation method, Ann. Math. Stat. 22",
    formula="x <- x - lr g\n"
    "momentum: v <- mu v + (1 - dampening) g, first v = g;  x <- x - lr v\n"
    "nesterov: the same v;  x <- x - lr (g + mu v)",
    helps="Large, noisy data, where its noise helps to generalise; no memory at all.",
    fails="Narrow valleys and plateaus; one rate for all directions, at most 2 / L.",
    lr_range=(1e-3, 1e1),
)
_SGD_MOMENTUM = replace(
    SGD,
    state=MOMENTUM.state,
    coefficients=_momentum_coefficients,
    update=_momentum,
    settles=_momentum_settles,
    moments=MOMENTUM.moments,
)
_SGD_NESTEROV = replace(
    _SGD_MOMENTUM, coefficients=_nag_coefficients, update=_nag, settles=NAG.settles
)


def _asgd_coefficients(hyper: Hyper, step: int, eta: Any, mu: Any) -> Row:
    return 1.0 - hyper["lambd"] * eta, eta, mu, 1.0 - mu


def _asgd(p: Any, g: Any, a: Any, shrink: Any, eta: Any, gain: Any, keep: Any) -> tuple[Any, ...]:
    p = shrink * p - eta * g
    return p, keep * a + gain * p


def _asgd_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    lr = hyper["lr"]
    eta = lr / (1.0 + hyper["lambd"] * lr * step) ** hyper["alpha"]
    return (), (eta, 1.0 / maximum(step - hyper["t0"], 1.0))


def _average(p: Any, a: Any, hyper: Hyper) -> Any:
    return a


ASGD = Rule(
    "ASGD",
    (
        lr(1e-2),
        Number("lambd", 1e-4, low=0.0, meaning="decay of the weights and of the rate"),
        Number("alpha", 0.75, low=0.0, meaning="power of the rate's decay"),
        Number("t0", 1e6, low=0.0, meaning="step from which the weights are averaged"),
    ),
    ("ax",),
    _asgd_coefficients,
    _asgd,
    scalars={"eta": lambda hyper: hyper["lr"], "mu": lambda hyper: 1.0},
    advance=_asgd_advance,
    answer=_average,
    paper="Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging, "
    "SIAM J. Control Optim. 30; rates of Bottou's sgd, as torch.optim.ASGD has them",
    formula="x <- (1 - lambd eta_t) x - eta_t g;  eta_t = lr / (1 + lambd lr (t - 1))^alpha\n"
    "a <- a + (x - a) / max(1, t - 1 - t0)",
    helps="Convex problems: the average a is optimal where x still jumps about. `optimizer.eval()` "
    "puts a in place of x.",
    fails="Deep networks before they have settled, when the average drags behind; with the default "
    "t0 nothing is averaged for a million steps.",
    lr_range=(1e-3, 1e1),
)
