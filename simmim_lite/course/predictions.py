"""What detectors and segmenters say of test scenes, from the examples in their records, for notebook 08. No torch here.

A record of detection holds, for its first test images, boxes, labels, scores and masks; one of segmentation the class
of every pixel, run-length coded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..data import scenes
from ..data.scenes import class_numbers
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


def truth(indices: Sequence[int], side: int = 32) -> go.Figure:
    """Test scenes of these indices with what the tasks ask for: class, boxes, and the class of every pixel."""
    drawn = scenes.render(SCENE_SPLITS["test"], indices, side)
    rows = _rows(drawn, {"picture": _picture, "boxes": _true_boxes, "class of<br>every pixel": _classes})
    return pictures.sheet(rows, [scenes.CLASSES[label].replace(" ", "<br>") for label in drawn.labels], side=110)


def pick(records: Sequence[dict], kind: str, seed: int | None = None) -> dict[str, dict]:
    """Finished records of a kind, of the largest size and a seed, the first by default: from scratch, and pretrained on
    the most images."""
    some = [r for r in records if r.get("kind") == kind and r["status"] == "done"]
    some = [r for r in some if seed in (None, r["spec"]["seed"])]
    for order in (lambda r: -SIZES[r["spec"]["model"]].parameters, lambda r: r["spec"]["seed"]):
        some = [r for r in some if order(r) == min(map(order, some))]
    found = {"from<br>scratch": r for r in some if r["run"] is None}  # noqa: B035
    pretrained = sorted((r for r in some if r["run"] is not None), key=lambda r: r["run"]["images"])
    return found | {f"pretrained<br>on {r['run']['images']:,}": r for r in pretrained[-1:]}


def segmentation(records: Mapping[str, dict], count: int = 6) -> go.Figure:
    """Scenes, the truth, and the class map of each record {name: record of kind segment}: a row each."""

    def row(drawn: scenes.Scenes, k: int, example: dict) -> np.ndarray:
        return COLOURS[decode(example["runs"], drawn.images.shape[-1])]

    return _sheet(records, count, "segmentation", {"picture": _picture, "truth": _classes}, row)


def detection(records: Mapping[str, dict], count: int = 6, least: float = 0.5) -> go.Figure:
    """Scenes with the true boxes, and with the boxes of each record {name: record of kind detect}: a row each.

    least: the score from which a box is drawn. A box has the colour of its class.
    """

    def row(drawn: scenes.Scenes, k: int, example: dict) -> np.ndarray:
        keep = [i for i, score in enumerate(example["scores"]) if score >= least]
        return _boxed(drawn, k, [example["boxes"][i] for i in keep], [example["labels"][i] + 1 for i in keep])

    return _sheet(records, count, "detection", {"truth": _true_boxes}, row)


def _sheet(records: Mapping[str, dict], count: int, what: str, first: dict, row: Callable) -> go.Figure:
    """A sheet of the scenes of the records' first examples: the first rows, then a row a record."""
    found = {name: record.get("examples") or [] for name, record in records.items()}
    count = min([count, *map(len, found.values())]) if found else 0
    if not count:
        return empty(f"no finished {what} has examples to show")
    some = next(iter(found.values()))[:count]
    side = some[0].get("height") or some[0]["size"][0]
    drawn = scenes.render(SCENE_SPLITS["test"], [index_of(example) for example in some], side)
    rows = {name: [row(drawn, k, example) for k, example in enumerate(e[:count])] for name, e in found.items()}
    return pictures.sheet(_rows(drawn, first) | rows, side=110)


def _rows(drawn: scenes.Scenes, ways: Mapping[str, Callable]) -> dict[str, list[np.ndarray]]:
    return {name: [draw(drawn, k) for k in range(len(drawn))] for name, draw in ways.items()}


def _picture(drawn: scenes.Scenes, k: int) -> np.ndarray:
    return drawn.images[k]


def decode(runs: Sequence[int], side: int) -> np.ndarray:
    """[class, length, class, length, ...] as a map of classes (side, side)."""
    return np.repeat(np.asarray(runs[::2]), np.asarray(runs[1::2])).reshape(side, side)


def truth_boxes(drawn: scenes.Scenes, k: int) -> tuple[list, list]:
    """Boxes xyxy in pixels, and classes from 1, of the objects of scene k."""
    both = [(drawn.boxes[k], drawn.labels[k] + 1), (drawn.small_boxes[k], drawn.small_labels[k] + 1)]
    boxes, labels = zip(*both[: 1 + (drawn.small_labels[k] >= 0)], strict=True)
    return list(boxes), list(labels)


def index_of(example: dict) -> int:
    """The scene an example belongs to: files are named by it."""
    return int(re.sub(r"\D", "", Path(example["file"]).stem))


def _classes(drawn: scenes.Scenes, k: int) -> np.ndarray:
    return COLOURS[class_numbers(drawn, k) - 1]


def _true_boxes(drawn: scenes.Scenes, k: int) -> np.ndarray:
    return _boxed(drawn, k, *truth_boxes(drawn, k))


def _boxed(drawn: scenes.Scenes, k: int, boxes: Sequence, labels: Sequence[int]) -> np.ndarray:
    """Scene k, enlarged, with boxes drawn around their objects."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(drawn.images[k].transpose(1, 2, 0).repeat(_ZOOM, 0).repeat(_ZOOM, 1))
    pen = ImageDraw.Draw(picture)
    for box, label in zip(boxes, labels, strict=True):
        x0, y0, x1, y1 = (round(float(v) * _ZOOM) for v in box)
        inside = max(0, x0), max(0, y0), min(picture.width, x1) - 1, min(picture.height, y1) - 1
        if inside[0] < inside[2] and inside[1] < inside[3]:
            pen.rectangle(inside, outline=(255, 255, 255), width=4)
            pen.rectangle(inside, outline=tuple(map(int, COLOURS[label])), width=3)
    return np.asarray(picture)
