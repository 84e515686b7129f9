"""Runs notebooks through papermill: parameters checked before anything starts, several at a time, whole copies only."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..data.sources import kind_of
from ..errors import UserError, check_writable, first_line, stopped, unknown
from ..files import discard, held, locked, write_atomic
from ..processes import again, cores, each, executed_unseen, in_notebook
from ..training.run import check_runs_dir
from ..training.specs import Count, Positive, Text, Whole, value
from . import report
from .cluster import joined
from .grids import images_of, sources
from .tiers import NAMED, StudyOptions

_TEMPORARY = "simmim-lite-"  # folders of copies in the making
#: Parameters of the course's notebooks, by name: how a study runs, and those of single notebooks.
_OPTIONS = {field.name: field.type for field in dataclasses.fields(StudyOptions)}
PARAMETERS = _OPTIONS | {
    "seed": Whole, "gpus": Count, "core_minutes": Positive, "effect": Positive,
    "foreign": Annotated[str, Text(r"\S(.*\S)?", "a source, a file of weights, hf://OWNER/REPO/PATH or a run's key")],
    "images_per_second": Annotated[str, Text("|.+=.+", "SIZE=NUMBER")],
    "assume": Annotated[str, Text(".*@.*", "SHARE@TFLOPS, as in 0.4@989")],
}  # fmt: skip


#: Where the reader's copies lie, and in it the same as they were copied.
MINE, _COPIED = "my_notebooks", ".as_copied"


def folder() -> Path:
    """Where the notebooks lie: `notebooks/` beside the package in a checkout, else in the working directory."""
    places = (Path(__file__).resolve().parents[2] / "notebooks", Path.cwd() / "notebooks")
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise UserError(f"the notebooks are not part of the installed package: copy a checkout's to {places[1]}")


def own_copies() -> Path:
    """`my_notebooks/` beside `notebooks/`: the reader's own, which git does not know and no `git pull` meets.

    What is not there yet is copied; a copy that was never saved follows its original; nothing else is touched."""
    mine = folder().parent / MINE
    for original in (*folder().glob("*.ipynb"), *folder().glob("*.md")):
        copy, before = mine / original.name, mine / _COPIED / original.name
        if not copy.exists() or (before.exists() and copy.read_bytes() == before.read_bytes()):
            for path in (before, copy):
                write_atomic(path, original.read_bytes())
    return mine


def open_lab(options: Sequence[str]) -> None:
    """`simmim-lite lab`: JupyterLab on the reader's copies; its file browser shows the checkout, runs/ and all."""
    from jupyterlab.labapp import LabApp

    mine = own_copies()
    first = f"/lab/workspaces/course/tree/{mine.name}/00_start.ipynb"
    LabApp.launch_instance([f"--ServerApp.root_dir={mine.parent}", f"--LabApp.default_url={first}", *options])


def find(name: str) -> Path:
    """The file of a notebook by its path or its name (`04_data_scale`); `UserError` with the nearest name there is."""
    path = Path(name) if name.endswith(".ipynb") else folder() / f"{name}.ipynb"
    if not path.is_file() and not name.endswith(".ipynb"):
        raise unknown("notebook", name, sorted(p.stem for p in path.parent.glob("*.ipynb")))
    return path


@dataclass(frozen=True)
class Copy:
    """An executed copy to be: of which notebook, with which checked parameters, under which name."""

    path: Path
    params: Mapping[str, object]
    name: str

    @classmethod
    def of(cls, notebook: str | Path, params: Mapping[str, object], label: str = "") -> "Copy":
        """Of a notebook by its name in `folder()` or its path; parameters are checked."""
        path = find(str(notebook))
        return cls(path, check_parameters(path, params), path.stem + label)


def raise_first(failures: Mapping[str, str]) -> None:
    """`UserError` with the first failure, where there is one, and how many more there are."""
    if failures:
        more = f" (and {len(failures) - 1} more, see above)" if len(failures) > 1 else ""
        raise UserError(next(iter(failures.values())) + more)


