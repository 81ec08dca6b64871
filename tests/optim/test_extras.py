"""What every rule takes besides: bounds on the gradient, averaged weights, gradients cleared."""

import copy
import io
import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.optim.cases import CASES, TORCHS
from tests.optim.cases import KINDS as ROWS
from tests.optim.digits import distance, loss_of, network, train
from thalweg import optim

# The first step of a network's gradients is about 1.6 long: bounds that act always, at times.
BOUNDS = pytest.mark.parametrize("bound", [1e-2, 1.0])


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def halves(model, decay=0.1):
    parameters = list(model.parameters())
    return [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": decay}]


def walk(model, optimizer, steps, prepare=lambda parameters: None):
    """Trains with a gradient missing now and then, and something done to all before the step."""

    def evaluate(step):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        if step % 3 == 1:
            model[2].weight.grad = None
        prepare(model.parameters())
        return loss

    for step in range(steps):
        optimizer.step(lambda step=step: evaluate(step))
    return model


def arguments(entry):
    """Of a constructor, such that ours and theirs agree."""
    return entry.valid[0].arguments


CLIPS = {
    "norm": ("clip_norm", clip_grad_norm_),
    "value": ("clip_value", clip_grad_value_),
}
KINDS = pytest.mark.parametrize("kind", CLIPS.values(), ids=list(CLIPS))


@BOUNDS
@KINDS
@ROWS
def test_clipping_is_torchs_before_the_step(entry, kind, bound):
    name, clip = kind
    if name == "clip_value":
        bound /= 100
    models = network(), network()
    # The order is torch's: decay of the weights comes after.
    ours, theirs = (
        entry.constructor(halves(m), **{**arguments(entry), **extra})
        for m, extra in zip(models, ({name: bound}, {}), strict=True)
    )
    walk(models[0], ours, 12)
    walk(models[1], theirs, 12, lambda parameters: clip(parameters, bound))
    assert distance(*models) < entry.tolerance[1]


@BOUNDS
@KINDS
@pytest.mark.parametrize("entry", TORCHS, ids=lambda e: e.name)
def test_clipping_and_torchs_own_step(entry, kind, bound):
    name, clip = kind
    if name == "clip_value":
        bound /= 100
    models = network(), network()
    decay = 0.0 if entry.name == "rprop" else 0.1  # torch's has none
    ours = entry.constructor(halves(models[0], decay), **arguments(entry), **{name: bound})
    theirs = entry.oracle(halves(models[1], decay), **entry.valid[0].oracle)
    walk(models[0], ours, 12)
    walk(models[1], theirs, 12, lambda parameters: clip(parameters, bound))
    assert distance(*models) < entry.tolerance[1]


def some(dtypes=(torch.float64,) * 5):
    """Parameters of all ways of being stepped, with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (4, 5), (5, 4), (2, 3, 4), ()]
    made = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        p = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        p = p.t().contiguous().t() if shape == (5, 4) else p  # one that the kernel does not take
        p.requires_grad_()
        p.grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        made.append(p)
    return made


def norm_of(parameters):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))


@KINDS
def test_clipping_and_soap(kind):
    # Whose path on a network depends on the eigenvectors of zero, which are anybody's choice.
    name, clip = kind
    ends = []
    for bounded in (True, False):
        parameters = [p for p in some() if p.dim() == 2]
        optimizer = optim.SOAP(parameters, **({name: 0.1} if bounded else {}))
        for step in range(8):
            for p in parameters:
                p.grad = torch.sin(7 * p.detach() + step)
            if not bounded:
                clip(parameters, 0.1)
            optimizer.step()
        ends.append(parameters)
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_the_norm_is_of_all_whatever_their_layout():
    parameters = some()
    expected = [p.detach() - 0.1 * p.grad * 0.5 / (norm_of(parameters) + 1e-6) for p in parameters]
    optim.SGD(parameters, lr=0.1, clip_norm=0.5).step()
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-13, atol=1e-15)


def test_groups_bound_the_norm_of_all_each_in_its_own_way():
    parameters, still = some(), some()
    groups = [
        {"params": parameters[:2], "clip_norm": 0.5},
        {"params": parameters[2:4], "clip_norm": 1e3},
        {"params": parameters[4:]},
    ]
    optim.SGD(groups, lr=0.1).step()
    factors = [0.5 / (norm_of(still) + 1e-6)] * 2 + [1.0] * 3
    for p, q, factor in zip(parameters, still, factors, strict=True):
        expected = q.detach() - 0.1 * factor * q.grad
        torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=1e-15)


def test_norm_first_then_value_then_decay():
    p = torch.tensor([10.0, 10.0], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optim.SGD([p], lr=1.0, clip_norm=1.0, clip_value=0.7, weight_decay=0.5, maximize=True).step()
    # (3, 4) to (0.6, 0.8) to (0.6, 0.7); uphill; and torch adds the decay to what is descended.
    expected = torch.tensor([10 - (-0.6 + 5), 10 - (-0.7 + 5)], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_that_are_no_numbers_do_what_torchs_do(value):
    ends = []
    for ours in (True, False):
        parameters = some()
        parameters[1].grad[2, 2] = value
        parameters[3].grad = None
        if ours:
            optim.SGD(parameters, lr=0.1, clip_norm=0.5).step()
        else:
            clip_grad_norm_(parameters, 0.5)
            torch.optim.SGD(parameters, lr=0.1).step()
        ends.append([p.detach() for p in parameters])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15, equal_nan=True)
    assert ends[0][0].isnan().all() == math.isnan(value)
    assert torch.equal(ends[0][3], some()[3])


def test_norm_over_several_precisions():
    dtypes = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float64
    parameters, still = some(dtypes), some(dtypes)
    optim.SGD(parameters, lr=0.1, clip_norm=0.5).step()
    factor = 0.5 / (norm_of(still) + 1e-6)
    for p, q in zip(parameters, still, strict=True):
        expected = (q.detach().double() - 0.1 * factor * q.grad.double()).to(q.dtype)
        # Half precision is rounded once from float32: the tolerance is of the dtype.
        torch.testing.assert_close(p.detach(), expected)
        if q.dtype == torch.float64:
            # The gradients of the others are squared in float32.
            torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=0)


def test_a_norm_that_float32_cannot_hold():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([3e30, 4e30])
    optim.SGD([p], lr=1.0, clip_norm=1.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8]))


def test_no_gradient_at_all():
    p = torch.ones(2, requires_grad=True)
    optim.Adam([p], clip_norm=1.0).step()
    assert p.tolist() == [1, 1]


def test_a_bound_may_come_and_go():
    models = network(), network()
    ours = optim.Adam(models[0].parameters(), clip_norm=1e-2)
    theirs = torch.optim.Adam(models[1].parameters())
    for bound in (1e-2, None, 3e-3):
        ours.param_groups[0]["clip_norm"] = bound
        walk(models[0], ours, 3)
        clip = (lambda p: None) if bound is None else (lambda p, b=bound: clip_grad_norm_(p, b))
        walk(models[1], theirs, 3, clip)
    assert distance(*models) < 1e-12


# The moving average of the weights. Where torch's AveragedModel starts with the weights after the
# first update, ours starts with the initial ones, which is AveragedModel updated once before; and
# ours stands still where a parameter has no gradient.


def average_of(model, decay):
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.update_parameters(model)
    return averaged


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@ROWS
def test_ema_is_torchs_averaged_model(entry, decay):
    models = network(), network()
    ours = entry.constructor(models[0].parameters(), **arguments(entry), ema_decay=decay)
    plain = entry.constructor(models[1].parameters(), **arguments(entry))
    averaged = average_of(models[1], decay)
    train(models[0], ours, 8)
    train(models[1], plain, 8, after=lambda _: averaged.update_parameters(models[1]))
    # The average changes nothing of the path.
    assert distance(*models) <= entry.tolerance[1]
    ours.eval()
    assert distance(models[0], averaged.module) < entry.tolerance[1]
    ours.train()
    assert distance(*models) <= entry.tolerance[1]


def test_ema_by_hand():
    p = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0, ema_decay=0.5)
    for _ in range(2):
        p.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    p.grad = None
    optimizer.step()
    optimizer.eval()
    # x: 1, 0, -1; e: 1, 1/2, -1/4.
    assert p.item() == -0.25


def test_ema_of_some_groups():
    model = network()
    parameters = list(model.parameters())
    optimizer = optim.Adam(
        [{"params": parameters[:2], "ema_decay": 0.9}, {"params": parameters[2:]}], clip_norm=1.0
    )
    train(model, optimizer, 5)
    before = weights(model)
    optimizer.eval()
    assert [torch.equal(a, b) for a, b in zip(weights(model), before, strict=True)] == (
        [False] * 2 + [True] * 4
    )
    with pytest.raises(RuntimeError, match=r"Adam: since eval\(\) .* call train\(\) before step"):
        optimizer.step()
    optimizer.train()
    assert same(weights(model), before)


# Weights to evaluate.

WITH_ANSWER = {
    "ema": lambda p: optim.AdamW(p, ema_decay=0.9),
    "ema of momentum in 8 bits": lambda p: optim.Momentum(p, lr=0.01, ema_decay=0.9, state="8bit"),
    "ema of matrices": lambda p: optim.Muon(p, ema_decay=0.9),
    "ema of a look-ahead": lambda p: optim.NAG(p, lr=0.01, form="lookahead", ema_decay=0.9),
    "ema of norms": lambda p: optim.LAMB(p, ema_decay=0.9),
    "ASGD": lambda p: optim.ASGD(p, lr=0.1, t0=0),
    "Schedule-Free SGD": lambda p: optim.ScheduleFreeSGD(p, lr=0.1),
    "Schedule-Free AdamW": lambda p: optim.ScheduleFreeAdamW(p),
}
ANSWERS = pytest.mark.parametrize("make", WITH_ANSWER.values(), ids=list(WITH_ANSWER))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@ANSWERS
def test_train_undoes_eval_bit_for_bit(make, dtype):
    models = network(dtype), network(dtype)
    looked, other = (make(m.parameters()) for m in models)
    looked.eval()  # before the first step there is nothing to put in place
    looked.train()
    for step in range(6):
        train(models[0], looked, 1, first=step)
        before = weights(models[0])
        looked.eval()
        looked.eval()
        if step > 1:  # the average of one point is that point
            assert not same(weights(models[0]), before)
        looked.train()
        looked.train()
        assert same(weights(models[0]), before)
    train(models[1], other, 6)
    assert same(weights(models[0]), weights(models[1]))


@ANSWERS
def test_no_step_between_eval_and_train(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    optimizer.eval()
    before, called = weights(model), []
    with pytest.raises(RuntimeError, match=r"since eval\(\) .* call train\(\) before step\(\)"):
        optimizer.step(lambda: called.append(1))
    assert not called
    assert same(weights(model), before)


@ANSWERS
def test_a_checkpoint_of_evaluation_resumes(make):
    whole, model, other = network(), network(), network(seed=1)
    train(whole, make(whole.parameters()), 8)
    optimizer = make(model.parameters())
    train(model, optimizer, 4)
    optimizer.eval()
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights_saved, state_saved = torch.load(file, weights_only=True)
    after = make(other.parameters())
    other.load_state_dict(weights_saved)
    after.load_state_dict(state_saved)
    with pytest.raises(RuntimeError, match="call train"):
        after.step()
    after.train()
    train(other, after, 4, first=4)
    assert same(weights(other), weights(whole))


@ANSWERS
def test_a_copy_made_in_evaluation_resumes(make):
    whole, model = network(), network()
    train(whole, make(whole.parameters()), 8)
    optimizer = make(model.parameters())
    train(model, optimizer, 4)
    optimizer.eval()
    other, its = copy.deepcopy((model, optimizer))
    its.train()
    train(other, its, 4, first=4)
    assert same(weights(other), weights(whole))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("ScheduleFreeSGD", "SGDScheduleFree"), ("ScheduleFreeAdamW", "AdamWScheduleFree")],
)
def test_schedule_frees_x(name, theirs):
    peer = pytest.importorskip("schedulefree")
    models = network(), network()
    options = {"lr": 0.01, "weight_decay": 0.01, "warmup_steps": 4}
    ours = getattr(optim, name)(models[0].parameters(), **options)
    other = getattr(peer, theirs)(models[1].parameters(), **options)
    for first in (0, 6):
        other.train()
        train(models[0], ours, 6, first)
        train(models[1], other, 6, first)
        assert distance(*models) < 1e-12  # y
        ours.eval()
        other.eval()
        assert distance(*models) < 1e-12  # x
        ours.train()


def test_asgd_answers_with_torchs_average():
    models = network(), network()
    ours = optim.ASGD(models[0].parameters(), lr=0.1, t0=3, lambd=1e-2)
    theirs = torch.optim.ASGD(models[1].parameters(), lr=0.1, t0=3, lambd=1e-2)
    train(models[0], ours, 10)
    train(models[1], theirs, 10)
    kept = [ours.state[p]["ax"].clone() for p in models[0].parameters()]
    ours.eval()
    assert same(weights(models[0]), kept)
    for a, p in zip(kept, models[1].parameters(), strict=True):
        assert (a - theirs.state[p]["ax"]).norm() < 1e-6 * a.norm()  # its rate is in float32


def test_rules_that_do_not_average_have_nothing_to_put_in_place():
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 2)
    before = weights(model)
    optimizer.eval()
    assert same(weights(model), before)
    train(model, optimizer, 1, first=2)


# Gradients set to zero in the same pass.


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [(entry, torch.float32) for entry in CASES.values()]
    + [(CASES[name], torch.bfloat16) for name in ("adam", "lamb", "muon")],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_clear_grad_leaves_zeros_and_the_same_weights(entry, dtype):
    models = network(dtype), network(dtype)
    clearing, plain = (
        entry.constructor(m.parameters(), clear_grad=clear, clip_norm=1.0, **arguments(entry))
        for m, clear in zip(models, (True, False), strict=True)
    )
    for step in range(5):
        # No zero_grad: the next gradients are added to zeros, in the same place.
        loss_of(models[0], step).backward()
        before = [p.grad for p in models[0].parameters()]
        clearing.step()
        for p, g in zip(models[0].parameters(), before, strict=True):
            assert p.grad is g
            assert not g.any()
        plain.zero_grad()
        loss_of(models[1], step).backward()
        plain.step()
    # Two kernels, which the compiler is free to fuse differently.
    assert distance(*models) < (entry.tolerance[0] if dtype == torch.float32 else 1e-2)


def test_clear_grad_of_what_the_kernel_does_not_take():
    parameters = some()
    optim.Adam(parameters, clear_grad=True).step()
    assert not any(p.grad.any() for p in parameters)
