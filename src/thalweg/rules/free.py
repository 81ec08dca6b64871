"""Rules without a schedule to choose (Schedule-Free), without a rate (Prodigy, D-Adapt)."""

from typing import Any

from thalweg.rules.adam import averages
from thalweg.rules.hyper import betas, decay, eps, lr
from thalweg.rules.maths import absolute, maximum, minimum, sqrt, where
from thalweg.rules.rule import PARAMETER, Flag, Hyper, Number, Row, Rule, Sums

__all__ = ["DADAPT_ADAM", "PRODIGY", "SCHEDULE_FREE_ADAMW", "SCHEDULE_FREE_SGD"]

_FREE = (
    Number("warmup_steps", 0, low=0.0, whole=True, meaning="over which the rate rises from 0"),
    Number("r", 0.0, low=0.0, meaning="weight of step t in the average: t^r"),
    Number("weight_lr_power", 2.0, low=0.0, meaning="and the largest rate so far to this power"),
)


def _warm(hyper: Hyper, step: int) -> Any:
    warmup = hyper["warmup_steps"]
    return hyper["lr"] * (minimum(step / warmup, 1.0) if warmup else 1.0)


def _free_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    total, largest = scalars
    largest = maximum(_warm(hyper, step), largest)
    return (), (total + step ** hyper["r"] * largest ** hyper["weight_lr_power"], largest)


def _share(hyper: Hyper, step: int, scalars: Sums) -> Any:
    """Weight of this step in the average."""
    total, _ = _free_advance(hyper, step, (), scalars)[1]
    # While the rate is 0 so are all weights.
    return where(total > 0, (total - scalars[0]) / where(total > 0, total, 1.0), 0.0)


def _free_sgd_coefficients(hyper: Hyper, step: int, *scalars: Any) -> Row:
    share, lr = _share(hyper, step, scalars), _warm(hyper, step)
    return share, 1.0 - share, lr * (hyper["momentum"] * (1.0 - share) - 1.0), -lr


def _free_sgd(
    p: Any, g: Any, z: Any, share: Any, keep: Any, move: Any, fall: Any
) -> tuple[Any, ...]:
    return keep * p + share * z + move * g, z + fall * g


def _to_average(beta: float, p: Any, z: Any) -> Any:
    return p + (1.0 - 1.0 / beta) * (z - p)


_SCHEDULE_FREE = (
    "Defazio et al. (2024), The road less scheduled, NeurIPS, arXiv:2405.15682, {}; as the "
    "authors' schedulefree"
)
_FREE_HELPS = "Open-ended training: no schedule to choose and no end to decide on beforehand."
_FREE_FAILS = (
    "Evaluation without `optimizer.eval()`; batch norm, whose averages belong to y and not to x."
)

SCHEDULE_FREE_SGD = Rule(
    "Schedule-Free SGD",
    (
        lr(1.0),
        Number(
            "momentum",
            0.9,
            low=0.0,
            high=1.0,
            low_open=True,
            high_open=True,
            meaning="beta, where between z and the average x the gradient is taken",
        ),
        decay(0.0),
        *_FREE,
    ),
    ("z",),
    _free_sgd_coefficients,
    _free_sgd,
    initial={"z": PARAMETER},
    scalars={"weight_sum": lambda hyper: 0.0, "lr_max": lambda hyper: -1.0},
    advance=_free_advance,
    answer=lambda p, z, hyper: _to_average(hyper["momentum"], p, z),
    paper=_SCHEDULE_FREE.format("equations 3 to 5"),
    formula="y = (1 - beta) z + beta x;  z <- z - lr g(y);  x <- x + c_t (z - x), c_t = w_t / "
    "(w_1 + ... + w_t)\nWhile training the parameters hold y, after `optimizer.eval()` x",
    helps=_FREE_HELPS,
    fails=_FREE_FAILS,
    lr_range=(1e-2, 1e2),
)


def _free_adamw_coefficients(hyper: Hyper, step: int, *scalars: Any) -> Row:
    beta1, beta2 = hyper["betas"]
    share, lr = _share(hyper, step, scalars), _warm(hyper, step)
    return (
        share,
        1.0 - share,
        lr * (beta1 * (1.0 - share) - 1.0),
        -lr,
        beta2,
        1.0 - beta2,
        1.0 / (1.0 - beta2**step),
        hyper["eps"],
        hyper["weight_decay"],
    )


def _free_adamw(
    p: Any,
    g: Any,
    z: Any,
    s: Any,
    share: Any,
    keep: Any,
    move: Any,
    fall: Any,
    beta2: Any,
    gain2: Any,
    unbias2: Any,
    eps: Any,
    decay: Any,
) -> tuple[Any, ...]:
    s = beta2 * s + gain2 * g * g
    u = g / (sqrt(s * unbias2) + eps) + decay * p
    return keep * p + share * z + move * u, z + fall * u, s


