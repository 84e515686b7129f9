"""Figures of the studies: one call on a DataFrame, a panel a source of runs; losses of different data never share an
axis, hollow marks are runs that were not trained here. The look is in `drawing`. No torch here."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from . import drawing
from .drawing import COLOURS, FAINT, INK, RULE, SOURCES, SYMBOLS, TITLES, count, cycle, empty, outline, panels, small
from .laws import FORMS, Fit, Points
from .records import short
from .stats import spearman
from .trial import SPLITS

HONEST = "Shapes of the fixed laws were chosen looking at all 63 published runs; 'free' refits them."
_PLOT, _TOP = 300, 78  # pixels: height of a panel, and of what is above it
_APART = {1: 0.09, 2: 0.115, 3: 0.19}  # of ticks, in shares of a panel, by the number of panels
_SILENT = {"hoverinfo": "skip", "showlegend": False}
_LAWS = {"loss": "validation loss", "accuracy": "error, 100 - top-1 (%)"}
_LIGHTS = {"green": (COLOURS[2], "circle"), "yellow": ("#E69F00", "square"), "orange": ("#D55E00", "diamond")}
_LIGHTS |= {"red": ("#8B1A1A", "x"), "–": (FAINT, "circle")}


def lines(
    frame: pd.DataFrame, x: str, y: str, by: str, *, panel: str = "source", guess: float | None = None,
    guess_in: str | None = None, interval: bool = False,
) -> go.Figure:  # fmt: skip
    """y against x on a logarithmic axis, a line a value of `by`, a panel a value of `panel` (source, model, score …).

    frame: runs in the columns of `tables.runs`; rows without y are left out. x: images, params, steps, images_seen or
    any other positive number; y: val_loss, score (points) or a column that is its own title; by: model, images, steps
    or a text. guess: a number in the unit of y, a dashed line in the panel guess_in, by default that of the reader's
    runs, else the last one. interval: bars are 95 % intervals (Student's t) in place of one standard error.
    """
    frame = frame[frame[y].notna()] if y in frame else frame[:0]
    if not len(frame):
        return empty(f"no finished run has a {TITLES.get(y, y)} yet")
    parts, shared = _panels(frame, panel), panel == "model"  # sizes of one source: the same quantity
    heads = [drawing.heading(part, name, panel, x, by) for name, part in parts.items()]
    chart = panels(*heads, shared_yaxes=shared)
    own = guess_in or ("yours" if "yours" in parts else list(parts)[-1])
    for column, (name, part) in enumerate(parts.items(), 1):
        looks = drawing.colours(frame if shared else part, by)  # one colour a value in all panels
        means = {
            value: drawing.means_of(part[part[by] == value], x, y, interval) for value in drawing.ordered(part, by)
        }
        reach = [(frame if shared else part)[y], *(some[end] for some in means.values() for end in ("low", "high"))]
        low, high = drawing.value_range(np.concatenate(reach), guess if name == own else None)
        left, right = math.log10(part[x].min()), math.log10(part[x].max())
        ends, span, place = [], (right - left) or 1, {"row": 1, "col": column}
        hollow = part.get("source", pd.Series([""])).iloc[0] == "published"
        for (value, some), symbol in zip(means.items(), cycle(SYMBOLS, list(means)).values(), strict=True):
            text, marker = drawing.label(by, value), {"color": looks[value], "symbol": symbol}
            seeds = (seeds := part[part[by] == value])[seeds[x].map(some["count"]) > 1]
            drawing.marks(chart, column, seeds[x], seeds[y], drawing.hover(seeds), marker | {"size": 6, "opacity": 0.3})
            _line(chart, some, x, y, text, outline(marker) if hollow else marker | {"size": 9}, **place)
            ends.append((math.log10(some.index[-1]), some["mean"].iloc[-1], escape(text), looks[value]))
        if guess is not None and name == own:
            xs, dash = [10 ** (left - 0.07 * span), 10**right], {"color": INK, "dash": "dash", "width": 1.6}
            chart.add_scatter(x=xs, y=[guess] * 2, mode="lines", name="your guess", line=dash, **_SILENT, **place)
            outside = "" if low < guess < high else f" {guess:g} {'↑' if guess >= high else '↓'}"
            at = (left + right) / 2 if outside else right
            ends.append((at, min(max(guess, low), high), f"your guess{outside}", INK))
        ticks = drawing.run_ticks(part, x, _APART.get(len(parts), 0.4)) | {"tickangle": 0, "tickfont": {"size": 12}}
        spread = [left - 0.07 * span, right + 0.27 * span]
        chart.update_xaxes(type="log", title_text=TITLES.get(x, x), range=spread, **ticks, **place)
        title = "" if panel != "source" and column > 1 else drawing.axis_title(part, y)
        chart.update_yaxes(title_text=title, range=[low, high], **place)
        drawing.end_labels(chart, column, ends, low, high, _PLOT)
    below = 96 if x == "params" else 76
    return drawing.resize(chart, _TOP + _PLOT + below, t=_TOP, b=below, l=74, r=16)


def scatter(frame: pd.DataFrame, x: str | Sequence[str], y: str, colour: str, *, rank: bool = False) -> go.Figure:
    """y against x, a mark a run, a panel a source and each x that it has: of two losses, side by side.

    colour: a column; images go from warm (few) to dark. rank: each panel's title has Spearman's correlation over all
    runs, and over those that are not overfit.
    """
    xs, parts, heads = [x] if isinstance(x, str) else list(x), [], []
    for (name, part), column in itertools.product(_panels(frame, "source").items(), xs):
        if len(part := part[part[[column, y]].notna().all(axis=1)]):
            parts.append((name, column, part.assign(x=part[column], y=part[y], text=drawing.hover(part))))
    if not parts:
        return empty("no finished run has both a loss and a score")
    for name, column, part in parts:
        said = [f"ρ {spearman(part.x, part.y):+.2f} ({len(part)})"] if rank else []
        if rank and 2 < len(clean := part[part["regime"] == "clean"]) < len(part):
            said += [f"clean {spearman(clean.x, clean.y):+.2f} ({len(clean)})"]
        first = SOURCES.get(name, name) + (f": {TITLES[column]}" if len(xs) > 1 and len(parts) < 3 else "")
        heads.append(f"{escape(first)}<br>{small(', '.join(said).replace('-', '−') or drawing.what_ran(part))}")
    chart = _cloud(heads, [part for *_, part in parts], frame, colour)
    for panel, (_, column, part) in enumerate(parts, 1):
        title = drawing.axis_title(part, column) if len(parts) < 3 else TITLES[column]
        chart.update_xaxes(title_text=title, nticks=6, row=1, col=panel)
        spread = drawing.value_range(part["y"].to_numpy())
        chart.update_yaxes(title_text=drawing.axis_title(part, y), range=spread, row=1, col=panel)
    return chart


def doublings(frame: pd.DataFrame, turns: dict[str, dict[str, float | None]] | None = None) -> go.Figure:
    """Every doubling of the length (`proxy.doublings`, with a source): change of the score against Omega.

    turns: by source, the Omega at which the loss turns up ("loss") and the score down ("score"); both are drawn as
    vertical lines where they lie within the doublings shown.
    """
    if not len(frame):
        return empty("no size and data level was run at a length and twice that length")
    frame = frame.assign(x=frame["omega"], y=100 * frame["score_change"])
    frame["validation loss"] = frame["loss_change"].gt(0).map({True: "rose", False: "fell"})
    frame["text"] = [
        f"<b>{short(d.model)}</b>, {d.images:,} images, {d.steps // 2:,} to {d.steps:,} steps<br>"
        f"Omega {d.omega:.2g}<br>validation loss {d.loss_change:+.4f}<br>score {d.y:+.2f} points"
        for d in frame.itertuples()
    ]
    parts = _panels(frame, "source")
    said = [f"Spearman's ρ of Omega and change: {spearman(part.x, part.y):+.2f}" for part in parts.values()]
    heads = [f"{SOURCES.get(name, name)}<br>{small(s.replace('-', '−'))}" for name, s in zip(parts, said, strict=True)]
    chart = _cloud(heads, list(parts.values()), frame, "validation loss")
    for column, (name, part) in enumerate(parts.items(), 1):
        place, low, high = {"row": 1, "col": column}, part["omega"].min(), part["omega"].max()
        for of, at in (turns or {}).get(name, {}).items():
            if at and low <= at <= high:
                colour, y = {"loss": (COLOURS[1], part["y"].max()), "score": (INK, part["y"].min())}[of]
                style = {"showarrow": False, "xanchor": "left", "xshift": 4, "font": {"size": 12, "color": colour}}
                chart.add_vline(x=at, line={"color": colour, "dash": "dash", "width": 1.6}, **place)
                chart.add_annotation(x=math.log10(at), y=y, text=f"{of} turns", **style, **place)
        chart.update_xaxes(title_text=TITLES["omega"], **drawing.decades(low, high), **place)
        chart.update_yaxes(title_text="change of the score (points)", **place)
        chart.add_hline(y=0, line={"color": RULE, "width": 1.4}, **place)
    return chart


def _cloud(heads: list[str], parts: list[pd.DataFrame], frame: pd.DataFrame, colour: str) -> go.Figure:
    """A panel a part, whose x, y and text are marks, and a legend below: a colour a value, a symbol a size."""
    chart, looks = panels(*heads), drawing.colours(frame, colour)
    symbols = cycle(SYMBOLS, drawing.ordered(frame, "model"))
    for column, part in enumerate(parts, 1):
        for (value, model), some in part.groupby([colour, "model"], observed=True):
            marker = {"color": looks[value], "symbol": symbols[model], "size": 9, "opacity": 0.85}
            own = some["source"].iloc[0] != "published"
            marker = marker | {"line": {"color": "white", "width": 0.8}} if own else outline(marker)
            drawing.marks(chart, column, some["x"], some["y"], some["text"], marker)
    marks = [(colour, value, {"color": look, "symbol": "circle", "size": 10}) for value, look in looks.items()]
    marks += [("model", v, {"color": FAINT, "symbol": s, "size": 9}) for v, s in symbols.items() if len(symbols) > 1]
    for group, value, marker in marks:
        title = {"text": f"<b>{TITLES.get(group, group)}</b>", "font": {"size": 12}}
        style = {"legendgroup": group, "legendgrouptitle": title, "name": escape(drawing.label(group, value))}
        chart.add_scatter(x=[None], y=[None], mode="markers", marker=marker, hoverinfo="skip", **style, row=1, col=1)
    below = 90 + 20 * max(len(looks), len(symbols))
    chart.update_layout(showlegend=True, legend={"itemclick": False, "itemdoubleclick": False, "font": {"size": 12}})
    return drawing.resize(chart, _TOP + _PLOT + below, legend_y=-0.24, t=_TOP, b=below, l=74, r=16)


def intervals(
    frame: pd.DataFrame, unit: str, *, colour: str = "source", mark: float | None = None, guess: float | None = None
) -> go.Figure:
    """Named numbers with intervals; columns name, value, low, high, and colour where a name has several.

    mark: a value to compare with, a dotted line. guess: a dashed one.
    """
    if not len(frame):
        return empty("nothing to compare yet")
    chart = go.Figure(layout={"template": drawing.TEMPLATE})
    groups, several = list(frame.groupby(colour, sort=False)) if colour in frame else [("", frame)], colour != "source"
    looks = COLOURS if several else (INK, *COLOURS)
    places = {name: k for k, name in enumerate(dict.fromkeys(frame["name"]))}
    apart = 0.26 / max(1, len(groups) - 1) if several else 0
    for k, (group, rows) in enumerate(groups):
        symbol = "circle-open" if group == "published" else SYMBOLS[k % len(SYMBOLS)] if several else "circle"
        bars = {"array": rows["high"] - rows["value"], "arrayminus": rows["value"] - rows["low"]}
        text = [f"<b>{r.name}</b> {group}<br>{r.value:.3g} [{r.low:.3g}, {r.high:.3g}]" for r in rows.itertuples()]
        chart.add_scatter(
            x=rows["value"], y=[places[name] + apart * (k - (len(groups) - 1) / 2) for name in rows["name"]],
            mode="markers" if several else "markers+text", name=group, text=[f"{v:.3g}" for v in rows["value"]],
            marker={"color": looks[k % len(looks)], "size": 11, "symbol": symbol, "line": {"width": 2}},
            error_x=bars | {"thickness": 1.6, "width": 5}, textposition="top center", hovertext=text, hoverinfo="text",
        )  # fmt: skip
    for at, text, dash in ((mark, "", "dot"), (guess, "your guess", "dash")):
        if at is not None:
            chart.add_vline(x=at, line={"dash": dash, "color": FAINT}, annotation_text=text)
    ticks = {"tickvals": list(places.values()), "ticktext": list(places), "range": [len(places) - 0.4, -0.6]}
    chart.update_yaxes(showgrid=False, **ticks).update_xaxes(title_text=unit)
    chart.update_layout(showlegend=several and len(groups) > 1)
    return drawing.resize(chart, 150 + 46 * len(places), legend_y=-70 / (46 * len(places)), t=36, r=20, l=210, b=90)


def curves(records: list[dict], chosen: pd.DataFrame) -> go.Figure:
    """Training and validation loss of runs against optimiser steps, in one panel: solid is validation, dotted training.

    records: whole records, which have the curves; chosen: their rows (key, model, images), a colour a data level.
    """
    points = {record["key"]: record["curve"] for record in records if record.get("kind") == "pretrain"}
    chosen = chosen[chosen["key"].isin(points.keys())]
    if not len(chosen):
        return empty("no curves of these runs are here")
    looks, chart = drawing.colours(chosen, "images"), go.Figure(layout={"template": drawing.TEMPLATE})
    for row in chosen.itertuples():
        for loss, dash, what in (("val_loss", "solid", "validation"), ("train_loss", "dot", "training")):
            curve = [p for p in points[row.key] if p.get(loss) is not None and p["step"]]
            name, line = f"{row.images:,} images, {what}", {"color": looks[row.images], "dash": dash, "width": 2.2}
            xy, tip = {axis: [p[k] for p in curve] for axis, k in (("x", "step"), ("y", loss))}, "step %{x:,}: %{y:.4f}"
            chart.add_scatter(mode="lines", name=name, line=line, hovertemplate=f"{name}<br>{tip}<extra></extra>", **xy)
    unit = drawing.loss_unit([chosen.iloc[0]])
    return chart.update_xaxes(title_text="optimiser step").update_yaxes(title_text=f"loss ({unit})")


def overfitting(fits: Mapping[str, tuple[Points, Fit]]) -> go.Figure:
    """What is left of each run when the law's floor, size and length terms are taken away, against Omega; a panel a
    target, with the law's overfitting term as a line and its half-way point Omega0. fits: {target: (runs, fit)}."""
    half = {target: law.shapes["Omega0"] for target, (_, law) in fits.items()}
    notes = [small(f"half-way (dashed) at Omega0 = {at:.1e}") for at in half.values()]
    chart = panels(*(f"Overfitting in the {target}<br>{note}" for target, note in zip(half, notes, strict=True)))
    for column, (target, (x, law)) in enumerate(fits.items(), 1):
        parts, place = FORMS[law.form].columns(law.shapes, x, law.scale), {"row": 1, "col": column}
        rest = x.y - sum(law.coefficients[n] * part for n, part in parts.items() if n != "C")
        for k, model in enumerate(dict.fromkeys(x.size[np.argsort(x.n, kind="stable")].tolist())):
            some, marker = x.size == model, outline({"color": COLOURS[k % 7], "symbol": SYMBOLS[k % 7]})
            text = [
                f"<b>{short(model)}</b>, {count(int(d))} images, {t:,.0f} iterations<br>Omega {o:.1e}<br>{v:+.4f}"
                for d, t, o, v in zip(x.d[some], x.t[some], x.omega[some], rest[some], strict=True)
            ]
            drawing.marks(chart, column, x.omega[some], rest[some], text, marker, short(model))
        grid = np.geomspace(x.omega.min(), 2 * x.omega.max(), 120)
        h = (grid / half[target]) ** law.shapes["p"]
        style = {"mode": "lines", "line": {"color": INK, "width": 2}, "name": "law", "hoverinfo": "skip"}
        chart.add_scatter(x=grid, y=law.coefficients["C"] * h / (1 + h), showlegend=column == 1, **style, **place)
        chart.add_vline(x=half[target], line={"dash": "dash", "color": FAINT}, **place)
        title, ticks = "Omega = N × images seen / unique images²", drawing.decades(grid[0], grid[-1])
        chart.update_xaxes(title_text=title, **ticks, **place)
        unit = {"loss": "validation loss", "accuracy": "error (points)"}[target]
        chart.update_yaxes(title_text=f"{unit} beyond floor, size and length", **place)
    return drawing.resize(chart, 470, HONEST, -0.24, b=130, t=62)


def law_lengths(fits: Mapping[str, tuple[Points, Fit]], model: str) -> go.Figure:
    """A size's loss and error against iterations, a line a data level: the law, and the runs as hollow marks."""
    chart = panels(*(f"{_LAWS[target]} of {short(model)}" for target in fits))
    for column, (target, (x, law)) in enumerate(fits.items(), 1):
        some, place = x[x.size == model], {"row": 1, "col": column}
        if not len(some):
            return empty(f"no runs of {short(model)}")
        t = np.geomspace(some.t.min(), some.t.max(), 60)
        for level, colour in drawing.shades(sorted(set(some.d.tolist()))).items():
            here = some[some.d == level]
            line = Points(**{**vars(here[np.zeros(len(t), int)]), "t": t, "seen": t * here.seen[0] / here.t[0]})
            name, style = drawing.data_name(str(here.level[0])), {"line": {"color": colour, "width": 2}, **_SILENT}
            chart.add_scatter(x=t, y=law.predict(line), mode="lines", legendgroup=name, **style, **place)
            text = [f"<b>{name}</b>, {a:,.0f} iterations<br>{b:.4g}" for a, b in zip(here.t, here.y, strict=True)]
            drawing.marks(chart, column, here.t, here.y, text, outline({"color": colour}), name)
        values = sorted(set(some.t.tolist()))
        ticks = {"type": "log", "tickvals": values, "ticktext": [count(int(v)) for v in values]}
        batch = f"iterations (batch {some.seen[0] / some.t[0]:,.0f})"
        chart.update_xaxes(title_text=batch, **ticks, **place).update_yaxes(title_text=_LAWS[target], **place)
    return drawing.resize(chart, 430, HONEST, -0.22, b=120, t=44)


def law_errors(found: pd.DataFrame, guess: float | None = None) -> go.Figure:
    """Mean absolute error on held-out runs (`trial.errors`), a panel a target, a row a form, a mark a split.

    Loss in its own unit, accuracy in points. guess: a dashed line in the last panel, in its unit.
    """
    found = found[found["mean"].notna()]
    targets, forms = list(found["target"].unique()), {"fixed": "Omega, fixed", "free": "Omega, free"}
    chart = panels(*(f"The {target} of runs held out" for target in targets))
    for column, target in enumerate(targets, 1):
        scale, unit = {"loss": (1e4, "× 1e-4"), "accuracy": (1, "points")}[target]
        for k, (split, some) in enumerate(found[found["target"] == target].groupby("split", sort=False)):
            text = [f"{FORMS[form].title}<br>{SPLITS[split]}" for form in some["form"]]
            marker, y = {"color": COLOURS[k], "symbol": SYMBOLS[k], "size": 11}, some["form"].replace(forms)
            drawing.marks(chart, column, scale * some["mean"], y, text, marker, SPLITS[split])
        chart.update_yaxes(autorange="reversed", showticklabels=column == 1, row=1, col=column)
        chart.update_xaxes(title_text=f"mean absolute error ({unit})", rangemode="tozero", row=1, col=column)
    if guess is not None:
        chart.add_vline(
            x=guess, line={"dash": "dash", "color": COLOURS[1]}, annotation_text="your guess", col=len(targets)
        )
    return drawing.resize(chart, 410, HONEST, -0.26, b=130, t=44, l=130)


def plan(options: Sequence, rule: object, measure: str, note: str = "") -> go.Figure:
    """Options of a `studies.planner.Plan`: prediction and 90 % interval against cost; colour and mark are the light.

    Filled marks cannot be told from the best; a ring is round the simple rule's pick. Options without numbers are not
    drawn. note: a line below, as HONEST for the law of the published runs.
    """
    options = [o for o in options if o.value is not None]
    if not options:
        return empty("no numbers outside the known range: the order alone is given")
    chart = go.Figure(layout={"template": drawing.TEMPLATE})
    for model in dict.fromkeys(o.model for o in options):
        flops, values = zip(*sorted((o.flops, o.value) for o in options if o.model == model), strict=True)
        chart.add_scatter(x=flops, y=values, mode="lines", line={"color": RULE, "width": 1.3}, **_SILENT)
        end = {"x": math.log10(flops[-1]), "y": values[-1], "xanchor": "left", "xshift": 15, "font": {"color": FAINT}}
        chart.add_annotation(text=short(model), showarrow=False, **end)
    for light, (colour, symbol) in _LIGHTS.items():
        if not (some := [o for o in options if o.light == light]):
            continue
        face, value = [colour if o.together else "white" for o in some], np.array([o.value for o in some])
        bars = {"array": [o.high for o in some] - value, "arrayminus": value - [o.low for o in some], "width": 4}
        chart.add_scatter(
            x=[o.flops for o in some], y=value, mode="markers", error_y=bars | {"color": colour, "thickness": 1.1},
            name="no light: too few runs tell" if light == "–" else f"Omega: {light}", hoverinfo="text",
            marker={"color": face, "symbol": symbol, "size": 11, "line": {"color": colour, "width": 2}},
            text=[f"<b>{o.name}</b><br>{o.value:.4g} [{o.low:.4g}, {o.high:.4g}]<br>Omega {o.omega:.1e}" for o in some],
        )  # fmt: skip
    if rule.value is not None:  # else its pick is beyond what is known
        ring = {"symbol": "circle-open", "size": 22, "color": INK, "line": {"width": 2}}
        name = {"name": "simple rule: longest, then largest", "hoverinfo": "skip"}
        chart.add_scatter(x=[rule.flops], y=[rule.value], mode="markers", marker=ring, **name)
    low, high = min(o.flops for o in options), max(o.flops for o in options)
    wide = math.log10(high / low) or 1
    span = [math.log10(low) - 0.06 * wide, math.log10(high) + 0.14 * wide]
    chart.update_xaxes(title_text="training cost (FLOPs)", range=span, **drawing.decades(0.8 * low, 1.25 * high))
    chart.update_yaxes(title_text=f"predicted {measure}")
    return drawing.resize(chart, 460 if note else 440, note, -0.2, t=30, b=130 if note else 110)


def _panels(frame: pd.DataFrame, panel: str) -> dict[str, pd.DataFrame]:
    order = [s for s in SOURCES if s != "yours"] if panel == "source" else []
    names = [*order, *(v for v in drawing.ordered(frame, panel) if v not in order)]
    return {name: part for name in names if len(part := frame[frame[panel] == name])}


def _line(chart: go.Figure, means: pd.DataFrame, x: str, y: str, name: str, marker: dict, **place: int) -> None:
    """A line through means with bars; other images (ImageNet-22K) are led to by a dotted line, not joined."""
    colour = marker.get("line", marker)["color"]
    on, off = means[means["on_axis"]], means[~means["on_axis"]]
    if len(on) and len(off):
        ends, style = pd.concat([on[-1:], off]), {"color": colour, "dash": "dot", "width": 1.2}
        chart.add_scatter(x=ends.index, y=ends["mean"], mode="lines", line=style, **_SILENT, **place)
    for some in (on, off):
        if not len(some):
            continue
        text = [
            f"<b>{name}</b>, {TITLES.get(x, x)} {at:,}<br>{TITLES.get(y, y)} {row['mean']:.4g}"
            + (f" ± {row['bar']:.2g}, {row['count']:.0f} seeds" if row["count"] > 1 else "")
            for at, row in some.iterrows()
        ]
        chart.add_scatter(
            x=some.index, y=some["mean"], mode="lines+markers", line={"color": colour, "width": 2.2}, marker=marker,
            error_y={"array": some["bar"], "thickness": 1.4, "width": 4, "visible": bool(some["bar"].any())},
            name=name, showlegend=False, text=text, hoverinfo="text", **place,
        )  # fmt: skip
