"""Learning rates that others suggest: torch-lr-finder, and the tuner of Lightning.

``python -m benchmarks.finders FILE.csv`` asks them for all pairs.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.good_ranges import PAIRS, task_of
from benchmarks.measure import report
from benchmarks.peers import PEERS
from thalweg import Task, optim

STEPS = 100
SEEDS = (0, 1, 2)


def _batches(task: Task) -> "DataLoader[Any]":
    data = TensorDataset(task.train.x, task.train.y)
    return DataLoader(data, task.batch_size, shuffle=True, drop_last=True)


def _optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """That of torch with its own defaults; Thalweg's where torch has none."""
    row = PEERS[name].torch
    if row is None:
        return {"lion": optim.Lion}[name](model.parameters(), lr=lr)
    made: torch.optim.Optimizer = getattr(torch.optim, row[0])(model.parameters(), lr=lr, **row[1])
    return made


def torch_lr_finder(task: Task, optimizer: str) -> float | None:
    """As in its documentation: from 1e-7 to 100, and the steepest slope of its `plot`."""
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder

    model = task.model()
    finder = LRFinder(model, _optimizer(optimizer, model, 1e-7), task.loss.of)
    finder.range_test(_batches(task), end_lr=100, num_iter=STEPS)
    try:
        _, rate = finder.plot(ax=Figure().subplots(), suggest_lr=True)
    except RuntimeError:  # it stopped too soon
        return None
    return float(rate)


def lightning(task: Task, optimizer: str, **lrs: float) -> float | None:
    """`Tuner.lr_find` with its defaults, from 1e-8 to 1, unless told otherwise."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model()
            self.lr = 1e-3

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            return task.loss.of(self.model(x), y)

        def configure_optimizers(self) -> Any:
            return _optimizer(optimizer, self.model, self.lr)

    with TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(Module(), _batches(task), num_training=STEPS, **lrs)
    rate = None if found is None else found.suggestion()
    return None if rate is None else float(rate)


def lightning_wide(task: Task, optimizer: str) -> float | None:
    """The same over the range of torch-lr-finder."""
    return lightning(task, optimizer, min_lr=1e-7, max_lr=100.0)


FINDERS: dict[str, Callable[[Task, str], float | None]] = {
    "torch-lr-finder": torch_lr_finder,
    "Lightning": lightning,
    "Lightning, 1e-7 to 100": lightning_wide,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the tools print."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def ask(finders: dict[str, Callable[[Task, str], float | None]]) -> pd.DataFrame:
    """What each suggests for all pairs: a row a ``task``, ``optimizer``, ``tool`` and ``seed``.

    Initial weights and batches follow the seed. ``rate`` is NaN where nothing is suggested;
    ``seconds`` are those of the call, after one that is not counted.
    """
    for finder in finders.values():
        with quiet():
            finder(task_of("wine"), "sgd")
    rows: list[dict[str, object]] = []
    for task, optimizer in PAIRS:
        if optimizer == PAIRS[0][1]:
            report(f"suggestions for {task}")
        for tool, finder in finders.items():
            for seed in SEEDS:
                torch.manual_seed(seed)
                began = perf_counter()
                with quiet():
                    rate = finder(task_of(task), optimizer)
                rows.append(
                    {
                        "task": task,
                        "optimizer": optimizer,
                        "tool": tool,
                        "seed": seed,
                        "rate": nan if rate is None else rate,
                        "seconds": perf_counter() - began,
                    }
                )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    ask(FINDERS).to_csv(Path(sys.argv[1]), index=False, float_format="%.6g")
