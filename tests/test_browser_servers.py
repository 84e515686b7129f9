"""In a real JupyterLab every widget and a figure, and the lab alone as `make app` serves it by Voila."""

import json
import re
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browsing import fits
from lab_walk import HOLIDAY, OWN, opened, settled, tile, upload
from labserver import in_the_kernel, jupyterlab, run_all, save_and_shut_down, voila
from nbconvert import HTMLExporter
from test_browser_explorer import READY, ROWS, numbers, said
from tiny_notebooks import write_notebook

from simmim_lite.lab.mask_lab import shipped_network
from simmim_lite.model.masking import hash_masks

CELLS = [
    "from pathlib import Path\nfrom simmim_lite.lab import charts, mask_lab, widgets",
    "lab = mask_lab.MaskLab(scenes=2)\nlab",
    "widgets.Explorer()",
    "widgets.FilmStrip()",
    "charts.slider({k: charts.bars({'a': float(k)}, 'points') for k in (1, 2)}, 'step')",
    "from simmim_lite.course import checks\nguess = checks.guess(None, 'a number', 0, 100)",
    "import simmim_lite as sl\nfrom simmim_lite.lab import live\n"
    "small = {'batch_size': 16, 'images': 64, 'val_images': 8, 'val_masks': 1, 'probe_labels': 0}\n"
    "record = sl.pretrain(sl.Run(steps=600, **small), runs_dir='../runs', callbacks=[watch := live.Watch()])\n"
    "print(record['status'], 'from', watch.curve.first)",
]
#: What the last cell shows.
LAST = "() => document.querySelector('.jp-Notebook .jp-Cell:last-of-type .jp-Cell-outputArea').innerText"
GUESS = """() => { const { content } = window.jupyterapp.shell.currentWidget, k = content.model.cells.length - 2;
  const cell = content.model.cells.get(k).sharedModel; cell.setSource(cell.getSource().replace('None', '80'));
  content.deselectAll(); content.activeCellIndex = k; }"""
ON = "() => { window.jupyterapp.commands.execute('notebook:run-all-below').catch(() => null); }"  # and do not wait
KERNEL = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.{}().then(() => null)"
STATE = "[lab.mask.astype(int).tolist(), lab.ratio, lab.seed, lab.pictures[lab.picture]['name']]"
DRAWN = "document.querySelectorAll('.js-plotly-plot[aria-label]:not(.panel *)').length"
OUTPUTS = "[...document.querySelectorAll('.jp-OutputArea')].map((e) => e.innerText).join()"
FITS = """() => [...document.querySelectorAll('.jp-RenderedPlotly')].every((e) =>
  e.getBoundingClientRect().right <= e.parentElement.getBoundingClientRect().right + 1)"""
pytestmark = pytest.mark.xdist_group("servers")


def test_a_notebook_with_all_widgets(page, tmp_path) -> None:
    write_notebook(tmp_path / "served" / "widgets.ipynb", CELLS)
    with jupyterlab(tmp_path / "served", tmp_path / "scratch") as address:
        (error,) = run_all(page, address, "widgets.ipynb")
        assert error.startswith("UserError: your guess first: write a number") and page.evaluate(LAST) == ""
        page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
        page.wait_for_selector(".sl-lab [data-answered]")
        assert "computed in this page" in page.locator(".sl-lab p[role=status]").first.inner_text()
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
        cells = shipped_network("photos").about["side"] // 8
        mask = hash_masks((cells, cells), 0.61, 0, [0])[0]
        mask[0, 0] ^= True
        expected = [mask.astype(int).tolist(), 0.61, 0, "own"]
        assert json.loads((tmp_path / "state").read_text()) == expected
        theme = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        page.evaluate(theme, "JupyterLab Dark")
        page.wait_for_selector(".sl-explorer.dark")
        step = page.get_by_role("slider", name="step")
        step.press("ArrowLeft")
        page.locator("[aria-label=step][aria-valuetext='1']").wait_for(state="attached")
        page.locator(".js-plotly-plot[aria-label=points]").wait_for()
        page.set_viewport_size({"width": 911, "height": 512})
        page.wait_for_function(FITS)
        page.evaluate(GUESS)
        page.evaluate(ON)
        page.wait_for_function(f"() => /step [1-9]\\d/.test(({LAST})())")
        page.evaluate(KERNEL.format("interrupt"))
        page.wait_for_function(f"() => ({LAST})().includes('run the cell again to go on')")
        reached = int(re.search(r"stopped at step (\d+) of 600", page.evaluate(LAST))[1])
        page.evaluate(ON)
        page.wait_for_function(f"() => ({LAST})().includes('done from {reached}')")
        page.evaluate(KERNEL.format("restart"))
        slider.press("ArrowRight")
        settled(page)  # the weights are here
        page.get_by_label("network", exact=True).first.select_option("photos-normalised")
        page.get_by_text("the kernel does not answer").first.wait_for()
        page.set_viewport_size({"width": 1366, "height": 4000})  # what is far below is not drawn
        save_and_shut_down(page)
        page.goto(f"{address}lab/tree/widgets.ipynb?reset")
        page.wait_for_function(f"{DRAWN} === 5 && !/Loading widget|Error displaying/.test({OUTPUTS})")
        page.goto("about:blank")
    copy, _ = HTMLExporter().from_filename(str(tmp_path / "served" / "widgets.ipynb"))
    (tmp_path / "copy.html").write_text(re.sub(r'<(script|link)[^>]* (src|href)="https:[^>]*>', "", copy))
    page.goto((tmp_path / "copy.html").as_uri())
    page.wait_for_function(f"{DRAWN} === 5")  # of the three widgets, the slider, and the curve


def test_the_app_is_the_lab_and_nothing_else(page, tmp_path) -> None:
    with voila(tmp_path) as address:
        opened(page, address)  # the weights came from the kernel
        assert page.title() == "The mask lab" and page.locator("h1").all_inner_texts() == ["The mask lab"]
        assert page.get_by_text("computed in this page").is_visible()
        assert not page.get_by_text("import MaskLab").count()
        with pytest.raises(HTTPError, match="403"):  # a page elsewhere whose name leads here
            urlopen(Request(address, headers={"Host": "evil.example"}))
        upload(page, "holiday.jpg", HOLIDAY)
        page.wait_for_function(OWN)
        settled(page)
        assert np.abs(tile(page, "answer").mean((0, 1)) - (200, 30, 30)).max() < 60  # of one colour
        fits(page, 400, "dark")
        page.goto("about:blank")
