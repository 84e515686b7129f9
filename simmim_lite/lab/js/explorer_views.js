// The explorer's views: from its state to plotly's traces and layouts. Joined in front of explorer.js; pure functions.
// state: { data, shown, kept, selected, fit, measure, styles, colour(option), ink(name) }, see explorer.js.

const BY_COLOUR = "dataset", BY_SYMBOL = "model"; // what a mark's colour and symbol say
const FONT = "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif";
const LINE = 0.072; // height of a line of text above a plot, as a share of the plot's
const CLEAR = "rgba(0,0,0,0)";

const short = (value) => value.toExponential(1).replace("+", "");

/** The doublings of the length whose two runs are both among some. */
function doublingsOf(data, some) {
  const among = new Set(some);
  return data.doublings.filter((d) => d.runs.every((k) => among.has(k)));
}

/** The marks of a view: runs, or doublings (each stands for its longer run). */
function marks(state, view, some) {
  if (view.of === "doublings") return doublingsOf(state.data, some).map((d) => ({ ...d, id: d.runs[1] }));
  return some.map((k) => ({ ...state.data.runs[k], id: k }));
}

/** An axis of a view; "measure" is the one that the reader chose. */
const axisOf = (state, axis) => (axis.field === "measure" ? { ...axis, ...state.measure } : axis);

const trace = (more) => ({ type: "scatter", hoverinfo: "text", showlegend: false, cliponaxis: false, ...more });

/** A view as plotly draws it: traces (the last one holds the rings of highlighted runs), layout, and its marks. */
function chart(state, view) {
  const { colour, ink, styles } = state;
  const [x, y] = [axisOf(state, view.x), axisOf(state, view.y)], points = marks(state, view, state.shown);
  const some = state.kept.length > 0, traces = [];
  for (const [key, line] of lines(view, points, x)) {
    const tint = view.join.includes(BY_COLOUR) ? colour(styles[BY_COLOUR].get(key)) : ink("soft");
    const xy = { x: line.map((p) => p && p[x.field]), y: line.map((p) => p && p[y.field]) };
    traces.push(trace({ mode: "lines", ...xy, hoverinfo: "skip", line: { color: tint, width: 1.4 },
      opacity: some ? 0.2 : 0.5 }));
  }
  traces.push(trace({
    mode: "markers", x: points.map((p) => p[x.field]), y: points.map((p) => p[y.field]),
    text: points.map((p) => p.text), customdata: points.map((p) => p.id), marker: published(state, points, some),
    selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 0.4 } },
  }));
  traces.push(trace({ mode: "markers", x: [], y: [], hoverinfo: "skip",
    marker: { symbol: "circle-open", size: 19, color: ink("ink"), line: { width: 2.4 } } }));
  const reach = state.fit && points.length ? points : marks(state, view, state.data.runs.map((_, k) => k));
  const xs = range(x, reach.map((p) => p[x.field]));
  const ys = range(y, [...reach.map((p) => p[y.field]), ...(view.of ? [0] : [])]);
  return { traces, points, layout: layout(state, view, x, y, xs, ys) };
}

/** The look of published marks: hollow, colour and symbol from the filters, a dot for overfit, pale if not selected. */
function published({ data, selected, styles, colour }, points, some) {
  const runs = points.map((p) => data.runs[p.id]);
  return {
    size: 8.5, line: { width: 1.9 },
    opacity: points.map((p) => (some && !selected.has(p.id) ? 0.26 : 1)),
    symbol: runs.map((run) => `${styles[BY_SYMBOL].get(run[BY_SYMBOL]).symbol}-open${run.overfit ? "-dot" : ""}`),
    color: runs.map((run) => colour(styles[BY_COLOUR].get(run[BY_COLOUR]))),
  };
}

