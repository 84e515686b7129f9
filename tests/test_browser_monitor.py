"""The monitor in JupyterLab: a run that trains elsewhere is seen, and is there again after the page was closed."""

from dataclasses import replace

import pytest
from browsing import asked_only_here
from labserver import open_notebook, run_all, shut_down
from teams import context
from test_journal import RUN, endless
from tiny_notebooks import write_notebook

from simmim_lite.training.journal import journal_path, read_journal


@pytest.mark.slow
def test_a_run_is_seen_while_it_trains_and_again_after_the_page_was_closed(new_page, lab, tmp_path) -> None:
    run = replace(RUN, steps=100_000)
    cells = [
        f"from simmim_lite.lab.monitor import monitor\nmonitor({str(tmp_path)!r}, seconds=0.5)",
        "print('the kernel is free')",
    ]
    write_notebook(lab.served / "monitor.ipynb", cells)
    process = context.Process(target=endless, args=(run, tmp_path))
    process.start()
    try:
        page = new_page()
        open_notebook(page, lab, "monitor.ipynb")
        assert not run_all(page)
        page.get_by_text("the kernel is free", exact=True).wait_for()
        page.get_by_text("1 run: 1 running").wait_for()  # drawn by itself: it began after the cell was run
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
        before = read_journal(journal_path(tmp_path, run.key)).step
        page.screenshot(path=tmp_path / "live.png")
        page.close()
        page = new_page()
        open_notebook(page, lab, "monitor.ipynb")
        assert not run_all(page)
        page.get_by_text("1 run: 1 running").wait_for()
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
        assert read_journal(journal_path(tmp_path, run.key)).step > before
        process.kill()
        process.join()
        page.get_by_text("1 run: 1 stopped").wait_for()
        page.screenshot(path=tmp_path / "stopped.png")
        shut_down(page)
        assert asked_only_here(page) and not page.problems
    finally:
        process.kill()
        process.join()
