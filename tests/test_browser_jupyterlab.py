"""In a real JupyterLab: a notebook of the course, every widget in one kernel, and a run that trains elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
from lab_walk import HOLIDAY, OWN, settled, upload
from labserver import in_the_kernel, open_notebook, run_all, shut_down
from ranks import context
from test_browser_explorer import READY, ROWS, numbers, said
from test_journal import RUN, endless
from tiny_notebooks import write_notebook

from simmim_lite.model.masking import hash_masks
from simmim_lite.training.callbacks import journal_path, read_journal

WIDGETS = [
    "from pathlib import Path\nfrom simmim_lite.lab import explorer, mask_lab, widgets",
    "lab = mask_lab.MaskLab(scenes=2)\nlab",
    "runs = explorer.show()\nruns",
    "view = widgets.WindowView(geometry='32-4')\nview",
    "widgets.FilmStrip()",
]
STATE = "[lab.mask.astype(int).tolist(), lab.ratio, lab.seed, lab.pictures[lab.picture]['name'], "
STATE += "len(runs.chosen()), view.geometry, view.seed, view.mask_patch]"


def test_a_notebook_of_the_course(page, lab_server) -> None:
    open_notebook(page, lab_server, "01_masks.ipynb")
    assert not run_all(page)
    page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
    shut_down(page)


def test_keys_stay_in_the_widgets_and_the_kernel_hears(page, lab_server, tmp_path) -> None:
    path = write_notebook(lab_server.served / "widgets.ipynb", WIDGETS)
    open_notebook(page, lab_server, path.name)
    assert not run_all(page)
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

    windows = page.locator(".sl-lab", has=page.locator(".sl-windows"))
    for _ in range(2):
        windows.get_by_role("slider", name="Seed").press("ArrowRight")
    in_the_kernel(page, f"import json; Path({str(tmp_path / 'state')!r}).write_text(json.dumps({STATE}))")
    mask = hash_masks((4, 4), 0.61, 0, [0])[0]
    mask[0, 0] ^= True
    assert json.loads((tmp_path / "state").read_text()) == [mask.astype(int).tolist(), 0.61, 0, "own", 12, "32-4", 2, 8]
    theme = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
    page.evaluate(theme, "JupyterLab Dark")
    page.wait_for_selector(".sl-explorer.dark")
    page.evaluate(theme, "JupyterLab Light")
    shut_down(page)


@pytest.mark.slow
def test_a_run_is_seen_while_it_trains_and_again_after_the_page_was_closed(new_page, lab_server, tmp_path) -> None:
    run = replace(RUN, steps=100_000)
    watch = f"from simmim_lite.lab.monitor import monitor\nmonitor({str(tmp_path)!r}, seconds=0.5)"
    write_notebook(lab_server.served / "monitor.ipynb", [watch, "print('the kernel is free')"])
    process, steps = context.Process(target=endless, args=(run, tmp_path)), []
    process.start()
    try:
        for _ in range(2):
            page = new_page()
            open_notebook(page, lab_server, "monitor.ipynb")
            assert not run_all(page)
            page.get_by_text("the kernel is free", exact=True).wait_for()
            page.get_by_text("1 run: 1 running").wait_for()  # drawn by itself: it began after the cell was run
            page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
            steps.append(read_journal(journal_path(tmp_path, run.key)).step)
            if len(steps) == 1:
                page.close()
        assert np.diff(steps) > 0
        process.kill()
        process.join()
        page.get_by_text("1 run: 1 stopped").wait_for()
        shut_down(page)
    finally:
        process.kill()
        process.join()
