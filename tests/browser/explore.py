"""The explorer as a person sees and handles it, the same in JupyterLab and in Voilà."""

import time
from pathlib import Path

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from hostile import HOSTILE
from playwright.sync_api import TimeoutError, expect

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "reports" / "screenshots"
#: milliseconds until what a test waits for counts as never coming; a machine may be busy
PATIENCE = 90_000

#: names of tags outside the explorer that a page which was broken into would have more of, and attributes that act
GUARDED = "script, style, link, iframe, object, embed, base, meta, form, a, [onerror], [onload], [onmouseover]"
OUTSIDE = f"() => [...document.querySelectorAll('{GUARDED}')].filter(it => !it.closest('.mkx')).length"

#: tags and names of attributes of all that stands around tiles, rows of a ranking, explanations and lines between them
SKELETON = """root => {
    const own = ".mkx-tile, .mkx-row, .mkx-why, .mkx-lines, .mkx-whatif";
    const bones = node => [node.tagName, node.getAttributeNames().sort().join(" "),
        node.matches(own) ? [] : [...node.children].map(bones)];
    return JSON.stringify(bones(root));
}"""

#: texts whose contrast with what lies under them is below WCAG's AA, with the contrast; disabled controls may be pale
PALE = """root => {
    const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const over = (colours) => {
        pixel.clearRect(0, 0, 1, 1);
        for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1) }
        return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = colour => {
        const [r, g, b] = colour.map(value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const pale = [];
    for (const node of root.querySelectorAll("*")) {
        const said = node.matches("input, textarea, select") ? node.value
            : [...node.childNodes].filter(it => it.nodeType === 3).map(it => it.data).join("").trim();
        if (!said || node.matches("style, option, [type=checkbox], :disabled") || !node.checkVisibility({visibilityProperty: true})) continue;
        const under = [];
        let opacity = 1;
        for (let it = node; it; it = it.parentElement) {
            under.unshift(getComputedStyle(it).backgroundColor);
            opacity *= getComputedStyle(it).opacity;
        }
        const paper = over(["white", ...under]), ink = over(["white", ...under, getComputedStyle(node).color]);
        const [a, b] = [light(paper), light(ink.map((value, i) => opacity * value + (1 - opacity) * paper[i]))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) pale.push(`${node.className}: ${said.slice(0, 30)} (${contrast.toFixed(2)})`);
    }
    return pale;
}"""

#: controls without a name and pictures without an alternative text
NAMELESS = """root => [...root.querySelectorAll("input, select, textarea, button, img")].filter(it =>
    !(it.alt || it.getAttribute("aria-label") || it.labels?.[0]?.textContent.trim() || it.textContent.trim() && it.matches("button")
      || it.title)
    ).map(it => it.outerHTML.slice(0, 120))"""


def opened(page, address, explorers=1):
    """Go there and wait for the explorers. Voilà has left a page without its widgets once in about sixty loads; a person reloads then."""
    last = page.locator(".mkx-panel").nth(explorers - 1).locator(".mkx-tile").first
    page.goto(address)
    try:
        last.wait_for(timeout=45_000)
    except TimeoutError:
        page.reload()
        last.wait_for()


def shown(panel):
    """Ids of the products in the explorer, in order."""
    return panel.locator(".mkx-cards [data-product]").evaluate_all("tiles => tiles.map(tile => tile.dataset.product)")


def wait_for(panel, retriever, query, k=12):
    """Until the tiles are this retriever's first `k`, in order; of scores that are level to four digits either may come first, for
    the explorer's process has another number of threads, which round otherwise."""
    hits = retriever.search(query, len(retriever.catalog))
    scores, best = dict(zip(hits["product_id"], hits["score"], strict=True)), hits["score"].to_numpy()[:k]
    deadline = time.monotonic() + 90
    while True:
        found = shown(panel)
        if len(set(found)) == len(found) == k and np.allclose(
            [scores[product] for product in found], best, rtol=0, atol=1e-4
        ):
            return
        assert time.monotonic() < deadline, f"{query!r}: {k} wanted, {len(found)} shown: {found[:12]} …"
        panel.page.wait_for_timeout(100)


def wait_for_tiles(panel, number):
    """Until so many tiles are in the page: cells may still be on their way when the line above them says what was found."""
    expect(panel.locator(".mkx-cards [data-product]")).to_have_count(number)


def ask(panel, query):
    """Type a query and press Enter."""
    panel.get_by_label("Query").fill(query)
    panel.get_by_label("Query").press("Enter")


