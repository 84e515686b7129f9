"""What all kinds of evidence say, in one panel or table: relative change, verdicts, pairs of runs, doublings."""

import math
from collections.abc import Iterator, Mapping
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .compare import KINDS, Rows, data_name, kinds_of, padded, score_of, sizes_of, study_axis
from .doublings import name_of
from .drawing import (
    COLOURS,
    FAINT,
    INK,
    LABELS,
    RULE,
    TEMPLATE,
    VERDICTS,
    count,
    decades,
    empty,
    end_labels,
    outline,
    panels,
    scaled,
    shown,
    text_table,
    where,
)
from .figure import Figure
from .records import short
from .rules import Claim

_INKS = {"published": "#000000", "shipped": COLOURS[0], "yours": COLOURS[1]}
#: How groups of pairs are called, by the keys of `pairs.accuracy`.
GROUPS = {"overall": "all pairs", "non_overfit": "both not overfit", "overfit": "both overfit"}


def relative(study: str, evidence: Mapping[str, Rows]) -> go.Figure:
    """One panel in which the kinds share axes: each line's change of validation loss (%) from its own first point.

    x is the ratio to the first point: times as many images, parameters, or images seen. For "proxy", every cell's mean
    counts from the cell of the lowest validation loss of its kind: loss in %, score in points. Hollow: published runs.
    """
    field, axis_title = study_axis(study)
    kinds = kinds_of(study, evidence, None, "score" if study == "proxy" else None)
    if not kinds:
        return empty("no finished runs to show yet")
    chart = make_subplots(1, 1, figure=Figure()).update_layout(
        {"template": TEMPLATE, "height": 480, "margin": {"t": 50, "l": 74, "r": 20}}
    )
    drawn, labels, reach = [], [], []
    for kind, rows in kinds.items():
        colour = _INKS.get(kind, COLOURS[2])
        marker = {"color": colour, "symbol": "circle", "size": 8}
        style = {"marker": outline(marker, 7) if kind == "published" else marker, "legendgroup": kind}
        style |= {"name": escape(KINDS.get(kind, kind)), "hoverinfo": "text", "line": {"color": colour, "width": 1.7}}
        listed = True
        for name, x, y, text in _cells(kind, rows) if study == "proxy" else _changes(study, field, rows):
            mode = "markers" if study == "proxy" else "lines+markers"
            chart.add_scatter(x=x, y=y, text=text, mode=mode, opacity=0.85, showlegend=listed, **style)
            listed = False
            drawn += y
            reach += x
            labels.append((math.log10(x[-1]) if study != "proxy" else x[-1], y[-1], name, colour))
    if not drawn:
        return empty("no line has two points yet")
    low, high = padded([*drawn, 0])
    chart.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}})
    chart.add_hline(y=0, line={"color": RULE, "width": 1}, layer="below")
    chart.update_yaxes(range=[low, high])
    if study == "proxy":
        chart.update_xaxes(title_text="validation loss, above the lowest of its kind (%)", rangemode="tozero")
        return chart.update_yaxes(title_text="transfer score, against that of the lowest loss (points)")
    powers = [2**k for k in range(0, 40, 1 if max(reach) < 40 else 2) if 2**k <= 1.05 * max(reach)]
    last = math.log10(max(reach))
    chart.update_xaxes(type="log", title_text=f"{axis_title}, times the line's first point", tickvals=powers)
    chart.update_xaxes(ticktext=[f"×{ratio:,}" for ratio in powers], range=[-0.03 * last, 1.09 * last])
    if study == "data-scale":  # too many lines in the others: hover names them
        end_labels(chart, 1, [label for label in labels if label[3] != _INKS["published"]], low, high, 480 - 50 - 60)
    return chart.update_yaxes(title_text="change of validation loss from the line's first point (%)")


