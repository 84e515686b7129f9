"""The window view and the film-strip in Chromium, as plain files: mouse, keyboard, pixels, numbers, no network."""

import numpy as np
import pytest
from browsing import contrast, fits
from reach import blind_groups, blocks_until_seen

from simmim_lite.lab import filmstrip
from simmim_lite.lab.windows import WindowView
from simmim_lite.model.masking import fully_masked_windows, hash_masks, upsample

PIXELS = """(canvas, [x, y, w, h]) =>
  [...canvas.getContext('2d').getImageData(x, y, w, h).data].filter((_, i) => i % 4 < 3)"""
ORANGE = """canvas => {
  let n = 0; const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < d.length; i += 4) n += d[i] === 213 && d[i + 1] === 94 && d[i + 2] === 0; return n; }"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    views = {"windows": WindowView(), "film": filmstrip.FilmStrip()}
    return {name: view.write_html(folder / f"{name}.html", name) for name, view in views.items()}


def tokens(ratio: float = 0.6, seed: int = 0, patch: int = 32, pixels: int = 192) -> np.ndarray:
    return upsample(hash_masks((pixels // patch,) * 2, ratio, seed, [0])[0], patch // 4)


def counted(page, hidden: np.ndarray, window: int, depths: tuple[int, ...]) -> None:
    """The page shows the numbers that Python finds."""
    captions = page.locator(".sl-wide figcaption").all_inner_texts()
    total, shift = (len(hidden) // window) ** 2, window // 2
    assert f"{fully_masked_windows(hidden, window)} of {total} first-stage windows" in captions[0]
    assert f"{fully_masked_windows(hidden, window, shift)} of {total} first-stage windows" in captions[1]
    blind, pieces = blind_groups(hidden, window, shift)
    assert f"{blind} of {pieces} pieces" in captions[1]
    found = blocks_until_seen(hidden, window, depths)
    for k in set(found[hidden].tolist()):
        said = page.locator(f".sl-keys [data-blocks='{k}']").inner_text()
        assert f"{100 * (found == k).sum() / hidden.sum():.1f} %" in said


def test_windows_count_what_python_counts(page, pages) -> None:
    page.goto(pages["windows"].as_uri())
    counted(page, tokens(), 12, (2, 2, 18, 2))
    page.wait_for_function("() => document.body.innerText.includes('2.0 on average')")
    assert "0.8 on average" in page.locator(".sl-wide").inner_text()
    seed = page.get_by_label("Seed")
    seed.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    counted(page, tokens(seed=3), 12, (2, 2, 18, 2))
    page.get_by_label("Network").select_option("192-6")
    counted(page, tokens(seed=3), 6, (2, 2, 18, 2))
    page.get_by_label("Mask ratio").fill("0.9")
    counted(page, tokens(0.9, 3), 6, (2, 2, 18, 2))
    page.get_by_label("Mask patch").select_option("16")
    counted(page, tokens(0.9, 3, 16), 6, (2, 2, 18, 2))
    page.get_by_label("Network").select_option("32-4")
    counted(page, tokens(0.9, 3, 8, 32), 4, (2, 2))
    page.get_by_label("Mask ratio").fill("1")
    assert "never: 100.0 %" in page.locator(".sl-keys").inner_text()
    page.get_by_label("Mask ratio").fill("0")
    assert "nothing is hidden" in page.locator(".sl-keys").inner_text()


def test_windows_step_by_step(page, pages) -> None:
    """Every step by keyboard and by mouse; what has nothing to share is striped, and the chosen token can be moved."""
    page.goto(pages["windows"].as_uri())
    heading, main = page.locator(".sl-windows h3"), page.locator(".sl-main").first
    assert heading.inner_text() == "Stage 1, block 1, not shifted"
    assert main.evaluate(ORANGE) > 1000
    page.get_by_label("One step on").click()
    assert heading.inner_text() == "Stage 1, block 2, shifted by 6"
    assert "25 pieces" in page.locator(".sl-story").inner_text()
    step = page.get_by_role("slider", name="Step")
    step.focus()
    page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Merge into stage 2: 48 × 48 → 24 × 24 tokens"
    assert step.get_attribute("aria-valuetext") == heading.inner_text()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Stage 3, block 1, not shifted"
    assert "One window of 12 × 12 spans the map." in page.locator(".sl-story").inner_text()
    assert main.evaluate(ORANGE) == 0
    page.keyboard.press("End")
    assert heading.inner_text() == "Stage 4, block 2, not shifted"
    assert "window of 6 × 6" in page.locator(".sl-story").inner_text()
    assert page.get_by_label("One step on").is_disabled()

    found, pick = blocks_until_seen(tokens(), 12, (2, 2, 18, 2)), page.locator(".sl-pick")
    box = main.bounding_box()
    main.click(position={"x": box["width"] * 46.5 / 48, "y": box["height"] * 2.5 / 48})
    assert "row 3, column 47" in pick.inner_text() and f"after {found[2, 46]} blocks" in pick.inner_text()
    page.keyboard.press("Home")  # the board has the focus now
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert "row 4, column 46" in pick.inner_text()
    assert heading.inner_text() == "Stage 4, block 2, not shifted", "arrow keys on the board leave the step alone"
    page.locator(".sl-main").nth(1).hover(position={"x": 5, "y": 5})
    said = page.locator(".sl-hover").inner_text()
    assert said == f"Row 1, column 1: hears of one after {found[0, 0]} block" + ("s" if found[0, 0] > 1 else "")


def test_the_film_shows_the_frames_of_its_file(page, pages) -> None:
    film = filmstrip.shipped("scenes")
    page.goto(pages["film"].as_uri())
    filled = page.locator(".sl-film figure canvas:nth-of-type(3)")
    scrub, heading = page.get_by_role("slider", name="Frame"), page.locator(".sl-panel h3").first

    def shows(k: int) -> None:
        frame = film.facts["frames"][k]
        assert heading.inner_text() == f"Step {frame['step']:,}: validation loss {frame['val_loss']:.4f}"
        for i in range(6):
            pixels = filled.nth(i).evaluate(PIXELS, [0, 0, 32, 32])
            assert np.array_equal(np.reshape(pixels, (32, 32, 3)), film.frames[k, i].transpose(1, 2, 0))
        assert f"{frame['each'][2]:.3f}" in page.locator(".sl-film figcaption").nth(2).inner_text()

    shows(11)
    scrub.focus()
    page.keyboard.press("Home")
    shows(0)
    page.keyboard.press("ArrowRight")
    shows(1)
    page.get_by_label("One frame on").click()
    shows(2)
    box = page.locator(".sl-chart").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.99, box["y"] + 40)
    shows(11)
    seen = page.locator(".sl-film figure canvas:nth-of-type(2)").first
    hidden = np.array(film.facts["cells"][0], bool).repeat(8, 0).repeat(8, 1)
    pixels = np.reshape(seen.evaluate(PIXELS, [0, 0, 32, 32]), (32, 32, 3))
    assert (pixels[hidden] == 128).all()
    assert (pixels[~hidden] == film.pictures[0].transpose(1, 2, 0)[~hidden]).all()


def test_the_grid_of_sizes_and_data(page, pages) -> None:
    film = filmstrip.shipped("scenes-grid")
    page.goto(pages["film"].as_uri())
    page.get_by_role("tab", name="Through a run").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Sizes and data").get_attribute("aria-selected") == "true"
    table = page.locator(".sl-grid")
    assert table.locator("th[scope=col]").all_inner_texts() == ["64 images", "1,024 images", "16,384 images"]
    assert table.locator("th[scope=row]").all_inner_texts() == ["atto", "femto"]
    page.get_by_role("slider", name="Picture").focus()
    page.keyboard.press("ArrowRight")
    for k, frame in enumerate(film.facts["frames"]):
        pixels = np.reshape(table.locator("canvas").nth(k).evaluate(PIXELS, [0, 0, 32, 32]), (32, 32, 3))
        assert np.array_equal(pixels, film.frames[k, 1].transpose(1, 2, 0))
        assert f"{frame['each'][1]:.3f}" in table.locator("figcaption").nth(k).inner_text()
        assert f"{frame['val_loss']:.3f} ± " in table.locator("figcaption").nth(k).inner_text()


@pytest.mark.parametrize("name", ["windows", "film"])
def test_every_control_is_labelled_and_keeps_its_keys(name: str, page, pages) -> None:
    """Reachable in order by Tab, named, with a visible focus, and JupyterLab lets them have their arrow keys."""
    page.goto(pages[name].as_uri())
    controls = page.locator(".sl-lab :is(button, select, input)")
    page.locator("canvas").first.wait_for()
    for i in range(controls.count()):
        control = controls.nth(i)
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        named = control.evaluate("e => e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent")
        assert named.strip()
    wanted = page.locator(".sl-lab :is(button, select, input):visible:enabled").count()
    reached = set()
    for _ in range(wanted + 6):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => { const e = document.activeElement; return e.outerHTML.slice(0, 120) }"))
        style = page.evaluate("() => getComputedStyle(document.activeElement).outlineWidth")
        assert style == "3px" or page.evaluate("() => document.activeElement === document.body")
    assert len(reached) >= wanted


@pytest.mark.parametrize("name", ["windows", "film"])
def test_narrow_and_dark(name: str, page, pages) -> None:
    """Nothing sticks out at 400 px, text has contrast in both themes, and nothing plays where motion is unwanted."""
    page.emulate_media(reduced_motion="reduce")
    page.goto(pages[name].as_uri())
    page.locator("canvas").first.wait_for()
    assert page.locator("[data-act=play]").first.is_hidden()
    for scheme in ("light", "dark"):
        fits(page, 400, scheme)
        ink, paper = contrast(page)
        assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 133


@pytest.mark.parametrize(("name", "heading"), [("windows", ".sl-windows h3"), ("film", ".sl-panel h3")])
def test_play_runs_and_stops(name: str, heading: str, page, pages) -> None:
    page.goto(pages[name].as_uri())
    title, play = page.locator(heading).first, page.locator("[data-act=play]").first
    before = title.inner_text()
    assert play.inner_text() == "Play"
    play.click()
    assert play.inner_text() == "Pause"
    page.wait_for_function("([s, t]) => document.querySelector(s).innerText !== t", arg=[heading, before])
    play.click()
    stopped = title.inner_text()
    page.wait_for_timeout(600)
    assert title.inner_text() == stopped and play.inner_text() == "Play"
