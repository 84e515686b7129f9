"""What all widgets share, in Chromium: names, keys of their own, focus by Tab, two themes, a phone; and play."""

import pytest
from browsing import contrast, fits

DRAWN = {"lab": "[data-answered]", "windows": "canvas", "film": "canvas", "explorer": ".sl-explorer[data-drawn]"}
CONTROLS = ":is(button, select, input)"
NAMED = """all => all.map(e => [e.dataset.lmSuppressShortcuts,
  (e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent).trim()])"""
FOCUS = """() => { const e = document.activeElement, seen = e.closest('.sl-upload, .chip') || e;
  return [e.outerHTML, getComputedStyle(seen).outlineStyle]; }"""


@pytest.mark.parametrize("name", DRAWN)
def test_controls_are_named_and_reached_and_pages_fit(name: str, page, pages) -> None:
    """JupyterLab leaves them their keys (data-lm-suppress-shortcuts); nothing sticks out at 400 px."""
    page.goto(pages[name])
    page.locator(DRAWN[name]).first.wait_for()
    for keys, text in page.locator(CONTROLS).evaluate_all(NAMED):
        assert keys == "true" and text
    wanted, reached = page.locator(f"{CONTROLS}:not([type=radio]):visible:enabled").count(), set()
    for _ in range(wanted + 8):
        page.keyboard.press("Tab")
        at, ring = page.evaluate(FOCUS)
        reached.add(at)
        assert ring != "none" or at.startswith("<body")
    assert len(reached) >= wanted
    for scheme in ("light", "dark"):
        fits(page, 400, scheme)
        for tab in page.get_by_role("tab").all():
            tab.click()
            fits(page, 400, scheme)
        assert contrast(page, scheme) > 133


def test_play_runs_and_stops_and_is_gone_where_motion_is_unwanted(page, pages) -> None:
    page.goto(pages["film"])
    play, title = page.locator("[data-act=play]").first, page.locator(".sl-panel h3").first
    before = title.inner_text()
    play.click()
    page.wait_for_function("t => document.querySelector('.sl-panel h3').innerText !== t", arg=before)
    play.click()
    assert play.inner_text() == "Play"
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.locator("canvas").first.wait_for()
    assert play.is_hidden()
