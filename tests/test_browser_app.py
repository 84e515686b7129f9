"""The lab alone, as `make app` serves it: only the lab is shown, the kernel answers, and nobody else is asked."""

import numpy as np
import pytest
from browsing import fits
from lab_walk import HOLIDAY, OWN, opened, settled, tile, upload
from labserver import voila


@pytest.mark.xdist_group("servers")
def test_the_app_is_the_lab_and_nothing_else(page, tmp_path) -> None:
    with voila(tmp_path) as address:
        opened(page, address)  # a reconstruction came from the kernel
        assert page.title() == "The mask lab" and page.locator("h1").all_inner_texts() == ["The mask lab"]
        assert page.get_by_text("answered in the kernel").is_visible()
        assert not page.get_by_text("import MaskLab").count()
        upload(page, "holiday.jpg", HOLIDAY)
        page.wait_for_function(OWN)
        settled(page)
        assert np.abs(tile(page, "answer").mean((0, 1)) - (200, 30, 30)).max() < 60  # of one colour
        fits(page, 400, "dark")
        page.goto("about:blank")
