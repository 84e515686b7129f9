"""Options of studies and parameters of notebooks: what each may be, checked before anything starts. No torch here."""

import ast
import importlib.util
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import UserError, unknown
from ..training.journal import check_writers
from ..training.run import PRECISIONS
from ..training.specs import Count, Folder, OneOf, Positive, Source, Spec, Text, Unfit, Whole, checked, read, value
from . import full_size
from .grids import STUDIES, TIERS, TRANSFER

#: Tiers a notebook takes: the first trains nothing.
NOTEBOOK_TIERS = ("shipped", *TIERS)

Study = Annotated[str, OneOf((*STUDIES, TRANSFER, "all"))]
Tier = Annotated[str, OneOf(NOTEBOOK_TIERS)]


class _Some:
    """Lists that are not empty."""

    def fit(self, value: tuple) -> tuple:
        if not value:
            raise Unfit(self)
        return value

    def said(self, what: str) -> str:
        return what


Seeds = Whole | Annotated[tuple[Whole, ...], _Some()]  # how many (0, 1, …), 0 = the tier's own number; or which
#: Who does the jobs of a study.
Engine = Annotated[str, OneOf(("local", "ray"))]
_Place = Annotated[str, Text(".*", "a folder, or nothing")]


class _Device(OneOf):
    """Kinds of a device, with or without a number, as in cuda:1."""

    def fit(self, value: str) -> str:
        super().fit(value.split(":")[0])
        return value


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Spec):
    """How a study runs, wherever it is started: by the command line, in Python or in a notebook."""

    tier: Tier = "quick"
    data: Source = "scenes"  # a source, or two at tier paper (`full_size.sources`)
    seeds: Seeds | None = None  # how many, or which; 0 and None = the tier's own number
    workers: Whole | None = None  # processes; 0 and None = one a core, one on a GPU
    runs_dir: Folder = "runs"
    device: Annotated[str, _Device(("auto", "cpu", "cuda", "mps"))] = "auto"
    precision: Annotated[str, OneOf(("auto", *PRECISIONS))] = "auto"
    coco: _Place = ""  # folders that the transfer study takes boxes and class maps from at tier paper
    ade20k: _Place = ""
    engine: Engine = "local"
    address: Annotated[str, Text(".+", "HOST:PORT of a running Ray cluster")] | None = None
    gpus_per_run: Count | None = None
    log: tuple[Annotated[str, Text(".*", "a writer")], ...] = ()  # who is told of runs (`training/journal.py`)

    def check(self) -> None:
        """What options say of each other, and what is not installed; zeros that mean the default become None."""
        for name in ("seeds", "workers"):
            object.__setattr__(self, name, None if getattr(self, name) == 0 else getattr(self, name))
        check_writers(self.log)
        check_engine(self.engine, self.address, self.gpus_per_run)


@checked
def check_engine(engine: Engine, address: str | None, gpus_per_run: Count | None) -> None:
    """`UserError` for an engine that does not exist, for one that is not installed, and for options of another."""
    if engine == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UserError('engine ray needs ray: pip install "simmim-lite[ray]"')
    elif address is not None or gpus_per_run is not None:
        name = "address" if address is not None else "gpus_per_run"
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable notebook ({error or type(error).__name__})") from error
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", ())]
    try:
        return _assigned("".join(tagged[0]["source"])) if tagged else {}
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its parameters cell may hold only lines like `name = literal`") from error


def check_parameters(path: str | Path, params: Mapping[str, object]) -> dict[str, object]:
    """The parameters of a notebook as it takes them, if it has each, and each fits its name and its default value.

    `UserError`, one line, for an unknown name (with the nearest known), a wrong value, and a source of images that does
    not exist. Nothing is started or downloaded.
    """
    return _checked(path, params, value)


def from_text(path: str | Path, texts: Mapping[str, str]) -> dict[str, object]:
    """Parameters as the command line has them (`-p seeds 3`), checked."""
    return _checked(path, texts, read)


def check_notebook(names: MutableMapping[str, object], *, opened: bool = True) -> None:
    """Check the parameters among the names of a running notebook (its `globals()`), and make them plain.

    papermill by hand asks nobody: a name that no cell knows, a text for a number, a list as text. `UserError`, one
    line. To be called in the first cell after the parameters. opened: whether the notebook opens its source.
    """
    cells = [str(cell) for cell in names.get("In", ())]
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith("# Parameters\n"):  # what papermill puts behind the tagged cell
            known = _assigned(before)
            for name in _assigned(cell):
                if name not in known:
                    raise unknown("parameter", name, known)
    for name in PARAMETERS.keys() & names.keys():
        made = read if isinstance(names[name], str) else value
        names[name] = made(name, PARAMETERS[name], names[name])
    if opened and "data" in names:  # last, for it takes longest
        images_of(names["data"])


def images_of(data: str) -> dict[str, int]:
    """Images that the one or two sources of a `data` parameter list, as `plan_of` takes them; {} if not known.

    {"available": to train on, "labelled": with labels, 0 without a labelled test split; "second_available"}.
    `UserError` for a source that does not exist and for a folder without images. Nothing is decoded or downloaded: what
    torchvision and the hub hold is not known, and scenes have no end.
    """
    from ..data.sources import FORMATS, catalogue, kind_of

    found: dict[str, int] = {}
    for spec, name in zip(full_size.sources(data), ("available", "second_available"), strict=True):
        if spec and spec != "scenes" and FORMATS[kind_of(spec)[0]].local:
            listed = catalogue(spec).split()
            train = listed.splits["train"]
            found[name] = len(train)
            if name == "available":
                known = listed.classes and "test" in listed.splits and (listed.labels[train] >= 0).all()
                found["labelled"] = len(train) if known else 0
    return found


def _checked(path: str | Path, given: Mapping[str, object], made: object) -> dict[str, object]:
    known = parameters(path)
    for name in given:
        if name not in known:
            if not known:
                raise UserError(f"unknown parameter '{name}': {Path(path).name} has no parameters")
            raise unknown(f"parameter of {Path(path).name}", name, known)
    found = {name: made(name, _type_of(name, known[name]), one) for name, one in given.items()}
    found = {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}  # as papermill has them
    if found.get("data"):
        images_of(found["data"])
    return found


def _type_of(name: str, default: object) -> object:
    """What a parameter may be: by its name, where its default fits that, else by its default; None takes anything."""
    try:
        value(name, PARAMETERS[name], default)
        return PARAMETERS[name]
    except (KeyError, UserError):
        return Any if default is None else type(default)


def _assigned(source: str) -> dict[str, object]:
    """Names and values of lines `name = literal`."""
    found: dict[str, object] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            node = ast.Assign([node.target], node.value)
        if isinstance(node, ast.Assign):
            found |= {target.id: ast.literal_eval(node.value) for target in node.targets}
    return found
