"""The site, and the gallery of pictures: `make site`, `make gallery`.

Each notebook runs as it stands, with the records that are shipped; its executed copy is kept until it or the library
changes. Sphinx makes pages of them with the settings in `site/`, which ask the network for nothing.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

import pandas as pd

from simmim_lite.errors import UserError, check_writable, first_line
from simmim_lite.evidence import drawing, figures, records, tables
from simmim_lite.evidence.rules import HOLDS, OPEN, TABLE, UNTESTED
from simmim_lite.studies import notebooks as running
from simmim_lite.studies import report
from simmim_lite.studies.notebooks import parameters
from simmim_lite.studies.tiers import NAMED, TRANSFER
from simmim_lite.training.run import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, SETTINGS = ROOT / "simmim_lite", ROOT / "site"
_ANSWER = re.compile(r"\n<details><summary>(.*?)</summary>(.*?)</details>", re.S)
_BADGES = {HOLDS: ("yes", "✓"), OPEN: ("open", "?"), UNTESTED: ("open", "–")}
QUESTIONS = {
    "data-scale": "How much data does masked image modelling need?",
    "model-size": "Is a larger network always better?",
    "schedule": "Does longer training help, and when does it hurt?",
    "proxy": "Can a pretraining loss tell which network is better?",
    TRANSFER: "What is pretraining worth, task by task?",
}


def build(
    out: str | Path,
    lab_page: Callable[[Path], object],
    explorer: str = "",
    *,
    work: str | Path = "build/site",
    notebooks: Iterable[Path] | None = None,
    workers: int | None = None,
    settings: Iterable[str] = (),
) -> Path:
    """Build the site in OUT with Sphinx and return its index.html; WORK keeps executed notebooks and Sphinx's files.

    lab_page: writes the mask lab's self-contained page to the path it is given. explorer: HTML of the explorer of the
    published runs. notebooks: all of `notebooks/` by default; they run in WORK, so that a reader's own runs stay out.
    workers: notebooks at a time. settings: NAME=VALUE for Sphinx, over those of conf.py. `UserError` where Sphinx is
    missing, for a folder OUT that holds something else, and for a notebook that fails.
    """
    needed = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f'the site needs {", ".join(missing)}: pip install "simmim-lite[site]"')
    out, work = Path(out).absolute(), Path(work).absolute()
    if out.exists() and (not out.is_dir() or not (out / ".buildinfo").exists() and any(out.iterdir())):
        raise UserError(f"{out} holds something else: name an empty folder by --out")
    paths = sorted(running.folder().glob("*.ipynb") if notebooks is None else map(Path, notebooks))
    executed, source = execute(paths, work, workers=workers), work / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(SETTINGS, source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "gallery", source / "gallery")
    from plotly.offline import get_plotlyjs

    pages = {"_static/plotly.min.js": get_plotlyjs(), "_static/figures.js": drawing.SCRIPT}
    pages |= {"generated/explorer.html": explorer, "generated/findings.html": findings(set(executed))}
    pages["notebooks/glossary.md"] = (running.folder() / "glossary.md").read_bytes()
    for path in paths:
        study = parameters(path).get("tier") == "shipped"  # a study is read, a first step is tried
        pages[f"notebooks/{path.name}"] = for_sphinx(executed[path.stem], hide_code=study)
    for name, content in pages.items():
        write_atomic(source / name, content)
    # in a process of its own: Sphinx and its extensions leave registrations behind that a second build stumbles over
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "--no-color", "-d", work / "doctrees", source, out]
    command += [word for setting in settings for word in ("-D", setting)]
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, stderr=subprocess.PIPE, text=True)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        raise UserError(f"Sphinx failed with status {done.returncode}, see above; if it stays, delete {work}")
    shutil.rmtree(out / "_sources", ignore_errors=True)
    lab_page(out / "lab.html")
    write_atomic(out / ".nojekyll", "")  # GitHub Pages would leave out folders that begin with a line
    return out / "index.html"


def lab_head() -> str:
    """What the lab's page begins with: a line for a visitor; in a frame of the site its theme and a true height."""
    return (SETTINGS / "lab_head.html").read_text(encoding="utf-8")


def execute(paths: Iterable[Path], work: Path, *, workers: int | None = None) -> dict[str, Path]:
    """Executed copies by name; a notebook runs only when it or the library is newer than its last copy."""
    paths, folder = [Path(path).absolute() for path in paths], work / "executed"
    library = max(path.stat().st_mtime for path in PACKAGE.rglob("*.py"))
    found = {path.stem: folder / path.name for path in paths}
    newest = {path: max(library, path.stat().st_mtime) for path in paths}
    copies = {path: found[path.stem] for path in paths}
    if stale := [p for p in paths if not copies[p].exists() or copies[p].stat().st_mtime < newest[p]]:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(work):  # notebooks keep their runs in `runs` of the folder they run in
            wanted = [running.Copy.of(path, {}) for path in stale]
            running.raise_first(running.execute(wanted, folder, workers=workers)[1])
    return found


