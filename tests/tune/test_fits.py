"""The largest batch that fits: what is searched, and real memory that runs out."""

import random
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from thalweg.errors import ArgumentError
from thalweg.tasks import Task, TaskError
from thalweg.tune import Fit, fits, largest_batch

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_steps(monkeypatch):
    monkeypatch.setattr(fits, "TIMED", 0)


def small(samples=40, model=lambda: nn.Linear(3, 2), **others):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=generator)
    y = torch.randint(0, 2, (samples,), generator=generator)
    part = (x[:8], y[:8])
    return Task(model=model, train=(x, y), validation=part, test=part, **others)


class Strict(nn.Module):
    """Takes batches of a few samples alone."""

    def __init__(self, most, error):
        super().__init__()
        self.inner, self.most, self.error = nn.Linear(3, 2), most, error

    def forward(self, x):
        if len(x) > self.most:
            raise self.error
        return self.inner(x)


def no_memory(size=1 << 20):
    return RuntimeError(
        f"[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        f"memory: you tried to allocate {size} bytes. Error code 12 (Cannot allocate memory)"
    )


def test_all_data_fit():
    fit = largest_batch(small())
    assert (fit.size, fit.limit) == (40, "data")
    assert list(fit.tried.columns) == ["batch_size", "fits", "bytes", "samples_per_second"]
    assert list(fit.tried.batch_size) == [1, 2, 4, 8, 16, 32, 40]
    assert fit.tried.fits.all()
    assert (fit.tried.samples_per_second > 0).all()
    assert fit.bytes == fit.tried.bytes.iloc[-1]
    assert fit.available > 0


@pytest.mark.parametrize("most", [1, 2, 3, 5, 16, 31, 33, 39])
def test_sizes_are_halved_down_to_a_sixteenth(most):
    fit = largest_batch(small(model=lambda: Strict(most, no_memory()), batch_size=1))
    tried = fit.tried.set_index("batch_size").fits
    assert fit.limit == "memory"
    assert tried[fit.size]
    assert all(tried[size] == (size <= most) for size in tried.index)
    assert fit.size <= most < min(tried.index[~tried])
    assert min(tried.index[~tried]) - fit.size <= max(1, fit.size / 16)
    assert fit.tried.samples_per_second.isna().equals(~fit.tried.fits)


@pytest.mark.parametrize(("maximum", "sizes"), [(6, [1, 2, 4, 6]), (1, [1])])
def test_no_more_than_the_maximum(maximum, sizes):
    fit = largest_batch(small(), maximum=maximum)
    assert (fit.size, fit.limit) == (maximum, "data")
    assert list(fit.tried.batch_size) == sizes


def test_beyond_the_data_samples_are_repeated():
    seen = []

    def loss(outputs, y):
        seen.append(y.clone())
        return nn.functional.cross_entropy(outputs, y)

    task = small(samples=10, loss=loss)
    fit = largest_batch(task, maximum=25)
    assert (fit.size, fit.limit) == (25, "data")
    y = task.train.y
    assert torch.equal(seen[-1], torch.cat([y, y, y[:5]]))


def test_batch_normalisation_begins_with_two():
    model = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    fit = largest_batch(small(model=model))
    assert list(fit.tried.batch_size) == [2, 4, 8, 16, 32, 40]
    with pytest.raises(TaskError, match="a batch of 1 raises ValueError: Expected more than 1"):
        largest_batch(small(model=model), maximum=1)


@pytest.mark.parametrize("optimizer", ["sgd", "Adam", "Schedule-Free AdamW", "muon", "sam"])
def test_any_optimizer_of_the_registry(optimizer):
    if optimizer == "sam":
        with pytest.raises(ArgumentError, match="there is no 'sam'; did you mean "):
            largest_batch(small(), optimizer=optimizer)
    else:
        assert largest_batch(small(), optimizer=optimizer, maximum=4).size == 4


def test_what_is_the_persons_own_is_one_sentence():
    with pytest.raises(TaskError) as caught:
        largest_batch(small(model=lambda: Strict(0, KeyError("weights"))))
    assert "the model raises KeyError: 'weights'" in caught.value.problem
    with pytest.raises(TaskError) as caught:
        largest_batch(small(model=lambda: Strict(9, ValueError("too many")), batch_size=4))
    problem = "training with Adam and a batch of 16 raises ValueError: too many at test_fits.py:"
    assert caught.value.problem.startswith(problem)
    assert caught.value.problem.endswith("`raise self.error`")
    assert "\n" not in caught.value.problem


