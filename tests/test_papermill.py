"""Notebooks through papermill: parameters checked first, whole copies only, and one line for whatever goes wrong."""

import json
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from child_processes import PATIENCE, interrupt, interruptible, lives, until
from filelock import FileLock
from test_cli import call
from tiny_notebooks import PARAMETERS, write_notebook

from simmim_lite.errors import UserError
from simmim_lite.processes import cores
from simmim_lite.studies import notebooks
from simmim_lite.studies.tiers import TIERS

KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def printed(path: Path) -> str:
    """What an executed notebook printed."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")


def test_parameters_are_the_literals_of_the_tagged_cell_and_texts_are_read_as_their_types(tmp_path) -> None:
    literals = "n = 1\nflag = False\nname = 'a'\nlist_ = [1]\nfree = None  # comment"
    path = write_notebook(tmp_path / "typed.ipynb", [], parameters=literals)
    assert notebooks.parameters(path) == {"n": 1, "flag": False, "name": "a", "list_": [1], "free": None}
    texts = {"n": "1k", "flag": "true", "name": "5", "list_": "[2, 3]", "free": "some text"}
    wanted = {"n": 1000, "flag": True, "name": "5", "list_": [2, 3], "free": "some text"}
    assert notebooks.check_parameters(path, texts) == wanted
    derived = write_notebook(tmp_path / "derived.ipynb", [], parameters="a = 1\nb = 2 * a")
    with pytest.raises(UserError, match="may hold only lines like"):
        notebooks.parameters(derived)
    (tmp_path / "none.ipynb").write_text("no notebook")
    with pytest.raises(UserError, match="none.ipynb: not a readable notebook"):
        notebooks.parameters(tmp_path / "none.ipynb")
    known = {"In": ["", literals, "# Parameters\nm = 1\n"], "seeds": "[1, 2]", "runs_dir": "r"}
    with pytest.raises(UserError, match="unknown parameter 'm'") as caught:
        notebooks.check_notebook(known)
    assert caught.value._render_traceback_() == [f"{caught.value}"]
    notebooks.check_notebook(known := {"In": [""], "seeds": "[1, 2]", "workers": 2.0, "images": 64, "other": 3})
    assert (known["seeds"], known["workers"], known["images"], known["other"]) == ((1, 2), 2, (64,), 3)


#: What no notebook takes, by parameter, and what the line names.
REFUSED = {
    "tier": ("smok", 3), "data": ("scene", "hf:", "torchvision:NOPE", "imagefolder:/nowhere", "imagefolder:EMPTY", 5),
    "seed": ("two", -1), "seeds": ("two", -1, 1.5, [1, -2]), "workers": (-1, "many"), "gpus": (0, "eight"),
    "runs_dir": ("", 3, "FILE/runs"), "coco": ("/nowhere", 3), "ade20k": ("/nowhere", 3),
    "models": (["swinv2_big"], "swinv2_atto, huge", 3), "images": ("many", [0], [16, "x"]),
    "lengths": ([0], "ten", [1.5]),
    "image_size": (0, "big", 20_000), "batch_size": (0, "all"), "minutes": (0, "five", -1), "device": ("gpu", 3),
    "precision": ("fp64",), "engine": ("rey",), "address": ("HOST:1", 3), "gpus_per_run": (0, 2, "all"),
    "foreign": ("", 3, "/nowhere.pth", "imagefolder:/nowhere"),
    "core_minutes": (0, "many"), "effect": (-1, "big"), "images_per_second": ("900", 3), "assume": ("0.4", 3),
}  # fmt: skip
UNOPENED = ("torchvision:NOPE", "imagefolder:/nowhere", "imagefolder:EMPTY", "FILE/runs")  # by 10: a cluster's own


@pytest.mark.parametrize("name", sorted(path.stem for path in notebooks.folder().glob("[01]*.ipynb")))
def test_every_wrong_parameter_is_one_line_from_the_first_cell(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").touch()
    path = notebooks.find(name)
    found = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    imports, _, first = ("".join(cell["source"]) for cell in found[:3])
    exec(imports, there := {})
    known = notebooks.parameters(path)
    tier = {"tier": "smoke"} if known["tier"] == "shipped" else {}  # shipped only reads a runs_dir
    for parameter, wrong in ((p, w) for p in known for w in REFUSED[p] if not (name[:2] == "10" and w in UNOPENED)):
        with pytest.raises(UserError) as caught:
            exec(first, there | known | tier | {parameter: wrong})
        (line,) = caught.value._render_traceback_()
        assert "\n" not in line and str(wrong).split(":")[-1] in line, f"{parameter} = {wrong!r}: {line}"
    assert not (tmp_path / "runs").exists()


def test_a_copy_is_made_once_and_says_when_its_original_has_changed(tmp_path, monkeypatch, capsys) -> None:
    originals = tmp_path / "notebooks"
    monkeypatch.setattr(notebooks, "folder", lambda: originals)
    write_notebook(originals / "a.ipynb", ["1"])
    mine = notebooks.own_copies()
    write_notebook(originals / "a.ipynb", ["2"])
    assert "2" in (notebooks.own_copies() / "a.ipynb").read_text(), "what was never saved follows"
    write_notebook(mine / "a.ipynb", ["mine"])
    monkeypatch.setattr(notebooks, "in_notebook", lambda: True)
    monkeypatch.chdir(mine)

    def said(path: Path) -> str:
        monkeypatch.setenv("JPY_SESSION_NAME", str(path))
        notebooks.check_notebook(names := {"In": [""], "tier": "shipped", "runs_dir": "runs"})
        assert names["runs_dir"] == str(tmp_path / "runs") and Path.cwd() == tmp_path
        return capsys.readouterr().out.removeprefix(f"runs are kept in {tmp_path / 'runs'}\n")

    assert said(mine / "a.ipynb") == ""
    for name in ("a", "b"):
        write_notebook(originals / f"{name}.ipynb", ["3"])
    assert said(mine / "a.ipynb").startswith("a has changed since your copy was made")
    assert "mine" in (notebooks.own_copies() / "a.ipynb").read_text() and (mine / "b.ipynb").exists()
    assert said(originals / "a.ipynb").startswith("this is the original, which git pull changes")


WRONG = {
    "papermill 04_data_scale -p seed 1": "unknown parameter of 04_data_scale.ipynb 'seed': did you mean 'seeds'? known",
    "papermill 04_data_scale -p seeds many": "seeds is 'many': give a whole number",
    "papermill 04_data_scale -p tier quik": "unknown tier 'quik': did you mean 'quick'? known are shipped, smoke",
    "papermill 04_data_scale -p data imagefolder:EMPTY": "EMPTY: no images in this folder",
    "papermill 04_datascale": "unknown notebook '04_datascale': did you mean '04_data_scale'",
    "papermill sums.ipynb --each a 2,x": "a is 'x': give a whole number",
    "papermill sums.ipynb --each a 2,2": "two copies would be called sums-a=2",
    "papermill sums.ipynb --each a 2 -p a 3": "parameter 'a' is given by -p and by --each",
    "papermill sums.ipynb --engine rey": "unknown engine 'rey'",
    "papermill sums.ipynb --address auto": "address is auto, which is about a Ray cluster",
    "study data-scale --tier smoke -p seeds many --dry-run": "seeds is 'many': give a whole number",
    "study data-scale --tier smoke --data imagefolder:EMPTY": "no images in this folder",
    "study data-scale --tier smoke --models atto,swinv2_big": "unknown models 'atto,swinv2_big': did you mean",
    "study data-scale --tier smoke --lengths 0": "lengths is '0': give a list, each a whole number from 1",
    "study data-scale --images 16 --tier shipped": "images is (16,), and tier shipped trains nothing",
    "study data-scale --tier gpu --hours 1 --minutes 5": "--hours is 1 and minutes 5: give one",
    "study data-scale --tier gpu --hours 1 -p minutes 5": "--hours is 1 and minutes 5: give one",
    "study data-scale --seeds 1 --commands --assume 0.4@989": "a GPU's speed chooses seeds or a grid",
    "study data-scale --tier quick --minutes 5 --seeds 5": "seeds is 5 and minutes 5: give one",
    "papermill 08_transfer -p tier smoke -p minutes 5": "minutes is 5: the seeds of study transfer do not go by the",
    "papermill 08_transfer -p tier gpu": "unknown tier of the transfer study 'gpu': known are smoke, quick, laptop",
    "papermill 04_data_scale -p models swinv2_pico": "unknown parameter of 04_data_scale.ipynb 'models'",
    "study data-scale --tier smoke -p seeds": "argument -p/--parameter: expected 2 arguments",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_one_line_and_starts_nothing(words: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    (tmp_path / "EMPTY").mkdir()
    write_notebook(tmp_path / "04_data_scale.ipynb", ["print(tier)"])
    write_notebook(tmp_path / "08_transfer.ipynb", ["1 / 0"], parameters="tier = 'shipped'\nminutes = None")
    write_notebook(tmp_path / "sums.ipynb", ["1 / 0"], parameters="a = 1")
    status, _, errors = call(capsys, *words.split())
    assert (status, errors.count("\n")) == (2, 1) and WRONG[words] in errors
    assert {path.name for path in tmp_path.iterdir()} == {
        "EMPTY", "04_data_scale.ipynb", "08_transfer.ipynb", "sums.ipynb"
    }  # fmt: skip


def test_one_dies_one_fails_and_the_others_finish(tmp_path, monkeypatch) -> None:
    """Whole copies appear, what failed leaves its line, and what a killed call has left goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for left in ("simmim-lite-killed", "simmim-lite-running"):
        (tmp_path / "temporary" / left).mkdir(parents=True)
        (tmp_path / "temporary" / left / "lock").touch()
    here, out = tmp_path / "notebooks", tmp_path / "out"
    say = "import os\nprint(tier, seeds, os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    user_error = "from simmim_lite.errors import UserError\nraise UserError('this')"
    cells = {"good": [say], "dead": [KILL], "wrong": ["1", user_error]}
    paths = [write_notebook(here / f"{name}.ipynb", some) for name, some in cells.items()]
    planned = [notebooks.Copy.of(path, {"tier": "smoke", "seeds": 1, "runs_dir": "kept"}) for path in paths]
    with FileLock(tmp_path / "temporary" / "simmim-lite-running" / "lock"):
        executed, failures = notebooks.execute(planned, "out", workers=2)
    assert [path.name for path in (tmp_path / "temporary").glob("simmim-lite-*")] == ["simmim-lite-running"]
    assert executed == {"good": out / "good.ipynb"}
    assert printed(executed["good"]) == f"smoke 1 {tmp_path} {max(1, cores() // 2)}\n"
    assert str(here) not in executed["good"].read_text()
    assert failures["dead"].startswith("the kernel of dead died (killed or out of memory): finished runs are kept")
    assert failures["wrong"] == f"wrong, cell [4]: this; as far as it came: {out / 'wrong.failed.ipynb'}"
    assert {path.name for path in out.iterdir()} == {"good.ipynb", "wrong.failed.ipynb"}


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_leaves_no_kernel_running(signal_, tmp_path) -> None:
    say = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(9999)"
    path = write_notebook(tmp_path / "sleeper.ipynb", [say])
    code = (
        f"from simmim_lite.studies import notebooks\nnotebooks.execute([notebooks.Copy.of({str(path)!r}, {{}})], 'out')"
    )
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=interruptible, **options)
    noted = tmp_path / "pid"
    kernel = int(until(lambda: noted.exists() and noted.read_text(), process))
    if signal_ == signal.SIGINT:
        interrupt(process)
    else:
        process.kill()
    errors = process.communicate(timeout=PATIENCE)[1]
    until(lambda: not lives(kernel))  # no kernel outlives the study
    assert not (tmp_path / "out").exists(), "half a copy"
    if signal_ == signal.SIGINT:
        # the pool's resource tracker, hit by the same signal, may add a warning of its own behind it
        assert "stopped: finished runs and notebooks are kept" in errors


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """`simmim-lite study data-scale --tier smoke …` of one run, with a notebook of our own: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path / "notebooks")
    recipe = replace(TIERS["smoke"].recipe, val_images=8, val_masks=1, probe_labels=0)
    small = replace(TIERS["smoke"], models=("swinv2_atto",), images=(16,), lengths=(4,), recipe=recipe)
    monkeypatch.setitem(TIERS, "smoke", small)

    def run(*words: str, cells=("print(tier, seeds, workers, minutes)",)) -> tuple[int, str, str]:
        own = PARAMETERS + "\nminutes = None"
        path = tmp_path / "notebooks" / "04_data_scale.ipynb"
        write_notebook(path, list(cells), parameters=own, text="# How much data?")
        return call(capsys, "study", "data-scale", "--tier", "smoke", "--workers", "1", *words)

    return run


def test_a_study_ends_with_notebooks_and_linked_pages(study, tmp_path, monkeypatch) -> None:
    status, out, errors = study("--dry-run")
    assert status == 0 and out.splitlines()[-1].startswith("the times are a rough guess"), errors
    assert not (tmp_path / "runs").exists()
    status, out, errors = study("-p", "minutes", "5")
    assert status == 0, errors
    assert "executed notebooks: runs/notebooks" in out
    assert out.splitlines()[-1] == f"report: {Path('runs/report/index.html')}"
    assert printed(tmp_path / "runs/notebooks/04_data_scale.ipynb") == "smoke [0] 1 None\n", "what was chosen"
    report = tmp_path / "runs" / "report"
    page = (report / "index.html").read_text()
    assert "What these runs say" in page and '<a href="04_data_scale.html">' in page
    # a second call trains nothing, and one line names the cell that fails; the report is there all the same
    status, out, errors = study("-p", "seeds", "1", cells=["1 / 0"])
    assert status == 2 and "0 trained now" in out and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("simmim-lite: 04_data_scale, cell [3]: ZeroDivisionError")
    assert '<a href="04_data_scale.html">' in (report / "index.html").read_text(), "the earlier page is still linked"
    status, out, _ = study("--tier", "shipped", "--no-notebooks")
    assert status == 0 and "shipped records laptop-scenes" in out and "without notebooks: --no-notebooks" in out


def test_a_batch_is_every_combination_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    """A copy each, named by what differs; a failure is named, the rest finishes; a second call executes what is new."""
    monkeypatch.chdir(tmp_path)
    out, inside = tmp_path / "out", "a = 1\nc = ''"
    cells = ["import os\nprint(a)", "assert a == 2 or os.path.exists('mended')"]
    path = write_notebook(tmp_path / "sums.ipynb", cells, parameters=inside)
    command = ["papermill", path, "-p", "c", "/a/x", "--each", "a", "2,3", "--out", "out"]
    status, said, errors = call(capsys, *command)
    assert status == 2 and "1 of 2 in out, 2 executed now" in said
    assert re.search(r"sums-a=3, cell \[\d\]: AssertionError", errors)
    assert {p.stem for p in out.glob("*.ipynb")} == {"sums-a=2", "sums-a=3.failed"}
    assert printed(out / "sums-a=2.ipynb") == "2\n"
    kept = (out / "sums-a=2.ipynb").stat().st_mtime_ns
    (tmp_path / "mended").touch()
    assert call(capsys, *command)[1].startswith("2 of 2 in out, 1 executed now\npages, ")
    assert (out / "sums-a=2.ipynb").stat().st_mtime_ns == kept and not (out / "sums-a=3.failed.ipynb").exists()
    status, _, errors = call(capsys, *command[:2], *command[5:])  # other parameters
    assert status == 2 and "out/sums-a=2.ipynb was executed with {'a': 2, 'c': '/a/x'}" in errors
    write_notebook(path, ["print(a * 2)"], parameters=inside)  # another notebook: all again
    monkeypatch.setattr(notebooks, "execute", lambda planned, *_, **__: ([], {}))
    assert "2 of 2 in out, 2 executed now" in call(capsys, *command)[1]
    named = notebooks.copies([str(path)], {}, {"a": "1,2", "c": "imagefolder:/a/photos,scenes"})
    assert [copy.name for copy in named[:2]] == ["sums-a=1-c=imagefolder_a_photos", "sums-a=1-c=scenes"]
