"""Figures and tables over several kinds of evidence: panels with their own axes, hollow marks, guesses, verdicts."""

import pytest

from simmim_lite.evidence import compare, pairs, published, sides, summaries
from simmim_lite.evidence.doublings import doublings
from simmim_lite.evidence.records import SCORES


@pytest.fixture(scope="module")
def evidence() -> dict:
    found = sides.rows()
    assert found["published"]
    assert found["shipped"]
    return found


def titles(figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations)


@pytest.mark.parametrize("study", compare.STUDIES)
def test_a_panel_a_kind_with_axes_of_its_own(study, evidence) -> None:
    figure = compare.figure(study, evidence)
    assert "Published runs" in titles(figure)
    assert "Shipped runs" in titles(figure)
    assert "Your runs" not in titles(figure)
    for axes in (figure.layout.xaxis, figure.layout.xaxis2, figure.layout.yaxis, figure.layout.yaxis2):
        assert axes.title.text
        assert axes.matches is None
    units = {figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text}
    assert len(units) == 2, "the two kinds measure different quantities"
    assert all("(" in unit for unit in units)


def test_runs_without_a_score_are_said_to_have_none(evidence) -> None:
    """As those on a flat folder, which has no labels."""
    rows = [
        {name: None if name.split("_")[0] in SCORES else x for name, x in row.items()} for row in evidence["shipped"]
    ]
    for others in (evidence, {}):
        for study, measure in (("data-scale", "score"), ("proxy", "val_loss")):
            figure = compare.figure(study, others | {"yours": rows}, measure)
            text = str(figure.layout.title.text) + titles(figure)
            assert "no score: their pictures have no labels" in text, (study, measure)
    assert "Your runs" in titles(compare.figure("data-scale", evidence | {"yours": rows}))


def test_your_runs_get_a_panel_and_the_guess(evidence) -> None:
    mine = evidence | {"yours": evidence["shipped"]}
    figure = compare.figure("data-scale", mine, guess=0.4)
    assert "Your runs" in titles(figure)
    line = next(trace for trace in figure.data if trace.name == "your guess")
    assert (set(line.y), line.xaxis) == ({0.4}, "x3")
    assert "lies above" in titles(compare.figure("data-scale", mine, guess=40))
    alone = compare.figure("data-scale", evidence, guess=0.4)
    assert next(trace for trace in alone.data if trace.name == "your guess").xaxis == "x2"


def test_published_marks_are_hollow_and_hover_says_what_a_point_is(evidence) -> None:
    figure = compare.figure("proxy", evidence)
    for trace in figure.data:
        if trace.text is None or trace.mode != "markers":
            continue
        assert (trace.marker.color == "white") == (trace.xaxis in (None, "x"))
        assert all("images" in text and "validation loss" in text for text in trace.text)


def test_scores_and_one_level(evidence) -> None:
    figure = compare.figure("model-size", evidence, "score", level=64)
    assert figure.layout.yaxis.title.text == "fine-tuning, top-1 (%)"
    assert "linear probe" in figure.layout.yaxis2.title.text
    with pytest.raises(ValueError, match="unknown study"):
        compare.figure("size", evidence)


@pytest.mark.parametrize("study", compare.STUDIES)
def test_nothing_to_show(study) -> None:
    for draw in (compare.figure, summaries.relative):
        assert "no finished runs" in draw(study, {"published": [], "yours": []}).layout.annotations[0].text.lower()


@pytest.mark.parametrize("study", ("data-scale", "model-size", "schedule"))
def test_relative_lines_begin_at_nothing(study, evidence) -> None:
    figure = summaries.relative(study, evidence)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert all((trace.x[0], trace.y[0]) == (1, 0) for trace in lines)
    assert {trace.name for trace in lines} == {"Published runs", "Shipped runs (laptop)"}
    assert "%" in figure.layout.yaxis.title.text


def test_verdicts_by_kind() -> None:
    claims = sides.claims()
    assert list(claims) == ["published", "shipped, CIFAR-10 (design data)", "shipped, scenes (design data)"]
    table = summaries.claims_table(claims, ("C1", "C2")).data[0].cells.values
    assert len(table[0]) == 6
    assert [cell for cell in table[0] if cell] == ["<b>C1</b>", "<b>C2</b>"]
    assert "no claim" in summaries.claims_table({}, ("C1",)).layout.annotations[0].text.lower()
    said = sides.agreement(claims, ("C2", "C8"))
    assert said.count("\n") == 1
    verdicts = {kind: next(c for c in found if c.id == "C2").verdict for kind, found in claims.items()}
    assert ("cannot be said" in said.split("\n")[0]) == ("too small to say" in verdicts.values())


def test_pairs_and_doublings(evidence) -> None:
    found = {"published": pairs.accuracy(published.rows(), "finetune"), "none": pairs.accuracy([])}
    figure = summaries.pairs(found)
    assert [trace.text[0] for trace in figure.data] == ["87 %", "93 %", "76 %"]
    chart = summaries.doublings({"published": doublings(published.rows(), "finetune"), "shipped": []})
    assert sum(len(trace.x) for trace in chart.data) == 42
    assert "Omega" in chart.layout.xaxis.title.text
