"""Packs hold what their source holds, find any picture, are read by WebDataset, and say what is wrong with them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from trees import image_tree

from simmim_lite.cli import main
from simmim_lite.data import manifests, packing, packs
from simmim_lite.data.packing import Settings, pack
from simmim_lite.data.pictures import open_pictures
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError

FEW = Settings(short_side=64, shard_pictures=20)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """5 classes of 12 and 4 pictures, among them one that is large, turned, grey, a PNG, broken."""
    root = image_tree(tmp_path_factory.mktemp("tree") / "few", 5, 12, 4)
    one, *_, grey = sorted((root / "train" / "n00000000").iterdir())
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)).resize((300, 200))
    large.save(one, "JPEG", quality=95, exif=_turned())
    Image.open(grey).convert("L").save(grey, "JPEG")
    first = sorted((root / "train" / "n00000001").iterdir())
    Image.open(first[0]).save(first[0].with_suffix(".png"))
    first[0].unlink()
    first[1].write_bytes(first[1].read_bytes()[:90])
    return root


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "few"
    pack(f"imagefolder:{tree}", out, settings=FEW, workers=1)
    return out


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "few"))


def test_a_pack_lists_what_its_folder_lists(tree, packed) -> None:
    """Ids, labels, classes and splits, and so the draw of every manifest."""
    folder, ours = open_pictures(f"imagefolder:{tree}"), open_pictures(f"packed:{packed}")
    assert ours.classes == folder.classes and len(ours.classes) == 5
    broken = {i for i in range(len(folder.train)) if _reads(folder.train, i) is None}
    assert len(broken) == 1
    kept = [i for i in range(len(folder.train)) if i not in broken]
    place = {int(i): k for k, i in enumerate(ours.train.ids)}
    assert place.keys() == {int(folder.train.ids[i]) for i in kept}
    for i in kept:
        k = place[int(folder.train.ids[i])]
        assert ours.train.labels[k] == folder.train.labels[i]
        theirs, own = folder.train.picture(i), ours.train.picture(k)
        if min(theirs.size) <= 64:
            assert np.array_equal(np.asarray(theirs), np.asarray(own))
        else:
            assert own.size == (64, 96) and theirs.size == (200, 300)  # upright, short side 64
    assert np.array_equal(ours.test.ids, folder.test.ids)
    draws = [set(data.train.ids[manifests.subset(data.train, 15, 3)].tolist()) for data in (folder, ours)]
    assert len(draws[0] - draws[1]) <= 1  # but for the broken one


def _reads(shelf, i: int):
    try:
        return shelf.picture(i)
    except UserError:
        return None


def test_plain_small_jpegs_are_taken_as_they_are(tree, packed) -> None:
    ours = packs.open_pack(packed)
    same = [ours.content(i) == (tree / ours.name(i)).read_bytes() for i in np.flatnonzero(ours.columns["size"])]
    assert sum(same) == len(same) - 1  # all but the large one
    [left_out] = ours.info["left_out"]
    assert left_out[0].startswith("train/n00000001/") and "not a picture" in left_out[1]


def test_the_store_of_a_pack_has_the_pixels_of_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    root = image_tree(tmp_path / "whole", 3, 6, 4)
    pack(f"imagefolder:{root}", tmp_path / "pack", settings=FEW, workers=1)
    folder, ours = (open_data(spec, 32) for spec in (f"imagefolder:{root}", f"packed:{tmp_path / 'pack'}"))
    for name in ("train", "val", "test"):
        a, b = getattr(folder, name), getattr(ours, name)
        by_id = np.argsort(a.ids), np.argsort(b.ids)
        assert np.array_equal(a.images[by_id[0]], b.images[by_id[1]])
        assert np.array_equal(a.labels[by_id[0]], b.labels[by_id[1]])
    assert np.array_equal(folder.val.ids, ours.val.ids)
    assert folder.mean == ours.mean


def test_webdataset_reads_it(packed) -> None:
    shards = [str(path) for path in sorted(packed.glob("train-*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls"))
    ours = packs.open_pack(packed)
    assert len(found) == int((np.asarray(ours.columns["size"])[: 5 * 12] > 0).sum())
    rows = [i for i in range(60) if ours.columns["size"][i]]
    assert [label for _, label in found] == ours.columns["labels"][rows].tolist()
    assert np.array_equal(np.asarray(found[7][0].convert("RGB")), np.asarray(ours.picture(rows[7])))


def test_the_first_shards_are_the_smaller_subset(packed) -> None:
    """A third of the images lies in the first third of the shards."""
    ours = packs.open_pack(packed).parts()
    train = ours.train
    chosen = manifests.rank(ours.ids[train], ours.labels[train], 0)[:20]
    assert set(packs.open_pack(packed).columns["shard"][train[chosen]]) == {0}


def test_manifests_hold_for_packs(tree, packed, copy, tmp_path) -> None:
    manifest = tmp_path / "few.yaml"
    manifest.write_text("{name: few, source: imagefolder, images: null, seed: 0, subsets: [{fraction: .2}]}")
    manifests.build(manifest, tree)
    assert manifests.verify(manifest, packed) == []
    assert main(["data", "verify", str(packed), "--manifest", str(manifest), "--workers", "1"]) == 0
    _without_one(copy)
    assert any(line.startswith("missing: train/") for line in manifests.verify(manifest, copy))


def _without_one(folder: Path) -> None:
    """A pack whose index has lost its first row."""
    for path in (folder / "index").iterdir():
        np.save(path, np.load(path)[1:])
    info = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(info | {"listed": info["listed"] - 1}))


def _flip_a_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_pack_verifies(packed) -> None:
    assert packs.verify(packed, workers=1) == []


def test_a_flipped_byte_is_found_and_named(copy) -> None:
    ours = packs.open_pack(copy)
    shard = copy / ours.info["shards"][1]["name"]
    i = int(np.flatnonzero(np.asarray(ours.columns["shard"]) == 1)[3])
    _flip_a_byte(shard, int(ours.columns["offset"][i]) + 100)
    assert packs.verify(copy, workers=1) == [
        f"changed bytes: {ours.name(i)} in {shard.name}, at byte {ours.columns['offset'][i]:,}"
    ]


def test_a_flipped_byte_outside_of_pictures_is_found(copy) -> None:
    ours = packs.open_pack(copy)
    shard = copy / ours.info["shards"][0]["name"]
    [line] = packs.verify(copy, workers=1) or [""]
    assert line == ""
    _flip_a_byte(shard, 512)  # the class of the first picture
    [line] = packs.verify(copy, workers=1)
    assert line.startswith(f"changed bytes: in {shard.name}, outside of its pictures")
    _flip_a_byte(shard, 20)  # a header, whose own sum tells
    assert any(shard.name in line for line in packs.verify(copy, workers=1))


def test_missing_extra_and_short_shards_are_named(copy, capsys) -> None:
    names = [shard["name"] for shard in packs.open_pack(copy).info["shards"]]
    (copy / names[0]).unlink()
    shutil.copy(copy / names[1], copy / "train-99999.tar")
    os.truncate(copy / names[2], 5000)
    lines = packs.verify(copy, workers=1)
    assert f"missing shard: {names[0]}" in lines and "extra shard: train-99999.tar" in lines
    assert any(line.startswith(f"damaged shard: {names[2]}") or names[2] in line for line in lines)
    assert main(["data", "verify", str(copy)]) == 2
    said = capsys.readouterr()
    assert names[0] in said.out and said.err.count("\n") == 1 and "see above" in said.err


def test_a_duplicated_id_is_named(copy) -> None:
    ids = np.load(copy / "index" / "ids.npy")
    ids[7] = ids[3]
    np.save(copy / "index" / "ids.npy", ids)
    ours = packs.open_pack(copy)
    lines = packs.verify(copy, workers=1)
    for row in (3, 7):
        assert f"duplicated id: {ids[3]:016x} of {ours.name(row)} (row {row} of the index)" in lines


def test_a_picture_twice_in_a_shard_is_named(copy) -> None:
    """Its tar says the same key twice: WebDataset would see the picture twice."""
    import tarfile

    shard = copy / "train-00001.tar"
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[1]
        content = tar.extractfile(member)
        with tarfile.open(shard, "a") as more:
            more.addfile(member, content)
    lines = packs.verify(copy, workers=1)
    assert f"duplicated id: {member.name.partition('.')[0]} twice in {shard.name}" in lines


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_it_goes_on_with_the_same_bytes(tree, packed, tmp_path, workers) -> None:
    """Killed with SIGKILL once a shard is there; nothing that was whole is written again."""
    out = tmp_path / "killed"
    code = (
        "import sys, time; from simmim_lite.data import packing\n"
        "real = packing._encoded\n"
        "packing._encoded = lambda *a: (time.sleep(.02), real(*a))[1]\n"
        f"packing.pack('imagefolder:{tree}', {str(out)!r}, workers={workers},\n"
        "    settings=packing.Settings(short_side=64, shard_pictures=20))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("columns/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {path.stem: (out / path.stem).stat().st_mtime_ns for path in out.glob("columns/*.npz")}
    assert whole and not packs.is_pack(out)
    with pytest.raises(UserError, match="no pack.json in it, so it is no finished pack"):
        packs.open_pack(out)
    time.sleep(1)  # what the killed one started ends with it
    pack(f"imagefolder:{tree}", out, settings=FEW, workers=1)
    assert all((out / name).stat().st_mtime_ns == when for name, when in whole.items())
    assert _content(out) == _content(packed)


def _content(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if name != ".lock"}


def test_a_set_without_files_is_packed_without_loss(tmp_path, monkeypatch) -> None:
    from simmim_lite.data import sequences

    class Set(list):
        classes = ("a", "b")

        @property
        def targets(self):
            return [label for _, label in self]

    def sets(name, root):
        rng = np.random.default_rng(0)
        pictures = [(Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)), k % 2) for k in range(24)]
        return Set(pictures[:16]), Set(pictures[16:])

    monkeypatch.setattr(sequences, "_torchvision_splits", sets)
    pack("torchvision:CIFAR10", tmp_path / "pack", workers=1)
    ours, theirs = open_pictures(f"packed:{tmp_path / 'pack'}"), open_pictures("torchvision:CIFAR10")
    assert np.array_equal(ours.test.ids, theirs.test.ids)
    assert np.array_equal(np.asarray(ours.test.picture(2)), np.asarray(theirs.test.picture(2)))


def test_a_set_of_the_hub_is_packed(tmp_path, monkeypatch) -> None:
    """From a folder in place of the hub: the same ids, labels and splits, as the set itself has them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    spec = f"hf:{image_tree(tmp_path / 'set', 2, 4, 4)}"
    pack(spec, tmp_path / "pack", settings=FEW, workers=1)
    ours, theirs = open_pictures(f"packed:{tmp_path / 'pack'}"), open_pictures(spec)
    assert ours.classes == theirs.classes == ("n00000000", "n00000001")
    assert sorted(ours.train.ids.tolist()) == sorted(theirs.train.ids.tolist())
    assert np.array_equal(ours.test.ids, theirs.test.ids) and np.array_equal(ours.test.labels, theirs.test.labels)


