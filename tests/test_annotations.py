"""Broken annotation files, generated: one line or data, no traceback, no crash, the same numbers twice."""

import copy
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from simmim_lite.data import annotations, coco
from simmim_lite.data.coco import decode_mask, open_coco
from simmim_lite.errors import UserError
from simmim_lite.training.detect import average_precision, ground_truth

#: SIMMIM_FUZZ=20000 looks longer.
FUZZ = settings(max_examples=int(os.environ.get("SIMMIM_FUZZ", 60)), deadline=None, derandomize=True, database=None)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-40, 40), st.floats(), st.floats(-50, 50), st.just(10**400), st.booleans()
)
SCALARS = st.one_of(NUMBERS, st.none(), st.text(max_size=12), st.sampled_from(["0", "\ud800", "a\nb", "52203o", "\0"]))
POLYGONS = st.lists(st.lists(st.one_of(st.floats(-30, 60), NUMBERS), max_size=12), max_size=3)
RUNS = st.lists(st.integers(0, 130), max_size=8)
RLE = st.fixed_dictionaries(
    {"size": st.sampled_from([[10, 12], [12, 10], [10.0, 12], [10], None, 10]), "counts": st.one_of(RUNS, st.text(
        st.characters(min_codepoint=48, max_codepoint=112), max_size=12), SCALARS)}
)  # fmt: skip
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))
VALUES = st.one_of(SCALARS, st.lists(NUMBERS, min_size=4, max_size=4), POLYGONS, RLE, NESTED)


def places(content: object, path: tuple = ()) -> list[tuple]:
    """The path to each value of a JSON content."""
    found = [path] if path else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def broken(data: st.DataObject, content: dict) -> dict:
    """The content with one to three values replaced, removed or written twice."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        known = places(content)
        if not known:
            return content
        *above, last = data.draw(st.sampled_from(known))
        holder = content
        for key in above:
            holder = holder[key]
        how = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if how == "remove":
            del holder[last]
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(data.draw(VALUES))  # a strategy hands out its own lists
    return content


def outcome(call) -> object:
    """What a call returns, or its one line."""
    try:
        return call()
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Three images of 12 x 10 px in each split, with polygons, RLE as runs and as text, a crowd."""
    top = tmp_path_factory.mktemp("fuzz")
    mask = np.zeros((10, 12), np.uint8, order="F")
    mask[2:6, 2:8] = 1
    runs = {"size": [10, 12], "counts": [22, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 44]}
    text = {"size": [10, 12], "counts": coco_mask.encode(mask)["counts"].decode()}
    shapes = [[[2.0, 2, 8, 2, 8, 6, 2, 6]], [[2, 2, 8, 2, 8, 6], [1, 1, 5, 1, 5, 4]], runs, text]
    rows = [
        {"id": k, "image_id": 10 + k % 3, "category_id": 3 + 4 * (k % 2), "bbox": [2, 2, 6, 4], "area": 24,
         "iscrowd": int(k == 2), "segmentation": shape}
        for k, shape in enumerate(shapes)
    ]  # fmt: skip
    images = [{"id": 10 + k, "file_name": f"{k}.png", "width": 12, "height": 10} for k in range(3)]
    content = {"images": images, "annotations": rows}
    content |= {"categories": [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]}
    (top / "annotations").mkdir()
    for part in ("train", "val"):
        (top / f"{part}2017").mkdir()
        for k in range(3):
            Image.fromarray(np.full((10, 12, 3), 40 * k, np.uint8)).save(top / f"{part}2017" / f"{k}.png")
        (top / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return top, content


def detection_data(top) -> list:
    """All that a detection training sees, and the score of the truth itself."""
    coco._open.cache_clear()
    data = open_coco(f"coco:{top}", 32)
    seen = [data.classes, data.digest]
    for split in (data.train, data.test):
        for i in range(len(split)):
            sample = split[i]
            (x0, y0, x1, y1), width = sample.boxes.T, np.float32(sample.image.shape[2])
            assert (x1 > x0).all() and (y1 > y0).all() and (width - x0 > width - x1).all()
            assert (
                sample.masks.shape == (len(sample.labels), *sample.image.shape[1:]) and sample.masks.max(initial=0) < 2
            )
            assert ((sample.labels > 0) & (sample.labels <= data.num_classes)).all()
            seen.append([part.tobytes() for part in sample])
    truth = ground_truth(data.test, data.num_classes)
    found = [a | {"score": 0.5} for a in copy.deepcopy(truth["annotations"]) if not a["iscrowd"]]
    for one in found:
        encoded = coco_mask.encode(np.asfortranarray(decode_mask(one["segmentation"], (10, 12))))
        one["segmentation"] = encoded | {"counts": encoded["counts"].decode()}
    if found:
        seen.append(average_precision(truth, found, n_train=1))
    return seen


@FUZZ
@given(data=st.data())
def test_broken_coco_files(coco_folder, data):
    top, content = coco_folder
    for part in data.draw(st.sampled_from([("train",), ("val",), ("train", "val")])):
        (top / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(broken(data, content)))
    try:
        assert outcome(lambda: detection_data(top)) == outcome(lambda: detection_data(top))
    finally:
        for part in ("train", "val"):
            (top / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))


@FUZZ
@given(value=st.one_of(POLYGONS, RLE))
def test_masks_are_those_of_pycocotools_or_none(value):
    try:
        found = annotations.mask(value, (10, 12))
    except ValueError as error:
        assert "\n" not in str(error)
        return
    if found is not None:
        pixels = decode_mask(found, (10, 12))
        assert np.array_equal(pixels, decode_mask(found, (10, 12))) and pixels.max() <= 1


@FUZZ
@given(st.lists(st.integers(0, 1), min_size=120, max_size=120), st.integers(0, 60))
def test_rle_text_is_unpacked_as_pycocotools_does(bits, flat):
    pixels = np.array(bits, np.uint8)
    pixels[:flat] = 1
    pixels = np.asfortranarray(pixels.reshape(10, 12))
    text = coco_mask.encode(pixels)["counts"].decode()
    runs = annotations._unpacked(text)
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(12, 10).T, pixels)
