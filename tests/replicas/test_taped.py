"""Tapes against the traced program, with which they share nothing but the graph."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

import thalweg
from tests.replicas import models
from tests.replicas.test_train import curves, replica
from thalweg import rules
from thalweg.optim.registry import MAIN, OPTIMIZERS
from thalweg.replicas import Budget, Programs, train
from thalweg.replicas.lower import Lowering, Refused
from thalweg.replicas.program import Program, build, stack
from thalweg.replicas.taped import Tape, TrainingTape
from thalweg.replicas.trace import straighten
from thalweg.tasks import TASKS, Split, Task, load

programs_module = importlib.import_module("thalweg.replicas.program")

BUDGET = Budget(steps=5, batch_size=16, steps_per_epoch=3)
Example = tuple[list[Tensor], list[Tensor], Tensor, Tensor]


def example(task: Task, replicas: int = 3, shared: bool = True, batch: int = 8) -> Example:
    _, parameters, constants = stack(task, range(replicas), "cpu")
    index = torch.arange(batch) if shared else torch.arange(replicas * batch).view(replicas, batch)
    return parameters, constants, task.train.x[index], task.train.y[index]


def built(task: Task, replicas: int = 3, shared: bool = True) -> Program:
    parameters, constants, *batch = example(task, replicas, shared)
    model, *_ = stack(task, range(replicas), "cpu")
    return build(task, model, parameters, constants, tuple(batch), shared, "eager")


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[GraphModule, Program]]:
    """A task's step as the tape is made from it, and its program."""

    def make(task: Task, replicas: int, shared: bool) -> tuple[GraphModule, Program]:
        seen: list[GraphModule] = []
        made = programs_module._taped
        monkeypatch.setattr(
            programs_module, "_taped", lambda e, s, *rest: (seen.append(s), made(e, s, *rest))[1]
        )
        program = built(task, replicas, shared)
        monkeypatch.setattr(programs_module, "_taped", made)
        return seen[0], program

    return make


@pytest.fixture
def taped_epochs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by one whenever a tape trains, so that no test passes by way of the fallback."""
    found: list[bool] = []
    train = TrainingTape.train

    def counted(self: TrainingTape, *arguments: Any) -> bool:
        found.append(train(self, *arguments))
        return found[-1]

    monkeypatch.setattr(TrainingTape, "train", counted)
    return found


def untaped(
    monkeypatch: pytest.MonkeyPatch, task: Task, *arguments: Any, **options: Any
) -> list[Any]:
    with monkeypatch.context() as context:
        context.setattr(programs_module, "_tape", lambda *_: None)
        return curves(task, *arguments, **options)


class Around(nn.Module):
    """Something between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(12, 16), nn.Linear(width, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def around(function: Callable[[Tensor], Tensor], width: int = 16) -> Task:
    return models.task(lambda: Around(function, width))


def lost(loss: Callable[[Tensor, Tensor], Tensor]) -> Task:
    return models.task(models.mlp, loss=loss)


def regression(width: int = 2) -> Task:
    base = models.task(
        lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, width)),
        loss=functional.mse_loss,
    )
    metric = replace(base.metric, of=lambda o, y: (o - y).abs().mean(), higher_is_better=False)
    split = lambda s: Split(s.x, torch.tanh(s.x[:, :width] - s.x[:, 2 : 2 + width]))  # noqa: E731
    return replace(
        base,
        metric=metric,
        train=split(base.train),
        validation=split(base.validation),
        test=split(base.test),
    )


def other_inputs(task: Task, change: Callable[[Tensor], Tensor]) -> Task:
    split = lambda s: Split(change(s.x), s.y)  # noqa: E731
    return replace(
        task,
        train=split(task.train),
        validation=split(task.validation),
        test=split(task.test),
    )


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def whole_numbers() -> Task:
    task = models.task(lambda: nn.Sequential(Cast(), *models.mlp()))
    return other_inputs(task, lambda x: (3 * x).long())


def of_images() -> Task:
    task = models.task(lambda: nn.Sequential(nn.Flatten(), *models.mlp()))
    return other_inputs(task, lambda x: x.reshape(-1, 3, 4))


def column_by_column() -> Task:
    return other_inputs(models.task(models.mlp), lambda x: x.t().contiguous().t())


def masked() -> Task:
    """Some samples are to be ignored, as `cross_entropy` has it."""
    task = models.task(models.mlp)
    y = task.train.y.clone()
    y[::5] = -100
    return replace(task, train=Split(task.train.x, y))


