"""The same replicas in JAX: optax under jit(vmap(scan))."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.measure import Row, alternate, seconds, shown
from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Budget, Programs, Replica, train
from thalweg.tasks import load

SEEDS = (0, 1)
EPOCHS = 10

RULES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "nag": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adagrad": lambda lr: optax.adagrad(lr, initial_accumulator_value=0.0, eps=1e-10),
    "rmsprop": lambda lr: optax.rmsprop(lr, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    "adadelta": lambda lr: optax.adadelta(lr, rho=0.9, eps=1e-6),
    "adam": optax.adam,
}


def _rates(name: str) -> np.ndarray:
    return np.geomspace(*OPTIMIZERS[name].lr_range, 9)[:7]


def _weights(seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return [jnp.asarray(p.detach().numpy()) for p in load("digits").model().parameters()]


def _orders(seed: int, budget: Budget) -> Any:
    generator = torch.Generator().manual_seed(seed)
    kept = budget.steps_per_epoch * budget.batch_size
    epochs = budget.steps // budget.steps_per_epoch
    draws = [torch.randperm(len(load("digits").train), generator=generator) for _ in range(epochs)]
    return jnp.asarray(torch.stack(draws)[:, :kept].reshape(epochs, -1, budget.batch_size).numpy())


def _loss(weights: list[Any], x: Any, y: Any) -> Any:
    outputs = _outputs(weights, x)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def _outputs(weights: list[Any], x: Any) -> Any:
    for w, b in zip(weights[0:4:2], weights[1:4:2], strict=True):
        x = jax.nn.relu(x @ w.T + b)
    return x @ weights[4].T + weights[5]


def _compiled(name: str) -> Callable[..., Any]:
    """All rates and seeds of a rule: weights and orders to validation accuracy and loss."""
    task = load("digits")
    x, y, vx, vy = (
        jnp.asarray(t.numpy())
        for t in (task.train.x, task.train.y, task.validation.x, task.validation.y)
    )

    def run(lr: Any, weights: list[Any], orders: Any) -> Any:
        rule = RULES[name](lr)

        def step(carry: Any, index: Any) -> Any:
            weights, state = carry
            loss, gradients = jax.value_and_grad(_loss)(weights, x[index], y[index])
            updates, state = rule.update(gradients, state, weights)
            return (optax.apply_updates(weights, updates), state), loss

        def epoch(carry: Any, order: Any) -> Any:
            carry, losses = jax.lax.scan(step, carry, order)
            outputs = _outputs(carry[0], vx)
            accuracy = (outputs.argmax(-1) == vy).mean()
            return carry, (losses.mean(), _loss(carry[0], vx, vy), accuracy)

        return jax.lax.scan(epoch, (weights, rule.init(weights)), orders)[1]

    return jax.jit(jax.vmap(jax.vmap(run, in_axes=(0, None, None)), in_axes=(None, 0, 0)))


def jax_rows() -> list[Row]:
    """Seven rules, seven rates, two seeds, ten epochs: compiling counted, and without."""
    task = load("digits")
    per_epoch = len(task.train) // 32
    budget = Budget(EPOCHS * per_epoch, 32, per_epoch)
    weights = jax.tree.map(lambda *w: jnp.stack(w), *[_weights(s) for s in SEEDS])
    orders = jnp.stack([_orders(s, budget) for s in SEEDS])
    replicas = [
        Replica(entry.rule, entry.rule.complete({"lr": float(lr)}), seed)
        for name, entry in OPTIMIZERS.items()
        for seed in SEEDS
        for lr in _rates(name)
    ]

    def ours(programs: Programs | None = None) -> np.ndarray:
        accuracy = np.full(len(replicas), np.nan)
        for evaluation in train(task, replicas, budget, programs=programs):
            accuracy[evaluation.replicas] = evaluation.validation_metric
        return accuracy

    compiled = {name: _compiled(name) for name in OPTIMIZERS}

    def theirs(functions: dict[str, Callable[..., Any]]) -> np.ndarray:
        found = [
            np.asarray(f(jnp.asarray(_rates(n), jnp.float32), weights, orders)[2])[:, :, -1]
            for n, f in functions.items()
        ]
        return np.concatenate([f.ravel() for f in found])

    first_theirs = seconds(lambda: theirs(compiled))
    first_ours = seconds(ours)
    a, b = ours(), theirs(compiled)
    agree = np.nanmedian(np.abs(a - b))
    if agree > 0.02:
        raise AssertionError(f"not the same work: accuracies differ by {agree:.3f}")
    programs: Programs = {}
    found = alternate(
        {"thalweg": lambda: ours(programs), "jax": lambda: theirs(compiled)}, rounds=5
    )
    what = f"{len(replicas)} replicas, {EPOCHS} epochs"
    return [
        Row(
            f"{what}, first call: tracing and compiling counted",
            shown(first_ours),
            shown(first_theirs),
            first_theirs / first_ours,
            "≥ 1",
        ),
        Row(
            f"{what}, after compiling",
            shown(found["thalweg"]),
            shown(found["jax"]),
            found["jax"] / found["thalweg"],
            "≥ 1",
        ),
    ]
