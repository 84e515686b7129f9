"""Figures of the studies: rows of `records.table` in, one plotly figure out. Nothing is read, written or shown here.

Rows of one recipe belong in one figure: losses of different data or targets never share an axis (DESIGN 4).
"""

from collections import defaultdict
from itertools import product

import numpy as np
import plotly.graph_objects as go

from .drawing import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    SYMBOLS,
    VERDICTS,
    count,
    cycle,
    decades,
    empty,
    key,
    lift_unit,
    log_axis,
    loss_unit,
    panels,
    run_text,
    seed_lines,
    shades,
    size_name,
    text_table,
)
from .records import SCORES, Grid, core_grid, finished, flops_text, millions, short, table, trained
from .rules import Claim
from .stats import spearman


def data_scale(rows: list[dict], score: str = "linear") -> go.Figure:
    """Validation loss and lift against unique images, a line a size, at the core grid's length.

    Lines join means over seeds, bars are one standard error, faint dots are the seeds. Where no run has the score
    ("linear", "knn" or "segment"), the next that is there is drawn, or none.
    """
    rows, grid = _at_core(rows)
    if grid is None:
        return empty()
    figure, measures = _loss_and_lift(rows, score, f"{grid.steps:,} steps")
    for model, colour in cycle(COLOURS, grid.sizes).items():
        line = [row for row in rows if row["model"] == model]
        if line:
            seed_lines(
                figure, line, "images", measures, name=size_name(line[0]), colour=colour, symbol="circle", dash="solid"
            )
    return log_axis(figure, "unique training images", {n: count(n) for n in grid.levels}, legend="model size")


def model_size(rows: list[dict], score: str = "linear") -> go.Figure:
    """Validation loss and lift against backbone parameters, a line a data level, at the core grid's length."""
    rows, grid = _at_core(rows)
    if grid is None:
        return empty()
    figure, measures = _loss_and_lift(rows, score, f"{grid.steps:,} steps")
    for level, colour in shades(grid.levels).items():
        line = [row for row in rows if row["images"] == level]
        seed_lines(figure, line, "params", measures, name=count(level), colour=colour, symbol="circle", dash="solid")
    ticks = {row["params"]: f"{short(row['model'])}<br>{millions(row['params'])}" for row in rows}
    return log_axis(figure, "backbone parameters", ticks, legend="unique images")


def schedule(rows: list[dict], score: str = "linear") -> go.Figure:
    """Validation loss and lift against images seen: a line a size and data level that was run at several lengths."""
    rows, grid = trained(rows), core_grid(rows)
    if grid is None:
        return empty()
    colours, symbols, dashes = shades(grid.levels), cycle(SYMBOLS, grid.sizes), cycle(DASHES, grid.sizes)
    lines = []
    for level, model in product(grid.levels, grid.sizes):
        line = [row for row in rows if row["images"] == level and row["model"] == model]
        if len({row["steps"] for row in line}) > 1:
            style = {"colour": colours[level], "symbol": symbols[model], "dash": dashes[model]}
            lines.append((line, style | {"name": f"{level} {model}", "listed": False}))
    if not lines:
        return empty("no size and data level has been run at two lengths yet")
    figure, measures = _loss_and_lift(rows, score)
    for line, style in lines:
        seed_lines(figure, line, "images_seen", measures, **style)
    rows = [row for line, _ in lines for row in line]
    for level in sorted({row["images"] for row in rows}):
        key(figure, count(level), "unique images", line={"color": colours[level], "width": 3})
    for row in _first_of_sizes(rows, grid):
        marker = {"color": FAINT, "symbol": symbols[row["model"]], "size": 8}
        line = {"color": FAINT, "dash": dashes[row["model"]], "width": 2}
        key(figure, size_name(row), "model size", marker=marker, line=line)
    return log_axis(figure, "images seen in training", {row["images_seen"]: count(row["images_seen"]) for row in rows})


