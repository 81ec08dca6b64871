"""The engine against the best plain loop for the same task, and against Lightning's Trainer."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import thalweg
from benchmarks.measure import Row, alternate, report, shown
from thalweg.tasks import Task, load
from thalweg.tasks.networks import mlp
from thalweg.train import Engine, Recipe

# Steps of a turn: whole epochs, at whose beginning data are put in order.
STEPS = 3 * 34  # of digits
FEW = 50
EPOCHS = 10
ROUNDS = 9


def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's fastest Adam."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


class Loop:
    """The best that one would write by hand: data put in order once an epoch, nothing waited for.

    It keeps the losses, as somebody wants to see them at the end of an epoch.
    """

    def __init__(self, task: Task) -> None:
        torch.manual_seed(0)
        self.task = task
        self.model = task.model().train()
        self.parameters = list(self.model.parameters())
        self.optimizer = fused(self.parameters)
        self.batches = iter(())
        self.losses: list[Tensor] = []

    def epoch(self) -> Any:
        order = torch.randperm(len(self.task.train))
        x, y = self.task.train[order]
        return zip(x.split(self.task.batch_size), y.split(self.task.batch_size), strict=True)

    def steps(self, count: int) -> None:
        for _ in range(count):
            batch = next(self.batches, None)
            if batch is None:
                self.batches = self.epoch()
                batch = next(self.batches)
            x, y = batch
            for p in self.parameters:  # zero_grad takes longer
                p.grad = None
            loss = functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.detach())
        torch.stack(self.losses).mean().item()
        self.losses.clear()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        self.model.eval()
        outputs = self.model(self.task.validation.x)
        found = (
            functional.cross_entropy(outputs, self.task.validation.y).item(),
            (outputs.argmax(-1) == self.task.validation.y).float().mean().item(),
        )
        self.model.train()
        return found


def large() -> Task:
    """A step of some 10 ms on two cores: an MLP 512-1280-1280-10 at batch 128."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128 * 60, 512, generator=generator)
    y = torch.randint(10, (len(x),), generator=generator)
    part = slice(0, 128 * 50)
    rest = x[128 * 50 :], y[128 * 50 :]
    return Task(
        model=mlp(512, 1280, 1280, 10),
        train=(x[part], y[part]),
        validation=rest,
        test=rest,
        batch_size=128,
        name="large",
    )


def _steps(what: str, task: Task, recipe: Recipe, count: int, goal: str) -> Row:
    engine, loop = Engine(task, recipe, 10**6), Loop(task)

    def ours() -> None:
        engine.advance(count).mean().item()

    found = alternate({"ours": ours, "loop": lambda: loop.steps(count)}, ROUNDS, span=0.5)
    mine, plain = (found[name] / count for name in ("ours", "loop"))
    report(f"{what}: {shown(mine)} against {shown(plain)}")
    return Row(what, shown(mine), shown(plain), plain / mine, goal)


def _an_epoch(train: Callable[[int], Any], more: int) -> float:
    """Seconds of one epoch: those of ``1 + more`` less those of one, without the start."""
    times = []
    for epochs in (1, 1 + more):
        start = perf_counter()
        train(epochs)
        times.append(perf_counter() - start)
    return (times[1] - times[0]) / more


def _epochs(what: str, ours: Callable[[int], Any], theirs: Callable[[int], Any], more: int) -> Row:
    for train in (ours, theirs):
        train(1)
    pairs = [(_an_epoch(ours, more), _an_epoch(theirs, more)) for _ in range(ROUNDS)]
    mine, other = (median(side) for side in zip(*pairs, strict=True))
    report(f"{what}: {shown(mine)} against {shown(other)}")
    return Row(what, shown(mine), shown(other), other / mine)


def _fit() -> Row:
    """All of `thalweg.fit`, checkpoints and progress among it, and a loop that evaluates."""
    task = large()
    seen: list[Any] = []

    def ours(epochs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            thalweg.fit(task, optimizer=fused, epochs=epochs, out=out, progress=seen.append)

    def plain(epochs: int) -> None:
        loop = Loop(task)
        for _ in range(epochs):
            loop.steps(50)
            loop.evaluate()

    what = "an epoch of 50 such steps with validation by `thalweg.fit`, best weights kept"
    return replace(_epochs(what, ours, plain, 4), goal="at least 0.98")


def _lightning() -> Row:
    """An epoch of digits, with validation: that of eleven less that of one, over ten."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning

    task = load("digits")
    data = torch.utils.data.TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model()

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch
            return functional.cross_entropy(self.model(x), y)

        def validation_step(self, batch: Any, _: int) -> None:
            x, y = batch
            self.log("loss", functional.cross_entropy(self.model(x), y))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return fused(list(self.parameters()))

    def theirs(epochs: int) -> None:
        train = torch.utils.data.DataLoader(
            data(task.train.x, task.train.y), task.batch_size, shuffle=True
        )
        validation = torch.utils.data.DataLoader(
            data(task.validation.x, task.validation.y), len(task.validation)
        )
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(Module(), train, validation)

    def ours(epochs: int) -> None:
        thalweg.fit(task, epochs=epochs)

    what = "an epoch of digits with validation, Lightning's Trainer with torch's fused Adam"
    return replace(_epochs(what, ours, theirs, EPOCHS), goal="at least 5")


def engine() -> list[Row]:
    """All rows."""
    adam = Recipe(lr=1e-3)
    return [
        _steps(
            "a step of MLP 512-1280-1280-10 at batch 128, torch's fused Adam in both",
            large(),
            Recipe(optimizer=fused),
            FEW,
            "at least 0.98",
        ),
        _steps("the same with the engine's own Adam", large(), adam, FEW, "at least 0.98"),
        _fit(),
        _steps(
            "a step of digits (MLP 64-64-64-10, batch 32) with the engine's own Adam",
            load("digits"),
            adam,
            STEPS,
            "above 1",
        ),
        _steps(
            "the same without the tape",
            load("digits"),
            Recipe(lr=1e-3, taped=False),
            STEPS,
            "",
        ),
        _steps(
            "the same without the tape, torch's fused Adam in both",
            load("digits"),
            Recipe(optimizer=fused, taped=False),
            STEPS,
            "",
        ),
        _lightning(),
    ]
