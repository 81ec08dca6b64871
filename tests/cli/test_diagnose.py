import json
from pathlib import Path

import pytest
import torch

from thalweg.tasks import load

EXAMPLES = Path(__file__).parents[2] / "examples" / "broken.py"
QUICK = ["--epochs", "6", "--seeds", "2"]


def test_a_summary_and_a_page(here, run, opened):
    code, out, error = run("diagnose", "wine", "--lr", "1e-5", *QUICK)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("learning rate too low")
    assert lines[-1] == "Page: thalweg-diagnose-wine.html"
    page, trouble = opened(here / "thalweg-diagnose-wine.html")
    assert trouble == []
    text = page.locator("body").inner_text()
    assert text.index("learning rate too low") < text.index("The training as it is set")
    assert page.locator("h2").all_inner_texts() == [
        "The training as it is set",
        "Other learning rates",
        "What was tried",
        "Gradients, layer by layer",
        "Activations, layer by layer",
        "Saturated and dead units",
        "Where the first run ended",
    ]


def test_json_is_a_list_best_first(here, run):
    code, out, error = run(
        "diagnose", f"{EXAMPLES}:missing_values", "--json", "--out", "deep/page.html", *QUICK
    )
    assert code == 0
    assert error == "Page: deep/page.html\n"
    found = json.loads(out)
    assert [set(f) for f in found] == [{"cause", "confidence", "evidence", "advice"}] * len(found)
    assert found[0]["cause"] == "nan_in_data"
    assert found[0]["confidence"] == 1.0
    assert "9 of 1,077 train samples" in found[0]["evidence"]
    assert (here / "deep" / "page.html").exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}])
def test_a_checkpoint_is_trained_on_from(here, run, wrap):
    task = load("wine")
    torch.manual_seed(0)
    module = task.model()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(50):  # from where there is nothing left to gain
        optimizer.zero_grad()
        task.loss.of(module(task.train.x), task.train.y).backward()
        optimizer.step()
    state = module.state_dict()
    torch.save(wrap({f"module.{k}": v for k, v in state.items()}), here / "weights.pt")
    code, out, _ = run("diagnose", "weights.pt", "--task", "wine", "--json", *QUICK)
    assert code == 0
    assert json.loads(out)[0]["cause"] == "healthy"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "TASK_OR_CHECKPOINT: there is no task 'nosuch'"),
        (["none.pt", "--task", "wine"], "TASK_OR_CHECKPOINT: there is no file none.pt"),
        (["none.pt"], "--task: none.pt is a checkpoint; say which task it is of"),
        (["wine", "--task", "digits"], "--task: is for a checkpoint, and 'wine' is none"),
        (["text.pt", "--task", "wine"], "cannot be read as tensors and plain values alone"),
        (["hello.pt", "--task", "wine"], "cannot be read as tensors and plain values alone"),
        (["folder.pt", "--task", "wine"], "cannot read folder.pt (Is a directory)"),
        (["other.pt", "--task", "wine"], "is of another model than that of the task 'wine'"),
        (["number.pt", "--task", "wine"], "has no state dictionary"),
        (["nan.pt", "--task", "wine"], "0.weight has NaN or infinite values"),
        (["wine", "--lr", "0"], "--lr: must be positive and finite, got 0.0"),
        (["wine", "--optimizer", "sdg"], "--optimizer: there is no 'sdg'"),
        (["wine", "--batch-size", "500"], "--batch-size: 500 is more than the 106"),
        (["wine", "--epochs", "0"], "--epochs: must be a whole number of at least 1, got 0"),
        (["wine", "--schedule", "cosin"], "--schedule: "),
        (["wine", "--loss", "mes"], "--loss: there is no loss 'mes'"),
        (["wine", "--seeds", "0"], "--seeds: "),
        (["wine", "--out", "."], "--out: . is a folder"),
    ],
)
def test_what_cannot_be_is_one_line(here, run, arguments, said):
    (here / "text.pt").write_text("no weights")
    (here / "hello.pt").write_text("hello")  # at which torch raises a KeyError
    (here / "folder.pt").mkdir()
    torch.save(load("digits").model().state_dict(), here / "other.pt")
    torch.save({"model": 3}, here / "number.pt")
    broken = load("wine").model().state_dict()
    broken["0.weight"] = broken["0.weight"] * float("nan")
    torch.save(broken, here / "nan.pt")
    before = set(here.iterdir())
    code, out, error = run("diagnose", *arguments)
    assert code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("thalweg: ")
    assert said in error
    assert set(here.iterdir()) == before


def test_a_pickle_is_not_run(here, run):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    torch.save({"model": Harm()}, here / "harm.pt")
    code, out, error = run("diagnose", "harm.pt", "--task", "wine", *QUICK)
    assert code == 2
    assert "harm" not in out
    assert "cannot be read as tensors and plain values alone" in error
