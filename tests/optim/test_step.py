"""What torch.optim's step does besides the update."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.optim.cases import CASES, ROWS, TORCH_ROWS
from tests.optim.digits import closure, distance, loss_of, network, train
from thalweg import optim


def pair(entry, groups=None, **changes):
    """Ours and torch's, each on a model of its own."""
    models = network(), network()
    mine, oracle = dict(entry.valid[0].arguments), dict(entry.valid[0].oracle)
    made = [
        constructor(groups(model) if groups else model.parameters(), **{**arguments, **changes})
        for constructor, arguments, model in zip(
            (entry.constructor, entry.oracle), (mine, oracle), models, strict=True
        )
    ]
    return models, made


@ROWS
def test_closures_return_the_loss_and_may_run_under_no_grad(entry):
    model = network()
    optimizer = entry.constructor(model.parameters())
    expected = loss_of(model, 0).item()
    with torch.no_grad():
        assert optimizer.step(closure(model, optimizer, 0)).item() == expected
    assert optimizer.step() is None


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20, cycle_momentum=False),
    "cosine after warm-up": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 15)],
        [5],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=list(SCHEDULERS))
@TORCH_ROWS
def test_torchs_schedulers(entry, schedule):
    models, made = pair(entry)
    for model, optimizer in zip(models, made, strict=True):
        scheduler = schedule(optimizer)
        with warnings.catch_warnings():
            # torch's own SequentialLR passes its epoch in a way that it warns of.
            warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
            train(model, optimizer, 20, after=lambda _, s=scheduler: s.step())
    assert made[0].param_groups[0]["lr"] == made[1].param_groups[0]["lr"]
    assert distance(*models) < entry.tolerance[1]


def test_one_cycle_also_moves_momentum_and_betas():
    for name in ("adam", "momentum"):
        models, made = pair(CASES[name])
        for model, optimizer in zip(models, made, strict=True):
            cycle = lr_scheduler.OneCycleLR(optimizer, 0.05, 20)
            train(model, optimizer, 20, after=lambda _, s=cycle: s.step())
        assert distance(*models) < 1e-12


def _split(model):
    parameters = list(model.named_parameters())
    return [
        {"params": [p for n, p in parameters if "weight" in n], "maximize": False, "lr": 3e-3},
        {"params": [p for n, p in parameters if "bias" in n]},
    ]


@TORCH_ROWS
def test_groups_with_their_own_hyperparameters(entry):
    models, made = pair(entry, _split)
    for model, optimizer in zip(models, made, strict=True):
        train(model, optimizer, 20)
    assert distance(*models) < entry.tolerance[1]
    ungrouped = network()
    train(ungrouped, entry.constructor(ungrouped.parameters(), **entry.valid[0].arguments), 20)
    assert distance(models[0], ungrouped) > 1e-6


@TORCH_ROWS
def test_a_group_added_in_mid_training(entry):
    models, made = pair(entry, lambda model: list(model.parameters())[:2])
    for model, optimizer in zip(models, made, strict=True):
        train(model, optimizer, 5)
        added = list(model.parameters())[2:]
        if isinstance(optimizer, torch.optim.Adagrad):  # torch forgets to start their state
            optimizer.state.update(
                {p: {"step": torch.tensor(0.0), "sum": torch.zeros_like(p)} for p in added}
            )
        optimizer.add_param_group({"params": added, "lr": 1e-2})
        train(model, optimizer, 5, first=5)
    assert distance(*models) < entry.tolerance[1]


@TORCH_ROWS
def test_a_frozen_parameter_appears_at_the_third_step(entry):
    models, made = pair(entry)
    for model, optimizer in zip(models, made, strict=True):
        frozen = model[2].weight
        frozen.requires_grad_(False)
        train(model, optimizer, 2)
        assert torch.equal(frozen, network()[2].weight)
        frozen.requires_grad_(True)
        train(model, optimizer, 8, first=2)
        model[4].bias.requires_grad_(False)
        train(model, optimizer, 3, first=10)
    assert distance(*models) < entry.tolerance[1]
    assert made[0].state[models[0][2].weight]["step"] == 11
    assert made[0].state[models[0][4].bias]["step"] == 10