@pytest.mark.parametrize(
    ("arguments", "argument", "problem"),
    [
        ({"maximum": 0}, "maximum", "must be a whole number of at least 1, got 0"),
        ({"maximum": True}, "maximum", "must be a whole number of at least 1, got True"),
        ({"maximum": 2.5}, "maximum", "must be a whole number of at least 1, got 2.5"),
        ({"device": "mps"}, "device", "must be cpu or cuda, got 'mps'"),
        ({"device": "gpu"}, "device", "must be cpu or cuda, got 'gpu'"),
        ({"device": "cuda:99"}, "device", "GPUs here, got 'cuda:99'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, argument, problem):
    with pytest.raises(ArgumentError) as caught:
        largest_batch(small(), **arguments)
    assert caught.value.argument == argument
    assert problem in caught.value.problem


def test_what_is_no_task():
    with pytest.raises(TaskError, match=r"must be a name or a thalweg\.Task, got 3"):
        largest_batch(3)


def test_random_states_and_gradients_are_left_alone():
    module = nn.Linear(3, 2)
    module.weight.grad = torch.ones(2, 3)
    task = small(model=lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    largest_batch(task)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert torch.equal(module.weight.grad, torch.ones(2, 3))


def test_one_sample_that_does_not_fit():
    with pytest.raises(TaskError) as caught:
        largest_batch(small(model=lambda: Strict(0, no_memory(3 * 10**12)), batch_size=1))
    assert "training on 1 sample needs at least 3e+03 GB of memory, where" in caught.value.problem


def trial(size, taken, fit=True):
    return fits._Trial(size, fit, taken, 1.0, 0)


def test_the_line_through_the_two_largest_that_fit():
    task = small()
    sample = 3 * 4 + 8  # three floats and a class number
    assert fits._least(task, [trial(1, 500)], 7) == 7 * sample
    known = [trial(1, 0), trial(2, 5000), trial(4, 9000), trial(8, 1, fit=False)]
    assert fits._least(task, known, 6) == 13000
    assert fits._least(task, [trial(2, 9000), trial(4, 9000)], 1000) == 1000 * sample


def test_what_cannot_fit_is_not_tried(monkeypatch):
    tried = []

    def made_up(task, entry, device, size):
        tried.append(size)
        return trial(size, 100_000 * size)

    monkeypatch.setattr(fits, "_tried", made_up)
    monkeypatch.setattr(fits, "available_memory", lambda: 2_000_000)
    fit = largest_batch(small())
    # 32 and 24 would take more than 20 do; 20 of 1, 2, 4, 8, 16 is the most.
    assert tried == [1, 1, 2, 4, 8, 16, 20]
    assert (fit.size, fit.limit, fit.bytes) == (20, "memory", 2_000_000)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (no_memory(), True),
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10**15,), np.dtype("float64")), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the shop is out of memory cards"), False),
    ],
)
def test_errors_of_memory(error, memory):
    outer = TaskError("task", "the model raises")
    outer.__cause__ = error
    assert fits._is_memory(error) == fits._is_memory(outer) == memory


def test_what_was_asked_for():
    assert fits._asked(no_memory(4096)) == 4096
    assert fits._asked(RuntimeError("Tried to allocate 2.50 GiB. GPU 0")) == 2.5 * 2**30
    assert fits._asked(MemoryError()) == 0


SIZE = 96 << 20


@pytest.mark.parametrize("proc", [True, False])
def test_the_peak_is_measured_while_it_lasts(monkeypatch, tmp_path, proc):
    if proc and sys.platform != "linux":
        pytest.skip("the peak is Linux's")
    if not proc:
        monkeypatch.setattr(fits, "PROC", tmp_path / "none")
    fits._free()
    peak = fits._watched(DEVICE)
    held = torch.ones(SIZE // 4)
    for _ in range(20):  # long enough to be seen
        held.add_(1)
    del held
    assert peak() == pytest.approx(SIZE, rel=0.1)


@LINUX
def test_the_limit_stands_for_a_trial_alone():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)

    def fail():
        with fits._limited(DEVICE):
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            assert 0 < soft < fits.available_memory() + fits._status("VmData")
            assert hard == before[1]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with fits._limited(torch.device("cuda")):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@LINUX
