"""An explorer of the 63 published runs: linked views, filters, the reader's own runs on the Omega axis. No torch here.
Everything that is computed is computed here, from `evidence`; js/explorer.js filters, draws and correlates."""

import gzip
from collections.abc import Mapping
from html import escape

import numpy as np
import traitlets
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from ..errors import UserError
from ..evidence import published
from ..evidence.drawing import COLOURS, LABELS, SYMBOLS, count, data_name, power, shades, size_name
from ..evidence.drawing import SOURCES as KINDS
from ..evidence.proxy import doublings, omega, turning_points
from ..evidence.records import OVERFIT, SCORES, groups, millions, score_of, short, trained
from .widgets import Widget, module, source

Rows = list[dict]
KNOWN_TO = 1.5  # a turning point of Omega is known to no better than this factor, either way (docs/facts.md, 7)
#: Colours of the reader's sets of runs on white and on black.
OWN = tuple(zip(COLOURS[:4], ("#5AB4E8", "#F08A3C", "#3CC79E", "#E39AC2"), strict=True))
_DARK = (0.97, 0.42)  # from little data to much on a dark page: the part of plasma with a contrast above 3


class Explorer(Widget):
    """data goes to the browser once, and plotly.js when it asks, so that notebooks that save their widgets stay small;
    `selected` and `shown` come back as indices of the published runs."""

    _esm = module("explorer_views", "explorer")
    _css = source("explorer.css")
    look, width = "sl-explorer", 1240
    unless = "The explorer is live where this cell is run, and on the pages of a report or of the site."
    data = traitlets.Dict().tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    shown = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(self, rows: Mapping[str, Rows] | None = None) -> None:
        content = data(rows or {})
        super().__init__(data=content, shown=list(range(len(content["runs"]))))
        self.on_msg(self._answer)

    def _answer(self, _: object, message: object, __: object) -> None:
        if message == "plotly":
            self.send("plotly", buffers=[gzip.compress(get_plotlyjs().encode(), 6)])

    def chosen(self) -> Rows:
        """The published rows that are selected in the explorer; while none is, those that its filters leave."""
        rows = published.rows()
        return [rows[k] for k in self.selected or self.shown]


