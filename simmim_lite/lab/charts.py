"""Small charts of the first notebooks: bars, lines, and maps of numbers, every axis named. No torch here."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..evidence.drawing import COLOURS, DASHES, FAINT, PALE, SYMBOLS, TEMPLATE

_DASHED = {"dash": "dash", "color": COLOURS[1]}
WIDEST = 780  # pixels: what JupyterLab beside its table of contents, and a page of the site, leave at 1,280


def bars(
    values: Mapping[str, float | Sequence[float]],
    unit: str,
    guess: float | None = None,
    *,
    form: str = ".1f",
    series: Sequence[str] = ("",),
) -> go.Figure:
    """Named numbers as bars from zero, each with its value; a guess as a dashed line across, `your guess`.

    series: names of several bars a name, whose numbers are given in this order; the last one is the dark one.
    """
    names, columns = list(values), np.atleast_2d(np.array(list(values.values()), float).T)
    chart = go.Figure()
    for name, numbers, colour in zip(series, columns, ("#C9D8E6", COLOURS[0])[-len(series) :], strict=True):
        hover = f"%{{y}}: {f'{name}: ' if name else ''}%{{x:{form}}}<extra></extra>"
        style = {"marker": {"color": colour}, "textposition": "outside", "cliponaxis": False, "hovertemplate": hover}
        chart.add_bar(x=numbers, y=names, name=name, orientation="h", text=[f"{v:{form}}" for v in numbers], **style)
    everything = [0.0, *columns.flat, *([] if guess is None else [guess])]
    if guess is not None:
        chart.add_vline(x=guess, annotation_position="top", annotation_text="your guess", line=_DASHED)
    chart.update_xaxes(title_text=unit, range=[1.12 * min(everything), 1.12 * max(everything) or 1])
    chart.update_yaxes(autorange="reversed", showgrid=False, title_text="")
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "traceorder": "reversed"}
    size = {"height": 95 + 15 * len(series) + 46 * len(names), "margin": {"t": 30 if len(series) == 1 else 50}}
    return chart.update_layout(template=TEMPLATE, legend=legend, showlegend=len(series) > 1, **size)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    title: str = "",
    legend: str = "",
    guess: float | None = None,
    guess_on: str = "y",
    guess_name: str = "your guess",
    band: tuple[float, float, str] | None = None,
    log: bool = False,
    log_x: bool = False,
    form: str = ".3g",
) -> go.Figure:
    """Lines {name: (x values, y values)}, told apart by colour, symbol and dash; x and y name the axes, with units.

    guess: a dashed line at this value of the axis `guess_on`. band: (low, high, text), shaded. log, log_x: a
    logarithmic y or x axis. form: of the y values in hover texts.
    """
    chart = go.Figure()
    if band:
        low, high, text = band
        chart.add_hrect(y0=low, y1=high, fillcolor=PALE, line_width=0, layer="below")
        note = {"showarrow": False, "xref": "x domain", "x": 0.01, "xanchor": "left", "font": {"color": FAINT}}
        chart.add_annotation(text=text, y=(np.log10(low * high) if log else low + high) / 2, **note)
    for k, (name, (xs, ys)) in enumerate(series.items()):
        colour, dash, symbol = (styles[k % len(styles)] for styles in (COLOURS, DASHES, SYMBOLS))
        hover = f"<b>{name}</b><br>{x}: %{{x:~g}}<br>{y}: %{{y:{form}}}<extra></extra>"
        style = {"line": {"color": colour, "dash": dash, "width": 2.2}, "hovertemplate": hover}
        style |= {"marker": {"color": colour, "symbol": symbol, "size": 8}}
        mode = "lines+markers" if len(xs) <= 40 else "lines"
        chart.add_scatter(x=list(xs), y=list(ys), name=name, mode=mode, **style)
    if guess is not None and guess_on == "x":
        chart.add_vline(x=guess, annotation_position="top", annotation_text=guess_name, line=_DASHED)
    elif guess is not None:
        note = {"annotation_position": "top right", "annotation_font_color": COLOURS[1]}
        chart.add_hline(y=guess, annotation_text=guess_name, line=_DASHED, **note)
        if log:  # shapes are placed by the value there, annotations by its logarithm
            chart.layout.annotations[-1].y = float(np.log10(guess))
    if log:
        known = [v for _, ys in series.values() for v in ys if v > 0]
        ticks = [k * 10.0**e for e in range(-12, 13) for k in (1, 2, 5)]
        shown = [t for t in ticks if min(known) <= 2.5 * t and t <= 2 * max(known)]
        ends = [np.log10(min(known)) - 0.08, np.log10(max(known)) + 0.08]
        chart.update_yaxes(tickvals=shown, ticktext=[f"{t:g}" for t in shown], range=ends)
    chart.update_xaxes(title_text=x, type="log" if log_x else None)
    chart.update_yaxes(title_text=y, type="log" if log else "linear")
    head = {"text": title, "x": 0, "pad": {"l": 8}, "font": {"size": 15}}
    legend = f"<b>{legend}</b>"
    return chart.update_layout(template=TEMPLATE, title=head, showlegend=len(series) > 1, legend_title_text=legend)


def slider(figures: Mapping[object, go.Figure], name: str, first: object = None) -> go.Figure:
    """Figures of one form, {what the slider says: figure}, of which a slider called `name` shows one at a time.

    It moves in a page without a kernel as well. first: the one that is shown at first, by default the last.
    """
    labels, forms = list(figures), [f.to_plotly_json()["layout"] for f in figures.values()]
    start = labels.index(first) if first is not None else len(labels) - 1
    of = [k for k, f in enumerate(figures.values()) for _ in f.data]
    chart = go.Figure([t for f in figures.values() for t in f.data], forms[start])
    for k, trace in zip(of, chart.data, strict=True):
        trace.visible = k == start
    varies = {key for form in forms for key in form if any(form[key] != other.get(key) for other in forms)}
    steps = []
    for at, (label, form) in enumerate(zip(labels, forms, strict=True)):
        changes = {"visible": [k == at for k in of]}, {key: form.get(key) for key in varies - {"width", "height"}}
        steps.append({"label": str(label), "method": "update", "args": list(changes)})
    below = chart.layout.margin.b if chart.layout.margin.b is not None else TEMPLATE.layout.margin.b
    style = {"currentvalue": {"prefix": f"{name}: "}, "pad": {"t": below + 4, "l": 8, "r": 8}, "active": start}
    height = (chart.layout.height or TEMPLATE.layout.height) + 84
    return chart.update_layout(sliders=[{"steps": steps, **style}], margin_b=below + 84, height=height)


def maps(
    values: Mapping[str, np.ndarray],
    unit: str,
    *,
    x: str = "column",
    y: str = "row",
    numbers: bool = False,
    side: int = 250,
) -> go.Figure:
    """Arrays (rows, columns) as maps side by side under their names, on one colour scale named `unit`.

    numbers: write each value into its cell. The scale is one that colour-blind readers can tell apart.
    """
    names, arrays = list(values), [np.asarray(a, float) for a in values.values()]
    side = min(side, (WIDEST - 190) // len(names))
    chart = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.16 / len(names), figure=go.Figure())
    for column, (name, array) in enumerate(zip(names, arrays, strict=True), 1):
        hover = f"{name.replace('<br>', ' ')}<br>{y} %{{y}}, {x} %{{x}}<br>{unit}: %{{z:.4g}}<extra></extra>"
        style = {"coloraxis": "coloraxis", "hovertemplate": hover, "xgap": 1, "ygap": 1}
        style |= {"texttemplate": "%{z:.3~g}"} if numbers else {}
        chart.add_heatmap(z=array, **style, row=1, col=column)
        across = f"x{column if column > 1 else ''}"
        chart.update_yaxes(autorange="reversed", scaleanchor=across, constrain="domain", row=1, col=column)
        chart.update_xaxes(title_text=x, constrain="domain", row=1, col=column)
    chart.update_yaxes(title_text=y, row=1, col=1)
    chart.update_xaxes(showgrid=False, ticks="").update_yaxes(showgrid=False, ticks="")
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    bar = {"title": {"text": unit, "side": "right", "font": {"size": 13}}, "thickness": 14, "len": 0.9}
    if high - low <= 10 and all((a == a.round()).all() for a in arrays):
        bar |= {"tickmode": "linear", "tick0": 0, "dtick": 1}
    chart.update_layout(coloraxis={"colorscale": "Cividis", "cmin": low, "cmax": high, "colorbar": bar})
    chart.update_annotations(font={"size": 13})
    size = {"width": side * len(names) + 190, "height": side + 110, "margin": {"t": 50}}
    return chart.update_layout(template=TEMPLATE, **size)
