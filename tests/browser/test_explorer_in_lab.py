"""The explorer in a real JupyterLab: a newcomer's path through notebook 05; a hostile catalogue stays inert."""

import json
from pathlib import Path

import lab
import nbformat
import pytest
from hostile import HOSTILE, hostile_catalog, untrained_retrievers

from makelib.ablation import Experiment, run_arm
from makelib.settings import to_dict

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "reports" / "screenshots"
OVERRIDES = {
    "bazaar.products": 400, "bazaar.queries": 300, "bazaar.clicks": 3000,
    "training.steps": 40, "training.batch_size": 64,
    "evaluation.test_queries": 60, "evaluation.validation_queries": 30,
}  # fmt: skip
VIEW = {"width": 1280, "height": 2400}


@pytest.fixture(scope="module")
def workplace(jupyter):
    """A folder like the repository's root: a trained toy run, notebook 05 with other parameters, a hostile one."""
    root, _ = jupyter
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        experiment = Experiment.open("reports/toy", "smoke", "bazaar", 1, OVERRIDES)
        for variant in ("full", "title"):
            arm = experiment.arm("make", variant, 0)
            run_arm(
                arm.label, to_dict(arm.settings), str(experiment.catalog.folder.resolve()), 0, str(arm.folder.resolve())
            )
        experiment = Experiment(root / "reports/toy", experiment.settings, experiment.catalog)
    notebook = nbformat.read(ROOT / "notebooks" / "05_query_explorer.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = f'preset = "smoke"\ncatalog = "bazaar"\nseeds = 1\nrun = "reports/toy"\noverrides = {OVERRIDES!r}'
    nbformat.write(notebook, root / "notebooks" / "05_query_explorer.ipynb")

    for name, retriever in untrained_retrievers(hostile_catalog(root / "hostile")).items():
        retriever.save(root / "models" / name)
    code = (
        "from makelib.explorer import QueryExplorer\nfrom makelib.retriever import Retriever\n"
        "names = ['adaptive', 'title']\n"
        "QueryExplorer({name: Retriever.open(f'../models/{name}') for name in names}, k=60, queries=['<b>acme</b>'])"
    )
    hostile = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    hostile.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(hostile, root / "notebooks" / "hostile.ipynb")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return root, experiment


@pytest.fixture(scope="module")
def address(workplace, jupyter):
    return jupyter[1]


def shown(page):
    """Ids of the products in the live explorer, in order."""
    return page.eval_on_selector_all(".mkx-cards [data-product]", "tiles => tiles.map(tile => tile.dataset.product)")


def wait_for(page, products):
    page.wait_for_function(
        """wanted => JSON.stringify([...document.querySelectorAll('.mkx-cards [data-product]')]
            .map(tile => tile.dataset.product)) === wanted""",
        arg=json.dumps(products, separators=(",", ":")),
    )


def picture(page, name):
    page.locator(".mkx-panel").screenshot(path=SCREENSHOTS / f"explorer-{name}.png")


def test_a_newcomer_types_a_query_and_asks_why(workplace, address, gated_page):
    _, experiment = workplace
    full, title = (experiment.retriever(variant) for variant in ("full", "title"))
    page, refused = gated_page(viewport=VIEW)
    lab.run_all(page, address, "notebooks/05_query_explorer.ipynb")
    red = page.locator(
        "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']"
    )
    assert red.count() == 0, red.all_inner_texts()

    ui = page.locator(".mkx-panel")
    query = experiment.catalog.queries["query"].iloc[3]
    ui.get_by_label("Query").fill(query)
    began = page.evaluate("performance.now()")
    ui.get_by_label("Query").press("Enter")
    wait_for(page, full.search(query, 12)["product_id"].tolist())
    print(f"typed query to tiles: {page.evaluate('performance.now()') - began:.0f} ms")
    assert ui.locator("[role=alert]").count() == 0

    ui.get_by_label("Model").select_option("title, seed 0")
    wait_for(page, title.search(query, 12)["product_id"].tolist())
    ui.get_by_label("Model").select_option("full, seed 0")
    wait_for(page, full.search(query, 12)["product_id"].tolist())

    ui.get_by_role("button", name="Why?").nth(1).click()
    ui.locator(".mkx-why").wait_for()
    assert ui.locator(".mkx-chosen").get_attribute("data-rank") == "2"
    picture(page, "light")
    ui.get_by_label("Explain rank").focus()
    page.keyboard.press("ArrowUp")  # the next rank, as in any number box
    ui.locator(".mkx-chosen[data-rank='3']").wait_for()
    ui.get_by_label("without its image").check()
    ui.locator(".mkx-whatif").wait_for()

    lab.theme(page, "JupyterLab Dark")
    picture(page, "dark")
    ui.get_by_label("Beside it").select_option("title, seed 0")
    ui.locator(".mkx-versus").wait_for()
    picture(page, "beside-dark")
    lab.theme(page, "JupyterLab Light")
    page.set_viewport_size({"width": 768, "height": 2400})
    picture(page, "beside-768")
    ui.get_by_label("Beside it").select_option("nothing")
    page.locator(".mkx-cards .mkx-tile").first.wait_for()
    picture(page, "768")
    assert page.evaluate(
        "() => { const box = document.querySelector('.mkx-panel'); return box.scrollWidth <= box.clientWidth }"
    )
    assert refused == []


def test_a_hostile_catalogue_stays_inert(address, gated_page):
    page, refused = gated_page(viewport=VIEW)
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    lab.run_all(page, address, "notebooks/hostile.ipynb")
    ui = page.locator(".mkx-panel")
    ui.get_by_label("Query").fill(HOSTILE[1])
    ui.get_by_label("Query").press("Enter")
    page.locator(".mkx-status bdi", has_text="onerror").wait_for()
    assert len(shown(page)) == 60
    for place in range(60):  # every product explains itself without harm
        if page.locator(".mkx-cards .mkx-title").nth(place).inner_text().startswith(("<", '"', "'")):
            ui.get_by_role("button", name="Why?").nth(place).click()
            ui.locator(f".mkx-chosen[data-rank='{place + 1}']").wait_for()
            ui.locator(".mkx-why").wait_for()
            break
    ui.get_by_label("Beside it").select_option("title")
    ui.locator(".mkx-versus").wait_for()
    assert HOSTILE[0] in page.locator(".mkx-versus").inner_text()
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator(
            ".mkx-panel script, .mkx-panel a, .mkx-panel [onerror], .mkx-panel [onload], .mkx-panel [onmouseover]"
        ).count()
        == 0
    )
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    picture(page, "hostile")
    assert (refused, dialogs) == ([], [])
