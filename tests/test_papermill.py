"""Notebooks through papermill: parameters checked first, whole copies only, and one line for whatever goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import PATIENCE, interrupt, interruptible, lives, until
from tiny_notebooks import write_notebook

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import load
from simmim_lite.studies import notebooks, parameters
from simmim_lite.studies.engine import train_missing
from simmim_lite.studies.grids import grid

KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
TRAIN = (
    "from simmim_lite.studies.engine import train_missing\n"
    "done = train_missing('data-scale', tier=tier, workers=1, runs_dir=runs_dir, precision='fp32')\n"
    "with open(f'{runs_dir}/trained', 'a') as file: file.write(f'{done.trained} ')"
)


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "04_data_scale.ipynb", ["print(tier)"])


def printed(path: Path) -> str:
    """What an executed notebook printed."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")


def test_parameters_are_the_literals_of_the_tagged_cell(tmp_path, notebook) -> None:
    assert parameters.parameters(notebook) == {
        "tier": "shipped",
        "data": "scenes",
        "seeds": 0,
        "workers": 0,
        "runs_dir": "runs",
    }
    typed = write_notebook(tmp_path / "typed.ipynb", [], parameters="# comment\nlr: float = -1e-3\nflag = True")
    assert parameters.parameters(typed) == {"lr": -1e-3, "flag": True}
    derived = write_notebook(tmp_path / "derived.ipynb", [], parameters="a = 1\nb = 2 * a")
    with pytest.raises(UserError, match="may hold only lines like"):
        parameters.parameters(derived)
    (tmp_path / "none.ipynb").write_text("no notebook")
    with pytest.raises(UserError, match="none.ipynb: not a readable notebook"):
        parameters.parameters(tmp_path / "none.ipynb")


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"seed": 1}, "unknown parameter of 04_data_scale.ipynb 'seed': did you mean 'seeds'? known are tier, data"),
        ({"seeds": "3"}, "seeds is '3': give a whole number from 0, or a list"),
        ({"seeds": 1.5}, "seeds is 1.5: give a whole number"),
        ({"seeds": True}, "seeds is True: give a whole number"),
        ({"seeds": ["a"]}, "seeds is ['a']: give a whole number"),
        ({"workers": -1}, "workers is -1: give a whole number from 0"),
        ({"data": 3}, "data is 3: give a source of images"),
        ({"runs_dir": ""}, "runs_dir is '': give a folder"),
        ({"tier": "quik"}, "unknown tier 'quik': did you mean 'quick'? known are shipped, smoke, quick, laptop"),
        ({"data": "scene"}, "unknown data 'scene': did you mean 'scenes'"),
        ({"data": "imagefolder:EMPTY"}, "EMPTY: no images in this folder"),
        ({"data": "imagefolder:nowhere"}, "nowhere: no such folder"),
        ({"data": "EMPTY"}, "it is a folder, say imagefolder:EMPTY"),
    ],
)
def test_wrong_parameters_get_one_line(params: dict, line: str, notebook, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    with pytest.raises(UserError, match=re.escape(line)) as error:
        notebooks.run([notebook], params, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists(), "something was started"


def test_texts_become_the_type_of_the_default(tmp_path) -> None:
    literals = "n = 1\nx = 0.5\nflag = False\nname = 'a'\nlist_ = [1]\nfree = None"
    path = write_notebook(tmp_path / "typed.ipynb", [], parameters=literals)
    texts = {"n": "1k", "x": "3e-4", "flag": "true", "name": "5", "list_": "[2, 3]", "free": "some text"}
    wanted = {"n": 1000, "x": 3e-4, "flag": True, "name": "5", "list_": [2, 3], "free": "some text"}
    assert parameters.from_text(path, texts) == wanted
    for name, text, line in (
        ("n", "many", "n is 'many': give a whole number"),
        ("flag", "perhaps", "flag is 'perhaps': give true or false"),
        ("list_", "3", "list_ is '3': give a list"),
        ("m", "3", "unknown parameter of typed.ipynb 'm'"),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            parameters.from_text(path, {name: text})


def test_an_unknown_notebook_gets_the_nearest_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(notebooks, "folder", lambda: write_notebook(tmp_path / "04_data_scale.ipynb", []).parent)
    with pytest.raises(UserError, match="unknown notebook '04_datascale': did you mean '04_data_scale'"):
        notebooks.find("04_datascale")


def test_one_dies_one_fails_and_the_others_finish(tmp_path, monkeypatch) -> None:
    """Whole copies appear, what failed leaves its line, a second call that works clears what the first one left."""
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "notebooks"
    say = "import os\nprint(tier, seeds, os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    good = write_notebook(here / "good.ipynb", [say])
    wrong = write_notebook(
        here / "wrong.ipynb", ["from simmim_lite.errors import UserError", "raise UserError('this')"]
    )
    crash = write_notebook(here / "crash.ipynb", ["1 / 0"])
    dead = write_notebook(here / "dead.ipynb", [KILL])
    same = {"tier": "smoke", "seeds": 2, "runs_dir": "kept"}
    planned = [notebooks.Copy.of(path, same) for path in (dead, wrong, crash, good)]
    executed, failures = notebooks.execute(planned, "out", workers=2)
    out = tmp_path / "out"
    assert executed == {"good": out / "good.ipynb"}
    assert printed(executed["good"]) == f"smoke 2 {tmp_path} {max(1, (os.cpu_count() or 1) // 2)}\n"
    assert str(tmp_path / "notebooks") not in executed["good"].read_text()
    again = "finished runs are kept in kept; run the same command to go on"
    assert failures["dead"] == f"the kernel of dead died (killed or out of memory): {again}"
    assert failures["wrong"] == f"wrong, cell [4]: this; as far as it came: {out / 'wrong.failed.ipynb'}"
    assert failures["crash"].startswith("crash, cell [3]: ZeroDivisionError: division by zero")
    assert {path.name for path in out.iterdir()} == {"good.ipynb", "wrong.failed.ipynb", "crash.failed.ipynb"}
    write_notebook(crash, ["1 / 1"])
    assert notebooks.run([crash], {}, out) == {"crash": out / "crash.ipynb"}
    assert not (out / "crash.failed.ipynb").exists()
    with pytest.raises(UserError, match="wrong, cell"):
        notebooks.run([wrong], {}, out)


def test_two_at_once_share_the_records_and_a_death_loses_none(tmp_path) -> None:
    """Together they train every run once; the kernel of one is killed then, and the next call trains nothing again."""
    runs = tmp_path / "runs"
    plan = {"tier": "smoke", "runs_dir": str(runs)}
    first = write_notebook(tmp_path / "first.ipynb", [TRAIN])
    mortal = write_notebook(tmp_path / "mortal.ipynb", [TRAIN, KILL])
    wanted = [notebooks.Copy.of(path, plan) for path in (first, mortal)]
    executed, failures = notebooks.execute(wanted, tmp_path / "out", workers=2)
    assert (list(executed), list(failures)) == (["first"], ["mortal"])
    trained = [int(number) for number in (runs / "trained").read_text().split()]
    assert len(trained) == 2
    assert sum(trained) == len(load(runs)) >= len(grid("data-scale", "smoke"))
    assert train_missing("data-scale", tier="smoke", workers=1, runs_dir=runs, precision="fp32").trained == 0


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_leaves_no_kernel_running(signal_, tmp_path) -> None:
    say = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(9999)"
    path = write_notebook(tmp_path / "sleeper.ipynb", [say])
    code = f"from simmim_lite.studies import notebooks\nnotebooks.run([{str(path)!r}], {{}}, 'out')"
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
        # joblib's resource tracker, hit by the same signal, may add a warning of its own behind it
        assert "interrupted: finished runs and notebooks are kept" in errors


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """`simmim-lite study data-scale --tier smoke …` with a notebook of our own: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path / "notebooks")

    def call(*words: str, cells=("print(tier, seeds, workers)",)) -> tuple[int, str, str]:
        write_notebook(tmp_path / "notebooks" / "04_data_scale.ipynb", list(cells), text="# How much data?")
        try:
            status = cli.main(["study", "data-scale", "--tier", "smoke", "--workers", "1", *words])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_study_ends_with_notebooks_and_linked_pages(study, tmp_path) -> None:
    status, out, errors = study("-p", "seeds", "1")
    assert status == 0, errors
    assert "executed notebooks: runs/notebooks" in out
    assert out.splitlines()[-1] == f"report: {Path('runs/report/index.html')}"
    assert printed(tmp_path / "runs/notebooks/04_data_scale.ipynb") == "smoke 1 1\n"
    report = tmp_path / "runs" / "report"
    page = (report / "index.html").read_text()
    assert "too small to say" in page and '<a href="04_data_scale.html">' in page
    assert "How much data?" in (report / "04_data_scale.html").read_text()
    # a second call trains nothing, and one line names the cell that fails; the report is there all the same
    status, out, errors = study(cells=["1 / 0"])
    assert status == 2
    assert "0 trained now" in out
    assert errors.splitlines()[-1].startswith("simmim-lite: 04_data_scale, cell [3]: ZeroDivisionError")
    assert "Traceback" not in errors
    assert '<a href="04_data_scale.html">' in (report / "index.html").read_text(), "the earlier page is still linked"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-p", "sed", "1"], "unknown parameter of 04_data_scale.ipynb 'sed': did you mean 'seeds'"),
        (["-p", "seeds", "many"], "seeds is 'many': give a whole number"),
        (["-p", "seeds", "many", "--dry-run"], "seeds is 'many': give a whole number"),
        (["-p", "sed", "1", "--commands"], "unknown parameter of 04_data_scale.ipynb 'sed'"),
        (["--tier", "hug"], "unknown tier 'hug'"),
        (["--data", "imagefolder:."], "no images in this folder"),
        (["-p", "seeds"], "argument -p/--parameter: expected 2 arguments"),
    ],
)
def test_the_command_refuses_before_it_starts(study, words: list[str], line: str, tmp_path) -> None:
    status, _, errors = study(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert line in errors
    assert not (tmp_path / "runs").exists()


def test_without_papermill_a_study_trains_all_the_same(study, monkeypatch) -> None:
    for name in ("papermill", "ipykernel", "nbconvert", "latex2mathml"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    status, out, errors = study()
    assert status == 0, errors
    assert "without notebooks: not installed: papermill and ipykernel; pip install papermill ipykernel" in out
    assert "trained now" in out
    status, out, _ = study("--tier", "shipped")
    assert status == 0 and "shipped records laptop-scenes" in out and "without notebooks: not installed" in out


def test_dry_run_starts_nothing(study, tmp_path) -> None:
    status, out, errors = study("--dry-run")
    assert status == 0, errors
    *lines, guess = out.splitlines()
    assert guess == "the times are a rough guess until a first study in runs has measured this machine"
    assert lines[0].split("  ")[0] == "model size"
    assert lines[-1].startswith("all ")
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert not (tmp_path / "runs").exists()


def test_a_batch_is_every_combination_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    """A copy each, named by what differs; a failure is named, the rest finishes; a second call executes what is new."""
    monkeypatch.chdir(tmp_path)
    inside = "a = 1\nb = 1\nc = ''"
    path = write_notebook(tmp_path / "sums.ipynb", ["print(a + b)\nassert a + b != 12"], parameters=inside)
    command = ["papermill", str(path), "-p", "c", "x", "--each", "a", "2,3", "--each", "b", "8,9", "--out", "out"]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert "3 of 4 in out, 4 executed now" in said.out
    assert re.search(r"sums-a=3-b=9, cell \[\d\]: AssertionError", said.err)
    names = {"sums-a=2-b=8", "sums-a=2-b=9", "sums-a=3-b=8"}
    assert {p.stem for p in Path("out").iterdir()} == names | {"sums-a=3-b=9.failed"}
    assert printed(tmp_path / "out" / "sums-a=2-b=9.ipynb") == "11\n"
    kept = {name: (tmp_path / "out" / f"{name}.ipynb").stat().st_mtime_ns for name in names}
    assert cli.main(command) == 2
    assert "3 of 4 in out, 1 executed now" in capsys.readouterr().out
    assert {name: (tmp_path / "out" / f"{name}.ipynb").stat().st_mtime_ns for name in names} == kept
    write_notebook(path, ["print(a * b)"], parameters=inside)
    assert cli.main(command) == 0
    assert "4 of 4 in out, 4 executed now" in capsys.readouterr().out
    assert printed(tmp_path / "out" / "sums-a=2-b=9.ipynb") == "18\n"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("/a/photos,/b/photos", ["a_photos", "b_photos"]),
        ("imagefolder:/a/x/photos/,packed:/b/x/photos", ["a_x_photos", "b_x_photos"]),
        ("/a/photos,/b/pictures", ["photos", "pictures"]),
        ("scenes,imagefolder:photos", ["scenes", "imagefolder_photos"]),
        ("/a/photos,a/photos", ["a_photos+", "a_photos+"]),
        ("a b,a_b", ["a_b+", "a_b+"]),
        (f"{'x' * 60}1,{'x' * 60}2", [f"{'x' * 39}1", f"{'x' * 39}2"]),
        (f"/a/{'x' * 60},/b/{'x' * 60}", [f"{'x' * 40}+", f"{'x' * 40}+"]),
    ],
)
def test_values_are_told_apart_in_names(tmp_path, values, names) -> None:
    path = write_notebook(tmp_path / "sums.ipynb", [], parameters="c = ''")
    found = [copy.name for copy in notebooks.copies([str(path)], {}, {"c": values})]
    assert len(set(found)) == len(found)
    for name, wanted in zip(found, names, strict=True):
        assert name.startswith(f"sums-c={wanted}") and (wanted.endswith("+") or name == f"sums-c={wanted}")


def test_a_copy_of_other_parameters_or_of_another_notebook_is_not_replaced(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [write_notebook(tmp_path / folder / "sums.ipynb", ["print(c)"], parameters="c = ''") for folder in "ab"]
    assert [copy.name for copy in notebooks.copies(list(map(str, paths)), {}, {})] == ["a_sums", "b_sums"]
    with pytest.raises(UserError, match="two notebooks would be executed as sums: give one of them another name"):
        notebooks.run(paths, {}, "out")
    command = ["papermill", str(paths[0]), "--out", "out", "--each", "c"]
    assert cli.main([*command, "/a/photos"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "/b/photos"]) == 2
    line = "out/sums-c=photos.ipynb was executed with c=/a/photos: give another --out, or --again to replace it"
    assert line in capsys.readouterr().err
    assert cli.main([*command, "/b/photos", "--again"]) == 0
    assert printed(tmp_path / "out" / "sums-c=photos.ipynb") == "/b/photos\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--each", "a", "2,x"], "a is 'x': give a whole number"),
        (["--each", "d", "2"], "unknown parameter"),
        (["--each", "a", "2,2"], "two copies would be called sums-a=2"),
        (["--each", "a", "2", "-p", "a", "3"], "parameter 'a' is given by -p and by --each"),
        (["--engine", "rey"], "unknown engine 'rey'"),
        (["--address", "auto"], "address is about a Ray cluster"),
        (["--workers", "0"], "workers is 0"),
    ],
)
def test_a_wrong_batch_starts_nothing(tmp_path, options, line, capsys) -> None:
    path = write_notebook(tmp_path / "sums.ipynb", ["1 / 0"], parameters="a = 1")
    assert cli.main(["papermill", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
