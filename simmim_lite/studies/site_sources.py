"""Sources of the site: executed notebooks made ready for Sphinx, and the pages that are computed, not typed.

Figures become a place that `site/_static/figures.js` draws when the reader comes near; widgets become their static
twins. Landing page, API pages and the table of findings are written from what is there. No torch here.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

from ..errors import UserError
from ..evidence import tables
from ..evidence.rules import FAILS, HOLDS, OPEN, TABLE, UNTESTED
from .notebooks import NOTEBOOKS
from .pages import PLOTLY, WIDGET
from .report import SECTIONS
from .report_page import badge

#: What marks the place of a figure; a page without it loads no plotly.js.
FIGURE_CLASS = "sl-figure"
VERDICTS = (HOLDS, FAILS, OPEN, UNTESTED)
PACKAGE = Path(__file__).resolve().parents[1]
#: The packages by their place in the house, lowest first, and what each is for.
PACKAGES = {
    "model": "Sizes, masks, Swin Transformer V2, SimMIM, and weights in four layouts.",
    "data": "Pictures: procedural scenes, folders, data sets, and which images a run sees.",
    "training": "A run, its key and its record; pretraining, probes, fine-tuning.",
    "evidence": "From records to tables, claims with intervals, and figures. Never imports torch.",
    "studies": "What the studies run, who runs it, and the report.",
    "lab": "What the notebooks use beside the library: widgets, pictures, charts.",
}
_NOTE = '<p class="sl-note">Here is a control that lives in JupyterLab: <code>make lab</code>.</p>'
_ANSWER = re.compile(r"\n<details><summary>(.*?)</summary>(.*?)</details>", re.S)


def prepare(executed: Path, *, hide_code: bool) -> str:
    """An executed notebook for Sphinx, as JSON: figures drawn by the site's script, widgets as their static twins.

    hide_code: fold every code cell but exercises behind a line that opens it. `UserError` for an unreadable file.
    """
    try:
        content = json.loads(executed.read_text(encoding="utf-8"))
        cells = content["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{executed}: not a readable notebook ({error}); delete it and build the site again") from error
    content["metadata"] = {k: v for k, v in content["metadata"].items() if k in ("kernelspec", "language_info")}
    for number, cell in enumerate(cells):
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = {}
        if cell["cell_type"] == "markdown":
            cell["source"] = _answers("".join(cell["source"]))
        elif hide_code and "exercise" not in tags:
            cell["metadata"] = {"tags": ["hide-input"]}
        for place, output in enumerate(cell.get("outputs", [])):
            output.get("metadata", {}).clear()
            data = output.get("data", {})
            if PLOTLY in data:
                output["data"] = {"text/html": figure(data[PLOTLY], f"figure-{number}-{place}")}
            elif WIDGET in data:
                output["data"] = {"text/html": data.get("text/html") or _NOTE}
    return json.dumps(content, ensure_ascii=False)


def figure(content: dict, name: str) -> str:
    """The place of a figure with its content as JSON beside it; a table that was drawn as a figure, as a real table."""
    if [trace["type"] for trace in content["data"]] == ["table"]:
        return _table(content["data"][0])
    layout = content.get("layout", {})
    config = {"responsive": True, "displaylogo": False, **content.get("config", {})}
    packed = json.dumps({"data": content["data"], "layout": layout, "config": config}, separators=(",", ":"))
    packed = packed.replace("</", "<\\/").replace("<!--", "<\\!--")
    width = f"width:{layout['width']}px" if "width" in layout else "min-width:min(740px, 190vw)"
    return (
        f'<div class="sl-plot"><div class="{FIGURE_CLASS}" id="{name}" style="height:{layout.get("height", 450)}px;'
        f'{width}"></div><script type="application/json">{packed}</script></div>'
    )


def _table(trace: dict) -> str:
    """A plotly table as HTML: it wraps on a narrow screen, can be searched and read aloud, and knows the dark theme."""
    heads = "".join(f"<th>{_minus(text)}</th>" for text in trace["header"]["values"])
    rows = ""
    for texts in zip(*trace["cells"]["values"], strict=True):
        plain = [text.removeprefix("<b>").removesuffix("</b>") for text in map(str, texts)]
        rows += "<tr>" + "".join(
            f"<td>{badge(word) if word in VERDICTS else _minus(text)}</td>"
            for word, text in zip(plain, map(str, texts), strict=True)
        )
    return (
        f'<div class="sl-scroll"><table class="sl-table"><thead><tr>{heads}</thead><tbody>{rows}</tbody></table></div>'
    )


def _minus(text: str) -> str:
    """A text with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def card_of(notebook: Path) -> tuple[str, str]:
    """Two lines for a card: number and name, and the question it asks; without a number, title and first sentence."""
    name = short_name(notebook.stem)
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if found := re.match(r"# +(?:\d+ *· *)?(.+)\n*([^#|\n][^.?]*[.?])?", "".join(cell["source"])):
            title, first = found[1].strip(), (found[2] or "").strip()
            return (name, title) if name[0].isdigit() else (title, first)
    return name, ""


def short_name(stem: str) -> str:
    """The name in the navigation: `04_data_scale` is "04 Data scale"."""
    number, _, rest = stem.partition("_")
    words = (rest if number.isdigit() else stem).replace("_", " ").strip()
    return f"{number} {words[:1].upper()}{words[1:]}" if number.isdigit() else words[:1].upper() + words[1:]


