"""What the browser tests share: one Chromium and one JupyterLab a worker, and pages that note what they ask for."""

from urllib.parse import urlparse

import pytest
from headless import chromium
from labserver import jupyterlab

from simmim_lite.studies import notebooks


@pytest.fixture(scope="session")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab on copies of the notebooks, with tier smoke for quick (a browser may save what it opens)."""
    served, scratch, working = (tmp_path_factory.mktemp(name) for name in ("notebooks", "lab", "working"))
    for path in notebooks.folder().glob("*.ipynb"):
        (served / path.name).write_text(
            path.read_text("utf-8").replace('tier = \\"quick\\"', 'tier = \\"smoke\\"'), "utf-8"
        )
    with jupyterlab(served, scratch, working) as server:
        yield server


@pytest.fixture
def new_page(browser):
    """new_page(width=1280, height=900, **context options): a page with `asked` (URLs) and `problems` (errors)."""
    contexts = []

    def make(width: int = 1280, height: int = 900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(300_000)  # only what hangs takes as long
        contexts.append(context)
        page = context.new_page()
        page.asked, page.problems = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page):
    return new_page()


def asked_only_here(page) -> bool:
    """Whether the page asked nobody but this machine."""
    schemes = {url.split(":")[0] for url in page.asked} - {"data", "blob", "file"}
    return schemes <= {"http", "ws"} and {urlparse(u).hostname for u in page.asked if u[:4] in ("http", "ws:/")} <= {
        "127.0.0.1"
    }