def proxy(rows: list[dict], score: str = "linear") -> go.Figure:
    """Lift against validation loss and against training loss: a point a run, colour by data level, symbol by size."""
    rows, grid, score = trained(rows), core_grid(rows), _present(rows, score)
    if grid is None:
        return empty()
    lift = f"{score}_lift"
    rows = [row for row in rows if score and None not in (row["val_loss"], row["train_loss"], row[lift])]
    if not rows:
        return empty("no run has both a loss and a transfer score to compare with random initialisation")
    titles = []
    for loss in ("validation", "training"):
        column = [row["val_loss" if loss == "validation" else "train_loss"] for row in rows]
        value = spearman(column, [row[lift] for row in rows])
        titles.append(
            f"{loss.capitalize()} loss" + (f": Spearman {value:+.2f}".replace("-", "−") if np.isfinite(value) else "")
        )
    figure = panels(*titles, shared_yaxes=True)
    colours, symbols = shades(grid.levels), cycle(SYMBOLS, grid.sizes)
    for level, colour in colours.items():
        for model, symbol in symbols.items():
            points = [row for row in rows if row["images"] == level and row["model"] == model]
            marker = {"color": colour, "symbol": symbol, "size": 9, "opacity": 0.85}
            for column, loss in ((1, "val_loss"), (2, "train_loss")):
                figure.add_scatter(
                    x=[row[loss] for row in points],
                    y=[100 * row[lift] for row in points],
                    mode="markers",
                    marker=marker | {"line": {"color": "white", "width": 0.8}},
                    text=[run_text(row) for row in points],
                    hoverinfo="text",
                    showlegend=False,
                    row=1,
                    col=column,
                )
    for level, colour in colours.items():
        key(figure, count(level), "unique images", marker={"color": colour, "size": 10})
    for row in _first_of_sizes(rows, grid):
        marker = {"color": FAINT, "symbol": symbols[row["model"]], "size": 10}
        key(figure, size_name(row), "model size", marker=marker)
    for column, loss in ((1, "validation"), (2, "training")):
        figure.update_xaxes(title_text=f"{loss} loss ({loss_unit(rows)})", nticks=7, row=1, col=column)
    return figure.update_yaxes(title_text=f"{SCORES[score]}: {lift_unit(score)}", row=1, col=1)


def curves(records: list[dict]) -> go.Figure:
    """Training and validation loss against images seen: the longest run of every trunk, colour by data level."""
    rows = sorted(trained(table(records)), key=lambda row: row["steps"])
    rows = list({row["trunk"]: row for row in rows}.values())
    grid = core_grid(rows)
    if grid is None:
        return empty()
    points = {record["key"]: record["curve"] for record in finished(records)}
    figure = panels("Training loss", "Validation loss", shared_yaxes=True)
    colours, dashes = shades(grid.levels), cycle(DASHES, grid.sizes)
    rows, seen = [row for row in rows if row["images"] in colours], set()
    for row in rows:
        line = {"color": colours[row["images"]], "dash": dashes[row["model"]], "width": 1.7}
        for column, loss in ((1, "train_loss"), (2, "val_loss")):
            curve = [p for p in points[row["key"]] if p.get(loss) is not None and p["images_seen"] > 0]
            seen |= {p["images_seen"] for p in curve}
            figure.add_scatter(
                x=[p["images_seen"] for p in curve],
                y=[p[loss] for p in curve],
                mode="lines+markers" if len(curve) == 1 else "lines",
                line=line,
                opacity=0.75,
                text=[f"{run_text(row)}<br>at step {p['step']:,} here {p[loss]:.4f}" for p in curve],
                hoverinfo="text",
                showlegend=False,
                row=1,
                col=column,
            )
    for level, colour in colours.items():
        key(figure, count(level), "unique images", line={"color": colour, "width": 3})
    for row in _first_of_sizes(rows, grid):
        key(figure, size_name(row), "model size", line={"color": FAINT, "dash": dashes[row["model"]], "width": 2})
    if seen:
        log_axis(figure, "images seen in training", decades(min(seen), max(seen)))
        low, high = np.log10(min(seen)), np.log10(max(seen))
        figure.update_xaxes(range=[low - 0.04, high + 0.04])
    return figure.update_yaxes(title_text=f"loss ({loss_unit(rows)})", row=1, col=1)


