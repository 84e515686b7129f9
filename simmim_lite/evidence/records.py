"""Finished runs as a table: read the records of a folder, flatten them, find the grid they fill. No torch here."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import UserError
from ..training.run import Run, read_record

#: A run is overfit when its final validation loss lies more than this above the lowest of its own curve
#: (docs/facts.md, 7).
OVERFIT = 0.004
#: Fewer validations may miss the lowest point: a run with so few is not known to be free of overfitting.
VALIDATIONS = 4
#: Probes on frozen features and their names; `linear`, `knn` in top-1, `segment` in IoU.
PROBES = {"linear": "linear probe", "knn": "kNN", "segment": "segmentation probe"}
#: All transfer scores; `finetune` in top-1, its lift is over the same network from scratch.
SCORES = PROBES | {"finetune": "fine-tuning"}
#: Kinds of record under RUNS_DIR/transfer.
TRANSFER_KINDS = ("finetune", "detect", "segment", "probe")
#: What a study varies. Everything else is the recipe.
SWEPT = ("model", "images", "steps", "seed")
#: What a recipe may set by model size or by machine; it tells recipes apart only where one cell was run both ways.
BY_SIZE = ("lr", "drop_path", "window_size", "precision", "subset_seed", "eval_every", "probe_labels", "probe_test")
#: What the probes of a network at random initialisation depend on: runs that share these share their reference.
REFERENCE = ("model", "seed", "data", "image_size", "window_size", "statistics", "probe_labels", "probe_test")


def load(runs_dir: str | Path) -> list[dict]:
    """All runs under RUNS_DIR/records and transfers under RUNS_DIR/transfer, by file name; [] when there are none.

    Raises `UserError`, one line naming the file, on the first file that is no whole record.
    """
    records = []
    for path in sorted((Path(runs_dir) / "records").glob("*.json")):
        record = read_record(path)
        if record is None:
            continue  # removed since the folder was listed
        _row(record, str(path))
        records.append(record)
    for path in sorted((Path(runs_dir) / "transfer").glob("*.json")):
        record = read_record(path)
        if record is not None and record.get("kind") in TRANSFER_KINDS:
            records.append(record)
    finetunings(records)
    return records


def finished(records: list[dict]) -> list[dict]:
    """The pretraining records that are done, one a key, in an order that does not depend on the input's."""
    done = [r for r in records if r.get("kind") == "pretrain" and r.get("status") == "done"]
    done.sort(key=lambda r: (r["key"], json.dumps(r, sort_keys=True)))
    return list({r["key"]: r for r in reversed(done)}.values())[::-1]


def table(records: list[dict]) -> list[dict]:
    """One flat row a finished run: what it was, what it cost, its losses, its transfer scores.

    `images` are unique images, `images_seen` counts repeats; losses are mean absolute errors of hidden pixels; scores
    lie in 0 to 1, and `*_lift` is the score minus that of the same network at random initialisation (the record with
    `steps=0`, flagged `reference`), or from scratch for `finetune`. Runs with equal `recipe` may be compared with one
    another, runs off one `trunk` share their first steps. A number that is missing or not finite is None, never 0.
    """
    rows = [row for row in (_row(record) for record in finished(records)) if row]
    references = defaultdict(list)
    for row in rows:
        if row["reference"]:
            references[row["_reference"]].append(row)
    _name_recipes(rows)
    for row in rows:
        # of several references (they differ in fields that cannot matter), the same arithmetic first
        same = sorted(references[row.pop("_reference")], key=lambda r: (r["_precision"] != row["_precision"], r["key"]))
        for score in PROBES:
            base = same[0][score] if same else None
            known = row[score] is not None and base is not None
            row[f"{score}_lift"] = row[score] - base if known else None
    _join(rows, records)
    for row in rows:
        del row["_precision"]
    return sorted(
        rows, key=lambda r: (r["recipe"], r["params"], r["model"], r["images"], r["steps"], r["seed"], r["key"])
    )


def trained(rows: list[dict]) -> list[dict]:
    """The rows of trained runs: references left out."""
    return [row for row in rows if not row["reference"]]


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """Trained rows by recipe, the recipe with most runs first. Losses are comparable within a recipe only."""
    found = defaultdict(list)
    for row in trained(rows):
        found[row["recipe"]].append(row)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def sizes_of(rows: list[dict]) -> list[str]:
    """The models among rows, smallest first."""
    return [model for _, model in sorted({(row["params"], row["model"]) for row in rows})]


def short(model: str) -> str:
    """A model's name without its family: `atto`."""
    return model.removeprefix("swinv2_")


def millions(params: int) -> str:
    """A number of parameters to read: `0.14 M`, `2.1 M`, `1,061 M`."""
    m = params / 1e6
    return f"{m:.2f} M" if m < 1 else f"{m:.1f} M" if m < 10 else f"{m:,.0f} M"


