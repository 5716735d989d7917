"""The map of the catalogue in a real JupyterLab: a mouse that points sees the photograph, keys do, too, and titles stay text."""

import explore
import lab
import pytest
from planted import planted_run

pytestmark = pytest.mark.browser

VIEW = {"width": 1280, "height": 1800}
#: the figure is no wider than its room, and its legend light where the theme is dark
FITS = """([panel, dark]) => {
    const room = panel.querySelector(".js-plotly-plot").closest(".widget-box").clientWidth;
    const ink = getComputedStyle(panel.querySelector(".legend text")).fill.match(/\\d+/)[0];
    return panel.querySelector(".main-svg").getBoundingClientRect().width <= room && (ink > 127) === dark;
}"""


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


def settled(page, panel):
    """The product that is shown, once it has been the same for two seconds: a mouse on its way points at others, too."""
    shown, since = None, 0
    while since < 20:
        page.wait_for_timeout(100)
        now = panel.locator("[data-product]").get_attribute("data-product")
        shown, since = now, since + 1 if now == shown else 0
    return shown


def test_pointing_shows_the_product_and_a_click_keeps_it(page, panel):
    before = settled(page, panel)
    for number in range(1, 12):
        ring = point_at(page, panel, number)
        if settled(page, panel) != before:
            break
    page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    now = settled(page, panel)
    assert now != before
    page.mouse.move(5, 5)
    assert settled(page, panel) == now
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
        page.wait_for_function(
            FITS, arg=[panel.element_handle(), theme == "Dark"]
        )  # plotly draws anew when it finds the time
        explore.easy_to_read(panel)
        explore.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        panel.screenshot(path=explore.SCREENSHOTS / f"map-{theme.lower()}-{width}.png")
    page.set_viewport_size(VIEW)
    assert page.evaluate("window.hacked") is None
    assert page.dialogs == []
