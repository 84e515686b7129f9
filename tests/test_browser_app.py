"""The lab alone, as `make app` serves it: only the lab is shown, the kernel answers, and nobody else is asked."""

import pytest
from browsing import contrast, fits
from lab_walk import opened, walk
from labserver import voila


@pytest.mark.xdist_group("voila")
def test_the_app_is_the_lab_and_nothing_else(new_page, tmp_path) -> None:
    with voila(tmp_path) as address:
        page = opened(new_page(color_scheme="light"), address)  # a reconstruction came from the kernel
        assert page.title() == "The mask lab"
        assert page.locator("h1").all_inner_texts() == ["The mask lab"]
        assert page.get_by_text("answered in the kernel").is_visible()
        assert not page.get_by_text("import MaskLab").count()
        assert contrast(page, "light") > 0
        walk(page)
        fits(page)
        assert contrast(page, "dark") > 0
        page.goto("about:blank")
