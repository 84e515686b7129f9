"""The report of the studies: one HTML file with figures, claims, runs and cost, that opens without a network."""

from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..errors import UserError, unknown
from ..evidence import transfers
from ..evidence.claims import claims
from ..evidence.records import OVERFIT, SWEPT, finished, groups, millions, short, table
from ..evidence.rules import FAILS, HOLDS, OPEN, TABLE, UNTESTED, Claim
from ..training.run import write_atomic
from .grids import STUDIES, TRANSFER
from .report_page import claim_card, claim_rows, facts, html_table, page


@dataclass(frozen=True)
class Section:
    """A study's part of the report."""

    title: str
    question: str
    text: str
    figure: str  # a function of evidence.plots
    caption: str
    claims: tuple[str, ...]


BARS = "Lines join means over seeds, bars are one standard error, faint dots are the seeds."
SECTIONS = {
    "data-scale": Section(
        "Data scale",
        "How much does more data help?",
        "The same networks, trained for the same number of steps, see few images often or many images once. Where the "
        "loss on unseen images stops falling, more data no longer helps that network at that length.",
        "data_scale",
        f"Every run has the same number of steps. {BARS}",
        ("C1", "C6", "C8"),
    ),
    "model-size": Section(
        "Model size",
        "When is a larger network better?",
        "A larger network can learn more from many images, and can learn few images by heart. So the lines of "
        "different data levels may run in opposite directions.",
        "model_size",
        f"Every run has the same number of steps. {BARS}",
        ("C1", "C2"),
    ),
    "schedule": Section(
        "Schedule",
        "Does longer training always help?",
        "Runs that differ only in length share their first part exactly; each spends its last eighth at a tenth of the "
        "learning rate. Where data is short, a longer run may come out worse on unseen images.",
        "schedule",
        f"Colour tells the data level, dash and symbol the size. {BARS}",
        ("C3", "C4", "C7"),
    ),
    "proxy": Section(
        "Validation loss as a proxy",
        "Can the pretraining loss tell which network will transfer best?",
        "Each network is frozen and a linear classifier is fitted on its features. What it gains over the same network "
        "at random initialisation is its lift. A loss that ranks the lifts can choose a network without any label.",
        "proxy",
        "A point is a run. Colour tells the data level, the symbol the size. Lower loss is to the left.",
        ("C5a", "C5b"),
    ),
    TRANSFER: Section(
        "Transfer",
        "What is pretraining worth, task by task?",
        "Each task is trained from pretrained weights and from a random start, with the same annotations, steps and "
        "seed, and a learning rate tuned for each start. The gain is the difference.",
        "gains",
        "A panel a score, a line a size. Bars are 95 % intervals over seeds.",
        ("C5a", "C5b", "C8"),
    ),
}
READING = (
    "Most of each image is hidden, patch by patch, and a Swin Transformer V2 learns to fill it in (SimMIM). "
    "<b>Validation loss</b> is the mean absolute error on the hidden pixels of images that were never trained on, "
    "always with the same masks. <b>Lift</b> is what a probe on the frozen features scores above the same network at "
    "random initialisation. A claim <b>holds</b> when its whole 95 % interval (bar) lies beyond the margin (dashed "
    "line), <b>does not hold</b> when all of it lies on the other side; otherwise the evidence is <b>too small to "
    "say</b>. What these runs cannot test reads <b>not tested here</b>. C1 to C4 and C6 compare validation losses (C6 "
    "by two one-sided tests at 5 %), C5 rank correlations, C7 changes of a score, C8 top-1. There are ten rules: if "
    "every true effect lay at its margin, one or more would be found to hold in up to 24 of 100 studies. Validation "
    "pictures, masks and probe labels are the same for all seeds: the conclusions are about these."
)
UNITS = {
    "image_size": "px",
    "mask_patch": "px",
    "window_size": "tokens",
    "warmup_steps": "steps",
    "eval_every": "steps",
}
UNITS |= {"target_window": "px", "batch_size": "images"}


