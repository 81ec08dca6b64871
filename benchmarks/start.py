"""What a process pays before its second step: imports, and compiling or loading the kernel."""

import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from benchmarks.measure import Row, report, shown

ROUNDS = 5

# Prints seconds. Torch imports its compiler when any optimizer takes parameters; torch's own is
# made first, so that ours is not charged with it.
PROCESS = """
import json
from time import perf_counter
begun = perf_counter()
import torch
torch_imported = perf_counter()
import thalweg.optim
imported = perf_counter()
parameters = [torch.nn.Parameter(torch.ones(64, 64)) for _ in range(6)]
for p in parameters:
    p.grad = torch.ones(64, 64)
torch.optim.Adam(parameters)
optimizer = thalweg.optim.Adam(parameters)
ready = perf_counter()
import numba
from numba.core.registry import cpu_target
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
numba_ready = perf_counter()
optimizer.step()
optimizer.step()
print(json.dumps({
    "torch": torch_imported - begun,
    "optim": imported - torch_imported,
    "numba": numba_ready - ready,
    "steps": perf_counter() - numba_ready,
}))
"""


def _process(caches: str) -> dict[str, float]:
    environment = os.environ | {"NUMBA_CACHE_DIR": caches}
    command = [sys.executable, "-c", PROCESS]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def start() -> list[Row]:
    """New processes, with nothing compiled before and with everything on disk, in turns."""
    cold, warm = [], []
    for i in range(ROUNDS):
        with tempfile.TemporaryDirectory() as caches:
            cold.append(_process(caches))
            warm.append(_process(caches))
        report(f"start, {i + 1} of {ROUNDS}: {cold[-1]['steps']:.2f} s, {warm[-1]['steps']:.2f} s")

    def row(what: str, found: list[dict[str, float]], key: str, goal: float | None) -> Row:
        seconds, torch = median(f[key] for f in found), median(f["torch"] for f in found)
        said = f"≥ {torch / goal:.2g} ({shown(goal)})" if goal else ""
        return Row(what, shown(seconds), shown(torch), torch / seconds, said)

    return [
        row("import of thalweg.optim after torch", warm, "optim", 0.3),
        row("Numba's own start, before the first step", warm, "numba", None),
        row("first two steps of Adam, nothing compiled before", cold, "steps", 1.5),
        row("first two steps of Adam, compiled code on disk", warm, "steps", 0.2),
    ]
