"""Fine-tunings joined to their runs, and records packed to be shipped."""

import importlib.util
import json
from pathlib import Path

import pytest
from synthetic_records import ATTO, FEMTO, record, tuning

from simmim_lite.errors import UserError
from simmim_lite.evidence import shipped
from simmim_lite.evidence.claims import claims
from simmim_lite.evidence.records import finetunings, load, table
from simmim_lite.training.run import Run, record_path, transfer_path, write_record


def made_of(pretrained, seeds=(0, 1, 2)):
    """Runs of femto that reach `pretrained(seed)` at 1,024 images, beside .6 from scratch."""
    made = []
    for seed in seeds:
        made += [record(model=FEMTO, images=n, seed=seed) for n in (64, 1024, 16384)]
        little = made[-2]
        made += [tuning(little, pretrained(seed)), tuning(little, 0.6 + 0.01 * seed, scratch=True)]
    return made


def test_fine_tuning_is_joined_to_its_run_with_the_lift_over_the_same_seed():
    made = made_of(lambda seed: 0.75)
    rows = table(made)
    assert len(rows) == 9
    for row in rows:
        if row["images"] == 1024:
            assert row["finetune"] == 0.75
            assert row["finetune_lift"] == pytest.approx(0.75 - (0.6 + 0.01 * row["seed"]))
        else:
            assert row["finetune"] is None and row["finetune_lift"] is None


def test_fine_tunings_of_another_budget_of_all_labels_and_from_a_file():
    runs = [record(model=ATTO, images=n, seed=s) for n in (64, 1024) for s in (0, 1)]
    made = [*runs, *(tuning(r, 0.5) for r in runs), tuning(runs[0], 0.9, labels=100), tuning(runs[0], 0.1, steps=20)]
    assert [row["finetune"] for row in table(made)] == [0.5] * 4
    assert all(row["finetune_lift"] is None for row in table(made))  # no network from scratch
    assert len(finetunings(made)) == 6
    everything, from_file = tuning(runs[0], 0.7, labels=None), tuning(runs[0], 0.9, scratch=True)
    everything["cost"]["unique_images"] = 50_000
    from_file["spec"]["weights"] = "base.pth@0123456789ab"
    assert [row["labels"] for row in finetunings([everything, from_file])] == [50_000]


def test_load_reads_fine_tunings_and_pack_keeps_all_that_tables_and_claims_see(tmp_path, monkeypatch):
    made = made_of(lambda seed: 0.7123456789)
    for entry in made:
        run = Run.from_dict(entry["run"]) if entry["run"] else None
        path = transfer_path(tmp_path, entry["key"]) if entry["kind"] == "finetune" else record_path(tmp_path, run)
        write_record(path, entry)
    loaded = load(tmp_path)
    assert table(loaded) == table(made) and claims(loaded) == claims(made)

    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    assert shipped.pack(loaded, tmp_path / "shipped" / "own.json") == len(made)
    assert shipped.names() == ["own"]
    back = shipped.records("own")
    assert [c.verdict for c in claims(back)] == [c.verdict for c in claims(made)]
    for before, after in zip(table(made), table(back), strict=True):
        assert after == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in before.items()}
    assert back[0]["where"] == made[0]["where"]
    text = (tmp_path / "shipped" / "own.json").read_text()
    assert json.loads(text)["where"][0]["versions"] == made[0]["where"]["versions"] and text.count('"versions"') == 1


def test_shipped_names_what_is_there(tmp_path):
    with pytest.raises(UserError, match="unknown shipped set 'nonsense'"):
        shipped.records("nonsense")
    with pytest.raises(UserError, match="no finished records to pack"):
        shipped.pack([], tmp_path / "x.json")


def test_finished_runs_are_kept_and_filled_back(tmp_path, monkeypatch):
    """tools/shipped.py: nothing is lost with a machine but the weights, and a run that needs them is made again."""
    spec = importlib.util.spec_from_file_location("shipped_tool", Path(__file__).parents[1] / "tools" / "shipped.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "FOLDER", tmp_path / "shipped")
    runs = [record(model=FEMTO, images=n, steps=1000, seed=s) for n in (64, 1024) for s in (101, 102)]
    tuned = tuning(runs[2], 0.5)  # of 1,024 images, seed 101
    for one in (*runs, record(seed=103, status="failed")):
        write_record(record_path(tmp_path / "runs", Run.from_dict(one["run"])), one)
    write_record(transfer_path(tmp_path / "runs", tuned["key"]), tuned)
    assert "5 records, 5 of them new" in tool.keep("laptop-scenes", tmp_path / "runs")
    assert "4 of 5 kept records" in tool.fill("laptop-scenes", tmp_path / "again")
    assert {r["key"] for r in load(tmp_path / "again")} == {r["key"] for r in (*runs[:3], tuned)}
    assert "5 records, 0 of them new" in tool.keep("laptop-scenes", tmp_path / "again")  # what is made again stays
    assert "0 of 5" in tool.fill("laptop-scenes", tmp_path / "again")
    assert "4 records" in tool.ship("laptop-scenes", tmp_path / "again")
    assert not (tmp_path / "shipped" / "partial" / "laptop-scenes.json").exists()
    assert shipped.is_design("laptop-scenes")  # seeds 0 to 2, as shipped so far
