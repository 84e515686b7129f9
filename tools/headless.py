"""The mask lab in a headless Chromium: how fast it answers, and its picture. Needs playwright and a browser.

python tools/headless.py bench               # the last part of `make bench`
python tools/headless.py gallery/lab.png     # its picture, for pages that cannot run it
"""

import contextlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simmim_lite.errors import UserError
from simmim_lite.lab.mask_lab import MaskLab, shipped_network
from simmim_lite.training.run import write_atomic

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
_MOVES = 40
# the time of a move is that of the handler: when it returns, the mask is on the canvas
_SLIDER = """async moves => {
  const input = [...document.querySelectorAll('input[type=range]')][0], times = [];
  for (let k = 0; k < moves; k++) {
    input.value = 0.2 + (0.6 * k) / moves;
    const start = performance.now();
    input.dispatchEvent(new Event('input'));
    times.push(performance.now() - start);
    await new Promise(done => setTimeout(done, 70));
  }
  return times;
}"""
_ANSWER = """async moves => {
  const { busy } = document.querySelector('.sl-lab').lab, times = [];
  const input = [...document.querySelectorAll('input[type=range]')][0];
  for (let k = 0; k < moves; k++) {
    const before = busy.dataset.answered, start = performance.now();
    input.value = 0.2 + (0.6 * k) / moves;
    input.dispatchEvent(new Event('input'));
    while (busy.dataset.answered === before) await new Promise(done => setTimeout(done, 1));
    times.push(performance.now() - start);
  }
  return times;
}"""


def browser_path() -> str:
    """A Chromium or Chrome on PATH; `UserError` that says how to get one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise UserError("no Chromium on PATH: run `make chromium`, or install it (apt-get install chromium)")
    return found


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless Chromium, driven by playwright; `UserError` where either is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("driving a browser needs playwright: pip install playwright") from None
    path = browser_path()
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def _page(browser, width: int, **options) -> Iterator[tuple]:
    """A browser, and a page in which the lab has answered once."""
    opened = chromium() if browser is None else contextlib.nullcontext(browser)
    with opened as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": width, "height": 1000}, **options)
        page.goto(MaskLab().write_html(Path(folder) / "lab.html", "Mask lab").as_uri())
        page.wait_for_selector("[data-answered]")
        yield browser, page


def bench(browser=None) -> Iterator[str]:
    """Lines of `make bench`: slider to picture, and release to reconstruction.

    browser: one that is open already; by default a Chromium is started.
    """
    side = shipped_network("photos").about["side"]
    with _page(browser, 1280) as (browser, page):
        yield f"mask lab in {Path(browser_path()).name} {browser.version}, headless: {_MOVES} moves of the mask ratio"
        yield f"{'':44s}{'median':>10s}{'slowest':>10s}"
        yield _line(f"slider to picture, {side} px", page.evaluate(_SLIDER, _MOVES))
        yield _line(f"release to reconstruction, {side} px", page.evaluate(_ANSWER, _MOVES))
        page.get_by_label("size", exact=True).select_option(str(2 * side))
        yield _line(f"release to reconstruction, {2 * side} px", page.evaluate(_ANSWER, _MOVES))
        page.get_by_label("network", exact=True).select_option("")
        page.get_by_label("mask patch").select_option("32")
        yield _line("slider to picture, 192 px", page.evaluate(_SLIDER, _MOVES))


def _line(name: str, times: list[float]) -> str:
    return f"{name:44s}{statistics.median(times):7.1f} ms{max(times):7.1f} ms"


def picture(path: str | Path, width: int = 1100, browser=None) -> Path:
    """A PNG of the mask lab as it opens, for pages that cannot run it. Returns the path. browser: as in `bench`."""
    with _page(browser, width, device_scale_factor=1.5) as (_, page):
        write_atomic(path, page.locator(".sl-lab").screenshot())
    return Path(path)


if __name__ == "__main__":
    try:
        print(*(bench() if sys.argv[1:] == ["bench"] else map(picture, sys.argv[1:])), sep="\n")
    except UserError as error:
        sys.exit(f"mask lab: {error}")
