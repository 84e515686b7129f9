"""Detection data in COCO layout: what is read, left out, or one clear line; broken files; scenes as files."""

import json
import math

import numpy as np
import pytest
from picture_folders import one_line
from PIL import Image
from pycocotools import mask as coco_mask

from simmim_lite.data import coco, scenes
from simmim_lite.data.coco import open_coco
from simmim_lite.errors import UserError
from simmim_lite.training.detect import ground_truth, judge

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]]


def annotation(number, image, box=(2, 2, 6, 4), category=7, **more):
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": 24, "iscrowd": 0}
    return fields | {"segmentation": SQUARE} | more


def write(top, train, val, **changes) -> dict:
    """A folder with images of 12 x 10 px, ids 10, 20, 30, and categories 7, 3; the content of its last file."""
    (top / "annotations").mkdir(exist_ok=True)
    for part, rows in (("train", train), ("val", val)):
        (top / f"{part}2017").mkdir(exist_ok=True)
        for i in (1, 2, 3):
            Image.fromarray(np.full((10, 12, 3), 40 * i, np.uint8)).save(top / f"{part}2017" / f"{i}.png")
        images = [{"id": 10 * i, "file_name": f"{i}.png", "width": 12, "height": 10} for i in (1, 2, 3)]
        content = {"images": images, "annotations": rows}
        content |= {"categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}]} | changes
        (top / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def folder(tmp_path):
    def made(train=None, val=None, **changes):
        train = [annotation(0, 10), annotation(1, 20, category=3)] if train is None else train
        write(tmp_path, train, [annotation(0, 10)] if val is None else val, **changes)
        return f"coco:{tmp_path}"

    return made


def test_a_folder_is_read(folder):
    data = open_coco(folder(), 32)
    assert data.classes == ("ant", "cat") and data.num_classes == 2
    assert (len(data.train), len(data.test)) == (2, 3)  # an image without objects is tested on, not trained on
    assert data.train.files == ["1.png", "2.png"] and len(set(data.train.ids)) == 2
    image, boxes, labels, masks = data.train[0]
    assert image.shape == (3, 10, 12) and image.dtype == np.uint8 and (image == 40).all()
    assert boxes.tolist() == [[2, 2, 8, 6]] and labels.tolist() == [2]  # category 7 is the second
    assert masks.shape == (1, 10, 12) and masks.sum() == 24 and masks[0, 2:6, 2:8].all()
    assert open_coco(folder(train=[annotation(0, 10)]), 32).digest != data.digest
    empty = data.test[data.test.files.index("3.png")]
    assert empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 10, 12)
    assert np.allclose(data.mean, 60 / 255) and np.allclose(data.std, 20 / 255)


def test_bad_annotations_are_left_out_and_counted(folder, capsys):
    bad = [
        annotation(5, 10, (2, 2, 0, 4)),  # no width
        annotation(6, 10, (12, 2, 3, 3)),  # right of the image
        annotation(8, 99),  # of no image
        annotation(9, 10, segmentation=[]),
        annotation(10, 10, segmentation=[[1, 2, 3, 4]]),  # a line
        annotation(11, 10, segmentation={"size": [3, 3], "counts": [0, 9]}),
        annotation(14, 10, segmentation=[2, 2, 8, 2, 8, 6, 2, 6]),  # without the list around it
        annotation(16, 10, segmentation={"size": [10, 12], "counts": [120]}),
        annotation(18, 10, (5, 2, 1e-7, 4)),  # none in float32
        annotation(13, 20, (0, 0, 0, 0)),
    ]
    data = open_coco(folder(train=[annotation(1, 10), *bad]), 32)
    assert data.train.files == ["1.png"] and len(data.train[0].labels) == 1  # image 2 has no usable object left
    line = "instances_train2017.json: 10 annotations left out: no area or mask inside a listed image (id 5, 6, 8 and 7"
    assert line in capsys.readouterr().err


def test_masks_of_every_kind_are_the_same_pixels(folder):
    """Polygons, RLE as text, as runs, and with runs of no length, where pycocotools stops; boxes are cut. Crowds are
    not trained on, but kept for the score."""
    mask = np.zeros((10, 12), np.uint8, order="F")
    mask[2:6, 2:8] = 1
    shapes = [coco_mask.encode(mask)["counts"].decode(), [22, *[4, 6] * 5, 4, 44]]
    shapes += [[22, 2, 0, 2, 6, *[4, 6] * 4, 4, 0, 0, 44, 0]]
    rows = [annotation(k, 10, (-3, 4, 30, 30), segmentation=SIZED | {"counts": c}) for k, c in enumerate(shapes)]
    crowds = [annotation(k, k, iscrowd=1, segmentation=SIZED | {"counts": [5, 20, 95]}) for k in (10, 20)]
    data = open_coco(folder([annotation(9, 10, (-3, 4, 30, 30)), *rows, *crowds], crowds), 32)
    sample = data.train[0]
    assert all(np.array_equal(one, mask) for one in sample.masks) and sample.boxes.tolist() == [[0, 4, 12, 10]] * 4
    assert data.train.files == ["1.png"], "a crowd is nothing to train on"
    test = data.test.files.index("1.png")
    assert [a["iscrowd"] for a in data.test.objects[test]] == [1] and len(data.test[test].labels) == 0


NAN = float("nan")
PICTURES = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 10} for i in (1, 2, 8, 9)]
SIZED = {"size": [10, 12]}
#: List of the training file, what is changed in its first entry (or the list itself), a word of the line that says so.
WRONG = [
    ("annotations", None, "None"),
    ("annotations", [], "no image has an object"),
    ("annotations", {"category_id": 8}, "annotation 1: .*category_id 8"),
    ("annotations", {"bbox": [1, 2, 3, NAN]}, "annotation 1: .*bbox"),
    ("annotations", {"iscrowd": 2}, "annotation 1: .*iscrowd"),
    ("annotations", {"segmentation": [[2, 2, None, 2, 8, 6]]}, "annotation 1: "),
    ("annotations", {"segmentation": SIZED | {"counts": [5, 20]}}, "120 pixels in all"),
    ("annotations", {"segmentation": SIZED | {"counts": "o" * 60}}, "counts"),
    ("annotations", [annotation(1, 10, (0.2, 0.2, 0.5, 0.4))], "no box reaches farther than 1"),
    ("images", [], "no images"),
    ("images", PICTURES, "2 of 4 images are not in .*train2017, such as 8.png"),
    ("images", [PICTURES[0]] * 2, "twice"),
    ("images", {"width": 10**9}, "width"),
]


