"""Figures of pictures: sheets with labels, masks over images, reconstructions. Numpy and plotly; torch where needed."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from ..errors import UserError
from ..evidence.drawing import INK, TEMPLATE
from ..model.masking import upsample
from .charts import WIDEST

GREY = 128  # what a hidden pixel looks like
_SIDE = 128  # pixels a side that small pictures are blown up to, so that no browser smooths them
_GAP, _HEAD = 0.08, 0.22  # between pictures, and for a line of title, in sides of a picture


def strip(images: Sequence, titles: Sequence[str], *, columns: int = 8, title: str = "", side: int = 118) -> go.Figure:
    """Pictures in rows of at most `columns`, each with its title above it.

    images: uint8 (N, 3, H, W), or N pictures of any sizes, each as `as_rgb` takes it. side: of a picture, in pixels on
    the screen, at most.
    """
    if len(images) != len(titles):
        raise UserError(f"{len(images)} pictures and {len(titles)} titles: give one title a picture")
    columns = max(1, min(columns, len(images)))
    pairs = zip(images, map(str, titles), strict=True)
    cells = [(image, label, *divmod(k, columns)) for k, (image, label) in enumerate(pairs)]
    return _sheet(cells, -(-len(images) // columns), columns, title, side)


def sheet(
    rows: Mapping[str, Sequence], titles: Sequence[str] | None = None, *, title: str = "", side: int = 104
) -> go.Figure:
    """Rows of pictures with the row's name at the left, and a title above each column: {name: N pictures}."""
    lengths = {len(pictures) for pictures in rows.values()}
    columns = max(lengths, default=0)
    if len(lengths) > 1 or (titles is not None and len(titles) != columns):
        raise UserError(f"rows of {sorted(lengths)} pictures, {len(titles or ())} titles: every row needs as many")
    heads = [[str(t) for t in titles or [""] * columns], *[[""] * columns] * (len(rows) - 1)]
    cells = [(image, heads[r][c], r, c) for r, row in enumerate(rows.values()) for c, image in enumerate(row)]
    return _sheet(cells, len(rows), columns, title, side, tuple(rows))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture as uint8 (H, W, 3): from (3, H, W) or (H, W, 3), or grey (H, W); uint8 or bool, or floats in 0..1."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[None].repeat(3, 0)
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]):
        raise UserError(f"a picture of shape {image.shape}: give (3, H, W), (H, W, 3) or (H, W)")
    if image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.dtype == bool:
        image = image.astype(np.float32)
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image


def hide(images: np.ndarray, masks: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Grey where the mask is: uint8 (N, 3, H, W), masks (N, h, w) with True or 1 = hidden -> uint8 (N, 3, H, W).

    strength 1 hides the pixels, less lets them shine through. One image (3, H, W) with one mask (h, w) works too.
    """
    images, masks = np.asarray(images), np.asarray(masks, bool)
    pixels = upsample(masks, images.shape[-1] // masks.shape[-1])[..., None, :, :]
    mixed = images * (1 - strength) + GREY * strength
    return np.where(pixels, mixed, images).astype(np.uint8)


def mask_picture(mask: np.ndarray, light: int = 236, dark: int = 70) -> np.ndarray:
    """A mask (h, w) alone, hidden cells dark, with lines between the cells: uint8 (H, W, 3)."""
    mask = np.asarray(mask, bool)
    cell = max(4, _SIDE // max(mask.shape))
    picture = upsample(np.where(mask, dark, light).astype(np.uint8), cell)
    line = max(1, cell // 12)
    for k in range(line):  # between cells, not around them
        picture[cell + k :: cell], picture[:, cell + k :: cell] = 255, 255
    return as_rgb(picture)


def predict(model, images: np.ndarray, masks: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What the network makes of hidden pixels, the visible ones left as they are: uint8 (N, 3, H, W).

    images uint8 (N, 3, H, W); masks (N, h, w) in any whole number of cells a side that divides the network's patches;
    mean and std as it was trained with, in 0..1 units. `UserError` for a network that predicts normalised pixels.
    """
    from ..training.film import Shot

    if model.target != "raw":
        raise UserError("this model predicts locally normalised pixels, which are no colours: train with target='raw'")
    return Shot(images, np.asarray(masks, bool), mean, std).take(model)[0]


def reconstruction(
    model,
    images: np.ndarray,
    mask: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    titles: Sequence[str] | None = None,
    *,
    title: str = "",
) -> go.Figure:
    """Three rows: the picture, what the network sees, and the hidden part filled in by it. Arguments as `predict`."""
    rows = {
        "picture": images,
        "what the<br>network sees": hide(images, mask),
        "hidden part<br>filled in": predict(model, images, mask, mean, std),
    }
    return sheet(rows, titles, title=title)


def _sheet(cells: list, rows: int, columns: int, title: str, side: int, row_names: Sequence[str] = ()) -> go.Figure:
    """All pictures on one pair of axes, in units of a picture's side; text is laid beside them, so nothing overlaps.

    cells: (picture, title, row, column). Where rows have names, only the first one has room for titles.
    """
    width = columns * (1 + _GAP) - _GAP
    letters = max((max(map(len, n.split("<br>"))) for n in row_names), default=0) * 7.4
    side = min(side, int((WIDEST - 16 - letters) / (width + 0.15)))
    lines = max((label.count("<br>") + 1 for _, label, _, _ in cells if label), default=0)
    head = 0.06 + _HEAD * lines * 90 / side if lines else 0
    step = 1 + _GAP + (0 if row_names else head)
    figure = go.Figure()
    for image, label, row, column in cells:
        pixels = as_rgb(image)
        factor = max(1, -(-_SIDE // max(pixels.shape[:2])))
        pixels = pixels.repeat(factor, 0).repeat(factor, 1)
        x, y = column * (1 + _GAP), head + row * step
        dx, dy = 1 / pixels.shape[1], 1 / pixels.shape[0]  # the first pixel's centre lies half a pixel inside
        named = ", ".join(t.replace("<br>", " ") for t in (row_names[row] if row_names else "", label) if t)
        place = {"x0": x + dx / 2, "dx": dx, "y0": y + dy / 2, "dy": dy}
        figure.add_image(source=_uri(pixels), **place, hovertemplate=f"{named}<extra></extra>")
        if label:
            _text(figure, label, x + 0.5, y - 0.04, "center", "bottom")
    for row, name in enumerate(row_names):
        _text(figure, name, -0.1, head + row * step + 0.5, "right", "middle")
    left, height = 0.1 + letters / side, head + (rows - 1) * step + 1
    hidden = {"visible": False, "fixedrange": True}
    figure.update_xaxes(range=[-left, width + 0.05], **hidden)
    figure.update_yaxes(range=[height + 0.05, -0.05], scaleanchor="x", constrain="domain", **hidden)
    top = 46 if title else 8
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "x": 0, "xref": "container", "pad": {"l": 8}, "font": {"size": 15}},
        width=int((width + left + 0.05) * side) + 16,
        height=int((height + 0.1) * side) + top + 8,
        margin={"l": 8, "r": 8, "t": top, "b": 8},
    )
    return figure


def _text(figure: go.Figure, text: str, x: float, y: float, across: str, along: str) -> None:
    style = {"showarrow": False, "font": {"size": 12, "color": INK}, "align": across}
    figure.add_annotation(text=text, x=x, y=y, xanchor=across, yanchor=along, **style)


def _uri(pixels: np.ndarray) -> str:
    """A picture uint8 (H, W, 3) as a PNG inside an address: figures stay whole without files beside them."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
