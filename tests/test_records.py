"""records.py: files to rows, lifts, overfit flags, recipes, fine-tunings, and the sets that are shipped."""

import importlib.util
from pathlib import Path

import pytest
from synthetic_records import ATTO, FEMTO, record, study, tuning

from simmim_lite.errors import UserError
from simmim_lite.evidence import records as rec
from simmim_lite.evidence.claims import claims
from simmim_lite.model.sizes import SIZES
from simmim_lite.training.run import Run, record_path, transfer_path, write_record


def write(folder, made):
    for one in made:
        pretrain = one["kind"] == "pretrain"
        path = record_path(folder, Run.from_dict(one["run"])) if pretrain else transfer_path(folder, one["key"])
        write_record(path, one)


def test_a_row_holds_what_the_record_says():
    made = record(model=FEMTO, images=256, steps=500, seed=3, val=0.31, train=0.29, scores={"linear": 0.5})
    (row,) = rec.run_rows([made])
    run = Run.from_dict(made["run"])
    expected = {"model": FEMTO, "images": 256, "steps": 500, "seed": 3, "data": "scenes", "target": "raw"}
    expected |= {"image_size": 32, "batch_size": 64, "images_seen": 32000, "epochs": 125.0}
    expected |= {"val_loss": 0.31, "val_loss_se": 0.002, "train_loss": 0.29, "linear": 0.5, "reference": False}
    expected |= {"params": SIZES[FEMTO].parameters, "key": run.key, "trunk": run.trunk_key}
    assert {name: row[name] for name in expected} == expected
    assert row["knn"] is None and row["segment"] is None and row["linear_lift"] is None
    assert rec.run_rows([record(images=None)])[0]["images"] == 16384  # all images count as those that there were
    made = record(scores={"linear": float("nan")}, train=float("inf"), val=float("nan"))
    (row,) = rec.run_rows([made])
    for name in ("val_loss", "train_loss", "linear", "linear_lift", "knn", "segment_lift", "overfit"):
        assert row[name] is None, f"{name} is missing or not finite, and never 0"


def test_lift_is_the_score_above_the_same_network_at_random_initialisation():
    scores = {"linear": 0.5, "segment": 0.6}
    made = [record(seed=s, scores=scores) for s in (0, 1)] + [record(seed=0, model=FEMTO, scores=scores)]
    made += [record(seed=0, steps=0, images=16384, scores={"linear": 0.4, "knn": 0.3})]
    made += [record(seed=1, steps=0, images=64, scores={"linear": 0.45, "segment": 0.5})]
    made += [record(seed=0, steps=0, image_size=64, scores={"linear": 0.1})]
    rows = {(r["model"], r["seed"]): r for r in rec.trained(rec.run_rows(made))}
    assert rows[ATTO, 0]["linear_lift"] == pytest.approx(0.1)
    assert (rows[ATTO, 1]["linear_lift"], rows[ATTO, 1]["segment_lift"]) == pytest.approx((0.05, 0.1))
    assert rows[FEMTO, 0]["linear_lift"] is None  # no reference of that size
    # of several references, that of the same precision
    references = [record(steps=0, precision=p, scores={"linear": s}) for p, s in (("bf16", 0.2), ("fp32", 0.4))]
    (row,) = rec.trained(rec.run_rows([record(precision="bf16", scores={"linear": 0.5}), *references]))
    assert row["linear_lift"] == pytest.approx(0.3)


def test_overfit_by_its_own_curve():
    few = ([0.5, 0.4, 0.3], None)  # the lowest may have been missed
    for curve, overfit in (
        ([0.6, 0.5, 0.3, 0.3039], False), ([0.6, 0.5, 0.3, 0.3041], True), ([0.3, 0.3041], True), few
    ):  # fmt: skip
        assert rec.run_rows([record(val=curve[-1], curve=curve)])[0]["overfit"] is overfit


def test_references_come_first_and_a_key_counts_once():
    rows = rec.run_rows([record(), record(steps=0), record(seed=1, status="failed")])
    assert [row["reference"] for row in rows] == [True, False] and rows[0]["overfit"] is None
    made = study(seeds=(0,))
    assert rec.run_rows(made) == rec.run_rows(made[::-1] + made[:7])


def test_recipes_are_told_apart():
    base = [record(), record(model=FEMTO), record(seed=1)]
    for other in ({"data": "torchvision:CIFAR10"}, {"target": "normalized"}, {"image_size": 64}, {"augment": "none"}):
        groups = rec.groups(rec.run_rows([*base, record(**other)]))
        assert [len(rows) for rows in groups.values()] == [3, 1], other
    # a setting by size is one recipe, unless a cell was run both ways
    by_size = [record(lr=4e-3), record(model=FEMTO, lr=2e-3)]
    assert len(rec.groups(rec.run_rows(by_size))) == 1
    both = [*by_size, record(lr=1e-3), record(seed=1, lr=4e-3)]
    assert sorted(len(rows) for rows in rec.groups(rec.run_rows(both)).values()) == [1, 1, 2]


