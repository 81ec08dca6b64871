"""Loss and slope at the initial weights against plain autograd, and weights that are kept."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.replicas import models
from thalweg import rules
from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Budget, Replica, at_start, start, train

SEEDS = [4, 0, 7]


def by_hand(task, seed, samples=None):
    torch.manual_seed(seed)
    model = task.model()
    x, y = task.train.x, task.train.y
    if samples is not None:
        x, y = x[samples], y[samples]
    loss = task.loss.of(model(x), y)
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    return loss.item(), norm.item()


@pytest.mark.parametrize("model", [models.mlp, models.batch_norm, models.Branches, models.Tied])
def test_at_start_is_plain_autograd(model):
    task = models.task(model)
    losses, norms = at_start(task, SEEDS)
    expected = np.array([by_hand(task, seed) for seed in SEEDS])
    # float32 sums of 96 samples in another order.
    np.testing.assert_allclose(losses, expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(norms, expected[:, 1], rtol=1e-5)


class Wary(nn.Module):
    """Looks at values, which vmap cannot follow, without any effect."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        out = self.layer(x)
        if out.isnan().any():
            raise ValueError("nothing is learnt from NaN")
        return out


@pytest.mark.parametrize("model", [models.mlp, Wary])
def test_in_unequal_batches_it_is_the_same(model, monkeypatch):
    task = models.task(model)
    whole = at_start(task, SEEDS)
    monkeypatch.setattr(start, "piece", lambda split, replicas, samples: 40)  # 40, 40, 16
    for found, expected in zip(at_start(task, SEEDS), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_of_a_large_set_it_takes_a_part(monkeypatch):
    task = models.task(models.mlp)
    monkeypatch.setattr(start, "SAMPLES", 10)
    chosen = torch.randperm(96, generator=torch.Generator().manual_seed(0))[:10]
    losses, norms = at_start(task, [3])
    assert (losses[0], norms[0]) == pytest.approx(by_hand(task, 3, chosen), rel=1e-5)


@pytest.mark.parametrize("model", [models.mlp, models.batch_norm, models.dropout])
@pytest.mark.parametrize("name", ["sgd", "schedulefreeadamw"])
def test_kept_weights_are_those_that_were_evaluated(model, name):
    task = models.task(model)
    rule = OPTIMIZERS[name].rule
    team = [Replica(rule, rule.complete({"lr": lr}), 1) for lr in (1e30, 0.01, 0.02, 0.03)]
    budget = Budget(steps=15, batch_size=16, steps_per_epoch=6)
    *before, last = train(task, team, budget, keep=[0, 1, 3])
    assert all(not e.weights for e in before)
    assert set(last.weights) <= {0, 1, 3}
    assert {1, 3} <= set(last.weights)
    for replica in (1, 3):
        module = task.model()
        module.load_state_dict(last.weights[replica])
        outputs = module.eval()(task.validation.x)
        place = last.replicas.tolist().index(replica)
        loss = task.loss.of(outputs, task.validation.y).item()
        assert loss == pytest.approx(last.validation_loss[place], rel=1e-5)


def test_one_by_one_keeps_weights_too():
    task = models.task(models.Branches)
    alone = [Replica(rules.SGD, rules.SGD.complete({"lr": 0.1}), 1)]
    budget = Budget(steps=12, batch_size=16, steps_per_epoch=6)
    *_, last = train(task, alone, budget, backend="one by one", keep=[0])
    assert set(last.weights[0]) == {"layer.weight", "layer.bias"}
