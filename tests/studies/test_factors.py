"""Factors besides the optimizer: what is asked, what is trained, and what follows from it."""

import io
import json
import math
import sqlite3
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy import stats
from torch import nn

import thalweg
from tests.replicas import models
from tests.studies.test_resume import numbers
from tests.studies.variants import squared, wine_in_two_encodings
from thalweg.report import effect_table, summary_table
from thalweg.studies import StudyError, StudySpec, best_weights
from thalweg.studies.analyse import analyse
from thalweg.studies.factors import FACTORS, cross
from thalweg.studies.spec import plan, specify
from thalweg.tasks import load
from thalweg.tasks.losses import LOSSES
from thalweg.tasks.metrics import ACCURACY, ERROR
from thalweg.tasks.task import Loss, TaskError

NAN = math.nan


# What is asked.


def test_one_loss_takes_the_place_of_the_tasks_and_is_no_factor():
    task = load("wine")
    crossed = cross(task, loss=squared)
    assert list(crossed.variants) == [("squared", "", "fixed", 32)]
    spec = specify(crossed)
    assert spec.varied == ()
    assert spec.fingerprint == task.with_loss(squared).fingerprint
    assert spec.hash != specify(task).hash


def test_without_further_factors_hash_and_runs_are_as_before_there_were_any():
    spec = specify(load("wine"), optimizers=["sgd"], lr=[0.1])
    bare = replace(spec, factors=(), variants=())
    assert bare.hash == spec.hash
    assert [run.id for run in plan(bare)] == [run.id for run in plan(spec)]
    old = {k: v for k, v in json.loads(spec.json).items() if k not in ("factors", "variants")}
    assert StudySpec.from_json(json.dumps(old)).hash == spec.hash


def test_levels_are_part_of_runs_and_of_the_hash():
    task = load("wine")
    spec = specify(cross(task, loss=["cross_entropy", squared]), optimizers=["sgd"], seeds=2)
    assert [f.name for f in spec.varied] == ["loss"]
    assert spec.factors[:2] == (("loss", ("cross_entropy", "squared")), ("encoding", ("",)))
    runs = plan(spec)
    assert len({run.id for run in runs}) == len(runs) == 2 * 2 * 9
    assert spec.hash != specify(task, optimizers=["sgd"], seeds=2).hash
    again = StudySpec.from_json(spec.json)
    assert again == spec
    assert again.hash == spec.hash
    changed = replace(spec, variants=((spec.variants[0][0], "x"), spec.variants[1]))
    assert changed.hash != spec.hash


def test_both_factors_are_crossed():
    task = wine_in_two_encodings()
    crossed = cross(task, loss=["cross_entropy", squared])
    assert [levels[:2] for levels in crossed.variants] == [
        ("cross_entropy", "numeric"),
        ("cross_entropy", "quartiles"),
        ("squared", "numeric"),
        ("squared", "quartiles"),
    ]
    for (loss, encoding, *_), variant in crossed.variants.items():
        assert variant.task.loss.name == loss
        assert variant.task.train.x.shape[1] == {"numeric": 13, "quartiles": 52}[encoding]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("cross_entropy,nonsense", "there is no loss 'nonsense'"),
        ([], "none given"),
        (" , ", "none given"),
        ([squared, Loss("squared", lambda out, y: out.sum())], "two of them are named 'squared'"),
    ],
)
def test_losses_that_cannot_be_used(losses, message):
    with pytest.raises(StudyError, match=message) as caught:
        thalweg.study("wine", losses=losses)
    assert caught.value.argument == "losses"
    assert "\n" not in str(caught.value)


def test_losses_by_name_in_a_string_and_twice():
    known = list(LOSSES)[:2]
    assert [levels[0] for levels in cross(load("wine"), loss=", ".join(known)).variants] == known
    assert [levels[0] for levels in cross(load("wine"), loss=["mse", "mse"]).variants] == ["mse"]


