"""`tools/bench.py` measures what it says it measures, each way computes the same thing, and its file is read."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from simmim_lite.model import simmim, swin
from simmim_lite.model.attention import reference_attention
from simmim_lite.model.simmim import create_model
from simmim_lite.studies import speed
from simmim_lite.training.pretrain import example
from simmim_lite.training.run import Run

_SPEC = importlib.util.spec_from_file_location("bench", Path(__file__).parents[1] / "tools" / "bench.py")
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)

CPU = torch.device("cpu")
PEAKS = {"bf16": 1e11, "fp32": 1e11}


def test_ways_are_taken_in_turns_and_the_ladder_is_climbed() -> None:
    calls = []
    times = bench.in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "ab" + "ababab" and [len(t) for t in times] == [3, 3]
    lines = list(bench.ladder(1, ["swinv2_atto", "swinv2_femto"]))
    assert [line.split()[0] for line in lines] == ["swinv2_atto", "swinv2_femto"]
    assert all(float(x) > 0 for line in lines for x in line.split()[1:3])
    assert all(re.search(r"\d+\.\d%$", line) for line in lines)


def test_the_loader_is_timed_beside_torchvisions() -> None:
    head, *lines = bench.loader(1, pictures=bench.LOADED)
    rates = [float(re.search(r"(\d+) pictures/s", line).group(1)) for line in lines]
    assert "32 collages" in head and len(rates) == 3 and all(rate > 0 for rate in rates)
    assert lines[0].endswith("1.00")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True])
def test_each_way_is_the_same_thing(masked: bool) -> None:
    """FlexAttention (its backward pass is there on GPUs alone), the pooled target, and a step's loss in every way."""
    torch.manual_seed(0)
    qkv, scale, bias = torch.randn(4, 4, 16, 3 * 64), torch.rand(2) + 1, torch.randn(2, 16, 16)
    mask = torch.randn(4, 16, 16) if masked else None
    expected = reference_attention(qkv, 2, scale, bias, mask)
    assert torch.allclose(bench.flex_attention(qkv, 2, scale, bias, mask), expected, atol=1e-5)
    images = torch.randn(2, 3, 64, 48) * 3 + 1
    assert torch.allclose(bench.pooled_target(images, 15), simmim.normalize_locally(images, 15), atol=1e-4)
    run = Run(batch_size=4, target="normalized")
    model, batch, own = create_model(run.model, seed=0), example(run, CPU), (swin.window_attention,)
    expected = model(*batch)
    for name in ("reference", "SDPA, plain products"):
        with bench.attention(name), bench.target(True):
            assert swin.window_attention is not own[0] and simmim.normalize_locally is bench.pooled_target
            assert torch.allclose(model(*batch), expected, atol=1e-4)
    assert swin.window_attention is own[0] and simmim.normalize_locally is not bench.pooled_target


def test_the_tables_are_kept_with_their_provenance(tmp_path, capsys, monkeypatch) -> None:
    ways = (bench.PLAIN, bench.Way(), next(way for way in bench.WAYS if "cuDNN" in way.name))
    monkeypatch.setattr(bench, "FITTED", (bench.Way(),))
    monkeypatch.setattr(bench, "WAYS", ways)
    out = tmp_path / "bench.json"
    assert bench.main(["--sizes", "atto", "--batch", "4", "--rounds", "1", "--out", str(out)]) == 0
    lines, found = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    assert {way["way"]: way["images_per_second"] is None for way in found["ways"]} == {
        way.name: "cuDNN" in way.name for way in ways  # which has no kernel for a CPU
    }  # fmt: skip
    assert all(any(line.startswith(way.name + " ") for line in lines) for way in ways)
    assert found["images_per_second"].keys() == {"swinv2_atto"}
    assert found["where"]["versions"]["torch"] == torch.__version__
    assert speed.read_speeds(out, 32) == (found["images_per_second"], found["device"])
    assert speed.read_speeds(out, 192) == ({}, "")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--sizes", "atto,base"], "two ladders"),
        (["--sizes", "bass"], "unknown size 'bass': did you mean 'base'?"),
        (["--rounds", "0"], "rounds is 0"),
        (["--out", "x.json"], "give --sizes too"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--sizes", "atto", "--out", "/proc/x/y.json"], "cannot write /proc/x/y.json"),
    ],
)
def test_wrong_options_get_one_line(options: list[str], line: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(options) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
