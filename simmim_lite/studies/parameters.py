"""Parameters of a notebook, checked by name and type before anything starts."""

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError, unknown
from . import full_size
from .collecting import NOTEBOOK_TIERS

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
    from ..data.inaturalist import read_parts
    from ..data.listing import scan
    from ..data.packs import open_pack
    from ..data.sources import KINDS

    kind, _, name = spec.partition(":")
    if spec == "scenes" or (kind in ("torchvision", "hf") and name):
        return
    if kind == "imagefolder" and name:
        scan(Path(name).expanduser().absolute(), spec)
    elif kind == "inaturalist" and name:
        read_parts(Path(name).expanduser().absolute())
    elif kind == "packed" and name:
        open_pack(name)
    elif os.path.isdir(spec):
        raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
    else:
        raise unknown("data", spec, KINDS)


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