def write_report(
    records: list[dict],
    path: str | Path,
    *,
    tier: str,
    data: str,
    core_seconds: float,
    wall_seconds: float,
    studies: tuple[str, ...] = STUDIES,
) -> Path:
    """Write the report of the runs on `data` to `path`, whole or not at all, and return the path.

    `core_seconds`, `wall_seconds`: what this call's training took (0 when all runs were there). Commit,
    device and versions come from the records.
    Figures and claims use the recipe with most runs; failed runs are listed with their reasons. Raises `UserError` for
    an unknown study, for a path that cannot be written, and where plotly is not installed.
    """
    for study in studies:
        if study not in SECTIONS:
            raise unknown("study", study, SECTIONS)
    try:
        from ..evidence import figures, plots
    except ImportError as error:
        raise UserError(f"the report needs plotly ({error}): pip install plotly; finished runs are kept") from error

    everything = [r for r in records if (r.get("run") or r.get("spec") or {}).get("data") == data]
    gains = transfers.gains(transfers.table(everything))
    records = [r for r in records if r.get("kind") == "pretrain" and r["run"]["data"] == data]
    rows = table(records)
    recipes = groups(rows)
    main = next(iter(recipes.values()), [])
    keys = {row["key"] for row in main}
    used = [r for r in finished(records) if r["key"] in keys]
    said = {c.id: c for c in claims(everything) if main and c.recipe == main[0]["recipe"]}
    wanted = [
        said[rule.id] for rule in TABLE if rule.id in said and any(rule.id in SECTIONS[s].claims for s in studies)
    ]

    parts = [_summary(main, wanted, tier, data)]
    if wanted:
        parts.append(
            f'<section><h2>The claims at a glance</h2>{claim_rows(wanted)}<p class="note">{READING}</p></section>'
        )
    parts.append(_what_ran(main, used, tier, data))
    shown: set[str] = set()
    for number, study in enumerate(studies if main else (), 1):
        section = SECTIONS[study]
        by_score = {"panel": "name", "interval": True}
        if study == TRANSFER:
            drawn = figures.lines(gains, "images", "gain", "model", **by_score)
        else:
            drawn = getattr(plots, section.figure)(main)
        figure = _figure(drawn, study)
        cards = "".join(claim_card(said[c]) for c in section.claims if c in said and c not in shown)
        shown |= set(section.claims)
        parts.append(
            f'<section id="{study}"><p class="kicker">Study {number} · {escape(section.title)}</p>'
            f"<h2>{escape(section.question)}</h2><p>{escape(section.text)}</p>"
            f"<figure>{figure}<figcaption>{escape(section.caption)}</figcaption></figure>{cards}</section>"
        )
    if main:
        parts.append(_runs(rows, recipes, main, _figure(plots.curves(used), "curves")))
    parts.append(_cost(plots.cost(rows), core_seconds, wall_seconds))
    if used:
        parts.append(_settings(used))
    parts.append(_failed([r for r in records if r["status"] == "failed"]))
    path = Path(path)
    write_atomic(path, page("How does masked image modelling scale?", "".join(parts)))
    return path


def _summary(main: list[dict], wanted: list[Claim], tier: str, data: str) -> str:
    head = f'<p class="kicker">simmim-lite · tier {escape(tier)} · {escape(data)}</p>'
    head += "<h1>How does masked image modelling scale?</h1>"
    if not main:
        return f'<header>{head}<p class="lede">No run has finished yet.</p></header>'
    levels, steps = sorted({r["images"] for r in main}), max(r["steps"] for r in main)
    seeds = len({r["seed"] for r in main})
    spread = f"{levels[0]:,} to {levels[-1]:,}" if len(levels) > 1 else f"{levels[0]:,}"
    lede = f"{_n(len(main), 'pretraining run')} of {_sizes(main)} on {spread} images, up to {steps:,} steps, "
    lede += f"{_n(seeds, 'seed')}."
    count = Counter(c.verdict for c in wanted)
    verdicts = [f"{count[HOLDS]} of {_n(len(wanted), 'claim')} hold{'s' if count[HOLDS] == 1 else ''} here"]
    refuted, untested = count[FAILS], count[UNTESTED]
    verdicts += [f"{refuted} {'does' if refuted == 1 else 'do'} not"] if refuted else []
    verdicts += [f"{count[OPEN]} {'is' if count[OPEN] == 1 else 'are'} too small to say"] if count[OPEN] else []
    verdicts += [f"{untested} {'is' if untested == 1 else 'are'} not tested"] if untested else []
    return f'<header>{head}<p class="lede">{escape(lede)} {escape(", ".join(verdicts))}.</p></header>'


def _what_ran(main: list[dict], used: list[dict], tier: str, data: str) -> str:
    where = [r.get("where") or {} for r in used]
    latest = max(where, key=lambda w: w.get("finished") or "", default={})
    commits = {(w["commit"][:10] + (" with changes" if w.get("dirty") else "")) for w in where if w.get("commit")}
    versions = latest.get("versions") or {}
    said = {"tier": tier, "data": data}
    if main:
        said |= {
            "model sizes": _sizes(main),
            "unique images": _listed(main, "images"),
            "length": _listed(main, "steps") + " steps",
            "seeds": _listed(main, "seed"),
            "image size": f"{main[0]['image_size']} px",
            "target": f"{main[0]['target']} pixels",
            "device": "; ".join(sorted({str(w["device"]) for w in where if w.get("device")})) or "unknown",
            "commit": ", ".join(sorted(commits)) or "unknown",
        }
    said["versions"] = ", ".join(f"{name} {value}" for name, value in sorted(versions.items())) or "unknown"
    return f"<section><h2>What was run</h2>{facts(said)}</section>"


