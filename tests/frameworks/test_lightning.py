"""Inside Lightning, which wraps the optimizer, hands its step a closure and writes checkpoints."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from tests.optim.digits import data, distance, network
from thalweg import optim

lightning = pytest.importorskip("lightning", reason="pip install 'thalweg[frameworks]'")

pytestmark = [
    # Lightning's own call of torch, at every loader.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    # Advice on speed: the digits are in memory already.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

EPOCHS, ROWS, BATCH = 4, 640, 32


class Digits(lightning.LightningModule):
    def __init__(self, constructor, dtype=torch.float64, **arguments):
        super().__init__()
        self.network = network(dtype)
        self.constructor, self.arguments = constructor, arguments

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        optimizer = self.constructor(self.parameters(), **self.arguments)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * ROWS // BATCH // 2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def fit(folder, module, epochs=EPOCHS, checkpoint=None, precision=None):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.3,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x, y = data(next(module.parameters()).dtype)
    loader = DataLoader(TensorDataset(x[:ROWS], y[:ROWS]), BATCH)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer


CASES = {
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-3}),
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
}
EACH = pytest.mark.parametrize(("ours", "theirs", "arguments"), CASES.values(), ids=list(CASES))


@EACH
def test_the_weights_are_those_of_torchs_optimizer(ours, theirs, arguments, tmp_path):
    modules = [Digits(constructor, **arguments) for constructor in (ours, theirs)]
    for module in modules:
        trainer = fit(tmp_path, module)
        assert trainer.global_step == EPOCHS * ROWS // BATCH // 2
    assert distance(*modules) < 1e-12
    # They learned (one in ten is chance), and have the rate that the schedule ends at.
    x, y = data(torch.float64)
    assert (modules[0].network(x).argmax(1) == y).double().mean() > 0.5
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_clipping_and_accumulation_are_as_by_hand(tmp_path):
    module = Digits(optim.Adam, lr=3e-3)
    fit(tmp_path, module, epochs=1)
    alone = network()
    optimizer = torch.optim.Adam(alone.parameters(), lr=3e-3)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * ROWS // BATCH // 2)
    x, y = data(torch.float64)
    clipped = 0
    for rows in torch.arange(ROWS).split(2 * BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(x[rows]), y[rows]).backward()
        clipped += int(nn.utils.clip_grad_norm_(alone.parameters(), 0.3) > 0.3)
        optimizer.step()
        schedule.step()
    assert clipped > 0
    assert distance(module.network, alone) < 1e-10  # the sum of 64 losses in another order


@EACH
def test_a_checkpoint_in_mid_training(ours, theirs, arguments, tmp_path):
    whole, first, second = (Digits(ours, **arguments) for _ in range(3))
    fit(tmp_path, whole)
    path = tmp_path / "half.ckpt"
    fit(tmp_path, first, epochs=EPOCHS // 2).save_checkpoint(path)
    assert distance(first, whole) > 1e-6
    fit(tmp_path, second, checkpoint=path)
    assert distance(second, whole) == 0.0
    # And one that torch's optimizer wrote.
    fit(tmp_path, Digits(theirs, **arguments), epochs=EPOCHS // 2).save_checkpoint(path)
    third = Digits(ours, **arguments)
    fit(tmp_path, third, checkpoint=path)
    assert distance(third, whole) < 1e-12


def test_bfloat16(tmp_path):
    """The model computes in bfloat16; gradients, weights and state stay float32."""
    modules = [
        Digits(constructor, dtype=torch.float32, lr=3e-3)
        for constructor in (optim.Adam, torch.optim.Adam, torch.optim.Adam)
    ]
    for module, precision in zip(modules, ("bf16-mixed", "bf16-mixed", "32-true"), strict=True):
        fit(tmp_path, module, precision=precision)
    ours, theirs, full = modules
    assert distance(theirs, full) > 1e-2  # it makes a difference
    # The last bit of a float32 weight may decide how the weight is rounded to bfloat16.
    assert distance(ours, theirs) < 1e-3
