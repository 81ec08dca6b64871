import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from thalweg.optim.registry import MAIN, OPTIMIZERS
from thalweg.studies.spec import StudyError, StudySpec, plan, specify
from thalweg.tasks import load

DIGITS = load("digits")


def test_defaults_are_the_default_study():
    spec = specify(DIGITS)
    assert spec.optimizers == MAIN
    assert [len(rates) for _, rates in spec.lrs] == [9] * 7
    assert spec.epochs == 30
    assert len(plan(spec)) == 315
    for name, rates in spec.lrs:
        assert (rates[0], rates[-1]) == OPTIMIZERS[name].lr_range
        ratios = np.diff(np.log(rates))
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


def test_hash_is_of_the_content_and_not_of_the_name():
    spec = specify(DIGITS, optimizers=["sgd"], lr="0.01:1:3", name="a")
    assert spec.hash == specify(DIGITS, optimizers="sgd", lr=[1, 0.1, 0.01], name="b").hash
    changes = {
        "seeds": (0,),
        "batch_size": 16,
        "steps": 7,
        "target": 0.5,
        "patience": 2,
        "fingerprint": "x",
        "lrs": (("sgd", (0.1,)),),
        "method": 99,
        "own": (("sgd", "x"),),
    }
    hashes = {replace(spec, **{k: v}).hash for k, v in changes.items()}
    assert len(hashes | {spec.hash}) == len(changes) + 1


def test_json_round_trip():
    spec = specify(DIGITS, optimizers=["adam", "sgd"], seeds=[3, 1], patience=4)
    again = StudySpec.from_json(spec.json)
    assert again == spec
    assert again.hash == spec.hash


def test_every_run_has_an_id_of_its_own():
    spec = specify(DIGITS)
    ids = {run.id for run in plan(spec)}
    assert len(ids) == 315
    assert ids.isdisjoint(run.id for run in plan(specify(DIGITS, epochs=31)))


def test_steps_instead_of_epochs():
    spec = specify(DIGITS, steps=50)
    assert (spec.steps, spec.steps_per_epoch, spec.epochs) == (50, 33, 2)


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("optimizers", {"optimizers": ["adam", "adamm"]}, r"no 'adamm'; did you mean adam"),
        ("optimizers", {"optimizers": []}, "none given"),
        ("lr", {"lr": "1e-4:1"}, r"'1e-4:1' is no range; write low:high:count"),
        ("lr", {"lr": "1e-4:1:1"}, "count of at least 2"),
        ("lr", {"lr": "1:1e-4:5"}, "low end must be below"),
        ("lr", {"lr": "0.1,abc"}, r"finite number, got 'abc'"),
        ("lr", {"lr": [0.1, -1]}, "above 0, got -1"),
        ("lr", {"lr": [float("nan")]}, "finite number, got nan"),
        ("lr", {"lr": []}, "none given"),
        ("lr", {"lr": {"adamm": [1.0]}}, "no optimizer 'adamm'"),
        ("seeds", {"seeds": 0}, "at least 1, got 0"),
        ("seeds", {"seeds": [1, -2]}, "got -2"),
        ("seeds", {"seeds": []}, "none given"),
        ("epochs", {"epochs": 0}, "at least 1, got 0"),
        ("steps", {"steps": -5}, "at least 1, got -5"),
        ("steps", {"steps": 5, "epochs": 5}, "not both"),
        ("batch_size", {"batch_size": 0}, "at least 1, got 0"),
        ("batch_size", {"batch_size": 5000}, r"5000 is more than the 1077 training samples"),
        ("target", {"target": 95}, r"95 is no accuracy; give a fraction"),
        ("target", {"target": float("inf")}, "finite"),
        ("patience", {"patience": 0}, "at least 1"),
        ("name", {"name": "a/b"}, "cannot name a study"),
        ("name", {"name": " "}, "cannot name a study"),
    ],
)
def test_bad_values_are_named(argument, values, message):
    with pytest.raises(StudyError, match=message) as caught:
        specify(DIGITS, **values)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


# In a process of its own: here beartype would be the first to complain.
WRONG_TYPES = """
import thalweg, torch
for wrong in (
    {"seeds": 5.0}, {"seeds": None}, {"optimizers": 5}, {"optimizers": [["sgd"]]}, {"lr": object()},
    {"name": 5}, {"task": 5}, {"task": torch.nn.Linear(2, 2)}, {"epochs": "3"}, {"batch_size": 2.5},
    {"losses": 5}, {"losses": ["cross_entropy", 5]},
):
    try:
        thalweg.study(**({"task": "wine"} | wrong))
    except thalweg.StudyError as error:
        assert str(error).startswith(next(iter(wrong))), error
        print("refused")
"""


def test_wrong_types_get_a_sentence():
    done = subprocess.run(
        [sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["refused"] * 12, "")


def test_names_of_optimizers_in_any_case():
    assert specify(load("wine"), optimizers="SGD, Adam") == specify(
        load("wine"), optimizers="sgd,adam"
    )
