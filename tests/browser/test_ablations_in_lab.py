"""The ablation explorer in a real JupyterLab: what a person chooses is drawn at once, by mouse and by keyboard, in both themes.

Arms are planted (untrained models, scores made up) in a tame and in a hostile shop; only the last test trains, for two steps.
"""

import re
import statistics

import explore
import lab
import pytest
from planted import planted_run
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

VIEW = {"width": 1280, "height": 2200}
#: milliseconds that the median change of a control takes at most on two cores that do nothing else; the test fails at ten times that
WITHIN = 300


@pytest.fixture(scope="module")
def page(jupyter, browser):
    """A notebook with two explorers, the first of a tame shop, the second of a hostile one."""
    root, address = jupyter
    for name in ("tame", "hostile"):
        (root / f"planted-{name}").mkdir()
        planted_run(root / f"planted-{name}", hostile=name == "hostile")
    cell = "AblationExplorer('../planted-{}/run')"
    lab.write_notebook(
        root / "notebooks" / "ablations.ipynb",
        f"from makelib import AblationExplorer\n{cell.format('tame')}",
        cell.format("hostile"),
    )
    page = browser.new_context(viewport=VIEW).new_page()
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    lab.run_all(page, address, "notebooks/ablations.ipynb")
    page.locator(".mkx-panel .mka-verdict").nth(1).wait_for()
    yield page
    page.context.close()


@pytest.fixture
def panel(page):
    """The tame explorer as it began."""
    panel = page.locator(".mkx-panel").first
    for label, value in (
        ("Study", "modal_adaptation"), ("Reference", "title"), ("Metric", "Rel@10"), ("Level", "95%"),
    ):  # fmt: skip
        panel.get_by_label(label, exact=True).select_option(value)
    panel.get_by_label("Query no.").fill("0")
    panel.get_by_label("Query no.").press("Enter")
    said(panel, "title")
    return panel


def said(panel, *words):
    for word in words:
        panel.locator(".mka-verdict", has_text=word).wait_for()


def test_a_reference_a_metric_and_a_level_are_followed(panel):
    panel.get_by_label("Reference").select_option("joint")
    said(panel, "joint: +60")
    panel.get_by_label("Metric").select_option("HitRate@100")
    said(panel, "points of HitRate@100")
    panel.get_by_label("Level").select_option("99%")
    panel.locator(".mka-about", has_text="99% intervals").first.wait_for()