TAPED: dict[str, Callable[[], Task]] = {
    **{name: lambda name=name: load(name) for name in TASKS},
    "relu": lambda: models.task(models.mlp),
    "tanh": lambda: around(torch.tanh),
    "sigmoid": lambda: around(torch.sigmoid),
    "softmax": lambda: around(lambda h: h.softmax(-1)),
    "softplus": lambda: around(functional.softplus),
    "powers": lambda: around(lambda h: h.abs().log1p() ** 1.5 + h**3 - h.sign()),
    "clamped from below": lambda: around(lambda h: h.clamp(min=-0.5)),
    "clamped from above": lambda: around(lambda h: h.clamp_max(0.5) * h.clamp(max=0.25)),
    "smooth absolute error": lambda: regression().with_loss(
        lambda o, y: functional.smooth_l1_loss(o, y, beta=0.5)
    ),
    "tied": lambda: models.task(models.Tied),
    "masked": masked,
    "whole numbers": whole_numbers,
    "images": of_images,
    "column by column": column_by_column,
    "mean squared error": regression,
    "mean squared error of one": lambda: regression(1),
    "two layers of the same": lambda: models.task(
        lambda: nn.Sequential(
            nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
        )
    ),
}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Up to the rounding of sums in another order: relative to the largest of each replica."""
    assert found.shape == expected.shape
    a, b = found.double().reshape(len(found), -1), expected.double().reshape(len(found), -1)
    assert ((a - b).abs().amax(1) <= tolerance * b.abs().amax(1) + 1e-7).all()


@pytest.mark.parametrize("shared", [True, False], ids=["one batch", "own batches"])
@pytest.mark.parametrize("name", TAPED)
def test_a_tape_is_the_traced_step(
    name: str, shared: bool, straight: Callable[..., tuple[GraphModule, Program]]
) -> None:
    task = TAPED[name]()
    program, passes = straight(task, 3, shared)
    assert passes.tape is not None
    parameters, constants, x, y = example(task, 3, shared)
    each = [True] * len(parameters) + [not shared] * 2
    tape = Tape(program, each, 3)
    other = [p * 1.25 for p in parameters]
    for given, inputs in (([*parameters], x), ([*other], x + 1)):
        losses, gradients, _ = program(given, constants, inputs, y)
        found = tape([*given, inputs, y], 3)
        assert found is not None
        for a, b in zip(found, [losses, *gradients], strict=True):
            close(a, b)
    # For any number of replicas, with the numbers that each has in any company.
    fewer = tape([*(p[:2] for p in other), *((x, y) if shared else (x[:2], y[:2]))], 2)
    whole = tape([*other, x, y], 3)
    assert fewer is not None
    assert whole is not None
    for a, b in zip(fewer, whole, strict=True):
        assert torch.equal(a, b[:2])


@pytest.mark.parametrize("name", TAPED)
def test_a_tapes_evaluation_is_torchs(name: str) -> None:
    task = TAPED[name]()
    program = built(task)
    model, parameters, constants = stack(task, range(3), "cpu")
    losses, metrics = program.evaluate(parameters, constants, task.test.x, task.test.y)
    for i in range(3):
        own = [p[i] for p in parameters], [c[i] for c in constants]
        outputs = model.call(model.evaluate, *own, task.test.x)
        close(losses[i : i + 1], task.loss.of(outputs, task.test.y)[None].detach())
        close(metrics[i : i + 1], task.metric.of(outputs, task.test.y)[None].detach())


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)], ids=["one batch", "own batches"])
@pytest.mark.parametrize("name", TAPED)
def test_training_on_a_tape_is_training(
    name: str,
    seeds: tuple[int, ...],
    taped_epochs: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = TAPED[name]()
    replicas = [replica(rules.SGD, seed=s, lr=0.01 * 3**i) for i, s in enumerate(seeds)]
    found = curves(task, replicas, BUDGET)
    assert taped_epochs == [True, True]
    expected = untaped(monkeypatch, task, replicas, BUDGET)
    assert len(taped_epochs) == 2
    # A sample near the border between two classes may be counted for the other.
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-4)
        np.testing.assert_allclose(a[:, 2], b[:, 2], rtol=1e-4, atol=1 / len(task.validation))


@pytest.mark.parametrize(
    "name", [n for n, e in OPTIMIZERS.items() if not (e.rule.whole or e.rule.terms)]
)
def test_every_optimizer_trains_on_a_tape(
    name: str, taped_epochs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, task = OPTIMIZERS[name], load("wine")
    low, high = entry.lr_range
    rates = [float(lr) for lr in np.geomspace(low, (low * high) ** 0.5, 3)]
    replicas = [replica(entry.rule, seed=s, lr=lr) for s, lr in enumerate(rates)]
    found = curves(task, replicas, BUDGET)
    assert taped_epochs == [True, True]
    for a, b in zip(found, untaped(monkeypatch, task, replicas, BUDGET), strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-4)


def test_several_rules_at_once_and_a_look_ahead_among_them(
    taped_epochs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = models.task(models.mlp)
    mixed = [replica(OPTIMIZERS[n].rule, seed=i % 2, lr=0.01) for i, n in enumerate(MAIN)]
    found = curves(task, mixed, BUDGET)
    assert len(taped_epochs) == 2 * len(mixed)
    for a, b in zip(found, untaped(monkeypatch, task, mixed, BUDGET), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    ahead = [*mixed, replica(rules.NAG, lr=0.01, form="lookahead")]
    again = curves(task, ahead, BUDGET)
    assert len(taped_epochs) == 2 * len(mixed)
    for a, b in zip(again, found, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 96])
def test_batches_of_any_size(
    size: int, taped_epochs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, budget = models.task(models.mlp), Budget(steps=5, batch_size=size, steps_per_epoch=1)
    # As many as there are samples in a batch, which may not be taken for them.
    pair = [replica(rules.SGD, seed=s, lr=0.01) for s in (0, 1)]
    found = curves(task, pair, budget)
    assert taped_epochs == [True] * 5
    for a, b in zip(found, untaped(monkeypatch, task, pair, budget), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_when_those_who_look_ahead_have_left_the_others_go_on_on_a_tape(
    taped_epochs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, budget = models.task(models.mlp), Budget(steps=9, batch_size=16, steps_per_epoch=3)
    wild = [replica(rules.NAG, seed=s, lr=1e30, form="lookahead") for s in range(3)]
    mixed = [wild[0], replica(lr=0.01), *wild[1:], replica(rules.MOMENTUM, seed=1, lr=0.01)]
    found = curves(task, mixed, budget)
    assert taped_epochs == [True] * 4
    for a, b in zip(found, untaped(monkeypatch, task, mixed, budget), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_nothing_is_read_where_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        made = empty(*arguments, **options)
        if made.is_floating_point() and made.device.type == "cpu":
            flat = made.view(-1)
            flat[::2], flat[1::2] = np.inf, -np.inf
        return made

    task, budget = models.task(models.mlp), Budget(steps=12, batch_size=16, steps_per_epoch=4)
    three = [replica(rules.SGD, lr=lr) for lr in (0.01, 1e30, 0.02)]
    expected, empty = curves(task, three, budget), torch.empty
    monkeypatch.setattr(torch, "empty", poisoned)
    for a, b in zip(curves(task, three, budget), expected, strict=True):
        np.testing.assert_array_equal(a, b)


# What a tape cannot hold.


def with_buffer() -> nn.Module:
    model = models.mlp()
    model.register_buffer("unused", torch.zeros(2))
    return model


REFUSED: dict[str, Callable[[], Task]] = {
    "frozen": lambda: models.task(models.frozen),
    "batch norm": lambda: models.task(models.batch_norm),
    "dropout": lambda: models.task(models.dropout),
    "buffer": lambda: models.task(with_buffer),
    "convolutional": lambda: models.task(models.convolutional),
    "gelu": lambda: around(functional.gelu),
    "softmax": lambda: around(lambda h: h.softmax(0)),
    "branches": lambda: models.task(models.Branches),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_tape_cannot_hold_trains_without(name: str, taped_epochs: list[bool]) -> None:
    task = REFUSED[name]()
    assert built(task).tape is None
    backend = "one by one" if name == "branches" else "eager"
    before, *_, after = curves(task, [replica(lr=0.02)], backend=backend)[0]
    assert after[0] < before[0]
    assert not taped_epochs


# On a tape or not, these train, and give what torch gives.
OWN: dict[str, Callable[[], Task]] = {
    "chunks": lambda: around(lambda h: torch.mul(*h.chunk(2, -1)), 8),
    "splits": lambda: around(lambda h: torch.mul(*h.split(8, -1)), 8),
    "unbound": lambda: around(lambda h: torch.relu(torch.stack(h.unbind(-1), -1))),
    "slices": lambda: around(lambda h: torch.relu(h[:, 3:11]), 8),
    "a turn there and back": lambda: around(lambda h: torch.relu(h.t()).t().reshape(-1, 16)),
    "flattened": lambda: around(lambda h: torch.tanh(h.t()).t().flatten().reshape(h.shape)),
    "clamp": lambda: around(lambda h: h.clamp(min=-0.5)),
    "a loss of integers": lambda: lost(lambda o, y: 2 * functional.cross_entropy(o, y) + 1),
    "a sum": lambda: lost(lambda o, y: functional.cross_entropy(o, y, reduction="sum") / 8),
    "a mean of one": lambda: lost(lambda o, y: functional.cross_entropy(o, y).mean()),
    "one of several": lambda: lost(lambda o, y: ((o - y[:, None]) ** 2).mean(0)[2]),
    "smoothed": lambda: lost(lambda o, y: functional.cross_entropy(o, y, label_smoothing=0.1)),
    "weighted": lambda: lost(
        lambda o, y: functional.cross_entropy(o, y, weight=torch.tensor([1.0, 2.0, 3.0]))
    ),
    "two classes": lambda: lost(
        lambda o, y: functional.binary_cross_entropy_with_logits(o[:, 0], (y == 1).float())
    ),
    "absolute": lambda: lost(lambda o, y: functional.l1_loss(o[:, 0], y.float())),
    "of a largest": lambda: lost(lambda o, y: (o.amax(-1) - y).square().mean()),
}


@pytest.mark.parametrize("name", OWN)
def test_a_task_of_ones_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = OWN[name]()
    pair = [replica(rules.SGD, seed=s, lr=0.01) for s in (0, 1)]
    expected = untaped(monkeypatch, task, pair, BUDGET)
    found = curves(task, pair, BUDGET)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def traced(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    return straighten(lambda *x: [function(*x)], inputs)


def test_refusals_name_the_operation() -> None:
    with pytest.raises(Refused, match=r"aten\.erf\.default"):
        Lowering(traced(torch.erf, torch.ones(2, 3)), [True], 2)
    with pytest.raises(Refused, match=r"aten\.cumsum\.default"):
        Lowering(traced(lambda x: torch.cumsum(x * 2, 1), torch.ones(2, 3)), [True], 2)


@pytest.mark.parametrize(
    ("function", "inputs", "each", "why"),
    [
        (lambda x: x.sum(0, keepdim=True) * x, [torch.ones(2, 3)], [True], "dimensions|replicas"),
        (lambda x: x.flip(0), [torch.ones(2, 3)], [True], "flip"),
        (lambda x: x.t() * 2, [torch.ones(3, 3)], [True], "replicas"),
        (lambda x: x + 1, [torch.ones(2, 3, dtype=torch.float64)], [True], "float64"),
        (lambda x: x.double() * 2, [torch.ones(2, 3)], [True], "float64"),
        (lambda x: x + 1, [torch.ones(2, 0)], [True], "empty"),
        (lambda x: x, [torch.ones(2, 3)], [True], "not computed"),
        (lambda x: x + 1, [torch.ones(2, 3)], [False], "not computed"),
        (lambda x, y: x * y, [torch.ones(2, 3), torch.ones(2, 3)], [True, False], "all .* share"),
        (lambda x: x.add(x, alpha=2), [torch.ones(2, 3)], [True], "alpha=2"),
        (lambda x: x.logsumexp(1), [torch.ones(2, 3, 4)], [True], "last dimension"),
        (lambda x: x.softmax(1), [torch.ones(2, 3, 4)], [True], "last dimension"),
        (lambda x: functional.softplus(x, beta=2), [torch.ones(2, 3)], [True], "beta=2"),
        (lambda x: (x * 2).long(), [torch.ones(2, 3)], [True], "int64"),
    ],
)
def test_refusals(
    function: Callable[..., Tensor], inputs: list[Tensor], each: list[bool], why: str
) -> None:
    with pytest.raises(Refused, match=why):
        Lowering(traced(function, *inputs), each, 2 if len(inputs[0]) == 2 else 3)


def test_a_loss_that_is_a_part_of_something_larger_is_refused() -> None:
    # All of it would be written to where one number has its place.
    def step(p: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
        return [(p * x * y).sum(1).relu()[:, 1], p * 2]

    given = torch.ones(2, 3, 4), torch.ones(3, 4), torch.ones(3, 4)
    with pytest.raises(Refused):
        TrainingTape(
            straighten(lambda p, x, y: step(p, x[None, :, :], y), given),
            drawn=2,
            shared=True,
            replicas=2,
        )


# Independence.


def crowd() -> list[Any]:
    calm = [
        replica(entry.rule, seed=s, lr=float(np.sqrt(np.prod(entry.lr_range))))
        for entry in (OPTIMIZERS[n] for n in ("adam", "rmsprop", "momentum", "sgd"))
        for s in range(5)
    ]
    return [*calm, replica(rules.SGD, seed=1, lr=1e30)]


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_alone_and_in_a_crowd_equal_to_the_last_bit(name: str, taped_epochs: list[bool]) -> None:
    task, everybody = load(name), crowd()
    budget = Budget(steps=8, batch_size=16, steps_per_epoch=3)
    together = curves(task, everybody, budget)
    assert [len(c) for c in together] == [3] * 20 + [1]
    assert len(taped_epochs) == 4 * 3
    for i in (0, 7, 12, 18):
        taped_epochs.clear()
        alone = curves(task, [everybody[i]], budget)[0]
        assert taped_epochs == [True] * 3
        np.testing.assert_array_equal(alone, together[i])


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_pair_and_a_crowd_equal_to_the_last_bit(name: str, taped_epochs: list[bool]) -> None:
    task, everybody = load(name), crowd()
    budget = Budget(steps=8, batch_size=16, steps_per_epoch=3)
    together = curves(task, everybody, budget)
    for i, j in ((0, 20), (5, 7), (12, 18)):
        taped_epochs.clear()
        pair = curves(task, [everybody[i], everybody[j]], budget)
        assert set(taped_epochs) == {True}
        np.testing.assert_array_equal(pair[0], together[i])
        np.testing.assert_array_equal(pair[1], together[j])


def test_threads_share_a_tape() -> None:
    task, programs = load("digits"), Programs()
    budget = Budget(steps=33, batch_size=16, steps_per_epoch=11)
    teams = [[replica(rules.ADAM, seed=10 * i + s, lr=0.003) for s in range(4)] for i in range(2)]
    apart = [curves(task, team, budget, programs=programs) for team in teams]
    assert [p.tape is not None for p in programs.values()] == [True]
    assert not np.array_equal(apart[0], apart[1])
    start = Barrier(2)

    def together(team: list[Any]) -> list[Any]:
        start.wait()
        return curves(task, team, budget, programs=programs)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(together, teams), apart, strict=True):
                np.testing.assert_array_equal(found, expected)
    assert len(programs) == 1


def test_integers_that_float32_does_not_hold_train_without_a_tape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # They come after the first batch, so that the tape is made.
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        apart = outputs.logsumexp(-1) - y / 1e7
        return (apart * apart).mean()

    task = lost(loss)
    y = task.train.y.clone()
    y[seen_last()] = 2**24 + 1
    task = replace(task, train=Split(task.train.x, y))
    pair = [replica(rules.SGD, lr=lr) for lr in (0.01, 0.02)]
    expected = untaped(monkeypatch, task, pair, BUDGET)
    for a, b in zip(curves(task, pair, BUDGET), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


# Targets that the model has no output for.


def wrong(place: int, target: int = 7) -> Task:
    task = models.task(models.mlp)
    y = task.train.y.clone()
    y[place] = target
    return replace(task, train=Split(task.train.x, y))


def seen_last(seed: int = 0) -> int:
    """The sample that the first epoch ends with, so that building meets no error."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
    return int(order[BUDGET.steps_per_epoch * BUDGET.batch_size - 1])


@pytest.mark.parametrize("target", [7, 3, -1])
def test_a_target_outside_of_the_classes(target: int, taped_epochs: list[bool]) -> None:
    pair = [replica(rules.SGD, lr=lr) for lr in (0.01, 0.1)]
    with pytest.raises(IndexError, match="is no index into the model's outputs"):
        list(train(wrong(seen_last(), target), pair, BUDGET))
    assert taped_epochs == [False]


@pytest.mark.parametrize("place", [0, 90], ids=["in the probe", "in training"])
def test_a_study_of_it_says_so_before_it_trains(place: int) -> None:
    with pytest.raises(thalweg.StudyError, match=r"targets .* go up to 7, .* has 3 outputs"):
        thalweg.study(wrong(place), ["sgd"], lr=[0.01, 0.1], seeds=2, epochs=1)
