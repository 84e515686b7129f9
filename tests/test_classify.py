"""The full recipe of classification: its fields, schedule, mixes and augmentation against timm, and one step of it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import imagenet, inaturalist
from PIL import Image
from random_weights import random_model
from test_finetune import tiny_data, tiny_spec

from simmim_lite import evidence
from simmim_lite.cli import main
from simmim_lite.data import sources
from simmim_lite.data.loading import seeded
from simmim_lite.data.pictures import open_pictures
from simmim_lite.errors import UserError
from simmim_lite.model import sizes
from simmim_lite.model.swin import SwinV2
from simmim_lite.model.weights import save_weights
from simmim_lite.training import inputs, starting
from simmim_lite.training.augment import Mixing, train_transform
from simmim_lite.training.classifier import Classifier, parameter_groups
from simmim_lite.training.distributed import Team
from simmim_lite.training.finetune import Classification, build_classifier, finetune
from simmim_lite.training.loop import Loop
from simmim_lite.training.run import Run
from simmim_lite.training.tally import Tally
from simmim_lite.training.transfer import specs, transfer
from simmim_lite.training.tuning import FineTune

ALONE = Team(torch.device("cpu"))


@pytest.fixture
def slim(monkeypatch):
    """swinv2_base with an eighth of its blocks and a quarter of its width; four stages, 224 px and window 14 stay."""
    size = sizes.Size("swinv2_base", 32, (2, 2, 2, 2))
    monkeypatch.setitem(sizes.SIZES, "swinv2_base", size)
    monkeypatch.setitem(sizes.PAPER, "swinv2_base", size)
    monkeypatch.setattr(inputs, "decoders", lambda team: 0)


def recipe(images=12, **options):
    fields = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "precision": "fp32", "eval_every": 1}
    return FineTune.recipe("imagenet-100ep", images, **fields | options)


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


def test_test_images_are_resized_and_cut_as_in_the_released_code(tmp_path, slim):
    from torchvision import transforms as T

    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    spec = recipe(data=data.spec)
    task = Classification(spec, data, None, ALONE)
    theirs = T.Compose([
        T.Resize(int(256 / 224 * 224), interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    pooled, readable = task.input.pooled(task.model, slice(2, 5))
    with torch.no_grad():
        x = torch.stack([theirs(data.test.picture(i)) for i in range(2, 5)])
        expected = task.model.eval().encode(x).mean((2, 3))
    assert readable.all()
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["imagefolder", "inaturalist"])
def test_a_step_of_the_recipe_on_a_full_size_layout(tmp_path, slim, kind):
    """224 px, window 14, four stages, from a file in the official layout, beside scratch; through `transfer`."""
    root = {"imagefolder": imagenet, "inaturalist": inaturalist}[kind](tmp_path / "data")
    start = random_model("swinv2_base", img_size=192, window_size=12)
    file = save_weights(start, tmp_path / "official.pth", layout="official")
    run = Run(model="swinv2_base", data=f"{kind}:{root}", image_size=192, window_size=12, mask_patch=32)
    options = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "precision": "bf16", "test_images": 4}
    own, scratch = specs(run, "classify", file, "imagenet-100ep", **options)
    assert own.weights.startswith("official.pth@") and str(tmp_path) not in own.key and own.labels is None
    assert own.lr == pytest.approx(1.25e-3 * 4 / 512) and (scratch.layer_decay, own.layer_decay) == (1.0, 0.75)
    assert starting.pretrained_windows(own) == (12, 12, 12, 6)
    said = []
    result = transfer(
        run, "classify", runs_dir=tmp_path / "runs", device="cpu", weights=file, recipe="imagenet-100ep",
        progress=lambda *p: said.append(p), **options,
    )  # fmt: skip
    assert (result["trained"]["status"], result["baseline"]["status"]) == ("done", "done")
    assert result["trained"]["key"] == own.key and result["trained"]["final"]["n_test"] == 4
    assert result["trained"]["cost"]["unique_images"] == {"imagefolder": 12, "inaturalist": 9}[kind]
    assert said == [(1, 2), (2, 2)] and "skipped" not in result["trained"]
    model = build_classifier(own, 3, start.state_dict())
    assert [stage.blocks[0].attn.pretrained_window for stage in model.encoder.layers] == [12, 12, 12, 6]


def test_a_full_size_run_is_resumed_bit_for_bit(tmp_path, slim):
    data = open_pictures(f"imagefolder:{imagenet(tmp_path / 'data')}")
    spec = recipe(data=data.spec, steps=4, image_size=64, window_size=4, batch_size=6)
    whole = Loop(spec, Classification(spec, data, None, ALONE), ALONE, folder=None, data_digest="d").run()[0]

    class Killed(Exception):
        pass

    def loop(stop):
        made = Loop(
            spec, Classification(spec, data, None, ALONE), ALONE, folder=tmp_path / "checkpoints", data_digest="d"
        )

        def kill(step, _):
            if step == stop:
                made.save()
                raise Killed

        made.progress = kill
        return made

    with pytest.raises(Killed):
        loop(2).run()
    second = loop(None)
    assert second.step == 2 and second.run()[0] == whole and len({p["train_loss"] for p in whole}) == 4


def test_worker_processes_change_nothing(tmp_path, slim, monkeypatch):
    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    spec = recipe(data=data.spec, steps=2, image_size=64, window_size=4)
    alone = Classification(spec, data, None, ALONE).input
    monkeypatch.setattr(inputs, "decoders", lambda team: 1)
    helped = Classification(spec, data, None, ALONE).input
    for step in range(2):
        for a, b in zip(alone.batch(step), helped.batch(step), strict=True):
            assert torch.equal(a, b)


def test_an_unreadable_picture_does_not_end_a_run(tmp_path, slim, capsys):
    root = imagenet(tmp_path)
    bad = [root / "train" / "n00" / "train_1.JPEG", root / "val" / "n01" / "val_0.JPEG"]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    data = open_pictures(f"imagefolder:{root}")
    bad[1].unlink()  # after it was listed
    spec = recipe(data=data.spec, steps=3, image_size=64, window_size=4)  # a whole epoch
    record = finetune(spec, data, device="cpu")
    assert record["status"] == "done" and record["final"]["n_test"] == 8
    assert [name for name, _ in record["skipped"]] == [str(b) for b in bad]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be read" in line for line in lines)
    json.dumps(record, allow_nan=False)
    for path in root.rglob("train_*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="10 pictures in a row cannot be read .*is the disk there"):
        finetune(spec, data, device="cpu")


def test_mixes_and_timms_pictures_work_at_laptop_size(monkeypatch):
    mixed = finetune(tiny_spec(steps=2, mixup=0.8, cutmix=1.0), tiny_data())
    assert mixed["status"] == "done" and mixed["curve"] != finetune(tiny_spec(steps=2), tiny_data())["curve"]
    monkeypatch.setattr(inputs, "decoders", lambda team: 0)
    monkeypatch.setattr(sources, "SCENE_BLOCK", 256)
    monkeypatch.setattr(sources, "SCENE_COUNTS", {"val": 8, "test": 12, "probe_train": 16})
    spec = tiny_spec(augment="timm", rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, steps=2, labels=None)
    record = finetune(spec, open_pictures("scenes"))
    assert record["status"] == "done" and record["final"]["n_test"] == 12


def test_statistics_that_nobody_has_counted_are_one_line(tmp_path, slim):
    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    with pytest.raises(UserError, match="statistics dataset: .* give imagenet"):
        Classification(recipe(data=data.spec, statistics="dataset"), data, None, ALONE)
    with pytest.raises(UserError, match="labels 13: .* has 12 labelled images"):
        Classification(recipe(data=data.spec, labels=13), data, None, ALONE)


def test_the_command_runs_the_recipe_from_a_file(tmp_path, slim, capsys):
    root = imagenet(tmp_path / "data")
    file = save_weights(
        random_model("swinv2_base", img_size=192, window_size=12), tmp_path / "w.pth", layout="official"
    )
    words = ["transfer", "--task", "classify", "--recipe", "imagenet-100ep", "--data", f"imagefolder:{root}"]
    words += ["--model", "swinv2_base", "--weights", str(file), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu"]
    for field in ("labels=6", "batch_size=2", "steps=1", "warmup_steps=0", "test_images=3"):
        words += ["--set", field]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "top1" in out and "base-data-pretrained-l6-t1-s0-" in out and "base-data-scratch-l6-t1-s0-" in out
    assert main([*words, "--set", "labels=99"]) == 2
    assert "labels 99" in capsys.readouterr().err


def test_a_tally_counts_steps_over_all_trainings():
    said = []
    tally = Tally(lambda *p: said.append(p))
    tally.expect([10, 0, 4, 4])
    for steps, marks in ((10, (5, 10)), (4, (4,)), (4, (2, 4)), (3, (3,))):
        for step in marks:
            tally(step, steps)
    assert said == [(5, 18), (10, 18), (14, 18), (16, 18), (18, 18), (21, 21)]
