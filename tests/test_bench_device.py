"""The table by size and by way: every path runs on a CPU, and each way computes the same thing."""

import json

import pytest
import torch

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.model import simmim, swin
from simmim_lite.model.attention import reference_attention
from simmim_lite.model.simmim import create_model
from simmim_lite.studies import speed
from simmim_lite.training import bench_device as bench
from simmim_lite.training.bench import example
from simmim_lite.training.run import Run

CPU = torch.device("cpu")
PEAKS = {"bf16": 1e11, "fp32": 1e11}
PLAIN = [way for way in bench.WAYS if not way.compile]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_is_the_definition(masked: bool) -> None:
    """Its backward pass is there on GPUs alone."""
    torch.manual_seed(0)
    qkv, scale, bias = torch.randn(4, 4, 16, 3 * 64), torch.rand(2) + 1, torch.randn(2, 16, 16)
    mask = torch.randn(4, 16, 16) if masked else None
    expected = reference_attention(qkv, 2, scale, bias, mask)
    assert torch.allclose(bench.flex_attention(qkv, 2, scale, bias, mask), expected, atol=1e-5)


def test_the_pooled_target_is_the_same_target() -> None:
    images = torch.randn(2, 3, 64, 48) * 3 + 1
    assert torch.allclose(bench.pooled_target(images, 15), simmim.normalize_locally(images, 15), atol=1e-4)


def test_a_way_is_in_place_inside_and_gone_outside() -> None:
    """The loss of a step is the same in every way, and training's own pieces are back afterwards."""
    run = Run(model="swinv2_atto", batch_size=4, target="normalized")
    model = create_model(run.model, seed=0)
    images, mask = example(run, CPU)
    own = swin.window_attention, simmim.normalize_locally
    expected = model(images, mask)
    for name in ("reference", "SDPA, plain products"):
        with bench._attention(name), bench._target(True):
            assert swin.window_attention is not own[0] and simmim.normalize_locally is bench.pooled_target
            assert torch.allclose(model(images, mask), expected, atol=1e-4)
    assert (swin.window_attention, simmim.normalize_locally) == own


def test_the_tables_are_kept_with_their_provenance(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "_FITTED", (bench._DEFAULT,))
    monkeypatch.setattr(bench, "WAYS", PLAIN)
    out = tmp_path / "bench.json"
    assert main(["bench", "--sizes", "atto,femto", "--batch", "4", "--rounds", "1", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert {way["way"] for way in found["ways"]} == {way.name for way in PLAIN}
    assert all(sum(line.startswith(way.name + " ") for line in lines) >= 1 for way in PLAIN)
    assert found["images_per_second"].keys() == {"swinv2_atto", "swinv2_femto"}
    assert found["where"]["versions"]["torch"] == torch.__version__
    known, device = speed.read(out, 32)
    assert known == found["images_per_second"] and device == found["device"]
    with pytest.raises(UserError, match="nothing was measured at 192 px"):
        speed.read(out, 192)


def test_the_batch_is_the_first_that_fits(monkeypatch) -> None:
    tried = []

    def seconds(model, way, device, batch, steps):
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return 0.5

    monkeypatch.setattr(bench, "_seconds", seconds)
    found = bench.fitted("swinv2_base", bench._DEFAULT, CPU, PEAKS, (64, 32, 16, 8), 1)
    assert tried == [64, 32, 16]
    assert (found.batch, found.images_per_second) == (16, 32)
    monkeypatch.setattr(bench, "_seconds", lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")))
    found = bench.fitted("swinv2_base", bench._DEFAULT, CPU, PEAKS, (64, 32), 1)
    assert (found.batch, found.images_per_second, found.reason) == (32, None, "out of memory")


def test_what_is_not_there_says_why() -> None:
    """cuDNN has no kernel for a CPU: the row says so, and the next one is measured."""
    cudnn = next(way for way in bench.WAYS if "cuDNN" in way.name)
    found = bench.speed("swinv2_atto", cudnn, CPU, PEAKS, 4, 1)
    assert found.images_per_second is None and "backend" in found.reason
    assert bench.speed("swinv2_atto", bench.PLAIN, CPU, PEAKS, 4, 1).images_per_second > 0


@pytest.mark.slow
def test_compiled_ways_run() -> None:
    for way in (way for way in bench.WAYS if way.compile and way.attention != "flex"):
        assert bench.speed("swinv2_atto", way, CPU, PEAKS, 4, 1).images_per_second > 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--sizes", "atto,base"], "two ladders"),
        (["--sizes", "bass"], "unknown size 'bass': did you mean 'base'?"),
        (["--sizes", "atto", "--batch", "0"], "batch is 0"),
        (["--sizes", "atto", "--rounds", "0"], "rounds is 0"),
        (["--out", "x.json"], "give --sizes too"),
        (["--device", "cuda"], "device 'cuda' is not there"),
    ],
)
def test_wrong_options_get_one_line(options: list[str], line: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *options]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
