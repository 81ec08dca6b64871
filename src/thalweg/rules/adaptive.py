"""Rules that divide by a running size of the gradient: AdaGrad, RMSProp, AdaDelta, Adam.

Where ``eps`` sits is a matter of coefficients, never of a second body: every root here is
``sqrt(second_moment + inside) + outside``.
"""

from dataclasses import replace
from typing import Any

from thalweg.rules.maths import maximum, sqrt
from thalweg.rules.rule import Flag, Hyper, Number, Row, Rule

__all__ = ["ADADELTA", "ADAGRAD", "ADAM", "RMSPROP"]


def _unit(name: str, default: float) -> Number:
    return Number(name, default, low=0.0, high=1.0, high_open=True)


def _eps_places(hyper: Hyper) -> tuple[float, float]:
    eps = hyper["eps"]
    return (eps, 0.0) if hyper["eps_in_sqrt"] else (0.0, eps)


def _initial_accumulator(hyper: Hyper) -> float:
    return float(hyper["initial_accumulator_value"])


def _adagrad_coefficients(hyper: Hyper, step: int) -> Row:
    lr = float(hyper["lr"]) / (1.0 + (step - 1) * hyper["lr_decay"])
    return lr, 1.0, 1.0, *_eps_places(hyper)


def _root_of_squares(
    p: Any, g: Any, r: Any, lr: Any, keep: Any, gain: Any, inside: Any, outside: Any
) -> tuple[Any, ...]:
    r = keep * r + gain * g * g
    return p - lr * g / (sqrt(r + inside) + outside), r


# Duchi, Hazan and Singer (2011), JMLR 12, figure 1 (diagonal):
#   r <- r + g^2;  x <- x - lr / (1 + (t - 1) lr_decay) g / (sqrt(r) + eps)
ADAGRAD = Rule(
    "AdaGrad",
    (
        Number("lr", 1e-2, low=0.0),
        Number("lr_decay", 0.0, low=0.0),
        Number("eps", 1e-10, low=0.0),
        Number("initial_accumulator_value", 0.0, low=0.0),
        Flag("eps_in_sqrt"),
    ),
    ("sum",),
    _adagrad_coefficients,
    _root_of_squares,
    initial={"sum": _initial_accumulator},
    settles=lambda hyper: float("inf") if hyper["lr_decay"] else 1,
)


def _rmsprop_coefficients(hyper: Hyper, step: int) -> Row:
    lr, alpha = float(hyper["lr"]), hyper["alpha"]
    return lr, alpha, 1.0 - alpha, *_eps_places(hyper)


def _rmsprop_momentum_coefficients(hyper: Hyper, step: int) -> Row:
    lr, *rest = _rmsprop_coefficients(hyper, step)
    inner, outer = (lr, 1.0) if hyper["lr_in_momentum"] else (1.0, lr)
    return inner, *rest, hyper["momentum"], outer


def _rmsprop_momentum(
    p: Any,
    g: Any,
    r: Any,
    v: Any,
    inner: Any,
    keep: Any,
    gain: Any,
    inside: Any,
    outside: Any,
    mu: Any,
    outer: Any,
) -> tuple[Any, ...]:
    r = keep * r + gain * g * g
    v = mu * v + inner * g / (sqrt(r + inside) + outside)
    return p - outer * v, r, v


def _rmsprop_centered(
    p: Any,
    g: Any,
    r: Any,
    m: Any,
    lr: Any,
    keep: Any,
    gain: Any,
    inside: Any,
    outside: Any,
) -> tuple[Any, ...]:
    r = keep * r + gain * g * g
    m = m + gain * (g - m)
    return p - lr * g / (sqrt(r - m * m + inside) + outside), r, m


def _rmsprop_centered_momentum(
    p: Any,
    g: Any,
    r: Any,
    v: Any,
    m: Any,
    inner: Any,
    keep: Any,
    gain: Any,
    inside: Any,
    outside: Any,
    mu: Any,
    outer: Any,
) -> tuple[Any, ...]:
    r = keep * r + gain * g * g
    m = m + gain * (g - m)
    v = mu * v + inner * g / (sqrt(r - m * m + inside) + outside)
    return p - outer * v, r, v, m


def _rmsprop_variant(hyper: Hyper) -> Rule:
    return _RMSPROPS[hyper["momentum"] > 0, hyper["centered"]]


