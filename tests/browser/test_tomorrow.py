"""The next day, and the page that was closed too soon: what a saved notebook shows when its kernel is gone, or busy."""

import json
import re
from pathlib import Path

import explore
import lab
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

VIEW = {"width": 1280, "height": 2000}


def opened(page, address, notebook):
    """Open a saved notebook as it lies there."""
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()


def test_a_saved_notebook_without_its_kernel_shows_the_twin_and_finished_bars(workplace, address, gated_page):
    root, _ = workplace
    lab.write_notebook(
        root / "notebooks" / "saved.ipynb",
        "from makelib.runtime import progress\nfor _ in progress(range(3), description='arms', unit='step'): pass",
        "%cd -q ..\nfrom makelib import QueryExplorer\nQueryExplorer('reports/toy')",
    )
    page, _ = gated_page(viewport=VIEW)
    lab.run_all(page, address, "notebooks/saved.ipynb")
    page.locator(".mkx-panel .mkx-tile").first.wait_for()
    assert not page.locator(".mkx-twin").is_visible()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")

    page, refused = gated_page(viewport=VIEW)
    opened(page, address, "notebooks/saved.ipynb")
    page.locator(".mkx-twin .mkx-tile").first.wait_for()
    notebook = page.locator(".jp-Notebook")
    expect(page.locator(".mkx-twin .mkx-why")).to_be_visible()
    expect(notebook.get_by_text(re.compile(r"arms: 3 steps in \d\d:\d\d"))).to_be_visible()
    for words in ("Error displaying widget", "Loading widget", "0/3", "when this page was saved"):
        expect(notebook.get_by_text(words).first).not_to_be_visible()
    explore.picture(notebook, "tomorrow")
    assert refused == []


def test_a_page_that_is_opened_anew_says_that_its_kernel_still_trains(workplace, address, gated_page):
    root, _ = workplace
    lab.write_notebook(
        root / "notebooks" / "training.ipynb",
        "import pathlib, time\nfrom makelib.runtime import progress\n"
        "for _ in progress(range(3000), description='3 arms', unit='step'):\n"
        "    time.sleep(0.1)\n    if pathlib.Path('enough').exists(): break",
    )
    page, _ = gated_page(viewport=VIEW)
    lab.open_notebook(page, address, "notebooks/training.ipynb")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.locator(".jp-OutputArea .jupyter-widgets", has_text="3 arms").first.wait_for()
    expect(page.get_by_text("when this page was saved")).not_to_be_visible()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.close()

    page, _ = gated_page(viewport=VIEW)
    opened(page, address, "notebooks/training.ipynb")
    page.get_by_text("3 arms: began at").wait_for()
    expect(page.get_by_text("Loading widget").first).not_to_be_visible()
    kernel = page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) |")
    expect(kernel).not_to_contain_text("Idle")
    explore.picture(page.locator(".jp-NotebookPanel"), "still-training")
    (root / "notebooks" / "enough").touch()
    page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def test_make_lab_saves_every_few_seconds():
    """A page that is opened anew shows what was saved last, and Lab by itself saves every two minutes."""
    _, environment = lab.made("lab")
    settings = Path(environment["JUPYTER_CONFIG_PATH"]) / "labconfig" / "default_setting_overrides.json"
    assert json.loads(settings.read_text())["@jupyterlab/docmanager-extension:plugin"]["autosaveInterval"] <= 10
