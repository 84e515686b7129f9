"""The mask lab as a visitor uses it: what the tests in the static page, the site, Voila and JupyterLab have in common.

`root` is a page or a frame that holds one mask lab; `page` has the mouse.
"""

import io

import numpy as np
from PIL import Image

from simmim_lite.model.masking import hash_masks

GREY = [128, 128, 128]
ANSWERED = "() => +document.querySelector('.sl-lab').lab.busy.dataset.answered"


def opened(page, address: str):
    page.goto(address)
    page.wait_for_selector("[data-answered]")
    return page


def board_colour(page, row: int, column: int, grid: int) -> list[int]:
    """The colour in the middle of a cell of the large canvas."""
    return page.evaluate(
        """([r, c, g]) => { const b = document.querySelector('.sl-main'), s = b.width / g;
          return [...b.getContext('2d').getImageData((c + .5) * s, (r + .5) * s, 1, 1).data].slice(0, 3); }""",
        [row, column, grid],
    )


def shown_mask(page, grid: int) -> np.ndarray:
    """Which cells are drawn grey."""
    return np.array([[board_colour(page, r, c, grid) == GREY for c in range(grid)] for r in range(grid)])


def tile(page, name: str) -> np.ndarray:
    """A small picture as (S, S, 3)."""
    flat = page.evaluate(
        """name => { const t = document.querySelector(`[data-tile=${name}]`);
          return [...t.getContext('2d').getImageData(0, 0, t.width, t.height).data]; }""",
        name,
    )
    side = int((len(flat) / 4) ** 0.5)
    return np.array(flat).reshape(side, side, 4)[..., :3]


def number(page, name: str) -> str:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(f"[data-number={name}]").inner_text()


def settled(page) -> None:
    """Wait until the network has answered for what is shown now."""
    page.wait_for_function("() => document.querySelector('.sl-lab').lab.prediction")


def picture_file(kind: str, mode: str, size: tuple[int, int], colour) -> bytes:
    held = io.BytesIO()
    Image.new(mode, size, colour).save(held, kind)
    return held.getvalue()


UPLOADS = {
    "holiday.jpg": (picture_file("JPEG", "RGB", (4000, 3000), (200, 30, 30)), (200, 30, 30)),
    "alpha.png": (picture_file("PNG", "RGBA", (60, 40), (255, 0, 0, 0)), (255, 255, 255)),
    "grey.png": (picture_file("PNG", "L", (64, 64), 90), (90, 90, 90)),
    "print.jpg": (picture_file("JPEG", "CMYK", (64, 80), (0, 255, 255, 0)), None),
    "tiny.png": (picture_file("PNG", "RGB", (3, 3), (0, 0, 255)), (0, 0, 255)),
}


def walk(page, root=None) -> None:
    """Every control by mouse and keyboard, cells, tabs, an upload; pixels and numbers are Python's after each."""
    root = root or page
    lab = root.locator(".sl-lab")
    now = {"ratio": 0.6, "seed": 0, "strategy": "random", "patch": 32}

    def check(flipped: tuple = ()) -> None:
        grid = 192 // now["patch"]
        mask = hash_masks((grid, grid), now["ratio"], now["seed"], [0], strategy=now["strategy"])[0]
        for cell in flipped:
            mask[cell] ^= True
        root.evaluate("() => document.activeElement.blur()")
        share = np.floor(1000 * mask.mean() + 0.5) / 10  # JavaScript rounds half up
        said = f"{mask.sum()} of {mask.size} cells, {share:.1f} %"
        for _ in range(2400):  # a picture that was just chosen is decoded first
            shown = (shown_mask(root, grid) == mask).all(), number(root, "hidden")
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
    lab.get_by_label("strategy").select_option("block")
    lab.get_by_label("strategy").press("ArrowUp")
    now["strategy"] = "square"
    check()
    lab.get_by_label("mask patch").select_option("64")
    lab.get_by_label("mask patch").press("ArrowUp")
    now["patch"] = 48
    check()
    board = lab.locator(".sl-main").first
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.875, box["y"] + box["height"] * 0.125)
    check([(0, 3)])
    board.press("ArrowLeft")
    board.press("Space")
    check([(0, 3), (0, 2)])
    lab.get_by_role("button", name="undo").press("Enter")
    check([(0, 3)])
    lab.get_by_role("button", name="undo").click()
    check()
    lab.get_by_role("tab", name="Windows").click()
    lab.get_by_text("first-stage windows see nothing").first.wait_for()
    lab.get_by_role("tab", name="Windows").press("ArrowLeft")
    assert lab.get_by_role("tab", name="Guess first").get_attribute("aria-selected") == "true"
    lab.get_by_role("tab", name="Reconstruction").click()
    data, colour = UPLOADS["holiday.jpg"]
    own = {"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": data}
    lab.locator("input[type=file]").set_input_files(own)
    root.wait_for_function("() => document.querySelector('.sl-lab').lab.entry.name === 'own'")
    lab.get_by_label("network", exact=True).select_option("photos")
    settled(root)
    picture, answer = tile(root, "picture"), tile(root, "answer")
    assert picture.shape == (32, 32, 3) and np.abs(picture.mean((0, 1)) - colour).max() < 6
    assert np.abs(answer.mean((0, 1)) - colour).max() < 60  # of one colour: the network sees it through the holes
