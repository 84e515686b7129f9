"""Notebooks of a few cells, written by tests."""

from collections.abc import Sequence
from pathlib import Path

import nbformat

PARAMETERS = 'tier = "shipped"\ndata = "scenes"\nseeds = 0\nworkers = 0\nruns_dir = "runs"'


def write_notebook(path: Path, cells: Sequence[str], *, parameters: str = PARAMETERS, text: str = "") -> Path:
    """A notebook of a text, a parameters cell and code cells; its path."""
    v4 = nbformat.v4
    found = [v4.new_markdown_cell(text, id="text"), v4.new_code_cell(parameters, id="parameters")]
    found[1].metadata["tags"] = ["parameters"]
    found += [v4.new_code_cell(source, id=f"c{number:02d}") for number, source in enumerate(cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = v4.new_notebook(cells=found, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)
    return path
