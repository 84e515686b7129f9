"""records.py: files to rows, lifts, overfit flags, recipes, the core grid."""

import json

import pytest
from synthetic_records import ATTO, FEMTO, PICO, record, study

from simmim_lite.errors import UserError
from simmim_lite.evidence import records as rec
from simmim_lite.evidence import tables
from simmim_lite.model.sizes import SIZES
from simmim_lite.training.run import Run, record_path, write_record


def test_a_row_holds_what_the_record_says():
    made = record(model=FEMTO, images=256, steps=500, seed=3, val=0.31, train=0.29, scores={"linear": 0.5})
    (row,) = rec.table([made])
    run = Run.from_dict(made["run"])
    expected = {"model": FEMTO, "images": 256, "steps": 500, "seed": 3, "data": "scenes", "target": "raw"}
    expected |= {"image_size": 32, "batch_size": 64, "images_seen": 32000, "epochs": 125.0}
    expected |= {"val_loss": 0.31, "val_loss_se": 0.002, "train_loss": 0.29, "linear": 0.5, "reference": False}
    expected |= {"params": SIZES[FEMTO].parameters, "key": run.key, "trunk": run.trunk_key}
    assert {name: row[name] for name in expected} == expected
    assert row["knn"] is None and row["segment"] is None and row["linear_lift"] is None
    assert not any(name.startswith("_") for name in row)
    assert rec.table([record(images=None)])[0]["images"] == 16384  # all images count as those that there were


def test_lift_is_the_score_above_the_same_network_at_random_initialisation():
    scores = {"linear": 0.5, "segment": 0.6}
    made = [record(seed=s, scores=scores) for s in (0, 1)] + [record(seed=0, model=FEMTO, scores=scores)]
    made += [record(seed=0, steps=0, images=16384, scores={"linear": 0.4, "knn": 0.3})]
    made += [record(seed=1, steps=0, images=64, scores={"linear": 0.45, "segment": 0.5})]
    made += [record(seed=0, steps=0, image_size=64, scores={"linear": 0.1})]
    rows = {(r["model"], r["seed"]): r for r in rec.trained(rec.table(made))}
    assert rows[ATTO, 0]["linear_lift"] == pytest.approx(0.1)
    assert rows[ATTO, 0]["segment_lift"] is rows[ATTO, 0]["knn_lift"] is None  # one of the two has none
    assert (rows[ATTO, 1]["linear_lift"], rows[ATTO, 1]["segment_lift"]) == pytest.approx((0.05, 0.1))
    assert rows[FEMTO, 0]["linear_lift"] is None  # no reference of that size


def test_a_reference_of_the_same_precision_goes_first():
    references = [record(steps=0, precision=p, scores={"linear": s}) for p, s in (("bf16", 0.2), ("fp32", 0.4))]
    for precision, lift in (("bf16", 0.3), ("fp32", 0.1)):
        made = record(precision=precision, scores={"linear": 0.5})
        (row,) = rec.trained(rec.table([made, *references]))
        assert row["linear_lift"] == pytest.approx(lift)


@pytest.mark.parametrize(
    ("curve", "overfit"),
    [
        ([0.6, 0.5, 0.3, 0.3039], False),
        ([0.6, 0.5, 0.3, 0.3041], True),
        ([0.3, 0.3041], True),
        ([0.6, 0.5, 0.4, 0.3], False),
        ([0.5, 0.4, 0.3], None),
        ([0.3], None),  # the lowest may have been missed
    ],
)
def test_overfit_by_its_own_curve(curve, overfit):
    (row,) = rec.table([record(val=curve[-1], curve=curve)])
    assert row["overfit"] is overfit


def test_what_is_missing_or_not_finite_is_none_and_never_0():
    made = record(scores={"linear": float("nan")}, train=float("inf"))
    made["final"]["val_loss"] = float("nan")
    (row,) = rec.table([made, record(steps=0, scores={"linear": 0.4})][:1])
    for name in ("val_loss", "train_loss", "linear", "linear_lift", "knn", "segment_lift", "overfit"):
        assert row[name] is None, name


