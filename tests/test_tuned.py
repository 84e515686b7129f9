"""Fine-tunings joined to their runs, the supervised claim C8, and records packed to be shipped."""

import json

import pytest
from synthetic_records import ATTO, FEMTO, record

from simmim_lite.errors import UserError
from simmim_lite.evidence import shipped
from simmim_lite.evidence.claims import FAILS, HOLDS, OPEN, claims
from simmim_lite.evidence.records import load, table
from simmim_lite.evidence.tuned import finetunings
from simmim_lite.training.run import Run, record_path, transfer_path, write_record
from simmim_lite.training.tuning import FineTune


def tuning(run, top1, *, scratch=False, **options):
    """A fine-tuning record as training/finetune.py writes it."""
    fields = run["run"]
    spec = (FineTune.scratch if scratch else FineTune.of)(Run.from_dict(fields), seed=fields["seed"], **options)
    whole = spec.to_dict()
    made = {"schema": 1, "kind": "finetune", "key": spec.key, "status": "done", "reason": None, "run": whole.pop("run")}
    final = {"top1": top1, "low": top1 - 0.02, "high": top1 + 0.02, "n_test": 2000}
    return made | {"spec": whole, "final": final, "curve": [], "cost": {"seconds": 1.0}, "where": run["where"]}


def c8(pretrained, seeds=(0, 1, 2), much=16384):
    """Runs of femto at 1,024 images that reach `pretrained(seed)`, beside scratch: .6 on 4,000 labels, .7 on `much`."""
    made = []
    for seed in seeds:
        made += [record(model=FEMTO, images=n, seed=seed) for n in (64, 1024, 16384)]
        little = made[-2]
        made += [tuning(little, pretrained(seed)), tuning(little, 0.6 + 0.01 * seed, scratch=True)]
        made.append(tuning(little, 0.7 + 0.01 * seed, scratch=True, labels=much))
    (claim,) = [claim for claim in claims(made) if claim.id == "C8"]
    return claim, made


def test_fine_tuning_is_joined_to_its_run_with_the_lift_over_the_same_seed():
    _, made = c8(lambda seed: 0.75)
    rows = table(made)
    assert len(rows) == 9
    for row in rows:
        if row["images"] == 1024:
            assert row["finetune"] == 0.75
            assert row["finetune_lift"] == pytest.approx(0.75 - (0.6 + 0.01 * row["seed"]))
        else:
            assert row["finetune"] is None and row["finetune_lift"] is None


def test_fine_tunings_of_another_budget_are_not_mixed_in():
    runs = [record(model=ATTO, images=n, seed=s) for n in (64, 1024) for s in (0, 1)]
    made = [*runs, *(tuning(r, 0.5) for r in runs), tuning(runs[0], 0.9, labels=100), tuning(runs[0], 0.1, steps=20)]
    assert [row["finetune"] for row in table(made)] == [0.5] * 4
    assert all(row["finetune_lift"] is None for row in table(made))  # no network from scratch
    assert len(finetunings(made)) == 6


def test_all_labels_are_counted_and_a_start_from_a_file_is_no_baseline():
    run = record(model=FEMTO, images=1024)
    everything = tuning(run, 0.7, labels=None)
    everything["cost"]["unique_images"] = 50_000
    from_file = tuning(run, 0.9, scratch=True)
    from_file["spec"]["weights"] = "base.pth@0123456789ab"
    assert [row["labels"] for row in finetunings([everything, from_file])] == [50_000]


def test_c8_takes_the_most_labels_of_a_run_that_was_fine_tuned_on_several():
    _, made = c8(lambda seed: 0.74)
    few = [tuning(r, 0.1, labels=n) for r in made if r["kind"] == "pretrain" for n in (64, 256)]
    (claim,) = [claim for claim in claims([*few, *made]) if claim.id == "C8"]
    assert claim.verdict == HOLDS and "4,000 labels" in claim.evidence


@pytest.mark.parametrize(("level", "verdict"), [(0.74, HOLDS), (0.70, HOLDS), (0.6, FAILS), (0.69, OPEN)])
def test_c8_compares_few_pretraining_images_with_many_labels(level, verdict):
    claim, _ = c8(lambda seed: level + 0.01 * seed + 0.001 * (seed - 1))
    assert claim.verdict == verdict and claim.n == 3 and claim.margin == -0.01
    assert claim.effect == pytest.approx(level - 0.7)
    for said in ("1,024 images", "4,000 labels", "16,384 labels", "femto", "3 seeds"):
        assert said in claim.evidence


def test_c8_says_what_is_missing():
    (claim,) = [c for c in claims([record(images=n) for n in (64, 1024)]) if c.id == "C8"]
    assert claim.verdict == OPEN and "fine-tuned" in claim.evidence
    claim, _ = c8(lambda seed: 0.7, much=1000)  # fewer labels than fine-tuning has
    assert claim.verdict == OPEN and "more than the 4,000 labels" in claim.evidence
    claim, _ = c8(lambda seed: 0.7, seeds=(4,))
    assert claim.verdict == OPEN and "one seed" in claim.evidence


def test_load_reads_fine_tunings_and_pack_keeps_all_that_tables_and_claims_see(tmp_path, monkeypatch):
    _, made = c8(lambda seed: 0.7123456789)
    for entry in made:
        run = Run.from_dict(entry["run"]) if entry["run"] else None
        path = transfer_path(tmp_path, entry["key"]) if entry["kind"] == "finetune" else record_path(tmp_path, run)
        write_record(path, entry)
    loaded = load(tmp_path)
    assert table(loaded) == table(made) and claims(loaded) == claims(made)

    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    assert shipped.pack(tmp_path, tmp_path / "shipped" / "own.json") == len(made)
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
        shipped.pack(tmp_path, tmp_path / "x.json")
