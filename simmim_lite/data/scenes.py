"""Procedural pictures as a function of (seed, index): label, box and mask are known, and there is no end of them.

Only additions, multiplications, divisions, roundings and square roots touch the numbers: IEEE arithmetic defines those
to the last bit, so a scene is the same picture on every machine (sines and exponentials are not). No torch here."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from ..model.masking import uniforms
from .store import progress

#: Raised whenever the same (seed, index) would give another picture; a test holds a digest against it.
SCENES_VERSION = 1
SHAPES = ("disc", "square", "triangle", "ring", "cross")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in ("plain", "striped"))
#: A second world, for what is learned in one and used in another: other shapes, textures and colours, laid out alike.
PLANKTON = tuple(f"{t} {s}" for s in ("ellipse", "diamond", "crescent", "hexagon", "star") for t in ("plain", "dotted"))
LOOKS = {"scenes": CLASSES, "plankton": PLANKTON}

#: Scenes of each split; the training pool grows by whole blocks, each of which is ranked alone.
SCENE_BLOCK = 16384
SCENE_SPLITS = {"train": 0, "val": 1, "test": 2, "probe_train": 3}  # scene seed, and upper bits of the ids
SCENE_COUNTS = {"val": 2048, "test": 4096, "probe_train": 4096}
#: Raised when the files of scenes change, so that old ones are written again.
LAYOUT_VERSION = 1
#: ADE20K's folder -> scene seed and number of scenes.
ADE_SPLITS = {
    folder: (SCENE_SPLITS[split], SCENE_COUNTS[split])
    for folder, split in (("training", "probe_train"), ("validation", "test"))
}

_SIDE = 32  # scenes are laid out on a board of 32 units a side, whatever the number of pixels
_CHUNK = 1 << 16  # pixels drawn together: the working set stays in the cache
_BACKGROUND, _MAIN, _SMALL = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Scenes:
    """N scenes of S x S pixels. Boxes are xyxy in pixels, the lower right edge exclusive; masks are what is visible.

    A scene without a small object (or with one that is wholly covered) has small label -1, a box of zeros, no mask.
    """

    images: np.ndarray  # uint8 (N, 3, S, S)
    labels: np.ndarray  # int64 (N,), into CLASSES: the large object's
    boxes: np.ndarray  # float32 (N, 4)
    masks: np.ndarray  # bool (N, S, S)
    small_labels: np.ndarray  # int64 (N,), into CLASSES, or -1
    small_boxes: np.ndarray  # float32 (N, 4)
    small_masks: np.ndarray  # bool (N, S, S)

    def __len__(self) -> int:
        return len(self.labels)


def render(seed: int, indices: np.ndarray, size: int = 32, look: str = "scenes") -> Scenes:
    """Draw the scenes of a seed at the given indices (N,), `size` pixels a side, in one of LOOKS.

    Pure: row i depends on (seed, indices[i], size) alone, so `render(s, [5])` is row 5 of `render(s, range(9))`. The
    same scene at another size is the same picture on a finer or coarser raster.
    """
    indices = np.asarray(indices).reshape(-1).astype(np.uint64)
    step = max(1, _CHUNK // size**2)
    which = list(LOOKS).index(look)
    parts = [_draw(seed, indices[i : i + step], size, which) for i in range(0, max(1, len(indices)), step)]
    return Scenes(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scenes)))


def class_numbers(drawn: Scenes, place: int) -> np.ndarray:
    """The class at each pixel of one scene: 1 is the background, 2 to 11 are those of its objects; uint8 (S, S)."""
    numbers = np.ones(drawn.masks.shape[1:], np.uint8)
    numbers[drawn.small_masks[place]] = drawn.small_labels[place] + 2
    numbers[drawn.masks[place]] = drawn.labels[place] + 2
    return numbers


def labels(seed: int, indices: np.ndarray) -> np.ndarray:
    """The labels `render` would return, without drawing: int64 (N,)."""
    return _label(uniforms(1, seed, np.asarray(indices).reshape(-1), _MAIN)[:, 0])


def _draw(seed: int, indices: np.ndarray, size: int, look: int) -> Scenes:
    n, px = len(indices), np.float32(size / _SIDE)
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / px
    own = 16 * look  # streams of random numbers
    image = _background(uniforms(24, seed, indices, _BACKGROUND + own), grid, look)

    u, v = uniforms(22, seed, indices, _MAIN + own), uniforms(24, seed, indices, _SMALL + own)
    radius = 9 + 3.5 * u[:, 1]
    x, y = _place(radius, u[:, 2]), _place(radius, u[:, 3])
    # the small object keeps to the edge that is farther from the large one, or most of them would be covered
    small, sideways = 3 + 2 * v[:, 1], v[:, 22] < 0.5
    far_x, far_y = (np.where(at < _SIDE / 2, 1 - 0.15 * v[:, k], 0.15 * v[:, k]) for at, k in ((x, 2), (y, 3)))
    small_x = _place(small, np.where(sideways, far_x, v[:, 2]))
    small_y = _place(small, np.where(sideways, v[:, 3], far_y))

    there = np.flatnonzero(v[:, 23] < 0.5)
    small_masks = np.zeros((n, size, size), bool)
    small_labels = np.full(n, -1)
    seen = image[there]
    cover = _paint(seen, v[there], small_x[there], small_y[there], small[there], grid, px, look)
    image[there], small_masks[there], small_labels[there] = seen, cover, _label(v[there, 0])
    masks = _paint(image, u, x, y, radius, grid, px, look)
    small_masks &= ~masks
    small_labels[~small_masks.any((1, 2))] = -1
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scenes(pixels, _label(u[:, 0]), _boxes(masks), masks, small_labels, _boxes(small_masks), small_masks)


def _label(u: np.ndarray) -> np.ndarray:
    return np.minimum((u * len(CLASSES)).astype(np.int64), len(CLASSES) - 1)


def _place(radius: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A centre that leaves the object on the board but for a tenth of its radius."""
    return radius * np.float32(0.9) + (_SIDE - 1.8 * radius) * u


