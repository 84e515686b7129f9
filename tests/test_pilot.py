"""Power and the pilot: seeds for an effect, a grid for the time, a look at a folder."""

import math
import re

import pytest
from picture_folders import fill, one_line

from simmim_lite.course import pilot
from simmim_lite.studies.tiers import TIERS


def test_the_smallest_effect_that_is_seen() -> None:
    found = [pilot.detectable(0.01, n) for n in range(2, 13)]
    assert found == sorted(found, reverse=True) and pilot.detectable(1, 1) == math.inf
    assert pilot.power(found[3], 0.01, 5) == pytest.approx(0.8, abs=0.001)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Estimates of time take speeds from the runs folder of the working directory, where there is one."""
    monkeypatch.chdir(tmp_path)


def test_a_design_fits_the_time_and_has_the_seeds() -> None:
    own = {"data": "imagefolder:x", "available": 50_000, "effect": 0.02, "spread": 0.008}
    rich, poor = pilot.design(**own, core_minutes=240), pilot.design(**own, core_minutes=5)
    assert rich.levels[-1] == 50_000 and rich.core_seconds <= 240 * 60 and "needed" not in rich.sees
    assert rich.power >= 0.8 > pilot.power(0.02, 0.008, rich.seeds - 1)
    assert rich.lengths[1] == 2 * rich.lengths[0] and len(rich.lengths) == 2
    assert sum(run.steps == 0 for run in rich.runs) == rich.seeds * len(pilot.MODELS)
    assert poor.core_seconds < rich.core_seconds and poor.power < 0.8 and "seeds would be needed" in poor.sees
    # two sizes, lengths and levels are what `basis.of_rows` asks for; shorter runs leave every claim open
    assert len(poor.levels) > 1 and min(poor.lengths) >= 100
    assert {run.batch_size for run in poor.runs} == {TIERS["quick"].recipe.batch_size}
    own = {"data": "scenes", "available": 16_384, "effect": 1e-4, "spread": 0.01, "core_minutes": 60}
    assert pilot.design(**own, tier="smoke", seeds=3).levels == (16, 64)
    beyond = pilot.design(**own)  # said, and not refused
    assert beyond.seeds <= pilot.MOST_SEEDS and "more than 12 seeds would be needed" in beyond.sees


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: pilot.design("d", 20, core_minutes=9, effect=0.02, spread=0.01), "d has 20 training images"),
        (lambda: pilot.design("d", 900, core_minutes=0.1, effect=0.02, spread=0.01), "the barest pilot"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    one_line(re.escape(line), call)


def test_a_folder_is_looked_at(tmp_path) -> None:
    root = tmp_path / "own"
    for split, name, count in (("train", "a", 14), ("train", "b", 14), ("test", "a", 6), ("test", "b", 6)):
        fill(root / split / name, count, (40, 40))
    data = f"imagefolder:{root}"
    found = pilot.look(data)
    assert (found["images"], found["held out"], found["classes"]) == (28, 12, 2)
    assert pilot.pictures(data).shape == (6, 3, 32, 32)
    assert pilot.look("scenes")["images"] == pilot.SCENES
