"""plots.py and report.py: what the figures hold, and a page that stands alone."""

import math
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from synthetic_records import ATTO, FEMTO, record, study

from simmim_lite.errors import UserError
from simmim_lite.evidence import plots
from simmim_lite.evidence.claims import claims
from simmim_lite.evidence.drawing import count, decades, shades
from simmim_lite.evidence.records import flops_text, table
from simmim_lite.studies.report import STUDIES, write_report

SPENT = {"tier": "quick", "core_seconds": 512.3, "wall_seconds": 268.0}
FIGURES = [plots.data_scale, plots.model_size, plots.schedule, plots.proxy]


@pytest.fixture(scope="module")
def records():
    return study()


@pytest.fixture(scope="module")
def page(records, tmp_path_factory):
    failed = record(status="failed", model=FEMTO, seed=5, reason="loss is NaN <at step 312>")
    path = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    assert write_report([*records, failed], path, data="scenes", **SPENT) == path
    return path.read_text()


def body(page):
    return page[page.index("<body>") :]


def words(page):
    """The page as it is read: no tags, no scripts."""
    text = re.sub(r"<script.*?</script>", "", body(page), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def drawn(figure):
    return [trace for trace in figure.data if trace.x is not None and trace.x[0] is not None]


@pytest.mark.parametrize("plot", FIGURES)
def test_figures_have_titled_axes_hover_texts_and_no_upload(plot, records):
    figure = plot(table(records))
    assert isinstance(figure, go.Figure)
    assert {"sendChartToCloud", "lasso2d", "select2d"} <= set(figure.layout.template.layout.modebar.remove)
    assert figure.layout.xaxis.title.text and figure.layout.xaxis2.title.text
    assert "L1" in figure.layout.yaxis.title.text + figure.layout.xaxis.title.text
    assert "points" in figure.layout.yaxis.title.text + (figure.layout.yaxis2.title.text or "")
    for trace in drawn(figure):
        assert trace.hoverinfo == "text" and len(trace.text) == len(trace.x) == len(trace.y)


def test_data_scale_draws_means_errors_and_seeds(records):
    figure = plots.data_scale(table(records))
    rows = [r for r in table(records) if r["steps"] == 1000 and r["model"] == ATTO]
    (line,) = [t for t in drawn(figure) if t.showlegend and t.name.startswith("atto")]
    assert list(line.x) == [64, 1024, 16384]
    for k, level in enumerate(line.x):
        values = [r["val_loss"] for r in rows if r["images"] == level]
        mean = sum(values) / 3
        assert line.y[k] == pytest.approx(mean)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
        assert line.error_y.array[k] == pytest.approx(error)
    dots = [t for t in drawn(figure) if t.mode == "markers"]
    assert sum(len(t.x) for t in dots) == 2 * 2 * 3 * 3  # panels, sizes, levels, seeds
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.ticktext) == ["64", "1,024", "16,384"]


def test_proxy_draws_every_trained_run_twice(records):
    rows = table(records)
    figure = plots.proxy(rows)
    assert sum(len(t.x) for t in drawn(figure)) == 2 * sum(not r["reference"] for r in rows)
    titles = [a.text for a in figure.layout.annotations]
    assert "Validation loss: Spearman −0.9" in titles[0] and "Training loss: Spearman" in titles[1]


def test_schedule_draws_cells_of_two_lengths_and_more():
    made = study(seeds=(0,), lengths=(500, 1000)) + [record(images=256, steps=1000)]
    lines = [t for t in drawn(plots.schedule(table(made))) if t.mode == "lines+markers" and t.xaxis == "x"]
    assert len(lines) == 6 and all(list(t.x) == [32000, 64000] for t in lines)


def test_curves_draw_the_longest_run_of_a_trunk(records):
    figure = plots.curves(records)
    assert len(drawn(figure)) == 2 * 18
    assert all(t.x[-1] == 64000 for t in drawn(figure))


def test_without_labels_figures_show_the_loss_alone():
    rows = table(study(probes=(), seeds=(0,)))
    for plot in FIGURES[:3]:
        figure = plot(rows)
        assert drawn(figure) and "xaxis2" not in figure.layout.to_plotly_json()
    assert not plots.proxy(rows).data and "transfer score" in plots.proxy(rows).layout.annotations[0].text


def test_with_a_segmentation_probe_alone_it_is_drawn():
    figure = plots.data_scale(table(study(probes=("segment",), seeds=(0,))))
    assert "IoU" in figure.layout.yaxis2.title.text


def test_figures_of_nothing_say_so():
    for figure in [*(plot([]) for plot in FIGURES), plots.curves([]), plots.claims_table([]), plots.cost_table([])]:
        assert not figure.data and "No finished runs yet" in figure.layout.annotations[0].text


