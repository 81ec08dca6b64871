"""Rules for which a matrix is more than its entries: Adafactor, Muon, Shampoo, SOAP.

They are written with torch operations over ``(count, *shape)``: ``count`` tensors at once that do
not know of each other, parameters of one shape or replicas of one parameter.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import prod, sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thalweg.rules.adam import ADAMW
from thalweg.rules.hyper import betas, decay, eps, lr, unit
from thalweg.rules.maths import maximum
from thalweg.rules.rule import Choice, Flag, Hyper, Number, Row, Rule

__all__ = ["ADAFACTOR", "MUON", "SHAMPOO", "SOAP"]

Shape: TypeAlias = tuple[int, ...]


def _norm(x: Tensor) -> Tensor:
    """Of each of the tensors, ``(count, 1, ...)``."""
    norm: Tensor = x.reshape(len(x), -1).norm(dim=1)
    return norm.view(-1, *[1] * (x.ndim - 1))


def _adafactor_coefficients(hyper: Hyper, step: int) -> Row:
    lr, (eps1, eps2) = hyper["lr"], hyper["eps"]
    return (
        step ** hyper["beta2_decay"],
        min(float(lr), step**-0.5),
        1.0 - lr * hyper["weight_decay"],
        # Without one, that of the dtype.
        -1.0 if eps1 is None else eps1,
        eps2,
        hyper["d"],
    )


def _adafactor(p: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *state, gain, rho, shrink, eps1, eps2, d = rest
    least = torch.as_tensor(eps1, dtype=g.dtype, device=g.device)
    least = torch.where(least < 0, torch.finfo(g.dtype).eps, least)
    if len(state) == 2:
        row, column = state
        row = torch.lerp(row, (g * g).mean(-1, keepdim=True), gain)
        column = torch.lerp(column, (g * g).mean(-2, keepdim=True), gain)
        new: tuple[Tensor, ...] = (row, column)
        mean = row.mean(-2, keepdim=True)
        u = g * ((row / mean.clamp(min=least)) * column).clamp(min=least * least).rsqrt()
    else:
        new = (torch.lerp(state[0], g * g, gain),)
        u = g * new[0].clamp(min=least * least).rsqrt()
    size = sqrt(prod(p.shape[1:]))
    rate = rho * maximum(_norm(p) / size, eps2)
    return shrink * p - rate / (_norm(u) / (size * d)).clamp(min=1.0) * u, *new


def _adafactor_part(hyper: Hyper, shape: Shape) -> Rule:
    return ADAFACTOR if len(shape) > 1 else _ADAFACTOR_VECTOR


ADAFACTOR = Rule(
    "Adafactor",
    (
        lr(1e-2),
        Number("beta2_decay", -0.8, high=0.0, meaning="power of t in 1 - beta2"),
        Number(
            "eps",
            (None, 1e-3),
            low=0.0,
            optional=True,
            meaning="least root of s (by default "
            "that of the dtype), least size of x that scales the step",
        ),
        Number("d", 1.0, low=0.0, low_open=True, meaning="largest root mean square of the step"),
    ),
    ("row_var", "col_var"),
    _adafactor_coefficients,
    _adafactor,
    own_decay=True,
    whole=True,
    shapes={
        "row_var": lambda shape: (*shape[:-1], 1),
        "col_var": lambda shape: (*shape[:-2], 1, shape[-1]),
    },
    part=_adafactor_part,
    paper="Shazeer and Stern (2018), Adafactor: adaptive learning rates with sublinear memory "
    "cost, ICML, arXiv:1804.04235, algorithms 4 and 5, as torch has it",
    formula="s = r c / mean(r), r and c averages of g² over columns and rows\n"
    "u = g / sqrt(s);  x <- (1 - lr weight_decay) x - min(lr, t^-1/2) max(eps2, rms(x)) u / "
    "max(1, rms(u) / d)",
    helps="Memory: rows plus columns instead of rows times columns.",
    fails="Without momentum noisier than Adam; its step depends on the size of x.",
    lr_range=(1e-4, 1e0),
)
_ADAFACTOR_VECTOR = replace(ADAFACTOR, state=("variance",), shapes={})


def _orthogonal(m: Tensor, numbers: tuple[float, ...], steps: int, eps: float) -> Tensor:
    """Newton and Schulz's iteration towards U V^T of each matrix U S V^T, ``(count, a, b)``."""
    a, b, c = numbers
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / _norm(x).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


