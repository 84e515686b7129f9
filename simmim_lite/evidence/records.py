"""Finished runs: the records of a folder and those that come with the package, as rows of a table. No torch here."""

import json
import math
from collections import Counter, defaultdict
from importlib.resources import files
from operator import itemgetter
from pathlib import Path

from ..data.scenes import LOOKS
from ..errors import unknown
from ..files import digest, entries
from ..training.record import run_of, usable
from ..training.run import Run

#: A run is overfit when its final validation loss lies more than this above the lowest of its own curve
#: (docs/facts.md, 7).
OVERFIT = 0.004
#: Fewer validations may miss the lowest point: a run with so few is not known to be free of overfitting.
VALIDATIONS = 4
#: Probes on frozen features and their names; `linear`, `knn` in top-1, `segment` in IoU.
PROBES = {"linear": "linear probe", "knn": "kNN", "segment": "segmentation probe"}
#: All transfer scores; `finetune` in top-1, its lift is over the same network from scratch.
SCORES = PROBES | {"finetune": "fine-tuning"}
#: Scores of the transfer tasks, 0 to 1: the task (the kind of its records), and what the score is called.
MEASURES = {
    "top1": ("finetune", "classification, top-1"),
    "box_ap": ("detect", "detection, box AP"),
    "mask_ap": ("detect", "instance segmentation, mask AP"),
    "miou": ("segment", "semantic segmentation, mIoU"),
}
#: What a study varies. Everything else is the recipe.
SWEPT = ("model", "images", "steps", "seed")
#: What a recipe may set by model size or by machine; it tells recipes apart only where one cell was run both ways.
MAY_DIFFER = ("lr", "drop_path", "window_size", "precision", "subset_seed", "eval_every", "probe_labels", "probe_test")
#: What the probes of a network at random initialisation depend on: runs that share these share their reference.
REFERENCE = ("model", "seed", "data", "image_size", "window_size", "statistics", "probe_labels", "probe_test")
#: Seeds that were looked at while rules and grids were made (docs/settings.md): design data, which decide nothing.
DESIGN_SEEDS = range(101)
#: The shipped set of the transfer study: pretraining runs, and every task from them and from scratch.
TRANSFER = "transfer-scenes"
#: The shipped set of the study of beginnings: foreign and own pretraining, and both.
BEGINNINGS = "beginnings-plankton"
FOLDER = files(__package__) / "shipped_records"


def load(runs_dir: str | Path) -> list[dict]:
    """All runs under RUNS_DIR/records and transfers under RUNS_DIR/transfer, by file name; a file that is no whole
    record, or of a later version, is named on stderr and passed over."""
    root = Path(runs_dir)
    return usable([*entries(root / "records", "*.json"), *entries(root / "transfer", "*.json")])


def shipped_names() -> list[str]:
    """The sets of the four studies that are shipped: `laptop-scenes`, `laptop-cifar10`, `laptop-photos64`."""
    names = (p.stem for p in FOLDER.iterdir() if p.suffix == ".json")
    return sorted(name for name in names if name not in (TRANSFER, BEGINNINGS))


