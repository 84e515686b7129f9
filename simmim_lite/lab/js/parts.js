// What the widgets are put together from: labelled controls that work by mouse, keyboard and screen reader, and canvases.

/** Lumino, under JupyterLab, would take arrow keys, Enter and letters from anything without this. */
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };
const _page = Math.random().toString(36).slice(2, 8); // two widgets on one page are two modules, and an id names one element
let _ids = 0;

/** h("button", {class: "a", onclick: f, disabled: true}, "text", child): an element. False and null are left out. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !["list", "for", "style"].includes(name) && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== false && child !== null && child !== undefined));
  return element;
}

/** A slider under its name, with its value beside it. show(value) is the text; change(value) hears of every move. */
function slider(label, { min, max, step, value, show = String, change }) {
  const id = `sl-${_page}-${++_ids}`, output = h("output", { for: id }, show(value));
  const input = h("input", { type: "range", id, min, max, step, ...OWN_KEYS });
  input.value = value;
  const said = () => { output.textContent = show(Number(input.value)); input.setAttribute("aria-valuetext", output.textContent); };
  input.addEventListener("input", () => { said(); change(Number(input.value)); });
  said();
  const element = h("div", { class: "sl-field" }, h("label", { for: id }, label), input, output);
  return { element, input, set(v) { input.value = v; said(); } };
}

/** A choice among [value, text] under its name. */
function select(label, { options, value, change }) {
  const id = `sl-${_page}-${++_ids}`, input = h("select", { id, ...OWN_KEYS, onchange: () => change(input.value) });
  const element = h("div", { class: "sl-field" }, h("label", { for: id }, label), input);
  const fill = (list, chosen) => {
    input.replaceChildren(...list.map(([v, text, disabled]) => h("option", { value: v, disabled: Boolean(disabled) }, text)));
    input.value = chosen;
  };
  fill(options, value);
  return { element, input, fill, set(v) { input.value = v; } };
}

/** A button; title says more on hover. */
const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...OWN_KEYS, ...attributes }, text);

/** One of several views at a time, as tabs by mouse and arrow keys. panels: [[name, text, element]]; change(name). */
function tabs(label, panels, change) {
  const list = h("div", { class: "sl-tabs", role: "tablist", "aria-label": label });
  const buttons = panels.map(([name, text, panel]) => {
    panel.id ||= `sl-${_page}-${++_ids}`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", `${panel.id}-tab`);
    const tab = h("button", { type: "button", role: "tab", id: `${panel.id}-tab`, "aria-controls": panel.id, "data-tab": name, ...OWN_KEYS, onclick: () => open(name, true) }, text);
    list.append(tab);
    return tab;
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault(); event.stopPropagation();
    const next = (buttons.indexOf(event.target) + step + buttons.length) % buttons.length;
    open(panels[next][0], true);
    buttons[next].focus();
  });
  function open(name, told = false) {
    panels.forEach(([other, , panel], i) => {
      panel.hidden = other !== name;
      buttons[i].setAttribute("aria-selected", String(other === name));
      buttons[i].tabIndex = other === name ? 0 : -1;
    });
    if (told) change(name);
  }
  return { element: list, open };
}

/** A square canvas of `pixels` that the page may show at any size without smoothing. */
function board(pixels, label, attributes = {}) {
  const keys = "tabIndex" in attributes || "tabindex" in attributes; // then arrow keys are ours, in a screen reader too
  const canvas = h("canvas", { class: "sl-board", role: keys ? "application" : "img", "aria-label": label, ...attributes });
  canvas.width = canvas.height = pixels;
  return canvas;
}

/** Cividis, which colour-blind readers can tell apart, from a few of its colours: 0 to 1 -> [r, g, b]. */
const _CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
function cividis(value) {
  const at = Math.min(Math.max(value, 0), 1) * (_CIVIDIS.length - 1), k = Math.min(Math.floor(at), _CIVIDIS.length - 2), f = at - k;
  return _CIVIDIS[k].map((low, c) => Math.round(low + f * (_CIVIDIS[k + 1][c] - low)));
}

const bytesOf = (value) =>
  typeof value === "string" ? Uint8Array.from(atob(value), (c) => c.charCodeAt(0)) : new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
