"""The store of a source: built once, whole or not at all, under kills, races, full disks and changed folders."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from picture_folders import fill, one_line, photos, picture, root  # noqa: F401 (fixtures)

from simmim_lite.data import decode, store
from simmim_lite.data.sources import open_data

REPOSITORY = Path(__file__).resolve().parents[1]


# --- the store


def test_an_open_store_is_not_decoded_again(photos, monkeypatch, root):
    data = open_data(f"imagefolder:{photos}", 16)
    monkeypatch.setattr(decode, "read_square", lambda *_: pytest.fail("decoded again"))
    again = open_data(f"imagefolder:{photos}", 16)
    assert again.digest == data.digest and np.array_equal(again.val.images, data.val.images)
    assert isinstance(again.train.images, np.memmap) and not again.train.images.flags.writeable
    info = json.loads(next(root.glob("stores/*/index.json")).read_text())
    assert info["digest"] == data.digest and info["image_size"] == 16


def test_a_changed_folder_is_decoded_anew(photos, root):
    first = open_data(f"imagefolder:{photos}", 16)
    picture(99).save(photos / "train/ant/000.png")
    second = open_data(f"imagefolder:{photos}", 16)
    picture(98).save(photos / "train/ant/new.png")
    third = open_data(f"imagefolder:{photos}", 16)
    assert len({first.digest, second.digest, third.digest}) == 3 and len(third.train) == 25
    assert len(list(root.glob("stores/*/index.json"))) == 1  # the ones it replaces are gone
    open_data(f"imagefolder:{photos}", 12)
    assert len(list(root.glob("stores/*/index.json"))) == 2  # another size is another store


@pytest.mark.parametrize("damage", ["images.npy", "labels.npy", "index.json"])
def test_a_damaged_store_is_built_again(photos, root, capsys, damage):
    first = open_data(f"imagefolder:{photos}", 16)
    path = next(root.glob(f"stores/*/{damage}"))
    path.write_bytes(path.read_bytes()[:150])
    second = open_data(f"imagefolder:{photos}", 16)
    assert "damaged store" in capsys.readouterr().err and second.digest == first.digest


def child(code: str, photos: Path) -> subprocess.Popen:
    program = "import sys, time, os\nfrom simmim_lite.data import catalogue, decode, sources\n" + code
    command = [sys.executable, "-c", program, f"imagefolder:{photos}"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_no_half_store(photos, root):
    code = """
real, catalogue._CHUNK, os.cpu_count = decode.read_square, 4, lambda: 1
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
    process = child(code, photos)
    assert process.stdout.readline() == "middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(root.glob("stores/*.tmp-*"))) == 1 and not list(root.glob("stores/*/index.json"))
    data = open_data(f"imagefolder:{photos}", 16)
    assert len(data.train) == 24 and not list(root.glob("stores/*.tmp-*"))


def test_of_two_that_open_a_source_one_builds_its_store(photos, monkeypatch):
    real, done = decode.read_square, []

    def load(content, size):
        done.append(size)
        time.sleep(0.005)
        return real(content, size)

    monkeypatch.setattr(decode, "read_square", load)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: open_data(f"imagefolder:{photos}", 16).digest, range(2))
    assert len(done) == 36 and first == second


def test_a_disk_that_fills_up(photos, root):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a write past it fails as on a full disk
    try:
        one_line("cannot write .*free some space or set SIMMIM_DATA", open_data, f"imagefolder:{photos}", 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in root.glob("stores/*") if path.is_dir()]
    assert len(open_data(f"imagefolder:{photos}", 16).train) == 24


def test_too_little_room_is_said_before_the_work(photos, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    monkeypatch.setattr(decode, "read_square", lambda *_: pytest.fail("decoded"))
    one_line(r"needs 0.0 GB, 0.0 GB are free", open_data, f"imagefolder:{photos}", 16)


def test_a_root_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "file"))
    one_line("cannot write .*set SIMMIM_DATA", open_data, f"imagefolder:{photos}", 16)


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(capsys, monkeypatch):
    now = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(store.time, "monotonic", lambda: next(now))
    with store.progress(400, "photos") as advance:
        for _ in range(4):
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "photos: 200 of 400 images, about 11 s left",
        "photos: 400 of 400 images, about 0 s left",
    ]
