"""What it costs to watch a training: a step with the watch on beside one without."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import Row, alternate, report, shown
from thalweg.landscape.flow import EVERY, watch
from thalweg.tasks import load
from thalweg.tasks.networks import cnn, mlp

ROUNDS = 9


def _trained(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, fused: bool
) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)

    def steps() -> None:
        for _ in range(EVERY):  # of which one is recorded
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return optimizer, steps


def _row(
    name: str, make: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor, fused: bool = False
) -> Row:
    _, bare = _trained(make(), x, y, fused)
    model = make()
    optimizer, seen = _trained(model, x, y, fused)
    with watch(model, optimizer):
        found = alternate({"bare": bare, "watched": seen}, ROUNDS, span=1.0)
    every, without = (found[of] / EVERY for of in ("watched", "bare"))
    one = EVERY * (every - without)
    report(f"{name}: a recorded step costs {shown(one)} more, {one / without:.2f} steps")
    return Row(name, shown(every), shown(without), without / every, "at least 0.83")


def flow() -> list[Row]:
    """All rows."""
    digits = load("digits")
    x, y = digits.train[torch.arange(32)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=generator)
    classes = torch.randint(10, (32,), generator=generator)
    small = "a step of digits, MLP 64-64-64-10, batch 32, Adam"
    deep = mlp(64, *[64] * 19, 10)
    return [
        _row(small, digits.model, x, y),
        _row(f"{small} fused", digits.model, x, y, fused=True),
        _row("a step of digits, 20 layers of 64, batch 32, Adam fused", deep, x, y, fused=True),
        _row("a step of a CNN on 32 images of 32x32, Adam", cnn((3, 32, 32), 10), images, classes),
    ]
