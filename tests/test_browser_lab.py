"""The mask lab in Chromium: every control by mouse and keyboard, uploads, pixels and numbers; nothing but this page."""

import base64
import random

import numpy as np
import pytest
from browsing import contrast, fits
from child_processes import until
from lab_walk import GREY, HOLIDAY, opened, picture_file, settled, shown_mask, tile, upload

from simmim_lite.lab import pictures
from simmim_lite.lab.mask_lab import MaskLab
from simmim_lite.model.masking import average_distance, hash_masks


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    return MaskLab(scenes=4).write_html(tmp_path_factory.mktemp("twin") / "lab.html", "Mask lab").as_uri()


@pytest.fixture
def lab(page, address):
    return opened(page, address)


def place(page, row: int, column: int, grid: int = 4) -> tuple[float, float]:
    """Where a cell of the board is on the page."""
    box = page.locator(".sl-main").first.bounding_box()
    return box["x"] + box["width"] * (column + 0.5) / grid, box["y"] + box["height"] * (row + 0.5) / grid


def test_controls_and_cells_by_mouse_and_keyboard(lab) -> None:
    """Pixels and numbers are Python's after each."""
    now = {"ratio": 0.6, "seed": 0, "strategy": "random", "patch": 32}

    def check(*flipped: tuple[int, int]) -> None:
        grid = 192 // now["patch"]
        mask = hash_masks((grid, grid), now["ratio"], now["seed"], [0], strategy=now["strategy"])[0]
        for cell in flipped:
            mask[cell] ^= True
        share = np.floor(1000 * mask.mean() + 0.5) / 10  # JavaScript rounds half up
        far = average_distance(mask, now["patch"])
        far = "nothing is visible" if np.isinf(far) else f"{far:.1f} px"
        for name, said in (("hidden", f"{mask.sum()} of {mask.size} cells, {share:.1f} %"), ("distance", far)):
            lab.locator(f"[data-number={name}]", has_text=said).wait_for()
        until(lambda: (shown_mask(lab, grid) == mask).all(), patience=60)

    lab.get_by_label("network", exact=True).select_option("")
    check()
    for name, key, step in (("ratio", "ArrowRight", 0.01), ("seed", "ArrowLeft", -1)):
        slider = lab.get_by_label({"ratio": "mask ratio"}.get(name, name))
        box = slider.bounding_box()
        lab.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2)
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
    lab.mouse.click(*place(lab, 0, 3))
    check((0, 3))
    lab.locator(".sl-main").first.press("ArrowLeft")
    lab.locator(".sl-main").first.press("Space")
    check((0, 3), (0, 2))
    undo = lab.get_by_role("button", name="undo")
    for press in (lambda: undo.press("Enter"), undo.click):
        press()
    check()
    lab.mouse.move(*place(lab, 0, 0))  # a drag gives every cell on its way the state of the first
    lab.mouse.down()
    for column in range(1, 4):
        lab.mouse.move(*place(lab, 0, column))
    lab.mouse.up()
    assert len(set(shown_mask(lab)[0])) == 1
    undo.click()
    now["seed"] += 1
    lab.get_by_role("button", name="another mask").click()
    check()
    for ratio in (0, 1):
        lab.get_by_label("mask ratio").fill(str(ratio))
        now["ratio"] = ratio
        check()
    lab.get_by_role("button", name="show all").press("Enter")
    assert not shown_mask(lab).any()
    lab.get_by_role("button", name="invert").click()
    assert shown_mask(lab).all()


def test_every_control_is_reached_by_keyboard_and_fits(lab) -> None:
    lab.evaluate("() => document.activeElement.blur()")
    reached = {}
    for _ in range(22):
        lab.keyboard.press("Tab")
        name, ring = lab.evaluate(
            """() => { const e = document.activeElement, seen = e.closest('.sl-upload') || e;
              const ring = getComputedStyle(seen).outlineStyle;
              return [(e.labels?.[0] || e).textContent.trim() || e.getAttribute('aria-label') || '', ring]; }"""
        )
        reached[name] = ring
    wanted = ["picture", "network", "strategy", "mask ratio", "mask patch", "seed", "your own picture"]
    for want in [*wanted, "another mask", "invert", "show all", "Reconstruction", "cells of the picture"]:
        assert any(name.startswith(want) for name in reached), want
    assert all(ring != "none" for name, ring in reached.items() if name.startswith(tuple(wanted)))
    for width, scheme in ((1100, "light"), (400, "dark")):
        for tab in ("Windows", "Guess first", "Reconstruction"):
            lab.get_by_role("tab", name=tab).click()
            fits(lab, width, scheme)
        assert contrast(lab, scheme) > 150


