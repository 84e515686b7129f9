"""In a real JupyterLab: every widget and a figure in one notebook; keys stay in the widgets, and the kernel hears."""

import json

import pytest
from lab_walk import HOLIDAY, OWN, settled, upload
from labserver import in_the_kernel, jupyterlab, run_all
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


@pytest.mark.xdist_group("servers")
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
