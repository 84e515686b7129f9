"""Packs hold what their source holds, find any picture, are read by WebDataset, and say what is wrong with them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset
from picture_folders import image_tree, one_line
from PIL import Image

from simmim_lite.cli import main
from simmim_lite.data import decode, packs, sources
from simmim_lite.data.packs import pack
from simmim_lite.data.sources import listing, open_pictures


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    packs.SHARD, before = 20, packs.SHARD
    yield
    packs.SHARD = before


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """5 classes of 12 and 4 pictures, among them one that is large, turned, grey, a PNG, broken."""
    root = image_tree(tmp_path_factory.mktemp("tree") / "few", 5, 12, 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    one, *_, grey = sorted((root / "train" / "n00000000").iterdir())
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)).resize((300, 200))
    large.save(one, "JPEG", quality=95, exif=turned)
    Image.open(grey).convert("L").save(grey, "JPEG")
    first = sorted((root / "train" / "n00000001").iterdir())
    Image.open(first[0]).save(first[0].with_suffix(".png"))
    first[0].unlink()
    first[1].write_bytes(first[1].read_bytes()[:90])
    return root


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "few"
    pack(listing(f"imagefolder:{tree}"), out, short_side=64)
    return out


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "few"))


def test_a_pack_holds_what_its_folder_holds(tree, packed) -> None:
    """Ids, labels, classes, splits, pictures, and so the draw of every manifest; WebDataset reads it."""
    folder, ours, raw = open_pictures(f"imagefolder:{tree}"), open_pictures(f"packed:{packed}"), packs.open_pack(packed)
    assert ours.classes == folder.classes and np.array_equal(ours.test.ids, folder.test.ids)
    place, taken_over = {int(i): k for k, i in enumerate(ours.train.ids)}, 0
    broken = [i for i in range(len(folder.train)) if int(folder.train.ids[i]) not in place]
    [[name, why]] = raw.info["left_out"]
    assert [folder.train.title(i) for i in broken] == [str(tree / name)] and "not a picture" in why
    for i in sorted({*range(len(folder.train))} - {*broken}):
        k = place[int(folder.train.ids[i])]
        assert ours.train.labels[k] == folder.train.labels[i]
        theirs, own = folder.train.picture(i), ours.train.picture(k)
        assert (own.size, theirs.size) == ((64, 96), (200, 300)) or np.array_equal(np.asarray(theirs), np.asarray(own))
        taken_over += raw.content(int(ours.train.rows[k])) == Path(folder.train.title(i)).read_bytes()
    assert taken_over == len(place) - 1, "small JPEGs and PNGs are taken as they are: all but the large, turned one"
    listed = listing(f"packed:{packed}")
    chosen = listed.ranked(listed.splits["train"], 0)[:20]
    assert set(raw.columns["shard"][chosen]) == {0}, "the first shard is the first subset"
    shards = [str(path) for path in sorted(packed.glob("train-*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls"))
    rows = [i for i in range(60) if raw.columns["size"][i]]
    assert [label for _, label in found] == raw.columns["labels"][rows].tolist()
    assert np.array_equal(np.asarray(found[7][0].convert("RGB")), np.asarray(decode.read(raw.content(rows[7]))))


def _flip(path: Path, *places: int) -> None:
    """One wrong bit at each of these bytes."""
    content = bytearray(path.read_bytes())
    for at in places:
        content[at] ^= 1
    path.write_bytes(content)


def _edit(folder: Path, name: str, row: int, value: object) -> None:
    """Another value in a row of the index."""
    column = np.load(folder / "index" / f"{name}.npy")
    column[row] = value
    np.save(folder / "index" / f"{name}.npy", column)


S, R = "train-00001.tar", 23  # the shard that is damaged, and the row of its fourth picture


@pytest.mark.parametrize(
    ("damage", "lines"),
    [  # at: where that picture begins
        (lambda f, at: _flip(f / S, at + 100), ["changed bytes: NAME in S"]),
        (lambda f, at: _flip(f / S, at - 500), ["damaged shard: S"]),
        (lambda f, at: (f / S).unlink(), ["missing shard: S"]),
        (lambda f, at: _edit(f, "offset", R, 5120), ["changed bytes: NAME in S, or its place in the index"]),
        (lambda f, at: None, []),
    ],
)  # fmt: skip
def test_whatever_is_damaged_is_named(copy, damage, lines) -> None:
    pack = packs.open_pack(copy)
    assert pack.info["shards"][1]["name"] == S and pack.columns["shard"][R] == 1
    damage(copy, int(pack.columns["offset"][R]))
    lines = [line.replace("NAME", pack.name(R)).replace(" S", f" {S}") for line in lines]
    for line, said in zip(lines, packs.verify(copy), strict=True):
        assert said.startswith(line)
    if lines and lines[0].startswith("changed"):
        with pytest.raises(OSError, match="other bytes than those of picture"):
            packs.open_pack(copy).content(R)


def _info(folder, **changes) -> None:
    """Change pack.json; None: take it out."""
    info = json.loads((folder / "pack.json").read_text()) | changes
    (folder / "pack.json").write_text(json.dumps({name: one for name, one in info.items() if one is not None}))


def test_an_index_that_is_not_whole_is_one_line(packed, tmp_path) -> None:
    for k, edit in enumerate(
        (
            lambda f: _edit(f, "labels", 3, 1),
            lambda f: _flip(f / "index" / "ids.npy", 2),
            lambda f: np.save(f / "index" / "offset.npy", np.zeros(9)),
            lambda f: os.truncate(f / "pack.json", 2),
            lambda f: _edit(f, "shard", 3, 99),
            lambda f: _info(f, spec="scenes"),
            lambda f: _info(f, checksum=None, classes=None),
            lambda f: _info(f, checksum=None, shards=[{"name": "../x.tar"}]),
        )
    ):
        edit(shutil.copytree(packed, tmp_path / str(k)))
        one_line("missing or damaged", packs.verify, tmp_path / str(k))


def test_all_are_counted_and_twenty_named(copy, capsys) -> None:
    for shard in copy.glob("train-*.tar"):
        os.truncate(shard, 0)
    assert main(["data", "verify", str(copy)]) == 2
    said = capsys.readouterr()
    assert said.out.count("changed bytes: train/") == 20 and "changed bytes: 39 more\n" in said.out
    assert "few: 59 problems, see above" in said.err


def test_ended_before_it_is_whole_it_begins_again_with_the_same_bytes(tree, packed, tmp_path, monkeypatch) -> None:
    """And what a killed process left goes."""
    out, half = tmp_path / "ended", tmp_path / "ended.tmp-1"
    half.mkdir()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(packs, "_index_digest", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        pack(listing(f"imagefolder:{tree}"), out, short_side=64)
    assert not out.exists() and not half.exists()
    out.mkdir()  # of one's own, empty
    for _ in range(2):
        pack(listing(f"imagefolder:{tree}"), out, short_side=64)
        assert _content(out) == _content(packed)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_set_without_files_is_packed_without_loss(tmp_path) -> None:
    rng = np.random.default_rng(0)
    pictures = [(Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)), k % 2) for k in range(24)]
    pictures[20][0].format = "JPEG"  # as one that was read from a file
    entries = sources.Entries("torchvision:X", {"train": pictures[:16], "test": pictures[16:]}, 0)
    found = entries.listing([[0, 1] * 8, [0, 1] * 4], "ab")
    pack(found, tmp_path / "pack")
    ours = open_pictures(f"packed:{tmp_path / 'pack'}")
    assert np.array_equal(np.sort(ours.test.ids), np.sort(found.ids[16:]))
    k = int(np.flatnonzero(found.ids == ours.test.ids[2])[0])
    assert np.array_equal(np.asarray(ours.test.picture(2)), np.asarray(pictures[k][0]))


def test_wrong_use_is_one_line(tree, packed, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for source, out, options, line in (
        ("scenes", "new", {}, "scenes are drawn and not read"),
        (f"imagefolder:{tree}", "other", {}, "is not empty"),
        (f"imagefolder:{tree}", packed, {}, "holds another pack"),
        (f"packed:{packed}", "new", {}, "is a pack already"),
        (f"imagefolder:{tree}", "new", {"short_side": 0}, "short_side is 0"),
    ):
        one_line(line, lambda: pack(listing(source), tmp_path / out, **options))  # noqa: B023
