"""The optimizer's step against torch.optim, pytorch_optimizer and optax."""

from math import prod

import torch

from benchmarks.measure import Row, alternate, report, shown
from benchmarks.peers import LR, peers
from benchmarks.sets import SETS, Shapes
from thalweg.optim.registry import OPTIMIZERS

# Of matrices as wide as these sets have them, whose roots take minutes a step on either side.
ROOTS, LARGEST_OF_ROOTS = ("shampoo", "soap"), 2_000_000


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def steps() -> list[Row]:
    """Every optimizer on every set: the fastest peer over ours."""
    rows = []
    for set_name, shapes in SETS.items():
        for name, entry in OPTIMIZERS.items():
            if name in ROOTS and sum(prod(s) for s in shapes) > LARGEST_OF_ROOTS:
                continue
            calls = peers(name, lambda shapes=shapes: parameters(shapes))
            if not calls:
                continue
            ours = entry.constructor(parameters(shapes), lr=LR)
            report(f"{entry.label}, {set_name}")
            found = alternate({"thalweg": ours.step, **calls})
            own = found.pop("thalweg")
            best = min(found, key=found.__getitem__)
            small = set_name.startswith("1,000")
            rows.append(
                Row(
                    f"{entry.label}, {set_name}",
                    shown(own),
                    f"{shown(found[best])} ({best})",
                    found[best] / own,
                    "≥ 10" if small else "≥ 1",
                )
            )
            if small and "fused" in found and best != "fused":
                rows.append(
                    Row(
                        f"{entry.label}, {set_name}, against fused",
                        shown(own),
                        shown(found["fused"]),
                        found["fused"] / own,
                        "≥ 10",
                    )
                )
    return rows
