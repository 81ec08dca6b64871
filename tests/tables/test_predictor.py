import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn import datasets

from thalweg.tasks import TaskError
from thalweg.tasks.tables import Predictor, table


def _trained(task, steps=100, lr=0.3):
    """A network trained a little, so that predictions are of something."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which on a busy machine wait for each other longer than they work
    model = task.model()
    x, y = task.train.x, task.train.y
    for _ in range(steps):
        loss = task.loss.of(model(*x) if isinstance(x, tuple) else model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * g
    torch.set_num_threads(threads)
    return task.predictor(model.state_dict(), study="s", lr=0.01)


@pytest.fixture(scope="module")
def iris():
    frame = datasets.load_iris(as_frame=True).frame
    names = np.array(["setosa", "versicolor", "virginica"])
    return frame.assign(target=names[frame["target"]], colour=["r", "g", None] * 50)


@pytest.fixture(scope="module")
def predictor(iris):
    return _trained(table(iris, "target"))


def test_a_round_trip(tmp_path, iris, predictor):
    saved = predictor.save(tmp_path / "iris.thalweg")
    assert [p.name for p in tmp_path.iterdir()] == ["iris.thalweg"]
    again = Predictor.load(saved)
    pd.testing.assert_frame_equal(again.predict(iris), predictor.predict(iris), check_exact=True)
    assert again.meta == {"study": "s", "lr": 0.01}
    assert again.encoder.features == predictor.encoder.features
    iris.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(again.predict(tmp_path / "t.csv"), predictor.predict(iris))


def test_classes_and_probabilities(iris, predictor):
    found = predictor.predict(iris)
    assert (found["prediction"] == iris["target"]).mean() > 0.9
    shares = found.drop(columns="prediction")
    assert list(shares) == [f"probability of {c}" for c in ("setosa", "versicolor", "virginica")]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert ("probability of " + found["prediction"] == shares.idxmax(axis=1)).all()


def test_new_rows_in_another_form(iris, predictor):
    expected = predictor.predict(iris)
    other = iris.drop(columns="target").iloc[::-1, ::-1].assign(extra="x")
    found = predictor.predict(other)
    assert found.index.tolist() == list(range(149, -1, -1))
    pd.testing.assert_frame_equal(found.sort_index(), expected)
    predictor.predict(iris.head(1).assign(colour="never seen"))
    with pytest.raises(TaskError, match=r"lacks columns 'sepal width .cm.', 'colour'") as caught:
        predictor.predict(iris.drop(columns=["colour", "sepal width (cm)"]))
    assert caught.value.argument == "data"
    with pytest.raises(
        TaskError, match="in row 1 'x', which is not a number; correct it or leave it"
    ):
        predictor.predict(iris.head(1).assign(**{"sepal width (cm)": "x"}))


def test_numbers_are_in_their_units():
    frame = datasets.load_diabetes(as_frame=True).frame
    task = table(frame, "target")
    predictor = _trained(task)
    found = predictor.predict(frame)["prediction"].to_numpy()
    outputs = predictor.network()(task.test.x).detach().numpy()[:, 0]
    from thalweg.tasks.divide import divide

    train, _, test = divide(len(frame))
    y = frame["target"].to_numpy()
    np.testing.assert_allclose(found[test], outputs * y[train].std() + y[train].mean(), rtol=1e-5)
    assert np.abs(found - y).mean() < np.abs(y - y.mean()).mean()


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, 7], dtype=np.int8),
        np.array([3, 7]),
        np.array([0.0, 1.0], dtype=np.float32),
        np.array([True, False]),
        np.array(["ja", "nein 🌊"], dtype=object),
        np.array(["007", "008"], dtype=object),
    ],
)
def test_classes_are_as_they_were(tmp_path, values):
    frame = pd.DataFrame({"x": np.arange(60) % 11, "y": np.tile(values, 30)})
    task = table(frame, "y", nominal=["y"])
    made = task.predictor(task.model().state_dict()).save(tmp_path / "p")
    found = Predictor.load(made).predict(frame)["prediction"]
    assert set(found) <= set(values.tolist())
    assert found.dtype == frame["y"].dtype or found.map(type).eq(str).all()


def test_many_levels(tmp_path):
    frame = pd.DataFrame({"c": [f"c{i % 300:03}" for i in range(900)], "y": np.arange(900) % 300})
    task = table(frame, "y", validation=frame, test=frame, hidden=())
    mean, spread = 149.5, np.std(np.arange(300))
    weights = {
        "first.table": (torch.arange(300.0)[None] - mean) / spread,
        "first.bias": torch.zeros(1),
    }
    predictor = Predictor.load(task.predictor(weights).save(tmp_path / "p"))
    found = predictor.predict(pd.DataFrame({"c": ["c007", "never", "c299"]}))["prediction"]
    np.testing.assert_allclose(found, [7, mean, 299], rtol=1e-5)


def test_weights_of_another_network(iris):
    task = table(iris, "target")
    other = table(iris, "target", hidden=(5,))
    with pytest.raises(TaskError, match="are not of this task's network"):
        task.predictor(other.model().state_dict())


def test_nothing_half_written(tmp_path, predictor, monkeypatch):
    path = predictor.save(tmp_path / "p")
    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


class Malicious:
    def __reduce__(self):
        import pathlib

        return pathlib.Path("touched").touch, ()


def _rewritten(path, part, content):
    """The same file with another part."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in parts.items():
            archive.writestr(name, content(old) if name == part else old)
    return path


def _refused(path, problem):
    with pytest.raises(TaskError, match=problem) as caught:
        Predictor.load(path)
    assert caught.value.argument == "model"
    assert "\n" not in caught.value.problem


def test_files_that_are_none(tmp_path, predictor):
    _refused(tmp_path / "p", "there is no file")
    path = predictor.save(tmp_path / "p")
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        _refused(path, "is not a file that thalweg wrote, or it is damaged")
    path.write_bytes(whole)
    other = json.dumps({"format": "thalweg predictor 9"}).encode()
    _refused(_rewritten(path, "about.json", lambda _: other), "format 'thalweg predictor 9'")
    path.write_bytes(whole)
    _refused(_rewritten(path, "about.json", lambda b: b.replace(b'"hidden": [', b'"hidden": [9,')),
             "are not of this task's network")  # fmt: skip


def test_code_in_a_file_is_not_run(tmp_path, predictor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = predictor.save(tmp_path / "p")
    whole = path.read_bytes()
    torch.save(Malicious(), "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()
    _refused(_rewritten(path, "weights.pt", lambda _: evil), "is not a file that thalweg wrote")
    path.write_bytes(whole)
    from sklearn.preprocessing import FunctionTransformer

    evil = skops.io.dumps(FunctionTransformer(_rewritten))
    _refused(_rewritten(path, "encoder.skops", lambda _: evil), "what thalweg never writes")
    assert not (tmp_path / "touched").exists()


def test_a_file_larger_than_the_memory(tmp_path, predictor, monkeypatch):
    path = predictor.save(tmp_path / "p")
    monkeypatch.setattr("thalweg.tasks.tables.predictor.available_memory", lambda: 1000)
    _refused(path, "more than there is")
