"""The mask lab's windows and the film-strip in Chromium, as plain files: mouse, keyboard, pixels, no network."""

import numpy as np
from reach import blocks_until_seen

from simmim_lite.lab import widgets
from simmim_lite.model.masking import hash_masks, upsample

PIXELS = """canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data].filter((_, i) => i % 4 < 3)"""
ORANGE = """canvas => {
  let n = 0; const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < d.length; i += 4) n += d[i] === 213 && d[i + 1] === 94 && d[i + 2] === 0; return n; }"""


def test_windows_step_by_step(page, pages) -> None:
    """Every step by keyboard and by mouse; what has nothing to share is striped, and the chosen token can be moved."""
    page.goto(pages["windows"])
    heading, main = (
        page.locator("section[aria-label=windows] h3"),
        page.locator("section[aria-label=windows] .sl-main").first,
    )
    story, step = page.locator(".sl-story"), page.get_by_role("slider", name="Step")
    assert heading.inner_text() == "Stage 1, block 1, not shifted" and main.evaluate(ORANGE) > 1000
    page.get_by_label("One step on").click()
    assert heading.inner_text() == "Stage 1, block 2, shifted by 6" and "25 pieces" in story.inner_text()
    step.press("ArrowRight")
    assert heading.inner_text() == "Merge into stage 2: 48 × 48 → 24 × 24 tokens"
    for _ in range(4):
        step.press("ArrowRight")
    assert heading.inner_text() == "Stage 3, block 1, not shifted" and main.evaluate(ORANGE) == 0
    step.press("End")
    assert heading.inner_text() == "Stage 4, block 2, not shifted" and "window of 6 × 6" in story.inner_text()
    hidden, pick, box = upsample(hash_masks((6, 6), 0.6, 0, [0])[0], 8), page.locator(".sl-pick"), main.bounding_box()
    found = blocks_until_seen(hidden, 12, (2, 2, 18, 2))
    main.click(position={"x": box["width"] * 46.5 / 48, "y": box["height"] * 2.5 / 48})
    assert "row 3, column 47" in pick.inner_text() and f"after {found[2, 46]} blocks" in pick.inner_text()
    for key in ("ArrowLeft", "ArrowDown"):  # the board has the focus now
        page.keyboard.press(key)
    assert "row 4, column 46" in pick.inner_text()


def test_films_show_the_frames_of_their_files(page, pages) -> None:
    film, grid = map(widgets.shipped_film, widgets.SHIPPED_FILMS)
    page.goto(pages["film"])
    scrub, canvases = page.get_by_role("slider", name="Frame"), ".sl-film figure canvas:nth-of-type({})"

    def pixels(canvas) -> np.ndarray:
        return np.reshape(canvas.evaluate(PIXELS), (32, 32, 3)).transpose(2, 0, 1)

    def shows(k: int) -> None:
        frame = film.facts["frames"][k]
        said = f"Step {frame['step']:,}: validation loss {frame['val_loss']:.4f}"
        assert page.locator(".sl-panel h3").first.inner_text() == said
        for i in range(6):
            assert np.array_equal(pixels(page.locator(canvases.format(3)).nth(i)), film.frames[k, i])

    scrub.press("Home")
    shows(0)
    page.get_by_label("One frame on").click()
    shows(1)
    seen, hidden = pixels(page.locator(canvases.format(2)).first), upsample(np.array(film.facts["cells"][0], bool), 8)
    assert (seen[:, hidden] == 128).all() and (seen[:, ~hidden] == film.pictures[0][:, ~hidden]).all()
    page.get_by_role("tab", name="Through a run").press("ArrowRight")
    table = page.locator(".sl-grid")
    page.get_by_role("slider", name="Picture").press("ArrowRight")
    for k, frame in enumerate(grid.facts["frames"]):
        assert np.array_equal(pixels(table.locator("canvas").nth(k)), grid.frames[k, 1])
        assert f"{frame['each'][1]:.3f}" in table.locator("figcaption").nth(k).inner_text()