@pytest.mark.parametrize(("name", "change", "words"), WRONG, ids=lambda v: str(v)[:40])
def test_what_cannot_be_used_is_one_line(folder, tmp_path, name, change, words):
    spec, path = folder(train=[annotation(1, 10)]), tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    if isinstance(change, dict):
        content[name][0] |= change
    else:
        content[name] = change
    path.write_text(json.dumps(content))
    one_line(f"instances_train2017.json: .*{words}|{words}", open_coco, spec, 32)


def test_what_the_field_allows_is_read(folder, capsys):
    """Null for an optional field, ids that are texts or start anywhere, other ways to write 0 and 1."""
    spec = folder(
        train=[annotation("a", 10, iscrowd=None, area=None), annotation(2, 20, iscrowd=False) | {"area": 0}],
        val=[{k: v for k, v in annotation(1, 10.0, category=3).items() if k not in ("iscrowd", "area")}],
        categories=[{"id": 7, "name": "cat"}, {"id": 3, "name": 5}],
    )
    data = open_coco(spec, 32)
    assert data.classes == ("5", "cat") and [a["area"] for [a] in data.train.objects] == [24, 24]
    assert sum(map(len, data.test.objects)) == 1
    for _ in range(2):  # and a class that never occurs is named, once
        data.name_unseen(range(2))
    assert capsys.readouterr().err == f"{spec}: 1 of 2 classes never occur in training: class 1 (5)\n"


