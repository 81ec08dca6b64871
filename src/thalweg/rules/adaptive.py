"""Rules that scale each entry by a running size of its gradient: AdaGrad, RMSProp, AdaDelta, Rprop.

Where ``eps`` sits is a matter of coefficients, never of a second body: every root here is
``sqrt(second_moment + inside) + outside``.
"""

from dataclasses import replace
from typing import Any

from thalweg.rules.hyper import eps, lr, unit
from thalweg.rules.maths import maximum, minimum, sign, sqrt, where
from thalweg.rules.rule import Flag, Hyper, Number, Row, Rule

__all__ = ["ADADELTA", "ADAGRAD", "RMSPROP", "RPROP"]

_EPS_IN_SQRT = "divide by sqrt(r + eps): "


def _eps_places(hyper: Hyper) -> tuple[float, float]:
    eps = hyper["eps"]
    return (eps, 0.0) if hyper["eps_in_sqrt"] else (0.0, eps)


def _initial_accumulator(hyper: Hyper) -> float:
    return float(hyper["initial_accumulator_value"])


def _adagrad_coefficients(hyper: Hyper, step: int) -> Row:
    lr = hyper["lr"] / (1.0 + (step - 1) * hyper["lr_decay"])
    return lr, 1.0, 1.0, *_eps_places(hyper)


def _root_of_squares(
    p: Any, g: Any, r: Any, lr: Any, keep: Any, gain: Any, inside: Any, outside: Any
) -> tuple[Any, ...]:
    r = keep * r + gain * g * g
    return p - lr * g / (sqrt(r + inside) + outside), r


ADAGRAD = Rule(
    "AdaGrad",
    (
        lr(1e-2),
        Number("lr_decay", 0.0, low=0.0, meaning="lr is divided by 1 + (t - 1) lr_decay"),
        Number(
            "initial_accumulator_value",
            0.0,
            low=0.0,
            meaning="where r starts; 0.1 in TensorFlow, Keras and optax",
        ),
        eps(1e-10),
        Flag("eps_in_sqrt", meaning=_EPS_IN_SQRT + "TensorFlow, Keras, optax"),
    ),
    ("sum",),
    _adagrad_coefficients,
    _root_of_squares,
    initial={"sum": _initial_accumulator},
    settles=lambda hyper: float("inf") if hyper["lr_decay"] else 1,
    moments={"sum": False},
    paper="Duchi, Hazan and Singer (2011), Adaptive subgradient methods for online learning and "
    "stochastic optimization, JMLR 12, figure 1 (diagonal)",
    formula="r <- r + g²;  x <- x - lr / (1 + (t - 1) lr_decay) g / (sqrt(r) + eps)",
    helps="Sparse features: rare ones keep a large step. Convex problems.",
    fails="Long training: r only grows, and the steps die out.",
    lr_range=(1e-3, 1e0),
)


def _rmsprop_coefficients(hyper: Hyper, step: int) -> Row:
    lr, alpha = hyper["lr"], hyper["alpha"]
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


RMSPROP = Rule(
    "RMSProp",
    (
        lr(1e-2),
        unit("alpha", 0.99, "what is kept of r; textbooks' rho, there 0.9"),
        eps(1e-8),
        unit("momentum", 0.0, "mu in v <- mu v + g / (sqrt(r) + eps); x <- x - lr v"),
        Flag("centered", meaning="take the square of the gradient's average from r"),
        Number(
            "initial_accumulator_value", 0.0, low=0.0, meaning="where r starts; 1 in TensorFlow"
        ),
        Flag("eps_in_sqrt", meaning=_EPS_IN_SQRT + "TensorFlow and several textbooks"),
        Flag(
            "lr_in_momentum",
            meaning="v <- mu v + lr g / (sqrt(r) + eps); x <- x - v: TensorFlow",
        ),
    ),
    ("square_avg",),
    _rmsprop_coefficients,
    _root_of_squares,
    initial={"square_avg": _initial_accumulator},
    variant=_rmsprop_variant,
    settles=lambda hyper: 1,
    # Centered, the difference of two nearly equal numbers stands under the root: no moments then.
    moments={"square_avg": False},
    paper="Tieleman and Hinton (2012), Neural networks for machine learning, lecture 6.5; "
    "centered: Graves (2013), arXiv:1308.0850, equations 38 to 41",
    formula="r <- alpha r + (1 - alpha) g²;  x <- x - lr g / (sqrt(r) + eps)",
    helps="Recurrent networks and reinforcement learning: gradients whose size changes over time.",
    fails="Without correction of r's start, 0, the first steps are 1 / sqrt(1 - alpha) times too "
    "long.",
    lr_range=(1e-5, 1e-1),
)
_RMSPROPS = {
    (False, False): RMSPROP,
    (True, False): replace(
        RMSPROP,
        state=("square_avg", "momentum_buffer"),
        coefficients=_rmsprop_momentum_coefficients,
        update=_rmsprop_momentum,
        moments={"square_avg": False, "momentum_buffer": True},
    ),
    (False, True): replace(
        RMSPROP, state=("square_avg", "grad_avg"), update=_rmsprop_centered, moments={}
    ),
    (True, True): replace(
        RMSPROP,
        state=("square_avg", "momentum_buffer", "grad_avg"),
        coefficients=_rmsprop_momentum_coefficients,
        update=_rmsprop_centered_momentum,
        moments={"momentum_buffer": True},
    ),
}


