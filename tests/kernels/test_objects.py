"""Containers are asked whether they hold the same objects, by compiled code and by Python."""

from collections import defaultdict

import pytest

from thalweg.kernels import objects
from thalweg.kernels.objects import Entries, Items, Values


@pytest.fixture(params=[True, False], autouse=True)
def compiled(request, monkeypatch):
    monkeypatch.setattr(objects, "_COMPILED", request.param)


def test_items_of_a_list():
    things = [object() for _ in range(5)]
    items = Items(things)
    assert items.hold(things)
    assert items.hold(list(things))
    assert items.hold(tuple(things))
    assert not items.hold(things[:4])
    assert not items.hold([*things, object()])
    things[3] = object()
    assert not items.hold(things)
    assert Items([]).hold([])
    assert not Items([]).hold([1])


def test_values_of_a_dictionary():
    mapping = defaultdict(dict, {i: object() for i in range(5)})
    values = Values(mapping)
    assert values.hold(mapping)
    assert not values.hold(dict(mapping))
    last = mapping.pop(4)
    assert not values.hold(mapping)
    mapping[4] = last
    assert values.hold(mapping)
    mapping[5] = object()
    assert not values.hold(mapping)
    del mapping[5]
    mapping[0] = object()
    assert not values.hold(mapping)
    assert Values(empty := {}).hold(empty)


def test_entries_of_many_dictionaries():
    dicts = [{"a": object(), "b": object(), "c": object()} for _ in range(5)]
    entries = Entries(dicts, ("a", "c"))
    assert entries.hold()
    dicts[2]["b"] = object()
    assert entries.hold()
    kept = dicts[2]["c"]
    dicts[2]["c"] = object()
    assert not entries.hold()
    dicts[2]["c"] = kept
    assert entries.hold()
    del dicts[4]["a"]
    assert not entries.hold()
