"""What the explorer shows, as one JSON-able dict: runs, doublings, views, filters, and the reader's own. No torch here.

Everything that is computed is computed here, from `evidence`; js/explorer.js filters, draws and correlates.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from plotly.colors import sample_colorscale

from ..errors import UserError
from ..evidence import published
from ..evidence.doublings import doublings, omega, power, turning_point
from ..evidence.drawing import COLOURS, LABELS, SYMBOLS, count, data_name, loss_unit, shades, size_name
from ..evidence.drawing import SOURCES as KINDS
from ..evidence.forms import score_of
from ..evidence.records import OVERFIT, SCORES, groups, millions, short, sizes_of, trained

Rows = list[dict]
#: A turning point of Omega is known to no better than this factor, either way (FACTS 7).
KNOWN_TO = 1.5
#: Colours of the reader's sets of runs on white and on black; shipped ones have the first, as in `summaries`.
OWN = tuple(zip(COLOURS[:4], ("#5AB4E8", "#F08A3C", "#3CC79E", "#E39AC2"), strict=True))
OVERFIT_RULE = (
    f"Overfit: the loss lies more than {OVERFIT:g} above that of the same size and length on all of ImageNet-1K, or of "
    "a shorter run of the same size and data."
)
OMEGA_RULE = (
    "Omega is parameters × images seen / unique images², of the longer run where two are compared. The turning points "
    "are where one of the published doublings of the length is as likely to harm as not; the grey bands say how well "
    f"they are known, to a factor of {KNOWN_TO:g}."
)
OWN_RULE = (
    "Their losses and scores are not the same quantities as the published ones: solid triangles say where they stand "
    "on the Omega axis, and changes against a run half as long have panels of their own."
)
_NEEDED = ("model", "params", "images", "images_seen", "steps", "seed", "val_loss", "data", "recipe", "reference")
_DARK = (0.97, 0.42)  # from little data to much on a dark page: the part of plasma with a contrast above 3


def data(rows: Rows | Mapping[str, Rows] | None = None) -> dict:
    """The whole explorer: runs (63), doublings (42), turns, facets (filters), views (panels), measures, own.

    rows: the reader's own, as `records.table` or `imported.read_csv` give them, or several sets by name, as
    `sides.rows` gives them ("published" is left out: it is there already). Losses as published, scores in % and their
    changes in points, changes of the loss in % of the shorter run's, Omega without unit. `UserError` for other rows.
    """
    runs = published.rows()
    found = doublings(runs, published.SCORE)
    turns = _turns(found)
    place = {(_unit(row), row["steps"]): k for k, row in enumerate(runs)}
    own = [_own(k, name, set_, turns) for k, (name, set_) in enumerate(_sets(rows).items())]
    return {
        "runs": [_run(row) for row in runs],
        "doublings": [
            _doubling(d, runs) | {"runs": [place[d["unit"], steps] for steps in (d["steps"] // 2, d["steps"])]}
            for d in found
        ],
        "turns": turns,
        "known_to": KNOWN_TO,
        "facets": _facets(runs),
        "measures": [
            {"field": published.SCORE, "label": "accuracy", "title": "top-1 after fine-tuning (%)"},
            {"field": "val_loss", "label": "validation loss", "title": f"validation loss ({loss_unit(runs)})"},
        ],
        "views": _views(runs, own),
        "own": own,
        "own_rule": OWN_RULE,
        "rules": f"{OVERFIT_RULE} {OMEGA_RULE}",
    }


def _run(row: dict) -> dict:
    """A published run: what filters and views need, and its hover text."""
    kept = ("model", "dataset", "steps", "overfit", "on_axis", "images", "images_seen", "params", "val_loss")
    return {name: row[name] for name in kept} | {
        published.SCORE: 100 * row[published.SCORE],
        "omega": omega(row),
        "name": f"{short(row['model'])}, {data_name(row['dataset'])}, {row['steps']:,} steps",
        "text": _lines(
            f"<b>{size_name(row)}</b>",
            data_name(row["dataset"]),
            f"{row['images']:,} images",
            f"{row['steps']:,} steps, {row['epochs']:,.0f} epochs",
            f"validation loss {row['val_loss']:.4f}",
            f"top-1 {100 * row[published.SCORE]:.2f} %",
            f"Omega {power(omega(row))}{', overfit' if row['overfit'] else ''}",
        ),
    }


def _lines(*lines: str) -> str:
    """A hover text of short lines: a small panel has no room for long ones."""
    return "<br>".join(line for line in lines if line)


def _doubling(d: dict, runs: Rows, of: str = "top-1") -> dict:
    """A doubling of the length: Omega of the longer run, changes of loss (%) and score (points, `of`), hover text."""
    shorter = next(row for row in runs if (_unit(row), row["steps"]) == (d["unit"], d["steps"] // 2))
    loss = 100 * d["loss_change"] / shorter["val_loss"]
    score = None if d["score_change"] is None else 100 * d["score_change"]
    return {
        "omega": d["omega"],
        "loss_change": loss,
        "score_change": score,
        "text": _lines(
            f"<b>{size_name(d)}</b>",
            f"{d['images']:,} images",
            f"{d['steps'] // 2:,} to {d['steps']:,} steps",
            f"validation loss {loss:+.2f} %",
            "" if score is None else f"{of} {score:+.2f} points",
            f"Omega {power(d['omega'])}",
        ),
    }


def _unit(row: dict) -> str:
    """The cell and seed of a run, as `doublings` names them."""
    return " ".join(map(str, (row["model"], row["images"], row.get("dataset"), row["seed"])))


def _turns(found: Rows) -> dict[str, float | None]:
    """Where the loss turns up and where the score turns down, in Omega (`doublings.turning_point`)."""
    return {of: turning_point(found, of) for of in ("loss", "score")}


def _facets(runs: Rows) -> list[dict]:
    """The filters, which are the legend too: a symbol a size, a colour a data set, a dot for overfit."""
    models, symbols = sizes_of(runs), dict(zip(sizes_of(runs), SYMBOLS, strict=False))
    params = {row["model"]: row["params"] for row in runs}
    images = dict(sorted({(row["dataset"], row["images"]) for row in runs}, key=lambda pair: pair[1]))
    day = shades(sorted(images.values()))
    night = dict(zip(sorted(images.values()), sample_colorscale("plasma", np.linspace(*_DARK, len(day))), strict=True))
    seen = dict(sorted({(row["steps"], row["images_seen"]) for row in runs}))
    sizes = [{"value": m, "label": short(m), "more": millions(params[m]), "symbol": symbols[m]} for m in models]
    sets = [
        {"value": d, "label": data_name(d), "more": f"{count(n)} images", "colour": day[n], "dark": night[n]}
        for d, n in images.items()
    ]
    lengths = [{"value": t, "label": f"{count(t)} steps", "more": f"{count(n)} seen"} for t, n in seen.items()]
    overfit = [{"value": False, "label": "not overfit"}, {"value": True, "label": "overfit", "dot": True}]
    titles = {"model": "Model size", "dataset": "Data set", "steps": "Length", "overfit": "Overfitting"}
    options = {"model": sizes, "dataset": sets, "steps": lengths, "overfit": overfit}
    return [{"field": field, "title": titles[field], "options": options[field]} for field in titles]


def _views(runs: Rows, own: list[dict]) -> list[dict]:
    """The panels. `join`: what the runs on one line share; y "measure": the one that the reader chose."""

    def axis(field: str, title: str, ticks: Mapping[float, str] | None = None, log: bool = True) -> dict:
        return {"field": field, "title": title, "log": log, "ticks": list((ticks or {}).items())}

    sizes = {r["params"]: f"{short(r['model'])}<br>{count(round(r['params'], -6))}" for r in runs}
    seen = {r["images_seen"]: count(r["images_seen"]) for r in runs}
    images = {r["images"]: count(r["images"]) for r in runs}
    powers = {10.0**k: f"1e{k}" for k in range(-3, 15)}
    measure = {"field": "measure", "title": "", "log": False, "ticks": []}
    accuracy = axis(published.SCORE, "top-1 after fine-tuning (%)", log=False)
    loss = axis("val_loss", f"validation loss ({loss_unit(runs)})", log=False)
    omega_axis = axis("omega", "Omega of the longer run", powers)
    loss_change = axis("loss_change", "change of validation loss (%)", log=False)
    score_change = axis("score_change", "change of top-1 (points)", log=False)
    found = [
        {"id": "proxy", "title": "Accuracy against validation loss", "x": loss, "y": accuracy, "note": "a mark: a run"},
        {
            "id": "length", "title": "Length", "join": ["model", "dataset"], "y": measure,
            "x": axis("images_seen", "images seen in training", seen), "note": "a line: one size on one data set",
        },
        {
            "id": "data", "title": "Data", "join": ["model", "steps"], "y": measure,
            "x": axis("images", "unique training images", images),
            "note": "a line: one size at one length, on parts of ImageNet-1K",
        },
        {
            "id": "size", "title": "Model size", "join": ["dataset", "steps"], "y": measure,
            "x": axis("params", "backbone parameters", sizes), "note": "a line: one data set at one length",
        },
        {
            "id": "omega-loss", "title": "Twice as long: does the loss rise?", "of": "doublings", "x": omega_axis,
            "y": loss_change, "note": "a mark: a run, against one half as long",
        },
        {
            "id": "omega-score", "title": "Twice as long: does accuracy fall?", "of": "doublings", "x": omega_axis,
            "y": score_change, "note": "a mark: a run, against one half as long",
        },
    ]  # fmt: skip
    for k, set_ in enumerate(own):
        if not set_["doublings"]:
            continue
        ys = {"loss": (loss_change, "validation loss")}
        if set_["score"]:
            ys["score"] = axis("score_change", f"change of {set_['score']} (points)", log=False), set_["score"]
        for turn, (y, what) in ys.items():
            own_turn = f"; solid line: turns near {power(set_['turns'][turn])}" if set_["turns"][turn] else ""
            of = {"of": "own", "own": k, "turn": turn, "x": omega_axis, "y": y, "note": f"own vertical axis{own_turn}"}
            found.append({"id": f"own-{k}-{turn}", "title": f"{set_['name']}: {what}"} | of)
    return found


def _sets(rows: Rows | Mapping[str, Rows] | None) -> dict[str, Rows]:
    """The reader's sets of trained rows by name, those of the recipe with most runs; empty ones left out."""
    sets = rows if isinstance(rows, Mapping) else {"yours": rows or []}
    found = {}
    for kind, given in sets.items():
        if kind == "published":
            continue
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise UserError(f"explorer: {kind} is {type(given).__name__}: give rows of records.table(records)")
        for number, row in enumerate(given):
            lacking = next((n for n in _NEEDED if n not in row), None) if isinstance(row, Mapping) else "field"
            if lacking:
                raise UserError(
                    f"explorer: row {number} of {kind} has no {lacking}: give rows of records.table(records)"
                )
        usable = [row for row in trained(given) if row["val_loss"] is not None]
        if usable:
            found[KINDS.get(kind, kind)] = next(iter(groups(usable).values()))
    return found


