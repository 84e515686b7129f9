"""The mask lab in Chromium: every control by mouse and keyboard, uploads, pixels and numbers; nothing but this page."""

import base64
import random

import numpy as np
import pytest
from browsing import contrast, fits
from child_processes import until
from lab_walk import GREY, number, opened, picture_file, settled, shown_mask, tile, upload, walk

from simmim_lite.lab import pictures
from simmim_lite.lab.mask_lab import MaskLab
from simmim_lite.model.masking import average_distance, hash_masks


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    return MaskLab(scenes=4).write_html(tmp_path_factory.mktemp("twin") / "lab.html", "Mask lab").as_uri()


@pytest.fixture
def lab(page, address):
    return opened(page, address)


def middle(box: dict, row: int, column: int) -> tuple[float, float]:
    """Where a cell of the 4 x 4 board is on the page."""
    return box["x"] + box["width"] * (column + 0.5) / 4, box["y"] + box["height"] * (row + 0.5) / 4


def test_a_walk_through_the_static_page(lab) -> None:
    walk(lab)


def test_drags_buttons_and_numbers(lab) -> None:
    before, flipped = shown_mask(lab), shown_mask(lab)
    box = lab.locator(".sl-main").bounding_box()
    lab.mouse.click(*middle(box, 0, 0))
    lab.locator("h1").hover()
    flipped[0, 0] ^= True
    assert (shown_mask(lab) == flipped).all()
    lab.mouse.move(*middle(box, 0, 0))  # a drag gives every cell on its way the state of the first
    lab.mouse.down()
    for column in range(1, 4):
        lab.mouse.move(*middle(box, 0, column))
    lab.mouse.up()
    dragged = flipped.copy()
    dragged[0] = not flipped[0, 0]
    assert (shown_mask(lab) == dragged).all()
    undo = lab.get_by_role("button", name="undo")
    for expected in (flipped, before):
        undo.click()
        assert (shown_mask(lab) == expected).all()
    assert undo.is_disabled()
    another = hash_masks((4, 4), 0.6, 1, [0])[0]
    for name, mask in (("invert", ~before), ("show all", np.zeros((4, 4), bool)), ("another mask", another)):
        lab.get_by_role("button", name=name).press("Enter")
        assert (shown_mask(lab) == mask).all()
    lab.get_by_label("network", exact=True).select_option("")
    lab.get_by_label("mask patch").select_option("32")
    distance = f"{average_distance(hash_masks((6, 6), 0.6, 1, [0])[0], 32):.1f} px"
    for ratio, hidden, far in (
        (0.6, "22 of 36", distance),
        (0, "0 of 36", "0.0 px"),
        (1, "36 of 36", "nothing is vis"),
    ):
        lab.get_by_label("mask ratio").fill(str(ratio))
        assert number(lab, "hidden").startswith(hidden) and number(lab, "distance").startswith(far)


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
    box, mask = lab.locator(".sl-main").bounding_box(), hash_masks((4, 4), 0.6, 0, [0])[0]
    cells = [tuple(map(int, cell)) for cell in np.argwhere(mask)]
    picked = random.Random(0).sample(cells, 5)
    for cell in [*picked[:4], np.argwhere(~mask)[0]]:
        lab.mouse.click(*middle(box, *cell))
    assert "1 to go" in lab.locator("[aria-label='guess first']").inner_text()
    lab.mouse.click(*middle(box, *picked[4]))
    show.click()
    losses = np.reshape(lab.evaluate("() => [...document.querySelector('.sl-lab').lab.losses]"), (4, 4))
    mine, best = np.mean([losses[cell] for cell in picked]), np.mean(sorted(losses[mask])[-5:])
    said = lab.locator("[data-number=score]").inner_text()
    assert f"your cells {mine:.3f}" in said and f"the hardest {best:.3f}" in said
    worth = 100 * (mine - losses[mask].mean()) / (best - losses[mask].mean())
    assert f"worth {worth:.0f} %" in said.replace("-0 %", "0 %")


def test_uploads(lab) -> None:
    files = {
        "alpha.png": (picture_file("PNG", "RGBA", (60, 40), (255, 0, 0, 0)), (255, 255, 255)),
        "grey.png": (picture_file("PNG", "L", (64, 64), 90), (90, 90, 90)),
        "tiny.png": (picture_file("PNG", "RGB", (3, 3), (0, 0, 255)), (0, 0, 255)),
    }
    for name, (content, colour) in files.items():
        upload(lab, name, content)
        lab.wait_for_function("name => document.querySelector('.sl-lab').lab.entry.title.startsWith(name)", arg=name)
        settled(lab)  # the title comes first, the picture is drawn when it is decoded
        until(lambda c=colour: np.abs(tile(lab, "picture").mean((0, 1)) - c).max() < 6, patience=60)
    upload(lab, "notes.jpg", b"these are notes")
    lab.get_by_role("alert").get_by_text("notes.jpg is no picture that the browser can read").wait_for()
    lab.evaluate(
        """bytes => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(bytes)], 'dropped.png'));
          const drop = new DragEvent('drop', { dataTransfer: held, bubbles: true });
          document.querySelector('.sl-main').dispatchEvent(drop); }""",
        list(files["tiny.png"][0]),
    )
    lab.get_by_text("dropped.png (3 x 3 pixels)").first.wait_for(state="attached")
