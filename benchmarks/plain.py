"""The plain PyTorch loop that the study is measured against, one run after another."""

from time import perf_counter
from typing import Any

import torch

from benchmarks.peers import PEERS
from thalweg.studies.spec import Run, StudySpec
from thalweg.tasks import Task

# What the loop's own process does once: imports, data, and the first step, at which torch.optim
# imports more.
START_UP = """
import torch
from sklearn.datasets import load_digits
x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.nn.functional.cross_entropy(model(x.float()), y).backward()
optimizer.step()
"""


def train(task: Task, spec: StudySpec, run: Run, fused: bool) -> float:
    """Train one run as one would by hand, with validation each epoch and a test; seconds taken.

    The cross-entropy is torch's own, which is faster here than the one of the task.
    """
    loss_of = torch.nn.functional.cross_entropy
    theirs = PEERS[run.optimizer]
    assert theirs.torch is not None
    peer, arguments = getattr(torch.optim, theirs.torch[0]), theirs.torch[1]
    options: dict[str, Any] = {"fused": True} if fused and theirs.fused else {}
    start = perf_counter()
    torch.manual_seed(run.seed)
    model = task.model()
    optimizer = peer(model.parameters(), lr=run.lr, **arguments, **options)
    order = torch.Generator().manual_seed(run.seed)
    size, step = spec.batch_size, 0
    while step < spec.steps:
        model.train()
        index = torch.randperm(len(task.train), generator=order)
        total = torch.zeros(())
        count = min(spec.steps_per_epoch, spec.steps - step)
        for i in range(count):
            batch = index[i * size : (i + 1) * size]
            optimizer.zero_grad()
            loss = loss_of(model(task.train.x[batch]), task.train.y[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach()
        step += count
        model.eval()
        with torch.no_grad():
            outputs = model(task.validation.x)
            float(total), float(loss_of(outputs, task.validation.y))
            float(task.metric.of(outputs, task.validation.y))
    with torch.no_grad():
        outputs = model(task.test.x)
        float(loss_of(outputs, task.test.y)), float(task.metric.of(outputs, task.test.y))
    return perf_counter() - start
