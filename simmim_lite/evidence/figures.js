// Of every figure of plotly in a page, by whom it is drawn: a name for screen readers, a slider for the keyboard,
// colours that follow the theme, a size that fits. Twins (drawing.py) are drawn here, when the reader comes near.
(() => {
  if (globalThis.simmimFigures) return; // once a page, however many notebooks bring it
  globalThis.simmimFigures = true;
  const LEAST = 780; // pixels: narrower figures are drawn at this width and made smaller as a whole
  const TEXTS = ":is(.infolayer, .xtick, .ytick, .cbaxis, .slider-container) text";
  document.head.append(Object.assign(document.createElement("style"), { textContent: `
    .sl-figure, .jp-RenderedPlotly { min-width: ${LEAST}px; transform-origin: 0 0; position: relative }
    .sl-plot { overflow-x: auto }
    .sl-dark .js-plotly-plot .main-svg { background: none !important }
    .sl-dark .js-plotly-plot :is(.bg, .bglayer rect) { fill-opacity: 0 !important }
    .sl-dark .js-plotly-plot:not(.sl-pictures) .svg-container { filter: invert(1) hue-rotate(180deg) brightness(1.15) }
    .sl-dark .sl-pictures ${TEXTS} { fill: #d6dae2 !important }
    .sl-dark .sl-plot { background: none }
    .sl-range { position: absolute; left: 0; bottom: 0; width: 1px; height: 1px; opacity: 0; margin: 0 }
    .sl-range:focus-visible + .sl-ring { display: block }
    .sl-ring { display: none; position: absolute; outline: 3px solid #0072b2; outline-offset: 2px; pointer-events: none }
    .jp-NotebookPanel .jp-OutputArea-child:has(.sl-page), .sl-gone { display: none !important }
    /* the picture of a widget, while that is alive */
    .jp-NotebookPanel .jp-OutputArea-child:has(+ .jp-OutputArea-child > .jp-OutputArea-output:not(.jp-RenderedHTML)
      :is(.sl-lab, .sl-explorer)) { display: none }` }));

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const unpacked = (text) =>
    new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  /** plotly.js: that of the page, or the packed one in it. */
  const plotly = () => (globalThis.simmimPlotly ??= globalThis.Plotly ? Promise.resolve(globalThis.Plotly) : (async () => {
    const code = new Blob([await unpacked(document.querySelector(".sl-plotly").textContent)], { type: "text/javascript" });
    await new Promise((onload, onerror) => document.head.append(
      Object.assign(document.createElement("script"), { src: URL.createObjectURL(code), onload, onerror })));
    return globalThis.Plotly;
  })());
  const draw = async (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const packed = await (await unpacked(place.nextElementSibling.textContent)).text();
    const { data, layout, config } = JSON.parse(packed), lib = await plotly();
    place.textContent = "";
    await lib.newPlot(place, data, layout, config);
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
      near.unobserve(target);
      if (target.tagName !== "IMG") draw(target);
      else target.dispatchEvent(new MouseEvent("mouseenter")); // JupyterLab's stand-in for a figure that was saved
    }), { rootMargin: "600px" });
  const twins = () => document.querySelectorAll(".sl-figure");
  window.addEventListener("beforeprint", () => twins().forEach(draw));

  const plain = (html) => new DOMParser().parseFromString((html ?? "").replace(/<br[^>]*>/g, " "), "text/html").body.textContent;
  /** Title, axes, what else is written: the name of a figure. */
  const name = ({ title, xaxis, yaxis, annotations = [] }) => {
    const axes = [yaxis, xaxis].filter((axis) => axis?.visible !== false).map((axis) => plain(axis?.title?.text)).filter(Boolean);
    const said = [plain(title?.text), axes.join(" against "), ...annotations.map((note) => plain(note.text))];
    return [...new Set(said.filter(Boolean))].join("; ").slice(0, 300) || "figure";
  };
  /** plotly's slider hears the mouse alone: a native one beside it hears keys and is read out. */
  const slide = (plot, slider) => {
    const range = document.createElement("input"), ring = document.createElement("span");
    const at = () => plot.layout.sliders[0]; // while a figure is drawn anew, _fullLayout is not the one on the screen
    const say = () => { range.value = at().active ?? 0; range.setAttribute("aria-valuetext", at().steps[range.value].label); };
    Object.assign(range, { type: "range", className: "sl-range", min: 0, max: slider.steps.length - 1 });
    Object.assign(ring, { className: "sl-ring" });
    range.setAttribute("aria-label", plain(slider.currentvalue.prefix).replace(/:\s*$/, "") || "slider");
    range.dataset.lmSuppressShortcuts = "true";
    range.oninput = () => {
      const rail = plot.querySelector(".slider-rail-touch-rect"), rect = plot.querySelectorAll(".slider-tick-rect")[range.value];
      const box = rect.getBoundingClientRect(), y = rail.getBoundingClientRect();
      const place = { clientX: box.x + box.width / 2, clientY: y.y + y.height / 2, bubbles: true };
      rail.dispatchEvent(new MouseEvent("mousedown", place));
      plot.dispatchEvent(new MouseEvent("mouseup", place));
      say();
    };
    range.onfocus = () => {
      const [box, own] = [plot.querySelector(".slider-group"), plot].map((one) => one.getBoundingClientRect());
      const scale = plot.offsetWidth / own.width;
      const sides = { left: box.x - own.x, top: box.y - own.y, width: box.width, height: box.height };
      for (const [side, pixels] of Object.entries(sides)) ring.style[side] = `${pixels * scale}px`;
    };
    plot.append(range, ring);
    plot.on("plotly_sliderchange", () => setTimeout(say));
    say();
  };
  const fit = (plot) => {
    const { width, height } = plot._fullLayout, least = Math.max(LEAST, plot.layout.width ?? 0), outer = plot.parentElement;
    const lab = plot.matches(".jp-RenderedPlotly"); // where a prompt stands at the left, and nothing scrolls
    const room = outer.clientWidth - (lab ? plot.offsetLeft - outer.offsetLeft : 0);
    const scale = Math.max(lab ? 0.35 : 0.55, Math.min(1, room / least)), now = `${scale} ${height}`;
    if (room <= 0 || plot.dataset.scale === now) return;
    plot.dataset.scale = now;
    const style = { transform: `scale(${scale})`, flex: "none", width: `${least}px` };
    Object.assign(style, { marginBottom: `${(scale - 1) * height}px`, marginRight: `${(scale - 1) * least}px` });
    for (const [name, value] of Object.entries(style)) if (lab || name !== "width") plot.style[name] = scale < 1 ? value : "";
    if (lab && width !== least && !plot.layout.width) dispatchEvent(new Event("resize")); // JupyterLab draws it anew
  };
  const sized = new ResizeObserver((entries) => entries.forEach(({ target }) =>
    target.querySelectorAll(":scope > .js-plotly-plot").forEach((plot) => plot._fullLayout && fit(plot))));
  const look = () => {
    for (const place of twins()) if (!place.dataset.drawn) near.observe(place);
    for (const image of document.querySelectorAll(".jp-RenderedPlotly > img[src]:not([data-drawn])")) {
      image.dataset.drawn = "yes";
      near.observe(image);
    }
    for (const widget of document.querySelectorAll(".jp-OutputArea-output.lm-Panel")) // without a kernel: a word, no element
      if (widget.parentElement.previousElementSibling?.querySelector(".jp-RenderedPlotly"))
        widget.parentElement.classList.toggle("sl-gone", !widget.firstElementChild);
    for (const plot of document.getElementsByClassName("js-plotly-plot")) {
      if (!plot._fullLayout?.xaxis && !plot._fullLayout?.sliders || !plot.on) continue;
      plot.classList.toggle("sl-pictures", plot.querySelector("image") !== null);
      if (plot.closest(".sl-explorer") || plot.dataset.named) continue;
      plot.dataset.named = "yes";
      const slider = plot._fullLayout.sliders?.[0];
      plot.setAttribute("role", slider ? "group" : "img");
      const tell = () => { plot.setAttribute("aria-label", name(plot.layout)); fit(plot); };
      plot.on("plotly_afterplot", tell);
      tell();
      if (slider) slide(plot, slider);
      sized.observe(plot.parentElement);
    }
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; look(); });
  }).observe(document.documentElement, { childList: true, subtree: true });

  const system = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const theme = () => {
    const light = document.body.dataset.jpThemeLight, own = root.dataset.theme;
    const ink = getComputedStyle(document.body).color.match(/[\d.]+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0);
    root.classList.toggle("sl-dark", light ? light === "false" : own ? own === "dark" : ink > 382);
  };
  for (const element of [root, document.body])
    new MutationObserver(theme).observe(element, { attributeFilter: ["data-theme", "data-jp-theme-light"] });
  system.addEventListener("change", theme);
  theme();
  look();
})();
