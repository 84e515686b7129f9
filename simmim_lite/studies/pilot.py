"""A pilot study of one's own images: what is there, the seeds an effect needs, the grid that fits the time, one page
for a colleague. No torch here.

Power is that of the paired t-test over seeds, the test behind the claims.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import yaml

from ..data import decode, manifests, scenes
from ..data.sources import catalogue, say_layout
from ..errors import UserError
from ..evidence.records import groups, shipped, table
from ..evidence.rules import SMOKE_STEPS, Claim
from ..evidence.stats import power
from ..evidence.tables import verdicts
from ..model.sizes import SIZES
from ..training.run import Run, write_atomic
from ..training.specs import Folder, Positive, Source, Whole, checked
from . import report
from .collecting import cost_of
from .grids import TIERS, with_references
from .parameters import Tier
from .plan_text import cells, sayings
from .planner import Plan

SCENES = 16_384  # scenes have no end: so many count as the reader's images
MEASURES = ("val_loss", "linear")
#: Seeds a study will ask for at most: beyond, an effect is too small for a pilot.
MOST_SEEDS = 12
MODELS = ("swinv2_atto", "swinv2_femto")
#: Data levels, from one that is short to all images, and the longer of two lengths off one trunk: the first that fits.
#: The shorter of the shortest is long enough for a claim.
GRIDS = ((3, 1000), (3, 500), (3, 250), (2, 250), (2, 2 * SMOKE_STEPS))
_SMALLEST = 16  # images of the smallest level at least
_SHORT = 1e7  # Omega of the larger size at the smallest level: well past where published losses and scores turn


def seed_spread(records: Iterable[dict] | None = None, measure: str = "val_loss", data: str = "photographs") -> float:
    """Standard deviation over seeds of the difference between two settings of one length, the median over pairs.

    Half the answer to how many seeds: the other half is the effect. Of the shipped runs (on photographs or on scenes)
    where no records are given or theirs have no two seeds. `UserError` for an unknown measure.
    """
    if measure not in MEASURES:
        raise UserError(f"measure is '{measure}': give one of {', '.join(MEASURES)}")
    for source in (list(records or ()), shipped("laptop-scenes" if data == "scenes" else "laptop-cifar10")):
        rows = next(iter(groups(table(source)).values()), [])
        cells: dict[tuple, dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row[measure] is not None:
                cells[row["model"], row["images"], row["steps"]][row["seed"]] = row[measure]
        spreads = []
        for a in cells:
            for b in cells:
                both = sorted(cells[a].keys() & cells[b].keys())
                if a < b and a[2] == b[2] and (a[0] == b[0]) != (a[1] == b[1]) and len(both) > 1:
                    spreads.append(np.std([cells[a][s] - cells[b][s] for s in both], ddof=1))
        if spreads:
            return float(np.median(spreads))
    raise UserError(
        "no finished runs have two seeds: the spread between seeds is not known; train two seeds of a study"
    )


def seeds_for(effect: float, spread: float, wanted: float = 0.8) -> int:
    """The fewest seeds that see an effect this often. `UserError` where MOST_SEEDS do not, and for an effect of 0."""
    if not (np.isfinite(effect) and effect > 0):
        raise UserError(f"effect is {effect}: give the smallest difference that would matter, above 0")
    for seeds in range(2, MOST_SEEDS + 1):
        if power(effect, spread, seeds) >= wanted:
            return seeds
    raise UserError(
        f"an effect of {effect:g} needs more than {MOST_SEEDS} seeds (they differ by {spread:.3g}); the smallest that "
        f"{MOST_SEEDS} seeds see is {detectable(spread, MOST_SEEDS, wanted):.2g}"
    )


def detectable(spread: float, seeds: int, wanted: float = 0.8) -> float:
    """The smallest effect that this many seeds see this often; infinite for one seed."""
    if seeds < 2:
        return float("inf")
    low, high = 0.0, 100 * spread
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, spread, seeds) >= wanted else (middle, high)
    return high


@dataclass(frozen=True)
class Design:
    """A pilot study: its runs, what they cost, and what they can see."""

    runs: tuple[Run, ...]
    seeds: int
    core_seconds: float
    power: float  # chance to see the effect asked for
    detects: float  # the smallest effect that these seeds see in 80 of 100 studies
    note: str  # what had to give for the budget; empty where nothing had to

    def sees(self, effect: float) -> str:
        """What these seeds can see, to read."""
        if self.seeds < 2:
            return "one seed has no spread: no difference can be told from noise"
        known = f"sees {effect:g} with power {self.power:.0%}, and {self.detects:.2g} with 80 %"
        return f"{known}. {self.note}" if self.note else known

    @property
    def levels(self) -> tuple[int, ...]:
        """Unique images, smallest first."""
        return tuple(sorted({run.images for run in self.runs if run.steps}))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Optimiser steps, shortest first."""
        return tuple(sorted({run.steps for run in self.runs if run.steps}))


