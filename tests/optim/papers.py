"""The optimizers of the literature, written out from their papers or their authors' code.

`NAMES[name](x, g, s, t, **arguments)` takes one parameter and its gradient (float64), that
parameter's memory (a dict, empty at first) and the step from 1, and returns the new parameter.
`JOINT` has those that sum over all parameters: there x and g are lists, and s is one dict.
All take `maximize`. test_papers.py holds each against another implementation, and says where
implementations part.
"""

from math import inf, log, sqrt

import torch

NAMES, JOINT = {}, {}


def named(name):
    """Enters a formula of one parameter under its optimizer's name, with `maximize`."""

    def enter(formula):
        def step(x, g, s, t, *, maximize=False, **arguments):
            return formula(x, -g if maximize else g, s, t, **arguments)

        NAMES[name] = step
        return formula

    return enter


def joint(name):
    """Enters a formula of all parameters at once."""

    def enter(formula):
        def step(xs, gs, s, t, *, maximize=False, **arguments):
            return formula(xs, [-g for g in gs] if maximize else gs, s, t, **arguments)

        JOINT[name] = step
        return formula

    return enter


def average(s, name, new, beta):
    """Moves the exponential average of that name, which starts at 0."""
    s[name] = beta * s.get(name, 0.0) + (1 - beta) * new
    return s[name]


def norm(x):
    return float(torch.sqrt(torch.sum(x * x)))


def rms(x):
    return float(torch.sqrt(torch.mean(x * x)))


# The family of Adam.


# Loshchilov, Hutter 2019, algorithm 2. amsgrad: Reddi, Kale, Kumar 2018, algorithm 2; as in torch
# the maximum is of v before its correction (optax: after).
@named("AdamW")
def adamw(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    decay_by_lr=True,
):
    m, v = average(s, "m", g, betas[0]), average(s, "v", g**2, betas[1])
    if amsgrad:
        v = s["max"] = torch.maximum(s.get("max", torch.zeros_like(v)), v)
    # The paper's decay has its own schedule and does not know the rate: decay_by_lr=False.
    x = x * (1 - (lr if decay_by_lr else 1.0) * weight_decay)
    return x - lr * m / (1 - betas[0] ** t) / (torch.sqrt(v / (1 - betas[1] ** t)) + eps)


# Dozat 2016, algorithm 2, with the schedule of mu that the paper suggests. momentum_decay=inf
# gives mu = beta1 throughout, which is optax's and Keras' form (0 gives beta1 / 2).
@named("NAdam")
def nadam(
    x,
    g,
    s,
    t,
    *,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    momentum_decay=4e-3,
    decoupled_weight_decay=False,
):
    def mu(t):
        return betas[0] * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    if decoupled_weight_decay:
        x = x * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * x
    m, v = average(s, "m", g, betas[0]), average(s, "v", g**2, betas[1])
    s["product"] = s.get("product", 1.0) * mu(t)
    ahead = mu(t + 1) * m / (1 - s["product"] * mu(t + 1)) + (1 - mu(t)) * g / (1 - s["product"])
    return x - lr * ahead / (torch.sqrt(v / (1 - betas[1] ** t)) + eps)


