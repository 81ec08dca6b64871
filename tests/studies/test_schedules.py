"""Schedule and batch size as factors of a study."""

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import thalweg
from thalweg import schedules
from thalweg.schedules import Schedule
from thalweg.studies import StudyError
from thalweg.studies.factors import cross
from thalweg.studies.spec import StudySpec, plan, specify
from thalweg.tasks import load

ASKED = {"optimizers": ["sgd"], "lr": [0.03, 0.3], "seeds": 2, "epochs": 4}
NUMBERS = ["train_loss", "validation_loss", "validation_metric", "test_loss", "test_metric"]


def spec_of(**asked):
    return specify(cross(load("wine"), **asked), optimizers=["sgd"], lr=[0.1], epochs=4)


def test_a_fixed_rate_is_what_there_was_before_there_were_schedules():
    plain, fixed = spec_of(), spec_of(schedule="fixed")
    assert plain.hash == fixed.hash
    assert [run.id for run in plan(plain)] == [run.id for run in plan(fixed)]
    old = json.loads(plain.json)
    old["factors"] = [pair for pair in old["factors"] if pair[0] in ("loss", "encoding")]
    old["variants"] = [[levels[:2], found] for levels, found in old["variants"]]
    del old["budgets"]
    assert StudySpec.from_json(json.dumps(old)) == plain


def test_one_schedule_is_no_factor_but_another_study():
    spec = spec_of(schedule="cosine")
    assert spec.varied == ()
    assert spec.hash != spec_of().hash
    assert not {run.id for run in plan(spec)} & {run.id for run in plan(spec_of())}
    assert StudySpec.from_json(spec.json) == spec


