"""Bytes that the optimizer's step moves a second, against a plain copy."""

import torch

from benchmarks.measure import Row, alternate
from benchmarks.peers import LR
from benchmarks.sets import SETS
from benchmarks.step import parameters
from thalweg.optim.registry import OPTIMIZERS


def bandwidth() -> list[Row]:
    """Every rule on 30 M parameters; the copy reads and writes as many bytes in all."""
    shapes = SETS["transformer (30 M)"]
    elements = sum(torch.Size(s).numel() for s in shapes)
    rows = []
    for entry in OPTIMIZERS.values():
        if entry.resolved({}).whole or entry.resolved({}).terms:
            continue  # whose step is more than one pass
        optimizer = entry.constructor(parameters(shapes), lr=LR)
        optimizer.step()
        # Read parameter and gradient, write the parameter; read and write each state.
        moved = 4 * elements * (3 + 2 * len(entry.resolved({}).state))
        source = torch.ones(moved // 8)
        target = torch.zeros_like(source)

        def copy(target: torch.Tensor = target, source: torch.Tensor = source) -> object:
            return target.copy_(source)

        found = alternate({"step": optimizer.step, "copy": copy})
        step, plain = moved / found["step"], moved / found["copy"]
        rows.append(
            Row(
                f"{entry.label}, {moved // elements} bytes an element",
                f"{step / 1e9:.3g} GB/s",
                f"{plain / 1e9:.3g} GB/s",
                step / plain,
                "≥ 0.85",
            )
        )
    return rows
