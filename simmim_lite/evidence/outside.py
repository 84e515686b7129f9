"""Claims C1 to C8 on runs that were not trained here: published ones, and those that a reader imports. No torch here.

Such runs have a score but no network at random initialisation to count lifts from, often one seed, and sizes that sit
out some data levels. What is compared is what `claims.TABLE` names, with its margins; what is paired differs:

C1, C2, C6  seeds where there are two or more, else the lengths, each of which is a run of its own;
C3, C4      model sizes: each one's mean change of the loss over the doublings of its length;
C5          Spearman correlation of validation loss with the score itself, bootstrap over cells of size x data level;
C7          as for other runs (`doublings.finding`);
C8          not answered: it needs a supervised baseline over labelled data.
"""

from collections import defaultdict

import numpy as np

from .claims import SMOKE_STEPS, TABLE, Claim, Rule, verdict
from .doublings import doublings, finding
from .findings import Finding
from .intervals import paired_interval, rank_interval
from .records import SCORES, millions, short


def claims_of(rows: list[dict], score: str) -> list[Claim]:
    """C1 to C8 on rows in the columns of `records.table`, all comparable with one another; none without rows."""
    rows = [row for row in rows if row["val_loss"] is not None]
    if not rows:
        return []
    found = []
    for rule in TABLE:
        if max(row["steps"] for row in rows) < SMOKE_STEPS:
            said = Finding(f"Runs of less than {SMOKE_STEPS} steps say nothing about the question", open=True)
        else:
            said = _find(rule, rows, score)
        same = {name: rows[0][name] for name in ("data", "target", "image_size", "recipe")}
        numbers = {name: getattr(said, name) for name in ("evidence", "effect", "low", "high", "n")}
        about = {name: getattr(rule, name) for name in ("id", "statement", "margin")}
        found.append(Claim(verdict=verdict(rule, said), **about, **numbers, **same))
    return found


def _find(rule: Rule, rows: list[dict], score: str) -> Finding:
    # other images have another loss: a set that is no part of the main one has no place on its axis of data levels
    main = [row for row in rows if row.get("on_axis", True)]
    if rule.id in ("C1", "C2"):
        return _sizes(main, rule, smallest=rule.id == "C1")
    if rule.id in ("C3", "C4"):
        return _lengths(main, rule, shortest=rule.id == "C4")
    if rule.id == "C5":
        return _ranks(rows, score)
    if rule.id == "C6":
        return _levels(main, rule)
    if rule.id == "C7":
        if all(row[score] is None for row in rows):
            return Finding("These runs have no score", open=True)
        return finding(rows, score)
    return Finding("These runs have no supervised baseline over labelled data", open=True)


def _cells(rows: list[dict]) -> dict:
    """{(model, images): {(steps, seed): row}}"""
    cells = defaultdict(dict)
    for row in rows:
        cells[row["model"], row["images"]][row["steps"], row["seed"]] = row
    return cells


def _ordered(rows: list[dict]) -> list[str]:
    return [model for _, model in sorted({(row["params"], row["model"]) for row in rows})]


def _paired(a: dict, b: dict) -> tuple[np.ndarray, str]:
    """Differences a - b by unit, and what the units are: seeds (at the longest length they share) or lengths."""
    shared = a.keys() & b.keys()
    lengths, seeds = sorted({steps for steps, _ in shared}), sorted({seed for _, seed in shared})
    if len(seeds) > 1:
        counts = {t: sum((t, s) in shared for s in seeds) for t in lengths}
        steps = max(lengths, key=lambda t: (counts[t], t))
        units = [(steps, seed) for seed in seeds if (steps, seed) in shared]
        text = f"{len(units)} seeds at {steps:,} iterations"
    else:
        units = sorted(shared)
        text = "lengths: " + ", ".join(f"{steps:,}" for steps in lengths) + " iterations"
        text = f"{len(units)} {text}" if len(units) > 1 else text.replace("lengths", "one length")
    return np.array([a[u]["val_loss"] - b[u]["val_loss"] for u in units]), text


def _difference(values: np.ndarray, lead: str, against: str, units: str, margin: str) -> Finding:
    effect, low, high = paired_interval(values)
    side = "above" if effect >= 0 else "below"
    sentence = f"{lead} {abs(effect):.4f} {side} {against}"
    if low is None:
        return Finding(f"{sentence} ({units}); one pair gives no interval", effect, None, None, len(values))
    sentence += f", 95 % interval {low:+.4f} to {high:+.4f} ({units}; margin {margin})"
    return Finding(sentence, effect, low, high, len(values))


