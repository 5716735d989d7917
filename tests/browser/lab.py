"""A JupyterLab or a Voilà of one's own, on a copy of some notebooks; Lab is driven through the app object that it exposes."""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
from explore import PATIENCE, ROOT

#: cells off screen stay in the page, and Lab asks nobody for news
OVERRIDES = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


def made(target):
    """What `make <target>` starts: the options, without those that name places, and JUPYTER_* as an environment."""
    ran = subprocess.run(
        ["make", "--no-print-directory", "-n", target], cwd=ROOT, check=True, capture_output=True, text=True
    )
    words = shlex.split(ran.stdout.replace("\\\n", " "))
    program = next(i for i, word in enumerate(words) if word.endswith(("/jupyter", "/python")))
    environment = dict(word.split("=", 1) for word in words[:program] if word.startswith("JUPYTER_"))
    return [word for word in words[program:] if word.startswith("--") and str(ROOT) not in word], environment


def jupyterlab():
    """`make lab`, for a program instead of a person."""
    options = [option for option in made("lab")[0] if "default_url" not in option]
    own = ("--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token=")
    return ("jupyterlab", *own, "--LabApp.expose_app_in_browser=True", "--ServerApp.root_dir=.", *options)


@contextlib.contextmanager
def running(command, root, home, path="api", environment=None):
    """A server (`python -m` this command) in `root`, all its own files under `home`; yields its address once `path` answers."""
    (home / "config" / "labconfig").mkdir(parents=True)
    (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(OVERRIDES))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "MAKELIB"))
    }
    environment = inherited | (environment or {})
    environment |= {name: str(home / folder) for name, folder in folders.items()}
    environment |= {"JUPYTER_CONFIG_PATH": str(home / "config"), "MAKELIB_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home / "server.log"
    with open(log, "w") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}"], env=environment, stdout=lines, stderr=lines, cwd=root
        )
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 240
            while True:
                try:
                    urllib.request.urlopen(f"{address}/{path}", timeout=5)
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()}") from None
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def write_notebook(path, *cells):
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def open_notebook(page, address, notebook):
    """Open a notebook in Lab, and wait for its kernel."""
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    page.wait_for_function("window.jupyterapp !== undefined")
    page.evaluate(
        """async () => {
            const app = window.jupyterapp;
            await app.restored;
            while (!app.shell.currentWidget?.context?.sessionContext) await new Promise(done => setTimeout(done, 50));
            const panel = app.shell.currentWidget;
            await panel.context.ready;
            await panel.context.sessionContext.ready;
            app.shell.collapseLeft();
        }"""
    )


def run_all(page, address, notebook):
    """Open a notebook in Lab and run all its cells; returns when the last one is done. The page has the tests' patience."""
    page.set_default_timeout(PATIENCE)
    open_notebook(page, address, notebook)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def theme(page, name):
    """Switch Lab's theme and wait until it is there."""
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
