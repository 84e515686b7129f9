"""Runs notebooks through papermill: parameters checked before anything starts, several at a time, whole copies only."""

import ast
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import Interrupted, UserError, unknown
from ..processes import end_with
from ..training.run import write_atomic
from . import full_size
from .collecting import NOTEBOOK_TIERS

#: The notebook of each study.
NOTEBOOKS = {
    "data-scale": "04_data_scale",
    "model-size": "05_model_size",
    "schedule": "06_schedule",
    "proxy": "07_proxy_loss",
    "transfer": "08_transfer",
}
HOW_TO_GET = "pip install papermill ipykernel"
_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list",
    tuple: "a tuple",
    dict: "a dictionary",
}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def folder() -> Path:
    """Where the notebooks lie: `notebooks/` beside the package in a checkout, else in the working directory."""
    places = (Path(__file__).resolve().parents[2] / "notebooks", Path.cwd() / "notebooks")
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        "the notebooks are not part of the installed package: run this in a checkout of simmim-lite, or copy its "
        f"folder notebooks to {places[1]}"
    )


def find(name: str) -> Path:
    """The file of a notebook by its name (`04_data_scale`); `UserError` with the nearest name when there is none."""
    place = folder()
    path = place / f"{name}.ipynb"
    if not path.is_file():
        raise unknown("notebook", name, sorted(p.stem for p in place.glob("*.ipynb")))
    return path


