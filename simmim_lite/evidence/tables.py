"""All the evidence a study has as DataFrames, with a column `source`: published, shipped, imported ones, the reader's.

No torch here.
"""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..training.run import Run
from . import imported, published
from .claims import claims as claims_of
from .records import SCORES, beside, broken, finetunings, groups, is_design, load, shipped, shipped_names, table
from .rules import FAILS, HOLDS, MIN_RANKED, OPEN, RULES, UNTESTED, Claim, judge, listed
from .stats import Interval, spearman, t_interval

#: The shipped sets by the names that readers see.
SHIPPED = {"laptop-scenes": "shipped, scenes", "laptop-cifar10": "shipped, CIFAR-10"}
NAMES = {"published": "published runs", "yours": "your runs"}
_VERBS = {HOLDS: "holds on", FAILS: "does not hold on", OPEN: "cannot be said on", UNTESTED: "is not tested on"}
_NOTHING = "There are no finished runs to compare."
#: Scores of the tasks: the task, and what they are called. All lie in 0 to 1.
MEASURES = {
    "top1": ("finetune", "classification, top-1"),
    "box_ap": ("detect", "detection, box AP"),
    "mask_ap": ("detect", "instance segmentation, mask AP"),
    "miou": ("segment", "semantic segmentation, mIoU"),
}
#: Scores of frozen features; they count from the same network at random initialisation.
FROZEN = {"linear": "linear probe", "attentive": "attentive probe", "knn": "kNN", "segment": "segmentation probe"}
_START = ["model", "data", "annotations", "steps", "seed", "image_size"]


def runs(
    records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None, score: str | None = None
) -> pd.DataFrame:
    """Trained runs of every source, in the columns of `records.table`, and source, regime, score and score_name.

    records: the reader's own; of several recipes the one with most runs is taken. data: which shipped set is shown.
    runs_dir: where runs were imported to. score: of `records.SCORES`, by default the first that a source has: points of
    lift, or per cent where there is none. regime: clean, overfit or not known.
    """
    return frame(rows(records, data=data, runs_dir=runs_dir), score)


def frame(sources: Mapping[str, list[dict]], score: str | None = None) -> pd.DataFrame:
    """Rows of `records.table` by source as the DataFrame of `runs`."""
    found = pd.DataFrame([{"source": name, **row} for name, some in sources.items() for row in some])
    if not len(found):
        return found
    found["on_axis"] = found["on_axis"].eq(False).eq(False) if "on_axis" in found else True
    found["regime"] = found["overfit"].map({True: "overfit", False: "clean"}).fillna("not known")
    order = [score] if score else list(SCORES)
    found["score"], found["score_name"] = float("nan"), None
    for name, part in found.groupby("source"):
        column = next((c for c in (*(f"{one}_lift" for one in order), *order) if part[c].notna().any()), None)
        if column:
            what, here, lift = SCORES[column.removesuffix("_lift")], found["source"] == name, column.endswith("_lift")
            found.loc[here, "score"] = 100 * part[column].astype(float)
            found.loc[here, "score_name"] = f"lift of the {what} (points)" if lift else f"{what} (%)"
    return found


def by_score(records: Iterable[dict], **options: object) -> dict[str, pd.DataFrame]:
    """`runs` with each transfer score in turn, by the score's name; scores that no run has are left out."""
    found = {name: runs(records, score=score, **options) for score, name in SCORES.items()}
    return {name: some for name, some in found.items() if len(some) and some["score"].notna().any()}


