"""What a picture of the loss around a network costs, beside evaluating one point after another."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from benchmarks.measure import Row, alternate, shown
from thalweg.landscape.surface import Plane, random_plane, surface
from thalweg.landscape.training_path import training_paths
from thalweg.tasks import Split, Task, load

ROUNDS = 5
POINTS = 41  # a side


class _Loop:
    """As one writes it in plain PyTorch: weights set, model called, loss and metric read."""

    def __init__(self, task: Task, plane: Plane) -> None:
        self.task, self.plane = task, plane
        self.module = task.model().eval()
        self.parameters = dict(self.module.named_parameters())
        axes = [np.linspace(low, high, POINTS) for low, high in plane.spans]
        self.places = [(float(a), float(b)) for a in axes[0] for b in axes[1]]

    @torch.no_grad()
    def copied(self, batch: int | None) -> list[list[float]]:
        """Weights written into the module; data in one piece, or in batches of a loader."""
        first, second = self.plane.directions
        found = []
        for a, b in self.places:
            for name, p in self.parameters.items():
                p.copy_(self.plane.origin[name])
                if name in first:
                    p.add_(first[name], alpha=a).add_(second[name], alpha=b)
            found.append(self.scores(self.module, batch))
        return found

    @torch.no_grad()
    def functional(self) -> list[list[float]]:
        """Weights handed over, all data in one piece."""
        first, second = self.plane.directions
        found = []
        for a, b in self.places:
            weights = {
                name: p + a * first[name] + b * second[name] if name in first else p
                for name, p in self.plane.origin.items()
            }

            def call(x: torch.Tensor, weights: dict[str, torch.Tensor] = weights) -> torch.Tensor:
                return functional_call(self.module, weights, (x,))

            found.append(self.scores(call, None))
        return found

    def scores(
        self, model: nn.Module | Callable[[torch.Tensor], torch.Tensor], batch: int | None
    ) -> list[float]:
        return [
            value
            for split in (self.task.train, self.task.validation)
            for value in self.over(model, split, batch or len(split))
        ]

    @staticmethod
    def over(model: Callable[[torch.Tensor], torch.Tensor], split: Split, size: int) -> list[float]:
        loss, right = 0.0, 0.0
        for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
            outputs = model(x)
            loss += len(y) * nn.functional.cross_entropy(outputs, y).item()
            right += (outputs.argmax(1) == y).sum().item()
        return [loss / len(split), right / len(split)]


def _surfaces() -> list[Row]:
    task = load("digits")
    (path,) = training_paths(task, ["adam"], epochs=5)
    plane = random_plane(path.at(-1))
    loop = _Loop(task, plane)
    ours = surface(task, plane, POINTS).grid.iloc[:, 2:].to_numpy()
    for theirs in (loop.copied(None), loop.functional()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)  # ties of the accuracy too
    threads = torch.get_num_threads()

    def on(count: int, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(count)
            try:
                return call()
            finally:
                torch.set_num_threads(threads)

        return run

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: surface(task, plane, POINTS),
        f"batches of {task.batch_size}": lambda: loop.copied(task.batch_size),
    }
    # The loop gets whichever number of threads suits it better.
    for count in sorted({1, threads}):
        calls[f"copied, {count}"] = on(count, lambda: loop.copied(None))
        calls[f"functional_call, {count}"] = on(count, loop.functional)
    times = alternate(calls, ROUNDS, span=0.5)
    whole = min(v for k, v in times.items() if "," in k)
    batches = times[f"batches of {task.batch_size}"]
    points = f"{POINTS}x{POINTS} points on digits"
    return [
        Row(f"{points}, loop with each set in one piece", shown(times["ours"]), shown(whole),
            whole / times["ours"]),
        Row(f"{points}, loop over batches of {task.batch_size}", shown(times["ours"]),
            shown(batches), batches / times["ours"], "at least 5"),
    ]  # fmt: skip


def landscape() -> list[Row]:
    """All rows."""
    return _surfaces()