SCHEDULE_FREE_ADAMW = Rule(
    "Schedule-Free AdamW",
    (
        lr(2.5e-3),
        Number(
            "betas",
            (0.9, 0.999),
            low=0.0,
            high=1.0,
            low_open=True,
            high_open=True,
            meaning="where between z and the average x the gradient is taken; decay of s",
        ),
        eps(1e-8),
        decay(0.0),
        *_FREE,
    ),
    ("z", "exp_avg_sq"),
    _free_adamw_coefficients,
    _free_adamw,
    initial={"z": PARAMETER},
    scalars=SCHEDULE_FREE_SGD.scalars,
    advance=_free_advance,
    answer=lambda p, z, s, hyper: _to_average(hyper["betas"][0], p, z),
    own_decay=True,
    moments={"exp_avg_sq": False},
    paper=_SCHEDULE_FREE.format("algorithm 1"),
    formula="s as in Adam;  u = g(y) / (sqrt(s / (1 - beta2^t)) + eps) + weight_decay y\n"
    "y = (1 - beta1) z + beta1 x;  z <- z - lr u;  x <- x + c_t (z - x)\n"
    "While training the parameters hold y, after `optimizer.eval()` x",
    helps=_FREE_HELPS,
    fails=_FREE_FAILS,
)


# What keeps the estimate d of the distance to the solution is the same in all parameters.


def _unbiased(hyper: Hyper, step: int) -> Any:
    beta1, beta2 = hyper["betas"]
    return (1.0 - beta2**step) ** 0.5 / (1.0 - beta1**step) if hyper["use_bias_correction"] else 1.0


def _decays(hyper: Hyper, rate: Any) -> tuple[Any, Any]:
    """Coupled decay, and the factor of the decoupled one."""
    decay = hyper["weight_decay"]
    return (0.0, 1.0 - rate * decay) if hyper["decouple"] else (decay, 1.0)


def _beta3(hyper: Hyper) -> Any:
    return hyper["betas"][1] ** 0.5 if hyper["beta3"] is None else hyper["beta3"]


def _prodigy_coefficients(hyper: Hyper, step: int, d: Any, largest: Any, numerator: Any) -> Row:
    beta1, beta2 = hyper["betas"]
    rate = d * hyper["lr"] * _unbiased(hyper, step)
    gain = d / hyper["d0"] * (d if hyper["safeguard_warmup"] else rate)
    return (
        *_decays(hyper, rate),
        _beta3(hyper),
        gain,
        beta1,
        d * (1.0 - beta1),
        beta2,
        d * d * (1.0 - beta2),
        rate,
    )


def _prodigy_terms(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    start: Any,
    a: Any,
    coupled: Any,
    shrink: Any,
    beta3: Any,
    gain3: Any,
    *others: Any,
) -> tuple[Any, ...]:
    g = g + coupled * p
    return g * (start - p), absolute(beta3 * a + gain3 * g)


def _prodigy_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    d, largest, numerator = scalars
    along, size = sums
    rate = d * hyper["lr"] * _unbiased(hyper, step)
    numerator = _beta3(hyper) * numerator + d / hyper["d0"] * rate * along
    moved = size > 0
    estimate = hyper["d_coef"] * numerator / where(moved, size, 1.0)
    start = where(d == hyper["d0"], maximum(d, estimate), d)
    most = maximum(largest, estimate)
    grown = minimum(most, start * hyper["growth_rate"])
    # Without any gradient so far, or at rate 0, there is nothing to learn from.
    learns = (hyper["lr"] > 0) & moved
    d, largest = where(learns, grown, d), where(learns, most, largest)
    return (d * hyper["eps"],), (d, largest, numerator)


def _prodigy(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    start: Any,
    a: Any,
    coupled: Any,
    shrink: Any,
    beta3: Any,
    gain3: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate: Any,
    eps: Any,
) -> tuple[Any, ...]:
    g = g + coupled * p
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    return shrink * p - rate * m / (sqrt(s) + eps), m, s, start, beta3 * a + gain3 * g


_D0 = Number("d0", 1e-6, low=0.0, low_open=True, meaning="first estimate of the distance")
_GROWTH = Number(
    "growth_rate",
    float("inf"),
    low=1.0,
    infinite=True,
    meaning="most that the estimate grows by in a step",
)
_BIAS = Flag("use_bias_correction", meaning="correct the bias of the averages, as Adam does")

