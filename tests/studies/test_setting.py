from dataclasses import replace

import pytest
import torch

import thalweg
from tests.studies.variants import squared, wine_in_two_encodings
from thalweg.schedules import cosine
from thalweg.studies import StudyError
from thalweg.studies.factors import cross
from thalweg.studies.setting import best_setting
from thalweg.studies.spec import plan, specify
from thalweg.studies.store import Store
from thalweg.tasks import Split, load

KEYS = ["optimizer", "loss", "encoding", "schedule", "batch_size"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A study of wine that varies all that can be typed, and its file."""
    db = tmp_path_factory.mktemp("record") / "a.db"
    result = thalweg.study(
        "wine", ["sgd", "adam"], lr=[1e-3, 0.03], seeds=2, epochs=2, name="mine", db=db,
        losses="cross_entropy,focal=1", schedules="fixed,warmup:steps=20%+cosine",
        batch_size=[16, 32],
    )  # fmt: skip
    return result, db


def by_hand(runs):
    """Of each arm the rate with the best validation metric, and the arm that tests best with it."""
    settings = runs.groupby([*KEYS, "lr"], sort=False, as_index=False).agg(
        metric=("validation_metric", "mean"), loss_=("validation_loss", "mean"),
        test=("test_metric", "mean"), done=("outcome", lambda o: (o == "completed").all()),
    )  # fmt: skip
    settings = settings[settings["done"]].sort_values(
        ["metric", "loss_"], ascending=[False, True], kind="stable"
    )
    chosen = settings.groupby(KEYS, sort=False).head(1)
    return chosen[chosen["test"] >= chosen["test"].max() - 1e-12]


def test_it_is_what_stands_first(record):
    result, db = record
    first = result.summary.iloc[0]
    candidates = by_hand(result.runs)  # arms that test alike are told apart by their order
    matching = candidates[(candidates[KEYS] == first[KEYS]).all(axis=1)]
    assert matching["lr"].tolist() == [first["lr"]]
    for found in (best_setting(result), best_setting("mine", db=db)):
        assert (found.study, found.studied, found.same_task) == ("mine", "wine", True)
        assert (found.optimizer, found.lr) == (first["optimizer"], first["lr"])
        assert (found.loss, found.batch_size) == (first["loss"], first["batch_size"])
        assert (found.schedule or "fixed") == first["schedule"]
        assert found.task.loss.name == first["loss"]
        assert found.encoding is None
        assert (found.epochs, found.steps) == (2, 2 * (len(found.task.train) // found.batch_size))


def outcome(run, test_metric):
    levels = dict(zip(("loss", "encoding", "schedule", "batch_size"), run.levels, strict=True))
    numbers = {"train_loss": 0.1, "validation_loss": 0.1, "validation_metric": run.lr, "seconds": 1}
    at = {"outcome": "completed", "step": 20, "epoch": 1, "test_metric": test_metric}
    who = {"run": run.id, "optimizer": run.optimizer, "lr": run.lr, "seed": run.seed}
    return who | levels | numbers | at


def test_every_level_comes_back(tmp_path):
    """Of records in which each arm in turn tests best, at the rate that validates best."""
    wine, db = load("wine"), tmp_path / "a.db"
    crossed = cross(
        wine, loss="cross_entropy,focal=1", schedule="fixed,step:size=10e", batch_size=[8, 16]
    )
    spec = specify(crossed, optimizers=["adamw"], lr=[0.1, 0.2], seeds=1, epochs=2)
    store = Store(db)
    for i, best in enumerate(spec.combinations):
        number = store.begin(replace(spec, name=f"best {i}"), {}, "eager")
        rows = [outcome(run, 0.9 if run.levels == best else 0.8) for run in plan(spec)]
        store.record(number, rows, [[] for _ in rows])
    store.close()
    assert len(spec.combinations) == 8
    for i, (loss, _, schedule, batch_size) in enumerate(spec.combinations):
        found = best_setting(f"best {i}", wine, db=db)
        assert (found.optimizer, found.lr, found.same_task) == ("adamw", 0.2, True)
        assert (found.loss, found.schedule or "fixed") == (loss, schedule)
        # 106 training samples: 13 whole batches of 8, 6 of 16
        assert (found.batch_size, found.steps) == (batch_size, {8: 26, 16: 12}[batch_size])
        assert found.epochs == 2
        outputs, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
        p = torch.softmax(outputs, 1)[torch.arange(4), y]
        weight = 1 if loss == "cross_entropy" else 1 - p
        expected = -(weight * p.log()).mean()
        torch.testing.assert_close(found.task.loss.of(outputs, y), expected)


def test_a_result_keeps_what_was_made_in_python_and_a_record_says_that_it_cannot(tmp_path):
    task, db = wine_in_two_encodings(), tmp_path / "a.db"
    asked = {"lr": [0.03], "seeds": 1, "epochs": 2, "db": db}
    result = thalweg.study(task, ["adam"], losses=squared, name="own loss", **asked)
    found = best_setting(result)
    assert found.task.loss.of is squared
    assert found.encoding == result.summary["encoding"][0]
    assert found.task.model()[0].in_features == {"numeric": 13, "quartiles": 52}[found.encoding]
    with pytest.raises(StudyError, match=r"'own loss' does not suit the task 'wine2'.*squared"):
        best_setting("own loss", task, db=db)
    with pytest.raises(StudyError, match=r"is a study of 'wine2', no built-in task; give the task"):
        best_setting("own loss", db=db)
    with pytest.raises(StudyError, match="is the study's own"):
        best_setting(result, task)

    schedule = cosine(6)
    result = thalweg.study("wine", ["adam"], schedules=schedule, name="own schedule", **asked)
    assert best_setting(result).schedule is schedule
    with pytest.raises(StudyError, match=r"schedule made in Python, cosine\(6\)"):
        best_setting("own schedule", db=db)


def test_the_encoding_comes_back(tmp_path):
    task, db = wine_in_two_encodings(), tmp_path / "a.db"
    spec = specify(task, optimizers=["sgd"], lr=[0.1], seeds=1)
    store = Store(db)
    for best in ("numeric", "quartiles"):
        number = store.begin(replace(spec, name=best), {}, "eager")
        rows = [outcome(run, 0.9 if best in run.levels else 0.8) for run in plan(spec)]
        store.record(number, rows, [[] for _ in rows])
    store.close()
    for best, inputs in (("numeric", 13), ("quartiles", 52)):
        found = best_setting(best, task, db=db)
        assert (found.encoding, found.same_task) == (best, True)
        assert found.task.model()[0].in_features == found.task.train.x.shape[1] == inputs
    with pytest.raises(StudyError, match="has the encoding 'quartiles', which 'wine' is not"):
        best_setting("quartiles", load("wine"), db=db)


def test_another_task_than_was_studied_is_told(record):
    _, db = record
    wine = load("wine")
    fewer = replace(wine, train=Split(*wine.train[torch.arange(100)]))
    found = best_setting("mine", fewer, db=db)
    assert not found.same_task
    assert found.studied == "wine"
    assert len(found.task.train) == 100
    few = replace(wine, train=Split(*wine.train[torch.arange(8)]))
    with pytest.raises(StudyError, match="does not suit the task 'wine': batch_size: "):
        best_setting("mine", few, db=db)


def test_what_is_not_there_is_one_sentence(record, tmp_path):
    _, db = record
    missing = tmp_path / "no.db"
    for where in (missing, f"sqlite:///{missing}"):
        with pytest.raises(StudyError, match=r"there is no file .*no\.db"):
            best_setting("mine", db=where)
    assert not missing.exists()
    with pytest.raises(StudyError, match="has no study named 'nime'; did you mean 'mine'"):
        best_setting("nime", db=db)
    with pytest.raises(StudyError, match="has no study named 'xyz'; there "):
        best_setting("xyz", db=db)
    empty = tmp_path / "empty.db"
    store = Store(empty)
    with pytest.raises(StudyError, match="has no study named 'mine'; it has none at all"):
        best_setting("mine", db=empty)
    spec = specify(load("wine"), optimizers=["sgd"], lr=[0.1], seeds=2, name="begun")
    number = store.begin(spec, {}, "eager")
    for done in (0, 1):
        with pytest.raises(
            StudyError,
            match=f"from every seed; of its 2 runs {done} are on record, of which {done}",
        ):
            best_setting("begun", db=f"sqlite:///{empty}")
        store.record(number, [outcome(plan(spec)[done], 0.5)], [[]])
    assert best_setting("begun", db=empty).lr == 0.1
    store.begin(replace(spec, name="other", lrs=(("not_there", (0.1,)),)), {}, "eager")
    with pytest.raises(StudyError, match="'not_there', an optimizer that is not registered here"):
        best_setting("other", db=empty)
    store.close()
