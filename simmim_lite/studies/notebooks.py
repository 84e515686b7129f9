"""Runs notebooks through papermill: parameters checked before anything starts, several at a time, whole copies only."""

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Interrupted, UserError, check_writable, unknown
from ..processes import deaf_to_interrupts, end_with
from ..training.run import write_atomic
from .parameters import check_engine, check_parameters, from_text, parameters

#: The notebook of each study.
NOTEBOOKS = {
    "data-scale": "04_data_scale",
    "model-size": "05_model_size",
    "schedule": "06_schedule",
    "proxy": "07_proxy_loss",
    "transfer": "08_transfer",
}
HOW_TO_GET = "pip install papermill ipykernel"


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
    """The file of a notebook by its path or its name (`04_data_scale`); `UserError` with the nearest name there is."""
    if name.endswith(".ipynb"):
        return Path(name)
    place = folder()
    path = place / f"{name}.ipynb"
    if not path.is_file():
        raise unknown("notebook", name, sorted(p.stem for p in place.glob("*.ipynb")))
    return path


def run(
    names: Iterable[str | Path], params: Mapping[str, object], out_dir: str | Path, *, workers: int | None = None
) -> dict[str, Path]:
    """Execute notebooks (names in `folder()`, or paths) with the same parameters; the copies OUT_DIR/NAME.ipynb.

    As `execute`; `UserError` with the first failure once all others are finished.
    """
    copies = [Copy.of(name, params) for name in names]
    executed, failures = execute(copies, out_dir, workers=workers)
    raise_first(failures)
    return executed


def raise_first(failures: Mapping[str, str]) -> None:
    """`UserError` with the first failure, where there is one, and how many more there are."""
    if failures:
        more = f" (and {len(failures) - 1} more, see above)" if len(failures) > 1 else ""
        raise UserError(next(iter(failures.values())) + more)


@dataclass(frozen=True)
class Copy:
    """An executed copy to be: of which notebook, with which checked parameters, under which name."""

    path: Path
    params: Mapping[str, object]
    name: str

    @classmethod
    def of(cls, notebook: str | Path, params: Mapping[str, object]) -> "Copy":
        """Of a notebook by its name in `folder()` or its path; parameters are checked."""
        path = find(str(notebook))
        return cls(path, check_parameters(path, params), path.stem)