# Liu et al. 2020, algorithm 2. As torch: rectified where rho > 5 (the paper: 4), and eps beside
# the root before its correction (the paper has none).
@named("RAdam")
def radam(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    if decoupled_weight_decay:
        x = x * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * x
    m, v = average(s, "m", g, betas[0]), average(s, "v", g**2, betas[1])
    corrected = m / (1 - betas[0] ** t)
    most = 2 / (1 - betas[1]) - 1
    rho = most - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    if rho <= 5:
        return x - lr * corrected
    rectified = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return x - lr * rectified * corrected * sqrt(1 - betas[1] ** t) / (torch.sqrt(v) + eps)


# Kingma, Ba 2015, algorithm 2; eps beside |g| as in torch (the paper has none).
@named("Adamax")
def adamax(
    x,
    g,
    s,
    t,
    *,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    if decoupled_weight_decay:
        x = x * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * x
    m = average(s, "m", g, betas[0])
    s["u"] = torch.maximum(betas[1] * s.get("u", torch.zeros_like(g)), g.abs() + eps)
    return x - lr / (1 - betas[0] ** t) * m / s["u"]


# Xie et al. 2024, algorithm 1, in the authors' terms (sail-sg/Adan): their betas are 1 - the
# paper's. At the first step the gradient before is taken to be g.
@named("Adan")
def adan(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.98, 0.92, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    no_prox=False,
):
    difference = g - s.get("g", g)
    s["g"] = g
    m = average(s, "m", g, betas[0]) / (1 - betas[0] ** t)
    d = average(s, "d", difference, betas[1]) / (1 - betas[1] ** t)
    n = average(s, "n", (g + betas[1] * difference) ** 2, betas[2]) / (1 - betas[2] ** t)
    step = lr * (m + betas[1] * d) / (torch.sqrt(n) + eps)
    if no_prox:
        return x * (1 - lr * weight_decay) - step
    return (x - step) / (1 + lr * weight_decay)


# Pagliardini, Ablin, Grangier 2024, algorithm 1 and the authors' code (apple/ml-ademamix): beta3
# warms up so that its half-life grows linearly; the 1e-8 in the logarithm is theirs alone.
@named("AdEMAMix")
def ademamix(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha=2.0,
    beta3_warmup=None,
    alpha_warmup=None,
    eps=1e-8,
    weight_decay=0.0,
):
    def half_life(beta):
        return log(0.5) / log(beta + 1e-8) - 1

    beta1, beta2, beta3 = betas
    if alpha_warmup is not None and t < alpha_warmup:
        alpha = alpha * t / alpha_warmup
    if beta3_warmup is not None and t < beta3_warmup:
        share = t / beta3_warmup
        life = (1 - share) * half_life(beta1) + share * half_life(beta3)
        beta3 = 0.5 ** (1 / (life + 1))
    fast = average(s, "fast", g, beta1) / (1 - beta1**t)
    slow = average(s, "slow", g, beta3)  # not corrected: it has to fill up
    v = average(s, "v", g**2, beta2) / (1 - beta2**t)
    return x - lr * ((fast + alpha * slow) / (torch.sqrt(v) + eps) + weight_decay * x)


# Taniguchi et al. 2024, algorithm 2, and the authors' code (iShohei220/adopt). The first step
# only sets v; their count starts at 0 there, so the bound is (t - 1)^(1/4). clip=False is their
# clip_lambda=None. (The paper's first version, and their first commit, set m to the first
# normalised gradient whole, without the factor 1 - beta1.)
@named("ADOPT")
def adopt(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    clip=True,
):
    if not decoupled_weight_decay:
        g = g + weight_decay * x
    if t == 1:
        s["v"] = g**2
        return x
    if decoupled_weight_decay:
        x = x * (1 - lr * weight_decay)
    normalised = g / torch.sqrt(s["v"]).clamp(min=eps)
    if clip:
        bound = (t - 1) ** 0.25
        normalised = normalised.clamp(-bound, bound)
    m = average(s, "m", normalised, betas[0])
    average(s, "v", g**2, betas[1])
    return x - lr * m


# Those that take signs.


# Riedmiller, Braun 1993, in the form of torch: Igel, Huesken 2000's iRprop-, no move and a
# forgotten gradient where the sign has changed. (torch's has no weight decay.)
@named("Rprop")
def rprop(x, g, s, t, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), weight_decay=0.0):
    g = g + weight_decay * x
    agreement = g * s.get("g", 0.0)
    factor = torch.ones_like(x)
    factor[agreement < 0], factor[agreement > 0] = etas
    s["size"] = (s.get("size", torch.full_like(x, lr)) * factor).clamp(*step_sizes)
    s["g"] = torch.where(agreement < 0, 0.0, g)
    return x - s["size"] * torch.sign(s["g"])


# Chen et al. 2023, algorithm 2 (google/automl).
@named("Lion")
def lion(x, g, s, t, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    step = torch.sign(betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g)
    average(s, "m", g, betas[1])
    return x * (1 - lr * weight_decay) - lr * step


# Bernstein et al. 2018, algorithm 2.
@named("Signum")
def signum(x, g, s, t, *, lr=1e-4, momentum=0.9, weight_decay=0.0):
    return x - lr * torch.sign(average(s, "m", g + weight_decay * x, momentum))


# Su 2023 (kexue.fm/archives/9512), without what bojone/tiger does by a parameter's name: there
# the rate is multiplied by the root mean square of x, halved for biases, which do not decay.
@named("Tiger")
def tiger(x, g, s, t, *, lr=1e-3, momentum=0.965, weight_decay=0.01):
    return x * (1 - lr * weight_decay) - lr * torch.sign(average(s, "m", g, momentum))


# Averages of the path.


# Polyak, Juditsky 1992; Bottou's form, as torch has it.
@named("ASGD")
def asgd(x, g, s, t, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
    g = g + weight_decay * x
    eta = lr / (1 + lambd * lr * (t - 1)) ** alpha
    x = x * (1 - lambd * eta) - eta * g
    share = 1 / max(1, t - 1 - t0)
    s["ax"] = x if share == 1 else s["ax"] + share * (x - s["ax"])
    return x


def schedule_free_share(s, t, lr, warmup_steps, r, weight_lr_power):
    """The rate of this step, and the share of its z in the average x."""
    rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    s["lr_max"] = max(s.get("lr_max", 0.0), rate)
    weight = t**r * s["lr_max"] ** weight_lr_power
    s["weight_sum"] = s.get("weight_sum", 0.0) + weight
    return rate, weight / s["weight_sum"] if s["weight_sum"] else 0.0


# Defazio et al. 2024, equations 3 to 5, and facebookresearch/schedule_free's reference. The
# parameter is y; the weights to evaluate with are s["x"].
@named("ScheduleFreeSGD")
def schedule_free_sgd(
    y,
    g,
    s,
    t,
    *,
    lr=1.0,
    momentum=0.9,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    rate, share = schedule_free_share(s, t, lr, warmup_steps, r, weight_lr_power)
    s["z"] = s.get("z", y) - rate * (g + weight_decay * y)
    s["x"] = (1 - share) * s.get("x", y) + share * s["z"]
    return (1 - momentum) * s["z"] + momentum * s["x"]


# Defazio et al. 2024, algorithm 1, but v corrected as in schedulefree 1.4: under the root. The
# paper and earlier releases put the correction into the rate, and so into the average's weights.
@named("ScheduleFreeAdamW")
def schedule_free_adamw(
    y,
    g,
    s,
    t,
    *,
    lr=0.0025,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    rate, share = schedule_free_share(s, t, lr, warmup_steps, r, weight_lr_power)
    v = average(s, "v", g**2, betas[1]) / (1 - betas[1] ** t)
    s["z"] = s.get("z", y) - rate * (g / (torch.sqrt(v) + eps) + weight_decay * y)
    s["x"] = (1 - share) * s.get("x", y) + share * s["z"]
    return (1 - betas[0]) * s["z"] + betas[0] * s["x"]


# A rate for each layer.


# You, Gitman, Ginsburg 2017, algorithm 1, with eps in the local rate as in NVIDIA's LARC:
# trust ||x|| / (||g|| + wd ||x|| + eps), 1 where either norm is 0; v = mu v + local (g + wd x).
# The rate stays outside v, as in torch's SGD and LARC; algorithm 1 and optax have it inside.
@named("LARS")
def lars(
    x,
    g,
    s,
    t,
    *,
    lr=0.1,
    momentum=0.9,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=1e-8,
    nesterov=False,
):
    local = 1.0
    if norm(x) and norm(g):
        local = trust_coefficient * norm(x) / (norm(g) + weight_decay * norm(x) + eps)
    d = local * (g + weight_decay * x)
    s["v"] = momentum * s.get("v", 0.0) + d
    return x - lr * (d + momentum * s["v"] if nesterov else s["v"])


# You et al. 2020, algorithm 2, phi the identity.
@named("LAMB")
def lamb(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    bias_correction=True,
):
    m, v = average(s, "m", g, betas[0]), average(s, "v", g**2, betas[1])
    if bias_correction:
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    r = m / (torch.sqrt(v) + eps) + weight_decay * x
    ratio = norm(x) / norm(r) if norm(x) and norm(r) else 1.0
    return x - lr * ratio * r


# Matrices.


# Shazeer, Stern 2018, algorithms 4 and 5, in the form of torch: decay by the rate itself, eps1
# squared under the root instead of added to g², the statistics over the last two dimensions.
@named("Adafactor")
def adafactor(x, g, s, t, *, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0):
    eps1 = torch.finfo(x.dtype).eps if eps[0] is None else eps[0]
    alpha = max(eps[1], rms(x)) * min(lr, 1 / sqrt(t))
    x = x * (1 - lr * weight_decay)
    beta = 1 - t**beta2_decay
    if g.dim() > 1:
        rows = average(s, "rows", (g**2).mean(-1, keepdim=True), beta)
        columns = average(s, "columns", (g**2).mean(-2, keepdim=True), beta)
        v = rows * columns / rows.mean(-2, keepdim=True).clamp(min=eps1)
    else:
        v = average(s, "v", g**2, beta)
    u = g / torch.sqrt(v.clamp(min=eps1**2))
    return x - alpha * u / max(1.0, rms(u) / d)


# Jordan 2024 (kellerjordan.github.io/posts/muon), in the form of torch, without its bfloat16.
# Filters are matrices of one row each, as there (torch takes matrices alone).
@named("Muon")
def muon(
    x,
    g,
    s,
    t,
    *,
    lr=1e-3,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.775, 2.0315),
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn=None,
):
    m = average(s, "m", g, momentum)
    u = (1 - momentum) * g + momentum * m if nesterov else m
    u = u.flatten(1)
    rows, columns = u.shape
    a, b, c = ns_coefficients
    u = u.T if rows > columns else u
    u = u / max(norm(u), eps)
    for _ in range(ns_steps):
        gram = u @ u.T
        u = a * u + (b * gram + c * gram @ gram) @ u
    u = u.T if rows > columns else u
    adjusted = {
        None: sqrt(max(1, rows / columns)),
        "original": sqrt(max(1, rows / columns)),
        "match_rms_adamw": 0.2 * sqrt(max(rows, columns)),
    }
    return x * (1 - lr * weight_decay) - lr * adjusted[adjust_lr_fn] * u.reshape(x.shape)


def unfolded(g, i):
    """The matrix whose rows are dimension i."""
    return g.movedim(i, 0).reshape(g.shape[i], -1)


def multiplied(matrix, g, i):
    """The matrix times dimension i of g."""
    return torch.tensordot(matrix, g, dims=([1], [i])).movedim(0, i)


# Gupta, Koren, Singer 2018, algorithm 2 (for matrices algorithm 1): exponent -1/2k for order k,
# so -1/4 for matrices. moskomule/shampoo.pytorch takes -1/k: exponent=-1 / g.dim() gives that.
# Momentum, which the paper leaves open, is of the preconditioned directions, as in Google's code;
# moskomule mixes the direction of the last step into the next gradient, and into L and R. Sides
# longer than max_precond_dim are left alone and do not count in k, as in Google's code.
@named("Shampoo")
def shampoo(
    x,
    g,
    s,
    t,
    *,
    lr=1e-1,
    momentum=0.0,
    weight_decay=0.0,
    epsilon=1e-4,
    update_freq=1,
    max_precond_dim=2048,
    exponent=None,
):
    g = g + weight_decay * x
    sides = [i for i, n in enumerate(g.shape) if n <= max_precond_dim]
    u = g
    for i in sides:
        exponent = -1 / (2 * len(sides)) if exponent is None else exponent
        start = epsilon * torch.eye(g.shape[i], dtype=g.dtype)
        s["side", i] = s.get(("side", i), start) + unfolded(g, i) @ unfolded(g, i).T
        if (t - 1) % update_freq == 0:
            values, vectors = torch.linalg.eigh(s["side", i])
            s["root", i] = (vectors * values**exponent) @ vectors.T
        u = multiplied(s["root", i], u, i)
    s["v"] = momentum * s.get("v", 0.0) + u
    return x - lr * s["v"]


# Vyas et al. 2024, algorithm 3, and the authors' code (nikhilvyas/SOAP). The first step only sets
# the sides up, so their count is t - 1. eps is beside the root before its correction. The
# momentum is kept in the parameter's own axes (theirs is turned at every step: the same). Where
# a side has equal eigenvalues (after the first step: more rows than all others together) the
# path depends on the eigenvectors that the solver chose.
@named("SOAP")
def soap(
    x,
    g,
    s,
    t,
    *,
    lr=3e-3,
    betas=(0.95, 0.95),
    shampoo_beta=-1,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    precondition_1d=False,
    correct_bias=True,
):
    turns = g.dim() > 1 or precondition_1d
    sides = [i for i, n in enumerate(g.shape) if turns and n <= max_precond_dim]
    beta = shampoo_beta if shampoo_beta >= 0 else betas[1]

    def watch():
        for i in sides:
            average(s, ("side", i), unfolded(g, i) @ unfolded(g, i).T, beta)

    def turned(g, back=False):
        for i in sides:
            g = multiplied(s["axes", i] if back else s["axes", i].T, g, i)
        return g

    if t == 1:
        watch()
        for i in sides:
            s["axes", i] = torch.linalg.eigh(s["side", i])[1].flip(1)
        return x
    count = t - 1
    m, v = average(s, "m", g, betas[0]), average(s, "v", turned(g) ** 2, betas[1])
    rate = lr
    if correct_bias:
        rate = lr * sqrt(1 - betas[1] ** count) / (1 - betas[0] ** count)
    x = x - rate * turned(turned(m) / (torch.sqrt(v) + eps), back=True)
    x = x * (1 - lr * weight_decay)
    watch()
    if count % precondition_frequency == 0:
        for i in sides:  # one power iteration, largest first
            product = s["side", i] @ s["axes", i]
            order = torch.argsort((s["axes", i] * product).sum(0), descending=True)
            s["v"] = s["v"].index_select(i, order)
            s["axes", i] = torch.linalg.qr(product[:, order])[0]
    return x


# Those that find the rate, from sums over all parameters.


def corrected(betas, count):
    return sqrt(1 - betas[1] ** count) / (1 - betas[0] ** count)


# Mishchenko, Defazio 2024, the Adam form, as in konstmish/prodigy.
@joint("Prodigy")
def prodigy(
    xs,
    gs,
    s,
    t,
    *,
    lr=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    weight_decay=0.0,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=inf,
):
    if t == 1:
        zeros = [torch.zeros_like(x) for x in xs]
        s.update(x0=xs, m=zeros, v=zeros, s=zeros, d=d0, d_max=d0, numerator=0.0, count=0)
    beta1, beta2 = betas
    beta3 = sqrt(beta2) if beta3 is None else beta3
    d = s["d"]
    rate = d * lr * (corrected(betas, s["count"] + 1) if use_bias_correction else 1.0)
    if not decouple:
        gs = [g + weight_decay * x for x, g in zip(xs, gs, strict=True)]
    progress = sum(float(torch.sum(g * (x0 - x))) for x, g, x0 in zip(xs, gs, s["x0"], strict=True))
    s["m"] = [beta1 * m + (1 - beta1) * d * g for m, g in zip(s["m"], gs, strict=True)]
    s["v"] = [beta2 * v + (1 - beta2) * (d * g) ** 2 for v, g in zip(s["v"], gs, strict=True)]
    weight = d / d0 * (d if safeguard_warmup else rate)
    s["s"] = [beta3 * w + weight * g for w, g in zip(s["s"], gs, strict=True)]
    denominator = sum(float(w.abs().sum()) for w in s["s"])
    if denominator == 0:
        return xs
    s["numerator"] = beta3 * s["numerator"] + d / d0 * rate * progress
    estimate = d_coef * s["numerator"] / denominator
    if d == d0:
        d = max(d, estimate)
    s["d_max"] = max(s["d_max"], estimate)
    s["d"] = d = min(s["d_max"], d * growth_rate)
    s["count"] += 1
    # The rate is of the old d, only eps sees the new one.
    decay = 1 - rate * weight_decay if decouple else 1.0
    return [
        x * decay - rate * m / (torch.sqrt(v) + d * eps)
        for x, m, v in zip(xs, s["m"], s["v"], strict=True)
    ]


# Defazio, Mishchenko 2023, the Adam form, as in facebookresearch/dadaptation 3.2.
@joint("DAdaptAdam")
def dadapt_adam(
    xs,
    gs,
    s,
    t,
    *,
    lr=1.0,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decouple=False,
    use_bias_correction=False,
    d0=1e-6,
    growth_rate=inf,
):
    if t == 1:
        zeros = [torch.zeros_like(x) for x in xs]
        s.update(m=zeros, v=zeros, s=zeros, d=d0, numerator=0.0, count=0)
    beta1, beta2 = betas
    root = sqrt(beta2)
    rate = s["d"] * lr * (corrected(betas, s["count"] + 1) if use_bias_correction else 1.0)
    if not decouple:
        gs = [g + weight_decay * x for x, g in zip(xs, gs, strict=True)]
    # Both of the step before: v and s.
    progress = sum(
        float(torch.sum(g * w / (torch.sqrt(v) + eps)))
        for g, w, v in zip(gs, s["s"], s["v"], strict=True)
    )
    s["m"] = [beta1 * m + (1 - beta1) * rate * g for m, g in zip(s["m"], gs, strict=True)]
    s["v"] = [beta2 * v + (1 - beta2) * g**2 for v, g in zip(s["v"], gs, strict=True)]
    s["s"] = [root * w + (1 - root) * rate * g for w, g in zip(s["s"], gs, strict=True)]
    denominator = sum(float(w.abs().sum()) for w in s["s"])
    if denominator == 0:
        return xs
    s["numerator"] = root * s["numerator"] + (1 - root) * rate * progress
    estimate = s["numerator"] / ((1 - root) * denominator)
    s["d"] = max(s["d"], min(estimate, s["d"] * growth_rate))
    s["count"] += 1
    decay = 1 - rate * weight_decay if decouple else 1.0
    return [
        x * decay - m / (torch.sqrt(v) + eps) for x, m, v in zip(xs, s["m"], s["v"], strict=True)
    ]


def step_all(name, xs, gs, memories, t, **arguments):
    """One step of all parameters; a memory each, of which those that sum over all use the first."""
    if name in JOINT:
        return JOINT[name](xs, gs, memories[0], t, **arguments)
    each = zip(xs, gs, memories, strict=True)
    return [NAMES[name](x, g, s, t, **arguments) for x, g, s in each]


# Around another optimizer.


def sam_gradient(gradient, xs, rho=0.05, adaptive=False):
    """Foret et al. 2021, equation 2, and adaptive: Kwon et al. 2021, algorithm 1.

    `gradient` takes all parameters and returns all gradients: the norm is over all.
    """
    gs = gradient(xs)
    scales = [x.abs() if adaptive else torch.ones_like(x) for x in xs]
    length = sqrt(sum(norm(w * g) ** 2 for w, g in zip(scales, gs, strict=True)))
    # 1e-12 is davda54/sam's.
    up = [rho * w**2 * g / (length + 1e-12) for w, g in zip(scales, gs, strict=True)]
    return gradient([x + e for x, e in zip(xs, up, strict=True)])


def lookahead(before, after, s, t, *, k=5, alpha=0.5):
    """Zhang et al. 2019, algorithm 1, once the inner optimizer went from before to after."""
    slow = s.setdefault("slow", before)
    if t % k:
        return after
    s["slow"] = slow + alpha * (after - slow)
    return s["slow"]
