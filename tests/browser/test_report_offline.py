"""Report pages in a real Chromium, opened from disk: no request, no script, and what a reader should see is there."""

import base64
import io
import json
import shutil

import explore
import nbformat
import pytest
from PIL import Image

from makelib.settings import preset, to_dict
from makelib.workbook.reports.offline import to_html
from makelib.workbook.reports.pack import pack
from makelib.workbook.reports.pages import Notebook, index_page

pytestmark = pytest.mark.browser
V4 = nbformat.v4


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (600, 300), "#1f6f8b").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run as `reproduce` leaves it (a page with everything in it, a failed one, and the index), packed, unpacked elsewhere,
    and gone from where it was made."""
    out = tmp_path_factory.mktemp("made") / "run"
    out.mkdir()
    (out / "figures").mkdir()
    (out / "figures" / "weights.png").write_bytes(base64.b64decode(png()))
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "0", "version_major": 2, "version_minor": 0}}
    hostile = "<script>document.title = 'hacked'</script><img src='https://e.example/a.png'><b id='kept'>kept</b>"

    def cell(source, *outputs):
        outputs = [V4.new_output("display_data", data) for data in outputs]
        return V4.new_code_cell(source, execution_count=1, outputs=outputs)

    table = (
        "<table><thead><tr><th>variant</th><th>Rel@10</th></tr></thead><tr><td>adaptive</td><td>0.5</td></tr></table>"
    )
    cells = [
        V4.new_markdown_cell("# Everything\n\nScore $q \\cdot p$.\n\n$$\\frac{1}{B}\\sum_i x_i$$\n\n<b>bold</b>"),
        cell("plot()", {"image/png": png()}),
        cell("table", {"text/html": table}),
        cell("explorer", {**view, "text/html": f"<div id='twin'>static twin {hostile}</div>", "text/plain": "Box()"}),
        cell("slider", {**view, "text/plain": "IntSlider(value=0)"}),
        cell("script", {"application/javascript": "document.title = 'hacked'"}),
    ]
    notebook = V4.new_notebook(cells=cells, metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {}}})
    nbformat.write(notebook, out / "01_data.ipynb")
    failed = V4.new_code_cell("1 / 0", execution_count=2)
    failed.outputs = [
        V4.new_output("error", ename="ZeroDivisionError", evalue="division", traceback=["Trace: \x1b[31mred"])
    ]
    nbformat.write(V4.new_notebook(cells=[failed]), out / "02_training.ipynb")
    to_html(out / "01_data.ipynb", out / "01_data.html")
    to_html(out / "02_training.ipynb", out / "02_training.html", "In [2] ZeroDivisionError: <i>division</i>")
    row = {
        "study": "modal_adaptation", "variant": "adaptive", "metric": "Rel@10", "segment": "all", "per_seed": [0.5],
        "mean": 0.5, "interval": [0.4, 0.6], "reference": "joint", "difference": 0.1, "difference_interval": [0.0, 0.2],
        "p_value": 0.01, "p_value_holm": 0.02,
    }  # fmt: skip
    notebooks = {
        "01_data": Notebook(out / "01_data.ipynb", "Data", [], "ok", 3.0, "", "01_data.html"),
        "02_training": Notebook(out / "02_training.ipynb", "<T>", [], "failed", 3.0, "why", "02_training.html"),
    }
    summary = {
        "run": "try", "preset": "smoke", "settings": to_dict(preset("smoke")), "seeds": [0], "results": [row],
        "notebooks": [{"name": name} for name in notebooks],
        "provenance": {
            "git_commit": "0" * 40, "dirty": True, "python": "3.11", "packages": {"numpy": "2"}, "device": "cpu",
            "threads": 2, "wall_seconds": {"total": 6.0}, "peak_memory_bytes": 2**30,
            "catalogue": {"name": "<bazaar>", "fingerprint": "abc", "products": 1200, "queries": 5,
                          "interactions": 9, "generated_queries": True},
        },
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary))
    (out / "index.html").write_text(index_page(summary, out, notebooks), encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.unpack_archive(pack(out), elsewhere)
    shutil.rmtree(out.parent)
    return elsewhere / "run"


@pytest.fixture(params=["light", "dark"])
def opened(request, report, gated_page):
    """`opened(name)` gives the page; afterwards nothing may have been asked for but files of the report."""
    page, refused = gated_page(color_scheme=request.param, viewport={"width": 1100, "height": 800})
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))

    def go(name):
        page.goto((report / name).as_uri())
        return page

    yield go
    assert refused == []
    assert [url for url in asked if not url.startswith((report.as_uri(), "data:"))] == []


def test_a_notebook_page_shows_everything_and_runs_nothing(opened):
    page = opened("01_data.html")
    assert page.title() == "01_data"
    assert page.locator("script, link, iframe").count() == 0
    assert page.locator("math").count() == 2
    assert page.locator("math[display=block] mfrac").bounding_box()["height"] > 20
    assert "$" not in page.locator("main").inner_text()
    assert page.locator("#twin").inner_text().startswith("static twin")
    assert page.locator("#kept").is_visible()
    assert "IntSlider" not in page.content()
    figure = page.locator("img[src^='data:image/png']").first
    assert figure.evaluate("image => image.complete && image.naturalWidth") == 600
    assert page.locator("td", has_text="adaptive").is_visible()


def test_code_is_folded_until_it_is_opened(opened):
    page = opened("01_data.html")
    code = page.locator("details.code .highlight").first
    assert not code.is_visible()
    page.locator("details.code summary").first.click()
    assert code.is_visible()


def test_a_failed_notebook_shows_its_error(opened):
    page = opened("02_training.html")
    assert (
        page.locator("[role=alert]").inner_text() == "This notebook failed. In [2] ZeroDivisionError: <i>division</i>"
    )
    assert page.get_by_text("Trace: red").is_visible()


def test_text_can_be_read_on_its_background(opened):
    """Contrast of at least 4.5 (WCAG AA) for prose and for the quiet lines, in light and dark."""
    page = opened("01_data.html")
    contrast = """element => {
        const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(value => {
            value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4 });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const [a, b] = [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }"""
    for place in ("main p", "details.code summary", "nav a", "th"):
        assert page.locator(place).first.evaluate(contrast) >= 4.5, place


def test_the_index_leads_to_every_page_and_back(opened):
    page = opened("index.html")
    assert page.get_by_text("<bazaar>").is_visible()
    assert page.get_by_text("+10.0").first.is_visible()
    assert page.locator("figure img").evaluate("image => image.naturalWidth") == 600
    page.get_by_role("link", name="Data", exact=True).click()
    assert page.locator("h1", has_text="Everything").is_visible()
    page.get_by_role("link", name="← Report").click()
    page.get_by_role("link", name="<T>").click()
    assert page.locator("[role=alert]").is_visible()


@pytest.mark.parametrize("width", [400, 1100])
def test_no_page_scrolls_sideways(report, gated_page, width):
    page, _ = gated_page(viewport={"width": width, "height": 800})
    for name in ("index.html", "01_data.html", "02_training.html"):
        page.goto((report / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_every_page_is_for_everybody(report, gated_page, width, theme):
    """axe-core: nothing serious or critical, and no cell above row labels that poses as a heading."""
    page, _ = gated_page(viewport={"width": width, "height": 800}, color_scheme=theme, bypass_csp=True)
    for name in ("index.html", "01_data.html", "02_training.html"):
        page.goto((report / name).as_uri())
        explore.accessible(page)
        assert page.locator("thead th").evaluate_all("all => all.filter(th => !th.innerText.trim()).length") == 0, name
    page.goto((report / "index.html").as_uri())
    page.screenshot(path=explore.SCREENSHOTS / f"index-{width}-{theme}.png", full_page=True)


def test_paper_holds_the_whole_page(report, gated_page):
    """Dark text on white also where the screen is dark, tables no wider than the sheet, details open."""
    page, _ = gated_page(viewport={"width": 700, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    for name in ("index.html", "01_data.html"):
        page.goto((report / name).as_uri())
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        ink = page.locator("main p").first.evaluate("p => getComputedStyle(p).color.match(/\\d+/g).map(Number)")
        assert max(ink[:3]) < 128, ink
        wide = "all => all.filter(table => table.getBoundingClientRect().right > innerWidth).length"
        assert page.locator("table").evaluate_all(wide) == 0, name
        hidden = "all => all.filter(it => !it.checkVisibility({contentVisibilityAuto: true})).length"
        assert page.locator("details.more pre, details.more table").evaluate_all(hidden) == 0, name
