"""Independent work at once, and one model trained by two processes, against one after the other.

    python -m benchmarks.parallel

What two processes cost depends on the machine as little else does: on two cores both share the
memory's bandwidth and the caches that one has to itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Row, alternate, report, seconds, shown, table
from thalweg.optim import Adam
from thalweg.tasks.networks import cnn, mlp
from thalweg.train.overlap import concurrently
from thalweg.train.parallel import ALONE, Ranks, joined

CORES = 2
ROUNDS = 5
SPAN = 0.3  # seconds of a turn

Made = Callable[[], nn.Module]

NETWORKS: dict[str, tuple[Made, tuple[int, ...], int]] = {
    "MLP 64-64-64-10, batch 32": (mlp(64, 64, 64, 10), (64,), 32),
    "MLP 256-1024-1024-10, batch 1,024": (mlp(256, 1024, 1024, 10), (256,), 1024),
    "CNN on images of 3x32x32, batch 256": (cnn((3, 32, 32), 10), (3, 32, 32), 256),
}


def _data(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, *shape, generator=generator),
        torch.randint(10, (rows,), generator=generator),
    )


def _evaluations(name: str, made: Made, shape: tuple[int, ...], rows: int) -> Row:
    """Two models on one data set."""
    x, _ = _data(shape, rows)
    models = [made().eval() for _ in range(2)]
    batches = x.split(256)

    def evaluate(model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in batches])

    calls = [lambda m=m: evaluate(m) for m in models]
    with torch.no_grad():
        found = alternate(
            {"at once": lambda: concurrently(calls), "in turn": lambda: [call() for call in calls]},
            ROUNDS,
            SPAN,
        )
    return Row(
        f"two models evaluated on {rows:,} samples: {name}",
        shown(found["at once"]),
        shown(found["in turn"]),
        found["in turn"] / found["at once"],
    )


def _preparation() -> Row:
    """The next batch made by NumPy beside the step of this one, which has one core either way."""
    model, shape, rows = NETWORKS["CNN on images of 3x32x32, batch 256"]
    x, y = _data(shape, rows)
    step = _steps(ALONE, model(), (x, y))
    raw = np.random.default_rng(0).integers(0, 256, (rows, 48, 48, 3), dtype=np.uint8)

    def prepare() -> Tensor:
        """Bytes to crops of floats: about as long as a step."""
        for _ in range(repeats):
            crop = raw[:, 8:40, 8:40, :].astype(np.float32)
            scaled = (crop - crop.mean((1, 2), keepdims=True)) / (
                crop.std((1, 2), keepdims=True) + 1
            )
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    torch.set_num_threads(1)
    repeats = 1
    repeats = max(1, round(seconds(step, 3) / seconds(prepare, 3)))
    found = alternate(
        {
            "at once": lambda: concurrently([step, prepare]),
            "in turn": lambda: (step(), prepare()),
        },
        ROUNDS,
        SPAN,
    )
    torch.set_num_threads(CORES)
    return Row(
        "a batch prepared by NumPy, and the step of another (each one core)",
        shown(found["at once"]),
        shown(found["in turn"]),
        found["in turn"] / found["at once"],
    )


def _steps(
    ranks: Ranks, model: nn.Module, batch: tuple[Tensor, Tensor], shard: bool = False
) -> Callable[[], None]:
    module = ranks.wrap(model, shard)
    optimizer = Adam(module.parameters())
    (x, y), _ = ranks.part(batch)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


def _in_ranks() -> None:
    """Time steps of both ranks together, in turns with those of the first alone on all cores."""
    with joined("cpu") as ranks:
        found = {}
        for name, (made, shape, rows) in NETWORKS.items():
            batch = _data(shape, rows)
            calls = {
                "one": _steps(ALONE, made(), batch),
                "two": _steps(ranks, made(), batch),
                "sharded": _steps(ranks, made(), batch, shard=True),
            }
            times: dict[str, list[float]] = {way: [] for way in calls}
            count = 0
            for turn in range(ROUNDS + 1):
                for way, call in calls.items():
                    torch.set_num_threads(CORES if way == "one" else CORES // ranks.size)
                    ranks.most(0.0)
                    spent = 0.0
                    if way != "one" or ranks.first:
                        spent = seconds(call, max(3, count))
                    times[way].append(ranks.most(spent))
                # After the first turn, which compiles.
                count = count or max(3, int(SPAN / times["one"][0])) if turn else 0
            found[name] = {way: median(values[1:]) for way, values in times.items()}
    if ranks.first:
        print(json.dumps(found))


def _launched(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={CORES}"]
    command += ["--standalone", "-m", "benchmarks.parallel", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _scaling() -> list[Row]:
    done = _launched("ranks", TORCH_CPP_LOG_LEVEL="ERROR")
    if done.returncode:
        raise RuntimeError(done.stderr)
    rows = []
    for name, times in json.loads(done.stdout).items():
        for way in ("two", "sharded"):
            rows.append(
                Row(
                    f"a step of {CORES} ranks, {way.replace('two', 'whole')}: {name}",
                    shown(times[way]),
                    shown(times["one"]),
                    times["one"] / times[way],
                )
            )
    return rows


def _dies() -> None:
    """The second rank kills itself while the first waits for it."""
    with joined("cpu") as ranks:
        ranks.most(0.0)
        if not ranks.first:
            print(time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.most(0.0)


def _death() -> None:
    """Say how long it takes until all processes are gone."""
    took = []
    for _ in range(5):
        done = _launched("dies")
        took.append(time.time() - float(done.stdout))
    report(
        f"from a rank's SIGKILL until torchrun and all ranks have ended: {median(took):.2f} s, "
        f"at most {max(took):.2f} s, of {len(took)} launches"
    )


def parallel() -> list[Row]:
    """All rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    try:
        rows = [
            _evaluations(name, made, shape, 2048 if len(shape) > 1 else 8192)
            for name, (made, shape, _) in NETWORKS.items()
        ]
        rows.append(_preparation())
    finally:
        torch.set_num_threads(threads)
    _death()
    return rows + _scaling()


if __name__ == "__main__":
    ways = {"ranks": _in_ranks, "dies": _dies}
    if sys.argv[1:]:
        ways[sys.argv[1]]()
    else:
        print(table(parallel(), "at once, or two ranks", "in turn, or one process"))