def _background(u: np.ndarray, grid: np.ndarray, look: int) -> np.ndarray:
    """Two colours, muted (in plankton those of deep water), mixed along a direction and bent by three soft waves:
    float32 (N, 3, S, S) in 0..1."""
    if look:
        start, end = (_hsv(0.48 + 0.17 * u[:, k], 0.5 + 0.4 * u[:, k + 1], 0.06 + 0.24 * u[:, k + 2]) for k in (0, 3))
    else:
        start, end = (_hsv(u[:, k], 0.1 + 0.4 * u[:, k + 1], 0.2 + 0.5 * u[:, k + 2]) for k in (0, 3))
    along = (grid - _SIDE / 2) / _SIDE
    mix = _rows(_cos(u[:, 6]), along)[:, None, :] + (_rows(_sin(u[:, 6]), along) + np.float32(0.5))[:, :, None]
    strength = np.float32(0.3) * u[:, 7]
    for k, (waves, height) in enumerate(((1.2, 1.0), (2.16, 0.5556), (3.888, 0.3086))):
        turn, stretch, phase = u[:, 8 + 3 * k : 11 + 3 * k].T
        frequency = waves / _SIDE * (0.7 + 0.6 * stretch)
        mix += _plane_wave(strength * height, frequency, turn, phase, grid, grid)
    mix = np.clip(mix, 0, 1)[:, None]
    return start[:, :, None, None] + (end - start)[:, :, None, None] * mix


