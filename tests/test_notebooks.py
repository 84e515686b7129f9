"""Every notebook of the repository runs: at tier smoke from end to end, at tier shipped without torch.

All of a tier run in one kernel, one after another, each with names and a folder of its own: how papermill executes
them, each in a kernel of its own, is test_papermill's.
"""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from simmim_lite.evidence import drawing
from simmim_lite.evidence.records import load
from simmim_lite.studies import notebooks
from simmim_lite.studies.tiers import NAMED

pytestmark = pytest.mark.xdist_group("notebooks")
STUDIES = sorted(study.notebook for study in NAMED.values())
NAMES = ["00_start", "01_masks", "02_swin", "03_one_run", *STUDIES, "09_scaling_law"]
NAMES += ["10_full_scale", "11_your_study", "12_beginnings", "is_this_normal"]
#: What a study may be given beside: every axis of its grid, and where it runs.
AXES = {"models": "swinv2_atto,swinv2_femto", "images": "[16, 32]", "lengths": [8, 4], "image_size": "64"}
AXES |= {"batch_size": 8, "seeds": 0, "minutes": "1", "device": "cpu", "precision": "fp32", "engine": "local"}
#: A study's jobs are done in the kernel: a process of their own would import torch again, for each study.
ALONE = "from simmim_lite.studies.workers import Local, do\n"
ALONE += "Local.do = lambda self, jobs, runs_dir, wait, do=do: "
ALONE += "[do(job, str(runs_dir), self.device, wait) for job in jobs]"
#: The symptoms are made once: what the notebook shows of them is what test_symptoms checks.
KEEP = "from functools import cache\nfrom simmim_lite.course import symptoms\n"
KEEP += "symptoms.SYMPTOMS = {name: cache(make) for name, make in symptoms.SYMPTOMS.items()}"
CHECK = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_symptoms\n"
CHECK += "for name in symptoms.SYMPTOMS:\n    test_symptoms.check(name)"
SLOW = {"torch", "timm", "torchvision", "plotly.io._renderers"}  # the last one imports nbformat
LOOK = f"import sys\nassert not {SLOW} & set(sys.modules), 'what takes seconds was imported'"


@pytest.fixture(scope="module")
def execute() -> Callable:
    """execute(kernel, name, folder, params, first, last): the outputs of a notebook, run in a folder of its own."""
    managers: dict[str, AsyncKernelManager] = {}

    def run(kernel: str, name: str, folder: Path, params: dict, first: str = "", last: str = "") -> list[dict]:
        content, cell = load_notebook_node(str(notebooks.find(name))), nbformat.v4.new_code_cell
        content = parameterize_notebook(content, params) if params else content
        content.cells = [cell(first), cell(f"%reset -f\n%cd -q {folder}"), *content.cells, cell(last)]
        manager = managers.setdefault(kernel, AsyncKernelManager(kernel_name="python3"))
        NotebookClient(content, km=manager, timeout=None).execute(cwd=folder)
        return [output for cell in content.cells for output in cell.get("outputs", ())]

    yield run
    for manager in managers.values():
        NotebookClient(nbformat.v4.new_notebook(), km=manager, shutdown_kernel="immediate")._cleanup_kernel()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """One runs folder for all: they share their records."""
    return tmp_path_factory.mktemp("notebook-runs")


def test_all_notebooks_are_here() -> None:
    assert sorted(path.stem for path in notebooks.folder().glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_at_tier_smoke(name: str, execute, shared, tmp_path) -> None:
    """It ends without an error, shows figures, and leaves nothing in the working directory."""
    known = notebooks.parameters(notebooks.find(name))
    wanted = {"tier": "smoke", "runs_dir": str(shared), "workers": 1, "seeds": 1}
    wanted |= AXES if name == "05_model_size" else {}
    first, last = (KEEP, CHECK) if name == "is_this_normal" else (ALONE, "")
    found = execute("smoke", name, tmp_path, {key: wanted[key] for key in wanted.keys() & known.keys()}, first, last)
    data = [output.get("data", {}) for output in found]
    drawn = [some["text/html"] for some in data if drawing.PLOTLY in some]
    assert drawn and all(drawing.FIGURE_CLASS in html for html in drawn), "no figure, or none for a copy"
    own = [some for some in data if drawing.PAGE_CLASS not in some.get("text/html", "")]  # once a kernel
    assert len(json.dumps(own)) + len(drawing.page()) < (4e6 if name == "00_start" else 5e6)
    assert not any("widget-view" in kind for some in data for kind in some), "a copy shows none"
    assert not list(tmp_path.iterdir())
    if name == "05_model_size":
        own = {(r["run"]["image_size"], r["run"]["batch_size"], r["run"]["images"]) for r in load(shared)}
        assert {(64, 8, 16), (64, 8, 32)} <= own


@pytest.mark.parametrize("name", [*STUDIES, "10_full_scale", "12_beginnings"])
def test_a_study_at_tier_shipped_needs_no_torch_and_trains_nothing(name: str, execute, tmp_path) -> None:
    """With its own parameters, in an empty folder; torch is looked for in the kernel itself, after all cells."""
    assert notebooks.parameters(notebooks.find(name))["tier"] == "shipped"
    execute("shipped", name, tmp_path, {}, last=LOOK)
    assert not list(tmp_path.glob("runs/records/*")), "something was trained"
