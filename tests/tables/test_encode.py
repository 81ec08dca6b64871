"""Inputs and targets against numbers worked out by other means."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets

from thalweg.tasks.divide import divide
from thalweg.tasks.tables import table

REAL = {"iris": "target", "wine": "target", "breast_cancer": "target", "diabetes": "target"}


def _frame(name):
    return getattr(datasets, f"load_{name}")(as_frame=True).frame


@pytest.mark.parametrize("name", REAL)
def test_real_tables(tmp_path, name):
    frame = _frame(name)
    frame.to_csv(tmp_path / f"{name}.csv", index=False)
    frame.to_parquet(tmp_path / f"{name}.parquet")
    task = table(tmp_path / f"{name}.csv", "target")
    assert task.fingerprint == table(tmp_path / f"{name}.parquet", "target").fingerprint
    classes = name != "diabetes"
    assert (task.loss.name, task.metric.name == "accuracy") == (
        ("cross_entropy", True) if classes else ("mse", False)
    )
    y = frame["target"].to_numpy()
    parts = divide(len(y), classes=y.astype(str) if classes else None)
    numbers = frame.drop(columns="target").to_numpy(dtype=float)
    mean, spread = numbers[parts[0]].mean(0), numbers[parts[0]].std(0)
    for split, part in zip((task.train, task.validation, task.test), parts, strict=True):
        expected = (numbers[part] - mean) / spread
        np.testing.assert_allclose(split.x.numpy(), expected, rtol=1e-5, atol=1e-5)
        if classes:
            assert split.y.tolist() == y[part].tolist()
        else:
            standard = (y[part] - y[parts[0]].mean()) / y[parts[0]].std()
            np.testing.assert_allclose(split.y[:, 0].numpy(), standard, rtol=1e-5, atol=1e-5)


def _people(count=40):
    """Forty rows to train on, whose every number can be worked out by hand."""
    return pd.DataFrame(
        {
            "age": [None if i == 3 else float(i % 5) for i in range(count)],
            "size": ["S", "M", "L", "M"] * (count // 4),
            "colour": ["red", "green", None, "blue"] * (count // 4),
            "member": [True, False] * (count // 2),
            "since": pd.date_range("2020-01-01", periods=count, freq="D"),
            "y": ["u", "u", "v", "v"] * (count // 4),
        }
    )


def _of(frame, **options):
    rest = frame.head(8)
    return table(frame, "y", validation=rest, test=rest, **options)


def test_each_kind_of_column():
    frame = _people()
    task = _of(frame, ordinal=["size=S<M<L"])
    found = {c.name: c for c in task.columns}
    assert [c.kind for c in task.columns] == [
        "numeric", "ordinal", "nominal", "nominal", "date", "target"
    ]  # fmt: skip
    assert found["colour"].levels == ("blue", "green", "red")
    assert found["size"].levels == ("S", "M", "L")
    assert found["colour"].missing == 10
    assert (found["since"].low, found["since"].high) == (18262, 18301)
    age = frame["age"].fillna(np.median(frame["age"].dropna())).to_numpy()
    rank = frame["size"].map({"S": 0, "M": 1, "L": 2}).to_numpy()
    day = np.arange(40.0)
    columns = [(v - v.mean()) / v.std() for v in (age, day, rank)]
    colour = frame["colour"].fillna("")
    columns += [colour == c for c in ("", "blue", "green", "red")]
    columns += [~frame["member"], frame["member"]]
    expected = np.stack([np.asarray(c, dtype=float) for c in columns], 1)
    np.testing.assert_allclose(task.train.x.numpy(), expected, rtol=1e-5, atol=1e-6)
    notes = " ".join(task.notes)
    assert "1 row has no value of 'age', taken as median of the training rows." in notes
    assert "10 rows have no value of 'colour', taken as a category of its own." in notes
    assert "'since' has dates, taken as days" in notes


def test_ordinals_that_are_missing_are_the_commonest():
    frame = _people()
    frame.loc[5, "size"] = None
    task = _of(frame, ordinal={"size": ["S", "M", "L"]}, drop=["age", "colour", "member", "since"])
    ranks = frame["size"].fillna("M").map({"S": 0, "M": 1, "L": 2})
    expected = (ranks - ranks.mean()) / ranks.std(ddof=0)
    np.testing.assert_allclose(task.train.x[:, 0].numpy(), expected, rtol=1e-5)


def test_unseen_categories_are_zero_and_told():
    frame, other = _people(), _people(8)
    other["colour"] = ["red", "pink", "pink", "mauve", None, "blue", "green", "red"]
    task = table(frame, "y", validation=other, test=frame, drop=["age", "size", "member", "since"])
    zero = (task.validation.x == 0).all(1)
    assert zero.tolist() == [False, True, True, True, False, False, False, False]
    assert any(
        "'colour' has 'mauve', 'pink' in 3 rows, which the training" in n for n in task.notes
    )


def test_encodings_are_the_same_rows():
    frame = _people()
    keep = ["age", "member", "since"]
    task = _of(frame, encodings=["onehot", "ordinal"], ordinal=["size=S<M<L"], drop=keep)
    assert list(task.encodings) == ["onehot", "ordinal"]
    assert task.encodings["onehot"] is task
    other = task.encodings["ordinal"]
    assert task.train.x.shape[1] == 3 + 4
    assert other.train.x.shape[1] == 2
    assert torch.equal(task.train.y, other.train.y)
    assert len(task.train) == len(other.train)
    # The one is a function of the other: equal rows stay equal, different ones different.
    ranks = other.train.x.unique(dim=0, return_inverse=True)[1]
    hots = task.train.x[:, :7].unique(dim=0, return_inverse=True)[1]
    assert len(set(zip(ranks.tolist(), hots.tolist(), strict=True))) == int(hots.max()) + 1


def test_notes_say_of_which_encoding_they_are():
    task = _of(_people(), encodings=["onehot", "ordinal"])
    for way, filled in (("onehot", "a category of its own"), ("ordinal", "the commonest of the")):
        notes = task.encodings[way].notes
        said = f"With {way} encoding: 10 rows have no value of 'colour', taken as {filled}"
        assert sum(note.startswith(said) for note in notes) == 1
        assert any(note.startswith("1 row has no value of 'age'") for note in notes)


def test_encodings_of_one_column():
    task = _of(_people(), encodings=["size=ordinal,onehot"], drop=["age", "member", "since"])
    assert list(task.encodings) == ["ordinal", "onehot"]
    assert [t.train.x.shape[1] for t in task.encodings.values()] == [4 + 1, 4 + 3]
    again = _of(
        _people(), encodings={"size": ("ordinal", "onehot")}, drop=["age", "member", "since"]
    )
    assert again.fingerprint == task.fingerprint


def _wide(levels=300, count=3000):
    r = np.random.default_rng(0)
    codes = np.concatenate([np.arange(levels), r.integers(0, levels, count - levels)])
    return pd.DataFrame(
        {
            "x": r.normal(size=count),
            "shop": [f"shop {c:05}" for c in codes],
            "town": [f"town {c % 150:05}" for c in codes],
            "y": codes % 2,
        }
    )


def test_many_levels_are_the_one_hot_of_few():
    frame = _wide()
    other = frame.head(5).assign(shop=["shop 00007", "new", "shop 00000", "new", "shop 00299"])
    task = table(frame, "y", validation=other, test=other)
    assert {c.name: c.encoding for c in task.columns if c.encoding} == {
        "x": "number", "shop": "lookup", "town": "lookup"
    }  # fmt: skip
    dense, codes = task.train.x
    assert dense.shape == (3000, 1)
    assert codes.dtype == torch.int64
    written = torch.nn.functional.one_hot(codes, 451).sum(1)[:, :450]
    expected = pd.get_dummies(frame[["shop", "town"]]).to_numpy(dtype=int)
    assert np.array_equal(written.numpy(), expected)
    assert task.validation.x[1].tolist() == [
        [7, 300], [450, 301], [0, 302], [450, 303], [299, 304]
    ]  # fmt: skip


def test_what_was_read_is_what_a_person_may_correct():
    frame = pd.DataFrame(
        {
            "id": range(60),
            "name": [f"person {i}" for i in range(60)],
            "same": 1.5,
            "grade": [i % 3 for i in range(60)],
            "x": np.random.default_rng(0).normal(size=60),
            "y": [i % 4 for i in range(60)],
        }
    )
    task = table(frame, "y")
    assert [c.kind for c in task.columns] == [
        "ignored", "ignored", "ignored", "numeric", "numeric", "target"
    ]  # fmt: skip
    assert task.columns[-1].levels == ("0", "1", "2", "3")
    for name, why in (
        ("id", "counts the rows"),
        ("name", "different texts"),
        ("same", "it is 1.5"),
    ):
        assert any(f"{name!r} is ignored" in n and why in n for n in task.notes)
    task = table(frame, "y", numeric=["id", "y"], nominal=["grade", "name"])
    assert [c.kind for c in task.columns] == [
        "numeric", "nominal", "ignored", "nominal", "numeric", "target"
    ]  # fmt: skip
    assert task.train.y.dtype == torch.float32
    # An error is told in the units of the table, whatever the network learns.
    y = frame["y"].to_numpy(float)[-1:]
    outputs, truth = torch.zeros(1, 1), torch.as_tensor((y - task.answer.mean) / task.answer.scale)
    error = task.metric.of(outputs, truth.reshape(1, 1).float()).item()
    assert error == pytest.approx(abs(y.item() - task.answer.mean), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1] * 30, ("0", "1")),
        ([10.0, 9.0, 100.0] * 20, ("9", "10", "100")),
        ([True, False] * 30, ("False", "True")),
        (["b", "a"] * 30, ("a", "b")),
        ([i % 13 for i in range(60)], ()),  # fewer than five of each
        ([i / 2 % 3 for i in range(60)], ()),
    ],
)
def test_classes_or_numbers(values, classes):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=60), "y": values})
    assert table(frame, "y").columns[-1].levels == classes


def test_rows_without_a_target_are_left_out(tmp_path):
    frame = pd.DataFrame({"x": np.arange(50) % 9, "y": ["u", "v", None, "u", "v"] * 10})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for data in (frame, tmp_path / "t.csv"):
        task = table(data, "y")
        assert sum(map(len, (task.train, task.validation, task.test))) == 40
        assert any("10 rows have no 'y'" in n and "left out" in n for n in task.notes)


def test_groups_and_times_divide_and_are_no_features():
    frame = pd.DataFrame({"x": np.arange(60.0) % 11, "g": np.arange(60) // 5, "y": [0, 1] * 30})
    task = table(frame, "y", group="g")
    assert task.train.x.shape[1] == 1
    assert any("divided by group 'g'" in n for n in task.notes)
    task = table(frame.assign(x=np.arange(60.0) ** 2), "y", time="g")
    assert task.train.x.max() < task.validation.x.min()
    assert task.validation.x.max() < task.test.x.min()
    assert [len(p) for p in (task.train, task.validation, task.test)] == [35, 10, 15]


def test_one_given_table_and_the_rest_divided():
    frame = _frame("wine")
    other = frame.iloc[:20]
    task = table(frame, "target", validation=other)
    assert [len(p) for p in (task.train, task.validation, task.test)] == [142, 20, 36]
    task = table(frame, "target", test=other)
    assert [len(p) for p in (task.train, task.validation, task.test)] == [142, 36, 20]


def test_a_task_can_be_replaced():
    task = table(_frame("iris"), "target", hidden=(8,))
    other = task.with_loss("mse")
    assert (other.loss.name, other.columns, other.encoder) == ("mse", task.columns, task.encoder)
    assert task.parameters == 4 * 8 + 8 + 8 * 3 + 3


def test_space_around_labels_and_points_after_whole_numbers_are_no_part_of_them(tmp_path):
    lines = [
        f"{' red' if i % 4 else 'red '},{'3.0' if i % 3 else '3'},{i % 7},{i % 2}"
        for i in range(60)
    ]
    path = tmp_path / "t.csv"
    path.write_text("c,n,x,y\n" + "\n".join([*lines, *["blue,4,1,0"] * 20]) + "\n")
    found = {c.name: c for c in table(path, "y", nominal=["n"]).columns}
    assert found["c"].levels == ("blue", "red")
    assert found["n"].levels == ("3", "4")
