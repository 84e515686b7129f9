"""All the evidence a study has as DataFrames, with a column `source`: published, shipped, imported ones, the reader's.

No torch here.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

import pandas as pd

from ..errors import UserError
from . import imported, published, shipped
from .claims import claims as claims_of
from .records import SCORES, finetunings, groups, load, table
from .rules import FAILS, HOLDS, OPEN, UNTESTED, Claim
from .stats import t_interval

#: The shipped sets by the names that readers see.
SHIPPED = {"laptop-scenes": "shipped, scenes", "laptop-cifar10": "shipped, CIFAR-10"}
NAMES = {"published": "published runs", "yours": "your runs"}
_VERBS = {HOLDS: "holds on", FAILS: "does not hold on", OPEN: "cannot be said on", UNTESTED: "is not tested on"}


def runs(
    records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None, score: str | None = None
) -> pd.DataFrame:
    """Trained runs of every source, in the columns of `records.table`, and source, regime, score and score_name.

    records: the reader's own; of several recipes of a source the one with most runs is taken. data: decides which
    shipped set is shown, scenes or photographs. runs_dir: where runs were imported to. score: the transfer score that
    is drawn, a name in `records.SCORES` (by default the first that a source has): points of lift over the same network
    untrained (fine-tuning: from scratch), or per cent where there is no lift, as of the published runs. regime: clean,
    overfit (by the run's own curve) or not known.
    """
    return frame(rows(records, data=data, runs_dir=runs_dir), score)


def frame(sources: Mapping[str, list[dict]], score: str | None = None) -> pd.DataFrame:
    """Rows of `records.table` by source as the DataFrame of `runs`."""
    found = pd.DataFrame([{"source": name, **row} for name, some in sources.items() for row in some])
    if not len(found):
        return found
    found["on_axis"] = found["on_axis"].eq(False).eq(False) if "on_axis" in found else True
    found["regime"] = [{True: "overfit", False: "clean"}.get(flag, "not known") for flag in found["overfit"]]
    order = [score] if score else list(SCORES)
    found["score"], found["score_name"] = float("nan"), None
    for name, part in found.groupby("source"):
        for column in [f"{one}_lift" for one in order] + order:
            if part[column].notna().any():
                what, at = SCORES[column.removesuffix("_lift")], found["source"] == name
                said = f"lift of the {what} (points)" if column.endswith("_lift") else f"{what} (%)"
                found.loc[at, "score"] = 100 * part[column].astype(float)
                found.loc[at, "score_name"] = said
                break
    return found


def by_score(records: Iterable[dict], **options: object) -> dict[str, pd.DataFrame]:
    """`runs` with each transfer score in turn, by the score's name; scores that no run has are left out."""
    found = {name: runs(records, score=score, **options) for score, name in SCORES.items()}
    return {name: some for name, some in found.items() if len(some) and some["score"].notna().any()}


def longest(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every source, the runs at the longest length that most of its cells (size x images) were run at."""
    chosen = []
    for _, part in runs[runs["val_loss"].notna()].groupby("source", sort=False):
        cells = part.drop_duplicates(["model", "images", "steps"])["steps"].value_counts()
        chosen.append(part[part["steps"] == cells[cells == cells.max()].index.max()])
    return pd.concat(chosen) if chosen else runs


def main_source(runs: pd.DataFrame) -> str:
    """Whose runs a comparison is made on: the reader's where there are any, else the shipped, else the first."""
    there = list(runs["source"].drop_duplicates())
    return next((name for name in ("yours", "shipped") if name in there), there[0] if there else "yours")


def rows(records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None) -> dict[str, list]:
    """Rows of `records.table` by source, as `runs` takes them."""
    found = {"published": published.rows()}
    if some := shipped.beside(data):
        found["shipped"] = main_rows(some)
    found |= _imported(runs_dir)
    return found | {"yours": main_rows(list(records))}


def claims(records: Iterable[dict] = (), *, runs_dir: str | Path | None = None) -> dict[str, list[Claim]]:
    """C1 to C9 by source, of the recipe with most runs of each: published, every shipped set, imported ones, yours."""
    found = {"published": published.claims()}
    for name in shipped.names():
        called = SHIPPED.get(name, name) + (" (design data)" if shipped.is_design(name) else "")
        found[called] = list(_shipped_claims(name))
    found |= {name: imported.claims(some) for name, some in _imported(runs_dir).items()}
    own = claims_of(list(records))
    return found | ({"yours": [c for c in own if c.recipe == own[0].recipe]} if own else {})


def main_rows(records: list[dict]) -> list[dict]:
    """The trained rows of the recipe with most runs."""
    return next(iter(groups(table(records)).values()), [])


def of_folder(runs_dir: str | Path) -> tuple[list[dict], str]:
    """The runs that a law is fitted to, and their name: the reader's own, by `main_rows`, else the imported ones.

    Of several imported sets the one with most runs is taken. `UserError` for a folder with neither.
    """
    if found := main_rows(load(runs_dir)):
        return found, f"your runs in {runs_dir}"
    if sets := imported.load(runs_dir):
        name = max(sets, key=lambda name: len(sets[name]))
        more = f" (the largest of {', '.join(sets)})" if len(sets) > 1 else ""
        return sets[name], f"the imported runs {name} in {runs_dir}{more}"
    nowhere = "" if Path(runs_dir).is_dir() else " (no such folder)"
    makers = "simmim-lite study all makes some, and records import FILE.csv takes others' in"
    raise UserError(f"{runs_dir}: no finished runs there{nowhere}; {makers}")


def supervised(records: Iterable[dict]) -> pd.DataFrame:
    """What C8 compares: top-1 (%) of the size that was trained from scratch on several numbers of labels, with a 95 %
    interval over seeds; columns name, value, low, high, pretrained first."""
    found = pd.DataFrame(finetunings(records := list(records)))
    if not len(found):
        return found
    images = {row["key"]: (row["images"], row["steps"]) for row in table(records)}
    scratch = found[found["scratch"]].groupby("model")[["labels", "steps"]].agg(lambda part: part.nunique()).sum(axis=1)
    found = found[found["model"] == scratch.idxmax()] if len(scratch) else found
    lines = []
    for (run, labels, steps), some in found.groupby(
        [found["run"].map(images).fillna(0).map(lambda pair: pair or (0, 0)), "labels", "steps"]
    ):
        first = f"{run[0]:,} unlabelled images for {run[1]:,} steps, then " if run[0] else "from scratch: "
        value, low, high = t_interval(100 * some["top1"])
        lines.append((f"{first}{labels:,} labels for {steps:,}", value, low, high))
    return pd.DataFrame(lines[::-1], columns=["name", "value", "low", "high"])


def verdicts(claims: dict[str, list[Claim]], *ids: str) -> str:
    """Claims as a table in Markdown, a row a claim and source: the verdict, and the sentence with its numbers."""
    lines = ["| | claim | on | verdict | what the runs say |", "|---|---|---|---|---|"]
    order = ids or dict.fromkeys(claim.id for found in claims.values() for claim in found)
    for id_ in order:
        named = f"**{id_}**", next((c.statement for found in claims.values() for c in found if c.id == id_), "")
        for source, found in claims.items():
            for claim in (c for c in found if c.id == id_):
                cells = *named, NAMES.get(source, source), f"**{claim.verdict}**", escape(claim.evidence, quote=False)
                lines.append(f"| {' | '.join(cells)} |")
                named = "", ""
    return "\n".join(lines) if len(lines) > 2 else "There are no finished runs to compare."


def agreement(claims: dict[str, list[Claim]], *ids: str) -> str:
    """Where the sources agree on claims and where they do not, in Markdown: a line a claim."""
    lines = []
    for id_ in ids:
        said = {NAMES.get(source, source): c for source, found in claims.items() for c in found if c.id == id_}
        if not said:
            continue
        by = {word: [source for source, c in said.items() if c.verdict == word] for word in _VERBS}
        statement = next(iter(said.values())).statement
        parts = [f"{verb} {_and(by[word])}" for word, verb in _VERBS.items() if by[word]]
        differ = ""
        if by[HOLDS] and by[FAILS]:
            differ = " **They disagree.**"
        elif "published runs" in by[HOLDS] and by[OPEN]:
            sizes = [f"{source} {_effect(said[source])}" for source in by[OPEN] if said[source].effect is not None]
            differ = f" The effect there: {'; '.join(sizes)}." if sizes else ""
        lines.append(f"- **{id_}, {escape(statement[0].lower() + statement[1:])}**: {'; '.join(parts)}.{differ}")
    return "\n".join(lines) or "There are no finished runs to compare."


@cache
def _shipped_claims(name: str) -> tuple[Claim, ...]:
    found = claims_of(shipped.records(name))
    return tuple(c for c in found if c.recipe == found[0].recipe)


def _imported(runs_dir: str | Path | None) -> dict[str, list[dict]]:
    return {f"imported, {name}": rows_ for name, rows_ in imported.load(runs_dir).items()} if runs_dir else {}


def _effect(claim: Claim) -> str:
    interval = f" [{claim.low:+.3g}, {claim.high:+.3g}]" if claim.low is not None else ", no interval"
    return f"{claim.effect:+.3g}{interval}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
