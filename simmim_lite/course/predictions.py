"""What detectors and segmenters say of test scenes, by examples in their records, for notebook 08. No torch here."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageDraw

from ..data import scenes
from ..data.sources import SCENE_SPLITS
from ..evidence.drawing import empty
from ..lab import pictures
from ..model.sizes import SIZES

_ZOOM = 6  # pixels of the drawing a pixel of the picture
#: A colour a class of scenes; the background's is first.
COLOURS = np.array(
    [(226, 229, 235), (0, 114, 178), (86, 180, 233), (213, 94, 0), (240, 166, 110), (0, 158, 115)]
    + [(120, 208, 182), (204, 121, 167), (232, 188, 214), (182, 142, 0), (240, 228, 66)],
    np.uint8,
)
#: Rows of a sheet: functions of drawn scenes and a place among them.
_TRUTH: dict[str, Callable] = {
    "picture": lambda drawn, k: drawn.images[k],
    "boxes": lambda drawn, k: _boxed(drawn.images[k], *truth_boxes(drawn, k)),
    "class of<br>every pixel": lambda drawn, k: COLOURS[scenes.class_numbers(drawn, k) - 1],
}


def truth(indices: Sequence[int], side: int = 32) -> go.Figure:
    """Test scenes of these indices with what the tasks ask for: class, boxes, and the class of every pixel."""
    drawn = scenes.render(SCENE_SPLITS["test"], indices, side)
    rows = {name: [draw(drawn, k) for k in range(len(drawn))] for name, draw in _TRUTH.items()}
    return pictures.sheet(rows, [scenes.CLASSES[label].replace(" ", "<br>") for label in drawn.labels], side=110)


def pick(records: Sequence[dict], kind: str, seed: int | None = None) -> dict[str, dict]:
    """Finished records of a kind, of the largest size and a seed, the first by default: from scratch, and pretrained on
    the most images."""

    def order(record: dict) -> tuple[int, int]:
        return -SIZES[record["spec"]["model"]].parameters, record["spec"]["seed"]

    some = [r for r in records if r.get("kind") == kind and r["status"] == "done"]
    some = [r for r in some if seed in (None, r["spec"]["seed"])]
    some = [r for r in some if order(r) == min(map(order, some))]
    pretrained = sorted((r for r in some if r["run"] is not None), key=lambda r: r["run"]["images"])
    found = [("from<br>scratch", r) for r in some if r["run"] is None]
    return dict(found + [(f"pretrained<br>on {r['run']['images']:,}", r) for r in pretrained[-1:]])


def segmentation(records: Mapping[str, dict]) -> go.Figure:
    """Scenes, the truth, and the class map of each record {name: record of kind segment}: a row each."""

    def row(picture: np.ndarray, example: dict) -> np.ndarray:
        runs = example["runs"]  # [class, length, class, length, ...]
        return COLOURS[np.repeat(runs[::2], runs[1::2]).reshape(picture.shape[1:])]

    return _sheet(records, {"picture": "picture", "truth": "class of<br>every pixel"}, row)


def detection(records: Mapping[str, dict]) -> go.Figure:
    """Scenes with the true boxes, and with the boxes of score .5 and more of each record {name: record of kind
    detect}."""

    def row(picture: np.ndarray, example: dict) -> np.ndarray:
        sure = [i for i, score in enumerate(example["scores"]) if score >= 0.5]
        return _boxed(picture, [example["boxes"][i] for i in sure], [example["labels"][i] + 1 for i in sure])

    return _sheet(records, {"truth": "boxes"}, row)


def _sheet(records: Mapping[str, dict], first: Mapping[str, str], row: Callable) -> go.Figure:
    """A sheet of the scenes of the records' first six examples: rows of the truth first, then a row a record."""
    found = {name: (record.get("examples") or [])[:6] for name, record in records.items()}
    if not (count := min(map(len, found.values()), default=0)):
        return empty("no finished record has examples to show")
    some = next(iter(found.values()))[:count]
    indices = [int(re.sub(r"\D", "", Path(example["file"]).stem)) for example in some]  # files are named by them
    drawn = scenes.render(SCENE_SPLITS["test"], indices, some[0].get("height") or some[0]["size"][0])
    rows = {name: [_TRUTH[what](drawn, k) for k in range(count)] for name, what in first.items()}
    rows |= {name: [row(drawn.images[k], e[k]) for k in range(count)] for name, e in found.items()}
    return pictures.sheet(rows, side=110)


def truth_boxes(drawn: scenes.Scenes, k: int) -> tuple[list, list]:
    """Boxes xyxy in pixels, and classes from 1, of the objects of scene k."""
    many = 1 + int(drawn.small_labels[k] >= 0)
    labels = [drawn.labels[k] + 1, drawn.small_labels[k] + 1]
    return [drawn.boxes[k], drawn.small_boxes[k]][:many], labels[:many]


def _boxed(picture: np.ndarray, boxes: Sequence, labels: Sequence[int]) -> np.ndarray:
    """A picture uint8 (3, S, S), enlarged, with boxes drawn around their objects."""
    large = Image.fromarray(picture.transpose(1, 2, 0).repeat(_ZOOM, 0).repeat(_ZOOM, 1))
    pen, edge = ImageDraw.Draw(large), large.width - 1
    for box, label in zip(boxes, labels, strict=True):
        x0, y0, x1, y1 = np.clip(np.round(np.array(box, float) * _ZOOM) - (0, 0, 1, 1), 0, edge).tolist()
        if x0 < x1 and y0 < y1:
            pen.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=4)
            pen.rectangle((x0, y0, x1, y1), outline=tuple(map(int, COLOURS[label])), width=3)
    return np.asarray(large)
