"""Pictures decoded as training goes: right pixels, one batch whatever decodes it, stand-ins, and a run that resumes."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import same, stopped
from torchvision.transforms import functional as TF
from trees import image_tree

from simmim_lite.cli import main
from simmim_lite.data import sources
from simmim_lite.data.batches import Crops, crop_box, crop_boxes, crop_draws, crop_tries
from simmim_lite.data.packing import Settings, pack
from simmim_lite.errors import UserError
from simmim_lite.studies.full_size import RECIPE
from simmim_lite.training.pretrain import make_batches, pretrain
from simmim_lite.training.run import load_final
from simmim_lite.training.transfer import transfer

RUN = replace(
    RECIPE, model="swinv2_atto", image_size=32, window_size=4, mask_patch=8, target_window=9, batch_size=8, steps=9,
    warmup_steps=2, val_images=8, val_masks=1, eval_every=4, precision="fp32", lr=1e-3,
)  # fmt: skip

STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return image_tree(tmp_path_factory.mktemp("tree") / "few", 4, 6, 4)


@pytest.fixture(autouse=True)
def root(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path_factory.getbasetemp() / "streamed-root"))


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "few"
    pack(f"imagefolder:{tree}", out, settings=Settings(shard_pictures=10), workers=1)
    return out


def _open(spec: str):
    return sources.open_streamed(spec, 32)


def test_a_crop_is_pillows_crop(tree) -> None:
    """Decoded, cut out and shrunk by plain Pillow: the same picture, to a rounding of two filters."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    held = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(held, "JPEG", quality=95)
    reader = SimpleNamespace(source=lambda i: held.getvalue())
    split = sources.Split("x", None, np.array([5], np.uint64), None, reader=reader)
    crops = Crops(split, np.array([0]), seed=3, size=192)
    for epoch in range(3):
        draws = crop_draws(3, np.array([5], np.uint64), np.array([epoch]))
        [tries] = crop_tries(draws)
        top, left, height, width = crop_box(tries, 375, 500)
        part = Image.open(held).convert("RGB").crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((192, 192), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(crops.crop(split.picture(0), tries).permute(1, 2, 0).numpy() - expected).max() <= 3


def test_boxes_of_any_shape() -> None:
    """In the picture, of .67 to 1 of its area and a ratio of 3/4 to 4/3; square pictures as ever; a strip's middle."""
    ids = np.arange(400, dtype=np.uint64)
    draws = crop_draws(0, ids, np.zeros(400, np.int64))
    tries = crop_tries(draws)
    boxes = np.array([crop_box(each, 256, 341) for each in tries])
    assert (boxes >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 256).all() and (boxes[:, 1] + boxes[:, 3] <= 341).all()
    share, ratio = boxes[:, 2] * boxes[:, 3] / (256 * 341), boxes[:, 3] / boxes[:, 2]
    assert 0.66 < share.min() < 0.7 and share.max() > 0.9 and ratio.min() > 0.74 and ratio.max() < 1.34
    for side in (32, 224):
        assert np.array_equal(crop_boxes(draws, side)[0], [crop_box(each, side, side) for each in tries])
    assert {crop_box(each, 100, 1000) for each in tries} == {(0, 433, 100, 133)}
    _, _, h, w = _their_box(torch.zeros(3, 100, 1000))
    assert (h, w) == (100, 133)  # torchvision's own


def _their_box(image):
    from torchvision.transforms import RandomResizedCrop

    return RandomResizedCrop.get_params(image, (0.67, 1), (3 / 4, 4 / 3))


def test_a_batch_is_one_function_whatever_decodes_it(tree, packed) -> None:
    """Workers, shares, the step it begins at, and files or a pack of them."""
    folder, shards = _open(f"imagefolder:{tree}"), _open(f"packed:{packed}")
    run = replace(RUN, data=f"imagefolder:{tree}")
    expected = make_batches(run, folder)
    for data, workers, first in ((folder, 2, 4), (shards, 0, 6), (shards, 1, 0)):
        batches = make_batches(run, data, workers=workers)
        for step in range(first, run.steps):
            ours, theirs = batches.batch(step), expected.batch(step)
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    parts = [make_batches(run, folder, share=share).batch(5) for share in (slice(0, 4), slice(4, 8))]
    for k, whole in enumerate(expected.batch(5)):
        assert np.array_equal(np.concatenate([np.asarray(part[k]) for part in parts]), whole)


def test_flips_and_normalising_are_as_torchvision_has_them(tree) -> None:
    data = _open(f"imagefolder:{tree}")
    batches = make_batches(replace(RUN, data=f"imagefolder:{tree}"), data)
    images, _, ids = batches.batch(2)
    epochs, places = batches.positions(2)
    draws = crop_draws(0, ids, epochs)
    tries = crop_tries(draws)
    assert 0 < (draws[:, 0] < 0.5).sum() < len(ids)
    for k, place in enumerate(places):
        crop = batches.crops.crop(data.train.picture(int(batches.indices[place])), tries[k])
        x = TF.normalize(crop / 255, *STATISTICS)
        x = x.flip(2) if draws[k, 0] < 0.5 else x
        assert torch.allclose(images[k], x, atol=1e-5)


def test_only_validation_pictures_are_stored(tree, packed, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path))
    for spec in (f"imagefolder:{tree}", f"packed:{packed}"):
        data = _open(spec)
        assert data.val.images.shape == (8, 3, 32, 32) and len(data.train) == 24 and data.test is None
    stores = [np.load(path, mmap_mode="r") for path in tmp_path.rglob("images.npy")]
    assert [len(store) for store in stores] == [8, 8]
    stored = sources.open_for_training(f"imagefolder:{tree}", 32)
    assert np.array_equal(stored.val.images, data.val.images)  # a half of val/, the same as ever