def longest(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every source, the runs at the longest length that most of its cells (size x images) were run at."""
    chosen = []
    for _, part in runs[runs["val_loss"].notna()].groupby("source", sort=False):
        cells = part.drop_duplicates(["model", "images", "steps"])["steps"]
        chosen.append(part[part["steps"] == cells.mode().max()])
    return pd.concat(chosen) if chosen else runs


def main_source(runs: pd.DataFrame) -> str:
    """Whose runs a comparison is made on: the reader's where there are any, else the shipped, else the first."""
    there = list(runs["source"].drop_duplicates())
    return next((name for name in ("yours", "shipped") if name in there), there[0] if there else "yours")


def rows(records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None) -> dict[str, list]:
    """Rows of `records.table` by source, as `runs` takes them."""
    found = {"published": published.rows()}
    if some := beside(data):
        found["shipped"] = main_rows(some)
    return found | _imported(runs_dir) | {"yours": main_rows(list(records))}


def claims(own: Iterable[dict] = (), *, runs_dir: str | Path | None = None) -> dict[str, list[Claim]]:
    """C1 to C9 by source, of the recipe with most runs of each: published, every shipped set, imported ones, yours."""
    found = {"published": published.claims()}
    for name in shipped_names():
        called = SHIPPED.get(name, name) + (" (design data)" if is_design(name) else "")
        found[called] = claims_of(shipped(name))
    found |= {name: imported.claims(some) for name, some in _imported(runs_dir).items()}
    found["yours"] = claims_of(list(own))
    # of several recipes the one with most runs
    return {name: [c for c in some if c.recipe == some[0].recipe] for name, some in found.items() if some}


def main_rows(records: list[dict]) -> list[dict]:
    """The trained rows of the recipe with most runs."""
    return next(iter(groups(table(records)).values()), [])


def of_folder(runs_dir: str | Path) -> tuple[list[dict], str]:
    """The runs that a law is fitted to, and their name: the reader's own, else the largest imported set; `UserError`
    for a folder with neither."""
    if found := main_rows(load(runs_dir)):
        return found, f"your runs in {runs_dir}"
    if sets := imported.load(runs_dir):
        name = max(sets, key=lambda name: len(sets[name]))
        more = f" (the largest of {', '.join(sets)})" if len(sets) > 1 else ""
        return sets[name], f"the imported runs {name} in {runs_dir}{more}"
    makers = "simmim-lite study all makes some, and records import FILE.csv takes others' in"
    raise UserError(f"{runs_dir}: no finished runs there; {makers}")


def supervised(records: Iterable[dict]) -> pd.DataFrame:
    """What C8 compares: top-1 (%) of the size that was trained from scratch on several numbers of labels, with a 95 %
    interval over seeds; columns name, value, low, high, pretrained first."""
    found = pd.DataFrame(finetunings(records := list(records)))
    if not len(found):
        return found
    images = {row["key"]: (row["images"], row["steps"]) for row in table(records)}
    scratch = found[found["scratch"]].groupby("model")[["labels", "steps"]].nunique().sum(axis=1)
    found = found[found["model"] == scratch.idxmax()] if len(scratch) else found
    start, lines = found["run"].map(lambda key: images.get(key, (0, 0))), []
    for ((unlabelled, before), labels, steps), some in found.groupby([start, "labels", "steps"]):
        first = f"{unlabelled:,} unlabelled images for {before:,} steps, then " if unlabelled else "from scratch: "
        lines.append((f"{first}{labels:,} labels for {steps:,}", *t_interval(100 * some["top1"])))
    return pd.DataFrame(lines[::-1], columns=["name", "value", "low", "high"])


def verdicts(claims: dict[str, list[Claim]], *ids: str) -> str:
    """Claims as a table in Markdown, a row a claim and source: the verdict, and the sentence with its numbers."""
    lines = ["| | claim | on | verdict | what the runs say |", "|---|---|---|---|---|"]
    for id_ in ids or dict.fromkeys(claim.id for found in claims.values() for claim in found):
        last = None
        for source, claim in [(source, c) for source, found in claims.items() for c in found if c.id == id_]:
            named = (f"**{id_}**", claim.statement) if last is None else ("", "")
            cells = *named, NAMES.get(source, source), f"**{claim.verdict}**", escape(claim.evidence, quote=False)
            lines.append(f"| {' | '.join(cells)} |")
            last = claim
    return "\n".join(lines) if len(lines) > 2 else _NOTHING


def agreement(claims: dict[str, list[Claim]], *ids: str) -> str:
    """Where the sources agree on claims and where they do not, in Markdown: a line a claim."""
    lines = []
    for id_ in ids:
        said = {NAMES.get(source, source): c for source, found in claims.items() for c in found if c.id == id_}
        if not said:
            continue
        by = {word: [source for source, c in said.items() if c.verdict == word] for word in _VERBS}
        statement = next(iter(said.values())).statement
        parts = "; ".join(f"{verb} {listed(by[word])}" for word, verb in _VERBS.items() if by[word])
        differ = " **They disagree.**" if by[HOLDS] and by[FAILS] else ""
        effects = [
            f"{source} {c.effect:+.3g}{f' [{c.low:+.3g}, {c.high:+.3g}]' if c.low is not None else ', no interval'}"
            for source, c in said.items() if c.verdict == OPEN and c.effect is not None
        ]  # fmt: skip
        if not differ and effects and "published runs" in by[HOLDS]:
            differ = f" The effect there: {'; '.join(effects)}."
        lines.append(f"- **{id_}, {escape(statement[0].lower() + statement[1:])}**: {parts}.{differ}")
    return "\n".join(lines) or _NOTHING


def _imported(runs_dir: str | Path | None) -> dict[str, list[dict]]:
    return {f"imported, {name}": some for name, some in imported.load(runs_dir).items()} if runs_dir else {}


def trainings(records: list[dict]) -> pd.DataFrame:
    """One row a finished training of a transfer task and score (0 to 1); a `measure` is a key of `MEASURES`.

    annotations: images with labels, boxes or masks; run: key of the pretraining run, from whose record images (without
    labels), val_loss, train_loss and params are joined. gain: points above the same network from scratch with the same
    annotations, steps and seed (the strongest of several), else missing.
    """
    rows = []
    for record in records:
        tasks = {measure: name for measure, (kind, name) in MEASURES.items() if kind == record.get("kind")}
        if not tasks or record.get("status") != "done":
            continue
        try:
            spec, run = record["spec"], record["run"]
            row = {name: spec[name] for name in ("model", "data", "steps", "seed", "image_size")}
            asked = spec["labels" if "top1" in tasks else "images"]
            row |= {"annotations": record["cost"]["unique_images"] if asked is None else asked, "key": record["key"]}
            row |= {"scratch": run is None and not spec.get("weights"), "run": run and Run.from_dict(run).key}
            found = {"top1": {"score": record["final"]["top1"]}} if "top1" in tasks else record["transfer"]
            scores = {measure: float(found[measure]["score"]) for measure in tasks if measure in found}
            rows += [{"measure": m, "name": tasks[m], "score": score, **row} for m, score in scores.items()]
        except (KeyError, TypeError, ValueError) as error:
            raise broken(record, error) from error
    frame = pd.DataFrame(rows, columns=["measure", "name", "score", "scratch", "run", "key", *_START])
    own = pd.DataFrame(table(records), columns=["key", "images", "val_loss", "train_loss", "params"])
    frame = frame.merge(own.rename(columns={"key": "run"}), on="run", how="left")
    base = frame[frame["scratch"].eq(True)].groupby(["measure", *_START])["score"].max()
    frame = frame.join(base.rename("base"), on=["measure", *_START])
    frame["gain"] = 100 * (frame["score"] - frame["base"]).where(frame["scratch"].eq(False))
    return frame.sort_values(["measure", "key"], ignore_index=True)


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
    order = list(MEASURES)
    frame = frame.sort_values(["params", "images"])
    return frame.sort_values("measure", key=lambda some: some.map(order.index), kind="stable")


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of every score, size and number of unlabelled images, in points, with its 95 % interval over seeds
    (missing for one seed); pretrained and scratch are per cent."""
    lines = {}
    for cell, some in gains(frame).groupby(["name", "model", "images"], sort=False):
        gain, low, high = t_interval(some["gain"])
        score = 100 * some["score"].mean()
        lines[cell] = [score, score - gain, gain, low, high, len(some)]
    columns = ["pretrained", "scratch", "gain", "low", "high", "seeds"]
    index = pd.MultiIndex.from_tuples(lines, names=["score", "size", "unlabelled images"])
    return pd.DataFrame(lines.values(), index=index, columns=columns)


def rankings(records: list[dict]) -> pd.DataFrame:
    """C5a for every score: how both losses of pretraining rank its gains, a row each. value: Spearman's correlation
    within a seed, mean over seeds, with its 95 % interval; the verdict is validation loss's."""
    own = {row["key"]: row for row in table(records)}
    frames = []
    attentive = {
        Run.from_dict(record["run"]).key: record["transfer"]["attentive"]["score"]
        for record in records
        if record.get("kind") == "probe" and record.get("status") == "done" and "attentive" in record["transfer"]
    }
    network = {key: tuple(own[key][k] for k in ("model", "seed", "data")) for key in attentive if key in own}
    base = {network[key]: attentive[key] for key in network if own[key]["reference"]}
    lifts = {key: attentive[key] - base[network[key]] for key in network if network[key] in base}
    trained = pd.DataFrame([row | {"attentive_lift": lifts.get(row["key"])} for row in own.values()])
    for measure, name in FROZEN.items() if len(trained) else ():
        some = trained[~trained["reference"]]
        frames.append((name, some.assign(gain=some[f"{measure}_lift"])))
    for _, some in main_budget(trainings(records)).groupby("measure", sort=False):
        frames.append((some["name"].iloc[0], some))
    found = []
    for name, frame in frames:
        frame = frame.dropna(subset=["gain", "val_loss", "train_loss"])
        seeds = [some for _, some in frame.groupby("seed") if len(some) >= 3]
        verdict = UNTESTED
        for loss, words in (("val_loss", "validation loss"), ("train_loss", "training loss")) if seeds else ():
            values = [spearman(some[loss], some["gain"]) for some in seeds]
            known = pd.Series(values).notna().all()
            interval = t_interval(values) if known else Interval(None, None, None)
            if loss == "val_loss" and known and min(map(len, seeds)) >= MIN_RANKED:
                verdict = judge(RULES["C5a"], values, interval)
            found.append([name, words, *interval, sum(map(len, seeds)), len(seeds), verdict])
    columns = ["score", "loss", "value", "low", "high", "runs", "seeds", "verdict"]
    return pd.DataFrame(found, columns=columns).astype(dict.fromkeys(("value", "low", "high"), float))


def few_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Classification with ever fewer labels: `trainings` of the size with most numbers of labels, at the usual steps;
    start: from scratch, or on how many unlabelled images it was pretrained."""
    frame = frame[(frame["measure"] == "top1") & (frame["scratch"].eq(True) | frame["images"].notna())]
    if not len(frame):
        return frame.assign(start=None, **{"top-1 (%)": None})
    numbers = frame.groupby("model")["annotations"].nunique()
    frame = frame[(frame["model"] == numbers[numbers == numbers.max()].index.max())]
    frame = frame[frame["steps"] == frame["steps"].mode().max()].sort_values("images", na_position="first")
    start = ["scratch" if pd.isna(n) else f"pretrained, {n:,.0f}" for n in frame["images"]]
    return frame.assign(start=start, labels=frame["annotations"], **{"top-1 (%)": 100 * frame["score"]})
