"""Checks that take minutes: `make test-all`."""

import random
import subprocess

import pytest
import torch
from child_processes import until
from random_weights import assert_blocks_act, close, random_model
from test_engine import COMMAND, numbers
from test_parity import SETTINGS, images, timm_features, twin_of

from simmim_lite.model.masking import MaskGenerator
from simmim_lite.studies.engine import study

pytestmark = pytest.mark.slow


@torch.no_grad()
@pytest.mark.parametrize(("side", "window", "moved"), SETTINGS)
def test_the_whole_swinv2_small_equals_timm_and_transformers(side: int, window: int, moved: dict) -> None:
    model = random_model("swinv2_small", img_size=side, window_size=window, **moved)
    x, mask = images(side), torch.from_numpy(MaskGenerator(side, seed=3)())[None]
    assert_blocks_act(model, x)
    assert close(model.encode(x), timm_features(twin_of(model, side, window, "timm", **moved), x))
    twin = twin_of(model, side, window, "hf", **moved)
    flat = mask.flatten(1)
    features = twin.swinv2(x, bool_masked_pos=flat).last_hidden_state
    assert close(model.encode(x, mask).flatten(2).transpose(1, 2), features)
    assert close(model.reconstruct(x, mask), twin(x, bool_masked_pos=flat).reconstruction)


def test_a_study_killed_again_and_again(tmp_path) -> None:
    """kill -9 at a random moment after one or two runs more; the numbers are those of an undisturbed study."""
    undisturbed = tmp_path / "undisturbed"
    study("data-scale", tier="smoke", workers=2, runs_dir=undisturbed, precision="fp32")
    draw, kills, records = random.Random(0), 0, tmp_path / "killed" / "records"
    while True:
        command = [*COMMAND, "--runs-dir", str(tmp_path / "killed")]
        wanted = len(list(records.glob("*.json"))) + draw.choice((1, 2))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        until(lambda p=process, n=wanted: p.poll() is not None or len(list(records.glob("*.json"))) >= n)
        try:
            errors = process.communicate(timeout=draw.uniform(0, 2))[1]
            assert process.returncode == 0, errors
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert kills >= 1
    assert process.returncode == 0
    assert numbers(tmp_path / "killed") == numbers(undisturbed)
    assert not list((tmp_path / "killed").rglob(".*.*.*")), "nothing half written is left"
