"""A tree laid out as ImageNet goes the whole way: manifest, pack, verify, and steps of tier paper's own code path."""

from dataclasses import replace

from picture_folders import image_tree

from simmim_lite.cli import main
from simmim_lite.data import packs
from simmim_lite.model import sizes
from simmim_lite.model.sizes import Size
from simmim_lite.studies.tiers import RECIPE
from simmim_lite.training.pretrain import pretrain


def test_a_small_tree(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    tree, out, manifest, count = tmp_path / "tree", tmp_path / "packed", tmp_path / "tree.yaml", 40
    image_tree(tree, 2, 20, 4, sides=(200, 230))
    manifest.write_text(
        f"{{name: tree, source: imagefolder, images: {count}, classes: 2, seed: 0, "
        "subsets: [{fraction: .1}, {fraction: .2}, {fraction: .5}]}\n"
    )
    assert main(["manifest", "build", str(manifest), str(tree)]) == 0
    assert main(["manifest", "verify", str(manifest), str(tree)]) == 0
    monkeypatch.setattr(packs, "SHARD", count // 4)
    assert main(["data", "pack", f"imagefolder:{tree}", str(out)]) == 0
    assert main(["data", "verify", str(out), "--manifest", str(manifest)]) == 0

    # the network alone is narrowed: input, window, masks, target, crops, loader and schedule are tier paper's
    narrow = Size("swinv2_small", 32, (1, 1, 2, 1))
    monkeypatch.setitem(sizes.SIZES, "swinv2_small", narrow)
    few = {"images": 20, "val_images": 8, "val_masks": 1, "batch_size": 8, "steps": 2, "warmup_steps": 5}
    run = replace(RECIPE, model="swinv2_small", data=f"packed:{out}", eval_every=2, **few)
    record = pretrain(run, runs_dir=tmp_path / "runs")
    assert record["status"] == "done" and record["cost"]["images_seen"] == 16
