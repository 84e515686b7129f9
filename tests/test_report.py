"""report.py: executed notebooks as pages that stand alone, and an index of what these runs say."""

import re

import nbformat
import pytest
from synthetic_records import record, study
from tiny_notebooks import write_notebook

from simmim_lite.errors import UserError
from simmim_lite.evidence.claims import claims
from simmim_lite.evidence.drawing import count, decades, shades
from simmim_lite.evidence.records import flops_text
from simmim_lite.studies import report
from simmim_lite.studies.grids import claims_of

TEXT = (
    "# Does *it* show?\n\nOne $L = \\frac{1}{n}\\sum_i |x_i|$ and\n\n$$\\Omega = \\frac{T}{n}$$\n\n"
    "The [second](second.ipynb#part), the [glossary](../GLOSSARY.md)."
)


def executed(path, *outputs: dict, text: str = TEXT):
    """A notebook whose cells have these outputs, as after its execution."""
    content = nbformat.read(write_notebook(path, ["x"] * len(outputs), text=text), as_version=4)
    for cell, data in zip(content.cells[2:], outputs, strict=True):
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
    nbformat.write(content, path)
    return path


def words(html: str) -> str:
    """A page as it is read: no tags, no scripts."""
    html = re.sub(r"<(script|style).*?</\1>", "", html[html.index("<body>") :], flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("report"), study()
    plot = {report.PLOTLY: {"data": [{"type": "scatter", "text": ["</script><!--"]}], "layout": {"height": 300}}}
    twin, bare = {report.WIDGET: {}, "text/html": "<b>twin</b>"}, {report.WIDGET: {}}
    executed(folder / "in" / "first.ipynb", plot, twin, bare)
    executed(folder / "in" / "second.ipynb", text="# Second")
    executed(folder / "in" / "first.failed.ipynb")
    (folder / "out").mkdir()
    (folder / "out" / "your_study.html").write_text("a page of a notebook's own")
    lost = record(status="failed", seed=5, reason="loss is NaN <at step 312>")
    said = [claim for claim in claims(runs) if claim.id in claims_of("all")]
    assert report.write(folder / "in", folder / "out", said, [lost]) == folder / "out" / "index.html"
    return folder / "out", said, lost


def test_a_page_asks_the_network_for_nothing(written) -> None:
    """Live figure, equations as MathML, a widget's static twin, links only where there is a page."""
    page = (written[0] / "first.html").read_text()
    assert "<title>Does it show?</title>" in page
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)\s*=\s*\"([^\"]*)", page) == ["plotly.min.js"]
    assert page.count(f'class="{report.FIGURE_CLASS}"') == 1 and "height:300px" in page
    assert page.count("</script>") == 3 and "<!--" not in page, "a figure cannot end its script"
    assert page.count("<mfrac>") == 2 and "\\frac" not in page and "$" not in words(page)
    assert "<b>twin</b>" in page and "a control that lives in JupyterLab" in page
    assert '<a href="second.html">second</a>' in page and "GLOSSARY.md" not in page
    assert (written[0] / "plotly.min.js").stat().st_size > 1e6


def test_the_index_links_all_pages_and_says_what_was_found(written) -> None:
    folder, said, lost = written
    page = (folder / "index.html").read_text()
    assert {path.name for path in folder.glob("*.html")} == {
        "index.html", "first.html", "second.html", "your_study.html"
    }  # fmt: skip
    for name in ("first", "second", "your_study"):
        assert f'<a href="{name}.html">' in page
    text = words(page)
    for claim in said:
        assert text.count(claim.id) and claim.verdict in text
    assert lost["key"] in text and "loss is NaN &lt;at step 312&gt;" in page


def test_what_goes_wrong_is_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(UserError, match="broken.ipynb: not a readable notebook"):
        report.write(tmp_path, tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "plotly.min.js").write_text("old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        report.write(tmp_path / "none", tmp_path / "r")
    assert (tmp_path / "r" / "plotly.min.js").read_text() == "old" and len(list((tmp_path / "r").iterdir())) == 1
    assert report.mathml("\\left(", "inline") == "<code>\\left(</code>"


def test_words_for_numbers() -> None:
    assert [count(n) for n in (64, 16_384, 64_000, 128_117, 1_281_167)] == ["64", "16,384", "64k", "128k", "1.28M"]
    assert [flops_text(n) for n in (5.45e13, 4.12e15, 800.0, None)] == ["54.5 TFLOP", "4.12 PFLOP", "0.8 kFLOP", "–"]
    assert decades(3200, 64000)["ticktext"] == ["5e3", "1e4", "2e4", "5e4"]
    assert decades(10, 1e9)["tickvals"] == [10**k for k in range(1, 10)]
    assert len(set(shades([1, 2, 3, 4, 5]).values())) == 5
