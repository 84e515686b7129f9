"""Figures and tables over several sources: panels, hollow marks, guesses, verdicts; comparisons by hand."""

import json

import pandas as pd
import pytest

from simmim_lite import studies
from simmim_lite.evidence import figures, tables
from simmim_lite.evidence.rules import HOLDS, UNTESTED
from simmim_lite.studies import grids, notebooks
from simmim_lite.studies.tiers import NAMED


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return tables.runs()


def titles(figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations)


@pytest.fixture(scope="module")
def claims() -> dict:
    return tables.claims()


@pytest.mark.parametrize(
    ("x", "y", "by", "panel"), [("params", "score", "images", "source"), ("steps", "val_loss", "images", "model")]
)
def test_every_cell_is_a_mark_in_a_panel_with_axes_of_its_own(x, y, by, panel, frame) -> None:
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
    none = figures.lines(shown.assign(**{y: float("nan")}), x, y, by, panel=panel)
    assert ("loss" if y == "val_loss" else "score") in none.layout.annotations[0].text, "it says what is missing"


def test_the_guess_stands_in_the_panel_of_the_readers_runs(frame) -> None:
    def drawn(some, guess):
        figure = figures.lines(tables.longest(some), "images", "val_loss", "model", guess=guess)
        assert f"your guess: {guess}" in titles(figure)
        (line,) = figure.layout.shapes
        return line

    both = pd.concat([frame, frame[frame.source == "shipped"].assign(source="yours")], ignore_index=True)
    line = drawn(both, 0.4)
    assert (line.y0, line.yref) == (0.4, "y3") and drawn(frame, 0.4).yref == "y2"
    assert drawn(frame, 40).y0 < 1 and drawn(frame, -40).y0 > 0, "it stays inside of the panel"


@pytest.mark.parametrize(("score", "name"), [(None, "fine-tuning (%)"), ("knn", None)])
def test_a_source_shows_the_first_score_it_has(score, name) -> None:
    found = tables.runs(score=score)
    assert found.groupby("source").score_name.first()["published"] == name
    ours = found[found.source == "shipped"]
    assert ours.score.to_numpy() == pytest.approx(100 * ours[f"{score or 'linear'}_lift"].to_numpy(float), nan_ok=True)


def test_verdicts_and_agreement_name_every_source(claims) -> None:
    text = tables.verdicts(claims, "C1", "C8")
    assert text.count("| **C1** | Larger models overfit small data |") == 1 and text.count(UNTESTED) >= 1
    assert len(text.splitlines()) == 2 + 2 * len(claims) and "C2" not in text
    assert tables.verdicts({}) == "There are no finished runs to compare."
    agreed = tables.agreement(claims, "C1", "C5b")
    assert agreed["published runs"].tolist() == [HOLDS, UNTESTED] and agreed.shape == (2, len(claims))


HAND = {"04_data_scale": "C1", "05_model_size": "C2", "06_schedule": "C3", "07_proxy_loss": "C5a"}


def cells_of(name: str) -> list[tuple[str, str]]:
    cells = json.loads(notebooks.find(name).read_text("utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("name", HAND)
def test_the_comparison_by_hand_is_the_claim_to_the_last_digit(name, frame, claims) -> None:
    """The cell under *The comparison, by hand*, run as it stands, on the shipped runs."""
    cells = cells_of(name)
    place = next(k for k, (_, text) in enumerate(cells) if text.startswith("## The comparison, by hand"))
    code = cells[place + 1][1]
    assert len(code.splitlines()) <= 10
    names: dict = {"data": "scenes"}
    exec("".join(text for kind, text in cells if kind == "code" and "import" in text[:40]), names)
    ours = frame[frame.source == "shipped"]
    several = ours[ours.groupby("model").steps.transform("nunique") > 1]
    names |= {"frame": frame, "longest": tables.longest(frame), "axes": (axes := studies.axes("shipped"))}
    names["ours"] = several if name == "06_schedule" else ours[ours.model.isin(axes.models)]
    exec(code, names)
    (shipped,) = [some for source, some in claims.items() if source.startswith("shipped scenes")]
    claim = next(c for c in shipped if c.id == HAND[name])
    effect = names["difference"].mean() if "difference" in names else names["rho"].val_loss.mean()
    half = names["half"].val_loss if "rho" in names else names["half"]
    assert (effect, effect - half, effect + half) == pytest.approx((claim.effect, claim.low, claim.high), abs=1e-12)


@pytest.mark.parametrize("study", ["data-scale", "model-size", "schedule", "proxy"])
def test_the_runs_of_a_notebook_are_the_studys(study) -> None:
    code = "\n".join(text for kind, text in cells_of(NAMED[study].notebook) if kind == "code")
    (line,) = [line for line in code.splitlines() if line.startswith("runs = ")]
    for tier in ("smoke", "quick", "laptop"):
        names = {"axes": grids.tier_axes(tier, seeds=5)}
        exec(line, names)
        assert grids.with_references(names["runs"]) == grids.grid(study, tier, seeds=5)
