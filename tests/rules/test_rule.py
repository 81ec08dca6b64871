"""Hyperparameters: ranges, messages, defaults."""

import re
from dataclasses import replace

import pytest
import torch

from thalweg import rules
from thalweg.optim.registry import OPTIMIZERS
from thalweg.rules import Choice, Flag, HyperparameterError, Number

ALL = tuple(row.rule for row in OPTIMIZERS.values())
HALF_OPEN = Number("beta", 0.9, low=0.0, high=1.0, high_open=True)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1 - 1e-16, torch.tensor(0.3), True and 0.2])
def test_in_range(value):
    HALF_OPEN.check("Rule", value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1.0"), (-1e-9, "-1e-09"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_out_of_range_names_hyperparameter_value_and_range(value, shown):
    message = f"Rule: beta must be in [0, 1), got {shown}"
    with pytest.raises(HyperparameterError, match=re.escape(message) + "$"):
        HALF_OPEN.check("Rule", value)


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5], torch.zeros(2)])
def test_what_is_no_number(value):
    with pytest.raises(HyperparameterError, match=r"beta must be a number in \[0, 1\), got"):
        HALF_OPEN.check("Rule", value)


def test_open_and_closed_ends():
    assert Number("a", 1.0).range == "(-inf, inf)"
    assert Number("a", 1.0, low=0.0).range == "[0, inf)"
    assert Number("a", 1.0, low=0.0, high=1.0, low_open=True).range == "(0, 1]"
    with pytest.raises(HyperparameterError):
        Number("a", 1.0, low=0.0, low_open=True).check("Rule", 0.0)
    Number("a", 1.0, high=1.0).check("Rule", 1.0)


@pytest.mark.parametrize("value", [0.9, (0.9,), (0.9, 0.99, 0.999), "ab"])
def test_a_vector_wants_as_many_numbers(value):
    with pytest.raises(HyperparameterError, match=r"betas must be 2 numbers in \[0, 1\), got"):
        rules.ADAM.check({"betas": value})


def test_flags_and_choices():
    Flag("a").check("Rule", True)
    with pytest.raises(HyperparameterError, match="a must be True or False, got 1"):
        Flag("a").check("Rule", 1)
    with pytest.raises(HyperparameterError, match="b must be 'x' or 'y', got 'z'"):
        Choice("b", "x", ("x", "y")).check("Rule", "z")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(HyperparameterError, match="Adam: there is no hyperparameter 'beta'; it"):
        rules.ADAM.complete({"beta": 0.9})


@pytest.mark.parametrize("rule", ALL, ids=lambda r: r.name)
def test_defaults_are_in_range_and_complete(rule):
    complete = rule.complete({})
    assert complete == rule.defaults
    resolved = rule.resolve(complete)
    assert (resolved.name, resolved.state) == (rule.name, rule.state)
    assert len(rule.start(complete)) == len(rule.state)
    row = rule.row(complete, 1, rule.start_scalars(complete))
    assert all(isinstance(c, float) for c in row)


def test_rules_are_told_apart_by_their_maths():
    other = replace(rules.SGD, update=lambda p, g, lr: (p + lr * g,))
    assert other != rules.SGD
    assert len({other, rules.SGD, replace(rules.SGD)}) == 2
