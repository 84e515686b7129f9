"""Detection data in COCO layout: what is read, what is left out, what is one clear line; scenes as such a folder."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from simmim_lite.data import coco, scene_layouts, scenes
from simmim_lite.data.coco import open_coco
from simmim_lite.errors import UserError

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]]


def annotation(number, image, box=(2, 2, 6, 4), category=7, **more):
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": 24, "iscrowd": 0}
    return fields | {"segmentation": SQUARE} | more


@pytest.fixture
def folder(tmp_path):
    """write(train, val, **changes): a folder with images of 12 x 10 px, ids 10, 20, 30, and categories 7, 3."""

    def write(train=None, val=None, **changes):
        train = [annotation(0, 10), annotation(1, 20, category=3)] if train is None else train
        val = [annotation(0, 10)] if val is None else val
        for part, rows in (("train", train), ("val", val)):
            pictures = tmp_path / f"{part}2017"
            pictures.mkdir(exist_ok=True)
            images = []
            for i in (1, 2, 3):
                Image.fromarray(np.full((10, 12, 3), 40 * i, np.uint8)).save(pictures / f"{i}.png")
                images.append({"id": 10 * i, "file_name": f"{i}.png", "width": 12, "height": 10})
            content = {"images": images, "annotations": rows}
            content |= {"categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}]} | changes
            (tmp_path / "annotations").mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
        return f"coco:{tmp_path}"

    return write


def test_a_folder_is_read(folder):
    data = open_coco(folder(), 32)
    assert data.classes == ("ant", "cat") and data.num_classes == 2
    assert (len(data.train), len(data.test)) == (2, 3)  # an image without objects is tested on, not trained on
    assert data.train.files == ["1.png", "2.png"] and len(set(data.train.ids)) == 2
    image, boxes, labels, masks = data.train[0]
    assert image.shape == (3, 10, 12) and image.dtype == np.uint8 and (image == 40).all()
    assert boxes.tolist() == [[2, 2, 8, 6]] and labels.tolist() == [2]  # category 7 is the second
    assert masks.shape == (1, 10, 12) and masks.sum() == 24 and masks[0, 2:6, 2:8].all()
    assert open_coco(folder(train=[annotation(0, 10)]), 32).digest != data.digest == open_coco(folder(), 32).digest
    empty = data.test[data.test.files.index("3.png")]
    assert empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 10, 12)
    assert np.allclose(data.mean, 60 / 255) and np.allclose(data.std, 20 / 255)


def test_other_years_and_none(folder, tmp_path):
    spec = folder()
    for year in ("2014", ""):
        for part in ("train", "val"):
            old = next((tmp_path / "annotations").glob(f"instances_{part}*.json"))
            old.rename(tmp_path / "annotations" / f"instances_{part}{year}.json")
            next(tmp_path.glob(f"{part}*")).rename(tmp_path / f"{part}{year}")
        assert len(open_coco(spec, 32).test) == 3


def test_bad_annotations_are_left_out_and_counted(folder, capsys):
    bad = [
        annotation(5, 10, (2, 2, 0, 4)),  # no width
        annotation(6, 10, (12, 2, 3, 3)),  # right of the image
        annotation(7, 10, (-4, -4, 4, 3)),  # above it
        annotation(8, 99),  # of no image
        annotation(9, 10, segmentation=[]),
        annotation(10, 10, segmentation=[[1, 2, 3, 4]]),  # a line
        annotation(11, 10, segmentation={"size": [3, 3], "counts": [0, 9]}),
        annotation(12, 10, segmentation=None),
        annotation(14, 10, segmentation=[2, 2, 8, 2, 8, 6, 2, 6]),  # without the list around it
        annotation(15, 10, segmentation=[[2, 2, 8, 2, 8, 6, 2]]),  # an odd number
        annotation(16, 10, segmentation={"size": [10, 12], "counts": [120]}),
        annotation(17, 10, segmentation=[[20, 2, 30, 2, 30, 6]]),
        annotation(18, 10, (5, 2, 1e-7, 4)),  # none in float32
        annotation(13, 20, (0, 0, 0, 0)),
    ]
    data = open_coco(folder(train=[annotation(1, 10), *bad]), 32)
    assert data.train.files == ["1.png"] and len(data.train[0].labels) == 1  # image 2 has no usable object left
    line = "instances_train2017.json: 14 annotations left out: no area or mask inside a listed image (id 5, 6, 7 and 11"
    assert line in capsys.readouterr().err


def test_masks_of_every_kind_are_the_same_pixels(folder):
    """Polygons, RLE as text, as runs, and with runs of no length, where pycocotools stops; boxes are cut."""
    mask = np.zeros((10, 12), np.uint8, order="F")
    mask[2:6, 2:8] = 1
    text = {"size": [10, 12], "counts": coco_mask.encode(mask)["counts"].decode()}
    runs = {"size": [10, 12], "counts": [22, *[4, 6] * 5, 4, 44]}
    odd = {"size": [10, 12], "counts": [22, 2, 0, 2, 6, *[4, 6] * 4, 4, 0, 0, 44, 0]}
    rows = [annotation(k, 10, (-3, 4, 30, 30), segmentation=s) for k, s in enumerate((SQUARE, text, runs, odd))]
    sample = open_coco(folder(train=rows), 32).train[0]
    assert all(np.array_equal(one, mask) for one in sample.masks) and sample.boxes.tolist() == [[0, 4, 12, 10]] * 4


def test_crowds_are_not_trained_on_but_kept_for_the_score(folder):
    runs = {"size": [10, 12], "counts": [5, 20, 95]}
    crowd = annotation(2, 10, iscrowd=1, segmentation=runs)
    data = open_coco(folder(train=[annotation(1, 10), crowd, annotation(3, 20, iscrowd=1)], val=[crowd]), 32)
    assert data.train.files == ["1.png"] and len(data.train[0].labels) == 1
    test = data.test.files.index("1.png")
    assert [a["iscrowd"] for a in data.test.objects[test]] == [1] and len(data.test[test].labels) == 0


NAN = float("nan")
PICTURES = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 10} for i in (1, 2, 8, 9)]
RLE = {"size": [10, 12]}
#: List of the training file, what is changed in its first entry (or the list itself), words of the line that says so.
WRONG = [
    ("annotations", None, "it has no list 'annotations'"),
    ("annotations", [], "no image has an object to train on"),
    ("annotations", [annotation(4, 10)] * 2, "two entries of 'annotations' have the same id .4."),
    ("annotations", {"id": None}, "entry .* of 'annotations' has the id None; it must be a whole number or a text"),
    ("annotations", {"image_id": True}, "entry 1 of 'annotations' has the image_id True"),
    ("annotations", {"category_id": 8}, "annotation 1 has the category_id 8; categories are 3, 7"),
    ("annotations", {"bbox": None}, "has the bbox None; it must be four numbers x, y, width, height"),
    ("annotations", {"bbox": [1, 2, 3]}, "has the bbox"),
    ("annotations", {"bbox": [1, 2, 3, NAN]}, "has the bbox"),
    ("annotations", {"bbox": [1, 2, 10**400, 4]}, "has the bbox"),
    ("annotations", {"area": -1}, "has the area -1; it must be a number from 0"),
    ("annotations", {"iscrowd": "0"}, "has the iscrowd '0'; it must be 0 or 1"),
    ("annotations", {"segmentation": "polygon"}, "the segmentation of annotation 1 is 'polygon'; it must be polygons"),
    ("annotations", {"segmentation": [SQUARE]}, "holds the polygon ..2.0, 2.0.*; it must be numbers x, y"),
    ("annotations", {"segmentation": [[2, 2, None, 2, 8, 6]]}, "holds the polygon .2, 2, None, 2, 8, 6."),
    ("annotations", {"segmentation": [[2, 2, NAN, 2, 8, 6]]}, "holds the polygon"),
    ("annotations", {"segmentation": [None]}, "holds the polygon None"),
    ("annotations", {"segmentation": {"counts": [0, 120]}}, "it must be polygons, or RLE with size and counts"),
    ("annotations", {"segmentation": RLE | {"counts": [5, 20]}}, "must be runs of 0 or more, 120 pixels in all"),
    ("annotations", {"segmentation": RLE | {"counts": [-5, 125]}}, "must be runs of 0 or more"),
    ("annotations", {"segmentation": RLE | {"counts": [5.5, 114.5]}}, "must be runs of 0 or more"),
    ("annotations", {"segmentation": RLE | {"counts": "52203"}}, "has the counts"),
    ("annotations", {"segmentation": RLE | {"counts": "52o"}}, "has the counts"),
    ("annotations", {"segmentation": RLE | {"counts": "o" * 60}}, "has the counts"),
    ("images", [], "lists no images"),
    ("images", PICTURES, "2 of 4 images are not in .*train2017, such as 8.png"),
    ("images", {"width": None}, "entry 10 of 'images' has the width None; it must be a whole number from 1 to 65,535"),
    ("images", {"width": 10**9}, "has the width 1000000000"),
    ("images", {"file_name": ""}, "has the file_name ''; it must be the name of a file"),
    ("images", {"file_name": "a\0.png"}, "has the file_name"),
    ("categories", [{"id": 7, "name": "a"}] * 2, "two entries of 'categories' have the same id .7."),
    ("categories", {"id": [7]}, "entry .* of 'categories' has the id .7."),
    ("categories", {"name": None}, "has the name None"),
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
    with pytest.raises(UserError, match=words) as caught:
        open_coco(spec, 32)
    assert "\n" not in str(caught.value) and "instances_train2017.json: " in str(caught.value)


def test_what_the_field_allows_is_read(folder):
    """Null for an optional field, ids that are texts or start anywhere, other ways to write 0 and 1."""
    spec = folder(
        train=[annotation("a", 10, iscrowd=None, area=None), annotation(2, 20, iscrowd=False) | {"area": 0}],
        val=[{k: v for k, v in annotation(1, 10.0, category=3).items() if k not in ("iscrowd", "area")}],
        categories=[{"id": 7, "name": "cat"}, {"id": 3, "name": 5}],
    )
    data = open_coco(spec, 32)
    assert data.classes == ("5", "cat") and [a["area"] for [a] in data.train.objects] == [24, 24]
    assert sum(map(len, data.test.objects)) == 1


def test_boxes_written_otherwise_are_noticed(folder, capsys):
    open_coco(folder(train=[annotation(1, 10, (2, 2, 8, 8)), annotation(2, 20)]), 32)  # corners
    assert "1 annotation kept: the box has little in common with the polygons (id 1)\n" in capsys.readouterr().err
    shares = annotation(1, 10, (0.2, 0.2, 0.5, 0.4), segmentation=[[0.2, 0.2, 0.7, 0.2, 0.7, 0.6]])
    with pytest.raises(UserError, match="no box reaches farther than 1, as if it were a share of its image"):
        open_coco(folder(train=[shares]), 32)


def test_a_class_that_never_occurs_is_named_once(folder, capsys):
    data = open_coco(folder(train=[annotation(0, 10)]), 32)
    for _ in range(2):
        data.name_unseen(range(len(data.train)))
    line = f"{data.spec}: 1 of 2 classes never occur in training: class 1 (ant)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("turn", [3, 6])
def test_annotations_are_read_as_of_the_upright_picture(folder, tmp_path, turn):
    spec, path, exif = folder(), tmp_path / "train2017" / "1.png", Image.Exif()
    pixels = np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)
    exif[0x0112] = turn
    Image.fromarray(np.rot90(pixels, {3: 2, 6: 1}[turn])).save(path, exif=exif)
    assert np.array_equal(open_coco(spec, 32).train[0].image, pixels.transpose(2, 0, 1))
    Image.fromarray(pixels).save(path, exif=exif)  # as it is stored, it has the size of its annotations
    if turn == 6:
        with pytest.raises(UserError, match="1.png: 10 x 12 px, .* 12 x 10, the picture before its EXIF orientation"):
            open_coco(spec, 32).train[0]


def test_missing_files_are_one_line(folder, tmp_path):
    spec = folder()
    for other, words in (
        (str(tmp_path), "is a folder, say coco:"),
        ("cocoa:x", "known are scenes, coco:DIR"),
        (f"coco:{tmp_path / 'nowhere'}", "is no folder"),
        (f"coco:{tmp_path / 'train2017'}", "holds no annotations/instances_train2017.json"),
    ):
        with pytest.raises(UserError, match=words):
            open_coco(other, 32)
    path = tmp_path / "annotations" / "instances_val2017.json"
    whole = path.read_text()
    for text, words in (
        (whole[:100], "instances_val2017.json: not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        (whole.replace('"cat"', '"dog"'), "other categories than instances_train2017.json"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            open_coco(spec, 32)
    path.unlink()
    with pytest.raises(UserError, match="instances_val2017.json is missing"):
        open_coco(spec, 32)


def test_a_broken_image_and_one_of_another_size_are_named(folder, tmp_path):
    data = open_coco(folder(), 32)
    path = tmp_path / "train2017" / "1.png"
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="1.png: 10 x 12 px, but its annotations are for 12 x 10"):
        data.train[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="1.png: not a readable picture .*replace it, or remove its annotations"):
        data.train[0]


def test_scenes_become_a_folder_of_their_own(tmp_path):
    scene_layouts.write_coco(tmp_path, train=30, val=8, size=32)
    data = open_coco(f"coco:{tmp_path}", 32)
    assert data.classes == scenes.CLASSES and (len(data.train), len(data.test)) == (30, 8)
    drawn = scenes.render(3, np.arange(30))
    for i in range(30):
        image, boxes, labels, masks = data.train[i]
        assert np.array_equal(image, drawn.images[i])
        known = [(drawn.labels[i], drawn.boxes[i], drawn.masks[i])]
        if drawn.small_labels[i] >= 0:
            known.append((drawn.small_labels[i], drawn.small_boxes[i], drawn.small_masks[i]))
        assert labels.tolist() == [label + 1 for label, _, _ in known]
        assert np.array_equal(boxes, [box for _, box, _ in known])
        assert np.array_equal(masks, [mask for _, _, mask in known])
    assert (drawn.small_labels >= 0).any()
    first = data.test[data.test.files.index(f"{0:012d}.png")]
    assert np.array_equal(first.image, scenes.render(2, [0]).images[0])


def test_scenes_are_written_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path))
    monkeypatch.setattr(scene_layouts, "SCENE_COUNTS", {"probe_train": 12, "test": 5})
    written, write = [], scene_layouts.write_coco
    monkeypatch.setattr(scene_layouts, "write_coco", lambda *a, **k: written.append(k) or write(*a, **k))
    (tmp_path / "stores" / "scenes_coco-16px-old.tmp-x").mkdir(parents=True)  # what a killed call left
    data = open_coco("scenes", 16)
    assert (len(data.train), len(data.test)) == (12, 5) and data.train[0].image.shape == (3, 16, 16)
    assert open_coco("scenes", 16).digest == data.digest and len(written) == 1
    assert [p.name for p in (tmp_path / "stores").iterdir() if p.is_dir()] == [data.train.folder.parent.name]
    # a PNG of other bytes is the same scene; an interrupted build leaves nothing
    for path in data.train.folder.glob("*.png"):
        Image.open(path).save(path, compress_level=0)
    coco._open.cache_clear()
    assert open_coco("scenes", 16).digest == data.digest

    def fails(folder, **counts):
        (folder / "half").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scene_layouts, "write_coco", fails)
    with pytest.raises(UserError, match="cannot write .*No space left"):
        open_coco("scenes", 24)
    assert not list((tmp_path / "stores").glob("scenes_coco-24px-*"))