def test_references_failed_runs_and_trunks():
    rows = rec.table([record(), record(steps=0), record(seed=1, status="failed")])
    assert [row["reference"] for row in rows] == [True, False] and rows[0]["overfit"] is None
    assert [row["steps"] for row in rec.trained(rows)] == [1000]
    rows = rec.table([record(steps=500), record(steps=1000), record(seed=1)])
    assert len({r["trunk"] for r in rows}) == 2 and rows[0]["trunk"] == rows[1]["trunk"] != rows[2]["trunk"]


def test_order_of_records_does_not_matter_and_a_key_counts_once():
    made = study(seeds=(0, 1))
    assert rec.table(made) == rec.table(made[::-1] + made[:7])


def test_recipes_are_told_apart():
    base = [record(), record(model=FEMTO), record(seed=1)]
    for other in ({"data": "torchvision:CIFAR10"}, {"target": "normalized"}, {"image_size": 64}, {"augment": "none"}):
        groups = rec.groups(rec.table([*base, record(**other)]))
        assert [len(rows) for rows in groups.values()] == [3, 1], other
    # a setting by size is one recipe, unless a cell was run both ways
    by_size = [record(lr=4e-3), record(model=FEMTO, lr=2e-3)]
    assert len(rec.groups(rec.table(by_size))) == 1
    both = [*by_size, record(lr=1e-3), record(seed=1, lr=4e-3)]
    assert sorted(len(rows) for rows in rec.groups(rec.table(both)).values()) == [1, 1, 2]


def test_the_longest_length_is_that_of_most_cells():
    def lengths(cells):
        rows = rec.trained(rec.table([record(model=m, images=n, steps=t) for m, n, t in cells]))
        return set(tables.longest(tables.frame({"yours": rows})).steps)

    cells = [(m, n, t) for m in (ATTO, FEMTO) for n in (64, 1024) for t in (500, 1000)]
    assert lengths([*cells, (ATTO, 64, 2000), (FEMTO, 64, 2000)]) == {1000}, "longer, but not at every level"
    assert lengths([*cells[1:], (PICO, 64, 1000)]) == {1000}, "a cell is missing"


def test_load_reads_what_was_written(tmp_path):
    assert rec.load(tmp_path / "nothing here") == []
    made = [record(seed=s) for s in (0, 1)] + [record(seed=2, status="failed", reason="loss is NaN at step 3")]
    for r in made:
        write_record(record_path(tmp_path, Run.from_dict(r["run"])), r)
    (tmp_path / "records" / ".half.json.tmp123").write_text("{")
    loaded = rec.load(tmp_path)
    assert sorted(r["key"] for r in loaded) == sorted(r["key"] for r in made)
    assert rec.table(loaded) == rec.table(made)


def _broken():
    whole = record()
    yield "cut off", json.dumps(whole)[:200]
    yield "another schema", json.dumps(whole | {"schema": 99})
    yield "a list", "[]"
    yield "no final numbers", json.dumps({k: v for k, v in whole.items() if k != "final"})
    yield "an unknown field", json.dumps(whole | {"run": whole["run"] | {"moedl": 1}})
    yield "text for a number", json.dumps(whole | {"final": whole["final"] | {"val_loss": "low"}})
    yield "an unknown status", json.dumps(whole | {"status": "running"})
    yield "no curve", json.dumps(whole | {"curve": None})


@pytest.mark.parametrize(("name", "text"), list(_broken()), ids=lambda v: v if len(v) < 30 else "")
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, text):
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a-good-one.json").write_text(json.dumps(record()))
    (folder / "bad-one.json").write_text(text)
    with pytest.raises(UserError) as error:
        rec.load(tmp_path)
    assert "bad-one.json" in str(error.value) and "delete the file" in str(error.value)
    assert "\n" not in str(error.value)


def test_names_and_numbers():
    assert rec.short("swinv2_atto") == "atto"
    assert [rec.millions(n) for n in (144_000, 2_110_000, 1_060_976_996)] == ["0.14 M", "2.1 M", "1,061 M"]
