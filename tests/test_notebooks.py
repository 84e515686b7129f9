"""Every notebook of the repository runs: at tier smoke from end to end, at tier shipped without torch."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from simmim_lite.studies import notebooks
from simmim_lite.studies.tiers import NAMED

STUDIES = sorted(study.notebook for study in NAMED.values())

NAMES = [
    "00_start",
    "01_masks",
    "02_swin",
    "03_one_run",
    "04_data_scale",
    "05_model_size",
    "06_schedule",
    "07_proxy_loss",
    "08_transfer",
    "09_scaling_law",
    "10_full_scale",
    "11_your_study",
    "is_this_normal",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """One runs folder for all, also where several test processes take the notebooks: they share their records."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "notebook-runs"


def outputs(path: Path) -> list[dict]:
    return [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", ())]


def test_all_notebooks_are_here() -> None:
    assert sorted(path.stem for path in notebooks.folder().glob("*.ipynb")) == NAMES
    assert set(STUDIES) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_at_tier_smoke(name: str, shared, tmp_path, monkeypatch) -> None:
    """From a working directory that is not the repository's; it ends without an error and shows figures."""
    monkeypatch.chdir(tmp_path)
    known = notebooks.parameters(notebooks.find(name))
    wanted = {"tier": "smoke", "runs_dir": str(shared), "workers": 1, "seeds": 1}
    params = {key: value for key, value in wanted.items() if key in known}
    executed = notebooks.run([name], params, tmp_path / "executed", workers=1)
    found = outputs(executed[name])
    assert not [output for output in found if output["output_type"] == "error"]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in found), "no figure"
    left = {path.name for path in tmp_path.iterdir()} - {"executed"}
    assert not left, f"{name} leaves {left} in the working directory"


@pytest.mark.parametrize("name", [*STUDIES, "10_full_scale"])
def test_a_study_at_tier_shipped_needs_no_torch_and_trains_nothing(name: str, tmp_path, monkeypatch) -> None:
    """With its own parameters, in an empty folder; torch is looked for in the kernel itself, after all cells."""
    monkeypatch.chdir(tmp_path)
    content = nbformat.read(notebooks.find(name), as_version=4)
    assert notebooks.parameters(notebooks.find(name))["tier"] == "shipped"
    look = "import sys\nassert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'"
    content.cells.append(nbformat.v4.new_code_cell(look, id="look"))
    nbformat.write(content, tmp_path / f"{name}.ipynb")
    notebooks.run([tmp_path / f"{name}.ipynb"], {}, tmp_path / "executed")
    assert not list(tmp_path.glob("runs/records/*")), "something was trained"
