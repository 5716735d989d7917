"""The explorer as a page for colleagues, as `make explore` serves it."""

import contextlib
import json
import re
import time

import explore
import lab
import psutil
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(workplace, tmp_path_factory):
    """Voilà with the options of the Makefile, over all notebooks of the workplace; leavers are looked for more often."""
    options, environment = lab.made("explore")
    assert any("cull_idle_timeout" in option for option in options)
    # after three seconds a page whose browser was busy had not connected yet, and lost its kernel
    options = [re.sub(r"cull_idle_timeout=\d+", "cull_idle_timeout=30", option) for option in options]
    options = [re.sub(r"cull_interval=\d+", "cull_interval=3", option) for option in options]
    serve = ("makelib.workbook.visitors", "notebooks/05_query_explorer.ipynb")
    command = (*serve, "--no-browser", "--Voila.ip=127.0.0.1", *options, "notebooks")
    root, home = workplace[0], tmp_path_factory.mktemp("voila")
    with lab.running(command, root, home, "voila/static/voila.js", environment) as found:
        yield found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_colleague_explores(workplace, address, gated_page, theme):
    page, refused = gated_page(viewport={"width": 1280, "height": 1400}, bypass_csp=True)  # for axe
    explore.opened(page, f"{address}/voila/render/05_query_explorer.ipynb?theme={theme}")
    panel = page.locator(".mkx-panel")
    assert page.title() == "Query explorer"
    assert page.get_by_role("heading", level=1).inner_text().startswith("5 · The query explorer")
    assert page.locator(".jp-CodeCell .jp-InputArea, .mkx-query, [data-mime-type$='stderr']").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    if theme == "light":
        explore.tour(panel, workplace[1])
    panel.get_by_role("button", name="Why?").first.click()
    panel.locator(".mkx-chosen[data-rank='1']").wait_for()
    panel.locator(".mkx-why").wait_for()
    explore.easy_to_read(panel)
    explore.easy_to_read(page.locator("main, body").first)
    page.screenshot(path=explore.SCREENSHOTS / f"voila-{theme}.png", full_page=True)
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 1400})
        explore.accessible(page)
        explore.easy_to_read(panel)
        assert not page.get_by_text("numbers each").first.is_visible()  # what cells print
    page.screenshot(path=explore.SCREENSHOTS / f"voila-400-{theme}.png", full_page=True)
    panel.get_by_label("Beside it").select_option("title, seed 0")
    panel.locator(".mkx-versus").wait_for()
    explore.accessible(page)
    page.screenshot(path=explore.SCREENSHOTS / f"voila-400-beside-{theme}.png", full_page=True)
    assert refused == []


def test_paper_holds_the_live_page(address, gated_page):
    """Printed from a dark screen: every tile, row and explanation, and what was asked."""
    page, _ = gated_page(viewport={"width": 1280, "height": 900})
    explore.opened(page, f"{address}/voila/render/05_query_explorer.ipynb?theme=dark")
    panel = page.locator(".mkx-panel")
    panel.get_by_role("button", name="Why?").first.click()
    panel.locator(".mkx-why").wait_for()
    explore.paper(page, panel, "voila")
    explore.wait_for_tiles(panel, 12)
    panel.get_by_label("Beside it").select_option("title, seed 0")
    expect(panel.locator(".mkx-versus .mkx-row")).to_have_count(24)
    explore.paper(page, panel, "voila-beside")


def test_what_nobody_types_is_held(workplace, address, gated_page):
    """Two hundred results right after the first tiles, and a word of five thousand letters."""
    full = workplace[1].retriever("full")
    page, _ = gated_page(viewport={"width": 1280, "height": 1400})
    explore.opened(page, f"{address}/voila/render/05_query_explorer.ipynb")
    panel = page.locator(".mkx-panel")
    panel.get_by_text("History and state").click()
    for query in ("red dress", "blue bag"):
        panel.get_by_label("State").fill(json.dumps({"query": query, "variant": "full, seed 0", "k": 200}))
        panel.get_by_role("button", name="Restore").click()
        explore.wait_for(panel, full, query, 200)
        assert panel.get_by_label("Results", exact=True).input_value() == "200"
    panel.get_by_label("Results", exact=True).select_option("6")
    word = "ab" * 2500
    explore.ask(panel, word)
    panel.locator(".mkx-status b", has_text=word).wait_for()
    explore.wait_for_tiles(panel, 6)
    assert panel.locator(".mkx-status").bounding_box()["height"] < 160
    explore.easy_to_read(panel)


