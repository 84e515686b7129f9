"""Fine-tuning for classification: layer decay, schedule, mixes and augmentation against timm, picture files."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from photos import imagenet, inaturalist
from PIL import Image
from random_weights import random_model
from tiny import ALONE, classification, recipe, same, slim, stopped, tiny_data, tiny_spec, trained  # noqa: F401 (fixtures)

from simmim_lite.cli import main
from simmim_lite.data.batches import seeded
from simmim_lite.data.sources import open_data, open_pictures
from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.model.swin import SwinV2
from simmim_lite.model.weights import save_weights
from simmim_lite.studies import engine
from simmim_lite.studies.grids import counts_of
from simmim_lite.studies.tiers import StudyOptions
from simmim_lite.training.finetune import Classifier, build_encoder, train_transform
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, transfer_path
from simmim_lite.training.train import layer_groups, layer_id
from simmim_lite.training.transfer import specs
from simmim_lite.training.tuning import FineTune

BASE = (2, 2, 18, 2)
#: The id of a module of swinv2_base by hand (docs/facts.md, 4): patch embedding, then stages of 2, 2, 18, 2 blocks,
#: merges after 2, 4 and 22 blocks, final norm and head.
IDS = {"patch_embed.": 0, "mask_token": 0, "layers.0.blocks.0.": 1, "layers.0.blocks.1.": 2, "layers.0.downsample": 2}
IDS |= {"layers.1.blocks.0.": 3, "layers.1.blocks.1.": 4, "layers.1.downsample": 4}
IDS |= {f"layers.2.blocks.{b}.": 5 + b for b in range(18)}
IDS |= {"layers.2.downsample": 22, "layers.3.blocks.0.": 23, "layers.3.blocks.1.": 24, "encoder.norm.": 25, "head.": 25}


def test_every_layer_of_swinv2_base_has_its_learning_rate():
    model = Classifier(SwinV2(embed_dim=32, depths=BASE), 10)  # as deep and named as swinv2_base, and quick to build
    groups = layer_groups(model, BASE, 0.75, 0.05)
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    assert sorted(scale) == sorted(name for name, _ in model.named_parameters())
    for name, found in scale.items():
        (i,) = {i for part, i in IDS.items() if part in name}
        assert layer_id(name, BASE) == i and found == pytest.approx(0.75 ** (25 - i), rel=1e-12)
    decayed = {n.split(".")[-2] for g in groups if g["weight_decay"] for n in g["names"]}
    assert decayed == {"proj", "qkv", "fc1", "fc2", "reduction", "head"}


@pytest.mark.parametrize(
    ("prefix", "spec", "t_initial"),
    [
        (True, tiny_spec(steps=60, warmup_steps=12), 47),
        (False, FineTune.recipe("imagenet-100ep", 200, batch_size=32), 625),
    ],
)
def test_the_schedule_is_timms(prefix, spec, t_initial):
    """Our default ends the cosine at the last step; the recipe's `t_initial` is the released code's, all steps."""
    from timm.scheduler import CosineLRScheduler

    assert spec.steps == (60 if prefix else 625) and spec.warmup_steps == (12 if prefix else 125)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    ends = {"lr_min": spec.lr / 5000, "warmup_lr_init": spec.lr / 5000, "warmup_t": spec.warmup_steps}
    how = {"warmup_prefix": prefix, "cycle_limit": 1, "t_in_epochs": False}
    theirs = CosineLRScheduler(optimiser, t_initial=t_initial, **ends, **how)
    for now in range(spec.steps):
        theirs.step_update(now)
        assert spec.lr_at(now) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), now


def test_labels_follow_their_images_and_the_record_is_whole():
    """On a source whose class is its colour, the test images are told apart."""

    def coloured(split):
        colours = (np.eye(3, dtype=np.uint8)[split.labels % 3] * 200)[:, :, None, None]
        return dataclasses.replace(split, images=np.zeros_like(split.images) + colours, labels=split.labels % 3)

    data = tiny_data()
    parts = {"probe_train": coloured(data.probe_train), "test": coloured(data.test)}
    data = dataclasses.replace(data, classes=("red", "green", "blue"), **parts)
    record = trained(classification(tiny_spec(lr=1e-2, labels=20, eval_every=1), data))
    cost, final = record["cost"], record["final"]
    assert record["curve"][0]["train_loss"] == pytest.approx(math.log(3), abs=0.2)
    assert record["curve"][-1]["images_seen"] == 20 * 16 == cost["images_seen"]
    assert (cost["unique_images"], cost["epochs"]) == (20, 16) and cost["flops"] > 0 and cost["core_seconds"] > 0
    assert set(final) == {"top1", "low", "high", "n_test"} and final["n_test"] == 50
    assert final["top1"] == final["high"] == 1.0 > final["low"]
    assert (record["kind"], record["status"], record["reason"], record["run"]) == ("finetune", "done", None, None)
    assert FineTune.from_dict(record["spec"] | {"run": record["run"]}).key == record["key"]


def test_numbers_that_are_not_finite_are_a_failed_record_without_numbers(monkeypatch):
    task = classification(tiny_spec(steps=2))
    real = task.batch

    def last(now):
        if now == 1:  # the last step's damage shows in no loss
            task.model.head.bias.register_hook(lambda grad: grad * math.nan)
        return real(now)

    monkeypatch.setattr(task, "batch", last)
    record = trained(task)
    assert record["status"] == "failed" and "weights were not finite; lower lr (0.004)" in record["reason"]
    assert not {"cost", "curve", "final", "transfer"} & set(record)


def test_pretrained_weights_are_taken_windows_keep_their_offsets_and_the_head_starts_alike():
    """docs/facts.md, 4: window 12 at 192 px means 12, 12, 12, 6; here 4 at 16 px means 4, 2."""
    run, weights = Run(image_size=16, window_size=4), random_model("swinv2_atto", img_size=16).state_dict()
    model = Classifier(build_encoder(FineTune.of(run), weights), 10)
    scratch = Classifier(build_encoder(FineTune.scratch(run), None), 10)
    assert torch.equal(scratch.head.weight, model.head.weight) and 0.01 < scratch.head.weight.std() < 0.03
    assert not model.encoder.mask_token.requires_grad
    reference = create_model("swinv2_atto", 16, 4)
    reference.load_state_dict(weights)
    assert same(model.encoder.state_dict(), reference.encoder.state_dict())
    wider = build_encoder(FineTune.of(run, image_size=32, window_size=8), weights)
    assert [layer.blocks[0].attn.pretrained_window for layer in wider.layers] == [4, 2]


@pytest.mark.parametrize(("mixup", "cutmix", "smoothing"), [(0.0, 0.0, 0.1), (0.8, 1.0, 0.1)])
def test_mixes_and_losses_are_timms(mixup, cutmix, smoothing):
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    task = classification(tiny_spec(mixup=mixup, cutmix=cutmix, label_smoothing=smoothing, seed=3, drop_path=0.0))
    theirs = LabelSmoothingCrossEntropy(smoothing)
    for now in range(4):
        images, target = task.images(now)
        if mixup:
            with seeded(3, now, 12):
                how = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "label_smoothing": smoothing}
                images, target = Mixup(**how, num_classes=10)(images, target)
            theirs = SoftTargetCrossEntropy()
        np.random.seed(now)  # the mix must not depend on where the generators stand
        ours = task.batch(now)
        assert torch.equal(ours[0], images) and torch.equal(ours[1], target)
        with torch.no_grad():
            expected = theirs(task.model(images, torch.full((16, 4, 2), 0.5)), target)
            assert float(task.loss(task.model, *ours)) == pytest.approx(float(expected), rel=1e-5)
    noise = [task.batch(now)[2] for now in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2]) and noise[0].shape == (16, 4, 2)


def test_pictures_are_seen_as_timm_and_the_released_code_see_them(tmp_path, slim):  # noqa: F811
    """Training images are timm's with the seeds of the image; test images are cut as torchvision cuts them."""
    from timm.data import create_transform
    from torchvision import transforms as T

    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    spec = recipe(data=data.spec, steps=4, seed=5)
    task = classification(spec, data)
    how = {"color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
    transform = create_transform(224, is_training=True, interpolation="bicubic", re_count=1, **how)
    images, labels = task.images(2)
    order, chosen = task.batches.order, task.chosen
    for k, (epoch, place) in enumerate(zip(*order.positions(2), strict=True)):
        with seeded(5, int(epoch), int(order.ids[place]), 11):
            expected = transform(data.train.picture(chosen[place]))
        assert torch.equal(images[k], expected) and labels[k] == data.train.labels[chosen[place]]
    theirs = T.Compose([
        T.Resize(256, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    ((seen, readable),) = task.tests(range(2, 5))
    torch.testing.assert_close(seen, torch.stack([theirs(data.test.picture(i)) for i in range(2, 5)]))
    assert readable == [2, 3, 4]


def test_no_draw_of_the_augmentation_is_an_error():
    """timm's strongest posterize keeps no bits, which Pillow 13 refuses: every operation, at its strongest."""
    from timm.data.auto_augment import RandAugment

    whole = train_transform(recipe(image_size=32, window_size=2), (0.5,) * 3, (0.5,) * 3)
    ops = next(part.ops for part in whole.transforms if isinstance(part, RandAugment))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert "PosterizeIncreasing" in {op.name for op in ops}
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert np.asarray(op(picture)).shape == (40, 50, 3)


def test_the_command_takes_a_step_of_the_recipe_on_a_full_size_layout(tmp_path, slim, capsys):  # noqa: F811
    """224 px, window 14, four stages, from a file in the official layout, beside scratch."""
    file = save_weights(
        random_model("swinv2_base", img_size=192, window_size=12), tmp_path / "a.pth", layout="official"
    )
    options = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "precision": "bf16", "test_images": 4}
    run = Run(model="swinv2_base", image_size=192, window_size=12, mask_patch=32)
    run = dataclasses.replace(run, data=f"inaturalist:{inaturalist(tmp_path / 'data')}")
    own, scratch = specs(run, "classify", file, "imagenet-100ep", **options)
    assert own.weights.startswith("a.pth@") and str(tmp_path) not in own.key
    assert own.lr == pytest.approx(1.25e-3 * 4 / 512) and (scratch.layer_decay, own.layer_decay) == (1.0, 0.75)
    words = ["transfer", "--task", "classify", "--recipe", "imagenet-100ep", "--data", run.data, "--model", run.model]
    words += ["--weights", str(file), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu"]
    words += [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    assert main(words) == 0
    assert own.key in capsys.readouterr().out
    record = read_record(transfer_path(tmp_path / "runs", own.key))
    assert record["cost"]["unique_images"] == 9 and "skipped" not in record


def test_an_unreadable_picture_does_not_end_a_run(tmp_path, slim, capsys):  # noqa: F811
    root = imagenet(tmp_path)
    bad = [root / "train" / "n00" / "train_1.JPEG", root / "val" / "n01" / "val_0.JPEG"]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    data = open_pictures(f"imagefolder:{root}")
    bad[1].unlink()  # after it was listed
    spec = recipe(data=data.spec, steps=3, image_size=64, window_size=4)  # a whole epoch
    record = trained(classification(spec, data))
    assert record["status"] == "done" and record["final"]["n_test"] == 8
    assert [name for name, _ in record["skipped"]] == [str(b) for b in bad]
    assert capsys.readouterr().err.count("cannot be read") == 2


def test_pictures_that_are_away_at_the_end_cost_no_training(tmp_path, slim):  # noqa: F811
    root = imagenet(tmp_path / "data")
    data = open_pictures(f"imagefolder:{root}")
    spec, folder = recipe(data=data.spec, steps=3, image_size=64, window_size=4), tmp_path / "kept"
    (root / "val").rename(root / "away")
    with pytest.raises(UserError, match="none of the 9 test images .* is the disk there"):
        trained(classification(spec, data), folder)
    (root / "away").rename(root / "val")
    with stopped(None) as taken:
        record = trained(classification(spec, data), folder)
    assert record["status"] == "done" and not taken


def test_pairs_are_mixed_on_every_process():
    with pytest.raises(UserError, match="4 processes have 3 each; give a multiple of 8"):
        classification(tiny_spec(mixup=0.8, batch_size=12), group=dataclasses.replace(ALONE, size=4))


def test_a_finished_one_at_full_size_is_not_missing(tmp_path, monkeypatch):
    data, seen = open_pictures(f"imagefolder:{imagenet(tmp_path)}"), []
    monkeypatch.setattr(engine, "current_record", lambda path, digest: seen.append(digest))
    engine._missing([recipe(data=data.spec)], StudyOptions(runs_dir=tmp_path), {})
    assert seen == [data.digest], "a record holds the digest of pictures at their own size"
    labelled = counts_of(open_data(data.spec, 64, streamed=True))["labelled"]
    assert labelled == len(data.train), "a study that streams its pictures has labels to fine-tune on"


def test_what_cannot_be_tuned_is_one_line(tmp_path, slim):  # noqa: F811
    data = open_pictures(f"imagefolder:{imagenet(tmp_path)}")
    for call, words in (
        (lambda: classification(tiny_spec(), tiny_data(labels=False)), "no labels"),
        (lambda: classification(tiny_spec(labels=65)), "images 65: probe_train holds 64 images"),
        (lambda: classification(recipe(statistics="dataset"), data), "statistics dataset: .* give imagenet"),
        (lambda: build_encoder(FineTune.of(Run()), None), "weights"),
        (lambda: tiny_spec(model="swinv2_femto", run=Run()), "swinv2_atto"),
        (lambda: tiny_spec(run=Run(), weights="a@0"), "run and weights are both given"),
        (lambda: tiny_spec(cutmix=1.0, batch_size=15), "batch_size 15: mixup and cutmix mix images in pairs"),
        (lambda: tiny_spec(erasing=0.25), "erasing is 0.25: it needs augment=timm"),
        (lambda: tiny_spec(rand_augment="rand-m9.5-mstd0.5"), "rand_augment is 'rand-m9.5-mstd0.5'"),
        (lambda: tiny_spec(weights="a@0", weights_windows=(8,)), "weights_windows is .*: give one of 2 stages each"),
        (lambda: FineTune.recipe("imagenet-100ep", 1000, epochs="some"), "epochs is 'some'"),
        (lambda: FineTune.recipe("imagenet-100ep", 1000, epochs=0), "epochs is 0"),
        (lambda: recipe(rand_augment="m9"), "rand_augment is 'm9': give it as timm does"),
    ):
        with pytest.raises(UserError, match=words):
            call()