def test_a_full_disk_is_said_beforehand(tree, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="GB are needed, 0.0 GB are free"):
        pack(f"imagefolder:{tree}", tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("source", "out", "options", "line"),
    [
        ("scenes", "new", [], "scenes are drawn and not read"),
        ("imagefolder:nowhere", "new", [], "no such folder"),
        ("TREE", "other", [], "is not empty"),
        ("imagefolder:TREE", "other", [], "is not empty"),
        ("imagefolder:TREE", "PACKED", [], "holds another pack"),
        ("packed:PACKED", "new", [], "is a pack already"),
        ("imagefolder:TREE", "new", ["--quality", "0"], "quality is 0"),
        ("imagefolder:TREE", "new", ["--workers", "0"], "workers is 0"),
    ],
)
def test_wrong_use_gets_one_line(source, out, options, line, tree, packed, tmp_path, capsys) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    source = source.replace("PACKED", str(packed)).replace("TREE", str(tree))
    out = str(packed) if out == "PACKED" else str(tmp_path / out)
    if not source.startswith(("imagefolder", "packed", "scenes")):
        line = "it is a folder, say imagefolder:"
    assert main(["data", "pack", source, out, *options]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_no_pack_gets_one_line(tmp_path, capsys) -> None:
    for folder, line in ((tmp_path / "none", "no such folder"), (tmp_path, "no pack.json in it")):
        assert main(["data", "verify", str(folder)]) == 2
        assert line in capsys.readouterr().err
        with pytest.raises(UserError, match=line):
            open_data(f"packed:{folder}", 32)
