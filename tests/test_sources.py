"""Sources and their stores: pictures of many kinds, splits that never overlap; kills, full disks."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from photos import imagenet, inaturalist, photo
from picture_folders import fill, one_line, photos, picture, root  # noqa: F401 (fixtures)
from PIL import Image

from simmim_lite.data import decode, sources, store
from simmim_lite.data.manifests import image_ids, subset
from simmim_lite.data.sources import open_data, open_pictures

REPOSITORY = Path(__file__).resolve().parents[1]


def test_scenes(monkeypatch):
    monkeypatch.setattr(sources, "SCENE_BLOCK", 512)
    monkeypatch.setattr(sources, "SCENE_COUNTS", {"val": 40, "test": 50, "probe_train": 60})
    data = open_data("scenes", 16)
    splits = data.train, data.val, data.test, data.probe_train
    assert [len(s) for s in splits] == [512, 40, 50, 60] and data.num_classes == 10
    every = np.concatenate([s.ids for s in splits])
    assert len(np.unique(every)) == len(every) and data.val.masks.shape == (40, 16, 16)
    pixels = data.train.images / 255
    assert np.allclose(data.mean, pixels.mean((0, 2, 3))) and np.allclose(data.std, pixels.std((0, 2, 3)))
    more = open_data("scenes", 16, images_needed=513)
    assert len(more.train) == 1024 and np.array_equal(more.train.images[:512], data.train.images)
    assert (more.mean, more.std, more.digest) == (data.mean, data.std, data.digest)
    assert np.array_equal(subset(more.train, 100, 1), subset(data.train, 100, 1))


def test_train_and_test_by_class(photos):
    (photos / "train/ant/003.png").write_bytes(b"not an image")
    (photos / "train/bee/001.png").write_bytes((photos / "train/bee/001.png").read_bytes()[:99])
    picture(0, (20, 9)).save(photos / "test/cat/002.png")
    data = open_data(f"imagefolder:{photos}", 16)
    assert data.classes == ("ant", "bee", "cat") and (len(data.train), len(data.val), len(data.test)) == (22, 6, 5)
    left_out = ["test/cat/002.png: smaller than the image size", "train/ant/003.png, train/bee/001.png: cannot be read"]
    assert all(words in data.line for words in left_out) and data.probe_train is data.train
    held = [f"test/{c}/{i:03}.png" for c in data.classes for i in range(4)]
    assert {*data.val.ids, *data.test.ids} == {*image_ids(held)} - {*image_ids(["test/cat/002.png"])}
    train = [f"train/{c}/{i:03}.png" for c in data.classes for i in range(8)]
    whole = [k for k in range(24) if k not in (3, 9)]
    assert np.array_equal(data.train.ids, image_ids(train)[whole])
    assert data.train.labels.tolist() == [k // 8 for k in whole]
    assert sorted(data.val.labels[:3]) == [0, 1, 2]  # any first n are class-balanced


def test_mistakes_are_one_line(photos, tmp_path):
    for spec, words in (
        ("scene", "did you mean 'scenes'"),
        ("imagefoldr:x", "did you mean 'imagefolder:DIR'"),
        (str(photos), f"say imagefolder:{photos}"),
        ("torchvision:CIFAR-10", "did you mean 'CIFAR10'"),
        (f"imagefolder:{tmp_path / 'nowhere'}", "No such file"),
        (f"imagefolder:{fill(tmp_path / 'few', 4)}", "too few"),
    ):
        one_line(words, open_data, spec, 16)
    one_line("train split can be used at 64 px .*20 x 20", open_data, f"imagefolder:{photos}", 64)


# --- at the pictures' own sizes


def test_imagenet_is_indexed_and_the_whole_of_val_is_tested(tmp_path, root):
    folder = imagenet(tmp_path / "a")
    (folder / "test").mkdir()
    photo(folder / "test" / "unlabelled.JPEG", 1)  # as ImageNet's own test split, which has no labels
    data = open_pictures(f"imagefolder:{folder}")
    assert (len(data.train), len(data.test), data.classes) == (12, 9, ("n00", "n01", "n02"))
    for split, name in ((data.train, "train"), (data.test, "val")):
        for i in range(len(split)):
            path = split.title(i)
            assert f"/{name}/n0{split.labels[i]}/" in path.replace(os.sep, "/")
            with Image.open(path) as image:
                assert split.picture(i).size == image.size  # its own, not the input's
    assert not root.exists(), "something is stored"
    halves = open_data(f"imagefolder:{folder}", 64)  # pretraining splits val as it always did
    assert (len(halves.val), len(halves.test)) == (5, 4) and set(halves.train.ids) <= set(data.train.ids)
    # the digest is of names, bytes and labels, not of times or places
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "train" / "n00" / "train_0.JPEG", (1, 1))
    assert open_pictures(f"imagefolder:{tmp_path / 'b'}").digest == data.digest
    photo(tmp_path / "b" / "train" / "n00" / "train_9.JPEG", 5)
    assert open_pictures(f"imagefolder:{tmp_path / 'b'}").digest != data.digest


def test_inaturalist_is_told_apart_by_its_json_files(tmp_path):
    data = open_pictures(f"inaturalist:{inaturalist(tmp_path, 'train_val2018')}")
    assert (len(data.train), len(data.test)) == (9, 6)
    assert data.classes == ("species 3", "species 7", "species 12")  # by category id
    for split, images in ((data.train, "012"), (data.test, "34")):
        for i in range(len(split)):
            *_, category, name = split.title(i).split(os.sep)
            assert data.classes[split.labels[i]] == f"species {category}" and name[-5] in images
    small = open_data(f"inaturalist:{tmp_path}", 64)  # the same source at the studies' size
    assert (len(small.train), len(small.val), len(small.test)) == (9, 3, 3)
    _edit(tmp_path, "train2018.json", annotations=lambda a: a[0].update(category_id=12))
    assert open_pictures(f"inaturalist:{tmp_path}").digest != data.digest


def _edit(root, file, **changes):
    content = json.loads((root / file).read_text())
    for name, change in changes.items():
        change(content[name])
    (root / file).write_text(json.dumps(content))


def test_an_inaturalist_folder_that_is_not_whole_is_one_line(tmp_path):
    breaks = [
        (lambda r: (r / "val2018.json").unlink(), "val2018.json.*inat_comp"),
        (lambda r: shutil.rmtree(r / "2018"), "neither 2018/ nor train_val2018/ in it"),
        (lambda r: (r / "2018" / "Aves" / "7" / "71.jpg").unlink(), "KeyError: '2018/Aves/7/71.jpg'"),
        (lambda r: _edit(r, "train2018.json", annotations=lambda a: a.append(a[0])), "no images, or one twice"),
    ]
    for k, (change, words) in enumerate(breaks):
        change(inaturalist(tmp_path / str(k)))
        one_line(words, open_pictures, f"inaturalist:{tmp_path / str(k)}")


# --- torchvision and Hugging Face, on local stand-ins


def test_torchvision(monkeypatch):
    from torchvision import datasets

    class CIFAR10:
        """As torchvision's: labels in a list, pictures as arrays."""

        classes, offline = list("abcdefghij"), False

        def __init__(self, root, train=True, download=False):
            if self.offline:
                raise RuntimeError("no network\nat all")
            self.targets = [k % 10 for k in range(30 if train else 20)]
            self.data = np.random.default_rng(train).integers(0, 256, (len(self.targets), 32, 32, 3), np.uint8)

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, k):
            return Image.fromarray(self.data[k]), self.targets[k]

    monkeypatch.setattr(datasets, "CIFAR10", CIFAR10)
    data, own = open_data("torchvision:CIFAR10", 32), open_pictures("torchvision:CIFAR10")
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10) and data.classes == tuple("abcdefghij")
    raw = CIFAR10("").data
    assert np.array_equal(data.train.images, raw.transpose(0, 3, 1, 2))
    assert data.train.labels[9:12].tolist() == [9, 0, 1]
    assert np.array_equal(data.train.ids, image_ids([f"train/{i}" for i in range(30)]))
    assert len(own.test) == 20 and own.test.title(0).startswith("torchvision:CIFAR10 test/")
    assert np.array_equal(np.asarray(own.train.picture(2)), raw[2])
    CIFAR10.offline = True
    one_line("torchvision cannot open it .*no network", open_data, "torchvision:CIFAR10", 16)


