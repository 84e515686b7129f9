"""Batches: pure functions of (seed, step), equal to slow specs; prepared ahead by processes, or decoded as they go."""

import io
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from picture_folders import image_tree, one_line
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import functional as TF

from simmim_lite.data import batches
from simmim_lite.data.batches import Batches, Order, StepLoader, crop_box, crop_draws, crop_tries, seeded
from simmim_lite.data.packs import pack
from simmim_lite.data.sources import Split, listing, open_data
from simmim_lite.errors import UserError
from simmim_lite.model.masking import hash_masks, uniforms
from simmim_lite.studies.tiers import RECIPE
from simmim_lite.training.pretrain import make_batches, pretrain

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def split_of(n: int = 40, size: int = 16) -> Split:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**64, n, dtype=np.uint64)
    return Split("train of a test", rng.integers(0, 256, (n, 3, size, size), np.uint8), ids, None, None)


def make(split=None, indices=None, **changes) -> Batches:
    split = split or split_of()
    indices = np.arange(len(split)) if indices is None else indices
    plain = {"seed": 3, "batch_size": 12, "image_size": 16, "mean": MEAN, "std": STD, "augment": "flip"}
    return Batches(split, indices, **(plain | changes))


def plain_pixels(split: Split, ids: np.ndarray) -> torch.Tensor:
    rows = [int(np.flatnonzero(split.ids == i)[0]) for i in ids]
    pixels = torch.from_numpy(split.images[rows]).double() / 255
    return ((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("augment", ["none", "flip", "crop+flip"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    one, other = make(augment=augment), make(augment=augment)
    forward = [one.batch(step) for step in range(4)]
    backward = [other.batch(step) for step in reversed(range(4))][::-1]
    assert all(map(equal, forward, backward))
    assert not torch.equal(make(augment=augment, seed=4).batch(0)[0], forward[0][0])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    order = make()
    epochs = np.concatenate([order.batch(step)[2] for step in range(20)]).reshape(6, 40)
    assert all(np.array_equal(np.sort(epoch), np.sort(split_of().ids)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 6
    # fewer images than the batch
    images, mask, ids = make(indices=np.array([5, 9, 2])).batch(3)
    assert len(images) == len(mask) == 12 and [np.sum(ids == i) for i in split_of().ids[[5, 9, 2]]] == [4, 4, 4]
    # the visits of one image within the batch are told apart: other masks, other flips
    assert len({mask[k].numpy().tobytes() for k in np.flatnonzero(ids == ids[0])}) > 1
    one = make(indices=np.array([5]), batch_size=64).batch(1)[0]
    assert len(torch.unique(one, dim=0)) == 2


def test_pixels_are_those_of_the_images_and_half_of_them_flipped():
    split = split_of()
    images, _, ids = make(split, batch_size=120).batch(0)
    expected = plain_pixels(split, ids)
    assert torch.allclose(make(split, augment="none", batch_size=120).batch(0)[0], expected, atol=1e-6)
    turned = [not torch.allclose(image, before, atol=1e-6) for image, before in zip(images, expected, strict=True)]
    assert torch.allclose(images[turned], expected[turned].flip(-1), atol=1e-6) and 40 < sum(turned) < 80


def test_crops_equal_a_slow_spec():
    """Image by image: cut out, resize alone, mirror; the boxes are RandomResizedCrop's, as below."""
    split = split_of(size=24)
    source = make(split, augment="crop+flip", image_size=24)
    images, _, ids = source.batch(5)
    epochs, _ = source.positions(5)
    draws = uniforms(41, 3, ids, epochs, 2)
    for image, before, draw, tries in zip(images, plain_pixels(split, ids), draws, crop_tries(draws), strict=True):
        top, left, height, width = crop_box(tries, 24, 24)
        cut = before[None, :, top : top + height, left : left + width]
        expected = F.interpolate(cut, size=(24, 24), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(image, expected.flip(-1) if draw[0] < 0.5 else expected, atol=2e-5)


def test_masks_are_hash_masks_of_the_visit_blown_up_to_tokens():
    _, mask, ids = make(mask_patch=8, mask_ratio=0.5, batch_size=30).batch(3)  # positions 90 to 119: epoch 2 throughout
    assert np.array_equal(mask.numpy(), np.kron(hash_masks((2, 2), 0.5, 3, ids, 2), np.ones((2, 2), bool)))
    # of validation: functions of the image and k alone
    ids = split_of().ids
    masks = [batches.validation_masks((4, 4), 0.6, "random", ids, k) for k in range(2)]
    assert not np.array_equal(*masks)
    assert np.array_equal(masks[1][7], batches.validation_masks((4, 4), 0.6, "random", ids[7:8], 1)[0])


# --- prepared ahead


def draw(place: int) -> torch.Tensor:
    """A sample that takes a number from each global generator."""
    return torch.tensor([place, random.random(), np.random.rand(), torch.rand(1).item()])


def stumble(place: int) -> torch.Tensor:
    raise UserError("4.png: cannot be read; replace it")


def loader(workers: int = 0, share: slice = slice(0, 4), load=draw) -> StepLoader:
    order = Order(np.arange(10, dtype=np.uint64) * 7919, 3, 4)
    return StepLoader(load, order, share, 6, workers, default_collate)


def test_a_sample_depends_on_its_step_alone() -> None:
    once = loader()
    steps = [once.batch(step) for step in range(6)]
    assert torch.equal(loader().batch(4), steps[4]), "begun in the middle"
    halves = [loader(share=half).batch(4) for half in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat(halves), steps[4]), "shared by two"
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(1, 2):
        draw(0)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]), "generators are put back"


def test_worker_processes_change_nothing_and_end_with_the_last_step() -> None:
    before = set(multiprocessing.active_children())
    alone, ahead = loader(), loader(workers=1)
    for step in range(6):
        assert torch.equal(ahead.batch(step), alone.batch(step))
        assert step == 5 or set(multiprocessing.active_children()) - before
    assert not set(multiprocessing.active_children()) - before
    failing = loader(1, load=stumble)
    one_line("^4.png: cannot be read; replace it$", failing.batch, 0)
    assert not set(multiprocessing.active_children()) - before


# --- decoded as training goes

RUN = replace(
    RECIPE, model="swinv2_atto", image_size=32, window_size=4, mask_patch=8, target_window=9, batch_size=8, steps=9,
    warmup_steps=2, val_images=8, val_masks=1, eval_every=4, precision="fp32", lr=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return image_tree(tmp_path_factory.mktemp("tree") / "few", 4, 6, 4)


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "few"
    pack(listing(f"imagefolder:{tree}"), out)
    return out


def test_a_crop_is_pillows_crop() -> None:
    """Decoded, cut out and shrunk by plain Pillow: the same picture, to a rounding of two filters."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8))
    held = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(held, "JPEG", quality=95)
    reader = SimpleNamespace(content=lambda i: held.getvalue())
    split = Split("x", None, np.array([5], np.uint64), None, reader=reader, rows=np.array([0]))
    [tries] = crop_tries(crop_draws(3, split.ids, np.array([1])))
    top, left, height, width = crop_box(tries, 375, 500)
    part = Image.open(held).convert("RGB").crop((left, top, left + width, top + height))
    expected = np.asarray(part.resize((192, 192), Image.Resampling.BILINEAR)).astype(int)
    crops, problems = batches.load_crops(split, np.array([0]), 3, 192, np.array([1]), np.array([0]))
    assert np.abs(crops[0].permute(1, 2, 0).numpy() - expected).max() <= 3 and not problems


def test_boxes_of_any_shape() -> None:
    """In the picture, of .67 to 1 of its area and a ratio of 3/4 to 4/3; a strip's middle."""
    tries = crop_tries(crop_draws(0, np.arange(400, dtype=np.uint64), np.zeros(400, np.int64)))
    boxes = np.array([crop_box(each, 256, 341) for each in tries])
    assert (boxes >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 256).all() and (boxes[:, 1] + boxes[:, 3] <= 341).all()
    share, ratio = boxes[:, 2] * boxes[:, 3] / (256 * 341), boxes[:, 3] / boxes[:, 2]
    assert 0.66 < share.min() < 0.7 and share.max() > 0.9 and ratio.min() > 0.74 and ratio.max() < 1.34
    assert {crop_box(each, 100, 1000) for each in tries} == {(0, 433, 100, 133)}


def test_a_batch_is_one_function_whatever_decodes_it(tree, packed) -> None:
    """Workers, the step it begins at, files or a pack of them; validation pictures alone are stored."""
    folder, shards = (open_data(spec, 32, streamed=True) for spec in (f"imagefolder:{tree}", f"packed:{packed}"))
    assert folder.val.images.shape == (8, 3, 32, 32) and len(folder.train) == 24 and folder.test is None
    run = replace(RUN, data=f"imagefolder:{tree}")
    expected = make_batches(run, folder)
    for data, workers, first in ((folder, 1, 6), (shards, 0, 7)):
        decoded = make_batches(run, data, workers=workers)
        assert all(equal(decoded.batch(step), expected.batch(step)) for step in range(first, run.steps))
    images, _, ids = expected.batch(5)
    # flips and normalising are as torchvision has them
    epochs, [place, *_] = expected.positions(5)
    draws = crop_draws(0, ids, epochs)
    crop = batches.crop_picture(folder.train.picture(int(expected.indices[place])), crop_tries(draws)[0], 32)
    x = TF.normalize(crop / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.allclose(images[0], x.flip(2) if draws[0, 0] < 0.5 else x, atol=1e-5)


def test_one_that_cannot_be_read_has_a_stand_in(tmp_path, capsys) -> None:
    root = image_tree(tmp_path / "broken", 2, 5, 4)
    first = sorted((root / "train" / "n00000000").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    record = pretrain(replace(RUN, data=f"imagefolder:{root}"), runs_dir=tmp_path / "runs")
    assert record["status"] == "done" and [name for name, _ in record["skipped"]] == [str(first)]
    assert capsys.readouterr().err.count(f"{first} cannot be read") == 1
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"\xff\xd8 gone")
    batch = make_batches(replace(RUN, images=None), open_data(f"imagefolder:{root}", 32, streamed=True)).batch
    one_line("10 pictures in a row cannot be read", batch, 0)