_ADJUST: dict[str | None, Callable[[int, int], float]] = {
    None: lambda a, b: sqrt(max(1.0, a / b)),
    "original": lambda a, b: sqrt(max(1.0, a / b)),
    "match_rms_adamw": lambda a, b: 0.2 * sqrt(max(a, b)),
}


@cache
def _muon(
    nesterov: bool,
    numbers: tuple[float, ...],
    steps: int,
    eps: float,
    adjust: str | None,
    own_dtype: bool,
) -> Rule:
    def update(p: Tensor, g: Tensor, m: Tensor, lr: Any, keep: Any, gain: Any) -> Any:
        m = keep * m + gain * g
        d = gain * g + keep * m if nesterov else m
        matrices = d.flatten(2)
        found = matrices if own_dtype else matrices.bfloat16()
        found = _orthogonal(found, numbers, steps, eps).to(p.dtype).view_as(p)
        return p - lr * _ADJUST[adjust](*matrices.shape[1:]) * found, m

    return replace(MUON, update=update)


def _muon_variant(hyper: Hyper) -> Rule:
    if not hyper["use_muon"]:
        return _MUON_REST
    return _muon(
        hyper["nesterov"],
        tuple(hyper["ns_coefficients"]),
        int(hyper["ns_steps"]),
        hyper["eps"],
        hyper["adjust_lr_fn"],
        hyper["ns_dtype"] == "parameter",
    )


def _muon_coefficients(hyper: Hyper, step: int) -> Row:
    mu = hyper["momentum"]
    return hyper["lr"], mu, 1.0 - mu


def _as_adamw(hyper: Hyper) -> Hyper:
    """The hyperparameters of the rest, under the names that AdamW gives them."""
    own = {
        name: hyper["lr" if hyper["adamw_lr"] is None and name == "lr" else f"adamw_{name}"]
        for name in ("lr", "betas", "eps")
    }
    decay = hyper["adamw_weight_decay"]
    return {
        **hyper,
        **own,
        "weight_decay": hyper["weight_decay"] if decay is None else decay,
        "eps_root": 0.0,
    }


def _unset(hyper: Hyper) -> tuple[Any, ...]:
    raise AssertionError("Muon's update is made for its hyperparameters")


