"""Adam and its family: averages of the gradient and of its square, and what one makes of them."""

from dataclasses import replace
from math import log
from typing import Any

from thalweg.rules.hyper import betas, decay, eps, lr
from thalweg.rules.maths import absolute, maximum, minimum, sqrt, where
from thalweg.rules.rule import Flag, Hyper, Number, Row, Rule, Sums

__all__ = ["ADAM", "ADAMAX", "ADAMW", "ADAN", "ADEMAMIX", "ADOPT", "NADAM", "RADAM", "averages"]

_MOMENTS = {"exp_avg": True, "exp_avg_sq": False, "max_exp_avg_sq": False}


def _adam_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    correction1 = 1.0 - beta1**step
    correction2 = 1.0 - beta2**step
    eps = hyper["eps"]
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        hyper["lr"] / correction1,
        1.0 / correction2,
        hyper.get("eps_root", 0.0),
        eps / correction2**0.5 if hyper.get("eps_hat") else eps,
    )


def averages(
    g: Any, m: Any, s: Any, beta1: Any, gain1: Any, beta2: Any, gain2: Any
) -> tuple[Any, Any]:
    """Those of the gradient and of its square, with this one."""
    return beta1 * m + gain1 * g, beta2 * s + gain2 * g * g


def _moved(p: Any, m: Any, s: Any, rate: Any, unbias2: Any, eps_root: Any, eps: Any) -> Any:
    return p - rate * m / (sqrt(s * unbias2 + eps_root) + eps)


def _adam(
    p: Any, g: Any, m: Any, s: Any, beta1: Any, gain1: Any, beta2: Any, gain2: Any, *numbers: Any
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    return _moved(p, m, s, *numbers), m, s


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
    *numbers: Any,
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    largest = maximum(largest, s)
    return _moved(p, m, largest, *numbers), m, s, largest


_ADAM_HYPER = (
    lr(1e-3),
    betas(0.9, 0.999),
    eps(1e-8),
    Number("eps_root", 0.0, low=0.0, meaning="added under the root, as in optax"),
    Flag(
        "eps_hat",
        meaning="add eps before the bias of s is corrected, as TensorFlow and the paper's "
        "efficient form do",
    ),
    Flag("amsgrad", meaning="divide by the largest s so far"),
)


def _adam_conflict(hyper: Hyper) -> str | None:
    beta1, beta2 = hyper["betas"]
    if isinstance(beta1, float | int) != isinstance(beta2, float | int):
        return f"betas must be either both floats or both tensors, got {hyper['betas']!r}"
    return None


def _adam_variant(hyper: Hyper) -> Rule:
    return _AMSGRAD if hyper["amsgrad"] else ADAM


ADAM = Rule(
    "Adam",
    _ADAM_HYPER,
    ("exp_avg", "exp_avg_sq"),
    _adam_coefficients,
    _adam,
    variant=_adam_variant,
    conflict=_adam_conflict,
    moments=_MOMENTS,
    paper="Kingma and Ba (2015), Adam: a method for stochastic optimization, ICLR, "
    "arXiv:1412.6980, algorithm 1; AMSGrad: Reddi, Kale and Kumar (2018), arXiv:1904.09237, "
    "algorithm 2, with torch's bias correction",
    formula="m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g²\n"
    "x <- x - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)",
    helps="The first to try: little tuning, gradients of very different sizes, transformers.",
    fails="Image classifiers that SGD with momentum generalises better on; weight decay that is "
    "divided by sqrt(s) too (AdamW).",
)
_AMSGRAD = replace(ADAM, state=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), update=_amsgrad)


def _adamw_variant(hyper: Hyper) -> Rule:
    return _AMSGRAD_W if hyper["amsgrad"] else ADAMW


ADAMW = replace(
    ADAM,
    name="AdamW",
    hyper=(
        *_ADAM_HYPER,
        decay(1e-2),
        Flag(
            "decoupled_weight_decay",
            True,
            "multiply x by 1 - lr weight_decay; False makes it Adam",
        ),
        Flag(
            "decay_by_lr",
            True,
            "False multiplies x by 1 - weight_decay, the paper's form with its own schedule",
        ),
    ),
    variant=_adamw_variant,
    paper="Loshchilov and Hutter (2019), Decoupled weight decay regularization, ICLR, "
    "arXiv:1711.05101, algorithm 2",
    formula="m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g²\n"
    "x <- (1 - lr weight_decay) x - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)",
    helps="Transformers, and wherever weights have to be kept small: the decay does not depend on "
    "the size of the gradients.",
    fails="Where lr decays to 0 so does the decay (decay_by_lr).",
)
_AMSGRAD_W = replace(ADAMW, state=_AMSGRAD.state, update=_amsgrad)


