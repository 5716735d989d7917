"""The first hour of a person: README's first screen, taken at its word, leads to a search of one's own and to *why*."""

import os
import re
import signal
import subprocess
import time

import explore
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]  # it trains two models, as a newcomer's first visit does

README = (explore.ROOT / "README.md").read_text(encoding="utf-8")


def test_readmes_first_screen_leads_to_a_search_and_to_why(newcomer, gated_page, tmp_path):
    before, block = README.split("```\n")[:2]
    assert before.count("\n") < 20, "commands come first"
    assert "`git clone`" in before  # `newcomer` did
    commands = block.splitlines()
    assert not re.search(r"<[\w ]+>", block), "what a person cannot type is no command"
    query = re.search(r"type `([a-z ]+)`", README)[1]

    log = tmp_path / "terminal.log"
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "MAKELIB"))}
    environment |= own | {"BROWSER": "true", "PYTHONPATH": str(newcomer)}  # no window opens; the clone is what runs
    with open(log, "w") as lines:
        shell = subprocess.Popen(
            "\n".join(commands),
            shell=True,
            cwd=newcomer,
            env=environment,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )
    try:
        while not (address := re.search(r"http://localhost:\d+/", log.read_text())):
            assert shell.poll() is None, log.read_text()
            time.sleep(0.5)
        assert "Nobody has trained full, seed 0 and title, seed 0 yet: that comes first" in log.read_text()
        page, refused = gated_page(viewport={"width": 1280, "height": 1400})
        explore.opened(page, address[0])
        panel = page.locator(".mkx-panel")
        panel.get_by_label("Query").fill(query)
        panel.locator(".mkx-status b", has_text=query).wait_for()
        assert panel.locator(".mkx-cards .mkx-category").all_inner_texts()[:4] == ["bags"] * 4
        panel.get_by_role("button", name="Why?").first.click()
        panel.locator(".mkx-why").wait_for()
        assert panel.locator("[role=alert]").count() == 0
        explore.picture(panel, "first-hour")
        assert refused == []
    finally:
        os.killpg(shell.pid, signal.SIGINT)  # Ctrl-C
        shell.wait(60)