MUON = Rule(
    "Muon",
    (
        lr(1e-3),
        decay(0.1),
        unit("momentum", 0.95, "mu, what is kept of the average"),
        Flag("nesterov", True, "orthogonalise mu m + (1 - mu) g"),
        Number("ns_coefficients", (3.4445, -4.775, 2.0315), meaning="of the iteration"),
        eps(1e-7, "least norm to divide by"),
        Number("ns_steps", 5, low=1, high=99, whole=True, meaning="steps of the iteration"),
        Choice(
            "adjust_lr_fn",
            None,
            (None, "original", "match_rms_adamw"),
            'factor on lr: "original" sqrt(max(1, a / b)) of an a x b matrix, '
            '"match_rms_adamw" 0.2 sqrt(max(a, b))',
        ),
        Choice("ns_dtype", "bfloat16", ("bfloat16", "parameter"), "dtype of the iteration"),
        Flag("decoupled_weight_decay", True, "multiply x by 1 - lr weight_decay"),
        Flag("use_muon", True, "False in a group of matrices that are none: embeddings, heads"),
        Number("adamw_lr", None, low=0.0, optional=True, meaning="of the rest; lr by default"),
        Number(
            "adamw_betas", (0.9, 0.95), low=0.0, high=1.0, high_open=True, meaning="of the rest"
        ),
        Number("adamw_eps", 1e-10, low=0.0, meaning="of the rest"),
        Number(
            "adamw_weight_decay",
            None,
            low=0.0,
            optional=True,
            meaning="of the rest; weight_decay by default",
        ),
    ),
    ("momentum_buffer",),
    _muon_coefficients,
    _unset,
    variant=_muon_variant,
    moments={"momentum_buffer": True},
    whole=True,
    part=lambda hyper, shape: _muon_variant(hyper) if len(shape) > 1 else _MUON_REST,
    paper="Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks, "
    "kellerjordan.github.io/posts/muon; match_rms_adamw: Liu et al. (2025), arXiv:2502.16982",
    formula="m <- mu m + (1 - mu) g;  x <- (1 - lr weight_decay) x - lr sqrt(max(1, a / b)) U V^T"
    "\nU S V^T = mu m + (1 - mu) g, U V^T by 5 steps of Newton and Schulz; filters as matrices\n"
    "Vectors and numbers, and groups with use_muon=False: AdamW",
    helps="Hidden layers of transformers and convolutional networks: all directions of a matrix "
    "learn at the same speed.",
    fails="Embeddings and output heads: put them into a group with use_muon=False. The iteration "
    "costs as much as a few passes for small batches.",
    lr_range=(1e-4, 1e-1),
)
_MUON_REST: Rule = replace(
    ADAMW, name="Muon", hyper=MUON.hyper, reads=_as_adamw, variant=None, part=None
)


def _on_side(matrix: Tensor, g: Tensor, side: int) -> Tensor:
    """Each tensor multiplied from one side by its matrix, ``(count, *shape)``."""
    moved = g.movedim(side + 1, 1)
    rows = matrix @ moved.reshape(len(g), moved.shape[1], prod(moved.shape[2:]))
    return rows.reshape(moved.shape).movedim(1, side + 1)


def _gram(g: Tensor, side: int) -> Tensor:
    """Sum of outer products along one side, ``(count, d, d)``."""
    moved = g.movedim(side + 1, 1)
    rows = moved.reshape(len(g), moved.shape[1], prod(moved.shape[2:]))
    return rows @ rows.mT


def _sides(shape: Shape, most: float) -> tuple[int, ...]:
    """Which sides have a preconditioner of their own: those that are not too long."""
    return tuple(i for i, d in enumerate(shape) if d <= most)


def _yes(coefficient: Any) -> bool:
    """Whether a coefficient of 0 or 1 is 1; replicas all are at the same step."""
    return bool((coefficient > 0).any()) if isinstance(coefficient, Tensor) else coefficient > 0


