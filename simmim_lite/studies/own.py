"""From the reader's own images to a verdict: what is there, its manifest, one page for a colleague. No torch here."""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import yaml

from ..data import decode, manifests, scenes
from ..data.catalogue import say_layout
from ..data.sources import catalogue, open_data
from ..errors import UserError
from ..evidence.rules import Claim
from ..training.run import write_atomic
from .pilot import Design
from .plan_text import cells, sayings
from .planner import Plan
from .report_page import claim_card, facts, html_table, page

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
        paths = [found.reader.title(i) for i in train[:: max(1, len(train) // 6)][:6]]
        return {"images": len(train), "held out": held, "classes": len(laid.classes), "paths": paths}
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
    claims = list(claims)
    told = {
        "images": f"{found['images']:,} to train on, {found['held out']:,} held out",
        "classes": f"{found['classes']:,}" if found["classes"] else "not known",
        "pilot": f"{len([r for r in design.runs if r.steps])} runs: {len(design.sizes)} sizes, levels "
        f"{', '.join(f'{n:,}' for n in design.levels)}, {' and '.join(f'{t:,}' for t in design.lengths)} steps",
        "seeds": f"{design.seeds}"
        + (f", which see a difference of {design.detects:.2g} in 80 of 100 studies" if design.seeds > 1 else ""),
    }
    parts = [f'<p class="kicker">simmim-lite · {escape(_named(data))}</p><h1>What size, how long, how much data?</h1>']
    parts.append(f"<section>{facts(told)}</section>")
    if claims:
        parts.append(f"<section><h2>What these runs say</h2>{''.join(map(claim_card, claims))}</section>")
    for chart in charts:
        html = chart.to_html(full_html=False, include_plotlyjs=False)  # `page` holds it
        parts.append(f'<figure><div class="plot">{html}</div></figure>')
    parts.append("<section><h2>What to run</h2>")
    if isinstance(plan, str):
        parts.append(f"<p>{escape(plan)}</p>")
    else:
        lines = cells(plan)
        parts.append(f"<p>{escape(f'{plan.images:,} images, {plan.budget}; {plan.measure} by {plan.basis}')}</p>")
        parts.append(html_table(list(lines[0]), [list(line.values()) for line in lines]))
        parts += [f"<p><b>{escape(name)}</b>: {escape(text)}</p>" for name, text in sayings(plan).items()]
        parts += [f'<p class="note">{escape(note)}</p>' for note in plan.notes]
    write_atomic(path, page(f"A pilot on {_named(data)}", "".join([*parts, "</section>"])))
    return Path(path)


def _named(data: str) -> str:
    return data.split(":")[-1].rstrip("/").split("/")[-1]
