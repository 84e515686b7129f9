"""All the evidence a study has, by kind: published runs, shipped runs, imported ones, and the reader's own."""

from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path

from ..errors import UserError
from . import imported, published, shipped
from .claims import claims as claims_of
from .records import groups, load, table
from .rules import FAILS, HOLDS, OPEN, UNTESTED, Claim

#: The shipped sets by the names that readers see.
SHIPPED = {"laptop-scenes": "shipped, scenes", "laptop-cifar10": "shipped, CIFAR-10"}
_VERBS = {HOLDS: "holds on", FAILS: "does not hold on", OPEN: "cannot be said on", UNTESTED: "is not tested on"}
NAMES = {"published": "published runs", "yours": "your runs"}


def rows(records: Iterable[dict] = (), *, data: str = "scenes", runs_dir: str | Path | None = None) -> dict[str, list]:
    """Rows of `records.table` by kind, for `compare.figure`: published, shipped, imported ones by name, yours.

    records: the reader's own; of several recipes the one with most runs is taken. data: decides which shipped set is
    shown, scenes or photographs. runs_dir: where runs were imported to.
    """
    found = {"published": published.rows()}
    name = "laptop-scenes" if data == "scenes" else "laptop-cifar10"
    if name in shipped.names():
        found["shipped"] = main_rows(shipped.records(name))
    found |= _imported(runs_dir)
    return found | {"yours": main_rows(list(records))}


def claims(records: Iterable[dict] = (), *, runs_dir: str | Path | None = None) -> dict[str, list[Claim]]:
    """C1 to C9 by kind, of the recipe with most runs of each: published, every shipped set, imported ones, yours."""
    found = {"published": published.claims()}
    for name in shipped.names():
        label = SHIPPED.get(name, name) + (" (design data)" if shipped.is_design(name) else "")
        found[label] = list(_shipped_claims(name))
    found |= {name: imported.claims(rows_) for name, rows_ in _imported(runs_dir).items()}
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


def agreement(claims: dict[str, list[Claim]], ids: Iterable[str]) -> str:
    """Where the kinds of evidence agree on claims and where they do not, in Markdown: a line a claim."""
    lines = []
    for id_ in ids:
        said = {NAMES.get(kind, kind): c for kind, found in claims.items() for c in found if c.id == id_}
        if not said:
            continue
        by = {word: [kind for kind, c in said.items() if c.verdict == word] for word in _VERBS}
        statement = next(iter(said.values())).statement
        parts = []
        for word, verb in _VERBS.items():
            if by[word]:
                parts.append(f"{verb} {_and(by[word])}")
        differ = ""
        if by[HOLDS] and by[FAILS]:
            differ = " **They disagree.**"
        elif "published runs" in by[HOLDS] and by[OPEN]:
            sizes = [f"{kind} {_effect(said[kind])}" for kind in by[OPEN] if said[kind].effect is not None]
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


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
