"""Transfer tasks as rows: each score beside the same network from scratch, joined to the losses of pretraining.

No torch here. C5a is asked of every task: does validation loss rank the lifts? Training loss stands beside it.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..training.run import Run
from .findings import judge
from .records import PROBES, table, trained
from .rules import MIN_RANKED, RULES, UNTESTED
from .stats import Interval, spearman, t_interval

#: Scores of the tasks: the task, the score's name, and the metric. All lie in 0 to 1.
MEASURES = {
    "top1": ("classify", "classification", "top-1"),
    "box_ap": ("detect", "detection", "box AP"),
    "mask_ap": ("detect", "instance segmentation", "mask AP"),
    "miou": ("segment", "semantic segmentation", "mIoU"),
}
#: Scores of frozen features, whose lift is over the same network at random initialisation.
FROZEN = {"linear": "linear probe", "attentive": "attentive probe", "knn": "kNN", "segment": "segmentation probe"}
_KINDS = {"finetune": "classify", "detect": "detect", "segment": "segment"}


def transfers(records: list[dict]) -> list[dict]:
    """One flat row a finished training of a task and score, sorted by key.

    measure (of `MEASURES`), task, score, low, high (95 %, or None), model, data, annotations (images with labels, boxes
    or masks), steps, seed, image_size, scratch, run (key of the pretraining run, or None), and, joined from the
    pretraining record where it is there: images (unique, without labels), val_loss, train_loss, params. `lift` is the
    score minus that of the same network from scratch, with the same annotations, steps and seed; None without one.
    """
    rows = []
    for record in records:
        if record.get("kind") not in _KINDS or record.get("status") != "done":
            continue
        try:
            rows += _rows(record)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"record {record.get('key')}: not a whole transfer ({error}); delete the file and run again"
            ) from error
    own = {row["key"]: row for row in table(records)}
    scratch: dict[tuple, float] = {}
    for row in rows:
        if row["scratch"]:  # of several baselines the strongest counts
            scratch[_cell(row)] = max(row["score"], scratch.get(_cell(row), 0.0))
    for row in rows:
        base = scratch.get(_cell(row))
        row["lift"] = None if row["scratch"] or base is None else row["score"] - base
        of = own.get(row["run"], {})
        row |= {name: of.get(name) for name in ("images", "val_loss", "train_loss", "params", "overfit")}
    return sorted(rows, key=lambda row: (row["measure"], row["key"]))


def _rows(record: dict) -> list[dict]:
    spec, run = record["spec"], record["run"]
    task = _KINDS[record["kind"]]
    shared = {name: spec[name] for name in ("model", "data", "steps", "seed", "image_size")}
    count = spec["labels"] if task == "classify" else spec["images"]
    shared |= {"task": task, "annotations": record["cost"]["unique_images"] if count is None else count}
    shared |= {"scratch": run is None and not spec.get("weights"), "run": run and Run.from_dict(run).key}
    shared |= {"key": record["key"], "core_seconds": record["cost"].get("core_seconds")}
    if task == "classify":
        final = record["final"]
        found = {"top1": {"score": final["top1"], **{k: final.get(k) for k in ("low", "high", "n_test")}}}
    else:
        found = record["transfer"]
    scores = []
    for measure, of in MEASURES.items():
        if of[0] == task and measure in found:
            score = found[measure]
            value = {"score": float(score["score"]), "low": score.get("low"), "high": score.get("high")}
            scores.append({"measure": measure, **value, "n_test": score["n_test"], **shared})
    return scores


def _cell(row: dict) -> tuple:
    return tuple(row[k] for k in ("measure", "model", "data", "annotations", "steps", "seed", "image_size"))


def main_budget(rows: list[dict]) -> list[dict]:
    """Of every task, the rows of the annotations and steps that most of its pretrained rows have."""
    kept = []
    for measure in MEASURES:
        some = [row for row in rows if row["measure"] == measure]
        counts = defaultdict(int)
        for row in some:
            counts[row["annotations"], row["steps"]] += not row["scratch"]
        if counts:
            budget = max(counts, key=lambda b: (counts[b], b))
            kept += [row for row in some if (row["annotations"], row["steps"]) == budget]
    return kept


@dataclass(frozen=True)
class Difference:
    """What a pretrained start gains over a random one, paired by seed: in score, 0 to 1."""

    measure: str
    model: str
    images: int  # unique images of pretraining
    effect: float
    low: float | None
    high: float | None
    seeds: int
    pretrained: float  # mean score
    scratch: float


def differences(rows: list[dict]) -> list[Difference]:
    """The gain of a pretrained start for every task, size and data level of `transfers` rows, with its interval.

    Of several lengths of pretraining, the one that most rows of the cell have counts: pass rows of one length.
    """
    cells = defaultdict(dict)
    for row in main_budget(rows):
        if row["lift"] is not None and row["images"] is not None:
            cells[row["measure"], row["params"], row["model"], row["images"]][row["seed"]] = row
    found = []
    order = list(MEASURES)
    for (measure, _, model, images), by_seed in sorted(cells.items(), key=lambda c: (order.index(c[0][0]), *c[0][1:])):
        lifts = np.array([by_seed[s]["lift"] for s in sorted(by_seed)])
        score = float(np.mean([row["score"] for row in by_seed.values()]))
        effect, low, high = t_interval(lifts)
        found.append(Difference(measure, model, images, effect, low, high, len(lifts), score, score - effect))
    return found


@dataclass(frozen=True)
class Ranking:
    """C5a on one task: how both losses of pretraining rank the lifts of a score, and the verdict."""

    measure: str
    name: str
    val: Interval  # Spearman correlation within a seed, the mean over seeds, with its 95 % interval
    train: Interval
    runs: int
    seeds: int
    verdict: str


def rankings(records: list[dict], rows: list[dict] | None = None) -> list[Ranking]:
    """C5a for every score there is: of the probes of frozen features, then of the tasks (`rows` of `transfers`)."""
    rows = transfers(records) if rows is None else rows
    frozen = trained(table(records)) + _attentive(records)
    found = []
    for measure, name in FROZEN.items():
        some = [{**row, "lift": row.get(f"{measure}_lift")} for row in frozen]
        found.append(_ranking(measure, name, some))
    for measure, (_, name, metric) in MEASURES.items():
        some = [row for row in main_budget(rows) if row["measure"] == measure]
        found.append(_ranking(measure, f"{name}, {metric}", some))
    return [ranking for ranking in found if ranking is not None]


def _ranking(measure: str, name: str, rows: list[dict]) -> Ranking | None:
    rows = [r for r in rows if r.get("lift") is not None and r["val_loss"] is not None and r["train_loss"] is not None]
    by_seed = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row)
    by_seed = {seed: some for seed, some in by_seed.items() if len(some) >= 3}
    if not by_seed:
        return None

    def interval(loss: str) -> tuple[np.ndarray, Interval]:
        values = [spearman([r[loss] for r in some], [r["lift"] for r in some]) for some in by_seed.values()]
        return np.array(values), t_interval(values) if np.isfinite(values).all() else Interval(None, None, None)

    (each, val), (_, train) = (interval(loss) for loss in ("val_loss", "train_loss"))
    few = min(map(len, by_seed.values())) < MIN_RANKED
    verdict = UNTESTED if few or val.value is None else judge(RULES["C5a"], each, val)
    return Ranking(measure, name, val, train, sum(map(len, by_seed.values())), len(each), verdict)


def _attentive(records: list[dict]) -> list[dict]:
    """Rows of runs with an attentive probe (records of kind `probe`), its lift over the untrained network."""
    own = {row["key"]: row for row in table(records)}
    scores = {}
    for record in records:
        if record.get("kind") == "probe" and record.get("status") == "done" and "attentive" in record["transfer"]:
            scores[Run.from_dict(record["run"]).key] = record["transfer"]["attentive"]["score"]
    untrained = {
        (row["model"], row["seed"], row["data"]): scores[key]
        for key, row in own.items()
        if row["reference"] and key in scores
    }
    found = []
    for key, row in own.items():
        base = untrained.get((row["model"], row["seed"], row["data"]))
        if key in scores and not row["reference"] and base is not None:
            found.append({**row, **{f"{p}_lift": None for p in PROBES}, "attentive_lift": scores[key] - base})
    return found


def few_labels(rows: list[dict]) -> list[dict]:
    """Classification with few labels (C8): the mean top-1 of every start and number of labels, with its interval.

    Of the model with most numbers of labels: start (unlabelled images of pretraining, None = scratch), labels, top1,
    low, high (t over seeds, None for one), seeds. Only starts at the steps that most rows have.
    """
    some = [row for row in rows if row["measure"] == "top1" and (row["scratch"] or row["images"] is not None)]
    if not some:
        return []
    counts = defaultdict(set)
    steps = defaultdict(int)
    for row in some:
        counts[row["model"]].add(row["annotations"])
        steps[row["steps"]] += 1
    model = max(counts, key=lambda m: (len(counts[m]), m))
    length = max(steps, key=lambda s: (steps[s], s))
    cells = defaultdict(dict)
    for row in some:
        if row["model"] == model and row["steps"] == length:
            cells[row["images"] if not row["scratch"] else None, row["annotations"]][row["seed"]] = row["score"]
    found = []
    for (start, labels), by_seed in sorted(cells.items(), key=lambda c: (c[0][0] or 0, c[0][1])):
        mean, low, high = t_interval(list(by_seed.values()))
        line = {"model": model, "steps": length, "start": start, "labels": labels, "top1": mean}
        found.append(line | {"low": low, "high": high, "seeds": len(by_seed)})
    return found
