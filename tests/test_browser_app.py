"""The lab alone, as `make app` serves it: only the lab is shown, the kernel answers, and nobody else is asked."""

import pytest
from browsing import asked_only_here
from lab_walk import walk
from labserver import voila as serve


@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("voila")) as address:
        yield address


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (400, "dark")])
def test_the_app_is_the_lab_and_nothing_else(width: int, scheme: str, voila, new_page, tmp_path) -> None:
    page = new_page(width, 900, color_scheme=scheme)
    page.goto(voila)
    page.wait_for_selector(".sl-lab canvas")
    page.wait_for_selector("[data-answered]")  # a reconstruction came from the kernel
    page.screenshot(path=tmp_path / "app.png")
    assert page.title() == "The mask lab"
    assert page.locator("h1").all_inner_texts() == ["The mask lab"]
    assert page.get_by_text("answered in the kernel").is_visible()
    assert not page.get_by_text("import MaskLab").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
    assert dark == (scheme == "dark")
    assert asked_only_here(page)
    assert not page.problems


def test_a_walk_through_the_app(voila, page) -> None:
    page.goto(voila)
    page.wait_for_selector("[data-answered]")
    walk(page)
    assert asked_only_here(page) and not page.problems
