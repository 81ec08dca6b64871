"""The formulas of papers.py against other implementations, step by step in float64.

Where an implementation computes something else, test_where_they_part says what and how much.
"""

from math import inf

import numpy as np
import pytest
import torch

from .papers import NAMES, lookahead, sam_gradient, step_all

STEPS = 40
peer = pytest.importorskip


@pytest.fixture(autouse=True)
def _float64():
    # torch keeps NAdam's product of mu and ASGD's rate in the default type.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def start(matrices=False):
    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(1)
    # Near square: with eigenvalues that are all different, so that eigenvectors are no choice.
    shapes = [(4, 3), (3, 3), (3, 4)] if matrices else [(1,), (5,), (4, 3), (3, 4), (2, 3, 4)]
    return [numbers(*shape) for shape in shapes]


def gradient(x, t):
    """Of x²/5 - cos(x + 0.7 t): another function at every step, as with mini-batches."""
    return 0.4 * x + torch.sin(x + 0.7 * t)


def follow(name, arguments, matrices=False, steps=STEPS):
    """The path of a formula, and the memories it ends with."""
    xs = start(matrices)
    path, memories = [], [{} for _ in xs]
    for t in range(1, steps + 1):
        gs = [gradient(x, t) for x in xs]
        xs = step_all(name, xs, gs, memories, t, **arguments)
        path.append(xs)
    return path, memories


def follow_torch(make, matrices=False, steps=STEPS):
    """The path of a torch optimizer, and the optimizer."""
    parameters = [x.requires_grad_() for x in start(matrices)]
    optimizer = make(parameters)
    path = []
    for t in range(1, steps + 1):
        for p in parameters:
            p.grad = gradient(p.detach(), t)
        optimizer.step()
        path.append([p.detach().clone() for p in parameters])
    return path, optimizer


def follow_optax(make, matrices=False, steps=STEPS):
    jax, optax = peer("jax"), peer("optax")
    with jax.enable_x64(True):
        transformation = make(optax)
        xs = [jax.numpy.asarray(x.numpy()) for x in start(matrices)]
        state = transformation.init(xs)
        update = jax.jit(transformation.update)
        path = []
        for t in range(1, steps + 1):
            tensors = [torch.from_numpy(np.array(x)) for x in xs]
            gs = [jax.numpy.asarray(gradient(x, t).numpy()) for x in tensors]
            updates, state = update(gs, state, xs)
            xs = optax.apply_updates(xs, updates)
            path.append([torch.from_numpy(np.array(x)) for x in xs])
        return path


def gap(path, other):
    """The greatest distance between two paths, relative to how far the first has gone."""
    first = start(matrices=len(path[0]) == 3)
    away = [
        sum(float((x - x0).abs().max()) for x, x0 in zip(xs, first, strict=True)) for xs in path
    ]
    apart = [
        max(float((x - y).abs().max()) for x, y in zip(*xs, strict=True))
        for xs in zip(path, other, strict=True)
    ]
    return max(apart) / max(away)


TORCH = {
    "AdamW": [{"lr": 0.1}, {"lr": 0.1, "amsgrad": True, "betas": (0.8, 0.9)}, {"maximize": True}],
    "NAdam": [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.1, "momentum_decay": 0.3, "maximize": True},
    ],
    "RAdam": [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3, "betas": (0.8, 0.95)},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ],
    "Adamax": [{"lr": 0.1}, {"lr": 0.1, "eps": 0.1, "weight_decay": 0.1, "maximize": True}],
    "Rprop": [{}, {"lr": 0.3, "etas": (0.3, 1.5), "step_sizes": (0.05, 0.5), "maximize": True}],
    "ASGD": [{}, {"lr": 0.1, "lambd": 0.2, "alpha": 0.6, "t0": 10, "weight_decay": 0.1}],
    "Adafactor": [
        {"lr": 0.1},
        {"beta2_decay": -0.5, "eps": (0.1, 1e-2), "d": 2.0, "weight_decay": 0.1},
        {"lr": 1.0, "maximize": True},
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name, cases in TORCH.items() for arguments in cases],
)
def test_torch(name, arguments):
    ours, memories = follow(name, arguments)
    path, optimizer = follow_torch(lambda p: getattr(torch.optim, name)(p, **arguments))
    assert gap(ours, path) < 1e-12
    if name == "ASGD":
        for s, state in zip(memories, optimizer.state.values(), strict=True):
            assert torch.allclose(s["ax"], state["ax"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 0.1},
        {"lr": 0.1, "nesterov": False, "adjust_lr_fn": "original", "ns_steps": 3},
        {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "momentum": 0.5, "weight_decay": 0.0},
    ],
)
def test_torchs_muon(arguments, monkeypatch):
    ours, _ = follow("Muon", arguments, matrices=True)

    def other():
        return follow_torch(lambda p: torch.optim.Muon(p, **arguments), matrices=True)[0]

    # torch iterates in bfloat16, which is what parts it from the formula.
    assert 1e-6 < gap(ours, other()) < 5e-2
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    assert gap(ours, other()) < LOOSER["Muon"]


