"""Views for segmentation: sizes, the limit on the commonest class, padding, and image and labels kept together."""

import pytest
import torch

from simmim_lite.data import crops
from simmim_lite.data.ade20k import IGNORED
from simmim_lite.data.crops import distort, flipped_crop, full_view, resize
from simmim_lite.data.loading import seeded

FILL = torch.tensor([200, 201, 202], dtype=torch.uint8)


def pair(height, width, classes=5):
    """Labels in blocks of 8 px, and an image whose every channel is ten times the label."""
    g = torch.Generator().manual_seed(height * width)
    cells = torch.randint(classes, (-(-height // 8), -(-width // 8)), generator=g, dtype=torch.uint8)
    labels = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()
    return (10 * labels).expand(3, -1, -1).contiguous(), labels


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (683, 512, 512, (683, 512)),
        (480, 640, 512, (512, 683)),
        (640, 480, 512, (683, 512)),
        (480, 640, 32, (32, 43)),
        (100, 1000, 512, (205, 2048)),  # too long: the long side is 2,048 at most, as at 2048 x 512 in the field
        (32, 32, 32, (32, 32)),
        (256, 256, 25.6, (26, 26)),
    ],
)
def test_sizes_keep_the_ratio(height, width, size, expected):
    image, labels = resize(*pair(height, width), size)
    assert image.shape == (3, *expected) and labels.shape == expected
    assert image.dtype == labels.dtype == torch.uint8
    assert resize(image, None, size)[1] is None and set(labels.unique().tolist()) <= set(range(5))  # never mixed


@pytest.mark.parametrize("view", [flipped_crop, full_view])
@pytest.mark.parametrize("shape", [(32, 32), (40, 90), (90, 40), (20, 20)])
def test_views_have_one_size_and_follow_the_generators(view, shape):
    image, labels = pair(*shape)
    with seeded(1):
        first = view(image, labels, 32, FILL)
    with seeded(1):
        again = view(image, labels, 32, FILL)
    assert first[0].shape == (3, 32, 32) and first[1].shape == (32, 32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(image, pair(*shape)[0]) and torch.equal(labels, pair(*shape)[1])
    with seeded(2):
        others = [view(image, labels, 32, FILL)[0] for _ in range(4)]
    assert any(not torch.equal(first[0], other) for other in others)


def test_image_and_labels_stay_together(monkeypatch):
    monkeypatch.setattr(crops, "distort", lambda image: image)
    monkeypatch.setattr(crops, "RATIOS", (1.0, 1.0))  # nothing is resized, so that the image says its label exactly
    with seeded(0):
        for _ in range(20):
            image, labels = full_view(*pair(48, 80), 48, FILL)
            assert all(torch.equal(channel, 10 * labels) for channel in image)


def test_what_lies_outside_is_filled_and_ignored(monkeypatch):
    monkeypatch.setattr(crops, "distort", lambda image: image)
    monkeypatch.setattr(crops, "RATIOS", (0.5, 0.5))
    with seeded(0):
        image, labels = full_view(*pair(64, 64), 64, FILL)
    outside = labels == IGNORED
    assert int(outside.sum()) == 64 * 64 - 32 * 32
    assert torch.equal(image[:, outside], FILL[:, None].expand(-1, int(outside.sum())))
    assert (image[:, ~outside].max() <= 40).item()


def test_a_crop_of_almost_one_class_is_drawn_again():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[48:, 48:] = 1  # one corner of sixteen; a crop of 24 px is mixed only where it lies over that corner
    image = labels.expand(3, -1, -1).contiguous()

    def share(tries):
        with seeded(0):
            parts = [crops._crop(image, labels, 24, FILL, tries)[1] for _ in range(300)]
        return sum(float((p == 0).float().mean()) < 0.75 for p in parts) / len(parts)

    assert share(1) < 0.15 and share(10) > 4 * share(1)
    labels[:] = IGNORED  # nothing is labelled: the last draw is taken
    with seeded(0):
        assert crops._crop(image, labels, 24, FILL, 10)[1].shape == (24, 24)


def test_colours_are_distorted_within_their_ranges():
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    with seeded(0):
        seen = torch.stack([distort(grey)[:, 0, 0] for _ in range(1000)]).float()
    assert (seen.amax(1) - seen.amin(1)).max() <= 1  # saturation and hue leave grey alone
    assert 34 <= seen.min() < 45 and 160 < seen.max() <= 198  # (100 - 32) / 2 and (100 + 32) x 1.5
    assert 0.15 < (seen[:, 0] == 100).float().mean() < 0.35  # neither brightness nor contrast: a quarter
    red = torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None].expand(3, 8, 8).contiguous()
    with seeded(0):
        hues = torch.stack([distort(red)[:, 0, 0] for _ in range(200)]).int()
    assert (hues[:, 0] == hues.amax(1)).all()  # a tenth of a turn does not leave red
    assert ((hues[:, 1] - hues[:, 2]).abs() > 5).any()
