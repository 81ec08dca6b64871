"""A traced step is the step: same operations, fewer calls, equal to the last bit."""

import pytest
import torch
from torch.func import functional_call, grad_and_value, vmap

from tests.replicas import models
from thalweg.replicas.program import stack
from thalweg.replicas.trace import straighten
from thalweg.tasks import load

aten = torch.ops.aten


def example(task, replicas: int):
    model, parameters, _ = stack(task, range(replicas), "cpu")

    def loss(parameters, x, y):
        named = dict(zip(model.parameters, parameters, strict=True))
        return task.loss.of(functional_call(model.train, named, (x,)), y)

    step = vmap(grad_and_value(loss), in_dims=(0, None, None))
    return step, (parameters, task.train.x[:8], task.train.y[:8])


@pytest.mark.parametrize("model", [models.mlp, models.Tied, models.convolutional])
def test_equal_to_the_last_bit(model):
    step, arguments = example(models.task(model), 5)
    expected, losses = step(*arguments)
    found, traced_losses = straighten(step, arguments)(*arguments)
    assert torch.equal(losses, traced_losses)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_other_values_of_the_same_shape():
    step, arguments = example(models.task(models.mlp), 5)
    traced = straighten(step, arguments)
    other = ([p * 1.5 for p in arguments[0]], arguments[1] - 1, arguments[2].flip(0))
    for a, b in zip(step(*other)[0], traced(*other)[0], strict=True):
        assert torch.equal(a, b)


def test_shorter_than_what_vmap_makes_of_it():
    step, arguments = example(load("digits"), 3)
    calls = [n.target for n in straighten(step, arguments).graph.nodes if n.op == "call_function"]
    assert calls.count(aten.baddbmm.default) == 3
    assert aten.mul.Scalar not in calls
    assert not any(c is aten.add.Tensor and i < 10 for i, c in enumerate(calls))


def test_control_flow_on_values_is_not_baked_in():
    step, arguments = example(models.task(models.Branches), 2)
    with pytest.raises(RuntimeError, match=r"data-dependent|Dynamic control flow"):
        straighten(step, arguments)
