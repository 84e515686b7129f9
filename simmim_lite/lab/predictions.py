"""What detectors and segmenters say of test scenes, from the examples in their records: no weights, no torch.

A record of detection holds, for its first test images, boxes, labels, scores and masks; one of segmentation the class
of every pixel, run-length coded.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..data import scenes
from ..data.scene_layouts import class_numbers
from ..data.sources import SCENE_SPLITS
from ..evidence.drawing import empty
from ..model.sizes import SIZES
from . import pictures

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
    rows = {
        "picture": drawn.images,
        "boxes": [_boxed(drawn.images[k], *truth_boxes(drawn, k)) for k in range(len(drawn))],
        "class of<br>every pixel": [_coloured(class_numbers(drawn, k) - 1) for k in range(len(drawn))],
    }
    return pictures.sheet(rows, [scenes.CLASSES[label].replace(" ", "<br>") for label in drawn.labels], side=110)


def pick(records: Sequence[dict], kind: str, seed: int = 0, model: str | None = None) -> dict[str, dict]:
    """The finished records of a kind and seed to look at: from scratch, and pretrained on the most images.

    model: by default the largest there is.
    """
    some = [r for r in records if r.get("kind") == kind and r["status"] == "done" and r["spec"]["seed"] == seed]
    sizes = sorted({r["spec"]["model"] for r in some}, key=lambda name: SIZES[name].parameters)
    model = model or (sizes[-1] if sizes else None)
    some = [r for r in some if r["spec"]["model"] == model]
    found = {}
    if scratch := [r for r in some if r["run"] is None]:
        found["from<br>scratch"] = scratch[0]
    pretrained = [r for r in some if r["run"] is not None]
    if pretrained:
        best = max(pretrained, key=lambda r: r["run"]["images"])
        found[f"pretrained<br>on {best['run']['images']:,}"] = best
    return found


def segmentation(records: Mapping[str, dict], count: int = 6) -> go.Figure:
    """Scenes, the truth, and the class map of each record {name: record of kind segment}: a row each."""
    found = {name: record.get("examples") or [] for name, record in records.items()}
    count = min([count, *(len(e) for e in found.values())]) if found else 0
    if not count:
        return empty("no finished segmentation has examples to show")
    some = next(iter(found.values()))[:count]
    drawn = scenes.render(SCENE_SPLITS["test"], [index_of(e) for e in some], some[0]["height"])
    rows = {"picture": drawn.images, "truth": [_coloured(class_numbers(drawn, k) - 1) for k in range(count)]}
    for name, examples in found.items():
        rows[name] = [_coloured(decode(e["runs"], drawn.images.shape[-1])) for e in examples[:count]]
    return pictures.sheet(rows, side=110)


def detection(records: Mapping[str, dict], count: int = 6, least: float = 0.5) -> go.Figure:
    """Scenes with the true boxes, and with the boxes of each record {name: record of kind detect}: a row each.

    least: the score from which a box is drawn. A box has the colour of its class.
    """
    found = {name: record.get("examples") or [] for name, record in records.items()}
    count = min([count, *(len(e) for e in found.values())]) if found else 0
    if not count:
        return empty("no finished detection has examples to show")
    some = next(iter(found.values()))[:count]
    drawn = scenes.render(SCENE_SPLITS["test"], [index_of(e) for e in some], some[0]["size"][0])
    rows = {"truth": [_boxed(drawn.images[k], *truth_boxes(drawn, k)) for k in range(count)]}
    for name, examples in found.items():
        row = []
        for k, example in enumerate(examples[:count]):
            keep = [i for i, score in enumerate(example["scores"]) if score >= least]
            row.append(
                _boxed(drawn.images[k], [example["boxes"][i] for i in keep], [example["labels"][i] + 1 for i in keep])
            )
        rows[name] = row
    return pictures.sheet(rows, side=110)


def decode(runs: Sequence[int], side: int) -> np.ndarray:
    """[class, length, class, length, ...] as a map of classes (side, side)."""
    classes, lengths = np.asarray(runs[::2]), np.asarray(runs[1::2])
    return np.repeat(classes, lengths).reshape(side, side)


def truth_boxes(drawn: scenes.Scenes, k: int) -> tuple[list, list]:
    """Boxes xyxy in pixels, and classes from 1, of the objects of scene k."""
    boxes, labels = [drawn.boxes[k]], [drawn.labels[k] + 1]
    if drawn.small_labels[k] >= 0:
        boxes.append(drawn.small_boxes[k])
        labels.append(drawn.small_labels[k] + 1)
    return boxes, labels


def index_of(example: dict) -> int:
    """The scene an example belongs to: files are named by it."""
    return int(re.sub(r"\D", "", Path(example["file"]).stem))


def _coloured(classes: np.ndarray) -> np.ndarray:
    return COLOURS[classes]


def _boxed(image: np.ndarray, boxes: Sequence, labels: Sequence[int]) -> np.ndarray:
    """A picture uint8 (3, S, S), enlarged, with boxes drawn around their objects."""
    picture = image.transpose(1, 2, 0).repeat(_ZOOM, 0).repeat(_ZOOM, 1).copy()
    for box, label in zip(boxes, labels, strict=True):
        x0, y0, x1, y1 = (int(round(float(v) * _ZOOM)) for v in box)
        x0, y0 = max(0, x0), max(0, y0)
        x1, y1 = min(picture.shape[1], x1), min(picture.shape[0], y1)
        for width, colour in ((4, (255, 255, 255)), (3, COLOURS[label])):
            inner = picture[y0 + width : y1 - width, x0 + width : x1 - width].copy()
            picture[y0:y1, x0:x1] = colour
            picture[y0 + width : y1 - width, x0 + width : x1 - width] = inner
    return picture
