"""The explorer's static twin in an exported report, opened from disk: good to read, and inert."""

import explore
import nbformat
import pytest
from hostile import HOSTILE, hostile_catalog, untrained_retrievers

from makelib.workbook.explorer.widget import QueryExplorer
from makelib.workbook.reports.offline import to_html

pytestmark = pytest.mark.browser
V4 = nbformat.v4


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The same notebook over a tame and over a hostile catalogue, exported."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAKELIB_HEADLESS", "1")
        for name, hostile in (("tame", False), ("hostile", True)):
            catalog = hostile_catalog(out / f"{name}-catalogue", hostile)
            explorer = QueryExplorer(
                untrained_retrievers(catalog), k=60, queries={HOSTILE[0]: HOSTILE[1], "b": "red acme"}
            )
            last = catalog.products["product_id"].iloc[-1]
            shows = [
                explorer._repr_mimebundle_(),
                {"text/html": explorer.page(HOSTILE[5], compare="title", rank=1, k=6, title=HOSTILE[4]).data},
                {"text/html": explorer.page(HOSTILE[7], by="both", like=last, rank=2, k=6, blank=True).data},
            ]
            cells = [
                V4.new_code_cell("explorer", execution_count=1, outputs=[V4.new_output("display_data", show)])
                for show in shows
            ]
            nbformat.write(V4.new_notebook(cells=cells), out / f"{name}.ipynb")
            to_html(out / f"{name}.ipynb", out / f"{name}.html")
    return out


def test_a_hostile_catalogue_stays_inert(pages, gated_page):
    bones = []
    for name in ("tame", "hostile"):
        page, refused = gated_page(viewport={"width": 1100, "height": 900})
        dialogs = []
        page.on("dialog", lambda dialog, dialogs=dialogs: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto((pages / f"{name}.html").as_uri())
        bones.append(page.locator("html").evaluate(explore.SKELETON))
        explore.inert(page, page.evaluate(explore.OUTSIDE))
        for title in page.locator(".mkx-title").all()[:60]:
            title.hover()
        assert (refused, dialogs) == ([], [])
    assert bones[0] == bones[1]
    assert HOSTILE[0] in page.locator("main").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_twin_is_easy_to_read(pages, gated_page, theme):
    page, _ = gated_page(viewport={"width": 1100, "height": 900}, color_scheme=theme)
    page.goto((pages / "tame.html").as_uri())
    assert page.locator("script").count() == 0
    assert page.locator(".mkx-tile").count() == 126
    explore.easy_to_read(page.locator("main"))
    page.screenshot(path=explore.SCREENSHOTS / f"report-{theme}.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_twin_is_for_everybody(pages, gated_page, width, theme):
    """axe-core finds nothing serious; in a narrow window titles side by side keep a line of their own."""
    page, _ = gated_page(viewport={"width": width, "height": 900}, color_scheme=theme, bypass_csp=True)
    page.goto((pages / "tame.html").as_uri())
    explore.accessible(page)
    narrowest = page.locator(".mkx-row .mkx-title").evaluate_all(
        "all => Math.min(...all.map(title => title.getBoundingClientRect().width))"
    )
    assert narrowest >= 90
    page.locator(".mkx-versus").first.screenshot(path=explore.SCREENSHOTS / f"versus-{width}-{theme}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_holds_the_whole_twin(pages, gated_page):
    """Dark text on white where the screen is dark, nothing wider than the sheet, no tile torn in two."""
    page, _ = gated_page(viewport={"width": 700, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.goto((pages / "tame.html").as_uri())
    explore.easy_to_read(page.locator("main"))
    assert (
        page.locator(".mkx-tile").first.evaluate("tile => getComputedStyle(tile).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    torn = "all => all.filter(it => getComputedStyle(it).breakInside !== 'avoid').length"
    assert page.locator(".mkx-tile, .mkx-row, .mkx-block").evaluate_all(torn) == 0
    page.screenshot(path=explore.SCREENSHOTS / "report-paper.png", full_page=True)