def more(name, **arguments):
    """A class of pytorch_optimizer."""
    return lambda p: getattr(peer("pytorch_optimizer"), name)(p, **arguments)


def schedule_free(name, **arguments):
    def make(p):
        optimizer = getattr(peer("schedulefree"), name)(p, **arguments)
        optimizer.train()
        return optimizer

    return make


# Prodigy takes differences of positions that are almost one; Muon's iteration makes rounding
# 3.4^5 times larger.
LOOSER = {"Prodigy": 1e-10, "Muon": 1e-9}
MATRICES = {"LARS", "Muon"}

PEERS = {
    "Lion": [
        ({"lr": 0.1, "weight_decay": 0.1}, more("Lion", lr=0.1, weight_decay=0.1)),
        ({"maximize": True}, more("Lion", lr=1e-4, maximize=True)),
    ],
    "Adan": [
        ({"lr": 0.1, "weight_decay": 0.1}, more("Adan", lr=0.1, weight_decay=0.1)),
        (
            {"lr": 0.1, "weight_decay": 0.1, "no_prox": True, "betas": (0.9, 0.8, 0.7)},
            more("Adan", lr=0.1, weight_decay=0.1, weight_decouple=True, betas=(0.9, 0.8, 0.7)),
        ),
    ],
    "AdEMAMix": [
        (
            {"lr": 0.1, "weight_decay": 0.1},
            more("AdEMAMix", lr=0.1, weight_decay=0.1, alpha=2.0, weight_decouple=True),
        ),
    ],
    "ADOPT": [
        # Its bound counts from 1; the authors' from 0.
        (
            {"lr": 0.1, "weight_decay": 0.1},
            more("ADOPT", lr=0.1, weight_decay=0.1, clip_lambda=lambda step: (step - 1) ** 0.25),
        ),
        (
            {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.3, "clip": False, "maximize": True},
            more("ADOPT", lr=0.1, betas=(0.8, 0.95), eps=0.3, clip_lambda=None, maximize=True),
        ),
    ],
    "Signum": [
        (
            {"lr": 0.1, "weight_decay": 0.1},
            more("SignSGD", lr=0.1, weight_decay=0.1, weight_decouple=False),
        ),
    ],
    "Tiger": [
        ({"lr": 0.1}, more("Tiger", lr=0.1, weight_decay=0.01, weight_decouple=True)),
    ],
    "LAMB": [
        # Its ratio divides by ||r|| + eps, and adam_debias keeps it from correcting m alone.
        (
            {"lr": 0.1, "eps": 1e-30, "weight_decay": 0.1, "bias_correction": False},
            more(
                "Lamb",
                lr=0.1,
                eps=1e-30,
                weight_decay=0.1,
                weight_decouple=False,
                adam_debias=True,
            ),
        ),
    ],
    "Shampoo": [
        ({}, more("Shampoo", lr=0.1, matrix_eps=1e-4)),
        (
            {"weight_decay": 0.1, "epsilon": 0.1},
            more("Shampoo", lr=0.1, weight_decay=0.1, matrix_eps=0.1),
        ),
        (
            {"epsilon": 0.1, "maximize": True},
            more("Shampoo", lr=0.1, matrix_eps=0.1, maximize=True),
        ),
    ],
    "SOAP": [
        # It factors QR in float32: here that never comes, below (test_where_they_part) it does.
        (
            {"lr": 0.1, "precondition_frequency": STEPS, "maximize": True},
            more("SOAP", lr=0.1, precondition_frequency=STEPS, maximize=True),
        ),
        (
            {
                "lr": 0.1,
                "precondition_frequency": STEPS,
                "max_precond_dim": 3,
                "shampoo_beta": 0.8,
                "correct_bias": False,
                "weight_decay": 0.1,
            },
            more(
                "SOAP",
                lr=0.1,
                precondition_frequency=STEPS,
                max_precondition_dim=3,
                shampoo_beta=0.8,
                correct_bias=False,
                weight_decay=0.1,
            ),
        ),
    ],
    "LARS": [
        # It has no eps, and leaves vectors alone: matrices only.
        (
            {"lr": 30.0, "weight_decay": 0.1, "eps": 0.0},
            more("LARS", lr=30.0, weight_decay=0.1),
        ),
        (
            {"lr": 30.0, "weight_decay": 0.1, "eps": 0.0, "nesterov": True, "maximize": True},
            more("LARS", lr=30.0, weight_decay=0.1, nesterov=True, maximize=True),
        ),
    ],
    "ScheduleFreeSGD": [
        ({}, schedule_free("SGDScheduleFree")),
        (
            {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "warmup_steps": 7, "r": 0.5},
            schedule_free(
                "SGDScheduleFree", lr=0.3, momentum=0.8, weight_decay=0.1, warmup_steps=7, r=0.5
            ),
        ),
        (
            {"weight_decay": 0.1, "warmup_steps": 7, "weight_lr_power": 1.0},
            schedule_free(
                "SGDScheduleFreeReference", weight_decay=0.1, warmup_steps=7, weight_lr_power=1.0
            ),
        ),
    ],
    "ScheduleFreeAdamW": [
        ({"lr": 0.1}, schedule_free("AdamWScheduleFree", lr=0.1)),
        (
            {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 7, "r": 0.5, "betas": (0.8, 0.9)},
            schedule_free(
                "AdamWScheduleFree",
                lr=0.1,
                weight_decay=0.1,
                warmup_steps=7,
                r=0.5,
                betas=(0.8, 0.9),
            ),
        ),
        (
            {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 7},
            schedule_free("AdamWScheduleFreeReference", lr=0.1, weight_decay=0.1, warmup_steps=7),
        ),
    ],
    "Prodigy": [
        (arguments, lambda p, arguments=arguments: peer("prodigyopt").Prodigy(p, **arguments))
        for arguments in (
            {},
            {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": True, "d_coef": 0.5},
            {"weight_decay": 0.1, "decouple": False, "safeguard_warmup": True, "lr": 0.5},
            {"growth_rate": 1.5, "beta3": 0.9, "d0": 1e-3},
        )
    ],
    "DAdaptAdam": [
        (arguments, lambda p, arguments=arguments: peer("dadaptation").DAdaptAdam(p, **arguments))
        for arguments in (
            {"lr": 0.3},  # at 1 the path here is chaotic, and grows rounding to 1e-9
            {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": True, "betas": (0.9, 0.99)},
            {"weight_decay": 0.1, "decouple": True, "lr": 0.5, "growth_rate": 1.5},
        )
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [(name, *case) for name, cases in PEERS.items() for case in cases],
)
def test_other_packages(name, arguments, make):
    ours, memories = follow(name, arguments, name in MATRICES)
    path, optimizer = follow_torch(make, name in MATRICES)
    assert gap(ours, path) < LOOSER.get(name, 1e-12)
    if name.startswith("ScheduleFree"):
        optimizer.eval()  # to x
        parameters = optimizer.param_groups[0]["params"]
        assert gap([[s["x"] for s in memories]], [[p.detach() for p in parameters]]) < 1e-12


OPTAX = {
    "AdamW": (
        {"lr": 0.1, "weight_decay": 0.02, "decay_by_lr": False},
        lambda o: o.chain(o.scale_by_adam(), o.scale(-0.1), o.add_decayed_weights(-0.02)),
    ),
    # The schedule of mu away, as optax and Keras have it.
    "NAdam": ({"lr": 0.1, "momentum_decay": inf}, lambda o: o.nadam(0.1)),
    # Its eps is beside the corrected root.
    "RAdam": ({"lr": 0.1, "eps": 1e-30}, lambda o: o.radam(0.1, eps=1e-30)),
    "Adamax": ({"lr": 0.1, "eps": 0.1}, lambda o: o.adamax(0.1, eps=0.1)),
    "Lion": ({"lr": 0.1, "weight_decay": 0.1}, lambda o: o.lion(0.1, weight_decay=0.1)),
    "AdEMAMix": (
        {"lr": 0.1, "alpha_warmup": 20, "weight_decay": 0.1},
        lambda o: o.contrib.ademamix(
            0.1, alpha=lambda t: ((t.astype(float) + 1) / 10).clip(max=2), weight_decay=0.1
        ),
    ),
    "ADOPT": ({"lr": 0.1}, lambda o: o.contrib.adopt(0.1)),
    "Signum": ({"lr": 0.1}, lambda o: o.signum(0.1)),
    "LARS": ({"nesterov": True, "lr": 30.0}, lambda o: o.lars(30.0, eps=1e-8, nesterov=True)),
    "Muon": (
        {"lr": 0.1, "nesterov": False},
        lambda o: optax_muon(o, nesterov=False),
    ),
    "LAMB": ({"lr": 0.1, "weight_decay": 0.1}, lambda o: o.lamb(0.1, weight_decay=0.1)),
    "ScheduleFreeSGD": (
        {"lr": 0.3, "weight_decay": 0.1},
        lambda o: o.contrib.schedule_free_sgd(0.3, weight_decay=0.1),
    ),
    "ScheduleFreeAdamW": (
        {"lr": 0.1, "weight_decay": 0.1},
        lambda o: o.contrib.schedule_free_adamw(0.1, weight_decay=0.1),
    ),
    "Prodigy": (
        {"use_bias_correction": True, "weight_decay": 0.1},
        lambda o: o.contrib.prodigy(1.0, weight_decay=0.1),
    ),
    "DAdaptAdam": (
        {"use_bias_correction": True, "decouple": True, "weight_decay": 0.1},
        lambda o: o.contrib.dadapt_adamw(1.0, weight_decay=0.1),
    ),
}


def optax_muon(optax, **arguments):
    # Its matrices are (in, out), torch's (out, in).
    shape = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    return optax.contrib.muon(
        0.1,
        ns_coeffs=(3.4445, -4.775, 2.0315),
        eps=1e-30,
        weight_decay=0.1,
        muon_weight_dimension_numbers=[shape] * 3,
        **arguments,
    )


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name):
    arguments, make = OPTAX[name]
    ours, _ = follow(name, arguments, name in MATRICES)
    theirs = follow_optax(make, name in MATRICES)
    assert gap(ours, theirs) < LOOSER.get(name, 1e-12)


def optax_path(make, matrices=False):
    return lambda: follow_optax(make, matrices)


def torch_path(make, matrices=False):
    return lambda: follow_torch(make, matrices)[0]


APART = {
    # optax puts 1 - b2 where the authors (and algorithm 1, whose betas are 1 - theirs) have b2.
    "optax.adan": ("Adan", {"lr": 0.1}, optax_path(lambda o: o.adan(0.1)), 1e-2, 1.0),
    # optax: the maximum of the corrected v.
    "optax.amsgrad": (
        "AdamW",
        {"lr": 0.1, "amsgrad": True, "weight_decay": 0.0, "betas": (0.8, 0.9)},
        optax_path(lambda o: o.amsgrad(0.1, b1=0.8, b2=0.9)),
        1e-2,
        1.0,
    ),
    # optax and the paper: eps beside the root after its correction.
    "optax.radam's eps": (
        "RAdam",
        {"lr": 0.1, "eps": 1e-3},
        optax_path(lambda o: o.radam(0.1, eps=1e-3)),
        1e-4,
        1e-1,
    ),
    # It makes no step until the variance can be rectified, unless degenerated_to_sgd=True.
    "pytorch_optimizer.RAdam": (
        "RAdam",
        {"lr": 0.1, "eps": 1e-30},
        torch_path(more("RAdam", lr=0.1, eps=1e-30)),
        1e-2,
        1.0,
    ),
    # optax takes the step of the gradient before, and so none at first.
    "optax.rprop": ("Rprop", {"lr": 0.1}, optax_path(lambda o: o.rprop(0.1)), 1e-2, 1.0),
    # momentum_decay=0 halves mu instead of keeping it at beta1.
    "optax.nadam": (
        "NAdam",
        {"lr": 0.1, "momentum_decay": 0},
        optax_path(lambda o: o.nadam(0.1)),
        1e-2,
        1.0,
    ),
    # optax: trust ||x|| / ||g + wd x||.
    "optax.lars's weight decay": (
        "LARS",
        {"lr": 30.0, "weight_decay": 0.3, "eps": 0.0},
        optax_path(lambda o: o.lars(30.0, weight_decay=0.3)),
        1e-2,
        1.0,
    ),
    # optax corrects the bias of m and g by different steps before it mixes them.
    "optax.contrib.muon's nesterov": ("Muon", {"lr": 0.1}, optax_path(optax_muon, True), 1e-3, 1.0),
    # optax: the base optimizer's warm-up is a step behind that of the weights.
    "optax.contrib.schedule_free's warm-up": (
        "ScheduleFreeSGD",
        {"lr": 0.3, "warmup_steps": 7},
        optax_path(lambda o: o.contrib.schedule_free_sgd(0.3, warmup_steps=7)),
        1e-2,
        1.0,
    ),
    # The paper's algorithm 1: the correction in the rate.
    "schedulefree.AdamWScheduleFreePaper": (
        "ScheduleFreeAdamW",
        {"lr": 0.1},
        torch_path(schedule_free("AdamWScheduleFreePaper", lr=0.1)),
        1e-2,
        1.0,
    ),
    # The paper's warm-up of beta3 is without the authors' 1e-8 in the logarithm.
    "AdEMAMix's warm-up": (
        "AdEMAMix",
        {"lr": 0.1, "alpha_warmup": 20, "beta3_warmup": 20},
        torch_path(more("AdEMAMix", lr=0.1, alpha=2.0, t_alpha_beta3=20)),
        1e-11,
        1e-6,
    ),
    # Its bound is t^(1/4), a step ahead of the authors'.
    "pytorch_optimizer.ADOPT's bound": (
        "ADOPT",
        {"lr": 0.1},
        torch_path(more("ADOPT", lr=0.1)),
        1e-3,
        1.0,
    ),
    # It decays at the step that only sets v.
    "pytorch_optimizer.ADOPT's decay": (
        "ADOPT",
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "clip": False},
        torch_path(more("ADOPT", lr=0.1, weight_decay=0.1, weight_decouple=True, clip_lambda=None)),
        1e-4,
        1.0,
    ),
    # It corrects m, not v.
    "pytorch_optimizer.Lamb": (
        "LAMB",
        {"lr": 0.1, "bias_correction": False},
        torch_path(more("Lamb", lr=0.1)),
        1e-2,
        1.0,
    ),
    # moskomule's exponent; pytorch_optimizer has the paper's.
    "Shampoo's exponent": (
        "Shampoo",
        {"exponent": -0.5},
        torch_path(more("Shampoo", lr=0.1, matrix_eps=1e-4), True),
        1e-2,
        10.0,
    ),
    # It mixes the direction of the last step into the gradient.
    "pytorch_optimizer.Shampoo's momentum": (
        "Shampoo",
        {"epsilon": 0.1, "momentum": 0.5},
        torch_path(more("Shampoo", lr=0.1, matrix_eps=0.1, momentum=0.5)),
        1e-3,
        10.0,
    ),
    # It does not move before its third step, when it first takes roots.
    "pytorch_optimizer.Shampoo's frequency": (
        "Shampoo",
        {"epsilon": 0.1, "update_freq": 3},
        torch_path(more("Shampoo", lr=0.1, matrix_eps=0.1, preconditioning_compute_steps=3)),
        1e-3,
        10.0,
    ),
    # It factors QR in float32, as the authors do all of the preconditioner.
    "pytorch_optimizer.SOAP's QR": (
        "SOAP",
        {"lr": 0.1},
        torch_path(more("SOAP", lr=0.1)),
        1e-11,
        1e-4,
    ),
}


@pytest.mark.parametrize("case", APART)
def test_where_they_part(case):
    name, arguments, other, least, most = APART[case]
    theirs = other()
    ours, _ = follow(name, arguments, matrices=len(theirs[0]) == 3)
    assert least < gap(ours, theirs) < most


def follow_sam(adaptive):
    xs, path = start(), []
    for t in range(1, STEPS + 1):
        gs = sam_gradient(lambda xs, t=t: [gradient(x, t) for x in xs], xs, 0.3, adaptive)
        xs = [x - 0.1 * g for x, g in zip(xs, gs, strict=True)]
        path.append(xs)
    return path


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam(adaptive):
    parameters = [x.requires_grad_() for x in start()]
    optimizer = peer("pytorch_optimizer").SAM(
        parameters, torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1
    )
    path = []
    for t in range(1, STEPS + 1):

        def fill(t=t):
            for p in parameters:
                p.grad = gradient(p.detach(), t)

        fill()
        optimizer.step(fill)
        path.append([p.detach().clone() for p in parameters])
    assert gap(follow_sam(adaptive), path) < 1e-7  # its norm is summed in float32


def test_optaxs_sam():
    jax, optax = peer("jax"), peer("optax")
    with jax.enable_x64(True):
        xs = [jax.numpy.asarray(x.numpy()) for x in start()]
        up = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
        sam = optax.contrib.sam(optax.sgd(0.1), up, opaque_mode=True)
        state, path = sam.init(xs), []
        for t in range(1, STEPS + 1):

            def slopes(xs, _, t=t):
                return [0.4 * x + jax.numpy.sin(x + 0.7 * t) for x in xs]

            updates, state = sam.update(slopes(xs, 0), state, xs, grad_fn=slopes)
            xs = optax.apply_updates(xs, updates)
            path.append([torch.from_numpy(np.array(x)) for x in xs])
    assert gap(follow_sam(False), path) < 1e-11  # without the 1e-12


@pytest.mark.parametrize("arguments", [{}, {"k": 3, "alpha": 0.8}])
def test_lookahead(arguments):
    def make(p):
        return peer("pytorch_optimizer").Lookahead(torch.optim.Adamax(p, lr=0.1), **arguments)

    xs, path = start(), []
    inner, slow = [{} for _ in xs], [{} for _ in xs]
    for t in range(1, STEPS + 1):
        for i, x in enumerate(xs):
            after = NAMES["Adamax"](x, gradient(x, t), inner[i], t, lr=0.1)
            xs[i] = lookahead(x, after, slow[i], t, **arguments)
        path.append(list(xs))
    assert gap(path, follow_torch(make)[0]) < 1e-12


def test_shampoo_takes_roots_every_few_steps():
    x = torch.zeros(3, 3)
    g = start(matrices=True)[1]
    s, moves = {}, []
    for t in range(1, 8):
        moves.append(-NAMES["Shampoo"](x, g, s, t, lr=1.0, epsilon=1e-12, update_freq=3))
    assert all(torch.equal(moves[i], moves[i + 1]) for i in (0, 1, 3, 4))
    # After t equal gradients both sides are t times those of one, and each is taken to -1/4.
    for t in (1, 4, 7):
        assert torch.allclose(moves[t - 1] * t**0.5, moves[0], atol=1e-8)
