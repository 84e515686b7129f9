"""The site: small notebooks through Sphinx, read as files: nothing external, live figures, equations, API, links."""

import contextlib
import importlib.util
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from tiny_notebooks import write_notebook

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.studies import notebooks, report, site

pytestmark = pytest.mark.xdist_group("site as files")  # built once
TEXT = (
    "# 04 · Does it show?\n\nOne $L = \\frac{1}{n}$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\nThe [first](01_masks.ipynb), "
    "the [glossary](glossary.md).\n\n1. Why?\n<details><summary>Answer</summary>Because\nof that.</details>\n\n2. How?"
)


class Page(HTMLParser):
    """What a page loads and where it leads."""

    LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id", ""))
        self.loads += [found[name] for name in [self.LOADS.get(tag)] if name in found]
        self.links += [found["href"]] if tag == "a" and found.get("href") else []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a site of notebooks that were executed elsewhere, and what Sphinx complained about."""
    folder = tmp_path_factory.mktemp("site")
    first = write_notebook(folder / "in" / "01_masks.ipynb", ["1"], parameters="seed = 0", text="# First")
    further = [write_notebook(folder / "in" / f"{name}.ipynb", [], text="# More") for name in ("09_a", "10_b", "is_c")]
    paths = [first, *further] + [
        write_notebook(folder / "in" / f"{name}.ipynb", ["draw()", "knob()", "answer = None"], text=TEXT)
        for name in notebooks.NOTEBOOKS.values()
    ]
    for path in paths[4:]:
        content = nbformat.read(path, as_version=4)
        plot = {report.PLOTLY: {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 1]}], "layout": {}}}
        for cell, data in zip(content.cells[2:4], (plot, {report.WIDGET: {"model_id": "m"}}), strict=True):
            cell.outputs = [nbformat.v4.new_output("display_data", data)]
        content.cells[-1].metadata["tags"] = ["exercise"]
        nbformat.write(content, path)
    with contextlib.redirect_stderr(io.StringIO()) as complaints, pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "execute", lambda found, *_, **__: {path.stem: path for path in found})
        index = site.build(
            folder / "out", lambda path: path.write_text("<title>lab</title>"), "<b>explorer</b>",
            work=folder / "work", notebooks=paths, settings=["packages=model"],
        )  # fmt: skip
    assert index == folder / "out" / "index.html"
    return folder, complaints.getvalue()


def test_sphinx_has_nothing_to_complain_about(built) -> None:
    assert "WARNING" not in built[1] and "ERROR" not in built[1], built[1]


def test_nothing_is_loaded_from_elsewhere_and_all_links_lead_somewhere(built) -> None:
    out = built[0] / "out"
    pages = {path: Page(path) for path in out.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 12
    for path, page in pages.items():
        for target in [*page.loads, *page.links]:
            url = urlparse(target)
            if url.scheme or url.netloc:
                assert target in page.links or url.scheme == "data", f"{path.name} loads {target}"
                continue
            found = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert found.is_file(), f"{path.name} leads to {target}"
            if url.fragment and found in pages:
                assert unquote(url.fragment) in pages[found].ids, f"{path.name}: nothing is called {target}"
    for style in out.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", style.read_text(encoding="utf-8")), style.name


def test_a_notebook_becomes_a_page(built) -> None:
    """Live figure, MathML, folded code but for the exercise, no control without a kernel."""
    out = built[0] / "out"
    page = (out / "notebooks" / "04_data_scale.html").read_text()
    for text, times in (('class="sl-figure"', 1), ('"x":[1,2]', 1), ("<mfrac>", 2), ("\\frac", 0)):
        assert page.count(text) == times, text
    assert page.count("Show the code") == 3  # parameters and two cells
    for text in ("plotly.min.js", "figures.js", "a control that lives in JupyterLab", 'href="01_masks.html"'):
        assert text in page
    assert "<li><p>How?</p>" in page  # the list goes on after an answer
    assert (out / "_static" / "plotly.min.js").stat().st_size > 1e6
    first = (out / "notebooks" / "01_masks.html").read_text()  # a first step is tried, code and all
    assert "plotly.min.js" not in first and "Show the code" not in first
    assert str(built[0]) not in page


def test_api_pages_have_the_docstrings(built) -> None:
    import simmim_lite

    page = (built[0] / "out" / "api" / "index.html").read_text()
    for name in simmim_lite.__all__:
        assert f'<span class="pre">{name}</span>' in page
    assert "Every size by its name" in page
    model = (built[0] / "out" / "api" / "model.html").read_text()
    assert "Masks as a function of (seed, image id, visit)" in model


@pytest.mark.slow
def test_docstrings_of_all_packages_can_be_read(tmp_path, capsys) -> None:
    index = site.build(tmp_path / "out", lambda path: path.write_text(""), work=tmp_path / "work", notebooks=[])
    said = [line for line in capsys.readouterr().err.splitlines() if "toctree glob pattern" not in line]
    assert not [line for line in said if "WARNING" in line or "ERROR" in line or "myst" in line]
    packages = {path.parent.name for path in site.PACKAGE.glob("*/__init__.py")}
    assert {path.stem for path in (index.parent / "api").glob("*.html")} == {"index", *packages}


def test_findings_are_computed(built) -> None:
    page = (built[0] / "out" / "index.html").read_text()
    table = page.split('<table class="sl-table sl-findings">')[1].split("</table>")[0]
    assert table.count("<tr>") == 11  # ten claims and a heading
    assert 'href="notebooks/04_data_scale.html">Larger models overfit small data' in table
    assert "Does it show?" in page
    assert "href" not in site.findings(set())


def test_a_changed_notebook_and_a_changed_library_run_again(tmp_path, monkeypatch) -> None:
    path = write_notebook(tmp_path / "a.ipynb", ["1"])
    ran = []

    def execute(planned, out, **_):
        ran.append([copy.path.stem for copy in planned])
        out.mkdir(parents=True, exist_ok=True)
        return {copy.path.stem: shutil.copy(copy.path, out) for copy in planned}, {}

    monkeypatch.setattr(site.running, "execute", execute)
    for _ in range(2):
        site.execute([path], tmp_path / "work")
    assert ran == [["a"]]
    write_notebook(path, ["2"])
    site.execute([path], tmp_path / "work")
    monkeypatch.setattr(site, "_digest", lambda: b"another library")
    site.execute([path], tmp_path / "work")
    assert ran == [["a"]] * 3


def test_what_goes_wrong_is_one_line(tmp_path, monkeypatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="full holds something else: name an empty folder by --out"):
        site.build(full, lambda path: None, work=tmp_path / "work", notebooks=[])
    failing = {"a": "a, cell [1]: ZeroDivisionError: division by zero"}
    monkeypatch.setattr(site.running, "execute", lambda *_, **__: ({}, failing))
    with pytest.raises(UserError, match=r"a, cell \[1\]: ZeroDivisionError"):
        site.execute([write_notebook(tmp_path / "a.ipynb", ["1 / 0"])], tmp_path / "work")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sphinx" else find(name, *a))
    with pytest.raises(UserError, match=r'needs sphinx: pip install "simmim-lite\[site\]"'):
        site.build(tmp_path / "out", lambda path: None)


def test_the_command_gives_the_site_its_lab_and_its_explorer(tmp_path, monkeypatch, capsys) -> None:
    def build(out, lab_page, explorer):
        assert 'class="sl-explorer"' in explorer
        lab_page(Path(out) / "lab.html")
        return Path(out) / "index.html"

    monkeypatch.setattr(site, "build", build)
    assert main(["site", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    page = Page(tmp_path / "lab.html")
    assert [target for target in page.loads if not target.startswith("data:")] == []
    assert site.IN_A_FRAME in (tmp_path / "lab.html").read_text(encoding="utf-8")
