"""The site: small notebooks through Sphinx, read as files: nothing external, live figures, equations, API, links."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from tiny_notebooks import write_notebook

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.studies import site, site_sources

pytestmark = pytest.mark.xdist_group("site as files")  # built once
FIGURE = "import plotly.graph_objects as go\nfigure = go.Figure(go.Scatter(x=[1, 2], y=[3, 1]))\nfigure"
TABLE = (
    "import plotly.graph_objects as go\n"
    "table = go.Table(header={'values': ['<b>verdict</b>']}, cells={'values': [['<b>holds</b>', 'by -3']]})\n"
    "go.Figure(table)"
)
KNOB = "from ipywidgets import interact\ninteract(lambda k: None, k=(0, 3));"
TEXT = (
    "# 04 · Does it show?\n\nOne $L = \\frac{1}{n}$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\nThe [first](01_first.ipynb), "
    "the [glossary](glossary.md).\n\n1. Why?\n<details><summary>Answer</summary>Because\nof that.</details>\n\n2. How?"
)
EXERCISE = "answer = None  # a number"


class Page(HTMLParser):
    """What a page loads and where it leads."""

    LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids.add(found.get("id", ""))
        self.loads += [found[name] for name in [self.LOADS.get(tag)] if name in found]
        self.links += [found["href"]] if tag == "a" and found.get("href") else []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a site of two notebooks, made from nothing, and what Sphinx complained about."""
    folder = tmp_path_factory.mktemp("site")
    names = [
        write_notebook(folder / "in" / "01_first.ipynb", ["print('one')"], parameters="seed = 0", text="# First"),
        write_notebook(folder / "in" / "04_data_scale.ipynb", [FIGURE, TABLE, KNOB, EXERCISE], text=TEXT),
    ]
    content = json.loads(names[1].read_text())
    content["cells"][-1]["metadata"]["tags"] = ["exercise"]
    names[1].write_text(json.dumps(content))
    with contextlib.redirect_stderr(io.StringIO()) as complaints:
        index = site.build(
            folder / "out", lambda path: path.write_text("<title>lab</title>"), work=folder / "work", notebooks=names,
            packages=["model"],
        )  # fmt: skip
    assert index == folder / "out" / "index.html"
    return folder, complaints.getvalue()


def test_sphinx_has_nothing_to_complain_about(built) -> None:
    assert "WARNING" not in built[1]
    assert "ERROR" not in built[1]


def test_nothing_is_loaded_from_elsewhere_and_all_links_lead_somewhere(built) -> None:
    out = built[0] / "out"
    pages = {path: Page(path) for path in out.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 9
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
    """Live figure, real table with a verdict, MathML, folded code but for the exercise, no control without a kernel."""
    out = built[0] / "out"
    page = (out / "notebooks" / "04_data_scale.html").read_text()
    assert page.count('class="sl-figure"') == 1
    assert '"x":[1,2]' in page
    assert "plotly.min.js" in page
    assert "figures.js" in page
    assert (out / "_static" / "plotly.min.js").stat().st_size > 1e6
    assert "<td>by −3</td>" in page
    assert "✓ holds" in page
    assert page.count("<mfrac>") == 2
    assert "\\frac" not in page
    assert page.count("Show the code") == 4  # parameters and three cells
    assert "a control that lives in JupyterLab" in page
    assert 'href="01_first.html"' in page
    assert "<li><p>How?</p>" in page  # the list goes on after an answer
    assert "plotly.min.js" not in (out / "notebooks" / "01_first.html").read_text()
    assert (
        "Show the code" not in (out / "notebooks" / "01_first.html").read_text()
    )  # a first step is tried, code and all
    assert str(built[0]) not in page


def test_api_pages_have_the_docstrings(built) -> None:
    import simmim_lite

    page = (built[0] / "out" / "api" / "index.html").read_text()
    for name in simmim_lite.__all__:
        assert f'<span class="pre">{name}</span>' in page
    assert "Every size by its name" in page
    model = (built[0] / "out" / "api" / "model.html").read_text()
    assert "Masks as a function of (seed, image id, visit)" in model
    assert "sum(|target - prediction| * mask)" in model


@pytest.mark.slow
def test_docstrings_of_all_packages_can_be_read(tmp_path, capsys) -> None:
    index = site.build(tmp_path / "out", lambda path: path.write_text(""), work=tmp_path / "work", notebooks=[])
    said = capsys.readouterr().err
    assert "WARNING" not in said
    assert "ERROR" not in said
    assert {path.stem for path in (index.parent / "api").glob("*.html")} == {"index", *site_sources.PACKAGES}


def test_findings_are_computed(built) -> None:
    page = (built[0] / "out" / "index.html").read_text()
    table = page.split('<table class="sl-table sl-findings">')[1].split("</table>")[0]
    assert table.count("<tr>") == 11  # ten claims and a heading
    assert 'href="notebooks/04_data_scale.html">Larger models overfit small data' in table
    assert "notebooks/06_schedule" not in page  # no such notebook in this site
    assert "Does it show?" in page


def test_a_second_build_runs_nothing_and_forgets_what_is_gone(built, monkeypatch, tmp_path) -> None:
    folder = shutil.copytree(built[0], tmp_path / "copy")
    monkeypatch.setattr(site.running, "execute", lambda *_, **__: pytest.fail("executed again"))
    site.build(
        folder / "out",
        lambda path: None,
        work=folder / "work",
        notebooks=[folder / "in" / "04_data_scale.ipynb"],
        packages=(),
    )
    assert not (folder / "out" / "notebooks" / "01_first.html").exists()
    assert not (folder / "out" / "api" / "index.html").exists()
    assert "sl-figure" in (folder / "out" / "notebooks" / "04_data_scale.html").read_text()


def test_a_changed_notebook_and_a_changed_library_run_again(tmp_path, monkeypatch) -> None:
    path = write_notebook(tmp_path / "a.ipynb", ["1"])
    ran = []

    def execute(planned, out, **_):
        paths = [copy.path for copy in planned]
        ran.append([p.stem for p in paths])
        for p in paths:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, out)
        return {p.stem: out / p.name for p in paths}, {}

    monkeypatch.setattr(site.running, "execute", execute)
    for _ in range(2):
        site.execute([path], tmp_path / "work")
    assert ran == [["a"]]
    write_notebook(path, ["2"])
    site.execute([path], tmp_path / "work")
    monkeypatch.setattr(site, "_digest", lambda: "another library")
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
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    with pytest.raises(UserError, match="not a readable notebook"):
        site_sources.prepare(broken, hide_code=False)
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


@pytest.mark.parametrize(
    "stem, name", [("04_data_scale", "04 Data scale"), ("notes", "Notes"), ("10_three_laws", "10 Three laws")]
)
def test_names_in_the_navigation(stem: str, name: str) -> None:
    assert site_sources.short_name(stem) == name


def test_a_figure_cannot_end_its_script() -> None:
    html = site_sources.figure({"data": [{"type": "scatter", "text": ["</script><!--"]}]}, "f")
    assert html.count("</script>") == 1
    assert "<!--" not in html
