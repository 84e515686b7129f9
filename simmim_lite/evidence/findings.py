"""What the rules see of some runs, and the one place that makes intervals, verdicts and sentences. No torch here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import stats
from .records import millions, short
from .rules import FAILS, HOLDS, OPEN, SMOKE_STEPS, UNTESTED, Rule
from .stats import MIN_UNITS, Interval, t_interval


class CannotTell(Exception):
    """Why a claim has no number on these runs; `verdict` stands in its place."""

    def __init__(self, reason: str, verdict: str = UNTESTED) -> None:
        super().__init__(reason)
        self.verdict = verdict


@dataclass(frozen=True)
class Finding:
    """What the runs say on one rule."""

    evidence: str
    verdict: str
    interval: Interval = Interval(None, None, None)
    n: int = 0
    margin: float | None = None  # where it is not the rule's own


@dataclass
class Runs:
    """The runs of one recipe that are long enough to say anything, as a DataFrame and as cells by seed."""

    rows: list[dict]  # in the columns of `records.table`
    records: list[dict]  # where fine-tunings are
    score: str | None  # of runs that were not trained here
    note: str  # what a sentence about cells says of them
    sizes: list[str] = field(init=False)  # smallest first

    def __post_init__(self) -> None:
        import pandas as pd

        longest = max(row["steps"] for row in self.rows)
        self.rows = [row for row in self.rows if row["steps"] >= SMOKE_STEPS]
        if not self.rows:
            text = f"Runs of {longest} steps test the machinery only: the claim needs runs of at least {SMOKE_STEPS}"
            raise CannotTell(text, OPEN)
        self.frame = pd.DataFrame(self.rows)
        order = sorted({(row["params"], row["model"]) for row in self.rows})
        self.sizes, self.params = [model for _, model in order], {model: params for params, model in order}
        # other images have another loss: a set that is no part of the main one has no place among its levels
        main = self.frame[[row.get("on_axis", True) for row in self.rows]]
        main = main.assign(overfit=main["overfit"].map(bool))
        cells = {"index": ["model", "images", "steps"], "columns": "seed"}
        self.loss, self.overfit = (main.pivot_table(values=name, **cells) for name in ("val_loss", "overfit"))
        self.levels, self.lengths = (sorted(main[name].unique().tolist()) for name in ("images", "steps"))
        # where runs were made once, the unit is a cell: a size, a pair of sizes, a data level
        self.by_seed = not self.score or self.frame["seed"].nunique() >= MIN_UNITS

    def name(self, model: str) -> str:
        """`femto (0.54 M parameters)`."""
        return f"{short(model)} ({millions(self.params[model])} parameters)"

    @property
    def complete(self):
        """What ranks compare: the sizes that have the most seeds, and of these the seeds that have the most runs."""
        frame, sizes = self.frame, self.frame.groupby("model")["seed"].nunique()
        frame = frame[frame["model"].isin(sizes.index[sizes == sizes.max()])]
        runs = frame.groupby("seed").size()
        return frame[frame["seed"].isin(runs.index[runs == runs.max()])]

    @property
    def core_minutes(self) -> float | None:
        """What a seed costs, lengths off one trunk counted as they are trained; None where it is not known."""
        if self.frame["core_seconds"].isna().any():
            return None
        by_trunk = self.frame.groupby("trunk")["core_seconds"]
        longest, total = by_trunk.max().sum(), by_trunk.sum().sum()
        # a shorter length shares all but its last eighth with the trunk
        return float(longest + (total - longest) / 8) / self.frame["seed"].nunique() / 60


def conclude(
    rule: Rule, runs: Runs, values: Sequence[float], text: str, said: str, *,
    seeds: Iterable = (), margin: float | Sequence[float] | None = None, interval: Interval | None = None,
    confidence: float = 0.95, form: str = "+.2f", scale: float = 1, unit: str = "cell",
    more: Callable[[str], str] = lambda verdict: "",
) -> Finding:  # fmt: skip
    """From values by unit (a seed, or a cell of runs made once) to the verdict and the whole sentence.

    text: its beginning; said: the margin in words. margin: where it is not the rule's own; of a test *within*, by unit.
    interval: where it is not Student's t of the values. seeds: of the values. form, scale: how the ends of the interval
    are written. more: by the verdict, what comes before that which would decide an open claim.
    """
    interval = interval or t_interval(values, confidence)
    margin = rule.margin if margin is None else margin
    verdict = judge(rule, values, interval, margin)
    units = seed_list([int(seed) for seed in seeds]) if runs.by_seed else f"{len(values)} {unit}s"
    if interval.low is None:
        text += f" ({units}); one {'seed' if runs.by_seed else unit} gives no interval"
    else:
        low, high = (f"{scale * end:{form}}" for end in interval[1:])
        text += f", {100 * confidence:.0f} % interval {low} to {high} ({units}; margin {said})"
        text += f"; fewer than {MIN_UNITS} decide nothing" if len(values) < MIN_UNITS else ""
        text += "" if runs.by_seed else f"; {runs.note}"
    edge = -margin if rule.test == "within" and interval.value < 0 else margin  # the nearer one
    text += more(verdict) + _wanted(runs, np.asarray(values) - edge, verdict, confidence)
    return Finding(text, verdict, interval, len(values), float(np.mean(margin)))


def judge(
    rule: Rule, values: Sequence[float], interval: Interval, margin: float | Sequence[float] | None = None
) -> str:
    """*holds* where the whole interval lies beyond the margin, *does not hold* where all of it lies on the other side.

    Fewer than three units decide nothing, nor do units without any spread, except ranks: a seed's correlation, of five
    runs or more, may well be -1 in all seeds. margin: where it is not the rule's own; *within* asks whether values lie
    between -margin and margin (by unit), by two one-sided tests at 5 %.
    """
    margin, values = rule.margin if margin is None else margin, np.asarray(values, float)
    if len(values) < MIN_UNITS or not (rule.measure.startswith("rank") or np.std(values) > 1e-12):
        return OPEN
    if rule.test == "within":
        up, down = t_interval(values + margin, 0.9), t_interval(values - margin, 0.9)
        yes, no = up.low > 0 and down.high < 0, up.high < 0 or down.low > 0
    else:
        above, below = interval.low > margin, interval.high < margin
        yes, no = {"above": (above, below), "below": (below, above)}[rule.test]
    return HOLDS if yes else FAILS if no else OPEN


def _wanted(runs: Runs, away: np.ndarray, verdict: str, confidence: float) -> str:
    """What would decide an open claim at the spread between seeds just seen; away: values less the margin."""
    if verdict != OPEN or not runs.by_seed or len(away) < 2:
        return ""
    needed = stats.units_needed(float(np.mean(away)), float(np.std(away, ddof=1)), confidence=confidence)
    if needed is None:
        return f"; no {stats.MOST_UNITS:,} seeds would decide so small a difference from the margin"
    needed, minutes = max(needed, MIN_UNITS), runs.core_minutes
    price = f", {minutes * max(0, needed - len(away)):,.0f} core-minutes more" if minutes is not None else ""
    return f"; at this spread {needed} seeds would decide it 8 times in 10{price}"


def side(value: float) -> str:
    """`above` or `below`."""
    return "above" if value >= 0 else "below"


def listed(numbers: Iterable[int]) -> str:
    """`16, 64 and 1,024`."""
    texts = [f"{n:,}" for n in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def seed_list(seeds: list[int]) -> str:
    """`5 seeds: 200 to 204`."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    run = len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{len(seeds)} seeds: {f'{seeds[0]} to {seeds[-1]}' if run else ', '.join(map(str, seeds))}"
