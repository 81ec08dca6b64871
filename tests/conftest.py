import gc
import shutil

import pytest


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """Spare the collector all that is there to stay, modules and 10,000 tests.

    It would take half a second, and in the end more, each time that the search for a batch, say,
    collects what a trial left behind.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def small_result():
    """A real study, small enough to be run once for many tests: two optimizers, some divergence."""
    import thalweg

    return thalweg.study(
        "digits", ["sgd", "adam"], lr={"sgd": [0.03, 0.3, 1e30], "adam": [3e-4, 3e-3]}, seeds=3,
        epochs=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def chromium():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no Chromium here to open the report in")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()
