"""The transfer study's evidence: rows with gains, differences with intervals, C5 task by task, few labels, figures."""

import numpy as np
import pytest
from synthetic_records import ATTO, FEMTO, record, tuning

from simmim_lite.errors import UserError
from simmim_lite.evidence import figures, shipped, transfers
from simmim_lite.evidence.records import load
from simmim_lite.evidence.rules import FAILS, HOLDS, OPEN, UNTESTED
from simmim_lite.evidence.stats import spearman, t_interval, t_quantile
from simmim_lite.studies.costs import preview
from simmim_lite.studies.grids import plan_of
from simmim_lite.training.run import Run, record_path, transfer_path, write_record
from simmim_lite.training.tuning import Dense, FineTune, Probe

LEVELS = (64, 1024, 16384)


def dense(run, task, *, scratch=False, **scores):
    """A record of detection or segmentation, as training/loop.py writes it."""
    fields = run["run"]
    make = Dense.scratch if scratch else Dense.of
    spec = make(task, Run.from_dict(fields), seed=fields["seed"], images=500)
    whole = spec.to_dict()
    made = {"schema": 1, "kind": task, "key": spec.key, "status": "done", "reason": None, "run": whole.pop("run")}
    found = {m: {"score": s, "low": None, "high": None, "metric": "AP", "n_test": 100} for m, s in scores.items()}
    cost = {"seconds": 1.0, "core_seconds": 1.0, "unique_images": 500}
    return made | {"spec": whole, "transfer": found, "curve": [], "cost": cost, "where": run["where"]}


def everything(models=(ATTO, FEMTO), seeds=range(4), follow=True):
    """Runs of three levels; mIoU follows the validation loss (or nothing), box AP follows nothing; 0.3 from scratch."""
    rng, made = np.random.default_rng(0), []
    for model in models:
        for seed in seeds:
            for k, images in enumerate(LEVELS):
                val = 0.45 - 0.03 * k - 0.01 * (model == FEMTO) + rng.normal(0, 0.001)
                run = record(model=model, images=images, seed=seed, val=val, train=rng.uniform(0.3, 0.4))
                gain = 2 * (0.5 - val) if follow else rng.normal(0, 0.1)
                made += [run, dense(run, "segment", miou=0.3 + gain)]
                made.append(dense(run, "detect", box_ap=0.2 + rng.normal(0, 0.05), mask_ap=0.2))
                made.append(tuning(run, 0.5 + gain / 2))
            made.append(dense(run, "segment", scratch=True, miou=0.3))
            made.append(dense(run, "detect", scratch=True, box_ap=0.2, mask_ap=0.2))
            made.append(tuning(run, 0.5, scratch=True))
    return made


def test_a_row_knows_its_gain_and_the_losses_of_its_pretraining():
    made = everything()
    rows = transfers.table(made)
    assert len(rows) == 8 * (3 * 4 + 4) and set(rows.measure) == set(transfers.MEASURES)
    runs = {r["key"]: r for r in made if r["kind"] == "pretrain"}
    scratch, tuned = rows[rows.scratch], rows[~rows.scratch]
    assert scratch[["gain", "run", "val_loss"]].isna().all().all()
    for row in tuned.itertuples():
        assert (row.val_loss, row.images) == (runs[row.run]["final"]["val_loss"], runs[row.run]["run"]["images"])
        base = {"miou": 0.3, "box_ap": 0.2, "mask_ap": 0.2, "top1": 0.5}[row.measure]
        assert row.gain == pytest.approx(100 * (row.score - base))
    assert rows.equals(transfers.table(made[::-1])), "the order of records matters"
    assert list(transfers.table([]).columns) == list(rows.columns) and not len(transfers.table([]))
    # without a baseline of its own seed there is no gain
    made = [r for r in made if not (r["kind"] == "segment" and r["run"] is None and r["spec"]["seed"] == 2)]
    rows = transfers.table(made).query("measure == 'miou' and not scratch").groupby("seed").gain.count()
    assert (rows[2], rows[1]) == (0, 6)
    broken = next(r for r in made if r["kind"] == "segment")
    del broken["transfer"]
    with pytest.raises(UserError, match=f"record {broken['key']}: not a whole transfer"):
        transfers.table(made)