def shipped(name: str) -> list[dict]:
    """The records of a shipped set, of `shipped_names()`, TRANSFER or BEGINNINGS, as `load` gives those of a folder."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise unknown("shipped set", name, [*shipped_names(), TRANSFER, BEGINNINGS])
    return unpack(json.loads(path.read_text()))


def beside(data: str) -> list[dict]:
    """The records that are shown beside runs on this data: of scenes by drawn ones, else of CIFAR-10; or []."""
    name = "laptop-scenes" if data in LOOKS else "laptop-cifar10"
    return shipped(name) if name in shipped_names() else []


def unpack(packed: dict) -> list[dict]:
    """The records of a file that tools/shipped.py has written, each with its own provenance again."""
    where = packed["where"]
    return [r | {"where": where[r["where"]] | r.pop("times")} for r in map(dict, packed["records"])]


def run_rows(records: list[dict]) -> list[dict]:
    """One flat row a finished run: what it was, what it cost, its losses, its scores (0 to 1), None where not finite.

    `images` are unique ones; `*_lift` is a score less that of the same network at random initialisation (the record
    with `steps=0`, flagged `reference`), or from scratch for `finetune`. Runs with equal `recipe` may be compared with
    one another, runs off one `trunk` share their first steps.
    """
    done = [record for record in records if record.get("kind") == "pretrain" and record.get("status") == "done"]
    done.sort(key=lambda record: json.dumps(record, sort_keys=True), reverse=True)  # of one key always the same one
    runs = [(run_of(record["run"]), _row(record)) for record in {r["key"]: r for r in done}.values()]
    networks = {row["key"]: tuple(getattr(run, name) for name in (*REFERENCE, "recipe_version")) for run, row in runs}
    references, recipes = defaultdict(list), defaultdict(list)
    for run, row in runs:
        if row["reference"]:
            references[networks[row["key"]]].append((run, row))
        recipes[_recipe(run, *SWEPT, *MAY_DIFFER)].append((run, row))
    for name, members in recipes.items():
        cells = Counter(tuple(row[k] for k in SWEPT) for _, row in members if not row["reference"])
        twice = max(cells.values(), default=0) > 1
        for run, row in members:
            row["recipe"] = _recipe(run, *SWEPT) if twice else name
    for run, row in runs:
        # of several references (they differ in fields that cannot matter), the same arithmetic first
        same = sorted(references[networks[row["key"]]], key=lambda r: (r[0].precision != run.precision, r[1]["key"]))
        for score in PROBES:
            row[f"{score}_lift"] = _less(row[score], same[0][1][score] if same else None)
    tuned = [t for t in transfer_rows(records) if t["measure"] == "top1"]
    budgets = Counter((t["annotations"], t["steps"]) for t in tuned if t["run"])
    budget = max(budgets, key=lambda b: (budgets[b], b), default=None)  # that most fine-tunings have
    tuned = [t for t in tuned if (t["annotations"], t["steps"]) == budget]
    network = itemgetter("model", "data", "image_size", "seed")
    scratch = {network(t): t["score"] for t in tuned if t["scratch"]}
    scores = {t["run"]: (t["score"], scratch.get(network(t))) for t in tuned if t["run"]}
    for _, row in runs:
        row["finetune"], base = scores.get(row["key"], (None, None))
        row["finetune_lift"] = _less(row["finetune"], base)
    order = ("recipe", "params", "model", "images", "steps", "seed", "key")
    return sorted((row for _, row in runs), key=lambda row: [row[k] for k in order])


def trained(rows: list[dict]) -> list[dict]:
    """The rows of trained runs: references left out."""
    return [row for row in rows if not row["reference"]]


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """Trained rows by recipe, the recipe with most runs first. Losses are comparable within a recipe only."""
    found = defaultdict(list)
    for row in trained(rows):
        found[row["recipe"]].append(row)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def score_of(rows: list[dict]) -> str | None:
    """The score that accuracy means for these rows: the first of SCORES that they have; None where there is none."""
    return next((s for s in SCORES if any(row[s] is not None for row in rows)), None)


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


def _row(record: dict) -> dict:
    """The row of a finished pretraining record, lifts and recipe still to come."""
    run, cost, final, probes = run_of(record["run"]), record["cost"], record["final"], record["transfer"]
    curve = [loss for loss in (_number(point["val_loss"]) for point in record["curve"]) if loss is not None]
    row = {n: getattr(run, n) for n in ("model", "steps", "seed", "data", "target", "image_size", "batch_size")}
    row |= {"params": record["model"]["parameters"], "images_seen": cost["images_seen"]}
    row |= {"images": cost["unique_images"] if run.images is None else run.images, "init": run.init}
    row |= {name: _number(final.get(name)) for name in ("val_loss", "val_loss_se", "train_loss")}
    row |= {name: _number(cost.get(name)) for name in ("epochs", "flops", "seconds", "core_seconds")}
    row |= {score: _number(probes.get(score, {}).get("score")) for score in PROBES}
    row |= {"probe_images": max((probe.get("n_train") or 0 for probe in probes.values()), default=None)}
    row |= {"trunk": run.trunk_key, "key": record["key"], "reference": run.random, "overfit": None}
    if row["val_loss"] is not None and curve and not row["reference"]:
        overfit = row["val_loss"] - min(curve) > OVERFIT
        row["overfit"] = overfit if overfit or len(curve) >= VALIDATIONS else None
    return row


def transfer_rows(records: list[dict]) -> list[dict]:
    """One flat row a finished training of a transfer task and score: measure (a key of `MEASURES`), score (0 to 1),
    annotations (images with labels, boxes or masks), model, data, steps, seed, image_size, scratch, key, and run: the
    key of the pretraining run, None from scratch or from a file."""
    rows = {}
    for record in records:
        measures = [measure for measure, (kind, _) in MEASURES.items() if kind == record.get("kind")]
        if not measures or record.get("status") != "done":
            continue
        spec, run, key = record["spec"], record["run"], record["key"]
        row = {name: spec[name] for name in ("model", "data", "steps", "seed", "image_size")} | {"key": key}
        asked = spec["labels" if "top1" in measures else "images"]  # None: all there were
        row |= {"annotations": record["cost"]["unique_images"] if asked is None else asked}
        row |= {"scratch": run is None and not spec.get("weights"), "run": run and run_of(run).key}
        found = {"top1": {"score": record["final"]["top1"]}} if "top1" in measures else record["transfer"]
        for measure in measures:
            if measure in found:
                rows[measure, key] = {"measure": measure, **row, "score": float(found[measure]["score"])}
    return [rows[place] for place in sorted(rows)]


def _less(score: float | None, base: float | None) -> float | None:
    return score - base if score is not None and base is not None else None


def _number(value: float | None) -> float | None:
    """A finite float, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def _recipe(run: Run, *apart: str) -> str:
    """The name of what runs have in common, but for these fields."""
    return digest({name: held for name, held in run.identity.items() if name not in apart})[:8]
