"""The formulas of papers.py against other implementations, step by step in float64.

Where an implementation computes something else, test_where_they_part says what and how much.
"""

from math import inf

import numpy as np
import pytest
import torch

from .papers import JOINT, NAMES, lookahead, sam_gradient

STEPS = 40


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
        if name in JOINT:
            xs = JOINT[name](xs, gs, memories[0], t, **arguments)
        else:
            xs = [
                NAMES[name](x, g, s, t, **arguments)
                for x, g, s in zip(xs, gs, memories, strict=True)
            ]
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
    jax, optax = (pytest.importorskip(name) for name in ("jax", "optax"))
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
    away = [sum(float((x - x0).abs().max()) for x, x0 in zip(xs, first, strict=True)) for xs in path]
    apart = [max(float((x - y).abs().max()) for x, y in zip(*xs, strict=True)) for xs in zip(path, other, strict=True)]
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
        {"beta2_decay": -0.5, "eps": (0.1, 1e-2), "d": 0.5, "weight_decay": 0.1},
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
    assert gap(ours, other()) < 1e-12


def peer(module):
    return pytest.importorskip(module)


def more(name, **arguments):
    """A class of pytorch_optimizer."""
    return lambda p: getattr(peer("pytorch_optimizer"), name)(p, **arguments)


def schedule_free(name, **arguments):
    return lambda p: getattr(peer("schedulefree"), name)(p, **arguments)


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
            more(
                "ADOPT", lr=0.1, betas=(0.8, 0.95), eps=0.3, clip_lambda=None, maximize=True
            ),
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
        # Its ratio divides by ||r|| + eps, and it takes no norm of x above 10.
        (
            {"lr": 0.1, "eps": 1e-30, "weight_decay": 0.1, "bias_correction": False},
            more("Lamb", lr=0.1, eps=1e-30, weight_decay=0.1, weight_decouple=False),
        ),
    ],
    "Shampoo": [
        ({}, more("Shampoo", lr=0.1, matrix_eps=1e-4)),
        (
            {"momentum": 0.9, "weight_decay": 0.1, "epsilon": 0.1, "maximize": True},
            more("Shampoo", lr=0.1, momentum=0.9, weight_decay=0.1, matrix_eps=0.1, maximize=True),
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
            schedule_free(
                "AdamWScheduleFreeReference", lr=0.1, weight_decay=0.1, warmup_steps=7
            ),
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
            {},
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
    ours, memories = follow(name, arguments)
    path, optimizer = follow_torch(make)
    assert gap(ours, path) < 1e-12
    if name.startswith("ScheduleFree"):
        optimizer.eval()  # to x
        parameters = optimizer.param_groups[0]["params"]
        assert gap([[s["x"] for s in memories]], [[p.detach() for p in parameters]]) < 1e-12


OPTAX = {
    "AdamW": ({"lr": 0.1}, lambda o: o.adamw(0.1, weight_decay=0.01)),
    # The schedule of mu away, as optax and Keras have it.
    "NAdam": ({"lr": 0.1, "momentum_decay": inf}, lambda o: o.nadam(0.1)),
    "Adamax": ({"lr": 0.1, "eps": 0.1}, lambda o: o.adamax(0.1, eps=0.1)),
    "Lion": ({"lr": 0.1, "weight_decay": 0.1}, lambda o: o.lion(0.1, weight_decay=0.1)),
    "AdEMAMix": (
        {"lr": 0.1, "weight_decay": 0.1},
        lambda o: o.contrib.ademamix(0.1, alpha=2.0, weight_decay=0.1),
    ),
    "ADOPT": ({"lr": 0.1}, lambda o: o.contrib.adopt(0.1)),
    "Signum": ({"lr": 0.1}, lambda o: o.signum(0.1)),
    # The weight decay's norm is inside that of the whole there, so only without.
    "LARS": ({"nesterov": True, "lr": 30.0}, lambda o: o.lars(30.0, eps=1e-8, nesterov=True)),
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


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name):
    arguments, make = OPTAX[name]
    assert gap(follow(name, arguments)[0], follow_optax(make)) < 1e-12
