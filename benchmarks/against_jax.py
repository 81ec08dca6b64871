"""Replicas against the same in JAX."""

import os
import subprocess
import sys
import tempfile
from statistics import median

import numpy as np

from benchmarks.measure import Row, alternate, report, seconds, shown
from benchmarks.replicas import BUDGET, EPOCHS, train_here
from thalweg.optim.registry import MAIN
from thalweg.replicas import Programs

AGREE = 0.02  # median difference of a rule's accuracies, that rounding may cause


def first_call(side: str) -> float:
    """Seconds of the first training in this process, imports left out."""
    if side == "thalweg":
        return seconds(train_here)
    from benchmarks.jax_loop import jax_trainer

    return seconds(lambda: jax_trainer()())


def _first_call_elsewhere(side: str) -> float:
    """The same in a new process that finds nothing compiled."""
    command = [sys.executable, "-m", "benchmarks.against_jax", side]
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "NUMBA_CACHE_DIR": caches,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    report(f"first call, {side}: {float(done.stdout):.2f} s")
    return float(done.stdout)


def _check(ours: np.ndarray, theirs: np.ndarray) -> None:
    apart = np.median(np.abs(ours - theirs), axis=(1, 2))
    for name, difference in zip(MAIN, apart, strict=True):
        if not difference <= AGREE:
            raise AssertionError(f"not the same work: {name}'s accuracies are {difference:.3f} off")


def jax_rows(rounds: int = 5) -> list[Row]:
    """The first call, compiling counted, and later ones, eager and compiled."""
    from benchmarks.jax_loop import jax_trainer

    first: dict[str, list[float]] = {"thalweg": [], "jax": []}
    for _ in range(rounds):
        for side, times in first.items():
            times.append(_first_call_elsewhere(side))
    theirs = jax_trainer()
    eager: Programs = {}
    compiled: Programs = {}
    accuracy = train_here("eager", eager)
    _check(accuracy, theirs())
    _check(train_here("compiled", compiled), accuracy)
    if any(program.backend != "compiled" for program in compiled.values()):
        raise AssertionError("torch.compile did not compile")
    later = alternate(
        {
            "eager": lambda: train_here("eager", eager),
            "jax": theirs,
            "compiled": lambda: train_here("compiled", compiled),
        },
        rounds=rounds,
    )
    what = f"{accuracy.size} replicas, {EPOCHS} epochs ({BUDGET.steps} steps)"
    cases = (
        ("first call, compiling counted", median(first["thalweg"]), median(first["jax"])),
        ("after that", later["eager"], later["jax"]),
        ("after that, passes by torch.compile", later["compiled"], later["jax"]),
    )
    return [
        Row(f"{what}, {case}", shown(ours), shown(jax), jax / ours, "≥ 1")
        for case, ours, jax in cases
    ]


if __name__ == "__main__":
    print(first_call(sys.argv[1]))