def test_hugging_face(photos, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    data = open_data(f"hf:{photos}", 16)
    assert data.classes == ("ant", "bee", "cat") and (len(data.train), len(data.val), len(data.test)) == (24, 6, 6)
    as_folder = open_data(f"imagefolder:{photos}", 16)
    assert {i.tobytes() for i in data.train.images} == {i.tobytes() for i in as_folder.train.images}
    one_line("datasets cannot load it", open_data, f"hf:{fill(tmp_path / 'nothing', 0)}", 16)
    monkeypatch.setitem(sys.modules, "datasets", None)
    one_line(r"pip install 'simmim-lite\[hf\]'", open_data, f"hf:{tmp_path / 'other'}", 16)


# --- the store


def test_a_store_is_decoded_once_and_anew_where_the_folder_changes(photos, root, monkeypatch, capsys):
    spec, stores = f"imagefolder:{photos}", lambda: list(root.glob("stores/*/index.json"))
    first = open_data(spec, 16)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "read_square", lambda *_: pytest.fail("decoded again"))
        again = open_data(spec, 16)
    assert again.digest == first.digest and np.array_equal(again.val.images, first.val.images)
    assert isinstance(again.train.images, np.memmap) and not again.train.images.flags.writeable
    picture(99).save(photos / "train/ant/000.png")
    second = open_data(spec, 16)
    picture(98).save(photos / "train/ant/new.png")
    third = open_data(spec, 16)
    assert len({first.digest, second.digest, third.digest}) == 3 and len(third.train) == 25
    assert len(stores()) == 1  # the ones it replaces are gone
    open_data(spec, 12)
    assert len(stores()) == 2  # another size is another store
    for path in root.glob("stores/*-16px-*/images.npy"):
        content, index = path.read_bytes(), json.loads(path.with_name("index.json").read_text())
        older = {name: one for name, one in index.items() if name not in ("crc32", "checksum")}
        path.with_name("index.json").write_text(json.dumps(older))
        capsys.readouterr()
        for _ in range(2):
            assert open_data(spec, 16).digest == third.digest
        assert capsys.readouterr().err.count("of an earlier version") == 1
        assert json.loads(path.with_name("index.json").read_text()) == index
        path.write_bytes(content[:900] + b"x" + content[901:])
        one_line("damaged store .*images.npy was changed .*delete this folder", open_data, spec, 16)
        path.write_bytes(content[:150])
    one_line("damaged store .*delete this folder", open_data, spec, 16)


