"""Where weights come from, `hf://OWNER/REPOSITORY/PATH` included, and where they may be written to. No torch here."""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, check_writable, first_line, unknown
from ..processes import waiting

FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # as which weights are written; all but the first by torch
WEIGHTS = "model.safetensors"  # as transformers calls the file in a folder


def is_hub(name: object) -> bool:
    """Whether a text names a file of the hub."""
    return isinstance(name, str) and name.startswith("hf://")


def fetch(name: str) -> Path:
    """The local copy of `hf://OWNER/REPOSITORY[@REVISION]/PATH`, downloaded at the first time (into `HF_HOME`).

    `UserError`, one line, for a name that is none, and for what cannot be fetched.
    """
    found = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?/(.+)", name)
    if not found:
        raise UserError(f"'{name}' names no file of the hub: give hf://OWNER/REPOSITORY/PATH")
    repository, revision, path = found.groups()
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub: pip install 'simmim-lite[hf]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
    try:
        with waiting(f"asking the hub for {name}"):
            return Path(huggingface_hub.hf_hub_download(repository, path, revision=revision))
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(f"{name} cannot be fetched ({first_line(error)}); check the name and the network") from error


def local(source: str | os.PathLike) -> Path:
    """The weights file that a path, a folder as transformers writes it, or a name of the hub means."""
    path = fetch(source) if is_hub(source) else Path(source)
    files = [path / name for name in (WEIGHTS, "pytorch_model.bin")] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{path}: no such file; give a .safetensors file, one by torch.save, or a folder of {WEIGHTS}")
    return found


def check_target(
    target: str | os.PathLike, layout: str, layouts: Iterable[str], source: str | os.PathLike | None = None
) -> Path:
    """The path that weights of a layout are written to: for `hf` a folder (or its WEIGHTS), else a file, by FILES.

    `UserError` for an unknown layout, another suffix, a place that cannot be written, and the file `source` itself.
    """
    if layout not in layouts:
        raise unknown("layout", layout, layouts)
    path = Path(target).expanduser()
    if layout == "hf":
        path = path.parent if path.name == WEIGHTS else path
        if path.is_file():
            raise UserError(f"{path} is a file, and layout hf is a folder of {WEIGHTS} and config.json")
    elif path.is_dir() or path.suffix not in FILES:
        raise UserError(f"{path}: its suffix says no kind of file: give one of {', '.join(FILES)}")
    if source is not None and Path(source).expanduser().resolve() in {p.resolve() for p in (path, path / WEIGHTS)}:
        raise UserError(f"{path} is the file to read, too: give the target another name")
    check_writable(path)
    return path
