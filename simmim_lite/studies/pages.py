"""Executed notebooks as pages that ask the network for nothing: the report of a study, the site, the gallery.

Figures are live, equations MathML, controls that need a kernel are replaced by what they show without one.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, first_line
from ..evidence import shipped, tables
from ..evidence.rules import HOLDS, OPEN, TABLE, UNTESTED, Claim
from ..training.run import write_atomic
from . import notebooks as running
from .parameters import parameters
from .tiers import CLAIMS, TRANSFER

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
FIGURE_CLASS = "sl-figure"  # marks the place of a figure; a page without it loads no plotly.js
STYLE = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
SCRIPT = files(__package__).joinpath("figures.js").read_text(encoding="utf-8")  # draws a figure that comes near
_NO_KERNEL = '<p class="sl-note">Here is a control that lives in JupyterLab: <code>make lab</code>.</p>'
_LINK = re.compile(r'<a href="(?!https?:|#|data:|mailto:)([^"]*)"[^>]*>(.*?)</a>', re.S)
_ANSWER = re.compile(r"\n<details><summary>(.*?)</summary>(.*?)</details>", re.S)
_BADGES = {HOLDS: ("yes", "✓"), OPEN: ("open", "?"), UNTESTED: ("open", "–")}
PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
SETTINGS = ROOT / "site"
QUESTIONS = {
    "data-scale": "How much data does masked image modelling need?",
    "model-size": "Is a larger network always better?",
    "schedule": "Does longer training help, and when does it hurt?",
    "proxy": "Can a pretraining loss tell which network is better?",
    TRANSFER: "What is pretraining worth, task by task?",
}


def write(
    notebooks: str | Path, report_dir: str | Path, claims: Sequence[Claim] = (), failed: Iterable[dict] = ()
) -> Path:
    """Write REPORT_DIR/NAME.html of every executed notebook in a folder, and index.html, which is returned.

    All pages link each other; plotly.js is written once beside them. index.html has the verdicts on the claims, and the
    records of failed runs with their reasons. `UserError` for a notebook that cannot be read.
    """
    import nbformat
    from plotly.offline import get_plotlyjs

    report_dir = Path(report_dir)
    write_atomic(report_dir / "plotly.min.js", get_plotlyjs())
    executed = {path.stem: read(path) for path in sorted(Path(notebooks).glob("*.ipynb")) if "." not in path.stem}
    others = {path.stem for path in report_dir.glob("*.html")} - executed.keys() - {"index"}
    texts = ["# How does masked image modelling scale?"]
    texts += ["\n".join(f"- [{title_of(content, name)}]({name}.html)" for name, content in executed.items())]
    texts += [f"## What these runs say\n\n{tables.verdicts({'your runs': list(claims)})}"] if claims else []
    if lines := sorted(f"- `{r['key']}`: {escape(str(r.get('reason')))}" for r in failed):
        texts.append("## Runs that failed\n\nThey are in no figure and no claim.\n\n" + "\n".join(lines))
    index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])
    names = ["index", *sorted({*executed, *others})]
    for name, content in {**executed, "index": index}.items():
        prepare(content)
        write_atomic(report_dir / f"{name}.html", page(content, names=names, here=name))
    return report_dir / "index.html"


def read(path: Path) -> "NotebookNode":
    """An executed notebook; `UserError` where the file is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        raise UserError(f"{path}: not a readable notebook ({first_line(error)}); delete it and run again") from error


def prepare(content: "NotebookNode") -> None:
    """Make an executed notebook fit for a page, in place: figures become places that `SCRIPT` draws, with their content
    as JSON beside them, widgets their static twins."""
    for number, cell in enumerate(content.cells):
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if PLOTLY in data:
                output.data = {"text/html": _figure(data[PLOTLY], f"figure-{number}-{place}")}
            elif WIDGET in data:
                output.data = {"text/html": data.get("text/html") or _NO_KERNEL}


def _figure(content: dict, name: str) -> str:
    layout = content.get("layout", {})
    config = {"responsive": True, "displaylogo": False, **content.get("config", {})}
    packed = json.dumps({"data": content["data"], "layout": layout, "config": config}, separators=(",", ":"))
    packed = packed.replace("</", "<\\/").replace("<!--", "<\\!--")
    width = f"width:{layout['width']}px" if "width" in layout else "min-width:min(740px, 190vw)"
    return (
        f'<div class="sl-plot"><div class="{FIGURE_CLASS}" id="{name}" style="height:{layout.get("height", 450)}px;'
        f'{width}"></div><script type="application/json">{packed}</script></div>'
    )


