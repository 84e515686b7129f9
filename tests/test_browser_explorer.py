"""The explorer in headless Chromium: filters, linked views and numbers, as a page and in JupyterLab; no network."""

import nbformat
import numpy as np
import pytest
from browsing import fits
from test_explorer import own_rows
from tiny_notebooks import write_notebook

from simmim_lite.evidence import published
from simmim_lite.evidence.proxy import doublings
from simmim_lite.lab import explorer
from simmim_lite.studies import report

READY = ".sl-explorer[data-drawn]"
VIEWS = ("proxy", "length", "data", "size", "omega-loss", "omega-score")
# where a run's mark is on the page: in the trace before the last, which holds the rings
PLACE = """([view, run]) => {
  const div = document.querySelector(`[data-view="${view}"]`), trace = div._fullData.at(-2);
  const k = trace.customdata.indexOf(run), { xaxis, yaxis, _size } = div._fullLayout, box = div.getBoundingClientRect();
  return [box.x + _size.l + xaxis.d2p(trace.x[k]), box.y + _size.t + yaxis.d2p(trace.y[k])];
}"""
RINGS = """() => Object.fromEntries([...document.querySelectorAll("[data-view]")].map(
  (div) => [div.dataset.view, div._fullData.at(-1).x.map((x, k) => [x, div._fullData.at(-1).y[k]])]))"""
# the runs that are drawn at full strength
STRONG = """async () => {
  await new Promise(requestAnimationFrame); // pictures follow numbers in the next frame
  return Object.fromEntries([...document.querySelectorAll("[data-view]")].map((div) => {
    const { customdata, marker } = div._fullData.at(-2);
    return [div.dataset.view, customdata.filter((_, k) => [marker.opacity].flat().at(k) === 1)];
  }));
}"""


