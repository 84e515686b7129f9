"""Teams of four and deep networks: `make test-all`."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from teams import run_team
from test_parallel import DDP, FSDP, RUN, alone, assert_close, go, losses, same_weights  # noqa: F401

from simmim_lite.training.run import Run, load_final, tail_folder, trunk_folder

pytestmark = pytest.mark.slow
#: As deep as the giant, at 64 px; few steps.
DEEP = Run(
    model="swinv2_small", image_size=64, window_size=4, mask_patch=32, images=24, steps=3, batch_size=4, lr=1e-4,
    warmup_steps=2, eval_every=1, val_images=6, val_masks=1, probe_labels=0, drop_path=0.1, mask_ratio=0.6,
)  # fmt: skip


def four(folder) -> dict:
    """As many processes as a small node has GPUs."""
    done = {}
    for name, how in (("ddp", replace(DDP, accumulate=2)), ("fsdp", replace(FSDP, accumulate=1))):
        done[name] = go(folder / name, how)
        go(folder / f"{name}-stopped", how, stop=18)
        if os.environ["RANK"] == "0":
            shutil.copytree(folder / f"{name}-stopped", folder / f"{name}-again")
            shutil.copytree(folder / f"{name}-stopped", folder / f"{name}-changed")
        done[f"{name}-again"] = go(folder / f"{name}-again", how)
        done[f"{name}-changed"] = go(folder / f"{name}-changed", FSDP if how.parallel == "ddp" else DDP)
        go(folder / f"{name}-two", how, stop=5)
    return done


@pytest.fixture(scope="module")
def quartet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    return run_team(4, four, folder)[0], folder


def on_two(folder) -> dict:
    """What four had begun."""
    return {name: go(folder / f"{name}-two", how) for name, how in (("ddp", FSDP), ("fsdp", DDP))}


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_four_processes_give_the_losses_of_one_and_go_on_bit_for_bit(way: str, alone, quartet) -> None:
    """Sums of four depend on their order, which must not depend on where the processes began. Whole and sharded go on
    as one another."""
    done, folder = quartet
    assert_close(done[way], alone[0])
    assert done[way]["where"]["processes"] == 4
    assert done[f"{way}-again"]["steps_now"] == done[f"{way}-changed"]["steps_now"] == RUN.steps - 18
    assert done[f"{way}-again"]["curve"] == done[way]["curve"]
    assert same_weights(folder / f"{way}-again", folder / way)
    assert_close(done[f"{way}-changed"], alone[0])


def test_what_four_began_two_finish(alone, quartet) -> None:
    for record in run_team(2, on_two, quartet[1])[0].values():
        assert record["steps_now"] == RUN.steps - 5
        assert_close(record, alone[0])


def trunks(folder) -> list[dict]:
    """A short and a long run that share their trunk, sharded."""
    return [go(folder, FSDP, replace(RUN, steps=steps)) for steps in (12, 20)]


def test_lengths_share_a_sharded_trunk(alone, tmp_path) -> None:
    short, long = run_team(2, trunks, tmp_path)[0]
    assert (short["steps_now"], long["steps_now"]) == (12, 20 - replace(RUN, steps=12).drop_step)
    assert_close(long, alone[0])
    assert [p.name for p in trunk_folder(tmp_path, RUN).iterdir()] == ["step-0000017.shards"]
    assert not tail_folder(tmp_path, RUN).exists()


def deep(folder) -> list[dict]:
    half = replace(DEEP, precision="bf16")
    return [go(folder / "full", FSDP, DEEP), go(folder / "fsdp", FSDP, half), go(folder / "ddp", DDP, half)]


def test_a_network_as_deep_as_the_giant(tmp_path) -> None:
    """Sharded, recomputed, in two parts: fp32 as one process; bf16 as close to DDP's as rounding lets it."""
    full, fsdp, ddp = run_team(2, deep, tmp_path)[0]
    np.testing.assert_allclose(losses(full), losses(go(tmp_path / "alone", run=DEEP)), atol=1e-5, rtol=0)
    half = replace(DEEP, precision="bf16")
    own = losses(go(tmp_path / "half", run=half))
    assert np.abs(own - losses(full)).max() > 1e-5, "bf16 is another precision"
    for record in (fsdp, ddp):
        np.testing.assert_allclose(losses(record), own, atol=5e-3, rtol=0)
    assert {str(w.dtype) for w in load_final(tmp_path / "fsdp", half).values()} == {"torch.float32"}


def test_compiled_blocks_give_the_same_losses(tmp_path) -> None:
    """Two steps of a network without drop path: each variant of a block takes seconds to compile."""
    short = replace(RUN, steps=2, drop_path=0.0, probe_labels=0)
    plain, fast = go(tmp_path / "plain", run=short), go(tmp_path / "fast", replace(DDP, compile=True), short)
    np.testing.assert_allclose(losses(fast), losses(plain), atol=1e-4, rtol=0)
    assert set(load_final(tmp_path / "fast", short)) == set(load_final(tmp_path / "plain", short))
