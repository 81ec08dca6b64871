"""Real launches: two processes that torchrun starts, of which one dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

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
        return self.layers(x)

def task():
    d = load("digits")
    return thalweg.Task(
        model=Mortal, train=d.train, validation=d.validation, test=d.test, name="mortal"
    )
"""
SCRIPT = """
from thalweg.train.parallel import joined

for _ in range(2):
    with joined("cpu") as ranks:
        total = ranks.most(ranks.rank)
with joined("cpu") as ranks:
    if ranks.rank == total:
        raise OSError("on purpose")
    ranks.most(0.0)
"""
JOIN = """
from thalweg.train.parallel import joined

with joined("cpu"):
    pass
"""
FIT = ("-m", "thalweg", "fit")
# Of losses and weights in float32, over a hundred steps of Adam.
ROUNDING = 1e-5


def launched(folder, *arguments, restarts=0, trace=None):
    """What two ranks print, and torchrun's exit code."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if trace is not None:
        environment["TRACE"] = str(trace)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [f"--max-restarts={restarts}", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("torchrun")
    (found / "mortal.py").write_text(TASK)
    return found


def alone(folder, **arguments):
    return thalweg.fit(load(f"{folder / 'mortal.py'}:task"), **arguments)


def test_a_restart_ends_where_one_process_ends(folder):
    """Killed in the midst, they go on from the last checkpoint, and one process from theirs."""
    trace = folder / "trace"
    trace.mkdir()
    options = ["--batch-size=48", "--epochs=3", "--checkpoint-every=1e-6", "--out=out", "--json"]
    found = launched(folder, *FIT, "mortal.py:task", *options, restarts=1, trace=trace)
    assert found.returncode == 0, found.stderr
    said = re.findall(r"^thalweg: .*$", found.stderr, re.MULTILINE)
    assert len(said) == 1, found.stderr
    assert re.fullmatch(
        r"thalweg: rank 1 of 2 \(process \d+\) ended without a word, killed or out of memory, and "
        r"the training with it; torchrun starts all of them again, from the last checkpoint",
        said[0],
    )
    steps = 3 * -(-len(load("digits").train) // 48)
    lengths = [len((trace / f"{attempt}.1").read_text()) for attempt in range(2)]
    assert lengths[0] == 1 + 60, "each rank tries one batch before a training begins"
    assert 0 < lengths[1] < steps - 20, "it should have gone on from a checkpoint"

    lines = found.stdout.splitlines()
    assert len(lines) == 1, "one of the ranks prints"
    result, expected = json.loads(lines[0]), alone(folder, batch_size=48, epochs=3)
    assert (result["epochs"], result["steps"]) == (3, steps)
    for name in ("train_loss", "validation_loss", "metric", "test_loss", "test_metric"):
        assert result[name] == pytest.approx(expected.plain()[name], rel=ROUNDING), name
    kept = torch.load(folder / "out" / "best.pt", weights_only=True)["model"]
    for name, weight in expected.weights.items():
        torch.testing.assert_close(kept[name], weight, rtol=1e-4, atol=1e-5)

    more = alone(folder, epochs=4, out=folder / "out", resume=True)
    expected = alone(folder, batch_size=48, epochs=4)
    for name in ("train_loss", "validation_loss"):
        losses, others = more.history[name], expected.history[name]
        assert losses.tolist() == pytest.approx(others.tolist(), rel=ROUNDING)


def test_ctrl_c_ends_a_rank_that_waits_for_the_others(folder):
    """Another may have ended of it before it joined."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = free.getsockname()
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    variables |= {"MASTER_ADDR": place[0], "MASTER_PORT": str(place[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not reached(place):  # the first rank is where they meet
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    finally:
        process.kill()


def reached(place):
    try:
        socket.create_connection(place, 1).close()
    except OSError:
        return False
    return True


def test_a_mistake_is_said_once(folder):
    found = launched(folder, *FIT, "digits", "--batch-size=0")
    lines = [line for line in found.stderr.splitlines() if line.startswith("thalweg: ")]
    assert len(lines) == 1, found.stderr
    assert "--batch-size: must be a whole number of at least 1, got 0" in lines[0]
    assert found.stdout == ""
    # Of the rank that torchrun saw end first.
    cause = found.stderr.partition("Root Cause")[2]
    assert re.search(r"exitcode +: 2 ", cause), found.stderr


def test_an_error_of_one_rank_is_told_by_it_alone(folder):
    """It is the third time that they join."""
    (folder / "script.py").write_text(SCRIPT)
    found = launched(folder, "script.py")
    told = found.stderr.partition("Root Cause")[0]
    assert told.count("OSError: on purpose") == 1, found.stderr
    assert (
        told.count("rank 1 of 2 failed, and so end the others; start it again with --resume") == 1
    )
    assert "ended without a word" not in told
    assert "onnection" not in told