def claims_table(kinds: Mapping[str, list[Claim]], ids: tuple[str, ...] | None = None) -> go.Figure:
    """One row a claim and kind of evidence: verdict, and the sentence with effect, interval and n; ids: only these."""
    found = [(kind, claim) for kind, claims in kinds.items() for claim in claims if ids is None or claim.id in ids]
    found.sort(key=lambda pair: pair[1].id)
    if not found:
        return empty("no claim can be computed yet: there are no finished runs")
    columns: dict[str, list[str]] = {"": [], "claim": [], "evidence from": [], "verdict": [], "what the runs say": []}
    last = None
    for kind, claim in found:
        again, last = claim.id == last, claim.id
        several = sum(k == kind and c.id == claim.id for k, c in found) > 1  # a kind of several recipes
        source = KINDS.get(kind, kind) + (f" ({escape(data_name(claim.data))}, {claim.target})" if several else "")
        row = ("" if again else f"<b>{claim.id}</b>", "" if again else claim.statement, source)
        for column, text in zip(columns.values(), (*row, f"<b>{claim.verdict}</b>", claim.evidence), strict=True):
            column.append(text)
    texts = zip(columns["what the runs say"], columns["claim"], columns["evidence from"], strict=True)
    lines = [max(len(e) / 63, len(c) / 15, len(k) / 12, 1) for e, c, k in texts]
    ink = [INK, INK, INK, [VERDICTS[claim.verdict] for _, claim in found], INK]
    return text_table(columns, [36, 160, 118, 118, 560], ink, lines)


def pairs(
    accuracies: Mapping[str, Mapping], title: str = "the lower validation loss names the better run"
) -> go.Figure:
    """Pairwise accuracy with 95 % intervals, a mark a kind of evidence and group of pairs; a coin flip is a line.

    accuracies: {kind: what `pairs.accuracy` returns}; groups without pairs are left out.
    """
    marks = [(kind, group) for kind in accuracies for group in GROUPS if accuracies[kind].get(group)]
    if not marks:
        return empty("no two runs with a score yet")
    chart = Figure(layout={"template": TEMPLATE, "showlegend": False, "margin": {"t": 16, "l": 210, "r": 20}})
    colours = dict(zip(accuracies, (INK, *COLOURS), strict=False))
    for kind, group in marks:
        found = accuracies[kind][group]
        share, low, high = (None if found[k] is None else 100 * found[k] for k in ("share", "low", "high"))
        bars = {"array": [high - share], "arrayminus": [share - low]} if low is not None else {"visible": False}
        text = f"<b>{KINDS.get(kind, kind)}, {GROUPS[group]}</b><br>{share:.1f} % of {found['n']:,} pairs"
        text += f"<br>95 % interval {low:.0f} to {high:.0f} %" if low is not None else ""
        symbol = "circle-open" if kind == "published" else "circle"
        chart.add_scatter(
            x=[share], y=[f"{KINDS.get(kind, kind)}, {GROUPS[group]}"], mode="markers+text",
            marker={"color": colours[kind], "size": 11, "symbol": symbol, "line": {"width": 2}},
            error_x=bars | {"thickness": 1.6, "width": 5, "color": colours[kind]},
            text=[f"{share:.0f} %"], textposition="top center", hovertext=[text], hoverinfo="text",
        )  # fmt: skip
    chart.add_vline(x=50, line={"dash": "dot", "color": FAINT})
    chart.add_annotation(text="coin flip", x=50, y=1, yref="paper", yanchor="bottom", showarrow=False)
    chart.update_yaxes(autorange="reversed", showgrid=False)
    chart.update_xaxes(title_text=f"pairs in which {title} (%)", range=[-3, 103])
    return chart.update_layout(height=110 + 46 * len(marks), margin_t=36)


