"""Inside Hugging Face Accelerate, which wraps model, optimizer, loader and scheduler."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from tests.optim.digits import data, distance, network
from thalweg import optim

accelerate = pytest.importorskip("accelerate", reason="pip install 'thalweg[frameworks]'")
AcceleratorState, GradientState = accelerate.state.AcceleratorState, accelerate.state.GradientState

ROWS, BATCH = 640, 32


def forget():
    """Accelerate keeps its settings in the process, and refuses others."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def settings():
    yield
    forget()


class Training:
    """All that an accelerator prepares, and epochs of it."""

    def __init__(self, constructor, dtype=torch.float64, mixed_precision="no", **arguments):
        forget()
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=2, mixed_precision=mixed_precision
        )
        x, y = data(dtype)
        model = network(dtype)
        optimizer = constructor(model.parameters(), **arguments)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model,
            optimizer,
            DataLoader(TensorDataset(x[:ROWS], y[:ROWS]), BATCH),
            lr_scheduler.CosineAnnealingLR(optimizer, 40),
        )
        self.clipped = 0

    def epochs(self, number):
        for _ in range(number):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(nn.functional.cross_entropy(self.model(x), y))
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 0.3)
                        self.clipped += int(norm > 0.3)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
        return self


CASES = {
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-3}),
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
}
EACH = pytest.mark.parametrize(("ours", "theirs", "arguments"), CASES.values(), ids=list(CASES))


@EACH
def test_the_weights_are_those_of_torchs_optimizer(ours, theirs, arguments):
    a, b = (Training(constructor, **arguments).epochs(4) for constructor in (ours, theirs))
    assert distance(a.model, b.model) < 1e-12
    assert a.clipped > 0
    # It learned (one in ten is chance), and has the rate that the schedule ends at: it steps with
    # every second batch.
    x, y = data(torch.float64)
    assert (a.model(x).argmax(1) == y).double().mean() > 0.5
    assert a.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert {float(state["step"]) for state in a.optimizer.state.values()} == {4 * ROWS / BATCH / 2}


@EACH
def test_saved_and_loaded_in_mid_training(ours, theirs, arguments, tmp_path):
    whole = Training(ours, **arguments).epochs(4)
    for constructor, tolerance in ((ours, 0.0), (theirs, 1e-12)):
        folder = str(tmp_path / constructor.__module__)
        Training(constructor, **arguments).epochs(2).accelerator.save_state(folder)
        # One that has already trained otherwise, and whose plan is made.
        resumed = Training(ours, **arguments).epochs(1)
        resumed.accelerator.load_state(folder)
        resumed.epochs(2)
        assert distance(resumed.model, whole.model) <= tolerance


def test_bfloat16():
    """The model computes in bfloat16; gradients, weights and state stay float32."""
    ours, theirs, full = (
        Training(constructor, torch.float32, precision, lr=3e-3).epochs(4).model
        for constructor, precision in (
            (optim.Adam, "bf16"),
            (torch.optim.Adam, "bf16"),
            (torch.optim.Adam, "no"),
        )
    )
    assert distance(theirs, full) > 1e-2  # it makes a difference
    # The last bit of a float32 weight may decide how the weight is rounded to bfloat16.
    assert distance(ours, theirs) < 1e-3
