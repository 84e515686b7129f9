"""Power and the pilot: seeds for an effect, a grid for the time, a folder's manifest, one page for a colleague."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from simmim_lite.data import manifests
from simmim_lite.errors import UserError
from simmim_lite.evidence import figures, published
from simmim_lite.evidence.records import shipped
from simmim_lite.studies import basis, pilot, planner, report
from simmim_lite.studies.grids import TIERS
from simmim_lite.studies.planner import plan


def test_power_is_that_of_a_paired_t_test() -> None:
    """Against many simulated studies, and against the textbook value for 34 pairs and half a deviation."""
    rng = np.random.default_rng(0)
    values = rng.normal(1.2, 1, (20_000, 6))
    t = values.mean(1) / values.std(1, ddof=1) * math.sqrt(6)
    assert pilot.power(1.2, 1, 6) == pytest.approx((np.abs(t) > 2.5706).mean(), abs=0.01)
    assert pilot.power(0.5, 1, 34) == pytest.approx(0.81, abs=0.01)
    assert pilot.power(0, 1, 5) == pytest.approx(0.05, abs=0.002)
    assert pilot.power(1, 1, 1) == 0
    assert pilot.power(1e6, 1, 2) == pytest.approx(1)


def test_seeds_for_an_effect() -> None:
    n = pilot.seeds_for(1.2, 1)
    assert pilot.power(1.2, 1, n) >= 0.8 > pilot.power(1.2, 1, n - 1)
    found = [pilot.detectable(0.01, n) for n in range(2, 13)]
    assert found == sorted(found, reverse=True)
    assert pilot.power(found[3], 0.01, 5) == pytest.approx(0.8, abs=0.001)
    assert pilot.detectable(1, 1) == math.inf


def test_the_spread_comes_from_own_records_or_shipped_ones() -> None:
    spread = pilot.seed_spread(data="scenes")
    assert 0.001 < spread < 0.05
    records = [r for r in shipped("laptop-scenes") if (r.get("run") or {}).get("images") in (1024, 16384)]
    assert pilot.seed_spread(records) != spread
    assert pilot.seed_spread([]) == pilot.seed_spread()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Estimates of time take speeds from the runs folder of the working directory, where there is one."""
    monkeypatch.chdir(tmp_path)


def test_a_design_fits_the_time_and_has_the_seeds() -> None:
    rich = pilot.design("imagefolder:x", 50_000, core_minutes=240, effect=0.02, spread=0.008)
    assert rich.seeds == pilot.seeds_for(0.02, 0.008)
    assert rich.core_seconds <= 240 * 60
    assert rich.levels[-1] == 50_000
    assert rich.power >= 0.8 and not rich.note
    assert len(rich.lengths) == 2 and rich.lengths[1] == 2 * rich.lengths[0]
    assert sum(run.steps == 0 for run in rich.runs) == rich.seeds * len(pilot.MODELS)
    poor = pilot.design("imagefolder:x", 50_000, core_minutes=5, effect=0.02, spread=0.008)
    assert poor.core_seconds < rich.core_seconds
    assert poor.power < 0.8
    assert "seeds would be needed" in poor.note
    assert pilot.design("scenes", 16_384, core_minutes=9, effect=0.02, spread=0.008, tier="smoke").levels == (16, 64)
    assert pilot.design("scenes", 500, core_minutes=60, effect=0.02, spread=0.008, seeds=2).seeds == 2


