"""Figures and tables over several sources: panels, hollow marks, guesses, verdicts; comparisons by hand."""

import json

import pandas as pd
import pytest

from simmim_lite import studies
from simmim_lite.evidence import doublings, figures, pairs, published, shipped, tables
from simmim_lite.evidence.records import SCORES
from simmim_lite.evidence.rules import UNTESTED
from simmim_lite.studies import grids, notebooks


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return tables.runs()


def mine(frame: pd.DataFrame) -> pd.DataFrame:
    """The shipped runs, as if they were the reader's."""
    return pd.concat([frame, frame[frame.source == "shipped"].assign(source="yours")], ignore_index=True)


def titles(figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations)


LINES = {
    "data-scale": ("images", "model", "source"),
    "model-size": ("params", "images", "source"),
    "schedule": ("steps", "images", "model"),
}


@pytest.mark.parametrize("study", LINES)
@pytest.mark.parametrize("y", ["val_loss", "score"])
def test_every_cell_is_a_mark_in_a_panel_with_axes_of_its_own(study, y, frame) -> None:
    x, by, panel = LINES[study]
    shown = frame[frame.source == "shipped"] if panel == "model" else tables.longest(frame)
    shown = shown[shown[y].notna()]
    figure = figures.lines(shown, x, y, by, panel=panel)
    means = [t for t in figure.data if t.mode == "lines+markers"]
    assert sum(len(t.x) for t in means) == len(shown.groupby(["source", "model", "images", "steps"]))
    assert sum(sum(t.y) for t in means) == pytest.approx(shown.groupby([panel, by, x])[y].mean().sum())
    wanted = ["Published runs", "Shipped runs"] if panel == "source" else ["atto", "femto"]
    assert all(name in titles(figure) for name in wanted) and "Your runs" not in titles(figure)
    assert figure.layout.xaxis.title.text and "(" in figure.layout.yaxis.title.text
    hollow = {t.marker.color == "white" for t in means if t.xaxis == "x"}
    assert hollow == {panel == "source"}, "published marks are hollow, ours are not"
    seeds = [t for t in figure.data if t.mode == "markers" and t.marker.opacity]
    assert sum(len(t.x) for t in seeds) == len(shown[shown.source == "shipped"])
    assert any("seed 1" in text for t in seeds for text in t.text)


def test_the_guess_stands_in_the_panel_of_the_readers_runs(frame) -> None:
    def drawn(some, guess):
        return figures.lines(tables.longest(some), "images", "val_loss", "model", guess=guess)

    line = next(t for t in drawn(mine(frame), 0.4).data if t.name == "your guess")
    assert (set(line.y), line.xaxis) == ({0.4}, "x3")
    assert next(t for t in drawn(frame, 0.4).data if t.name == "your guess").xaxis == "x2"
    assert "lies above" in titles(drawn(frame, 40)) and "lies below" in titles(drawn(frame, -40))


def test_both_losses_stand_side_by_side_with_their_correlation(frame) -> None:
    ours = frame[frame.source == "shipped"]
    figure = figures.scatter(ours, ["val_loss", "train_loss"], "score", "regime", rank=True)
    assert sum(len(t.x) for t in figure.data if t.hoverinfo == "text") == 2 * len(ours)
    rho = ours[["val_loss", "train_loss", "score"]].corr("spearman").score
    for loss in ("val_loss", "train_loss"):
        assert f"ρ {rho[loss]:+.2f}".replace("-", "−") in titles(figure)
    named = {t.name for t in figure.data if t.showlegend is not False}
    assert {"clean", "overfit"} <= named
    alone = figures.scatter(frame[frame.source == "published"], ["val_loss", "train_loss"], "score", "regime")
    assert "training loss" not in titles(alone), "training losses of published runs are not known"


def test_a_turning_point_outside_of_the_runs_is_neither_drawn_nor_said() -> None:
    found = doublings.doublings(published.rows(), published.SCORE)
    turns = doublings.turning_points(found)
    assert turns == {of: doublings.turning_point(found, of) for of in ("loss", "score")}
    seldom = [{"omega": 10.0**k, "loss_change": 0.0, "score_change": -0.1 if k in (4, 9) else 0.1} for k in range(10)]
    seldom = pd.DataFrame(seldom)
    assert doublings.turning_point(seldom, "score") > 1e9, "beyond all of them"
    assert doublings.turning_points(seldom) == {"loss": None, "score": None}
    table = found.assign(source="published")
    texts = titles(figures.doublings(table, {"published": turns | {"score": 1e12}}))
    assert "loss turns" in texts and "score turns" not in texts
    assert f"{-0.76:+.2f}".replace("-", "−") in texts, "Omega's correlation is printed"


