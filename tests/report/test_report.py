import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

import thalweg
from thalweg.report import result_html, summary_table


@pytest.fixture
def page(small_result, tmp_path, chromium):
    path = small_result.report(tmp_path / "deep" / "report.html")
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.trouble = []
    page.on("console", lambda m: page.trouble.append(m.text))
    page.on("pageerror", lambda e: page.trouble.append(str(e)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else page.trouble.append(r),
    )
    page.goto(path.as_uri())
    page.wait_for_selector(".plotly .trace", state="attached")
    yield page
    page.close()


def test_opens_offline_without_complaint(page):
    assert page.locator(".js-plotly-plot").count() == 4
    assert page.trouble == []


def test_the_verdict_comes_first(page, small_result):
    text = page.locator("body").inner_text()
    assert text.index(small_result.verdict) < text.index("Final accuracy against learning rate")
    headings = page.locator("h2").all_inner_texts()
    assert headings == [
        "Final accuracy against learning rate",
        "Learning curves at the best learning rate",
        "Too small, right, too large",
        "Time to target",
        "All runs",
        "How it was done",
    ]


def test_all_runs_sort_by_number_with_missing_ones_last(page, small_result):
    cells = "#runs tbody td:nth-child({})"
    assert page.locator("#runs tbody tr").count() == len(small_result.runs) == 15

    def column(i):
        return page.locator(cells.format(i)).all_inner_texts()

    before = column(2)
    page.locator("#runs th button").nth(1).click()
    rising = [float(t) for t in column(2)]
    assert rising == sorted(rising)
    assert column(2) != before
    page.locator("#runs th button").nth(1).click()
    assert [float(t) for t in column(2)] == rising[::-1]
    page.locator("#runs th button").nth(8).click()
    accuracy = column(9)
    found = [float(t.removesuffix(" %")) for t in accuracy if t != "–"]
    assert found == sorted(found)
    assert accuracy[len(found) :] == ["–"] * 3
    assert page.locator("#runs th").nth(8).get_attribute("aria-sort") == "ascending"


def test_sorts_from_the_keyboard(page):
    page.locator("#runs th button").nth(2).focus()
    page.keyboard.press("Enter")
    seeds = page.locator("#runs tbody td:nth-child(3)").all_inner_texts()
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_boxes_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_text(small_result, tmp_path):
    evil = "<script>alert(1)</script>"
    result = replace(
        small_result,
        spec=replace(small_result.spec, name=evil),
        task=replace(small_result.task, title=evil),
    )
    text = result.report(tmp_path / "r.html").read_text()
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text


def test_loads_nothing_from_elsewhere(small_result, tmp_path):
    text = small_result.report(tmp_path / "r.html").read_text()
    assert not re.findall(r"<(?:script|img|iframe|link)[^>]+(?:src|href)=[\"'](?!data:)", text)


def test_a_failed_write_leaves_the_old_report(small_result, tmp_path, monkeypatch):
    path = small_result.report(tmp_path / "r.html")
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        small_result.report(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_notebook_shows_verdict_and_summary(small_result):
    html = result_html(small_result)
    assert small_result.verdict in html
    assert html.count("<tr>") == 3
    assert small_result._repr_html_() == html
    assert "<script" not in html


def shown(result, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(result))
    return console.file.getvalue()


def test_the_terminal_table_fits_80_columns(small_result):
    text = shown(small_result)
    assert "…" not in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "3 of 9" in text


def test_one_optimizer_and_none_completed(tmp_path):
    lost = thalweg.study("wine", ["sgd"], lr=[1e30], seeds=2, epochs=2)
    assert "no verdict" in lost.verdict
    assert (lost.runs["outcome"] == "diverged").all()
    assert "–" in shown(lost)
    assert "no verdict" in lost.report(tmp_path / "r.html").read_text()


def test_an_error_as_metric(tmp_path):
    result = thalweg.study("diabetes", ["adam", "sgd"], lr=[0.01, 0.001], seeds=3, epochs=3)
    assert list(result.summary["test_metric"]) == sorted(result.summary["test_metric"])
    text = result.report(tmp_path / "r.html").read_text()
    assert "mean absolute error" in text
    assert "Time to target" not in text
    assert set(result.figures()) == {"metric_against_lr", "learning_curves"}
    assert isinstance(result.comparisons, pd.DataFrame)