def test_a_difference_is_paired_by_seed_with_its_interval():
    rows = transfers.table(everything())
    found = transfers.differences(rows)
    assert len(found) == 4 * 2 * 3
    one = found.loc["semantic segmentation, mIoU", FEMTO, 1024]
    gains = rows.query("measure == 'miou' and model == @FEMTO and images == 1024").gain
    half = t_quantile(0.975, 3) * gains.std(ddof=1) / 2
    assert one.seeds == 4 and one.gain == pytest.approx(gains.mean())
    assert (one.low, one.high) == pytest.approx((one.gain - half, one.gain + half))
    assert one.pretrained - one.scratch == pytest.approx(one.gain)


def test_c5_is_asked_of_every_score_and_can_fail():
    made = everything()
    found = transfers.rankings(made).set_index(["score", "loss"])
    assert len(found) == 2 * len(transfers.MEASURES)
    rows = transfers.table(made).query("measure == 'miou' and not scratch")
    rho = [spearman(some.val_loss, some.gain) for _, some in rows.groupby("seed")]
    miou = found.loc["semantic segmentation, mIoU", "validation loss"]
    assert tuple(miou[["value", "low", "high"]]) == pytest.approx(tuple(t_interval(rho))) and np.mean(rho) < -0.9
    assert (miou.verdict, miou.seeds, miou.runs) == (HOLDS, 4, 24)
    box, mask = (found.loc[name, "validation loss"] for name in ("detection, box AP", "instance segmentation, mask AP"))
    assert box.verdict in (FAILS, OPEN) and box.value > -0.5
    assert np.isnan(mask.value) and mask.verdict == UNTESTED, "equal scores have no rank"

    def verdict(records):
        return transfers.rankings(records).set_index("score").verdict["semantic segmentation, mIoU"].iloc[0]

    assert verdict(everything(seeds=range(2))) == OPEN, "two seeds are too few"
    assert verdict(everything(follow=False)) != HOLDS
    assert not len(transfers.rankings([]))


def test_attentive_probes_count_from_the_untrained_network():
    made = []
    for seed in range(8):
        zero = record(model=ATTO, steps=0, images=16384, seed=seed, val=0.8, scores={"linear": 0.3})
        runs = [record(model=ATTO, images=n, seed=seed, val=0.5 - n / 1e5, scores={"linear": 0.4}) for n in LEVELS]
        for k, r in enumerate([zero, *runs]):
            probe = {"kind": "probe", "key": f"{r['key']}-probe", "status": "done", "run": r["run"]}
            made += [r, probe | {"where": r["where"], "transfer": {"attentive": {"score": 0.3 + 0.1 * k}}}]
    found = transfers.rankings(made).set_index(["score", "loss"]).loc["attentive probe", "validation loss"]
    assert found.runs == 24 and found.value == pytest.approx(-1)


def test_few_labels_compare_starts_at_equal_steps():
    made = []
    for seed in range(3):
        runs = [record(model=FEMTO, images=n, seed=seed) for n in LEVELS]
        for labels in (64, 256):
            made += [tuning(r, 0.4 + 0.1 * k, labels=labels) for k, r in enumerate(runs)]
            made.append(tuning(runs[0], 0.3, scratch=True, labels=labels))
        made += [*runs, tuning(runs[0], 0.9, labels=64, steps=10)]
    found = transfers.few_labels(transfers.table(made))
    assert found.start.drop_duplicates().tolist() == ["scratch", *(f"pretrained, {n:,}" for n in LEVELS)]
    means = found[found.labels == 64].groupby("start", sort=False)["top-1 (%)"].mean()
    assert means.tolist() == pytest.approx([30, 40, 50, 60])
    assert set(found.steps) == {600} and found.groupby(["start", "labels"]).size().eq(3).all()


def test_records_of_all_kinds_are_read_and_packed(tmp_path, monkeypatch):
    made = everything(models=(ATTO,), seeds=(0,))
    for r in made:
        path = record_path(tmp_path, Run.from_dict(r["run"])) if r["kind"] == "pretrain" else None
        write_record(path or transfer_path(tmp_path, r["key"]), r)
    back = load(tmp_path)
    assert sorted(r["key"] for r in back) == sorted(r["key"] for r in made)
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    shipped._read.cache_clear()
    assert shipped.pack(load(tmp_path), tmp_path / f"{shipped.TRANSFER}.json") == len(made)
    assert shipped.names() == [], "the transfer set is not one of the four studies'"
    assert len(transfers.table(shipped.records(shipped.TRANSFER))) == len(transfers.table(made))
    shipped._read.cache_clear()