def data(rows: Mapping[str, Rows]) -> dict:
    """The whole explorer: runs (63), doublings (42), turns, facets (filters), views (panels), measures, own.

    rows: sets of the reader's own by name, as `records.run_rows` or `published.read_csv` give them ("published" is left
    out: it is there already). They appear on the Omega axis and in panels of their own: their losses are another
    quantity. Scores in % and their changes in points, changes of the loss in % of the shorter run's. `UserError` for
    other rows.
    """
    runs = published.rows()
    found, place = doublings(runs, published.SCORE), {(_unit(row), row["steps"]): k for k, row in enumerate(runs)}
    turns, pairs = turning_points(found), []
    for d in found.to_dict("records"):
        pairs.append(_doubling(d, runs) | {"runs": [place[d["unit"], n] for n in (d["steps"] // 2, d["steps"])]})
    sets = {KINDS.get(kind, kind): _usable(kind, given) for kind, given in rows.items() if kind != "published"}
    sets = [(name, usable) for name, usable in sets.items() if usable]
    own = [_own(name, usable, turns, *OWN[k % len(OWN)]) for k, (name, usable) in enumerate(sets)]
    loss = {"field": "val_loss", "label": "validation loss", "title": "validation loss (as published)"}
    score = {"field": published.SCORE, "label": "accuracy", "title": "top-1 after fine-tuning (%)"}
    views = [*_views(runs, score["title"], loss["title"]), *_own_views(own)]
    found = {"runs": [_run(row) for row in runs], "doublings": pairs, "turns": turns, "known_to": KNOWN_TO}
    found |= {"facets": _facets(runs), "measures": [score, loss], "views": views, "own": own}
    return found | {"overfit": OVERFIT}


def _usable(kind: str, rows: Rows) -> Rows:
    """The reader's trained rows, those of the recipe with most runs."""
    try:
        usable = [row for row in trained(rows) if row["val_loss"] is not None and omega(row)]
        return next(iter(groups(usable).values())) if usable else []
    except (KeyError, TypeError) as error:
        raise UserError(f"explorer: {kind} are no rows of records.run_rows(records): they have no {error}") from error


def _run(row: dict) -> dict:
    """A published run: what filters and views need, and its hover text."""
    score, steps = 100 * row[published.SCORE], f"{row['steps']:,} steps"
    lines = [f"<b>{size_name(row)}</b>", data_name(row["dataset"]), f"{row['images']:,} images"]
    lines += [f"{steps}, {row['epochs']:,.0f} epochs", f"validation loss {row['val_loss']:.4f}", f"top-1 {score:.2f} %"]
    lines += [f"Omega {power(omega(row))}{', overfit' if row['overfit'] else ''}"]
    same = ("model", "dataset", "steps", "overfit", "on_axis", "images", "images_seen", "params", "val_loss")
    name = f"{short(row['model'])}, {data_name(row['dataset'])}, {steps}"
    own = {published.SCORE: score, "omega": omega(row), "name": name, "text": "<br>".join(lines)}
    return {field: row[field] for field in same} | own


def _unit(row: dict) -> str:
    """The cell and seed of a run, as `doublings` names them."""
    return " ".join(map(str, (row["model"], row["images"], row.get("dataset"), row["seed"])))


def _doubling(d: dict, runs: Rows, of: str = "top-1") -> dict:
    """A doubling of the length: Omega of the longer run, changes of loss (%) and score (points, `of`), hover text."""
    shorter = next(row for row in runs if (_unit(row), row["steps"]) == (d["unit"], d["steps"] // 2))
    loss, score = 100 * d["loss_change"] / shorter["val_loss"], 100 * d["score_change"] if of else None
    lines = [f"<b>{size_name(d)}</b>", f"{d['images']:,} images", f"{d['steps'] // 2:,} to {d['steps']:,} steps"]
    lines += [f"validation loss {loss:+.2f} %", *([f"{of} {score:+.2f} points"] if of else [])]
    text = "<br>".join([*lines, f"Omega {power(d['omega'])}"])
    return {"omega": d["omega"], "loss_change": loss, "score_change": score, "text": text}


def _facets(runs: Rows) -> list[dict]:
    """The filters, which are the legend too: a symbol a size, a colour a data set, a dot for overfit."""
    params, sets = {row["model"]: row["params"] for row in runs}, []
    images = dict(sorted({(row["dataset"], row["images"]) for row in runs}, key=lambda pair: pair[1]))
    seen = dict(sorted({(row["steps"], row["images_seen"]) for row in runs}))
    day = shades(sorted(images.values()))
    night = dict(zip(day, sample_colorscale("plasma", np.linspace(*_DARK, len(day))), strict=True))
    sizes = zip(sorted(params, key=params.get), SYMBOLS, strict=False)
    sizes = [{"value": m, "label": short(m), "more": millions(params[m]), "symbol": symbol} for m, symbol in sizes]
    for d, n in images.items():
        about = {"value": d, "label": data_name(d), "more": f"{count(n)} images"}
        sets.append(about | {"colour": day[n], "dark": night[n]})
    lengths = [{"value": t, "label": f"{count(t)} steps", "more": f"{count(n)} seen"} for t, n in seen.items()]
    overfit = [{"value": False, "label": "not overfit"}, {"value": True, "label": "overfit", "dot": True}]
    options = {"Model size": ("model", sizes), "Data set": ("dataset", sets), "Length": ("steps", lengths)}
    options["Overfitting"] = "overfit", overfit
    return [{"field": field, "title": title, "options": some} for title, (field, some) in options.items()]


def _axis(field: str, title: str, ticks: Mapping[float, str] | None = None) -> dict:
    """An axis of a panel, logarithmic where it has ticks."""
    return {"field": field, "title": title, "log": ticks is not None, "ticks": list((ticks or {}).items())}


show = Explorer  # in a notebook, as the last value of a cell; rows: as in `data`
_OMEGA = _axis("omega", "Omega of the longer run", {10.0**k: f"1e{k}" for k in range(-3, 15)})
_LOSS_CHANGE = _axis("loss_change", "change of validation loss (%)")


def _views(runs: Rows, score: str, loss: str) -> list[dict]:
    """The panels. `join`: what the runs on one line share; y "measure": the one that the reader chose."""
    params = {r["params"]: f"{short(r['model'])}<br>{count(round(r['params'], -6))}" for r in runs}
    images, seen = ({r[name]: count(r[name]) for r in runs} for name in ("images", "images_seen"))
    losses, scores, chosen = _axis("val_loss", loss), _axis(published.SCORE, score), _axis("measure", "")
    length, size = _axis("images_seen", "images seen in training", seen), _axis("params", "backbone parameters", params)
    data, gain = _axis("images", "unique training images", images), _axis("score_change", "change of top-1 (points)")
    parts, twice = "a line: one size at one length, on parts of ImageNet-1K", "a mark: a run, against one half as long"
    views = (
        ("proxy", "Accuracy against validation loss", "a mark: a run", losses, scores, {}),
        ("length", "Length", "a line: one size on one data set", length, chosen, {"join": ["model", "dataset"]}),
        ("data", "Data", parts, data, chosen, {"join": ["model", "steps"]}),
        ("size", "Model size", "a line: one data set at one length", size, chosen, {"join": ["dataset", "steps"]}),
        ("omega-loss", "Twice as long: does the loss rise?", twice, _OMEGA, _LOSS_CHANGE, {"of": "doublings"}),
        ("omega-score", "Twice as long: does accuracy fall?", twice, _OMEGA, gain, {"of": "doublings"}),
    )
    names = ("id", "title", "note", "x", "y")
    return [dict(zip(names, view, strict=True)) | more for *view, more in views]


def _own_views(own: list[dict]) -> list[dict]:
    """Panels of the reader's own doublings: their changes have axes of their own."""
    found = []
    for k, one in enumerate(own):
        ys = {"loss": (_LOSS_CHANGE, "validation loss")}
        if score := one["score"]:
            ys["score"] = _axis("score_change", f"change of {score} (points)"), score
        for turn, (y, what) in ys.items() if one["doublings"] else ():
            turned = f"; solid line: turns near {power(one['turns'][turn])}" if one["turns"][turn] else ""
            view = {"id": f"own-{k}-{turn}", "title": f"{one['name']}: {what}", "of": "own", "own": k, "turn": turn}
            found.append(view | {"x": _OMEGA, "y": y, "note": f"own vertical axis{turned}"})
    return found


def _own(name: str, rows: Rows, published_turns: dict, day: str, night: str) -> dict:
    """A set of the reader's: every run on the Omega axis, its doublings in relative form, its own turning points."""
    score = score_of(rows)
    found, what = doublings(rows, score or "val_loss"), SCORES.get(score, "")
    turns = turning_points(found) | ({} if score else {"score": None})
    names = {"loss": "validation loss turns up", "score": f"{LABELS.get(score, '')} turns down"}
    said = f"{len(rows)} run{'s' * (len(rows) != 1)} ({str(rows[0]['data']).split('/')[-1]}), "
    said += f"{len(found) or 'no'} doubling{'s' * (len(found) != 1)} of the length"
    turned = [f"{names[of]} near Omega {power(value)}" for of, value in turns.items() if value]
    known, runs = [turn for turn in published_turns.values() if turn], []
    for row in rows:
        at = omega(row)
        side = "below both" if at < min(known) else "above both" if at > max(known) else "between the"
        lines = [f"<b>{escape(name)}</b>", size_name(row), f"{row['images']:,} images"]
        lines += [f"{row['steps']:,} steps, seed {row['seed']}"]
        lines += [f"Omega {power(at)}: {side}", "published turning points"]
        runs.append({"omega": at, "text": "<br>".join(lines)})
    pairs = [_doubling(d, rows, what) for d in found.to_dict("records")]
    about = {"name": name, "score": what, "colour": day, "dark": night, "turns": turns, "runs": runs}
    return about | {"doublings": pairs, "said": "; ".join([said, *([" and ".join(turned)] if turned else [])])}
