"""The mask lab as a visitor uses it: what the tests in the static page, Voila and JupyterLab have in common.

`root` is a page or a frame that holds one mask lab; `page` has the mouse.
"""

import io

import numpy as np
from PIL import Image

from simmim_lite.model.masking import hash_masks

GREY = [128, 128, 128]
_DRAWN = """g => { const b = document.querySelector('.sl-main'), at = (k) => (k + .5) * b.width / g;
  const colour = (x, y) => [...b.getContext('2d').getImageData(x, y, 1, 1).data];
  return [...Array(g * g).keys()].map((i) => colour(at(i % g), at(Math.floor(i / g)))); }"""
_TILE = """name => { const t = document.querySelector(`[data-tile=${name}]`);
  return [t.width, [...t.getContext('2d').getImageData(0, 0, t.width, t.height).data]]; }"""


def opened(page, address: str):
    page.goto(address)
    page.wait_for_selector("[data-answered]")
    return page


def shown_mask(page, grid: int = 4) -> np.ndarray:
    """Which cells are drawn grey on the large canvas, in their middle."""
    page.evaluate("() => document.activeElement.blur()")
    return (np.array(page.evaluate(_DRAWN, grid)).reshape(grid, grid, 4)[..., :3] == GREY).all(-1)


def tile(page, name: str) -> np.ndarray:
    """A small picture as (S, S, 3)."""
    side, flat = page.evaluate(_TILE, name)
    return np.array(flat).reshape(side, side, 4)[..., :3]


def number(page, name: str) -> str:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(f"[data-number={name}]").inner_text()


def settled(page) -> None:
    """Wait until the network has answered for what is shown now."""
    page.wait_for_function("() => document.querySelector('.sl-lab').lab.prediction")


def upload(page, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.locator(".sl-lab input[type=file]").set_input_files(file)


def picture_file(kind: str, mode: str, size: tuple[int, int], colour) -> bytes:
    held = io.BytesIO()
    Image.new(mode, size, colour).save(held, kind)
    return held.getvalue()


HOLIDAY = picture_file("JPEG", "RGB", (4000, 3000), (200, 30, 30))


def walk(page) -> None:
    """Every control by mouse and keyboard, cells, tabs, an upload; pixels and numbers are Python's after each."""
    lab = page.locator(".sl-lab")
    now = {"ratio": 0.6, "seed": 0, "strategy": "random", "patch": 32}

    def check(*flipped: tuple[int, int]) -> None:
        grid = 192 // now["patch"]
        mask = hash_masks((grid, grid), now["ratio"], now["seed"], [0], strategy=now["strategy"])[0]
        for cell in flipped:
            mask[cell] ^= True
        share = np.floor(1000 * mask.mean() + 0.5) / 10  # JavaScript rounds half up
        said = f"{mask.sum()} of {mask.size} cells, {share:.1f} %"
        for _ in range(2400):  # a picture that was just chosen is decoded first
            shown = (shown_mask(page, grid) == mask).all(), number(page, "hidden")
            if shown == (True, said):
                break
            page.wait_for_timeout(50)
        assert shown == (True, said), now

    lab.get_by_label("network", exact=True).select_option("")
    check()
    for label, name, key, step in (("mask ratio", "ratio", "ArrowRight", 0.01), ("seed", "seed", "ArrowLeft", -1)):
        slider = lab.get_by_label(label)
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2)
        by_mouse = float(slider.input_value())
        slider.press(key)
        now[name] = type(now[name])(slider.input_value())
        assert by_mouse > 0 and abs(now[name] - by_mouse - step) < 1e-9
        check()
    for label, name, option, value in (("strategy", "strategy", "block", "square"), ("mask patch", "patch", "64", 48)):
        lab.get_by_label(label).select_option(option)
        lab.get_by_label(label).press("ArrowUp")
        now[name] = value
        check()
    board = lab.locator(".sl-main").first
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.875, box["y"] + box["height"] * 0.125)
    check((0, 3))
    board.press("ArrowLeft")
    board.press("Space")
    check((0, 3), (0, 2))
    lab.get_by_role("button", name="undo").press("Enter")
    check((0, 3))
    lab.get_by_role("tab", name="Windows").click()
    lab.get_by_text("first-stage windows see nothing").first.wait_for()
    lab.get_by_role("tab", name="Windows").press("ArrowLeft")
    assert lab.get_by_role("tab", name="Guess first").get_attribute("aria-selected") == "true"
    lab.get_by_role("tab", name="Reconstruction").click()
    upload(page, "holiday.jpg", HOLIDAY)
    page.wait_for_function("() => document.querySelector('.sl-lab').lab.entry.name === 'own'")
    lab.get_by_label("network", exact=True).select_option("photos")
    settled(page)
    picture, answer = tile(page, "picture"), tile(page, "answer")
    assert picture.shape == (32, 32, 3) and np.abs(picture.mean((0, 1)) - (200, 30, 30)).max() < 6
    assert np.abs(answer.mean((0, 1)) - (200, 30, 30)).max() < 60  # of one colour: seen through the holes