def flops_text(flops: float | None) -> str:
    """Floating-point operations to read: `54.5 TFLOP`, `4.12 ZFLOP`; a dash when unknown."""
    if flops is None:
        return "–"
    power = max(0, min(7, int(math.log10(max(flops, 1)) // 3) - 1))
    return f"{flops / 1000 ** (power + 1):.3g} {'kMGTPEZY'[power]}FLOP"


def _row(record: dict, where: str | None = None) -> dict | None:
    """The row of a record, lifts and recipe still to come; None when it is no finished pretraining run."""
    where = where or f"record {record.get('key')}"
    if record.get("kind") != "pretrain":
        return None
    if record.get("status") not in ("done", "failed"):
        raise UserError(
            f"{where}: status is {record.get('status')!r}, not done or failed; delete the file and run again"
        )
    try:
        run = Run.from_dict(record["run"])
        if record["status"] == "failed":
            return None
        cost, final = record["cost"], record["final"]
        curve = [loss for loss in (_number(point["val_loss"]) for point in record["curve"]) if loss is not None]
        row = {
            "model": run.model,
            "params": int(record["model"]["parameters"]),
            "images": int(cost["unique_images"] if run.images is None else run.images),
            "steps": run.steps,
            "images_seen": int(cost["images_seen"]),
            "epochs": _number(cost.get("epochs")),
            "seed": run.seed,
            "data": run.data,
            "target": run.target,
            "image_size": run.image_size,
            "batch_size": run.batch_size,
            "val_loss": _number(final["val_loss"]),
            "val_loss_se": _number(final.get("val_loss_se")),
            "train_loss": _number(final.get("train_loss")),
            **{score: _number(record.get("transfer", {}).get(score, {}).get("score")) for score in PROBES},
            "probe_images": max((p.get("n_train", 0) for p in record.get("transfer", {}).values()), default=None),
            "flops": _number(cost.get("flops")),
            "seconds": _number(cost.get("seconds")),
            "core_seconds": _number(cost.get("core_seconds")),
            "trunk": run.trunk_key,
            "key": record["key"],
            "reference": run.steps == 0,
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # UserError is a ValueError: a field that this version does not know is named by it
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{where}: not a whole record ({what}); delete the file and run again") from error
    known = row["val_loss"] is not None and curve
    row["overfit"] = row["val_loss"] - min(curve) > OVERFIT if known and not row["reference"] else None
    if row["overfit"] is False and len(curve) < VALIDATIONS:
        row["overfit"] = None
    fields = run.to_dict()
    row["_recipe"] = {k: v for k, v in fields.items() if k not in SWEPT}
    row["_reference"] = tuple(fields[k] for k in (*REFERENCE, "recipe_version"))
    row["_precision"] = run.precision
    return row


def finetunings(records: list[dict]) -> list[dict]:
    """One flat row a finished fine-tuning: model, data, labels, steps, seed, image_size, scratch, run (the key of the
    pretraining run, or None), top1 in 0 to 1, n_test, key. Those that start from a file belong to no run here."""
    rows = {}
    for record in records:
        if record.get("kind") != "finetune" or record.get("status") != "done":
            continue
        try:
            spec, run = record["spec"], record["run"]
            if spec.get("weights"):
                continue
            row = {name: spec[name] for name in ("model", "data", "labels", "steps", "seed", "image_size")}
            row |= {"scratch": run is None, "run": run and Run.from_dict(run).key, "key": record["key"]}
            if row["labels"] is None:  # all there were
                row["labels"] = record["cost"]["unique_images"]
            row |= {"top1": float(record["final"]["top1"]), "n_test": int(record["final"]["n_test"])}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"record {record.get('key')}: not a whole fine-tuning ({error}); delete the file and run again"
            ) from error
        rows[row["key"]] = row
    return [rows[key] for key in sorted(rows)]


def _join(rows: list[dict], records: list[dict]) -> None:
    """Give every row of `records.table` its `finetune` (top-1) and `finetune_lift` (minus scratch, same seed), or None.

    Of fine-tunings with several budgets the one that most runs have counts, so that all scores have one budget.
    """
    tuned = finetunings(records)
    budgets = Counter((t["labels"], t["steps"]) for t in tuned if not t["scratch"])
    budget = max(budgets, key=lambda b: (budgets[b], b), default=None)
    mine = [t for t in tuned if (t["labels"], t["steps"]) == budget]
    scores = {t["run"]: t for t in mine if not t["scratch"]}
    scratch = {_network(t): t["top1"] for t in mine if t["scratch"]}
    for row in rows:
        own = scores.get(row["key"])
        base = scratch.get(_network(own)) if own else None
        row["finetune"] = own["top1"] if own else None
        row["finetune_lift"] = own["top1"] - base if own and base is not None else None


def _network(row: dict) -> tuple:
    return row["model"], row["data"], row["image_size"], row["seed"]


def _name_recipes(rows: list[dict]) -> None:
    """Give every row its `recipe`. Settings of BY_SIZE split a recipe only where a cell was run more than one way."""
    coarse = defaultdict(list)
    for row in rows:
        fields = row.pop("_recipe")
        row["_fine"] = fields
        coarse[_digest({k: v for k, v in fields.items() if k not in BY_SIZE})].append(row)
    for name, members in coarse.items():
        cells = Counter((r["model"], r["images"], r["steps"], r["seed"]) for r in trained(members))
        twice = any(n > 1 for n in cells.values())
        for row in members:
            fine = row.pop("_fine")
            row["recipe"] = _digest(fine) if twice else name


def _number(value: float | None) -> float | None:
    """A finite float, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def _digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
