"""The first layer that looks weights up against `torch.nn.Linear` on what is written out."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn.functional import one_hot

from thalweg.tasks.tables import table
from thalweg.tasks.tables.network import LookupLinear, network

DENSE, LEVELS, OUTPUTS = 3, (7, 5), 4


def _layer(dense=DENSE):
    torch.manual_seed(0)
    return LookupLinear(dense, sum(LEVELS), OUTPUTS).double()


def _batch(dense=DENSE):
    r = np.random.default_rng(0)
    starts, total = np.cumsum((0, *LEVELS))[:-1], sum(LEVELS)
    codes = np.stack([s + r.integers(0, n, 50) for s, n in zip(starts, LEVELS, strict=True)], 1)
    codes[r.random(codes.shape) < 0.2] = total  # a category that there is none of
    x, codes = torch.from_numpy(r.normal(size=(50, dense))), torch.from_numpy(codes)
    written = one_hot(codes, total + 1).sum(1)[:, :total].double()
    return x, codes, torch.cat([x, written], 1)


def _linear(layer, dense=DENSE):
    linear = torch.nn.Linear(dense + sum(LEVELS), OUTPUTS).double()
    parts = [layer.table] if layer.weight is None else [layer.weight, layer.table]
    linear.weight.data = torch.cat([p.data for p in parts], 1)
    linear.bias.data = layer.bias.data.clone()
    return linear


@pytest.mark.parametrize("dense", [0, DENSE])
def test_outputs_and_gradients_are_those_of_a_linear_layer(dense):
    layer = _layer(dense)
    linear = _linear(layer, dense)
    x, codes, written = _batch(dense)
    ours, theirs = layer(x, codes), linear(written)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (ours**3).sum().backward()
    (theirs**3).sum().backward()
    found = [layer.table.grad] if dense == 0 else [layer.weight.grad, layer.table.grad]
    torch.testing.assert_close(torch.cat(found, 1), linear.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad, rtol=1e-10, atol=1e-10)


def test_an_unknown_category_adds_exactly_nothing():
    layer = _layer()
    x = torch.zeros(1, DENSE, dtype=torch.float64)
    out = layer(x, torch.full((1, 2), sum(LEVELS)))
    assert torch.equal(out[0], layer.bias)
    out.sum().backward()
    assert not layer.table.grad.any()


def test_copies_side_by_side():
    layer = _layer()
    x, codes, _ = _batch()
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    stacked = {n: torch.stack([s * p.detach() for s in scale]) for n, p in layer.named_parameters()}
    for p in stacked.values():
        p.requires_grad_()
    out = vmap(lambda p: functional_call(layer, p, (x, codes)))(stacked)
    gradients = torch.autograd.grad((out**2).sum(), list(stacked.values()))
    for i, s in enumerate(scale):
        alone = {n: (s * p).detach().requires_grad_() for n, p in layer.named_parameters()}
        expected = functional_call(layer, alone, (x, codes))
        torch.testing.assert_close(out[i], expected)
        wanted = torch.autograd.grad((expected**2).sum(), list(alone.values()))
        for ours, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours[i], theirs)


def test_initial_weights_are_spread_as_those_of_a_linear_layer():
    torch.manual_seed(0)
    layer = network(10, 990, (500,), 2).first
    linear = torch.nn.Linear(1000, 500)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in linear.parameters())
    for p in layer.parameters():
        assert p.abs().max() <= 1000**-0.5
        # A uniform distribution's; the bias has 500 values, whose standard error is 3 %.
        assert p.std().item() == pytest.approx((3 * 1000) ** -0.5, rel=0.1)


def test_a_linear_model_has_no_hidden_layers():
    assert [tuple(p.shape) for p in network(3, 0, (), 2).parameters()] == [(2, 3), (2,)]
    shapes = [tuple(p.shape) for p in network(3, 5, (), 2).parameters()]
    assert shapes == [(2, 3), (2, 5), (2,)]


def test_replicas_train_it():
    from thalweg.replicas.program import build, stack

    r = np.random.default_rng(0)
    codes = np.concatenate([np.arange(120), r.integers(0, 120, 480)])
    frame = pd.DataFrame({"x": r.normal(size=600), "c": [f"c{c}" for c in codes], "y": codes % 2})
    task = table(frame, "y", hidden=(8,))
    model, parameters, constants = stack(task, [0, 1, 2], "cpu")
    batch = task.train[torch.arange(32)]
    program = build(task, model, parameters, constants, batch, True, "eager")
    assert (program.backend, program.note) == ("eager", "")
    assert program.tape is not None
    losses, gradients, _ = program.step(parameters, constants, *batch)
    for i in range(3):
        alone = {n: p[i].clone().requires_grad_() for n, p in zip(model.parameters, parameters,
                                                                 strict=True)}  # fmt: skip
        loss = task.loss.of(functional_call(model.train, alone, batch[0]), batch[1])
        torch.testing.assert_close(losses[i], loss.detach())
        wanted = torch.autograd.grad(loss, list(alone.values()))
        for ours, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours[i], theirs, rtol=1e-4, atol=1e-6)
