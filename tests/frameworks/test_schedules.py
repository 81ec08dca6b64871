"""`thalweg.schedules.Scheduler` where Accelerate and Lightning step it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thalweg import optim
from thalweg.schedules import Scheduler, exp


def test_accelerate_steps_it_with_the_optimizer():
    accelerate = pytest.importorskip("accelerate", reason="pip install 'thalweg[frameworks]'")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(3, 1)
    optimizer = optim.Adam(model.parameters(), lr=0.5)
    model, optimizer, scheduler = accelerator.prepare(
        model, optimizer, Scheduler(optimizer, exp(0.5))
    )
    for _ in range(8):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(2, 3)).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert scheduler.get_last_lr() == [0.5 * 0.5**4]
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(("interval", "count"), [("step", 4), ("epoch", 1)])
def test_lightning_goes_on_from_a_checkpoint(interval, count, tmp_path):
    lightning = pytest.importorskip("lightning", reason="pip install 'thalweg[frameworks]'")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def training_step(self, batch, index):
            return self.linear(batch[0]).sum()

        def configure_optimizers(self):
            optimizer = optim.Adam(self.parameters(), lr=0.5)
            scheduler = Scheduler(optimizer, exp(0.5))
            return [optimizer], [{"scheduler": scheduler, "interval": interval}]

    loader = DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=2)

    def fit(epochs, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
            log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(Module(), loader, ckpt_path=checkpoint)
        return trainer

    path = tmp_path / "half.ckpt"
    fit(2).save_checkpoint(path)
    trainer = fit(4, path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5 * 0.5 ** (4 * count)