def _own(k: int, name: str, rows: Rows, turns: dict) -> dict:
    """A set of the reader's: every run on the Omega axis, its doublings in relative form, its own turning points."""
    score = score_of(rows)
    found = doublings(rows, score or "val_loss")
    if score is None:
        found = [d | {"score_change": None} for d in found]
    own = _turns(found) if score else {"loss": turning_point(found), "score": None}
    what = SCORES.get(score, "")
    day, night = OWN[k % len(OWN)]
    said = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} ({str(rows[0]['data']).split('/')[-1]})"
    doubled = f"{len(found)} {'doubling' if len(found) == 1 else 'doublings'} of the length"
    said += f", {doubled if found else 'none of them twice as long as another'}"
    parts = {"loss": "validation loss turns up", "score": f"{LABELS.get(score, '')} turns down"}
    turned = [f"{parts[of]} near Omega {power(value)}" for of, value in own.items() if value]
    said += f"; {' and '.join(turned)}" if turned else ""
    return {
        "name": name,
        "score": what,
        "colour": day,
        "dark": night,
        "runs": [{"omega": omega(row), "text": _where(name, row, turns)} for row in rows],
        "doublings": [_doubling(d, rows, what) for d in found],
        "turns": own,
        "said": said,
    }


def _where(name: str, row: dict, turns: dict) -> str:
    """The hover text of an own run: which, its Omega, and on which side of the two published turning points it lies."""
    value = omega(row)
    known = [t for t in turns.values() if t]
    side = "below both" if value < min(known) else "above both" if value > max(known) else "between the"
    return _lines(
        f"<b>{escape(name)}</b>",
        size_name(row),
        f"{row['images']:,} images",
        f"{row['steps']:,} steps, seed {row['seed']}",
        f"Omega {power(value)}: {side}",
        "published turning points",
    )
