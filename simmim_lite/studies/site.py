"""The site: executed notebooks, gallery, glossary, API and the mask lab as pages that ask the network for nothing.

`simmim-lite site` runs each notebook as it stands, with the records that are shipped, keeps the executed copy until the
notebook or the library changes, and lets Sphinx make pages of them with the settings in `site/`.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import UserError
from ..training.run import write_atomic
from . import notebooks as running
from . import site_sources as sources

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "site"
_NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_design", "sphinx_copybutton")
_UNSEEN = ("cli.py", "site.py", "site_sources.py")  # of the library: what no notebook can see
_COUNTED = ("plotly", "numpy", "torch", "timm")  # packages whose version may change what a notebook shows
#: What the lab's page begins with: a line for a visitor; in a frame of the site, the site's theme and a true height.
IN_A_FRAME = """<p class="lead">Hide parts of a picture and see what a small network makes of the rest. Everything runs
in this page, and your own pictures stay on your machine.</p>
<style>
.framed body { padding: 0; background: transparent; max-width: none } .framed h1, .framed .lead { display: none }
</style>
<script>
if (parent !== window) {
  const root = document.documentElement;
  root.classList.add("framed");
  addEventListener("message", ({ data }) => {
    if (data.theme) { root.dataset.theme = data.theme; root.style.colorScheme = data.theme; }
  });
  new ResizeObserver(() => parent.postMessage({ height: root.offsetHeight }, "*")).observe(root);
}
</script>
"""


def build(
    out: str | Path,
    lab_page: Callable[[Path], object],
    explorer: str = "",
    *,
    work: str | Path = "build/site",
    notebooks: Iterable[Path] | None = None,
    packages: Iterable[str] = tuple(sources.PACKAGES),
    workers: int | None = None,
) -> Path:
    """Build the site in OUT and return its index.html; WORK keeps executed notebooks and Sphinx's own files.

    lab_page: writes the mask lab's self-contained page to the path it is given. explorer: HTML of the explorer of the
    published runs, for a page of its own. notebooks: all of `notebooks/` by default; they run in WORK, so that a
    reader's own runs stay out. packages: which get API pages. workers: notebooks at a time. `UserError` where Sphinx
    is missing, outside of a checkout, for a folder OUT that holds something else, and for the first notebook that
    fails, once all others are finished.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f'the site needs {", ".join(missing)}: pip install "simmim-lite[site]"')
    if not SETTINGS.is_dir():
        raise UserError("the site's settings are not part of the installed package: run this in a checkout")
    out, work = Path(out).absolute(), Path(work).absolute()
    if out.exists() and (not out.is_dir() or not (out / ".buildinfo").exists() and any(out.iterdir())):
        raise UserError(f"{out} holds something else: name an empty folder by --out")
    paths = sorted(running.folder().glob("*.ipynb") if notebooks is None else map(Path, notebooks))
    executed = execute(paths, work, workers=workers)
    documents = _documents(executed, {path.stem: path for path in paths}, explorer, tuple(packages))
    _write_sources(work / "source", documents)
    copies = out.parent / "jupyter_execute"  # myst-nb leaves notebooks there that nobody asked for
    theirs = copies.exists()
    _sphinx(work / "source", out, work / "doctrees", documents)
    if not theirs:
        shutil.rmtree(copies, ignore_errors=True)
    lab_page(out / "lab.html")
    write_atomic(out / ".nojekyll", "")  # GitHub Pages would leave out folders that begin with a line
    return out / "index.html"


def execute(paths: Iterable[Path], work: Path, *, workers: int | None = None) -> dict[str, Path]:
    """Executed copies by name; a notebook runs only when it or the library has changed since its last copy."""
    library = _digest()
    keys = {path: hashlib.sha256(path.read_bytes() + library.encode()).hexdigest() for path in paths}
    copies = {path: work / "executed" / path.name for path in keys}
    stale = [p for p, copy in copies.items() if not copy.exists() or _kept(copy) != keys[p]]
    if stale:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(work):  # notebooks keep their runs in `runs` of the folder they run in
            wanted = [running.Copy.of(p.absolute(), {}) for p in stale]
            done, failures = running.execute(wanted, work / "executed", workers=workers)
        for path in stale:
            if path.stem in done:
                write_atomic(copies[path].with_suffix(".key"), keys[path])
        if failures:
            raise UserError(next(iter(failures.values())))
    return {path.stem: copy for path, copy in copies.items()}


def _kept(copy: Path) -> str:
    key = copy.with_suffix(".key")
    return key.read_text(encoding="utf-8") if key.exists() else ""


def _digest() -> str:
    """One text for all that notebooks see of the library and of the packages that draw and train."""
    found = hashlib.sha256(sys.version.encode())
    for name in _COUNTED:
        with contextlib.suppress(PackageNotFoundError):
            found.update(f"{name} {version(name)}".encode())
    for path in sorted(sources.PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.name not in _UNSEEN:
            found.update(path.relative_to(sources.PACKAGE).as_posix().encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _documents(
    executed: dict[str, Path], plain: dict[str, Path], explorer: str, packages: tuple[str, ...]
) -> dict[str, str | bytes]:
    """Every file of the source folder by its path there."""
    from plotly.offline import get_plotlyjs

    found: dict[str, str | bytes] = {"_static/plotly.min.js": get_plotlyjs()}
    for path in sorted(SETTINGS.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found[path.relative_to(SETTINGS).as_posix()] = path.read_bytes()
    for path in sorted((ROOT / "gallery").iterdir()):
        found[f"gallery/{path.name}"] = path.read_bytes()
    found["gallery/gallery.md"] = sources.gallery(ROOT / "gallery" / "gallery.md", executed)
    found["notebooks/glossary.md"] = (running.folder() / "glossary.md").read_bytes()
    for name, copy in executed.items():
        hide = running.parameters(plain[name]).get("tier") == "shipped"  # a study is read, a first step is tried
        found[f"notebooks/{name}.ipynb"] = sources.prepare(copy, hide_code=hide)
    reference = {"notebooks/glossary": "Glossary"}
    if packages:
        found |= {f"{name}.md": text for name, text in sources.api_pages(packages).items()}
        reference["api/index"] = "API"
    play = ["mask_lab", "explorer", "gallery/gallery"]
    found["generated/explorer.html"] = explorer
    if not explorer:
        play.remove("explorer")
        del found["explorer.md"]
    found["index.md"] = sources.landing(SETTINGS / "index.md", plain, play=play, reference=reference)
    return found


def _write_sources(folder: Path, documents: dict[str, str | bytes]) -> None:
    """Write what has changed, so that Sphinx reads only that again, and remove what is no longer there."""
    for name, content in documents.items():
        path, content = folder / name, content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in documents:
            path.unlink()


def _sphinx(source: Path, out: Path, doctrees: Path, documents: dict) -> None:
    """Pages of the sources; what Sphinx has to complain about goes to stderr.

    In a process of its own: Sphinx and its extensions leave registrations behind that a second build stumbles over.
    """
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "--no-color", "-d", doctrees, source, out]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        raise UserError(f"Sphinx failed with status {done.returncode}, see above; if it stays, delete {doctrees}")
    known = {Path(name).with_suffix(".html").as_posix() for name in documents}
    for folder in ("notebooks", "api"):  # pages of notebooks that are no longer there
        for page in (out / folder).glob("*.html"):
            if page.relative_to(out).as_posix() not in known:
                page.unlink()
    shutil.rmtree(out / "_sources", ignore_errors=True)
