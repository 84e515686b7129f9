"""C1 to C4 and C6: contrasts of validation losses between cells of a grid, by seed or by cell. No torch here."""

import numpy as np

from .findings import CannotTell, Finding, Runs, conclude, listed, seed_list, side
from .records import short
from .rules import HOLDS, Over, Rule
from .stats import t_interval

#: By unit, one dictionary a length: the sizes (small, large or size), level, most, t and t/2 that terms name.
Units = dict[str, list[dict]]
CORNER = ((1, "large", "level", "t"), (-1, "small", "level", "t"))


def contrast(rule: Rule, runs: Runs) -> Finding:
    """What a rule about validation losses finds."""
    if len(runs.levels) < 2:
        raise CannotTell(f"All runs have {runs.levels[0]:,} images: the claim needs two data levels")
    if len(runs.sizes) < 2 and any(size == "large" for _, size, *_ in rule.terms):
        raise CannotTell(f"All runs are of {short(runs.sizes[0])}: the claim needs two model sizes")
    over = rule.seeds if runs.by_seed else rule.cells
    # large is the largest of those that have the most seeds; where there is one size, it stands for both
    found = [_units(rule, over, runs, large) for large in runs.sizes[:0:-1] or runs.sizes]
    found = [(units, _values(rule.terms, units, runs)) for units in found if units]
    if not found:
        raise CannotTell(_missing(rule, over, runs))
    units, values = max(found, key=lambda pair: len(pair[1]))
    if not len(values):
        raise CannotTell("No seed has all the runs that are compared")
    margin, said, confidence = rule.margin, f"{rule.margin:+.3f}", 0.95
    if rule.test == "within":  # a share of what the last doubling of the length gains, on runs that are not overfit
        units, values = _clean(rule, runs, units, values)
        margin, confidence = rule.margin * _values(rule.scale, units, runs)[values.index], 0.9
        said = f"±{margin.mean():.4f}, a quarter of what the last doubling of the length gains"

    def more(verdict: str) -> str:
        left = sorted(set(runs.loss.columns) - set(values.index)) if runs.by_seed else []
        text = f"; {seed_list(left)} left out, a run of the comparison is missing" if left else ""
        return text + (_corner(rule, runs, units, verdict) if rule.id == "C1" else "")

    options = {"margin": margin, "confidence": confidence, "form": "+.4f", "more": more}
    text = _sentence(rule, runs, units, float(np.mean(values)))
    return conclude(rule, runs, values, text, said, seeds=values.index, **options)


def _cells(terms: tuple, roles: dict) -> list[tuple[float, tuple]]:
    return [(weight, (roles[size], roles[level], roles[length])) for weight, size, level, length in terms]


