"""Transfer tasks as a table: each score beside the same network from scratch, joined to the losses of pretraining.

No torch here. C5a is asked of every task: does validation loss rank the gains? Training loss stands beside it.
"""

import pandas as pd

from ..errors import UserError
from ..training.run import Run
from .findings import judge
from .records import table as runs_table
from .rules import MIN_RANKED, RULES, UNTESTED
from .stats import Interval, spearman, t_interval

#: Scores of the tasks: the task, and what they are called. All lie in 0 to 1.
MEASURES = {
    "top1": ("classify", "classification, top-1"),
    "box_ap": ("detect", "detection, box AP"),
    "mask_ap": ("detect", "instance segmentation, mask AP"),
    "miou": ("segment", "semantic segmentation, mIoU"),
}
#: Scores of frozen features; they count from the same network at random initialisation.
FROZEN = {"linear": "linear probe", "attentive": "attentive probe", "knn": "kNN", "segment": "segmentation probe"}
_KINDS = {"finetune": "classify", "detect": "detect", "segment": "segment"}
_START = ["model", "data", "annotations", "steps", "seed", "image_size"]
_NAMES = {name: label for name, (_, label) in MEASURES.items()} | FROZEN


def table(records: list[dict]) -> pd.DataFrame:
    """One row a finished training of a task and score; no rows, and the columns, where there are none.

    measure (a key of `MEASURES`), name, score (0 to 1), model, data, annotations (images with labels, boxes or masks),
    steps, seed, image_size, scratch, run (key of the pretraining run, or None), key, and, joined from the pretraining
    record where it is there: images (unique, without labels), val_loss, train_loss, params. `gain`: points above the
    same network from scratch with the same annotations, steps and seed (the strongest of several), else missing.
    """
    rows = []
    for record in records:
        if record.get("kind") in _KINDS and record.get("status") == "done":
            try:
                rows += _rows(record)
            except (KeyError, TypeError, ValueError) as error:
                said = f"record {record.get('key')}: not a whole transfer ({error}); delete the file and run again"
                raise UserError(said) from error
    frame = pd.DataFrame(rows, columns=["measure", "name", "score", "scratch", "run", "key", *_START])
    own = pd.DataFrame(runs_table(records), columns=["key", "images", "val_loss", "train_loss", "params"])
    frame = frame.merge(own.rename(columns={"key": "run"}), on="run", how="left")
    base = frame[frame["scratch"].eq(True)].groupby(["measure", *_START])["score"].max()
    frame = frame.join(base.rename("base"), on=["measure", *_START])
    frame["gain"] = 100 * (frame["score"] - frame["base"]).where(frame["scratch"].eq(False))
    return frame.sort_values(["measure", "key"], ignore_index=True)


def _rows(record: dict) -> list[dict]:
    spec, run, task = record["spec"], record["run"], _KINDS[record["kind"]]
    shared = {name: spec[name] for name in ("model", "data", "steps", "seed", "image_size")}
    asked = spec["labels"] if task == "classify" else spec["images"]
    shared |= {"annotations": record["cost"]["unique_images"] if asked is None else asked, "key": record["key"]}
    shared |= {"scratch": run is None and not spec.get("weights"), "run": run and Run.from_dict(run).key}
    found = {"top1": {"score": record["final"]["top1"]}} if task == "classify" else record["transfer"]
    return [
        {"measure": measure, "name": name, "score": float(found[measure]["score"]), **shared}
        for measure, (of, name) in MEASURES.items()
        if of == task and measure in found
    ]