def test_encodings_of_other_samples_are_refused():
    task = load("wine")
    shorter = replace(task, train=(task.train.x[:50], task.train.y[:50]))
    with pytest.raises(StudyError, match="from 50 to 106 training samples"):
        cross(replace(task, encodings={"a": task, "b": shorter}))


# What follows from records made by hand.


def by_hand(results, metric=ACCURACY, models=None):
    """``results``: (optimizer, loss, encoding) -> lr -> per seed a test metric or an outcome."""
    rows = [
        {
            "run": f"{optimizer}{loss}{encoding}{lr}{seed}",
            "optimizer": optimizer,
            "loss": loss,
            "encoding": encoding,
            "schedule": "fixed",
            "batch_size": 32,
            "lr": lr,
            "seed": seed,
            "outcome": value if isinstance(value, str) else "completed",
            "validation_metric": 0.99 if isinstance(value, str) else value,
            "validation_loss": 0.1 if loss == "mse" else 70.0,
            "test_metric": NAN if isinstance(value, str) else value,
            "epochs_to_target": 3.0 + seed,
            "seconds_to_target": 0.5,
            "seconds": 2.0 + seed,
        }
        for (optimizer, loss, encoding), rates in results.items()
        for lr, values in rates.items()
        for seed, value in enumerate(values)
    ]
    runs = pd.DataFrame(rows)
    levels = {f.name: tuple(dict.fromkeys(runs[f.name])) for f in FACTORS}
    rates = {o: tuple(sorted(set(mine["lr"]))) for o, mine in runs.groupby("optimizer", sort=False)}
    spec = StudySpec(
        "hand", "hand", "x", tuple(rates.items()), tuple(sorted(set(runs["seed"]))), 32, 100, 10,
        0.9, None, factors=tuple(levels.items()),
    )  # fmt: skip
    curves = pd.DataFrame(
        columns=[
            "run", "optimizer", *(f.name for f in FACTORS), "lr", "seed", "epoch", "train_loss",
            "validation_loss", "validation_metric",
        ]
    )  # fmt: skip
    return analyse(spec, metric, runs, curves, models)


BASE = np.array([0.90, 0.80, 0.85, 0.88])
APART = np.array([0.10, 0.12, 0.11, 0.13])  # how much worse, at each seed
NOISE = np.array([0.01, -0.01, 0.012, -0.011])


def test_an_arm_is_tuned_by_itself_and_named_with_its_levels():
    found = by_hand(
        {
            ("adam", "cross_entropy", ""): {0.1: BASE, 1.0: BASE - 0.1},
            ("adam", "mse", ""): {0.1: BASE - 0.3, 1.0: BASE - APART},
        }
    )
    assert found.summary["arm"].tolist() == ["Adam, cross-entropy", "Adam, mse"]
    assert found.summary["lr"].tolist() == [0.1, 1.0]
    assert found.summary["loss"].tolist() == ["cross_entropy", "mse"]
    assert found.trials.groupby("arm")["best"].sum().tolist() == [1, 1]
    assert found.verdict.startswith("Adam with cross-entropy at learning rate 0.1 (test accuracy")
    assert found.verdict.endswith("beats the other on hand.")
    assert found.comparisons["arm"].tolist() == ["Adam, mse"]


