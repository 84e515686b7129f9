"""The transfer study: rows with gains, differences with intervals, C5 task by task, its grid."""

import numpy as np
import pytest
from synthetic_records import ATTO, FEMTO, record, tuning

from simmim_lite.evidence import records, tables
from simmim_lite.evidence.rules import FAILS, HOLDS, OPEN, UNTESTED
from simmim_lite.evidence.stats import spearman, t_interval
from simmim_lite.studies.grids import plan_of
from simmim_lite.training.run import Run
from simmim_lite.training.tuning import Dense, FineTune, Probe

LEVELS = (64, 1024, 16384)
MIOU = "semantic segmentation, mIoU"


def dense(run, task, *, scratch=False, **scores):
    """A record of detection or segmentation, as training writes it."""
    spec = (Dense.scratch if scratch else Dense.of)(
        task, Run.from_dict(run["run"]), seed=run["run"]["seed"], images=500
    )
    whole = spec.to_dict()
    made = {"schema": 1, "kind": task, "key": spec.key, "status": "done", "reason": None, "run": whole.pop("run")}
    found = {m: {"score": s, "low": None, "high": None, "metric": "AP", "n_test": 100} for m, s in scores.items()}
    cost = {"seconds": 1.0, "core_seconds": 1.0, "unique_images": 500}
    return made | {"spec": whole, "transfer": found, "curve": [], "cost": cost, "where": run["where"]}


@pytest.fixture(scope="module")
def made():
    """Runs of three levels; mIoU follows the validation loss, box AP follows nothing; 0.3 from scratch."""
    rng, made = np.random.default_rng(0), []
    for model in (ATTO, FEMTO):
        for seed in range(4):
            for k, images in enumerate(LEVELS):
                val = 0.45 - 0.03 * k - 0.01 * (model == FEMTO) + rng.normal(0, 0.001)
                run = record(model=model, images=images, seed=seed, val=val, train=rng.uniform(0.3, 0.4))
                gain = 2 * (0.5 - val)
                made += [run, dense(run, "segment", miou=0.3 + gain), tuning(run, 0.5 + gain / 2)]
                made.append(dense(run, "detect", box_ap=0.2 + rng.normal(0, 0.05), mask_ap=0.2))
            made += [dense(run, "segment", scratch=True, miou=0.3), tuning(run, 0.5, scratch=True)]
            made.append(dense(run, "detect", scratch=True, box_ap=0.2, mask_ap=0.2))
    return made


def test_a_row_knows_its_gain_and_the_losses_of_its_pretraining(made):
    rows = tables.trainings(made)
    assert len(rows) == 8 * (3 * 4 + 4) and set(rows.measure) == set(records.MEASURES)
    runs = {r["key"]: r for r in made if r["kind"] == "pretrain"}
    scratch, tuned = rows[rows.scratch], rows[~rows.scratch]
    assert scratch[["gain", "run", "val_loss"]].isna().all().all()
    for row in tuned.itertuples():
        assert (row.val_loss, row.images) == (runs[row.run]["final"]["val_loss"], runs[row.run]["run"]["images"])
        base = {"miou": 0.3, "box_ap": 0.2, "mask_ap": 0.2, "top1": 0.5}[row.measure]
        assert row.gain == pytest.approx(100 * (row.score - base))
    assert rows.equals(tables.trainings(made[::-1])), "the order of records matters"
    # without a baseline of its own seed there is no gain
    some = [r for r in made if not (r["kind"] == "segment" and r["run"] is None and r["spec"]["seed"] == 2)]
    rows = tables.trainings(some).query("measure == 'miou' and not scratch").groupby("seed").gain.count()
    assert (rows[2], rows[1]) == (0, 6)


def test_a_difference_is_paired_by_seed_and_c5_is_asked_of_every_score(made):
    rows = tables.trainings(made).query("measure == 'miou' and not scratch")
    one = tables.differences(tables.trainings(made)).loc[MIOU, FEMTO, 1024]
    gains = rows.query("model == @FEMTO and images == 1024").gain
    assert one.seeds == 4 and (one.gain, one.low, one.high) == pytest.approx(tuple(t_interval(gains)))
    found = tables.rankings(made).set_index(["score", "loss"])
    assert len(found) == 2 * len(records.MEASURES)
    rho = [spearman(some.val_loss, some.gain) for _, some in rows.groupby("seed")]
    miou = found.loc[MIOU, "validation loss"]
    assert tuple(miou[["value", "low", "high"]]) == pytest.approx(tuple(t_interval(rho))) and np.mean(rho) < -0.9
    assert (miou.verdict, miou.seeds, miou.runs) == (HOLDS, 4, 24)
    box, mask = (found.loc[name, "validation loss"] for name in ("detection, box AP", "instance segmentation, mask AP"))
    assert box.verdict in (FAILS, OPEN) and box.value > -0.5
    assert np.isnan(mask.value) and mask.verdict == UNTESTED, "equal scores have no rank"


def test_the_grid_pairs_every_start_with_its_baseline():
    for tier in ("smoke", "quick", "laptop"):
        runs, specs = plan_of("transfer", tier, precision="bf16")
        probes, tuned = ([s for s in specs if isinstance(s, Probe) == probe] for probe in (True, False))
        assert len({s.key for s in specs}) == len(specs) and all(s.run is None or s.run in runs for s in specs)
        zero = [(s.run.model, s.run.seed) for s in probes if not s.run.steps]
        assert all(zero.count((s.run.model, s.run.seed)) == 1 for s in probes)
        for spec in (s for s in tuned if s.run is not None):
            same = ["seed", "model", "steps", "batch_size", "labels" if isinstance(spec, FineTune) else "task"]
            found = [s for s in tuned if s.run is None and all(getattr(s, k, None) == getattr(spec, k) for k in same)]
            assert len(found) == 1, spec.key


def test_other_data_is_classified_only():
    _, specs = plan_of("transfer", "laptop", data="imagefolder:photos", available=900, labelled=900)
    tuned = [s for s in specs if not isinstance(s, Probe)]
    assert tuned and all(isinstance(s, FineTune) and s.labels <= 900 for s in tuned)
    assert plan_of("transfer", "laptop", data="imagefolder:photos", available=900, labelled=0)[1] == []


def test_tier_paper_takes_the_recipes_and_the_folders(monkeypatch):
    from simmim_lite.training import transfer as module

    monkeypatch.setattr(module, "open_for", lambda task, spec, size: type("Data", (), {"train": range(160)}))
    folders = {"coco": "COCO", "ade20k": "ADE"}
    runs, specs = plan_of("transfer", "paper", data="imagefolder:IN", precision="bf16", labelled=2048, **folders)
    assert {run.model for run in runs} == {"swinv2_small", "swinv2_base", "swinv2_large"}
    one = {s.task: s for s in specs if s.model == "swinv2_base" and s.run is not None}
    data = {"classify": "imagefolder:IN", "detect": "coco:COCO", "segment": "ade20k:ADE"}
    assert {task: s.data for task, s in one.items()} == data
    assert one["classify"].steps == 100 and one["classify"].full_size and one["classify"].window_size == 14
    assert one["detect"].steps == 36 * 10 and one["segment"].steps == 160_000
    scratch = [s for s in specs if s.run is None]
    assert len(scratch) == 3 * 3 and {s.layer_decay for s in scratch} == {1.0}
    assert {s.task for s in plan_of("transfer", "paper", data="imagefolder:IN")[1]} == {"classify"}
