"""A throw-away JupyterLab and Voila for browser tests: settings, workspaces and kernels of their own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from child_processes import interruptible, until

from simmim_lite.studies import notebooks

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
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => null)"
ERRORS = f"""() => [...{_WIDGET}.content.model.cells].flatMap(cell => cell.type === 'code' ? cell.outputs.toJSON() : [])
  .filter(output => output.output_type === 'error').map(output => `${{output.ename}}: ${{output.evalue}}`)"""


@contextlib.contextmanager
def _serve(module: str, words: list, environment: dict, scratch: Path, end: int) -> Iterator[str]:
    """A server on a free port until it is ended by the signal `end`, which ends its kernels too; its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with (scratch / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--no-browser", f"--port={port}", *map(str, words)],
            env=os.environ | environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=interruptible,
        )  # fmt: skip

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60):
            return True
        return False

    try:
        until(listens, server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(end)
        try:
            server.wait(120)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def jupyterlab(served: Path, scratch: Path) -> Iterator[str]:
    """Serve a folder of notebooks, without a token; all that the server writes is in `scratch`."""
    overrides = scratch / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    options = {"ip": "127.0.0.1", "ServerApp.root_dir": served, "IdentityProvider.token": "", "LabApp.news_url": None}
    options["LabApp.check_for_updates_class"] = "jupyterlab.NeverCheckForUpdate"
    options["LabApp.extension_manager"] = "readonly"
    words = ["--allow-root", "--expose-app-in-browser", *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: str(scratch / folder) for name, folder in FOLDERS.items()}
    with _serve("jupyterlab", words, environment, scratch, signal.SIGTERM) as address:
        yield address


@contextlib.contextmanager
def voila(scratch: Path) -> Iterator[str]:
    """Serve the lab alone, as `make app` does; its address."""
    app = notebooks.folder() / "app"
    environment = {"JUPYTER_PATH": str(app), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime")}
    (settings,) = re.findall("--(Voila.tornado_settings=)'(.*)'", (app.parents[1] / "Makefile").read_text())
    words = [app / "mask_lab.ipynb", "--template=lab_alone", f"--{''.join(settings)}"]
    with _serve("voila", words, environment, scratch, signal.SIGINT) as address:
        yield address


def run_all(page, address: str, name: str) -> list[str]:
    """Open a notebook in JupyterLab, run its cells and wait until the kernel rests; its errors."""
    page.goto(f"{address}lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(IDLE)
    page.evaluate(RUN)
    page.wait_for_function(IDLE)
    return page.evaluate(ERRORS)


def in_the_kernel(page, code: str) -> None:
    """Run code in the kernel of the open notebook, and wait for it."""
    run = f"code => {_WIDGET}.sessionContext.session.kernel.requestExecute({{ code }}).done.then(() => null)"
    page.evaluate(run, code)


def save_and_shut_down(page) -> None:
    """Save the open notebook and end its kernel."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save').then(() => null)")
    page.evaluate(f"() => {_WIDGET}.sessionContext.shutdown().then(() => null)")