def _runs(rows: list[dict], recipes: dict[str, list[dict]], main: list[dict], figure: str) -> str:
    columns = ["model", "images", "steps", "seed", "epochs", "validation loss", "train loss"]
    columns += ["linear %", "lift", "kNN %", "segm. %", "core-s", ""]
    lines = []
    for row in sorted(rows, key=lambda r: (r["recipe"] != main[0]["recipe"] and not r["reference"], r["reference"])):
        note = "random initialisation" if row["reference"] else "overfit" if row["overfit"] else ""
        if not row["reference"] and row["recipe"] != main[0]["recipe"]:
            note = "other settings"
        lift = row["linear_lift"]
        lines.append(
            [
                short(row["model"]),
                "–" if row["reference"] else f"{row['images']:,}",
                f"{row['steps']:,}",
                str(row["seed"]),
            ]
            + [_cell(row["epochs"], ",.1f"), _loss(row), _cell(row["train_loss"], ".4f")]
            + [_cell(row["linear"], ".1f", 100), _cell(None if row["reference"] else lift, "+.1f", 100)]
            + [
                _cell(row["knn"], ".1f", 100),
                _cell(row["segment"], ".1f", 100),
                _cell(row["core_seconds"], ".0f"),
                note,
            ]
        )
    others = sum(len(line) for line in recipes.values()) - len(main)
    note = f"<p>{_n(others, 'run')} with other settings: in the table, not in figures and claims.</p>" if others else ""
    caption = "The longest run of every size, data level and seed, validated along the way."
    return (
        f"<section><h2>All runs</h2><figure>{figure}<figcaption>{caption}</figcaption></figure>"
        f'{note}{html_table(columns, lines, text_columns=(0, 12), scroll=True)}<p class="note">Scores are per cent, '
        f"lifts points. A run is overfit when its loss ends more than {OVERFIT} above the lowest of its own curve.</p>"
        "</section>"
    )


def _cost(totals: list[dict[str, str]], core_seconds: float, wall_seconds: float) -> str:
    lines = [list(line.values()) for line in totals]
    body = html_table(list(totals[0]), lines, text_columns=(0,)) if totals else ""
    spent = {"this time": f"{core_seconds:,.0f} core-seconds in {wall_seconds:,.0f} seconds"}
    text = (
        "Every run counts in full, whenever it was trained: runs off one trunk each count its steps, so the sums are "
        "more than what was spent."
    )
    note = f'<p class="note">{text}</p>' if totals else ""
    return f"<section><h2>What it cost</h2>{facts(spent)}{body}{note}</section>"


def _settings(used: list[dict]) -> str:
    said = {}
    for name in (name for name in used[0]["run"] if name not in (*SWEPT, "data")):
        values = sorted({str(record["run"].get(name)) for record in used})
        said[name] = ", ".join(values) + (f" {UNITS[name]}" if name in UNITS and values != ["None"] else "")
    return f"<section><h2>Settings of the recipe</h2>{facts(said, mono=True)}</section>"


def _failed(failed: list[dict]) -> str:
    if not failed:
        return ""
    lines = sorted([record["key"], str(record.get("reason") or "no reason was recorded")] for record in failed)
    body = html_table(["run", "reason"], lines, text_columns=(0, 1))
    return f'<section><h2>Runs that failed</h2><p class="note">They are in no figure and no claim.</p>{body}</section>'


def _figure(figure, name: str) -> str:
    config = {"displaylogo": False, "responsive": True}
    body = figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"figure-{name}")
    return f'<div class="plot">{body}</div>'


def _sizes(rows: list[dict]) -> str:
    sizes = sorted({(row["params"], row["model"]) for row in rows})
    return ", ".join(f"{short(model)} ({millions(params)})" for params, model in sizes)


def _listed(rows: list[dict], name: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({row[name] for row in rows}))


def _cell(value: float | None, form: str, scale: float = 1) -> str:
    return "–" if value is None else format(scale * value, form)


def _loss(row: dict) -> str:
    error = "" if row["val_loss_se"] is None else f" ± {row['val_loss_se']:.4f}"
    return _cell(row["val_loss"], ".4f") + error


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
