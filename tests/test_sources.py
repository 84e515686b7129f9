"""Sources: files of many kinds, splits that never overlap, mistakes in one line."""

import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
from picture_folders import fill, one_line, photos, picture, root  # noqa: F401 (fixtures)

from simmim_lite.data import sources, store
from simmim_lite.data.listing import image_ids
from simmim_lite.data.manifests import subset
from simmim_lite.data.sources import open_data

REPOSITORY = Path(__file__).resolve().parents[1]


# --- scenes


def test_scenes(monkeypatch):
    monkeypatch.setattr(sources, "SCENE_BLOCK", 512)
    monkeypatch.setattr(sources, "SCENE_COUNTS", {"val": 40, "test": 50, "probe_train": 60})
    data = open_data("scenes", 16)
    assert [len(s) for s in (data.train, data.val, data.test, data.probe_train)] == [512, 40, 50, 60]
    assert data.has_masks and data.num_classes == 10 and data.name == "scenes" and data.skipped == []
    every = np.concatenate([s.ids for s in (data.train, data.val, data.test, data.probe_train)])
    assert len(np.unique(every)) == len(every)
    assert data.val.masks.shape == (40, 16, 16) and data.train.images.shape == (512, 3, 16, 16)
    pixels = data.train.images / 255
    assert np.allclose(data.mean, pixels.mean((0, 2, 3))) and np.allclose(data.std, pixels.std((0, 2, 3)))

    more = open_data("scenes", 16, images_needed=513)
    assert len(more.train) == 1024 and np.array_equal(more.train.images[:512], data.train.images)
    assert (more.mean, more.std, more.digest) == (data.mean, data.std, data.digest)
    assert np.array_equal(more.test.images, data.test.images)
    assert np.array_equal(subset(more.train, 100, 1), subset(data.train, 100, 1))
    assert len(subset(more.train, 1000, 1)) == 1000


# --- image folders: splits and labels


def test_train_and_test_by_class(photos):
    data = open_data(f"imagefolder:{photos}", 16)
    assert data.classes == ("ant", "bee", "cat") and data.num_classes == 3 and not data.has_masks
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 6) and data.probe_train is data.train
    assert not set(data.val.ids) & set(data.test.ids)
    held = [f"test/{c}/{i:03}.png" for c in data.classes for i in range(4)]
    assert set(data.val.ids) | set(data.test.ids) == set(image_ids(held))
    train = [f"train/{c}/{i:03}.png" for c in data.classes for i in range(8)]
    assert (
        np.array_equal(data.train.ids, image_ids(train)) and data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    )
    assert [sorted(s.labels[:3]) for s in (data.val, data.test)] == [[0, 1, 2]] * 2  # any first n are class-balanced
    pixels = data.train.images / 255
    assert np.allclose(data.mean, pixels.mean((0, 2, 3))) and np.allclose(data.std, pixels.std((0, 2, 3)))


# --- image folders: what a file may be