def test_the_reconstruction_and_its_statistics(lab) -> None:
    settled(lab)
    picture, seen, answer, filled = (tile(lab, name).astype(int) for name in ("picture", "seen", "answer", "filled"))
    hidden = np.repeat(np.repeat(hash_masks((4, 4), 0.6, 0, [0])[0], 8, 0), 8, 1)
    assert (seen[hidden] == GREY).all() and (seen[~hidden] == picture[~hidden]).all()
    assert (filled[hidden] == answer[hidden]).all() and (filled[~hidden] == picture[~hidden]).all()
    assert np.abs(answer - picture)[hidden].mean() < np.abs(128 - picture)[hidden].mean()
    assert "loss on hidden pixels" in lab.locator("p[role=status]").first.inner_text()
    late = """() => { const { lab } = document.querySelector('.sl-lab'); const id = lab.asked;
      lab.put({ seed: 9, edits: [] }); const said = lab.prediction;
      lab.told({ kind: 'predicted', id }, [new Float32Array(3072).buffer]);
      lab.told({ kind: 'problem', id, text: 'late' }, []);
      return lab.prediction === said && lab.busy.textContent !== 'late'; }"""
    assert lab.evaluate(late), "a late answer is not taken for another mask"
    settled(lab)
    lab.get_by_label("mask ratio").fill("0")
    lab.get_by_text("nothing is hidden: there is no loss").wait_for()
    lab.get_by_role("combobox", name="picture").select_option(index=8)
    lab.get_by_role("button", name="hide the object").click()
    settled(lab)
    outline = base64.b64decode(pictures.scene_pictures(0, 2)[1]["outline"])
    bits = np.unpackbits(np.frombuffer(outline, np.uint8)).reshape(4, 12, 4, 12).any((1, 3))
    assert (shown_mask(lab) == bits).all()
    lab.get_by_label("network", exact=True).select_option("photos-normalised")
    lab.get_by_label("mask ratio").fill("0.6")
    settled(lab)
    shown = {}
    for text, name in (("raw", "visible"), ("normalised", "normalised"), ("true statistics", "true")):
        lab.get_by_role("button", name=text, exact=True).click()
        assert lab.locator(f"[data-statistics={name}]").get_attribute("aria-pressed") == "true"
        shown[name] = tile(lab, "answer")
        assert lab.get_by_text("This leaks the answer").is_visible() == (name == "true")
    assert (shown["visible"] != shown["true"]).any() and (shown["normalised"] != shown["true"]).any()


def test_guess_first(lab) -> None:
    lab.get_by_role("tab", name="Guess first").click()
    settled(lab)
    show = lab.get_by_role("button", name="show the losses")
    assert show.is_disabled()
    mask = hash_masks((4, 4), 0.6, 0, [0])[0]
    cells = [tuple(map(int, cell)) for cell in np.argwhere(mask)]
    picked = random.Random(0).sample(cells, 5)
    for cell in [*picked[:4], np.argwhere(~mask)[0]]:
        lab.mouse.click(*place(lab, *cell))
    assert "1 to go" in lab.locator("[aria-label='guess first']").inner_text()
    lab.mouse.click(*place(lab, *picked[4]))
    show.click()
    losses = np.reshape(lab.evaluate("() => [...document.querySelector('.sl-lab').lab.losses]"), (4, 4))
    mine, best = np.mean([losses[cell] for cell in picked]), np.mean(sorted(losses[mask])[-5:])
    said = lab.locator("[data-number=score]").inner_text()
    assert f"your cells {mine:.3f}" in said and f"the hardest {best:.3f}" in said
    worth = 100 * (mine - losses[mask].mean()) / (best - losses[mask].mean())
    assert f"worth {worth:.0f} %" in said.replace("-0 %", "0 %")


def test_uploads(lab) -> None:
    tiny = picture_file("PNG", "RGB", (3, 3), (0, 0, 255))
    files = {"holiday.jpg": (HOLIDAY, (200, 30, 30)), "tiny.png": (tiny, (0, 0, 255))}
    files["alpha.png"] = picture_file("PNG", "RGBA", (60, 40), (255, 0, 0, 0)), (255, 255, 255)
    for name, (content, colour) in files.items():
        upload(lab, name, content)
        settled(lab)  # the title comes first, the picture is drawn when it is decoded
        until(lambda c=colour: np.abs(tile(lab, "picture").mean((0, 1)) - c).max() < 6, patience=60)
    notes = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"these are notes"}
    lab.locator("input[type=file]").set_input_files(notes)
    lab.get_by_role("alert").get_by_text("notes.jpg is no picture that the browser can read").wait_for()
    drop = """bytes => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(bytes)], 'dropped.png'));
      const drop = new DragEvent('drop', { dataTransfer: held, bubbles: true });
      document.querySelector('.sl-main').dispatchEvent(drop); }"""
    lab.evaluate(drop, list(tiny))
    lab.get_by_text("dropped.png (3 x 3 pixels)").first.wait_for(state="attached")