def for_sphinx(executed: Path, *, hide_code: bool) -> str:
    """An executed notebook for Sphinx. hide_code: fold every code cell but exercises behind a line that opens it."""
    import nbformat

    content = report.read(executed)
    report.prepare(content)
    content.metadata = {k: v for k, v in content.metadata.items() if k in ("kernelspec", "language_info")}
    for cell in content.cells:
        tags, cell.metadata = cell.metadata.get("tags", ()), {}
        if cell.cell_type == "markdown" and "solution" not in tags:  # answers stay inside the item that asks for them
            cell.source = _ANSWER.sub(
                lambda m: f"\n   <details><summary>{m[1]}</summary>{m[2].replace(chr(10), ' ')}</details>", cell.source
            )
        elif cell.cell_type == "code" and hide_code and "exercise" not in tags:
            cell.metadata = {"tags": ["hide-input"]}
        for output in cell.get("outputs", ()):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
    return nbformat.writes(content)


def findings(notebooks: set[str]) -> str:
    """A line a claim, a column a kind of evidence, and the verdict in each; computed, as HTML."""
    kinds = {tables.NAMES.get(kind, kind): {c.id: c for c in found} for kind, found in tables.claims().items()}
    lines = []
    for rule in TABLE:
        cells = ""
        for kind, found in kinds.items():
            if (claim := found.get(rule.id)) is None:
                cells += "<td></td>"
                continue
            tone, sign = _BADGES.get(claim.verdict, ("no", "✗"))
            title = re.sub(r"(?<![\w-])-(?=\d)", "−", escape(claim.evidence))
            badge = f'<span class="badge {tone}">{sign} {claim.verdict}</span>'
            cells += f'<td data-kind="{escape(kind)}" title="{title}">{badge}</td>'
        notebook = next((study.notebook for study in NAMED.values() if rule.id in study.claims), None)
        words = escape(rule.statement)
        words = f'<a href="notebooks/{notebook}.html">{words}</a>' if notebook in notebooks else words
        lines.append(f"<tr><td>{rule.id}</td><td>{words}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(kind)}</th>" for kind in kinds)
    table = f"<thead><tr><th></th><th>claim</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="sl-scroll"><table class="sl-table sl-findings">{table}</table></div>'


def make_gallery(out: str | Path = "gallery") -> list[Path]:
    """Write OUT/STUDY.png of every study, OUT/readme.png and OUT/gallery.md with captions; the files written.

    Captions are computed from the records. `UserError` where OUT cannot be written, and where kaleido or the browser
    that it draws with is missing.
    """
    out, frame = Path(out), tables.runs()
    longest, ours = tables.longest(frame), frame[frame["source"] == "shipped"]
    gains = tables.gains(tables.trainings(records.shipped(records.TRANSFER)))
    drawn = {
        "data-scale": figures.lines(longest, "images", "val_loss", "model"),
        "model-size": figures.lines(longest, "params", "val_loss", "images"),
        "schedule": figures.lines(ours, "steps", "val_loss", "images", panel="model"),
        "proxy": figures.scatter(frame, ["val_loss", "train_loss"], "score", "regime", rank=True),
        TRANSFER: figures.lines(gains, "images", "gain", "model", panel="name", interval=True),
    }
    drawn["readme"] = drawn["model-size"]
    written = [_png(figure, out / f"{name}.png") for name, figure in drawn.items()]
    write_atomic(out / "gallery.md", gallery_page(frame))
    return [*written, out / "gallery.md"]


def gallery_page(frame: pd.DataFrame) -> str:
    """The page of the pictures, in Markdown; what each shows is counted from the runs by source."""
    said = []
    for source, some in frame.groupby("source"):
        of = "" if source == "published" else f" of {some['seed'].nunique()} seeds on {some['data'].iloc[0]}"
        said.append(f"{figures.SOURCES.get(source, source).lower()}: {len(some)} runs{of}")
    parts = [
        "# Gallery\n",
        f"Drawn by `make gallery` from the {'; '.join(said)}. Bars are one standard error, of the "
        "transfer tasks 95 % intervals.\n",
    ]
    for study, question in QUESTIONS.items():
        link = f"[Read the study](../notebooks/{NAMED[study].notebook}.ipynb)"
        parts.append(f"## {question}\n\n![{question}]({study}.png)\n\n{link}\n")
    return "\n".join(parts)


def _png(figure, path: Path) -> Path:
    try:  # drawn at twice its size, for sharp screens
        image = figure.to_image("png", width=1180, height=figure.layout.height or 450, scale=2)
    except Exception as error:  # kaleido raises errors of its own and of the browser's driver
        raise UserError(f"pictures need kaleido and Chromium or Chrome ({first_line(error)})") from error
    write_atomic(path, image)
    return path


def main(words: list[str] | None = None) -> int:
    """Build the site, or draw the gallery; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="_site", help="the folder of the site (_site)")
    parser.add_argument("--gallery", metavar="OUT", help="draw the pictures of the studies into OUT, and nothing else")
    arguments = parser.parse_args(words)
    try:
        check_writable(arguments.gallery or arguments.out)
        if arguments.gallery:
            print(*make_gallery(arguments.gallery), sep="\n")
            return 0
        from simmim_lite.lab import mask_lab, widgets

        lab, runs, head = mask_lab.MaskLab(), widgets.Explorer().static_html(), lab_head()
        print(build(arguments.out, lambda path: lab.write_html(path, "The mask lab", before=head), runs))
        return 0
    except UserError as error:
        print(f"build_site: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    raise SystemExit(main())
