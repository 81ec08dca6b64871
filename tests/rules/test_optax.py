"""Conventions that optax uses, against optax, in float64."""

import numpy as np
import pytest

from thalweg import rules
from thalweg.kernels.reference import descend

optax = pytest.importorskip("optax")
jax = pytest.importorskip("jax")

START = np.array([0.3, -1.7, 4.0])
STEPS = 100


def gradient(x):
    return 0.4 * x + np.sin(x)


def follow(transformation):
    with jax.enable_x64(True):
        x = jax.numpy.asarray(START)
        state = transformation.init(x)
        path = [START]
        for _ in range(STEPS):
            g = jax.numpy.asarray(gradient(np.asarray(x)))
            updates, state = transformation.update(g, state, x)
            x = optax.apply_updates(x, updates)
            path.append(np.asarray(x))
    return np.stack(path)


CASES = {
    "adam": (lambda: optax.adam(0.1), rules.ADAM, {"lr": 0.1}),
    "adam eps_root": (
        lambda: optax.adam(0.1, eps=1e-5, eps_root=1e-3),
        rules.ADAM,
        {"lr": 0.1, "eps": 1e-5, "eps_root": 1e-3},
    ),
    "momentum": (
        lambda: optax.sgd(0.05, momentum=0.9),
        rules.MOMENTUM,
        {"lr": 0.05},
    ),
    "nesterov": (
        lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
        rules.NAG,
        {"lr": 0.05},
    ),
    "adagrad": (
        lambda: optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-4),
        rules.ADAGRAD,
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-4, "eps_in_sqrt": True},
    ),
    "rmsprop eps in sqrt": (
        lambda: optax.rmsprop(0.01, decay=0.9, eps=1e-4),
        rules.RMSPROP,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-4, "eps_in_sqrt": True},
    ),
    "rmsprop eps outside": (
        lambda: optax.rmsprop(0.01, decay=0.9, eps=1e-4, eps_in_sqrt=False),
        rules.RMSPROP,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-4},
    ),
    "rmsprop starting at 1": (
        lambda: optax.rmsprop(0.01, decay=0.9, initial_scale=1.0, eps_in_sqrt=False),
        rules.RMSPROP,
        {"lr": 0.01, "alpha": 0.9, "initial_accumulator_value": 1.0},
    ),
    "rmsprop centered": (
        lambda: optax.rmsprop(0.01, decay=0.9, eps=1e-4, centered=True),
        rules.RMSPROP,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-4, "eps_in_sqrt": True, "centered": True},
    ),
    "rmsprop momentum": (
        lambda: optax.rmsprop(0.01, decay=0.9, eps=1e-4, momentum=0.9),
        rules.RMSPROP,
        {
            "lr": 0.01,
            "alpha": 0.9,
            "eps": 1e-4,
            "eps_in_sqrt": True,
            "momentum": 0.9,
            "lr_in_momentum": True,
        },
    ),
    "adadelta": (
        lambda: optax.adadelta(1.0, rho=0.9, eps=1e-4),
        rules.ADADELTA,
        {"rho": 0.9, "eps": 1e-4},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_same_path_as_optax(case):
    make, rule, hyper = case
    ours = descend(rule, START, gradient, STEPS, **hyper)
    assert np.abs(ours - follow(make())).max() < 1e-12
    assert np.abs(ours[-1] - START).max() > 1e-2
