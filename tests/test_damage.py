"""Every file that a small study leaves, damaged in every way: run again it gives the numbers of an undisturbed one, or
a line that names the file. `pytest -m slow -s` prints the table."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import numbers, stopped

from simmim_lite import processes
from simmim_lite.errors import UserError, readable
from simmim_lite.evidence.records import load
from simmim_lite.lab.monitor import look
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run
from simmim_lite.training.transfer import transfer

RUN = Run(
    images=32, steps=16, batch_size=16, warmup_steps=4, eval_every=8, val_images=8, val_masks=2, probe_labels=16,
    probe_test=8,
)  # fmt: skip


def at(path: Path, start: int, change: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + len(change)] = change
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = next((p for p in sorted(path.parent.iterdir()) if p.suffix == path.suffix and p != path), path)
    path.write_bytes(other.read_bytes())


def flip(path: Path) -> None:
    content = path.read_bytes()
    at(path, 3 * len(content) // 5, bytes([content[3 * len(content) // 5] ^ 4]) if content else b"")


DAMAGES = {
    "bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: at(path, 0, bytes(min(4096, path.stat().st_size))),
    "swap": swap,
    "bak": lambda path: shutil.copy(path, f"{path}.bak"),
    "copy": lambda path: shutil.copy(path, path.with_name(f"{path.stem} (copy){path.suffix}")),
    "unreadable": lambda path: path.chmod(0),
}


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root may read all: let a user without rights run it, to whom the folder belongs."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def study() -> Iterator[tuple]:
    """Two finished runs, and a longer one off the trunk of the first that was stopped; and where their pictures are."""
    folder, draw = Path(tempfile.mkdtemp()), np.random.default_rng(0)  # pytest's own are closed to others
    folder.chmod(0o755)
    for split, label, k in ((s, c, k) for s in ("train", "test") for c in "ab" for k in range(20)):
        path = folder / "pictures" / split / label / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    run = replace(RUN, data=f"imagefolder:{folder / 'pictures'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMMIM_DATA", str(folder / "made"))
        for seed in (0, 1):
            pretrain(replace(run, steps=8, seed=seed), runs_dir=folder / "made" / "runs")
            transfer(replace(run, steps=8, seed=seed), "probe", runs_dir=folder / "made" / "runs")
        with stopped(4):
            pretrain(run, runs_dir=folder / "made" / "runs")
    yield folder, run, again(Path(shutil.copytree(folder / "made", folder / "undisturbed")), run)
    shutil.rmtree(folder)


def again(made: Path, run: Run) -> list[dict] | str:
    """The numbers of the study, or the line that it ends with."""
    processes.tell_once.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMMIM_DATA", str(made))
        try:
            short, how = replace(run, steps=8), {"runs_dir": made / "runs"}
            found = [pretrain(one, **how) for one in (short, replace(short, seed=1), run)]
            found += [transfer(replace(short, seed=seed), "probe", **how)["trained"] for seed in (0, 1)]
            tuned = {"labels": 16, "test_images": 8, "steps": 2, "warmup_steps": 1, "batch_size": 8}
            found += [transfer(short, "classify", **tuned, **how)["trained"]]
            return [*map(numbers, found), len(load(made / "runs")), len(look(made / "runs"))]
        except (UserError, OSError) as error:
            return str(readable(error))  # as the command line has it


def outcome(study: tuple, name: str, damage: str, capsys) -> str:
    """`same`, `named`, `refused` with a line that names it, or what is wrong."""
    folder, run, undisturbed = study
    made = Path(shutil.copytree(folder / "made", folder / "damaged"))
    path = made / name
    DAMAGES[damage](path)
    capsys.readouterr()
    with as_nobody(made) if damage == "unreadable" else contextlib.nullcontext():
        found = again(made, run)
    said = capsys.readouterr().err
    shutil.rmtree(made)
    if found == undisturbed:
        return "named" if str(path) in said else "same"
    place = (str(path), f"{path.parent}: damaged store")
    return "refused" if isinstance(found, str) and any(p in found for p in place) else f"WRONG: {found}"


def files(study) -> list[str]:
    made = study[0] / "made"
    return [str(path.relative_to(made)) for path in sorted(made.rglob("*")) if path.is_file()]


def folders(study) -> list[str]:
    """Those that hold something."""
    return sorted({str(Path(name).parent) for name in files(study)})


def test_some(study, capsys) -> None:
    read = ("step-0000011.pt", "records/*-s0-*", "transfer/*-t8-s0-*", "weights/*-s0-*", "images.npy", "index.json")
    chosen = [name for name in files(study) if any(fnmatch(name, f"*{pattern}") for pattern in read)]
    found = {name: outcome(study, name, "bit", capsys) for name in chosen}
    assert len(chosen) == len(read) and {*found.values()} == {"named", "refused"}, found
    closed = {name: outcome(study, name, "unreadable", capsys) for name in folders(study) if "checkpoints" not in name}
    assert closed and not {*closed.values()} - {"same", "named", "refused"}, closed


@pytest.mark.slow
def test_table(study, capsys) -> None:
    found = {name: {damage: outcome(study, name, damage, capsys) for damage in DAMAGES} for name in files(study)}
    found |= {name: {"unreadable": outcome(study, name, "unreadable", capsys)} for name in folders(study)}
    with capsys.disabled():
        print(pd.DataFrame(found).T.to_string())
    assert not [row for row in found.values() if any(word.startswith("WRONG") for word in row.values())]
