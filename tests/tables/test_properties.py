"""Random tables: a task that is right, or one sentence."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from thalweg.tasks import TaskError
from thalweg.tasks.tables import Predictor, table

SLOW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = st.sampled_from(
    ["a", "价格", "سعر", "🌊 size", 'quo"te', "it's", "new\nline", "x;y", "a,b", " sp ", "é", "-1"]
) | st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8).filter(
    lambda n: n.strip() and not n.startswith("Unnamed: ")
)  # fmt: skip
WORDS = [
    "red",
    "red ",
    "Ünter",
    "红",
    "أحمر",
    "🌊",
    'qu"ote',
    "a,b",
    "two\nlines",
    "1e",
    "-",
    "nan?",
]
FLOATS = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: v + 0.0)
CELLS = {
    "numbers": FLOATS | st.just(None),
    "whole": st.integers(-1000, 1000),
    "words": st.sampled_from(WORDS) | st.just(None),
    "truth": st.booleans(),
    "days": st.dates(pd.Timestamp("1980-01-01").date(), pd.Timestamp("2030-01-01").date()),
    "nothing": st.just(None),
    "same": st.just("x"),
}
TARGETS = {
    "classes": lambda n: st.lists(st.sampled_from(WORDS[2:6]), min_size=n, max_size=n),
    "whole": lambda n: st.lists(st.integers(0, 2), min_size=n, max_size=n),
    "numbers": lambda n: st.lists(FLOATS, min_size=n, max_size=n),
    "holes": lambda n: st.lists(st.sampled_from(["u", "v", None]), min_size=n, max_size=n),
}


@st.composite
def frames(draw):
    """A frame and the name of its target."""
    count = draw(st.integers(1, 60))
    names = draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))
    columns = {}
    for name in names[1:]:
        kind = draw(st.sampled_from(list(CELLS)))
        cells = draw(st.lists(CELLS[kind], min_size=count, max_size=count))
        if kind == "days":
            columns[name] = pd.to_datetime(pd.Series(cells))
        elif kind in ("numbers", "nothing"):
            columns[name] = pd.Series(cells, dtype=float)
        elif kind in ("words", "same"):
            columns[name] = pd.Series(cells, dtype="str")
        else:
            columns[name] = pd.Series(cells)
    wanted = draw(st.sampled_from(list(TARGETS)))
    columns[names[0]] = pd.Series(draw(TARGETS[wanted](count)))
    if wanted in ("classes", "holes"):
        columns[names[0]] = columns[names[0]].astype("str")
    return pd.DataFrame(columns), names[0]


def _one_line(error):
    assert "\n" not in str(error)
    return error


def _attempt(*arguments, **options):
    try:
        return table(*arguments, **options)
    except TaskError as error:
        return _one_line(error)


@SLOW
@given(frames())
def test_a_task_that_is_right_or_one_sentence(given):
    frame, target = given
    task = _attempt(frame, target)
    if isinstance(task, TaskError):
        return
    known = frame[target].notna().sum()
    assert len(task.train) + len(task.validation) + len(task.test) == known
    assert [c.name for c in task.columns] == list(frame)
    outputs = 1 if task.answer.classes is None else len(task.answer.classes)
    for split in (task.train, task.validation, task.test):
        assert all(t.isfinite().all() for t in split.tensors)
        x = split.x if isinstance(split.x, tuple) else (split.x,)
        assert task.model()(*x).shape == (len(split), outputs)
        if outputs > 1:
            assert split.y.shape == (len(split),)
            assert 0 <= split.y.min() <= split.y.max() < outputs
        else:
            assert split.y.shape == (len(split), 1)
    if outputs > 1:
        assert set(task.train.y.tolist()) == set(range(outputs))


@SLOW
@given(frames())
def test_csv_and_parquet_are_the_same_task(given):
    frame, target = given
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(Path(folder) / "t.csv", index=False)
        frame.to_parquet(Path(folder) / "t.parquet")
        text, columns = (_attempt(Path(folder) / f"t{e}", target) for e in (".csv", ".parquet"))
    # A line of one empty cell is a blank line of a text file, and no row.
    assume(not (len(frame.columns) == 1 or frame.isna().all(axis=1).any()))
    assert type(text) is type(columns), (text, columns)
    if not isinstance(text, TaskError):
        for ours, theirs in zip(text.train.tensors, columns.train.tensors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert [(c.name, c.kind, c.levels) for c in text.columns] == [
            (c.name, c.kind, c.levels) for c in columns.columns
        ]


@SLOW
@given(frames())
def test_what_is_saved_predicts_the_same(given):
    frame, target = given
    task = _attempt(frame, target, hidden=(4,))
    assume(not isinstance(task, TaskError))
    torch.manual_seed(0)
    predictor = task.predictor(task.model().state_dict())
    with tempfile.TemporaryDirectory() as folder:
        again = Predictor.load(predictor.save(Path(folder) / "p"))
    rows = frame.drop(columns=target)
    found = again.predict(rows)
    pd.testing.assert_frame_equal(found, predictor.predict(rows), check_exact=True)
    assert len(found) == len(frame)
    if task.answer.classes is None:
        assert np.isfinite(found["prediction"]).all()
    else:
        labels = {v.strip() if isinstance(v, str) else v for v in frame[target].dropna()}
        assert set(found["prediction"]) <= labels


@SLOW
@given(frames(), st.randoms(use_true_random=False))
def test_nothing_is_fitted_on_other_rows(given, random):
    frame, target = given
    count = len(frame)
    task = _attempt(frame, target)
    assume(not isinstance(task, TaskError))
    # Which rows those are is seen from a column of their numbers.
    marked = frame.assign(**{"row number": np.arange(count, dtype=float) ** 2})
    spy = _attempt(marked[["row number", target]], target, numeric=["row number"])
    assume(not isinstance(spy, TaskError))
    low_to_high = torch.cat([p.x[:, 0] for p in (spy.train, spy.validation, spy.test)]).argsort()
    known = np.flatnonzero(frame[target].notna())
    owner = np.repeat([0, 1, 2], [len(spy.train), len(spy.validation), len(spy.test)])
    outside = known[owner[low_to_high.numpy()] > 0]
    changed = frame.copy()
    for name in frame.columns.drop(target):
        cells = changed[name].to_numpy(copy=True)
        chosen = [random.choice(outside) for _ in outside]
        cells[outside] = cells[chosen]
        if cells.dtype.kind == "f":
            cells[outside] *= random.uniform(1, 100)
        changed[name] = pd.Series(cells, dtype=frame[name].dtype)
    other = _attempt(changed, target)
    assert not isinstance(other, TaskError), other
    for ours, theirs in zip(task.train.tensors, other.train.tensors, strict=True):
        assert torch.equal(ours, theirs)
    assert [c.encoding for c in task.columns] == [c.encoding for c in other.columns]


@SLOW
@given(st.binary(max_size=300), st.sampled_from([",", ";", "\t"]))
def test_any_bytes_are_a_table_or_one_sentence(content, delimiter):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(content)
        _attempt(path, "y", delimiter=delimiter)


@SLOW
@given(
    st.lists(
        st.lists(
            st.sampled_from(["1", "2.5", "", '"', "x", '"q"', "inf", "é", "\n", "NA"]),
            min_size=1,
            max_size=4,
        ),
        max_size=12,
    )
)
def test_any_text_is_a_table_or_one_sentence(cells):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("a,b,y\n" + "\n".join(map(",".join, cells)), encoding="utf-8")
        _attempt(path, "y")


def test_a_frame_that_was_refused_is_not_changed():
    frame = pd.read_csv(io.StringIO("a,y\n1,u\n2,v\n"))
    before = frame.copy()
    with pytest.raises(TaskError):
        table(frame, "y")
    pd.testing.assert_frame_equal(frame, before)
