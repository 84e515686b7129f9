"""The evidence a study has, as DataFrames by source: published, shipped, imported runs, the reader's. No torch here."""

import itertools
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from . import published
from . import records as evidence
from .claims import claims as claims_on
from .claims import claims_of
from .rules import MIN_RANKED, RULES, UNTESTED, Claim, judge
from .stats import spearman, t_interval

#: The shipped sets by the names that readers see.
SHIPPED = {
    "laptop-scenes": "shipped scenes",
    "laptop-cifar10": "shipped CIFAR-10",
    "laptop-photos64": "shipped photographs of 64 px",
}
NAMES = {"published": "published runs", "yours": "your runs"}
_START = ["model", "data", "annotations", "steps", "seed", "image_size"]


def runs(
    records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None, score: str | None = None
) -> pd.DataFrame:
    """Trained runs of every source, in the columns of `records.run_rows`, and source, regime (clean, overfit or not
    known), score and score_name: the score asked for (of `records.SCORES`), else the first that a source has, as points
    of lift, or per cent where there is none. records: the reader's own; data: which shipped set; runs_dir: of imported
    runs."""
    return frame(rows(records, data=data, runs_dir=runs_dir), score)


def frame(sources: Mapping[str, list[dict]], score: str | None = None) -> pd.DataFrame:
    """Rows of `records.run_rows` by source as the DataFrame of `runs`."""
    found = pd.DataFrame([{"source": name, **row} for name, some in sources.items() for row in some])
    if not len(found):
        return found
    found["on_axis"] = found["on_axis"].eq(False).eq(False) if "on_axis" in found else True
    found["regime"] = found["overfit"].map({True: "overfit", False: "clean"}).fillna("not known")
    order = {score: evidence.SCORES[score]} if score else evidence.SCORES
    titles = {f"{name}_lift": f"lift of the {text} (points)" for name, text in order.items()}
    titles |= {name: f"{text} (%)" for name, text in order.items()}
    found["score"], found["score_name"] = float("nan"), None
    for _, part in found.groupby("source"):
        if column := next((column for column in titles if part[column].notna().any()), None):
            found.loc[part.index, "score"] = 100 * part[column].astype(float)
            found.loc[part.index, "score_name"] = titles[column]
    return found


def by_score(records: Iterable[dict], **options: object) -> dict[str, pd.DataFrame]:
    """`runs` with each transfer score in turn, by the score's name; scores that no run has are left out."""
    sources = rows(records, **options)
    found = {name: frame(sources, score) for score, name in evidence.SCORES.items()}
    return {name: some for name, some in found.items() if len(some) and some["score"].notna().any()}


