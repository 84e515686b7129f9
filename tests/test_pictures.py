"""Pictures at their own size: which are whose, and what happens to a folder that is not whole."""

import json
import os
import shutil

import numpy as np
import pytest
from photos import imagenet, inaturalist, photo
from PIL import Image

from simmim_lite.data import public, sources
from simmim_lite.data.sources import open_pictures
from simmim_lite.errors import UserError


def test_imagenet_is_indexed_and_the_whole_of_val_is_tested(tmp_path, monkeypatch):
    own = tmp_path / "data-root"  # the session's is shared with tests that write to it now
    monkeypatch.setenv("SIMMIM_DATA", str(own))
    root = imagenet(tmp_path)
    (root / "test").mkdir()
    photo(root / "test" / "unlabelled.JPEG", 1)  # as ImageNet's own test split, which has no labels
    data = open_pictures(f"imagefolder:{root}")
    assert (len(data.train), len(data.test), data.classes) == (12, 9, ("n00", "n01", "n02"))
    assert np.bincount(data.train.labels).tolist() == [4, 4, 4] and np.bincount(data.test.labels).tolist() == [3, 3, 3]
    for shelf, split in ((data.train, "train"), (data.test, "val")):
        for i in range(len(shelf)):
            path = shelf.title(i)
            assert f"/{split}/n0{shelf.labels[i]}/" in path.replace(os.sep, "/")
            with Image.open(path) as image:
                assert shelf.picture(i).size == image.size  # its own, not the input's
    assert not own.exists(), "something is stored"
    halves = sources.open_data(f"imagefolder:{root}", 64)  # pretraining splits val as it always did
    assert (len(halves.val), len(halves.test)) == (5, 4)
    assert set(halves.train.ids) <= set(data.train.ids)


def test_the_digest_is_of_names_bytes_and_labels_not_of_times_or_places(tmp_path):
    first = open_pictures(f"imagefolder:{imagenet(tmp_path / 'a')}").digest
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "train" / "n00" / "train_0.JPEG", (1, 1))
    assert open_pictures(f"imagefolder:{tmp_path / 'b'}").digest == first
    photo(tmp_path / "b" / "train" / "n00" / "train_9.JPEG", 5)
    assert open_pictures(f"imagefolder:{tmp_path / 'b'}").digest != first


@pytest.mark.parametrize("tree", ["2018", "train_val2018"])
def test_inaturalist_is_told_apart_by_its_json_files(tmp_path, tree):
    root = inaturalist(tmp_path, tree)
    data = open_pictures(f"inaturalist:{root}")
    assert (len(data.train), len(data.test)) == (9, 6)
    assert data.classes == ("species 3", "species 7", "species 12")  # by category id
    for shelf, images in ((data.train, "012"), (data.test, "34")):
        for i in range(len(shelf)):
            *_, category, name = shelf.title(i).split(os.sep)
            assert data.classes[shelf.labels[i]] == f"species {category}" and name[-5] in images
            assert shelf.picture(i).mode == "RGB"
    small = sources.open_data(f"inaturalist:{root}", 64)  # the same source at the studies' size
    assert (len(small.train), len(small.val), len(small.test)) == (9, 3, 3)
    digest = data.digest
    content = json.loads((root / "train2018.json").read_text())
    content["annotations"][0]["category_id"] = 12
    (root / "train2018.json").write_text(json.dumps(content))
    assert open_pictures(f"inaturalist:{root}").digest != digest


def _edit(root, file, **changes):
    content = json.loads((root / file).read_text())
    for name, change in changes.items():
        change(content[name])
    (root / file).write_text(json.dumps(content))


BROKEN = {
    "no json": (lambda r: (r / "val2018.json").unlink(), "no val2018.json in it, .*inat_comp"),
    "no tree": (lambda r: shutil.rmtree(r / "2018"), "neither 2018/ nor train_val2018/ in it; unpack train_val2018"),
    "missing image": (
        lambda r: (r / "2018" / "Aves" / "7" / "71.jpg").unlink(),
        "7/71.jpg is in train2018.json, but not",
    ),
    "unknown category": (
        lambda r: _edit(r, "val2018.json", categories=lambda c: c.pop(7)),
        "val2018.json: train_val2018/Aves/7/73.jpg is listed twice, or of a category that is not",
    ),
    "class of val alone": (
        lambda r: _edit(r, "train2018.json", annotations=lambda a: a.__delitem__(slice(0, 3))),
        "a category of which train2018.json has no image",
    ),
    "an image twice": (
        lambda r: _edit(r, "train2018.json", annotations=lambda a: a.append(a[0])),
        "'annotations' has an image twice",
    ),
    "an image of both": (
        lambda r: _edit(r, "val2018.json", images=lambda i: i[0].update(file_name="train_val2018/Aves/7/71.jpg")),
        "val2018.json: train_val2018/Aves/7/71.jpg is listed twice",
    ),
    "of no image": (
        lambda r: _edit(r, "train2018.json", annotations=lambda a: a[2].update(image_id=5)),
        "or one that it does not list",
    ),
    "another name": (
        lambda r: _edit(r, "val2018.json", categories=lambda c: c[7].update(name="owl")),
        "val2018.json: other categories than train2018.json has",
    ),
    "empty": (lambda r: _edit(r, "val2018.json", annotations=list.clear), "lists no images"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_inaturalist_folder_that_is_not_whole_is_one_line(tmp_path, what):
    breaks, words = BROKEN[what]
    breaks(inaturalist(tmp_path))
    with pytest.raises(UserError, match=words) as error:
        open_pictures(f"inaturalist:{tmp_path}")
    assert "\n" not in str(error.value)


def test_small_sources_are_pictures_too(monkeypatch):
    """A set of torchvision's by its own pictures; scenes from their store."""

    class Set(list):
        classes = ("a", "b")
        targets = property(lambda self: [y for _, y in self])

    def sets(name, root):
        pictures = [(Image.fromarray(np.full((20, 24), 10 * k, np.uint8)), k % 2) for k in range(12)]
        return Set(pictures[:8]), Set(pictures[8:])

    monkeypatch.setattr(public, "_torchvision_splits", sets)
    data = open_pictures("torchvision:CIFAR10")
    assert (len(data.train), len(data.test), data.classes) == (8, 4, ("a", "b"))
    for i in range(4):
        picture = data.test.picture(i)
        index = int(data.test.title(i).rpartition("/")[2])
        assert picture.size == (24, 20) and picture.getpixel((0, 0)) == (10 * (8 + index),) * 3
        assert data.test.labels[i] == index % 2
    monkeypatch.setattr(sources, "SCENE_BLOCK", 256)
    monkeypatch.setattr(sources, "SCENE_COUNTS", {"val": 8, "test": 12, "probe_train": 16})
    scenes = open_pictures("scenes")
    arrays = sources.open_data("scenes", 32)
    assert (len(scenes.train), len(scenes.test)) == (16, 12) and scenes.mean == arrays.mean
    np.testing.assert_array_equal(np.asarray(scenes.test.picture(3)).transpose(2, 0, 1), arrays.test.images[3])
