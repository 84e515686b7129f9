"""Fine-tunings as rows: joined to the runs they start from, and the supervised baseline over labelled data (C8)."""

from collections import Counter, defaultdict

import numpy as np

from ..errors import UserError
from ..training.run import Run
from .findings import Finding
from .intervals import paired_interval


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


def join(rows: list[dict], records: list[dict]) -> None:
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


def supervised(rows: list[dict], records: list[dict]) -> Finding:
    """C8 over rows of one recipe: pretrained on few images and fine-tuned, against supervised training on most labels.

    Few images are the second largest data level, a sixteenth of the largest on the shipped grid. The network is the
    largest that was trained from scratch on more labels than it was fine-tuned on. Top-1, paired by seed.
    """
    data = {row["data"] for row in rows}
    tuned = [t for t in finetunings(records) if t["data"] in data]
    by_run = defaultdict(list)  # a run may be fine-tuned on several numbers of labels
    for t in tuned:
        if not t["scratch"]:
            by_run[t["run"]].append(t)
    mine = [(row, t) for row in rows for t in by_run[row["key"]]]
    if not mine:
        return Finding("No run is fine-tuned (tier laptop does it; it needs labelled images)", open=True)
    levels, steps = sorted({row["images"] for row in rows}), max(t["steps"] for _, t in mine)
    if len(levels) < 2:
        return Finding(f"All runs have {levels[0]:,} images: the claim needs two data levels", open=True)
    few, labels = levels[-2], max(t["labels"] for _, t in mine)
    scratch = defaultdict(dict)
    for t in tuned:
        if t["scratch"] and t["labels"] > labels and t["steps"] == steps:
            scratch[t["model"], t["labels"]][t["seed"]] = t["top1"]
    pretrained = defaultdict(dict)
    for row, t in mine:
        if row["images"] == few and (t["labels"], t["steps"]) == (labels, steps):
            pretrained[row["model"]].setdefault(row["seed"], t["top1"])
    params = {row["model"]: row["params"] for row in rows}
    both = [cell for cell in scratch if cell[0] in pretrained]
    if not both:
        return Finding(f"No size is trained from scratch on more than the {labels:,} labels of fine-tuning", open=True)
    model, much = max(both, key=lambda cell: (params[cell[0]], cell[1]))
    seeds = sorted(pretrained[model].keys() & scratch[model, much].keys())
    if not seeds:
        return Finding("No seed has both the pretrained and the supervised network", open=True)
    differences = np.array([pretrained[model][s] - scratch[model, much][s] for s in seeds])
    effect, low, high = paired_interval(differences)
    side = "above" if effect >= 0 else "below"
    sentence = (
        f"Pretrained on {few:,} images without labels and fine-tuned on {labels:,} labels, "
        f"{model.removeprefix('swinv2_')} scores {100 * abs(effect):.1f} points of top-1 {side} the same network "
        f"trained from scratch on {much:,} labels for as many steps ({steps:,})"
    )
    if low is not None:
        sentence += f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f} ({len(seeds)} seeds; margin -1.0)"
    else:
        sentence += "; one seed gives no interval"
    return Finding(sentence, effect, low, high, len(seeds))