def _units(rule: Rule, over: Over, runs: Runs, large: str) -> Units:
    """The units that a rule compares on the cells there are; none where a cell is missing."""
    sizes, below, most = runs.sizes, runs.levels[:-1], runs.levels[-1]
    choices = {
        "ends": [{"small": sizes[0], "large": large}],
        "adjacent": [{"small": a, "large": b} for a, b in zip(sizes, sizes[1:], strict=False)],
        "both": [{"size": size} for size in dict.fromkeys((sizes[0], large))],
        "each": [{"size": size} for size in sizes],
        "large": [{"size": large}],
        "small": [{"size": sizes[0]}],
    }[over.sizes]
    tries = {"most": [[most]], "fewest": [[n] for n in below], "next": [[n] for n in below[::-1]], "short": [below]}
    for levels in tries[over.levels]:
        units: Units = {}
        for roles in [choice | {"level": level, "most": most} for choice in choices for level in levels]:
            lengths = [roles | {"t": t, "t/2": t // 2} for t in runs.lengths]
            terms = rule.terms + rule.scale
            if fit := [one for one in lengths if all(cell in runs.loss.index for _, cell in _cells(terms, one))]:
                units[" ".join(map(str, roles.values()))] = fit
        if over.lengths == "longest" and units:  # that all of them have
            common = set.intersection(*({one["t"] for one in lengths} for lengths in units.values()))
            longest = max(common, default=0)
            units = {name: [one for one in lengths if one["t"] == longest] for name, lengths in units.items() if common}
        if units and (over.sizes in ("adjacent", "each") or len(units) == len(choices)):
            return units
    return {}


def _values(terms: tuple, units: Units, runs: Runs):
    """Weighted sums of losses, the mean over lengths: by seed, their mean over units, or by unit, over seeds."""
    import pandas as pd

    def total(lengths: list[dict]):
        sums = [sum(weight * runs.loss.loc[cell] for weight, cell in _cells(terms, roles)) for roles in lengths]
        return sum(sums) / len(sums)

    found = pd.DataFrame({name: total(lengths) for name, lengths in units.items()})  # (seeds, units)
    return (found.mean(axis=1, skipna=False) if runs.by_seed else found.mean()).dropna()


def _corner(rule: Rule, runs: Runs, units: Units, verdict: str) -> str:
    """The larger size less the smaller one on few images: where only the excess is above, the larger gains less."""
    value, low, high = t_interval(_values(CORNER, units, runs))
    few = f"at {next(iter(units.values()))[0]['level']:,} images" if runs.by_seed else "there"
    text = f"; {few} the larger is {abs(value):.4f} {side(value)} the smaller"
    text += "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
    if verdict == HOLDS:
        text += ": it is worse" if low > rule.margin else ": it gains less from data, and is not shown to be worse"
    return text


def _clean(rule: Rule, runs: Runs, units: Units, values) -> tuple:
    """C6 is about runs that do not overfit: by seed most of them, by cell all."""
    flags = {  # by unit: the seeds in which one of the runs is overfit
        name: sum(runs.overfit.loc[cell] for roles in lengths for _, cell in _cells(rule.terms, roles)) > 0
        for name, lengths in units.items()
    }
    if runs.by_seed:
        overfit = next(iter(flags.values()))[values.index]
        if overfit.mean() > 0.5:
            raise CannotTell(f"The runs compared are overfit in most seeds ({overfit.sum()} of {len(values)})")
        return units, values
    units = {name: units[name] for name in values.index if not flags[name].any()}
    if not units:
        raise CannotTell("The runs compared are overfit in every size")
    return units, values[list(units)]


def _missing(rule: Rule, over: Over, runs: Runs) -> str:
    """Which runs a rule lacks, of the cells that it would compare first."""
    small, large, t = runs.sizes[0], runs.sizes[-1], runs.lengths[-1]
    roles = {"small": small, "large": large, "most": runs.levels[-1], "t": t, "t/2": t // 2}
    roles["level"] = runs.levels[-2] if over.levels == "next" else runs.levels[0]
    sizes = {"both": (small, large), "small": (small,)}.get(over.sizes, (large,))
    cells = [cell for size in sizes for _, cell in _cells(rule.terms + rule.scale, roles | {"size": size})]
    lacking = dict.fromkeys(cell for cell in cells if cell not in runs.loss.index)
    named = [f"{short(model)} at {images:,} images and {steps:,} steps" for model, images, steps in lacking]
    return f"Missing runs: {'; '.join(named) or 'sizes, levels and lengths that meet in one grid'}"


def _sentence(rule: Rule, runs: Runs, units: Units, value: float) -> str:
    roles = [one for lengths in units.values() for one in lengths]
    models, levels, lengths = (
        list(dict.fromkeys(one[key] for one in roles for key in keys if key in one))
        for keys in (("small", "large", "size"), ("level",), ("t",))
    )
    steps = listed(sorted(lengths))
    return rule.sentence.format_map(
        {
            "effect": f"{abs(value):.4f}",
            "above": side(value),
            "more": "more" if value >= 0 else "less",
            "small": runs.name(models[0]) if runs.by_seed else "the next smaller size",
            "large": runs.name(models[-1]) if runs.by_seed else "a size",
            "sizes": ", ".join(map(short, models)) if len(models) > 1 else runs.name(models[0]),
            "level": listed(levels),
            "most": f"{roles[0]['most']:,}",
            "lengths": steps,
            "T": f"{max(lengths):,}",
            "T/2": f"{max(lengths) // 2:,}",
            "at": f", mean of {steps} steps" if len(lengths) > 1 else f" after {steps} steps",
        }
    )
