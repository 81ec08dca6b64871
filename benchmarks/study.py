"""The study, from the start of its process to its exit, against the plain loop."""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from time import perf_counter

from benchmarks.measure import Row, shown
from benchmarks.plain import train
from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.spec import StudySpec, plan, specify
from thalweg.tasks import load

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()", "study", "digits"]
SAMPLED_EPOCHS = 30  # of a plain run; longer runs cost in proportion


def _process(epochs: int, caches: Path) -> float:
    """Seconds of a whole ``thalweg study digits``, with compiled code cached in a folder."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        subprocess.run(
            [*COMMAND, "--epochs", str(epochs)],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return perf_counter() - start


def _import() -> float:
    start = perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, sklearn.datasets"], check=True)
    return perf_counter() - start


class _Plain:
    """Sampled plain runs, two rates of each optimizer, to be extrapolated to all runs."""

    def __init__(self, spec: StudySpec) -> None:
        self.task = load("digits")
        self.spec = spec
        runs = plan(spec)
        self.runs = [
            next(r for r in runs if r.optimizer == name and r.lr == rates[i])
            for i in (2, 4)
            for name, rates in spec.lrs
        ]
        self.seconds: dict[bool, dict[str, list[float]]] = {
            fused: defaultdict(list) for fused in (False, True)
        }

    def sample(self, i: int) -> None:
        run = self.runs[i % len(self.runs)]
        for fused in (False, True):
            self.seconds[fused][run.optimizer].append(train(self.task, self.spec, run, fused))

    def total(self, fused: bool, epochs: int) -> float:
        each = mean(median(self.seconds[fused][name]) for name in OPTIMIZERS)
        return each * len(plan(self.spec)) * epochs / SAMPLED_EPOCHS


def studies(rounds: int = 5, long_rounds: int = 5) -> list[Row]:
    """The default study cold and warm, and the long one, against the plain loop."""
    plain = _Plain(specify(load("digits"), epochs=SAMPLED_EPOCHS))
    train(plain.task, plain.spec, plain.runs[0], fused=False)
    imports: list[float] = []
    found: dict[str, list[float]] = defaultdict(list)
    samples = 0
    for _ in range(rounds):
        for _ in range(3):
            plain.sample(samples)
            samples += 1
        imports.append(_import())
        with tempfile.TemporaryDirectory() as caches:
            found["cold"].append(_process(30, Path(caches)))
            found["warm"].append(_process(30, Path(caches)))
    with tempfile.TemporaryDirectory() as caches:
        for _ in range(long_rounds):
            plain.sample(samples)
            samples += 1
            found["long"].append(_process(300, Path(caches)))
    rows = []
    cases = (
        ("cold", 30, "30 epochs, nothing compiled on this machine before", "≥ 10"),
        ("warm", 30, "30 epochs, kernels in the disk cache", ""),
        ("long", 300, "300 epochs", "≥ 20"),
    )
    for key, epochs, words, goal in cases:
        for fused in (False, True):
            theirs = plain.total(fused, epochs) + median(imports)
            ours = median(found[key])
            way = "fused=True where torch has it" if fused else "default"
            rows.append(
                Row(
                    f"315 runs, {words}; torch.optim {way}",
                    f"{shown(ours)} (median of {len(found[key])})",
                    f"{shown(theirs)} (from {samples} runs)",
                    theirs / ours,
                    goal,
                )
            )
    return rows
