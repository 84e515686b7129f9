"""Notebooks in a real JupyterLab, and pages of the report, in headless Chromium: live figures, and no network."""

import pytest
from browsing import asked_only_here
from labserver import open_notebook, run_all, shut_down
from tiny_notebooks import write_notebook

from simmim_lite.studies import notebooks, report

FIGURES = ".js-plotly-plot .main-svg"
FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(x=[1, 2, 3], y=[3, 1, 2]))"


@pytest.mark.parametrize("name", ["00_start", "04_data_scale"])
def test_a_notebook_runs_in_jupyterlab(name: str, page, lab, tmp_path) -> None:
    open_notebook(page, lab, f"{name}.ipynb")
    error = run_all(page)
    page.screenshot(path=tmp_path / f"{name}.png")
    assert not error
    page.wait_for_selector(FIGURES, state="attached")
    shut_down(page)
    assert asked_only_here(page)


def test_pages_of_the_report_ask_the_network_for_nothing(page, tmp_path) -> None:
    """Figures are live, equations drawn, controls that need a kernel left out, links lead where there is a page."""
    text = (
        "# Does it show?\n\nOne $L = \\frac{1}{n}\\sum_i |x_i|$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\n"
        "The [second](second.ipynb#part), the [glossary](../GLOSSARY.md)."
    )
    knob = "from ipywidgets import interact\ninteract(lambda k: None, k=(0, 3));"
    planned = [
        write_notebook(tmp_path / "first.ipynb", [FIGURE, knob, "print('</script> & <b>')"], text=text),
        write_notebook(tmp_path / "second.ipynb", [FIGURE], text="# Second"),
    ]
    executed = notebooks.run(planned, {}, tmp_path / "executed")
    assert sorted(executed) == ["first", "second"]
    index = report.write(tmp_path / "executed", tmp_path / "report")
    page.goto(index.with_name("first.html").as_uri())
    page.wait_for_selector(FIGURES)
    assert page.title() == "Does it show?"
    assert page.locator("math").count() == 2
    assert page.locator("math mfrac").first.bounding_box()["height"] > 15
    assert "$" not in page.locator("main").inner_text()
    assert "</script> & <b>" in page.locator("main").inner_text()
    assert "control that lives in JupyterLab" in page.locator("main").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.screenshot(path=tmp_path / "first.png", full_page=True)
    assert page.locator("main a").count() == 1
    page.locator("main a").click()
    page.wait_for_selector(FIGURES)
    assert page.title() == "Second"
    page.locator("nav a", has_text="Report").click()
    assert page.locator("nav a").count() == 2
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data", "blob"}
    assert not page.problems