def test_tables(records):
    found = claims(records)
    cells = plots.claims_table(found).data[0].cells
    assert list(cells.values[3]) == [c.evidence for c in found]
    totals = plots.cost(table(records))
    assert [line["runs"] for line in totals] == ["27", "27", "54"]
    assert totals[-1]["steps"] == f"{2 * 9 * 1750:,}"
    rows = table(records)
    rows[-1]["flops"] = None
    assert plots.cost(rows)[-1]["FLOPs"] == "–"  # a sum without a run would be too small
    assert plots.cost_table(rows).data


def test_words_for_numbers():
    assert [count(n) for n in (64, 16_384, 64_000, 128_117, 1_281_167)] == ["64", "16,384", "64k", "128k", "1.28M"]
    assert [flops_text(n) for n in (5.45e13, 4.12e15, 800.0, None)] == ["54.5 TFLOP", "4.12 PFLOP", "0.8 kFLOP", "–"]
    assert list(decades(3200, 64000)) == [5000, 10000, 20000, 50000]
    assert list(decades(10, 1e9)) == [10**k for k in range(1, 10)]
    assert len(set(shades([1, 2, 3, 4, 5]).values())) == 5


def test_the_page_stands_alone(page):
    assert page.count("* plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)\s*=", page)
    assert "@import" not in page[: page.index("<script>")] and "http" not in body(page)
    assert page.count('class="plotly-graph-div"') == 5


class Balance(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_the_page_is_well_formed(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_the_page_says_what_was_run_found_and_spent(page, records):
    text = words(page)
    for said in (
        "tier quick",
        "54 pretraining runs of atto (0.14 M), femto (0.54 M)",
        "64 to 16,384 images",
        "3 seeds",
    ):
        assert said in text
    for said in ("250, 500, 1,000 steps", "0123456789", "cpu (2 cores)", "simmim-lite 0.1.0", "torch 2.15.0"):
        assert said in text
    assert "512 core-seconds in 268 seconds" in text and "mask_ratio 0.6" in text and "mask_patch 8 px" in text
    for claim in (claim for claim in claims(records) if claim.id != "C9"):  # of notebook 09
        evidence = re.sub(r"(?<![\w-])-(?=\d)", "−", claim.evidence)
        assert text.count(evidence) == 1 and claim.verdict in text
    assert all(f'id="{study}"' in page for study in STUDIES)
    assert text.count("random initialisation") >= 6  # references are in the table of runs


def test_failed_runs_are_listed_with_their_reasons(page, records, tmp_path):
    assert "loss is NaN &lt;at step 312&gt;" in page and "Runs that failed" in page
    whole = write_report(records, tmp_path / "r.html", data="scenes", **SPENT).read_text()
    assert "Runs that failed" not in whole


def test_everything_that_comes_in_is_escaped(tmp_path):
    evil = "imagefolder:/tmp/</script><script>alert(1)</script>&"
    made = study(seeds=(0,), data=evil)
    for r in made:
        r["where"] |= {"device": "<b>cpu</b>", "versions": {"<i>": "<u>"}}
    failed = record(status="failed", data=evil, reason="<img src=x>")
    path = write_report([*made, failed], tmp_path / "r.html", data=evil, **SPENT)
    page = path.read_text()
    for raw in ("<script>alert", "<b>cpu", "<img", "<i>", "<u>"):
        assert raw not in body(page)
    assert "&lt;script&gt;alert(1)" in page


def test_other_data_and_other_settings_stay_out(records, tmp_path):
    others = [record(data="torchvision:CIFAR10", model="swinv2_nano"), record(augment="none", model="swinv2_pico")]
    text = words(write_report([*records, *others], tmp_path / "r.html", data="scenes", **SPENT).read_text())
    assert "nano" not in text and "CIFAR" not in text
    assert "1 run with other settings" in text and "other settings" in text
    assert "54 pretraining runs of atto (0.14 M), femto (0.54 M)" in text


def test_one_study_alone(records, tmp_path):
    page = write_report(records, tmp_path / "r.html", data="scenes", studies=("schedule",), **SPENT).read_text()
    text = words(page)
    assert "of 3 claims" in text and "C3" in text and "C4" in text and "C1 ·" not in text
    assert page.count('class="plotly-graph-div"') == 2
    with pytest.raises(UserError, match="did you mean 'schedule'"):
        write_report(records, tmp_path / "r.html", data="scenes", studies=("shedule",), **SPENT)


def test_smoke_and_nothing_at_all(tmp_path):
    made = study(levels=(16, 64), lengths=(10, 20), seeds=(0,))
    text = words(write_report(made, tmp_path / "r.html", data="scenes", **SPENT).read_text())
    assert "0 of 9 claims hold here, 9 are too small to say" in text
    text = words(write_report([], tmp_path / "n.html", data="scenes", **SPENT).read_text())
    assert "No run has finished yet" in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(records, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        write_report(records[:3], path, data="scenes", **SPENT)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_same_records_give_the_same_page(records, page, tmp_path):
    first = write_report(records, tmp_path / "a.html", data="scenes", **SPENT)
    second = write_report(records[::-1], tmp_path / "b.html", data="scenes", **SPENT)
    assert first.read_text() == second.read_text()
