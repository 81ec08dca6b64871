import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

from thalweg.rules.code import digest
from thalweg.tasks import TaskError, load
from thalweg.tasks.networks import cnn, mlp, resnet


def size(make):
    return sum(p.numel() for p in make().parameters())


def test_mlp():
    widths = 7, 5, 4, 3
    assert [str(layer) for layer in mlp(*widths)()] == [
        "Linear(in_features=7, out_features=5, bias=True)", "ReLU()",
        "Linear(in_features=5, out_features=4, bias=True)", "ReLU()",
        "Linear(in_features=4, out_features=3, bias=True)",
    ]  # fmt: skip
    assert size(mlp(*widths)) == sum(a * b + b for a, b in pairwise(widths))
    assert str(load("wine").model()) == str(mlp(13, 32, 32, 3)())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 9)], ids=str)
@pytest.mark.parametrize("make", [cnn, resnet])
def test_outputs_of_any_image(make, shape):
    model = make(shape, 7)()
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_cnn_has_the_parameters_of_its_layers():
    expected = 16 * (9 * 3 + 1) + 32 * (9 * 16 + 1) + 64 * (32 * 8 * 8 + 1) + 10 * 65
    assert size(cnn((3, 32, 32), 10)) == expected


# Table 6 of the paper, in millions; and 20 by hand: convolutions, two numbers a channel for each
# normalisation, the last layer.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnets_of_the_paper(depth, millions):
    make = resnet((3, 32, 32), 10, depth=depth)
    assert round(size(make) / 1e6, 2) == millions
    weighted = [p for p in make().modules() if isinstance(p, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


def test_resnet_20_by_hand():
    stages = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    assert size(resnet((3, 32, 32), 10, 20)) == stages + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 650


def test_shortcuts_carry_the_input():
    """With all convolutions zero, what is left of a block is its shortcut."""
    model = resnet((3, 8, 8), 5)().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.first.weight.zero_()
            block.second.weight.zero_()
        x = torch.rand(2, 16, 8, 8)
        found = model.blocks(x)
    torch.testing.assert_close(found[:, :16], x[..., ::4, ::4])
    assert not found[:, 16:].any()


def test_factories_are_told_apart_and_can_be_sent():
    made = [mlp(3, 2), mlp(3, 4, 2), cnn((1, 8, 8), 2), cnn((1, 8, 8), 3), resnet((1, 8, 8), 2, 14)]
    assert len({digest(make) for make in made}) == len(made)
    for make in made:
        again = pickle.loads(pickle.dumps(make))
        assert digest(again) == digest(make)
        assert str(again()) == str(make())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: mlp(3), "model"),
        (lambda: mlp(3, 0), "model"),
        (lambda: cnn((1, 3, 9), 2), "shape"),
        (lambda: cnn((0, 8, 8), 2), "shape"),
        (lambda: cnn((1, 8, 8), 0), "classes"),
        (lambda: resnet((1, 8, 8), 2, depth=9), "depth"),
        (lambda: resnet((1, 8, 8), 2, depth=2), "depth"),
        (lambda: resnet((1, 8, 8), 2, width=0), "width"),
    ],
)
def test_what_cannot_be_made(make, argument):
    with pytest.raises(TaskError) as raised:
        make()
    assert raised.value.argument == argument
