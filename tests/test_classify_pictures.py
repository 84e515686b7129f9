"""The full recipe of classification on pictures of any size: one step, resuming, unreadable files, the command."""

import json

import pytest
import torch
from photos import imagenet, inaturalist
from random_weights import random_model
from recipes import ALONE, recipe, slim  # noqa: F401 (fixtures)
from test_finetune import tiny_data, tiny_spec

from simmim_lite.cli import main
from simmim_lite.data import sources
from simmim_lite.data.sources import open_pictures
from simmim_lite.errors import UserError
from simmim_lite.model.weights import save_weights
from simmim_lite.training import starting
from simmim_lite.training.distributed import Team
from simmim_lite.training.finetune import Classification, build_classifier, finetune
from simmim_lite.training.loop import Loop
from simmim_lite.training.run import Run
from simmim_lite.training.tally import Tally
from simmim_lite.training.transfer import specs, transfer


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
    monkeypatch.setattr(Team, "decoders", lambda team: 1)
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
    said, *lines = capsys.readouterr().err.splitlines()
    assert said == record["where"]["data_line"] and len(lines) == 2 and all("cannot be read" in line for line in lines)
    json.dumps(record, allow_nan=False)
    for path in root.rglob("train_*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="10 pictures in a row cannot be read .*is the disk there"):
        finetune(spec, data, device="cpu")


def test_mixes_and_timms_pictures_work_at_laptop_size(monkeypatch):
    mixed = finetune(tiny_spec(steps=2, mixup=0.8, cutmix=1.0), tiny_data())
    assert mixed["status"] == "done" and mixed["curve"] != finetune(tiny_spec(steps=2), tiny_data())["curve"]
    monkeypatch.setattr(Team, "decoders", lambda team: 0)
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