def page(content: "NotebookNode", *, names: Sequence[str] = (), here: str = "", plotly: str | None = None) -> str:
    """A prepared notebook as a whole page. names: pages beside it, to which links lead; links to other files
    become plain text. plotly: the source of plotly.js, put inside where it does not lie beside the page."""
    from pygments.formatters import HtmlFormatter

    def linked(match: re.Match) -> str:
        target = Path(match[1].split("#")[0])
        known = target.suffix in (".ipynb", ".html") and target.stem in names
        return f'<a href="{target.stem}.html">{match[2]}</a>' if known else match[2]

    looks = {style: HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "github-dark")}
    night = (
        f"@media (prefers-color-scheme: dark) {{ {looks['github-dark']} }} .highlight {{ background:none !important }}"
    )
    shown = {"title": title_of(content, here), "style": f"{STYLE}{looks['friendly']}{night}", "script": SCRIPT}
    shown |= {"names": names, "here": here, "plotly": plotly}
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


# --- the site -------------------------------------------------------------------------------------------------------


def build(
    out: str | Path,
    lab_page: Callable[[Path], object],
    explorer: str = "",
    *,
    work: str | Path = "build/site",
    notebooks: Iterable[Path] | None = None,
    workers: int | None = None,
    settings: Iterable[str] = (),
) -> Path:
    """Build the site in OUT with Sphinx and return its index.html; WORK keeps executed notebooks and Sphinx's files.

    lab_page: writes the mask lab's self-contained page to the path it is given. explorer: HTML of the explorer of the
    published runs. notebooks: all of `notebooks/` by default; they run in WORK, so that a reader's own runs stay out.
    workers: notebooks at a time. settings: NAME=VALUE for Sphinx, over those of conf.py. `UserError` where Sphinx is
    missing, outside of a checkout, for a folder OUT that holds something else, and for a notebook that fails.
    """
    needed = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f'the site needs {", ".join(missing)}: pip install "simmim-lite[site]"')
    if not SETTINGS.is_dir():
        raise UserError("the site's settings are not part of the installed package: run this in a checkout")
    out, work = Path(out).absolute(), Path(work).absolute()
    if out.exists() and (not out.is_dir() or not (out / ".buildinfo").exists() and any(out.iterdir())):
        raise UserError(f"{out} holds something else: name an empty folder by --out")
    paths = sorted(running.folder().glob("*.ipynb") if notebooks is None else map(Path, notebooks))
    executed, source = execute(paths, work, workers=workers), work / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(SETTINGS, source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "gallery", source / "gallery")
    from plotly.offline import get_plotlyjs

    pages = {"_static/plotly.min.js": get_plotlyjs(), "_static/figures.js": SCRIPT}
    pages |= {"generated/explorer.html": explorer, "generated/findings.html": findings(set(executed))}
    pages["notebooks/glossary.md"] = (running.folder() / "glossary.md").read_bytes()
    for path in paths:
        study = parameters(path).get("tier") == "shipped"  # a study is read, a first step is tried
        pages[f"notebooks/{path.name}"] = for_sphinx(executed[path.stem], hide_code=study)
    for name, content in pages.items():
        write_atomic(source / name, content)
    # in a process of its own: Sphinx and its extensions leave registrations behind that a second build stumbles over
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "--no-color", "-d", work / "doctrees", source, out]
    command += [word for setting in settings for word in ("-D", setting)]
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, stderr=subprocess.PIPE, text=True)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        raise UserError(f"Sphinx failed with status {done.returncode}, see above; if it stays, delete {work}")
    shutil.rmtree(out / "_sources", ignore_errors=True)
    lab_page(out / "lab.html")
    write_atomic(out / ".nojekyll", "")  # GitHub Pages would leave out folders that begin with a line
    return out / "index.html"


def lab_head() -> str:
    """What the lab's page begins with: a line for a visitor; in a frame of the site its theme and a true height."""
    return (SETTINGS / "lab_head.html").read_text(encoding="utf-8")


def execute(paths: Iterable[Path], work: Path, *, workers: int | None = None) -> dict[str, Path]:
    """Executed copies by name; a notebook runs only when it or the library is newer than its last copy."""
    paths, folder = [Path(path).absolute() for path in paths], work / "executed"
    library = max(path.stat().st_mtime for path in PACKAGE.rglob("*.py"))
    found = {path.stem: folder / path.name for path in paths}
    newest = {path: max(library, path.stat().st_mtime) for path in paths}
    copies = {path: found[path.stem] for path in paths}
    if stale := [p for p in paths if not copies[p].exists() or copies[p].stat().st_mtime < newest[p]]:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(work):  # notebooks keep their runs in `runs` of the folder they run in
            running.run(stale, {}, folder, workers=workers)
    return found


