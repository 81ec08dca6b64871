"""The known case of `examples/plateau.py`, trained on real digits."""

import importlib.util
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg

EXAMPLE = Path(__file__).parents[2] / "examples" / "plateau.py"
EPOCHS, SEEDS = 200, 2


@pytest.fixture(scope="module")
def plateau():
    spec = importlib.util.spec_from_file_location("plateau", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradient(task, seed):
    """Norm at the start, in float64, and the start's accuracy and sureness."""
    torch.manual_seed(seed)
    model = task.model().double()
    outputs = model(task.train.x.double())
    parts = torch.autograd.grad(task.loss.of(outputs, task.train.y), list(model.parameters()))
    shares = outputs.softmax(-1).detach()
    right = (shares.argmax(-1) == task.train.y).double().mean().item()
    norm = torch.cat([p.ravel() for p in parts]).norm().item()
    return norm, right, shares.amax(-1).mean().item()


def accuracies(task, loss, rates, epochs=EPOCHS):
    """Test accuracy by optimizer and learning rate, a mean over seeds; NaN where one diverged."""
    found = thalweg.study(
        task.with_loss(loss), list(rates), lr=rates, seeds=SEEDS, epochs=epochs,
        batch_size=len(task.train),
    )  # fmt: skip
    return found.runs.groupby(["optimizer", "lr"])["test_metric"].agg(
        lambda m: m.mean(skipna=False)
    )


@pytest.mark.parametrize("seed", range(5))
def test_gradients_at_the_start(plateau, seed):
    task = plateau.task()
    norms = {}
    for loss in ("cross_entropy", "mse"):
        norms[loss], right, sure = gradient(task.with_loss(loss), seed)
        # All images are zeros to it, as 107 of the 1077 are.
        assert right == pytest.approx(0.1, abs=0.005)
        assert sure > 1 - 1e-5
    # p - y for the bias of the zero is 1 for the nine images in ten that are none.
    assert norms["cross_entropy"] > 0.9
    # The squared error's: 2/10 of p0 (sum of the other p, and the true one once more), with the
    # other p exp(-15) each but for initial weights, which move logits by less than 1.
    one = 0.2 * 0.9 * 10 * exp(-15)
    assert one / exp(1) < norms["mse"] < 5 * one * exp(1)
    assert norms["cross_entropy"] > 1e5 * norms["mse"]


def test_squared_error_stays_on_the_plateau_and_adam_leaves_it(plateau):
    task = plateau.task()
    # Measured at 300 steps and 5 seeds: 0.966 and 0.964 with an interval of 0.01.
    crossed = accuracies(task, "cross_entropy", {"sgd": [0.1, 0.3]})
    assert crossed.max() > 0.9
    rates = np.logspace(-3, 6, 10).tolist()
    squared = accuracies(task, "mse", {"sgd": rates, "adam": [0.003, 0.01]})
    # Where nothing was learned it is the share of zeros, or of another class: at most 0.105 of
    # the test images. One batch that ends elsewhere by chance would still be far below half.
    assert len(squared["sgd"]) == 10
    assert squared["sgd"].notna().all()
    assert squared["sgd"].max() < 0.25
    assert squared["adam"].max() > 0.9


def test_not_every_bad_start_is_a_plateau(plateau):
    task = plateau.large_weights()
    for seed in range(2):
        norm, right, sure = gradient(task.with_loss("mse"), seed)
        assert right < 0.15
        assert sure > 0.5
        assert norm > 0.05
    # At the same small rate squared error lags far behind; at its own it arrives.
    crossed = accuracies(task, "cross_entropy", {"sgd": [0.01]})
    squared = accuracies(task, "mse", {"sgd": [0.01, 3.0]})
    assert crossed["sgd", 0.01] > 0.9
    assert squared["sgd", 0.01] < 0.6
    assert squared["sgd", 3.0] > 0.9


def test_starts_follow_the_seed_and_are_tasks_of_their_own(plateau):
    task = plateau.task()
    torch.manual_seed(5)
    first = task.model().state_dict()
    torch.manual_seed(5)
    again = task.model().state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert task.batch_size == len(task.train) == 1077
    starts = {task.fingerprint, plateau.large_weights().fingerprint}
    assert len(starts | {task.with_loss("mse").fingerprint}) == 3
