"""Real launches: two processes that torchrun starts, of which one dies."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

import thalweg
from thalweg.tasks import load

TASK = """
import os, signal
from torch import nn
import thalweg
from thalweg.tasks import load

class Mortal(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        self.steps = 0

    def forward(self, x):
        if self.training and "TRACE" in os.environ:
            attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
            self.steps += 1
            with open(f"{os.environ['TRACE']}/{attempt}.{rank}", "a") as file:
                file.write(".")
            if (attempt, rank, self.steps) == ("0", "1", 60):
                os.kill(os.getpid(), signal.SIGKILL)
            if (attempt, rank, self.steps) == ("1", "0", 20):
                raise KeyError("on purpose")
        return self.layers(x)

def task():
    d = load("digits")
    return thalweg.Task(
        model=Mortal, train=d.train, validation=d.validation, test=d.test, name="mortal"
    )
"""
# Of losses and weights in float32, over a hundred steps of Adam.
ROUNDING = 1e-5


def launched(folder, *arguments, restarts=0, trace=None):
    """What two ranks of ``thalweg fit`` print, and torchrun's exit code."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if trace is not None:
        environment["TRACE"] = str(trace)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [f"--max-restarts={restarts}", "-m", "thalweg", "fit", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("torchrun")
    (found / "mortal.py").write_text(TASK)
    return found


def alone(folder, **arguments):
    return thalweg.fit(load(f"{folder / 'mortal.py'}:task"), **arguments)


def test_restarts_end_where_one_process_ends(folder):
    """Killed in one attempt and raising in another, the ranks go on from the last checkpoint.

    What they leave is gone on with by sharded ranks, and by one process.
    """
    trace = folder / "trace"
    trace.mkdir()
    options = ["--batch-size", "48", "--checkpoint-every", "1e-6", "--out", "out", "--json"]
    found = launched(folder, "mortal.py:task", *options, "--epochs=3", restarts=2, trace=trace)
    assert found.returncode == 0, found.stderr
    said = re.findall(r"^thalweg: .*$", found.stderr, re.MULTILINE)
    assert len(said) == 1, found.stderr
    assert re.fullmatch(
        r"thalweg: rank 1 of 2 \(process \d+\) ended without a word, killed or out of memory, and "
        r"the training with it; torchrun starts all of them again, from the last checkpoint",
        said[0],
    )
    assert found.stderr.count("KeyError: 'on purpose'") == 1
    assert found.stderr.count("rank 0 of 2 failed, and so end the others; torchrun starts") == 1
    steps = 3 * -(-len(load("digits").train) // 48)
    lengths = [len((trace / f"{attempt}.1").read_text()) for attempt in range(3)]
    assert lengths[0] == 1 + 60, "each rank tries one batch before a training begins"
    assert 0 < lengths[2] < steps - 40, "it should have gone on from a checkpoint"

    lines = found.stdout.splitlines()
    assert len(lines) == 1, "one of the ranks prints"
    result, expected = json.loads(lines[0]), alone(folder, batch_size=48, epochs=3)
    assert (result["epochs"], result["steps"]) == (3, steps)
    for name in ("train_loss", "validation_loss", "metric", "test_loss", "test_metric"):
        assert result[name] == pytest.approx(expected.plain()[name], rel=ROUNDING), name
    kept = torch.load(folder / "out" / "best.pt", weights_only=True)["model"]
    for name, weight in expected.weights.items():
        torch.testing.assert_close(kept[name], weight, rtol=1e-4, atol=1e-5)

    found = launched(folder, "mortal.py:task", *options, "--epochs=4", "--resume", "--shard")
    assert found.returncode == 0, found.stderr
    one = alone(folder, epochs=5, out=folder / "out", resume=True)
    expected = alone(folder, batch_size=48, epochs=5)
    assert json.loads(found.stdout)["steps"] == 4 * steps // 3
    for name in ("train_loss", "validation_loss"):
        losses, others = one.history[name], expected.history[name]
        assert losses.tolist() == pytest.approx(others.tolist(), rel=ROUNDING)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits", "--batch-size=0"], "--batch-size: must be a whole number of at least 1, got 0"),
        (["digits", "--epochs=x"], "'--epochs'"),
    ],
    ids=["after joining", "before"],
)
def test_a_mistake_is_said_once(folder, arguments, said):
    found = launched(folder, *arguments)
    lines = [line for line in found.stderr.splitlines() if line.startswith("thalweg: ")]
    assert len(lines) == 1, found.stderr
    assert said in lines[0]
    assert found.stdout == ""
    # Of the rank that torchrun saw end first.
    cause = found.stderr.partition("Root Cause")[2]
    assert re.search(r"exitcode +: 2 ", cause), found.stderr
