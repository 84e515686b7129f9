"""The widgets in a headless Chromium: how fast they answer, and a picture of one. Needs playwright and a browser."""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..training.run import write_atomic

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


def _open(browser) -> contextlib.AbstractContextManager:
    return chromium() if browser is None else contextlib.nullcontext(browser)


def bench(browser=None) -> Iterator[str]:
    """Lines of `make bench`: slider to picture, and release to reconstruction, in the page and in the kernel.

    browser: one that is open already; by default a Chromium is started.
    """
    lab = _lab()
    with _open(browser) as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(lab.write_html(Path(folder) / "lab.html", "Mask lab").as_uri())
        page.wait_for_selector("[data-answered]")
        yield f"mask lab in {Path(browser_path()).name} {browser.version}, headless: {_MOVES} moves of the mask ratio"
        yield f"{'':44s}{'median':>10s}{'slowest':>10s}"
        yield _line("slider to picture, 32 px", page.evaluate(_SLIDER, _MOVES))
        yield _line("release to reconstruction, in the page", page.evaluate(_ANSWER, _MOVES))
        page.get_by_label("network", exact=True).select_option("")
        page.get_by_label("mask patch").select_option("32")
        yield _line("slider to picture, 192 px", page.evaluate(_SLIDER, _MOVES))
    from .networks import shipped

    network, times = shipped("photos"), []
    for k in range(_MOVES):
        pixels = np.full((3, 32, 32), k, np.uint8)
        start = time.perf_counter()
        network.predict(pixels, np.ones((8, 8), bool))
        times.append(1000 * (time.perf_counter() - start))
    yield _line("prediction in a kernel (its way not counted)", times[1:])


def _lab():
    try:
        from .mask_lab import MaskLab
    except ImportError as error:  # a plain GPU machine has no widgets
        raise UserError(f"the mask lab needs {error.name}: pip install {error.name}") from error
    return MaskLab()


def _line(name: str, times: list[float]) -> str:
    return f"{name:44s}{statistics.median(times):7.1f} ms{max(times):7.1f} ms"


def picture(path: str | Path, width: int = 1100, browser=None) -> Path:
    """A PNG of the mask lab as it opens, for pages that cannot run it. Returns the path. browser: as in `bench`."""
    lab = _lab()
    with _open(browser) as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": width, "height": 900}, device_scale_factor=1.5)
        page.goto(lab.write_html(Path(folder) / "lab.html", "Mask lab").as_uri())
        page.wait_for_selector("[data-answered]")
        write_atomic(path, page.locator(".sl-lab").screenshot())
    return Path(path)