@pytest.mark.parametrize("set_to_none", [True, False])
@TORCH_ROWS
def test_zero_grad(entry, set_to_none):
    models, made = pair(entry)
    for model, optimizer in zip(models, made, strict=True):
        for step in range(10):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model, step).backward()
            optimizer.step()
            if step == 5:
                # Without gradients nothing moves; with zeros, momentum goes on.
                optimizer.zero_grad(set_to_none=set_to_none)
                optimizer.step()
    assert distance(*models) < entry.tolerance[1]


def test_hooks_see_every_step():
    model = network()
    optimizer = optim.Adam(model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    train(model, optimizer, 2)
    assert seen == ["before", "after"] * 2


def test_a_tensor_as_learning_rate():
    lr = torch.tensor(2.0**-7)
    models = network(), network()
    a = optim.Adam(models[0].parameters(), lr=lr)
    b = torch.optim.Adam(models[1].parameters(), lr=2.0**-7)
    train(models[0], a, 3)
    train(models[1], b, 3)
    lr.fill_(0.5)
    b.param_groups[0]["lr"] = float(lr)
    train(models[0], a, 3, first=3)
    train(models[1], b, 3, first=3)
    assert distance(*models) < 1e-12


def test_autograd_notices_that_parameters_changed():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    old = loss_of(model, 0)
    loss_of(model, 1).backward()
    before = [p._version for p in model.parameters()]
    optimizer.step()
    assert [p._version > v for p, v in zip(model.parameters(), before, strict=True)] == [True] * 6
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()


def test_parameters_without_gradient_keep_their_version():
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    p.grad = torch.ones(3)
    before = q._version
    optim.SGD([p, q], lr=0.1).step()
    assert q._version == before
    assert q.tolist() == [1, 1, 1]


def test_training_lowers_the_loss():
    for entry in CASES.values():
        model = network(torch.float32)
        first = loss_of(model, 0).item()
        rate = math.sqrt(math.prod(entry.lr_range))
        train(model, entry.constructor(model.parameters(), lr=rate), 112)
        assert loss_of(model, 0).item() < 0.97 * first, entry.name


def test_look_ahead_needs_a_closure():
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = optim.NAG([p], lr=0.1, form="lookahead")
    with pytest.raises(ValueError, match=r"NAG: .*needs a closure"):
        optimizer.step()
    assert p.tolist() == [1, 1, 1]


def test_look_ahead_restores_the_parameters_when_the_closure_raises():
    model = network()
    optimizer = optim.NAG(model.parameters(), lr=0.1, form="lookahead")
    train(model, optimizer, 3)
    before = [p.detach().clone() for p in model.parameters()]
    moved = []

    def fails():
        moved.append(not torch.equal(next(model.parameters()), before[0]))
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"):
        optimizer.step(fails)
    assert moved == [True]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("dtype", "state", "tolerance"),
    [
        # Three steps, each of which rounds by at most 2^-24, 2^-9, 2^-12, 2^-9 and 2 / 127.
        (torch.float32, None, 1e-6),
        (torch.bfloat16, None, 8e-3),
        (torch.float16, None, 1e-3),
        (torch.float32, "bfloat16", 8e-3),
        (torch.bfloat16, "8bit", 5e-2),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_look_ahead_goes_to_the_same_point_in_any_precision(dtype, state, tolerance, transposed):
    seen = []
    for kind in (dtype, torch.float64):
        p = torch.linspace(-2, 2, 600, dtype=torch.float64).to(kind).reshape(20, 30)
        p = (p.t().contiguous().t() if transposed else p).requires_grad_()
        optimizer = optim.NAG([p], lr=0.1, form="lookahead", **({"state": state} if state else {}))
        points = []
        for _ in range(4):
            optimizer.zero_grad()  # so that there are no gradients while it looks ahead

            def evaluate(p=p, points=points):
                points.append(p.detach().double().clone())
                p.grad = p.detach().clone()

            optimizer.step(evaluate)
        seen.append(points)
        state = None
    for a, b in zip(*seen, strict=True):
        assert (a - b).norm() < tolerance * b.norm()
    assert (seen[1][3] - seen[1][0]).norm() > 0.1 * seen[1][0].norm()


def test_look_ahead_and_torchs_form_in_two_groups():
    models = network(), network()
    halves = [
        [{"params": list(m.parameters())[:2]}, {"params": list(m.parameters())[2:], "form": form}]
        for m, form in zip(models, ("lookahead", "torch"), strict=True)
    ]
    train(models[0], optim.NAG(halves[0], lr=0.05), 5)
    assert torch.isfinite(models[0][0].weight).all()
    seen = []
    optimizer = optim.NAG(halves[1], lr=0.05)
    train(models[1], optimizer, 5, after=seen.append)
    assert seen == list(range(5))
    assert distance(*models) > 1e-6


# Elementwise, sums over each tensor, sums over all, whole matrices and the rest.
KINDS = pytest.mark.parametrize("name", ["adam", "lamb", "prodigy", "muon"])


@KINDS
def test_clip_norm_is_as_clipping_beforehand(name):
    inside, by_hand = network(), network()
    arguments = CASES[name].valid[0].arguments
    train(inside, CASES[name].constructor(inside.parameters(), **arguments, clip_norm=0.1), 20)
    optimizer = CASES[name].constructor(by_hand.parameters(), **arguments)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(by_hand, step).backward()
        assert torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1) > 0.1
        optimizer.step()
    # Prodigy's estimate multiplies its own rounding.
    assert distance(inside, by_hand) < CASES[name].tolerance[1]


@KINDS
def test_the_moving_average_of_weights(name):
    model = network()
    arguments = CASES[name].valid[0].arguments
    optimizer = CASES[name].constructor(model.parameters(), **arguments, ema_decay=0.9)
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(5):
        train(model, optimizer, 1, first=step)
        average = [
            0.9 * e + 0.1 * p.detach() for e, p in zip(average, model.parameters(), strict=True)
        ]
    optimizer.eval()
    torch.testing.assert_close(list(map(torch.Tensor.detach, model.parameters())), average)


def test_whoever_looks_on_sees_every_step_once():
    seen = []

    class Own(optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    for constructor in (optim.SGD, Own, torch.optim.SGD):
        model = network()
        optimizer = constructor(model.parameters(), lr=0.1)
        train(model, optimizer, 2)
        with torch.profiler.profile() as profile:
            train(model, optimizer, 2, first=2)
        label = f"Optimizer.step#{constructor.__name__}.step"
        assert {e.key: e.count for e in profile.key_averages()}[label] == 2
        handles = [
            optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
            register_optimizer_step_post_hook(lambda *_: seen.append("any")),
        ]
        train(model, optimizer, 2, first=4)
        for handle in handles:
            handle.remove()
        train(model, optimizer, 1, first=6)
        assert seen == ["before", "any"] * 2
        seen.clear()


def test_a_step_inside_of_what_is_compiled():
    models, made = [network(), network()], []
    for model in models:
        made.append(optim.Adam(model.parameters(), lr=1e-2))
    compiled = torch.compile(made[0].step, backend="eager")
    for step in range(5):
        for model, optimizer in zip(models, made, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
        compiled()
        made[1].step()
    assert distance(*models) == 0.0


def test_to_import_it_imports_neither_compiler_nor_tables():
    heavy = "torch._dynamo", "numba", "pandas", "plotly", "sklearn", "scipy"
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, thalweg.optim; print({set(heavy)} & {{*sys.modules}})",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "set()\n"
