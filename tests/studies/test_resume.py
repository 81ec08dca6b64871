"""A study killed at any moment goes on where its record ends, with the same numbers."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import thalweg
from thalweg import studies
from thalweg.studies.store import Store

# Four chunks of 126 runs, on two cores some five seconds of work.
ASKED = {"seeds": 8, "epochs": 30, "name": "killed"}
COLUMNS = [
    "run", "outcome", "step", "epoch", "train_loss", "validation_loss", "validation_metric",
    "test_loss", "test_metric", "epochs_to_target",
]  # fmt: skip

SCRIPT = """
import sys, thalweg
thalweg.study("digits", db=sys.argv[1], resume=True, **{asked!r})
"""


def start(db: Path) -> subprocess.Popen:
    script = SCRIPT.format(asked=ASKED)
    return subprocess.Popen([sys.executable, "-c", script, str(db)], start_new_session=True)


def committed(db: Path) -> pd.DataFrame:
    try:
        with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as connection:
            return pd.read_sql("select * from outcomes order by id", connection)
    except (sqlite3.Error, pd.errors.DatabaseError):
        return pd.DataFrame({"run": []})


def kept(now: pd.DataFrame, before: pd.DataFrame) -> None:
    if len(before):
        pd.testing.assert_frame_equal(now.iloc[: len(before)], before)


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("run")[COLUMNS].reset_index(drop=True)


@pytest.fixture(scope="module")
def undisturbed():
    return thalweg.study("digits", **ASKED)


def test_killed_at_any_moment(tmp_path, undisturbed):
    db = tmp_path / "study.db"
    seen = committed(db)

    def more():
        return len(committed(db)) > len(seen)

    # Before anything is on record, in the midst of the first chunks, and of those after them.
    for due, after in ((db.exists, 0.05), (db.exists, 1.0), (more, 0.2)):
        process = start(db)
        deadline = time.monotonic() + 120
        while not due() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=120) == -signal.SIGKILL
        now = committed(db)
        kept(now, seen)
        seen = now
    assert 0 < len(seen) < 504
    assert start(db).wait(timeout=120) == 0
    final = committed(db)
    kept(final, seen)
    assert not final["run"].duplicated().any()
    assert len(final) == 504
    store = Store(db)
    runs, curves = store.frames(store.latest("killed")[0])
    store.close()
    pd.testing.assert_frame_equal(numbers(runs), numbers(undisturbed.runs), check_exact=True)
    keys = ["run", "epoch"]
    pd.testing.assert_frame_equal(
        curves.sort_values(keys).drop(columns="seconds").reset_index(drop=True),
        undisturbed.curves.sort_values(keys)
        .drop(columns=["seconds", "arm", "levels"])
        .reset_index(drop=True),
        check_exact=True,
    )


def test_resuming_a_finished_study_trains_nothing(tmp_path):
    asked = {"optimizers": ["adam"], "lr": [0.01], "seeds": 2, "epochs": 2, "db": tmp_path / "a.db"}
    first = thalweg.study("wine", **asked)
    calls = []
    again = thalweg.study("wine", resume=True, progress=calls.append, **asked)
    assert calls == []
    pd.testing.assert_frame_equal(first.runs, again.runs)
    assert again.verdict == first.verdict


def test_without_resume_a_study_is_new(tmp_path):
    asked = {"optimizers": ["adam"], "lr": [0.01], "seeds": 2, "epochs": 2, "db": tmp_path / "a.db"}
    thalweg.study("wine", **asked)
    thalweg.study("wine", **asked)
    assert len(committed(tmp_path / "a.db")) == 4


def test_another_specification_is_not_resumed(tmp_path):
    asked = {"optimizers": ["adam"], "lr": [0.01], "seeds": 2, "db": tmp_path / "a.db"}
    thalweg.study("wine", epochs=2, **asked)
    with pytest.raises(thalweg.StudyError, match="has steps 6, this one asks for 9"):
        thalweg.study("wine", epochs=3, resume=True, **asked)


OWN = """
from dataclasses import dataclass
from functools import cache

import thalweg
from thalweg.rules import Number, Rule, maths

SCALES = {{"hidden": {scale}}}

class Kind:
    pass

THING = Kind()

@cache
def halved(x):
    return 0.5 * x if x in {{"a", "b", 1.0, 2.0}} else x

