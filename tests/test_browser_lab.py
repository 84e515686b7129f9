"""The mask lab in Chromium: every control by mouse and keyboard, uploads, pixels and numbers; nothing but this page."""

import base64
import random

import numpy as np
import pytest
from browsing import contrast, fits
from child_processes import until
from lab_walk import ANSWERED, GREY, UPLOADS, number, opened, settled, shown_mask, tile, walk

from simmim_lite.lab import photos
from simmim_lite.lab.mask_lab import MaskLab
from simmim_lite.model.masking import average_distance, hash_masks


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("twin") / "lab.html"
    return MaskLab(scenes=4).write_html(path, "Mask lab").as_uri()


def test_numbers_drags_and_buttons(page, twin) -> None:
    opened(page, twin)
    before = shown_mask(page, 4)
    box = page.locator(".sl-main").bounding_box()
    at = [(box["x"] + box["width"] * (c + 0.5) / 4, box["y"] + box["height"] * 0.5 / 4) for c in range(4)]
    page.mouse.click(*at[0])
    flipped = before.copy()
    flipped[0, 0] ^= True
    page.locator("h1").hover()
    assert (shown_mask(page, 4) == flipped).all()
    page.mouse.move(*at[0])  # a drag gives every cell on its way the state of the first
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place)
    page.mouse.up()
    page.evaluate("() => document.activeElement.blur()")
    dragged = flipped.copy()
    dragged[0] = not flipped[0, 0]
    assert (shown_mask(page, 4) == dragged).all()
    undo = page.get_by_role("button", name="undo")
    for expected in (flipped, before):
        undo.click()
        assert (shown_mask(page, 4) == expected).all()
    assert undo.is_disabled()
    page.get_by_role("button", name="invert").press("Enter")
    assert (shown_mask(page, 4) == ~before).all()
    page.get_by_role("button", name="show all").click()
    assert not shown_mask(page, 4).any()
    page.get_by_role("button", name="another mask").click()
    assert (shown_mask(page, 4) == hash_masks((4, 4), 0.6, 1, [0])[0]).all()
    page.get_by_label("network", exact=True).select_option("")
    page.get_by_label("mask patch").select_option("32")
    mask = hash_masks((6, 6), 0.6, 1, [0])[0]
    assert number(page, "distance").startswith(f"{average_distance(mask, 32):.1f} px")
    for ratio, hidden, distance in ((0, "0 of 36", "0.0 px"), (1, "36 of 36", "nothing is visible")):
        page.get_by_label("mask ratio").fill(str(ratio))
        assert number(page, "hidden").startswith(hidden) and number(page, "distance").startswith(distance)


def test_every_control_is_reached_by_keyboard(page, twin) -> None:
    opened(page, twin)
    page.evaluate("() => document.activeElement.blur()")
    reached = []
    for _ in range(22):
        page.keyboard.press("Tab")
        name = page.evaluate(
            """() => { const e = document.activeElement, seen = e.closest('.sl-upload') || e;
              const ring = getComputedStyle(seen).outlineStyle;
              return [(e.labels?.[0] || e).textContent.trim() || e.getAttribute('aria-label') || '', ring]; }"""
        )
        reached.append(name)
    names = [name for name, _ in reached]
    wanted = ["picture", "network", "strategy", "mask ratio", "mask patch", "seed", "your own picture"]
    for want in [*wanted, "another mask", "invert", "show all", "Reconstruction", "cells of the picture"]:
        assert any(name.startswith(want) for name in names), (want, names)
    assert all(ring != "none" for name, ring in reached if name.startswith(tuple(wanted)))
    tab = page.get_by_role("tab", name="Reconstruction")
    tab.focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Guess first").get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    page.get_by_text("Stage 1, block 1").wait_for()


def test_the_reconstruction(page, twin) -> None:
    opened(page, twin)
    settled(page)
    picture, seen, answer, filled = (tile(page, name) for name in ("picture", "seen", "answer", "filled"))
    hidden = np.repeat(np.repeat(hash_masks((4, 4), 0.6, 0, [0])[0], 8, 0), 8, 1)
    assert (seen[hidden] == GREY).all() and (seen[~hidden] == picture[~hidden]).all()
    assert (filled[hidden] == answer[hidden]).all() and (filled[~hidden] == picture[~hidden]).all()
    assert (
        np.abs(answer[hidden].astype(int) - picture[hidden]).mean() < np.abs(128 - picture[hidden].astype(int)).mean()
    )
    assert "loss on hidden pixels" in page.locator("p[role=status]").first.inner_text()
    before = page.evaluate(ANSWERED)
    page.get_by_label("seed").fill("9")
    page.wait_for_function(f"n => ({ANSWERED})() > n", arg=before)
    page.get_by_label("mask ratio").fill("0")
    page.get_by_text("nothing is hidden: there is no loss").wait_for()
    page.get_by_role("combobox", name="picture").select_option(index=8)
    page.get_by_role("button", name="hide the object").click()
    settled(page)
    outline = base64.b64decode(photos.scene_pictures(0, 2)[1]["outline"])
    bits = np.unpackbits(np.frombuffer(outline, np.uint8)).reshape(4, 12, 4, 12).any((1, 3))
    assert (shown_mask(page, 4) == bits).all()