def test_more_than_is_available_raises(monkeypatch):
    fits._free()
    monkeypatch.setattr(fits, "available_memory", lambda: 400 << 20)
    with fits._limited(DEVICE):
        assert torch.ones(50 << 20).sum() == 50 << 20  # 200 MiB
        with pytest.raises(RuntimeError) as caught:
            torch.ones(96 << 20)  # 384 MiB, of which fifteen sixteenths may be taken
    assert fits._is_memory(caught.value)
    assert fits._asked(caught.value) == 384 << 20
    assert torch.ones(96 << 20).sum() == 96 << 20


LIMITED = """
import resource, psutil, torch
from torch import nn
from thalweg.tasks import Task, TaskError
from thalweg.tune import largest_batch

class Wide(nn.Module):
    # An activation of 8 MB a sample, of which the graph keeps two.
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(2_000_000))
        self.sizes = sizes
    def forward(self, x):
        self.sizes.append(len(x))
        return (x[:, :1] * self.factor).tanh().mean(1, keepdim=True).expand(-1, 2)

sizes = []
x, y = torch.randn(1000, 3), torch.arange(1000) % 2
task = Task(model=Wide, train=(x, y), validation=(x[:4], y[:4]), test=(x[:4], y[:4]), batch_size=4)
largest_batch(task, maximum=2)  # loads code
LIMIT = psutil.Process().memory_info().vms + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
before = torch.get_rng_state(), resource.getrlimit(resource.RLIMIT_DATA)
"""


def limited(code):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@LINUX
def test_memory_that_really_runs_out():
    out = limited(
        """
sizes.clear()
fit = largest_batch(task)
print(fit.size, fit.limit, fit.bytes, fit.available, sizes.count(fit.size))
print((~fit.tried.fits).sum(), fit.tried.set_index("batch_size").fits[fit.size])
print(torch.equal(before[0], torch.get_rng_state()))
print(before[1] == resource.getrlimit(resource.RLIMIT_DATA))
print(resource.getrlimit(resource.RLIMIT_AS) == (LIMIT, LIMIT))
print(torch.ones(150_000_000).sum().item())  # 600 MB, which there is room for once more
again = largest_batch(task)
print(again.size)
"""
    )
    size, limit, taken, available, count = out[0].split()
    assert limit == "memory"
    # A sample takes 8 MB for the product, as much for its tanh and as much for the gradient of one.
    assert 10 <= int(size) <= 1.3e9 / 16e6
    # Beyond the limit's gigabyte there is what importing has given back.
    assert int(size) * 16e6 < int(taken) < int(available) < 1.3e9
    assert int(count) >= 2
    failed, ran = out[1].split()
    assert int(failed) >= 1
    assert ran == "True"
    assert out[2:5] == ["True"] * 3
    assert float(out[5]) == 150_000_000
    # Less than before: what the allocator keeps counts towards the limit of the process.
    assert 1 <= int(out[6]) <= 1.3e9 / 16e6


@LINUX
def test_a_model_that_does_not_fit_at_all():
    out = limited(
        """
class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(100_000_000))  # 400 MB, and as much as gradient
    def forward(self, x):
        return (x[:, :1] * self.factor).mean(1, keepdim=True).expand(-1, 2)

huge = Task(model=Huge, train=(x, y), validation=(x[:4], y[:4]), test=(x[:4], y[:4]))
try:
    largest_batch(huge)
except TaskError as error:
    print(error.problem)
print(torch.ones(150_000_000).sum().item())
"""
    )
    # What it had when it failed may be less than what is free, and what it asked for then unknown.
    assert re.match(
        r"a step of training on 1 sample needs (at least 1\.\d+ GB of|more) memory", out[0]
    )
    assert "are free; give a smaller model" in out[0]
    assert float(out[1]) == 150_000_000


def test_two_are_compared_without_their_tables():
    table = pd.DataFrame({"batch_size": [1]})
    assert Fit(1, 2, "data", 3, table) == Fit(1, 2, "data", 3, table.copy())
