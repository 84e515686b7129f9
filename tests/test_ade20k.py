"""The layout of ADE20K: what is in it, what is wrong with it, and scenes written as such a folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ade_folders import ade_folder, save
from PIL import Image

from simmim_lite.data import scene_layouts, scenes
from simmim_lite.data.ade20k import IGNORED, open_ade20k
from simmim_lite.data.listing import image_ids
from simmim_lite.errors import UserError

FIRST = "ADE_00000000"


@pytest.fixture
def folder(tmp_path):
    return ade_folder(tmp_path / "ade")


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A data root of its own with few scenes."""
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(scene_layouts, "ADE_SPLITS", {"training": (3, 8), "validation": (2, 6)})
    return tmp_path / "root" / "stores"


def load(folder, place=0):
    return open_ade20k(f"ade20k:{folder}", 32).train.load(place)


def test_a_folder_is_opened(folder):
    data = open_ade20k(f"ade20k:{folder}", 32)
    assert (len(data.train), len(data.test)) == (6, 3) and data.classes == ("background", *scenes.CLASSES)
    assert data.train.images[2] == "images/training/ADE_00000002.jpg"
    assert data.train.ids[2] == image_ids(["training/ADE_00000002.jpg"])[0]
    image, labels = data.train.load(2)
    assert (image.shape, image.dtype, labels.shape, labels.dtype) == ((3, 32, 32), np.uint8, (32, 32), np.uint8)
    stored = np.asarray(Image.open(folder / "annotations/training/ADE_00000002.png"))
    assert (stored == 0).any() and np.array_equal(labels == IGNORED, stored == 0)
    assert np.array_equal(labels[stored > 0], stored[stored > 0] - 1)
    everything = np.stack([data.train.load(i)[0] for i in range(6)]) / 255
    assert np.allclose(data.mean, everything.mean((0, 2, 3))) and np.allclose(data.std, everything.std((0, 2, 3)))


def test_class_names_come_from_a_file_or_are_150(folder):
    (folder / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t2\twall\n2\t0.1\t5\t2\tsky, air\n"
    )
    assert open_ade20k(f"ade20k:{folder}", 32).classes == ("wall", "sky")
    for name in ("objectInfo150.txt", "classes.txt"):
        (folder / name).unlink()
    data = open_ade20k(f"ade20k:{folder}", 32)
    assert len(data.classes) == data.train.classes == 150 and data.classes[0] == "class 1"
    (folder / "classes.txt").write_text("\n".join("abc"))
    assert open_ade20k(f"ade20k:{folder}", 32).classes == ("a", "b", "c")
    (folder / "classes.txt").write_text("\n")
    with pytest.raises(UserError, match="classes.txt: names 0 classes; give 2 to 254"):
        open_ade20k(f"ade20k:{folder}", 32)


def test_the_digest_is_of_the_content(folder, tmp_path):
    digest = open_ade20k(f"ade20k:{folder}", 32).digest
    shutil.copytree(folder, tmp_path / "copy")
    assert open_ade20k(f"ade20k:{tmp_path / 'copy'}", 32).digest == digest
    path = folder / f"annotations/training/{FIRST}.png"
    numbers = np.array(Image.open(path))
    numbers[-1, -1], numbers[-1, -2] = numbers[-1, -2] + 1, numbers[-1, -1] + 2
    save(path, numbers)
    assert open_ade20k(f"ade20k:{folder}", 32).digest != digest


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ade20k:", "has no annotations for segment: give scenes or ade20k:DIR"),
        ("torchvision:CIFAR10", "has no annotations for segment"),
        ("ade20k:/nowhere", "cannot read /nowhere/images/training .No such file.*give the folder that holds"),
    ],
)
def test_other_data_are_one_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        open_ade20k(spec, 32)
    assert "\n" not in str(caught.value)


def picture(mode: str, kind: str, **options):
    return lambda path: Image.new(mode, (32, 32), 3).save(path, kind, **options)