def test_missing_and_broken_files_are_one_line(folder, tmp_path):
    spec = folder()
    data, image = open_coco(spec, 32), tmp_path / "train2017" / "1.png"
    path = tmp_path / "annotations" / "instances_val2017.json"
    one_line("known are scenes, coco:DIR", open_coco, "cocoa:x", 32)
    one_line("instances_train2017.json is missing", open_coco, f"coco:{tmp_path / 'nowhere'}", 32)
    whole = path.read_text()
    for text in ("[" * 100_000, whole.replace('"cat"', '"dog"')):
        path.write_text(text)
        one_line("instances_val2017.json: ", open_coco, spec, 32)
    path.unlink()
    one_line("instances_val2017.json is missing", open_coco, spec, 32)
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(image)
    one_line("1.png: 10 x 12 px", data.train.pixels, 0)


def test_scenes_are_written_once_as_such_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path))
    monkeypatch.setattr(coco, "SCENE_COUNTS", {"probe_train": 12, "test": 5})
    (tmp_path / "stores" / "scenes-coco-16px-old.tmp-x").mkdir(parents=True)  # what a killed call left
    data = open_coco("scenes", 16)
    assert data.classes == scenes.CLASSES and (len(data.train), len(data.test)) == (12, 5)
    assert [p.name for p in (tmp_path / "stores").iterdir() if p.is_dir()] == [data.train.folder.parent.name]
    drawn = scenes.render(3, np.arange(12), 16)
    for i in range(12):
        image, boxes, labels, masks = data.train[i]
        assert np.array_equal(image, drawn.images[i]) and labels[0] == drawn.labels[i] + 1
        assert np.array_equal(boxes[0], drawn.boxes[i]) and np.array_equal(masks[0], drawn.masks[i])
        assert len(labels) == 1 + (drawn.small_labels[i] >= 0)

    def fails(folder, **counts):
        (folder / "half").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes, "write_coco", fails)  # an interrupted build leaves nothing
    one_line("cannot write .*No space left", open_coco, "scenes", 24)
    assert not list((tmp_path / "stores").glob("scenes-coco-24px-*"))


NASTY = [
    None, True, 0, -1, 7, 5.5, 1e-7, 10**400, NAN, math.inf, "", "a\nb", "\ud800", "\0", "52203o", "o" * 60, [], {},
    [[]], [None], [2, 2, 8, 2], [[2, 2, 8, 2, 8, NAN]], [[1e9, 2, 8, 2, 8, 6]], SQUARE, [SQUARE],
    *({"size": size, "counts": [0, 120]} for size in ([12, 10], [10.0, 12], [10], None)),
    *(SIZED | {"counts": c} for c in ([], [-5, 125], [0, 0, 120], [120.0], "52203o", "P" * 9, [True] * 120)),
]  # fmt: skip


@pytest.mark.parametrize("field", annotation(1, 10))
def test_a_field_of_any_value_is_data_or_one_line(tmp_path, field):
    content = write(tmp_path, [], [])
    for value in NASTY:
        content["annotations"] = [annotation(1, 10) | {field: value}, annotation(2, 20)]
        for path in (tmp_path / "annotations").iterdir():
            path.write_text(json.dumps(content))
        try:
            data = open_coco(f"coco:{tmp_path}", 32)
            samples = [split[i] for split in (data.train, data.test) for i in range(len(split))]
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for image, boxes, labels, masks in samples:
            assert (boxes[:, 2:] > boxes[:, :2]).all() and masks.shape == (len(labels), *image.shape[1:])
            assert masks.max(initial=0) < 2 and ((labels > 0) & (labels <= data.num_classes)).all()
        truth = ground_truth(data.test, data.num_classes)
        judge(truth, [a | {"score": 0.5} for a in truth["annotations"] if not a["iscrowd"]], "segm")