def _adadelta_coefficients(hyper: Hyper, step: int) -> Row:
    rho = hyper["rho"]
    return hyper["lr"], rho, 1.0 - rho, hyper["eps"]


def _adadelta(
    p: Any, g: Any, r: Any, d: Any, lr: Any, rho: Any, gain: Any, eps: Any
) -> tuple[Any, ...]:
    r = rho * r + gain * g * g
    u = sqrt(d + eps) / sqrt(r + eps) * g
    return p - lr * u, r, rho * d + gain * u * u


ADADELTA = Rule(
    "AdaDelta",
    (
        lr(1.0, "factor on the paper's step, which is 1"),
        unit("rho", 0.9, "what is kept of the averages"),
        eps(1e-6, "added under both roots"),
    ),
    ("square_avg", "acc_delta"),
    _adadelta_coefficients,
    _adadelta,
    settles=lambda hyper: 1,
    moments={"square_avg": False, "acc_delta": False},
    paper="Zeiler (2012), ADADELTA: an adaptive learning rate method, arXiv:1212.5701, algorithm 1",
    formula="r <- rho r + (1 - rho) g²;  u = sqrt(d + eps) / sqrt(r + eps) g\n"
    "x <- x - lr u;  d <- rho d + (1 - rho) u²",
    helps="Needs no learning rate; the step has the units of x.",
    fails="Starts slowly, from steps of sqrt(eps).",
    lr_range=(1e-2, 1e2),
)


def _rprop_coefficients(hyper: Hyper, step: int) -> Row:
    return *hyper["etas"], *hyper["step_sizes"]


def _rprop(
    p: Any, g: Any, before: Any, size: Any, less: Any, more: Any, least: Any, most: Any
) -> tuple[Any, ...]:
    product = g * before
    size = where(product > 0, more * size, where(product < 0, less * size, size))
    size = minimum(maximum(size, least), most)
    g = where(product < 0, 0.0, g)
    return p - sign(g) * size, g, size


def _rprop_conflict(hyper: Hyper) -> str | None:
    (less, more), (least, most) = hyper["etas"], hyper["step_sizes"]
    if not 0.0 < less < 1.0 < more:
        return f"etas must be a number in (0, 1) and one above 1, got {hyper['etas']!r}"
    if least > most:
        return f"step_sizes must be the least and the largest, got {hyper['step_sizes']!r}"
    return None


RPROP = Rule(
    "Rprop",
    (
        lr(1e-2, "first step of every entry"),
        Number(
            "etas",
            (0.5, 1.2),
            low=0.0,
            low_open=True,
            meaning="factors where the sign of g turns and where it stays",
        ),
        Number("step_sizes", (1e-6, 50.0), low=0.0, meaning="least and largest step"),
    ),
    ("prev", "step_size"),
    _rprop_coefficients,
    _rprop,
    initial={"step_size": lambda hyper: hyper["lr"]},
    settles=lambda hyper: 1,
    conflict=_rprop_conflict,
    paper="Riedmiller and Braun (1993), A direct adaptive method for faster backpropagation "
    "learning: the RPROP algorithm, IEEE ICNN, section II; without its step back, as torch",
    formula="s <- s eta+ where g has the sign of the step before, s eta- and g <- 0 where not\n"
    "x <- x - s sign(g)",
    helps="Full batches: the size of the gradient does not matter at all.",
    fails="Mini-batches: noise turns signs, and every turn halves a step.",
    lr_range=(1e-5, 1e-1),
)
