"""Figures of the transfer study: gains over scratch, how the losses rank them, few labels. Pure functions, no torch."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from .drawing import (
    COLOURS,
    FAINT,
    INK,
    RULE,
    SYMBOLS,
    TEMPLATE,
    VERDICTS,
    count,
    cycle,
    empty,
    key,
    loss_unit,
    panels,
    shades,
    size_name,
    text_table,
)
from .figure import Figure
from .records import short
from .rules import RULES
from .transfers import MEASURES, Difference, Ranking, main_budget

_PANELS = {"top1": "Classification<br>top-1", "box_ap": "Detection<br>box AP", "mask_ap": "Instances<br>mask AP"}
_PANELS |= {"miou": "Segmentation<br>mIoU"}
_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"}


def gains(found: Sequence[Difference], guess: float | None = None) -> go.Figure:
    """What a pretrained start gains over a random one, in points: a panel a score, a line a size, x the data level.

    Bars are 95 % intervals over seeds. guess: points of top-1, a dashed line in the panel of classification.
    """
    measures = [m for m in MEASURES if any(d.measure == m for d in found)]
    if not measures:
        return empty("no task has been trained from a pretrained and from a random start yet")
    chart = panels(*(_PANELS[m] for m in measures))
    levels = sorted({d.images for d in found})
    models = list(dict.fromkeys(d.model for d in sorted(found, key=lambda d: d.scratch)))
    models = sorted(models, key=lambda m: min(i for i, d in enumerate(found) if d.model == m))
    colours, symbols = cycle(COLOURS, models), cycle(SYMBOLS, models)
    places = {level: k for k, level in enumerate(levels)}
    for column, measure in enumerate(measures, 1):
        for k, model in enumerate(models):
            line = sorted((d for d in found if (d.measure, d.model) == (measure, model)), key=lambda d: d.images)
            if not line:
                continue
            shift = 0.07 * (k - (len(models) - 1) / 2)  # so that intervals do not lie on one another
            known = [d.low is not None for d in line]
            bars = {
                "array": [100 * (d.high - d.effect) if ok else 0 for d, ok in zip(line, known, strict=True)],
                "arrayminus": [100 * (d.effect - d.low) if ok else 0 for d, ok in zip(line, known, strict=True)],
            }
            chart.add_scatter(
                x=[places[d.images] + shift for d in line],
                y=[100 * d.effect for d in line],
                mode="lines+markers",
                name=short(model),
                legendgroup=model,
                showlegend=column == 1,
                line={"color": colours[model], "width": 1.8},
                marker={"color": colours[model], "symbol": symbols[model], "size": 9},
                error_y=bars | {"thickness": 1.5, "width": 5, "color": colours[model], "visible": any(known)},
                text=[_gain_text(d) for d in line],
                hoverinfo="text",
                row=1,
                col=column,
            )
        chart.add_hline(y=0, line={"color": RULE, "width": 1.4}, row=1, col=column)
    if guess is not None and "top1" in measures:
        mark = {"annotation_text": "your guess", "annotation_position": "bottom right"}
        chart.add_hline(
            y=guess, line={"dash": "dash", "color": COLOURS[1]}, row=1, col=measures.index("top1") + 1, **mark
        )
    ticks = {"tickvals": list(places.values()), "ticktext": [count(level) for level in levels], "tickangle": 0}
    chart.update_xaxes(**ticks, range=[-0.4, len(levels) - 0.6], tickfont={"size": 11})
    chart.update_xaxes(title_text="unlabelled images", title_font={"size": 12})
    chart.update_yaxes(title_text="gain over scratch (points)", row=1, col=1)
    style = _BELOW | {"y": -0.3, "title": {"text": ""}}
    return chart.update_layout(legend=style, showlegend=True, height=430, margin={"t": 76, "b": 110, "l": 64, "r": 12})


def _gain_text(d: Difference) -> str:
    interval = "" if d.low is None else f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    scores = f"{MEASURES[d.measure][2]} {100 * d.pretrained:.1f} %, from scratch {100 * d.scratch:.1f} %"
    gain = f"gain {100 * d.effect:+.1f}{interval} points, {d.seeds} seeds"
    return f"<b>{short(d.model)}</b>, pretrained on {d.images:,} images<br>{scores}<br>{gain}"


def gains_table(found: Sequence[Difference]) -> go.Figure:
    """The numbers of `gains`: both scores, the difference, its 95 % interval over seeds."""
    if not found:
        return empty("no task has been trained from a pretrained and from a random start yet")
    columns: dict[str, list[str]] = {
        "task": [f"{MEASURES[d.measure][1]}, {MEASURES[d.measure][2]}" for d in found],
        "size": [short(d.model) for d in found],
        "unlabelled images": [f"{d.images:,}" for d in found],
        "pretrained": [f"{100 * d.pretrained:.1f}" for d in found],
        "scratch": [f"{100 * d.scratch:.1f}" for d in found],
        "difference, points": [f"<b>{100 * d.effect:+.1f}</b>" for d in found],
        "95 % interval": [
            "one seed gives none" if d.low is None else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}" for d in found
        ],
        "seeds": [str(d.seeds) for d in found],
    }
    return text_table(columns, [250, 60, 100, 90, 70, 100, 130, 54], INK, [1.0] * len(found))


def rankings(kinds: Mapping[str, Sequence[Ranking]]) -> go.Figure:
    """Spearman correlation of every score's lift with both losses, 95 % intervals; a line at the margin of C5a.

    kinds: {"shipped": rankings, "yours": rankings}. Left of the line both bars: the loss ranks that score.
    """
    marks = [(kind, r) for kind, found in kinds.items() for r in found]
    if not marks:
        return empty("no score has both losses and a baseline yet: three runs are the least")
    several = sum(bool(found) for found in kinds.values()) > 1
    names = [f"{r.name}" + (f" ({kind})" if several else "") for kind, r in marks]
    chart = Figure(layout={"template": TEMPLATE})
    for label, field, colour, symbol, shift in (
        ("validation loss", "val", COLOURS[0], "circle", -0.13),
        ("training loss", "train", COLOURS[1], "square-open", 0.13),
    ):
        x, y, more, less, text = [], [], [], [], []
        for k, (_, r) in enumerate(marks):
            value, low, high = getattr(r, field)
            if value is None:
                continue
            x.append(value)
            y.append(k + shift)
            more.append(0 if high is None else high - value)
            less.append(0 if low is None else value - low)
            interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
            text.append(
                f"<b>{names[k]}</b><br>{label}: {value:+.2f}{interval}<br>{r.runs} runs of {r.seeds} seeds"
                f"<br>C5a here: {r.verdict}"
            )
        chart.add_scatter(
            x=x, y=y, mode="markers", name=label, text=text, hoverinfo="text",
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
            error_x={"array": more, "arrayminus": less, "thickness": 1.6, "width": 5, "color": colour},
        )  # fmt: skip
    chart.add_vline(x=RULES["C5a"].margin, line={"dash": "dash", "color": FAINT})
    chart.add_annotation(
        text="ranks: left of here", x=RULES["C5a"].margin, y=1, yref="paper", yanchor="bottom", showarrow=False,
        font={"color": FAINT, "size": 12},
    )  # fmt: skip
    chart.add_vline(x=0, line={"color": RULE, "width": 1}, layer="below")
    chart.update_xaxes(title_text="Spearman correlation of the loss with the lift", range=[-1.05, 1.05])
    chart.update_yaxes(
        tickvals=list(range(len(marks))), ticktext=names, range=[len(marks) - 0.5, -0.5], showgrid=False, ticks=""
    )
    for k, (_, r) in enumerate(marks):
        chart.add_annotation(
            text=f"<b>{r.verdict}</b>", x=1.02, xref="paper", xanchor="left", y=k, showarrow=False,
            font={"color": VERDICTS[r.verdict], "size": 12},
        )  # fmt: skip
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.12 - 0.9 / len(marks), "yanchor": "top"}
    return chart.update_layout(
        legend=legend, height=170 + 44 * len(marks), margin={"t": 34, "b": 110, "l": 230, "r": 130}
    )


def scatter(rows: Sequence[dict], measure: str = "top1") -> go.Figure:
    """A score's lift against validation and training loss: a point a run, colour by data level, symbol by size."""
    some = [
        r for r in main_budget(list(rows))
        if r["measure"] == measure and None not in (r["lift"], r["val_loss"], r["train_loss"])
    ]  # fmt: skip
    if not some:
        return empty(f"no run has {MEASURES[measure][1]} and a baseline yet")
    chart = panels("Validation loss", "Training loss", shared_yaxes=True)
    levels = sorted({r["images"] for r in some})
    models = [m for _, m in sorted({(r["params"], r["model"]) for r in some})]
    colours, symbols = shades(levels), cycle(SYMBOLS, models)
    for level in levels:
        for model in models:
            points = [r for r in some if (r["images"], r["model"]) == (level, model)]
            for column, loss in ((1, "val_loss"), (2, "train_loss")):
                chart.add_scatter(
                    x=[r[loss] for r in points], y=[100 * r["lift"] for r in points], mode="markers",
                    marker={"color": colours[level], "symbol": symbols[model], "size": 10, "opacity": 0.85,
                            "line": {"color": "white", "width": 0.8}},
                    text=[_run_text(r) for r in points], hoverinfo="text", showlegend=False, row=1, col=column,
                )  # fmt: skip
    for level in levels:
        key(chart, count(level), "unlabelled images", marker={"color": colours[level], "size": 10})
    for model in models:
        row = next(r for r in some if r["model"] == model)
        key(chart, size_name(row), "model size", marker={"color": FAINT, "symbol": symbols[model], "size": 10})
    unit = loss_unit([{"target": "raw", "data": some[0]["data"]}])
    for column, loss in ((1, "validation"), (2, "training")):
        chart.update_xaxes(title_text=f"{loss} loss ({unit})", nticks=6, row=1, col=column)
    return chart.update_yaxes(title_text=f"gain in {MEASURES[measure][2]} (points)", row=1, col=1)