def _nadam_mu(hyper: Hyper, step: Any) -> Any:
    beta1 = hyper["betas"][0]
    return beta1 * (1.0 - 0.5 * 0.96 ** (step * hyper["momentum_decay"]))


def _nadam_coefficients(hyper: Hyper, step: int, before: Any) -> Row:
    beta1, beta2 = hyper["betas"]
    lr, mu, after = hyper["lr"], _nadam_mu(hyper, step), _nadam_mu(hyper, step + 1)
    product = before * mu
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        lr * (1.0 - mu) / (1.0 - product),
        lr * after / (1.0 - product * after),
        1.0 / (1.0 - beta2**step),
        hyper["eps"],
    )


def _nadam(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate_g: Any,
    rate_m: Any,
    unbias2: Any,
    eps: Any,
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    return p - (rate_g * g + rate_m * m) / (sqrt(s * unbias2) + eps), m, s


def _nadam_advance(hyper: Hyper, step: int, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
    return (), (scalars[0] * _nadam_mu(hyper, step),)


NADAM = Rule(
    "NAdam",
    (
        lr(2e-3),
        betas(0.9, 0.999),
        eps(1e-8),
        Number(
            "momentum_decay",
            4e-3,
            low=0.0,
            infinite=True,
            meaning="of the schedule of mu; inf makes mu = beta1 at every step: optax and Keras",
        ),
    ),
    ("exp_avg", "exp_avg_sq"),
    _nadam_coefficients,
    _nadam,
    scalars={"mu_product": lambda hyper: 1.0},
    advance=_nadam_advance,
    moments=_MOMENTS,
    paper="Dozat (2016), Incorporating Nesterov momentum into Adam, ICLR workshop, algorithm 2, "
    "with the schedule of section 3: mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)",
    formula="m, s as in Adam;  P_t = mu_1 ... mu_t\n"
    "x <- x - lr ((1 - mu_t) g / (1 - P_t) + mu_(t+1) m / (1 - P_(t+1))) / "
    "(sqrt(s / (1 - beta2^t)) + eps)",
    helps="As Adam, a little faster at the start.",
    fails="As Adam; with noisy gradients no better.",
)


def _radam_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    correction2 = 1.0 - beta2**step
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * beta2**step / correction2
    rate = hyper["lr"] / (1.0 - beta1**step)
    # Up to 5 the variance of the step is not tractable: plain momentum, no division.
    far, now = max(rho_inf, 5.0), maximum(rho, 5.0)
    square = (now - 4.0) * (now - 2.0) * far / ((far - 4.0) * (far - 2.0) * now)
    rate = where(rho > 5.0, rate * (square * correction2) ** 0.5, rate)
    divides = where(rho > 5.0, 1.0, 0.0)
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate, divides, 1.0 - divides, hyper["eps"]


def _radam(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate: Any,
    divides: Any,
    not_yet: Any,
    eps: Any,
) -> tuple[Any, ...]:
    m, s = averages(g, m, s, beta1, gain1, beta2, gain2)
    return p - rate * m / (divides * (sqrt(s) + eps) + not_yet), m, s


RADAM = Rule(
    "RAdam",
    (lr(1e-3), betas(0.9, 0.999), eps(1e-8)),
    ("exp_avg", "exp_avg_sq"),
    _radam_coefficients,
    _radam,
    moments=_MOMENTS,
    paper="Liu et al. (2020), On the variance of the adaptive learning rate and beyond, ICLR, "
    "arXiv:1908.03265, algorithm 2, with torch's place of eps",
    formula="m, s as in Adam;  rho = rho_inf - 2 t beta2^t / (1 - beta2^t)\n"
    "rho > 5: x <- x - lr r_t m / (1 - beta1^t) sqrt(1 - beta2^t) / (sqrt(s) + eps);  "
    "else x <- x - lr m / (1 - beta1^t)",
    helps="Training without warm-up: the first steps do not divide by an s of few gradients.",
    fails="Its first five steps are not divided at all, and can be long where gradients are.",
)


def _adamax_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    return beta1, 1.0 - beta1, beta2, hyper["lr"] / (1.0 - beta1**step), hyper["eps"]


def _adamax(
    p: Any, g: Any, m: Any, u: Any, beta1: Any, gain1: Any, beta2: Any, rate: Any, eps: Any
) -> tuple[Any, ...]:
    m = beta1 * m + gain1 * g
    u = maximum(beta2 * u, absolute(g) + eps)
    return p - rate * m / u, m, u


ADAMAX = Rule(
    "Adamax",
    (lr(2e-3), betas(0.9, 0.999, meaning="decay of m and u"), eps(1e-8, "added to |g|")),
    ("exp_avg", "exp_inf"),
    _adamax_coefficients,
    _adamax,
    moments={"exp_avg": True, "exp_inf": False},
    paper="Kingma and Ba (2015), arXiv:1412.6980, algorithm 2, with torch's eps",
    formula="m as in Adam;  u <- max(beta2 u, |g| + eps);  x <- x - lr m / (1 - beta1^t) / u",
    helps="Embeddings and other gradients with rare, large entries.",
    fails="One large gradient shortens the steps for a long time.",
)


def _adan_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2, beta3 = hyper["betas"]
    lr, decay = hyper["lr"], hyper["weight_decay"]
    before = after = 1.0
    if hyper["no_prox"]:
        before = 1.0 - lr * decay
    else:
        after = 1.0 / (1.0 + lr * decay)
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        beta3,
        1.0 - beta3,
        lr / (1.0 - beta1**step),
        lr * beta2 / (1.0 - beta2**step),
        1.0 / (1.0 - beta3**step),
        hyper["eps"],
        before,
        after,
        # The first gradient has none before it to differ from.
        where(step == 1, 0.0, 1.0),
    )


def _adan(
    p: Any,
    g: Any,
    m: Any,
    d: Any,
    s: Any,
    last: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    beta3: Any,
    gain3: Any,
    rate_m: Any,
    rate_d: Any,
    unbias3: Any,
    eps: Any,
    before: Any,
    after: Any,
    differs: Any,
) -> tuple[Any, ...]:
    change = differs * (g - last)
    m = beta1 * m + gain1 * g
    d = beta2 * d + gain2 * change
    ahead = g + beta2 * change
    s = beta3 * s + gain3 * ahead * ahead
    move = (rate_m * m + rate_d * d) / (sqrt(s * unbias3) + eps)
    return after * (before * p - move), m, d, s, g


ADAN = Rule(
    "Adan",
    (
        lr(1e-3),
        betas(
            0.98,
            0.92,
            0.99,
            meaning="decay of the averages of g, of its change and of the "
            "square of both (the paper's betas are 1 minus these)",
        ),
        eps(1e-8),
        decay(0.0),
        Flag(
            "no_prox",
            meaning="multiply x by 1 - lr weight_decay, as AdamW, instead of dividing "
            "the result by 1 + lr weight_decay",
        ),
    ),
    ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad"),
    _adan_coefficients,
    _adan,
    own_decay=True,
    moments={"exp_avg": True, "exp_avg_diff": True, "exp_avg_sq": False, "previous_grad": True},
    paper="Xie et al. (2024), Adan: adaptive Nesterov momentum algorithm for faster optimizing "
    "deep models, TPAMI, arXiv:2208.06677, algorithm 1, with the authors' bias corrections",
    formula="m <- beta1 m + (1 - beta1) g;  d <- beta2 d + (1 - beta2) (g - g_before)\n"
    "s <- beta3 s + (1 - beta3) (g + beta2 (g - g_before))²\n"
    "x <- (x - lr (m / (1 - beta1^t) + beta2 d / (1 - beta2^t)) / (sqrt(s / (1 - beta3^t)) + eps))"
    "\n    / (1 + lr weight_decay)",
    helps="Vision transformers and large batches, at rates 5 to 10 times those of AdamW.",
    fails="Memory: four numbers a parameter, twice as many as Adam.",
)


def _warm_beta(hyper: Hyper, step: Any) -> Any:
    beta1, _, beta3 = hyper["betas"]
    warmup = hyper["beta3_warmup"]
    if warmup is None:
        return beta3

    def half_life(beta: float) -> float:
        return log(0.5) / log(beta + 1e-8) - 1.0

    a = minimum(step / warmup, 1.0)
    mixed = (1.0 - a) * half_life(beta1) + a * half_life(beta3)
    return where(a < 1.0, 0.5 ** (1.0 / (mixed + 1.0)), beta3)


def _ademamix_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2, _ = hyper["betas"]
    beta3, alpha = _warm_beta(hyper, step), hyper["alpha"]
    if hyper["alpha_warmup"] is not None:
        alpha = alpha * minimum(step / hyper["alpha_warmup"], 1.0)
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        beta3,
        1.0 - beta3,
        hyper["lr"] / (1.0 - beta1**step),
        hyper["lr"] * alpha,
        1.0 / (1.0 - beta2**step),
        hyper["eps"],
    )


