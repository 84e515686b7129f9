"""Executed notebooks as HTML pages that ask the network for nothing: live figures, equations as MathML, one header."""

import json
import re
from functools import cache
from html import escape
from pathlib import Path

from ..errors import UserError
from ..training.run import write_atomic
from .report_page import STYLE

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
_MARK = '<meta name="generator" content="simmim-lite notebook">'
_NAV = re.compile(r"<!-- pages -->.*?<!-- /pages -->\n?", re.S)
_TITLE = re.compile(r"<title>(.*?)</title>", re.S)
_LINK = re.compile(r'<a href="(?!https?:|#|data:|mailto:)([^"]*)"[^>]*>(.*?)</a>', re.S)
_NAV_STYLE = """
.pages { position:sticky; top:0; z-index:9; background:var(--paper,#fff); border-bottom:1px solid var(--rule,#dfe2e8);
  padding:10px 24px; display:flex; flex-wrap:wrap; gap:4px 22px; font-size:15px; line-height:1.5 }
.pages a { color:var(--accent,#0072b2); text-decoration:none } .pages a:hover { text-decoration:underline }
.pages b { color:var(--ink,#1f2430) } .pages .home { font-weight:600 }
"""
_STYLE = """
main { padding-top:32px; max-width:1180px } h1 { max-width:30ch; font-size:clamp(28px,3.6vw,40px) }
h2 { margin-top:44px }
h3 { margin:30px 0 8px } a { color:var(--accent) } .anchor-link { display:none }
.input_area, .cell details pre { background:var(--wash); border:1px solid var(--rule); border-radius:8px;
  overflow-x:auto; margin:14px 0 }
pre { font:13px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace; margin:0; padding:10px 14px }
.prompt, .input_prompt, .output_prompt { display:none } .output { margin:8px 0 22px }
.output_text pre, .output_stream pre { padding:4px 0 4px 14px; white-space:pre-wrap; border-left:3px solid var(--rule) }
.output_error pre { border-left:3px solid var(--no); white-space:pre-wrap; padding-left:14px }
img { max-width:100%; height:auto } ul, ol { max-width:72ch; padding-left:26px }
table { width:auto; max-width:100%; font-size:15px; margin:14px 0 20px } th, td { white-space:normal }
code { font:.88em ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace; background:var(--wash); padding:1px 5px;
  border-radius:4px } pre code { background:none; padding:0; font-size:13px }
math { font-size:1.06em } .equation { display:block; overflow-x:auto; margin:12px 0; padding:8px 0; font-size:1.1em }
details { max-width:76ch; margin:8px 0 } summary { cursor:pointer; color:var(--accent) }
blockquote { margin:16px 0; padding:2px 18px; border-left:4px solid var(--accent); color:var(--soft) }
"""


def write(executed: dict[str, Path], report_dir: str | Path) -> list[Path]:
    """Write REPORT_DIR/NAME.html of each executed notebook, and link all pages from each other and from index.html.

    Pages of earlier calls stay and are linked as well. plotly.js is written once beside them. index.html is the written
    report where there is one, else a list of the pages. `UserError` for a notebook that cannot be read, for a folder
    that cannot be written, and where nbconvert is not installed.
    """
    from plotly.offline import get_plotlyjs

    report_dir = Path(report_dir)
    write_atomic(report_dir / "plotly.min.js", get_plotlyjs())
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(report_dir.glob("*.html"))}
    pages = {path: html for path, html in pages.items() if _MARK in html[:600] or path.name == "index.html"}
    names = sorted({*executed, *(path.stem for path in pages if path.name != "index.html")})
    for name, notebook in executed.items():
        pages[report_dir / f"{name}.html"] = _page(notebook, names)
    titles = {p.stem: _TITLE.search(html).group(1) for p, html in pages.items() if p.name != "index.html"}
    pages.setdefault(report_dir / "index.html", _index(titles))
    for path, html in pages.items():
        nav = nav_html(names, here=path.stem)
        html = re.sub(r"(<body[^>]*>\n?)", lambda match, nav=nav: match[1] + nav, _NAV.sub("", html), count=1)
        write_atomic(path, html)
    return [report_dir / f"{name}.html" for name in executed]


