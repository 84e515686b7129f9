"""Where weights come from, `hf://OWNER/REPOSITORY/PATH` included, and where they may be written to. No torch here."""

import logging
import os
import re
from pathlib import Path

from ..errors import UserError, check_writable, first_line, unknown
from ..processes import waiting

FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # as which weights are written; all but the first by torch
WEIGHTS = "model.safetensors"  # as transformers calls the file in a folder
SCHEME = "hf://"
_NAME = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?/(.+)")


def is_hub(name: object) -> bool:
    """Whether a text names a file of the hub."""
    return isinstance(name, str) and name.startswith(SCHEME)


def fetch(name: str) -> Path:
    """The local copy of `hf://OWNER/REPOSITORY[@REVISION]/PATH`, downloaded at the first time.

    It lies where huggingface_hub keeps its files (`HF_HOME`), and a copy that is there needs no network. `UserError`,
    one line, for a name that is none, a package, a network, a repository or a file that is missing.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"'{name}' names no file of the hub: give hf://OWNER/REPOSITORY/PATH")
    repository, revision, path = found.groups()
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub: pip install 'simmim-lite[hf]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
    reasons = {  # the first kind counts: the first is a kind of the second
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and there is no copy here; check the network",
        errors.EntryNotFoundError: f"{repository} holds no such file; its files are listed on its page",
        errors.RepositoryNotFoundError: f"the hub has no repository {repository} that is open to you; check the name",
    }
    try:
        with waiting(f"asking the hub for {name}"):
            return Path(huggingface_hub.hf_hub_download(repository, path, revision=revision))
    except Exception as error:  # the hub raises errors of many libraries
        reason = next((why for kind, why in reasons.items() if isinstance(error, kind)), None)
        reason = reason or f"cannot be fetched ({first_line(error)}); check the name and the network"
        raise UserError(f"{name}: {reason}") from error


def check_target(
    target: str | os.PathLike, layout: str, layouts: tuple[str, ...], source: str | os.PathLike | None = None
) -> Path:
    """The path that weights of a layout are written to: for `hf` a folder (or its WEIGHTS), else a file, by FILES.

    `UserError`, one line, for an unknown layout, another suffix, a place that cannot be written, and the file `source`
    itself: to be asked for before anything large is read.
    """
    if layout not in layouts:
        raise unknown("layout", layout, layouts)
    path = Path(target).expanduser()
    if layout == "hf":
        path = path.parent if path.name == WEIGHTS else path
        if path.is_file():
            raise UserError(f"{path} is a file, and layout hf is a folder of {WEIGHTS} and config.json")
    elif path.is_dir():
        raise UserError(f"{path} is a folder: give a file in it, as in {path / 'weights.safetensors'}")
    elif path.suffix not in FILES:
        raise UserError(f"{path}: its suffix says no kind of file: give one of {', '.join(FILES)}")
    written = {file.resolve() for file in (path, path / WEIGHTS)}
    if source is not None and Path(source).expanduser().resolve() in written:
        raise UserError(f"{path} is the file to read, too: give the target another name")
    check_writable(path)
    return path
