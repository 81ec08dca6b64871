"""Rules that step by the sign of an average alone: Signum, Tiger, Lion."""

from dataclasses import replace
from typing import Any

from thalweg.rules.hyper import betas, decay, lr, unit
from thalweg.rules.maths import sign
from thalweg.rules.rule import Flag, Hyper, Row, Rule

__all__ = ["LION", "SIGNUM", "TIGER"]

_DECOUPLED = Flag("decoupled_weight_decay", True, "multiply x by 1 - lr weight_decay")


def _signum_coefficients(hyper: Hyper, step: int) -> Row:
    mu = hyper["momentum"]
    return hyper["lr"], mu, 1.0 - mu


def _signum(p: Any, g: Any, m: Any, lr: Any, keep: Any, gain: Any) -> tuple[Any, ...]:
    m = keep * m + gain * g
    return p - lr * sign(m), m


SIGNUM = Rule(
    "Signum",
    (lr(1e-4), unit("momentum", 0.9, "mu, what is kept of the average"), decay(0.0)),
    ("momentum_buffer",),
    _signum_coefficients,
    _signum,
    settles=lambda hyper: 1,
    moments={"momentum_buffer": True},
    paper="Bernstein et al. (2018), signSGD: compressed optimisation for non-convex problems, "
    "ICML, arXiv:1802.04434, algorithm 2",
    formula="m <- mu m + (1 - mu) g;  x <- x - lr sign(m)",
    helps="Gradients of very different sizes, at half of Adam's memory; one bit an entry to send.",
    fails="Near a minimum it steps as far as anywhere: lr has to decay.",
    lr_range=(1e-6, 1e-2),
)

TIGER = replace(
    SIGNUM,
    name="Tiger",
    hyper=(lr(1e-3), unit("momentum", 0.965, SIGNUM.hyper[1].meaning), decay(1e-2), _DECOUPLED),
    paper="Su (2023), Tiger: a tight-fisted optimizer, github.com/bojone/tiger; Signum with "
    "decoupled decay",
    formula="m <- mu m + (1 - mu) g;  x <- (1 - lr weight_decay) x - lr sign(m)",
)


def _lion_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    return hyper["lr"], beta1, 1.0 - beta1, beta2, 1.0 - beta2


def _lion(
    p: Any, g: Any, m: Any, lr: Any, beta1: Any, gain1: Any, beta2: Any, gain2: Any
) -> tuple[Any, ...]:
    return p - lr * sign(beta1 * m + gain1 * g), beta2 * m + gain2 * g


LION = Rule(
    "Lion",
    (
        lr(1e-4),
        betas(0.9, 0.99, meaning="what is kept of m in the step, and in m"),
        decay(0.0),
        _DECOUPLED,
    ),
    ("exp_avg",),
    _lion_coefficients,
    _lion,
    settles=lambda hyper: 1,
    moments={"exp_avg": True},
    paper="Chen et al. (2023), Symbolic discovery of optimization algorithms, NeurIPS, "
    "arXiv:2302.06675, algorithm 2",
    formula="x <- (1 - lr weight_decay) x - lr sign(beta1 m + (1 - beta1) g)\n"
    "m <- beta2 m + (1 - beta2) g",
    helps="Vision and language models at large batches, at half of Adam's memory; lr 3 to 10 times "
    "smaller than AdamW's, decay as much larger.",
    fails="Small batches: the sign of noise is as long as that of a gradient.",
    lr_range=(1e-6, 1e-2),
)