def test_the_effect_is_the_paired_difference_to_the_first_level():
    found = by_hand(
        {
            ("adam", "cross_entropy", ""): {0.1: BASE},
            ("adam", "mse", ""): {0.1: BASE - APART},
            ("sgd", "cross_entropy", ""): {0.1: BASE - 0.2},
            ("sgd", "mse", ""): {0.1: BASE - 0.2 + NOISE},
        }
    )
    effects = found.effects.set_index(["context", "level"])
    row = effects.loc[("Adam", "mse")]
    assert row["difference"] == pytest.approx(-0.115)
    # Two comparisons, so each at 97.5 %.
    assert row["confidence"] == pytest.approx(0.975)
    half = stats.t.ppf(1 - 0.0125, 3) * APART.std(ddof=1) / 2
    assert row["difference_low"] == pytest.approx(-0.115 - half)
    assert row["difference_high"] == pytest.approx(-0.115 + half)
    assert not row["tied"]
    assert effects.loc[("SGD", "mse"), "tied"]
    assert math.isnan(effects.loc[("Adam", "cross-entropy"), "difference"])
    assert row["seconds"] == 3.5
    assert row["epochs_to_target"] == 4.5
    ends = f"{100 * (0.115 - half):.1f} to {100 * (0.115 + half):.1f}"
    assert found.notes[0] == (
        f"Loss: with Adam, cross-entropy beats mse by 11.5 points (97.5 % interval {ends}); with "
        f"SGD they tie."
    )
    assert found.notes[1].startswith("Differences between levels of loss are paired over seeds: 2")
    assert any("by the metric alone" in note for note in found.notes)


def test_levels_of_two_factors_have_each_other_as_context():
    found = by_hand(
        {
            ("adam", "cross_entropy", "a"): {0.1: BASE},
            ("adam", "mse", "a"): {0.1: BASE - APART},
            ("adam", "cross_entropy", "b"): {0.1: BASE + NOISE},
            ("adam", "mse", "b"): {0.1: BASE + APART / 2},
        }
    )
    assert found.summary["arm"].tolist()[0] == "Adam, mse, b"
    assert "Adam with mse and b encoding at learning rate" in found.verdict
    by = found.effects.set_index(["factor", "context", "level"])["difference"].dropna()
    assert by.round(4).to_dict() == {
        ("loss", "Adam, a", "mse"): -0.115,
        ("loss", "Adam, b", "mse"): pytest.approx(0.0575 - NOISE.mean(), abs=1e-4),
        ("encoding", "Adam, cross-entropy", "b"): pytest.approx(NOISE.mean(), abs=1e-4),
        ("encoding", "Adam, mse", "b"): 0.1725,
    }
    loss, encoding = (n for n in found.notes if n.startswith(("Loss:", "Encoding:")))
    assert "with Adam (a), cross-entropy beats mse by 11.5 points" in loss
    assert "with Adam (b), mse beats cross-entropy by 5.7 points" in loss
    assert "with Adam (mse), b beats a by 17." in encoding
    assert encoding.endswith("with Adam (cross-entropy) they tie.")


def test_lower_is_better_in_effects_too():
    found = by_hand(
        {("sgd", "mse", ""): {0.1: BASE}, ("sgd", "mae", ""): {0.1: BASE + APART}}, metric=ERROR
    )
    assert found.notes[0].startswith(
        "Loss: with SGD, mse beats mae by 0.115 in mean absolute error (95 % interval 0.0"
    )


def test_contexts_that_agree_are_told_together():
    names = ("sgd", "nag", "adam", "rmsprop")
    results = {}
    for i, name in enumerate(names):
        results[name, "cross_entropy", ""] = {0.1: BASE}
        results[name, "mse", ""] = {0.1: BASE - APART - i / 100}
    found = by_hand(results)
    assert (
        found.notes[0]
        == "Loss: with all 4 optimizers, cross-entropy beats mse by 11.5 to 14.5 points."
    )
    one = by_hand({k: {0.1: v[0.1][:1]} for k, v in results.items()})
    assert (
        one.notes[0]
        == "Loss: with all 4 optimizers, cross-entropy and mse cannot be told apart by one seed."
    )
    assert one.effects["tied"].sum() == 4


def test_a_level_without_a_result_is_no_comparison():
    found = by_hand(
        {
            ("adam", "cross_entropy", ""): {0.1: BASE},
            ("adam", "mse", ""): {0.1: [0.9, "diverged", 0.9, 0.9]},
            ("sgd", "cross_entropy", ""): {0.1: BASE},
            ("sgd", "mse", ""): {0.1: BASE - APART},
        }
    )
    row = found.effects.set_index(["context", "level"]).loc[("Adam", "mse")]
    assert math.isnan(row["difference"])
    assert row["diverged"] == 1
    assert found.effects["confidence"].dropna().tolist() == [pytest.approx(0.95)]
    assert found.notes[0].endswith("with Adam, cross-entropy or mse has no result.")


