"""The optimizer's step against torch.optim."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Row, alternate, shown
from benchmarks.sets import SETS, Shapes
from thalweg.optim.registry import OPTIMIZERS

LR = 1e-3

# torch.optim's name of each rule: class, its arguments, and whether it is fused on the CPU.
PEERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any], bool]] = {
    "sgd": (torch.optim.SGD, {}, True),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, True),
    "nag": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, True),
    "adagrad": (torch.optim.Adagrad, {}, True),
    "rmsprop": (torch.optim.RMSprop, {}, False),
    "adadelta": (torch.optim.Adadelta, {}, False),
    "adam": (torch.optim.Adam, {}, True),
}


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def _steppers(name: str, shapes: Shapes) -> dict[str, Callable[[], object]]:
    peer, arguments, fused = PEERS[name]
    ways: dict[str, dict[str, Any]] = {"default": {}, "foreach": {"foreach": True}}
    if fused:
        ways["fused"] = {"fused": True}
    calls: dict[str, Callable[[], object]] = {
        way: peer(parameters(shapes), lr=LR, **arguments, **options).step
        for way, options in ways.items()
    }
    ours = OPTIMIZERS[name].constructor(parameters(shapes), lr=LR)
    return {"thalweg": ours.step, **calls}


def steps() -> list[Row]:
    """Every rule on every set: torch's fastest way, over ours; on the small ones fused too."""
    rows = []
    for set_name, shapes in SETS.items():
        for name, entry in OPTIMIZERS.items():
            found = alternate(_steppers(name, shapes))
            ours = found.pop("thalweg")
            best = min(found, key=found.__getitem__)
            rows.append(
                Row(
                    f"{entry.label}, {set_name}",
                    shown(ours),
                    f"{shown(found[best])} ({best})",
                    found[best] / ours,
                    "≥ 1",
                )
            )
            if set_name.startswith("1,000"):
                against = "fused" if "fused" in found else "foreach"
                rows.append(
                    Row(
                        f"{entry.label}, {set_name}, against {against}",
                        shown(ours),
                        shown(found[against]),
                        found[against] / ours,
                        "≥ 10" if against == "fused" else "",
                    )
                )
    return rows