def _run_text(r: dict) -> str:
    return (
        f"<b>{short(r['model'])}</b>, pretrained on {r['images']:,} images, seed {r['seed']}<br>"
        f"{MEASURES[r['measure']][2]} {100 * r['score']:.1f} %, gain {100 * r['lift']:+.1f} points<br>"
        f"validation loss {r['val_loss']:.4f}, training loss {r['train_loss']:.4f}"
    )


def labels(lines: Sequence[dict]) -> go.Figure:
    """Top-1 against the number of labels, a line a start (`transfers.few_labels`), 95 % intervals over seeds."""
    if not lines:
        return empty("no classifier has been trained yet")
    starts = list(dict.fromkeys(line["start"] for line in lines))
    pretrained = [s for s in starts if s is not None]
    colours = shades(sorted(pretrained)) if pretrained else {}
    chart = Figure(layout={"template": TEMPLATE})
    for start in starts:
        some = [line for line in lines if line["start"] == start]
        name = "from scratch" if start is None else f"pretrained on {count(start)} unlabelled"
        known = [line["low"] is not None for line in some]
        bars = {
            "array": [100 * (line["high"] - line["top1"]) if ok else 0 for line, ok in zip(some, known, strict=True)],
            "arrayminus": [
                100 * (line["top1"] - line["low"]) if ok else 0 for line, ok in zip(some, known, strict=True)
            ],
        }
        colour = INK if start is None else colours[start]
        text = [
            f"<b>{name}</b><br>{line['labels']:,} labels: top-1 {100 * line['top1']:.1f} %"
            + ("" if line["low"] is None else f" [{100 * line['low']:.1f}, {100 * line['high']:.1f}]")
            + f"<br>{line['seeds']} seeds"
            for line in some
        ]
        chart.add_scatter(
            x=[line["labels"] for line in some], y=[100 * line["top1"] for line in some], mode="lines+markers",
            name=name, text=text, hoverinfo="text",
            line={"color": colour, "width": 2.2, "dash": "dash" if start is None else "solid"},
            marker={"color": colour, "size": 9, "symbol": "diamond" if start is None else "circle"},
            error_y=bars | {"thickness": 1.5, "width": 5, "color": colour, "visible": any(known)},
        )  # fmt: skip
    ticks = sorted({line["labels"] for line in lines})
    chart.update_xaxes(
        type="log", title_text="labelled images", tickvals=ticks, ticktext=[count(t) for t in ticks], tickangle=0
    )
    chart.update_yaxes(title_text="classification, top-1 (%)")
    model, steps = lines[0]["model"], lines[0]["steps"]
    title = {
        "text": f"{short(model)}, {steps:,} steps of fine-tuning each",
        "x": 0,
        "pad": {"l": 8},
        "font": {"size": 14},
    }
    return chart.update_layout(title=title, showlegend=True, height=440)