def test_figures_show_every_row_and_say_when_there_is_none():
    made = everything()
    gains = transfers.gains(transfers.table(made))
    chart = figures.lines(gains, "images", "gain", "model", panel="name", interval=True)
    means = [t for t in chart.data if t.mode == "lines+markers"]
    assert sum(len(t.x) for t in means) == len(transfers.differences(transfers.table(made))) == 24
    ranks = transfers.rankings(made).rename(columns={"score": "name"})
    assert [t.name for t in figures.intervals(ranks, "rho", colour="loss").data] == ["validation loss", "training loss"]
    for nothing in (
        figures.lines(gains[:0], "images", "gain", "model", panel="name"),
        figures.intervals(ranks[:0], ""),
    ):
        assert nothing.layout.annotations[0].text


@pytest.mark.parametrize("tier", ["smoke", "quick", "laptop"])
def test_the_grid_pairs_every_start_with_its_baseline(tier):
    runs, specs = plan_of("transfer", tier, precision="bf16")
    assert len({s.key for s in specs}) == len(specs)
    for spec in specs:
        assert spec.run is None or spec.run in runs
        if isinstance(spec, Probe):
            zero = [s.run for s in specs if isinstance(s, Probe) and not s.run.steps]
            assert [(r.model, r.seed) for r in zero].count((spec.run.model, spec.run.seed)) == 1
        elif spec.run is not None:
            same = {"seed": spec.seed, "model": spec.model}
            same |= {"labels": spec.labels} if isinstance(spec, FineTune) else {"task": spec.task}
            trained = [s for s in specs if not isinstance(s, Probe) and s.run is None]
            partners = [s for s in trained if all(getattr(s, k, None) == v for k, v in same.items())]
            assert len(partners) == 1, spec.key
            assert (partners[0].steps, partners[0].batch_size) == (spec.steps, spec.batch_size)
    tasks = {s.task for s in specs}
    assert tasks == {"probe", "classify", "detect", "segment"}


def test_other_data_is_classified_only_and_the_preview_names_every_task(tmp_path):
    _, specs = plan_of("transfer", "laptop", data="imagefolder:photos", available=900, labelled=900)
    tuned = [s for s in specs if not isinstance(s, Probe)]
    assert tuned and all(isinstance(s, FineTune) and s.labels <= 900 for s in tuned)
    assert plan_of("transfer", "laptop", data="imagefolder:photos", available=900, labelled=0)[1] == []
    table = preview("transfer", tier="quick", runs_dir=tmp_path)
    first = list(table.index)
    assert first[-4:] == ["probe", "classify", "segment", "detect"] and first[0].startswith("pretraining, femto")
    assert table.done.str.startswith("0 of").all()


def test_tier_paper_takes_the_recipes_and_the_folders(monkeypatch):
    from simmim_lite.training import transfer as module

    opened = []

    def open_for(task, spec, size):
        opened.append((task, spec))
        return type("Data", (), {"train": range(160)})

    monkeypatch.setattr(module, "open_for", open_for)
    folders = {"coco": "COCO", "ade20k": "ADE"}
    runs, specs = plan_of("transfer", "paper", data="imagefolder:IN", precision="bf16", labelled=2048, **folders)
    assert {run.model for run in runs} == {"swinv2_small", "swinv2_base", "swinv2_large"}
    assert opened == [("detect", "coco:COCO"), ("segment", "ade20k:ADE")]
    base = [s for s in specs if s.model == "swinv2_base" and s.run is not None]
    one = {s.task: s for s in base}
    assert {task: s.data for task, s in one.items()} == {
        "classify": "imagefolder:IN", "detect": "coco:COCO", "segment": "ade20k:ADE",
    }  # fmt: skip
    assert one["classify"].steps == 100 and one["classify"].full_size and one["classify"].window_size == 14
    assert one["detect"].steps == 36 * 10 and one["segment"].steps == 160_000
    scratch = [s for s in specs if s.run is None]
    assert len(scratch) == 3 * 3 and {s.layer_decay for s in scratch} == {1.0}
    assert {s.task for s in plan_of("transfer", "paper", data="imagefolder:IN")[1]} == {"classify"}
