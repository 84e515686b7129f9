"""Batches of notebooks: each with every combination of some parameters, as `simmim-lite papermill` runs them."""

import argparse
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError, check_writable
from . import notebooks, parameters


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("notebook", nargs="+", help="names in notebooks/, as in 04_data_scale, or files")
    text = "a parameter of all of them, as papermill takes it"
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=text)
    text = "a parameter that takes each of these values; several of these options are combined"
    parser.add_argument("--each", nargs=2, action="append", default=[], metavar=("NAME", "V1,V2"), help=text)
    parser.add_argument("--out", default="executed", help="the folder of the executed copies (executed)")
    parser.add_argument("--again", action="store_true", help="execute also what is there already")
    parser.add_argument("--workers", type=int, help="notebooks at a time; one a core by default")
    parser.add_argument("--engine", default="local", help="local (default), or ray: each a task of a cluster")
    parser.add_argument("--address", help="with --engine ray: of a running cluster; without it, this machine")
    parser.add_argument("--device", default="auto", help="with --engine ray: auto (default), cpu or cuda")


def copies(names: Sequence[str], fixed: Mapping[str, str], each: Mapping[str, str]) -> list[notebooks.Copy]:
    """The copies that a batch leaves, checked: NAME-PARAMETER=VALUE-….ipynb, a name for every combination.

    fixed: parameters by name, as text; each: the same, with values between commas. `UserError` for a name twice.
    """
    if twice := sorted(fixed.keys() & each.keys()):
        raise UserError(f"parameter '{twice[0]}' is given by -p and by --each: give it once")
    paths = [notebooks.find(name) for name in names]
    stems = {path: path.stem for path in paths}
    if len(set(stems.values())) < len(stems):
        stems = dict(zip(stems, _short([str(path.with_suffix("")) for path in stems]).values(), strict=True))
    values = {key: text.split(",") for key, text in each.items()}
    short = {key: _short(texts) for key, texts in values.items()}
    found = []
    for path in paths:
        for chosen in itertools.product(*values.values()):
            texts = dict(zip(each, chosen, strict=True))
            params = parameters.from_text(path, {**fixed, **texts})
            label = "-".join([stems[path], *(f"{key}={short[key][value]}" for key, value in texts.items())])
            found.append(notebooks.Copy(path, params, label))
    labels = [copy.name for copy in found]
    if double := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two copies would be called {double}: give other names or values")
    return found


def show(arguments: argparse.Namespace) -> None:
    """`simmim-lite papermill`."""
    parameters.check_engine(arguments.engine, arguments.address, None)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"workers is {arguments.workers}: give at least 1")
    check_writable(arguments.out)
    planned = copies(arguments.notebook, dict(arguments.parameter), dict(arguments.each))
    missing = [copy for copy in planned if arguments.again or not notebooks.is_executed(copy, arguments.out)]
    for copy in missing:
        other = notebooks.parameters_of(copy, arguments.out)
        if other is not None and other != dict(copy.params) and not arguments.again:
            shown = ", ".join(f"{name}={value}" for name, value in other.items()) or "no parameters"
            there = f"{arguments.out}/{copy.name}.ipynb was executed with {shown}"
            raise UserError(f"{there}: give another --out, or --again to replace it")
    failures: dict[str, str] = {}
    if missing:
        where = {name: getattr(arguments, name) for name in ("workers", "engine", "address", "device")}
        failures = notebooks.execute(missing, arguments.out, **where)[1]
    print(f"{len(planned) - len(failures)} of {len(planned)} in {arguments.out}, {len(missing)} executed now")
    notebooks.raise_first(failures)


def _short(values: Iterable[str]) -> dict[str, str]:
    """A name for each value, as a file name has it: of a path as many of its last parts as tell it from the others."""
    parts = {value: [part for part in value.split("/") if part] or [value] for value in values}
    for n in range(1, 1 + max(map(len, parts.values()))):
        names = {value: re.sub(r"[^A-Za-z0-9.+]+", "_", "/".join(found[-n:]))[-40:] for value, found in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {value: f"{name}+{hashlib.sha256(value.encode()).hexdigest()[:6]}" for value, name in names.items()}
