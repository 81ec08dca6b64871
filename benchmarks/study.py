"""The study, from the start of its process to its exit, against the plain loop."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.measure import Row, report, shown
from benchmarks.plain import START_UP, train
from thalweg.studies.spec import plan, specify
from thalweg.tasks import load

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()", "study", "digits"]
SAMPLED_EPOCHS = 30  # of a plain run; what it takes is counted by the step
RATES = (2, 4, 3, 5, 1)  # which of nine: those at the ends may diverge, and numbers of them be slow


class _Studies:
    """Whole processes of ``thalweg study digits``: how long, and how many steps they did."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.steps: dict[str, dict[str, int]] = {}

    def run(self, key: str, epochs: int, caches: Path) -> None:
        """One process; compiled code is looked for in, and goes to, a folder."""
        environment = os.environ | {
            "NUMBA_CACHE_DIR": str(caches / "numba"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        }
        with tempfile.TemporaryDirectory() as folder:
            command = [*COMMAND, "--epochs", str(epochs)]
            start = perf_counter()
            subprocess.run(
                command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
            )
            self.seconds[key].append(perf_counter() - start)
            with closing(sqlite3.connect(Path(folder) / "thalweg.db")) as record:
                self.steps[key] = dict(
                    record.execute("select optimizer, sum(step) from outcomes group by optimizer")
                )
        report(f"study, {key}: {self.seconds[key][-1]:.1f} s")


class _Plain:
    """Sampled plain runs, to be extrapolated to all runs."""

    def __init__(self) -> None:
        self.task = load("digits")
        self.spec = specify(self.task, epochs=SAMPLED_EPOCHS)
        self.runs = len(plan(self.spec))
        self._samples = [
            next(r for r in plan(self.spec) if r.optimizer == name and r.lr == rates[i])
            for i in RATES
            for name, rates in self.spec.lrs
        ]
        self.start_up: list[float] = []
        self.seconds: dict[bool, dict[str, list[float]]] = {
            fused: defaultdict(list) for fused in (False, True)
        }
        self.sampled = 0
        train(self.task, self.spec, self._samples[0], fused=False)

    def sample(self, count: int) -> None:
        """Train the next few runs both ways, and start a process."""
        for _ in range(count):
            run = self._samples[self.sampled % len(self._samples)]
            for fused, times in self.seconds.items():
                times[run.optimizer].append(train(self.task, self.spec, run, fused))
            self.sampled += 1
        start = perf_counter()
        subprocess.run([sys.executable, "-c", START_UP], check=True)
        self.start_up.append(perf_counter() - start)

    def total(self, fused: bool, steps: dict[str, int]) -> float:
        """Seconds of a process that does so many steps by each optimizer."""
        times = self.seconds[fused]
        trained = sum(median(times[name]) * n / self.spec.steps for name, n in steps.items())
        return median(self.start_up) + trained


# Key, words, goal.
CASES = (
    ("cold", "30 epochs, nothing compiled on this machine before", "≥ 10"),
    ("warm", "30 epochs, compiled code in the disk caches", ""),
    ("long", "300 epochs, nothing compiled on this machine before", "≥ 20"),
)


def studies(rounds: int = 5, long_rounds: int = 5) -> list[Row]:
    """The default study cold and warm, and the long one cold, against the plain loop."""
    plain, ours = _Plain(), _Studies()
    for _ in range(rounds):
        plain.sample(4)
        with tempfile.TemporaryDirectory() as caches:
            ours.run("cold", 30, Path(caches))
            ours.run("warm", 30, Path(caches))
    for _ in range(long_rounds):
        plain.sample(3)
        with tempfile.TemporaryDirectory() as caches:
            ours.run("long", 300, Path(caches))
    rows = []
    for key, words, goal in CASES:
        seconds = median(ours.seconds[key])
        for fused in (False, True):
            theirs = plain.total(fused, ours.steps[key])
            way = "fused=True where torch has it" if fused else "default"
            rows.append(
                Row(
                    f"{plain.runs} runs, {words}; torch.optim {way}",
                    f"{shown(seconds)} (median of {len(ours.seconds[key])})",
                    f"{shown(theirs)} (from {plain.sampled} runs)",
                    theirs / seconds,
                    goal,
                )
            )
    return rows