def test_a_hostile_catalogue_stays_inert(address, gated_page):
    page, refused = gated_page(viewport={"width": 1280, "height": 1400})
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    explore.opened(page, f"{address}/voila/render/hostile.ipynb", explorers=2)
    explore.attack(page)
    assert (refused, dialogs) == ([], [])


def kernels():
    """Kernels of visitors, which are forks of the process that serves them, and what stands in for them with Voilà."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended between being listed and being asked
            fork = process.cmdline() == process.parent().cmdline() and "makelib.workbook.visitors" in process.cmdline()
            if fork or process.cmdline() == ["cat", "-"] or any("stand_in.py" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_mistake_is_a_sentence_on_the_page(workplace, address, gated_page):
    lab.write_notebook(
        workplace[0] / "notebooks" / "mistake.ipynb", "from makelib import Experiment", "Experiment.open('', 'quikc')"
    )
    page, refused = gated_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/voila/render/mistake.ipynb")
    page.get_by_text("Unknown preset 'quikc'. Choose one of: quick, smoke").wait_for()
    assert "Traceback" not in page.locator("body").inner_text()
    assert "show_tracebacks" not in page.locator("body").inner_text()
    page.screenshot(path=explore.SCREENSHOTS / "voila-mistake.png")
    assert refused == []


def own_kernels(before):
    """The kernel of the visitor who came since, and what stands in for it; of a page that was loaded twice, the second."""
    deadline = time.monotonic() + 90
    while len(own := [kernel for kernel in kernels() if kernel.pid not in before]) != 2:
        assert time.monotonic() < deadline, own
        time.sleep(0.2)
    return own


def test_whoever_leaves_gives_his_kernel_back(address, gated_page):
    before = {kernel.pid for kernel in kernels()}  # visitors before him may be leaving still
    page, _ = gated_page(viewport={"width": 1280, "height": 900})
    explore.opened(page, f"{address}/voila/render/05_query_explorer.ipynb")
    own = {kernel.pid for kernel in own_kernels(before)}
    page.goto("about:blank")
    deadline = time.monotonic() + 120
    while own & {kernel.pid for kernel in kernels()}:
        assert time.monotonic() < deadline, "the kernel of a visitor who left still runs"
        time.sleep(0.5)


def test_a_further_visitor_costs_little(address, gated_page):
    """What his kernel has of its own after a search and a *why* (a kernel of one's own took some 1,000 MiB), and how little his page
    asks for before its first tiles: states of all widgets at once, where it would ask for each of them, and no plotly."""
    visits = []
    for _ in range(2):
        before = {kernel.pid for kernel in kernels()}
        page, _ = gated_page(viewport={"width": 1280, "height": 900})
        asked, sent = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("websocket", lambda it, sent=sent: it.on("framesent", lambda message: sent.append(message)))
        began = time.monotonic()
        explore.opened(page, f"{address}/voila/render/05_query_explorer.ipynb")
        took, needed = time.monotonic() - began, len(sent)
        assert 1 <= needed <= 20
        assert not [url for url in asked if "plotly" in url]
        panel = page.locator(".mkx-panel")
        explore.ask(panel, "red dress")
        panel.locator(".mkx-status b", has_text="red dress").wait_for()
        panel.get_by_role("button", name="Why?").first.click()
        panel.locator(".mkx-why").wait_for()
        own = own_kernels(before)
        busy = sum(sum(kernel.cpu_times()[:2]) for kernel in own)
        visits.append((sum(kernel.memory_full_info().uss for kernel in own) / 2**20, needed, busy, took))
    for size, needed, busy, took in visits:
        print(
            f"{size:.0f} MiB of his own, {needed} messages, {busy:.1f} s of his kernel, first tiles after {took:.1f} s"
        )
    assert visits[1][0] <= 50
