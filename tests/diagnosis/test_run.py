"""Trainings with one thing wrong, and trainings with nothing wrong."""

from pathlib import Path

import pytest
import torch

import thalweg
from thalweg.diagnosis.causes import CAUSES
from thalweg.errors import ArgumentError
from thalweg.tasks.builtin import TASKS

FILE = Path(__file__).parents[2] / "examples" / "broken.py"


def _named(task):
    return task if task in TASKS else f"{FILE}:{task}"


BROKEN = [
    ("lr_too_high", "digits", {"lr": 1.0}),
    ("lr_too_low", "digits", {"lr": 1e-6}),
    ("vanishing_gradient", "deep_tanh", {"epochs": 10}),
    ("dead_relu", "dead_relu", {"epochs": 10}),
    ("inputs_not_normalised", "not_normalised", {}),
    ("labels_random", "shuffled_labels", {"epochs": 10}),
    ("wrong_loss", "number_for_class", {}),
    ("wrong_loss", "softmax_twice", {"epochs": 10}),
    ("batch_too_large", "digits", {"batch_size": 1077}),
    ("zero_init", "zero_weights", {"epochs": 10}),
    ("nan_in_data", "missing_values", {"epochs": 10}),
    ("saturation", "saturated_tanh", {"epochs": 10}),
    ("exploding_gradient", "exploding", {"epochs": 10}),
    ("exploding_gradient", "infinite", {"epochs": 5}),
    ("saturation", "stubborn", {"epochs": 10}),
    ("saddle", "at_a_saddle", {}),
    ("overfitting", "noisy_labels", {}),
]
HEALTHY = [
    ("digits", {}),
    ("digits", {"optimizer": "sgd", "schedule": "cosine"}),
    ("wine", {"optimizer": "momentum"}),
    ("breast_cancer", {"optimizer": "rmsprop"}),
    ("diabetes", {}),
    ("last_layer_zero", {"epochs": 15}),
]


@pytest.mark.parametrize(("cause", "task", "how"), BROKEN)
def test_the_first_finding_is_what_is_wrong(cause, task, how):
    found = thalweg.diagnose(_named(task), **how)
    first = found.findings[0]
    assert first.cause == cause
    assert 0.5 <= first.confidence <= 1
    assert first.evidence
    assert first.advice


@pytest.mark.parametrize(("task", "how"), HEALTHY)
def test_nothing_wrong_is_said_so(task, how):
    (finding,) = thalweg.diagnose(_named(task), **how).findings
    assert finding.cause == "healthy"


def test_every_cause_has_a_training_that_it_is_found_in():
    assert {cause for cause, *_ in BROKEN} == {cause.__name__ for cause in CAUSES}


def test_random_states_are_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    thalweg.diagnose("wine", epochs=5, seeds=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_twice():
    one, two = (thalweg.diagnose("wine", lr=1e-5, epochs=8, seeds=2) for _ in range(2))
    assert [f.plain() for f in one.findings] == [f.plain() for f in two.findings]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"lr": -1.0}, "lr: must be positive and finite, got -1.0"),
        ({"optimizer": "adan2"}, "there is no 'adan2'"),
        ({"batch_size": 0}, "batch_size: must be a whole number of at least 1, got 0"),
        ({"batch_size": 5000}, "5000 is more than the 106 training samples"),
        ({"epochs": 1.5}, "epochs: must be a whole number"),
        ({"seeds": 0}, "seeds"),
        ({"schedule": "nosuch"}, "nosuch"),
        ({"loss": "nosuch"}, "there is no loss 'nosuch'"),
    ],
)
def test_what_cannot_be_is_one_sentence(how, said):
    with pytest.raises(ArgumentError) as error:
        thalweg.diagnose("wine", **how)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
