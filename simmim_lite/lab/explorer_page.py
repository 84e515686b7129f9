"""The explorer as HTML: a fragment that comes alive where plotly.js is on the page, and a whole page. No torch here."""

import json
from functools import cache
from importlib.resources import files
from itertools import count

from ..evidence.published import SOURCE
from ..studies.report import STYLE

_NUMBERS = count()
_LEDE = (
    "Five sizes of Swin V2, pretrained by SimMIM on five amounts of data for three lengths. Narrow them down, select "
    "some in one view, and see where they are in the others."
)
_PAGE = """
main { max-width:1240px; padding-top:44px } h1 { max-width:24ch } main > .note { max-width:76ch }
"""
#: Of the explorer itself, wherever it is shown; all colours in one place, twice: day and night (`dark`).
CSS = """
.sl-explorer { --ink:#1f2430; --soft:#5f6672; --rule:#c9cdd6; --pale:#e7e9ee; --paper:#fff; --wash:#f4f5f8;
  --accent:#0072b2; --on:#e2f0f9; color:var(--ink); background:var(--paper); font-size:14px; line-height:1.45;
  font-family:Inter,"Segoe UI","Helvetica Neue","DejaVu Sans",sans-serif; padding:2px 4px 12px; text-align:left }
.sl-explorer.dark { color-scheme:dark; --ink:#e6e8ed; --soft:#a3a9b5; --rule:#4a5160; --pale:#2b303a; --paper:#171a21;
  --wash:#1f232c; --accent:#6db7e8; --on:#183447 }
.jp-OutputArea .sl-explorer.dark { --paper:var(--jp-layout-color0,#111) }
.sl-explorer * { box-sizing:border-box }
.sl-explorer fieldset { border:0; padding:0; margin:0 0 8px; min-width:0; display:grid;
  grid-template-columns:102px minmax(0,1fr); align-items:start }
.sl-explorer legend { float:left; padding:6px 0 0; font-weight:600; font-size:13px }
.sl-explorer .chips { display:flex; flex-wrap:wrap; gap:6px }
.sl-explorer .chip { display:inline-flex; align-items:center; gap:6px; border:1px solid var(--rule); border-radius:99px;
  padding:3px 11px 3px 8px; cursor:pointer; background:var(--paper); min-height:30px; position:relative }
.sl-explorer .chip:hover { border-color:var(--accent) }
.sl-explorer .chip:has(:checked) { background:var(--on); border-color:var(--accent);
  box-shadow:inset 0 0 0 1px var(--accent) }
.sl-explorer .chip:has(:focus-visible), .sl-explorer button:focus-visible, .sl-explorer select:focus-visible {
  outline:3px solid var(--accent); outline-offset:2px }
.sl-explorer .chip input { margin:0; width:14px; height:14px; accent-color:var(--accent); flex:none; outline:none }
.sl-explorer .chip small { color:var(--soft); font-size:12px } .sl-explorer .chip.none { opacity:.5 }
.sl-explorer .glyph { display:inline-flex; width:14px; height:14px; flex:none } .sl-explorer svg { overflow:visible }
.sl-explorer .of { color:var(--soft); font-size:12px; align-self:center }
.sl-explorer .row { display:flex; flex-wrap:wrap; gap:8px 14px; align-items:center; margin:2px 0 10px }
.sl-explorer .row label { display:inline-flex; gap:6px; align-items:center; min-width:0; max-width:100%;
  white-space:nowrap }
.sl-explorer button, .sl-explorer select { font:inherit; color:inherit; background:var(--paper); min-height:32px;
  border:1px solid var(--rule); border-radius:8px; padding:3px 12px; max-width:100%; min-width:0; cursor:pointer }
.sl-explorer button:hover:enabled, .sl-explorer select:hover { border-color:var(--accent) }
.sl-explorer button:disabled { opacity:.5; cursor:default }
.sl-explorer .says { background:var(--wash); border-left:4px solid var(--accent); border-radius:0 8px 8px 0;
  padding:9px 14px; margin:4px 0 14px; font-variant-numeric:tabular-nums; min-height:5.4em }
.sl-explorer .says p { margin:0; max-width:none } .sl-explorer .says b { font-size:16px }
.sl-explorer .grid { display:grid; gap:14px; grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr)) }
.sl-explorer .panel { border:1px solid var(--pale); border-radius:10px; padding:10px 6px 4px; min-width:0;
  margin:0 }
.sl-explorer .panel h3 { font-size:14px; line-height:1.3; margin:0 8px; font-weight:600; color:var(--ink) }
.sl-explorer .panel p { font-size:12px; color:var(--soft); margin:1px 8px 0; min-height:1.45em; max-width:none }
.sl-explorer .panel:hover { position:relative; z-index:2 }
.sl-explorer .plot-here .main-svg { overflow:visible !important }
.sl-explorer .plot-here { height:310px; width:100% }
.sl-explorer .small { font-size:12.5px; color:var(--soft); margin:10px 4px 0; max-width:100ch }
.sl-explorer .wide { overflow-x:auto; margin-top:14px }
.sl-explorer table { border-collapse:collapse; font-size:13px; font-variant-numeric:tabular-nums; margin:0; width:auto;
  background:none }
.sl-explorer caption { text-align:left; font-weight:600; padding:0 8px 4px; white-space:nowrap }
.sl-explorer th, .sl-explorer td { padding:3px 10px; text-align:right; white-space:nowrap; background:none;
  border-bottom:1px solid var(--pale) } .sl-explorer th { color:var(--soft); font-weight:600 }
.sl-explorer tr > :first-child { text-align:left }
@media (prefers-reduced-motion:no-preference) { .sl-explorer .chip, .sl-explorer button {
  transition:background .12s, border-color .12s } }
@media (max-width:520px) { .sl-explorer fieldset { grid-template-columns:1fr } .sl-explorer legend { padding:0 0 3px }
  .sl-explorer .chip { font-size:13px; gap:5px; padding:3px 9px 3px 7px }
  .sl-explorer .chip small { font-size:11.5px } .sl-explorer td:first-child { white-space:normal; min-width:9em }
  .sl-explorer th, .sl-explorer td { padding:3px 6px } }
"""


@cache
def module() -> str:
    """The explorer's one JavaScript module: its views, and what is around them."""
    parts = (files(__package__).joinpath("js", name) for name in ("explorer_views.js", "explorer.js"))
    return "\n".join(part.read_text(encoding="utf-8") for part in parts)


def fragment(data: dict) -> str:
    """The explorer for a page that has plotly.js, as those of a report; elsewhere a line that says where it is live."""
    name = f"explorer-{next(_NUMBERS)}"
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<style>{CSS}</style><div id="{name}" class="sl-explorer">The explorer is live where this cell is run, on the '
        "pages of a report, and on the page that <code>explorer.write_html(path)</code> writes.</div>\n"
        f'<script type="module">{module()}\n'
        f'if (globalThis.Plotly) mount(document.getElementById("{name}"), {content});\n</script>\n'
    )


def page(data: dict, plotly: str | None) -> str:
    """A whole page; plotly: the source of plotly.js, put inside, or None where plotly.min.js lies beside it."""
    title = f"What {len(data['runs'])} published runs say about scale"
    script = '<script src="plotly.min.js">' if plotly is None else f"<script>{plotly}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{_PAGE}</style>\n{script}</script>\n</head>\n<body><main>\n"
        f'<h1>{title}</h1>\n<p class="lede">{_LEDE}</p>\n{fragment(data)}<p class="note">Runs: {SOURCE}. '
        "One run a cell, no repeated seeds.</p>\n</main></body>\n</html>\n"
    )
