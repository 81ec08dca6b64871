"""The replicas of ``replicas.py`` in JAX: optax under jit(vmap(scan))."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

from benchmarks.replicas import BUDGET, EPOCHS, SEEDS, TASK, rates
from thalweg.optim.registry import MAIN

RULES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "nag": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adagrad": lambda lr: optax.adagrad(lr, initial_accumulator_value=0.0, eps=1e-10),
    "rmsprop": lambda lr: optax.rmsprop(lr, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    "adadelta": lambda lr: optax.adadelta(lr, rho=0.9, eps=1e-6),
    "adam": optax.adam,
}


def _weights(seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return [jnp.asarray(p.detach().numpy()) for p in TASK.model().parameters()]


def _orders(seed: int) -> Any:
    """Indices of the samples of every batch, ``(epochs, steps, batch)``."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(TASK.train), generator=generator) for _ in range(EPOCHS)]
    kept = BUDGET.steps_per_epoch * BUDGET.batch_size
    return jnp.asarray(torch.stack(draws)[:, :kept].reshape(EPOCHS, -1, BUDGET.batch_size).numpy())


def _outputs(weights: list[Any], x: Any) -> Any:
    for w, b in zip(weights[0:4:2], weights[1:4:2], strict=True):
        x = jax.nn.relu(x @ w.T + b)
    return x @ weights[4].T + weights[5]


def _loss(weights: list[Any], x: Any, y: Any) -> Any:
    outputs = _outputs(weights, x)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def _jitted(name: str) -> Callable[..., Any]:
    """All seeds and rates of a rule: losses and accuracy after each epoch."""
    x, y, vx, vy = (
        jnp.asarray(t.numpy())
        for t in (TASK.train.x, TASK.train.y, TASK.validation.x, TASK.validation.y)
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


def jax_trainer() -> Callable[[], NDArray[np.float64]]:
    """A call that trains them; compiled at the first.

    It returns validation accuracy at the end, ``(optimizers, seeds, rates)``.
    """
    weights = jax.tree.map(lambda *w: jnp.stack(w), *[_weights(s) for s in SEEDS])
    orders = jnp.stack([_orders(s) for s in SEEDS])
    compiled = {name: _jitted(name) for name in MAIN}

    def train() -> NDArray[np.float64]:
        results = [
            f(jnp.asarray(rates(name), jnp.float32), weights, orders)
            for name, f in compiled.items()
        ]
        return np.stack([np.asarray(r[2])[:, :, -1] for r in results])

    return train
