"""What a diagnosis says of trainings with one thing wrong, and with nothing wrong."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

import thalweg
from thalweg.optim.registry import OPTIMIZERS, key

EXAMPLES = Path(__file__).parents[1] / "examples" / "broken.py"
RANGES = Path(__file__).with_name("good_ranges.csv")


def _of(name: str) -> str:
    return f"{EXAMPLES}:{name}"


# What is wrong, the task, and how it is trained.
Trained = tuple[str, str, Mapping[str, Any]]
BROKEN: tuple[Trained, ...] = (
    ("lr_too_high", "digits", {"lr": 1.0}),
    ("lr_too_low", "digits", {"lr": 1e-6}),
    ("vanishing_gradient", "deep_tanh", {}),
    ("dead_relu", "dead_relu", {}),
    ("inputs_not_normalised", "not_normalised", {}),
    ("labels_random", "shuffled_labels", {}),
    ("wrong_loss", "number_for_class", {}),
    ("batch_too_large", "digits", {"batch_size": 1077}),
    ("zero_init", "zero_weights", {}),
    ("nan_in_data", "missing_values", {}),
)
MORE: tuple[Trained, ...] = (
    ("lr_too_high", "digits", {"optimizer": "sgd", "lr": 10.0}),
    ("lr_too_low", "digits", {"optimizer": "sgd", "lr": 1e-4}),
    ("lr_too_low", "wine", {"lr": 1e-5}),
    ("vanishing_gradient", "deep_tanh", {"optimizer": "sgd"}),
    ("dead_relu", "dead_relu", {"optimizer": "sgd"}),
    ("inputs_not_normalised", "not_normalised", {"optimizer": "sgd"}),
    ("wrong_loss", "softmax_twice", {}),
    ("wrong_loss", "negative_likelihood", {}),
    ("batch_too_large", "wine", {"batch_size": 106}),
    ("zero_init", "zero_weights", {"optimizer": "sgd"}),
    ("saturation", "saturated_tanh", {}),
    ("exploding_gradient", "exploding", {}),
    ("exploding_gradient", "infinite", {}),
    ("saddle", "at_a_saddle", {}),
    ("overfitting", "noisy_labels", {}),
    ("overfitting", "diabetes", {"epochs": 300}),
)
HEALTHY: tuple[Trained, ...] = tuple(
    ("healthy", task, how)
    for task, how in (
        ("digits", {}),
        ("wine", {}),
        ("breast_cancer", {}),
        ("diabetes", {}),
        ("digits", {"optimizer": "sgd"}),
        ("digits", {"optimizer": "rmsprop", "schedule": "cosine"}),
        ("wine", {"optimizer": "lion", "lr": 1e-3}),
        ("diabetes", {"optimizer": "sgd"}),
        ("breast_cancer", {"optimizer": "momentum"}),
        ("convolutions", {}),
    )
)
MORE_HEALTHY: tuple[Trained, ...] = tuple(
    ("healthy", task, how)
    for task, how in (
        ("digits", {"batch_size": 128}),
        ("digits", {"optimizer": "adamw", "epochs": 60}),
        ("wine", {"optimizer": "sgd"}),
        ("diabetes", {"optimizer": "adamw"}),
        ("normalised_tanh", {}),
        ("last_layer_zero", {}),
    )
)


def diagnosis() -> str:
    """Markdown: the ten and ten, more of them, and pairs whose good learning rates are known."""
    tables = {
        "Ten with one thing wrong": BROKEN,
        "Ten with nothing wrong": HEALTHY,
        "More with one thing wrong": MORE,
        "More with nothing wrong": MORE_HEALTHY,
    }
    parts = [_table(heading, cases) for heading, cases in tables.items()]
    return "\n\n".join([*parts, _pairs()])


def _table(heading: str, cases: tuple[Trained, ...]) -> str:
    head = "| training | wrong is | first finding | sure | further findings | seconds |"
    lines = []
    right = 0
    for wrong, task, how in cases:
        named = task if task in _built_in() else _of(task)
        start = perf_counter()
        first, *rest = thalweg.diagnose(named, **how).findings
        took = perf_counter() - start
        right += first.cause == wrong
        typed = " ".join([task, *(f"{k}={v}" for k, v in how.items())])
        others = ", ".join(f.cause for f in rest) or "–"
        sure = f"{first.confidence:.0%}"
        lines.append(f"| {typed} | {wrong} | {first.cause} | {sure} | {others} | {took:.1f} |")
    return "\n".join(
        [f"**{heading}: {right} of {len(cases)}.**", "", head, "|---|---|---|---|---|---|", *lines]
    )


def _built_in() -> tuple[str, ...]:
    from thalweg.tasks.builtin import TASKS

    return tuple(TASKS)


def _pairs() -> str:
    """Built-in tasks with the optimizers whose good rates `good_ranges.csv` has."""
    ranges = pd.read_csv(RANGES)
    ranges = ranges[ranges["task"].isin(_built_in())]
    rows = []
    for row in ranges.itertuples():
        optimizer = key(row.optimizer)
        if optimizer not in OPTIMIZERS:
            continue
        middle = (row.low * row.high) ** 0.5
        for where, lr, right in (
            ("in the middle of the good range", middle, "healthy"),
            ("a hundred times its upper end", 100 * row.high, "lr_too_high"),
            ("a hundredth of its lower end", row.low / 100, "lr_too_low"),
        ):
            found = thalweg.diagnose(row.task, optimizer, lr, epochs=int(row.epochs))
            cause = found.findings[0].cause
            rows.append({"where": where, "right": cause == right, "found": cause})
    frame = pd.DataFrame(rows)
    lines = ["| learning rate | said right | else said |", "|---|---|---|"]
    for where, mine in frame.groupby("where", sort=False):
        wrong = mine.loc[~mine["right"], "found"].value_counts()
        others = ", ".join(f"{cause} {count}" for cause, count in wrong.items()) or "–"
        lines.append(f"| {where} | {int(mine['right'].sum())} of {len(mine)} | {others} |")
    return "\n".join(
        [
            "**Pairs of a built-in task and an optimizer whose good learning rates are known from "
            "full studies (`benchmarks/good_ranges.csv`).**",
            "",
            *lines,
        ]
    )