def _for_matrix(coefficient: Any) -> Any:
    """A coefficient that broadcasts over tensors, for matrices ``(count, d, d)``."""
    return coefficient.reshape(-1, 1, 1) if isinstance(coefficient, Tensor) else coefficient


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; NaN where the matrix is not finite."""
    finite = matrix.isfinite().flatten(1).all(1)[:, None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, identity))
    return values, torch.where(finite, vectors, torch.nan)


def _root(matrix: Tensor, power: float) -> Tensor:
    """Power of positive definite matrices, by their eigenvalues."""
    values, vectors = _eigen(matrix)
    # Below what rounding leaves of the largest, an eigenvalue may as well be negative.
    least = values[:, -1:].clamp(min=torch.finfo(values.dtype).tiny) * (
        matrix.shape[-1] * torch.finfo(values.dtype).eps
    )
    powers = values.maximum(least)[:, None] ** power
    root: Tensor = (vectors * powers) @ vectors.mT
    return root


def _shampoo_coefficients(hyper: Hyper, step: int) -> Row:
    return (
        hyper["lr"],
        hyper["momentum"],
        hyper["epsilon"] if step == 1 else 0.0,
        float((step - 1) % hyper["update_freq"] == 0),
    )


@cache
def _shampoo(sides: tuple[int, ...]) -> Rule:
    count = len(sides)

    def update(p: Tensor, g: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        grams, roots = rest[:count], rest[count : 2 * count]
        lr, mu, start, renew = rest[2 * count :]
        start = _for_matrix(start)
        grams = tuple(
            m + _gram(g, side) + start * torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
            for side, m in zip(sides, grams, strict=True)
        )
        if _yes(renew):
            roots = tuple(_root(m, -0.5 / count) for m in grams)
        u = g
        for side, root in zip(sides, roots, strict=True):
            u = _on_side(root, u, side)
        v = mu * v + u
        return p - lr * v, v, *grams, *roots

    names = [f"{name}_{side}" for name in ("preconditioner", "inverse_root") for side in sides]
    return replace(
        SHAMPOO,
        state=("momentum_buffer", *names),
        exact=tuple(names),
        update=update,
        shapes=dict(zip(names, [_square(side) for side in sides] * 2, strict=True)),
        part=None,
    )


def _square(side: int) -> Callable[[Shape], Shape]:
    return lambda shape: (shape[side], shape[side])


SHAMPOO = Rule(
    "Shampoo",
    (
        lr(1e-1),
        unit("momentum", 0.0, "mu, what is kept of the velocity"),
        decay(0.0),
        Number(
            "epsilon",
            1e-4,
            low=0.0,
            low_open=True,
            meaning="the preconditioners start at epsilon times the identity",
        ),
        Number("update_freq", 1, low=1, whole=True, meaning="steps between new inverse roots"),
        Number(
            "max_precond_dim",
            2048,
            low=1,
            whole=True,
            meaning="longest side that has a preconditioner",
        ),
    ),
    ("momentum_buffer",),
    _shampoo_coefficients,
    _unset,
    moments={"momentum_buffer": True},
    whole=True,
    part=lambda hyper, shape: _shampoo(_sides(shape, hyper["max_precond_dim"])),
    paper="Gupta, Koren and Singer (2018), Shampoo: preconditioned stochastic tensor optimization, "
    "ICML, arXiv:1802.09568, algorithms 1 and 2",
    formula="L <- L + G G^T;  R <- R + G^T G;  v <- mu v + L^(-1/4) G R^(-1/4);  x <- x - lr v\n"
    "Tensors with k sides: each side its own, to the power -1 / (2 k)",
    helps="Matrices whose rows and columns are correlated: convex problems, embeddings.",
    fails="Time: roots of matrices as wide as the layers. The step is not bounded, and shrinks as "
    "AdaGrad's.",
    lr_range=(1e-3, 1e1),
)


def _soap_coefficients(hyper: Hyper, step: int) -> Row:
    (beta1, beta2), count = hyper["betas"], step - 1
    shampoo = beta2 if hyper["shampoo_beta"] is None else hyper["shampoo_beta"]
    rate = hyper["lr"]
    if hyper["correct_bias"] and count:
        rate = rate * (1.0 - beta2**count) ** 0.5 / (1.0 - beta1**count)
    return (
        beta1,
        beta2,
        1.0 - shampoo,
        hyper["eps"],
        rate,
        1.0 - hyper["lr"] * hyper["weight_decay"],
        float(count == 0),
        float(count > 0 and count % hyper["precondition_frequency"] == 0),
    )


def _rotate(g: Tensor, bases: Any, sides: tuple[int, ...], back: bool = False) -> Tensor:
    for side, q in zip(sides, bases, strict=True):
        g = _on_side(q if back else q.mT, g, side)
    return g


def _eigenbasis(gram: Tensor) -> Tensor:
    """Eigenvectors, those of the largest eigenvalues first."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return _eigen(gram + 1e-30 * identity)[1].flip(2)