ONE_BY_ONE = """boxes => boxes.map((box) => {
  box.click();
  const said = [...document.querySelectorAll(".says p")].slice(0, 2).map((p) => p.innerText);
  box.click();
  return said;
})"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    explorer.write_html(folder / "own.html", own_rows(), beside=True)
    return explorer.write_html(folder / "explorer.html", beside=True)


def show(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector(READY)
    return page


def numbers(rows: list[dict]) -> tuple[str, str]:
    """What the explorer must say of rows: its first two sentences, computed here."""
    x, y = (np.array([row[name] for row in rows]) for name in ("val_loss", "finetune"))
    varied = len(rows) > 2 and np.ptp(x) and np.ptp(y)
    r = f"Pearson r = {np.corrcoef(x, y)[0, 1]:.3f}".replace("-", "−") if varied else "too few for a correlation"
    of = " of validation loss and accuracy" if len(rows) > 2 else ""
    first = f"{len(rows)} of 63 runs, {r}{of}; {sum(row['overfit'] for row in rows)} overfit."
    found = doublings(rows, "finetune").to_dict("records")
    said = []
    for some in ([d for d in found if d["loss_change"] <= 0], [d for d in found if d["loss_change"] > 0]):
        signs = [np.sign(d["score_change"]) for d in some]
        rose, fell = signs.count(1), signs.count(-1)
        said.append(f"{len(some)} (accuracy rose in {rose}, fell in {fell})" if some else "0")
    s = "" if len(found) == 1 else "s"
    second = f"{len(found)} doubling{s} of the length: the loss fell in {said[0]} and rose in {said[1]}."
    return first, second if found else "No run beside one that is half as long."


def said(page) -> tuple[str, str]:
    return tuple(page.locator(".says p").all_inner_texts()[:2])


def test_every_filter_leaves_the_numbers_that_python_has(page, written) -> None:
    show(page, written)
    rows = published.rows()
    assert said(page) == numbers(rows)
    choices = [(f["field"], o["value"]) for f in explorer.data()["facets"] for o in f["options"]]
    heard = page.locator(".chip input[type=checkbox]").evaluate_all(ONE_BY_ONE)
    assert [tuple(each) for each in heard] == [
        numbers([row for row in rows if row[field] == value]) for field, value in choices
    ]
    assert said(page) == numbers(rows)
    for name in ("swinv2_large", "imagenet1k-10", "imagenet1k-50"):
        page.locator(f".chip input[value={name}]").check()
    left = [r for r in rows if r["model"] == "swinv2_large" and r["dataset"] in ("imagenet1k-10", "imagenet1k-50")]
    assert said(page) == numbers(left)
    assert len(page.evaluate(STRONG)["proxy"]) == len(left) == 6
    page.locator(".chip input[value=imagenet22k]").check()
    page.locator(".chip input[value=imagenet1k-10]").uncheck()
    page.locator(".chip input[value=imagenet1k-50]").uncheck()
    page.locator(".chip input[value=swinv2_large]").uncheck()
    page.locator(".chip input[value=swinv2_small]").check()  # small was never trained on it
    assert said(page) == numbers([])
    page.get_by_role("button", name="Show all runs").click()
    assert said(page) == numbers(rows)


def test_it_can_be_used_by_keyboard(page, written) -> None:
    show(page, written)
    rows = published.rows()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate("() => [document.activeElement.value ?? '', document.activeElement.tagName]")
        if at[1] == "BODY":
            break
        reached.append(at)
        if at[0] == "imagenet1k-10":
            chip = page.locator(".chip", has=page.locator("input:focus"))
            assert chip.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
            page.keyboard.press("Space")
            assert said(page) == numbers([row for row in rows if row["dataset"] == "imagenet1k-10"])
            page.keyboard.press("Space")
        if at[1] == "SELECT":
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
            assert page.evaluate(STRONG)["length"] == [1]
            assert page.locator("tbody tr").count() == 1
    boxes = page.locator(".sl-explorer input[type=checkbox]").count()
    assert [tag for _, tag in reached].count("INPUT") == boxes + 1  # of the radio buttons, one
    names = page.locator(".sl-explorer :is(input, select, button)").evaluate_all(
        "nodes => nodes.map(node => node.labels[0]?.innerText || node.innerText)"
    )
    assert all(names)
    page.locator(".sl-explorer select").focus()
    page.keyboard.press("Escape")
    assert page.locator("table").is_hidden()


def test_a_run_is_highlighted_in_every_view(page, written) -> None:
    page.set_viewport_size({"width": 1280, "height": 1800})
    show(page, written)
    rows = published.rows()
    (run,) = [
        k
        for k, r in enumerate(rows)
        if (r["model"], r["dataset"], r["steps"]) == ("swinv2_huge", "imagenet1k-20", 500000)
    ]
    row = rows[run]
    page.mouse.move(*page.evaluate(PLACE, ["proxy", run]))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "500,000 steps" in page.locator(".hovertext").first.text_content()
    rings = page.evaluate(RINGS)
    assert all(len(rings[view]) == 1 for view in VIEWS)
    assert rings["length"] == [[row["images_seen"], pytest.approx(100 * row["finetune"])]]
    assert rings["data"][0][0] == row["images"] and rings["size"][0][0] == row["params"]
    page.mouse.click(*page.evaluate(PLACE, ["proxy", run]))
    assert page.evaluate(STRONG) == dict.fromkeys(VIEWS, [run])
    assert page.locator("tbody td").first.inner_text() == "huge, ImageNet-1K (20 %), 500,000 steps"
    page.mouse.move(*page.evaluate(PLACE, ["omega-loss", run]))  # a doubling: the shorter run as well
    page.wait_for_function("() => document.querySelector('[data-view=length]')._fullData.at(-1).x.length === 2")
    page.mouse.move(5, 5)
    page.wait_for_function("() => document.querySelector('[data-view=length]')._fullData.at(-1).x.length === 0")
    # a box from above the zero line to the far corner: the doublings that raised the loss
    box = page.locator("[data-view=omega-loss] .nsewdrag").bounding_box()
    zero = page.locator("[data-view=omega-loss]").evaluate("div => div._fullLayout.yaxis.d2p(0)")
    page.mouse.move(box["x"] + 2, box["y"] + zero - 1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2, steps=4)
    page.mouse.up()
    rose = {(d.model, d.images, d.steps) for d in doublings(rows, "finetune").itertuples() if d.loss_change > 0}
    expected = [k for k, r in enumerate(rows) if (r["model"], r["images"], r["steps"]) in rose]
    page.wait_for_function(
        "n => document.querySelector('.says').innerText.includes(`Selected: ${n} runs`)", arg=len(expected)
    )
    assert all(page.evaluate(STRONG)[view] == expected for view in ("proxy", "length", "data", "size"))


def test_it_fits_a_phone_at_night(page, written) -> None:
    fits(show(page, written.with_name("own.html")))
    assert page.locator(".sl-explorer.dark .plot-here svg.main-svg").count() >= 8
    assert page.locator(".chip").first.evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
    assert "Your runs: 4 runs (scenes), 2 doublings" in page.locator(".small").first.inner_text()
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(".sl-explorer:not(.dark)")


def test_it_is_live_on_the_pages_of_a_report(page, tmp_path) -> None:
    """Beside the view of a widget without a kernel, and alone, as in a copy that nobody watched."""
    notebook = nbformat.read(write_notebook(tmp_path / "x.ipynb", ["explorer.show()"] * 2), as_version=4)
    for cell, more in zip(notebook.cells[-2:], ({}, {report.WIDGET: {"model_id": "none"}}), strict=True):
        shown = {"text/html": explorer.show().static_html()} | more
        cell.outputs = [nbformat.v4.new_output("execute_result", shown, execution_count=1)]
    nbformat.write(notebook, tmp_path / "x.ipynb")
    show(page, report.write(tmp_path, tmp_path / "report").with_name("x.html"))
    page.wait_for_function("() => document.querySelectorAll('.sl-explorer[data-drawn]').length === 2")
    page.locator(".chip input[value=swinv2_base]").nth(1).check()
    texts = page.locator(".says").evaluate_all("all => all.map(one => one.querySelector('p').innerText)")
    base = [row for row in published.rows() if row["model"] == "swinv2_base"]
    assert texts == [numbers(published.rows())[0], numbers(base)[0]]
