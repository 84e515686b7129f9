"""An explorer of the 63 published runs: linked views, filters, the reader's own runs on the Omega axis. No torch here.

`show()` in a notebook, `write_html(path)` for one page that asks the network for nothing. Everything that is computed
is computed here, from `evidence`; js/explorer.js filters, draws and correlates.
"""

import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import traitlets
from plotly.colors import sample_colorscale

from ..errors import UserError
from ..evidence import published
from ..evidence.drawing import COLOURS, LABELS, SYMBOLS, count, data_name, loss_unit, power, shades, size_name
from ..evidence.drawing import SOURCES as KINDS
from ..evidence.laws import score_of
from ..evidence.proxy import doublings, omega, turning_point
from ..evidence.records import OVERFIT, SCORES, groups, millions, short, sizes_of, trained
from ..training.run import write_atomic
from .widget import Widget, module, source

Rows = list[dict]
#: A turning point of Omega is known to no better than this factor, either way (docs/facts.md, 7).
KNOWN_TO = 1.5
#: Colours of the reader's sets of runs on white and on black; shipped ones have the first, as in `summaries`.
OWN = tuple(zip(COLOURS[:4], ("#5AB4E8", "#F08A3C", "#3CC79E", "#E39AC2"), strict=True))
RULES = (
    f"Overfit: the loss lies more than {OVERFIT:g} above that of the same size and length on all of ImageNet-1K, or of "
    "a shorter run of the same size and data. Omega is parameters × images seen / unique images², of the longer run "
    "where two are compared. The turning points are where one of the published doublings of the length is as likely to "
    f"harm as not; the grey bands say how well they are known, to a factor of {KNOWN_TO:g}."
)
OWN_RULE = (
    "Their losses and scores are not the same quantities as the published ones: solid triangles say where they stand "
    "on the Omega axis, and changes against a run half as long have panels of their own."
)
_LEDE = (
    "Five sizes of Swin V2, pretrained by SimMIM on five amounts of data for three lengths. Narrow them down, select "
    "some in one view, and see where they are in the others."
)
_NEEDED = ("model", "params", "images", "images_seen", "steps", "seed", "val_loss", "data", "recipe", "reference")
_DARK = (0.97, 0.42)  # from little data to much on a dark page: the part of plasma with a contrast above 3


