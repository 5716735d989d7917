"""The explorer in a real JupyterLab: a newcomer's path through notebook 05; a hostile catalogue stays inert."""

import io

import explore
import lab
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

VIEW = {"width": 1280, "height": 2400}


def test_a_newcomer_types_a_query_and_asks_why(workplace, address, gated_page):
    _, experiment = workplace
    page, refused = gated_page(viewport=VIEW)
    lab.run_all(page, address, "notebooks/05_query_explorer.ipynb")
    red = page.locator(
        "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']"
    )
    assert red.all_inner_texts() == []
    panel = page.locator(".mkx-panel")
    explore.tour(panel, experiment)
    explore.easy_to_read(panel)
    explore.accessible(page, ".mkx-panel")
    explore.picture(panel, "light")

    # the keyboard alone: along the ranks, and to the buttons under a tile
    panel.get_by_label("Explain rank").focus()
    page.keyboard.press("ArrowUp")  # the next rank, as in any number box
    panel.locator(".mkx-chosen[data-rank='3']").wait_for()
    page.keyboard.press("ArrowDown")
    panel.locator(".mkx-chosen[data-rank='2']").wait_for()
    panel.get_by_role("button", name="Why?").nth(4).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.keyboard.press("Enter")
    panel.locator(".mkx-chosen[data-rank='5']").wait_for()
    panel.get_by_label("without its image").check()
    panel.locator(".mkx-whatif").wait_for()

    lab.theme(page, "JupyterLab Dark")
    explore.easy_to_read(panel)
    explore.accessible(page, ".mkx-panel")
    explore.picture(panel, "dark")
    panel.get_by_label("Beside it").select_option("title, seed 0")
    panel.locator(".mkx-versus").wait_for()
    explore.easy_to_read(panel)
    explore.picture(panel, "beside-dark")
    lab.theme(page, "JupyterLab Light")
    page.set_viewport_size({"width": 768, "height": 2400})
    explore.easy_to_read(panel)
    explore.picture(panel, "beside-768")
    panel.get_by_label("Beside it").select_option("nothing")
    panel.locator(".mkx-cards .mkx-tile").first.wait_for()
    explore.easy_to_read(panel)
    explore.picture(panel, "768")
    page.set_viewport_size({"width": 400, "height": 2400})
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        for beside, what in (("title, seed 0", ".mkx-versus .mkx-row"), ("nothing", ".mkx-cards .mkx-tile")):
            panel.get_by_label("Beside it").select_option(beside)
            panel.locator(what).first.wait_for()
            explore.accessible(page, ".mkx-panel")
            explore.easy_to_read(panel)
            narrowest = panel.locator(f"{what} .mkx-title").evaluate_all(
                "all => Math.min(...all.map(title => title.getBoundingClientRect().width))"
            )
            assert narrowest >= 90, (theme, beside)
            explore.picture(panel, f"400-{theme}-{beside[:5]}")
    assert refused == []


def test_typing_suggests_searches_and_is_overtaken(workplace, address, gated_page):
    """Results follow what is typed without Enter, the last word wins, and a picture of one's own is a query as well."""
    root, experiment = workplace
    code = (
        "%cd -q ..\nimport time\nfrom makelib.workbook.explorer.widget import QueryExplorer\nexplorer = QueryExplorer('reports/toy')\n"
        "shown = explorer.views.shown\n"
        "def wait(state):\n"
        "    while state.query.startswith('slow') and explorer.query.value.startswith('slow'): time.sleep(0.01)\n"
        "    return shown(state)\n"
        "explorer.views.shown = wait\nexplorer"
    )
    lab.write_notebook(root / "notebooks" / "typing.ipynb", code)
    full = experiment.retriever("full")
    page, refused = gated_page(viewport=VIEW)
    lab.run_all(page, address, "notebooks/typing.ipynb")
    panel = page.locator(".mkx-panel")
    box = panel.get_by_label("Query")
    query = experiment.catalog.queries["query"].iloc[5]

    box.fill("")
    box.press_sequentially(query)  # no Enter
    explore.wait_for(panel, full, query)
    panel.locator(f"datalist option[value='{query}']").wait_for(state="attached")
    assert 1 <= panel.locator("datalist option").count() <= 12

    explore.ask(panel, "slow search")
    panel.locator(".mkx-working", has_text="Searching").wait_for()
    explore.ask(panel, "quick search")
    explore.wait_for(panel, full, "quick search")
    expect(panel.locator(".mkx-status b")).to_have_text("quick search")
    expect(panel.locator(".mkx-working")).to_have_count(0)

    own = io.BytesIO()  # 12 MiB: more than Jupyter lets one message hold unless `make lab` tells it to
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2100, 2000, 3), dtype=np.uint8)).save(own, "PNG")
    assert own.tell() > 12 * 2**20
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name="Search by a picture").click()
    chooser.value.set_files({"name": "<b>own</b>.png", "mimeType": "image/png", "buffer": own.getvalue()})
    panel.locator(".mkx-status .mkx-own").wait_for()
    assert panel.get_by_label("Search by").evaluate("list => list.selectedOptions[0].text.split('\u00a0')") == [
        "my",
        "picture",
    ]
    explore.easy_to_read(panel)
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name="Search by a picture").click()
    chooser.value.set_files({"name": "no.png", "mimeType": "image/png", "buffer": b"<script>alert(1)</script>"})
    panel.get_by_role("alert").get_by_text("This picture is not an image").wait_for()
    assert refused == []


def test_a_hostile_catalogue_stays_inert(workplace, address, gated_page):
    page, refused = gated_page(viewport=VIEW)
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    lab.run_all(page, address, "notebooks/hostile.ipynb")
    explore.attack(page)
    assert (refused, dialogs) == ([], [])