def _ademamix(
    p: Any,
    g: Any,
    fast: Any,
    slow: Any,
    s: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    beta3: Any,
    gain3: Any,
    rate_fast: Any,
    rate_slow: Any,
    unbias2: Any,
    eps: Any,
) -> tuple[Any, ...]:
    fast = beta1 * fast + gain1 * g
    slow = beta3 * slow + gain3 * g
    s = beta2 * s + gain2 * g * g
    return p - (rate_fast * fast + rate_slow * slow) / (sqrt(s * unbias2) + eps), fast, slow, s


ADEMAMIX = Rule(
    "AdEMAMix",
    (
        lr(1e-3),
        betas(
            0.9,
            0.999,
            0.9999,
            meaning="decay of the fast average of g, of g² and of the slow average of g",
        ),
        Number("alpha", 2.0, low=0.0, meaning="weight of the slow average"),
        Number(
            "beta3_warmup",
            None,
            low=1.0,
            optional=True,
            meaning="steps over which beta3 rises from beta1",
        ),
        Number(
            "alpha_warmup",
            None,
            low=1.0,
            optional=True,
            meaning="steps over which alpha rises from 0",
        ),
        eps(1e-8),
        decay(0.0),
        Flag("decoupled_weight_decay", True, "multiply x by 1 - lr weight_decay"),
    ),
    ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    _ademamix_coefficients,
    _ademamix,
    moments={"exp_avg_fast": True, "exp_avg_slow": True, "exp_avg_sq": False},
    paper="Pagliardini, Ablin and Grangier (2024), The AdEMAMix optimizer: better, faster, older, "
    "arXiv:2409.03137, algorithm 1",
    formula="m1 <- beta1 m1 + (1 - beta1) g;  m2 <- beta3 m2 + (1 - beta3) g;  s as in Adam\n"
    "x <- (1 - lr weight_decay) x - lr (m1 / (1 - beta1^t) + alpha m2) / "
    "(sqrt(s / (1 - beta2^t)) + eps)",
    helps="Long training of language models: gradients of ten thousand steps ago still count.",
    fails="Short training; without warm-up of alpha and beta3 the start is unstable.",
)


