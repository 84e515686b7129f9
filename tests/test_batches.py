"""Batches: pure functions of (seed, step), and crop, flip, mask equal to slow specs written image by image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simmim_lite.data.batches import Batches, validation_masks
from simmim_lite.data.sources import Split
from simmim_lite.errors import UserError
from simmim_lite.model.masking import hash_masks, uniforms

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


def assert_same(one, other):
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and np.array_equal(one[2], other[2])


@pytest.mark.parametrize("augment", ["none", "flip", "crop+flip"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    one, other = make(augment=augment), make(augment=augment)
    forward = [one.batch(step) for step in range(8)]
    backward = [other.batch(step) for step in reversed(range(8))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_same(a, b)
    assert not torch.equal(make(augment=augment, seed=4).batch(0)[0], forward[0][0])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    drawn = np.concatenate([make().batch(step)[2] for step in range(20)])  # 240 = 6 epochs of 40
    epochs = drawn.reshape(6, 40)
    everything = np.sort(split_of().ids)
    assert all(np.array_equal(np.sort(epoch), everything) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 6


def test_fewer_images_than_the_batch():
    few = make(indices=np.array([5, 9, 2]))
    for step in range(4):
        images, mask, ids = few.batch(step)
        assert len(images) == len(mask) == 12
        assert [np.sum(ids == i) for i in split_of().ids[[5, 9, 2]]] == [4, 4, 4]
    # the visits of one image within the batch are told apart: other masks, other flips
    images, mask, ids = few.batch(0)
    same = np.flatnonzero(ids == ids[0])
    assert len({mask[k].numpy().tobytes() for k in same}) > 1
    one = make(indices=np.array([5]), batch_size=64).batch(1)[0]
    assert 16 < len(one) - sum(torch.equal(image, one[0]) for image in one) < 48 and len(torch.unique(one, dim=0)) == 2


def test_pixels_are_those_of_the_images_and_half_of_them_flipped():
    split, flips = split_of(), 0
    for step in range(10):
        images, mask, ids = make(split).batch(step)
        assert images.dtype == torch.float32 and mask.shape == (12, 4, 4) and ids.dtype == np.uint64
        plain = plain_pixels(split, ids)
        assert torch.allclose(make(split, augment="none").batch(step)[0], plain, atol=1e-6)
        for image, before in zip(images, plain, strict=True):
            straight = torch.allclose(image, before, atol=1e-6)
            flips += not straight
            assert straight or torch.allclose(image, before.flip(-1), atol=1e-6)
    assert 40 < flips < 80
    assert_same(make(indices=np.arange(40)).batch(5), make(indices=np.arange(40)[::-1]).batch(5))


def test_crops_equal_a_slow_spec():
    """Image by image: draw as torchvision's RandomResizedCrop does, cut out, resize alone, mirror."""
    split = split_of(size=24)
    source = make(split, augment="crop+flip", image_size=24)
    for step in range(4):
        images, _, ids = source.batch(step)
        epochs, _ = source.positions(step)
        for image, before, number, epoch in zip(images, plain_pixels(split, ids), ids, epochs, strict=True):
            top, left, height, width, flip = slow_box(uniforms(41, 3, number, int(epoch), 2)[0].astype(float), 24)
            cut = before[None, :, top : top + height, left : left + width]
            expected = F.interpolate(cut, size=(24, 24), mode="bilinear", align_corners=False)[0]
            assert torch.allclose(image, expected.flip(-1) if flip else expected, atol=2e-5)


def slow_box(draw: np.ndarray, size: int) -> tuple[int, int, int, int, bool]:
    flip, tries = bool(draw[0] < 0.5), draw[1:].reshape(-1, 4)
    for area, ratio, top, left in tries:
        target = size * size * (0.67 + 0.33 * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if width <= size and height <= size:
            return int(top * (size - height + 1)), int(left * (size - width + 1)), height, width, flip
    return 0, 0, size, size, flip


def test_masks_are_hash_masks_of_the_visit_blown_up_to_tokens():
    source = make(mask_patch=8, mask_ratio=0.5, batch_size=30)
    _, mask, ids = source.batch(3)  # positions 90 to 119: epoch 2 throughout
    cells = hash_masks((2, 2), 0.5, 3, ids, 2)
    assert np.array_equal(mask.numpy(), np.kron(cells, np.ones((2, 2), bool)))
    assert (mask.sum((1, 2)) == 8).all()
    square = make(mask_patch=4, mask_strategy="square").batch(0)[1]
    assert not torch.equal(square, make(mask_patch=4).batch(0)[1])


def test_validation_masks_depend_on_image_and_k_alone():
    ids = split_of().ids
    masks = [validation_masks((4, 4), 0.6, "random", ids, k) for k in range(4)]
    assert masks[0].shape == (40, 4, 4) and (masks[0].sum((1, 2)) == 10).all()
    assert np.array_equal(masks[1][7], validation_masks((4, 4), 0.6, "random", ids[7:8], 1)[0])
    assert all(not np.array_equal(masks[0], other) for other in masks[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": "flipp"}, "'flip'"),
        ({"indices": np.array([], int)}, "at least one"),
        ({"image_size": 32}, "opened at 16 px"),
        ({"mask_patch": 6}, "mask_patch 6"),
        ({"mask_patch": 2}, "mask_patch 2"),
        ({"mask_strategy": "rnd"}, "random"),
    ],
)
def test_mistakes_get_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**change).batch(0)
    assert "\n" not in str(caught.value)
