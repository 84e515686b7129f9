"""The explorer in Python: its data are those of evidence, own runs stand where they may, pages ask for nothing."""

import json
import re
import subprocess
import sys

import pytest
from plotly.offline import get_plotlyjs
from synthetic_records import ATTO, FEMTO, record

from simmim_lite.errors import UserError
from simmim_lite.evidence import imported, proxy, published, records, tables
from simmim_lite.lab import explorer, live

ASKS = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""")


def own_rows(**more) -> list[dict]:
    """Two sizes on 64 images at two lengths: the longer run has the higher loss and, of femto, the lower score."""
    made = [
        record(model=model, steps=steps, val=val, scores={"linear": score}, **more)
        for model, steps, val, score in (
            (ATTO, 500, 0.30, 0.50),
            (ATTO, 1000, 0.33, 0.55),
            (FEMTO, 500, 0.28, 0.60),
            (FEMTO, 1000, 0.35, 0.52),
        )
    ]
    return records.table([*made, record(steps=0)])


def test_runs_doublings_and_turning_points_are_evidences() -> None:
    data, rows = explorer.data(), published.rows()
    assert len(data["runs"]) == len(rows) == 63
    for run, row in zip(data["runs"], rows, strict=True):
        same = ("model", "dataset", "steps", "overfit", "images", "images_seen", "params", "val_loss")
        assert {name: run[name] for name in same} == {name: row[name] for name in same}
        assert run["finetune"] == pytest.approx(100 * row["finetune"])
        assert run["omega"] == proxy.omega(row)
        assert f"{row['steps']:,} steps" in run["text"]
    found = proxy.doublings(rows, "finetune").to_dict("records")
    assert data["turns"] == published.facts()["omega"]
    assert len(data["doublings"]) == len(found) == 42
    for drawn, own in zip(data["doublings"], found, strict=True):
        shorter, longer = (rows[k] for k in drawn["runs"])
        assert longer["steps"] == 2 * shorter["steps"] == own["steps"]
        assert drawn["loss_change"] == pytest.approx(100 * (longer["val_loss"] / shorter["val_loss"] - 1))
        assert drawn["score_change"] == pytest.approx(100 * (longer["finetune"] - shorter["finetune"]))
        assert drawn["omega"] == own["omega"] == proxy.omega(longer)
    for facet in data["facets"]:  # every run passes one option of every filter
        values = [option["value"] for option in facet["options"]]
        assert len(set(values)) == len(values)
        assert {run[facet["field"]] for run in data["runs"]} == set(values)
    sizes, sets = (next(f["options"] for f in data["facets"] if f["field"] == name) for name in ("model", "dataset"))
    assert len({option["symbol"] for option in sizes}) == 5
    assert all(len({option[theme] for option in sets}) == 5 for theme in ("colour", "dark"))
    json.dumps(data, allow_nan=False)


def test_own_runs_stand_on_the_omega_axis_and_in_panels_of_their_own() -> None:
    rows = own_rows()
    (own,) = explorer.data(rows)["own"]
    assert own["name"] == "Your runs"
    trained = records.trained(rows)
    assert [run["omega"] for run in own["runs"]] == [proxy.omega(row) for row in trained]
    assert [d["loss_change"] for d in own["doublings"]] == pytest.approx([10, 25])
    assert [d["score_change"] for d in own["doublings"]] == pytest.approx([5, -8])
    views = {view["id"]: view for view in explorer.data(rows)["views"]}
    assert set(views) - {view["id"] for view in explorer.data()["views"]} == {"own-0-loss", "own-0-score"}
    assert views["own-0-score"]["y"]["title"] == "change of linear probe (points)"
    assert all("images" in run["text"] and "published turning points" in run["text"] for run in own["runs"])


def test_own_runs_without_scores_or_doublings_are_shown_as_far_as_they_go(tmp_path) -> None:
    csv = tmp_path / "mine <b>.csv"
    csv.write_text(
        "model,unique_images,iterations,batch_size,val_loss\nswinv2_atto,64,500,64,.3\nswinv2_atto,64,1000,64,.4"
    )
    data = explorer.data({"published": published.rows(), "imported, mine <b>": imported.read_csv(csv), "yours": []})
    (own,) = data["own"]
    assert [d["score_change"] for d in own["doublings"]] == [None]
    assert [view["id"] for view in data["views"]][-1] == "own-0-loss"
    assert "<b>imported, mine &lt;b&gt;</b>" in own["runs"][0]["text"]
    alone = explorer.data(own_rows()[-1:])
    assert len(alone["own"][0]["runs"]) == 1
    assert len(alone["views"]) == len(explorer.data()["views"])


def test_all_kinds_of_evidence_go_in_at_once() -> None:
    data = explorer.data(tables.rows())
    assert [own["name"] for own in data["own"]] == ["Shipped runs"]
    assert len(data["own"][0]["runs"]) == len(tables.rows()["shipped"])
    json.dumps(data, allow_nan=False)


def test_other_things_than_rows_get_one_line(tmp_path) -> None:
    for rows, said in (
        ("runs", "explorer: yours is str: give rows of records.table"),
        ([record()], "explorer: row 0 of yours has no params: give rows of records.table"),
        ({"mine": [3]}, "explorer: row 0 of mine has no field"),
    ):
        with pytest.raises(UserError, match=re.escape(said)) as error:
            explorer.data(rows)
        assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        explorer.write_html(tmp_path / "file" / "page.html")


def test_pages_ask_the_network_for_nothing(tmp_path) -> None:
    whole = explorer.write_html(tmp_path / "a" / "whole.html")
    shared = explorer.write_html(tmp_path / "b" / "shared.html", own_rows(), beside=True)
    text = whole.read_text()
    plotly = get_plotlyjs()
    assert plotly in text
    assert (shared.parent / "plotly.min.js").read_text() == plotly
    assert shared.stat().st_size < 200_000
    for html in (text.replace(plotly, ""), shared.read_text()):
        assert not ASKS.search(html)
        assert "http" not in html


def test_a_copy_that_nobody_watches_is_html_without_plotly(monkeypatch) -> None:
    monkeypatch.setattr(live, "executed_unseen", lambda: True)
    shown = explorer.show()
    html = shown._repr_mimebundle_()[0]["text/html"]
    assert len(html) < 150_000 and "live where this cell is run" in html
    assert shown.chosen() == published.rows()


def test_it_says_what_was_chosen_and_plotly_stays_out_of_the_notebook(monkeypatch) -> None:
    shown, rows = explorer.show(own_rows()), published.rows()
    bundle, _ = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and len(json.dumps(bundle)) < 1000
    shown.shown = [3, 5]
    assert shown.chosen() == [rows[3], rows[5]]
    shown.selected = [5]
    assert shown.chosen() == [rows[5]]
    shown.set_state({"plotly": memoryview(b"")})  # as the browser does when it has it
    assert shown.plotly == b""
    sent = []
    monkeypatch.setattr(explorer.Explorer, "send", lambda self, message, buffers: sent.append(len(buffers[0])))
    shown._handle_custom_msg("plotly", [])
    assert sent == [len(explorer._plotly())]


def test_it_does_not_import_torch() -> None:
    code = "import sys; from simmim_lite.lab import explorer; explorer.show(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
