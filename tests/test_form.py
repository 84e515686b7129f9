"""The form of a notebook, checked without running one: its parts in order, three exercises, short cells, true links."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from simmim_lite.course.grading import same
from simmim_lite.evidence import published
from simmim_lite.studies import notebooks
from simmim_lite.studies.tiers import AXES, NAMED

NAMES = sorted(path.stem for path in notebooks.folder().glob("[0-9][0-9]_*.ipynb"))
STUDIES = sorted(study.notebook for study in NAMED.values())
MOST_LINES = 27  # of a cell
PARTS = ["The idea", "Predict before you look", "A knob", "Exercises", "Five questions"]
STUDY_PARTS = ["What will run", "The idea", "One batch, looked at", "Predict before you look", "The runs"]
STUDY_PARTS += ["What may be claimed", "Where this differs from the paper", "A knob", "Exercises", "Five questions"]
#: Below each exercise: markdown, which JupyterLab, editors, pages and GitHub all fold alike, and Run All never runs.
HELP = r"<details><summary>Hint</summary>\n\n\S.*\n\n</details>\n<details><summary>Solution</summary>\n\n"
HELP += r"\S.*\n\n```python\n.+\n```\n\n</details>"


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
    asked = r'^guess = None  # (.*); or "pass"\nguess = checks.guess\(guess, "\1", \S+, \S+\)$'
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
        own += [*AXES, "minutes", "device", "precision", "engine", "address", "gpus_per_run"]
        assert list(known) == ["tier", "data", "seeds", "workers", "runs_dir", *own] and known["tier"] == "shipped"
    assert not any(re.search(r"^(import|from) (?!timm)", cell["text"], re.M) for cell in found[2:]), "a late import"
    for cell in notebook.cells:
        assert len(cell["text"].splitlines()) <= MOST_LINES, cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "debris in the metadata"


def test_its_exercises(notebook) -> None:
    """Each says what it is given, and has a folded hint and a folded solution below."""
    pairs = [pair for pair in pairwise(notebook.cells) if "exercise" in pair[0]["metadata"].get("tags", ())]
    assert len(pairs) == 3
    for cell, below in pairs:
        assert re.match(r"checks\.\w+\(.*\);$", cell["text"].splitlines()[-1])
        stub = ast.parse(cell["text"]).body[0]
        if isinstance(stub, ast.FunctionDef):
            given = ast.get_docstring(stub) or ""
            assert all(re.search(rf"\b{one.arg}\b[\w, ]*: ", given) for one in stub.args.args), cell["id"]
            for example in re.findall(r"^{.*?(?=, \.\.\.})", given, re.M | re.S):
                row = ast.literal_eval(example + "}")
                assert all(same(published.rows()[0][name], value) for name, value in row.items()), row
        else:
            assert re.search(r"^answer = .*None\)?  # \(?\w+", cell["text"]), cell["id"]
        assert below["cell_type"] == "markdown" and below["metadata"] == {"tags": ["solution"]}
        assert re.fullmatch(HELP, below["text"], re.S), below["id"]


def test_its_questions_and_links(notebook) -> None:
    questions, last, onward = (cell["text"] for cell in notebook.cells[-3:])
    assert questions.startswith("## Five questions")
    assert last.startswith(f'checks.summary("{notebook.name[:2]}")\nchecks.stamp(')
    assert len(re.findall(r"^\d\. ", questions, re.M)) == questions.count("<details>") == 5
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", notebook.text):
        assert target.startswith(("http:", "https:")) or (notebooks.folder() / Path(target)).exists(), target
    assert notebook.name in Notebook("00_start").text, "not on the map of the course"
    name = [*NAMES, "is_this_normal"][NAMES.index(notebook.name) + 1]
    title = Notebook(name).text.splitlines()[0].removeprefix("# ")
    assert onward.startswith(f"**Next:** [{title}]({name}.ipynb)"), "the way to the next notebook"