def test_a_verdict_of_many_ties_counts_them():
    results = {
        (o, loss, ""): {0.1: BASE + np.roll(NOISE, i + 2 * k)}
        for i, o in enumerate(("sgd", "nag", "adam"))
        for k, loss in enumerate(("cross_entropy", "mse"))
    }
    assert "seeds do not tell it from 5 others." in by_hand(results).verdict


# What is trained.

ASKED = {
    "optimizers": ["sgd", "adam"],
    "lr": {"sgd": [0.1, 0.3], "adam": [0.003]},
    "seeds": 3,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def two_losses():
    return thalweg.study("digits", losses=["cross_entropy", squared], **ASKED)


@pytest.fixture(scope="module")
def both_factors():
    return thalweg.study(wine_in_two_encodings(), losses=["cross_entropy", squared], **ASKED)


def test_each_loss_trains_as_in_a_study_of_its_own(two_losses):
    assert (two_losses.runs["outcome"] == "completed").all()
    for loss in ("cross_entropy", squared):
        alone = thalweg.study("digits", losses=[loss], **ASKED)
        name = loss if isinstance(loss, str) else loss.__name__
        mine = two_losses.runs[two_losses.runs["loss"] == name]
        keys = ["optimizer", "lr", "seed"]
        columns = [*keys, "train_loss", "validation_loss", "validation_metric", "test_metric"]
        pd.testing.assert_frame_equal(
            mine.sort_values(keys)[columns].reset_index(drop=True),
            alone.runs.sort_values(keys)[columns].reset_index(drop=True),
        )
        assert set(alone.runs["arm"]) == {"SGD", "Adam"}
        assert alone.effects.empty


def test_frames_say_which_arm(two_losses, both_factors):
    for found, levels in ((two_losses, 2), (both_factors, 4)):
        for frame in (
            found.runs, found.curves, found.trials, found.summary, found.comparisons,
            found.best_curves,
        ):  # fmt: skip
            assert {"arm", "optimizer", "loss", "encoding"} <= set(frame)
        assert found.summary["arm"].nunique() == 2 * levels
        assert len(found.best_curves) == 2 * levels * 3
        assert len(found.runs) == levels * 9
    assert "Adam, cross-entropy, quartiles" in set(both_factors.runs["arm"])
    assert set(json.loads(two_losses.to_json())["effects"][0]) == set(two_losses.effects)


def test_effects_know_where_training_starts(two_losses, both_factors):
    found = two_losses.effects
    norms = []
    for seed in range(3):
        torch.manual_seed(seed)
        task = load("digits").with_loss(squared)
        model = task.model()
        task.loss.of(model(task.train.x), task.train.y).backward()
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))
    mine = found[found["loss"] == "squared"]
    assert mine["gradient_norm"].tolist() == pytest.approx([np.mean(norms)] * 2, rel=1e-5)
    effects = both_factors.effects
    assert effects.groupby("encoding")["parameters"].unique().map(list).to_dict() == {
        "numeric": [1603],
        "quartiles": [1795],
    }
    assert len(effects) == 2 * 4 * 2
    only_encodings = thalweg.study(wine_in_two_encodings(), **(ASKED | {"seeds": 2}))
    assert only_encodings.effects["gradient_norm"].isna().all()
    assert set(only_encodings.runs["arm"]) == {
        f"{o}, {e}" for o in ("SGD", "Adam") for e in ("numeric", "quartiles")
    }


