"""Executed notebooks as pages: the report stands alone; the site asks for nothing, and its links lead somewhere."""

import contextlib
import importlib.util
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import build_site
import nbformat
import pytest
from picture_folders import one_line
from synthetic_records import record, study
from tiny_notebooks import write_notebook

from simmim_lite.evidence import drawing
from simmim_lite.evidence.claims import claims
from simmim_lite.studies import report
from simmim_lite.studies.tiers import NAMED

pytestmark = pytest.mark.xdist_group("site as files")  # built once
TEXT = (
    "# 04 · Does *it* show?\n\nA $L = \\frac{1}{n}$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\nThe [first](01_masks.ipynb), "
    "the [glossary](glossary.md).\n\n1. Why?\n<details><summary>Answer</summary>Because\nof that.</details>\n\n2. How?"
)
SOLUTION = "<details><summary>Hint</summary>\n\nA\n\n</details>\n<details><summary>Solution</summary>\n\nSo:\n\n"
SOLUTION += "```python\nanswer = 1\n```\n\n</details>"
PLOT = {drawing.PLOTLY: {"data": [{"type": "scatter", "x": [1, 2], "text": ["</script><!--"]}], "layout": {}}}
BARE = {report.WIDGET: {"model_id": "m"}}


def executed(path: Path, *outputs: dict, text: str = TEXT, exercise: bool = False) -> Path:
    """A notebook whose cells have these outputs, as after its execution."""
    content = nbformat.read(write_notebook(path, ["x"] * (len(outputs) + exercise), text=text), as_version=4)
    for cell, data in zip(content.cells[2:], outputs, strict=False):
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
    if exercise:
        content.cells[-1].metadata["tags"] = ["exercise"]
        content.cells.append(nbformat.v4.new_markdown_cell(SOLUTION, metadata={"tags": ["solution"]}))
    nbformat.write(content, path)
    return path


class Page(HTMLParser):
    """What a page loads and where it leads."""

    LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id", ""))
        self.loads += [found[name] for name in [self.LOADS.get(tag)] if name in found]
        self.links += [found["href"]] if tag == "a" and found.get("href") else []


def test_the_report_stands_alone_and_says_what_was_found(tmp_path) -> None:
    """Live figure, equations as MathML, a widget's static twin, links only where there is a page."""
    out, here = tmp_path / "out", tmp_path / "in"
    executed(here / "04_data_scale.ipynb", PLOT, BARE | {"text/html": "<b>twin</b>"}, BARE)
    executed(here / "01_masks.ipynb", text="# First")
    executed(here / "04_data_scale.failed.ipynb")
    executed(here / "11_your_study-effect=0.01.ipynb", text="# An effect")
    out.mkdir()
    (out / "your_study.html").write_text("a page of a notebook's own")
    said, lost = claims(study()), record(status="failed", seed=5, reason="loss is NaN <at step 312>")
    assert report.write(here, out, said, [lost]) == out / "index.html"
    page = (out / "04_data_scale.html").read_text()
    assert "<title>04 · Does it show?</title>" in page and Page(out / "04_data_scale.html").loads == ["plotly.min.js"]
    assert page.count(f'class="{drawing.FIGURE_CLASS}"') == 1
    assert page.count("</script>") == 3 and "<!--" not in page, "a figure cannot end its script"
    assert page.count("<mfrac>") == 2 and "\\frac" not in page
    assert "<b>twin</b>" in page and "a control that lives in JupyterLab" in page
    assert '<a href="01_masks.html">first</a>' in page and "glossary.md" not in page
    index = (out / "index.html").read_text()
    pages = {"01_masks.html", "04_data_scale.html", "your_study.html", "11_your_study-effect=0.01.html"}
    assert pages <= set(Page(out / "index.html").links)
    assert lost["key"] in index and "loss is NaN &lt;at step 312&gt;" in index
    assert all(claim.id in index and claim.verdict in index for claim in said)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a site of notebooks that were executed elsewhere, and what Sphinx complained about."""
    folder = tmp_path_factory.mktemp("site")
    first = write_notebook(folder / "in" / "01_masks.ipynb", ["1"], parameters="seed = 0", text="# First")
    further = [write_notebook(folder / "in" / f"{name}.ipynb", [], text="# More") for name in ("09_a", "10_b", "is_c")]
    some = [folder / "in" / f"{name}.ipynb" for name in sorted(study.notebook for study in NAMED.values())]
    paths = [first, *further, *(executed(path, PLOT, BARE, exercise=True) for path in some)]
    with contextlib.redirect_stderr(io.StringIO()) as complaints, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_site, "execute", lambda found, *_, **__: {path.stem: path for path in found})
        index = build_site.build(
            folder / "out", lambda path: path.write_text("<title>lab</title>"), "<b>explorer</b>",
            work=folder / "work", notebooks=paths, settings=["packages=model"],
        )  # fmt: skip
    assert index == folder / "out" / "index.html"
    return folder, complaints.getvalue()


def test_nothing_is_loaded_from_elsewhere_and_all_links_lead_somewhere(built) -> None:
    assert "WARNING" not in built[1] and "ERROR" not in built[1], built[1]
    out = built[0] / "out"
    found = {path: Page(path) for path in out.rglob("*.html") if "_static" not in path.parts}
    assert len(found) > 12
    for path, page in found.items():
        for target in [*page.loads, *page.links]:
            url = urlparse(target)
            if url.scheme or url.netloc:
                assert target in page.links or url.scheme == "data", f"{path.name} loads {target}"
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert there.is_file(), f"{path.name} leads to {target}"
            if url.fragment and there in found:
                assert unquote(url.fragment) in found[there].ids, f"{path.name}: nothing is called {target}"
    for style in out.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", style.read_text(encoding="utf-8")), style.name


def test_a_notebook_becomes_a_page_of_the_site(built) -> None:
    """Live figure, MathML, folded code but for the exercise, no control without a kernel; docstrings; verdicts."""
    out = built[0] / "out"
    page = (out / "notebooks" / "04_data_scale.html").read_text()
    for text, times in ((f'class="{drawing.FIGURE_CLASS}"', 1), ("<mfrac>", 2), ("\\frac", 0), ("Show the code", 3)):
        assert page.count(text) == times, text
    for text in ("plotly.min.js", "figures.js", "a control that lives in JupyterLab", "<li><p>How?</p>"):
        assert text in page  # the list goes on after an answer
    assert re.search(r"<summary>Solution</summary>\s*<p>So:</p>\s*<div class=\"highlight-python", page)
    first = (out / "notebooks" / "01_masks.html").read_text()  # a first step is tried, code and all
    assert "plotly.min.js" not in first and "Show the code" not in first and str(built[0]) not in page
    assert "Every size by its name" in (out / "api" / "index.html").read_text()
    assert "Masks as a function of (seed, image id, visit)" in (out / "api" / "model.html").read_text()
    table = (out / "index.html").read_text().split('<table class="sl-table sl-findings">')[1].split("</table>")[0]
    assert table.count("<tr>") == 11  # ten claims and a heading
    assert 'href="notebooks/04_data_scale.html">Larger models overfit small data' in table
    assert "href" not in build_site.findings(set())


def test_what_goes_wrong_is_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    one_line("broken.ipynb: not a readable notebook", report.write, tmp_path, tmp_path / "report")
    wanted = {"work": tmp_path / "work", "notebooks": []}
    one_line("holds something else: name an empty folder by --out", build_site.build, tmp_path, None, **wanted)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sphinx" else find(name, *a))
    one_line(r'needs sphinx: pip install "simmim-lite\[site\]"', build_site.build, tmp_path / "out", None)
