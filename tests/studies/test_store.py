import sqlite3
import threading

import pytest

from thalweg.studies import store as store_module
from thalweg.studies.spec import StudyError, specify
from thalweg.studies.store import Store
from thalweg.tasks import load

SPEC = specify(load("wine"), optimizers=["sgd"], lr=[0.1], seeds=2)


def outcome(run: str, word: str = "completed", **numbers):
    return {
        "run": run,
        "optimizer": "sgd",
        "lr": 0.1,
        "seed": 0,
        "batch_size": 32,
        "outcome": word,
        "step": 3,
        "epoch": 1,
        "train_loss": 0.25,
        "validation_loss": None,
        "validation_metric": None,
        "test_loss": None,
        "test_metric": None,
        "epochs_to_target": None,
        "seconds_to_target": None,
        "seconds": 0.5,
    } | numbers


def point(epoch: int):
    return {
        "epoch": epoch,
        "step": 3 * epoch,
        "train_loss": 1 / 3,
        "validation_loss": 0.1,
        "validation_metric": 0.9,
        "seconds": 0.1,
    }


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    store = Store(tmp_path / "deep" / "a.db" if request.param == "file" else None)
    yield store
    store.close()


def test_what_goes_in_comes_out(store):
    study = store.begin(SPEC, {"torch": "x"}, "eager")
    store.record(study, [outcome("a"), outcome("b", "diverged")], [[point(1), point(2)], []])
    runs, curves = store.frames(study)
    assert runs["run"].tolist() == ["a", "b"]
    assert runs["train_loss"].tolist() == [0.25, 0.25]
    assert runs["test_metric"].isna().all()
    assert str(runs["test_metric"].dtype) == "float64"
    assert curves["train_loss"].tolist() == [1 / 3, 1 / 3]
    assert store.latest(SPEC.name) == (study, SPEC, "eager")
    assert store.latest("another") is None


def test_a_timed_out_run_is_not_finished_and_its_last_outcome_counts(store):
    study = store.begin(SPEC, {}, "eager")
    store.record(study, [outcome("a"), outcome("b", "timed out")], [[], [point(1)]])
    assert store.finished(study) == {"a"}
    store.record(study, [outcome("b")], [[point(1), point(2)]])
    runs, curves = store.frames(study)
    assert runs["outcome"].tolist() == ["completed", "completed"]
    assert len(curves) == 2


def test_studies_do_not_mix(store):
    first, second = (store.begin(SPEC, {}, "eager") for _ in range(2))
    store.record(first, [outcome("a")], [[]])
    assert store.finished(second) == set()
    assert store.latest(SPEC.name)[0] == second


def test_all_or_nothing(store):
    study = store.begin(SPEC, {}, "eager")
    with pytest.raises(StudyError):
        store.record(study, [outcome("a"), outcome("b")], [[point(1)], [point(2), point(2)]])
    assert store.frames(study)[0].empty
    assert store.finished(study) == set()


def test_other_files_are_refused_untouched(tmp_path):
    other = tmp_path / "notes.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create table notes (x)")
    with pytest.raises(StudyError, match="holds other tables"):
        Store(other)
    text = tmp_path / "text.db"
    text.write_text("hello " * 100)
    with pytest.raises(StudyError, match="not a database"):
        Store(text)
    assert text.read_text().startswith("hello")
    with pytest.raises(StudyError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(StudyError, match="no driver"):
        Store("nosuchdb://localhost/x")


def test_killed_while_the_tables_are_made(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "insert", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == []
    connection.close()
    Store(tmp_path / "a.db").close()


def test_another_version_is_refused(tmp_path):
    Store(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("update thalweg set schema_version = 99")
    with pytest.raises(StudyError, match="schema 99, this one reads 3"):
        Store(tmp_path / "a.db")


def test_a_reader_hammering_the_file_blocks_nothing(tmp_path):
    """FIELD: a dashboard that reads must not kill a study with "database is locked"."""
    path = tmp_path / "a.db"
    store = Store(path)
    study = store.begin(SPEC, {}, "eager")
    done = threading.Event()
    reads, errors = [0], []

    def hammer():
        connection = sqlite3.connect(path)
        while not done.is_set():
            try:
                connection.execute("select count(*), sum(train_loss) from curves").fetchall()
                reads[0] += 1
            except sqlite3.Error as error:
                errors.append(error)
        connection.close()

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(60):
            rows = [outcome(f"{i}-{j}") for j in range(20)]
            store.record(study, rows, [[point(e) for e in range(10)] for _ in rows])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert reads[0] > 20
    assert len(store.finished(study)) == 1200
    store.close()
