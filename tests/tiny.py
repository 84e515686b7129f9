"""What tests of training share: small data and specs, a training that is stopped at a step, and a record's numbers."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from simmim_lite.data import scenes
from simmim_lite.data.ade20k import open_ade20k
from simmim_lite.data.coco import open_coco
from simmim_lite.data.sources import Data, Split
from simmim_lite.model import sizes
from simmim_lite.training import finetune, train
from simmim_lite.training.detect import Detection
from simmim_lite.training.parallel import Group
from simmim_lite.training.segment import Segmentation
from simmim_lite.training.transfer import work
from simmim_lite.training.tuning import Dense, FineTune

ALONE = Group(torch.device("cpu"))
NARROW = sizes.Size("swinv2_narrow", 32, (1, 1, 2, 1))


class Stopped(BaseException):
    """What stops a training in a test: nobody catches it."""


@contextlib.contextmanager
def stopped(before: int | None) -> Iterator[list]:
    """Inside, a training ends before this process's step of that number, with a checkpoint of every step; of None it
    does not end. Yields a list with an item for every step."""
    taken, real, seconds = [], train.step, train.CHECKPOINT_SECONDS

    def step(*arguments):
        if len(taken) == before:
            raise Stopped
        taken.append(1)
        return real(*arguments)

    train.step, train.CHECKPOINT_SECONDS = step, seconds if before is None else 0.0
    try:
        yield taken
    except Stopped:
        pass
    finally:
        train.step, train.CHECKPOINT_SECONDS = real, seconds


def numbers(record: dict) -> dict:
    """What must not depend on when and in how many pieces a training was made."""
    names = ("key", "status", "run", "spec", "curve", "final", "transfer", "examples")
    return {name: record[name] for name in names if name in record}


def same(weights: dict, other: dict) -> bool:
    return weights.keys() == other.keys() and all(torch.equal(weights[name], other[name]) for name in weights)


def tiny_data(n=64, size=16, labels=True) -> Data:
    """Scenes as a source, n a split."""

    def split(name, seed):
        drawn = scenes.render(seed, np.arange(n), size)
        ids = np.arange(n, dtype=np.uint64) + np.uint64(seed << 40)
        return Split(name, drawn.images, ids, drawn.labels if labels else None, drawn.masks)

    train, val, test, probe = (split(name, seed) for seed, name in enumerate(("train", "val", "test", "probe_train")))
    about = (scenes.CLASSES, (0.5,) * 3, (0.2,) * 3, "tiny")
    return Data("scenes", train, val, probe, test, *about)


def tiny_spec(**fields) -> FineTune:
    small = {"image_size": 16, "labels": 40, "batch_size": 16, "steps": 20, "warmup_steps": 4, "eval_every": 5}
    return FineTune(**small | {"test_images": 50} | fields)


def recipe(images=12, **options) -> FineTune:
    """The full-size recipe of classification cut to a step."""
    fields = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "precision": "fp32", "eval_every": 1}
    return FineTune.recipe("imagenet-100ep", images, **fields | options)


def classification(spec, data=None, weights=None, group=ALONE) -> finetune.Classification:
    return finetune.classification(spec, data or tiny_data(), weights, group)


def detection(coco, weights=None, group=ALONE, **options) -> Detection:
    small = {"task": "detect", "channels": 16, "hidden": 32, "batch_size": 4, "test_images": 12, "eval_every": 3}
    return Detection(Dense(**{**small, "data": coco, "steps": 6, **options}), open_coco(coco, 32), weights, group)


def segmentation(folder, weights=None, group=ALONE, **options) -> Segmentation:
    small = {"task": "segment", "data": f"ade20k:{folder}", "steps": 6, "batch_size": 4, "channels": 8, "eval_every": 2}
    spec = Dense(**{**small, "warmup_steps": 2, "drop_path": 0.2, **options})
    return Segmentation(spec, open_ade20k(spec.data, spec.image_size), weights, group)


def trained(task, folder: str = "") -> dict:
    """The record of a task; its checkpoints stay in the folder, if one is given."""
    with tempfile.TemporaryDirectory() as nowhere:
        return work(task, Path(folder or nowhere))


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> str:
    """A few scenes in COCO layout."""
    path = tmp_path_factory.mktemp("coco")
    scenes.write_coco(path, train=24, val=12, size=32)
    return f"coco:{path}"


@pytest.fixture
def narrow(monkeypatch) -> None:
    """A four-stage size of 32 channels, so that the full-size path runs in seconds."""
    monkeypatch.setitem(sizes.SIZES, NARROW.name, NARROW)


@pytest.fixture
def slim(monkeypatch) -> None:
    """swinv2_base with an eighth of its blocks and a quarter of its width; four stages, 224 px and window 14 stay."""
    size = sizes.Size("swinv2_base", 32, (2, 2, 2, 2))
    monkeypatch.setitem(sizes.SIZES, "swinv2_base", size)
    monkeypatch.setitem(sizes.PAPER, "swinv2_base", size)
    monkeypatch.setattr(Group, "decoders", lambda group: 0)
