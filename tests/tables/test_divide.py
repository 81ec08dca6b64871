import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from thalweg.tasks.divide import divide


def _whole(parts, n):
    return sorted(np.concatenate(parts).tolist()) == list(range(n)) and all(len(p) for p in parts)


@given(n=st.integers(3, 200))
def test_parts_are_disjoint_whole_and_always_the_same(n):
    parts = divide(n)
    assert _whole(parts, n)
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) - share * n) < 2  # rounded twice
    assert all(map(np.array_equal, parts, divide(n)))


def test_digits_are_divided_as_sklearn_divides_them_directly():
    x, y = load_digits(return_X_y=True)
    rest, test, y_rest, _ = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    train, validation = train_test_split(rest, test_size=0.25, random_state=0, stratify=y_rest)
    found = [x[part] for part in divide(len(x), classes=y)]
    assert all(map(np.array_equal, found, (train, validation, test)))


@given(counts=st.lists(st.integers(3, 30), min_size=2, max_size=5).filter(lambda c: sum(c) >= 25))
def test_every_class_keeps_its_share(counts):
    classes = np.repeat([f"class {i}" for i in range(len(counts))], counts)
    parts = divide(len(classes), classes=classes)
    assert _whole(parts, len(classes))
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        for i, count in enumerate(counts):
            # Rounded twice, to whole samples of the class and of the part.
            assert abs((classes[part] == f"class {i}").sum() - share * count) <= 2


@given(st.data())
def test_groups_stay_together(data):
    groups = np.array(data.draw(st.lists(st.integers(0, 9), min_size=20, max_size=80)))
    classes = data.draw(
        st.none() | st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))
    )
    if len(set(groups.tolist())) < 3:
        with pytest.raises(ValueError, match="at least 3 groups"):
            divide(len(groups), groups=groups)
        return
    parts = divide(len(groups), groups=groups, classes=classes)
    assert _whole(parts, len(groups))
    names = [set(groups[p].tolist()) for p in parts]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]


def test_groups_are_balanced_by_class():
    groups = np.arange(300) // 10
    classes = np.where(groups < 10, "rare", "common")
    for part in divide(300, groups=groups, classes=classes):
        assert (classes[part] == "rare").mean() == pytest.approx(1 / 3)


def test_the_largest_group_is_for_training():
    groups = np.array([0] * 90 + [1, 2, 3, 4, 5])
    train, _, _ = divide(95, groups=groups, classes=np.arange(95) % 2)
    assert set(range(90)) <= set(train.tolist())


def test_time_goes_from_training_to_test():
    order = np.random.default_rng(0).permutation(50)
    train, validation, test = divide(50, order=order)
    assert order[train].tolist() == list(range(30))
    assert order[validation].tolist() == list(range(30, 40))
    assert order[test].tolist() == list(range(40, 50))


def test_samples_of_one_time_stay_together():
    order = np.repeat(np.array(["2020-01-01", "2021-01-01", "2022-01-01"], "datetime64[s]"), 10)
    parts = divide(30, order=order)
    assert [p.tolist() for p in parts] == [
        list(range(10)), list(range(10, 20)), list(range(20, 30))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"n": 2}, "at least 3 samples; there are 2"),
        ({"n": 4, "classes": "abc"}, "classes has 3 values for 4 samples"),
        ({"n": 9, "classes": [*"aaaaaaabb"]}, "class b has 2 of 9 samples"),
        ({"n": 9, "classes": [*"aaabbbccc"]}, "9 samples are too few for 3 classes"),
        ({"n": 9, "groups": [1] * 9}, "at least 3 groups; there are 1"),
        ({"n": 9, "order": [1] * 9}, "9 samples have 1 different times"),
        ({"n": 9, "order": [1] * 9, "groups": [1] * 9}, "by group or by time, not by both"),
    ],
)
def test_what_cannot_be_divided(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        divide(**arguments)
