"""The form of a notebook (DESIGN 5), checked without running one."""

import ast
import json
import re
from pathlib import Path

import pytest

from simmim_lite.studies import notebooks, parameters

NAMES = sorted(path.stem for path in notebooks.folder().glob("[0-9][0-9]_*.ipynb"))
STUDIES = sorted(notebooks.NOTEBOOKS.values())
MOST_LINES = 25  # of a cell
MOST_COLUMNS = 88  # of code that the site shows: a longer line is cut at the right edge
NARROW = ("00", "01", "02", "03", "04", "05", "06", "07", "08", "11")
IDEA_WORDS = 190  # "in 150 words", with room for those around the equation
HEADINGS = ("The idea", "Predict before you look", "A knob", "Exercises", "Five questions")


def cells(name: str) -> list[dict]:
    return json.loads(notebooks.find(name).read_text("utf-8"))["cells"]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def written(name: str) -> str:
    return "\n\n".join(text(cell) for cell in cells(name) if cell["cell_type"] == "markdown")


def code(name: str) -> list[dict]:
    return [cell for cell in cells(name) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_a_question_its_cost_and_three_goals(name: str) -> None:
    first, second = (text(cell) for cell in cells(name)[:2])
    assert re.match(rf"# {name[:2]} · [A-Z].*\?\n", first), "the title is no question"
    rows = re.findall(r"^\| `(\w+)`.*\|$", first, re.M)
    assert "smoke" in rows and len(rows) >= 3, "no table of tiers"
    assert re.search(r"\| tier \|.*\| time, ", first)
    assert len(re.findall(r"^\d\. ", second, re.M)) == 3, "three goals are wanted"


@pytest.mark.parametrize("name", NAMES)
def test_imports_come_first_and_parameters_are_literals(name: str) -> None:
    found = code(name)
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(text(found[0])).body)
    assert found[1]["metadata"].get("tags") == ["parameters"]
    known = parameters.parameters(notebooks.find(name))
    assert "tier" in known and [c["metadata"].get("tags", []) for c in found].count(["parameters"]) == 1
    if name in STUDIES:
        own = ["coco", "ade20k"] if name == "08_transfer" else []  # boxes and class maps at full size
        assert list(known) == ["tier", "data", "seeds", "workers", "runs_dir", *own] and known["tier"] == "shipped"
    later = [text(cell) for cell in found[2:]]
    assert not any(re.search(r"^(import|from) ", source, re.M) for source in later), "an import after the first cell"


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_nothing_of_a_run_is_left(name: str) -> None:
    for cell in cells(name):
        assert len(text(cell).splitlines()) <= MOST_LINES, cell["id"]
        if cell["cell_type"] == "code":
            if name[:2] in NARROW:
                assert max(map(len, text(cell).splitlines())) <= MOST_COLUMNS, cell["id"]
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    metadata = json.loads(notebooks.find(name).read_text("utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3" and "version" not in metadata["language_info"]
    assert set(metadata) == {"kernelspec", "language_info"}, "debris in the metadata"


@pytest.mark.parametrize("name", NAMES)
def test_its_parts_are_in_order(name: str) -> None:
    headings = re.findall(r"^## (.+)$", written(name), re.M)
    places = [headings.index(heading) for heading in HEADINGS]
    assert places == sorted(places), headings
    if name in STUDIES:
        wanted = ["What will run", "The idea", "One batch, looked at", "Predict before you look", "The runs"]
        wanted += ["What may be claimed", "Where this differs from the paper", "A knob"]
        places = [headings.index(heading) for heading in wanted]
        assert places == sorted(places), headings


@pytest.mark.parametrize("name", NAMES)
def test_the_idea_is_brief_and_has_an_equation(name: str) -> None:
    idea = re.search(r"^## The idea\n(.*?)(?=^## |\Z)", written(name), re.M | re.S).group(1)
    assert "$" in idea
    prose = re.sub(r"\$\$?.*?\$\$?", "", idea.split("\n\n\n")[0], flags=re.S)
    assert len(prose.split()) <= IDEA_WORDS, f"{len(prose.split())} words"


@pytest.mark.parametrize("name", NAMES)
def test_a_guess_may_be_none(name: str) -> None:
    assert any(re.search(r"^guess = None  # .*None is allowed", text(cell), re.M) for cell in code(name))


@pytest.mark.parametrize("name", NAMES)
def test_three_exercises_five_questions_and_a_stamp(name: str) -> None:
    found = cells(name)
    tasks = re.findall(r"^\*\*(\d) · (easy|medium|hard), \d+ minutes\.\*\*", written(name), re.M)
    assert [number for number, _ in tasks] == ["1", "2", "3"]
    exercises = [cell for cell in found if "exercise" in cell["metadata"].get("tags", [])]
    assert len(exercises) == 3
    for cell in exercises:
        assert re.match(r"checks\.\w+\(.*\);$", text(cell).splitlines()[-1]), "an exercise ends with its check"
        assert "None" in text(cell), "an exercise is a stub"
    questions = text(found[-2])
    assert questions.startswith("## Five questions")
    assert len(re.findall(r"^\d\. ", questions, re.M)) == questions.count("<details>") == 5
    assert text(found[-1]).startswith("checks.stamp(")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", written(name)):
        if not target.startswith(("http:", "https:")):
            assert (notebooks.folder() / Path(target)).exists(), target


def test_every_notebook_is_on_the_map_of_the_course() -> None:
    start = written("00_start")
    assert [name for name in NAMES if name not in start] == []