def longest(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every source, the runs at the longest length that most of its cells (size x images) were run at."""
    known = runs[runs["val_loss"].notna()]
    cells = known.drop_duplicates(["source", "model", "images", "steps"])
    lengths = cells.groupby("source")["steps"].agg(lambda steps: steps.mode().max())
    return known[known["steps"] == known["source"].map(lengths)]


def main_source(runs: pd.DataFrame, axes=None) -> str:
    """Whose runs a comparison is made on: the reader's where there are any, else the shipped, else the first; of those
    who have runs in every cell (size x images) of `studies.axes`, if given, where anybody has."""
    there = list(runs["source"].drop_duplicates())
    cells = set(itertools.product(axes.models, axes.images)) if axes else set()
    held = {name: set(zip(part["model"], part["images"], strict=True)) for name, part in runs.groupby("source")}
    there = [name for name in there if cells <= held[name]] or there
    return next((name for name in ("yours", "shipped") if name in there), there[0] if there else "yours")


def rows(records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None) -> dict[str, list]:
    """Rows of `records.run_rows` by source, as `runs` takes them."""
    ours = {"shipped": main_rows(some)} if (some := evidence.beside(data)) else {}
    return {"published": published.rows()} | ours | _imported(runs_dir) | {"yours": main_rows(list(records))}


def claims(own: Iterable[dict] = (), *, runs_dir: str | Path | None = None) -> dict[str, list[Claim]]:
    """C1 to C9 by source, of the recipe with most runs of each: published, every shipped set, imported ones, yours."""
    found = {"published": claims_of(published.rows())}
    for name in evidence.shipped_names():
        records = evidence.shipped(name)
        design = any(record["run"] and record["run"]["seed"] in evidence.DESIGN_SEEDS for record in records)
        found[SHIPPED.get(name, name) + " (design data)" * design] = claims_on(records)
    found |= {name: claims_of(some) for name, some in _imported(runs_dir).items()} | {"yours": claims_on(list(own))}
    return {name: [c for c in some if c.recipe == some[0].recipe] for name, some in found.items() if some}


def main_rows(records: list[dict]) -> list[dict]:
    """The trained rows of the recipe with most runs."""
    return next(iter(evidence.groups(evidence.run_rows(records)).values()), [])


def of_folder(runs_dir: str | Path) -> tuple[list[dict], str]:
    """The runs that a law is fitted to, and their name: the reader's own, else the largest imported set; `UserError`
    for a folder with neither."""
    if found := main_rows(evidence.load(runs_dir)):
        return found, f"your runs in {runs_dir}"
    if sets := published.imported(runs_dir):
        name = max(sets, key=lambda name: len(sets[name]))
        more = f" (the largest of {', '.join(sets)})" if len(sets) > 1 else ""
        return sets[name], f"the imported runs {name} in {runs_dir}{more}"
    makers = "simmim-lite study all makes some, and records import FILE.csv takes others' in"
    raise UserError(f"{runs_dir}: no finished runs there; {makers}")


def _imported(runs_dir: str | Path | None) -> dict[str, list[dict]]:
    return {f"imported, {name}": some for name, some in published.imported(runs_dir).items()} if runs_dir else {}


def verdicts(claims: dict[str, list[Claim]], *ids: str) -> str:
    """Claims as a table in Markdown, a row a claim and source: the verdict, and the sentence with its numbers."""
    lines = ["| | claim | on | verdict | what the runs say |", "|:--|:--|:--|:--|:--|"]
    for id_ in ids or dict.fromkeys(claim.id for found in claims.values() for claim in found):
        said = [(NAMES.get(source, source), c) for source, found in claims.items() for c in found if c.id == id_]
        for k, (source, claim) in enumerate(said):
            named = " | " if k else f"**{id_}** | {claim.statement}"
            lines.append(f"| {named} | {source} | **{claim.verdict}** | {escape(claim.evidence, quote=False)} |")
    return "\n".join(lines) if len(lines) > 2 else "There are no finished runs to compare."


def agreement(claims: dict[str, list[Claim]], *ids: str) -> pd.DataFrame:
    """Where the sources agree on claims and where they do not: a row a claim, a column a source, in it the verdict."""
    found = {NAMES.get(source, source): {c.id: c.verdict for c in some} for source, some in claims.items()}
    return pd.DataFrame(found).reindex(list(ids)).fillna("").rename_axis("claim")


def trainings(records: list[dict]) -> pd.DataFrame:
    """`records.transfer_rows`, with the name of the score, and images (without labels), val_loss, train_loss and params
    of the pretraining run. gain: points above the same network from scratch with the same annotations, steps and seed
    (the strongest of several), else missing."""
    columns = ["measure", "name", "score", "scratch", "run", "key", *_START]
    named = [row | {"name": evidence.MEASURES[row["measure"]][1]} for row in evidence.transfer_rows(records)]
    own = pd.DataFrame(evidence.run_rows(records), columns=["key", "images", "val_loss", "train_loss", "params"])
    frame = pd.DataFrame(named, columns=columns).merge(own.rename(columns={"key": "run"}), on="run", how="left")
    base = frame[frame["scratch"].eq(True)].groupby(["measure", *_START])["score"].max()
    frame = frame.join(base.rename("base"), on=["measure", *_START])
    frame["gain"] = 100 * (frame["score"] - frame["base"]).where(frame["scratch"].eq(False))
    return frame.sort_values(["measure", "key"], ignore_index=True)


def supervised(records: list[dict]) -> pd.DataFrame:
    """What C8 compares: top-1 (%) of the size that was trained from scratch on several numbers of labels, with a 95 %
    interval over seeds; columns name, value, low, high, pretrained first."""
    steps = {row["key"]: row["steps"] for row in evidence.run_rows(records)}
    found = trainings(records)
    found = found[(found["measure"] == "top1") & (found["scratch"].eq(True) | found["images"].notna())]
    scratch = found[found["scratch"].eq(True)].groupby("model")[["annotations", "steps"]].nunique().sum(axis=1)
    found = found[found["model"] == scratch.idxmax()] if len(scratch) else found
    found, lines = found.assign(before=found["run"].map(steps).fillna(0), images=found["images"].fillna(0)), []
    for (images, before, labels, steps), some in found.groupby(["images", "before", "annotations", "steps"]):
        first = f"{images:,.0f} unlabelled images for {before:,.0f} steps, then " if images else "from scratch: "
        lines.append((f"{first}{labels:,} labels for {steps:,}", *t_interval(100 * some["score"])))
    return pd.DataFrame(lines[::-1], columns=["name", "value", "low", "high"])


def main_budget(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every score, the rows with the annotations and steps that most of its pretrained rows have."""
    budget = ["measure", "annotations", "steps"]
    counts = frame[frame["scratch"].eq(False)].groupby(budget).size().rename("rows").reset_index()
    most = counts.sort_values(["rows", *budget]).drop_duplicates("measure", keep="last")
    return frame.merge(most[budget])


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What a pretrained start gains over a random one, in points: the pretrained rows of the main budget, by name."""
    frame = main_budget(frame)
    frame = frame[frame["gain"].notna() & frame["images"].notna()].astype({"images": int, "params": int})
    order = {measure: k for k, measure in enumerate(evidence.MEASURES)}
    return frame.sort_values(["measure", "params", "images"], key=lambda c: c.map(order) if c.name == "measure" else c)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of every score, size and number of unlabelled images, in points, with its 95 % interval over seeds
    (missing for one seed); pretrained and scratch are per cent."""
    cells = gains(frame).groupby(["name", "model", "images"], sort=False)
    found = cells[["score", "gain"]].mean().rename(columns={"score": "pretrained"})
    found["pretrained"] *= 100
    found.insert(1, "scratch", found["pretrained"] - found["gain"])
    found["low"], found["high"] = ([t_interval(gain)[end] for _, gain in cells["gain"]] for end in (1, 2))
    return found.assign(seeds=cells.size()).rename_axis(["score", "size", "unlabelled images"])


def rankings(records: list[dict]) -> pd.DataFrame:
    """C5a for every score: how both losses of pretraining rank its gains, a row each. value: Spearman's correlation
    within a seed, mean over seeds, with its 95 % interval, cut at -1 and 1; a verdict on validation loss alone."""
    rows = pd.DataFrame(evidence.trained(evidence.run_rows(records)))
    probes = evidence.PROBES if len(rows) else {}  # they count from the same network at random initialisation
    frames = [(name, rows.assign(gain=rows[f"{score}_lift"])) for score, name in probes.items()]
    tuned, found = main_budget(trainings(records)), []
    frames += [(some["name"].iloc[0], some) for _, some in tuned.groupby("measure", sort=False)]
    for name, frame in frames:
        frame = frame.dropna(subset=["gain", "val_loss", "train_loss"])
        seeds = [some for _, some in frame.groupby("seed") if len(some) >= 3]
        for loss, words in (("val_loss", "validation loss"), ("train_loss", "training loss")) if seeds else ():
            values = [spearman(some[loss], some["gain"]) for some in seeds]
            interval, verdict = t_interval(values), ""
            if loss == "val_loss":
                enough = np.isfinite(values).all() and min(map(len, seeds)) >= MIN_RANKED
                verdict = judge(RULES["C5a"], values, interval) if enough else UNTESTED
            shown = np.clip(np.array(interval, float), -1, 1)  # None becomes NaN
            found.append([name, words, *shown, sum(map(len, seeds)), len(seeds), verdict])
    columns = ["score", "loss", "value", "low", "high", "runs", "seeds", "verdict"]
    return pd.DataFrame(found, columns=columns).astype(dict.fromkeys(("value", "low", "high"), float))
