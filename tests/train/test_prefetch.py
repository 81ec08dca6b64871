import gc
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from thalweg.train.arguments import FitError
from thalweg.train.prefetch import prefetch

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) == before


def uneven(i):
    """The square, sooner or later than others."""
    time.sleep((i * 7 % 5) * 1e-3)
    return i * i


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_batches_come_in_order_and_each_pass_begins_anew(depth, workers):
    batches = prefetch(range(20), depth, prepare=uneven, workers=workers)
    assert len(batches) == 20
    for _ in range(2):
        assert list(batches) == [i * i for i in range(20)]
    assert list(prefetch(range(20), depth)) == list(range(20))
    assert list(prefetch([], depth, prepare=uneven)) == []


def test_passes_at_the_same_time_do_not_know_each_other():
    with prefetch(range(5), 2) as batches:
        assert list(zip(batches, batches, strict=True)) == [(i, i) for i in range(5)]


def test_the_next_batch_is_made_while_one_is_in_use():
    second = threading.Event()

    def batches():
        yield 1
        second.set()
        yield 2

    with prefetch(batches(), 1) as ahead:
        assert next(it := iter(ahead)) == 1
        assert second.wait(10)  # nobody asked for the second yet
        assert list(it) == [2]


class Batch:
    """Half a MiB that is counted while it lives."""

    living = 0

    def __init__(self):
        self.array = np.ones(MIB // 16)
        Batch.living += 1
        weakref.finalize(self, Batch.gone)

    @staticmethod
    def gone():
        Batch.living -= 1


@pytest.mark.parametrize("depth", [1, 4, 16])
@pytest.mark.parametrize("workers", [0, 3])
def test_memory_is_held_to_the_bound(depth, workers):
    """A batch in use and as many as are allowed in flight, and no more, once all are made."""
    if workers:
        batches = prefetch(range(60), depth, prepare=lambda _: Batch(), workers=workers)
    else:
        batches = prefetch((Batch() for _ in range(60)), depth)
    most = held = 0
    tracemalloc.start()
    try:
        for i, _batch in enumerate(batches):
            if i < 40:  # until then there are enough to come
                until = time.monotonic() + 10
                while Batch.living < depth + 1 and time.monotonic() < until:
                    time.sleep(1e-3)
            time.sleep(2e-3)  # in which a further one would be made
            most = max(most, Batch.living)
            held = max(held, tracemalloc.get_traced_memory()[0])
        del _batch
    finally:
        tracemalloc.stop()
    assert most == depth + 1
    assert Batch.living == 0
    assert (depth + 1) * MIB / 2 <= held < (depth + 1) * MIB / 2 + MIB / 4


def test_what_was_prepared_is_not_kept():
    many = (Batch() for _ in range(60))
    iteration = iter(prefetch(many, 4, prepare=lambda batch: batch.array[0], workers=3))
    for _ in range(20):
        assert next(iteration) == 1
    until = time.monotonic() + 10
    while Batch.living and time.monotonic() < until:  # the last four are still being prepared
        time.sleep(1e-3)
    assert Batch.living == 0


def fails(i):
    if i == 3:
        raise KeyError("the third")
    return i


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_comes_at_its_place_with_its_traceback(workers):
    def batches():
        for i in range(10):
            yield fails(i)

    for ahead in (prefetch(range(10), 6, prepare=fails, workers=workers), prefetch(batches(), 6)):
        iteration = iter(ahead)
        assert [next(iteration) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="the third") as raised:
            next(iteration)
        assert traceback.extract_tb(raised.tb)[-1].name == "fails"
        assert list(iteration) == []


def test_an_end_in_the_wrong_place_is_an_error():
    with pytest.raises(RuntimeError, match="prepare raised StopIteration"):
        list(prefetch(range(3), prepare=lambda _: next(iter([]))))


def test_what_fails_at_the_beginning_fails_where_it_is_asked_for():
    def batches():
        raise OSError("no such disk")
        yield

    iteration = iter(prefetch(batches()))
    with pytest.raises(OSError, match="no such disk"):
        next(iteration)


def endless(closed):
    try:
        i = 0
        while True:
            yield i
            i += 1
    finally:
        closed.append(threading.current_thread().name)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_half_way_is_closed(workers):
    asked = {"prepare": uneven, "workers": workers} if workers else {}
    closed = []
    for _ in prefetch(endless(closed), 3, **asked):
        break
    assert closed == ["thalweg prefetch"]

    def failing():
        for batch in prefetch(endless(closed), 3, **asked):
            fails(3 - batch)

    with pytest.raises(KeyError):
        failing()
    assert len(closed) == 2

    def consumer():
        yield from prefetch(endless(closed), 3, **asked)

    taken = consumer()
    next(taken)
    taken.close()
    assert len(closed) == 3

    with prefetch(endless(closed), 3, **asked) as batches:
        iteration = iter(batches)
        next(iteration)
    assert len(closed) == 4
    assert list(iteration) == []

    kept = [iter(prefetch(endless(closed), 3, **asked))]
    kept.append(kept)  # found by the garbage collector alone
    del kept
    gc.collect()
    assert len(closed) == 5


SCRIPT = """
import sys, time, torch
from thalweg.train.prefetch import prefetch
def batches():
    while True:
        time.sleep(0.01)
        yield torch.ones(10)
kept = [iter(prefetch(batches(), 3, prepare=lambda x: (x @ x, time.sleep(0.01)), workers=3)),
        iter(prefetch(batches(), 3))]
for iteration in kept:
    next(iteration)
print("over")
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("1 / 0", 1)])
def test_the_process_ends_without_ado(end, code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT.format(end=end)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "over\n")
    assert ("ZeroDivisionError" in done.stderr) if code == 1 else not done.stderr


def test_a_source_that_hangs_does_not_hang_who_leaves(monkeypatch):
    monkeypatch.setattr(sys.modules["thalweg.train.prefetch"], "PATIENCE", 0.05)
    go_on = threading.Event()

    def batches():
        yield 1
        go_on.wait()
        yield 2

    for batch in prefetch(batches(), 2):
        assert batch == 1
        break
    (hanging,) = (t for t in threading.enumerate() if t.name == "thalweg prefetch")
    go_on.set()
    hanging.join(60)
    assert not hanging.is_alive()


@pytest.mark.parametrize("processes", [0, 2])
def test_a_loader_gives_what_it_gives_alone(processes):
    """Its order too, though it is drawn from the state that the training draws from."""
    data = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20))
    loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=processes)

    def passes(batches):
        torch.manual_seed(0)
        found = []
        for _ in range(2):
            for x, y in batches:
                found.append((x, y, torch.rand(1)))  # as dropout would
        return found

    ahead = prefetch(loader, 2)
    assert len(ahead) == 7
    for one, other in zip(passes(loader), passes(ahead), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_tensors_are_brought_to_the_device():
    Pair = namedtuple("Pair", "x y")
    x = torch.ones(2)
    given = [{"x": x, "names": ["a", "b"]}, (x, [x, 3]), Pair(x, None), x]
    moved = list(prefetch(given, device="cpu"))
    assert moved[0]["names"] == ["a", "b"]
    assert moved[1][1][1] == 3
    assert moved[2] == Pair(x, None) or moved[2].y is None
    assert moved[3] is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_copies_to_a_gpu_arrive_before_they_are_used():
    x = [torch.full((2**22,), float(i)) for i in range(20)]
    with prefetch(x, 2, prepare=lambda t: (t, t + 1), device="cuda") as batches:
        for i, (one, other) in enumerate(batches):
            assert one.device.type == other.device.type == "cuda"
            assert one.sum().item() == i * 2**22
            assert other.sum().item() == (i + 1) * 2**22
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for t in prefetch(x, 2, device="cuda"):
        torch.cuda._sleep(10**8)  # while which Python is ahead
        t.mul_(2)
    assert torch.cuda.max_memory_allocated() - before <= 4 * 2**24


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batches": 3}, "batches: must be something to iterate over, got 3"),
        ({"depth": 0}, "depth: must be a whole number of at least 1, got 0"),
        ({"depth": True}, "depth: must be a whole number of at least 1, got True"),
        ({"workers": 1.5}, "workers: must be a whole number of at least 1, got 1.5"),
        ({"prepare": 3}, "prepare: must be a function of a batch, got 3"),
        ({"device": "nowhere"}, "device: 'nowhere' cannot be used here: "),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(FitError) as refused:
        prefetch(**({"batches": []} | asked))
    assert str(refused.value).startswith(said)


def test_a_length_that_nobody_knows_is_an_error():
    with pytest.raises(TypeError, match="generator does not say how many batches"):
        len(prefetch(i for i in range(3)))
