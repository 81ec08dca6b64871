import pytest

from thalweg.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capsys):
    """Run the command; exit code, standard output, standard error."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, error = capsys.readouterr()
        return end.value.code, out, error

    return command


@pytest.fixture
def opened(chromium):
    """Open a page; it, and what it complained of."""
    pages = []

    def open_(path, width=1280):
        page = chromium.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        trouble = []
        page.on("console", lambda m: trouble.append(m.text))
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r),
        )
        page.goto(path.as_uri())
        page.wait_for_selector(".plotly .trace", state="attached")
        return page, trouble

    yield open_
    for page in pages:
        page.close()