def execute(planned: Sequence[Copy], out_dir: str | Path, **options: object) -> tuple[dict[str, Path], dict[str, str]]:
    """Execute notebooks; the copies OUT_DIR/NAME.ipynb, and the failures, by name.

    They run in the working directory, from which relative paths among the parameters count. options: of `StudyOptions`,
    workers (notebooks at a time; by default one a core), engine, address and device. A copy appears only when its
    notebook ran to the end. One that failed leaves what there is as NAME.failed.ipynb, and a line that names notebook,
    cell and cause; the others go on. engine `ray`: each is a task of a cluster, executed again where its node is lost,
    and all nodes see OUT_DIR."""
    if double := [name for name, count in Counter(copy.name for copy in planned).items() if count > 1]:
        raise UserError(f"two copies would be called {double[0]}: give other names or values")
    how, out_dir, there = StudyOptions(**options), Path(out_dir).absolute(), cores()
    at_once = max(1, min(len(planned), how.workers or there))
    print(f"{len(planned)} notebook{'s' * (len(planned) != 1)} to run, {at_once} at a time", file=sys.stderr)
    work, found = functools.partial(_execute_one, out_dir=out_dir, cwd=os.getcwd()), {}
    for lock in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*/lock"):
        if held(lock) is False:  # its process was killed
            shutil.rmtree(lock.parent, ignore_errors=True)
    try:
        with contextlib.ExitStack() as stack:
            if how.engine == "ray":
                cluster = stack.enter_context(joined(out_dir, dataclasses.replace(how, workers=at_once)))
                calls = cluster.each({copy.name: (work, copy) for copy in planned})
                results = ((name, f"{name}: {done}") if isinstance(done, UserError) else done for name, done in calls)
            else:
                results = each(work, planned, at_once, max(1, there // at_once))
            for name, error in results:
                print(error or f"{name} is finished", file=sys.stderr, flush=True)
                found[name] = error
    except KeyboardInterrupt as by:
        raise stopped(by, f"finished runs and notebooks are kept; {again()}") from None
    done = [copy.name for copy in planned if found[copy.name] == ""]
    return {name: out_dir / f"{name}.ipynb" for name in done}, {name: e for name, e in found.items() if e}


def _execute_one(wanted: Copy, out_dir: Path, cwd: str) -> tuple[str, str]:
    """In a worker: execute one notebook; its name, and one line on what went wrong or nothing."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    path, name, error = Path(cwd) / wanted.path, wanted.name, ""
    # a copy is looked at when it is whole: saving it after each cell took a second
    how = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 120, "request_save_on_cell_execute": False}
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as place, locked(Path(place) / "lock", name):
        copy = Path(place) / f"{name}.ipynb"
        with (Path(place) / "log").open("wb") as log:  # what kernel and papermill say of themselves
            os.dup2(log.fileno(), 2)
        try:
            papermill.execute_notebook(str(path), str(copy), dict(wanted.params), cwd=cwd, **how)
        except DeadKernelError:
            discard(copy)  # it says of every cell that it was completed
            error = f"the kernel of {name} died (killed or out of memory): finished runs are kept; run it again"
        except PapermillExecutionError as problem:
            cause = (problem.evalue or "no message").strip().split("\n")[0]
            cause = cause if problem.ename == "UserError" else f"{problem.ename}: {cause}"
            error = f"{name}, cell [{problem.exec_count}]: {cause}"
        except Exception as problem:  # a kernel that does not start, a notebook that is none: errors of many libraries
            error = f"{name}: {first_line(problem)}"
        failed = out_dir / f"{name}.failed.ipynb"
        if copy.exists():
            write_atomic(failed if error else out_dir / f"{name}.ipynb", _cleaned(copy, source_digest(path)))
        if error:
            return name, error + (f"; as far as it came: {failed}" if copy.exists() else "")
        discard(failed)
    return name, ""


def _cleaned(copy: Path, source: str) -> bytes:
    """An executed notebook without widgets, which need a kernel, and without the paths that papermill notes in it; with
    the digest of its source."""
    content = json.loads(copy.read_text(encoding="utf-8"))
    content["metadata"].pop("widgets", None)
    content["metadata"]["simmim-lite"] = {"source": source}
    for key in ("input_path", "output_path", "environment_variables"):
        content["metadata"].get("papermill", {}).pop(key, None)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def source_digest(path: Path) -> str:
    """12 hexadecimal digits of a notebook's cells: what an executed copy is a copy of."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in content["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def executed_as(wanted: Copy, out_dir: str | Path) -> tuple[str, dict] | None:
    """Of which source and with which parameters the file in a copy's place was executed; None where there is none."""
    try:
        noted = json.loads((Path(out_dir) / f"{wanted.name}.ipynb").read_text(encoding="utf-8"))["metadata"]
        return noted["simmim-lite"]["source"], dict(noted["papermill"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def copies(names: Sequence[str], fixed: Mapping[str, str], each: Mapping[str, str]) -> list[Copy]:
    """The copies that a batch leaves, checked: NAME-PARAMETER=VALUE-….ipynb, a name for every combination.

    fixed: parameters by name, as text; each: the same, with values between commas. `UserError` for a name twice."""
    if twice := sorted(fixed.keys() & each.keys()):
        raise UserError(f"parameter '{twice[0]}' is given by -p and by --each: give it once")
    found = []
    for name, chosen in itertools.product(names, itertools.product(*(text.split(",") for text in each.values()))):
        texts = dict(zip(each, chosen, strict=True))
        label = "".join(f"-{key}={re.sub(r'[^A-Za-z0-9.+]+', '_', text)[-40:]}" for key, text in texts.items())
        found.append(Copy.of(name, {**fixed, **texts}, label))
    return found


def show_batch(notebook: list[str], *, parameter: list, each: list, out: str, **where: object) -> None:
    """`simmim-lite papermill`: executed copies in a folder, and a page of each in its `pages/`."""
    StudyOptions(**where)  # checks them
    check_writable(out)
    planned, missing = copies(notebook, dict(parameter), dict(each)), []
    for copy in planned:
        there, params = executed_as(copy, out), json.loads(json.dumps(dict(copy.params)))
        if there and there[1] != params:
            raise UserError(f"{out}/{copy.name}.ipynb was executed with {there[1]}: delete it, or give another --out")
        missing += [copy] if there != (source_digest(copy.path), params) else []
    failures = execute(missing, out, **where)[1] if missing else {}
    print(f"{len(planned) - len(failures)} of {len(planned)} in {out}, {len(missing)} executed now")
    print(f"pages, readable without a network: {report.write(out, Path(out) / 'pages')}")
    raise_first(failures)


# --- parameters -----------------------------------------------------------------------------------------------------


def parameters(path: str | Path) -> dict[str, object]:
    """Names and default values of the cell tagged `parameters`, which holds literals only; {} without such a cell."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", ())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable notebook ({error or type(error).__name__})") from error
    try:
        return _assigned("".join(tagged[0]["source"])) if tagged else {}
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its parameters cell may hold only lines like `name = literal`") from error


def _assigned(source: str) -> dict[str, object]:
    """Names and values of lines `name = literal`."""
    lines = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id: ast.literal_eval(line.value) for line in lines for target in line.targets}


def check_parameters(path: str | Path, given: Mapping[str, object]) -> dict[str, object]:
    """The parameters of a notebook as it takes them, if it has each, and each fits its name and its default value;
    texts are read as the command line has them (`-p seeds 3`).

    `UserError`, one line, for an unknown name (with the nearest known), a wrong value, and a source of images that does
    not exist. Nothing is started or downloaded."""
    known, found = parameters(path), {}
    for name, one in given.items():
        if name not in known:
            raise unknown(f"parameter of {Path(path).name}", name, known)
        hint = PARAMETERS.get(name, Any if known[name] is None else type(known[name]))
        made = value(name, hint, one, text=isinstance(one, str))
        found[name] = list(made) if isinstance(made, tuple) else made  # as papermill has them
    _check_places({"tier": known.get("tier"), **found})
    if "tier" in known:
        how = StudyOptions(**{name: one for name, one in (known | found).items() if name in _OPTIONS})
        for name, study in NAMED.items():
            if study.notebook == Path(path).stem:
                how.check_study(name)
    return found


def check_notebook(names: MutableMapping[str, object], *, opened: bool = True) -> dict[str, object]:
    """Check the parameters among the names of a running notebook (its `globals()`), and make them plain; those that are
    options of a study, by name.

    papermill by hand asks nobody: a name that no cell knows, a text for a number, a list as text. `UserError`, one
    line. To be called in the first cell after the parameters. opened: whether the notebook opens its source."""
    cells = [str(cell) for cell in names.get("In", ())]
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith("# Parameters\n"):  # what papermill puts behind the tagged cell
            known = _assigned(before)
            for name in _assigned(cell).keys() - known.keys():
                raise unknown("parameter", name, known)
    for name in PARAMETERS.keys() & names.keys():
        names[name] = value(name, PARAMETERS[name], names[name], text=isinstance(names[name], str))
    if in_notebook() and not executed_unseen():
        with contextlib.suppress(UserError):  # installed without the notebooks
            _at_home(names)
    _check_places(names, opened)
    options = {name: names[name] for name in _OPTIONS & names.keys()}
    StudyOptions(**{"tier": "quick"} | options)  # what they say of each other
    return options


def _at_home(names: MutableMapping[str, object]) -> None:
    """Wherever JupyterLab was started, relative paths count from the checkout, as those of commands do; said is where
    runs and their report are, and what a reader is to know of the copy they work on."""
    checkout, notebook = folder().parent, Path(os.environ.get("JPY_SESSION_NAME", "."))  # as JupyterLab sets it
    original, before = folder() / notebook.name, notebook.parent / _COPIED / notebook.name
    if Path.cwd().is_relative_to(checkout):
        os.chdir(checkout)
    if "runs_dir" in names:
        names["runs_dir"] = str(checkout / os.path.expanduser(names["runs_dir"]))
        print(f"runs are kept in {names['runs_dir']}")
        pages = sorted(Path(names["runs_dir"], "report").glob("*.html"), key=lambda page: page.stem != "index")
        if pages and pages[0].is_relative_to(checkout):  # what JupyterLab shows
            from IPython.display import Markdown, display

            links = [f"[{page.stem}]({os.path.relpath(page, notebook.parent)})" for page in pages]
            display(Markdown(f"Report of your last study: {', '.join(links)}; in a browser `{pages[0]}`"))
    if notebook.parent == folder():
        print(f"this is the original, which git pull changes: simmim-lite lab opens a copy of your own, in {MINE}/")
    elif before.exists() and original.exists() and before.read_bytes() != original.read_bytes():
        print(f"{notebook.stem} has changed since your copy was made: rename yours, and start again for the new one")


def _check_places(names: Mapping[str, object], opened: bool = True) -> None:
    """`UserError` for folders and sources among parameters that are not there, or cannot be written to."""
    for name in ("coco", "ade20k"):
        if names.get(name) and not Path(names[name]).is_dir():
            raise UserError(f"{name} is '{names[name]}': no such folder")
    if opened and "runs_dir" in names and names.get("tier") != "shipped":
        check_runs_dir(names["runs_dir"], "choose another runs_dir")
    if names.get("data"):  # last, for it takes longest
        _ = images_of(names["data"]) if opened else [kind_of(one) for one in sources(names["data"]) if one]
