"""Options of studies and parameters of notebooks: what each may be, checked before anything starts. No torch here."""

import ast
import importlib.util
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import UserError, unknown
from ..training.callbacks import check_writers
from ..training.run import PRECISIONS
from ..training.specs import Count, Folder, OneOf, Positive, Source, Spec, Text, Whole, read, value
from .grids import images_of
from .tiers import STUDIES, TIERS, TRANSFER

Study = Annotated[str, OneOf((*STUDIES, TRANSFER, "all"))]
Tier = Annotated[str, OneOf(("shipped", *TIERS))]  # shipped trains nothing
Seeds = Whole | tuple[Whole, ...]  # how many, 0 = the tier's own number; or which
_Place = Annotated[str, Text(".*", "a folder, or nothing")]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Spec):
    """How a study runs, wherever it is started: by the command line, in Python or in a notebook."""

    tier: Tier = "quick"
    data: Source = "scenes"  # a source, or two at tier paper (`grids.sources`)
    seeds: Seeds | None = None  # how many, or which; 0 and None = the tier's own number
    workers: Whole | None = None  # processes; 0 and None = one a core, one on a GPU
    runs_dir: Folder = "runs"
    device: Annotated[str, Text(r"(auto|cpu|cuda|mps)(:\d+)?", "one of auto, cpu, cuda, mps")] = "auto"
    precision: Annotated[str, OneOf(("auto", *PRECISIONS))] = "auto"
    coco: _Place = ""  # folders that the transfer study takes boxes and class maps from at tier paper
    ade20k: _Place = ""
    engine: Annotated[str, OneOf(("local", "ray"))] = "local"  # who does the jobs
    address: Annotated[str, Text(".+", "HOST:PORT of a running Ray cluster")] | None = None
    gpus_per_run: Count | None = None
    log: tuple[Annotated[str, Text(".*", "a writer")], ...] = ()  # who is told of runs (`training/journal.py`)

    def check(self) -> None:
        """What options say of each other, and what is not installed; zeros that mean the default become None."""
        for name in ("seeds", "workers"):
            object.__setattr__(self, name, getattr(self, name) or None)
        check_writers(self.log)
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError('engine ray needs ray: pip install "simmim-lite[ray]"')
        for name in ("address", "gpus_per_run"):
            if self.engine == "local" and getattr(self, name) is not None:
                raise UserError(f"{name} is about a Ray cluster: add --engine ray, or leave it out")


#: Parameters of the course's notebooks, by name.
PARAMETERS = {
    "tier": Tier, "data": Source, "seed": Whole, "seeds": Seeds, "workers": Whole, "runs_dir": Folder, "gpus": Count,
    "core_minutes": Positive, "effect": Positive, "coco": _Place, "ade20k": _Place,
    "images_per_second": Annotated[str, Text("|.+=.+|.+[.]json", "SIZE=NUMBER, or a FILE.json of a bench")],
    "assume": Annotated[str, Text(".*@.*", "SHARE@TFLOPS, as in 0.4@989")],
}  # fmt: skip


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
    not exist. Nothing is started or downloaded.
    """
    known, found = parameters(path), {}
    for name, one in given.items():
        if name not in known:
            raise unknown(f"parameter of {Path(path).name}", name, known)
        made = _made(name, _type_of(name, known[name]), one)
        found[name] = list(made) if isinstance(made, tuple) else made  # as papermill has them
    if found.get("data"):
        images_of(found["data"])
    return found


def check_notebook(names: MutableMapping[str, object], *, opened: bool = True) -> None:
    """Check the parameters among the names of a running notebook (its `globals()`), and make them plain.

    papermill by hand asks nobody: a name that no cell knows, a text for a number, a list as text. `UserError`, one
    line. To be called in the first cell after the parameters. opened: whether the notebook opens its source.
    """
    cells = [str(cell) for cell in names.get("In", ())]
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith("# Parameters\n"):  # what papermill puts behind the tagged cell
            known = _assigned(before)
            for name in _assigned(cell).keys() - known.keys():
                raise unknown("parameter", name, known)
    for name in PARAMETERS.keys() & names.keys():
        names[name] = _made(name, PARAMETERS[name], names[name])
    if opened and "data" in names:  # last, for it takes longest
        images_of(names["data"])


def _made(name: str, hint: object, given: object) -> object:
    return read(name, hint, given) if isinstance(given, str) else value(name, hint, given)


def _type_of(name: str, default: object) -> object:
    """What a parameter may be: by its name, where its default fits that, else by its default; None takes anything."""
    try:
        value(name, PARAMETERS[name], default)
        return PARAMETERS[name]
    except (KeyError, UserError):
        return Any if default is None else type(default)