/** The lines of a view by what colours them; null ends a line. ImageNet-22K is no part of ImageNet-1K: not joined. */
function lines(view, points, x) {
  const found = new Map(), by = new Map();
  for (const p of view.join ? points : []) {
    if (x.field === "images" && !p.on_axis) continue;
    const key = JSON.stringify(view.join.map((field) => p[field]));
    by.set(key, [...(by.get(key) ?? []), p]);
  }
  for (const line of by.values()) {
    const key = view.join.includes(BY_COLOUR) ? line[0][BY_COLOUR] : "";
    found.set(key, [...(found.get(key) ?? []), ...line.sort((a, b) => a[x.field] - b[x.field]), null]);
  }
  return found;
}

function range(axis, values) {
  const v = values.map((value) => (axis.log ? Math.log10(value) : value));
  const low = Math.min(...v), high = Math.max(...v), pad = 0.07 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [low - pad, high + pad];
}

function layout(state, view, x, y, xs, ys) {
  const { ink } = state, fg = ink("ink");
  const axis = (a, reach) => ({
    range: reach, type: a.log ? "log" : "linear", fixedrange: true, zeroline: false, showline: true,
    title: { text: a.title, standoff: 8, font: { size: 12, color: fg } }, tickfont: { size: 11, color: ink("soft") },
    gridcolor: ink("pale"), linecolor: ink("rule"), tickcolor: ink("rule"), ticks: "outside", ticklen: 4, tickangle: 0,
    ...(a.ticks.length ? { tickvals: a.ticks.map((t) => t[0]), ticktext: a.ticks.map((t) => t[1]) } : { nticks: 6 }),
    ...(a.field === "val_loss" ? { tickformat: ".2f" } : {}),
  });
  const mouse = matchMedia("(pointer: fine)").matches; // a finger that drags wants to scroll
  return {
    autosize: true, margin: { l: 62, r: 14, t: view.of ? 42 : 10, b: x.field === "params" ? 62 : 50 },
    paper_bgcolor: CLEAR, plot_bgcolor: CLEAR, font: { family: FONT, color: fg },
    hovermode: "closest", dragmode: mouse ? "select" : false, selections: [],
    newselection: { line: { color: ink("accent"), width: 1.5, dash: "solid" } },
    hoverlabel: { bgcolor: ink("paper"), bordercolor: ink("rule"), font: { color: fg, size: 12 }, align: "left" },
    xaxis: axis(x, xs), yaxis: axis(y, ys),
    ...(view.of ? turningPoints(state, xs) : { shapes: [], annotations: [] }),
  };
}

/** Zero, and the turning points of Omega with the factor they are known to. */
function turningPoints({ data, ink }, [low, high]) {
  const { turns, known_to } = data, [fg, soft] = [ink("ink"), ink("soft")];
  const zero = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: soft, width: 1.2 } };
  const shapes = [zero], annotations = [];
  const upright = (at, top, line) => ({ type: "line", yref: "paper", x0: at, x1: at, y0: 0, y1: top, line });
  const named = [["loss", "loss turns up near", "dash"], ["score", "accuracy turns down near", "dot"]];
  const left = Object.values(turns).every((at) => Math.log10(at) < (low + high) / 2); // names go where there is room
  (left ? named.reverse() : named).filter(([of]) => turns[of]).forEach(([of, text, dash], k) => {
    const at = turns[of], band = { x0: at / known_to, x1: at * known_to, y0: 0, y1: 1 };
    shapes.push({ type: "rect", yref: "paper", ...band, fillcolor: soft, opacity: 0.13, line: { width: 0 } });
    shapes.push(upright(at, 1 + (k + 0.5) * LINE, { color: fg, dash, width: 1.6 }));
    annotations.push({
      x: Math.log10(at), y: 1 + k * LINE, yref: "paper", yanchor: "bottom",
      xanchor: left ? "left" : "right", xshift: left ? 3 : -3,
      text: `published: ${text} ${short(at)}`, showarrow: false, font: { size: 11, color: fg },
    });
  });
  return { shapes: shapes.map((shape) => ({ ...shape, layer: "below" })), annotations };
}
