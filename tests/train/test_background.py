import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from thalweg.train.arguments import FitError
from thalweg.train.background import Background, waitall


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = set(threading.enumerate())
    yield
    waitall()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) == before


def fails(what):
    raise OSError(what)


def test_calls_are_made_in_order_in_another_thread():
    background, seen = Background(), []
    for i in range(50):
        background.submit(lambda i: seen.append((i, threading.current_thread())), i)
    background.wait()
    assert [i for i, _ in seen] == list(range(50))
    assert threading.main_thread() not in {thread for _, thread in seen}


def test_no_more_is_pending_than_is_allowed():
    """With two, the third is taken when the first is done, and what that held is gone."""

    class Snapshot:
        pass

    background, go_on, living = Background(2), threading.Semaphore(0), weakref.WeakSet()
    taken = []

    def submit_four():
        for i in range(4):
            snapshot = Snapshot()
            living.add(snapshot)
            background.submit(lambda _: go_on.acquire(), snapshot)
            del snapshot
            taken.append(i)

    submitting = threading.Thread(target=submit_four)
    submitting.start()
    for done in range(3):
        until = time.monotonic() + 60
        while len(taken) < 2 + done and time.monotonic() < until:
            time.sleep(1e-3)
        submitting.join(0.05)  # in which one more would be taken
        assert len(taken) == 2 + done
        gc.collect()
        assert len(living) <= 3  # two, and the one that is being submitted
        go_on.release()
    go_on.release(4)
    submitting.join()
    background.wait()
    gc.collect()
    assert len(living) == 0


def test_an_error_comes_up_with_the_next_call_and_keeps_nothing_from_being_done():
    background, seen, later = Background(3), [], threading.Event()
    background.submit(fails, "disk full")
    background.submit(later.set)
    assert later.wait(60)
    with pytest.raises(OSError, match="disk full") as raised:
        background.submit(seen.append, 1)
    assert raised.traceback[-1].name == "fails"
    background.submit(seen.append, 2)
    background.wait()
    assert seen == [2]

    background.submit(fails, "disk gone")
    with pytest.raises(OSError, match="disk gone"):
        background.wait()
    background.wait()


def test_waitall_waits_for_all_and_raises_what_any_raised():
    go_on, seen = threading.Event(), []
    one, other = Background(3), Background()
    one.submit(lambda: (go_on.wait(), fails("first")))  # or a submit might raise it already
    one.submit(fails, "second")
    one.submit(seen.append, 1)
    other.submit(lambda: (go_on.wait(), seen.append(2)))
    del one, other  # which does not end what they do
    gc.collect()
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(OSError, match="first") as raised:
        waitall()
    assert raised.value.__notes__ == ["Another call in the background raised OSError('second')."]
    assert sorted(seen) == [1, 2]
    waitall()


SCRIPT = """
import sys, time
from thalweg.train.background import Background
background = Background(4)
def write(text):
    time.sleep(0.1)
    print(text, flush=True)
def fails():
    raise OSError("disk full")
background.submit(write, 1)
background.submit(fails)
background.submit(write, 2)
del background
print(0, flush=True)
"""


def test_what_was_submitted_is_done_when_the_process_ends_and_its_error_shown():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "0\n1\n2\n"
    assert done.stderr.endswith("OSError: disk full\n")


@pytest.mark.parametrize("pending", [0, 1.0])
def test_a_bound_that_is_none_is_refused(pending):
    with pytest.raises(FitError, match=f"must be a whole number of at least 1, got {pending}"):
        Background(pending)
