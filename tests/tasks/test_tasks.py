import pytest
import torch

import thalweg
from thalweg.tasks import TASKS, load
from thalweg.tasks.losses import cross_entropy


@pytest.mark.parametrize("name", TASKS)
def test_parts_are_disjoint_and_standardised_on_training_data_alone(name):
    task = load(name)
    mean, spread = task.train.x.mean(0), task.train.x.std(0, correction=0)
    assert mean.abs().max() < 1e-5
    assert all(abs(s - 1) < 1e-4 or s == 0 for s in spread.tolist())
    # Fitted elsewhere, the other parts are near but not at zero mean.
    assert task.validation.x.mean(0).abs().max() > 1e-3
    parts = [len(p) for p in (task.train, task.validation, task.test)]
    assert abs(parts[1] - parts[2]) <= 1
    rows = {tuple(r) for r in task.train.x.tolist()}
    if name != "wine":
        seen = sum(tuple(r) in rows for r in task.test.x.tolist())
        assert seen <= 1


def test_digits_are_the_real_ones():
    task = load("digits")
    assert len(task.train) + len(task.validation) + len(task.test) == 1797
    assert task.parameters == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert sorted(task.train.y.unique().tolist()) == list(range(10))


def test_cross_entropy_is_torchs():
    torch.manual_seed(0)
    outputs = 30 * torch.randn(50, 7)
    y = torch.randint(0, 7, (50,))
    expected = torch.nn.functional.cross_entropy(outputs, y)
    assert torch.allclose(cross_entropy(outputs, y), expected, rtol=1e-6)


def test_fingerprint_changes_with_data():
    from dataclasses import replace

    task = load("wine")
    shifted = replace(task, train=replace(task.train, x=task.train.x + 1))
    assert shifted.fingerprint != task.fingerprint


def test_unknown_task():
    with pytest.raises(ValueError, match=r"there is no task 'mnist'; there are digits"):
        load("mnist")


@pytest.mark.parametrize(("inputs", "targets"), [(3, 2), (0, 0)])
def test_a_split_of_nothing_or_of_unequal_parts(inputs, targets):
    with pytest.raises(ValueError, match=f"it got {inputs} inputs and {targets} targets"):
        thalweg.Split(torch.zeros(inputs, 2), torch.zeros(targets))
