"""Figures of pictures, charts and live curves: what is drawn is what was given, and every part has its label."""

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from simmim_lite.data import scenes
from simmim_lite.errors import UserError
from simmim_lite.lab import charts, live, pictures
from simmim_lite.model.masking import hash_masks, upsample

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return scenes.render(0, np.arange(3)).images


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return hash_masks((4, 4), 0.6, 0, np.arange(3))


def decoded(trace) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(trace.source.split(",")[1]))))


def texts(figure) -> list[str]:
    return [a.text for a in figure.layout.annotations]


def test_a_strip_shows_each_picture_under_its_title(images) -> None:
    figure = pictures.strip(images, ["one", "two", "three"], columns=2, title="Three")
    assert [t.source.startswith("data:image/png;base64,") for t in figure.data] == [True] * 3
    for trace, image in zip(figure.data, images, strict=True):
        pixels = decoded(trace)
        assert np.array_equal(pixels[::4, ::4], image.transpose(1, 2, 0)), "blown up by whole pixels"
        assert round(trace.dx * pixels.shape[1], 6) == 1
    assert texts(figure) == ["one", "two", "three"]
    assert figure.layout.title.text == "Three"
    assert figure.data[2].y0 > figure.data[1].y0 + 1, "a second row"
    with pytest.raises(UserError, match="3 pictures and 1 titles"):
        pictures.strip(images, ["one"])


def test_a_sheet_names_rows_and_columns(images, masks) -> None:
    rows = {"picture": images, "mask": [pictures.mask_picture(m) for m in masks]}
    figure = pictures.sheet(rows, ["a", "b", "c"])
    assert len(figure.data) == 6
    assert sorted(texts(figure)) == ["a", "b", "c", "mask", "picture"]
    assert figure.data[4].hovertemplate == "mask<extra></extra>"
    with pytest.raises(UserError, match="every row needs as many"):
        pictures.sheet({"picture": images, "mask": masks[:2]})


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 3), (8, 8)])
@pytest.mark.parametrize("kind", [np.uint8, float, bool])
def test_pictures_of_any_kind_become_rgb(shape, kind) -> None:
    rgb = pictures.as_rgb(np.ones(shape, kind) * (255 if kind is np.uint8 else 1))
    assert (rgb.shape, rgb.dtype, rgb.min()) == ((8, 8, 3), np.uint8, 255)


def test_what_is_no_picture_gets_one_line() -> None:
    with pytest.raises(UserError, match=r"a picture of shape \(5, 8, 8\)"):
        pictures.as_rgb(np.zeros((5, 8, 8)))