def parameters(path: str | Path) -> dict[str, object]:
    """Names and default values of the cell tagged `parameters`, which holds literals only; {} without such a cell."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable notebook ({error or type(error).__name__})") from error
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", ())]
    found: dict[str, object] = {}
    for cell in tagged[:1]:
        try:
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.AnnAssign):
                    node = ast.Assign([node.target], node.value)
                if isinstance(node, ast.Assign):
                    found |= {target.id: ast.literal_eval(node.value) for target in node.targets}
        except (SyntaxError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: its parameters cell may hold only lines like `name = literal`") from error
    return found


def check_parameters(path: str | Path, params: Mapping[str, object]) -> dict[str, object]:
    """The parameters of a notebook if it has each, and each is of the type of its default value.

    A whole number passes for a float, never a bool for a number; a default of None takes anything. `UserError`, one
    line, for an unknown name (with the nearest known), a wrong type, a number below 0, a tier or a source of images
    that does not exist, and a folder without images. Nothing is started or downloaded.
    """
    known = parameters(path)
    for name, value in params.items():
        if name not in known:
            raise _unknown_parameter(path, name, known)
        default = known[name]
        whole = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if default is not None and type(value) is not type(default) and not whole:
            kind = type(value).__name__
            raise UserError(f"{name} is {value!r} ({kind}): give {_WANTED.get(type(default), type(default).__name__)}")
        if name in ("seeds", "workers") and isinstance(value, int) and value < 0:
            raise UserError(f"{name} is {value}: give a whole number from 0 (0 means the default)")
    if "tier" in params and params["tier"] not in NOTEBOOK_TIERS:
        raise unknown("tier", params["tier"], NOTEBOOK_TIERS)
    if "data" in params:
        for source in filter(None, full_size.sources(str(params["data"]))):
            check_data(source)
    return dict(params)


def from_text(path: str | Path, texts: Mapping[str, str]) -> dict[str, object]:
    """Parameters as the command line has them (`-p seeds 3`), each made the type of its default, then checked."""
    known, values = parameters(path), {}
    for name, text in texts.items():
        if name not in known:
            raise _unknown_parameter(path, name, known)
        values[name] = _converted(name, text, known[name])
    return check_parameters(path, values)


def check_data(spec: str) -> None:
    """`UserError` for a source that does not exist and for a folder without images; decodes and downloads nothing."""
    from ..data.folders import list_images
    from ..data.inaturalist import read_parts
    from ..data.packs import open_pack
    from ..data.sources import KINDS

    kind, _, name = spec.partition(":")
    if spec == "scenes" or (kind in ("torchvision", "hf") and name):
        return
    if kind == "imagefolder" and name:
        list_images(Path(name).expanduser().absolute())
    elif kind == "inaturalist" and name:
        read_parts(Path(name).expanduser().absolute())
    elif kind == "packed" and name:
        open_pack(name)
    elif os.path.isdir(spec):
        raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
    else:
        raise unknown("data", spec, KINDS)


def run(
    names: Iterable[str | Path], params: Mapping[str, object], out_dir: str | Path, *, workers: int | None = None
) -> dict[str, Path]:
    """Execute notebooks (names in `folder()`, or paths) with the same parameters; the copies OUT_DIR/NAME.ipynb.

    As `execute`; `UserError` with the first failure once all others are finished.
    """
    paths = [Path(name) if str(name).endswith(".ipynb") else find(str(name)) for name in names]
    executed, failures = execute({path: check_parameters(path, params) for path in paths}, out_dir, workers=workers)
    if failures:
        more = f" (and {len(failures) - 1} more, see above)" if len(failures) > 1 else ""
        raise UserError(next(iter(failures.values())) + more)
    return executed


def execute(
    planned: Mapping[Path, Mapping[str, object]], out_dir: str | Path, *, workers: int | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Execute notebooks, each with its checked parameters; the copies OUT_DIR/NAME.ipynb, and the failures, by name.

    They run in the working directory, from which relative paths among the parameters count. workers: notebooks at a
    time; by default one a core. A copy appears only when its notebook ran to the end. One that failed leaves what there
    is as NAME.failed.ipynb, and a line that names notebook, cell and cause; the others go on. `UserError` where
    papermill is not installed.
    """
    if missing := not_installed():
        raise UserError(f"notebooks need {missing}: {HOW_TO_GET}")
    out_dir, cores = Path(out_dir).absolute(), os.cpu_count() or 1
    at_once = max(1, min(len(planned), workers or cores))
    print(f"{len(planned)} notebook{'s' * (len(planned) != 1)} to run, {at_once} at a time", file=sys.stderr)
    executed, failures = {}, {}
    for name, error in _pool(planned, out_dir, at_once, max(1, cores // at_once)):
        print(error or f"{name} is finished", file=sys.stderr, flush=True)
        if error:
            failures[name] = error
        else:
            executed[name] = out_dir / f"{name}.ipynb"
    return {path.stem: executed[path.stem] for path in planned if path.stem in executed}, failures


def not_installed() -> str:
    """What is missing of the packages that run notebooks; empty when all are there."""
    import importlib.util

    missing = [name for name in ("papermill", "ipykernel") if importlib.util.find_spec(name) is None]
    return " and ".join(missing)


def _pool(planned: Mapping[Path, Mapping], out_dir: Path, at_once: int, threads: int) -> Iterator[tuple[str, str]]:
    """(name, error) of every notebook as it ends. Each runs in a process of its own, which Ctrl-C ends."""
    from concurrent.futures import as_completed

    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    pool = ProcessPoolExecutor(max_workers=at_once, env={name: str(threads) for name in names})
    try:
        calls = {
            pool.submit(_execute_one, path.absolute(), dict(params), out_dir, os.getcwd(), os.getpid()): path.stem
            for path, params in planned.items()
        }
        for call in as_completed(calls):
            try:
                yield call.result()
            except BrokenProcessPool:
                line = f"the process of {calls[call]} was killed: finished runs are kept; run the same command to go on"
                yield calls[call], line
    except BaseException as error:
        pool.shutdown(wait=False, kill_workers=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "interrupted: finished runs and notebooks are kept; run the same command to go on"
            ) from None
        raise
    pool.shutdown()


def _execute_one(path: Path, params: dict, out_dir: Path, cwd: str, parent: int) -> tuple[str, str]:
    """In a worker: execute one notebook; its name, and one line on what went wrong or nothing."""
    end_with(parent)  # a killed study leaves no notebook running: kernels end with their worker
    name = path.stem
    whole, failed = out_dir / f"{name}.ipynb", out_dir / f"{name}.failed.ipynb"
    with tempfile.TemporaryDirectory(prefix="simmim-lite-") as folder:
        copy, log = Path(folder) / f"{name}.ipynb", Path(folder) / "log"
        try:
            with log.open("wb") as file:  # what kernel and papermill say of themselves; outputs are in the copy
                os.dup2(file.fileno(), 2)
            error = _papermill(path, copy, params, cwd)
            if not error:
                write_atomic(whole, _cleaned(copy))
                failed.unlink(missing_ok=True)
            elif copy.exists():
                write_atomic(failed, _cleaned(copy))
                error += f"; as far as it came: {failed}"
        except UserError as problem:
            error = f"{name}: {problem}"
    return name, error


def _papermill(path: Path, copy: Path, params: dict, cwd: str) -> str:
    """Execute into `copy`; one line on the failure, or nothing."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name = path.stem
    options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 120}
    options["request_save_on_cell_execute"] = (
        False  # a copy is looked at when it is whole: saving it 80 times took a second
    )
    try:
        papermill.execute_notebook(str(path), str(copy), params, cwd=cwd, **options)
    except DeadKernelError:
        copy.unlink(missing_ok=True)  # it says of every cell that it was completed
        runs = params.get("runs_dir") or parameters(path).get("runs_dir", "runs")
        return (
            f"the kernel of {name} died (killed or out of memory): finished runs are kept in {runs}; "
            "run the same command to go on"
        )
    except PapermillExecutionError as error:
        cause = (error.evalue or "").strip().splitlines() or ["no message"]
        what = cause[0] if error.ename == "UserError" else f"{error.ename}: {cause[0]}"
        return f"{name}, cell [{error.exec_count}]: {what}"
    except Exception as error:  # a kernel that does not start, a notebook that is none: errors of many libraries
        cause = str(error).strip().splitlines() or [""]
        return f"{name}: {type(error).__name__}: {cause[0]}"
    return ""


def _cleaned(copy: Path) -> bytes:
    """An executed notebook without widgets, which need a kernel, and without the paths that papermill notes in it."""
    content = json.loads(copy.read_text(encoding="utf-8"))
    content["metadata"].pop("widgets", None)
    noted = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        noted.pop(key, None)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _unknown_parameter(path: str | Path, name: str, known: Mapping[str, object]) -> UserError:
    if not known:
        return UserError(f"unknown parameter '{name}': {Path(path).name} has no parameters")
    return unknown(f"parameter of {Path(path).name}", name, known)


def _converted(name: str, text: str, default: object) -> object:
    """A text as the type of a default value; `UserError` naming value and wanted type."""
    try:
        if isinstance(default, str):
            return text
        if isinstance(default, bool):
            return _TRUTH[text.lower()]
        if isinstance(default, (int, float)):
            return type(default)(text)
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    except (ValueError, KeyError, SyntaxError, TypeError):
        if default is None:
            return text
        wanted = _WANTED.get(type(default), type(default).__name__)
        raise UserError(f"{name} is '{text}': give {wanted}") from None
