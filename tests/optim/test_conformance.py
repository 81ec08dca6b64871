"""Every row of the registry against torch.optim, or against its formula where torch has none."""

import inspect
import re
from itertools import combinations

import pytest
import torch

from tests.optim.cases import ALL, CASES, name_of
from tests.optim.digits import distance, network, train
from tests.optim.literal import Literal
from thalweg import optim
from thalweg.optim import classes
from thalweg.optim.registry import MAIN, OPTIMIZERS

STEPS = 100


def oracle_of(case, valid, model):
    if valid.oracle is None:
        return Literal(case.constructor.__name__, model, valid.arguments)
    return case.oracle(model.parameters(), **valid.oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [pair for pair in ALL if not pair[1].undetermined], ids=name_of)
def test_weights_after_100_steps(case, dtype):
    entry, valid = case
    ours, theirs = network(dtype), network(dtype)
    train(ours, entry.constructor(ours.parameters(), **valid.arguments), STEPS)
    train(theirs, oracle_of(entry, valid, theirs), STEPS)
    assert distance(ours, network(dtype)) > 1e-4, "it should have moved"
    assert distance(ours, theirs) < entry.tolerance[dtype == torch.float64]


# Arguments that change nothing on this network could be ignored without a test noticing.
@pytest.mark.parametrize("entry", CASES.values(), ids=lambda e: e.name)
def test_different_arguments_lead_elsewhere(entry):
    ends = [
        train(model := network(), entry.constructor(model.parameters(), **valid.arguments), 20)
        for valid in entry.valid
    ]
    for (i, a), (j, b) in combinations(enumerate(entry.valid), 2):
        # Two forms of one path: Sutskever's momentum at a constant rate, for one.
        same = a.oracle is not None and a.oracle == b.oracle
        assert (distance(ends[i], ends[j]) < 1e-12) == same, (a.arguments, b.arguments)


@pytest.mark.parametrize(
    ("entry", "invalid"),
    [(entry, invalid) for entry in CASES.values() for invalid in entry.invalid],
    ids=lambda x: getattr(x, "name", None) or str(dict(x.arguments)),
)
def test_invalid_arguments_are_named(entry, invalid):
    with pytest.raises(ValueError, match=invalid.message) as raised:
        entry.constructor([torch.zeros(3)], **invalid.arguments)
    assert str(raised.value).startswith(entry.constructor.__name__)


@pytest.mark.parametrize("entry", CASES.values(), ids=lambda e: e.name)
def test_a_bad_override_names_its_group(entry):
    optimizer = entry.constructor([torch.zeros(3)])
    message = re.escape("parameter group 1: lr must be in [0, inf), got -1.0")
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(2)], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "name", [n for n in optim.__all__ if hasattr(torch.optim, n) and n in classes.__all__]
)
def test_signature_and_defaults_are_torchs(name):
    ours = inspect.signature(getattr(optim, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind


def test_every_class_is_public():
    rules = (c for c in vars(classes).values() if isinstance(c, type))
    ours = {c.__name__ for c in rules if issubclass(c, optim.RuleOptimizer)} - {"RuleOptimizer"}
    assert ours == set(classes.__all__) <= set(optim.__all__)
    assert len(set(optim.__all__)) == len(optim.__all__)


def test_names_labels_and_colors_are_distinct():
    rows = OPTIMIZERS.values()
    for attribute in ("name", "label", "constructor", "rule"):
        assert len({getattr(row, attribute) for row in rows}) == len(rows)
    assert list(OPTIMIZERS) == [row.name for row in rows]
    assert len({OPTIMIZERS[name].color for name in MAIN}) == len(MAIN) == 7
