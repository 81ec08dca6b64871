"""Optimizers tuned on a function, all paths together and one after another by torch.optim."""

import torch

from benchmarks.measure import Row, alternate, shown
from thalweg.landscape.functions import Function, function
from thalweg.landscape.paths import RATES, descend

STEPS = 1000  # the default
THEIRS = (
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.RMSprop, {}),
    (torch.optim.Adam, {}),
)


def _one_after_another(f: Function) -> None:
    for make, arguments in THEIRS:
        for lr in RATES:
            x = torch.nn.Parameter(torch.tensor(f.start, dtype=torch.float64))
            optimizer = make([x], lr=float(lr), **arguments)
            for _ in range(STEPS):
                optimizer.zero_grad()
                f(x).backward()
                optimizer.step()


def functions() -> list[Row]:
    """All rows."""
    rows = []
    for name in ("rosenbrock", "rastrigin"):
        f = function(name)
        found = alternate(
            {
                "ours": lambda f=f: descend(f, steps=STEPS),
                "theirs": lambda f=f: _one_after_another(f),
            },
            rounds=3,
        )
        ours, theirs = found["ours"], found["theirs"]
        rows.append(
            Row(
                f"{name}: 4 optimizers at 25 rates, {STEPS} steps; critical points found besides",
                shown(ours),
                shown(theirs),
                theirs / ours,
                "at least 10",
            )
        )
    return rows
