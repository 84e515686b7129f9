"""A small site in headless Chromium, from the disk: live figures, themes, narrow screens, search, and no network."""

import json

import build_site as site
import pytest
from browsing import fits
from tiny_notebooks import write_notebook

from simmim_lite.lab import explorer
from simmim_lite.lab.mask_lab import MaskLab
from simmim_lite.studies import report

pytestmark = pytest.mark.xdist_group("site in a browser")  # built once
FIGURES = ".js-plotly-plot .main-svg"
TEXT = (
    "# 04 · Does it show?\n\nOne $L = \\frac{1}{n}$.\n\n| tier | what it does in so many words |\n|---|---|\n| a | b |"
)


def figure_output() -> dict:
    layout = {"height": 300, "title": {"text": "Two points"}}
    content = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 1]}], "layout": layout, "config": {}}
    return {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.plotly.v1+json": content}}


def executed(path, text: str, *outputs: dict):
    """A notebook that was executed elsewhere: a cell an output."""
    content = json.loads(write_notebook(path, ["draw()"] * len(outputs), text=text).read_text())
    for cell, output in zip(content["cells"][-len(outputs) :], outputs, strict=True):
        cell |= {"outputs": [output], "execution_count": 1}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The address of a site of one notebook, which was executed elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    path = executed(folder / "04_data_scale.ipynb", TEXT, figure_output(), figure_output())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "execute", lambda *_, **__: {path.stem: path})
        index = site.build(
            folder / "out",
            lambda path: MaskLab(scenes=2, offer=("photos",)).write_html(path, "The mask lab", site.lab_head()),
            work=folder / "work",
            notebooks=[path],
            settings=["packages=model"],
            explorer=explorer.show().static_html(),
        )
    return index.parent.as_uri()


def test_from_the_landing_page_to_a_live_figure(page, root) -> None:
    page.goto(f"{root}/index.html")
    assert page.locator(".bd-article h1").inner_text().startswith("How does masked image modelling scale?")
    assert page.locator(".sl-findings .badge").count() > 8
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    page.locator(".bd-article .toctree-wrapper a").first.click()
    page.wait_for_selector(FIGURES)
    assert page.locator(".bd-article h1").inner_text().startswith("04 · Does it show?")
    assert page.locator("math mfrac").bounding_box()["height"] > 15
    assert not page.get_by_text("draw()").first.is_visible()
    page.get_by_text("Show the code").nth(1).click()
    assert page.get_by_text("draw()").first.is_visible()


def test_the_theme_can_be_changed_and_the_lab_follows(page, root) -> None:
    page.goto(f"{root}/mask_lab.html")
    lab = page.frame_locator(".sl-lab-frame")
    lab.locator("[data-answered]").wait_for()
    page.wait_for_function("document.querySelector('.sl-lab-frame').offsetHeight > 700")  # no scrollbar of its own
    assert not lab.locator("h1").is_visible()
    colours = set()
    for mode in ("dark", "light"):
        page.locator(".theme-switch-button:visible").click()
        page.locator(f".theme-change-button[data-mode={mode}]:visible").click()
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        lab.locator(f"html[data-theme={mode}]").wait_for()
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_the_explorer_is_live_and_follows_the_theme(page, root) -> None:
    page.goto(f"{root}/explorer.html")
    page.wait_for_selector(".sl-explorer .main-svg")
    page.get_by_text("giant").first.click()
    page.get_by_text("of 63 runs").wait_for()
    page.locator(".theme-switch-button:visible").click()
    page.locator(".theme-change-button[data-mode=dark]:visible").click()
    page.wait_for_selector(".sl-explorer.dark")


def test_a_narrow_screen_does_not_scroll_sideways(page, root) -> None:
    for name in ("index", "mask_lab", "explorer", "gallery/gallery", "notebooks/04_data_scale"):
        page.goto(f"{root}/{name}.html")
        if name.startswith(("notebooks", "explorer")):
            page.wait_for_selector(".main-svg")
        fits(page)


def test_search_works_from_the_disk(page, root) -> None:
    page.goto(f"{root}/search.html?q=epoch")
    page.wait_for_selector("#search-results li a")
    assert "Glossary" in page.locator("#search-results").inner_text()


def test_pages_of_the_report(page, tmp_path) -> None:
    """Figures are live, equations drawn, controls that need a kernel left out, links lead where there is a page."""
    text = "# Does it show?\n\nOne $L = \\frac{1}{n}\\sum_i |x_i|$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\n"
    text += "The [second](second.ipynb#part), the [glossary](../GLOSSARY.md)."
    control = {"output_type": "display_data", "metadata": {}, "data": {report.WIDGET: {"model_id": "none"}}}
    printed = {"output_type": "stream", "name": "stdout", "text": "</script> & <b>"}
    executed(tmp_path / "first.ipynb", text, figure_output(), control, printed)
    executed(tmp_path / "second.ipynb", "# Second", figure_output())
    index = report.write(tmp_path, tmp_path / "report")
    page.goto(index.with_name("first.html").as_uri())
    page.wait_for_selector(FIGURES)
    assert page.title() == "Does it show?"
    assert page.locator("math").count() == 2
    assert page.locator("math mfrac").first.bounding_box()["height"] > 15
    main = page.locator("main").inner_text()
    assert "$" not in main and "</script> & <b>" in main and "control that lives in JupyterLab" in main
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.locator("main a").count() == 1
    page.locator("main a").click()
    page.wait_for_selector(FIGURES)
    assert page.title() == "Second"
    page.locator("nav a", has_text="Report").click()
    page.locator("nav b", has_text="Report").wait_for()
    assert page.locator("nav a").count() == 2
