"""The explorer in Python: its data are those of evidence, pages ask for nothing."""

import gzip
import json
import re

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from simmim_lite.evidence import proxy, published
from simmim_lite.lab import widgets


@pytest.fixture(scope="module")
def data() -> dict:
    return widgets.explorer_data()


def page(path):
    """The explorer as a page, plotly.js in it."""
    return widgets.Explorer().write_html(path, "Runs", head=f"<script>{get_plotlyjs()}</script>")


def test_runs_doublings_and_turning_points_are_evidences(data) -> None:
    rows = published.rows()
    assert len(data["runs"]) == len(rows) == 63
    for run, row in zip(data["runs"], rows, strict=True):
        same = ("model", "dataset", "steps", "overfit", "images", "images_seen", "params", "val_loss")
        assert {name: run[name] for name in same} == {name: row[name] for name in same}
        assert run["finetune"] == pytest.approx(100 * row["finetune"]) and run["omega"] == proxy.omega(row)
        assert f"{row['steps']:,} steps" in run["text"]
    found = proxy.doublings(rows, "finetune").to_dict("records")
    assert data["turns"] == published.facts()["omega"] and len(data["doublings"]) == len(found) == 42
    for drawn, own in zip(data["doublings"], found, strict=True):
        shorter, longer = (rows[k] for k in drawn["runs"])
        assert longer["steps"] == 2 * shorter["steps"] == own["steps"]
        assert drawn["loss_change"] == pytest.approx(100 * (longer["val_loss"] / shorter["val_loss"] - 1))
        assert drawn["score_change"] == pytest.approx(100 * (longer["finetune"] - shorter["finetune"]))
        assert drawn["omega"] == own["omega"] == proxy.omega(longer)
    for facet in data["facets"]:  # every run passes one option of every filter
        values = [option["value"] for option in facet["options"]]
        assert len(set(values)) == len(values) and {run[facet["field"]] for run in data["runs"]} == set(values)


def test_pages_and_copies_ask_for_nothing(tmp_path, monkeypatch) -> None:
    plotly, shown, sent, displayed = get_plotlyjs(), widgets.Explorer(), [], []
    text = page(tmp_path / "page.html").read_text()
    assert plotly in text and not re.search("http|@import|url\\(", text.replace(plotly, ""))
    monkeypatch.setattr("IPython.display.display", lambda what, **_: displayed.append(what))
    shown._ipython_display_()
    monkeypatch.setattr(widgets, "executed_unseen", lambda: True)
    shown._ipython_display_()
    still, view, twin = displayed
    assert isinstance(still, go.Figure) and len(json.dumps(view)) < 1000
    html = twin["text/html"]
    assert len(html) < 150_000 and "live where this cell is run" in html
    monkeypatch.setattr(widgets.Explorer, "send", lambda self, message, buffers: sent.append(buffers[0]))
    shown._handle_custom_msg("plotly", [])
    assert gzip.decompress(sent[0]).decode() == plotly