def test_a_pilot_of_runs_can_be_planned_with() -> None:
    """Two sizes, two lengths, two levels: what `basis.of_rows` asks for."""
    design = pilot.design("scenes", 16_384, core_minutes=6, effect=0.05, spread=0.008)
    assert len(design.levels) > 1 and len(design.lengths) > 1
    assert min(design.lengths) >= 100  # shorter runs leave every claim open
    assert {run.batch_size for run in design.runs} == {TIERS["quick"].recipe.batch_size}


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: pilot.design("d", 20, core_minutes=9, effect=0.02, spread=0.01), "d has 20 training images"),
        (lambda: pilot.design("d", 900, core_minutes=0, effect=0.02, spread=0.01), "core_minutes is 0"),
        (lambda: pilot.design("d", 900, core_minutes=0.1, effect=0.02, spread=0.01), "the barest pilot"),
        (lambda: pilot.design("d", 900, core_minutes=9, effect=0, spread=0.01), "effect is 0"),
        (lambda: pilot.seed_spread(measure="top1"), "measure is 'top1'"),
        (lambda: pilot.look("imagefolder:nowhere"), "no such folder"),
        (lambda: pilot.collect(None, tier="tiny"), "unknown tier 'tiny'"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    with pytest.raises(UserError, match="(?s)^[^\n]+$") as caught:
        call()
    assert line in str(caught.value)


def test_a_folder_is_looked_at_and_its_levels_are_written_down(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "own" / "train" / name).mkdir(parents=True)
        (tmp_path / "own" / "test" / name).mkdir(parents=True)
        for k in range(20):
            place = tmp_path / "own" / ("train" if k < 14 else "test") / name / f"{k}.png"
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(place)
    data = f"imagefolder:{tmp_path / 'own'}"
    found = pilot.look(data)
    assert (found["images"], found["held out"], found["classes"]) == (28, 12, 2)
    assert pilot.pictures(data).shape == (6, 3, 32, 32)
    path = pilot.manifest(data, (4, 28), tmp_path / "runs")
    content = yaml.safe_load(path.read_text())
    assert [part["images"] for part in content["subsets"]] == [4, 28]
    assert all(part["digest"] for part in content["subsets"])
    assert not manifests.verify(path, tmp_path / "own")
    (tmp_path / "own" / "train" / "a" / "0.png").unlink()
    assert manifests.verify(path, tmp_path / "own")
    assert pilot.manifest("scenes", (4,), tmp_path) is None
    assert pilot.look("scenes")["images"] == pilot.SCENES


def test_one_page_for_a_colleague(tmp_path) -> None:
    design = pilot.design("imagefolder:x", 50_000, core_minutes=9, effect=0.02, spread=0.008)
    found = {"images": 50_000, "held out": 10_000, "classes": 10, "paths": []}
    here = plan(256_233, budget_flops=1e20)
    chart = figures.plan(here.options, here.rule, here.measure)
    page = pilot.write_page(
        tmp_path / "page.html", data="imagefolder:/x/my <cats>", found=found, design=design,
        claims=published.claims()[:2], plan=here, charts=[chart],
    ).read_text()  # fmt: skip
    texts = ("my &lt;cats&gt;", "50,000 to train on", "C1", "what binds", "data (a doubling", "large")
    for text in (*texts, f'class="{report.FIGURE_CLASS}"'):
        assert text in page
    assert "src=" not in page.split("</script>")[-1]
    said = pilot.write_page(tmp_path / "b.html", data="d", found=found, design=design, claims=[], plan="no runs yet")
    assert "no runs yet" in said.read_text()


def test_answers_on_the_published_levels() -> None:
    found = planner.answers()
    assert len(found) == 12
    for one in found:
        if one["budget"] == 1e19:
            assert "under the cheapest option" in one["plan"]
            assert one["regret"] is None
        else:
            assert one["regret"] <= 0.05
    assert sum(one["rule_regret"] or 0 for one in found) > 5 * sum(one["regret"] or 0 for one in found)


def test_figures_of_laws_have_named_axes() -> None:
    both = {target: basis.of_published(target) for target in ("loss", "accuracy")}
    fits = {target: (one.points, one.law) for target, one in both.items()}
    errors = pd.DataFrame({"target": ["loss", "accuracy"], "form": "fixed", "split": "size", "mean": [0.002, 0.12]})
    for chart in (
        figures.overfitting(fits),
        figures.law_lengths(fits, "swinv2_base"),
        figures.law_errors(errors, 0.2),
    ):
        assert "chosen looking at all 63" in chart.layout.title.text
        assert chart.layout.xaxis.title.text and chart.layout.xaxis2.title.text
    assert "no runs of nano" in figures.law_lengths(fits, "swinv2_nano").layout.annotations[0].text.lower()
    refused = plan(5_000, budget_flops=1e20)
    assert "order alone" in figures.plan(refused.options, refused.rule, "x").layout.annotations[0].text


def test_an_effect_beyond_all_seeds_is_said_and_not_refused() -> None:
    options = {"core_minutes": 60, "effect": 1e-4, "spread": 0.01}
    design = pilot.design("scenes", 16384, **options)
    assert design.seeds <= pilot.MOST_SEEDS and design.note.startswith("more than")
    assert pilot.design("scenes", 16384, seeds=3, **options).seeds == 3
    with pytest.raises(UserError, match="seeds is -1"):
        pilot.design("scenes", 16384, seeds=-1, **options)
