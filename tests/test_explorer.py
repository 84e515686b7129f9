"""The explorer in Python: its data are those of evidence, own runs stand where they may, pages ask for nothing."""

import gzip
import json
import re

import pytest
from plotly.offline import get_plotlyjs
from synthetic_records import ATTO, FEMTO, record

from simmim_lite.errors import UserError
from simmim_lite.evidence import published, records, tables
from simmim_lite.lab import explorer, live


@pytest.fixture(scope="module")
def data() -> dict:
    return explorer.data({})


def own_rows() -> list[dict]:
    """Two sizes on 64 images at two lengths: the longer run has the higher loss and, of femto, the lower score."""
    runs = ((ATTO, 500, 0.30, 0.50), (ATTO, 1000, 0.33, 0.55), (FEMTO, 500, 0.28, 0.60), (FEMTO, 1000, 0.35, 0.52))
    made = [record(model=m, steps=steps, val=val, scores={"linear": score}) for m, steps, val, score in runs]
    return records.run_rows([*made, record(steps=0)])


def own_page(path):
    """The explorer with own runs as a page, plotly.js in it."""
    return explorer.show({"yours": own_rows()}).write_html(path, "Runs", head=f"<script>{get_plotlyjs()}</script>")


def test_own_runs_stand_on_the_omega_axis_and_in_panels_of_their_own(data, tmp_path) -> None:
    rows, csv = own_rows(), tmp_path / "mine <b>.csv"
    csv.write_text(
        "model,unique_images,iterations,batch_size,val_loss\nswinv2_atto,64,500,64,.3\nswinv2_atto,64,1000,64,.4"
    )
    sets = {"published": published.rows(), "yours": rows, "imported, mine <b>": published.read_csv(csv)[0], "empty": []}
    found = explorer.data(sets | {"shipped": tables.rows()["shipped"]})
    json.dumps(found, allow_nan=False)
    own, csv, _ = found["own"]
    assert [d["loss_change"] for d in own["doublings"]] == pytest.approx([10, 25])
    assert [d["score_change"] for d in own["doublings"]] == pytest.approx([5, -8])
    assert [d["score_change"] for d in csv["doublings"]] == [None]  # without scores
    assert "<b>imported, mine &lt;b&gt;</b>" in csv["runs"][0]["text"]
    views = {view["id"]: view for view in found["views"]}
    new = set(views) - {view["id"] for view in data["views"]}
    assert new == {"own-0-loss", "own-0-score", "own-1-loss", "own-2-loss", "own-2-score"}
    with pytest.raises(UserError, match="yours are no rows of"):
        explorer.data({"yours": [record()]})


def test_pages_and_copies_ask_for_nothing(tmp_path, monkeypatch) -> None:
    plotly, shown, rows, sent = get_plotlyjs(), explorer.show(), published.rows(), []
    text = own_page(tmp_path / "page.html").read_text()
    assert plotly in text and not re.search("http|@import|url\\(", text.replace(plotly, ""))
    assert len(json.dumps(shown._repr_mimebundle_()[0])) < 1000
    monkeypatch.setattr(live, "executed_unseen", lambda: True)
    html = shown._repr_mimebundle_()[0]["text/html"]
    assert len(html) < 150_000 and "live where this cell is run" in html
    assert shown.chosen() == rows
    shown.selected = [5]
    assert shown.chosen() == [rows[5]]
    monkeypatch.setattr(explorer.Explorer, "send", lambda self, message, buffers: sent.append(buffers[0]))
    shown._handle_custom_msg("plotly", [])
    assert gzip.decompress(sent[0]).decode() == plotly
