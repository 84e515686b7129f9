"""The ten claims on runs: records in, sentences with numbers, intervals and verdicts out. No torch here.

What each compares stands in `rules.TABLE`: a measure finds values by unit (a seed, or a cell of runs that were made
once), of which `rules.conclude` makes interval, verdict and sentence."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from ..errors import UserError
from ..model.sizes import short
from . import laws, proxy, rules
from .records import groups, millions, run_rows, score_of, transfer_rows
from .rules import CannotTell, Claim, Rule, Runs, conclude, joined, judge, seed_list, side
from .stats import t_interval

Units = dict[str, list[dict]]  # by unit, one a length: sizes (small, large, size), level, most, t, t/2


def claims(records: list[dict]) -> list[Claim]:
    """C1 to C9 for every recipe among the records, the recipe with most runs first; recipes are never mixed."""
    return [claim for rows in groups(run_rows(records)).values() for claim in claims_of(rows, records)]


def claims_of(rows: list[dict], records: Iterable[dict] = ()) -> list[Claim]:
    """C1 to C9 on `records.run_rows` that are comparable with one another; none without rows. records: where
    fine-tunings are (C8). Runs that were not trained here (of `published`) have no untrained network to count from."""
    rows = [row for row in rows if row["val_loss"] is not None]
    if not rows:
        return []
    runs, found = None, []
    for rule in rules.TABLE:
        fields = {"id": rule.id, "statement": rule.statement, "margin": rule.margin, "recipe": rows[0]["recipe"]}
        try:
            runs = runs or Runs(rows, records)
            fields |= MEASURES[rule.measure](rule, runs)
        except CannotTell as error:
            fields |= {"evidence": str(error), "verdict": error.verdict}
        found.append(Claim(**fields))
    return found


def _contrast(rule: Rule, runs: Runs) -> dict:
    """C1 to C4 and C6: contrasts of validation losses between cells of a grid, by seed or by cell."""
    if len(runs.levels) < 2:
        raise CannotTell(f"All runs have {runs.levels[0]:,} images: the claim needs two data levels")
    if len(runs.sizes) < 2 and any(size == "large" for _, size, *_ in rule.terms):
        raise CannotTell(f"All runs are of {short(runs.sizes[0])}: the claim needs two model sizes")
    # large is the largest of those that have the most seeds; where there is one size, it stands for both
    found = [_units(rule, runs, large) for large in runs.sizes[:0:-1] or runs.sizes]
    found = [(units, _values(rule.terms, units, runs)) for units in found if units]
    if not found:
        raise CannotTell(_missing(rule, runs))
    units, values = max(found, key=lambda pair: len(pair[1]))
    if not len(values):
        raise CannotTell("No seed has all the runs that are compared")
    margin, said, confidence = rule.margin, f"{rule.margin:+.3f}", 0.95
    if rule.test == "within":  # a share of what the last doubling of the length gains, on runs that are not overfit
        cells = {k: [cell for roles in some for _, cell in _cells(rule.terms, roles)] for k, some in units.items()}
        overfit = pd.DataFrame({name: sum(runs.overfit.loc[cell] for cell in some) > 0 for name, some in cells.items()})
        if runs.by_seed and (flags := overfit.iloc[:, 0][values.index]).mean() > 0.5:
            raise CannotTell(f"The runs compared are overfit in most seeds ({flags.sum()} of {len(values)})")
        if not runs.by_seed and not len(values := values[~overfit.any()[values.index]]):
            raise CannotTell("The runs compared are overfit in every size")
        units = units if runs.by_seed else {name: units[name] for name in values.index}
        margin, confidence = rule.margin * _values(rule.scale, units, runs)[values.index], 0.9
        said = f"±{margin.mean():.4f}, a quarter of what the last doubling of the length gains"
    left = sorted(set(runs.loss.columns) - set(values.index)) if runs.by_seed else []
    more = f"; {seed_list(left)} left out, a run of the comparison is missing" if left else ""
    if rule.id == "C1":  # where the excess alone is above, few images cost the larger size more
        few = f"at {next(iter(units.values()))[0]['level']:,} images" if runs.by_seed else "there"
        corner, low, high = t_interval(_values((rule.terms[0], rule.terms[2]), units, runs))
        more += f"; {few} the larger is {abs(corner):.4f} {side(corner)} the smaller"
        more += "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
        if judge(rule, values, t_interval(values)) == rules.HOLDS:
            gains = "few images cost it more, but it is not shown to be worse"
            more += f": {'it is worse' if low > rule.margin else gains}"
    options = {"margin": margin, "confidence": confidence, "form": "+.4f", "more": more}
    return conclude(rule, runs, values, _sentence(rule, runs, units, float(np.mean(values))), said, **options)


def _cells(terms: tuple, roles: dict) -> list[tuple[float, tuple]]:
    return [(weight, (roles[size], roles[level], roles[length])) for weight, size, level, length in terms]


def _units(rule: Rule, runs: Runs, large: str) -> Units:
    """The units that a rule compares on the cells there are; none where a cell is missing."""
    over_sizes, over_levels, over_lengths = rule.seeds if runs.by_seed else rule.cells
    sizes, below, most = runs.sizes, runs.levels[:-1], runs.levels[-1]
    choices = {
        "ends": [{"small": sizes[0], "large": large}],
        "adjacent": [{"small": a, "large": b} for a, b in itertools.pairwise(sizes)],
        "both": [{"size": size} for size in dict.fromkeys((sizes[0], large))],
        "each": [{"size": size} for size in sizes],
        "large": [{"size": large}],
        "small": [{"size": sizes[0]}],
    }[over_sizes]
    tries = {"most": [[most]], "fewest": [[n] for n in below], "next": [[n] for n in below[::-1]], "short": [below]}
    for levels in tries[over_levels]:
        units: Units = {}
        for choice, level in itertools.product(choices, levels):
            roles = choice | {"level": level, "most": most}
            lengths = [roles | {"t": t, "t/2": t // 2} for t in runs.lengths]
            terms = rule.terms + rule.scale
            if there := [one for one in lengths if all(cell in runs.loss.index for _, cell in _cells(terms, one))]:
                units[" ".join(map(str, roles.values()))] = there
        if over_lengths == "longest" and units:  # that all of them have
            longest = max(set.intersection(*({one["t"] for one in lengths} for lengths in units.values())), default=0)
            units = {name: [one for one in some if one["t"] == longest] for name, some in units.items() if longest}
        if units and (over_sizes in ("adjacent", "each") or len(units) == len(choices)):
            return units
    return {}


def _values(terms: tuple, units: Units, runs: Runs) -> pd.Series:
    """Weighted sums of losses, the mean over lengths: by seed, their mean over units, or by unit, over seeds."""
    found = pd.DataFrame()  # (seeds, units)
    for name, lengths in units.items():
        sums = [sum(weight * runs.loss.loc[cell] for weight, cell in _cells(terms, roles)) for roles in lengths]
        found[name] = sum(sums) / len(sums)
    return (found.mean(axis=1, skipna=False) if runs.by_seed else found.mean()).dropna()


def _missing(rule: Rule, runs: Runs) -> str:
    """Which runs a rule lacks, of the cells that it would compare first."""
    sizes, levels, _ = rule.seeds if runs.by_seed else rule.cells
    small, large, t = runs.sizes[0], runs.sizes[-1], runs.lengths[-1]
    roles = {"small": small, "large": large, "most": runs.levels[-1], "t": t, "t/2": t // 2}
    roles["level"] = runs.levels[-2 if levels == "next" else 0]
    lacking = [
        f"{short(model)} at {images:,} images and {steps:,} steps"
        for size in {"both": (small, large), "small": (small,)}.get(sizes, (large,))
        for _, (model, images, steps) in _cells(rule.terms + rule.scale, roles | {"size": size})
        if (model, images, steps) not in runs.loss.index
    ]
    return f"Missing runs: {'; '.join(dict.fromkeys(lacking)) or 'sizes, levels and lengths that meet in one grid'}"


def _sentence(rule: Rule, runs: Runs, units: Units, value: float) -> str:
    roles = [one for lengths in units.values() for one in lengths]
    models = list(dict.fromkeys(one[key] for one in roles for key in ("small", "large", "size") if key in one))
    levels, lengths = (list(dict.fromkeys(one[key] for one in roles)) for key in ("level", "t"))
    steps, names = joined(sorted(lengths)), [f"{short(m)} ({millions(runs.params[m])} parameters)" for m in models]
    words = {"effect": f"{abs(value):.4f}", "above": side(value), "more": "more" if value >= 0 else "less"}
    words |= {"small": names[0], "large": names[-1]}
    words |= {} if runs.by_seed else {"small": "the next smaller size", "large": "a size"}
    words |= {"sizes": ", ".join(map(short, models)) if len(models) > 1 else names[0], "level": joined(levels)}
    words |= {"most": f"{roles[0]['most']:,}", "T": f"{max(lengths):,}", "T/2": f"{max(lengths) // 2:,}"}
    words |= {"at": f", mean of {steps} steps" if len(lengths) > 1 else f" after {steps} steps", "lengths": steps}
    return rule.sentence.format_map(words)


def _top1(rule: Rule, runs: Runs) -> dict:
    """C8: pretrained on little and fine-tuned on few labels, against supervised for as long on many labels."""
    if runs.score:
        raise CannotTell("No supervised networks were trained beside these runs")
    columns = ["measure", "model", "data", "annotations", "steps", "seed", "scratch", "run", "score"]
    tuned = pd.DataFrame(transfer_rows(runs.records), columns=columns).query("measure == 'top1'")
    tuned = tuned[tuned["data"].isin(runs.frame["data"])]
    own = runs.frame[["key", "params", "images", "steps"]].rename(columns={"key": "run", "steps": "before"})

    def by_seed(some: pd.DataFrame, *names: str) -> dict[tuple, pd.Series]:
        cells = some.drop_duplicates([*names, "seed"], keep="last").set_index("seed").groupby(list(names))
        return dict(list(cells["score"]))

    pretrained = by_seed(tuned.merge(own, on="run"), "params", "model", "images", "before", "annotations", "steps")
    scratch = by_seed(tuned[tuned["scratch"].eq(True)], "model", "annotations", "steps")
    if not pretrained:
        raise CannotTell("No run is fine-tuned (tier laptop does it; it needs labelled images)")
    pairs = [
        (one, other)
        for one, other in itertools.product(pretrained, scratch)
        if other[0] == one[1] and other[1] > one[4] and other[2] == one[3] + one[5] and one[2] < runs.levels[-1]
    ]
    if not pairs:
        text = "No network of the size is trained on more labels, from scratch, for as long as pretraining"
        raise CannotTell(f"{text} and fine-tuning together")
    # the largest size, the most labels, the fewest images
    one, other = max(pairs, key=lambda pair: (pair[0][0], pair[1][1], -pair[0][2], pair))
    values, (_, model, images, before, labels, steps), (_, many, long) = pretrained[one] - scratch[other], one, other
    if not len(values := values.dropna()):
        raise CannotTell("No seed has both the pretrained and the supervised network")
    value = float(np.mean(values))
    text = (
        f"Pretrained for {before:,} steps on {images:,} images without labels and fine-tuned for {steps:,} on "
        f"{labels:,} labels, {short(model)} scores {100 * abs(value):.1f} points of top-1 {side(value)} the same "
        f"network trained from scratch on {many:,} labels for {long:,}"
    )
    more = f"; top-1: pretrained {100 * pretrained[one].mean():.1f} %"
    for n, length in ((many, long), (labels, long), (many, steps)):
        if (model, n, length) in scratch:
            more += f", from scratch on {n:,} labels for {length:,} {100 * scratch[model, n, length].mean():.1f} %"
    return conclude(rule, runs, values, text, f"{100 * rule.margin:+.1f}", form="+.1f", scale=100, more=more)


def _product(rule: Rule, runs: Runs) -> dict:
    """C9: the slope of data as a share of the mean slope of size and length, which the product says is 1.

    On runs that are not overfit, where the product has its best chance; accuracy where they have a score, else loss.
    """
    score = runs.score or score_of(runs.rows)
    clean = [row for row in runs.rows if not row["overfit"] and row[score or "val_loss"] is not None]
    try:
        found = laws.slopes(laws.points(clean, "accuracy" if score else "loss", score)) if clean else None
    except UserError as error:  # a number that no law can take
        raise CannotTell(str(error)) from error
    if found is None:
        raise CannotTell("Size, length and data do not all vary among the runs that are not overfit")
    (effect, low, high), n, least, most = found["share"], found["cells"], 1 - rule.margin, 1 + rule.margin
    gains = ", ".join(f"{name} {found[k][0]:+.3g}" for k, name in (("n", "size"), ("t", "length"), ("d", "data")))
    evidence = (
        f"Gain in {'points of accuracy' if score else 'loss'} for a factor of e, {found['runs']} runs that are not "
        f"overfit: {gains}; data is worth {effect:.2f} of the mean of the other two, 95 % interval {low:+.2f} to "
        f"{high:+.2f} ({n} cells; margin 1±{rule.margin}); equal slopes: p = {found['p']:.1g}"
    )
    inside, outside = least < low and high < most, high < least or most < low
    verdict = rules.HOLDS if inside else rules.FAILS if outside else rules.OPEN
    return {"evidence": evidence, "verdict": verdict, "effect": effect, "low": low, "high": high, "n": n}


#: Who computes a rule, by its `measure`.
MEASURES: dict[str, Callable[[Rule, Runs], dict]] = {
    "loss": _contrast,
    "rank": proxy.rank,
    "score": proxy.score_change,
    "top-1": _top1,
    "product": _product,
}
