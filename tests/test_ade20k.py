"""The layout of ADE20K: what is in it, what is wrong with it, scenes written as such a folder; views to train on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ade_folders import ade_folder, save
from picture_folders import one_line
from PIL import Image

from simmim_lite.data import ade20k, scenes
from simmim_lite.data.ade20k import IGNORED, distort, full_view, open_ade20k, resize
from simmim_lite.data.batches import seeded
from simmim_lite.data.manifests import image_ids

FIRST = "ADE_00000000"


@pytest.fixture
def folder(tmp_path):
    return ade_folder(tmp_path / "ade")


def test_a_folder_is_opened(folder, tmp_path):
    data = open_ade20k(f"ade20k:{folder}", 32)
    assert (len(data.train), len(data.test)) == (6, 3) and data.classes == ("background", *scenes.CLASSES)
    assert data.train.files[2] == "images/training/ADE_00000002.jpg"
    assert data.train.ids[2] == image_ids(["training/ADE_00000002.jpg"])[0]
    image, labels = data.train.load(2)
    assert (image.shape, image.dtype, labels.shape, labels.dtype) == ((3, 32, 32), np.uint8, (32, 32), np.uint8)
    stored = np.asarray(Image.open(folder / "annotations/training/ADE_00000002.png"))
    assert (stored == 0).any() and np.array_equal(labels == IGNORED, stored == 0)
    assert np.array_equal(labels[stored > 0], stored[stored > 0] - 1)
    everything = np.stack([data.train.load(i)[0] for i in range(6)]) / 255
    assert np.allclose(data.mean, everything.mean((0, 2, 3))) and np.allclose(data.std, everything.std((0, 2, 3)))
    # the digest is of the content
    shutil.copytree(folder, tmp_path / "copy")
    assert open_ade20k(f"ade20k:{tmp_path / 'copy'}", 32).digest == data.digest
    save(folder / "annotations/training/ADE_00000002.png", np.ones_like(stored))
    assert open_ade20k(f"ade20k:{folder}", 32).digest != data.digest


def test_class_names_come_from_a_file_or_are_150(folder):
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t2\twall\n2\t0.1\t5\t2\tsky, air\n"
    for name, text, classes in (
        ("objectInfo150.txt", table, ("wall", "sky")),
        ("classes.txt", "a\nb\nc", ("a", "b", "c")),
        ("none.txt", "", tuple(f"class {k}" for k in range(1, 151))),
    ):
        for old in folder.glob("*.txt"):
            old.unlink()
        (folder / name).write_text(text)
        assert open_ade20k(f"ade20k:{folder}", 32).classes == classes
    (folder / "classes.txt").write_text("\n")
    one_line("classes.txt: names 0 classes; give 2 to 254", open_ade20k, f"ade20k:{folder}", 32)
    one_line("no images in /nowhere/images", open_ade20k, "ade20k:/nowhere", 32)


def picture(mode: str, kind: str, **options):
    return lambda path: Image.new(mode, (32, 32), 3).save(path, kind, **options)


def array(values):
    return lambda path: save(path, values)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (array(np.full((32, 32), 12, np.uint8)), "class 12 is out of range: 0 is unlabelled and 1 to 11 are classes"),
        (array(np.ones((32, 30), np.uint8)), "32 x 32 px, but its annotations are for 30 x 32"),
        (array(np.ones((32, 32, 3), np.uint8)), "PNG of mode RGB, not a PNG of 8-bit grey"),
        (picture("L", "JPEG"), "JPEG of mode L, not a"),
        (picture("L", "PNG", bits=4), "not a PNG of 8-bit grey"),
        (picture("P", "PNG"), "mode P, not a"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "no annotation"),
        (Path.unlink, f"no such file; add it, or remove its image .*{FIRST}.jpg"),
        (lambda path: (path.parents[2] / f"images/training/{FIRST}.jpg").write_bytes(b""), "not a readable picture"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(folder, write, words):
    write(folder / f"annotations/training/{FIRST}.png")
    one_line(f"training.*{words}", lambda: open_ade20k(f"ade20k:{folder}", 32).train.load(0))


def test_labels_from_zero_are_noticed_and_files_passed_over_said(folder, capsys):
    (folder / "classes.txt").write_text("background\nobject")
    (folder / "images/training/notes.txt").write_text("")
    (folder / f"images/training/{FIRST}.jpg").rename(folder / f"images/training/{FIRST}.JPE")
    for path in (folder / "annotations/training").iterdir():
        save(path, np.eye(32, dtype=np.uint8))
    data = open_ade20k(f"ade20k:{folder}", 32)
    assert data.train.files[0].endswith(".JPE") and data.train.load(0)[0].shape == (3, 32, 32)
    assert "1 passed over (images/training/notes.txt)" in capsys.readouterr().err
    assert list(data.train.numbers([0])) == [{0, 1}]
    data.name_unseen(range(6))
    said = capsys.readouterr().err
    assert "1 of 2 classes never occur in training: class 2 (object); 0 is unlabelled and classes count from 1" in said


def test_scenes_are_such_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(scenes, "ADE_SPLITS", {"training": (3, 8), "validation": (2, 6)})
    data = open_ade20k("scenes", 32)
    assert (data.spec, len(data.train), len(data.test)) == ("scenes", 8, 6)
    drawn = scenes.render(3, np.arange(8), 32)
    image, labels = data.train.load(5)
    assert np.array_equal(image, drawn.images[5]) and np.array_equal(labels, scenes.class_numbers(drawn, 5) - 1)


# --- views

FILL = torch.tensor([200, 201, 202], dtype=torch.uint8)


def pair(height, width, classes=5):
    """Labels in blocks of 8 px, and an image whose every channel is ten times the label."""
    g = torch.Generator().manual_seed(height * width)
    cells = torch.randint(classes, (-(-height // 8), -(-width // 8)), generator=g, dtype=torch.uint8)
    labels = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()
    return (10 * labels).expand(3, -1, -1).contiguous(), labels


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (68, 51, 51, (68, 51)),
        (10, 100, 51, (20, 204)),  # too long: the long side is four short ones at most, as 2,048 x 512 in the field
        (256, 256, 25.6, (26, 26)),
    ],
)
def test_sizes_keep_the_ratio(height, width, size, expected):
    image, labels = resize(*pair(height, width), size)
    assert image.shape == (3, *expected) and labels.shape == expected
    assert image.dtype == labels.dtype == torch.uint8
    assert resize(image, None, size)[1] is None and set(labels.unique().tolist()) <= set(range(5))  # never mixed


@pytest.mark.parametrize(("scale", "side"), [(1.0, 48), (0.5, 64)])
def test_image_and_labels_stay_together_and_what_lies_outside_is_filled(monkeypatch, scale, side):
    monkeypatch.setattr(ade20k, "distort", lambda image: image)
    monkeypatch.setattr(ade20k, "RATIOS", (scale, scale))
    with seeded(0):
        for _ in range(20):
            image, labels = full_view(*pair(side, side + 32 * (scale == 1)), side, FILL)
            outside = labels == IGNORED
            assert int(outside.sum()) == (0 if scale == 1 else 3 * side**2 // 4)
            assert torch.equal(image[:, outside], FILL[:, None].expand(-1, int(outside.sum())))
            if scale == 1:  # nothing is resized, so that the image says its label exactly
                assert all(torch.equal(channel, 10 * labels) for channel in image)


def test_a_crop_of_almost_one_class_is_drawn_again():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[48:, 48:] = 1  # one corner of sixteen; a crop of 24 px is mixed only where it lies over that corner
    image = labels.expand(3, -1, -1).contiguous()

    def share(tries):
        with seeded(0):
            parts = [ade20k._view(image, labels, 24, FILL, tries)[1] for _ in range(300)]
        return sum(float((p == 0).float().mean()) < 0.75 for p in parts) / len(parts)

    assert share(1) < 0.15 and share(10) > 4 * share(1)


def test_colours_are_distorted_within_their_ranges():
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    with seeded(0):
        seen = torch.stack([distort(grey)[:, 0, 0] for _ in range(1000)]).float()
    assert (seen.amax(1) - seen.amin(1)).max() <= 1  # saturation and hue leave grey alone
    assert 34 <= seen.min() < 45 and 160 < seen.max() <= 198  # (100 - 32) / 2 and (100 + 32) x 1.5
    assert 0.15 < (seen[:, 0] == 100).float().mean() < 0.35  # neither brightness nor contrast: a quarter
