"""The mask lab in Chromium: every control by mouse and keyboard, uploads, pixels and numbers; nothing but this page."""

import random

import numpy as np
import pytest
from child_processes import until
from lab_walk import GREY, HOLIDAY, opened, picture_file, settled, shown_mask, tile, upload

from simmim_lite.lab.mask_lab import shipped_network
from simmim_lite.model.masking import average_distance, hash_masks, hidden_count, upsample

ABOUT = shipped_network("photos").about  # with which the lab opens
SIDE, WINDOW = ABOUT["side"], ABOUT["window"]  # pixels, tokens
GRID = SIDE // 8  # cells a side
MASK = hash_masks((GRID, GRID), 0.6, 0, [0])[0]


@pytest.fixture
def lab(page, pages):
    return opened(page, pages["lab"])


def place(page, row: int, column: int, grid: int) -> tuple[float, float]:
    """Where a cell of a board of so many cells a side is on the page."""
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
    assert lab.get_by_label("size", exact=True).evaluate("e => e.selectedOptions[0].textContent") == "192 x 192 px"
    for name, label, key, step in (("ratio", "mask ratio", "ArrowRight", 0.01), ("seed", "seed", "ArrowLeft", -1)):
        slider = lab.get_by_label(label)
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
    lab.mouse.click(*place(lab, 0, 3, 4))
    check((0, 3))
    lab.locator(".sl-main").first.press("ArrowLeft")
    lab.locator(".sl-main").first.press("Space")
    check((0, 3), (0, 2))
    undo = lab.get_by_role("button", name="undo")
    undo.press("Enter")
    undo.click()
    check()
    lab.mouse.move(*place(lab, 0, 0, 4))  # a drag gives every cell on its way the state of the first
    lab.mouse.down()
    lab.mouse.move(*place(lab, 0, 3, 4), steps=4)
    lab.mouse.up()
    assert len(set(shown_mask(lab, 4)[0])) == 1
    lab.get_by_label("mask ratio").fill("1")
    now["ratio"] = 1
    check()
    lab.get_by_role("button", name="invert").click()
    assert not shown_mask(lab, 4).any()


def test_the_reconstruction_and_its_statistics(lab) -> None:
    settled(lab)
    picture, seen, answer, filled = (tile(lab, name).astype(int) for name in ("picture", "seen", "answer", "filled"))
    hidden = upsample(MASK, 8)
    assert (seen[hidden] == GREY).all() and (seen[~hidden] == picture[~hidden]).all()
    assert (filled[hidden] == answer[hidden]).all() and (filled[~hidden] == picture[~hidden]).all()
    assert np.abs(answer - picture)[hidden].mean() < np.abs(128 - picture)[hidden].mean()
    late = """numbers => { const { lab } = document.querySelector('.sl-lab'), { inference } = lab, tells = [];
      inference.ask = (_, tell) => tells.push(tell); lab.compute(); lab.put({ seed: 9, edits: [] });
      tells[0]({ prediction: new Float32Array(numbers), seen: null, milliseconds: 1 }); const taken = lab.prediction;
      delete inference.ask; lab.compute(); return taken; }"""
    assert lab.evaluate(late, 3 * SIDE**2) is None, "a late answer is not taken for another mask"
    settled(lab)
    answer, again = tile(lab, "answer"), "lab.inference.worker.onerror(); lab.prediction = null; lab.compute();"
    lab.evaluate(f"() => {{ const {{ lab }} = document.querySelector('.sl-lab'); {again} }}")
    settled(lab)
    assert (tile(lab, "answer") == answer).all(), "a page that may have no worker says the same"
    lab.get_by_label("network", exact=True).select_option("photos-normalised")
    settled(lab)
    shown = {}
    for text, name in (("raw", "visible"), ("normalised", "normalised"), ("true statistics", "true")):
        lab.get_by_role("button", name=text, exact=True).click()
        assert lab.locator(f"[data-statistics={name}]").get_attribute("aria-pressed") == "true"
        assert lab.get_by_text("This leaks the answer").is_visible() == (name == "true")
        shown[name] = tile(lab, "answer").tobytes()
    assert len(set(shown.values())) == 3


def test_guess_first(lab) -> None:
    lab.get_by_role("tab", name="Guess first").click()
    settled(lab)
    show = lab.get_by_role("button", name="show the losses")
    picked = random.Random(0).sample([tuple(map(int, cell)) for cell in np.argwhere(MASK)], 5)
    for cell in [*picked[:4], np.argwhere(~MASK)[0]]:
        lab.mouse.click(*place(lab, *cell, GRID))
    assert "1 to go" in lab.locator("[aria-label='guess first']").inner_text() and show.is_disabled()
    lab.mouse.click(*place(lab, *picked[4], GRID))
    show.click()
    losses = np.reshape(lab.evaluate("() => [...document.querySelector('.sl-lab').lab.losses]"), (GRID, GRID))
    mine, best = np.mean([losses[cell] for cell in picked]), np.mean(sorted(losses[MASK])[-5:])
    said = lab.locator("[data-number=score]").inner_text()
    assert f"your cells {mine:.3f}" in said and f"the hardest {best:.3f}" in said


def test_uploads(lab) -> None:
    alpha = picture_file("PNG", "RGBA", (60, 40), (255, 0, 0, 0))
    for content, colour in ((HOLIDAY, (200, 30, 30)), (alpha, (255, 255, 255))):
        upload(lab, "a.png", content)
        until(lambda c=colour: np.abs(tile(lab, "picture").mean((0, 1)) - c).max() < 6, patience=60)
    upload(lab, "notes.jpg", b"these are notes")
    lab.get_by_role("alert").get_by_text("notes.jpg is no picture that the browser can read").wait_for()


def test_attention_of_a_token_and_twice_the_size(lab) -> None:
    """A click on a cell asks for its token; at twice the size there are four times the windows, and the second block
    shifts them."""
    lab.get_by_role("tab", name="Attention").click()
    lab.get_by_text("Block 2 of this stage").wait_for()
    heads = lab.locator("[aria-label=attention] h3").all_inner_texts()
    moved = ("not shifted", f"shifted by {WINDOW // 2} tokens")
    assert heads == [f"Block {b} of this stage: windows {how}" for b, how in enumerate(moved, 1)]
    lab.mouse.click(*place(lab, 0, 3, GRID))
    lab.get_by_text("The token in row 2, column 8").wait_for()
    lab.get_by_label("size", exact=True).select_option(f"{2 * SIDE}")
    lab.get_by_text("2 times what it was trained at").wait_for()
    settled(lab)
    lab.get_by_text(f"1: {SIDE // 2} x {SIDE // 2} tokens").wait_for(state="attached")
    assert shown_mask(lab, 2 * GRID).sum() == hidden_count(4 * GRID**2, 0.6)
    assert tile(lab, "answer").shape == (2 * SIDE, 2 * SIDE, 3)
    lab.get_by_label("stage", exact=True).select_option("1")
    assert lab.locator("[aria-label=attention] canvas").count() == 2 * 2 * 4