def bent(x):
    return {bent}

def update(p, g, lr):
    return (p - lr * bent(g),)

def coefficients(hyper, step):
    return (hyper["lr"] * SCALES["hidden"] * halved(1.0) if THING else 0.0,)

RULE = Rule("own", (Number("lr", 0.1),), (), coefficients, update, lr_range=(0.1, 1.0){more})
"""
GOES_ON = """
import os, sys, numba, sqlalchemy, thalweg
thalweg.study, thalweg.tasks.load("wine")  # imports
for folder in sys.argv[2:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    sys.path[0] = folder
    import own
    calls = []
    try:
        thalweg.study("wine", [own.RULE, "sgd"], lr=[0.1], seeds=2, epochs=2, db=sys.argv[1],
                      name="a", resume=True, progress=calls.append)
    except thalweg.StudyError as error:
        print(error)
    else:
        print(len(calls) > 0)
    sys.exit()
"""


def goes_on(tmp_path, *modules):
    """Of each module, whether a process of its own trains, or the error that it ends with.

    They fork from one that has imported what all need.
    """
    folders = []
    for changes in modules:
        folders.append(tmp_path / str(len(list(tmp_path.iterdir()))))
        folders[-1].mkdir()
        source = OWN.format(**{"scale": 1.0, "bent": "x", "more": "", **changes})
        (folders[-1] / "own.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", GOES_ON, str(tmp_path / "a.db"), *folders],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_rule_of_ones_own_is_known_by_its_code(tmp_path):
    assert goes_on(tmp_path, {}) == ["True"]
    problem = "resume: the code of own is not that of the last study named 'a'; give another name"
    assert goes_on(
        tmp_path,
        {"more": ", paper='on which nothing depends'"},
        {"bent": "maths.sqrt(x)"},
        {"scale": 2.0},
        {"more": ", own_decay=True"},
        {},
    ) == ["False", problem, problem, problem, "False"]


def test_time_out_is_an_outcome_and_is_taken_up_again(tmp_path):
    asked = {"optimizers": ["adam"], "lr": [0.01, 0.001], "seeds": 3, "epochs": 3}
    short = thalweg.study("digits", time_limit=1e-9, db=tmp_path / "a.db", **asked)
    assert set(short.runs["outcome"]) == {"timed out"}
    assert short.runs["test_metric"].isna().all()
    assert "no verdict" in short.verdict
    full = thalweg.study("digits", resume=True, db=tmp_path / "a.db", **asked)
    assert set(full.runs["outcome"]) == {"completed"}
    pd.testing.assert_frame_equal(
        numbers(full.runs), numbers(thalweg.study("digits", **asked).runs)
    )


def test_patience_stops_runs_that_no_longer_improve():
    found = thalweg.study(
        "digits", ["sgd"], lr=[0.001, 1.0], seeds=2, epochs=25, patience=3, target=0.5
    )
    fast = found.runs[found.runs["lr"] == 1.0]
    slow = found.runs[found.runs["lr"] == 0.001]
    assert (fast["outcome"] == "stopped").all()
    assert (fast["epoch"] < 25).all()
    assert fast["test_metric"].isna().all()
    assert (slow["outcome"] == "completed").all()
    assert found.summary.iloc[0]["lr"] == 0.001


def test_one_by_one_gives_the_study_and_says_why():
    from tests.replicas import models

    task = models.task(models.Branches)
    seen: list[studies.Progress] = []
    found = thalweg.study(task, ["sgd", "adam"], lr=[0.01], seeds=2, epochs=2, progress=seen.append)
    assert (found.runs["outcome"] == "completed").all()
    assert found.environment["backend"] == "one by one"
    assert any("asks for the value of a tensor" in note for note in found.notes)
    assert max(p.alive for p in seen) == 1
    assert seen[-1].done == 4


def test_progress_tells_how_far():
    seen: list[studies.Progress] = []
    thalweg.study("digits", ["sgd"], lr=[0.1, 1e30], seeds=2, epochs=3, progress=seen.append)
    assert [p.epoch for p in seen] == [1, 2, 3]
    assert seen[0].alive == 2
    assert seen[0].done == 2
    assert seen[-1].seconds_left == 0
    assert all(p.steps_per_second > 0 and p.runs == 4 for p in seen)
