"""What the tests of detection share: scenes in COCO layout, small specs, a narrow size of four stages."""

import pytest
import torch

from simmim_lite.data import scene_layouts
from simmim_lite.data.coco import open_coco
from simmim_lite.model import sizes
from simmim_lite.training.dense import Dense
from simmim_lite.training.detect import Detection
from simmim_lite.training.distributed import Team

US = Team(torch.device("cpu"))
SMALL = {"task": "detect", "channels": 16, "hidden": 32, "batch_size": 4, "test_images": 12, "eval_every": 3}
NARROW = sizes.Size("swinv2_narrow", 32, (1, 1, 2, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few scenes in COCO layout."""
    path = tmp_path_factory.mktemp("coco")
    scene_layouts.write_coco(path, train=24, val=12, size=32)
    return f"coco:{path}"


def detection(folder, weights=None, us=US, **options):
    spec = Dense(**{**SMALL, "data": folder, "steps": 6, **options})
    return spec, Detection(spec, open_coco(folder, 32), weights, us)


@pytest.fixture
def narrow(monkeypatch):
    """A four-stage size of 32 channels, so that the full-size path runs in seconds."""
    monkeypatch.setitem(sizes.SIZES, NARROW.name, NARROW)
