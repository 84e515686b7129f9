"""Claims C1 to C8 (DESIGN 4): records in, sentences with numbers, intervals and verdicts out. No torch here.

What each claim compares stands in TABLE, and nowhere else. It was fixed before any run was looked at.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from . import doublings
from .findings import FAILS, HOLDS, OPEN, Finding
from .intervals import BOOTSTRAP_FROM, paired_interval, rank_interval
from .records import SCORES, Grid, core_grid, groups, millions, schedule_grid, short, table
from .tuned import supervised

RANKS = -0.5  # a rank correlation with lift below this is a ranking
SMOKE_STEPS = 100  # shorter runs test the machinery and say nothing about the question


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim on one recipe of runs. Effects are differences of validation loss, or a rank correlation (C5)."""

    id: str
    statement: str
    evidence: str  # the sentence with all numbers filled in
    effect: float | None  # None where runs are missing
    low: float | None  # 95 % interval; None where there is none
    high: float | None
    n: int  # paired seeds; networks (C5), trunks (C7)
    margin: float
    verdict: str  # holds | does not hold | too small to say
    data: str
    target: str
    image_size: int  # pixels
    recipe: str  # as in the rows of `records.table`


@dataclass(frozen=True)
class Cell:
    """A place on the core grid, by role."""

    size: str  # small | large | every
    level: str  # D_min | D_next (the level below D_max) | D_max
    length: str  # T | T/2


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a claim compares: validation loss at `plus` minus that at `minus`, paired by `unit`, against `margin`."""

    id: str
    statement: str
    plus: Cell | None = None
    minus: Cell | None = None
    unit: str = "seed"  # seed: t below 8, bootstrap above | network: bootstrap over (size, seed), which share an
    # initialisation and a reference | trunk: of C7 | label: of C8, paired by seed
    test: str  # above: low > margin | below: high < margin | within: -margin < low, high < margin | ranks
    margin: float
    clean: bool = False  # only seeds in which neither run is overfit
    sentence: str = ""


TABLE = (
    Rule(
        id="C1",
        statement="Larger models overfit small data",
        plus=Cell("large", "D_min", "T"),
        minus=Cell("small", "D_min", "T"),
        test="above",
        margin=0.001,
        sentence="At {D_min} images and {T} steps, the validation loss of {large} is {effect} that of {small}",
    ),
    Rule(
        id="C2",
        statement="With enough data, larger is better",
        plus=Cell("large", "D_max", "T"),
        minus=Cell("small", "D_max", "T"),
        test="below",
        margin=-0.001,
        sentence="At {D_max} images and {T} steps, the validation loss of {large} is {effect} that of {small}",
    ),
    Rule(
        id="C3",
        statement="Longer training helps while data suffices",
        plus=Cell("every", "D_max", "T"),
        minus=Cell("every", "D_max", "T/2"),
        test="below",
        margin=-0.001,
        sentence="At {D_max} images, the validation loss after {T} steps is {effect} that after {T/2}, mean of {sizes}",
    ),
    Rule(
        id="C4",
        statement="Longer training raises validation loss where data is short",
        plus=Cell("large", "D_min", "T"),
        minus=Cell("large", "D_min", "T/2"),
        test="above",
        margin=0.001,
        sentence="At {D_min} images, the validation loss of {large} after {T} steps is {effect} that after {T/2}",
    ),
    Rule(
        id="C5",
        statement="Validation loss ranks transfer; training loss does not",
        unit="network",
        test="ranks",
        margin=RANKS,
    ),
    Rule(
        id="C6",
        statement="More data does not help where nothing overfits",
        plus=Cell("small", "D_max", "T"),
        minus=Cell("small", "D_next", "T"),
        test="within",
        margin=0.004,
        clean=True,
        sentence="At {T} steps, the validation loss of {small} at {D_max} images is {effect} that at {D_next}",
    ),
    Rule(
        id="C7",
        statement="A rising validation loss alone does not mean falling accuracy; Omega tells",
        unit="trunk",
        test="above",
        margin=0.1,
    ),
    Rule(
        id="C8",
        statement="Pretraining on little data matches supervised training on much",
        unit="label",
        test="above",
        margin=-0.01,
    ),
)


def claims(records: list[dict]) -> list[Claim]:
    """C1 to C8 for every recipe among the records, the recipe with most runs first; none without finished runs.

    Runs of different data, target, image size or recipe are never mixed; failed runs and the order of records do not
    matter.
    """
    found = []
    for recipe, rows in groups(table(records)).items():
        same = {name: rows[0][name] for name in ("data", "target", "image_size")}
        long = [row for row in rows if row["steps"] >= SMOKE_STEPS and row["val_loss"] is not None]
        for rule in TABLE:
            if not long:
                finding = Finding(_smoke(max(row["steps"] for row in rows)), open=True)
            else:
                finding = _find(rule, long, records)
            found.append(
                Claim(
                    id=rule.id,
                    statement=rule.statement,
                    evidence=finding.evidence,
                    effect=finding.effect,
                    low=finding.low,
                    high=finding.high,
                    n=finding.n,
                    margin=rule.margin,
                    verdict=verdict(rule, finding),
                    recipe=recipe,
                    **same,
                )
            )
    return found


def _find(rule: Rule, rows: list[dict], records: list[dict]) -> Finding:
    if rule.unit == "network":
        return rank(rows)
    if rule.unit == "trunk":
        return doublings.finding(rows)
    return supervised(rows, records) if rule.unit == "label" else contrast(rule, rows)


def verdict(rule: Rule, finding: Finding) -> str:
    """*holds* means that the whole interval lies beyond the margin, *does not hold* that it lies wholly short of it."""
    low, high, margin = finding.low, finding.high, rule.margin
    if finding.open or low is None or high is None:
        return OPEN
    if rule.test == "above":
        yes, no = low > margin, high < margin
    elif rule.test == "below":
        yes, no = high < margin, low > margin
    elif rule.test == "within":
        yes, no = -margin < low and high < margin, low > margin or high < -margin
    else:
        # both halves must hold: validation loss ranks, training loss does not; either one refuted refutes the claim
        if finding.other is None:
            return FAILS if low > margin else OPEN
        yes, no = high < margin and finding.other[0] > margin, low > margin or finding.other[1] < margin
    return HOLDS if yes else FAILS if no else OPEN


def contrast(rule: Rule, rows: list[dict]) -> Finding:
    """The paired difference of a rule over the rows of one recipe, in validation loss."""
    # lengths may have been run for some of the sizes and levels alone
    grid = (schedule_grid(rows) if rule.plus.length != rule.minus.length else None) or core_grid(rows)
    if len(grid.levels) < 2:
        return Finding(f"All runs have {_count(grid.levels[0])} images: the claim needs two data levels", open=True)
    if rule.plus.size != rule.minus.size and len(grid.sizes) < 2:
        return Finding(f"All runs are of {short(grid.sizes[0])}: the claim needs two model sizes", open=True)
    roles = _roles(grid)
    for length in (rule.plus.length, rule.minus.length):
        if roles[length] < SMOKE_STEPS:
            return Finding(_smoke(roles[length]), open=True)
    cells = defaultdict(dict)
    for row in rows:
        cells[row["model"], row["images"], row["steps"]][row["seed"]] = row
    pairs, missing = [], []
    at_plus, at_minus = ((roles[cell.level], roles[cell.length]) for cell in (rule.plus, rule.minus))
    for plus, minus in zip(roles[rule.plus.size], roles[rule.minus.size], strict=True):
        ends = (plus, *at_plus), (minus, *at_minus)
        empty = [end for end in ends if not cells.get(end)]
        if not empty:
            pairs.append((cells[ends[0]], cells[ends[1]]))
        elif plus in (grid.sizes[0], grid.sizes[-1]):
            missing += empty  # a size between the two may sit out a study, the ends may not
    if missing:
        names = "; ".join(f"{short(m)} at {_count(d)} images and {_count(t)} steps" for m, d, t in missing)
        return Finding(f"Missing runs: {names}", open=True)

    ends = [end for pair in pairs for end in pair]
    seeds = sorted(set.intersection(*(set(end) for end in ends)))
    notes = []
    if alone := sorted(set.union(*(set(end) for end in ends)) - set(seeds)):
        notes.append(f"{_seeds(alone)} left out, a run of the pair is missing")
    if rule.clean:
        clean = [seed for seed in seeds if all(end[seed]["overfit"] is False for end in ends)]
        if dropped := sorted(set(seeds) - set(clean)):
            notes.append(f"{_seeds(dropped)} left out, a run of the pair is overfit")
        seeds = clean
    if not seeds:
        return Finding(f"No pair of runs to compare: {'; '.join(notes)}", open=True)

    values = np.array([np.mean([a[seed]["val_loss"] - b[seed]["val_loss"] for a, b in pairs]) for seed in seeds])
    effect, low, high = paired_interval(values)
    said = {"effect": f"{abs(effect):.4f} {'above' if effect >= 0 else 'below'}"}
    said |= {name: _sized(rows, roles[name][0]) for name in ("small", "large")}
    said |= {name: _count(roles[name]) for name in ("D_min", "D_next", "D_max", "T", "T/2")}
    # sizes that sat out are not named
    said["sizes"] = ", ".join(dict.fromkeys(short(next(iter(a.values()))["model"]) for a, _ in pairs))
    sentence = rule.sentence.format_map(said)
    if low is None:
        sentence += f" ({_seeds(seeds)}); one seed gives no interval"
    else:
        margin = f"±{rule.margin:.3f}" if rule.test == "within" else f"{rule.margin:+.3f}"
        sentence += f", 95 % interval {low:+.4f} to {high:+.4f} ({_seeds(seeds)}; margin {margin})"
    return Finding("; ".join([sentence, *notes]), effect, low, high, len(seeds))


def rank(rows: list[dict]) -> Finding:
    """C5: how validation and training loss rank the runs by what their frozen features are worth (lifts)."""
    usable = {s: [r for r in rows if r[f"{s}_lift"] is not None and r["train_loss"] is not None] for s in SCORES}
    if not usable["linear"]:
        if all(row["linear"] is None for row in rows):
            return Finding("No run has a linear probe (it needs labelled images)", open=True)
        return Finding(
            "Missing runs: the networks at random initialisation (0 steps), from which lift counts", open=True
        )
    found, parts = {}, []
    for score in (s for s in SCORES if usable[s]):
        y = [row[f"{score}_lift"] for row in usable[score]]
        units = [f"{row['model']} {row['seed']}" for row in usable[score]]
        for loss in ("val_loss", "train_loss"):
            found[score, loss] = rank_interval([row[loss] for row in usable[score]], y, units)
        val, train = (_correlation(*found[score, loss]) for loss in ("val_loss", "train_loss"))
        parts.append(f"{SCORES[score]} {val} for validation loss, {train} for training loss")
    n = len({(row["model"], row["seed"]) for row in usable["linear"]})
    sentence = f"Spearman correlation with lift over {len(usable['linear'])} runs of {n} networks (a size and a seed): "
    sentence += "; ".join(parts)
    if left := len(rows) - len(usable["linear"]):
        sentence += f"; {left} run{'s' * (left > 1)} without a score or a reference left out"
    few = n < BOOTSTRAP_FROM
    if few:
        sentence += f"; fewer than {BOOTSTRAP_FROM} networks"
    effect, low, high = found["linear", "val_loss"]
    _, *other = found["linear", "train_loss"]
    if not few and None not in (high, other[1]) and max(high, other[1]) < RANKS:
        sentence += "; training loss ranks the linear probe too"
    return Finding(sentence, effect, low, high, n, open=few, other=tuple(other) if other[0] is not None else None)


def _roles(grid: Grid) -> dict:
    sizes, levels, steps = grid.sizes, grid.levels, grid.steps
    roles = {"small": sizes[:1], "large": sizes[-1:], "every": sizes, "T": steps, "T/2": steps // 2}
    return roles | {"D_min": levels[0], "D_next": levels[-2], "D_max": levels[-1]}


def _smoke(steps: int) -> str:
    return f"Runs of {steps} steps test the machinery only: the claim needs runs of at least {SMOKE_STEPS}"


def _sized(rows: list[dict], model: str) -> str:
    params = next(row["params"] for row in rows if row["model"] == model)
    return f"{short(model)} ({millions(params)} parameters)"


def _correlation(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low is not None else "")


def _seeds(seeds: list[int]) -> str:
    return f"{len(seeds)} seeds: {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"


def _count(n: int) -> str:
    return f"{n:,}"