def test_unreadable_and_small_images_are_left_out_by_name_once(photos, capsys, monkeypatch):
    (photos / "train/ant/003.png").write_bytes(b"not an image")
    whole = (photos / "train/bee/001.png").read_bytes()
    (photos / "train/bee/001.png").write_bytes(whole[: len(whole) // 2])
    picture(0, (20, 9)).save(photos / "test/cat/002.png")
    monkeypatch.setattr(store, "_NAMED", 2)
    data = open_data(f"imagefolder:{photos}", 16)
    assert [name for name, _ in sorted(data.skipped)] == ["test/cat/002.png", "train/ant/003.png", "train/bee/001.png"]
    assert (len(data.train), len(data.val) + len(data.test)) == (22, 11)
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 3 and "left out 1 more, all named in" in said[2]
    assert ("test/cat/002.png", "20 x 9 px, smaller than the image size 16") in data.skipped
    bad = image_ids(["train/ant/003.png", "train/bee/001.png"])
    assert not set(bad) & set(data.train.ids)
    again = open_data(f"imagefolder:{photos}", 16)
    assert capsys.readouterr().err == "" and again.skipped == data.skipped


# --- mistakes


def test_unknown_sources(photos):
    one_line("did you mean 'scenes'", open_data, "scene", 16)
    one_line("did you mean 'imagefolder:DIR'", open_data, "imagefoldr:x", 16)
    one_line(f"say imagefolder:{photos}", open_data, str(photos), 16)
    one_line("'imagefolder:' is incomplete", open_data, "imagefolder:", 16)
    one_line("did you mean 'CIFAR10'", open_data, "torchvision:CIFAR-10", 16)


def test_folders_that_cannot_be_used(photos, tmp_path):
    one_line("no such folder", open_data, f"imagefolder:{tmp_path / 'nowhere'}", 16)
    one_line("a file, not a folder", open_data, f"imagefolder:{photos / 'train/ant/000.png'}", 16)
    (tmp_path / "empty").mkdir()
    one_line("no images in this folder", open_data, f"imagefolder:{tmp_path / 'empty'}", 16)
    one_line("smaller than 64 px; use a smaller --image-size, at most 20", open_data, f"imagefolder:{photos}", 64)
    fill(tmp_path / "few", 4)
    one_line("too few", open_data, f"imagefolder:{tmp_path / 'few'}", 16)
    fill(photos / "test" / "yak", 1)
    one_line(r"test/yak/000.png: class 'yak' is not in .*train", open_data, f"imagefolder:{photos}", 16)
    for path in (tmp_path / "few").iterdir():
        path.write_bytes(b"")
    fill(tmp_path / "few", 0)
    (tmp_path / "few" / "5.png").write_bytes(b"")
    one_line(r"no image of its train split can be read \(first: ", open_data, f"imagefolder:{tmp_path / 'few'}", 16)


# --- torchvision and Hugging Face, on local stand-ins


def test_torchvision(root, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = root / "torchvision" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        labels = [i % 10 for i in range(count)]
        return write(name, {"data": rng.integers(0, 256, (count, 3072), np.uint8), "labels": labels})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 20), batch("data_batch_2", 10)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 20)])
    names = list("abcdefghij")
    filename, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})

    data = open_data("torchvision:CIFAR10", 32)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10) and data.classes == tuple(names)
    raw = pickle.loads((folder / "data_batch_1").read_bytes())["data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images[:20], raw) and data.train.labels[:12].tolist() == [*range(10), 0, 1]
    assert np.array_equal(data.train.ids, image_ids([f"train/{i}" for i in range(30)]))
    assert np.bincount(data.test.labels).tolist() == [1] * 10
    one_line("at most 32", open_data, "torchvision:CIFAR10", 64)

    def offline(_):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(CIFAR10, "_check_integrity", offline)
    one_line("torchvision cannot open it .*no network", open_data, "torchvision:CIFAR10", 16)


def test_hugging_face(photos, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    data = open_data(f"hf:{photos}", 16)
    assert data.classes == ("ant", "bee", "cat") and (len(data.train), len(data.val), len(data.test)) == (24, 6, 6)
    as_folder = open_data(f"imagefolder:{photos}", 16)
    assert {i.tobytes() for i in data.train.images} == {i.tobytes() for i in as_folder.train.images}
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]

    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "train.csv").write_text("a,b\n1,2\n")
    one_line("no train split with a column of images", open_data, f"hf:{tmp_path / 'words'}", 16)
    (tmp_path / "nothing").mkdir()
    one_line("datasets cannot load it", open_data, f"hf:{tmp_path / 'nothing'}", 16)
    monkeypatch.setitem(sys.modules, "datasets", None)
    one_line(r"pip install 'simmim-lite\[hf\]'", open_data, f"hf:{tmp_path / 'other'}", 16)


def test_data_root(monkeypatch):
    monkeypatch.setenv("SIMMIM_DATA", os.path.join("~", "somewhere"))
    assert store.data_root() == Path.home() / "somewhere"
    monkeypatch.delenv("SIMMIM_DATA")
    assert store.data_root() == Path.home() / ".cache" / "simmim_lite"
