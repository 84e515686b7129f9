"""What the runs say in short, on every kind of evidence: verdicts, pairwise accuracy, doublings of the length."""

from collections.abc import Mapping

import plotly.graph_objects as go

from .claims import Claim
from .compare import KINDS, panels
from .doublings import name_of
from .drawing import COLOURS, FAINT, INK, RULE, TEMPLATE, VERDICTS, decades, empty, text_table

#: How groups of pairs are called, by the keys of `pairs.accuracy`.
GROUPS = {"overall": "all pairs", "non_overfit": "both not overfit", "overfit": "both overfit"}


def claims_table(kinds: Mapping[str, list[Claim]], ids: tuple[str, ...] | None = None) -> go.Figure:
    """One row a claim and kind of evidence: verdict, and the sentence with effect, interval and n."""
    found = [(kind, claim) for kind, claims in kinds.items() for claim in claims if ids is None or claim.id in ids]
    found.sort(key=lambda pair: pair[1].id)
    if not found:
        return empty("no claim can be computed yet: there are no finished runs")
    columns: dict[str, list[str]] = {"": [], "claim": [], "evidence from": [], "verdict": [], "what the runs say": []}
    last = None
    for kind, claim in found:
        again = claim.id == last
        row = ("" if again else f"<b>{claim.id}</b>", "" if again else claim.statement, KINDS.get(kind, kind))
        for column, text in zip(columns.values(), (*row, f"<b>{claim.verdict}</b>", claim.evidence), strict=True):
            column.append(text)
        last = claim.id
    lines = [
        max(len(e) / 62, len(c) / 20, 1) for e, c in zip(columns["what the runs say"], columns["claim"], strict=True)
    ]
    ink = [INK, INK, INK, [VERDICTS[claim.verdict] for _, claim in found], INK]
    return text_table(columns, [32, 150, 100, 105, 440], ink, lines)


def pairs(
    accuracies: Mapping[str, Mapping], title: str = "the lower validation loss names the better run"
) -> go.Figure:
    """Pairwise accuracy with 95 % intervals, a mark a kind of evidence and group of pairs; a coin flip is a line.

    accuracies: {kind: what `pairs.accuracy` returns}; groups without pairs are left out.
    """
    marks = [(kind, group) for kind in accuracies for group in GROUPS if accuracies[kind].get(group)]
    if not marks:
        return empty("no two runs with a score yet")
    chart = go.Figure(layout={"template": TEMPLATE, "showlegend": False, "margin": {"t": 16, "l": 210, "r": 20}})
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
    chart = panels([KINDS.get(kind, kind) for kind in kinds])
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
