"""`tools/bench.py` says what it measured, and its file is read."""

import importlib.util
import json
from pathlib import Path

import torch

_SPEC = importlib.util.spec_from_file_location("bench", Path(__file__).parents[1] / "tools" / "bench.py")
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)


def test_the_tables_are_kept_with_their_provenance(tmp_path, capsys, monkeypatch) -> None:
    names = ("attention as written", "as trained by default", "SDPA, cuDNN")
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "BATCHES", (4,))
    monkeypatch.setattr(bench, "FITTED", names[1:2])
    monkeypatch.setattr(bench, "WAYS", {name: bench.WAYS[name] for name in names})
    out = tmp_path / "bench.json"
    assert bench.main(["--sizes", "atto", "--out", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert all(name in said for name in names)
    assert [way["images_per_second"] is None for way in found["ways"]] == [False] * 2 + [True]  # cuDNN needs a GPU
    assert found["images_per_second"].keys() == {"swinv2_atto"}
    assert found["where"]["versions"]["torch"] == torch.__version__
