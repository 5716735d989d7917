"""The main job, as people run it: papermill over all notebooks on the smoke preset, then a look at the files that it wrote."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from makelib.study.experiment import Experiment
from makelib.workbook import notebook
from makelib.workbook.reports.pack import pack

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(1500)]  # its first test waits for all notebooks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "smoke"
    command = [sys.executable, "-m", "makelib", "reproduce", "--preset", "smoke", "--out", str(out)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELIB_THREADS", "OMP_NUM_THREADS")
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_every_notebook_ran_and_has_its_page(run, summary):
    assert [chapter["status"] for chapter in summary["notebooks"]] == ["ok"] * 7
    for chapter in summary["notebooks"]:
        assert (run / chapter["html"]).stat().st_size > 20_000
        assert chapter["html"] in (run / "index.html").read_text()


def test_pages_need_no_network_and_show_no_errors_or_leftovers(run):
    for page in run.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text), page.name
        assert "Traceback" not in text
        assert "&lt;Axes" not in text, f"{page.name} prints the name of a figure"
        assert "Warning:" not in text, f"{page.name} shows a warning"


def test_packed_it_opens_elsewhere_and_names_no_folder_of_this_machine(run, tmp_path):
    shutil.unpack_archive(pack(run, tmp_path / "run.zip"), tmp_path / "elsewhere")
    there = tmp_path / "elsewhere" / run.name
    for file in there.rglob("*"):
        if file.suffix in (".html", ".ipynb", ".json", ".yaml", ".csv", ".svg"):
            text = file.read_text(encoding="utf-8")
            assert [folder for folder in (run, ROOT) if str(folder) in text] == [], file.name
    for page in there.glob("*.html"):
        asked = re.findall(r"(?:src|href)=[\"']?([^\"'\s>]+)", page.read_text(encoding="utf-8"))
        asked = {html.unescape(name).split("#")[0] for name in asked if not name.startswith(("data:", "http", "#"))}
        lacking = [name for name in asked if not (there / urllib.parse.unquote(name)).exists()]
        assert not lacking, f"{page.name} asks for {lacking}"
    assert len(list((there / "figures").glob("*.svg"))) > 8


def test_pages_of_searches_are_chosen_by_rule_and_not_by_eye(run, monkeypatch):
    assert (run / "figures" / "4 Pages of searches, titles and MAKE.svg").is_file()
    chosen: list[int] = []
    monkeypatch.setattr(notebook, "_pages", lambda catalog, retrievers, rows, title, k: chosen.extend(rows))
    experiment = Experiment.reopen(run)
    notebook.lost_and_won(experiment, "make", "full", "title")
    scores = experiment.per_query("make", ("full", "title"))
    apart = (scores["full"][0]["Rel@10"] - scores["title"][0]["Rel@10"]).to_numpy()
    found = apart[np.searchsorted(experiment.test_rows, chosen)]
    np.testing.assert_allclose(found, np.quantile(apart, [0.05, 0.25, 0.5, 0.75, 0.95], method="nearest"))


def test_the_summary_keeps_its_contract(summary):
    assert summary["preset"] == "smoke"
    assert summary["provenance"]["catalogue"]["generated_queries"] is True
    assert summary["provenance"]["peak_memory_bytes"] > 0
    rows = {
        (row["study"], row["variant"], row["metric"], row["segment"], row["reference"]): row
        for row in summary["results"]
    }
    assert len(rows) == len(summary["results"])
    untrained = {"bm25", "reader", "ideal_reader"}  # lines of every table
    for study, variants in {
        "modal_adaptation": {"title", "mean", "global", "category", "joint", "adaptive"},
        "keyword_enhancement": {"none", "enrichment", "false_negatives", "both"},
        "make": {"title", "title_keywords", "adaptive", "full"},
    }.items():
        assert {key[1] for key in rows if key[0] == study} == variants | untrained
    for row in rows.values():
        # the simulated shop counts clicks per session and contrasts groups; all others are fractions
        assert 0 <= row["mean"] <= 1 or row["study"] == "online_simulation"
        assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    adaptive = next(
        row for key, row in rows.items() if key[:4] == ("modal_adaptation", "adaptive", "Recall@100", "all")
    )
    assert adaptive["mean"] > 3 * 100 / 800, "far better than chance after a few seconds of training"


def test_an_arm_trained_again_gives_the_same_numbers(run, summary, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    again = Experiment.open(tmp_path / "again", "smoke")
    arm, first = again.arm("modal_adaptation", "adaptive", 0), run / "models"
    again.train([arm])
    one, two = (folder / arm.folder.name / "per_query.parquet" for folder in (first, arm.folder.parent))
    pd.testing.assert_frame_equal(pd.read_parquet(one), pd.read_parquet(two), check_exact=True)


def test_search_from_the_command_line(run):
    command = [sys.executable, "-m", "makelib", "search", "red dress", "--run", str(run), "-k", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    hits = json.loads(done.stdout)
    assert len(hits) == 3
    assert hits[0]["score"] >= hits[-1]["score"]
    assert hits[0]["weight_title"] + hits[0]["weight_image"] == pytest.approx(1, abs=1e-4)


def test_a_failing_notebook_leaves_its_error_and_the_others_run(run, tmp_path):
    """Chapter 4 is broken on purpose: its page shows the error, the others are ok, the exit code is 1."""
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder)
    for name in (
        "02_pretraining",
        "03_ablation_modal_adaptation",
        "05_query_explorer",
        "06_index_and_scale",
        "07_online_simulation",
    ):
        (folder / f"{name}.ipynb").unlink()
    broken = folder / "04_ablation_keyword_enhancement.ipynb"
    content = json.loads(broken.read_text())
    content["cells"] = content["cells"][:3]
    content["cells"][2]["source"] = "print('so far')\nraise RuntimeError('on purpose')"
    broken.write_text(json.dumps(content))
    code = f"import sys; from makelib.workbook.reports.run import reproduce; sys.exit(reproduce('smoke', 'bazaar', 0, {str(tmp_path / 'out')!r}, notebooks={str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    notebooks = {
        n["name"]: n["status"] for n in json.loads((tmp_path / "out" / "summary.json").read_text())["notebooks"]
    }
    assert notebooks == {"01_data_preparation": "ok", "04_ablation_keyword_enhancement": "failed"}
    page = (tmp_path / "out" / "04_ablation_keyword_enhancement.html").read_text()
    assert "on purpose" in page
    assert "so far" in page
