"""Classification under two processes: the losses, the score and the weights of one process, also after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import PATIENCE
from team_work import work

pytestmark = pytest.mark.xdist_group("two processes of a fine-tuning")  # its processes are started once

BASE = {"steps": 6, "eval_every": 1, "drop_path": 0.3, "test_images": 33}
CASES = {
    "flip": BASE,
    "killed": {**BASE, "stop": 3},
    "mixed": {**BASE, "mixup": 0.8, "cutmix": 1.0},
    "pictures": {**BASE, "augment": "timm", "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "cutmix": 1.0},
    "bf16": {**BASE, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and what two under torchrun did."""
    out, here = tmp_path_factory.mktemp("team"), Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(here / "team_work.py"), str(out), json.dumps(CASES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return {1: work(tmp_path_factory.mktemp("alone"), CASES), 2: json.loads((out / "found.json").read_text())}


@pytest.mark.parametrize("case", ["flip", "mixed", "pictures"])
def test_two_processes_equal_one(found, case):
    """Flips, drop path, mixes and timm's draws are functions of numbers; the pairs of mixup stay on one process."""
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
