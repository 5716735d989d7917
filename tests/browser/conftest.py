"""A real Chromium for the browser tests, and a gate through which nothing leaves this machine."""

import contextlib
import os
import shutil
from urllib.parse import urlsplit

import lab
import pytest

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
    from playwright.sync_api import sync_playwright

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
            page = context.new_page()
            page.on("websocket", watch)
            return page, refused

        yield open_page


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """One JupyterLab for all tests: the folder that it serves, with `notebooks/` in it, and its address."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "notebooks").mkdir()
    with lab.running(lab.LAB, root, tmp_path_factory.mktemp("jupyter")) as address:
        yield root, address
