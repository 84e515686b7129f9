"""C1 to C4 and C6: contrasts of validation losses between cells of a grid, by seed or by cell. No torch here."""

from .findings import CannotTell, Finding, Runs, decides, judge, listed, seed_list, side, tail, wanted
from .records import short
from .rules import FAILS, HOLDS, OPEN, Over, Rule
from .stats import Interval, t_interval

#: By unit, one dictionary a length: the sizes (small, large or size), level, most, t and t/2 that terms name.
Units = dict[str, list[dict]]
CORNER = ((1, "large", "level", "t"), (-1, "small", "level", "t"))


def contrast(rule: Rule, runs: Runs) -> Finding:
    """What a rule about validation losses finds."""
    if len(runs.levels) < 2:
        raise CannotTell(f"All runs have {runs.levels[0]:,} images: the claim needs two data levels")
    if len(runs.sizes) < 2 and any(size == "large" for _, size, *_ in rule.terms):
        raise CannotTell(f"All runs are of {short(runs.sizes[0])}: the claim needs two model sizes")
    over, best = rule.seeds if runs.by_seed else rule.cells, None
    # large is the largest of those that have the most seeds; where there is one size, it stands for both
    for large in runs.sizes[:0:-1] or runs.sizes:
        if units := _find(rule, over, runs, large):
            values = _values(rule.terms, units, runs)
            if best is None or len(values) > len(best[1]):
                best = units, values
    if best is None:
        raise CannotTell(_missing(rule, over, runs))
    if not len(best[1]):
        raise CannotTell("No seed has all the runs that are compared")
    if rule.test == "within":
        return _within(rule, runs, *best)
    units, values = best
    interval = t_interval(values)
    verdict = judge(rule, values, interval)
    text = _sentence(rule, runs, units, interval) + _ending(runs, interval, values, f"{rule.margin:+.3f}")
    text += _corner(rule, runs, units, verdict) if rule.id == "C1" else ""
    return Finding(text + wanted(runs, values - rule.margin, verdict), verdict, interval, len(values))


def _cells(terms: tuple, roles: dict) -> list[tuple[float, tuple]]:
    return [(weight, (roles[size], roles[level], roles[length])) for weight, size, level, length in terms]


def _find(rule: Rule, over: Over, runs: Runs, large: str) -> Units:
    """The units that a rule compares on the cells there are; none where a cell is missing."""
    sizes, below, most = runs.sizes, runs.levels[:-1], runs.levels[-1]
    each = over.sizes in ("adjacent", "each")
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
        if units and (each or len(units) == len(choices)):
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
    found = t_interval(_values(CORNER, units, runs))
    few = f"at {next(iter(units.values()))[0]['level']:,} images" if runs.by_seed else "there"
    text = f"; {few} the larger is {abs(found.value):.4f} {side(found.value)} the smaller"
    text += "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    if verdict == HOLDS:
        text += (
            ": it is worse" if found.low > rule.margin else ": it gains less from data, and is not shown to be worse"
        )
    return text


def _within(rule: Rule, runs: Runs, units: Units, values) -> Finding:
    """C6: a difference that lies within a share of what the last doubling gains, by two one-sided tests at 5 %."""
    flags = {  # by unit: the seeds in which one of the runs is overfit
        name: sum(runs.overfit.loc[cell] for roles in lengths for _, cell in _cells(rule.terms, roles)) > 0
        for name, lengths in units.items()
    }
    if runs.by_seed:
        overfit = next(iter(flags.values()))[values.index]
        if overfit.mean() > 0.5:
            raise CannotTell(f"The runs compared are overfit in most seeds ({overfit.sum()} of {len(values)})")
    else:
        units = {name: units[name] for name in values.index if not flags[name].any()}
        values = values[list(units)]
        if not units:
            raise CannotTell("The runs compared are overfit in every size")
    margins = rule.margin * _values(rule.scale, units, runs)[values.index]
    interval, margin = t_interval(values, 0.9), float(margins.mean())
    up, down, verdict = t_interval(values + margins, 0.9), t_interval(values - margins, 0.9), OPEN
    if decides(values):
        no = up.high < 0 or down.low > 0
        verdict = HOLDS if up.low > 0 and down.high < 0 else FAILS if no else OPEN
    text = _sentence(rule, runs, units, interval)
    said = f"±{margin:.4f}, a quarter of what the last doubling of the length gains"
    text += _ending(runs, interval, values, said, level="90 %")
    nearer = values + margins if interval.value < 0 else margins - values
    return Finding(text + wanted(runs, nearer, verdict, 0.9), verdict, interval, len(values), margin)


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


def _ending(runs: Runs, interval: Interval, values, margin: str, level: str = "95 %") -> str:
    text = tail(runs, interval, values, values.index, f"margin {margin}", "+.4f", level=level)
    if runs.by_seed and (left := sorted(set(runs.loss.columns) - set(values.index))):
        text += f"; {seed_list(left)} left out, a run of the comparison is missing"
    return text


def _sentence(rule: Rule, runs: Runs, units: Units, interval: Interval) -> str:
    roles = [one for lengths in units.values() for one in lengths]
    models, levels, lengths = (
        list(dict.fromkeys(one[key] for one in roles for key in keys if key in one))
        for keys in (("small", "large", "size"), ("level",), ("t",))
    )
    at = f", mean of {listed(sorted(lengths))} steps" if len(lengths) > 1 else f" after {lengths[0]:,} steps"
    return rule.sentence.format_map(
        {
            "effect": f"{abs(interval.value):.4f}",
            "above": side(interval.value),
            "more": "more" if interval.value >= 0 else "less",
            "small": runs.name(models[0]) if runs.by_seed else "the next smaller size",
            "large": runs.name(models[-1]) if runs.by_seed else "a size",
            "sizes": ", ".join(map(short, models)) if len(models) > 1 else runs.name(models[0]),
            "level": listed(levels),
            "most": f"{roles[0]['most']:,}",
            "lengths": listed(sorted(lengths)),
            "T": f"{max(lengths):,}",
            "T/2": f"{max(lengths) // 2:,}",
            "at": at,
        }
    )