@checked
def design(
    data: Source,
    available: Whole,
    *,
    core_minutes: Positive,
    effect: Positive,
    spread: Positive,
    runs_dir: Folder = "runs",
    wanted: float = 0.8,
    tier: Tier = "quick",
    seeds: Whole = 0,
) -> Design:
    """A small fixed grid of pilot runs on a source that fits into minutes of one core, with the seeds the effect needs.

    `MODELS` by the first of `GRIDS` that fits; where the seeds do not fit with the barest, there are fewer of them, at
    least two, and the note says what power is left. seeds: take so many, whatever the effect needs (0: as many as it
    needs). Tier smoke tests the machinery: two levels of 64 images at most and 20 steps. `UserError` where nothing
    fits, or for too few images.
    """
    if available < 4 * _SMALLEST:
        raise UserError(
            f"{data} has {available} training images: a pilot compares data levels, and needs {4 * _SMALLEST}"
        )
    try:
        needed, more = seeds_for(effect, spread, wanted), ""
    except UserError:  # an effect that no number of seeds sees is said, and not refused
        needed, more = MOST_SEEDS, "more than "
    smoke = tier == "smoke"
    base = replace(TIERS["smoke" if smoke else "quick"].recipe, data=data)
    most, grids = (min(available, 4 * _SMALLEST), ((2, 20),)) if smoke else (available, GRIDS)
    # seeds cost the same each
    seconds = {grid: cost_of(_grid(base, most, *grid, range(1)), runs_dir)["seconds"] for grid in grids}
    for n in [seeds] if seeds else [2] if smoke else range(needed, 1, -1):
        for grid in (grid for grid in grids if n * seconds[grid] <= 60 * core_minutes):
            left = power(effect, spread, n)
            note = f"{more}{needed} seeds would be needed, {n} are run: power {left:.0%}" if n < needed or more else ""
            runs = _grid(base, most, *grid, range(n))
            return Design(tuple(runs), n, n * seconds[grid], left, detectable(spread, n, wanted), note)
    raise UserError(
        f"core_minutes is {core_minutes:g}: the barest pilot ({seeds or 2} seeds) takes about "
        f"{(seeds or 2) * seconds[grids[-1]] / 60:.1f}; give more"
    )


@checked
def collect(
    design: Design,
    *,
    tier: Tier = "quick",
    data: Source = "scenes",
    workers: Whole | None = None,
    runs_dir: Folder = "runs",
) -> list[dict]:
    """The records of a pilot, training what is missing; at tier shipped the finished runs on this data, untrained."""
    from . import engine

    if tier == "shipped":
        return engine.collect("all", data=data, runs_dir=runs_dir)
    return engine.train_runs(design.runs, workers=workers or None, runs_dir=runs_dir)


