import sys
import threading
import time

import pytest

from thalweg.train.arguments import FitError
from thalweg.train.background import waitall
from thalweg.train.tensorboard import Log


def read(folder):
    """What TensorBoard itself makes of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_logged(tmp_path):
    log = Log(tmp_path / "deep" / "log")
    for step in range(100):
        log.add(step, {"loss": 1 / 2**step, "metric": step})
    log.add(100, {"loss": float("nan")})
    waitall()  # on disk then, without the log being closed
    found = read(tmp_path / "deep" / "log")
    log.close()
    assert found["metric"] == {step: step for step in range(100)}
    last = found["loss"].pop(100)
    assert last != last
    assert found["loss"] == {step: 1 / 2**step for step in range(100)}


def test_going_on_drops_what_came_after_the_step(tmp_path):
    log = Log(tmp_path)
    for step in (0, 5, 10, 15):
        log.add(step, {"loss": step, "only before": step})
    log.close()
    log = Log(tmp_path, step=10)  # in the same second
    log.add(12, {"loss": 112})
    log.close()
    assert read(tmp_path) == {
        "loss": {0: 0, 5: 5, 10: 10, 12: 112}, "only before": {0: 0, 5: 5, 10: 10}
    }  # fmt: skip
    Log(tmp_path).close()  # begins anew
    assert read(tmp_path) == {"loss": {0: 0}, "only before": {0: 0}}


def test_the_file_comes_after_those_that_are_there(tmp_path):
    """In the order of names, in which TensorBoard reads them."""
    last = tmp_path / f"events.out.tfevents.{int(time.time())}.zzz"
    last.write_bytes(b"")
    Log(tmp_path).close()
    own = next(path for path in tmp_path.iterdir() if path != last)
    assert own.name > last.name


def test_closing_leaves_no_thread(tmp_path):
    before = set(threading.enumerate())
    log = Log(tmp_path)
    log.add(1, {"loss": 1})
    log.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) == before


def test_a_missing_package_is_told_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FitError) as refused:
        Log(tmp_path)
    assert refused.value.problem == (
        "the package tensorboard is not installed; pip install 'thalweg[tensorboard]'"
    )


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match=r"cannot write to the folder .*file"):
        Log(tmp_path / "file")