# Tieleman and Hinton (2012), lecture 6.5; centered: Graves (2013), arXiv:1308.0850, equations
# 38 to 41.
#   r <- alpha r + (1 - alpha) g^2;  x <- x - lr g / (sqrt(r) + eps)
#   with momentum: v <- mu v + g / (sqrt(r) + eps);  x <- x - lr v
RMSPROP = Rule(
    "RMSProp",
    (
        Number("lr", 1e-2, low=0.0),
        _unit("alpha", 0.99),
        Number("eps", 1e-8, low=0.0),
        _unit("momentum", 0.0),
        Flag("centered"),
        Number("initial_accumulator_value", 0.0, low=0.0),
        Flag("eps_in_sqrt"),
        Flag("lr_in_momentum"),
    ),
    ("square_avg",),
    _rmsprop_coefficients,
    _root_of_squares,
    initial={"square_avg": _initial_accumulator},
    variant=_rmsprop_variant,
    settles=lambda hyper: 1,
)
_RMSPROPS = {
    (False, False): RMSPROP,
    (True, False): replace(
        RMSPROP,
        state=("square_avg", "momentum_buffer"),
        coefficients=_rmsprop_momentum_coefficients,
        update=_rmsprop_momentum,
    ),
    (False, True): replace(RMSPROP, state=("square_avg", "grad_avg"), update=_rmsprop_centered),
    (True, True): replace(
        RMSPROP,
        state=("square_avg", "momentum_buffer", "grad_avg"),
        coefficients=_rmsprop_momentum_coefficients,
        update=_rmsprop_centered_momentum,
    ),
}


def _adadelta_coefficients(hyper: Hyper, step: int) -> Row:
    rho = hyper["rho"]
    return float(hyper["lr"]), rho, 1.0 - rho, hyper["eps"]


def _adadelta(
    p: Any, g: Any, r: Any, d: Any, lr: Any, rho: Any, gain: Any, eps: Any
) -> tuple[Any, ...]:
    r = rho * r + gain * g * g
    u = sqrt(d + eps) / sqrt(r + eps) * g
    return p - lr * u, r, rho * d + gain * u * u


# Zeiler (2012), arXiv:1212.5701, algorithm 1; lr is torch's factor, 1 in the paper.
ADADELTA = Rule(
    "AdaDelta",
    (Number("lr", 1.0, low=0.0), _unit("rho", 0.9), Number("eps", 1e-6, low=0.0)),
    ("square_avg", "acc_delta"),
    _adadelta_coefficients,
    _adadelta,
    settles=lambda hyper: 1,
)


def _adam_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    correction1 = 1.0 - beta1**step
    correction2 = 1.0 - beta2**step
    eps = hyper["eps"] / correction2**0.5 if hyper["eps_hat"] else hyper["eps"]
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        float(hyper["lr"]) / correction1,
        1.0 / correction2,
        hyper["eps_root"],
        eps,
    )


def _adam(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate: Any,
    unbias2: Any,
    eps_root: Any,
    eps: Any,
) -> tuple[Any, ...]:
    m = beta1 * m + gain1 * g
    s = beta2 * s + gain2 * g * g
    return p - rate * m / (sqrt(s * unbias2 + eps_root) + eps), m, s


def _amsgrad(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    largest: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate: Any,
    unbias2: Any,
    eps_root: Any,
    eps: Any,
) -> tuple[Any, ...]:
    m = beta1 * m + gain1 * g
    s = beta2 * s + gain2 * g * g
    largest = maximum(largest, s)
    return p - rate * m / (sqrt(largest * unbias2 + eps_root) + eps), m, s, largest


def _adam_variant(hyper: Hyper) -> Rule:
    return _AMSGRAD if hyper["amsgrad"] else ADAM


# Kingma and Ba (2015), arXiv:1412.6980, algorithm 1; eps_hat is the efficient form that ends
# section 2. AMSGrad: Reddi, Kale and Kumar (2018), arXiv:1904.09237, algorithm 2, with torch's
# bias correction.
ADAM = Rule(
    "Adam",
    (
        Number("lr", 1e-3, low=0.0),
        Number("betas", (0.9, 0.999), low=0.0, high=1.0, high_open=True),
        Number("eps", 1e-8, low=0.0),
        Number("eps_root", 0.0, low=0.0),
        Flag("eps_hat"),
        Flag("amsgrad"),
    ),
    ("exp_avg", "exp_avg_sq"),
    _adam_coefficients,
    _adam,
    variant=_adam_variant,
)
_AMSGRAD = replace(ADAM, state=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), update=_amsgrad)
