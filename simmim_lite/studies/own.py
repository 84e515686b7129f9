"""From the reader's own images to a verdict: what is there, its manifest, one page for a colleague. No torch here."""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import yaml

from ..data import decode, manifests, scenes
from ..data.catalogue import catalogue, say_layout
from ..errors import UserError
from ..evidence.rules import Claim
from ..evidence.tables import verdicts
from ..training.run import write_atomic
from . import report
from .pilot import Design
from .plan_text import cells, sayings
from .planner import Plan

SCENES = 16_384  # scenes have no end: so many count as the reader's images


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
        paths = [found.title(i) for i in train[:: max(1, len(train) // 6)][:6]]
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
    pilot = f"{len([r for r in design.runs if r.steps])} runs: {len(design.sizes)} sizes, levels "
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
    shown = [v4.new_output("display_data", {report.PLOTLY: chart.to_plotly_json()}) for chart in charts]
    content = v4.new_notebook(cells=[v4.new_markdown_cell(text) for text in texts])
    content.cells.insert(3, v4.new_code_cell(outputs=shown))
    report.prepare(content)
    write_atomic(path, report.page(content, plotly=get_plotlyjs()))
    return Path(path)