def landing(template: Path, notebooks: Mapping[str, Path], *, play: Iterable[str], reference: Mapping[str, str]) -> str:
    """The landing page: `$name` in the template becomes what is computed here, and the navigation follows.

    notebooks: by their names. play, reference: the other documents; reference with their names in the navigation.
    """
    studies = [name for name in notebooks if name in NOTEBOOKS.values()]
    first = [name for name in notebooks if name < min(NOTEBOOKS.values())]
    further = [name for name in notebooks if name not in first + studies]
    trees = [_toctree("See and play", dict.fromkeys(play))]
    for caption, names in (("First steps", first), ("Studies", studies), ("Further", further)):
        trees.append(_toctree(caption, {f"notebooks/{name}": card_of(notebooks[name])[0] for name in names}))
    trees.append(_toctree("Reference", reference))
    return Template(template.read_text(encoding="utf-8")).substitute(
        findings=findings(set(notebooks)),
        first_steps=_cards(first, notebooks),
        studies=_cards(studies, notebooks),
        further="## Further\n\n" + _cards(further, notebooks) if further else "",
        toctrees="\n".join(trees),
    )


def findings(notebooks: set[str]) -> str:
    """A line a claim, a column a kind of evidence, and the verdict in each; computed, as HTML."""
    kinds = {kind: {c.id: c for c in found} for kind, found in tables.claims().items()}
    kinds = {escape(tables.NAMES.get(kind, kind)): found for kind, found in kinds.items()}
    heads = "".join(f"<th>{kind}</th>" for kind in kinds)
    lines = []
    for rule in TABLE:
        cells = ""
        for kind, found in kinds.items():
            if claim := found.get(rule.id):
                cells += f'<td data-kind="{kind}" title="{escape(_minus(claim.evidence))}">{badge(claim.verdict)}</td>'
            else:
                cells += "<td></td>"
        study = next((name for name, section in SECTIONS.items() if rule.id in section.claims), None)
        words = escape(rule.statement)
        if study and NOTEBOOKS[study] in notebooks:
            words = f'<a href="notebooks/{NOTEBOOKS[study]}.html">{words}</a>'
        lines.append(f"<tr><td>{rule.id}</td><td>{words}</td>{cells}</tr>")
    table = f"<thead><tr><th></th><th>claim</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="sl-scroll"><table class="sl-table sl-findings">{table}</table></div>'


def gallery(page: Path, notebooks: Iterable[str]) -> str:
    """The gallery's page, each picture with the way to its study."""
    text = page.read_text(encoding="utf-8")
    for study, name in NOTEBOOKS.items():
        if name in notebooks:
            text = text.replace(f"({study}.png)", f"({study}.png)\n\n[Read the study](../notebooks/{name}.ipynb)")
    return "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n" + text


def api_pages(packages: Iterable[str]) -> dict[str, str]:
    """The API pages by document name: the names to build on, and a page a package with every module's docstrings."""
    import simmim_lite

    public = ""
    for name in simmim_lite.__all__:
        if name.isupper():  # a constant is documented where it is made
            public += f".. autodata:: simmim_lite.{simmim_lite._HOME[name]}.{name}\n   :no-value:\n   :no-index:\n\n"
        elif name[0].isupper():
            public += f".. autoclass:: simmim_lite.{name}\n   :members:\n\n"
        else:
            public += f".. autofunction:: simmim_lite.{name}\n\n"
    texts = {name: PACKAGES[name] for name in packages}
    listed = "".join(f"- [{name}]({name}.md): {text[0].lower()}{text[1:]}\n" for name, text in texts.items())
    tree = _toctree("", {f"/api/{name}": name for name in texts})
    found = {
        "api/index": f"# Names to build on\n\n{simmim_lite.__doc__}\nBy package:\n\n{listed}\n"
        f"```{{eval-rst}}\n{public}```\n\n{tree}"
    }
    for package, text in texts.items():
        blocks = []
        for path in sorted((PACKAGE / package).glob("*.py")):
            if path.name != "__init__.py" and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                name = f"simmim_lite.{package}.{path.stem}"
                blocks.append(f"## {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
        found[f"api/{package}"] = f"# simmim_lite.{package}\n\n{text}\n\n" + "\n".join(blocks)
    return found


def _answers(text: str) -> str:
    """Answers stay inside the item of the list that asks for them, so that the numbers go on."""
    return _ANSWER.sub(lambda m: f"\n   <details><summary>{m[1]}</summary>{m[2].replace(chr(10), ' ')}</details>", text)


def _toctree(caption: str, documents: Mapping[str, str | None]) -> str:
    """A toctree that only the navigation shows."""
    if not documents:
        return ""
    lines = [f"{title} <{name}>" if title else name for name, title in documents.items()]
    options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return "```{toctree}\n" + options + "\n" + "\n".join(lines) + "\n```\n"


def _cards(names: list[str], notebooks: Mapping[str, Path]) -> str:
    """A card a notebook: its number and name, and the question it asks."""
    if not names:
        return ""
    cards = "".join(
        f":::{{grid-item-card}} {title}\n:link: notebooks/{name}\n:link-type: doc\n\n{text}\n:::\n\n"
        for name, (title, text) in ((name, card_of(notebooks[name])) for name in names)
    )
    return f"::::{{grid}} 1 2 2 2\n:gutter: 3\n\n{cards}::::\n"
