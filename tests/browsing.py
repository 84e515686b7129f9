"""What the browser tests share: one Chromium a worker, pages that ask nobody but this machine."""

import re
from urllib.parse import urlparse

import pytest
from headless import chromium


@pytest.fixture(scope="session")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, str]:
    """The address of a page of each widget."""
    from test_explorer import page as explorer_page

    from simmim_lite.lab.mask_lab import MaskLab
    from simmim_lite.lab.widgets import FilmStrip

    folder = tmp_path_factory.mktemp("pages")
    widgets = {
        "lab": MaskLab(scenes=4),
        "windows": MaskLab(network="", tab="windows", scenes=1, offer=("photos",)),
        "film": FilmStrip(),
    }
    made = {name: widget.write_html(folder / f"{name}.html", name) for name, widget in widgets.items()}
    return {name: path.as_uri() for name, path in (made | {"explorer": explorer_page(folder / "e.html")}).items()}


@pytest.fixture
def new_page(browser):
    """new_page(width=1280, height=900, **context options): a page, of which nothing is asked and no script fails."""
    contexts, asked, problems = [], [], []

    def make(width: int = 1280, height: int = 900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(90_000)  # only what hangs takes as long
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(urlparse(request.url)))
        page.on("pageerror", lambda error: problems.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert {url.scheme for url in asked} <= {"data", "blob", "file", "http", "ws"}
    assert {url.hostname for url in asked if url.scheme in ("http", "ws")} <= {"127.0.0.1"}
    # JupyterLab's own, where a kernel is restarted or shut down before it has answered
    assert [problem for problem in problems if "Canceled future" not in problem] == []


@pytest.fixture
def page(new_page):
    return new_page()


def fits(page, width: int = 400, scheme: str = "dark") -> None:
    """On a phone with a theme and no motion wanted, the page does not scroll sideways."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_function("w => document.documentElement.scrollWidth <= w", arg=width)


def contrast(page, scheme: str) -> float:
    """How far the lab's ink is from its paper, 0 to 255, darker in the light scheme and lighter in the dark one."""
    shown = page.evaluate(
        "() => { const s = getComputedStyle(document.querySelector('.sl-lab, .sl-explorer'));"
        " return [s.color, s.backgroundColor]; }"
    )
    ink, paper = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3 for colour in shown)
    return paper - ink if scheme == "light" else ink - paper