PRODIGY = Rule(
    "Prodigy",
    (
        lr(1.0, "factor on the estimated rate"),
        betas(0.9, 0.999),
        Number(
            "beta3",
            None,
            low=0.0,
            high=1.0,
            high_open=True,
            optional=True,
            meaning="decay of the sums behind the estimate; sqrt(beta2) by default",
        ),
        eps(1e-8),
        decay(0.0),
        Flag("decouple", True, "decay as in AdamW, not as in Adam"),
        _BIAS,
        Flag("safeguard_warmup", meaning="leave lr out of the sum that divides, for warm-up"),
        _D0,
        Number("d_coef", 1.0, low=0.0, low_open=True, meaning="factor on the estimate"),
        _GROWTH,
    ),
    ("exp_avg", "exp_avg_sq", "p0", "s"),
    _prodigy_coefficients,
    _prodigy,
    initial={"p0": PARAMETER},
    scalars={
        "d": lambda hyper: hyper["d0"],
        "d_max": lambda hyper: hyper["d0"],
        "d_numerator": lambda hyper: 0.0,
    },
    terms=_prodigy_terms,
    joint=True,
    advance=_prodigy_advance,
    own_decay=True,
    moments={"exp_avg": True, "exp_avg_sq": False},
    paper="Mishchenko and Defazio (2024), Prodigy: an expeditiously adaptive parameter-free "
    "learner, ICML, arXiv:2306.06101, algorithm 4; as the authors' prodigyopt",
    formula="m <- beta1 m + (1 - beta1) d g;  s <- beta2 s + (1 - beta2) (d g)²\n"
    "d <- max(d, sum of d² lr <g, x_0 - x> / |sum of d² lr g|_1);  x <- x - d lr m / (sqrt(s) + "
    "d eps)",
    helps="No learning rate to choose: lr = 1, and a cosine schedule if any. Fine-tuning.",
    fails="Parameter groups that want different rates; very small batches; memory, four numbers a "
    "parameter.",
    lr_range=(1e-1, 1e1),
)


def _dadapt_coefficients(hyper: Hyper, step: int, d: Any, numerator: Any) -> Row:
    beta1, beta2 = hyper["betas"]
    rate = d * hyper["lr"] * _unbiased(hyper, step)
    return (
        *_decays(hyper, rate),
        beta2**0.5,
        rate * (1.0 - beta2**0.5),
        hyper["eps"],
        beta1,
        rate * (1.0 - beta1),
        beta2,
        1.0 - beta2,
    )


def _dadapt_terms(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    a: Any,
    coupled: Any,
    shrink: Any,
    beta3: Any,
    gain3: Any,
    eps: Any,
    *others: Any,
) -> tuple[Any, ...]:
    g = g + coupled * p
    return g * a / (sqrt(s) + eps), absolute(beta3 * a + gain3 * g)


def _dadapt_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    d, numerator = scalars
    along, size = sums
    kept = hyper["betas"][1] ** 0.5
    rate = d * hyper["lr"] * _unbiased(hyper, step)
    moved = size > 0
    numerator = where(moved, kept * numerator + (1.0 - kept) * rate * along, numerator)
    estimate = numerator / ((1.0 - kept) * where(moved, size, 1.0))
    grown = maximum(d, minimum(estimate, d * hyper["growth_rate"]))
    return (), (where((hyper["lr"] > 0) & moved, grown, d), numerator)


def _dadapt(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    a: Any,
    coupled: Any,
    shrink: Any,
    beta3: Any,
    gain3: Any,
    eps: Any,
    *numbers: Any,
) -> tuple[Any, ...]:
    g = g + coupled * p
    m, s = averages(g, m, s, *numbers)
    return shrink * p - m / (sqrt(s) + eps), m, s, beta3 * a + gain3 * g


DADAPT_ADAM = Rule(
    "D-Adapt Adam",
    (
        lr(1.0, "factor on the estimated rate"),
        betas(0.9, 0.999),
        eps(1e-8),
        decay(0.0),
        Flag("decouple", meaning="decay as in AdamW, not as in Adam"),
        _BIAS,
        _D0,
        _GROWTH,
    ),
    ("exp_avg", "exp_avg_sq", "s"),
    _dadapt_coefficients,
    _dadapt,
    scalars={"d": lambda hyper: hyper["d0"], "numerator_weighted": lambda hyper: 0.0},
    terms=_dadapt_terms,
    joint=True,
    advance=_dadapt_advance,
    own_decay=True,
    moments={"exp_avg": True, "exp_avg_sq": False},
    paper="Defazio and Mishchenko (2023), Learning-rate-free learning by D-adaptation, ICML, "
    "arXiv:2301.07733, algorithm 5; as the authors' dadaptation",
    formula="m <- beta1 m + (1 - beta1) d lr g;  s as in Adam;  x <- x - m / (sqrt(s) + eps)\n"
    "d <- max(d, sum of d lr <g, a / sqrt(s)> / |a|_1), a the average of d lr g",
    helps="No learning rate to choose.",
    fails="As Prodigy, which finds d faster; d only grows, and one bad batch may let it grow too "
    "far (growth_rate).",
    lr_range=(1e-1, 1e1),
)