def execute(
    planned: Sequence[Copy],
    out_dir: str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    device: str = "auto",
) -> tuple[dict[str, Path], dict[str, str]]:
    """Execute notebooks; the copies OUT_DIR/NAME.ipynb, and the failures, by name.

    They run in the working directory, from which relative paths among the parameters count. workers: notebooks at a
    time; by default one a core. A copy appears only when its notebook ran to the end. One that failed leaves what there
    is as NAME.failed.ipynb, and a line that names notebook, cell and cause; the others go on. `UserError` where
    papermill is not installed. engine `ray`: each is a task of a cluster, executed again where its node is lost, and
    all nodes see OUT_DIR.
    """
    if missing := not_installed():
        raise UserError(f"notebooks need {missing}: {HOW_TO_GET}")
    names = [copy.name for copy in planned]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two notebooks would be executed as {double}: give one of them another name")
    out_dir, cores = Path(out_dir).absolute(), os.cpu_count() or 1
    at_once = max(1, min(len(planned), workers or cores))
    print(f"{len(planned)} notebook{'s' * (len(planned) != 1)} to run, {at_once} at a time", file=sys.stderr)
    executed, failures = {}, {}
    if engine == "ray":
        results = _tasks(planned, out_dir, at_once, address, device)
    else:
        results = _pool(planned, out_dir, at_once, max(1, cores // at_once))
    for name, error in results:
        print(error or f"{name} is finished", file=sys.stderr, flush=True)
        if error:
            failures[name] = error
        else:
            executed[name] = out_dir / f"{name}.ipynb"
    return {copy.name: executed[copy.name] for copy in planned if copy.name in executed}, failures


def not_installed() -> str:
    """What is missing of the packages that run notebooks; empty when all are there."""
    import importlib.util

    missing = [name for name in ("papermill", "ipykernel") if importlib.util.find_spec(name) is None]
    return " and ".join(missing)


def _tasks(
    planned: Sequence[Copy], out_dir: Path, at_once: int, address: str | None, device: str
) -> Iterator[tuple[str, str]]:
    """As `_pool`, on a Ray cluster."""
    from .cluster import joined

    with joined(out_dir, address=address, device=device, workers=at_once, gpus_per_run=None) as cluster:
        calls = {copy.name: (_execute_one, copy, out_dir, os.getcwd(), 0) for copy in planned}
        for name, done in cluster.each(calls):
            yield (name, f"{name}: {done}") if isinstance(done, UserError) else done


def _pool(planned: Sequence[Copy], out_dir: Path, at_once: int, threads: int) -> Iterator[tuple[str, str]]:
    """(name, error) of every notebook as it ends. Each runs in a process of its own, which Ctrl-C ends."""
    from concurrent.futures import as_completed

    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    pool = ProcessPoolExecutor(max_workers=at_once, env=dict.fromkeys(names, str(threads)))
    again = "run the same command to go on"
    try:
        with deaf_to_interrupts():
            calls = {pool.submit(_execute_one, copy, out_dir, os.getcwd(), os.getpid()): copy.name for copy in planned}
        for call in as_completed(calls):
            try:
                yield call.result()
            except BrokenProcessPool:
                yield calls[call], f"the process of {calls[call]} was killed: finished runs are kept; {again}"
    except BaseException as error:
        pool.shutdown(wait=False, kill_workers=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted: finished runs and notebooks are kept; {again}") from None
        raise
    pool.shutdown()


def _execute_one(wanted: Copy, out_dir: Path, cwd: str, parent: int) -> tuple[str, str]:
    """In a worker: execute one notebook; its name, and one line on what went wrong or nothing. parent: 0 = a task."""
    if parent:
        end_with(parent)  # a killed study leaves no notebook running: kernels end with their worker
    path, name = Path(cwd) / wanted.path, wanted.name
    whole, failed = out_dir / f"{name}.ipynb", out_dir / f"{name}.failed.ipynb"
    with tempfile.TemporaryDirectory(prefix="simmim-lite-") as folder:
        copy, log = Path(folder) / f"{name}.ipynb", Path(folder) / "log"
        try:
            with log.open("wb") as file:  # what kernel and papermill say of themselves; outputs are in the copy
                os.dup2(file.fileno(), 2)
            error = _papermill(path, name, copy, dict(wanted.params), cwd)
            if not error:
                write_atomic(whole, _cleaned(copy, source_digest(path)))
                failed.unlink(missing_ok=True)
            elif copy.exists():
                write_atomic(failed, _cleaned(copy, source_digest(path)))
                error += f"; as far as it came: {failed}"
        except UserError as problem:
            error = f"{name}: {problem}"
    return name, error


def _papermill(path: Path, name: str, copy: Path, params: dict, cwd: str) -> str:
    """Execute into `copy`; one line on the failure, or nothing."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

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


def source_digest(path: Path) -> str:
    """12 hexadecimal digits of a notebook's cells: what an executed copy is a copy of."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in content["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def is_executed(wanted: Copy, out_dir: str | Path) -> bool:
    """Whether the copy is there, of the very notebook and parameters."""
    source, params = _noted(wanted, out_dir)
    return source == source_digest(wanted.path) and params == json.loads(json.dumps(dict(wanted.params)))


def parameters_of(wanted: Copy, out_dir: str | Path) -> dict | None:
    """The parameters that the file in the copy's place was executed with; None where there is none of ours."""
    return _noted(wanted, out_dir)[1]


def _noted(wanted: Copy, out_dir: str | Path) -> tuple[str | None, dict | None]:
    try:
        noted = json.loads((Path(out_dir) / f"{wanted.name}.ipynb").read_text(encoding="utf-8"))["metadata"]
        return noted["simmim-lite"]["source"], dict(noted["papermill"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _cleaned(copy: Path, source: str) -> bytes:
    """An executed notebook without widgets, which need a kernel, and without the paths that papermill notes in it; with
    the digest of its source."""
    content = json.loads(copy.read_text(encoding="utf-8"))
    content["metadata"].pop("widgets", None)
    content["metadata"]["simmim-lite"] = {"source": source}
    noted = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        noted.pop(key, None)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def copies(names: Sequence[str], fixed: Mapping[str, str], each: Mapping[str, str]) -> list[Copy]:
    """The copies that a batch leaves, checked: NAME-PARAMETER=VALUE-….ipynb, a name for every combination.

    fixed: parameters by name, as text; each: the same, with values between commas. `UserError` for a name twice.
    """
    if twice := sorted(fixed.keys() & each.keys()):
        raise UserError(f"parameter '{twice[0]}' is given by -p and by --each: give it once")
    paths = [find(name) for name in names]
    stems = {path: path.stem for path in paths}
    if len(set(stems.values())) < len(stems):
        stems = dict(zip(stems, _short([str(path.with_suffix("")) for path in stems]).values(), strict=True))
    values = {key: text.split(",") for key, text in each.items()}
    short = {key: _short(texts) for key, texts in values.items()}
    found = []
    for path in paths:
        for chosen in itertools.product(*values.values()):
            texts = dict(zip(each, chosen, strict=True))
            params = from_text(path, {**fixed, **texts})
            label = "-".join([stems[path], *(f"{key}={short[key][value]}" for key, value in texts.items())])
            found.append(Copy(path, params, label))
    labels = [copy.name for copy in found]
    if double := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two copies would be called {double}: give other names or values")
    return found


def show_batch(arguments: argparse.Namespace) -> None:
    """`simmim-lite papermill`."""
    check_engine(arguments.engine, arguments.address, None)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"workers is {arguments.workers}: give at least 1")
    check_writable(arguments.out)
    planned = copies(arguments.notebook, dict(arguments.parameter), dict(arguments.each))
    missing = [copy for copy in planned if arguments.again or not is_executed(copy, arguments.out)]
    for copy in missing:
        other = parameters_of(copy, arguments.out)
        if other is not None and other != dict(copy.params) and not arguments.again:
            shown = ", ".join(f"{name}={value}" for name, value in other.items()) or "no parameters"
            there = f"{arguments.out}/{copy.name}.ipynb was executed with {shown}"
            raise UserError(f"{there}: give another --out, or --again to replace it")
    failures: dict[str, str] = {}
    if missing:
        where = {name: getattr(arguments, name) for name in ("workers", "engine", "address", "device")}
        failures = execute(missing, arguments.out, **where)[1]
    print(f"{len(planned) - len(failures)} of {len(planned)} in {arguments.out}, {len(missing)} executed now")
    raise_first(failures)


def _short(values: Iterable[str]) -> dict[str, str]:
    """A name for each value, as a file name has it: of a path as many of its last parts as tell it from the others."""
    parts = {value: [part for part in value.split("/") if part] or [value] for value in values}
    for n in range(1, 1 + max(map(len, parts.values()))):
        names = {value: re.sub(r"[^A-Za-z0-9.+]+", "_", "/".join(found[-n:]))[-40:] for value, found in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {value: f"{name}+{hashlib.sha256(value.encode()).hexdigest()[:6]}" for value, name in names.items()}