def test_such_a_run_is_probed_and_tuned_afterwards(tree, tmp_path) -> None:
    run = replace(RUN, data=f"imagefolder:{tree}", steps=3)
    probed = transfer(run, "probe", runs_dir=tmp_path, labels=12, test_images=6, device="cpu")
    assert 0 <= probed["trained"]["transfer"]["linear"]["score"] <= 1
    tuned = transfer(run, "classify", runs_dir=tmp_path, labels=8, steps=2, batch_size=4, device="cpu")
    assert tuned["trained"]["status"] == tuned["baseline"]["status"] == "done"


def test_one_that_cannot_be_read_has_a_stand_in(tmp_path, capsys) -> None:
    root = image_tree(tmp_path / "broken", 2, 5, 4)
    first = sorted((root / "train" / "n00000000").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    record = pretrain(replace(RUN, data=f"imagefolder:{root}"), runs_dir=tmp_path / "runs")
    assert record["status"] == "done"
    said = capsys.readouterr().err
    assert said.count(f"{first} cannot be read") == 1
    assert [name for name, _ in record["skipped"]] == [str(first)]
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"\xff\xd8 gone")
    with pytest.raises(UserError, match="10 pictures in a row cannot be read"):
        pretrain(replace(RUN, data=f"imagefolder:{root}", seed=1), runs_dir=tmp_path / "runs")


def test_interrupted_it_resumes_bit_for_bit(packed, tmp_path) -> None:
    run = replace(RUN, data=f"packed:{packed}")
    whole = pretrain(run, runs_dir=tmp_path / "whole")
    with stopped(5):
        pretrain(run, runs_dir=tmp_path / "killed")
    again = pretrain(run, runs_dir=tmp_path / "killed")
    assert again["curve"] == whole["curve"] and again["final"] == whole["final"]
    assert same(load_final(tmp_path / "whole", run), load_final(tmp_path / "killed", run))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--probe-labels", "10"], "probe_labels is 10"),
        (["--statistics", "dataset"], "statistics dataset"),
        (["--images", "900"], "holds 24 images"),
    ],
)
def test_wrong_options_get_one_line(options, line, packed, tmp_path, capsys) -> None:
    arguments = ["--augment", "picture-crop+flip", "--statistics", "imagenet", "--probe-labels", "0", "--steps", "1"]
    arguments += ["--data", f"packed:{packed}", "--runs-dir", str(tmp_path), "--device", "cpu", *options]
    assert main(["pretrain", *arguments]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
