"""Gluon's Trainer: MXNet's formulas, retyped here in float64 NumPy, are the oracle.

From apache/mxnet 1.9, python/mxnet/optimizer/optimizer.py and src/operator/optimizer_op-inl.h, and
AdamW and LARS from 2.0, python/mxnet/optimizer/adamW.py and lars.py: each function takes the
weight, the gradient as it comes from the backward pass and the state, and returns the new weight.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.optim.ranks import Ranks
from thalweg import optim, schedules
from thalweg.train.arguments import FitError
from thalweg.train.trainer import Trainer

BATCH = 4
STEPS = 7


def clipped(g, rescale, clip):
    g = g * rescale
    return g if clip is None else np.clip(g, -clip, clip)


def sgd(w, g, s, t, *, learning_rate=0.01, momentum=0.0, wd=0.0, clip=None, rescale=1.0):
    s["mom"] = momentum * s.get("mom", 0.0) - learning_rate * (clipped(g, rescale, clip) + wd * w)
    return w + s["mom"]


def nag(w, g, s, t, *, learning_rate=0.01, momentum=0.0, wd=0.0, clip=None, rescale=1.0):
    g = clipped(g, rescale, clip) + wd * w
    s["mom"] = momentum * s.get("mom", 0.0) - learning_rate * g
    return w + momentum * s["mom"] - learning_rate * g


def adagrad(w, g, s, t, *, learning_rate=0.01, eps=1e-7, wd=0.0, clip=None, rescale=1.0):
    g = clipped(g, rescale, clip)
    s["history"] = s.get("history", 0.0) + g**2
    return w - learning_rate * (g / np.sqrt(s["history"] + eps) + wd * w)


def rmsprop(
    w, g, s, t, *, learning_rate=0.001, gamma1=0.9, gamma2=0.9, epsilon=1e-8, centered=False,
    wd=0.0, clip=None, rescale=1.0,
):  # fmt: skip
    g = clipped(g, rescale, clip) + wd * w
    s["n"] = (1 - gamma1) * g**2 + gamma1 * s.get("n", 0.0)
    if not centered:
        return w - learning_rate * g / np.sqrt(s["n"] + epsilon)
    s["g"] = (1 - gamma1) * g + gamma1 * s.get("g", 0.0)
    step = learning_rate * g / np.sqrt(s["n"] - s["g"] ** 2 + epsilon)
    s["delta"] = gamma2 * s.get("delta", 0.0) - step
    return w + s["delta"]


def adadelta(w, g, s, t, *, rho=0.9, epsilon=1e-5, wd=0.0, clip=None, rescale=1.0):
    g = clipped(g, rescale, clip)
    s["g"] = rho * s.get("g", 0.0) + (1 - rho) * g * g
    delta = np.sqrt(s.get("delta", 0.0) + epsilon) / np.sqrt(s["g"] + epsilon) * g
    s["delta"] = rho * s.get("delta", 0.0) + (1 - rho) * delta * delta
    return w - (delta + wd * w)


def corrected(t, learning_rate, beta1, beta2):
    return learning_rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)


def averaged(g, s, beta1, beta2):
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    return s["m"], s["v"]


def adam(
    w, g, s, t, *, learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, wd=0.0, clip=None,
    rescale=1.0,
):  # fmt: skip
    m, v = averaged(clipped(g, rescale, clip) + wd * w, s, beta1, beta2)
    return w - corrected(t, learning_rate, beta1, beta2) * m / (np.sqrt(v) + epsilon)


def adamw(w, g, s, t, *, learning_rate=0.001, epsilon=1e-6, clip=None, rescale=1.0):
    m, v = averaged(clipped(g, rescale, clip), s, 0.9, 0.999)
    return w - corrected(t, learning_rate, 0.9, 0.999) * m / (np.sqrt(v) + epsilon)


def adamax(w, g, s, t, *, learning_rate=0.002, beta1=0.9, beta2=0.999, wd=0.0, rescale=1.0):
    g = g * rescale + wd * w
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["u"] = np.maximum(beta2 * s.get("u", 0.0), np.abs(g))
    return w - learning_rate / (1 - beta1**t) * s["m"] / s["u"]


def nadam(
    w, g, s, t, *, learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, schedule_decay=0.004,
    wd=0.0, rescale=1.0,
):  # fmt: skip
    g = g * rescale + wd * w
    now = beta1 * (1 - 0.5 * 0.96 ** (t * schedule_decay))
    after = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * schedule_decay))
    s["schedule"] = s.get("schedule", 1.0) * now
    m, v = averaged(g, s, beta1, beta2)
    bar = (1 - now) * g / (1 - s["schedule"]) + after * m / (1 - s["schedule"] * after)
    return w - learning_rate * bar / (np.sqrt(v / (1 - beta2**t)) + epsilon)


def signum(w, g, s, t, *, learning_rate=0.01, momentum=0.9, wd=0.0, wd_lh=0.0, rescale=1.0):
    if momentum == 0:
        return (1 - learning_rate * wd) * w - learning_rate * np.sign(g)
    s["mom"] = momentum * s.get("mom", 0.0) - (1 - momentum) * (rescale * g + wd * w)
    return (1 - learning_rate * wd_lh) * w + learning_rate * np.sign(s["mom"])


def lamb(w, g, s, t, *, learning_rate=0.001, epsilon=1e-6, wd=0.0, clip=None, rescale=1.0):
    m, v = averaged(clipped(g, rescale, clip), s, 0.9, 0.999)
    step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + epsilon) + wd * w
    return w - learning_rate * np.linalg.norm(w) / np.linalg.norm(step) * step


def lars(
    w, g, s, t, *, learning_rate=0.1, momentum=0.0, eta=0.001, epsilon=1e-8, wd=0.0, rescale=1.0
):
    g = g * rescale
    size = np.linalg.norm(w)
    ratio = eta * size / (np.linalg.norm(g) + wd * size + epsilon)
    s["mom"] = momentum * s.get("mom", 0.0) - learning_rate * ratio * (g + wd * w)
    return w + s["mom"]


def gradients():
    """Of sums over batches, an entry so large that a bound on it is felt, ``(steps, 3, 2)``."""
    found = np.random.default_rng(0).normal(size=(STEPS, 3, 2))
    found[2, 0, 0] = 40.0
    return found


def by_mxnet(formula, rates=None, rescale=1 / BATCH, **hyper):
    w, state = np.random.default_rng(1).normal(size=(3, 2)), {}
    for t, g in enumerate(gradients(), 1):
        rate = {} if rates is None else {"learning_rate": rates[t - 1]}
        w = formula(w, g, state, t, rescale=rescale, **{**hyper, **rate})
    return w


def by_trainer(optimizer, hyper):
    p = nn.Parameter(torch.tensor(np.random.default_rng(1).normal(size=(3, 2))))
    trainer = Trainer([p], optimizer, hyper)
    for g in gradients():
        (p * torch.tensor(g)).sum().backward()
        trainer.step(BATCH)
    return p.detach().numpy()


CASES = [
    ("sgd", sgd, {}),
    ("sgd", sgd, {"learning_rate": 0.1, "wd": 0.02, "clip_gradient": 2.0}),
    ("sgd", sgd, {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.02, "clip_gradient": 2.0}),
    ("NAG", nag, {}),
    ("nag", nag, {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.02, "clip_gradient": 2.0}),
    ("AdaGrad", adagrad, {}),
    ("adagrad", adagrad, {"learning_rate": 0.1, "eps": 0.1, "wd": 0.02, "clip_gradient": 2.0}),
    ("RMSProp", rmsprop, {}),
    ("rmsprop", rmsprop, {"gamma1": 0.8, "epsilon": 0.1, "wd": 0.02}),
    ("rmsprop", rmsprop, {"centered": True}),
    ("rmsprop", rmsprop, {"centered": True, "gamma1": 0.8, "gamma2": 0.5, "clip_gradient": 2.0}),
    ("AdaDelta", adadelta, {}),
    ("adadelta", adadelta, {"rho": 0.8, "epsilon": 0.1, "wd": 0.02, "clip_gradient": 2.0}),
    ("adam", adam, {}),
    ("adam", adam, {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.1, "wd": 0.02}),
    ("adam", adam, {"beta2": 0.99, "clip_gradient": 2.0}),
    ("adamw", adamw, {}),
    ("adamw", adamw, {"learning_rate": 0.1, "epsilon": 0.1, "clip_gradient": 2.0}),
    ("adamax", adamax, {}),
    ("adamax", adamax, {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9, "wd": 0.02}),
    ("nadam", nadam, {}),
    ("nadam", nadam, {"learning_rate": 0.1, "epsilon": 0.1, "schedule_decay": 0.5, "wd": 0.02}),
    ("signum", signum, {}),
    ("signum", signum, {"learning_rate": 0.1, "momentum": 0.5, "wd": 0.3}),
    ("signum", signum, {"momentum": 0.5, "wd_lh": 0.3}),
    ("signum", signum, {"momentum": 0.0, "wd": 0.3}),
    ("lamb", lamb, {}),
    ("lamb", lamb, {"learning_rate": 0.1, "epsilon": 0.1, "wd": 0.02, "clip_gradient": 2.0}),
    ("lars", lars, {}),
    ("lars", lars, {"momentum": 0.9, "eta": 0.1, "wd": 0.02}),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "formula", "hyper"), CASES)
def test_the_numbers_are_mxnets(optimizer, formula, hyper):
    theirs = {"clip" if name == "clip_gradient" else name: v for name, v in hyper.items()}
    np.testing.assert_allclose(
        by_trainer(optimizer, hyper), by_mxnet(formula, **theirs), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("optimizer", "formula"), [("sgd", sgd), ("nag", nag), ("rmsprop", rmsprop)]
)
def test_a_rate_that_changes_acts_where_it_does_in_mxnet(optimizer, formula):
    """The rate sits inside the momentum: what it was before still counts."""
    hyper = {"centered": True} if optimizer == "rmsprop" else {"momentum": 0.9}
    rates = [0.1 * 0.5 ** (n // 2) for n in range(1, STEPS + 1)]
    scheduled = {**hyper, "lr_scheduler": lambda n: 0.1 * 0.5 ** (n // 2)}
    np.testing.assert_allclose(
        by_trainer(optimizer, scheduled), by_mxnet(formula, rates, **hyper), rtol=1e-12
    )


def test_a_schedule_is_a_factor_on_the_learning_rate():
    schedule = schedules.cosine(STEPS)
    rates = [0.2 * schedule(t) for t in range(STEPS)]
    ours = by_trainer("sgd", {"learning_rate": 0.2, "momentum": 0.9, "lr_scheduler": schedule})
    np.testing.assert_allclose(ours, by_mxnet(sgd, rates, momentum=0.9), rtol=1e-12)


class FactorScheduler:
    """As in mxnet.lr_scheduler, where it keeps its rate in ``base_lr``."""

    def __init__(self, step, factor):
        self.base_lr, self.step, self.factor, self.count = 0.01, step, factor, 0

    def __call__(self, num_update):
        while num_update > self.count + self.step:
            self.count += self.step
            self.base_lr *= self.factor
        return self.base_lr


def test_mxnets_schedulers_are_given_the_learning_rate_and_count_from_1():
    rates = [0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05]
    scheduled = {"learning_rate": 0.2, "lr_scheduler": FactorScheduler(3, 0.5)}
    np.testing.assert_allclose(by_trainer("sgd", scheduled), by_mxnet(sgd, rates), rtol=1e-12)


def test_rescale_grad_comes_besides_the_batch_size():
    ours = by_trainer("adam", {"rescale_grad": 0.5, "epsilon": 0.1})
    theirs = by_mxnet(adam, rescale=0.5 / BATCH, epsilon=0.1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_thalwegs_own_names_and_optimizers_work_too():
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    trainer = Trainer({"q": q}, "lion", {"lr": 0.1, "beta2": 0.9, "weight_decay": 0.01})
    lion = optim.Lion([p], lr=0.1, betas=(0.9, 0.9), weight_decay=0.01)
    for _ in range(3):
        (p * torch.arange(3.0)).sum().backward()
        (q * torch.arange(3.0)).sum().backward()
        p.grad /= 2
        lion.step()
        lion.zero_grad()
        trainer.step(2)
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.Adam(ps, lr=0.1),
        lambda ps: optim.Adam(ps, lr=0.1),
        lambda ps: optim.Lookahead(optim.Adam(ps, lr=0.1), k=2),
        lambda ps: optim.Adam(ps, lr=0.1, clip_norm=0.3),
    ],
)
def test_an_optimizer_of_ones_own_sees_the_mean(make):
    one, other = (nn.Linear(3, 2) for _ in range(2))
    other.load_state_dict(one.state_dict())
    plain, x = make([*one.parameters()]), torch.randn(8, 3)
    trainer = Trainer(other, make([*other.parameters()]))
    for _ in range(4):
        one(x).square().sum(1).mean().backward()
        plain.step()
        plain.zero_grad()
        other(x).square().sum().backward()
        trainer.step(8)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def test_rescaling_leaves_the_gradient_as_it_is_and_hooks_see_the_step():
    p = nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = torch.tensor([4.0, 8.0])
    optimizer.step(rescale_grad=0.25)
    assert p.tolist() == [0.0, -1.0]
    assert p.grad.tolist() == [4.0, 8.0]
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(p.tolist()))
    optimizer.step(rescale_grad=0.5)
    assert seen == [[-2.0, -5.0]]
    with pytest.raises(ValueError, match=r"rescale_grad must be in \(0, inf\), got 0"):
        optimizer.step(rescale_grad=0)


def test_clip_norm_bounds_the_rescaled_gradient():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = optim.SGD([p], lr=1.0, clip_norm=1.0)
    for factor, wanted in ((0.1, [-0.3, -0.4]), (1.0, [-0.6, -0.8])):  # norms of 0.5 and 5
        p.data.zero_()
        p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        optimizer.step(rescale_grad=factor)
        torch.testing.assert_close(p.data, torch.tensor(wanted).double(), rtol=1e-6, atol=0)


def test_backward_overwrites_as_grad_req_write_does():
    p = nn.Parameter(torch.zeros(1))
    trainer = Trainer([p], "sgd", {"learning_rate": 1.0})
    for _ in range(2):
        (2 * p).sum().backward()
        trainer.step(1)
    assert p.item() == -4.0
    assert trainer.num_update == 2


def test_stale_gradients_are_refused_or_ignored():
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1)})
    model["idle"].bias.requires_grad_(False)
    trainer = Trainer(model, "sgd", {"learning_rate": 1.0, "momentum": 0.9})
    before = model["idle"].weight.clone()

    def backward():
        model["used"](torch.ones(1, 1)).sum().backward()

    backward()
    with pytest.raises(FitError, match=r"idle\.weight has no gradient since the last step"):
        trainer.step(1)
    trainer.step(1, ignore_stale_grad=True)
    assert torch.equal(model["idle"].weight, before)
    assert trainer.num_update == 1


def test_learning_rate():
    p = nn.Parameter(torch.zeros(1))
    trainer = Trainer([("p", p)], "adam", {"learning_rate": 0.5})
    assert trainer.learning_rate == 0.5
    trainer.set_learning_rate(0.25)
    assert trainer.learning_rate == 0.25
    p.grad = torch.ones(1)
    trainer.update(1)
    torch.testing.assert_close(p.data, torch.tensor([-0.25]), rtol=1e-6, atol=0)
    with pytest.raises(FitError, match=r"must be a number in \[0, inf\), got -1"):
        trainer.set_learning_rate(-1)
    scheduled = Trainer([p], "adam", {"lr_scheduler": lambda n: 0.1 / n})
    assert scheduled.learning_rate == 0.1
    with pytest.raises(FitError, match="the lr_scheduler sets it"):
        scheduled.set_learning_rate(1.0)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "sgd"])
def test_states_go_on_where_they_were_saved(optimizer, tmp_path):
    def made(p):
        hyper = {"learning_rate": 0.1, "lr_scheduler": schedules.cosine(6)}
        return Trainer([p], optimizer, hyper | ({"momentum": 0.9} if optimizer == "sgd" else {}))

    def train(p, trainer, steps):
        for _ in range(steps):
            (p**2).sum().backward()
            trainer.step(2)

    whole, half = (nn.Parameter(torch.arange(1.0, 4.0)) for _ in range(2))
    train(whole, made(whole), 6)
    first = made(half)
    train(half, first, 3)
    first.save_states(tmp_path / "states")
    second = made(half)
    second.load_states(tmp_path / "states")
    assert second.num_update == 3
    assert second.learning_rate == first.learning_rate
    train(half, second, 3)
    assert torch.equal(whole, half)


def test_states_of_anything_else_are_refused(tmp_path):
    p = nn.Parameter(torch.zeros(1))
    trainer = Trainer([p], "adam")
    (tmp_path / "text").write_text("no states")
    with pytest.raises(FitError, match=r"text was not written by Trainer.save_states"):
        trainer.load_states(tmp_path / "text")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights")
    with pytest.raises(FitError, match=r"weights was not written by Trainer.save_states"):
        trainer.load_states(tmp_path / "weights")
    Trainer([p], "sgd").save_states(tmp_path / "sgd")
    with pytest.raises(FitError, match="has the states of SGD, and this trainer's is Adam"):
        trainer.load_states(tmp_path / "sgd")
    Trainer([p, nn.Parameter(torch.zeros(1))], "adam").save_states(tmp_path / "two")
    with pytest.raises(FitError, match="two does not fit this trainer"):
        trainer.load_states(tmp_path / "two")
    with pytest.raises(FileNotFoundError):
        trainer.load_states(tmp_path / "nothing")


P = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("params", "optimizer", "hyper", "message"),
    [
        ([P], "adma", {}, r"there is no 'adma'; did you mean adam"),
        ([P], "ftrl", {}, "there is no 'ftrl'; "),
        (
            [P],
            "adam",
            {"learnin_rate": 1},
            r"Adam has no 'learnin_rate'; did you mean learning_rate",
        ),
        ([P], "adam", {"gamma1": 0.9}, r"Adam has no 'gamma1'"),
        ([P], "rmsprop", {"gama1": 0.9}, r"RMSProp has no 'gama1'; did you mean gamma1"),
        ([P], "rmsprop", {"clip_weights": 1.0}, "RMSProp has no 'clip_weights'"),
        ([P], "rmsprop", {"gamma2": 0.9}, "'gamma2' has an effect with 'centered': True alone"),
        ([P], "sgd", {"lr_schedular": 1}, r"did you mean lr_scheduler"),
        ([P], "sgd", {"learning_rate": -1}, r"SGD: learning_rate must be in \[0, inf\), got -1"),
        ([P], "sgd", {"momentum": 1.0}, r"Momentum: momentum must be in \[0, 1\), got 1.0"),
        ([P], "adam", {"beta2": 2}, r"Adam: beta2 must be in \[0, 1\), got 2"),
        ([P], "adam", {"clip_gradient": 0}, r"clip_gradient must be in \(0, inf\) or None, got 0"),
        ([P], "adam", {"lr": 1, "learning_rate": 1}, "'lr' and 'learning_rate' are the same"),
        ([P], "adam", {"betas": (0, 0), "beta1": 0}, "'betas' has 'beta1' in it already"),
        ([P], "signum", {"wd": 0.1, "wd_lh": 0.1}, "'wd' and 'wd_lh' are the same; give one"),
        ([P], "sgd", {"rescale_grad": 0}, "rescale_grad: must be positive and finite, got 0"),
        ([P], "sgd", {"lr_scheduler": 0.1}, "lr_scheduler: must be a thalweg Schedule"),
        ([P.data.half()], "sgd", {"multi_precision": True}, "no copies in float32 are kept"),
        ([P], "nag", {"form": "lookahead"}, "the step of NAG evaluates the model itself"),
        ([P], optim.SAM(optim.SGD([P])), None, "the step of SAM evaluates the model itself"),
        ([P], torch.optim.SGD([P.data]), None, "has other parameters than params"),
        ([P], torch.optim.SGD([P]), {"wd": 1}, "'wd' is for an optimizer by name"),
        ([P], torch.optim.SGD, None, "must be a name or an optimizer"),
        (P, "sgd", {}, "params: must be a module or its parameters"),
        (["P"], "sgd", {}, "parameter 0 must be a parameter, got str"),
        ([], "sgd", {}, "params: there are none"),
        (nn.LazyLinear(2), "sgd", {}, "weight has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_is_refused_in_one_sentence(params, optimizer, hyper, message):
    with pytest.raises(FitError, match=message):
        Trainer(params, optimizer, hyper)


def test_a_batch_size_that_cannot_be_is_refused():
    P.grad = torch.zeros(2)
    with pytest.raises(FitError, match="batch_size: must be positive and finite, got 0"):
        Trainer([P], "sgd").step(0)


def test_shared_parameters_take_one_step():
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.weight = a.weight
    before = a.weight.detach().clone()
    trainer = Trainer({"a": a.weight, "b": b.weight}, "sgd", {"learning_rate": 1.0})
    a.weight.sum().backward()
    trainer.step(1)
    assert torch.equal(a.weight, before - 1)


@pytest.fixture(scope="module")
def ranks():
    found = Ranks()
    yield found
    found.close()


def halves(rank):
    """Train on this process's part of batches of 3, and of one that it has nothing of."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    trainer = Trainer(model, "sgd", {"learning_rate": 0.1, "momentum": 0.9})
    x = torch.arange(9.0).view(3, 3) / 9
    for _ in range(3):
        part = x[rank::2]
        functional.mse_loss(model(part), part.sum(1, keepdim=True), reduction="sum").backward()
        trainer.step(len(x))
    if rank == 0:
        model(x[:1]).sum().backward()
    trainer.allreduce_grads()
    trainer.update(1)
    return model.weight.tolist(), model.bias.tolist()


