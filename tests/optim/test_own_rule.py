"""A rule defined here: reference, kernel, tensors, and training a network as an optimizer."""

import copy

import numpy as np
import pytest
import torch

from tests.kernels.executors import by_kernel, by_reference, by_tensors, gap, start
from tests.optim.digits import distance, loss_of, network, train
from thalweg.optim import from_rule
from thalweg.rules import HyperparameterError, Number, Rule
from thalweg.rules.maths import sign


def _sign_of_average_coefficients(hyper, step):
    lr = hyper["lr"] / (1 + hyper["decay"] * (step - 1))
    return lr, hyper["beta"], 1 - hyper["beta"]


def _sign_of_average(p, g, m, lr, keep, gain):
    m = keep * m + gain * g
    return p - lr * sign(m), m


OWN = Rule(
    "sign of average",
    (
        Number("lr", 1e-3, low=0.0),
        Number("beta", 0.9, low=0.0, high=1.0, high_open=True),
        Number("decay", 0.01, low=0.0),
    ),
    ("average",),
    _sign_of_average_coefficients,
    _sign_of_average,
)
Own = from_rule(OWN, "Own")


@pytest.mark.parametrize("executor", [by_kernel, by_tensors])
def test_executors_agree(executor):
    p, g, state = start(OWN, (7, 300))
    hyper = OWN.complete({"lr": 0.1, "weight_decay": 0.01})
    expected, _ = by_reference(OWN, p, g, state, hyper, 5)
    assert gap(executor(OWN, p, g, state, hyper, 5)[0], expected) < 1e-14


def test_it_trains_a_network():
    model = network(torch.float32)
    optimizer = Own(model.parameters(), lr=1e-3, beta=0.8)
    first = loss_of(model, 0).item()
    train(model, optimizer, 112)
    assert loss_of(model, 0).item() < 0.5 * first
    assert len(optimizer._plan.batches) == 1
    assert not optimizer._plan.others


def test_it_follows_the_formula():
    ours, theirs = network(), network()
    train(ours, Own(ours.parameters(), lr=0.01, beta=0.8, weight_decay=0.1), 30)
    averages = [torch.zeros_like(p) for p in theirs.parameters()]
    for step in range(30):
        theirs.zero_grad()
        loss_of(theirs, step).backward()
        with torch.no_grad():
            for p, m in zip(theirs.parameters(), averages, strict=True):
                m.mul_(0.8).add_(0.2 * (p.grad + 0.1 * p))
                p -= 0.01 / (1 + 0.01 * step) * m.sign()
    assert distance(ours, theirs) < 1e-12


def test_copies_and_checkpoints_keep_the_rule():
    model = network()
    optimizer = Own(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    other, its = copy.deepcopy((model, optimizer))
    fresh = copy.deepcopy(model)
    loaded = Own(fresh.parameters())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, its), (fresh, loaded)):
        train(m, o, 3, first=3)
    assert distance(other, model) == distance(fresh, model) == 0.0


def test_its_hyperparameters_are_checked():
    p = [torch.zeros(2)]
    with pytest.raises(HyperparameterError, match="Own: beta must be in"):
        Own(p, beta=1.0)
    with pytest.raises(
        TypeError, match="Own: there is no argument 'bta'; it takes params, lr, beta"
    ):
        Own(p, bta=0.9)


def test_a_rule_that_closes_over_a_value():
    def made(scale):
        return Rule(
            "scaled",
            (Number("lr", 1.0),),
            (),
            lambda hyper, step: (hyper["lr"],),
            lambda p, g, lr: (p - scale * lr * g,),
        )

    for scale in (2.0, 3.0):
        p = torch.ones(3, dtype=torch.float64)
        p.grad = torch.ones_like(p)
        from_rule(made(scale))([p], lr=0.25).step()
        np.testing.assert_array_equal(p, 1 - scale / 4)
