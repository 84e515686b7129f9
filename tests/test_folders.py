"""The folder rule as a table, the walk that lists a folder, and the one line about it."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from picture_folders import fill, one_line, photos, picture, root  # noqa: F401 (fixtures)

from simmim_lite.data import folders, sources
from simmim_lite.data.manifests import describe
from simmim_lite.data.packs import pack
from simmim_lite.data.sources import listing


def by(top: str, count: int, classes: str = "cat dog") -> dict[str, int]:
    """count pictures in each class folder below a folder."""
    return {f"{top}/{name}".lstrip("/"): count for name in classes.split()}


def names(tree: dict[str, int]) -> list[str]:
    return sorted(f"{folder}/{i}.jpg".lstrip("/") for folder, count in tree.items() for i in range(count))


SPLIT = "2 classes, 20 train / 5 val / 5 test"
#: Folder -> pictures, and what the line says of them; 10 a class to train on and 5 to test, where it does not matter.
CASES: dict[str, tuple[dict[str, int], str]] = {
    # splits in every spelling
    "tumour": (by("Training", 10) | by("Testing", 5), f"{SPLIT}; train is Training, test is Testing"),
    "a name in common": (
        by("seg_train/seg_train", 10) | by("seg_test/seg_test", 5) | {"seg_pred/seg_pred": 7},
        f"{SPLIT}; read from seg_train/seg_train/, seg_test/seg_test/; train is seg_train, test is seg_test; "
        "7 passed over (seg_pred/seg_pred/0.jpg, seg_pred/seg_pred/1.jpg, seg_pred/seg_pred/2.jpg and 4 more: OUT)",
    ),
    # a split is one only beside another, or alone
    "vehicles": (
        dict.fromkeys(["boat", "bus", "car", "train"], 12),
        "4 classes, 43 train / 3 val / 2 test; train taken as a class, not as a split",
    ),
    # wrappers
    "wrapped thrice": (
        {"": 1, "a": 1} | by("a/b/c/Train", 10) | by("a/b/c/test", 5),
        f"{SPLIT}; read from a/b/c/; train is Train; 2 passed over (0.jpg, a/0.jpg: OUT)",
    ),
    "images beside masks": (
        {"images": 20, "annotations/trimaps": 20},
        "no labels, 16 train / 4 val; read from images/; 20 passed over (annotations/trimaps/0.jpg, "
        "annotations/trimaps/1.jpg, annotations/trimaps/10.jpg and 17 more: OUT)",
    ),
    # stray files
    "loose in splits": (
        by("train", 10) | by("test", 5) | {"test": 1},
        f"{SPLIT}; 1 passed over (test/0.jpg: OUT)",
    ),
    "flat": ({"": 20}, "no labels, 16 train / 4 val"),
    # labels on one side alone
    "test without labels": (
        by("train", 10) | {"test": 9},
        "2 classes, 16 train / 9 val / 4 test; test has no labels and serves as val: 4 pictures of train are held out "
        "as test",
    ),
    "val without labels": (
        by("train", 10) | {"val": 9},
        "2 classes, 20 train / 9 val; val has no labels, so there is nothing to probe with: sort it into class "
        "folders, or take it away and a part of train is held out",
    ),
    # few pictures a class
    "singletons": (
        by("", 1, "a b c d e f g h"),
        "no labels, 4 train / 4 val; labels not used: with one picture a class there is nothing to probe with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_rule(case) -> None:
    tree, line = CASES[case]
    parts = folders.read(names(tree))
    laid = replace(parts, spec="x").split()
    counts = {split: len(rows) for split, rows in laid.splits.items()}
    said = describe("x", len(laid.classes), counts, laid.notes, parts.passed)
    said = said.replace(" pictures of x", "").replace("outside of what is read", "OUT")
    assert said.removeprefix("data: ") == line
    rows = np.concatenate(list(laid.splits.values()))
    assert len(np.unique(rows)) == len(rows), "in two splits"
    for row in rows if laid.classes else ():
        label = laid.labels[row]
        assert label < 0 or laid.classes[label].lower() in laid.names[row].lower()
    if "test" in laid.splits:
        assert (laid.labels[laid.splits["train"]] >= 0).all() and (laid.labels[laid.splits["test"]] >= 0).all()
        assert set(laid.labels[laid.splits["test"]]) <= set(laid.labels[laid.splits["train"]]), "tested, never trained"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (by("train", 9) | by("test", 5, "cat yak"), r"test/yak/0.jpg: class 'yak' is not in train \(cat, dog\); give"),
        (by("val", 9) | by("test", 5), "test and val without pictures to train on; add a folder called train"),
        ({"trainA": 9, "trainB": 9, "testA": 5, "testB": 5}, "several sets of splits"),
        (by("cat/train", 9, "a b") | by("dog/train", 9, "a b") | by("cat/test", 5, "a b") | by("dog/test", 5, "a b"),
         "each class has splits of its own"),
        (by("", 2), "4 images are too few to hold some of them out"),
    ],
)  # fmt: skip
def test_folders_without_a_meaning_are_one_line(tree, words) -> None:
    one_line(words, lambda: folders.read(names(tree), root="DIR").split())


def test_tiny_imagenet_has_its_labels_in_a_file() -> None:
    tree = names(by("train", 4, "n1/images n2/images") | {"val/images": 5, "test/images": 3})
    notes = {"val/val_annotations.txt": "".join(f"{i}.jpg\tn{1 + i % 2}\t0\t0\t62\t62\n" for i in range(4))}
    parts = folders.read(tree, notes)
    assert parts.classes == ("n1", "n2") and len(parts.splits["train"]) == 8
    assert {parts.names[i]: parts.classes[parts.labels[i]] for i in parts.splits["val"]} == {
        f"val/images/{i}.jpg": f"n{1 + i % 2}" for i in range(4)
    }
    assert parts.passed == (("val/images/4.jpg", "outside of what is read"),)
    one_line(
        "val/images/0.jpg: class 'n3' is not in train", folders.read, tree, {"val/val_annotations.txt": "0.jpg n3"}
    )


# --- on the disk


def line_of(folder, size: int = 16) -> str:
    """What is said of a folder, after its name; its splits are checked against the other ways of opening it."""
    spec = f"imagefolder:{folder}"
    data = sources.open_data(spec, size)
    whole, streamed = sources.open_pictures(spec), sources.open_data(spec, size, streamed=True)
    assert set(streamed.train.ids) == set(data.train.ids) and set(streamed.val.ids) == set(data.val.ids)
    assert set(whole.train.ids) == set(data.train.ids) and set(data.test.ids) <= set(whole.test.ids)
    return data.line.partition(f" pictures of {spec}")[2]


def test_what_pillow_reads_is_a_picture(tmp_path) -> None:
    assert not {".pdf", ".h5", ".mpg"} & folders.extensions()
    for k, ending in enumerate(("JPG", "jfif", "Jpe", "TIFF", "tga", "pnm")):
        (tmp_path / "own").mkdir(exist_ok=True)
        picture(k).save(tmp_path / "own" / f"{k}.{ending}")
    line = sources.open_data(f"imagefolder:{tmp_path / 'own'}", 16).line
    assert line.startswith("data: no labels, 2 train / 4 val pictures") and "passed over" not in line


def test_what_is_no_picture_is_named(photos) -> None:
    """Other files, links in circles and to nothing; hidden ones go without saying."""
    (photos / "train/ant/notes.txt").write_text("")
    (photos / "train/ant/a\nb.heic").write_bytes(b"")
    os.mkfifo(photos / "train/ant/pipe.png")
    for hidden in (".DS_Store", "._000.png", "Thumbs.db"):
        (photos / "train/ant" / hidden).write_bytes(b"")
    for folder in (".ipynb_checkpoints", "__MACOSX", "train/bee/@eaDir"):
        fill(photos / folder, 2)
    for name, target in {"up": "../..", "self": "self", "self.png": "self.png", "gone.png": "nowhere.png"}.items():
        (photos / "train/bee" / name).symlink_to(target)
    assert line_of(photos) == (
        r"; 7 passed over (train/ant/a\nb.heic, train/ant/notes.txt, train/ant/pipe.png: no picture; "
        "train/bee/gone.png: a link to nothing; train/bee/self, train/bee/self.png, train/bee/up/: a link in a circle)"
    )


@pytest.mark.parametrize(
    ("make", "counts", "said"),
    [
        (os.symlink, (24, 6, 6), "the same file as one of train)"),
        (os.link, (24, 6, 6), "the same file as one of train)"),
        (shutil.copy, (24, 8, 8), "; 4 of 16 held-out pictures have the bytes of a training picture"),
    ],
)
def test_no_file_is_in_two_places(photos, make, counts, said) -> None:
    """But pictures of the same bytes may be: they are counted."""
    for i in range(4):
        make(photos / f"train/ant/00{i}.png", photos / f"test/bee/a{i}.png")
    data = sources.open_data(f"imagefolder:{photos}", 16)
    assert (len(data.train), len(data.val), len(data.test)) == counts and data.classes == ("ant", "bee", "cat")
    assert line_of(photos).endswith(said)


def test_the_line_is_said_once_and_kept(photos, tmp_path, capsys, monkeypatch) -> None:
    spec = f"imagefolder:{photos}"
    (photos / "train/ant/001.png").write_bytes(b"broken")

    def said() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: ")]

    monkeypatch.setenv("RANK", "1")
    sources.open_data(spec, 16)
    assert said() == []
    monkeypatch.delenv("RANK")
    data = sources.open_data(spec, 16)
    whole = "1 passed over (train/ant/001.png: cannot be read)"
    assert said() == [data.line] == [f"data: 3 classes, 23 train / 6 val / 6 test pictures of {spec}; {whole}"]
    sources.open_pictures(spec)
    pack(listing(spec), tmp_path / "pack")
    assert said() == []
    packed = sources.open_data(f"packed:{tmp_path / 'pack'}", 16)
    assert said() == [packed.line] and "001.png: could not be read when it was packed" in packed.line


def test_a_folder_that_cannot_be_listed_is_one_line(photos, monkeypatch) -> None:
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    one_line("cannot be read .Permission denied.; give the folder", sources.listing, f"imagefolder:{photos}")
