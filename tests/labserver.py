"""A throw-away JupyterLab and Voila for browser tests: settings, workspaces and kernels of their own."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from child_processes import PATIENCE, interruptible

from simmim_lite.studies import notebooks as running

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is really in the page
    "@jupyterlab/apputils-extension:themes": {"theme": "JupyterLab Light"},
}
_STARTS = PATIENCE  # seconds a server may take
_ENDS = 120  # and to end
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

    def page(self, notebook: str) -> str:
        """The address that opens a notebook with nothing left over from another one."""
        return f"{self.url}/lab/tree/{notebook}?token={self.token}&reset"


@contextlib.contextmanager
def jupyterlab(notebooks: Path, scratch: Path, working_dir: Path) -> Iterator[Lab]:
    """Serve a folder of notebooks; kernels run in `working_dir`, as with `make lab`; all it writes is in `scratch`."""
    overrides = scratch / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    port, token = _free_port(), secrets.token_hex(8)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
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
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = os.environ | {name: str(scratch / folder) for name, folder in folders.items()}
    log = scratch / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    lab = Lab(f"http://127.0.0.1:{port}", token, notebooks)
    try:
        _wait(server, lab, log)
        yield lab
    finally:
        server.send_signal(signal.SIGTERM)  # shuts its kernels down, and asks nothing
        try:
            server.wait(_ENDS)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def voila(scratch: Path) -> Iterator[str]:
    """Serve the lab alone, as `make app` does; its address."""
    app, port, log = running.folder() / "app", _free_port(), scratch / "voila.log"
    command = [sys.executable, "-m", "voila", app / "mask_lab.ipynb", "--template=lab_alone", "--no-browser"]
    environment = os.environ | {"JUPYTER_PATH": str(app), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime")}
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, f"--port={port}"], env=environment, stdout=file, stderr=file, start_new_session=True,
            preexec_fn=interruptible,
        )  # fmt: skip
    try:
        limit = time.monotonic() + _STARTS
        while server.poll() is None and time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"Voila did not start:\n{log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)  # ends its kernels too
        try:
            server.wait(_ENDS)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(server: subprocess.Popen, lab: Lab, log: Path) -> None:
    limit = time.monotonic() + _STARTS
    while time.monotonic() < limit and server.poll() is None:
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=60).read()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def open_notebook(page, lab: Lab, name: str) -> None:
    """Open a notebook in JupyterLab and wait until its kernel is there."""
    page.goto(lab.page(name))
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


def shut_down(page) -> None:
    """End the kernel of the open notebook."""
    page.evaluate(f"() => {_WIDGET}?.sessionContext?.shutdown()")
