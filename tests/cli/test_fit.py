"""``thalweg fit`` as a person types it: killed, interrupted, gone on with, and mistyped."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import thalweg
from tests.train.test_fit import equal
from thalweg.train.checkpoint import read

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()"]

# Slow enough to be killed half-way: some 5 ms a step, and 300 steps.
OWN = """
import time
import torch
from torch import nn
import thalweg

class Slow(nn.Module):
    def forward(self, x):
        if self.training:
            time.sleep(0.002)
        return x

def task():
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    return thalweg.Task(
        model=lambda: nn.Sequential(
            Slow(), nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(16, 2),
        ),
        train=(x, (x[:, 0] * x[:, 1] > 0).long()), name="own", batch_size=12,
    )
"""
OPTIONS = [
    "own.py:task", "--epochs", "100", "--optimizer", "adamw:weight_decay=0.01", "--lr", "0.01",
    "--schedule", "warmup:steps=5%+cosine", "--ema-decay", "0.99", "--clip-norm", "1",
    "--accumulate", "2", "--checkpoint-every", "0.05", "--seed", "7",
]  # fmt: skip


@pytest.fixture
def own(here):
    (here / "own.py").write_text(OWN)
    return here


def begun(*arguments, cwd, **options):
    return subprocess.Popen(
        [*COMMAND, "fit", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def wait_for(what, process):
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def step_of(folder):
    """How far the checkpoint there is; it can be read at any time, as it is written whole."""
    return read(folder / "last.pt")["engine"]["step"] if (folder / "last.pt").exists() else 0


def test_killed_at_any_moment_it_ends_with_the_same_bits(own, run):
    code, _, error = run("fit", *OPTIONS, "--out", "whole")
    assert code == 0, error
    chance, killed, before = random.Random(), 0, 0
    cut = own / "cut"
    while killed < 2:
        process = begun(*OPTIONS, "--out", "cut", "--resume", cwd=own)
        wait_for(lambda before=before: step_of(cut) > before, process)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        before = step_of(cut)
        killed += 1
    assert 0 < before < 300
    code, out, error = run("fit", "own.py:task", "--out", "cut", "--resume", "--json")
    assert code == 0, error
    found = json.loads(out.splitlines()[-1])
    assert (found["steps"], found["epochs"]) == (300, 100)  # 60 samples, 5 batches, 3 windows
    for name in ("best.pt", "last.pt"):
        contents = [read(own / folder / name) for folder in ("whole", "cut")]
        for content in contents:
            content.pop("seconds", None)
            if name == "last.pt":  # the checks of types in tests draw from it
                assert content["engine"]["random"][0].pop("python")
            for row in (*content.get("history", ()), content.get("best") or {}):
                row.pop("seconds", None)
        assert equal(*contents), name


def test_ctrl_c_ends_with_a_checkpoint(own):
    process = begun(*OPTIONS, cwd=own)
    folder = own / "thalweg-fit-own"
    wait_for(lambda: step_of(folder) > 0, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    (line,) = error.splitlines()
    found = re.fullmatch(
        r"thalweg: interrupted in epoch (\d+) after step ([\d,]+); resume .*", line
    )
    assert found, line
    assert step_of(folder) == int(found[2].replace(",", "")) > 0
    kept = torch.load(folder / "last.pt", weights_only=True)
    assert all(t.isfinite().all() for t in kept["model"].values())


def test_ctrl_c_before_it_begins_is_one_line(here):
    (here / "slow.py").write_text("import time\nopen('read', 'w').close()\ntime.sleep(60)\n")
    process = begun("slow.py:task", cwd=here)
    wait_for(lambda: (here / "read").exists(), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (130, "thalweg: interrupted\n")


def test_a_bar_on_a_terminal(own):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "fit", "own.py:task", "--epochs", "40"],
        cwd=own,
        stderr=child,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 1 << 16)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    os.close(parent)
    process.stdout.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
    assert re.search(
        r"epoch \d+/40 .*loss 0\.\d+ · accuracy \d+\.\d% · lr 0\.001 · [\d,]+ samples/s", text
    )


def test_ends_with_one_object(here, run):
    code, out, error = run("fit", "wine", "--epochs", "3", "--json", "--out", "deep/run")
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert {
        "train_loss", "validation_loss", "metric", "epochs", "steps", "seconds", "checkpoint",
    } <= found.keys()  # fmt: skip
    assert found["checkpoint"] == "deep/run/best.pt"
    own = thalweg.fit("wine", epochs=3)
    assert found | {"seconds": 0} == own.plain() | {"seconds": 0, "checkpoint": "deep/run/best.pt"}
    code, out, _ = run("fit", "wine", "--epochs", "3")
    assert code == 0
    assert out.splitlines()[-1] == "Checkpoint: thalweg-fit-wine/best.pt"


def test_the_best_setting_of_a_study(here, run):
    levels = ["--optimizers", "adam,sgd", "--lr", "0.001,0.1", "--seeds", "2", "--epochs", "4"]
    asked = ["--schedules", "fixed,cosine", "--batch-size", "16,24"]
    code, out, error = run("study", "wine", *levels, *asked, "--json")
    assert code == 0, error
    best = json.loads(out)["summary"][0]
    code, out, error = run("fit", "wine", "--from-study", "wine", "--json")
    assert code == 0, error
    kept = read(here / "thalweg-fit-wine" / "last.pt")["recipe"]
    assert kept["optimizer"] == thalweg.optim.registry.key(best["optimizer"])
    assert kept["lr"] == pytest.approx(best["lr"], rel=1e-12)
    assert kept["epochs"] == 4
    schedule = None if best["schedule"] == "fixed" else best["schedule"]
    assert (kept["batch_size"], kept["schedule"]) == (best["batch_size"], schedule)
    code, out, error = run(
        "fit", "wine", "--from-study", "wine", "--epochs", "2", "--out", "b", "--json"
    )
    assert json.loads(out)["epochs"] == 2
    code, _, error = run("fit", "wine", "--from-study", "whine", "--out", "c")
    assert code == 2
    assert "--from-study" in error
    assert "wine" in error


def test_a_table_is_predicted_with_what_was_trained(here, run):
    lines = ["a,b,y"] + [f"{i % 7},{'uv'[i % 2]},{i % 7 + 3 * (i % 2)}" for i in range(60)]
    (here / "rows.csv").write_text("\n".join(lines))
    code, out, error = run("fit", "rows.csv", "--target", "y", "--epochs", "2")
    assert code == 0, error
    assert out.splitlines()[-1] == "Model: thalweg-fit-rows/rows.model"
    code, out, error = run("predict", "thalweg-fit-rows/rows.model", "rows.csv")
    assert code == 0, error
    assert len(out.splitlines()) == 61


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["minst"], "TASK: there is no task 'minst'"),
        (["wine", "--optimizer", "adan2"], "--optimizer: there is no 'adan2'; did you mean adan"),
        (["wine", "--optimizer", "sgd:mu=0.9"], "--optimizer: SGD has no argument 'mu'"),
        (["wine", "--lr", "0"], "--lr: must be positive"),
        (["wine", "--schedule", "cosin"], "--schedule: there is no schedule 'cosin'"),
        (["wine", "--batch-size", "999"], "--batch-size: 999 is more than"),
        (["wine", "--precision", "half"], "--precision: must be one of float32"),
        (["wine", "--device", "gpu"], "--device"),
        (["wine", "--loss", "mee"], "--loss: there is no loss 'mee'"),
        (["wine", "--checkpoint-every", "-1"], "--checkpoint-every: must be positive"),
        (["wine", "--out", "there.txt"], "--out: cannot write to there.txt"),
    ],
)
def test_what_cannot_be_is_one_line(here, run, arguments, said):
    (here / "there.txt").write_text("mine")
    code, out, error = run("fit", *arguments)
    assert (code, out) == (2, "")
    assert len(error.splitlines()) == 1
    assert said in error
    assert [p.name for p in here.iterdir()] == ["there.txt"]
    assert (here / "there.txt").read_text() == "mine"


def test_a_loss_that_turns_nan_is_one_line_and_exit_1(here, run):
    code, out, error = run("fit", "wine", "--optimizer", "sgd", "--lr", "1e9", "--json")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"thalweg: the loss is \w+ in epoch 1: first at step \d+, .* goes on from step 0, .*\n",
        error,
    )
    code, out, error = run("fit", "wine", "--resume", "--lr", "0.01", "--json")
    assert code == 0, error
