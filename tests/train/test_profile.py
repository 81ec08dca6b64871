import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import thalweg
from thalweg import optim
from thalweg.errors import ArgumentError
from thalweg.tasks import Split, Task
from thalweg.train import Engine, Recipe
from thalweg.train.profile import changes as made_of
from thalweg.train.profile.changes import Change, Tried, changes_for, threshold_of, together
from thalweg.train.profile.machine import measured
from thalweg.train.profile.memory import Memory, Saved, memory_of
from thalweg.train.profile.running import Gain, Running, gain_of
from thalweg.train.profile.stages import PARTS, Clock, _on_device, outside, stages_of, stalls
from thalweg.train.profile.work import Work, flops_of, moved, work_of

CPU = torch.device("cpu")
NO_MEMORY = Memory(0, 0, 0, 0, 0, 0)
LONG = 0.003  # seconds, that a part of a step takes on purpose


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def task_of(model, samples=100, **others):
    generator = torch.Generator().manual_seed(0)
    parts = [
        Split(torch.randn(n, 8, generator=generator), torch.randn(n, 4, generator=generator))
        for n in (samples, 20, 20)
    ]
    return Task(
        model=model, train=parts[0], validation=parts[1], test=parts[2], loss="mse", **others
    )


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Spinning(nn.Module):
    """Python that computes nothing, in the forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        spin(LONG)
        if float(x.sum()) > 1e30:  # which nobody can compile
            return self.inner(2 * x)
        return self.inner(x)


@torch.library.custom_op("thalweg_test::slow", mutates_args=())
def slow(x: torch.Tensor) -> torch.Tensor:
    time.sleep(LONG)
    return x.clone()


class InOperator(Spinning):
    """The same time within an operator."""

    def forward(self, x):
        return self.inner(slow(x))


class Held(torch.autograd.Function):
    """Python in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        spin(LONG)
        return gradient


class Backward(Spinning):
    def forward(self, x):
        return Held.apply(self.inner(x))


# Memory, by hand. The network has 212 parameters: 8 * 16 + 16 + 16 * 4 + 4, in four tensors.

