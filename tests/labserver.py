"""A throw-away JupyterLab and Voila for browser tests: settings, workspaces and kernels of their own."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from child_processes import interruptible, until

from simmim_lite.studies import notebooks as running

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "doNotDisturbMode": True},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is really in the page
    "@jupyterlab/apputils-extension:themes": {"theme": "JupyterLab Light"},
}
FOLDERS = {f"JUPYTER_{name}_DIR": name.lower() for name in ("CONFIG", "DATA", "RUNTIME")}
FOLDERS |= {f"JUPYTERLAB_{name}_DIR": name.lower() for name in ("SETTINGS", "WORKSPACES")} | {"IPYTHONDIR": "ipython"}
_WIDGET = "window.jupyterapp?.shell?.currentWidget"
IDLE = f"() => {_WIDGET}?.sessionContext?.session?.kernel?.status === 'idle'"
ERRORS = f"""() => [...{_WIDGET}.content.model.cells].flatMap(cell => cell.type === 'code' ? cell.outputs.toJSON() : [])
  .filter(output => output.output_type === 'error').map(output => `${{output.ename}}: ${{output.evalue}}`)"""


@dataclass
class Lab:
    """A running server on a folder of notebooks."""

    url: str
    token: str
    served: Path


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def _serve(module: str, words: list, environment: dict, scratch: Path, port: int, end: int) -> Iterator[None]:
    """A server until it is ended by the signal `end`, which ends its kernels too; it listens at once."""
    with (scratch / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--no-browser", *map(str, words)], env=os.environ | environment,
            stdout=log, stderr=log, start_new_session=True, preexec_fn=interruptible,
        )  # fmt: skip

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60):
            return True
        return False

    try:
        until(listens, server)
        yield
    finally:
        server.send_signal(end)
        try:
            server.wait(120)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def jupyterlab(notebooks: Path, scratch: Path, working_dir: Path) -> Iterator[Lab]:
    """Serve a folder of notebooks; kernels run in `working_dir`, as with `make lab`; all it writes is in `scratch`."""
    overrides = scratch / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    port, token = _free_port(), secrets.token_hex(8)
    options = {
        "ip": "127.0.0.1",
        "port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": notebooks,
        "MappingKernelManager.root_dir": working_dir,
        "IdentityProvider.token": token,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    words = ["--allow-root", "--expose-app-in-browser", *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: str(scratch / folder) for name, folder in FOLDERS.items()}
    with _serve("jupyterlab", words, environment, scratch, port, signal.SIGTERM):
        yield Lab(f"http://127.0.0.1:{port}", token, notebooks)


@contextlib.contextmanager
def voila(scratch: Path) -> Iterator[str]:
    """Serve the lab alone, as `make app` does; its address."""
    app, port = running.folder() / "app", _free_port()
    environment = {"JUPYTER_PATH": str(app), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime")}
    words = [app / "mask_lab.ipynb", "--template=lab_alone", f"--port={port}"]
    with _serve("voila", words, environment, scratch, port, signal.SIGINT):
        yield f"http://127.0.0.1:{port}/"


def open_notebook(page, lab: Lab, name: str) -> None:
    """Open a notebook in JupyterLab, with nothing left over from another one, and wait until its kernel is there."""
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(IDLE)


def run_all(page, timeout: float = 600) -> str:
    """Run all cells of the open notebook and wait until the kernel rests; its errors, or nothing."""
    page.evaluate(
        "() => { window.ran = false; window.jupyterapp.commands.execute('notebook:run-all-cells')"
        ".finally(() => { window.ran = true }) }"
    )
    page.wait_for_function("() => window.ran", timeout=1000 * timeout)
    page.wait_for_function(IDLE)
    return "\n".join(page.evaluate(ERRORS))


def in_the_kernel(page, code: str) -> None:
    """Run code in the kernel of the open notebook, and wait for it."""
    page.evaluate(
        f"code => {_WIDGET}.sessionContext.session.kernel.requestExecute({{ code }}).done.then(() => null)", code
    )


def shut_down(page) -> None:
    """End the kernel of the open notebook."""
    page.evaluate(f"() => {_WIDGET}?.sessionContext?.shutdown()")
