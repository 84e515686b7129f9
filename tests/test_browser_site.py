"""A small site in headless Chromium, from the disk: live figures, themes, narrow screens, search, and no network."""

import json

import build_site as site
import pytest
from browsing import fits
from tiny_notebooks import write_notebook

from simmim_lite.lab import widgets
from simmim_lite.lab.mask_lab import MaskLab

pytestmark = pytest.mark.xdist_group("site in a browser")  # built once
FIGURES = ".js-plotly-plot .main-svg"
TEXT = (
    "# 04 · Does it show?\n\nOne $L = \\frac{1}{n}$.\n\n| tier | what it does in so many words |\n|---|---|\n| a | b |"
)
LAYOUT = {"height": 300, "title": {"text": "Two points"}}
FIGURE = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 1]}], "layout": LAYOUT, "config": {}}
SHOWN = {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.plotly.v1+json": FIGURE}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The address of a site of one notebook, which was executed elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    path = write_notebook(folder / "04_data_scale.ipynb", ["draw()"] * 2, text=TEXT)
    content = json.loads(path.read_text())
    for cell in content["cells"][-2:]:
        cell |= {"outputs": [SHOWN], "execution_count": 1}
    path.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "execute", lambda *_, **__: {path.stem: path})
        index = site.build(
            folder / "out",
            lambda path: MaskLab(scenes=2, offer=("photos",)).write_html(path, "The mask lab", site.lab_head()),
            work=folder / "work",
            notebooks=[path],
            settings=["packages=model"],
            explorer=widgets.Explorer().static_html(),
        )
    return index.parent.as_uri()


def test_from_the_landing_page_to_a_live_figure(page, root) -> None:
    page.goto(f"{root}/index.html")
    assert page.locator(".bd-article h1").inner_text().startswith("How does masked image modelling scale?")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    page.locator(".bd-article .toctree-wrapper a").first.click()
    page.wait_for_selector(FIGURES)
    assert page.locator(".bd-article h1").inner_text().startswith("04 · Does it show?")
    assert not page.get_by_text("draw()").first.is_visible()
    page.get_by_text("Show the code").nth(1).click()
    assert page.get_by_text("draw()").first.is_visible()
    page.goto(f"{root}/search.html?q=epoch")  # from the disk
    page.wait_for_selector("#search-results li a")
    assert "Glossary" in page.locator("#search-results").inner_text()


def test_lab_and_explorer_are_live_and_follow_the_theme(page, root) -> None:
    def choose(mode: str) -> None:
        page.locator(".theme-switch-button:visible").click()
        page.locator(f".theme-change-button[data-mode={mode}]:visible").click()
        assert page.evaluate("document.documentElement.dataset.theme") == mode

    page.goto(f"{root}/mask_lab.html")
    lab, colours = page.frame_locator(".sl-lab-frame"), set()
    lab.locator("[data-answered]").wait_for()
    page.wait_for_function("document.querySelector('.sl-lab-frame').offsetHeight > 700")  # no scrollbar of its own
    assert not lab.locator("h1").is_visible()
    for mode in ("light", "dark"):
        choose(mode)
        lab.locator(f"html[data-theme={mode}]").wait_for()
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    page.goto(f"{root}/explorer.html")
    page.wait_for_selector(".sl-explorer.dark .main-svg")
    choose("light")
    page.wait_for_selector(".sl-explorer:not(.dark)")
    for name in ("index", "mask_lab", "explorer", "gallery/gallery", "notebooks/04_data_scale"):
        page.goto(f"{root}/{name}.html")
        if name.startswith(("notebooks", "explorer")):
            page.wait_for_selector(".main-svg")
        fits(page)
