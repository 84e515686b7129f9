"""In a real JupyterLab every widget and a figure, and the lab alone as `make app` serves it by Voila."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browsing import fits
from lab_walk import HOLIDAY, OWN, opened, settled, tile, upload
from labserver import in_the_kernel, jupyterlab, run_all, voila
from test_browser_explorer import READY, ROWS, numbers, said
from tiny_notebooks import write_notebook

from simmim_lite.model.masking import hash_masks

CELLS = [
    "from pathlib import Path\nfrom simmim_lite.lab import charts, explorer, mask_lab, widgets",
    "lab = mask_lab.MaskLab(scenes=2)\nlab",
    "explorer.Explorer()",
    "widgets.FilmStrip()",
    "charts.bars({'a': 1.0}, 'figure')",
]
STATE = "[lab.mask.astype(int).tolist(), lab.ratio, lab.seed, lab.pictures[lab.picture]['name']]"
pytestmark = pytest.mark.xdist_group("servers")


def test_a_notebook_with_all_widgets(page, tmp_path) -> None:
    write_notebook(tmp_path / "served" / "widgets.ipynb", CELLS)
    with jupyterlab(tmp_path / "served", tmp_path / "scratch") as address:
        assert not run_all(page, address, "widgets.ipynb")
        page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
        page.wait_for_selector(".sl-lab [data-answered]")
        assert "answered in the kernel" in page.locator(".sl-lab p[role=status]").first.inner_text()
        slider = page.get_by_label("mask ratio", exact=True).first
        slider.press("ArrowRight")  # JupyterLab would go to another cell
        assert slider.input_value() == "0.61"
        page.locator(".sl-lab .sl-main").first.press("Space")
        upload(page, "h.jpg", HOLIDAY)
        page.wait_for_function(OWN)
        settled(page)
        page.wait_for_selector(READY)
        page.locator(".chip input[value=imagenet22k]").check()
        assert said(page) == numbers([row for row in ROWS if row["dataset"] == "imagenet22k"])
        in_the_kernel(page, f"import json; Path({str(tmp_path / 'state')!r}).write_text(json.dumps({STATE}))")
        mask = hash_masks((4, 4), 0.61, 0, [0])[0]
        mask[0, 0] ^= True
        expected = [mask.astype(int).tolist(), 0.61, 0, "own"]
        assert json.loads((tmp_path / "state").read_text()) == expected
        theme = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        page.evaluate(theme, "JupyterLab Dark")
        page.wait_for_selector(".sl-explorer.dark")
        page.goto("about:blank")


def test_the_app_is_the_lab_and_nothing_else(page, tmp_path) -> None:
    with voila(tmp_path) as address:
        opened(page, address)  # a reconstruction came from the kernel
        assert page.title() == "The mask lab" and page.locator("h1").all_inner_texts() == ["The mask lab"]
        assert page.get_by_text("answered in the kernel").is_visible()
        assert not page.get_by_text("import MaskLab").count()
        with pytest.raises(HTTPError, match="403"):  # a page elsewhere whose name leads here
            urlopen(Request(address, headers={"Host": "evil.example"}))
        upload(page, "holiday.jpg", HOLIDAY)
        page.wait_for_function(OWN)
        settled(page)
        assert np.abs(tile(page, "answer").mean((0, 1)) - (200, 30, 30)).max() < 60  # of one colour
        fits(page, 400, "dark")
        page.goto("about:blank")
