"""The full recipe of classification: its fields, schedule, mixes and augmentation against timm."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import imagenet
from PIL import Image
from recipes import ALONE, recipe, slim  # noqa: F401 (fixtures)
from test_finetune import tiny_data, tiny_spec

from simmim_lite import evidence
from simmim_lite.data.loading import seeded
from simmim_lite.data.sources import open_pictures
from simmim_lite.errors import UserError
from simmim_lite.model.swin import SwinV2
from simmim_lite.training.augment import Mixing, train_transform
from simmim_lite.training.classifier import Classifier, parameter_groups
from simmim_lite.training.distributed import Team
from simmim_lite.training.finetune import Classification
from simmim_lite.training.tuning import FineTune


def test_the_recipe_is_the_released_one():
    spec = FineTune.recipe("imagenet-100ep", 1_281_167, data="imagefolder:DIR")
    assert (spec.steps, spec.warmup_steps) == (62_557, 12_512)  # 100 and 20 epochs of 625.57 steps
    assert spec.lr == pytest.approx(5e-3) and spec.lr_at(0) == pytest.approx(1e-6)  # 1.25e-3, 2.5e-7 per 512
    assert (spec.image_size, spec.window_size, spec.batch_size, spec.labels, spec.test_images) == (
        224,
        14,
        2048,
        None,
        None,
    )
    assert spec.key.startswith("base-DIR-scratch-lall-t62557-s0-")
    half = FineTune.recipe("imagenet-100ep", 1_281_167, batch_size=1024)
    assert half.lr == pytest.approx(2.5e-3) and half.steps == 125_114
    assert FineTune.recipe("imagenet-100ep", 1000, lr=1e-3, steps=7, warmup_steps=2).lr == 1e-3
    assert FineTune.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert FineTune.recipe("imagenet-100ep", 1000, batch_size=100, epochs=3, warmup_epochs=1).warmup_steps == 10
    with pytest.raises(UserError, match="unknown recipe 'imagenet-100': did you mean 'imagenet-100ep'"):
        FineTune.recipe("imagenet-100", 10)


def test_keys_of_shipped_fine_tunings_stay():
    path = Path(evidence.__file__).parent / "shipped_records" / "laptop-scenes.json"
    kept = [r for r in json.loads(path.read_text())["records"] if r["kind"] == "finetune"]
    assert len(kept) == 48
    for record in kept:
        spec = FineTune.from_dict(record["spec"] | {"run": record["run"]})
        assert spec.key == record["key"] and spec.to_dict() == record["spec"] | {"run": record["run"]}


def test_later_fields_make_other_keys():
    keys = {tiny_spec().key}
    for change in ({"mixup": 0.8}, {"cutmix": 1.0}, {"warmup_prefix": False}, {"labels": None}, {"test_images": None}):
        keys.add(tiny_spec(**change).key)
    for change in ({}, {"rand_augment": "rand-m9"}, {"erasing": 0.25}, {"colour_jitter": 0.4}, {"test_crop": 1.0}):
        keys.add(tiny_spec(augment="timm", **change).key)
    assert len(keys) == 11


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"augment": "tim"}, "unknown augment 'tim': did you mean 'timm'"),
        ({"mixup": -1}, "mixup is -1: give a number from 0"),
        ({"cutmix": 1.0, "batch_size": 15}, "batch_size 15: mixup and cutmix mix images in pairs"),
        ({"erasing": 0.25}, "erasing is 0.25, but augment is 'flip': it needs augment=timm"),
        ({"augment": "timm", "rand_augment": "m9"}, "rand_augment is 'm9': give it as timm does"),
        ({"augment": "timm", "interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"augment": "timm", "test_crop": 0}, "test_crop is 0"),
        ({"labels": 0}, "labels is 0: give a whole number"),
    ],
)
def test_a_wrong_field_is_one_line(fields, words):
    with pytest.raises(UserError, match=words):
        tiny_spec(**fields)


@pytest.mark.parametrize("prefix", [True, False])
def test_the_schedule_is_timms(prefix):
    """Our default ends the cosine at the last step; the recipe's `t_initial` is the released code's, all steps."""
    from timm.scheduler import CosineLRScheduler

    if prefix:
        spec, t_initial = tiny_spec(steps=60, warmup_steps=12), 60 - 1 - 12
    else:
        spec = FineTune.recipe("imagenet-100ep", 200, batch_size=32)
        assert (spec.steps, spec.warmup_steps) == (625, 125)
        t_initial = 625
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    theirs = CosineLRScheduler(
        optimiser,
        t_initial=t_initial,
        lr_min=spec.lr / 5000,
        warmup_lr_init=spec.lr / 5000,
        warmup_t=spec.warmup_steps,
        warmup_prefix=prefix,
        cycle_limit=1,
        t_in_epochs=False,
    )
    for step in range(spec.steps):
        theirs.step_update(step)
        assert spec.lr_at(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), step


#: 0.75 ** (25 - id) by hand, for swinv2_base's ids 0 (patch embedding) to 25 (norm and head).
SCALES = [
    7.525434581650003e-04, 1.003391277553334e-03, 1.337855036737778e-03, 1.783806715650371e-03, 2.378408954200495e-03,
    3.171211938933993e-03, 4.228282585245324e-03, 5.637710113660432e-03, 7.516946818213909e-03, 1.002259575761855e-02,
    1.336346101015806e-02, 1.781794801354408e-02, 2.375726401805877e-02, 3.167635202407837e-02, 4.223513603210449e-02,
    5.631351470947266e-02, 7.508468627929688e-02, 1.001129150390625e-01, 1.334838867187500e-01, 1.779785156250000e-01,
    2.373046875000000e-01, 3.164062500000000e-01, 4.218750000000000e-01, 5.625000000000000e-01, 7.500000000000000e-01,
    1.0,
]  # fmt: skip
#: The id of a module of swinv2_base (FACTS 4), by hand.
IDS = {"patch_embed.proj": 0, "layers.0.blocks.0.": 1, "layers.0.blocks.1.": 2, "layers.0.downsample": 2}
IDS |= {"layers.1.blocks.0.": 3, "layers.1.blocks.1.": 4, "layers.1.downsample": 4}
IDS |= {f"layers.2.blocks.{b}.": 5 + b for b in range(18)}
IDS |= {"layers.2.downsample": 22, "layers.3.blocks.0.": 23, "layers.3.blocks.1.": 24, "encoder.norm.": 25, "head.": 25}


def test_layer_decay_of_the_recipe_at_depth_26():
    model = Classifier(SwinV2(embed_dim=32, depths=(2, 2, 18, 2)), 10)
    groups = parameter_groups(model, recipe().layer_decay, 0.05)
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    assert len({round(s, 12) for s in scale.values()}) == len(SCALES) == 26
    for part, i in IDS.items():
        own = [s for name, s in scale.items() if part in name]
        assert own and own == pytest.approx([SCALES[i]] * len(own), rel=1e-9), part


@pytest.mark.parametrize(("mixup", "cutmix", "smoothing"), [(0.8, 1.0, 0.1), (0.8, 0.0, 0.0), (0.0, 1.0, 0.1)])
def test_mixes_are_timms(mixup, cutmix, smoothing):
    from timm.data import Mixup

    spec = tiny_spec(mixup=mixup, cutmix=cutmix, label_smoothing=smoothing, seed=3)
    ours = Mixing(spec, 10)
    theirs = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=10)
    seen = set()
    for step in range(12):
        images, labels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step)), torch.arange(8)
        with seeded(3, step, 12):
            mixed, target = theirs(images.clone(), labels)
        np.random.seed(step)  # the mix must not depend on where the generators stand
        again = ours(images.clone(), labels, step)
        assert torch.equal(again[0], mixed) and torch.equal(again[1], target)
        assert target.sum(1) == pytest.approx(np.ones(8), abs=1e-6)
        seen.add(round(float(target[0, 0]), 6))
    assert len(seen) > 8


def test_losses_are_timms(monkeypatch):
    """Label smoothing without a mix, soft targets with one."""
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    data = tiny_data()
    for mixes in (False, True):
        spec = tiny_spec(mixup=0.8 * mixes, cutmix=1.0 * mixes, drop_path=0.0)
        task = Classification(spec, data, None, ALONE)
        images, labels = task.input.batch(5)
        if mixes:
            with seeded(spec.seed, 5, 12):
                images, labels = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=10)(images, labels)
        theirs = SoftTargetCrossEntropy() if mixes else LabelSmoothingCrossEntropy(0.1)
        with torch.no_grad():
            expected = theirs(task.model(images, torch.full((16, 4, 2), 0.5)), labels)
            assert float(task.loss(task.model, 5)) == pytest.approx(float(expected), rel=1e-6)


def test_pairs_stay_together():
    for size in (1, 2, 4):
        shares = [Team(torch.device("cpu"), rank, size).pairs(16) for rank in range(size)]
        assert sorted(np.concatenate(shares)) == list(range(16))
        assert all((share + share[::-1] == 15).all() for share in shares)
    with pytest.raises(UserError, match="batch_size 18 does not divide into pairs for 4 processes: try 16"):
        Team(torch.device("cpu"), 0, 4).pairs(18)


def test_training_images_are_timms_with_the_seeds_of_the_image(tmp_path, slim):
    from timm.data import create_transform

    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    spec = recipe(data=data.spec, steps=4, seed=5)
    task = Classification(spec, data, None, ALONE)
    transform = create_transform(
        224, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel",
        re_count=1, interpolation="bicubic",
    )  # fmt: skip
    random.seed(7)
    images, labels = task.input.batch(2)
    order = task.input.loader.order
    epochs, places = order.positions(2)
    chosen = task.input.loader.samples.load.chosen
    for k, (epoch, place) in enumerate(zip(epochs, places, strict=True)):
        with seeded(5, int(epoch), int(order.ids[place]), 11):
            expected = transform(data.train.picture(chosen[place]))
        assert torch.equal(images[k], expected) and labels[k] == data.train.labels[chosen[place]]


def test_no_draw_of_the_augmentation_is_an_error():
    """timm's strongest posterize keeps no bits, which Pillow 13 refuses: every operation, at its strongest."""
    from timm.data.auto_augment import RandAugment

    whole = train_transform(recipe(image_size=32, window_size=2), (0.5,) * 3, (0.5,) * 3)
    ops = next(part.ops for part in whole.transforms if isinstance(part, RandAugment))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert "PosterizeIncreasing" in {op.name for op in ops}
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        strongest = np.asarray(op(picture))
        assert strongest.shape == (40, 50, 3) and (strongest.any() or op.name == "PosterizeIncreasing")