def nav_html(names: list[str], here: str = "") -> str:
    """The header that leads to the report and to every page; `here` is the page it stands on."""
    links = [("index", "Report"), *((name, name.replace("_", " ")) for name in names)]
    items = [
        f"<b>{escape(text)}</b>" if name == here else f'<a href="{escape(name)}.html">{escape(text)}</a>'
        for name, text in links
    ]
    inside = "\n".join(items)
    return f'<!-- pages --><style>{_NAV_STYLE}</style><nav class="pages">{inside}</nav><!-- /pages -->\n'


def _page(notebook: Path, names: list[str]) -> str:
    """A notebook's page, still without its header."""
    try:
        import nbformat
        from pygments.formatters import HtmlFormatter
    except ImportError as error:
        raise UserError(f"pages of notebooks need nbconvert ({error}): pip install nbconvert") from error
    try:
        content = nbformat.read(notebook, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{notebook}: not a readable notebook ({first}); run the study again") from error
    title = next((m[1] for c in content.cells if (m := re.search(r"^# +(.+)$", c.source, re.M))), notebook.stem)
    scripts = _prepare(content)
    body, _ = _exporter().from_notebook_node(content)
    body = _LINK.sub(lambda match: _linked(match, names), body)
    for key, html in scripts.items():
        body = body.replace(key, html)
    day = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    night = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    code = f"{day}\n@media (prefers-color-scheme: dark) {{ {night} }}\n.highlight {{ background:none !important }}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}\n<title>{escape(_plain(title))}'
        '</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<style>{STYLE}{code}{_STYLE}</style>\n<script src="plotly.min.js"></script>\n</head>\n'
        f"<body>\n<main>{body}</main></body>\n</html>\n"
    )


def _prepare(content) -> dict[str, str]:
    """Replace plotly figures by keys and drop widgets, in place; the HTML that each key stands for."""
    figures = {}
    for number, cell in enumerate(content.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                key = f"figure-{number}-{len(figures)}-here"
                figures[key] = _figure(data[PLOTLY], key)
                output["data"] = {"text/html": key}
            elif WIDGET in data:
                note = '<p class="note">Here is a control that lives in JupyterLab: <code>make lab</code>.</p>'
                output["data"] = {"text/html": data.get("text/html") or note}
    return figures


def _figure(figure: dict, name: str) -> str:
    """A live figure in a place of its own; plotly.js stands in the page's head."""
    config = {"responsive": True, "displaylogo": False, **figure.get("config", {})}
    parts = ", ".join(json.dumps(part) for part in (figure["data"], figure.get("layout", {}), config))
    parts = parts.replace("</", "<\\/").replace("<!--", "<\\!--")
    height = figure.get("layout", {}).get("height", 450)
    return (
        f'<div class="plot"><div id="{name}" style="min-height:{height}px"></div></div>'
        f'<script>Plotly.newPlot("{name}", {parts})</script>'
    )


@cache
def _exporter():
    """nbconvert with markdown whose equations are MathML: browsers draw them without a script."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<span class="equation">{mathml(body, "block")}</span>'

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    exporter.register_filter("markdown2html", lambda source: MarkdownWithMath(renderer=renderer).render(source))
    exporter.register_filter("markdown2html_mistune", lambda source: MarkdownWithMath(renderer=renderer).render(source))
    return exporter


def mathml(tex: str, display: str) -> str:
    """An equation as MathML; as typed where the converter is missing or cannot read it."""
    from xml.etree import ElementTree

    try:
        from latex2mathml.converter import convert

        html = convert(tex.strip(), display=display)
        ElementTree.fromstring(html)
        return html
    except Exception:  # the converter raises errors of many kinds, all of which mean: show the text
        return f"<code>{escape(tex.strip())}</code>"


def _linked(match: re.Match, names: list[str]) -> str:
    """A link to another notebook leads to its page; one to a file that is not here becomes plain text."""
    target, text = match[1], match[2]
    stem = Path(target.split("#")[0]).stem
    if target.split("#")[0].endswith((".ipynb", ".html")) and stem in names:
        return f'<a href="{stem}.html">{text}</a>'
    return text


def _plain(text: str) -> str:
    return re.sub(r"[*`$]", "", text).strip()


def _index(titles: dict[str, str]) -> str:
    """A list of the pages, where no written report is there to link them from."""
    items = "".join(f'<li><a href="{name}.html">{title}</a></li>' for name, title in sorted(titles.items()))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>simmim-lite</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}{_STYLE}</style>\n'
        "</head>\n<body>\n<main><h1>How does masked image modelling scale?</h1>\n"
        f"<ul>{items}</ul></main></body>\n</html>\n"
    )