def doublings(kinds: Mapping[str, list[dict]], score: str = "score") -> go.Figure:
    """Every doubling of the length, a panel a kind: change of the score against Omega, and whether the loss rose.

    kinds: {kind: what `doublings.doublings` returns}.
    """
    kinds = {kind: found for kind, found in kinds.items() if found}
    if not kinds:
        return empty("no size and data level was run at a length and twice that length")
    chart = panels(*(KINDS.get(kind, kind) for kind in kinds))
    for column, (kind, found) in enumerate(kinds.items(), 1):
        for rose, colour, symbol in ((False, COLOURS[0], "circle"), (True, COLOURS[1], "triangle-up")):
            some = [d for d in found if (d["loss_change"] > 0) == rose]
            text = [
                f"<b>{name_of(d)}</b><br>Omega {d['omega']:.2g}<br>validation loss {d['loss_change']:+.4f}"
                f"<br>score {100 * d['score_change']:+.2f} points"
                for d in some
            ]
            marker = {"color": colour, "size": 10, "symbol": symbol + ("-open" if kind == "published" else "")}
            chart.add_scatter(
                x=[d["omega"] for d in some], y=[100 * d["score_change"] for d in some], mode="markers",
                marker=marker | {"line": {"width": 1.8 if kind == "published" else 0}}, opacity=0.8, text=text,
                hoverinfo="text", name=f"validation loss {'rose' if rose else 'fell'}", legendgroup=str(rose),
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        ticks = decades(min(d["omega"] for d in found), max(d["omega"] for d in found))
        chart.update_xaxes(
            type="log", title_text="Omega of the longer run", tickvals=list(ticks),
            ticktext=[f"{v:.0e}".replace("e+0", "e").replace("e+", "e") for v in ticks], row=1, col=column,
        )  # fmt: skip
        chart.update_yaxes(title_text=f"change of the {score} (points)", row=1, col=column)
        chart.add_hline(y=0, line={"color": RULE, "width": 1.4}, row=1, col=column)
    style = {"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top", "title": {"text": ""}}
    return chart.update_layout(showlegend=True, legend=style, height=430, margin_b=110)


def _changes(study: str, field: str, rows: Rows) -> Iterator[tuple[str, list[float], list[float], list[str]]]:
    """Lines of a study: name, ratios of x to the first, change of the mean loss in per cent, hover texts."""
    rows = [row for row in rows if row.get("on_axis", True) or study != "data-scale"]
    for model in sizes_of(rows) if study != "model-size" else [None]:
        for level in sorted({row["images"] for row in rows}) if study != "data-scale" else [None]:
            by_x: dict[float, Rows] = {}
            for row in rows:
                if (model is None or row["model"] == model) and (level is None or row["images"] == level):
                    by_x.setdefault(row[field], []).append(row)
            xs = sorted(by_x)
            if len(xs) < 2:
                continue
            means = [sum(row["val_loss"] for row in by_x[x]) / len(by_x[x]) for x in xs]
            changes = [100 * (mean / means[0] - 1) for mean in means]
            text = [
                f"{where(by_x[x][0])}<br>validation loss {mean:.4f}, {change:+.1f} % from the line's first"
                for x, mean, change in zip(xs, means, changes, strict=True)
            ]
            names = [short(model)] if model else []
            names += [f"{count(level)}"] if level else []
            yield ", ".join(names), [x / xs[0] for x in xs], changes, text


def _cells(kind: str, rows: Rows) -> Iterator[tuple[str, list[float], list[float], list[str]]]:
    """The mean of each cell of a kind, in loss (%) and score (points) against the cell of the lowest loss."""
    measure = score_of(rows, "score")
    cells: dict[tuple, Rows] = {}
    for row in rows:
        if row[measure] is not None:
            cells.setdefault((row["model"], row["images"], row["steps"]), []).append(row)
    means = [
        (sum(r["val_loss"] for r in cell) / len(cell), sum(scaled(r, measure) for r in cell) / len(cell), cell[0])
        for cell in cells.values()
    ]
    loss, score, _ = min(means, key=lambda mean: mean[0])
    text = [f"{where(row)}<br>validation loss {a:.4f}<br>{LABELS[measure]} {shown(measure, b)}" for a, b, row in means]
    yield kind, [100 * (a / loss - 1) for a, _, _ in means], [b - score for _, b, _ in means], text