def test_a_late_answer_is_not_taken_for_another_mask(page, twin) -> None:
    """What a kernel answers to an earlier question is dropped, also when no network is chosen any more."""
    opened(page, twin)
    late = """() => { const { lab } = document.querySelector('.sl-lab'); const id = lab.asked;
      lab.put({ seed: 9, edits: [] }); const said = lab.prediction;
      lab.told({ kind: 'predicted', id }, [new Float32Array(3072).buffer]);
      lab.told({ kind: 'problem', id, text: 'late' }, []);
      return lab.prediction === said && lab.busy.textContent !== 'late'; }"""
    assert page.evaluate(late)
    settled(page)
    page.get_by_label("network", exact=True).select_option("")
    assert page.evaluate(late)


def test_statistics_of_a_normalised_target(page, twin) -> None:
    opened(page, twin)
    page.get_by_label("network", exact=True).select_option("photos-normalised")
    settled(page)
    shown = {}
    for text, name in (("raw", "visible"), ("normalised", "normalised"), ("true statistics", "true")):
        page.get_by_role("button", name=text, exact=True).click()
        assert page.locator(f"[data-statistics={name}]").get_attribute("aria-pressed") == "true"
        shown[name] = tile(page, "answer")
        assert page.get_by_text("This leaks the answer").is_visible() == (name == "true")
    assert (shown["visible"] != shown["true"]).any() and (shown["normalised"] != shown["true"]).any()
    page.get_by_label("network", exact=True).select_option("photos")
    settled(page)
    page.get_by_role("button", name="true statistics").wait_for(state="hidden")


def test_guess_first(page, twin) -> None:
    opened(page, twin)
    page.get_by_role("tab", name="Guess first").click()
    settled(page)
    show = page.get_by_role("button", name="show the losses")
    assert show.is_disabled()
    box = page.locator(".sl-main").bounding_box()
    mask = hash_masks((4, 4), 0.6, 0, [0])[0]
    cells = [tuple(cell) for cell in np.argwhere(mask)]
    picked = random.Random(0).sample(cells, 4)
    for r, c in [*picked, tuple(np.argwhere(~mask)[0])]:
        page.mouse.click(box["x"] + box["width"] * (c + 0.5) / 4, box["y"] + box["height"] * (r + 0.5) / 4)
    assert "1 to go" in page.locator("[aria-label='guess first']").inner_text()
    last = next(cell for cell in cells if cell not in picked)
    page.mouse.click(box["x"] + box["width"] * (last[1] + 0.5) / 4, box["y"] + box["height"] * (last[0] + 0.5) / 4)
    show.click()
    losses = page.evaluate("() => [...document.querySelector('.sl-lab').lab.losses]")
    mine = np.mean([losses[4 * r + c] for r, c in [*picked, last]])
    best = sorted((losses[4 * r + c] for r, c in cells), reverse=True)[:5]
    blind = np.mean([losses[4 * r + c] for r, c in cells])
    said = page.locator("[data-number=score]").inner_text()
    assert f"your cells {mine:.3f}" in said and f"the hardest {np.mean(best):.3f}" in said
    assert f"worth {100 * (mine - blind) / (np.mean(best) - blind):.0f} %" in said.replace("-0 %", "0 %")
    hardest = max(cells, key=lambda cell: losses[4 * cell[0] + cell[1]])
    page.mouse.move(box["x"] + box["width"] * (hardest[1] + 0.5) / 4, box["y"] + box["height"] * (hardest[0] + 0.5) / 4)
    page.get_by_text(f"loss {best[0]:.3f}").wait_for()


def test_uploads(page, twin) -> None:
    opened(page, twin)
    for name, (data, colour) in UPLOADS.items():
        page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})
        page.wait_for_function("name => document.querySelector('.sl-lab').lab.entry.title.startsWith(name)", arg=name)
        settled(page)
        if colour is not None:  # the title comes first, the picture is drawn when it is decoded
            until(lambda c=colour: np.abs(tile(page, "picture").mean((0, 1)) - c).max() < 6, patience=60)
    page.locator("input[type=file]").set_input_files(
        {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"these are notes"}
    )
    page.get_by_role("alert").get_by_text("notes.jpg is no picture that the browser can read").wait_for()
    page.get_by_label("seed").fill("5")  # and the lab lives on
    assert (shown_mask(page, 4) == hash_masks((4, 4), 0.6, 5, [0])[0]).all()
    page.evaluate(
        """bytes => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(bytes)], 'dropped.png'));
          const drop = new DragEvent('drop', { dataTransfer: held, bubbles: true });
          document.querySelector('.sl-main').dispatchEvent(drop); }""",
        list(UPLOADS["tiny.png"][0]),
    )
    page.get_by_text("dropped.png (3 x 3 pixels)").first.wait_for(state="attached")


def test_it_fits_and_follows_the_theme(page, twin) -> None:
    opened(page, twin)
    for width, scheme in ((1100, "light"), (400, "dark")):
        for tab in ("Windows", "Guess first", "Reconstruction"):
            page.get_by_role("tab", name=tab).click()
            fits(page, width, scheme)
        ink, paper = contrast(page)
        assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 150


def test_a_walk_through_the_static_page(page, twin) -> None:
    walk(opened(page, twin))