def picture(panel, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    panel.screenshot(path=SCREENSHOTS / f"explorer-{name}.png")


def easy_to_read(panel):
    """Contrast, names and alternative texts of all that is shown, and nothing that sticks out sideways."""
    assert panel.evaluate(PALE) == []
    assert panel.evaluate(NAMELESS) == []
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")


def paper(page, panel, name):
    """Printed, also from a dark screen: dark text on white, and nothing hidden, torn or wider than the sheet."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})  # a sheet's
    easy_to_read(panel)
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    colour = "(it, of) => getComputedStyle(it)[of].match(/[\\d.]+/g).map(Number)"
    assert max(panel.locator(".mkx-status b").evaluate(colour, "color")[:3]) < 128
    for node in (page.locator("body"), panel.locator(".mkx-tile, .mkx-row").first):
        paint = node.evaluate(colour, "backgroundColor")
        assert min(paint[:3]) > 250 or paint[3:] == [0], paint
    shown = panel.locator(".mkx-tile:visible, .mkx-row:visible").count()
    assert shown in (12, 24), shown
    ends = panel.evaluate("panel => panel.getBoundingClientRect().bottom")
    assert page.evaluate("document.documentElement.scrollHeight") >= ends > 900, "what lies below one window is not cut"
    torn = "all => all.filter(it => getComputedStyle(it).breakInside !== 'avoid').length"
    assert panel.locator(".mkx-tile, .mkx-row, .mkx-block").evaluate_all(torn) == 0
    assert not panel.get_by_label(
        "Query"
    ).is_visible()  # nobody types on paper; the line above the tiles says what was asked
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"paper-{name}.png", full_page=True)
    page.pdf(path=SCREENSHOTS / f"paper-{name}.pdf")
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})


def accessible(page, root="body"):
    """No serious or critical finding of axe-core under `root`."""
    found = Axe().run(page, root).response["violations"]
    grave = [finding for finding in found if finding["impact"] in ("serious", "critical")]
    assert [f"{finding['id']}: {finding['nodes'][0]['html'][:160]}" for finding in grave] == []


def tour(panel, experiment):
    """A query, another model, a why panel, two models side by side: the right products each time."""
    full, title = (experiment.retriever(variant) for variant in ("full", "title"))
    query = experiment.catalog.queries["query"].iloc[3]
    ask(panel, query)
    wait_for(panel, full, query)
    panel.get_by_label("Model").select_option("title, seed 0")
    wait_for(panel, title, query)
    panel.get_by_label("Model").select_option("full, seed 0")
    wait_for(panel, full, query)
    panel.get_by_role("button", name="Why?").nth(1).click()
    panel.locator(".mkx-why").wait_for()
    assert panel.locator(".mkx-chosen").get_attribute("data-rank") == "2"
    assert panel.locator("[role=alert]").count() == 0
    panel.get_by_label("Beside it").select_option("title, seed 0")
    panel.locator(".mkx-versus").wait_for()
    rows = panel.locator(".mkx-versus [data-product]").evaluate_all("rows => rows.map(row => row.dataset.product)")
    assert rows == [product for model in (title, full) for product in model.search(query, 12)["product_id"]]
    panel.get_by_label("Beside it").select_option("nothing")
    panel.locator(".mkx-cards .mkx-tile").first.wait_for()


def attack(page):
    """Do with a hostile catalogue all that can be done, and the same with a tame one; nothing may differ around the tiles.

    The page shows two explorers, the tame one first.
    """
    before, bones = page.evaluate(OUTSIDE), []
    for panel in page.locator(".mkx-panel").all():
        found = []
        ask(panel, HOSTILE[1])
        panel.locator(".mkx-status bdi", has_text="onerror").wait_for()
        wait_for_tiles(panel, 60)
        found.append(panel.evaluate(SKELETON))
        place = next(  # a title that would break out, or any of the tame ones
            (
                i
                for i, title in enumerate(panel.locator(".mkx-cards .mkx-title").all_inner_texts())
                if title[:1] in "<\"'"
            ),
            0,
        )
        panel.get_by_role("button", name="Why?").nth(place).click()
        panel.locator(f".mkx-chosen[data-rank='{place + 1}']").wait_for()
        panel.locator(".mkx-why").wait_for()
        panel.get_by_label("What if the title were").fill(HOSTILE[0])
        panel.get_by_label("What if the title were").press("Enter")
        panel.locator(".mkx-whatif").wait_for()
        found.append(panel.evaluate(SKELETON))
        panel.get_by_label("Beside it").select_option("title")
        panel.locator(".mkx-versus").wait_for()
        found.append(panel.evaluate(SKELETON))
        bones.append(found)
    tame, hostile = bones
    assert tame == hostile
    assert HOSTILE[0] in page.locator(".mkx-versus").last.inner_text()
    inert(page, before)


def inert(page, before):
    """Nothing that runs, loads or leads away, in the explorer or around it."""
    assert page.evaluate("window.hacked") is None
    assert page.evaluate(OUTSIDE) == before
    acting = ".mkx script, .mkx a, .mkx iframe, .mkx [onerror], .mkx [onload], .mkx [onmouseover], .mkx [href]"
    assert page.locator(acting).count() == 0
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