def _paint(
    image: np.ndarray, u: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, grid: np.ndarray,
    px: np.float32, look: int,
) -> np.ndarray:  # fmt: skip
    """Paint one object into each image (N, 3, S, S) in place; returns where it is: bool (N, S, S).

    `x`, `y`, `radius` (N,) are in board units, `px` is pixels a unit.
    """
    label = _label(u[:, 0])
    dx, dy = grid[None] - x[:, None], grid[None] - y[:, None]  # (N, S)
    rotation = (u[:, 4] - 0.5) * 0.14  # turns: 25 degrees either way
    c, s = _cos(rotation) / radius, _sin(rotation) / radius
    alpha = np.empty((len(u), *grid.shape * 2), np.float32)
    for shape in range(len(SHAPES)):
        of = np.flatnonzero(label // 2 == shape)
        right = (c[of, None] * dx[of])[:, None, :] + (s[of, None] * dy[of])[:, :, None]
        down = (-s[of, None] * dx[of])[:, None, :] + (c[of, None] * dy[of])[:, :, None]
        outside = _OUTSIDE[shape + len(SHAPES) * look](right, down)
        # distance to the outline in pixels, so that an edge is about one pixel wide at any size
        alpha[of] = 0.5 - outside * (np.float32(0.8) * px * radius[of])[:, None, None]
    np.clip(alpha, 0, 1, out=alpha)

    mix = np.zeros_like(alpha)
    striped = np.flatnonzero(label % 2)
    w, ones = u[striped], np.ones(len(striped), np.float32)
    wave = _plane_wave(ones, 1 / (6 + 4 * w[:, 7]), 0.5 * w[:, 6], w[:, 5], dx[striped], dy[striped])
    if look:  # dots: where two waves across each other are both high
        wave += _plane_wave(ones, 1 / (6 + 4 * w[:, 7]), 0.5 * w[:, 6] + 0.25, w[:, 5], dx[striped], dy[striped])
    mix[striped] = np.clip(wave + np.float32(0.5 - look), 0, 1)
    if look:
        bright = _hsv(0.02 + 0.16 * u[:, 8], 0.1 + 0.35 * u[:, 9], 0.6 + 0.4 * u[:, 10])
        dark = _hsv(0.8 + 0.3 * u[:, 11], 0.3 + 0.4 * u[:, 12], 0.25 + 0.3 * u[:, 13])
    else:
        bright = _hsv(u[:, 8], 0.5 + 0.5 * u[:, 9], 0.7 + 0.3 * u[:, 10])
        dark = _hsv(u[:, 11], 0.5 + 0.5 * u[:, 12], 0.15 + 0.3 * u[:, 13])
    strength = np.float32(0.35) * u[:, 14] / radius
    across, along = _rows(strength * _cos(u[:, 15]), dx), _rows(strength * _sin(u[:, 15]), dy)
    light = across[:, None, :] + (along + np.float32(1))[:, :, None]
    for channel in range(3):
        colour = (bright[:, channel, None, None] + (dark - bright)[:, channel, None, None] * mix) * light
        image[:, channel] += (colour - image[:, channel]) * alpha
    return alpha > 0.5


_F = np.float32
#: How far outside a unit-sized shape a point lies (negative inside): of the SHAPES of scenes, then those of plankton.
_OUTSIDE: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda x, y: np.sqrt(x * x + y * y) - _F(0.9),
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) - _F(0.78),
    lambda x, y: np.maximum(np.abs(x) * _F(0.866) + y * _F(0.5), -y) - _F(0.5),
    lambda x, y: np.abs(np.sqrt(x * x + y * y) - _F(0.68)) - _F(0.24),
    lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)) - _F(0.95), np.minimum(np.abs(x), np.abs(y)) - _F(0.3)),
    lambda x, y: (np.sqrt(x * x + 4 * y * y) - _F(0.95)) * _F(0.6),
    lambda x, y: (np.abs(x) + np.abs(y) - _F(0.95)) * _F(0.7),
    lambda x, y: np.maximum(np.sqrt(x * x + y * y) - _F(0.9), _F(0.7) - np.sqrt((x - _F(0.45)) ** 2 + y * y)),
    lambda x, y: np.maximum(np.abs(y) * _F(0.866) + np.abs(x) * _F(0.5), np.abs(x)) - _F(0.78),
    lambda x, y: (np.sqrt(np.abs(x)) + np.sqrt(np.abs(y)) - 1) * _F(0.7),
)


def _plane_wave(height, frequency, turn, phase, x, y) -> np.ndarray:
    """height * cos(2 pi (frequency * distance along `turn` + phase)): (N, S, S) for x, y (S,) or (N, S).

    cos(a + b) = cos a cos b - sin a sin b leaves trigonometry to rows and columns and three passes to the picture.
    """
    a = _rows(frequency * _cos(turn), x) + phase[:, None]
    b = _rows(frequency * _sin(turn), y)
    height = np.asarray(height, np.float32)[:, None]
    return (height * _cos(a))[:, None, :] * _cos(b)[:, :, None] - (height * _sin(a))[:, None, :] * _sin(b)[:, :, None]