@cache
def _plotly() -> bytes:
    """plotly.js of the installed plotly, compressed: 1.5 MB over the wire instead of 4.8."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 6)


class Explorer(Widget):
    """data goes to the browser once; `selected` and `shown` come back as indices of the published runs.

    plotly travels with the message that opens the widget, so that a busy kernel does not delay the picture. The browser
    then empties it, and a notebook that saves its widgets stays small; a page that was loaded anew asks.
    """

    _esm = module("explorer_views", "explorer")
    _css = source("explorer.css")
    look, width = "sl-explorer", 1240
    unless = (
        "The explorer is live where this cell is run, on the pages of a report, and on the page that "
        "<code>explorer.write_html(path)</code> writes."
    )
    data = traitlets.Dict().tag(sync=True)
    plotly = traitlets.Bytes().tag(sync=True, from_json=lambda value, _: bytes(value))
    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    shown = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(self, content: dict) -> None:
        super().__init__(data=content, plotly=_plotly(), shown=list(range(len(content["runs"]))))
        self.on_msg(self._answer)

    def chosen(self) -> Rows:
        """The published rows that are selected in the explorer; while none is, those that its filters leave."""
        rows = published.rows()
        return [rows[k] for k in self.selected or self.shown]

    def twin_state(self) -> dict:
        """The page that holds the twin has plotly.js."""
        return super().twin_state() | {"plotly": ""}

    def _answer(self, _: object, message: object, __: object) -> None:
        if message == "plotly":
            self.send("plotly", buffers=[_plotly()])


def show(rows: Rows | Mapping[str, Rows] | None = None) -> Explorer:
    """The explorer, as the last value of a cell; rows: as in `data`."""
    return Explorer(data(rows))


def write_html(path: str | Path, rows: Rows | Mapping[str, Rows] | None = None, *, beside: bool = False) -> Path:
    """Write the explorer as a page, plotly.js inside (4.9 MB), or beside it as plotly.min.js; where it is.

    beside: for a folder of pages that share plotly.js, as a report. rows: as in `data`. `UserError` where the folder
    cannot be written.
    """
    from plotly.offline import get_plotlyjs

    if beside:
        write_atomic(Path(path).parent / "plotly.min.js", get_plotlyjs())
    shown = show(rows)
    title = f"What {len(shown.data['runs'])} published runs say about scale"
    head = '<script src="plotly.min.js"></script>' if beside else f"<script>{get_plotlyjs()}</script>"
    note = f'<p class="note">Runs: {published.SOURCE}. One run a cell, no repeated seeds.</p>'
    return shown.write_html(path, title, f'<p class="lede">{_LEDE}</p>', note, head)


def data(rows: Rows | Mapping[str, Rows] | None = None) -> dict:
    """The whole explorer: runs (63), doublings (42), turns, facets (filters), views (panels), measures, own.

    rows: the reader's own, as `records.table` or `imported.read_csv` give them, or several sets by name, as
    `sides.rows` gives them ("published" is left out: it is there already). They appear on the Omega axis and in panels
    of their own: their losses are another quantity. Losses as published, scores in % and their changes in points,
    changes of the loss in % of the shorter run's, Omega without unit. `UserError` for other rows.
    """
    runs = published.rows()
    found = doublings(runs, published.SCORE)
    turns = {of: turning_point(found, of) for of in ("loss", "score")}
    found = found.to_dict("records")
    place = {(_unit(row), row["steps"]): k for k, row in enumerate(runs)}
    own = [_own(name, set_, turns, *OWN[k % len(OWN)]) for k, (name, set_) in enumerate(_sets(rows).items())]
    two = [{"runs": [place[d["unit"], steps] for steps in (d["steps"] // 2, d["steps"])]} for d in found]
    loss = {"field": "val_loss", "label": "validation loss", "title": f"validation loss ({loss_unit(runs)})"}
    score = {"field": published.SCORE, "label": "accuracy", "title": "top-1 after fine-tuning (%)"}
    return {
        "runs": [_run(row) for row in runs],
        "doublings": [_doubling(d, runs) | pair for d, pair in zip(found, two, strict=True)],
        "turns": turns,
        "known_to": KNOWN_TO,
        "facets": _facets(runs),
        "measures": [score, loss],
        "views": [*_views(runs, score["title"], loss["title"]), *_own_views(own)],
        "own": own,
        "own_rule": OWN_RULE,
        "rules": RULES,
    }


def _run(row: dict) -> dict:
    """A published run: what filters and views need, and its hover text."""
    kept = ("model", "dataset", "steps", "overfit", "on_axis", "images", "images_seen", "params", "val_loss")
    score = 100 * row[published.SCORE]
    lines = [f"<b>{size_name(row)}</b>", data_name(row["dataset"]), f"{row['images']:,} images"]
    lines += [f"{row['steps']:,} steps, {row['epochs']:,.0f} epochs", f"validation loss {row['val_loss']:.4f}"]
    lines += [f"top-1 {score:.2f} %", f"Omega {power(omega(row))}{', overfit' if row['overfit'] else ''}"]
    name = f"{short(row['model'])}, {data_name(row['dataset'])}, {row['steps']:,} steps"
    more = {published.SCORE: score, "omega": omega(row), "name": name, "text": "<br>".join(lines)}
    return {name: row[name] for name in kept} | more


def _doubling(d: dict, runs: Rows, of: str = "top-1") -> dict:
    """A doubling of the length: Omega of the longer run, changes of loss (%) and score (points, `of`), hover text."""
    shorter = next(row for row in runs if (_unit(row), row["steps"]) == (d["unit"], d["steps"] // 2))
    loss = 100 * d["loss_change"] / shorter["val_loss"]
    score = None if d["score_change"] is None else 100 * d["score_change"]
    lines = [f"<b>{size_name(d)}</b>", f"{d['images']:,} images", f"{d['steps'] // 2:,} to {d['steps']:,} steps"]
    lines += [f"validation loss {loss:+.2f} %", *([] if score is None else [f"{of} {score:+.2f} points"])]
    text = "<br>".join([*lines, f"Omega {power(d['omega'])}"])
    return {"omega": d["omega"], "loss_change": loss, "score_change": score, "text": text}


def _unit(row: dict) -> str:
    """The cell and seed of a run, as `doublings` names them."""
    return " ".join(map(str, (row["model"], row["images"], row.get("dataset"), row["seed"])))


def _facets(runs: Rows) -> list[dict]:
    """The filters, which are the legend too: a symbol a size, a colour a data set, a dot for overfit."""
    params = {row["model"]: row["params"] for row in runs}
    images = dict(sorted({(row["dataset"], row["images"]) for row in runs}, key=lambda pair: pair[1]))
    seen = dict(sorted({(row["steps"], row["images_seen"]) for row in runs}))
    day = shades(sorted(images.values()))
    night = dict(zip(sorted(images.values()), sample_colorscale("plasma", np.linspace(*_DARK, len(day))), strict=True))
    sizes = [
        {"value": m, "label": short(m), "more": millions(params[m]), "symbol": symbol}
        for m, symbol in zip(sizes_of(runs), SYMBOLS, strict=False)
    ]
    sets = [
        {"value": d, "label": data_name(d), "more": f"{count(n)} images", "colour": day[n], "dark": night[n]}
        for d, n in images.items()
    ]
    lengths = [{"value": t, "label": f"{count(t)} steps", "more": f"{count(n)} seen"} for t, n in seen.items()]
    overfit = [{"value": False, "label": "not overfit"}, {"value": True, "label": "overfit", "dot": True}]
    options = {"model": sizes, "dataset": sets, "steps": lengths, "overfit": overfit}
    titles = ("Model size", "Data set", "Length", "Overfitting")
    return [
        {"field": field, "title": title, "options": some}
        for (field, some), title in zip(options.items(), titles, strict=True)
    ]


def _axis(field: str, title: str, ticks: Mapping[float, str] | None = None) -> dict:
    """An axis of a panel, logarithmic where it has ticks."""
    return {"field": field, "title": title, "log": ticks is not None, "ticks": list((ticks or {}).items())}


_OMEGA = _axis("omega", "Omega of the longer run", {10.0**k: f"1e{k}" for k in range(-3, 15)})
_LOSS_CHANGE = _axis("loss_change", "change of validation loss (%)")


def _views(runs: Rows, score: str, loss: str) -> list[dict]:
    """The panels. `join`: what the runs on one line share; y "measure": the one that the reader chose."""
    sizes = {r["params"]: f"{short(r['model'])}<br>{count(round(r['params'], -6))}" for r in runs}
    images, seen = ({r[name]: count(r[name]) for r in runs} for name in ("images", "images_seen"))
    longer = {"of": "doublings", "x": _OMEGA, "note": "a mark: a run, against one half as long"}
    found = [
        {"id": "proxy", "title": "Accuracy against validation loss", "x": _axis("val_loss", loss)}
        | {"y": _axis(published.SCORE, score), "note": "a mark: a run"},
        {"id": "length", "title": "Length", "join": ["model", "dataset"], "note": "a line: one size on one data set"}
        | {"x": _axis("images_seen", "images seen in training", seen)},
        {
            "id": "data",
            "title": "Data",
            "join": ["model", "steps"],
            "x": _axis("images", "unique training images", images),
        }
        | {"note": "a line: one size at one length, on parts of ImageNet-1K"},
        {
            "id": "size",
            "title": "Model size",
            "join": ["dataset", "steps"],
            "note": "a line: one data set at one length",
        }
        | {"x": _axis("params", "backbone parameters", sizes)},
        {"id": "omega-loss", "title": "Twice as long: does the loss rise?", "y": _LOSS_CHANGE} | longer,
        {"id": "omega-score", "title": "Twice as long: does accuracy fall?"}
        | {"y": _axis("score_change", "change of top-1 (points)")}
        | longer,
    ]
    return [{"y": _axis("measure", "")} | view for view in found]


def _own_views(own: list[dict]) -> list[dict]:
    """Panels of the reader's own doublings: their changes have axes of their own."""
    found = []
    for k, one in enumerate(own):
        ys = {"loss": (_LOSS_CHANGE, "validation loss")} if one["doublings"] else {}
        if ys and one["score"]:
            ys["score"] = _axis("score_change", f"change of {one['score']} (points)"), one["score"]
        for turn, (y, what) in ys.items():
            turned = f"; solid line: turns near {power(one['turns'][turn])}" if one["turns"][turn] else ""
            view = {"id": f"own-{k}-{turn}", "title": f"{one['name']}: {what}", "of": "own", "own": k, "turn": turn}
            found.append(view | {"x": _OMEGA, "y": y, "note": f"own vertical axis{turned}"})
    return found