def test_gradients_are_summed_over_processes(ranks):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = optim.Momentum(model.parameters(), lr=0.1, form="sutskever")
    x = torch.arange(9.0).view(3, 3) / 9
    for _ in range(3):
        functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model(x[:1]).sum().backward()
    optimizer.step()
    for weight, bias in ranks(halves):
        torch.testing.assert_close(torch.tensor(weight), model.weight.data)
        torch.testing.assert_close(torch.tensor(bias), model.bias.data)


def test_the_script_on_the_page_gives_the_numbers_that_it_gave(tmp_path, monkeypatch, capsys):
    """The block of docs/gluon.md is run; a loop over MXNet's formula is beside it."""
    page = Path(__file__).parents[2] / "docs" / "gluon.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 64, generator=generator)
    y = (x[:, :10] * 3).argmax(1)
    batches = [(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64)]
    monkeypatch.chdir(tmp_path)

    torch.manual_seed(0)
    ran = {"train_iter": batches}
    exec(compile(script, "gluon.md", "exec"), ran)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.weight, std=0.01), nn.init.zeros_(layer.bias)
    state = [{} for _ in net.parameters()]
    for _ in range(5):
        total, correct = 0.0, 0
        for inputs, targets in batches:
            outputs = net(inputs)
            loss = functional.cross_entropy(outputs, targets, reduction="sum")
            total += loss.item()
            correct += (outputs.argmax(1) == targets).sum().item()
            gradients = torch.autograd.grad(loss, [*net.parameters()])
            for p, g, s in zip(net.parameters(), gradients, state, strict=True):
                rescale = 1 / len(inputs)
                new = sgd(p.detach(), g, s, 0, learning_rate=0.5, momentum=0.9, rescale=rescale)
                p.data.copy_(new)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"epoch 5, loss {total / 80:.4f}, train acc {correct / 80:.3f}"
    for p, q in zip(ran["net"].parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "sgd.states").exists()
    exported = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(exported(x), ran["net"](x))