@cache
def _soap(sides: tuple[int, ...]) -> Rule:
    count = len(sides)

    def update(p: Tensor, g: Tensor, m: Tensor, s: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        grams, bases = rest[:count], rest[count : 2 * count]
        beta1, beta2, gain, eps, rate, shrink, first, renew = rest[2 * count :]
        gain = _for_matrix(gain)
        new = tuple(
            torch.lerp(gram, _gram(g, side), gain) for side, gram in zip(sides, grams, strict=True)
        )
        if _yes(first):
            # The first gradient only chooses the bases, which have to be independent of those
            # that are seen in them.
            return p, m, s, *new, *(_eigenbasis(gram) for gram in new)
        m = beta1 * m + (1.0 - beta1) * g
        s = beta2 * s + (1.0 - beta2) * _rotate(g, bases, sides) ** 2
        u = _rotate(_rotate(m, bases, sides) / (s.sqrt() + eps), bases, sides, back=True)
        p = shrink * (p - rate * u)
        if _yes(renew):
            turned = []
            for side, gram, q in zip(sides, new, bases, strict=True):
                # One step of a power iteration, the axes in the order of their eigenvalues.
                order = (q.mT @ gram @ q).diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
                place = order.view(len(g), *[1] * side, -1, *[1] * (g.ndim - side - 2))
                s = s.gather(side + 1, place.expand_as(s))
                q = q.gather(2, order[:, None].expand_as(q))
                turned.append(torch.linalg.qr(gram @ q).Q)
            bases = tuple(turned)
        return p, m, s, *new, *bases

    names = [f"{name}_{side}" for name in ("GG", "Q") for side in sides]
    return replace(
        SOAP,
        state=("exp_avg", "exp_avg_sq", *names),
        exact=tuple(names),
        update=update,
        shapes=dict(zip(names, [_square(side) for side in sides] * 2, strict=True)),
        part=None,
    )


def _soap_part(hyper: Hyper, shape: Shape) -> Rule:
    flat = len(shape) < 2 and not hyper["precondition_1d"]
    return _soap(() if flat else _sides(shape, hyper["max_precond_dim"]))


SOAP = Rule(
    "SOAP",
    (
        lr(3e-3),
        betas(0.95, 0.95),
        Number(
            "shampoo_beta",
            None,
            low=0.0,
            high=1.0,
            high_open=True,
            optional=True,
            meaning="decay of the preconditioners; beta2 by default",
        ),
        eps(1e-8),
        decay(1e-2),
        Number(
            "precondition_frequency",
            10,
            low=1,
            whole=True,
            meaning="steps between turns of the bases",
        ),
        Number("max_precond_dim", 10000, low=1, whole=True, meaning="longest side that is turned"),
        Flag("precondition_1d", meaning="turn vectors too"),
        Flag("correct_bias", True, "correct the bias of the averages"),
    ),
    ("exp_avg", "exp_avg_sq"),
    _soap_coefficients,
    _unset,
    own_decay=True,
    # What eight bits are off by is off in every direction that m is turned to, and divided by
    # roots that in some are next to nothing: language models ended worse by a seed's difference.
    moments={"exp_avg": None, "exp_avg_sq": False},
    whole=True,
    part=_soap_part,
    paper="Vyas et al. (2024), SOAP: improving and stabilizing Shampoo using Adam, "
    "arXiv:2409.11321, algorithm 3; as the authors' soap.py",
    formula="Adam in the eigenbases of averages of G G^T and G^T G, which turn every "
    "precondition_frequency steps\nx <- (1 - lr weight_decay) (x - lr Q_L N Q_R^T)",
    helps="Language models at large batches: fewer steps than AdamW for some more time each.",
    fails="Memory, two square matrices a side; wide layers (max_precond_dim).",
    lr_range=(1e-4, 1e-1),
)
