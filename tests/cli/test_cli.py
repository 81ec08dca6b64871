"""The command as a person types it, in a process of its own."""

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from thalweg.cli import main; main()"]
QUICK = ["--optimizers", "adam,sgd", "--lr", "0.003,0.03", "--seeds", "2", "--epochs", "2"]


def thalweg(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, **options
    )


def test_study_writes_what_it_says(tmp_path):
    done = thalweg("study", "digits", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["Report: thalweg-digits.html", "Record: thalweg.db"]
    assert {p.name for p in tmp_path.iterdir()} == {"thalweg-digits.html", "thalweg.db"}
    assert "optimizer" in lines[1]
    assert any("Adam" in line and "of 4" in line for line in lines)
    with sqlite3.connect(tmp_path / "thalweg.db") as connection:
        assert connection.execute("select count(*) from outcomes").fetchone() == (8,)


def test_json_is_all_there_is_on_standard_output(tmp_path):
    asked = ["--steps", "40", "--batch-size", "16", "--target", "0.5", "--name", "mine"]
    paths = ["--db", "deep/a.db", "--out", "deep/b.html"]
    only = ["--optimizers", "nag", "--lr", "1e-3:1e-1:3", "--seeds", "2", "--no-compile"]
    done = thalweg("study", "digits", "--json", *asked, *paths, *only, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["spec"]["lrs"] == {"nag": [0.001, 0.01, 0.1]}
    assert (found["spec"]["steps"], found["spec"]["batch_size"]) == (40, 16)
    assert found["spec"]["name"] == "mine"
    assert len(found["runs"]) == 6
    assert found["summary"][0]["optimizer"] == "nag"
    assert found["verdict"]
    assert (tmp_path / "deep" / "b.html").stat().st_size > 1e6
    assert "deep/b.html" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minst"], "TASK: there is no task 'minst'; there are digits"),
        (
            ["digits", "--optimizers", "adam,adamm"],
            "--optimizers: there is no 'adamm'; did you mean",
        ),
        (["digits", "--lr", "1:2"], "--lr: '1:2' is no range"),
        (["digits", "--lr", "-1"], "--lr: must be above 0, got '-1'"),
        (["digits", "--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["digits", "--epochs", "x"], "--epochs"),
        (["digits", "--epochs", "3", "--steps", "3"], "--steps: give either epochs"),
        (["digits", "--losses", "mse,nonsense"], "--losses: there is no loss 'nonsense'; choose"),
        (["digits", "--batch-size", "99999"], "--batch-size: 99999 is more than the 1077"),
        (["digits", "--target", "95"], "--target: 95 is no accuracy"),
        (["digits", "--device", "cuda:7"], "--device: 'cuda:7' cannot be used here"),
        (["digits", "--device", "abc"], "--device: 'abc' cannot be used here"),
        (["digits", "--db", "."], "--db: . is a folder"),
        (["digits", "--out", "."], "--out: . is a folder"),
        (["digits", "--name", "a/b"], "--name: 'a/b' cannot name a study"),
        (["digits", "--patience", "0"], "--patience: must be"),
        (["digits", "--time-limit", "0"], "--time-limit: must be above 0"),
        (["digits", "--nonsense"], "--nonsense"),
        ([], "Missing argument"),
    ],
)
def test_bad_values_get_one_line_and_exit_code_2(arguments, message, here, run):
    code, out, error = run("study", *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("thalweg: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(here.iterdir()) == []


def test_a_bad_value_in_a_process_of_its_own(tmp_path):
    done = thalweg("study", "digits", "--nonsense", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", ["file/a.html", "/proc/x/y.html", "/dev/null", "a" * 300])
@pytest.mark.parametrize("command", ["study", "study --model", "lr", "batch", "predict digits"])
def test_a_path_that_cannot_be_written_is_refused_first(command, path, here, run):
    (here / "file").write_text("kept")
    command, *more = command.split()
    option = next((word for word in more if word.startswith("--")), "--out")
    rest = [word for word in more if word != option]
    code, out, error = run(command, *rest, "digits", option, path)
    assert (code, out) == (2, "")
    assert error.startswith(f"thalweg: Invalid value for {option}: ")
    assert path in error
    assert error.count("\n") == 1
    assert [p.name for p in here.iterdir()] == ["file"]
    assert not Path("/dev/null").is_file()


def test_a_path_in_folders_that_are_not_there_yet_leaves_none(here, run):
    code, _, error = run("study", "nonsense", "--out", "a/b/c.html")
    assert code == 2
    assert "no task" in error
    assert list(here.iterdir()) == []


def test_a_report_that_can_no_longer_be_written_loses_nothing(here, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thalweg.studies.StudyResult.report", full)
    code, _, error = run("study", "digits", *QUICK, "--out", "report.html")
    assert code == 2
    assert "--out: cannot write report.html (No space left on device)" in error
    assert "thalweg.db" in error
    with sqlite3.connect(here / "thalweg.db") as connection:
        assert connection.execute("select count(*) from outcomes").fetchone() == (8,)


def test_interrupted_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "study", "digits", "--epochs", "4000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has them, and what they start, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "thalweg.db").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in error
    assert "Traceback" not in error


def test_one_live_line_on_a_terminal(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "study", "digits", *QUICK[:-1], "300", "--json"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    said = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        said += piece
    assert process.wait(timeout=60) == 0
    text = said.decode()
    assert re.search(r"8 runs alive, 0 of 8 ended · epoch \d+ of 300 · [\d,]+ steps/s", text)
    assert "s left" in text


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom thalweg.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numba', 'pandas', 'plotly', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "study" in done.stdout


def test_version(tmp_path):
    from thalweg import __version__

    assert thalweg("--version", cwd=tmp_path).stdout == f"thalweg {__version__}\n"