def test_a_schedule_of_ones_own_is_known_by_its_code():
    def own(code):
        return Schedule("mine", None, code)

    first = spec_of(schedule=own(lambda t: 1 / (1 + t)))
    other = spec_of(schedule=own(lambda t: 1 / (2 + t)))
    assert first.factors == other.factors
    assert first.hash != other.hash


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_run_is_that_of_torchs_scheduler(optimizer):
    task = load("wine")
    name = optimizer.__name__.lower()
    result = thalweg.study(task, [name], [0.03], [5], 4, schedules="cosine")
    ((_, run),) = result.runs.iterrows()
    torch.manual_seed(5)
    model = task.model()
    steps = 4 * (len(task.train) // task.batch_size)
    opt = optimizer(model.parameters(), lr=0.03)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    order = torch.Generator().manual_seed(5)
    for _ in range(4):
        index = torch.randperm(len(task.train), generator=order)
        for batch in index[: steps // 4 * task.batch_size].split(task.batch_size):
            opt.zero_grad()
            x, y = task.train[batch]
            task.loss.of(model(x), y).backward()
            opt.step()
            scheduler.step()
    with torch.no_grad():
        loss = task.loss.of(model(task.test.x), task.test.y)
    assert run["test_loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.fixture(scope="module")
def crossed():
    return thalweg.study("wine", schedules=["fixed", "step:size=2e"], batch_size="16,53", **ASKED)


def test_both_are_crossed_with_equal_budgets(crossed):
    spec = crossed.spec
    assert [f.name for f in spec.varied] == ["schedule", "batch_size"]
    runs = crossed.runs
    assert set(runs["arm"]) == {
        "SGD, fixed, 16", "SGD, fixed, 53", "SGD, step:size=2e, 16", "SGD, step:size=2e, 53",
    }  # fmt: skip
    assert runs.groupby("arm").size().unique().tolist() == [4]
    samples = len(load("wine").train)
    steps = runs.groupby("batch_size")["step"].unique().map(list).to_dict()
    assert steps == {16: [4 * (samples // 16)], 53: [4 * (samples // 53)]}
    assert runs["run"].is_unique
    assert set(crossed.curves["batch_size"]) == {16, 53}
    assert "batch size 53" in " ".join([crossed.verdict, *crossed.notes])
    assert StudySpec.from_json(spec.json) == spec


def test_the_plain_levels_are_the_plain_study(crossed):
    for size in (16, 53):
        plain = thalweg.study("wine", batch_size=size, **ASKED).runs
        mine = crossed.runs.query("batch_size == @size and schedule == 'fixed'")
        np.testing.assert_array_equal(mine[NUMBERS], plain[NUMBERS])
    assert not np.array_equal(
        crossed.runs.query("schedule == 'fixed'")[NUMBERS],
        crossed.runs.query("schedule != 'fixed'")[NUMBERS],
    )


def test_effects_and_figures_of_both(crossed, tmp_path):
    effects = crossed.effects
    assert set(effects["factor"]) == {"schedule", "batch_size"}
    sizes = effects[effects["factor"] == "batch_size"]
    assert sizes["level"].tolist() == ["16", "53"] * 2
    assert effects[effects["factor"] == "schedule"]["context"].unique().tolist() == [
        "SGD, 16", "SGD, 53",
    ]  # fmt: skip
    notes = " ".join(crossed.notes)
    assert "Schedule: with" in notes
    assert "Batch size: with" in notes
    text = crossed.report(tmp_path / "a.html").read_text()
    assert "What the batch size does" in text
    assert "What the schedule does" in text
    assert "24 steps of 16 samples or 8 steps of 53 samples" in text
    json.loads(crossed.to_json())


def test_batch_sizes_stand_by_their_logarithms():
    result = thalweg.study("wine", batch_size=[8, 16, 64], **(ASKED | {"epochs": 1}))
    axis = result.figures()["effect_of_batch_size"].layout.xaxis
    assert list(axis.ticktext) == ["8", "16", "64"]
    np.testing.assert_allclose(axis.tickvals, [0, 1, 3])


def test_the_best_model_follows_its_schedule():
    result = thalweg.study(
        "wine", schedules=["warmup+cosine"], batch_size=16, **(ASKED | {"lr": [0.3]})
    )
    trained = result.train_best()
    row = result.runs.set_index("run").loc[trained.run.id]
    assert trained.validation_loss == pytest.approx(row["validation_loss"], rel=1e-6)


def test_taken_up_again(tmp_path, crossed):
    class Enough(Exception):
        pass

    def stop(progress):
        if progress.done >= 4 and progress.alive:
            raise Enough

    asked = ASKED | {
        "schedules": ["fixed", "step:size=2e"],
        "batch_size": [16, 53],
        "db": tmp_path / "a.db",
    }
    with pytest.raises(Enough):
        thalweg.study("wine", progress=stop, **asked)
    again = thalweg.study("wine", resume=True, **asked)
    times = ["seconds", "seconds_to_target"]
    pd.testing.assert_frame_equal(
        again.runs.drop(columns=times), crossed.runs.drop(columns=times), check_exact=True
    )
    with pytest.raises(StudyError, match="has batch size 16, 53, this one asks for 16"):
        thalweg.study("wine", resume=True, **(asked | {"batch_size": 16}))
    with pytest.raises(StudyError, match="has schedule fixed, step:size=2e, this one asks for"):
        thalweg.study("wine", resume=True, **(asked | {"schedules": "cosine"}))


def test_a_record_from_before_there_were_schedules_is_taken_up(tmp_path):
    path = tmp_path / "a.db"
    first = thalweg.study("wine", db=path, **ASKED)
    with sqlite3.connect(path) as connection:
        connection.execute("alter table outcomes drop column schedule")
        connection.execute("update thalweg set schema_version = 2")
    calls = []
    again = thalweg.study("wine", db=path, resume=True, progress=calls.append, **ASKED)
    assert calls == []
    pd.testing.assert_frame_equal(again.runs, first.runs)


@pytest.mark.parametrize(
    ("asked", "argument", "message"),
    [
        ({"schedules": "cosine,nonsense"}, "schedules", "there is no schedule .nonsense."),
        ({"schedules": ","}, "schedules", "none given"),
        ({"schedules": "step:width=3"}, "schedules", "width"),
        ({"schedules": "cosine:steps=5"}, "schedules", "5"),
        ({"schedules": schedules.cosine(5)}, "schedules", "lasts 5 steps, and runs take 12"),
        ({"batch_size": "16,x"}, "batch_size", "'16,x' is no list of whole numbers"),
        ({"batch_size": []}, "batch_size", "none given"),
        ({"batch_size": [16, 0]}, "batch_size", "at least 1, got 0"),
        ({"batch_size": [16, 4000]}, "batch_size", "4000 is more than the 106 training samples"),
    ],
)
def test_what_cannot_be_used(asked, argument, message, tmp_path):
    with pytest.raises(StudyError, match=message) as caught:
        thalweg.study("wine", db=tmp_path / "a.db", **(ASKED | asked))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.db").exists()


def test_a_schedule_that_is_held_may_be_short():
    held = replace(schedules.cosine(5).hold(), text="short")
    result = thalweg.study("wine", schedules=held, **ASKED)
    assert (result.runs["outcome"] == "completed").all()