def test_a_note_says_which_variant_it_is_of():
    def wary(outputs, y):
        if outputs.isnan().any():
            raise ValueError("NaN")
        return squared(outputs, y)

    found = thalweg.study("wine", ["sgd"], [0.1], 2, 1, losses=["cross_entropy", wary])
    (note,) = (n for n in found.notes if "one after another" in n)
    assert note.startswith("With wary: runs go one after another, because ")
    assert found.environment["backend"] == "eager,one by one"
    assert (found.runs["outcome"] == "completed").all()


def test_data_of_the_report_and_widths_of_the_terminal(both_factors, two_losses, tmp_path):
    text = both_factors.report(tmp_path / "r.html").read_text()
    for note in both_factors.task.notes:
        assert note in text
    assert len(both_factors.task.notes) == 2
    assert "What the loss does" in text
    assert "What the encoding does" in text
    assert set(both_factors.figures()) >= {"effect_of_loss", "effect_of_encoding"}
    for result, widths in ((two_losses, (80, 100)), (both_factors, (80, 100))):
        for width in widths:
            console = Console(file=io.StringIO(), width=width)
            console.print(summary_table(result, width))
            for factor in result.spec.varied:
                console.print(effect_table(result, factor, width))
            lines = console.file.getvalue().splitlines()
            assert all(len(line.rstrip()) <= width for line in lines)
            assert not any("…" in line for line in lines)


def test_figures_draw_the_effects(two_losses):
    figure = two_losses.figures()["effect_of_loss"]
    means = {t.name: t for t in figure.data if t.name}
    mine = two_losses.effects[two_losses.effects["context"] == "SGD"]
    np.testing.assert_allclose(means["SGD"].y, 100 * mine["test_metric"])
    np.testing.assert_allclose(
        means["SGD"].y + means["SGD"].error_y.array, 100 * mine["high"], rtol=1e-12
    )
    norms = figure.data[-1]
    np.testing.assert_allclose(norms.y, mine["gradient_norm"])
    assert figure.layout.yaxis2.type == "log"
    curves = two_losses.figures()["learning_curves"]
    titles = [curves.layout[axis].title.text for axis in ("yaxis", "yaxis3", "yaxis5")]
    assert titles == ["validation accuracy", "cross-entropy", "squared"]


# What is on record.


def test_taken_up_again_after_an_interruption(tmp_path, both_factors):
    class Enough(Exception):
        pass

    def stop(progress):
        if progress.done >= 18 and progress.alive:  # both encodings with the first loss
            raise Enough

    task, losses = wine_in_two_encodings(), ["cross_entropy", squared]
    asked = ASKED | {"losses": losses, "db": tmp_path / "a.db"}
    with pytest.raises(Enough):
        thalweg.study(task, progress=stop, **asked)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        before = pd.read_sql("select * from outcomes order by id", connection)
    assert len(before) >= 9  # runs that have ended are on record a chunk at a time
    again = thalweg.study(task, resume=True, **asked)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        after = pd.read_sql("select * from outcomes order by id", connection)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert not after["run"].duplicated().any()
    assert set(after["encoding"]) == {"numeric", "quartiles"}
    pd.testing.assert_frame_equal(numbers(again.runs), numbers(both_factors.runs), check_exact=True)
    with pytest.raises(StudyError) as caught:
        thalweg.study(task, resume=True, **(asked | {"losses": None}))
    assert str(caught.value) == (
        "resume: the last study named 'wine2' has loss cross_entropy, squared, this one asks for "
        "cross_entropy; ask for the same, or give another name"
    )

    def other(outputs, y):
        return 2 * squared(outputs, y)

    other.__name__ = "squared"
    with pytest.raises(StudyError, match="the loss or the metric of 'wine2' is not that of"):
        thalweg.study(task, resume=True, **(asked | {"losses": ["cross_entropy", other]}))