def test_curves_show_both_losses_of_the_chosen_runs(frame) -> None:
    records = shipped.beside("scenes")
    chosen = frame[
        (frame.source == "shipped") & (frame.steps == 1000) & (frame.seed == 0) & (frame.model == "swinv2_atto")
    ]
    chosen = chosen[chosen.images.isin([16, 16384])]
    figure = figures.curves(records, chosen)
    assert [t.name for t in figure.data] == [
        f"{n}, {of}" for n in ("16 images", "16,384 images") for of in ("validation", "training")
    ]
    assert figures.curves([], chosen).layout.annotations[0].text == "No curves of these runs are here"


def test_pairs_are_shares_with_intervals() -> None:
    found = {"published": pairs.accuracy(published.rows(), published.SCORE)}
    rows = pairs.shares(found)
    assert rows.value.round(1).tolist() == [87.4, 93.4, 75.9] and (rows.low < rows.value).all()
    figure = figures.intervals(rows, "%", mark=50, guess=60)
    assert sum(len(t.x) for t in figure.data) == 3 and len(figure.layout.shapes) == 2
    assert len(pairs.shares({"yours": pairs.accuracy([])})) == 0


@pytest.mark.parametrize("score", [None, *SCORES])
def test_a_source_shows_the_first_score_it_has(score, frame) -> None:
    found = tables.runs(score=score)
    names = found.groupby("source").score_name.first()
    assert names["published"] == (None if score not in (None, "finetune") else "fine-tuning (%)") or pd.isna(
        names["published"]
    )
    ours = found[found.source == "shipped"]
    column = f"{score or 'linear'}_lift"
    assert (ours.score - 100 * ours[column].astype(float)).abs().max() < 1e-9


def test_runs_without_a_score_say_so(frame) -> None:
    none = frame.assign(score=float("nan"))
    for figure in (
        figures.lines(none, "images", "score", "model"),
        figures.scatter(none, "val_loss", "score", "regime"),
    ):
        assert "score" in figure.layout.annotations[0].text


def test_verdicts_and_agreement_name_every_source() -> None:
    claims = tables.claims()
    text = tables.verdicts(claims, "C1", "C8")
    assert text.count("| **C1** | Larger models overfit small data |") == 1 and text.count(UNTESTED) >= 1
    assert len(text.splitlines()) == 2 + 2 * len(claims) and "C2" not in text
    said = tables.agreement(claims, "C1", "C5b")
    assert "**C1, larger models overfit small data**: holds on published runs" in said
    assert (
        "published runs" in said.splitlines()[1]
        and tables.agreement({}, "C1") == "There are no finished runs to compare."
    )
    assert tables.verdicts({}) == "There are no finished runs to compare."


HAND = {"04_data_scale": "C1", "05_model_size": "C2", "06_schedule": "C3", "07_proxy_loss": "C5a"}


@pytest.mark.parametrize("name", HAND)
def test_the_comparison_by_hand_is_the_claim_to_the_last_digit(name) -> None:
    """The cell under *The comparison, by hand*, run as it stands, on the shipped runs."""
    cells = json.loads(notebooks.find(name).read_text("utf-8"))["cells"]
    places = [k for k, c in enumerate(cells) if "".join(c["source"]).startswith("## The comparison, by hand")]
    code = "".join(cells[places[0] + 1]["source"])
    assert len(code.splitlines()) <= 10
    imports = "".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "code" and "import" in "".join(c["source"])[:40]
    )
    names: dict = {"data": "scenes"}
    exec(imports, names)
    frame = tables.runs()
    names |= {"frame": frame, "longest": tables.longest(frame), "axes": studies.axes("shipped")}
    ours = frame[frame.source == "shipped"]
    names["ours"] = ours[ours.groupby("model").steps.transform("nunique") > 1] if name == "06_schedule" else ours
    exec(code, names)
    (claims,) = [some for source, some in tables.claims().items() if source.startswith("shipped, scenes")]
    claim = next(c for c in claims if c.id == HAND[name])
    found = (
        (names["rho"].val_loss.mean(), *(end[0] for end in names["interval"]))
        if name == "07_proxy_loss"
        else (
            names["difference"].mean(),
            *names["interval"],
        )
    )
    assert found == pytest.approx((claim.effect, claim.low, claim.high), abs=1e-12)


@pytest.mark.parametrize("study", ["data-scale", "model-size", "schedule", "proxy"])
@pytest.mark.parametrize("tier", ["smoke", "quick", "laptop"])
def test_the_runs_of_a_notebook_are_the_studys(study, tier) -> None:
    cells = json.loads(notebooks.find(notebooks.NOTEBOOKS[study]).read_text("utf-8"))["cells"]
    (line,) = [s for c in cells for s in c["source"] if c["cell_type"] == "code" and s.startswith("runs = ")]
    names = {"axes": grids.tier_axes(tier, seeds=5)}
    exec(line, names)
    assert grids.with_references(names["runs"]) == grids.grid(study, tier, seeds=5)