def test_hidden_pixels_are_grey_and_the_others_untouched(images, masks) -> None:
    hidden = pictures.hide(images, masks)
    where = upsample(masks, 8)[:, None] & np.ones((1, 3, 1, 1), bool)
    assert (hidden[where] == pictures.GREY).all()
    assert np.array_equal(hidden[~where], images[~where])
    assert np.array_equal(pictures.hide(images[1], masks[1]), hidden[1])
    half = pictures.hide(images, masks, 0.5)[where].astype(int)
    assert (abs(half - (images[where].astype(int) + pictures.GREY) // 2) <= 1).all()


def test_a_mask_picture_is_dark_where_hidden(masks) -> None:
    picture = pictures.mask_picture(masks[0])[:, :, 0]
    cell = len(picture) // 4
    assert np.array_equal(picture[cell // 2 :: cell, cell // 2 :: cell] < 128, masks[0])


def test_a_reconstruction_fills_hidden_pixels_alone(images, masks) -> None:
    """Against the network's own output, brought back to colours by hand; its mode and the mask's cells are kept."""
    import torch

    from simmim_lite.data.batches import normalise
    from simmim_lite.model.simmim import create_model

    model = create_model("swinv2_atto", target="raw", seed=0).train()
    filled = pictures.predict(model, images, masks, MEAN, STD)
    assert model.training
    tokens = torch.from_numpy(upsample(masks, 2))
    with torch.inference_mode():
        guess = model.eval().reconstruct(normalise(images, MEAN, STD), tokens).numpy()
    colours = (guess * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1))).clip(0, 1) * 255
    where = upsample(masks, 8)[:, None] & np.ones((1, 3, 1, 1), bool)
    assert abs(filled[where] - colours[where]).max() <= 1
    assert np.array_equal(filled[~where], images[~where])
    assert np.array_equal(filled, pictures.predict(model, images, upsample(masks, 2), MEAN, STD)), "token masks too"
    figure = pictures.reconstruction(model, images, masks, MEAN, STD, ["a", "b", "c"])
    assert {"picture", "a", "hidden part<br>filled in"} <= set(texts(figure))
    assert np.array_equal(decoded(figure.data[6])[::4, ::4], filled[0].transpose(1, 2, 0))
    with pytest.raises(UserError, match="train with target='raw'"):
        pictures.predict(create_model("swinv2_atto"), images, masks, MEAN, STD)


def test_charts_name_their_axes_and_draw_the_guess() -> None:
    bars = charts.bars({"one": 1.0, "two": -2.0}, "points", guess=3.0)
    assert bars.layout.xaxis.title.text == "points"
    assert list(bars.data[0].x) == [1.0, -2.0]
    assert bars.layout.xaxis.range[0] < -2 < 3 < bars.layout.xaxis.range[1]
    assert texts(bars) == ["your guess"]
    series = {"a": ([1, 2], [1.0, 100.0]), "b": ([1, 2], [3.0, 4.0])}
    lines = charts.lines(series, "step", "loss (L1)", guess=10.0, band=(5, 20, "good"), log=True)
    assert (lines.layout.xaxis.title.text, lines.layout.yaxis.title.text) == ("step", "loss (L1)")
    notes = {a.text: a.y for a in lines.layout.annotations}
    assert notes["your guess"] == pytest.approx(1.0), "a logarithmic axis places notes by their logarithm"
    assert notes["good"] == pytest.approx(np.log10((5 * 20) ** 0.5))
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in lines.data}) == 2
    across = charts.lines(series, "step", "loss", guess=1.5, guess_on="x")
    assert [s.x0 for s in across.layout.shapes] == [1.5]
    maps = charts.maps({"m": np.eye(2), "n": np.ones((2, 2))}, "seen")
    assert maps.layout.coloraxis.colorbar.title.text == "seen"
    assert np.array_equal(maps.data[0].z, np.eye(2))


def test_a_live_curve_keeps_every_point_and_is_silent_without_a_notebook(capsys) -> None:
    with live.Curve(10, batch_size=4, title="t") as curve:
        for step in range(10):
            curve.add(step + 1, train_loss=1 / (step + 1), val_loss=0.5 if step % 5 == 0 else None)
    figure = live.figure(curve.points, images=40, marks={32: "drop"})
    assert [len(t.x) for t in figure.data] == [10, 2]
    assert list(figure.data[1].x) == [4, 24]
    assert texts(figure) == ["drop"]
    assert "images seen" in figure.layout.xaxis.title.text
    live.Progress("training")(10, 10)
    assert capsys.readouterr().out == ""


def test_a_tier_that_trains_nothing_is_refused_in_one_line() -> None:
    assert live.choose("quick", smoke=1, quick=2) == 2
    with pytest.raises(UserError, match="tier 'shipped' trains nothing"):
        live.choose("shipped", smoke=1)
    with pytest.raises(UserError, match="unknown tier 'quik': did you mean 'quick'"):
        live.choose("quik", smoke=1, quick=2)


def test_the_lab_opens_without_torch() -> None:
    code = (
        "import sys\nfrom simmim_lite import lab\nassert not {'torch', 'plotly'} & set(sys.modules)\n"
        "lab.checks.hidden_pixels, lab.pictures, lab.charts, lab.live\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_knob_is_live_in_a_browser_and_a_figure_elsewhere(monkeypatch) -> None:
    import IPython.display
    import ipywidgets

    turned, displayed = [], []
    monkeypatch.setattr(ipywidgets, "interact", lambda function, **controls: turned.append(controls))
    monkeypatch.setattr(IPython.display, "display", displayed.append)

    def look(k=3):
        return f"figure {k}"

    live.knob(look, k=(0, 5))
    assert (turned, displayed) == ([], []), "there is no notebook here"
    monkeypatch.setattr(live, "_in_notebook", lambda: True)
    monkeypatch.setattr(live, "executed_unseen", lambda: True)
    live.knob(look, k=(0, 5))
    assert (turned, displayed) == ([], ["figure 3"])
    monkeypatch.setattr(live, "executed_unseen", lambda: False)
    live.knob(look, k=(0, 5))
    assert turned == [{"k": (0, 5)}]