def made_of(pretrained):
    """Runs of femto that reach `pretrained` at 1,024 images, beside .6 from scratch."""
    made = []
    for seed in range(3):
        made += [record(model=FEMTO, images=n, seed=seed) for n in (64, 1024, 16384)]
        made += [tuning(made[-2], pretrained), tuning(made[-2], 0.6 + 0.01 * seed, scratch=True)]
    return made


def test_fine_tuning_is_joined_to_its_run_with_the_lift_over_the_same_seed():
    rows = rec.run_rows(made_of(0.75))
    assert len(rows) == 9
    for row in rows:
        joined = (0.75, pytest.approx(0.75 - (0.6 + 0.01 * row["seed"]))) if row["images"] == 1024 else (None, None)
        assert (row["finetune"], row["finetune_lift"]) == joined
    # of another budget, of all labels, and from a file
    runs = [record(model=ATTO, images=n, seed=s) for n in (64, 1024) for s in (0, 1)]
    made = [*runs, *(tuning(r, 0.5) for r in runs), tuning(runs[0], 0.9, labels=100), tuning(runs[0], 0.1, steps=20)]
    assert [row["finetune"] for row in rec.run_rows(made)] == [0.5] * 4
    everything, from_file = tuning(runs[0], 0.7, labels=None), tuning(runs[0], 0.9, scratch=True)
    everything["cost"]["unique_images"] = 50_000
    from_file["spec"]["weights"] = "base.pth@0123456789ab"
    rows = rec.transfer_rows([everything, from_file])
    found = {(row["annotations"], row["run"] is None, row["scratch"]) for row in rows}
    assert found == {(50_000, False, False), (4000, True, False)}


def tool():
    """tools/shipped.py."""
    spec = importlib.util.spec_from_file_location("shipped_tool", Path(__file__).parents[1] / "tools" / "shipped.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_pack_keeps_all_that_tables_and_claims_see(tmp_path, monkeypatch):
    made = made_of(0.7123456789)
    write(tmp_path, made)
    loaded = rec.load(tmp_path)
    assert rec.run_rows(loaded) == rec.run_rows(made) and claims(loaded) == claims(made)
    monkeypatch.setattr(rec, "FOLDER", tmp_path / "shipped")
    for name in ("own", rec.TRANSFER):
        assert tool().pack(loaded, tmp_path / "shipped" / f"{name}.json") == len(made)
    assert rec.shipped_names() == ["own"], "the transfer set is not one of the four studies'"
    back = rec.shipped("own")
    assert [c.verdict for c in claims(back)] == [c.verdict for c in claims(made)]
    for before, after in zip(rec.run_rows(made), rec.run_rows(back), strict=True):
        assert after == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in before.items()}
    assert back[0]["where"] == made[0]["where"]
    with pytest.raises(UserError, match="unknown shipped set 'nonsense'"):
        rec.shipped("nonsense")
    with pytest.raises(UserError, match="no finished records to pack"):
        tool().pack([], tmp_path / "x.json")


def test_finished_runs_are_kept_and_filled_back(tmp_path, monkeypatch):
    """Nothing is lost with a machine but the weights, and a run that needs them is made again."""
    shipped = tool()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    runs = [record(model=FEMTO, images=n, steps=1000, seed=s) for n in (64, 1024) for s in (101, 102)]
    tuned = tuning(runs[2], 0.5)  # of 1,024 images, seed 101
    write(tmp_path / "runs", [*runs, record(seed=103, status="failed"), tuned])
    assert "5 records, 5 of them new" in shipped.keep("laptop-scenes", tmp_path / "runs")
    assert "4 of 5 kept records" in shipped.fill("laptop-scenes", tmp_path / "again")
    assert {r["key"] for r in rec.load(tmp_path / "again")} == {r["key"] for r in (*runs[:3], tuned)}
    assert "5 records" in shipped.ship("laptop-scenes", tmp_path / "again"), "what was kept is not lost"
    assert not (tmp_path / "shipped" / "partial" / "laptop-scenes.json").exists()
    for side, back in ((32, 2), (64, 4)):  # nothing is fine-tuned yet, and at 64 px nothing will be
        own = [record(model=FEMTO, images=n, steps=1000, seed=s, image_size=side) for n in (64, 1024) for s in (1, 2)]
        write(tmp_path / f"runs{side}", own)
        shipped.keep(f"of-{side}", tmp_path / f"runs{side}")
        assert f"{back} of 4 kept records" in shipped.fill(f"of-{side}", tmp_path / f"back{side}")
