"""Sphinx settings of the site. `make site` copies them, adds executed notebooks, and calls Sphinx (build_site.py).

The pages ask the network for nothing: equations are MathML, plotly.js and all styles lie in `_static`, and no widget
manager is loaded, since widgets come as their static twins.
"""

import ast
import importlib.util
import re
from pathlib import Path

from docutils import nodes

import simmim_lite
from simmim_lite.evidence.drawing import FIGURE_CLASS
from simmim_lite.studies.report import mathml

project = "simmim-lite"
author = "The simmim-lite maintainers"
html_title = "simmim-lite"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc"]
exclude_patterns = ["generated/*"]
suppress_warnings = ["config.cache"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

# Docstrings are plain sentences with `names` in single backticks.
default_role = "literal"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
_OPTIONAL = ("torch", "torchvision", "timm", "safetensors", "transformers", "datasets", "anywidget", "ipywidgets")
autodoc_mock_imports = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # the browser would have to fetch pages, which it may not from a disk
html_favicon = "_static/icon.svg"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
    "toc_title": "On this page",
    "navbar_persistent": [],
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}
copybutton_exclude = ".linenos, .gp, .go"


#: The packages by their place in the house, lowest first, and what each is for.
PACKAGES = {
    "model": "Sizes, masks, Swin Transformer V2, SimMIM, and weights in four layouts.",
    "data": "Pictures: procedural scenes, folders, data sets, and which images a run sees.",
    "training": "A run, its key and its record; pretraining, probes, fine-tuning.",
    "evidence": "From records to tables, claims with intervals, and figures. Never imports torch.",
    "studies": "What the studies run, who runs it, and the report.",
    "lab": "What the notebooks use beside the library: widgets, pictures, charts.",
}


def _api_pages(app) -> None:
    """The API pages: a page of the names to build on, and one a package with every module's docstrings."""
    kinds = {True: "autodata:: {0}\n   :no-value:\n   :no-index:", False: "autofunction:: {0}"}
    public = ""
    for name, home in simmim_lite._HOME.items():
        where = f"simmim_lite.{home}.{name}" if name.isupper() else f"simmim_lite.{name}"
        own = "autoclass:: {0}\n   :members:" if name[0].isupper() and not name.isupper() else kinds[name.isupper()]
        public += f".. {own.format(where)}\n\n"
    tree = "\n".join(f"{name} </api/{name}>" for name in app.config.packages.split(","))
    pages = {"index": f"# Names to build on\n\n{simmim_lite.__doc__}\n```{{eval-rst}}\n{public}```\n"}
    pages["index"] += f"\n```{{toctree}}\n:caption: By package\n\n{tree}\n```\n"
    for package in app.config.packages.split(","):
        text = PACKAGES[package]
        pages[package] = f"# simmim_lite.{package}\n\n{text}\n"
        for path in sorted(Path(simmim_lite.__file__).with_name(package).glob("*.py")):
            if path.name != "__init__.py" and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                module = f".. automodule:: simmim_lite.{package}.{path.stem}\n   :members:"
                pages[package] += f"\n## {path.stem}\n\n```{{eval-rst}}\n{module}\n```\n"
    for name, text in pages.items():
        path = Path(app.srcdir, "api", f"{name}.md")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _inline_math(translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block_math(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="equation">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _page(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """plotly.js weighs almost five megabytes: only pages that hold a figure, or an explorer, load it."""
    raw = [] if doctree is None else [node.astext() for node in doctree.findall(nodes.raw)]
    if any(FIGURE_CLASS in html or "sl-explorer" in html for html in raw):
        app.add_js_file("plotly.min.js", loading_method="defer")
        app.add_js_file("figures.js", loading_method="defer")


def _docstring(app, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are written to be read as they are: what reStructuredText would take for markup is escaped."""
    found: list[str] = []
    for line in lines:
        pieces = re.split(r"(`+[^`]+`+)", line)  # words and code, in turn
        words = [re.sub(r"([*|])", r"\\\1", piece) for piece in pieces[::2]]
        words = [words[0], *(f"\\ {piece}" if piece[:1].isalnum() else piece for piece in words[1:])]
        pieces[::2] = words
        line = "".join(pieces)
        if line.startswith("    ") and found and not found[-1].strip() and not found[-2:][0].startswith(("    ", "::")):
            found += ["::", ""]  # an indented block is code
        found.append(line)
    lines[:] = found


def setup(app) -> dict:
    app.add_config_value("packages", ",".join(PACKAGES), "env")
    app.connect("builder-inited", _api_pages)
    app.connect("autodoc-process-docstring", _docstring)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
