"""Where weights may be written to. No torch here."""

import os
from pathlib import Path

from ..errors import UserError, check_writable, unknown

FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # as which weights are written; all but the first by torch
WEIGHTS = "model.safetensors"  # as transformers calls the file in a folder


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
            raise UserError(
                f"{path} is a file, and layout hf is a folder of {WEIGHTS} and config.json: give another name"
            )
    elif path.is_dir():
        raise UserError(f"{path} is a folder: give a file in it, as in {path / 'weights.safetensors'}")
    elif path.suffix not in FILES:
        raise UserError(f"{path}: its suffix says no kind of file: give one of {', '.join(FILES)}")
    written = {file.resolve() for file in (path, path / WEIGHTS)}
    if source is not None and Path(source).expanduser().resolve() in written:
        raise UserError(f"{path} is the file to read, too: give the target another name")
    check_writable(path)
    return path
