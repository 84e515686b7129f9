"""Manifests: nested and class-balanced by rule; build fills in digests, verify names what differs."""

import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_folders import fill, one_line
from PIL import Image

from simmim_lite.data import manifests, scenes
from simmim_lite.data.manifests import image_ids, rank
from simmim_lite.data.sources import Split, listing


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2**40))
def test_every_prefix_is_class_balanced(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = image_ids([f"{seed}/{i}" for i in range(len(labels))])
    order = rank(ids, labels, seed)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    for n in range(len(labels) + 1):
        drawn = np.bincount(labels[order[:n]], minlength=len(counts))
        assert np.abs(drawn - n * np.array(counts) / len(labels)).max() <= len(counts)
        assert len(set(counts)) > 1 or drawn.max() - drawn.min() <= 1  # of equal classes


def test_draws_are_nested_functions_of_the_set_of_images():
    rng = np.random.default_rng(0)
    ids, labels, mixed = rng.integers(0, 2**63, 300, np.uint64), rng.integers(0, 10, 300), rng.permutation(300)
    split = Split("train of a test", np.empty((300, 0)), ids, labels, None)
    small, large, other = (set(manifests.subset(split, n, s)) for n, s in ((50, 5), (100, 5), (50, 6)))
    assert small < large and len(small) == 50 and len(small & other) < 25
    assert np.array_equal(ids[rank(ids, labels, 2)], ids[mixed][rank(ids[mixed], labels[mixed], 2)])
    assert np.array_equal(np.sort(rank(ids, None, 2)), np.arange(300)) and len(manifests.subset(split, None, 5)) == 300
    one_line("images 301: train of a test holds 300", manifests.subset, split, 301, 0)
    # a source that grows by blocks keeps its draws
    short, long = rank(ids[:100], labels[:100], 0, block=100), rank(ids, labels, 0, block=100)
    assert np.array_equal(long[:100], short) and np.array_equal(np.sort(long), np.arange(300))


def test_shipped_manifests_state_the_counts_of_the_paper():
    found = {path.stem: manifests.read(path) for path in manifests.SHIPPED.glob("*.yaml")}
    paper = {"imagenet1k-10": 128117, "imagenet1k-20": 256233, "imagenet1k-50": 640584, "imagenet1k-100": 1281167}
    for name, images in (paper | {"imagenet22k": 14197122}).items():
        part = found[name]["subsets"][0]
        assert part["images"] == images == round(part["fraction"] * found[name]["images"])
    assert [part["count"] for part in found["scenes"]["subsets"]] == [16, 64, 256, 1024, 16384]
    assert all(name == content["name"] for name, content in found.items())


def test_the_scenes_manifest_holds_everywhere():
    assert manifests.verify("scenes") == []
    assert np.bincount(scenes.labels(0, np.arange(16384))).min() > 1500


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            fill(tmp_path / "photos" / split / name, count)
    return tmp_path / "photos"


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "photos.yaml"
    subsets = [{"fraction": 0.5}, {"count": 2}]
    content = {"name": "photos", "source": "imagefolder", "images": 12, "classes": 2, "seed": 0, "subsets": subsets}
    path.write_text(yaml.safe_dump(content))
    return path


def test_build_then_verify_names_what_differs(folder, manifest):
    def photos():
        return listing(f"imagefolder:{folder}")

    one_line("no digest yet", manifests.verify, manifest, photos())
    built = manifests.build(manifest, photos())
    assert built == manifests.read(manifest) and len(built["digest"]) == 16
    assert [part["images"] for part in built["subsets"]] == [6, 2]
    (folder / "test" / "cat" / "001.png").rename(folder / "test" / "cat" / "other.png")  # only training images count
    assert manifests.verify(manifest, photos()) == []
    (folder / "train/cat/003.png").unlink()
    shutil.copy(folder / "train/dog/001.png", folder / "train/cat/copy.png")
    Image.new("RGB", (9, 9)).save(folder / "train/dog/new.png")
    differs = ["missing: train/cat/003.png", "extra: train/cat/copy.png", "extra: train/dog/new.png"]
    assert manifests.verify(manifest, photos()) == differs
    manifest.with_suffix(".paths.gz").unlink()
    (line,) = manifests.verify(manifest, photos())
    assert "holds 13 images" in line and "states 12" in line
    manifest.write_text(manifest.read_text().replace("images: 12", "images: 13"))
    manifests.build(manifest, photos())
    manifest.write_text(manifest.read_text().replace("seed: 0", "seed: 1"))  # an edited rule
    assert [line[:10] for line in manifests.verify(manifest, photos())] == ["subset 0.5", "subset 2: "]


def test_mistakes_are_one_line(folder, manifest, tmp_path):
    (folder / "train/cat/000.png").unlink()
    one_line("holds 11 images .* expects 12", manifests.build, manifest, listing(f"imagefolder:{folder}"))
    one_line("did you mean 'cifar10'", manifests.read, "cifar-10")
    one_line("give a folder", manifests.build, manifest)
    broken, good = tmp_path / "broken.yaml", yaml.safe_load(manifest.read_text())
    for content in (
        "a: [",
        yaml.safe_dump(good | {"sed": 1}),
        yaml.safe_dump(good | {"source": "scenes", "images": None}),
    ):
        broken.write_text(content)
        one_line("broken.yaml: not a manifest", manifests.read, broken)
    broken.write_text(yaml.safe_dump(good | {"images": None, "subsets": [{"count": 99}]}))
    one_line("99 images cannot be drawn", manifests.build, broken, listing(f"imagefolder:{folder}"))
