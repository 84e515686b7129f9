"""Executed notebooks as pages that ask the network for nothing: the report of a study, and what the site is made of.

Figures are live, equations MathML, controls that need a kernel are replaced by what they show without one."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, first_line
from ..evidence.rules import Claim
from ..evidence.tables import verdicts
from ..training.run import write_atomic

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
_NO_KERNEL = '<p class="sl-note">Here is a control that lives in JupyterLab: <code>make lab</code>.</p>'
_LINK = re.compile(r'<a href="(?!https?:|#|data:|mailto:)([^"]*)"[^>]*>(.*?)</a>', re.S)


def write(
    notebooks: str | Path, report_dir: str | Path, claims: Sequence[Claim] = (), failed: Iterable[dict] = ()
) -> Path:
    """Write REPORT_DIR/NAME.html of every executed notebook in a folder, and index.html, which is returned.

    All pages link each other; plotly.js is written once beside them. index.html has the verdicts on the claims, and the
    records of failed runs with their reasons. `UserError` for a notebook that cannot be read."""
    import nbformat
    from plotly.offline import get_plotlyjs

    report_dir = Path(report_dir)
    write_atomic(report_dir / "plotly.min.js", get_plotlyjs())
    there = sorted(Path(notebooks).glob("[!.]*.ipynb"))
    pages = {path.stem: read(path) for path in there if not path.name.endswith(".failed.ipynb")}
    texts = ["# How does masked image modelling scale?"]
    texts += ["\n".join(f"- [{title_of(content, name)}]({name}.html)" for name, content in pages.items())]
    texts += [f"## What these runs say\n\n{verdicts({'your runs': list(claims)})}"] if claims else []
    if lines := sorted(f"- `{r['key']}`: {escape(str(r.get('reason')))}" for r in failed):
        texts.append("## Runs that failed\n\nThey are in no figure and no claim.\n\n" + "\n".join(lines))
    there = {path.stem for path in report_dir.glob("*.html")} - {"index"}  # those of earlier calls, too
    names = ["index", *sorted({*pages, *there})]
    pages["index"] = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])
    for name, content in pages.items():
        prepare(content)
        write_atomic(report_dir / f"{name}.html", _page(content, names, name))
    return report_dir / "index.html"


def read(path: Path) -> "NotebookNode":
    """An executed notebook; `UserError` where the file is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        raise UserError(f"{path}: not a readable notebook ({first_line(error)}); delete it and run again") from error


def prepare(content: "NotebookNode") -> None:
    """Make an executed notebook fit for a page that has plotly.js, in place: figures become their twins, and a widget
    without one a line."""
    from ..evidence.drawing import PAGE_CLASS, PLOTLY, twin  # plotly takes long to import

    for cell in content.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if PAGE_CLASS not in o.get("data", {}).get("text/html", "")[:80]]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                output.data = {"text/html": twin(data[PLOTLY])}
            elif WIDGET in data:
                output.data = {"text/html": data.get("text/html") or _NO_KERNEL}


def _page(content: "NotebookNode", names: Sequence[str], here: str) -> str:
    """A prepared notebook as a whole page. names: pages beside it, to which links lead; links to other files become
    plain text."""
    from pygments.formatters import HtmlFormatter

    from ..evidence.drawing import SCRIPT

    def linked(match: re.Match) -> str:
        target = Path(match[1].split("#")[0])
        known = target.suffix in (".ipynb", ".html") and target.stem in names
        return f'<a href="{target.stem}.html">{match[2]}</a>' if known else match[2]

    day, night = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "github-dark"))
    night = f"@media (prefers-color-scheme: dark) {{ {night} .highlight {{ background:none !important }} }}"
    shown = {"title": title_of(content, here), "style": f"{STYLE}{day}{night}", "script": SCRIPT}
    shown |= {"names": names, "here": here}
    return _LINK.sub(linked, _exporter().from_notebook_node(content, {"page": shown})[0])


def title_of(content: "NotebookNode", name: str) -> str:
    """The first heading, without its marks."""
    headings = (re.search(r"^# +(.+)$", cell.source, re.M) for cell in content.cells)
    return re.sub(r"[*`$]", "", next((match[1] for match in headings if match), name)).strip()


def mathml(tex: str, display: str) -> str:
    """An equation as MathML (display: inline or block); as typed where the converter cannot read it."""
    from xml.etree import ElementTree

    from latex2mathml.converter import convert

    try:
        html = convert(tex.strip(), display=display)
        ElementTree.fromstring(html)
        return html
    except Exception:  # the converter raises errors of many kinds, all of which mean: show the text
        return f"<code>{escape(tex.strip())}</code>"


@cache
def _exporter():
    """nbconvert with our template, and Markdown whose equations are MathML: browsers draw them without a script."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<span class="equation">{mathml(body, "block")}</span>'

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    template = Path(str(files(__package__).joinpath("page.html.j2")))
    exporter = HTMLExporter(template_name="basic", template_file=str(template), exclude_anchor_links=True)
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    for name in ("markdown2html", "markdown2html_mistune"):
        exporter.register_filter(name, lambda source: MarkdownWithMath(renderer=renderer).render(source))
    return exporter
