"""What a run's seconds leave out."""

from importlib import import_module

import thalweg
from tests.replicas import models
from thalweg.replicas import Training


def test_every_rule_takes_a_step_before_any_is_timed(monkeypatch):
    """Or the variant that happens to train first would pay for the kernels of all."""
    rules, steps = [], []

    class Watched(Training):
        def __init__(self, task, replicas, *rest, **options):
            super().__init__(task, replicas, *rest, **options)
            rules.extend(r.rule for r in replicas)

        def advance(self, count):
            steps.append(count)
            return super().advance(count)

    monkeypatch.setattr(import_module("thalweg.studies.execute"), "Training", Watched)
    found = thalweg.study(
        models.task(models.mlp), ["adam", "sgd"], lr=[0.01], seeds=2, epochs=1, losses="mse,huber"
    )
    assert {rule.name for rule in rules} == {"Adam", "SGD"}
    assert steps == [1]
    assert (found.runs["outcome"] == "completed").all()