def for_sphinx(executed: Path, *, hide_code: bool) -> str:
    """An executed notebook for Sphinx. hide_code: fold every code cell but exercises behind a line that opens it."""
    import nbformat

    content = read(executed)
    prepare(content)
    content.metadata = {k: v for k, v in content.metadata.items() if k in ("kernelspec", "language_info")}
    for cell in content.cells:
        exercise, cell.metadata = "exercise" in cell.metadata.get("tags", ()), {}
        if cell.cell_type == "markdown":  # answers stay inside the item of the list that asks for them
            cell.source = _ANSWER.sub(
                lambda m: f"\n   <details><summary>{m[1]}</summary>{m[2].replace(chr(10), ' ')}</details>", cell.source
            )
        elif hide_code and not exercise:
            cell.metadata = {"tags": ["hide-input"]}
        for output in cell.get("outputs", ()):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
    return nbformat.writes(content)


def findings(notebooks: set[str]) -> str:
    """A line a claim, a column a kind of evidence, and the verdict in each; computed, as HTML."""
    kinds = {tables.NAMES.get(kind, kind): {c.id: c for c in found} for kind, found in tables.claims().items()}
    lines = []
    for rule in TABLE:
        cells = ""
        for kind, found in kinds.items():
            if (claim := found.get(rule.id)) is None:
                cells += "<td></td>"
                continue
            tone, sign = _BADGES.get(claim.verdict, ("no", "✗"))
            title = re.sub(r"(?<![\w-])-(?=\d)", "−", escape(claim.evidence))
            badge = f'<span class="badge {tone}">{sign} {claim.verdict}</span>'
            cells += f'<td data-kind="{escape(kind)}" title="{title}">{badge}</td>'
        notebook = next((running.NOTEBOOKS[study] for study, ids in CLAIMS.items() if rule.id in ids), None)
        words = escape(rule.statement)
        words = f'<a href="notebooks/{notebook}.html">{words}</a>' if notebook in notebooks else words
        lines.append(f"<tr><td>{rule.id}</td><td>{words}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(kind)}</th>" for kind in kinds)
    table = f"<thead><tr><th></th><th>claim</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="sl-scroll"><table class="sl-table sl-findings">{table}</table></div>'


# --- the gallery ----------------------------------------------------------------------------------------------------


def make_gallery(out: str | Path = "gallery") -> list[Path]:
    """Write OUT/STUDY.png of every study, OUT/readme.png and OUT/gallery.md with captions; the files written.

    Captions are computed from the records. `UserError` where OUT cannot be written, and where kaleido or the browser
    that it draws with is missing.
    """
    from ..evidence import figures, transfers

    out, frame = Path(out), tables.runs()
    longest, ours = tables.longest(frame), frame[frame["source"] == "shipped"]
    gains = transfers.gains(transfers.table(shipped.records(shipped.TRANSFER)))
    drawn = {
        "data-scale": figures.lines(longest, "images", "val_loss", "model"),
        "model-size": figures.lines(longest, "params", "val_loss", "images"),
        "schedule": figures.lines(ours, "steps", "val_loss", "images", panel="model"),
        "proxy": figures.scatter(frame, ["val_loss", "train_loss"], "score", "regime", rank=True),
        TRANSFER: figures.lines(gains, "images", "gain", "model", panel="name", interval=True),
    }
    drawn["readme"] = drawn["model-size"]
    written = [_png(figure, out / f"{name}.png") for name, figure in drawn.items()]
    write_atomic(out / "gallery.md", gallery_page(frame))
    return [*written, out / "gallery.md"]


def gallery_page(frame: "pd.DataFrame") -> str:
    """The page of the pictures, in Markdown; what each shows is counted from the runs by source."""
    from ..evidence.figures import SOURCES

    said = []
    for source, some in frame.groupby("source"):
        of = "" if source == "published" else f" of {some['seed'].nunique()} seeds on {some['data'].iloc[0]}"
        said.append(f"{SOURCES.get(source, source).lower()}: {len(some)} runs{of}")
    parts = [
        "# Gallery\n",
        f"Drawn by `simmim-lite gallery` from the {'; '.join(said)}. Bars are one standard error, of the "
        "transfer tasks 95 % intervals.\n",
    ]
    for study, question in QUESTIONS.items():
        link = f"[Read the study](../notebooks/{running.NOTEBOOKS[study]}.ipynb)"
        parts.append(f"## {question}\n\n![{question}]({study}.png)\n\n{link}\n")
    return "\n".join(parts)


def _png(figure, path: Path) -> Path:
    try:  # drawn at twice its size, for sharp screens
        image = figure.to_image("png", width=1180, height=figure.layout.height or 450, scale=2)
    except Exception as error:  # kaleido raises errors of its own and of the browser's driver
        raise UserError(f"pictures need kaleido and Chromium or Chrome ({first_line(error)})") from error
    write_atomic(path, image)
    return path
