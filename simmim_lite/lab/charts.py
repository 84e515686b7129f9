"""Small charts of the notebooks: bars, lines, maps of numbers, and a slider over figures. No torch here."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.express as px
import plotly.graph_objects as go

from ..evidence.drawing import COLOURS, DASHES, SYMBOLS, TEMPLATE

_DASHED = {"dash": "dash", "color": COLOURS[1]}
WIDEST = 780  # pixels: what JupyterLab beside its table of contents, and a page of the site, leave at 1,280


def bars(values: Mapping[str, float], unit: str, guess: float | None = None, *, form: str = ".1f") -> go.Figure:
    """Named numbers as bars from zero, each with its value; a guess as a dashed line across, `your guess`."""
    numbers = list(values.values())
    style = {"template": TEMPLATE, "height": 110 + 46 * len(values), "color_discrete_sequence": COLOURS}
    chart = px.bar(x=numbers, y=list(values), orientation="h", text_auto=form, labels={"x": unit, "y": ""}, **style)
    chart.update_traces(textposition="outside", cliponaxis=False).update_layout(margin_t=30)
    ends = [0.0, *numbers, *([] if guess is None else [guess])]
    if guess is not None:
        chart.add_vline(x=guess, annotation_position="top", annotation_text="your guess", line=_DASHED)
    chart.update_xaxes(range=[1.12 * min(ends), 1.12 * max(ends) or 1])
    return chart.update_yaxes(autorange="reversed", showgrid=False)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    title: str = "",
    legend: str = "",
    guess: float | None = None,
    guess_on: str = "y",
    log: bool = False,
    form: str = ".3g",
) -> go.Figure:
    """Lines {name: (x values, y values)}, told apart by colour, symbol and dash; x and y name the axes, with units.

    guess: a dashed line at this value of the axis `guess_on`. log: a logarithmic y axis. form: of the y values in hover
    texts.
    """
    chart = go.Figure()
    for k, (name, (xs, ys)) in enumerate(series.items()):
        colour, dash, symbol = (styles[k % len(styles)] for styles in (COLOURS, DASHES, SYMBOLS))
        hover = f"<b>{name}</b><br>{x}: %{{x:~g}}<br>{y}: %{{y:{form}}}<extra></extra>"
        style = {"line": {"color": colour, "dash": dash, "width": 2.2}, "hovertemplate": hover}
        mode, marker = "lines+markers" if len(xs) <= 40 else "lines", {"symbol": symbol, "size": 8}
        chart.add_scatter(x=list(xs), y=list(ys), name=name, mode=mode, marker=marker, **style)
    if guess is not None:
        line = chart.add_vline if guess_on == "x" else chart.add_hline
        line(guess, annotation_position="top right", annotation_text="your guess", line=_DASHED)
    if log:  # shapes are placed by the value there, annotations by its logarithm
        chart.for_each_annotation(lambda note: note.update(y=float(np.log10(note.y))), {"yref": "y"})
        ticks = [digit * 10.0**k for k in range(-6, 9) for digit in (1, 2, 5)]  # plotly's own would be 10, 2, 5, 100
        chart.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,.10g}" for tick in ticks])
    chart.update_xaxes(title_text=x).update_yaxes(title_text=y)
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
    own, usual = chart.layout.margin, TEMPLATE.layout.margin
    below, right = (usual[side] if own[side] is None else own[side] for side in "br")
    pad = {"t": below + 4, "l": 8, "r": max(8, 3.5 * len(str(labels[-1])) - right)}  # half of the last label sticks out
    style = {"currentvalue": {"prefix": f"{name}: "}, "pad": pad, "active": start}
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
    arrays = np.stack([np.asarray(a, float) for a in values.values()])
    side = min(side, (WIDEST - 190) // len(arrays))
    chart = px.imshow(
        arrays, facet_col=0, facet_col_spacing=0.16 / len(arrays), text_auto=".3~g" if numbers else False,
        color_continuous_scale="Cividis", labels={"x": x, "y": y, "color": unit}, template=TEMPLATE,
    )  # fmt: skip
    for note, name in zip(chart.layout.annotations, values, strict=True):
        note.update(text=name, font={"size": 13})
    chart.update_traces(xgap=1, ygap=1).update_xaxes(showgrid=False, ticks="").update_yaxes(showgrid=False, ticks="")
    bar = {"title": {"text": unit, "side": "right", "font": {"size": 13}}, "thickness": 14, "len": 0.9}
    if np.ptp(arrays) <= 10 and (arrays == arrays.round()).all():
        bar |= {"tickmode": "linear", "tick0": 0, "dtick": 1}
    size = {"width": side * len(arrays) + 190, "height": side + 110, "margin": {"t": 50}}
    return chart.update_layout(coloraxis_colorbar=bar, **size)
