"""What a check finds in tasks that are well, slow, or broken in one way each."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import thalweg
from tests.replicas import models
from thalweg.tasks import Task, TaskError

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()"]


def finding(found, what):
    return next(f for f in found.findings if f.what == what)


def linear_task(**options):
    split = models.data(96, 1)
    given = {"model": models.mlp, "train": split, "validation": split, "test": split}
    return Task(**(given | options))


def test_a_sound_task_is_ready():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = thalweg.check("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert found.ok
    assert {f.status for f in found.findings} == {"ok"}
    assert f"{math.log(10):.4g} is expected (ln 10" in finding(found, "loss at start").evidence
    assert "100% right" in finding(found, "overfits one batch").evidence
    assert "together" in finding(found, "replicas").evidence
    assert "tape" in finding(found, "step").evidence
    assert "8,970" in finding(found, "parameters").evidence
    again = json.loads(found.to_json())
    assert again["ok"]
    assert again["batch"]["trainable"] == 8970
    assert len(str(found).splitlines()) == 1 + len(found.findings)


def test_what_vmap_cannot_take_names_the_line():
    found = thalweg.check(linear_task(model=models.Branches))
    replicas = finding(found, "replicas")
    assert found.ok
    assert replicas.status == "warn"
    assert "models.py:" in replicas.evidence
    assert "`return out * 2 if out.sum() > 0 else out`" in replicas.evidence


def test_a_loss_far_from_what_is_expected():
    def wild():
        model = models.mlp()
        model[-1].weight.data *= 100
        return model

    start = finding(thalweg.check(linear_task(model=wild)), "loss at start")
    assert start.status == "warn"
    assert "last layer smaller" in start.advice
    assert "test_checker.py:" in start.advice
    split = models.data(96, 1)
    numbers = (split.x, 50 + split.x[:, :1])
    task = Task(model=lambda: nn.Linear(12, 1), train=numbers, validation=numbers, test=numbers)
    start = finding(thalweg.check(task), "loss at start")
    assert start.status == "warn"
    assert "standardise targets" in start.advice


def test_targets_that_do_not_belong_to_their_inputs_are_not_learnt():
    split = models.data(96, 1)
    equal = (torch.zeros_like(split.x), split.y)
    task = linear_task(train=equal, validation=equal, test=equal)
    assert finding(thalweg.check(task), "overfits one batch").status in ("warn", "fail")
    found = thalweg.check(linear_task(loss=lambda o, y: 1 + 0 * o.sum()))
    assert finding(found, "gradient").status == "fail"
    assert finding(found, "overfits one batch").status == "fail"
    assert not found.ok


def likelihood(outputs, y):
    return -outputs.gather(-1, y.unsqueeze(-1)).log().mean()


@pytest.mark.parametrize(
    ("loss", "doubled"),
    [("focal=1", True), ("mse", True), (nn.CrossEntropyLoss(), True), (likelihood, False)],
)
def test_a_softmax_before_a_loss_of_logits_is_named(loss, doubled):
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))

    def model():
        return nn.Sequential(nn.Linear(8, 2), nn.Softmax(-1))

    task = Task(model=model, train=(x, (x[:, 0] * x[:, 1] > 0).long()), loss=loss)
    learning = finding(thalweg.check(task), "overfits one batch")
    assert learning.status == "warn"
    said = "leave out the softmax at the end of the model (test_checker.py:"
    assert (said in learning.advice) == doubled


def test_dropout_does_not_keep_a_batch_from_being_learnt():
    found = thalweg.check(linear_task(model=models.dropout))
    assert finding(found, "overfits one batch").status == "ok"
    assert "draws random numbers" in finding(found, "step").evidence


def test_other_weights_at_every_call_and_a_sum_for_a_loss():
    def drawn():
        model = models.mlp()
        drawn = np.random.default_rng().normal(size=(16, 12)) / 4
        model[0].weight.data = torch.tensor(drawn, dtype=torch.float32)
        return model

    def total(outputs, y):
        return nn.functional.cross_entropy(outputs, y, reduction="sum")

    found = thalweg.check(linear_task(model=drawn, loss=total))
    assert finding(found, "weights").status == "warn"
    assert finding(found, "loss").status == "warn"


def test_what_cannot_run_is_a_finding_and_what_is_no_task_an_error():
    found = thalweg.check(linear_task(model=lambda: nn.Linear(5, 3)))
    assert not found.ok
    assert found.batch is None
    assert finding(found, "first batch").status == "fail"
    assert "test_checker.py:" in finding(found, "first batch").evidence
    with pytest.raises(TaskError, match="there is no task 'nothing'"):
        thalweg.check("nothing")


def test_the_command(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch, thalweg\n"
        "from torch import nn\n"
        "def task(sizes=(4, 3)):\n"
        "    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return thalweg.Task(model=lambda: nn.Linear(*sizes), train=(x, x[:, :3].argmax(1)))\n"
        "def broken():\n"
        "    return task((5, 3))\n"
        "def raising():\n"
        "    raise OSError('gone')\n"
    )

    def run(*arguments):
        return subprocess.run(
            [*COMMAND, "check", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    done = run("mine.py:task")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mine is ready to be studied." in done.stdout
    done = run("mine.py:broken", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["findings"][-1]["status"] == "fail"
    assert "mine.py:5" in done.stdout
    done = run("mine.py:raising")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "TASK: mine.py:9 raises OSError: gone" in done.stderr
    assert len(done.stderr.splitlines()) == 1
