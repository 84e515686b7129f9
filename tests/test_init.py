"""Runs that begin with weights: of any layout, or of a run; their keys, their windows, and what does not fit."""

from dataclasses import replace

import pytest
import torch
from random_weights import random_model

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import load, run_rows
from simmim_lite.model.weights import save_weights
from simmim_lite.studies.grids import with_references
from simmim_lite.training.pretrain import begun, pretrain
from simmim_lite.training.run import Run, load_final
from simmim_lite.training.transfer import transfer

OTHER = Run(
    images=8, batch_size=8, steps=6, seed=3, warmup_steps=1, eval_every=3, val_images=8, val_masks=1, probe_labels=0
)


@pytest.fixture(scope="module")
def model():
    return random_model("swinv2_atto", img_size=32, window_size=4)


def same(a, b) -> bool:
    return all(torch.equal(held, b.state_dict()[name]) for name, held in a.state_dict().items())


@pytest.mark.parametrize(
    "layout, name", [("simmim", "a.safetensors"), ("official", "b.pth"), ("hf", "c"), ("timm", "d.pth")]
)
def test_weights_of_every_layout_begin_a_run(layout, name, model, tmp_path) -> None:
    """The key is about the tensors, not the file; a backbone alone leaves mask token and head as they were drawn."""
    file = save_weights(model, tmp_path / name, layout=layout)
    run = replace(OTHER, init=str(file), target=model.target)
    first = begun(run, tmp_path)
    if layout == "timm":
        assert same(first.encoder.layers, model.encoder.layers) and not same(first.decoder, model.decoder)
    else:
        assert same(first, model)
        one = save_weights(model, tmp_path / "one.pth", layout="official")
        assert replace(run, init=str(one)).key == run.key != replace(run, init=None).key
        assert replace(run, init=str(one)).trunk_key == run.trunk_key
    assert Run.from_dict(run.to_dict()) == run and run.init.startswith(f"{file}@")


def test_a_run_goes_on_from_a_run_with_a_schedule_of_its_own(tmp_path) -> None:
    before = pretrain(replace(OTHER, steps=4), runs_dir=tmp_path)
    run = replace(OTHER, init=before["key"], lr=1e-4, probe_labels=16, probe_test=16)
    for one in (replace(run, steps=0), run, *with_references([run])[:1]):
        record = pretrain(one, runs_dir=tmp_path)
        assert record["status"] == "done", record
    rows = {row["key"]: row for row in run_rows(load(tmp_path))}
    foreign, own = rows[replace(run, steps=0).key], rows[run.key]
    assert not foreign["reference"] and foreign["val_loss"] == pytest.approx(before["final"]["val_loss"], rel=1e-6)
    assert foreign["linear_lift"] is not None and own["linear_lift"] is not None
    found = transfer(run, "probe", runs_dir=tmp_path)
    assert found["trained"]["run"]["init"] == before["key"] and "init" not in found["baseline"]["run"]
    assert load_final(tmp_path, run).keys() == begun(run, tmp_path).state_dict().keys()


def test_position_bias_is_carried_to_another_window(model, tmp_path) -> None:
    file = save_weights(model, tmp_path / "a.pth")
    run = replace(OTHER, image_size=64, window_size=8, target="raw", init=str(file), init_windows=(4, 4))
    larger = begun(run, tmp_path).encoder.layers[0].blocks[0].attn
    smaller = model.encoder.layers[0].blocks[0].attn
    with torch.inference_mode():
        assert torch.allclose(
            larger.position_bias((8, 8))[:, 0, :4], smaller.position_bias((4, 4))[:, 0, :4], atol=1e-5
        )
    before = pretrain(replace(OTHER, steps=0), runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"has windows of \(4, 4\): give init_windows=\(4, 4\)"):
        pretrain(replace(run, init=before["key"], init_windows=None), runs_dir=tmp_path)
    assert pretrain(replace(run, init=before["key"]), runs_dir=tmp_path)["status"] == "done"


def test_what_cannot_begin_a_run_is_one_line(model, tmp_path, capsys) -> None:
    file = save_weights(model, tmp_path / "a.pth")
    run = replace(OTHER, init=str(file))
    for wrong, words in (
        (lambda: replace(OTHER, init=str(tmp_path / "none.pth")), "none.pth: no such file"),
        (lambda: pretrain(replace(run, model="swinv2_femto"), runs_dir=tmp_path), "load it into swinv2_atto"),
        (
            lambda: pretrain(replace(OTHER, init="atto-scenes-n8-t4-s0-0123456789"), runs_dir=tmp_path),
            "no finished run",
        ),
        (lambda: replace(OTHER, init_windows=(4, 4)), "init_windows is .4, 4.: give one of 2 stages each, and init"),
        (lambda: replace(run, init_windows=(4,)), "init_windows is .4,.: give one of 2 stages each"),
    ):
        with pytest.raises(UserError, match=words):
            wrong()
    save_weights(random_model("swinv2_atto", seed=5), file)
    with pytest.raises(UserError, match="holds other weights than those that"):
        pretrain(run, runs_dir=tmp_path)
    assert main(["pretrain", "--init", str(tmp_path / "none.pth"), "--runs-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "records").exists()