def test_a_kill_leaves_no_half_store(photos, root):
    code = """
import os, sys, time
from simmim_lite.data import decode, sources, store
real, store._CHUNK, os.cpu_count = decode.read_square, 4, lambda: 1
done = []
def load(path, size):
    done.append(path)
    if len(done) > 10:
        print("middle", flush=True)
        time.sleep(9999)
    return real(path, size)
decode.read_square = load
sources.open_data(sys.argv[1], 16)
"""
    command = [sys.executable, "-c", code, f"imagefolder:{photos}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(root.glob("stores/*.tmp-*"))) == 1 and not list(root.glob("stores/*/index.json"))
    assert len(open_data(f"imagefolder:{photos}", 16).train) == 24 and not list(root.glob("stores/*.tmp-*"))


def test_of_two_that_open_a_source_one_builds_its_store(photos, monkeypatch):
    real, done = decode.read_square, []
    slow = lambda content, size: done.append(size) or time.sleep(0.005) or real(content, size)  # noqa: E731
    monkeypatch.setattr(decode, "read_square", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: open_data(f"imagefolder:{photos}", 16).digest, range(2))
    assert len(done) == 36 and first == second


def test_disks_that_refuse_are_one_line(photos, root, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a write past it fails as on a full disk
    try:
        one_line("cannot write .*set SIMMIM_DATA", open_data, f"imagefolder:{photos}", 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in root.glob("stores/*") if path.is_dir()]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "file"))
    one_line("cannot write .*set SIMMIM_DATA", open_data, f"imagefolder:{photos}", 16)
    monkeypatch.delenv("SIMMIM_DATA")
    assert store.data_root() == Path.home() / ".cache" / "simmim_lite"