def array(values):
    return lambda path: save(path, values)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (array(np.full((32, 32), 12, np.uint8)), "class 12 is out of range: 0 is unlabelled and 1 to 11 are classes"),
        (array(np.full((32, 32), 255, np.uint8)), "class 255 is out of range"),
        (array(np.ones((32, 30), np.uint8)), "32 x 32 px, but its annotations are for 30 x 32"),
        (array(np.ones((32, 32, 3), np.uint8)), "an annotation of PNG of mode RGB; give a PNG of 8-bit grey"),
        (array(np.ones((32, 32), np.uint16)), "an annotation of PNG of mode I;16; give a PNG of 8-bit grey"),
        (picture("L", "JPEG"), "an annotation of JPEG"),
        (picture("L", "TIFF"), "an annotation of TIFF"),
        (picture("L", "PNG", bits=4), "an annotation of PNG"),
        (picture("P", "PNG"), "mode P; give a PNG of 8-bit grey"),
        (Path.unlink, f"no such file, the annotation of image {FIRST}.jpg"),
        (lambda path: [p.unlink() for p in (path.parents[2] / "images/training").iterdir()], "no images in .*images/"),
    ],
)  # fmt: skip
def test_bad_annotations_are_one_line(folder, write, words):
    write(folder / f"annotations/training/{FIRST}.png")
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "images/training" in str(caught.value) or f"training/{FIRST}." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_that_never_occur_are_named(folder, capsys):
    data = open_ade20k(f"ade20k:{folder}", 32)
    seen = set().union(*data.train.numbers(range(6)))
    stored = [np.asarray(Image.open(path)) for path in (folder / "annotations/training").iterdir()]
    assert seen == set(np.unique(stored))
    data.name_unseen(range(6), quiet=True)
    assert capsys.readouterr().err == ""
    data.name_unseen(range(6))
    assert f"{12 - len(seen)} of 11 classes never occur in training: class" in capsys.readouterr().err
    for path in (folder / "annotations/training").iterdir():
        save(path, np.zeros((32, 32), np.uint8))
    with pytest.raises(UserError, match="no pixel of 6 training annotations has a class; all are 0"):
        data.name_unseen(range(6))


def test_labels_from_zero_are_noticed(folder, capsys):
    (folder / "classes.txt").write_text("background\nobject")
    for path in (folder / "annotations/training").iterdir():
        save(path, np.eye(32, dtype=np.uint8))
    open_ade20k(f"ade20k:{folder}", 32).name_unseen(range(6))
    said = capsys.readouterr().err
    assert "1 of 2 classes never occur in training: class 2 (object); 0 is unlabelled and classes count from 1" in said
    (folder / "classes.txt").write_text("object")
    with pytest.raises(UserError, match="names 1 classes; give 2 to 254.*a background needs its own"):
        open_ade20k(f"ade20k:{folder}", 32)


def test_files_passed_over_are_said(folder, capsys):
    (folder / "images/training/notes.txt").write_text("")
    (folder / f"images/training/{FIRST}.jpg").rename(folder / f"images/training/{FIRST}.JPE")
    (folder / "annotations/validation/extra.png").write_text("")
    data = open_ade20k(f"ade20k:{folder}", 32)
    assert data.train.images[0].endswith(".JPE") and data.train.load(0)[0].shape == (3, 32, 32)
    said = capsys.readouterr().err
    assert "1 passed over (images/training/notes.txt)" in said
    assert "1 passed over (annotations/validation/extra.png)" in said


@pytest.mark.parametrize("kind", ["images/training/ADE_00000000.jpg", "annotations/training/ADE_00000000.png"])
def test_unreadable_files_are_one_line(folder, kind):
    path = folder / kind
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be read|not a readable") as caught:
        load(folder)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    data = open_ade20k(f"ade20k:{folder}", 32)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        data.train.load(0)


def test_scenes_are_such_a_folder(few):
    data = open_ade20k("scenes", 32)
    assert (data.spec, len(data.train), len(data.test)) == ("scenes", 8, 6)
    drawn = scenes.render(3, np.arange(8), 32)
    image, labels = data.train.load(5)
    assert np.array_equal(image, drawn.images[5])
    assert (labels[drawn.masks[5]] == 1 + drawn.labels[5]).all()
    assert (labels[drawn.small_masks[5]] == 1 + drawn.small_labels[5]).all()
    assert (labels[~drawn.masks[5] & ~drawn.small_masks[5]] == 0).all()
    place = data.test.images.index("images/validation/scene_00004.png")
    assert np.array_equal(data.test.load(place)[0], scenes.render(2, np.array([4]), 32).images[0])


def test_a_broken_write_leaves_nothing_behind(few, monkeypatch):
    def full(root, **_):
        (root / "classes.txt").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scene_layouts, "write_ade20k", full)
    with pytest.raises(UserError, match="cannot write .*No space left.*SIMMIM_DATA"):
        open_ade20k("scenes", 32)
    assert [p.name for p in few.iterdir() if p.is_dir()] == []
