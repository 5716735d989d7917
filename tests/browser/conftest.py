"""A real Chromium for the browser tests, and a gate through which nothing leaves this machine."""

import contextlib
import os
import shutil
from urllib.parse import urlsplit

import explore
import lab
import nbformat
import pytest
from hostile import hostile_catalog, untrained_retrievers

from makelib.data.catalog import Catalog
from makelib.settings import to_dict
from makelib.study.arms import run_arm
from makelib.study.experiment import Experiment

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    """A Playwright `Browser`. Without Chromium the test is skipped, or fails where MAKELIB_NEEDS_BROWSER is set."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        reason = "no Chromium on this machine: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("MAKELIB_NEEDS_BROWSER") else pytest.skip(reason)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=explore.PATIENCE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture
def gated_page(browser):
    """Opens pages that reach only `file:` and 127.0.0.1: `page, refused = gated_page(viewport=…)`.

    `refused` collects the address of every other request, WebSockets included; a test asserts that it stays empty.
    """
    with contextlib.ExitStack() as contexts:

        def open_page(**options):
            context = contexts.enter_context(contextlib.closing(browser.new_context(**options)))
            refused: list[str] = []

            def gate(route):
                address = urlsplit(route.request.url)
                if address.scheme in ("file", "data", "blob") or address.hostname in ("127.0.0.1", "localhost"):
                    route.continue_()
                else:
                    refused.append(route.request.url)
                    route.abort()

            def watch(socket):
                if urlsplit(socket.url).hostname not in ("127.0.0.1", "localhost"):
                    refused.append(socket.url)

            context.route("**/*", gate)
            context.set_default_timeout(explore.PATIENCE)
            page = context.new_page()
            page.on("websocket", watch)
            return page, refused

        yield open_page


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """One JupyterLab for all tests: the folder that it serves, with `notebooks/` in it, and its address."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "notebooks").mkdir()
    with lab.running(lab.jupyterlab(), root, tmp_path_factory.mktemp("jupyter")) as address:
        yield root, address


@pytest.fixture
def address(jupyter):
    return jupyter[1]


#: a run that trains in seconds
TOY = {
    "bazaar.products": 400, "bazaar.queries": 300, "bazaar.clicks": 3000,
    "training.steps": 40, "training.batch_size": 64,
    "evaluation.test_queries": 60, "evaluation.validation_queries": 30,
}  # fmt: skip


@pytest.fixture(scope="session")
def workplace(jupyter):
    """A folder like the repository's root: a trained toy run, notebook 05 with its parameters, and a notebook with two
    explorers of one line each, the first of a tame catalogue, the second of a hostile one."""
    root, _ = jupyter
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        experiment = Experiment.open("reports/toy", "smoke", "bazaar", 1, TOY)
        for variant in ("full", "title"):
            arm = experiment.arm("make", variant, 0)
            run_arm(
                arm.label, to_dict(arm.settings), str(experiment.catalog.folder.resolve()), 0, str(arm.folder.resolve())
            )
        catalog = Catalog.open(experiment.catalog.folder.resolve())  # tests ask it from elsewhere
        experiment = Experiment(root / "reports/toy", experiment.settings, catalog)
    notebook = nbformat.read(explore.ROOT / "notebooks" / "05_query_explorer.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = f'preset = "smoke"\ncatalog = "bazaar"\nseeds = 1\nrun = "reports/toy"\noverrides = {TOY!r}'
    nbformat.write(notebook, root / "notebooks" / "05_query_explorer.ipynb")

    cells = []
    for name in ("tame", "hostile"):
        found = untrained_retrievers(hostile_catalog(root / f"{name}-catalogue", hostile=name == "hostile"))
        for fusion in ("adaptive", "title"):
            found[fusion].save(root / "models" / name / fusion)
        cells.append(
            "from makelib.workbook.explorer.widget import QueryExplorer\nfrom makelib.search.retriever import Retriever\n"
            f"models = {{name: Retriever.open(f'../models/{name}/{{name}}') for name in ('adaptive', 'title')}}\n"
            "QueryExplorer(models, k=60, queries=['<b>acme</b>'])"
        )
    lab.write_notebook(root / "notebooks" / "hostile.ipynb", *cells)
    return root, experiment
