"""Pictures of other channels than three: read, scaled by what they hold, trained on, probed, and shown as a triple."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim_lite.cli import main
from simmim_lite.course import pilot
from simmim_lite.data import scenes
from simmim_lite.data.decode import Unreadable, read_stack, stack_square
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.model.weights import save_weights
from simmim_lite.training.pretrain import begun, build, pretrain
from simmim_lite.training.run import Run, record_path, weights_path
from simmim_lite.training.transfer import transfer

RUN = Run(images=32, batch_size=8, steps=6, warmup_steps=1, eval_every=3, val_images=8, val_masks=1, channels=4,
          probe_labels=24, probe_test=8)  # fmt: skip


def npy(array: np.ndarray) -> bytes:
    np.save(held := io.BytesIO(), array)
    return held.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Scenes with a fourth channel, 12 bits in 16, by class: as satellite pictures come."""
    root = tmp_path_factory.mktemp("stacks")
    for split, seed, count in (("train", 0, 40), ("test", 1, 24)):
        drawn = scenes.render(seed, range(count), 40)
        for k, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
            four = np.concatenate([image, image.mean(0, keepdims=True).astype(np.uint8)]).astype(np.uint16) * 16 + 300
            path = root / split / str(label % 2) / f"{k}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, four.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    return f"stacks:{root}"


def test_stacks_are_read_scaled_and_refused_by_name() -> None:
    array = np.random.default_rng(0).integers(0, 4000, (5, 20, 24)).astype(np.uint16)
    held = io.BytesIO()
    tifffile.imwrite(held, array, photometric="minisblack")
    for content in (npy(array), npy(array.transpose(1, 2, 0)), held.getvalue()):
        assert (read_stack(content) == array.transpose(1, 2, 0)).all()
    assert read_stack(npy(array[0])).shape == (20, 24, 1)
    ends = np.stack([np.zeros(5), np.full(5, 4000.0)], 1)
    square = stack_square(npy(array), 20, ends)
    assert np.abs(square - array[:, :, 2:22] * (255 / 4000)).max() <= 0.51 and square.dtype == np.uint8
    for wrong, words in (
        (npy(np.zeros((17, 40, 40))), "17 channels: give 1 to 16"), (npy(np.zeros((2, 3, 4, 5))), "of shape"),
        (npy(np.zeros((4, 4), complex)), "complex128"), (b"no picture", "TiffFileError"),
    ):  # fmt: skip
        with pytest.raises(Unreadable, match=words):
            read_stack(wrong)


def test_four_channels_from_pretraining_to_a_picture(folder, tmp_path, capsys) -> None:
    run = replace(RUN, data=folder)
    data = open_data(folder, 32)
    assert data.channels == 4 == len(data.mean) and data.train.images.dtype == np.uint8 and min(data.std) > 0.05
    assert "values of its channels from" in data.line
    words = ["study", "all", "--tier", "quick", "--seeds", "1", "--data", folder, "--dry-run"]
    assert main(words) == 0, "sides of stacks are known when they are opened"
    record = pretrain(run, runs_dir=tmp_path)
    assert record["status"] == "done" and {"linear", "knn"} <= record["transfer"].keys()
    found = transfer(run, "classify", runs_dir=tmp_path, labels=16, steps=2, batch_size=8, test_images=8)
    assert found["trained"]["status"] == found["baseline"]["status"] == "done"
    model = build(run)
    assert record["model"]["total_parameters"] == sum(p.numel() for p in model.parameters())
    assert record["model"]["gmac"] > SIZES[run.model].gmac(32, 4, head=True)
    assert record_path(tmp_path, run).exists() and "channels" not in replace(run, channels=3).to_dict()
    words = ["diagnose", "--weights", str(weights_path(tmp_path, run)), "--data", folder, "--channels", "4"]
    assert main([*words, "--bands", "4,2,1", "--out", str(tmp_path / "x.png")]) == 0, capsys.readouterr().err
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[1] == 3 * 128
    assert main([*words, "--bands", "5,2,1"]) == 2 and "bands is 5,2,1: give three of 1 to 4" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(folder, tmp_path) -> None:
    run = replace(RUN, data=folder)
    with pytest.raises(UserError, match="channels is 3: pictures of stacks:.* have 4; give channels=4"):
        pretrain(replace(run, channels=3), runs_dir=tmp_path)
    with pytest.raises(UserError, match="statistics imagenet are about 3"):
        replace(run, statistics="imagenet")
    with pytest.raises(UserError, match="channels is 4, and a film shows colours"):
        pretrain(run, runs_dir=tmp_path / "film", film=4)
    with pytest.raises(UserError, match="pictures can be read in colours; give RGB pictures"):
        pilot.pictures(folder)
    three = save_weights(build(replace(run, channels=3)), tmp_path / "three.pth")
    with pytest.raises(UserError, match="of another shape"):
        begun(replace(run, init=str(three)), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder; give .npy, .tif, .tiff"):
        open_data(f"stacks:{tmp_path / 'empty'}", 32)
