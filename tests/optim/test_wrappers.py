"""Optimizers around another: against their formulas, and for what every optimizer has to keep."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.optim.digits import closure, data, distance, loss_of, network, train
from tests.optim.papers import NAMES, lookahead, sam_gradient
from thalweg import optim
from thalweg.optim import GD, SAM, Accumulate, Lookahead, Wrapper
from thalweg.rules import HyperparameterError

BASES = {
    "ours": lambda p: optim.Adam(p, lr=3e-3),
    "torch's": lambda p: torch.optim.Adam(p, lr=3e-3),
}
MADE = {
    "SAM": lambda base: SAM(base, rho=0.1),
    "ASAM": lambda base: SAM(base, rho=0.5, adaptive=True),
    "Lookahead": lambda base: Lookahead(base, k=3),
    "Accumulate": lambda base: Accumulate(base, 4),
    "SAM of Lookahead": lambda base: SAM(Lookahead(base, k=3)),
    "SAM of Accumulate": lambda base: SAM(Accumulate(base, 3)),
    "Lookahead of SAM": lambda base: Lookahead(SAM(base), k=3),
    "Lookahead of Accumulate": lambda base: Lookahead(Accumulate(base, 2), k=3),
}
WRAPPERS = pytest.mark.parametrize("wrap", MADE.values(), ids=list(MADE))
INSIDE = pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))


def start():
    generator = torch.Generator().manual_seed(1)
    shapes = [(), (5,), (4, 3), (2, 3, 4)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def gradient(x, t):
    """Of x²/5 - cos(x + 0.7 t): another function at every step, as with mini-batches."""
    return 0.4 * x + torch.sin(x + 0.7 * t)


def follow(make, steps):
    """The path of an optimizer that is given a closure."""
    parameters = [x.requires_grad_() for x in start()]
    optimizer = make(parameters)
    path = []
    for t in range(1, steps + 1):

        def fill(t=t):
            for p in parameters:
                p.grad = gradient(p.detach(), t)
            return t

        assert optimizer.step(fill) == t
        path.append([p.detach().clone() for p in parameters])
    return path


def gap(path, other):
    return max(
        float((a - b).norm() / b.norm())
        for xs, ys in zip(path, other, strict=True)
        for a, b in zip(xs, ys, strict=True)
    )


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# SAM


@pytest.mark.parametrize("adaptive", [False, True])
@INSIDE
def test_sam_is_its_formula(base, adaptive):
    xs, path, memories = start(), [], [{} for _ in start()]
    for t in range(1, 31):
        gs = sam_gradient(lambda xs, t=t: [gradient(x, t) for x in xs], xs, 0.3, adaptive)
        xs = [
            NAMES["AdamW"](x, g, s, t, lr=3e-3, weight_decay=0.0)
            for x, g, s in zip(xs, gs, memories, strict=True)
        ]
        path.append(xs)
    ours = follow(lambda p: SAM(base(p), rho=0.3, adaptive=adaptive), 30)
    assert gap(ours, path) < 1e-12
    assert gap(follow(base, 30), path) > 1e-4


def test_sam_on_a_quadratic_by_hand():
    # f = x²/2: g = x, the worst point of a ball is x + rho, and the step x - lr (x + rho).
    p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SAM(torch.optim.SGD([p], lr=0.1), rho=0.5)
    seen = []

    def evaluate():
        optimizer.zero_grad()
        seen.append(p.item())
        loss = (p**2 / 2).sum()
        loss.backward()
        return loss

    assert optimizer.step(evaluate).item() == 2.0
    assert seen == pytest.approx([2.0, 2.5], abs=1e-11)
    assert p.item() == pytest.approx(2.0 - 0.1 * 2.5, abs=1e-12)


def test_sam_with_radius_zero_is_the_optimizer_inside():
    models = network(), network()
    train(models[0], SAM(optim.Adam(models[0].parameters()), rho=0.0), 5)
    train(models[1], optim.Adam(models[1].parameters()), 5)
    assert distance(*models) == 0.0


def test_adaptive_sam_does_not_see_how_layers_are_scaled():
    # 2 W1 and W2 / 2 are the same function through a ReLU; so are their worst points.
    models = network(), network()
    with torch.no_grad():
        models[1][0].weight.mul_(2), models[1][0].bias.mul_(2), models[1][2].weight.div_(2)
    losses = []
    for model in models:
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=True)
        loss_of(model, 0).backward()
        optimizer.first_step()
        losses.append(loss_of(model, 0).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_sams_two_calls_are_its_closure():
    models = network(), network()
    one, two = (SAM(optim.Adam(m.parameters())) for m in models)
    train(models[0], one, 5)
    for step in range(5):
        loss_of(models[1], step).backward()
        two.first_step(zero_grad=True)
        loss_of(models[1], step).backward()
        two.second_step(zero_grad=True)
    assert distance(*models) == 0.0
    assert all(p.grad is None for p in models[1].parameters())


def test_sam_goes_back_exactly_when_the_second_evaluation_raises():
    model = network(torch.float32)
    optimizer = SAM(optim.Adam(model.parameters()))
    train(model, optimizer, 3)
    before, moved = weights(model), []

    def fails():
        moved.append(not same(weights(model), before))
        if len(moved) == 2:
            raise ArithmeticError("on purpose")
        return closure(model, optimizer, 3)()

    with pytest.raises(ArithmeticError, match="on purpose"):
        optimizer.step(fails)
    assert moved == [False, True]
    assert same(weights(model), before)
    assert optimizer.state[model[0].weight]["step"] == 3


def test_a_first_step_again_does_not_drift():
    model = network(torch.float32)
    before = weights(model)
    optimizer = SAM(torch.optim.SGD(model.parameters()))
    loss_of(model, 0).backward()
    optimizer.first_step()
    once = weights(model)
    optimizer.first_step()
    assert same(weights(model), once)
    optimizer.restore()
    assert same(weights(model), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 3e4])
def test_sams_radius_in_half_precision(dtype, scale):
    p = torch.ones(64, dtype=dtype, requires_grad=True)
    p.grad = torch.full((64,), scale, dtype=dtype)
    optimizer = SAM(torch.optim.SGD([p]), rho=4.0)
    optimizer.first_step()
    # 64 equal entries, each 4 / 8 of the radius; smaller than an fp16 step there is nothing.
    expected = 1.5 if p.grad[0] > 0 else 1.0
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected).detach())


def test_sam_leaves_parameters_without_gradient_alone():
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    p.grad = torch.ones(3)
    optimizer = SAM(torch.optim.SGD([p, q]))
    version = q._version
    optimizer.first_step()
    optimizer.second_step()
    assert q._version == version
    assert SAM(torch.optim.SGD([q])).first_step() is None


def test_sam_around_an_optimizer_that_looks_ahead_and_around_lbfgs():
    # Both evaluate the closure where they want to; the gradient there is SAM's.
    def evaluate(p, t):
        return sam_gradient(lambda xs: [gradient(x, t) for x in xs], p, 0.3)

    xs, velocities, path = start(), [0.0] * 4, []
    for t in range(1, 21):
        ahead = [x + 0.9 * v for x, v in zip(xs, velocities, strict=True)]
        gs = evaluate(ahead, t)
        velocities = [0.9 * v - 0.05 * g for v, g in zip(velocities, gs, strict=True)]
        xs = [x + v for x, v in zip(xs, velocities, strict=True)]
        path.append(xs)
    ours = follow(lambda p: SAM(optim.NAG(p, lr=0.05, form="lookahead"), rho=0.3), 20)
    assert gap(ours, path) < 1e-12
    lbfgs = follow(lambda p: SAM(optim.LBFGS(p, lr=0.1, max_iter=1), rho=0.3), 1)
    gs = evaluate(start(), 1)
    # torch's L-BFGS divides its first step by max(1, sum of |g|).
    rate = 0.1 / max(1.0, sum(float(g.abs().sum()) for g in gs))
    assert gap(lbfgs, [[x - rate * g for x, g in zip(start(), gs, strict=True)]]) < 1e-12


@pytest.mark.parametrize("adaptive", [False, True])
def test_pytorch_optimizers_sam(adaptive):
    peer = pytest.importorskip("pytorch_optimizer")
    models = network(), network()
    ours = SAM(torch.optim.SGD(models[0].parameters(), lr=0.1), rho=0.2, adaptive=adaptive)
    theirs = peer.SAM(models[1].parameters(), torch.optim.SGD, rho=0.2, adaptive=adaptive, lr=0.1)
    for step in range(20):
        ours.step(closure(models[0], ours, step))
        evaluate = closure(models[1], theirs, step)
        evaluate()
        theirs.step(evaluate)
    assert distance(*models) < 1e-6  # theirs sums the norm in float32


# Lookahead


@pytest.mark.parametrize("arguments", [{}, {"k": 3, "alpha": 0.8}, {"k": 1, "alpha": 0.25}])
@INSIDE
def test_lookahead_is_its_algorithm(base, arguments):
    xs, path = start(), []
    inner, slow = [{} for _ in xs], [{} for _ in xs]
    for t in range(1, 31):
        for i, x in enumerate(xs):
            after = NAMES["AdamW"](x, gradient(x, t), inner[i], t, lr=3e-3, weight_decay=0.0)
            xs[i] = lookahead(x, after, slow[i], t, **arguments)
        path.append(list(xs))
    ours = follow(lambda p: Lookahead(base(p), **arguments), 30)
    assert gap(ours, path) < 1e-12
    assert gap(follow(base, 30), path) > 1e-4


def test_lookahead_by_hand():
    # Gradient 1, lr 1: three steps to -3, half the way back from there to 0.
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.ones(1)
    optimizer = Lookahead(torch.optim.SGD([p], lr=1.0), k=3)
    path = []
    for _ in range(6):
        optimizer.step()
        path.append(p.item())
    assert path == [-1, -2, -1.5, -2.5, -3.5, -3]


def test_all_of_the_way_is_the_optimizer_inside():
    models = network(), network()
    train(models[0], Lookahead(optim.Adam(models[0].parameters()), k=2, alpha=1.0), 6)
    train(models[1], optim.Adam(models[1].parameters()), 6)
    assert distance(*models) == 0.0


def test_slow_weights_are_touched_every_k_steps_alone():
    model = network()
    optimizer = Lookahead(optim.Adam(model.parameters()), k=4)
    train(model, optimizer, 1)
    slow = list(optimizer.slow.values())
    versions = [s._version for s in slow]
    train(model, optimizer, 2, first=1)
    assert [s._version for s in slow] == versions
    train(model, optimizer, 1, first=3)
    assert [s._version for s in slow] == [v + 1 for v in versions]
    assert same(slow, weights(model))


def test_slow_weights_start_where_training_does():
    # Weights are often loaded after the optimizer was made.
    model, trained = network(), network(seed=1)
    optimizer = Lookahead(optim.Adam(model.parameters()))
    model.load_state_dict(trained.state_dict())
    train(model, optimizer, 1)
    assert same(optimizer.slow.values(), weights(trained))


def test_pytorch_optimizers_lookahead():
    peer = pytest.importorskip("pytorch_optimizer")
    models = network(), network()
    ours = Lookahead(torch.optim.Adam(models[0].parameters()), k=3, alpha=0.7)
    theirs = peer.Lookahead(torch.optim.Adam(models[1].parameters()), k=3, alpha=0.7)
    train(models[0], ours, 20)
    train(models[1], theirs, 20)
    assert distance(*models) < 1e-12


# Accumulate


def mean_loss(model, rows):
    x, y = data(next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(x[rows]), y[rows])


def epochs(model, optimizer, batches, count=3, told=False):
    """A loop as everybody writes it."""
    for _ in range(count):
        for rows in batches:
            optimizer.zero_grad()
            mean_loss(model, rows).backward()
            optimizer.step(**({"samples": len(rows)} if told else {}))
        if isinstance(optimizer, Accumulate):
            optimizer.flush()
    return model


def windows(batches, steps):
    return [torch.cat(batches[i : i + steps]) for i in range(0, len(batches), steps)]


@INSIDE
@pytest.mark.parametrize(
    ("rows", "size", "steps", "told"),
    [
        (96, 8, 4, False),
        (96, 8, 1, False),
        (96, 8, 5, False),  # the last window is short
        (100, 8, 4, True),  # the last batch is short
        (100, 8, 5, True),  # both
        (20, 8, 50, True),  # one window is all there is
    ],
)
def test_accumulated_gradients_are_the_big_batch(base, rows, size, steps, told):
    batches = list(torch.arange(rows).split(size))
    models = network(), network()
    epochs(models[0], Accumulate(base(models[0].parameters()), steps), batches, told=told)
    epochs(models[1], base(models[1].parameters()), windows(batches, steps))
    assert distance(*models) < 1e-11  # Adam's division by the root of small gradients
    assert distance(models[0], network()) > 1e-3


def test_uneven_windows_need_to_be_told():
    batches = list(torch.arange(50).split([30, 2, 18]))
    ends = []
    for told in (True, False):
        model = network()
        optimizer = Accumulate(torch.optim.SGD(model.parameters(), lr=0.1), 3)
        ends.append(epochs(model, optimizer, batches, told=told))
    big = network()
    epochs(big, torch.optim.SGD(big.parameters(), lr=0.1), [torch.arange(50)])
    assert distance(ends[0], big) < 1e-13
    assert distance(ends[1], big) > 1e-4


def test_weights_by_hand():
    p = torch.zeros(1, requires_grad=True)
    optimizer = Accumulate(torch.optim.SGD([p], lr=1.0), 3)
    for g, n in ((6.0, 1), (3.0, 2), (1.0, 3)):
        assert p.item() == 0.0
        p.grad = torch.tensor([g])
        optimizer.step(samples=n)
    assert p.item() == -(6 + 2 * 3 + 3 * 1) / 6
    assert p.grad.item() == 2.5
    optimizer.flush()
    assert p.item() == -2.5


def test_gradients_that_are_missing_in_some_batches():
    # Each batch goes through another branch, as with experts: zero in those that it misses.
    p, q, r = (torch.zeros(1, requires_grad=True) for _ in range(3))
    optimizer = Accumulate(torch.optim.SGD([p, q, r], lr=1.0), 2)
    p.grad = torch.tensor([4.0])
    optimizer.step()
    optimizer.zero_grad()
    q.grad = torch.tensor([6.0])
    optimizer.step()
    assert [p.item(), q.item(), r.item()] == [-2, -3, 0]
    assert r.grad is None


def test_half_precision_is_summed_in_float32():
    p = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = Accumulate(torch.optim.SGD([p], lr=1.0), 1000)
    for _ in range(1000):
        p.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()
    assert p.item() == -1.0  # a sum in bfloat16 stops at 256


def test_samples_at_some_batches_of_a_window():
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.ones(1)
    optimizer = Accumulate(torch.optim.SGD([p]), 4)
    optimizer.step(samples=3)
    message = "samples must be given at every step of a window or at none, got None after 3.0"
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.step()
    with pytest.raises(HyperparameterError, match=r"^Accumulate: samples must be in \(0, inf\)"):
        optimizer.step(samples=0)
    assert optimizer.window == (3.0,)


def test_a_scheduler_of_real_steps():
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.ones(1)
    optimizer = Accumulate(torch.optim.SGD([p], lr=1.0), 3)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates = []
    for _ in range(7):
        optimizer.step()
        if not optimizer.window:
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_hooks_of_the_optimizer_inside_see_real_steps():
    model, seen = network(), []
    base = optim.Adam(model.parameters())
    optimizer = Accumulate(base, 2)
    optimizer.register_step_post_hook(lambda *_: seen.append("batch"))
    base.register_step_post_hook(lambda *_: seen.append("step"))
    train(model, optimizer, 4)
    assert seen == ["batch", "step", "batch", "batch", "step", "batch"]


# All of them


@INSIDE
@WRAPPERS
def test_a_wrapper_is_an_optimizer(wrap, base):
    model = network(torch.float32)
    inside = base(model.parameters())
    optimizer = wrap(inside)
    assert isinstance(optimizer, torch.optim.Optimizer)
    innermost = optimizer
    while isinstance(innermost, Wrapper):
        innermost = innermost.base
    assert innermost is inside
    assert optimizer.param_groups is inside.param_groups
    assert optimizer.state is inside.state
    assert optimizer.defaults is inside.defaults
    first = loss_of(model, 0).item()
    assert optimizer.step(closure(model, optimizer, 0)).item() == first
    with torch.no_grad():
        assert math.isfinite(optimizer.step(closure(model, optimizer, 0)).item())
    train(model, optimizer, 80)
    assert loss_of(model, 0).item() < 0.8 * first
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert repr(optimizer).endswith(repr(inside))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("at", range(1, 8))
@INSIDE
@WRAPPERS
def test_a_checkpoint_at_any_step_goes_on_bit_for_bit(wrap, base, at):
    whole, model, other = network(), network(), network(seed=1)
    train(whole, wrap(base(whole.parameters())), 12)
    optimizer = wrap(base(model.parameters()))
    train(model, optimizer, at)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    after = wrap(base(other.parameters()))
    train(other, after, 2)  # and what this has left is forgotten
    other.load_state_dict(saved["model"])
    after.load_state_dict(saved["optimizer"])
    train(other, after, 12 - at, first=at)
    assert distance(other, whole) == 0.0


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=list(COPIES))
@INSIDE
@WRAPPERS
def test_a_copy_goes_on_alone(wrap, base, duplicate):
    model = network()
    optimizer = wrap(base(model.parameters()))
    lr_scheduler.StepLR(optimizer, 100)  # which leaves a function on the optimizer
    train(model, optimizer, 5)
    other, its = duplicate((model, optimizer))
    train(model, optimizer, 5, first=5)
    assert distance(other, model) > 1e-9
    train(other, its, 5, first=5)
    assert distance(other, model) == 0.0


@WRAPPERS
def test_two_from_one_checkpoint_do_not_share_memory(wrap):
    model = network()
    optimizer = wrap(optim.Adam(model.parameters()))
    train(model, optimizer, 5)
    saved = optimizer.state_dict()
    ends = []
    for _ in range(2):
        other = network()
        its = wrap(optim.Adam(other.parameters()))
        # torch shares the state that it loads.
        its.load_state_dict({**saved, "state": copy.deepcopy(saved["state"])})
        ends.append(train(other, its, 7, first=5))
    assert distance(*ends) == 0.0


def test_checkpoints_with_and_without_a_wrapper():
    model = network()
    optimizer = Lookahead(optim.Adam(model.parameters()), k=3)
    train(model, optimizer, 4)
    saved = optimizer.state_dict()
    torch.optim.Adam(network().parameters()).load_state_dict(saved)
    optim.Adam(network().parameters()).load_state_dict(saved)
    # Without slow weights in it, they start anew: those of before belong to another path.
    optimizer.load_state_dict(optimizer.base.state_dict())
    assert (optimizer.count, optimizer.slow) == (0, {})
    with pytest.raises(ValueError, match=r"SAM: the checkpoint is of another wrapper, .* k, alpha"):
        SAM(optim.Adam(model.parameters())).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**saved, "param_groups": []})


def test_hyperparameters_are_the_checkpoints_as_with_torch():
    p = torch.zeros(1, requires_grad=True)
    saved = SAM(torch.optim.SGD([p]), rho=0.3, adaptive=True).state_dict()
    other = SAM(torch.optim.SGD([p]))
    other.load_state_dict(saved)
    assert (other.rho, other.adaptive) == (0.3, True)


@INSIDE
@WRAPPERS
def test_groups_added_in_mid_training(wrap, base):
    ends = []
    for late in (False, True):
        model = network()
        parameters = list(model.parameters())
        optimizer = wrap(base(parameters[:2]))
        train(model, optimizer, 4)
        optimizer.add_param_group({"params": parameters[2:], "lr": 1e-2})
        assert optimizer.param_groups[1]["lr"] == 1e-2
        if late:  # by way of a checkpoint
            again = network()
            parameters = list(again.parameters())
            other = wrap(base(parameters[:2]))
            other.add_param_group({"params": parameters[2:]})
            other.load_state_dict(optimizer.state_dict())
            again.load_state_dict(model.state_dict())
            model, optimizer = again, other
        train(model, optimizer, 12, first=4)
        ends.append(model)
    assert distance(ends[0], network()) > 1e-4
    assert distance(*ends) == 0.0


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, 30),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=list(SCHEDULERS))
@WRAPPERS
def test_torchs_schedulers_hold_either(wrap, schedule):
    ends = []
    for outside in (True, False):
        model = network()
        base = optim.Adam(model.parameters())
        optimizer = wrap(base)
        scheduler = schedule(optimizer if outside else base)
        taken = []
        base.register_step_post_hook(lambda *_, taken=taken: taken.append(1))
        for step in range(24):
            loss = optimizer.step(closure(model, optimizer, step))
            if taken:
                arguments = (loss.item(),) if "Plateau" in type(scheduler).__name__ else ()
                scheduler.step(*arguments)
                taken.clear()
        ends.append((model, base.param_groups[0]["lr"]))
    assert ends[0][1] == ends[1][1] != 1e-3
    assert distance(ends[0][0], ends[1][0]) == 0.0


@WRAPPERS
def test_hooks(wrap):
    model, seen = network(), []
    optimizer = wrap(optim.Adam(model.parameters()))
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(("before", o)))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(("after", o)))
    train(model, optimizer, 2)
    assert seen == [("before", optimizer), ("after", optimizer)] * 2
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "more": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, saved: {k: v for k, v in saved.items() if k != "more"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert seen[4:] == ["save", "loaded"]


@INSIDE
@pytest.mark.parametrize("name", ["Lookahead", "Accumulate", "Lookahead of Accumulate"])
def test_grad_scaler(name, base):
    # Powers of two: scaling loses nothing.
    models = network(torch.float32), network(torch.float32)
    plain, scaled = (MADE[name](base(m.parameters())) for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        plain.zero_grad()
        loss_of(models[0], step).backward()
        plain.step()
        scaled.zero_grad()
        scaler.scale(loss_of(models[1], step)).backward()
        scaler.step(scaled)
        scaler.update()
        if step == 4:  # this one is skipped
            scaled.zero_grad()
            scaler.scale(loss_of(models[1], step) * math.inf).backward()
            scaler.step(scaled)
            scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert distance(*models) < 1e-6


def test_grad_scaler_around_sam():
    models = network(torch.float32), network(torch.float32)
    plain, scaled = (SAM(optim.Adam(m.parameters())) for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(models[0], plain, 6)
    for step in (0, 1, 2, None, 3, 4, 5):
        scale = 1.0 if step is not None else math.inf
        before = weights(models[1])
        scaled.zero_grad()
        scaler.scale(scale * loss_of(models[1], step or 0)).backward()
        scaled.first_step(zero_grad=True)
        scaler.scale(scale * loss_of(models[1], step or 0)).backward()
        scaled.restore()
        scaler.step(scaled.base)
        scaler.update()
        assert same(weights(models[1]), before) == (step is None)
    assert distance(*models) < 1e-5  # 1e-12 beside a norm that is 2^10 times larger


@WRAPPERS
def test_eval_and_train_reach_the_optimizer_inside(wrap):
    model = network()
    optimizer = wrap(optim.ScheduleFreeAdamW(model.parameters()))
    train(model, optimizer, 8)
    trained = weights(model)
    optimizer.eval()
    assert not same(weights(model), trained)
    optimizer.train()
    assert same(weights(model), trained)
    plain = wrap(torch.optim.SGD(model.parameters()))
    plain.eval()
    plain.train()
    assert same(weights(model), trained)


@WRAPPERS
def test_sparse_gradients_where_the_optimizer_inside_takes_them(wrap):
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        optimizer = wrap(torch.optim.SGD(table.parameters(), lr=0.1))
        for rows in ([1, 2, 2], [0, 1], [5], [1, 5, 0]) * 3:

            def evaluate(rows=rows, table=table, optimizer=optimizer):
                optimizer.zero_grad()
                loss = (table(torch.tensor(rows)) ** 2).sum()
                loss.backward()
                return loss

            optimizer.step(evaluate)
        assert table.weight.grad.is_sparse == sparse
        ends.append(table.weight.detach())
    torch.testing.assert_close(*ends)


INVALID = [
    (lambda base: SAM(base, rho=-1), r"SAM: rho must be in [0, inf), got -1"),
    (lambda base: SAM(base, rho=math.nan), r"SAM: rho must be in [0, inf), got nan"),
    (lambda base: Lookahead(base, k=0), "Lookahead: k must be in [1, inf), got 0"),
    (lambda base: Lookahead(base, alpha=1.5), "Lookahead: alpha must be in [0, 1], got 1.5"),
    (lambda base: Accumulate(base, 0), "Accumulate: steps must be in [1, inf), got 0"),
    (lambda base: GD([torch.zeros(1)], lr=-1.0), "GD: lr must be in [0, inf), got -1.0"),
    (lambda base: GD([torch.zeros(1)], max_iter=0), "GD: max_iter must be in [1, inf), got 0"),
    (
        lambda base: GD([torch.zeros(1)], tolerance_grad=-1.0),
        "GD: tolerance_grad must be in [0, inf), got -1.0",
    ),
]


@pytest.mark.parametrize(("make", "message"), INVALID, ids=[m for _, m in INVALID])
def test_bad_arguments(make, message):
    with pytest.raises(HyperparameterError, match=f"^{re.escape(message)}$"):
        make(torch.optim.SGD([torch.zeros(1)]))


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match="base"):
        SAM([torch.zeros(1)])


@pytest.mark.parametrize(
    "make", [SAM, lambda base: GD([torch.zeros(1)]), lambda base: SAM(Lookahead(base))]
)
def test_without_a_closure(make):
    optimizer = make(torch.optim.SGD([torch.zeros(1)]))
    with pytest.raises(ValueError, match=rf"^{type(optimizer).__name__}: step\(\) needs a closure"):
        optimizer.step()


# Over the whole training set


def whole(model, optimizer, seen):
    x, y = data(torch.float64)

    def evaluate():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        seen.append(loss.item())
        return loss

    return evaluate


def test_gd_is_as_many_steps_of_sgd():
    models = network(), network()
    gd = GD(models[0].parameters(), lr=0.5, max_iter=7)
    seen, theirs = [], []
    first = gd.step(whole(models[0], gd, seen))
    sgd = torch.optim.SGD(models[1].parameters(), lr=0.5)
    for _ in range(7):
        sgd.step(whole(models[1], sgd, theirs))
    assert distance(*models) < 1e-13
    assert seen == pytest.approx(theirs, rel=1e-13)
    assert (first.item(), gd.n_iter) == (seen[0], 7)
    scheduler = lr_scheduler.StepLR(gd, 1, 0.5)
    gd.step(whole(models[0], gd, seen))
    scheduler.step()
    assert (gd.n_iter, gd.param_groups[0]["lr"]) == (14, 0.25)


def test_gd_stops_at_its_tolerance():
    # x²/2 with lr 1/2: ‖g‖ = ‖x‖ is 5, 5/2, 5/4, 5/8.
    p = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)
    gd = GD([p], lr=0.5, max_iter=100, tolerance_grad=0.625)

    def evaluate():
        gd.zero_grad()
        loss = (p**2).sum() / 2
        loss.backward()
        return loss

    assert gd.step(evaluate).item() == 12.5
    assert p.tolist() == [0.375, -0.5]
    assert gd.n_iter == 3
    gd.step(evaluate)
    assert gd.n_iter == 3


def test_lbfgs_is_torchs_and_solves_what_gd_does():
    assert optim.LBFGS is torch.optim.LBFGS
    ends = []
    curvature = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    for make in (
        lambda p: GD([p], lr=0.15, max_iter=500, tolerance_grad=1e-9),
        lambda p: optim.LBFGS([p], line_search_fn="strong_wolfe", max_iter=100),
    ):
        p = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = make(p)

        def evaluate(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (curvature * (p - 2) ** 2).sum() / 2
            loss.backward()
            return loss

        optimizer.step(evaluate)
        ends.append(p.detach())
    for end in ends:
        torch.testing.assert_close(end, torch.full_like(end, 2.0), rtol=0, atol=1e-6)