def _grid(base: Run, available: int, levels: int, steps: int, seeds: Iterable[int]) -> list[Run]:
    """Every size, level and seed at two lengths, and each network at random initialisation, from which lift counts."""
    seen = SIZES[MODELS[-1]].parameters * steps * base.batch_size
    smallest = min(max(_SMALLEST, round((seen / _SHORT) ** 0.5)), available // 4)
    images = [int(n) for n in np.geomspace(smallest, available, levels).round()]
    cells = [replace(base, model=model, seed=seed) for seed in seeds for model in MODELS]
    runs = [replace(one, images=n, steps=t) for one in cells for n in images for t in (steps // 2, steps)]
    return with_references(runs)


def look(data: str) -> dict:
    """What a source holds: images to train on, held-out images, classes (0 = none known), first pictures' paths.

    A folder is listed, not decoded. torchvision and Hugging Face sets are opened, which may download them.
    """
    kind = data.partition(":")[0]
    if data == "scenes":
        return {"images": SCENES, "held out": 1024, "classes": len(scenes.CLASSES), "paths": []}
    if kind == "imagefolder":
        found = catalogue(data)
        laid = found.parts.split(data)
        say_layout(found, laid)
        train = laid.splits["train"]
        held = sum(len(part) for split, part in laid.splits.items() if split != "train")
        paths = [found.reader.title(i) for i in train[:: max(1, len(train) // 6)][:6]]
        return {"images": len(train), "held out": held, "classes": len(laid.classes), "paths": paths}
    from ..data.sources import open_data

    found = open_data(data, 32)
    held = len(found.val) + (len(found.test) if found.test is not None else 0)
    return {"images": len(found.train), "held out": held, "classes": found.num_classes, "paths": []}


def manifest(data: str, levels: Sequence[int], runs_dir: str | Path) -> Path | None:
    """RUNS_DIR/manifest.yaml: which images each data level of a folder holds, with digests; None for other sources.

    Written again where it is there already, so that it is that of the folder as it is now.
    """
    kind, _, name = data.partition(":")
    if kind != "imagefolder":
        return None
    path = Path(runs_dir) / "manifest.yaml"
    root = Path(name).expanduser().absolute()
    content = {"name": root.name, "source": "imagefolder", "images": None, "classes": None, "rule": "hash", "seed": 0}
    content |= {"note": "the data levels of a pilot study", "digest": None}
    content["subsets"] = [{"count": int(n), "images": None, "digest": None} for n in levels]
    write_atomic(path, yaml.safe_dump(content, sort_keys=False))
    manifests.build(path, root)
    return path


def pictures(data: str, side: int = 32) -> np.ndarray:
    """A few training pictures to look at: uint8 (n, 3, side, side). What cannot be read is named on stderr."""
    if data == "scenes":
        return scenes.render(0, range(6), side).images
    paths = look(data)["paths"]
    if not paths:
        from ..data.sources import open_data

        return np.asarray(open_data(data, side).train.images[:6])
    found, problems = [], []
    for path in paths:
        try:
            found.append(decode.read_square(path, side))
        except decode.Unreadable as error:
            problems.append(f"{path}: {error}")
    if not found:
        raise UserError(f"{data}: none of {len(paths)} pictures can be shown (the first: {problems[0]})")
    for problem in problems:
        print(f"not shown: {problem}", file=sys.stderr)
    return np.stack(found)


def write_page(
    path: str | Path,
    *,
    data: str,
    found: dict,
    design: Design,
    claims: Iterable[Claim],
    plan: Plan | str,
    charts: Iterable = (),
) -> Path:
    """One page to show a colleague, readable without a network: what was asked, what was run, verdicts, the plan.

    plan: the reason in one line where there is none. charts: plotly figures.
    """
    import nbformat
    from plotly.offline import get_plotlyjs

    claims, v4 = list(claims), nbformat.v4
    pilot = f"{len([r for r in design.runs if r.steps])} runs: {len(MODELS)} sizes, levels "
    pilot += f"{', '.join(f'{n:,}' for n in design.levels)}, {' and '.join(f'{t:,}' for t in design.lengths)} steps"
    sees = f", which see a difference of {design.detects:.2g} in 80 of 100 studies" if design.seeds > 1 else ""
    texts = [
        f"# What size, how long, how much data?\n\nA pilot on {escape(data.split(':')[-1].rstrip('/').split('/')[-1])}",
        f"- images: {found['images']:,} to train on, {found['held out']:,} held out\n"
        f"- classes: {found['classes'] or 'not known'}\n- pilot: {pilot}\n- seeds: {design.seeds}{sees}",
        f"## What these runs say\n\n{verdicts({'yours': claims})}" if claims else "",
        "## What to run",
    ]
    if isinstance(plan, str):
        texts.append(escape(plan))
    else:
        rows = cells(plan)
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        texts.append(f"{plan.images:,} images, {plan.budget}; {plan.measure} by {plan.basis}")
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in lines).replace("*", "\\*"))
        texts += [f"**{name}**: {escape(text)}" for name, text in sayings(plan).items()]
        texts.append("\n".join(f"- {escape(note)}" for note in plan.notes))
    shown = [v4.new_output("display_data", {report.PLOTLY: json.loads(chart.to_json())}) for chart in charts]
    content = v4.new_notebook(cells=[v4.new_markdown_cell(text) for text in texts])
    content.cells.insert(3, v4.new_code_cell(outputs=shown))
    report.prepare(content)
    write_atomic(path, report.page(content, plotly=get_plotlyjs()))
    return Path(path)
