"""Classification under two processes: the losses, the score and the weights of one process, also after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: What each process does: OUT, then overrides of the spec as JSON. Killed after a checkpoint at `stop`, then resumed.
SCRIPT = """
import json, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_finetune import tiny_data, tiny_spec
from simmim_lite.training.distributed import team
from simmim_lite.training.finetune import Classification
from simmim_lite.training.loop import Loop
from simmim_lite.training.pretrain import one_thread

out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
class Killed(Exception): pass
with team("cpu") as us, one_thread(us.device):
    found = {}
    for name, fields in cases.items():
        stop = fields.pop("stop", None)
        spec = tiny_spec(**fields)
        for stop in ([stop, None] if stop else [None]):
            task = Classification(spec, tiny_data(), None, us)
            loop = Loop(spec, task, us, folder=out / name, data_digest="tiny")
            if stop:
                def advance(net, loop=loop, real=loop.advance):
                    if loop.step == stop:
                        if us.main:
                            loop.save()
                        us.tell()  # nobody goes on before it is written
                        raise Killed
                    return real(net)
                loop.advance = advance
            try:
                curve, reason = loop.run()
            except Killed:
                continue
        parts, _ = task.evaluate()
        weights = float(sum(p.double().abs().sum() for p in task.model.parameters()))
        found[name] = {"losses": [p["train_loss"] for p in curve], "weights": weights, **parts}
    if us.main:
        (out / f"found-{us.size}.json").write_text(json.dumps(found))
"""

BASE = {"steps": 6, "eval_every": 1, "drop_path": 0.3, "test_images": 33}
CASES = {
    "flip": BASE,
    "killed": {**BASE, "stop": 3},
    "mixed": {**BASE, "mixup": 0.8, "cutmix": 1.0},
    "bf16": {**BASE, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out, here = tmp_path_factory.mktemp("team"), Path(__file__).parent
    script = out / "work.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for size, words in ((1, [sys.executable]), (2, start)):
        (out / str(size)).mkdir()
        command = [*words, str(script), str(out / str(size)), json.dumps(CASES), str(here)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:]
    return {size: json.loads((out / str(size) / f"found-{size}.json").read_text()) for size in (1, 2)}


@pytest.mark.parametrize("case", ["flip", "mixed"])
def test_two_processes_equal_one(found, case):
    """Flips, drop path and mixes are functions of numbers: also mixup, whose pairs stay on one process."""
    one, two = found[1][case], found[2][case]
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
    assert two["final"] == one["final"] and one["final"]["n_test"] == 33


@pytest.mark.parametrize("size", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(found, size):
    assert found[size]["killed"] == found[size]["flip"]


def test_mixed_precision_is_used_by_both(found):
    for size in (1, 2):
        half, full = found[size]["bf16"], found[size]["flip"]
        assert half["losses"] != full["losses"] and half["losses"] == pytest.approx(full["losses"], rel=0.05)
    assert found[2]["bf16"]["losses"] == pytest.approx(found[1]["bf16"]["losses"], rel=0.01)
