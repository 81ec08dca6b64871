import json

import pytest

from thalweg.landscape.functions import FUNCTIONS

QUICK = ("--lr", "0.1", "--steps", "20")


def test_a_function_by_its_expression(here, run):
    code, out, error = run("surface", "x^2 + 3*y^2 - x*y", "--optimizers", "sgd,momentum")
    assert (code, error) == (0, "")
    assert "One minimum; the minimum is 0 at (0, 0)." in out
    assert out.splitlines()[-1] == "Page: thalweg-surface-x-2-3-y-2-x-y.html"
    page = (here / "thalweg-surface-x-2-3-y-2-x-y.html").read_text("utf-8")
    assert "<title>x^2 + 3*y^2 - x*y</title>" in page
    for heading in ("Where the paths end", "The learning rate at which each diverges"):
        assert heading in page
    assert " src=" not in page.split("Plotly.newPlot")[1]
    assert [p.name for p in here.iterdir()] == ["thalweg-surface-x-2-3-y-2-x-y.html"]


def test_the_canyon_as_json_with_its_theory(here, run):
    options = ["--optimizers", "sgd,momentum:momentum=0.5", "--start", "-4,1", "--start", "3,2"]
    code, out, error = run("surface", "canyon", *options, "--out", "deep/a.html", "--json")
    assert (code, error) == (0, "Page: deep/a.html\n")
    assert (here / "deep" / "a.html").is_file()
    found = json.loads(out)
    assert found["variables"] == ["x", "y"]
    assert [(p["kind"], p["x"], p["y"], p["value"]) for p in found["points"]] == [
        ("minimum", 0.0, 0.0, 0.0)
    ]
    assert [(p["optimizer"], p["start"]) for p in found["paths"]] == [
        ("SGD", 0),
        ("SGD", 1),
        ("Momentum (momentum=0.5)", 0),
        ("Momentum (momentum=0.5)", 1),
    ]
    assert {p["kind"] for p in found["paths"]} == {"minimum"}
    # 2 / L and 2 (1 + mu) / L with L = 4
    assert [row["theory"] for row in found["divergence"]] == [0.5, 0.75]
    for row in found["divergence"]:
        assert row["diverges_at"] == pytest.approx(row["theory"], rel=2e-5)


def test_the_risk_is_shown_with_its_twin(here, run):
    code, out, _ = run("surface", "risk", *QUICK)
    assert code == 0
    assert "2 minima and one maximum; the lowest minimum is -1.05 at 1.09." in out
    page = (here / "thalweg-surface-risk.html").read_text("utf-8")
    assert "Its minimum is at 1.02, that of the risk at 1.09" in page


def test_where_there_is_no_minimum(run):
    out = run("surface", "tanh", *QUICK)[1]
    assert "No minimum, maximum or saddle point in this range." in out
    assert "None of the optimizers came to rest within 20 steps." in out
    assert "diverges" not in out
    out = run("surface", "-x**2", "--start", "1", *QUICK)[1]
    assert "One maximum." in out


def test_all_of_the_options(run):
    code, out, error = run(
        "surface", "himmelblau", "--range", "y=-4:4,x=-5:5", "--lr", "sgd=0.01,adam=0.2",
        "--optimizers", "sgd,adam", "--noise", "0.1", "--seed", "3", "--schedule", "cosine",
        "--tolerance", "1e-6", "--steps", "30", "--json",
    )  # fmt: skip
    assert code == 0, error
    found = json.loads(out)
    assert found["range"] == [[-5.0, 5.0], [-4.0, 4.0]]
    assert (found["steps"], found["tolerance"], found["tuned"]) == (30, 1e-6, [])
    assert [p["lr"] for p in found["paths"]] == [0.01, 0.2]