def _sizes(rows: list[dict], rule: Rule, *, smallest: bool) -> Finding:
    """C1, C2: the largest against the smallest size, at the smallest level that has two sizes, or the largest that has
    both ends."""
    cells, order = _cells(rows), _ordered(rows)
    by_level = defaultdict(list)
    for model in order:
        for level in sorted({images for name, images in cells if name == model}):
            by_level[level].append(model)
    levels = [level for level, models in sorted(by_level.items()) if len(models) > 1]
    if not levels:
        return Finding("All runs of a data level are of one model size: the claim needs two", open=True)
    if len(by_level) < 2:
        return Finding(f"All runs have {levels[0]:,} images: the claim needs two data levels", open=True)
    ends = [level for level in levels if {order[0], order[-1]} <= set(by_level[level])]
    level = levels[0] if smallest else (ends or levels)[-1]
    small, large = by_level[level][0], by_level[level][-1]
    values, units = _paired(cells[large, level], cells[small, level])
    if not len(values):
        return Finding(f"{short(large)} and {short(small)} share no length at {level:,} images", open=True)
    params = {row["model"]: millions(row["params"]) for row in rows}
    lead = f"At {level:,} images, the validation loss of {short(large)} ({params[large]} parameters) is"
    return _difference(values, lead, f"that of {short(small)} ({params[small]})", units, f"{rule.margin:+.3f}")


def _lengths(rows: list[dict], rule: Rule, *, shortest: bool) -> Finding:
    """C3, C4: change of the loss in a doubling of the length, at the largest or the smallest data level."""
    levels = sorted({row["images"] for row in rows})
    if len(levels) < 2:
        return Finding(f"All runs have {levels[0]:,} images: the claim needs two data levels", open=True)
    level = levels[0] if shortest else levels[-1]
    here = [row | {"_one": 0.0} for row in rows if row["images"] == level]
    changes = defaultdict(list)
    for d in doublings(here, "_one"):
        changes[d["model"]].append(d["loss_change"])
    if not changes:
        return Finding(f"No size was run at a length and twice that length on {level:,} images", open=True)
    sizes = [model for model in _ordered(here) if model in changes]
    n = sum(map(len, changes.values()))
    units = f"{len(sizes)} sizes: {', '.join(map(short, sizes))}; {n} doublings"
    lead = f"At {level:,} images, the validation loss after a doubling of the length is"
    values = np.array([np.mean(changes[model]) for model in sizes])
    return _difference(values, lead, "that before, mean over sizes", units, f"{rule.margin:+.3f}")


def _levels(rows: list[dict], rule: Rule) -> Finding:
    """C6: the smallest size at the two largest data levels it has, runs that are not overfit alone."""
    model = _ordered(rows)[0]
    cells = {images: cell for (name, images), cell in _cells(rows).items() if name == model}
    if len(cells) < 2:
        return Finding(f"{short(model)} was run on one data level: the claim needs two", open=True)
    low, high = sorted(cells)[-2:]
    clean = [{unit: row for unit, row in cells[level].items() if not row["overfit"]} for level in (high, low)]
    values, units = _paired(*clean)
    if not len(values):
        return Finding(
            f"No pair of runs of {short(model)} at {low:,} and {high:,} images is free of overfitting", open=True
        )
    lead = f"The validation loss of {short(model)} at {high:,} images is"
    return _difference(values, lead, f"that at {low:,}", units, f"±{rule.margin:.3f}")


def _ranks(rows: list[dict], score: str) -> Finding:
    """C5: how each loss ranks the runs by their score."""
    rows = [row for row in rows if row[score] is not None]
    if len(rows) < 3:
        return Finding("Fewer than three runs have a score", open=True)
    y = [row[score] for row in rows]
    units = [f"{row['model']} {row.get('dataset', '')} {row['images']}" for row in rows]
    effect, low, high = rank_interval([row["val_loss"] for row in rows], y, units)
    n = len(set(units))
    sentence = f"Spearman correlation of validation loss with the score ({SCORES[score]}) over {len(rows)} runs of {n} "
    sentence += f"cells (a size on a data level): {'undefined' if effect is None else f'{effect:+.2f}'}"
    sentence += f" [{low:+.2f}, {high:+.2f}]" if low is not None else ""
    known = [row for row in rows if row["train_loss"] is not None]
    if len(known) < len(rows):
        sentence += "; the training losses are unknown, so half of the claim is not tested"
        return Finding(sentence, effect, low, high, n)
    value, *other = rank_interval([row["train_loss"] for row in rows], y, units)
    if value is not None and other[0] is not None:
        sentence += f"; of training loss {value:+.2f} [{other[0]:+.2f}, {other[1]:+.2f}]"
    return Finding(sentence, effect, low, high, n, other=tuple(other) if other[0] is not None else None)