def main_budget(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every score, the rows with the annotations and steps that most of its pretrained rows have."""
    chosen = []
    for _, some in frame.groupby("measure"):
        counts = some[some["scratch"].eq(False)].groupby(["annotations", "steps"]).size()
        if len(counts):
            annotations, steps = counts[counts == counts.max()].index.max()
            chosen.append(some[(some["annotations"] == annotations) & (some["steps"] == steps)])
    return pd.concat(chosen) if chosen else frame[:0]


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What a pretrained start gains over a random one, in points: the pretrained rows of the main budget, by name."""
    frame = main_budget(frame)
    frame = frame[frame["gain"].notna() & frame["images"].notna()].astype({"images": int, "params": int})
    order = [_NAMES[measure] for measure in MEASURES]
    return frame.sort_values(["params", "images"]).sort_values("name", key=lambda n: n.map(order.index), kind="stable")


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of every score, size and number of unlabelled images, in points, with its 95 % interval over seeds.

    Indexed by these; columns pretrained, scratch (per cent), gain, low, high (missing for one seed), seeds.
    """
    lines = {}
    for cell, some in gains(frame).groupby(["name", "model", "images"], sort=False):
        gain, low, high = t_interval(some["gain"])
        score = 100 * some["score"].mean()
        lines[cell] = [score, score - gain, gain, low, high, len(some)]
    columns = ["pretrained", "scratch", "gain", "low", "high", "seeds"]
    found = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    if len(found):
        found.index = pd.MultiIndex.from_tuples(found.index, names=["score", "size", "unlabelled images"])
    return found


def rankings(records: list[dict]) -> pd.DataFrame:
    """C5a for every score: how both losses of pretraining rank its gains, within a seed.

    Two rows a score, of validation and of training loss: score, loss, value (Spearman's correlation, mean over seeds),
    low, high (95 %), runs, seeds, verdict.
    """
    frozen = pd.DataFrame(row for row in [*runs_table(records), *_attentive(records)] if not row["reference"])
    found = []
    for measure, name in FROZEN.items():
        if f"{measure}_lift" in frozen:
            found += _ranking(name, frozen.assign(gain=frozen[f"{measure}_lift"]))
    for measure, some in main_budget(table(records)).groupby("measure", sort=False):
        found += _ranking(_NAMES[measure], some)
    columns = ["score", "loss", "value", "low", "high", "runs", "seeds", "verdict"]
    return pd.DataFrame(found, columns=columns).astype(dict.fromkeys(("value", "low", "high"), float))


def _ranking(name: str, frame: pd.DataFrame) -> list[list]:
    frame = frame.dropna(subset=["gain", "val_loss", "train_loss"])
    by_seed = [some for _, some in frame.groupby("seed") if len(some) >= 3]
    if not by_seed:
        return []
    verdict, lines = UNTESTED, []
    for loss in ("val_loss", "train_loss"):
        values = [spearman(some[loss], some["gain"]) for some in by_seed]
        known = pd.Series(values).notna().all()
        interval = t_interval(values) if known else Interval(None, None, None)
        if loss == "val_loss" and known and min(map(len, by_seed)) >= MIN_RANKED:
            verdict = judge(RULES["C5a"], values, interval)
        words = "validation loss" if loss == "val_loss" else "training loss"
        lines.append([name, words, *interval, sum(map(len, by_seed)), len(by_seed), verdict])
    return lines


def _attentive(records: list[dict]) -> list[dict]:
    """Rows of runs with an attentive probe (records of kind `probe`), counted from the untrained network."""
    own = {row["key"]: row for row in runs_table(records)}
    scores = {
        Run.from_dict(record["run"]).key: record["transfer"]["attentive"]["score"]
        for record in records
        if record.get("kind") == "probe" and record.get("status") == "done" and "attentive" in record["transfer"]
    }
    network = {key: (row["model"], row["seed"], row["data"]) for key, row in own.items() if key in scores}
    base = {network[key]: scores[key] for key in network if own[key]["reference"]}
    only = ("model", "seed", "val_loss", "train_loss", "reference")
    return [
        {name: own[key][name] for name in only} | {"attentive_lift": scores[key] - base[network[key]]}
        for key in network
        if network[key] in base
    ]


def few_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Classification with ever fewer labels: rows of the size with most numbers of labels, at the usual steps.

    start: from scratch, or on how many unlabelled images it was pretrained; `top-1 (%)`; columns of `table`.
    """
    frame = frame[(frame["measure"] == "top1") & (frame["scratch"].eq(True) | frame["images"].notna())]
    if not len(frame):
        return frame.assign(start=None, **{"top-1 (%)": None})
    numbers = frame.groupby("model")["annotations"].nunique()
    frame = frame[(frame["model"] == numbers[numbers == numbers.max()].index.max())]
    frame = frame[frame["steps"] == frame["steps"].mode().max()].sort_values("images", na_position="first")
    start = ["scratch" if pd.isna(n) else f"pretrained, {n:,.0f}" for n in frame["images"]]
    return frame.assign(start=start, labels=frame["annotations"], **{"top-1 (%)": 100 * frame["score"]})
