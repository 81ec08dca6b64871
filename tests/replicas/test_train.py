"""Replicas against single runs, divergence, fallback, buffers and randomness."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import thalweg.optim
from tests.replicas import models
from thalweg import rules, schedules
from thalweg.optim.registry import BUILT_IN, OPTIMIZERS
from thalweg.replicas import Budget, Programs, Replica, Training, probe, train
from thalweg.replicas.update import _Group
from thalweg.tasks import Metric, load

BUDGET = Budget(steps=18, batch_size=16, steps_per_epoch=6)


def replica(rule=rules.ADAM, seed=0, **hyper):
    return Replica(rule, rule.complete(hyper), seed)


def curves(task, replicas, budget=BUDGET, **options):
    """Per replica the (train loss, validation loss, validation metric) of each epoch it saw."""
    found = [[] for _ in replicas]
    for evaluation in train(task, replicas, budget, **options):
        for i, r in enumerate(evaluation.replicas):
            found[r].append(
                (
                    evaluation.train_loss[i],
                    evaluation.validation_loss[i],
                    evaluation.validation_metric[i],
                )
            )
    return [np.array(curve) for curve in found]


def by_hand(task, entry, lr, seed, budget, schedule=None):
    """The same run as a plain loop with a torch optimizer of ours."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = entry.constructor(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(seed)
    found, step = [], 0
    while step < budget.steps:
        index = torch.randperm(len(task.train), generator=order)
        losses = []
        for i in range(min(budget.steps_per_epoch, budget.steps - step)):
            batch = index[i * budget.batch_size : (i + 1) * budget.batch_size]
            optimizer.zero_grad()
            loss = task.loss.of(model(task.train.x[batch]), task.train.y[batch])
            loss.backward()
            if schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = lr * schedule(step + i)
            optimizer.step()
            losses.append(loss.item())
        step += len(losses)
        optimizer.eval()
        with torch.no_grad():
            outputs = model(task.validation.x)
        optimizer.train()
        found.append(
            (
                np.mean(losses),
                task.loss.of(outputs, task.validation.y).item(),
                task.metric.of(outputs, task.validation.y).item(),
            )
        )
    return np.array(found)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replica_is_the_plain_loop(name):
    entry = OPTIMIZERS[name]
    task = load("digits")
    lr = float(np.sqrt(np.prod(entry.lr_range)))
    budget = Budget(steps=40, batch_size=32, steps_per_epoch=33)
    found = curves(task, [replica(entry.rule, seed=3, lr=lr)], budget)[0]
    # float32 sums in another order; 40 steps amplify the last places.
    np.testing.assert_allclose(
        found, by_hand(task, entry, lr, 3, budget), rtol=2e-4, atol=1 / len(task.validation)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replica_with_a_schedule_is_the_plain_loop(name):
    entry = OPTIMIZERS[name]
    task = load("digits")
    lr = float(np.sqrt(np.prod(entry.lr_range)))
    budget = Budget(steps=40, batch_size=32, steps_per_epoch=33)
    schedule = (schedules.warmup(5) + schedules.cosine(25)).hold()
    scheduled = replace(replica(entry.rule, seed=3, lr=lr), schedule=schedule)
    # Others in the chunk have schedules of their own, or none.
    others = [
        replica(entry.rule, seed=3, lr=lr),
        replace(replica(entry.rule, seed=3, lr=lr / 2), schedule=schedules.exp(0.9)),
    ]
    found = curves(task, [others[0], scheduled, others[1]], budget)
    np.testing.assert_allclose(
        found[1],
        by_hand(task, entry, lr, 3, budget, schedule),
        rtol=2e-4,
        atol=1 / len(task.validation),
    )
    alone = curves(task, [others[0]], budget)[0]
    np.testing.assert_allclose(found[0], alone, rtol=2e-4, atol=1 / len(task.validation))
    assert not np.allclose(found[0], found[1], rtol=2e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coefficients_found_at_once_are_those_of_each_step(name):
    rule = OPTIMIZERS[name].rule
    schedule = schedules.inv(0.1, 1)
    members = [replace(replica(rule, lr=lr), schedule=schedule) for lr in (0.01, 0.1, 1.0)]
    group = _Group(
        rule.resolve(members[0].hyper, (4, 4)), [0, 1, 2], members, [torch.zeros(3, 4, 4)], [0]
    )
    for step in (1, 2, 5, 63, 64, 65, 200):
        hypers = [{**m.hyper, "lr": m.hyper["lr"] * schedule(step - 1)} for m in members]
        expected = [group.rule.row(h, step, s) for h, s in zip(hypers, group._scalars, strict=True)]
        # Powers of arrays and of numbers differ in the last place, which RAdam enlarges.
        np.testing.assert_allclose(group._rows_of(step), expected, rtol=1e-10)


def test_schedules_of_replicas_that_leave_leave_with_them():
    task = models.task(models.convolutional)
    calm = replace(replica(rules.SGD, lr=0.1), schedule=schedules.cosine(18).hold())
    wild = [replica(rules.SGD, lr=1e6)] * 5
    found = curves(task, [*wild, calm])
    assert all(len(curve) < 3 for curve in found[:5])
    np.testing.assert_allclose(found[5], curves(task, [calm])[0], rtol=1e-4, atol=1e-6)


def test_in_pieces_the_same_as_at_once():
    task = load("digits")
    budget = Budget(steps=70, batch_size=32, steps_per_epoch=33)
    pair = [replica(rules.ADAM, seed=s, lr=1e-3) for s in (0, 1)]
    whole, pieces = Training(task, pair, budget), Training(task, pair, budget)
    at_once = whole.advance(70)
    in_turn = np.concatenate([pieces.advance(n) for n in (1, 30, 10, 29)])
    np.testing.assert_array_equal(at_once, in_turn)


@pytest.mark.parametrize("model", [models.dropout, models.batch_norm, models.Branches])
def test_gradients_of_small_batches_at_the_present_weights(model):
    task = models.task(model)
    training = Training(
        task, [replica(rules.SGD, seed=s, lr=0.1) for s in (0, 1)], Budget(8, 16, 8)
    )
    training.advance(3)
    before = [training.tensors_of(i) for i in (0, 1)]
    index = torch.arange(2 * 3 * 8).reshape(2, 3, 8)
    found = training.gradients(index)
    for place in (0, 1):
        after = training.tensors_of(place)
        assert all(torch.equal(after[n], t) for n, t in before[place].items())
    if model is models.dropout:  # draws its own
        assert all(g.isfinite().all() for g in found)
        return
    for place in (0, 1):
        module = task.model().train()
        for batch in range(3):
            module.load_state_dict(before[place])
            module.zero_grad()
            x, y = task.train[index[place, batch]]
            task.loss.of(module(x), y).backward()
            for p, g in zip(module.parameters(), found, strict=True):
                torch.testing.assert_close(g[place, batch], p.grad, rtol=1e-4, atol=1e-6)


def test_alone_and_among_63_others_the_same_curve():
    task = load("digits")
    budget = Budget(steps=66, batch_size=32, steps_per_epoch=33)
    rates = np.geomspace(1e-4, 1e-2, 8)
    crowd = [
        replica(entry.rule, seed=seed, lr=float(lr))
        for entry in (OPTIMIZERS["adam"], OPTIMIZERS["rmsprop"])
        for seed in (0, 1, 2, 3)
        for lr in rates
    ]
    assert len(crowd) == 64
    together = curves(task, crowd, budget)
    for i in (0, 17, 63):
        alone = curves(task, [crowd[i]], budget)[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1 / len(task.validation))


@pytest.mark.parametrize("model", [models.mlp, models.batch_norm, models.dropout])
def test_a_diverging_neighbour_changes_nothing(model):
    task = models.task(model)
    calm = [replica(rules.SGD, lr=lr) for lr in (0.01, 0.03, 0.1)]
    # The wild one starts as the third calm one does, so that the chunks have one shape.
    without = curves(task, [*calm, replica(rules.SGD, lr=0.1)])
    wild = curves(task, [*calm, replica(rules.SGD, lr=1e12)])
    assert len(wild[3]) < len(without[3])
    for a, b in zip(without[:3], wild[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_divergence_is_seen_at_its_step():
    task = models.task(models.mlp)
    # The weights are finite after the first step and the loss of the second is not.
    first = next(train(task, [replica(rules.SGD, lr=0.1), replica(rules.SGD, lr=1e30)], BUDGET))
    assert first.diverged_at.tolist()[0] == 0
    assert first.diverged_at.tolist()[1] == 2


def test_all_diverged_ends_the_chunk():
    task = models.task(models.mlp)
    evaluations = list(train(task, [replica(rules.SGD, lr=1e30)] * 3, BUDGET))
    assert len(evaluations) == 1
    assert (evaluations[0].diverged_at > 0).all()


def test_survivors_go_on_when_most_have_left():
    task = models.task(models.mlp)
    calm = [replica(rules.ADAM, seed=1, lr=0.01), replica(rules.MOMENTUM, lr=0.02)]
    wild = [replica(rules.SGD, lr=1e30, seed=s) for s in range(6)]
    mixed = [wild[0], calm[0], *wild[1:5], calm[1], wild[5]]
    found = curves(task, mixed)
    apart = curves(task, calm)
    for i, j in ((1, 0), (6, 1)):
        assert len(found[i]) == 3
        np.testing.assert_allclose(found[i], apart[j], rtol=1e-5, atol=1e-6)
    evaluation = list(train(task, mixed, BUDGET))[-1]
    assert evaluation.replicas.tolist() == [1, 6]
    assert np.isfinite(evaluation.test_metric).all()
    assert (evaluation.seconds > 0).all()


def test_stopped_replicas_leave():
    task = models.task(models.mlp)
    pair = [replica(lr=0.01), replica(lr=0.02)]
    seen = [e.replicas.tolist() for e in train(task, pair, BUDGET, stop=lambda e: [0])]
    assert seen == [[0, 1], [1], [1]]


def test_look_ahead_takes_the_gradient_ahead():
    """NAG's two forms are one path, up to where the parameters are stored."""
    task = models.task(models.mlp)
    budget = Budget(steps=1, batch_size=16, steps_per_epoch=1)
    hyper = {"lr": 0.05, "momentum": 0.9}
    one = curves(task, [replica(rules.NAG, form="lookahead", **hyper)], budget)
    plain = curves(task, [replica(rules.SGD, lr=0.05)], budget)
    # With no velocity yet the point ahead is the point itself: step one is plain descent.
    np.testing.assert_allclose(one[0], plain[0], rtol=1e-6)
    several = Budget(steps=12, batch_size=16, steps_per_epoch=6)
    ahead = curves(task, [replica(rules.NAG, form="lookahead", **hyper)], several)[0]
    stored = curves(task, [replica(rules.NAG, **hyper)], several)[0]
    # Both take their gradients at the same points, so that the training losses agree.
    np.testing.assert_allclose(ahead[:, 0], stored[:, 0], rtol=1e-4)
    assert not np.allclose(ahead[:, 1], stored[:, 1], rtol=1e-4)


@pytest.mark.parametrize(
    "model", [models.mlp, models.batch_norm, models.Tied, models.frozen, models.convolutional]
)
def test_one_by_one_gives_the_same_records(model):
    task = models.task(model)
    assert probe(task, 16, "cpu").backend == "eager"
    run = replica(rules.MOMENTUM, seed=2, lr=0.05, weight_decay=1e-3)
    together = curves(task, [run, replica(rules.SGD, seed=1, lr=0.1)])[0]
    alone = curves(task, [run], backend="one by one")[0]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_what_vmap_cannot_take_is_said_and_trained_one_by_one():
    task = models.task(models.Branches)
    program = probe(task, 16, "cpu")
    backend, why = program.backend, program.note
    assert backend == "one by one"
    assert "asks for the value of a tensor" in why
    line = "return out * 2 if out.sum() > 0 else out"
    source = Path(models.__file__).read_text().splitlines()
    number = next(i for i, text in enumerate(source, 1) if line in text)
    assert f"at models.py:{number}, `{line}`" in why
    before, *_, after = curves(task, [replica(lr=0.01)], backend=backend)[0]
    assert after[0] < before[0]


def test_a_broken_model_is_the_persons_error_not_a_fallback():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe(models.task(lambda: nn.Linear(5, 3)), 16, "cpu")


def test_batch_norm_statistics_belong_to_each_replica():
    task = models.task(models.batch_norm)
    pair = [replica(rules.SGD, seed=s, lr=0.05) for s in (0, 1)]
    for i, expected in enumerate(pair):
        np.testing.assert_allclose(
            curves(task, pair)[i], curves(task, [expected])[0], rtol=1e-4, atol=1e-5
        )


def test_dropout_draws_for_every_replica_and_is_repeatable():
    task = models.task(models.dropout)
    twins = [replica(rules.SGD, lr=0.05), replica(rules.SGD, lr=0.05)]
    a, b = curves(task, twins, draw_seed=5)
    assert not np.allclose(a, b)
    again, _ = curves(task, twins, draw_seed=5)
    np.testing.assert_array_equal(a, again)
    other, _ = curves(task, twins, draw_seed=6)
    assert not np.allclose(a, other)


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    curves(models.task(models.dropout), [replica(lr=0.01)])
    assert torch.equal(before, torch.get_rng_state())


def test_compiled_is_eager_within_rounding():
    task = models.task(models.mlp)
    pair = [replica(lr=0.01), replica(rules.SGD, lr=0.1)]
    programs = {}
    compiled = curves(task, pair, backend="compiled", programs=programs)
    assert [p.backend for p in programs.values()] == ["compiled"]
    for a, b in zip(compiled, curves(task, pair), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_double_precision_and_large_state():
    base = models.task(lambda: models.mlp().double())
    split = lambda s: replace(s, x=s.x.double())  # noqa: E731
    task = replace(
        base, train=split(base.train), validation=split(base.validation), test=split(base.test)
    )
    found = curves(task, [replica(lr=0.01), replica(rules.RMSPROP, lr=0.01, centered=True)])
    assert all(c[-1, 0] < c[0, 0] for c in found)


def test_a_rule_of_ones_own_trains_as_a_replica():
    from thalweg.rules import Number, Rule
    from thalweg.rules.maths import sign

    def update(p, g, m, lr, beta, gain):
        m = beta * m + gain * g
        return p - lr * sign(m), m

    own = Rule(
        "Mine",
        (Number("lr", 0.01, low=0.0), Number("beta", 0.9, low=0.0, high=1.0)),
        ("average",),
        lambda hyper, step: (hyper["lr"], hyper["beta"], 1 - hyper["beta"]),
        update,
    )
    found = curves(models.task(models.mlp), [replica(own, lr=0.01), replica(lr=0.01)])
    assert found[0][-1, 0] < 0.8 * found[0][0, 0]


def test_thalweg_optim_has_the_constructors_of_the_registry():
    for name in BUILT_IN:
        constructor = OPTIMIZERS[name].constructor
        assert getattr(thalweg.optim, constructor.__name__) is constructor


def test_only_passes_that_share_nothing_run_in_several_threads():
    concurrent = {
        model.__name__: probe(models.task(model), 16, "cpu").concurrent
        for model in (models.mlp, models.batch_norm, models.dropout, models.Branches)
    }
    assert concurrent == {"mlp": True, "batch_norm": True, "dropout": False, "Branches": False}


class Counting(nn.Module):
    """Is another at every second call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (2 if self.calls % 2 else 1)


def test_a_model_that_is_another_at_every_call_is_not_frozen():
    programs: Programs = {}
    pair = [Replica(rules.SGD, rules.SGD.complete({"lr": lr}), 0) for lr in (0.01, 0.02)]
    budget = Budget(steps=4, batch_size=8, steps_per_epoch=2)
    assert len(list(train(models.task(Counting), pair, budget, programs=programs))) == 2
    (program,) = programs.values()
    assert "another at every call" in program.note
    assert program.tape is None
    assert not program.concurrent


class Pair(nn.Module):
    """Outputs that are no tensor of samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return {"all": self.layer(x), "scale": self.layer.weight.square().mean()}


def rmse(outputs, y):
    values = outputs["all"] if isinstance(outputs, dict) else outputs
    return (values.softmax(-1).amax(-1) - y).square().mean().sqrt()


def entropy(outputs, y):
    return nn.functional.cross_entropy(outputs["all"] if isinstance(outputs, dict) else outputs, y)


@pytest.mark.parametrize("model", [models.mlp, models.batch_norm, Pair])
def test_a_metric_that_is_no_mean_is_that_of_the_whole_set(model, monkeypatch):
    """However many runs train together, which decides how large the pieces are."""
    made = models.task(model, loss=entropy)
    task = replace(made, metric=Metric("rmse", rmse, higher_is_better=False))
    chunk = [Replica(rules.ADAM, rules.ADAM.complete({"lr": 0.01}), seed) for seed in range(3)]
    budget = Budget(steps=6, batch_size=16, steps_per_epoch=6)
    (whole,) = train(task, chunk, budget)
    monkeypatch.setattr(sys.modules["thalweg.replicas.train"], "PIECE", 12 * 20)
    (pieces,) = train(task, chunk, budget)
    np.testing.assert_allclose(pieces.test_metric, whole.test_metric, rtol=1e-5)
    np.testing.assert_allclose(pieces.validation_metric, whole.validation_metric, rtol=1e-5)
    np.testing.assert_allclose(pieces.test_loss, whole.test_loss, rtol=1e-5)
