"""Pictures: those that ship (photographs, scenes), your own, and figures of sheets, masks and reconstructions.
Torch only where a network predicts."""

import base64
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageOps

from ..data import decode, scenes, sources
from ..errors import UserError
from ..evidence.drawing import INK, TEMPLATE
from ..files import write_atomic
from ..model.masking import upsample
from ..processes import pick_device
from ..training.callbacks import fill_in
from ..training.run import Run
from .charts import WIDEST

SIDE, TOKENS = 192, 48  # pixels a side of the mask lab's pictures as they are kept, and tokens of 4 px
PHOTOS = Path(__file__).with_name("photos")
#: photos/NAME.jpg: title, scikit-image's name, licence. All photographs of its wheel that show a thing, at 192 px.
PHOTOGRAPHS = {
    "astronaut": ("astronaut", "skimage.data.astronaut", "NASA, public domain"),
    "camera": ("cameraman", "skimage.data.camera", "Lav Varshney, CC0"),
    "cat": ("cat", "skimage.data.chelsea", "Stéfan van der Walt, CC0"),
    "coffee": ("cup of coffee", "skimage.data.coffee", "Rachel Michetti, CC0"),
    "coins": ("coins", "skimage.data.coins", "Brooklyn Museum, no known copyright restrictions"),
    "retina": ("retina", "skimage.data.retina", "Mikael Häggström, CC0"),
    "rocket": ("rocket", "skimage.data.rocket", "SpaceX, public domain"),
}
_GREY = 128  # what a hidden pixel looks like
_LARGE = 128  # pixels a side that small pictures are blown up to, so that no browser smooths them
_GAP, _HEAD = 0.08, 0.22  # between pictures, and for a line of title, in sides of a picture


def photographs() -> list[dict]:
    """The photographs that ship, as the mask lab takes pictures (see `_entry`)."""
    return [
        _entry(name, title, "photograph", (PHOTOS / f"{name}.jpg").read_bytes(), note=licence)
        for name, (title, _, licence) in PHOTOGRAPHS.items()
    ]