STEPS = 4 * 4  # a count of steps for each tensor


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 4 * 212),
        (partial(torch.optim.Adam, lr=0.1), 2 * 4 * 212 + STEPS),
        (partial(optim.SGD, lr=0.1), STEPS),
        (partial(optim.Momentum, lr=0.1), 4 * 212 + STEPS),
        (partial(optim.Adam, lr=0.1), 2 * 4 * 212 + STEPS),
        # A byte for each, and a float32 for every 256 of a tensor.
        (partial(optim.Adam, lr=0.1, state="8bit"), 2 * (212 + 4 * 4) + STEPS),
        (partial(optim.Adam, lr=0.1, state="bfloat16"), 2 * 2 * 212 + STEPS),
    ],
)
def test_memory_is_that_of_hand_arithmetic(make, state):
    model = mlp()
    optimizer = make(model.parameters())
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    functional.mse_loss(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    found = memory_of(model, optimizer, (x, y), lambda: functional.mse_loss(model(x), y))
    assert found == Memory(
        parameters=4 * 212,
        gradients=4 * 212,
        optimizer_state=state,
        # What ReLU gave, which the second layer saves too, and the outputs that the loss needs.
        activations=4 * 32 * (16 + 4),
        buffers=0,
        batch=4 * 32 * (8 + 4),
    )


def test_buffers_and_frozen_parameters_are_counted_and_not_again_as_activations():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    data = torch.randn(100, 8)
    x, y = data[:32], torch.randn(32, 4)  # a view of all data is as large as itself
    found = memory_of(model, optimizer, (x, y), lambda: functional.mse_loss(model(x), y))
    assert found == Memory(
        parameters=4 * (16 + 32 + 4),
        gradients=4 * (16 + 4),
        optimizer_state=0,
        # Mean and inverse deviation of the batch, an empty reserve, and the outputs.
        activations=4 * (8 + 8) + 4 * 32 * 4,
        buffers=4 * (8 + 8) + 8,
        batch=4 * 32 * (8 + 4),
    )


def test_views_are_one_piece_and_what_is_let_go_is_none():
    w = torch.randn(64, requires_grad=True)
    with Saved() as saved:
        h = w * 2
        total = (h.view(8, 8) * h.reshape(4, 16).view(8, 8)).sum()
        gone = w.exp().sum()
        assert saved.bytes_beside([]) == 2 * 256  # h, and what the exponential gave
        del gone
        assert saved.bytes_beside([]) == 256
    torch.sin(w)  # outside
    assert saved.bytes_beside([h]) == 0
    total.backward()
    torch.testing.assert_close(w.grad, 8 * w.detach())


def test_operations_and_bytes_are_those_of_hand_arithmetic():
    model = mlp()
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    products = 2 * 32 * (8 * 16 + 16 * 4)
    assert flops_of(lambda: functional.mse_loss(model(x), y)) == {
        "forward": products,
        "backward": products + 2 * 32 * 16 * 4,  # and the second layer's inputs
        "optimizer": 0,
    }
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    images = torch.randn(2, 3, 6, 7)
    found = flops_of(lambda: convolution(images).sum())
    assert found["forward"] == 2 * (2 * 6 * 7) * (3 * 3 * 3) * 5
    assert moved(Memory(1, 10, 100, 1000, 10_000, 100_000)) == {
        "forward": 100_000 + 1 + 1000,
        "backward": 100_000 + 1 + 1000 + 10,
        "optimizer": 10 + 2 * 1 + 2 * 100,
    }
    half = work_of({"forward": 8, "backward": 12, "optimizer": 0}, Memory(1, 2, 4, 8, 16, 32), 0.5)
    assert half == {
        "forward": Work(4, 1 + (8 + 32) // 2),
        "backward": Work(6, 1 + (8 + 32) // 2 + 2),
        "optimizer": Work(0, 2 + 2 * 1 + 2 * 4),
    }


# Time.


def test_what_lies_outside_of_operators_by_hand():
    start = [100, 110, 140, 210, 300, 305, 350]
    end = [150, 130, 145, 280, 400, 330, 360]
    operator = np.array([True, True, False, True, False, True, True])
    ends = [("begin", 90), ("forward", 200), ("backward", 290), ("forward", 410)]
    given = np.array(start), np.array(end), operator, ends
    # Forward: 110 + 120 long, of which 50 + 25 + 10 in operators; backward 90, of which 70.
    assert outside(*given) == pytest.approx({"forward": 1 - 85 / 230, "backward": 1 - 70 / 90})
    # Each event took 2: six of them in forward, of which the second and third within an operator.
    assert outside(*given, cost=2.0) == pytest.approx(
        {"forward": 1 - (85 - 4) / (230 - 12), "backward": 1 - 70 / 88}
    )


def test_stalls_of_a_device_by_hand():
    kernels = [(0, 10, 0), (5, 20, 1), (30, 40, 25), (70, 90, 60), (95, 100, 61)]
    parts = ["forward", "forward", "forward", "optimizer", "optimizer"]
    found = stalls(kernels, parts, [(35, 45), (62, 93)])
    # From 40 to 70 it waits since the host waited for it at 40. At 90 the host waited too, but what
    # came next had been asked for; the other gaps are the host's.
    assert found["forward"] == pytest.approx((30e-9, 10e-9, 0.0))
    assert found["optimizer"] == pytest.approx((25e-9, 35e-9, 30e-9))
    assert stalls([], [], []) == {}


def test_what_a_profiler_saw_of_a_gpu_is_told_apart():
    def event(kind, start, end, number=0, name=""):
        return SimpleNamespace(
            activity_type=lambda: kind, start_ns=lambda: start, end_ns=lambda: end,
            correlation_id=lambda: number, name=lambda: name,
        )  # fmt: skip

    events = [
        event("cpu_op", 10, 30, 1, "aten::mm"),  # whose numbers are others
        event("cuda_runtime", 20, 25, 1, "cudaLaunchKernel"),
        event("cuda_runtime", 60, 62, 2, "cudaLaunchKernel"),
        event("cuda_runtime", 63, 160, 3, "cudaStreamSynchronize"),
        event("cuda_driver", 170, 171, 4, "cuLaunchKernel"),
        event("kernel", 30, 80, 1, "gemm"),
        event("kernel", 90, 150, 2, "gemm"),
        event("kernel", 190, 200, 4, "triton"),
        event("gpu_user_annotation", 30, 200, 0, "Optimizer.step"),
    ]
    ends = [("begin", 0), ("forward", 50), ("backward", 165), ("optimizer", 220)]
    spans = {"forward": 50e-9, "backward": 90e-9, "optimizer": 60e-9}
    python, waiting = _on_device(events, ends, 1, spans)
    # Forward is all work, backward 60 of 90, optimizer 10 of 60; before that the host waited.
    assert python == pytest.approx({"forward": 0, "backward": 30e-9, "optimizer": 0}, abs=1e-15)
    assert waiting == pytest.approx({"forward": 0, "backward": 0, "optimizer": 50e-9}, abs=1e-15)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("model", "part", "is_python"),
    [(Spinning, "forward", True), (InOperator, "forward", False), (Backward, "backward", True)],
)
def test_python_is_what_no_operator_does(model, part, is_python, threads):
    found = stages_of(Running(task_of(model), Recipe(), CPU, 1))
    assert list(found.parts) == list(PARTS)
    assert sum(found.parts.values()) == pytest.approx(found.step, rel=1e-9)
    whole = sum(found.spans.values())
    assert whole == pytest.approx(found.step, rel=1e-9)
    assert found.parts["synchronisation"] == 0
    assert found.step > LONG
    assert found.spans[part] > found.step / 2
    assert (found.python[part] > found.spans[part] / 2) == is_python
    assert found.parts[part] == pytest.approx(found.spans[part] - found.python[part])


@pytest.mark.parametrize("name", ["adam", torch.optim.Adam])
def test_a_kernel_is_an_operator(name, threads):
    # Three million parameters take longer than the Python around them, by whichever code.
    wide = task_of(lambda: nn.Sequential(nn.Linear(8, 250_000), nn.Linear(250_000, 4)), 4)
    found = stages_of(Running(wide, Recipe(optimizer=name, batch_size=1), CPU, 1))
    assert found.python["optimizer"] < found.spans["optimizer"] / 2


def test_waiting_for_data_is_data():
    x, y = torch.randn(16, 8), torch.randn(16, 4)

    class Slow:
        def __len__(self):
            return 3

        def __iter__(self):
            for _ in range(3):
                time.sleep(LONG)
                yield x, y

    engine = Engine(task_of(mlp), Recipe(prefetch=0), 9, loader=Slow())
    clock = Clock()
    engine.advance(1)
    clock.begin()
    clock("begin")
    engine.advance(6, clock)
    found = clock.read(6)
    assert found["data"] >= LONG
    assert found["data"] > sum(found.values()) / 2


def test_each_turn_begins_with_the_initial_weights(threads):
    running = Running(task_of(mlp), Recipe(optimizer="sgd", lr=0.5), CPU, 1)
    torch.manual_seed(Recipe().seed)
    initial = mlp().state_dict()
    running.pace = 1.0  # of slow steps none is left out before the clock runs
    begun = []

    def mark(part):
        if part == "begin":
            begun.append({k: v.clone() for k, v in running.engine.module.state_dict().items()})

    running.turn(mark)
    running.turn(mark)
    torch.testing.assert_close(begun, [initial, initial], rtol=0, atol=0)
    assert not torch.equal(running.engine.module[0].weight, initial["0.weight"])


def test_half_as_fast_is_found_out(threads):
    class Slower(Spinning):
        def forward(self, x):
            spin(2 * LONG)
            return super().forward(x)

    slow = Running(task_of(Slower), Recipe(), CPU, 1)
    fast = Running(task_of(Spinning), Recipe(), CPU, 1)
    found = gain_of(slow, fast)
    assert found.low <= found.gain <= found.high
    assert found.low > 0.2  # three times as fast, but for what else there is to do
    assert gain_of(fast, slow).high < 0


def test_the_machine_reaches_more_than_a_small_product(threads):
    torch.set_num_threads(1)
    found = measured(CPU, torch.float32)
    small = torch.ones(8, 8)
    start = time.perf_counter()
    torch.mm(small, small)
    assert found.flops > 2 * 8**3 / (time.perf_counter() - start)
    assert (found.dtype, found.threads) == ("float32", 1)
    assert math.log2(found.rows) % 1 == 0
    assert found.bytes > 0


# Changes.


def of_kind(kind, recipe, task=None, memory=NO_MEMORY):
    found = changes_for(task or task_of(mlp), recipe, CPU, 1, memory)
    return [change for change in found if change.kind == kind]


def stepped(make):
    torch.manual_seed(0)
    model = mlp()
    optimizer = make(list(model.parameters()))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(3, 8)).square().sum().backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize(
    ("name", "lr", "ways"),
    [
        ("adam", 0.01, 2),
        ("momentum:momentum=0.8", 0.01, 2),
        ("nag", 0.01, 2),
        ("rmsprop:alpha=0.9", 0.01, 1),  # which torch has not fused
        ("adamw:betas=0.8/0.9:weight_decay=0.1", 0.01, 2),
    ],
)
def test_the_same_optimizer_by_torchs_code(name, lr, ways):
    recipe = Recipe(optimizer=name, lr=lr)
    found = of_kind("optimizer", recipe)
    assert len(found) == ways
    ours = stepped(lambda ps: made_of.make(recipe, ps).optimizer)
    for change in found:
        other = replace(recipe, **change.fields)
        theirs = made_of.make(other, [nn.Parameter(torch.ones(2))]).optimizer
        assert type(theirs).__module__.startswith("torch.optim")
        torch.testing.assert_close(stepped(other.optimizer), ours)
    assert bool(theirs.defaults.get("fused")) == (ways == 2)


@pytest.mark.parametrize("name", ["adam:state=8bit", "momentum:form=ewma", "lion"])
def test_no_code_of_torchs_does_the_same(name):
    assert of_kind("optimizer", Recipe(optimizer=name)) == []


def test_thalwegs_code_for_torchs():
    maker = partial(torch.optim.AdamW, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    ours, fused = of_kind("optimizer", Recipe(optimizer=maker))
    assert ours.words == "Thalweg's AdamW instead of torch's"
    assert fused.words == "torch's fused AdamW"
    torch.testing.assert_close(stepped(ours.fields["optimizer"]), stepped(maker))
    torch.testing.assert_close(stepped(fused.fields["optimizer"]), stepped(maker))


def test_batches_are_as_large_as_data_and_memory_allow(monkeypatch):
    twice, four = of_kind("batch_size", Recipe(batch_size=25))
    assert (twice.fields, four.fields) == ({"batch_size": 50}, {"batch_size": 100})
    assert "learning rate" in twice.caution
    assert not twice.refused
    monkeypatch.setattr("thalweg.train.profile.machine.available_memory", lambda: 1000)
    # Twice the batch, and twice that of what is saved for the backward pass, as it is at its peak.
    memory = replace(NO_MEMORY, batch=10, activations=240)
    twice, four = of_kind("batch_size", Recipe(batch_size=25), memory=memory)
    assert not twice.refused
    assert four.refused == "needs about 1.96 kB, 1 kB are free"


def test_what_is_set_already_is_not_tried():
    recipe = Recipe(hybridize=True, prefetch=2, precision="bfloat16")
    found = changes_for(task_of(mlp), recipe, CPU, 1, NO_MEMORY)
    assert not {"hybridize", "prefetch"} & {change.kind for change in found}
    assert [c.words for c in found if c.kind == "precision"] == ["float32"]
    assert 1 not in [c.threads for c in found]


def test_samples_are_those_of_the_batches_that_were_taken():
    running = Running(task_of(mlp, samples=3, batch_size=2), Recipe(), CPU, 1)
    running.turn = lambda: float(len(running.engine.advance(1)))  # a second
    running.turn_steps = 1
    speeds = [running.speed() for _ in range(2)]
    running.engine.window()
    assert [running.speed() for _ in range(2)] == speeds[::-1]
    assert sorted(speeds) == [1, 2]


def test_a_model_is_compiled_for_the_last_batch_before_it_is_timed():
    task = task_of(lambda: nn.Linear(8, 4), samples=4 * 1000 + 3, batch_size=4)
    running = Running(task, Recipe(hybridize=True), CPU, 1)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    running.engine.advance(1000)
    assert running.engine.epoch == 2
    assert running.engine.model.reason is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def one(kind, gain, low, high, caution="", **fields):
    change = Change(kind, f"{kind} {gain}", fields, caution=caution)
    return Tried(change, Gain(gain, low, high))


def test_what_is_within_the_noise_is_none():
    assert threshold_of([one("nothing", 0.01, -0.1, 0.1)]) == 0.02
    assert threshold_of([one("nothing", -0.05, -0.1, 0.1)]) == 0.05
    assert one("threads", 0.3, 0.06, 0.4).verdict(0.05) == "faster"
    assert one("threads", 0.3, 0.04, 0.4).verdict(0.05) == "none"
    assert one("threads", -0.3, -0.4, -0.04).verdict(0.05) == "none"
    assert one("threads", -0.3, -0.4, -0.06).verdict(0.05) == "slower"
    assert Tried(Change("threads", "2 threads"), None).verdict(0.05) == "not tried"


def test_the_best_of_each_kind_are_joined():
    found = [
        one("hybridize", 0.5, 0.4, 0.6, hybridize=True),
        one("optimizer", 0.2, 0.1, 0.3, optimizer="a"),
        one("optimizer", 0.3, 0.2, 0.4, optimizer="b"),
        one("batch_size", 3.0, 2.0, 4.0, "another training", batch_size=64),
        one("precision", -0.2, -0.3, -0.1, "other numbers", precision="bfloat16"),
        Tried(Change("threads", "2 threads", threads=2), None, reason="no"),
    ]
    same, every = together(found, 0.02)
    assert same.fields == {"hybridize": True, "optimizer": "b"}
    assert same.words == "optimizer 0.3 + hybridize 0.5"
    assert (same.caution, every.caution) == ("", "another training")
    assert every.fields == {"hybridize": True, "optimizer": "b", "batch_size": 64}
    assert together(found[:1], 0.02) == []
    assert len(together(found[:3], 0.02)) == 1


# All of it.


@pytest.fixture(scope="module")
def found():
    """A real profile of a model that nothing compiles."""
    task = task_of(Spinning, name="spinning")
    before = torch.get_num_threads(), torch.get_rng_state(), random.getstate()
    level = os.environ.get("KINETO_LOG_LEVEL")
    doing = []
    profile = thalweg.profile(task, torch.optim.Adam, 0.01, batch_size=50, progress=doing.append)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert os.environ.get("KINETO_LOG_LEVEL") == level
    assert "trying bfloat16" in doing
    return profile


def test_a_profile_adds_up(found):
    assert (found.optimizer, found.lr, found.batch_size) == ("torch.optim.Adam", 0.01, 50)
    assert found.parts["share"].sum() == pytest.approx(1)
    assert found.kinds["bytes"].sum() == found.memory.total
    assert found.memory.activations == 4 * 50 * (16 + 4)
    assert found.memory.optimizer_state == 2 * 4 * 212 + STEPS
    reached = found.reached.set_index("part")
    assert reached.loc["whole step", "flops"] == 2 * 50 * (2 * (8 * 16 + 16 * 4) + 16 * 4)
    rates = reached["flops"] / reached["seconds"] / found.machine.flops
    np.testing.assert_allclose(rates, reached["of_flops"])
    assert math.isnan(reached.loc["optimizer", "flops"])
    assert (reached["of_flops"].dropna() < 1).all()
    python = found.parts.set_index("part").loc["python", "share"]
    assert python == found.parts["share"].max()


def test_each_change_was_tried_or_says_why_not(found):
    changes = found.changes.set_index("kind")
    assert {"nothing", "prefetch", "batch_size", "precision", "hybridize"} <= set(changes.index)
    # Twice the samples in the same time, nearly all of which is spent waiting.
    assert changes.loc["batch_size", "gain"] > 0.3
    assert changes.loc["nothing", "verdict"] == "none"
    assert found.changes["gain"].dropna().is_monotonic_decreasing
    speeds = found.changes["samples_per_second"] / found.samples_per_second
    np.testing.assert_allclose(speeds, 1 + found.changes["gain"])
    untried = changes.loc["hybridize"]
    assert untried["verdict"] == "not tried"
    assert "test_profile.py" in untried["reason"]


def test_json_has_all_of_it(found):
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert plain["stages"] == found.stages.parts
    assert sum(plain["stages"].values()) == pytest.approx(plain["step_seconds"])
    assert plain["memory"]["parameters"] == 4 * 212
    assert plain["reached"][2]["flops"] is None
    assert {row["verdict"] for row in plain["changes"]} <= {"faster", "slower", "none", "not tried"}
    assert plain["advice"] == found.advice


def test_advice_says_what_was_seen(found):
    def advice(*tried):
        return replace(found, tried=tried, together=(), threshold=0.02).advice

    assert advice(one("threads", 0.01, -0.1, 0.1)).startswith("Nothing that was tried makes this")
    assert "is Python between operators" in advice(one("threads", 0.01, -0.1, 0.1))
    quick = replace(one("hybridize", 0.5, 0.4, 0.6), once=12.3)
    assert advice(quick) == (
        "With hybridize 0.5 it gets through 1.5 times as many samples a second, and nothing else "
        "changes, once it has taken 12 s to compile."
    )
    batch = one("batch_size", 2.0, 1.9, 2.1, "that is another training")
    assert advice(quick, batch).endswith(
        "; with batch_size 2.0 it gets through 3 times as many samples a second, but that is "
        "another training."
    )
    assert advice(batch).startswith("Nothing that was tried makes it faster and leaves")


def test_a_change_that_fails_says_why(threads):
    def broken(parameters):
        raise RuntimeError("no such optimizer\nat all")

    task, recipe = task_of(mlp), Recipe()
    present = Running(task, recipe, CPU, 1)
    change = Change("optimizer", "broken", {"optimizer": broken, "lr": None})
    refused = Change("batch_size", "huge", {"batch_size": 2}, refused="too much")
    failed, too_much = made_of.tried(present, task, recipe, [change, refused], lambda doing: None)
    assert failed.gain is None
    assert failed.reason.startswith("RuntimeError: no such optimizer at test_profile.py:")
    assert too_much == Tried(refused, None, reason="too much")


def test_the_profiler_is_quiet():
    """In a process of its own, as what it says is settled when a process first profiles."""
    script = (
        "from tests.train.test_profile import *\n"
        "stages_of(Running(task_of(mlp), Recipe(), CPU, 1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "argument", "said"),
    [
        ({"task": 3}, "task", "must be a name or a thalweg.Task, got 3"),
        ({"task": "nosuch"}, "task", "there is no task 'nosuch'"),
        ({"optimizer": "adm"}, "optimizer", "there is no 'adm'; did you mean"),
        ({"optimizer": "torch.adm"}, "optimizer", "there is no 'torch.adm'; torch.optim has"),
        ({"optimizer": lambda parameters: 3}, "optimizer", "made a int"),
        ({"optimizer": torch.optim.SGD, "lr": -1.0}, "lr", "must be positive and finite, got -1.0"),
        ({"optimizer": partial(torch.optim.SGD), "lr": 1.0}, "lr", "give it in your function"),
        ({"lr": math.inf}, "lr", "must be positive and finite, got inf"),
        ({"batch_size": 0}, "batch_size", "must be a whole number of at least 1, got 0"),
        ({"batch_size": 101}, "batch_size", "101 is more than the 100 training samples"),
        ({"precision": "float8"}, "precision", "must be one of float32, bfloat16, float16"),
        ({"device": "tpu"}, "device", "must be cpu or cuda, got 'tpu'"),
        ({"device": "cuda:99"}, "device", "GPUs here, got 'cuda:99'"),
        ({"optimizer": "torch.sparseadam"}, "task", "the first steps of its training raise"),
        ({"task": task_of(lambda: nn.Linear(9, 4))}, "task", "shape"),
    ],
)
def test_what_cannot_be_is_refused(arguments, argument, said):
    with pytest.raises(ArgumentError) as refused:
        thalweg.profile(**{"task": task_of(mlp), **arguments})
    assert refused.value.argument == argument
    assert said in refused.value.problem
    assert "\n" not in refused.value.problem