def _sets(rows: Rows | Mapping[str, Rows] | None) -> dict[str, Rows]:
    """The reader's sets of trained rows by name, those of the recipe with most runs; empty ones left out."""
    found = {}
    for kind, given in (rows if isinstance(rows, Mapping) else {"yours": rows or []}).items():
        if kind == "published":
            continue
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise UserError(f"explorer: {kind} is {type(given).__name__}: give rows of records.table(records)")
        for k, row in enumerate(given):
            lacking = next((n for n in _NEEDED if n not in row), None) if isinstance(row, Mapping) else "field"
            if lacking:
                raise UserError(f"explorer: row {k} of {kind} has no {lacking}: give rows of records.table(records)")
        usable = [row for row in trained(given) if row["val_loss"] is not None]
        if usable:
            found[KINDS.get(kind, kind)] = next(iter(groups(usable).values()))
    return found


def _own(name: str, rows: Rows, published_turns: dict, day: str, night: str) -> dict:
    """A set of the reader's: every run on the Omega axis, its doublings in relative form, its own turning points."""
    score = score_of(rows)
    found = doublings(rows, score or "val_loss")
    turns = {"loss": turning_point(found), "score": turning_point(found, "score") if score else None}
    found = [d | ({} if score else {"score_change": None}) for d in found.to_dict("records")]
    parts = {"loss": "validation loss turns up", "score": f"{LABELS.get(score, '')} turns down"}
    turned = " and ".join(f"{parts[of]} near Omega {power(value)}" for of, value in turns.items() if value)
    said = f"{len(rows)} run{'s' * (len(rows) != 1)} ({str(rows[0]['data']).split('/')[-1]}), "
    said += (
        f"{len(found)} doubling{'s' * (len(found) != 1)} of the length"
        if found
        else "none of them twice as long as another"
    )
    what = SCORES.get(score, "")
    return {
        "name": name,
        "score": what,
        "colour": day,
        "dark": night,
        "runs": [{"omega": omega(row), "text": _where(name, row, published_turns)} for row in rows],
        "doublings": [_doubling(d, rows, what) for d in found],
        "turns": turns,
        "said": said + (f"; {turned}" if turned else ""),
    }


def _where(name: str, row: dict, turns: dict) -> str:
    """The hover text of an own run: which, its Omega, and on which side of the two published turning points it lies."""
    value, known = omega(row), [t for t in turns.values() if t]
    side = "below both" if value < min(known) else "above both" if value > max(known) else "between the"
    lines = [f"<b>{escape(name)}</b>", size_name(row), f"{row['images']:,} images"]
    lines += [
        f"{row['steps']:,} steps, seed {row['seed']}",
        f"Omega {power(value)}: {side}",
        "published turning points",
    ]
    return "<br>".join(lines)
