"""The map of the catalogue in a real JupyterLab: a mouse that points sees the photograph, keys do, too, and titles stay text."""

import re

import explore
import lab
import pytest
from planted import planted_run

pytestmark = pytest.mark.browser

VIEW = {"width": 1280, "height": 1800}


@pytest.fixture(scope="module")
def page(jupyter, browser):
    """A notebook with one map, of a hostile shop."""
    root, address = jupyter
    (root / "planted-map").mkdir()
    planted_run(root / "planted-map")
    lab.write_notebook(
        root / "notebooks" / "map.ipynb",
        "from makelib import CatalogueMap\nCatalogueMap('../planted-map/run', query='red thing')",
    )
    page = browser.new_context(viewport=VIEW).new_page()
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    lab.run_all(page, address, "notebooks/map.ipynb")
    page.locator(".mkx-map .scatterlayer .point").first.wait_for()
    yield page
    page.context.close()


@pytest.fixture
def panel(page):
    return page.locator(".mkx-map")


def point_at(page, panel, number):
    """The mouse over the hit that was drawn as this one, until plotly writes its title: a busy figure may still be moving."""
    for _ in range(20):
        page.mouse.move(5, 5)
        ring = panel.locator(".scatterlayer .trace").nth(-3).locator(".point").nth(number).bounding_box()
        page.mouse.move(ring["x"] + ring["width"] / 2 - 1, ring["y"] + ring["height"] / 2)
        page.mouse.move(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2, steps=4)
        page.wait_for_timeout(500)
        if panel.locator(".hoverlayer text").count():
            return ring
    raise AssertionError("no title beside the mouse")


def test_pointing_shows_the_product_and_a_click_keeps_it(page, panel):
    before = panel.locator("[data-product]").get_attribute("data-product")
    for number in range(1, 12):
        ring = point_at(page, panel, number)
        page.wait_for_timeout(400)
        if panel.locator("[data-product]").get_attribute("data-product") != before:
            break
    now = panel.locator("[data-product]").get_attribute("data-product")
    assert now != before
    page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    page.mouse.move(5, 5)
    assert panel.locator("[data-product]").get_attribute("data-product") == now
    assert panel.locator("[role=alert]").count() == 0


def test_keys_walk_through_the_hits(page, panel):
    panel.get_by_label("Show rank").focus()
    for rank in ("1", "2", "3"):
        page.keyboard.press("ArrowUp")
        panel.locator(f"[data-rank='{rank}']").wait_for()


def test_colours_and_queries_are_followed(page, panel):
    panel.get_by_label("Colour").select_option("relevance")
    panel.locator(".legend text", has_text="not relevant").wait_for()
    panel.get_by_label("Query").fill("blue acme")
    panel.get_by_label("Query").press("Enter")
    panel.locator(".mkx-status b", has_text="blue acme").wait_for()
    panel.get_by_label("Colour").select_option("category")
    panel.locator(".legend text", has_text="dress").wait_for()


def test_it_is_easy_to_read_in_both_themes_and_narrow_and_stays_inert(page, panel):
    for theme, width in (("Light", 1280), ("Dark", 1280), ("Dark", 400), ("Light", 400)):
        lab.theme(page, f"JupyterLab {theme}")
        page.set_viewport_size(VIEW | {"width": width})
        page.wait_for_timeout(500)
        explore.easy_to_read(panel)
        wide = panel.locator(".main-svg").first.bounding_box()["width"]
        room = panel.locator(".js-plotly-plot").evaluate("it => it.closest('.widget-box').clientWidth")
        assert wide <= room, theme
        explore.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        panel.screenshot(path=explore.SCREENSHOTS / f"map-{theme.lower()}-{width}.png")
        legend = panel.locator(".legend text").first.evaluate("it => getComputedStyle(it).fill")
        assert (int(re.search(r"\d+", legend)[0]) > 127) == (theme == "Dark")
    page.set_viewport_size(VIEW)
    assert page.evaluate("window.hacked") is None
    assert page.dialogs == []
