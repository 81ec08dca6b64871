"""Rules whose step is scaled per tensor by norms: LARS, LAMB."""

from typing import Any

from thalweg.rules.adam import averages
from thalweg.rules.hyper import betas, decay, eps, lr, unit
from thalweg.rules.maths import sqrt, where
from thalweg.rules.rule import Flag, Hyper, Number, Row, Rule, Sums

__all__ = ["LAMB", "LARS"]


def _lars_coefficients(hyper: Hyper, step: int) -> Row:
    lr, mu = hyper["lr"], hyper["momentum"]
    move_g, move_v = (-lr, -lr * mu) if hyper["nesterov"] else (0.0, -lr)
    return hyper["weight_decay"], mu, move_g, move_v


def _squares(p: Any, g: Any, *others: Any) -> tuple[Any, ...]:
    return p * p, g * g


def _lars_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    size, slope = sqrt(sums[0]), sqrt(sums[1])
    both = (size > 0) & (slope > 0)
    divisor = slope + hyper["weight_decay"] * size + hyper["eps"]
    ratio = hyper["trust_coefficient"] * size / where(both, divisor, 1.0)
    return (where(both, ratio, 1.0),), scalars


def _lars(
    p: Any, g: Any, v: Any, decay: Any, mu: Any, move_g: Any, move_v: Any, ratio: Any
) -> tuple[Any, ...]:
    g = ratio * (g + decay * p)
    v = mu * v + g
    return p + move_g * g + move_v * v, v


LARS = Rule(
    "LARS",
    (
        lr(0.1),
        unit("momentum", 0.9, "mu, what is kept of the velocity"),
        decay(0.0),
        Number("trust_coefficient", 1e-3, low=0.0, meaning="length of a step in units of ‖x‖"),
        eps(1e-8, "added to the norms that divide"),
        Flag("nesterov", meaning="step along g + mu v"),
    ),
    ("momentum_buffer",),
    _lars_coefficients,
    _lars,
    terms=_squares,
    advance=_lars_advance,
    own_decay=True,
    moments={"momentum_buffer": True},
    paper="You, Gitman and Ginsburg (2017), Large batch training of convolutional networks, "
    "arXiv:1708.03888, algorithm 1",
    formula="q = trust_coefficient ‖x‖ / (‖g‖ + weight_decay ‖x‖ + eps), 1 where a norm is 0\n"
    "v <- mu v + q (g + weight_decay x);  x <- x - lr v, norms per tensor",
    helps="Convolutional networks at batches of thousands.",
    fails="Biases and norms of layers, which want a group of their own with SGD; small batches.",
    lr_range=(1e-2, 1e2),
)


def _lamb_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    corrects = hyper["bias_correction"]
    return (
        hyper["lr"],
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 / (1.0 - beta1**step) if corrects else 1.0,
        1.0 / (1.0 - beta2**step) if corrects else 1.0,
        hyper["eps"],
        hyper["weight_decay"],
    )


def _lamb_move(p: Any, m: Any, s: Any, unbias1: Any, unbias2: Any, eps: Any, decay: Any) -> Any:
    return unbias1 * m / (sqrt(s * unbias2) + eps) + decay * p


def _lamb_terms(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    lr: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    *numbers: Any,
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    u = _lamb_move(p, m, s, *numbers)
    return p * p, u * u


def _lamb_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    size, length = sqrt(sums[0]), sqrt(sums[1])
    both = (size > 0) & (length > 0)
    return (where(both, size / where(both, length, 1.0), 1.0),), scalars


def _lamb(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    lr: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    unbias1: Any,
    unbias2: Any,
    eps: Any,
    decay: Any,
    ratio: Any,
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    return p - lr * ratio * _lamb_move(p, m, s, unbias1, unbias2, eps, decay), m, s


LAMB = Rule(
    "LAMB",
    (
        lr(1e-3),
        betas(0.9, 0.999),
        eps(1e-6),
        decay(0.0),
        Flag("bias_correction", True, "correct the bias of the averages, as the paper does"),
    ),
    ("exp_avg", "exp_avg_sq"),
    _lamb_coefficients,
    _lamb,
    terms=_lamb_terms,
    advance=_lamb_advance,
    own_decay=True,
    moments={"exp_avg": True, "exp_avg_sq": False},
    paper="You et al. (2020), Large batch optimization for deep learning: training BERT in 76 "
    "minutes, ICLR, arXiv:1904.00962, algorithm 2",
    formula="u = m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps) + weight_decay x, m and s as "
    "in Adam\nx <- x - lr ‖x‖ / ‖u‖ u, norms per tensor, their ratio 1 where one is 0",
    helps="Transformers at batches of tens of thousands.",
    fails="Small batches, where AdamW does as well without the norms.",
)
