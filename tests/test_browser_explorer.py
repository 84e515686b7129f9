"""The explorer in headless Chromium: filters, linked views and numbers; no network."""

import numpy as np
import pytest

from simmim_lite.evidence import published
from simmim_lite.evidence.proxy import doublings
from simmim_lite.lab import widgets

READY = ".sl-explorer[data-drawn]"
VIEWS = ("proxy", "length", "data", "size", "omega-loss", "omega-score")
# where a run's mark is on the page: in the trace before the last, which holds the rings
PLACE = """([view, run]) => {
  const div = document.querySelector(`[data-view="${view}"]`), trace = div._fullData.at(-2);
  const k = trace.customdata.indexOf(run), { xaxis, yaxis, _size } = div._fullLayout, box = div.getBoundingClientRect();
  return [box.x + _size.l + xaxis.d2p(trace.x[k]), box.y + _size.t + yaxis.d2p(trace.y[k])];
}"""
RINGS = """() => Object.fromEntries([...document.querySelectorAll("[data-view]")].map(
  (div) => [div.dataset.view, div._fullData.at(-1).x.length]))"""
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
ROWS = published.rows()


@pytest.fixture
def shown(new_page, pages):
    page = new_page(1280, 1800)
    page.goto(pages["explorer"])
    page.wait_for_selector(READY)
    return page


def numbers(rows: list[dict]) -> tuple[str, str]:
    """What the explorer must say of rows: its first two sentences, computed here."""
    x, y = (np.array([row[name] for row in rows]) for name in ("val_loss", "finetune"))
    varied = len(rows) > 2 and np.ptp(x) and np.ptp(y)
    r = f"Pearson r = {np.corrcoef(x, y)[0, 1]:.3f}".replace("-", "−") if varied else "too few for a correlation"
    of = " of validation loss and accuracy" if len(rows) > 2 else ""
    first = f"{len(rows)} of 63 runs, {r}{of}; {sum(row['overfit'] for row in rows)} overfit."
    found, said = doublings(rows, "finetune"), []
    for some in (found[found["loss_change"] <= 0], found[found["loss_change"] > 0]):
        rose, fell = (some["score_change"] > 0).sum(), (some["score_change"] < 0).sum()
        said.append(f"{len(some)} (accuracy rose in {rose}, fell in {fell})" if len(some) else "0")
    s = "" if len(found) == 1 else "s"
    second = f"{len(found)} doubling{s} of the length: the loss fell in {said[0]} and rose in {said[1]}."
    return first, second if len(found) else "No run beside one that is half as long."


def said(page) -> tuple[str, str]:
    return tuple(page.locator(".says p").all_inner_texts()[:2])


def test_every_filter_leaves_the_numbers_that_python_has(shown) -> None:
    assert said(shown) == numbers(ROWS)
    choices = [(f["field"], o["value"]) for f in widgets.explorer_data()["facets"] for o in f["options"]]
    heard = shown.locator(".chip input[type=checkbox]").evaluate_all(ONE_BY_ONE)
    for each, (field, value) in zip(heard, choices, strict=True):
        assert tuple(each) == numbers([row for row in ROWS if row[field] == value])
    for name in ("swinv2_large", "imagenet1k-10", "imagenet1k-50"):
        shown.locator(f".chip input[value={name}]").check()
    left = [r for r in ROWS if r["model"] == "swinv2_large" and r["dataset"] in ("imagenet1k-10", "imagenet1k-50")]
    assert said(shown) == numbers(left) and len(shown.evaluate(STRONG)["proxy"]) == len(left)


def test_a_run_is_highlighted_in_every_view(shown) -> None:
    chosen = ("swinv2_huge", "imagenet1k-20", 500000)
    run = next(k for k, r in enumerate(ROWS) if (r["model"], r["dataset"], r["steps"]) == chosen)
    shown.mouse.move(*shown.evaluate(PLACE, ["proxy", run]))
    shown.wait_for_selector(".hoverlayer .hovertext")
    assert "500,000 steps" in shown.locator(".hovertext").first.text_content()
    assert shown.evaluate(RINGS) | dict.fromkeys(VIEWS, 1) == shown.evaluate(RINGS)
    shown.mouse.click(*shown.evaluate(PLACE, ["proxy", run]))
    assert {view: runs for view, runs in shown.evaluate(STRONG).items() if view in VIEWS} == dict.fromkeys(VIEWS, [run])
    assert shown.locator("tbody td").first.inner_text() == "huge, ImageNet-1K (20 %), 500,000 steps"
    shown.mouse.move(*shown.evaluate(PLACE, ["omega-loss", run]))  # a doubling: the shorter run as well
    shown.wait_for_function("() => document.querySelector('[data-view=length]')._fullData.at(-1).x.length === 2")
    shown.mouse.move(5, 5)
    shown.wait_for_function("() => document.querySelector('[data-view=length]')._fullData.at(-1).x.length === 0")
