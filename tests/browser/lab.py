"""A JupyterLab of one's own, on a copy of some notebooks, driven through the app object that it exposes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

#: cells off screen stay in the page, and Lab asks nobody for news
OVERRIDES = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@contextlib.contextmanager
def running(root, home):
    """JupyterLab serving `root`, all its own files under `home`; yields its address."""
    (home / "config" / "labconfig").mkdir(parents=True)
    (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(OVERRIDES))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "MAKELIB"))
    }
    environment |= {name: str(home / folder) for name, folder in folders.items()}
    environment |= {"JUPYTER_CONFIG_PATH": str(home / "config"), "MAKELIB_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root)
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=5)
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()}") from None
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def run_all(page, address, notebook):
    """Open a notebook in Lab and run all its cells; returns when the last one is done."""
    page.set_default_timeout(90_000)
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
            await app.commands.execute('notebook:run-all-cells');
        }"""
    )


def theme(page, name):
    """Switch Lab's theme and wait until it is there."""
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