def _adopt_coefficients(hyper: Hyper, step: int) -> Row:
    beta1, beta2 = hyper["betas"]
    decay, lr = hyper["weight_decay"], hyper["lr"]
    decoupled = hyper["decoupled_weight_decay"]
    # The first step only fills the second moment.
    moves = where(step == 1, 0.0, 1.0)
    # Nothing in float32 is larger than 1e38.
    bound = maximum(step - 1.0, 0.0) ** 0.25 if hyper["clip"] else 1e38
    return (
        0.0 if decoupled else decay,
        1.0 - moves * lr * decay if decoupled else 1.0,
        where(step == 1, 1.0, beta1),
        moves * (1.0 - beta1),
        where(step == 1, 0.0, beta2),
        where(step == 1, 1.0, 1.0 - beta2),
        moves * lr,
        hyper["eps"],
        bound,
    )


def _adopt(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    coupled: Any,
    shrink: Any,
    beta1: Any,
    gain1: Any,
    beta2: Any,
    gain2: Any,
    rate: Any,
    eps: Any,
    bound: Any,
) -> tuple[Any, ...]:
    g = g + coupled * p
    u = maximum(minimum(g / maximum(sqrt(s), eps), bound), -bound)
    m = beta1 * m + gain1 * u
    return shrink * p - rate * m, m, beta2 * s + gain2 * g * g


ADOPT = Rule(
    "ADOPT",
    (
        lr(1e-3),
        betas(0.9, 0.9999),
        eps(1e-6, "least root to divide by"),
        decay(0.0),
        Flag(
            "decoupled_weight_decay",
            meaning="multiply x by 1 - lr weight_decay instead of adding weight_decay x to g",
        ),
        Flag(
            "clip",
            True,
            "bound the entries of u by (t - 1)^(1/4); False is the paper's first version",
        ),
    ),
    ("exp_avg", "exp_avg_sq"),
    _adopt_coefficients,
    _adopt,
    own_decay=True,
    moments=_MOMENTS,
    paper="Taniguchi et al. (2024), ADOPT: modified Adam can converge with any beta2 with the "
    "optimal rate, NeurIPS, arXiv:2411.02853, algorithm 2",
    formula="t = 1: s <- g²;  then u = clip(g / max(sqrt(s), eps), (t - 1)^(1/4))\n"
    "m <- beta1 m + (1 - beta1) u;  x <- x - lr m;  s <- beta2 s + (1 - beta2) g²",
    helps="Where Adam cycles: convergence does not hang on beta2, as g is not part of its own "
    "divisor.",
    fails="Without the clip it blows up where s of the first batch is near zero.",
)
