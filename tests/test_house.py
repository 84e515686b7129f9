"""The house: imports go down only, torch stays where it belongs, the README's tree and environment.yml are true."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simmim_lite"
FLOORS = {"model": 0, "data": 1, "training": 2, "evidence": 2, "studies": 3, "lab": 4, "course": 5}
TORCH_FREE = {
    "model": "sizes masking",
    "data": "scenes manifests sources packs coco",
    "training": "run record tuning callbacks specs",
    "evidence": "records claims heldout",
    "studies": "grids costs engine cluster workers report planner",
    "lab": "monitor",
}


def imports(path: Path) -> list[tuple[str, ...]]:
    """Modules of the package that a file imports anywhere but for its types, as parts: ("model", "sizes")."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found, tree = [], ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else []))
            found += [base, *((*base, alias.name) for alias in node.names)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [tuple(n.split(".")[1:]) for n in names if n.split(".")[0] == "simmim_lite"]
    return found


def test_imports_go_down_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0]
        if own not in FLOORS:
            continue
        for target in imports(path):
            if target and target[0] in FLOORS:
                if own == "evidence" and target[0] != own:
                    light = {("training", "run"), ("training", "record"), ("model", "sizes"), ("data", "scenes")}
                    assert target[:2] in light, f"{path.name} imports {target}"
                else:
                    down = target[0] == own or FLOORS[target[0]] < FLOORS[own]
                    assert down, f"{path.name} imports {'.'.join(target)}"
            assert target[:1] != ("cli",), f"{path.name} imports the command line"


def test_no_circle_of_imports() -> None:
    """Not even by an import inside of a function."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    order = TopologicalSorter({own: {t for t in imports(path) if t in files} for own, path in files.items()})
    assert len(list(order.static_order())) == len(files)  # CycleError names the circle


def test_torch_free_modules_do_not_import_torch() -> None:
    names = [f"simmim_lite.{folder}.{name}" for folder, names in TORCH_FREE.items() for name in names.split()]
    code = f"import sys, simmim_lite.cli, {', '.join(names)}; print(*{{'torch', 'timm', 'plotly'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


def test_import_is_instant() -> None:
    code = "import sys; before = set(sys.modules); import simmim_lite; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names == {"simmim_lite"}


def test_root_exports_what_others_build_on() -> None:
    import simmim_lite

    assert all(getattr(simmim_lite, name) is not None for name in simmim_lite.__all__)


def test_environment_equals_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert sorted(pip) == sorted([*project["dependencies"], "-e ."])
    assert f"python{project['requires-python']}" in conda


def test_readme_tree_is_true() -> None:
    """Every file the tree names exists, and every module of the package is named."""
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(simmim-lite/.*?)```", text, re.S).group(1)
    named, folders = set(), []
    for line in tree.splitlines()[1:]:
        body = line.split("#")[0].rstrip()
        depth = (len(body) - len(body.lstrip(" "))) // 2
        del folders[depth - 1 :]
        for name in body.split():
            path = "/".join([*folders, name.rstrip("/")])
            assert (ROOT / path).exists(), f"the tree names {path}, which is not there"
            named.add(path)
        if body.endswith("/"):
            folders.append(body.strip().rstrip("/"))
    modules = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    assert modules <= named, f"not in the tree: {sorted(modules - named)}"


def test_files_are_short() -> None:
    assert not [p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 350]
