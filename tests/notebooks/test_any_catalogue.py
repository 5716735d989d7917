"""Catalogues of any split and any size go through every notebook and the report: what cannot be said is left out with its reason.

The cells run in this process, and so do the arms, for starting kernels and workers would take most of the time.
"""

import io
import re
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from makelib.study.arms import run_arm
from makelib.study.experiment import Experiment
from makelib.workbook.reports import run as runner
from makelib.workbook.reports.pack import pack

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(300)]

COLOURS, KINDS = ("red", "blue", "green"), ("shirt", "shoe", "bag", "cap")
TINY = {
    "training.steps": 2, "training.batch_size": 16, "training.image_warmup": 1, "training.evaluations": 1, "model.width": 16,
    "model.dim": 8, "model.image_size": 16, "text.vocabulary": 300, "files.queries": 40, "files.clicks": 200,
    "ablation.fusions": ["title", "mean", "adaptive"], "ablation.keywords": ["none", "both"], "ablation.workers": 1,
}  # fmt: skip


def products(count, *, images=(), category=True):
    rows = []
    for i in range(count):
        row = {"product_id": f"p{i}", "title": f"Acme {COLOURS[i % 3]} {KINDS[i % 4]} {i}"}
        row |= {"type": KINDS[i % 4] if category is True else category, "colour": COLOURS[i % 3]} if category else {}
        rows.append(row | {"image": f"{i}.jpg" if i in images else ""})
    return rows


def asked(count, splits=None, queries=12, **more):
    """Each query a colour and a kind; `splits` are given out in turn."""
    texts = [f"{COLOURS[i % 3]} {KINDS[i % 4]}" for i in range(queries)]
    table = [
        {"query_id": f"q{i}", "query": text} | ({"split": splits[i % len(splits)]} if splits else {})
        for i, text in enumerate(texts)
    ]
    return table, [{"query_id": f"q{i % 12}", "product_id": f"p{i}", **more} for i in range(count) if i % 12 < queries]


CASES = {
    "no images, no category": (products(40, category=False), *asked(40)),
    "one photograph, one category": (products(40, images=[3], category="thing"), *asked(40)),
    "training queries only": (products(40, images=range(40)), *asked(40, ["train"], queries=1)),
    "three queries": (products(40, images=range(40)), *asked(40, queries=3)),
    "judged test queries, no clicks": (products(40, images=range(40)), *asked(40, ["test"], label=1, kind="judgment")),
    "twelve products": (products(12, images=range(12)), *asked(12)),
}


def folder_of(folder, rows, queries, interactions):
    (folder / "images").mkdir(parents=True)
    for i, row in enumerate(rows):
        if row["image"]:
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (i * 5 % 256, 90, 7)).save(buffer, "JPEG")
            (folder / "images" / row["image"]).write_bytes(buffer.getvalue())
    for name, table in (("products", rows), ("queries", queries), ("interactions", interactions)):
        pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    return folder


def _plain(data):
    return {kind: text for kind, text in data.items() if kind.startswith("text/")}


@pytest.fixture
def _here(monkeypatch, tmp_path):
    """`reproduce` with the cells and the arms in this process."""

    def cells(self, notebook, executed, line, label):
        shell = InteractiveShell.instance()
        book = nbformat.read(notebook.source, as_version=4)
        try:
            for cell in book.cells:
                if cell.cell_type == "code":
                    given = "parameters" in cell.metadata.get("tags", ())
                    source = "\n".join(f"{k} = {v!r}" for k, v in self.parameters.items()) if given else cell.source
                    with capture_output() as shown:
                        result = shell.run_cell(source, store_history=False)
                    cell.outputs = [nbformat.v4.new_output("stream", text=shown.stdout + shown.stderr)]
                    cell.outputs += [nbformat.v4.new_output("display_data", data=_plain(o.data)) for o in shown.outputs]
                    if error := result.error_before_exec or result.error_in_exec:
                        return f"{type(error).__name__}: {error} in {source[:300]}"
        finally:
            InteractiveShell.clear_instance()
        nbformat.write(book, executed)
        return ""

    def arms(self, todo, workers, threads, cluster):
        for arm in todo:
            run_arm(
                arm.label,
                runner.settings_module.to_dict(arm.settings),
                str(self.catalog.folder),
                arm.seed,
                str(arm.folder),
            )
        return {}

    monkeypatch.setattr(runner._Run, "_papermill", cells)
    monkeypatch.setattr(Experiment, "_train", arms)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("name", CASES)
def test_every_chapter_and_the_report(tmp_path, capsys, name):
    odd = "[1] {a} $HOME a::b #2 'q' Ж" if name == "twelve products" else "run"  # folders have any name
    folder = folder_of(tmp_path / f"shop {odd}", *CASES[name])
    code = runner.reproduce("smoke", str(folder), 1, tmp_path / odd, TINY, notebooks=ROOT / "notebooks")
    assert code == 0, re.findall(r".*(?:failed|skipped) .*", capsys.readouterr().out)
    assert (tmp_path / odd / "index.html").stat().st_size > 5000


@pytest.mark.usefixtures("_here")
def test_neither_personal_data_nor_rare_queries_leave_the_machine(tmp_path, capsys):
    """Everything of a packed run is looked through: pages, notebooks, tables, numbers."""
    rows, queries, clicks = CASES["three queries"][0], *asked(40)
    for row in rows[:10]:
        row["title"] += " ask anna.secret@shop.example or +49 170 1234567"
    rows = [row | {"seller": f"tel 030 / 123456{i % 2}"} for i, row in enumerate(rows)]
    clicks = [click | {"user": f"u{user}"} for click in clicks for user in range(3)]
    queries += [
        {"query_id": f"x{i}", "query": text} for i, text in enumerate(("zyxwort rare", "berta.secret@shop.example"))
    ]
    clicks += [{"query_id": "x0", "product_id": "p1", "user": "u0"}]
    clicks += [{"query_id": "x1", "product_id": f"p{i}", "user": f"u{i}"} for i in range(5)]
    folder = folder_of(tmp_path / "shop", rows, queries, clicks)
    (folder / "catalogue.yaml").write_text("rare_queries: 3\n")
    code = runner.reproduce("smoke", str(folder), 1, tmp_path / "run", TINY, notebooks=ROOT / "notebooks")
    assert code == 0, re.findall(r".*(?:failed|skipped) .*", capsys.readouterr().out)
    with zipfile.ZipFile(pack(tmp_path / "run")) as archive:
        contents = {name: archive.read(name).decode("utf-8", "replace") for name in archive.namelist()}
    assert sum("[personal]" in text for text in contents.values()) > 2
    found = [
        (word, name)
        for word in ("secret", "zyxwort", "1234567", "123456")
        for name in contents
        if word in contents[name]
    ]
    assert not [pair for pair in found if not pair[1].endswith(".png")]