def test_the_list(here, run):
    code, out, _ = run("surface", "--list")
    assert code == 0
    assert all(name in out for name in FUNCTIONS)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FUNCTION: none given; --list shows those with a name"),
        (["2x"], "FUNCTION: '2x', column 2: no sign stands between '2' and 'x'; write 2*x"),
        (["rosenbrok"], "FUNCTION: there is no function 'rosenbrok'; did you mean rosenbrock?"),
        (["log(x-10)"], "--range: log(x-10) is not finite anywhere there"),
        (["--nonsense"], "--nonsense: there is no such option"),
        (["x", "--nonsense"], "--nonsense"),
        (["canyon", "--lr", "fast"], "--lr: 'fast' is no number"),
        (["canyon", "--lr", "0"], "--lr: must be positive and finite, got 0"),
        (["canyon", "--lr", "sgd=1,0.1"], "--lr: '0.1' is no pair; write sgd=0.4,adam=0.1"),
        (["canyon", "--lr", "lion=1"], "--lr: 'lion' is none of the optimizers: sgd, momentum"),
        (["canyon", "--start", "1"], "--start: must be a finite number for each of x and y, got 1"),
        (["canyon", "--start", "a,b"], "--start: 'a' is no number"),
        (["log(x)", "--start", "-1"], "--start: log(x) or its gradient is not finite at -1"),
        (["canyon", "--range", "3"], "--range: '3' is no range; write lowest:highest"),
        (["canyon", "--range", "x=-2:2,x=0:1"], "--range: 'x=-2:2,x=0:1' must name x and y, each"),
        (
            ["canyon", "--range", "x=-2:2"],
            "--range: 'x=-2:2' must name x and y, each once, or none",
        ),
        (["canyon", "--range", "2:-2"], "--range: must be a lowest and a higher value"),
        (["canyon", "--steps", "0"], "--steps: must be a whole number of at least 1, got 0"),
        (["canyon", "--tolerance", "-1"], "--tolerance: must be positive"),
        (["canyon", "--noise", "nan"], "--noise: must be at least 0 and finite"),
        (["canyon", "--seed", "-1"], "--seed: must be a whole number from 0"),
        (["canyon", "--schedule", "cosin"], "--schedule: there is no schedule 'cosin'"),
        (["canyon", "--optimizers", "sdg"], "--optimizers: there is no 'sdg'; did you mean sgd?"),
        (["canyon", "--optimizers", ","], "--optimizers: none given"),
        (["canyon", "--epochs", "3"], "--epochs: is for a task, and 'canyon' is a function"),
        (["canyon", "--target", "y"], "--target: is for a task, and 'canyon' is a function"),
        (["digits", "--steps", "3"], "--steps: is for a function, and 'digits' is a task"),
        (["canyon", "--out", "."], "--out: . is a folder"),
    ],
)
def test_bad_values_get_one_line_and_exit_code_2(arguments, message, here, run):
    code, out, error = run("surface", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


def test_a_task_is_handed_on(here, run, monkeypatch):
    network = pytest.importorskip("thalweg.cli.network")
    asked = {}

    def network_surface(task, **options):
        asked.update(options, task=task.name)

    monkeypatch.setattr(network, "network_surface", network_surface)
    options = ["--optimizers", "sgd,lion", "--epochs", "3", "--lr", "0.1", "--seed", "2", "--json"]
    assert run("surface", "wine", *options)[0] == 0
    assert asked == {
        "task": "wine", "optimizers": ["sgd", "lion"], "epochs": 3, "lr": 0.1, "seed": 2,
        "out": None, "json": True,
    }  # fmt: skip


def test_the_page_in_a_browser(chromium, here, run):
    run("surface", "saddle", "--optimizers", "sgd,adam", "--lr", "0.1", "--steps", "40")
    page = chromium.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((here / "thalweg-surface-saddle.html").as_uri())
    page.wait_for_selector(".slider-label", state="attached")
    assert page.locator(".slider-label").first.text_content() == "step 30"
    page.evaluate("Plotly.animate('part0', ['3'], {mode: 'immediate', frame: {duration: 0}})")
    path = "document.getElementById('part0')._fullData.find(trace => trace.name == 'SGD')"
    page.wait_for_function(f"{path}.x.length == 4")
    assert not wrong
    page.close()
