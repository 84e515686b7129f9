"""The form of a notebook, checked without running one: its parts in order, three exercises, short cells, true links."""

import ast
import json
import re
from pathlib import Path

import pytest

from simmim_lite.studies import notebooks
from simmim_lite.studies.tiers import NAMED

NAMES = sorted(path.stem for path in notebooks.folder().glob("[0-9][0-9]_*.ipynb"))
STUDIES = sorted(study.notebook for study in NAMED.values())
MOST_LINES = 27  # of a cell
PARTS = ["The idea", "Predict before you look", "A knob", "Exercises", "Five questions"]
STUDY_PARTS = ["What will run", "The idea", "One batch, looked at", "Predict before you look", "The runs"]
STUDY_PARTS += ["What may be claimed", "Where this differs from the paper", "A knob", "Exercises", "Five questions"]


class Notebook:
    """What a notebook holds: its cells, the text of all of them, the code."""

    def __init__(self, name: str) -> None:
        self.name, content = name, json.loads(notebooks.find(name).read_text("utf-8"))
        self.cells, self.metadata = content["cells"], content["metadata"]
        for cell in self.cells:
            cell["text"] = "".join(cell["source"])
        self.text = "\n\n".join(cell["text"] for cell in self.cells if cell["cell_type"] == "markdown")
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]


@pytest.fixture(params=NAMES)
def notebook(request) -> Notebook:
    return Notebook(request.param)


def test_its_head_and_its_parts(notebook) -> None:
    """A question, what it costs at each tier and three goals; then the parts in order."""
    first, second = (cell["text"] for cell in notebook.cells[:2])
    assert re.match(rf"# {notebook.name[:2]} · [A-Z].*\?\n", first), "the title is no question"
    assert re.search(r"\| tier \|.*\| time, .*^\| `smoke`", first, re.M | re.S), "no table of tiers"
    assert len(re.findall(r"^\d\. ", second, re.M)) == 3, "three goals are wanted"
    headings = re.findall(r"^## (.+)$", notebook.text, re.M)
    places = [headings.index(heading) for heading in (STUDY_PARTS if notebook.name in STUDIES else PARTS)]
    assert places == sorted(places), headings
    asked = r'^guess = None  # (.*); or "pass"\nguess = checks.guess\(guess, "\1"\)$'
    assert any(re.search(asked, cell["text"], re.M) for cell in notebook.code)


def test_its_cells(notebook) -> None:
    """Imports first, then literal parameters; short cells, nothing of a run left."""
    found, name = notebook.code, notebook.name
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(found[0]["text"]).body)
    assert [k for k, c in enumerate(found) if "parameters" in c["metadata"].get("tags", ())] == [1]
    known = notebooks.parameters(notebooks.find(name))
    assert "tier" in known
    if name in STUDIES:
        own = ["coco", "ade20k"] if name == "08_transfer" else []  # boxes and class maps at full size
        assert list(known) == ["tier", "data", "seeds", "workers", "runs_dir", *own] and known["tier"] == "shipped"
    assert not any(re.search(r"^(import|from) (?!timm)", cell["text"], re.M) for cell in found[2:]), "a late import"
    for cell in notebook.cells:
        assert len(cell["text"].splitlines()) <= MOST_LINES, cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "debris in the metadata"


def test_its_exercises_questions_and_links(notebook) -> None:
    exercises = [cell["text"] for cell in notebook.cells if "exercise" in cell["metadata"].get("tags", ())]
    assert len(exercises) == 3
    assert all(re.match(r"checks\.\w+\(.*\);$", text.splitlines()[-1]) for text in exercises)
    questions, last = (cell["text"] for cell in notebook.cells[-2:])
    assert questions.startswith("## Five questions") and last.startswith("checks.stamp(")
    assert len(re.findall(r"^\d\. ", questions, re.M)) == questions.count("<details>") == 5
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", notebook.text):
        assert target.startswith(("http:", "https:")) or (notebooks.folder() / Path(target)).exists(), target
    assert notebook.name in Notebook("00_start").text, "not on the map of the course"