def claims_table(claims: list[Claim]) -> go.Figure:
    """Claims with their verdicts and evidence, as a table."""
    if not claims:
        return empty()
    columns = {
        "": [f"<b>{c.id}</b>" for c in claims],
        "claim": [c.statement for c in claims],
        "verdict": [f"<b>{c.verdict}</b>" for c in claims],
        "evidence": [c.evidence for c in claims],
    }
    lines = [max(len(c.evidence) / 76, len(c.statement) / 26, 1) for c in claims]
    return text_table(columns, [32, 170, 115, 480], [INK, INK, [VERDICTS[c.verdict] for c in claims], INK], lines)


def cost_table(rows: list[dict]) -> go.Figure:
    """What the trained runs cost, a line a size: runs, steps, images seen, floating-point operations, core-seconds."""
    if not trained(rows):
        return empty()
    columns = defaultdict(list)
    for line in cost(rows):
        for name, value in line.items():
            columns[name].append(value)
    return text_table(dict(columns), [150, 60, 80, 110, 100, 100], INK, [1] * len(columns["runs"]))


def preview_table(rows: list[dict[str, str]]) -> go.Figure:
    """What will run and what it costs, as `studies.preview` has it: a line a model size, a column a key."""
    if not rows:
        return empty("nothing to run, and no records are shipped")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    widths = [max(len(name), *(len(str(cell)) for cell in cells)) + 3 for name, cells in columns.items()]
    longest = [max(len(str(cell)) / 40 for cell in row.values()) for row in rows]
    return text_table(columns, widths, INK, [max(1, n) for n in longest])


def cost(rows: list[dict]) -> list[dict[str, str]]:
    """The cost of trained runs as text, a line a size and one for all, each run counted as if trained alone."""
    by_size = defaultdict(list)
    for row in sorted(trained(rows), key=lambda row: (row["params"], row["model"])):
        by_size[size_name(row)].append(row)
    if len(by_size) > 1:
        by_size["all"] = [row for line in by_size.values() for row in line]
    totals = []
    for name, line in by_size.items():
        total = {k: [row[k] for row in line] for k in ("steps", "images_seen", "flops", "core_seconds")}
        # a run without the number would make the sum too small: no sum then
        flops, core = (None if None in total[k] else sum(total[k]) for k in ("flops", "core_seconds"))
        said = {"model size": name, "runs": f"{len(line):,}", "steps": f"{sum(total['steps']):,}"}
        said |= {"images seen": f"{sum(total['images_seen']):,}", "FLOPs": flops_text(flops)}
        totals.append(said | {"core-seconds": "–" if core is None else f"{core:,.0f}"})
    return totals


def _at_core(rows: list[dict]) -> tuple[list[dict], Grid | None]:
    grid = core_grid(rows)
    return [row for row in trained(rows) if grid and row["steps"] == grid.steps], grid


def _present(rows: list[dict], score: str) -> str | None:
    """The score asked for, or the next that any row has a lift of."""
    return next((s for s in (score, *SCORES) if any(row[f"{s}_lift"] is not None for row in rows)), None)


def _loss_and_lift(rows: list[dict], score: str, note: str = "") -> tuple[go.Figure, list[str]]:
    """Panels for validation loss and, where there is one, a lift; and the measures they show."""
    score, note = _present(rows, score), f", {note}" if note else ""
    titles = [f"Validation loss{note}"] + (
        [f"{SCORES[score].capitalize()}, over random initialisation"] if score else []
    )
    figure = panels(*(title.replace("Knn", "kNN") for title in titles))
    figure.update_yaxes(title_text=f"validation loss ({loss_unit(rows)})", row=1, col=1)
    if not score:
        return figure, ["val_loss"]
    return figure.update_yaxes(title_text=lift_unit(score), row=1, col=2), ["val_loss", f"{score}_lift"]


def _first_of_sizes(rows: list[dict], grid: Grid) -> list[dict]:
    by_model = {row["model"]: row for row in rows}
    return [by_model[model] for model in grid.sizes if model in by_model]