def test_a_record_from_before_there_were_factors_is_taken_up(tmp_path):
    path = tmp_path / "a.db"
    first = thalweg.study("wine", db=path, **ASKED)
    with sqlite3.connect(path) as connection:
        for factor in ("loss", "encoding", "schedule"):
            connection.execute(f"alter table outcomes drop column {factor}")
        connection.execute("update thalweg set schema_version = 1")
        spec = json.loads(connection.execute("select spec from studies").fetchone()[0])
        del spec["factors"], spec["variants"]
        connection.execute("update studies set spec = ?", [json.dumps(spec)])
    calls = []
    again = thalweg.study("wine", db=path, resume=True, progress=calls.append, **ASKED)
    assert calls == []
    pd.testing.assert_frame_equal(again.runs, first.runs)
    assert set(again.runs["loss"]) == {"cross_entropy"}
    with sqlite3.connect(path) as connection:
        assert connection.execute("select schema_version from thalweg").fetchall() == [(3,)]


# The trained model.


def check_trained(result, trained):
    row = result.runs.set_index("run").loc[trained.run.id]
    best = result.summary.iloc[0]
    assert (row["arm"], row["lr"]) == (best["arm"], best["lr"])
    others = result.runs[(result.runs["arm"] == best["arm"]) & (result.runs["lr"] == best["lr"])]
    assert row["validation_metric"] == others["validation_metric"].max()
    assert trained.validation_metric == pytest.approx(row["validation_metric"], rel=1e-6)
    task = trained.task
    with torch.no_grad():
        outputs = trained.module()(task.validation.x)
        score = task.metric.of(outputs, task.validation.y).item()
    assert score == pytest.approx(row["validation_metric"], rel=1e-6)


def test_the_best_model_is_that_on_record(both_factors):
    trained = both_factors.train_best()
    check_trained(both_factors, trained)
    best = both_factors.summary.iloc[0]
    assert trained.run.levels == tuple(best[factor.name] for factor in FACTORS)
    assert trained.task is both_factors.variants[trained.run.levels].task
    trained.task.model().load_state_dict(trained.weights)


@pytest.mark.parametrize("model", [models.dropout, models.batch_norm, models.Branches, models.Tied])
def test_the_best_model_of_any_kind(model):
    asked = {"optimizers": ["sgd", "schedulefreeadamw"], "lr": [0.1, 0.01], "seeds": 2}
    result = thalweg.study(models.task(model), epochs=4, **asked)
    check_trained(result, best_weights(result))


def test_there_is_no_best_model_where_nothing_was_completed():
    result = thalweg.study("wine", ["sgd"], [1e30], 2, 1)
    with pytest.raises(StudyError, match="no setting was completed"):
        result.train_best()


# What cannot be trained.


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(11, 3)

    def forward(self, x):
        return self.layer(x)


def broken():
    raise RuntimeError("no such file\nand more")


def rude(outputs, y):
    raise TaskError("loss", "rude.py, line 3: cannot be computed")


@pytest.mark.parametrize(
    ("task", "losses", "message"),
    [
        (models.task(Narrow), None, r"the model raises RuntimeError: mat1 .* at test_factors.py:"),
        (
            models.task(broken),
            None,
            r"'small' cannot be trained: .* raises RuntimeError: no such file",
        ),
        (models.task(models.mlp, loss=rude), None, "rude.py, line 3: cannot be computed"),
        (
            models.task(models.mlp),
            ["cross_entropy", lambda outputs, y: outputs @ y],
            "the loss <lambda> raises RuntimeError",
        ),
    ],
)
def test_what_fails_is_one_sentence_and_leaves_no_record(task, losses, message, tmp_path):
    with pytest.raises(StudyError, match=message) as caught:
        thalweg.study(task, ["sgd"], [0.1], 2, 1, losses=losses, db=tmp_path / "a.db")
    assert caught.value.argument == "task"
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_batch_size_is_the_tasks_unless_told():
    task = replace(load("wine"), batch_size=20)
    assert specify(task).batch_size == 20
    assert specify(task, batch_size=8).batch_size == 8
    assert set(thalweg.study(task, ["sgd"], [0.1], 1, 1).runs["batch_size"]) == {20}
