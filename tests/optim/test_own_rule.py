"""A rule defined here: reference, kernel, tensors, and training a network as an optimizer."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import thalweg
from tests.kernels.executors import by_kernel, by_reference, by_tensors, gap, start
from tests.optim.digits import distance, loss_of, network, train
from thalweg.kernels import cpu
from thalweg.optim import define, from_rule
from thalweg.rules import HyperparameterError, Number, Rule
from thalweg.rules.maths import absolute, sign


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


@define(lr=1e-3, beta=0.9)
def FiveLines(p, g, average, lr, beta, step):
    average = beta * average + (1 - beta) * g
    return p - lr / step**0.5 * sign(average), average


def test_five_lines_are_an_optimizer_that_trains_saves_resumes_and_is_studied(tmp_path):
    model, whole = network(torch.float32), network(torch.float32)
    train(whole, FiveLines(whole.parameters(), lr=0.01), 40)
    first = FiveLines(model.parameters(), lr=0.01)
    train(model, first, 20)
    torch.save((model.state_dict(), first.state_dict()), tmp_path / "checkpoint")
    weights, state = torch.load(tmp_path / "checkpoint", weights_only=True)
    again = network(torch.float32, seed=1)
    again.load_state_dict(weights)
    second = FiveLines(again.parameters())
    second.load_state_dict(state)
    assert type(pickle.loads(pickle.dumps(second))) is FiveLines
    train(again, second, 20, first=20)
    assert distance(again, whole) == 0.0
    averages = [torch.zeros_like(p) for p in model.parameters()]
    by_hand = network(torch.float32)
    for step in range(40):
        by_hand.zero_grad()
        loss_of(by_hand, step).backward()
        with torch.no_grad():
            for p, m in zip(by_hand.parameters(), averages, strict=True):
                m.mul_(0.9).add_(0.1 * p.grad)
                p -= 0.01 / (step + 1) ** 0.5 * m.sign()
    # A sign that rounding turned moves a weight by twice the rate.
    assert distance(whole, by_hand) < 0.02
    result = thalweg.study("wine", [FiveLines, "adam"], lr="1e-3:1e-1:3", seeds=2, epochs=5)
    assert set(result.summary["optimizer"]) == {"fivelines", "adam"}
    assert (result.summary["test_metric"] > 0.8).all()


SOFTLY = 0.1


def blend(old, new, keep):
    return keep * old + (1 - keep) * new


def bent(x):
    return x / (absolute(x) + SOFTLY)


@define(lr=1e-3, beta=0.9)
def Helped(p, g, average, lr, beta):
    average = blend(average, g, beta)
    return p - lr * bent(average), average


@define(lr=1e-3, beta=0.9)
def WrittenOut(p, g, average, lr, beta):
    average = beta * average + (1 - beta) * g
    return p - lr * (average / (absolute(average) + 0.1)), average


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_rule_may_call_functions_of_its_module(dtype):
    models = []
    for made in (Helped, WrittenOut):
        model = network(dtype)
        optimizer = made(model.parameters(), lr=0.01)
        train(model, optimizer, 10)
        assert len(optimizer._plan.batches) == 1
        assert not optimizer._plan.others
        models.append(model)
    assert distance(*models) == 0.0
    assert cpu._fingerprint(Helped.rule.update) is not None  # kept on disk


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda p, g, m: (p, m), "it does not take 'lr'"),
        (lambda p, g, lr, m: (p, m), "must be p, g, state, then hyperparameters"),
        (lambda p, lr: (p,), "must be p, g, state, then hyperparameters"),
        (lambda p, g, lr: p - lr * g, r"must return \(p,\), and returns a ndarray"),
        (lambda p, g, m, lr: (p - lr * g,), r"must return \(p, m\), and returns 1 values"),
        (lambda p, g, m, lr: (p, m, m), r"must return \(p, m\), and returns 3 values"),
        (lambda p, g, lr: (None,), "the new p is no number an element: None"),
        (lambda p, g, lr: (torch.tanh(p),), "cannot be computed"),
        (lambda p, g, lr: (math.tanh(p),), "cannot be computed"),
        (lambda p, g, lr: (p - lr * unknown,), "name 'unknown' is not defined"),
        (lambda p, g, lr: (p if g > 0 else g,), r"where\(condition, a, b\) in place of if"),
        (lambda p, g, ema, lr: (p, ema), "a state cannot be named 'ema'"),
        (print, "it takes a function"),
    ],
)
def test_what_cannot_be_an_optimizer_is_said(function, problem):
    with pytest.raises(TypeError, match=problem):
        define(lr=0.1)(function)


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({}, "give the learning rate a default"),
        ({"lr": 0.1, "betas": (0.9, 0.99)}, r"\(0\.9, 0\.99\)"),
        ({"lr": 0.1, "clip_norm": 1.0}, "every optimizer has 'clip_norm' already"),
        ({"lr": 0.1, "state": 1.0}, "every optimizer has 'state' already"),
    ],
)
def test_defaults_that_make_no_optimizer_are_said(defaults, problem):
    with pytest.raises(TypeError, match=problem):
        define(**defaults)


def test_a_weight_decay_of_its_own_is_the_only_one():
    @define(lr=0.1, weight_decay=0.5)
    def Decays(p, g, lr, weight_decay):
        return (p * (1 - lr * weight_decay) - lr * g,)

    p = torch.ones(3, dtype=torch.float64)
    p.grad = torch.full_like(p, 0.5)
    Decays([p]).step()
    np.testing.assert_allclose(p, 1 - 0.05 - 0.05, rtol=1e-15)


def test_what_is_no_rule_is_said():
    with pytest.raises(TypeError, match="adam"):
        from_rule("adam")
    wrong = Rule("wrong", (Number("lr", 0.1),), (), lambda h, t: (), lambda p, g, lr: (p - lr * g,))
    with pytest.raises(TypeError, match="wrong: its function cannot be computed"):
        from_rule(wrong)
    with pytest.raises(ValueError, match="two states 'a'"):
        Rule("twice", (), ("a", "a"), lambda h, t: (), lambda p, g, a, b: (p, a, b))
