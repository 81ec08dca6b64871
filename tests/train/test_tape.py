"""Small networks on a tape, held against torch's own passes."""

import pytest
import torch
from torch import nn

import thalweg
from tests.train.test_fit import equal
from thalweg.tasks import LOSSES, load
from thalweg.tasks.networks import mlp
from thalweg.train import Engine, Recipe
from thalweg.train.checkpoint import read
from thalweg.train.tape import LARGEST, shortcut

SIZES = {16, 5}


def classes(loss="cross_entropy", model=None):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(101, 6, generator=g), torch.randint(3, (101,), generator=g)
    return thalweg.Task(model=model or mlp(6, 12, 8, 3), train=(x, y), loss=loss, batch_size=16)


def made(task):
    torch.manual_seed(0)
    return task.model().train()


@pytest.mark.parametrize("loss", [*LOSSES, "focal=1.5", "label_smoothing=0.2", "huber=0.1"])
def test_loss_and_gradients_are_torchs(loss):
    task = classes(loss)
    model = made(task)
    run = shortcut(task, model, SIZES)
    kept = [p.data_ptr() for p in model.parameters()]
    for size in (16, 5, 16):
        x, y = task.train[torch.randperm(len(task.train))[:size]]
        found = run(x, y)
        gradients = [p.grad.clone() for p in model.parameters()]
        expected = task.loss.of(model(x), y)
        theirs = torch.autograd.grad(expected, list(model.parameters()))
        # float32 sums in another order
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, list(theirs), rtol=1e-4, atol=1e-6)
        with torch.no_grad():  # weights are read where they are
            for p in model.parameters():
                p.add_(0.1)
    assert kept == [p.data_ptr() for p in model.parameters()]
    assert run(*task.train[:7]) is None  # of another shape


def test_the_same_training_within_rounding():
    task = load("digits")
    taped, plain = (Engine(task, Recipe(taped=t, lr=1e-3), 3) for t in (True, False))
    assert taped.taken.shortcut is not None
    assert plain.taken.shortcut is None
    some, others = taped.advance(taped.steps), plain.advance(plain.steps)
    torch.testing.assert_close(some, others, rtol=1e-3, atol=1e-4)
    # Not by chance the same: it did go another way.
    assert not torch.equal(some, others)


class Counted(nn.Module):
    """A layer of a person's own, whose code has to run at every step."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        Counted.calls += self.training
        return self.inner(x)


def hooked():
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


def frozen():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "model",
    [
        Counted,
        hooked,
        frozen,
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        mlp(6, LARGEST // 100, 3),
    ],
    ids=["own code", "hook", "frozen", "dropout", "batch norm", "large"],
)
def test_what_a_tape_cannot_have_is_left_to_torch(model):
    task = classes(model=model)
    assert shortcut(task, made(task), SIZES) is None


def test_other_losses_types_and_ways_are_left_to_torch():
    def own(outputs, y):
        return nn.functional.cross_entropy(outputs, y)

    assert shortcut(classes(own), made(classes(own)), SIZES) is None
    double = classes(model=lambda: mlp(6, 3)().double())
    assert shortcut(double, made(double), SIZES) is None
    for recipe in (Recipe(precision="bfloat16"), Recipe(taped=False)):
        assert Engine(classes(), recipe, 1).taken.shortcut is None
    Counted.calls = 0
    found = thalweg.fit(classes(model=Counted), epochs=2)
    assert Counted.calls > found.steps == 8  # and what is tried first


def test_resumes_bit_for_bit_on_a_tape(tmp_path):
    class Stop(Exception):
        pass

    def stop(p):
        if p.step >= 40:
            raise Stop

    options = {"epochs": 6, "ema_decay": 0.9, "schedule": "cosine", "optimizer": "adamw"}
    task = load("digits")
    whole = thalweg.fit(task, out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        thalweg.fit(task, out=tmp_path / "cut", checkpoint_every=1e-9, progress=stop, **options)
    again = thalweg.fit(task, out=tmp_path / "cut", resume=True)
    assert equal(dict(whole.weights), dict(again.weights))
    ends = [read(tmp_path / part / "last.pt")["engine"] for part in ("whole", "cut")]
    assert equal(ends[0]["optimizer"]["state"], ends[1]["optimizer"]["state"])


def test_a_loss_that_turns_nan_names_the_layer_all_the_same():
    with pytest.raises(thalweg.DivergenceError) as caught:
        thalweg.fit("digits", optimizer="sgd", lr=1e20, epochs=2)
    assert caught.value.layer in ("0", "2", "4")
    assert "Linear" in caught.value.problem
