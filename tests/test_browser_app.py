"""The lab alone, as `make app` serves it: only the lab is shown, the kernel answers, and nobody else is asked."""

import pytest
from browsing import contrast, fits
from lab_walk import walk
from labserver import voila


@pytest.mark.xdist_group("voila")
def test_the_app_is_the_lab_and_nothing_else(new_page, tmp_path) -> None:
    with voila(tmp_path) as address:
        page = new_page(color_scheme="light")
        page.goto(address)
        page.wait_for_selector("[data-answered]")  # a reconstruction came from the kernel
        assert page.title() == "The mask lab"
        assert page.locator("h1").all_inner_texts() == ["The mask lab"]
        assert page.get_by_text("answered in the kernel").is_visible()
        assert not page.get_by_text("import MaskLab").count()
        ink, paper = contrast(page)
        assert ink < paper
        walk(page)
        fits(page)
        ink, paper = contrast(page)
        assert ink > paper
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
        page.goto("about:blank")
