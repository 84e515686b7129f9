"""What the published grid takes, for notebook 10: hours by size, days by GPUs, memory, recipe. No torch here."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ..evidence.drawing import COLOURS, FAINT, TEMPLATE
from ..evidence.figure import Figure
from ..evidence.records import millions, short
from ..model.sizes import SIZES
from ..studies import full_size
from ..studies.costs import Cost, bytes_text
from ..training.run import Run

#: Bytes a parameter while it is trained in fp32 with AdamW (autocast keeps it so): weight, gradient, two moments.
STATE = {"weights and gradients": 8, "AdamW's moments": 8}
#: Memory of a GPU that the table compares with, in GB: two common sizes.
GPUS = (80, 141)


def apart(runs: Sequence[Run]) -> dict[str, int]:
    """Optimiser steps by model, if every run were trained alone."""
    found: dict[str, int] = {}
    for run in runs:
        found[run.model] = found.get(run.model, 0) + run.steps
    return found


def hours(found: Sequence[Cost], runs: Sequence[Run], guess: float | None = None) -> go.Figure:
    """GPU hours by size as they will be trained, and pale beside them those of every run alone; a guess dashed.

    found: `costs.costs` of the runs, with a speed.
    """
    steps = apart(runs)
    names = [cost.name for cost in found[:-1]]
    shared = [cost.hours for cost in found[:-1]]
    alone = [cost.hours * n / cost.steps for cost, n in zip(found, steps.values(), strict=False)]
    chart = Figure()
    styles = (("each run alone", alone, "#C9D8E6"), ("lengths off one trunk", shared, COLOURS[0]))
    for name, values, colour in styles:
        text = [f"{value:,.0f}" for value in values]
        hover = [f"<b>{size}</b><br>{name}: {t} GPU hours" for size, t in zip(names, text, strict=True)]
        chart.add_bar(
            x=values,
            y=names,
            name=name,
            orientation="h",
            marker={"color": colour},
            text=text,
            textposition="outside",
            cliponaxis=False,
            hovertext=hover,
            hoverinfo="text",
        )
    if guess is not None:
        mark = {"annotation_text": "your guess", "annotation_position": "top"}
        chart.add_vline(x=guess, line={"dash": "dash", "color": COLOURS[1]}, **mark)
    chart.update_xaxes(title_text="GPU hours", range=[0, 1.12 * max([*alone, guess or 0])], tickformat="~s")
    chart.update_yaxes(autorange="reversed", showgrid=False)
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "traceorder": "reversed"}
    return chart.update_layout(template=TEMPLATE, height=130 + 62 * len(names), margin={"t": 50}, legend=legend)


def days(found: Sequence[Cost], gpus: int, efficiency: float = 1.0) -> go.Figure:
    """Days of the whole grid against the number of GPUs, this one marked. efficiency: of a GPU among many, 0 to 1."""
    total = found[-1].hours / 24
    counts = [2**k for k in range(11)]
    take = [total / (n if n == 1 else n * efficiency) for n in counts]
    mine = total / (gpus if gpus == 1 else gpus * efficiency)
    chart = Figure()
    text = [f"{n:,} GPUs: {d:,.1f} days" for n, d in zip(counts, take, strict=True)]
    line = {"color": COLOURS[0], "width": 2.2}
    chart.add_scatter(x=counts, y=take, mode="lines+markers", line=line, text=text, hoverinfo="text")
    said = f"<b>{gpus:,} GPU{'s' * (gpus > 1)}: {mine:,.1f} days</b>"
    chart.add_scatter(
        x=[gpus],
        y=[mine],
        mode="markers+text",
        marker={"color": COLOURS[1], "size": 13},
        text=said,
        textposition="top right",
        hoverinfo="text",
    )
    chart.update_xaxes(title_text="GPUs", type="log", tickvals=counts, ticktext=[f"{n:,}" for n in counts])
    chart.update_xaxes(range=[-0.15, 3.3])
    ticks = [0.1, 1, 10, 100, 1000, 10_000]
    chart.update_yaxes(title_text="days, all sizes", type="log", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])
    chart.update_yaxes(range=[math.log10(min(take)) - 0.2, math.log10(max(take)) + 0.3])
    if min(take) < 30 < max(take):
        chart.add_hline(y=30, line={"dash": "dot", "color": FAINT})
        place = {"xref": "x domain", "x": 0.99, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
        chart.add_annotation(text="a month", y=math.log10(30), font={"color": FAINT}, **place)
    return chart.update_layout(template=TEMPLATE, showlegend=False, margin={"t": 24})


def memory(gpus: int) -> list[dict[str, str]]:
    """What training keeps in memory whatever the batch, a line a size: computed from parameters, nothing measured."""
    lines = []
    for model in full_size.SIZES:
        parameters = SIZES[model].simmim_parameters
        parts = {name: each * parameters for name, each in STATE.items()}
        total = sum(parts.values())
        line = {"model size": f"{short(model)} ({millions(SIZES[model].parameters)})"}
        line |= {name: bytes_text(part) for name, part in parts.items()} | {"together": bytes_text(total)}
        line |= {f"left of {size} GB": bytes_text(1e9 * size - total) for size in GPUS}
        lines.append(line | {f"sharded over {gpus}": bytes_text(total / gpus)})
    return lines


def recipe() -> list[dict[str, str]]:
    """Learning rate and drop path by size, and where each comes from."""
    lines = []
    for model in full_size.SIZES:
        released = model == full_size.RECIPE.model
        source = "as released" if released else "our default; the paper's is unknown"
        rate, path = full_size.LR[model], full_size.BY_SIZE[model]["drop_path"]
        size = f"{short(model)} ({millions(SIZES[model].parameters)})"
        lines.append({"model size": size, "learning rate": f"{rate:g}", "drop path": f"{path:g}", "source": source})
    return lines


def speed_of(images_per_second: str, assume: str) -> Mapping[str, object]:
    """Options of `costs.find_speed`: the speed that was measured, where one is given, else the assumption."""
    return {"images_per_second": [images_per_second]} if images_per_second else {"assume": assume}


def commands(groups: Mapping[str, Sequence[str]]) -> str:
    """Command lines under their titles, in Markdown."""
    return "\n\n".join(f"**{title}**\n\n```bash\n" + "\n".join(lines) + "\n```" for title, lines in groups.items())


def saved(found: Sequence[Cost], runs: Sequence[Run]) -> float:
    """The share of all steps that trunks save, in %."""
    return 100 * (1 - found[-1].steps / sum(apart(runs).values()))