def scene_pictures(seed: int = 0, count: int = 12) -> list[dict]:
    """The first `count` scenes of a seed, drawn and never picked, with the outline of the large object."""
    drawn, found = scenes.render(seed, range(count), SIDE), []
    for k in range(count):
        covered = np.asarray(drawn.masks[k], bool).reshape(TOKENS, SIDE // TOKENS, TOKENS, -1).any((1, 3))
        title = f"scene {k}: {scenes.CLASSES[int(drawn.labels[k])]}"
        picture = Image.fromarray(as_rgb(drawn.images[k]))
        found.append(_entry(f"scene-{k}", title, "scene", picture, np.packbits(covered).tobytes()))
    return found


def own_picture(source: "str | Path | bytes | np.ndarray | Image.Image") -> dict:
    """Any picture as an entry: its centre square at 192 px, read as `data.decode` reads every picture.

    source: a file, its bytes, a PIL image, or an array as `as_rgb` takes it. `UserError` for what holds no picture.
    """
    try:
        picture = Image.fromarray(as_rgb(source)) if isinstance(source, np.ndarray) else decode.read(source)
    except decode.Unreadable as error:
        name = f"{source}" if isinstance(source, (str, Path)) else f"the {type(source).__name__}"
        raise UserError(f"{name}: no picture that can be read ({error}); give a JPEG or PNG") from error
    picture = ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return _entry("own", "your picture", "own", picture.convert("RGB"))


def _entry(name: str, title: str, kind: str, jpeg: bytes | Image.Image, outline: bytes = b"", note: str = "") -> dict:
    """A picture for the widget: data a JPEG in base64; outline the object's tokens (48 x 48 bits) in base64 or ''."""
    if isinstance(jpeg, Image.Image):
        jpeg.save(held := io.BytesIO(), "JPEG", quality=90)
        jpeg = held.getvalue()
    held = {"data": base64.b64encode(jpeg).decode(), "outline": base64.b64encode(outline).decode()}
    return {"name": name, "title": title, "kind": kind, "note": note, **held}


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture as uint8 (H, W, 3): from (3, H, W), (H, W, 3) or grey (H, W); uint8, bool, or floats cut to 0..1.

    `UserError` for another shape, and for numbers of no known range.
    """
    image = np.asarray(image)
    image = image[None].repeat(3, 0) if image.ndim == 2 else image
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]):
        raise UserError(f"a picture of shape {image.shape}: give (3, H, W), (H, W, 3) or (H, W)")
    image = image if image.shape[2] == 3 else image.transpose(1, 2, 0)
    if image.dtype == bool or image.dtype.kind == "f":
        image = (np.clip(image, 0, 1) * np.float32(255) + 0.5).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"a picture of {image.dtype} has no known range: give uint8, or floats from 0 to 1")
    return np.ascontiguousarray(image)


def hide(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Grey where the mask is: uint8 (N, 3, H, W), masks (N, h, w) with True or 1 = hidden -> uint8 (N, 3, H, W).

    One image (3, H, W) with one mask (h, w) works too.
    """
    masks = upsample(np.asarray(masks, bool), images.shape[-1] // masks.shape[-1])
    return np.where(masks[..., None, :, :], np.uint8(_GREY), images)


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """A mask (h, w) alone, hidden cells dark, with lines between the cells: uint8 (H, W, 3)."""
    mask = np.asarray(mask, bool)
    cell = max(4, _LARGE // max(mask.shape))
    picture = upsample(np.where(mask, 70, 236).astype(np.uint8), cell)
    for k in range(max(1, cell // 12)):  # between cells, not around them
        picture[cell + k :: cell], picture[:, cell + k :: cell] = 255, 255
    return as_rgb(picture)


def predict(model, images: np.ndarray, masks: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What the network makes of hidden pixels, the visible ones left as they are: uint8 (N, 3, H, W).

    images uint8 (N, 3, H, W); masks (N, h, w) in any whole number of cells a side that divides the network's patches;
    mean and std as it was trained with, in 0..1 units.
    """
    return fill_in(model, images, np.asarray(masks, bool), mean, std)[0]


def reconstruction(model, images, mask, mean, std, titles: Sequence[str], *, title: str = "") -> go.Figure:
    """Three rows: the picture, what the network sees, and the hidden part filled in by it. Arguments as `predict`."""
    rows = {"picture": images, "what the<br>network sees": hide(images, mask)}
    rows["hidden part<br>filled in"] = predict(model, images, mask, mean, std)
    return sheet(rows, titles, title=title)


def write(rows: Mapping[str, np.ndarray], png: Path, said: str) -> None:
    """Rows of pictures uint8 (N, 3, H, W) as a PNG, and beside it as a page with their names and what is said."""
    lines, held = [np.concatenate([as_rgb(one) for one in row], 1) for row in rows.values()], io.BytesIO()
    scale = max(1, _LARGE // len(lines[0]))
    Image.fromarray(np.concatenate(lines).repeat(scale, 0).repeat(scale, 1)).save(held, "PNG")
    write_atomic(png, held.getvalue())
    source, names = base64.b64encode(held.getvalue()).decode(), ", ".join(rows)
    head = f'<!doctype html><meta charset="utf-8"><title>Reconstruction</title><p>From above: {names}.</p>'
    page = f'{head}<p>{escape(said)}</p><img alt="{names}" style="max-width:100%" src="data:image/png;base64,{source}">'
    write_atomic(png.with_suffix(".html"), page)


def reconstructed(weights: str, run: Run, device: str, png: Path, bands: Sequence[int]) -> str:
    """The first eight validation pictures of a run's data as a checkpoint of its network fills them in, written by
    `write`; what is said of them. bands: the three channels that are shown, from 0."""
    from ..data.batches import validation_masks
    from ..model.weights import load_weights
    from ..training.pretrain import build
    from ..training.probes import input_statistics

    model, opened = build(run).to(pick_device(device)), sources.open_data(run.data, run.image_size)
    load_weights(model, weights, head=True)
    shown, statistics = np.array(opened.val.images[:8]), input_statistics(opened, run.statistics)
    grid = (run.image_size // run.mask_patch,) * 2
    cells = validation_masks(grid, run.mask_ratio, run.mask_strategy, np.asarray(opened.val.ids[:8]), 0)
    filled, losses = fill_in(model, shown, cells, *statistics)
    mean, std = (", ".join(f"{v:.3f}" for v in of) for of in statistics)
    said = f"loss on hidden pixels {np.mean(losses):.3f} over {len(losses)} pictures, {run.target} target; "
    said += f"statistics ({run.statistics}): mean {mean}, deviation {std}"
    rows = {"picture": shown, "seen": hide(shown, cells), "filled in": filled}
    write({name: row[:, bands] for name, row in rows.items()}, png, said)
    return said


def strip(rows: Mapping[str, Sequence], side: int = 72) -> str:
    """Rows of pictures as HTML, for what is drawn again and again: made in a twentieth of a `sheet`'s time."""
    one = '<img alt="" decoding="sync" width="{0}" height="{0}" style="image-rendering:pixelated" src="{1}">'
    lines = []
    for name, images in rows.items():
        lines.append(f'<span style="width:9em">{name}</span>')
        for image in images:
            Image.fromarray(as_rgb(image)).save(png := io.BytesIO(), "PNG")
            lines[-1] += one.format(side, "data:image/png;base64," + base64.b64encode(png.getvalue()).decode())
    return "".join(f'<div style="display:flex;align-items:center;gap:4px;margin:4px 0">{line}</div>' for line in lines)


def sheet(
    rows: Mapping[str, Sequence], titles: Iterable[str] | None = None, *, title: str = "", side: int = 104
) -> go.Figure:
    """Rows of pictures as `as_rgb` takes them, {name: N pictures}: the row's name at the left, titles above the first.

    side: of a picture, in pixels. All pictures are on one pair of axes, in units of a picture's side; text is laid
    beside them, so nothing overlaps.
    """
    columns = max(map(len, rows.values()), default=0)
    heads = [""] * columns if titles is None else list(map(str, titles))
    if any(len(row) != columns for row in (*rows.values(), heads)):
        raise UserError(f"rows of {[len(row) for row in rows.values()]} pictures: every row, and titles, need as many")
    width, step = columns * (1 + _GAP) - _GAP, 1 + _GAP
    letters = max((max(map(len, name.split("<br>"))) for name in rows), default=0) * 7.4
    side = min(side, int((WIDEST - 16 - letters) / (width + 0.15)))
    lines = max((label.count("<br>") + 1 for label in heads if label), default=0)
    head = 0.06 + _HEAD * lines * 90 / side if lines else 0
    figure, text = go.Figure(), {"showarrow": False, "font": {"size": 12, "color": INK}}
    for (row, (name, images)), column in itertools.product(enumerate(rows.items()), range(columns)):
        shown = as_rgb(images[column])
        factor = max(1, -(-_LARGE // max(shown.shape[:2])))
        shown = shown.repeat(factor, 0).repeat(factor, 1)
        dx, dy = 1 / shown.shape[1], 1 / shown.shape[0]  # the first pixel's centre lies half a pixel inside
        place = {"x0": column * step + dx / 2, "dx": dx, "y0": head + row * step + dy / 2, "dy": dy}
        named = ", ".join(t.replace("<br>", " ") for t in (name, heads[column] if row == 0 else "") if t)
        Image.fromarray(np.ascontiguousarray(shown)).save(held := io.BytesIO(), "WEBP", lossless=True, method=2)
        address = "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode()
        figure.add_image(source=address, **place, hovertemplate=f"{named}<extra></extra>")
    for column, label in enumerate(heads if lines else ()):
        place = {"x": column * step + 0.5, "y": head - 0.04, "xanchor": "center", "yanchor": "bottom"}
        figure.add_annotation(text=label, **place, **text)
    for row, name in enumerate(rows):
        place = {"x": -0.1, "y": head + row * step + 0.5, "xanchor": "right", "yanchor": "middle", "align": "right"}
        figure.add_annotation(text=name, **place, **text)
    left, height, top = 0.1 + letters / side, head + len(rows) * step - _GAP, 46 if title else 8
    hidden = {"visible": False, "fixedrange": True}
    figure.update_xaxes(range=[-left, width + 0.05], **hidden)
    figure.update_yaxes(range=[height + 0.05, -0.05], scaleanchor="x", constrain="domain", **hidden)
    size = {"width": int((width + left + 0.05) * side) + 16, "height": int((height + 0.1) * side) + top + 8}
    figure.update_layout(template=TEMPLATE, margin={"l": 8, "r": 8, "t": top, "b": 8}, **size)
    return figure.update_layout(title={"text": title, "x": 0, "pad": {"l": 8}, "font": {"size": 15}})
