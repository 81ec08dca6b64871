"""What counts as a change of a function, or of what it leans on."""

from dataclasses import replace
from functools import cache, partial, wraps

import numpy as np
import torch

from thalweg.rules import ADAM
from thalweg.rules.code import digest

FACTOR = 2.0


def plain(x):
    return x * FACTOR


def even(x):
    return x == 0 or odd(x - 1)


def odd(x):
    return x != 0 and even(x - 1)


class Scale:
    def __init__(self, by):
        self.by = by

    def of(self, x):
        return x * self.by


def closing_over(value):
    return lambda x: x * value


def doubled(function):
    @wraps(function)
    def twice(x):
        return function(function(x))

    return twice


def test_the_same_content_has_the_same_digest_and_other_content_another():
    pairs = [
        (closing_over(1.0), closing_over(2.0)),
        (closing_over(1), closing_over(1.0)),
        (closing_over([1.0]), closing_over([1.5])),
        (closing_over({"a": 1, "b": 2}), closing_over({"a": 1, "b": 3})),
        (closing_over({"a"}), closing_over({"b"})),
        (closing_over(np.arange(3)), closing_over(np.arange(4))),
        (closing_over(torch.arange(3)), closing_over(torch.arange(3.0))),
        (closing_over(plain), closing_over(even)),
        (partial(plain, x=1.0), partial(plain, x=2.0)),
        (Scale(1.0).of, Scale(2.0).of),
        (cache(plain), cache(even)),
        (doubled(plain), plain),
        (lambda x, by=1.0: x * by, lambda x, by=2.0: x * by),
        (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
        (even, odd),
        (ADAM, replace(ADAM, update=plain)),
    ]
    for one, other in pairs:
        assert digest(one) == digest(one) != digest(other)
    assert digest(closing_over([1.0])) == digest(closing_over([1.0]))
    assert digest(ADAM) == digest(replace(ADAM, paper="another", lr_range=(1.0, 2.0)))


def test_a_global_counts(monkeypatch):
    before = digest(plain)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert digest(plain) != before