def test_a_change_is_drawn_in_time(page, panel, record_property):
    took = []
    for number in range(16):
        label, value = (
            ("Reference", ("joint", "title")[number // 2 % 2]) if number % 2 else ("Metric", ("Recall@100", "nDCG@10")[number // 2 % 2])
        )  # fmt: skip
        took.append(
            panel.evaluate(
                """(panel, [label, value]) => new Promise(done => {
                    const list = [...panel.querySelectorAll("select")].find(it => it.labels[0]?.textContent.trim() === label);
                    const board = panel.querySelector(".mka-verdict").closest(".widget-html-content");
                    const began = performance.now();
                    const watch = new MutationObserver(() => {
                        watch.disconnect();
                        requestAnimationFrame(() => done(performance.now() - began));
                    });
                    watch.observe(board, {childList: true, subtree: true});
                    list.selectedIndex = [...list.options].findIndex(it => it.textContent.replaceAll("\\u00a0", " ") === value);
                    list.dispatchEvent(new Event("change", {bubbles: true}));
                })""",
                [label, value],
            )
        )
    median = statistics.median(took)
    print(f"change to figure: median {median:.0f} ms, {min(took):.0f} to {max(took):.0f} ms")
    record_property("milliseconds", [round(each) for each in took])
    assert median <= 10 * WITHIN


def test_variants_are_chosen_by_check_boxes(panel):
    panel.get_by_label("joint", exact=True).uncheck()
    panel.locator(".mka-table tr[data-variant='joint']").wait_for(state="detached")
    expect(panel.locator(".mka-table [data-variant]")).to_have_count(2)
    panel.get_by_label("joint", exact=True).check()
    panel.locator(".mka-table tr[data-variant='joint']").wait_for()
    expect(panel.get_by_label("title", exact=True)).to_be_disabled()  # the reference


def test_seeds_are_chosen_and_the_last_one_cannot_go_unnoticed(panel):
    panel.get_by_label("1", exact=True).uncheck()
    panel.locator(".mka-about", has_text="seed 0 ·").first.wait_for()
    panel.get_by_label("1", exact=True).check()
    panel.locator(".mka-about", has_text="seeds 0, 1").first.wait_for()


def test_the_keyboard_alone_opens_a_query_and_asks_why(page, panel):
    panel.get_by_label("Query no.").focus()
    page.keyboard.press("ArrowUp")
    panel.locator(".mkx-versus").wait_for()
    panel.get_by_label("Explain rank").focus()
    page.keyboard.press("ArrowUp")
    panel.locator(".mkx-why").nth(1).wait_for()
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2


def test_a_tile_opens_its_query(panel):
    tile = panel.locator(".mka-tiles button:visible").first
    words = tile.inner_text().split(maxsplit=1)[1]
    tile.click()
    panel.locator(".mkx-status b", has_text=words).wait_for()
    panel.locator(".mkx-versus").wait_for()


def test_segments_and_what_is_missing_are_a_click_away(panel):
    panel.get_by_role("button", name="Segment by segment").click()
    panel.locator(".mka-table th", has_text="segment").wait_for()
    panel.get_by_role("button", name="Train what is missing").click()
    panel.get_by_label("Settings").fill("model.fusion=gate")
    panel.get_by_text("2 trainings, about 20 s").wait_for()
    panel.get_by_label("Settings").fill("model.fusion=")
    panel.locator("datalist option[value='model.fusion=gate']").wait_for(state="attached")
    panel.get_by_role("button", name="Sweep a setting").click()
    panel.get_by_label("Setting", exact=True).fill("model.fusion")
    panel.locator(".mka-plot").first.wait_for()
    panel.get_by_role("button", name="Query by query").click()


def test_everything_is_easy_to_read_in_both_themes_and_narrow(page, panel):
    panel.locator(".mka-tiles button:visible").first.click()
    panel.locator(".mkx-versus").wait_for()
    explore.easy_to_read(panel)
    explore.accessible(page, ".mkx-panel")
    picture(panel, "light")
    lab.theme(page, "JupyterLab Dark")
    explore.easy_to_read(panel)
    explore.accessible(page, ".mkx-panel")
    picture(panel, "dark")
    lab.theme(page, "JupyterLab Light")
    page.set_viewport_size({"width": 768, "height": 2200})
    explore.easy_to_read(panel)
    picture(panel, "768")
    page.set_viewport_size({"width": 400, "height": 2200})
    explore.accessible(page, ".mkx-panel")
    picture(panel, "400")
    page.set_viewport_size(VIEW)


def test_a_hostile_shop_stays_inert(page):
    panel = page.locator(".mkx-panel").nth(1)
    before = page.evaluate(explore.OUTSIDE)
    for _ in range(3):
        panel.get_by_label("Query no.").focus()
        page.keyboard.press("ArrowUp")
        panel.locator(".mkx-versus").wait_for()
    panel.get_by_label("Settings").evaluate("box => box.value")
    explore.inert(page, before)
    assert page.dialogs == []


def test_a_missing_arm_is_trained_watched_and_compared(panel):
    panel.get_by_role("button", name="Train what is missing").click()
    panel.get_by_label("Settings").fill(
        "training.steps=6, training.batch_size=4, training.image_warmup=0, training.evaluations=1"
    )
    panel.get_by_label("Settings").press("Enter")
    panel.get_by_label("Seeds", exact=True).fill("1")
    panel.get_by_label("Seeds", exact=True).press("Enter")
    panel.get_by_role("button", name="Train", exact=True).click()
    panel.get_by_role("progressbar").wait_for()
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    panel.locator(".mka-spark", has_text="loss: ").wait_for(timeout=180_000)
    panel.locator(".mkx-status", has_text="done").wait_for(timeout=180_000)
    said(panel, "training.batch_size=4")
    chosen = panel.get_by_label("Study").locator("option:checked")
    expect(chosen).to_have_text(re.compile(r"everything\strained"))  # its blank does not break
    assert panel.locator("[role=alert]").count() == 0


def picture(panel, name):
    explore.SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    panel.screenshot(path=explore.SCREENSHOTS / f"ablations-{name}.png")