def _rows(factor: np.ndarray, line: np.ndarray) -> np.ndarray:
    """factor (N,) times a line (S,) or lines (N, S): float32 (N, S)."""
    return factor[:, None].astype(np.float32) * line


def _sin(turns: np.ndarray) -> np.ndarray:
    """Sine of an angle in turns to .001, by parabolas: exact arithmetic on every machine."""
    t = turns - np.rint(turns)
    y = 8 * t * (1 - 2 * np.abs(t))
    return y * (np.float32(0.775) + np.float32(0.225) * np.abs(y))


def _cos(turns: np.ndarray) -> np.ndarray:
    return _sin(turns + np.float32(0.25))


def _hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Colours (N,) each in 0..1 -> float32 RGB (N, 3)."""
    k = (hue[:, None] + np.array([0, 2 / 3, 1 / 3], np.float32)) * 6
    k = k - 6 * np.floor(k / 6)
    return value[:, None] * (1 - saturation[:, None] * (1 - np.clip(np.abs(k - 3) - 1, 0, 1)))


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of masks (N, S, S): float32 (N, 4) xyxy in pixels, zeros where a mask is empty."""
    sides = masks.any(1), masks.any(2)
    low = [side.argmax(1) for side in sides]
    high = [masks.shape[-1] - side[:, ::-1].argmax(1) for side in sides]
    return (np.stack([*low, *high], 1) * masks.any((1, 2))[:, None]).astype(np.float32)


# --- as files, in the layouts of the field's data sets


def _drawn(seed: int, count: int, size: int, title: str) -> Iterator[tuple]:
    """(index, scenes drawn together, place among them) of the first `count` scenes of a seed, with progress."""
    with progress(count, title) as bar:
        for start in range(0, count, 256):
            index = range(start, min(start + 256, count))
            drawn = render(seed, np.array(index), size)
            yield from ((number, drawn, place) for place, number in enumerate(index))
            bar.update(len(index))


def rle(pixels: np.ndarray) -> dict:
    """A mask (H, W) as COCO's compressed runs."""
    from pycocotools import mask

    found = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def write_coco(folder: Path, *, train: int, val: int, size: int) -> None:
    """Write the first scenes of the labelled pool (`train`) and of the test split (`val`) as COCO instances 2017: a PNG
    a scene; its large object and, where it is visible, the small one, with category, tight box and mask."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    for part, source, count in (("train", "probe_train", train), ("val", "test", val)):
        pictures, images, rows = folder / f"{part}2017", [], []
        pictures.mkdir(exist_ok=True)
        for number, drawn, place in _drawn(SCENE_SPLITS[source], count, size, "scenes in COCO layout"):
            name = f"{number:012d}.png"
            Image.fromarray(drawn.images[place].transpose(1, 2, 0)).save(pictures / name)
            images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
            for labels, boxes, masks in (
                (drawn.labels, drawn.boxes, drawn.masks),
                (drawn.small_labels, drawn.small_boxes, drawn.small_masks),
            ):
                if labels[place] >= 0:
                    x0, y0, x1, y1 = boxes[place].tolist()
                    row = {"id": len(rows) + 1, "image_id": number + 1, "category_id": int(labels[place]) + 1}
                    row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(masks[place].sum())}
                    rows.append(row | {"segmentation": rle(masks[place]), "iscrowd": 0})
        # the version is that of the pictures: annotations alone would not tell other colours
        content = {"info": {"description": "scenes", "version": SCENES_VERSION}}
        content |= {"images": images, "annotations": rows, "categories": categories}
        (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content), encoding="utf-8")


def write_ade20k(folder: Path, *, size: int) -> None:
    """Write the scenes of `ADE_SPLITS` into a folder as ADE20K has its images, and the names of the classes."""
    (folder / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n", encoding="utf-8")
    for part, (seed, count) in ADE_SPLITS.items():
        images, annotations = folder / "images" / part, folder / "annotations" / part
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number, drawn, place in _drawn(seed, count, size, "scenes in ADE20K's layout"):
            Image.fromarray(drawn.images[place].transpose(1, 2, 0)).save(images / f"scene_{number:05d}.png")
            Image.fromarray(class_numbers(drawn, place)).save(annotations / f"scene_{number:05d}.png")
