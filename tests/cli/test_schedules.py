import json

import numpy as np
import pytest

from thalweg import schedules as s


def test_all_side_by_side(here, run):
    code, out, error = run("schedules")
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == "Figure: thalweg-schedules.html"
    for name, entry in s.SCHEDULES.items():
        assert name in out
        assert entry.meaning.split()[0] in out
    page = (here / "thalweg-schedules.html").read_text("utf-8")
    assert "<title>Learning-rate schedules</title>" in page
    assert page.count('"shape":"hv"') == len(s.SCHEDULES) + 1
    assert " src=" not in page.split("Plotly.newPlot")[1]
    assert [p.name for p in here.iterdir()] == ["thalweg-schedules.html"]


def test_the_chosen_in_one_panel_as_json(here, run):
    asked = ["step:size=2e:gamma=0.5", "warmup:steps=10%+cosine"]
    options = ["--steps", "50", "--steps-per-epoch", "5", "--lr", "0.1", "--out", "deep/a.html"]
    code, out, error = run("schedules", *asked, *options, "--json")
    assert (code, error) == (0, "Figure: deep/a.html\n")
    first, second = json.loads(out)
    assert (first["name"], first["schedule"]) == (asked[0], "step(10, gamma=0.5)")
    np.testing.assert_array_equal(first["lr"], 0.1 * s.step(10, 0.5)(range(50)))
    np.testing.assert_array_equal(
        second["lr"], 0.1 * (s.warmup(5) + s.cosine(45))(range(50))
    )  # fmt: skip
    page = (here / "deep" / "a.html").read_text("utf-8")
    assert page.count('"shape":"hv"') == 2


def test_the_table_says_what_would_be_typed(run):
    out = run("schedules", "multistep", "one_cycle", "step:size=7", "--steps", "100")[1]
    assert "milestones=50/75, gamma=0.1" in out
    assert "anneal=cos" in out
    assert "step(7)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cosin"], "NAMES: there is no schedule 'cosin'; did you mean cosine?"),
        (["step:siz=3"], "NAMES: 'step:siz=3': step has no parameter 'siz'; it has size, gamma"),
        (["step", "cosine:steps=3"], "NAMES: 'cosine:steps=3': ends after 3 steps and the"),
        (["exp:gamma=10", "--steps", "400"], "NAMES: exp(10) is no finite number at step 309"),
        (["--steps", "0"], "--steps: must be a whole number of at least 1, got 0"),
        (["--steps", "x"], "--steps"),
        (["--steps-per-epoch", "0"], "--steps-per-epoch: must be a whole number of at least 1"),
        (["--lr", "0"], "--lr: must be a number above 0, got 0"),
        (["--lr", "nan"], "--lr: must be a number above 0, got nan"),
        (["--out", "."], "--out: . is a folder"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_values_get_one_line_and_exit_code_2(arguments, message, here, run):
    code, out, error = run("schedules", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize("steps", ["1", "2", "1000000"])
def test_any_training(steps, here, run):
    assert run("schedules", "--steps", steps)[0] == 0
    assert (here / "thalweg-schedules.html").stat().st_size < 8e6


def test_a_path_that_cannot_be_written(here, run):
    (here / "file").write_text("kept")
    code, out, error = run("schedules", "step", "--out", "file/a.html")
    assert (code, out) == (2, "")
    assert "--out: cannot write file/a.html" in error
    assert (here / "file").read_text() == "kept"
