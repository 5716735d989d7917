"""Headless runs: what a run of toy notebooks leaves behind, what is refused beforehand, offline HTML."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from makelib.runtime import UserError
from makelib.settings import PRESETS, preset, write_yaml
from makelib.workbook.reports import run as reports
from makelib.workbook.reports.offline import mathml, to_html
from makelib.workbook.reports.pages import changed_leaves, duration, headline

V4 = nbformat.v4
PARAMETERS = """preset: str = "quick"
catalog: str = "bazaar"
seeds: int = 0
run: str = "reports/quick"
overrides: dict = {}"""


def toy(folder: Path, name: str, *cells: str, needs=(), parameters=PARAMETERS, tags=("parameters",)) -> Path:
    """A notebook of a title, a parameters cell and code cells."""
    content = V4.new_notebook(
        cells=[
            V4.new_markdown_cell(f"# Title of {name}"),
            V4.new_code_cell(parameters, metadata={"tags": list(tags)}),
            *map(V4.new_code_cell, cells),
        ],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "makelib": {"needs": list(needs)},
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


# -- a run ------------------------------------------------------------------------------------------------------------

RECORD = """import json, os, pathlib
out = pathlib.Path(run)
for name in ("results", "figures"):
    (out / name).mkdir(parents=True, exist_ok=True)
seen = {"pid": os.getpid(), "cwd": os.getcwd()}
seen |= {"overrides": overrides, "seeds": seeds, "catalog": catalog, "preset": preset}
seen["environment"] = {name: os.environ.get(name) for name in ("MAKELIB_HEADLESS", "JUPYTER_PATH", "MY_OWN")}
pathlib.Path(f"seen-{len(list(pathlib.Path('.').glob('seen-*')))}.json").write_text(json.dumps(seen))"""
RESULTS = """row = {"study": "modal_adaptation", "variant": "adaptive", "metric": "Rel@10", "segment": "all",
       "per_seed": [0.5], "mean": 0.5, "interval": [0.4, float("nan")], "reference": "joint", "difference": 0.1,
       "difference_interval": [0.05, 0.15], "p_value": 0.2}
(out / "results" / "one.json").write_text(json.dumps([row, row | {"variant": "joint", "reference": None}]))
(out / "results" / "two.json").write_text(json.dumps([row | {"study": "<b>other</b>"}]))
(out / "catalogue.json").write_text(json.dumps({"name": "toys", "fingerprint": "abc", "products": 5, "queries": 4,
    "interactions": 3, "generated_queries": True, "folder": "/somewhere"}))
import matplotlib.pyplot as plt
plt.figure(figsize=(2, 1)).savefig(out / "figures" / "a_figure.png")
plt.plot([1, 2]);"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four notebooks, the second fails and the third needs it, over the leftovers of an earlier run."""
    root = tmp_path_factory.mktemp("root")
    toy(root / "notebooks", "01_data", RECORD, RESULTS)
    toy(
        root / "notebooks", "02_training", RECORD, "raise ValueError('first\\nno <b>luck</b> & more')", "print('never')"
    )
    toy(root / "notebooks", "03_fusion", RECORD, needs=["01_data", "02_training"])
    toy(root / "notebooks", "04_explorer", RECORD, needs=["01_data"])
    out = root / "reports" / "try"
    (out / "models" / "arm").mkdir(parents=True)
    (out / "results").mkdir()
    (out / ".progress").write_text("")
    (out / "results" / "stale.json").write_text('[{"study": "stale"}]')
    (out / "03_fusion.html").write_text("stale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", "/nowhere")
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("MY_OWN", "kept")
        code = reports.reproduce("smoke", "bazaar", 2, out, {"training.steps": 5}, root / "notebooks")
    return root, out, code, json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.notebooks
class TestRun:
    def test_exit_code_and_states_say_what_failed(self, finished):
        _, _, code, summary = finished
        assert code == 1
        assert [(entry["name"], entry["status"], entry["html"]) for entry in summary["notebooks"]] == [
            ("01_data", "ok", "01_data.html"),
            ("02_training", "failed", "02_training.html"),
            ("03_fusion", "skipped", None),
            ("04_explorer", "ok", "04_explorer.html"),
        ]
        assert summary["notebooks"][2]["seconds"] == 0 < summary["notebooks"][1]["seconds"]

    def test_each_notebook_has_a_process_of_its_own_and_gets_the_parameters(self, finished):
        root = finished[0]
        seen = [json.loads(file.read_text()) for file in sorted(root.glob("seen-*.json"))]
        assert len(seen) == len({one["pid"] for one in seen}) == 3
        for one in seen:
            assert one["cwd"] == str(root)
            assert (one["preset"], one["catalog"], one["seeds"]) == ("smoke", "bazaar", 2)
            assert one["overrides"] == {"training.steps": 5}
            assert one["environment"] == {"MAKELIB_HEADLESS": "1", "JUPYTER_PATH": None, "MY_OWN": "kept"}

    def test_summary_follows_the_schema(self, finished):
        _, _, _, summary = finished
        assert list(summary) == [
            "run",
            "preset",
            "settings",
            "seeds",
            "provenance",
            "results",
            "verdict",
            "claims",
            "notebooks",
        ]
        assert len(summary["verdict"]) == 3
        assert summary["verdict"][0] == "On toys, this run did not compare search with and without images."
        wanted = {"claim", "paper", "ours", "interval", "p_value", "verdict"}
        assert all(wanted <= set(claim) for claim in summary["claims"])
        relevance = next(claim for claim in summary["claims"] if claim["paper"] == "+1.88 %")
        assert (relevance["ours"], relevance["verdict"]) == (0.1, "not supported")
        assert (summary["run"], summary["preset"], summary["seeds"]) == ("try", "smoke", [0, 1])
        assert summary["settings"]["training"]["steps"] == 5
        made = summary["provenance"]
        assert made["catalogue"] == {
            "name": "toys", "fingerprint": "abc", "products": 5, "queries": 4, "interactions": 3,
            "generated_queries": True,
        }  # fmt: skip
        assert set(made["wall_seconds"]) == {"01_data", "02_training", "03_fusion", "04_explorer", "total"}
        assert made["peak_memory_bytes"] > 30e6
        assert {"git_commit", "dirty", "python", "packages", "device", "threads"} <= set(made)

    def test_results_are_joined_and_nan_is_null_and_nothing_stale_is_left(self, finished):
        _, out, _, summary = finished
        assert [row["study"] for row in summary["results"]] == ["modal_adaptation"] * 2 + ["<b>other</b>"]
        assert summary["results"][0]["interval"] == [0.4, None]
        assert not (out / "03_fusion.html").exists()
        assert (out / "models" / "arm").is_dir()

    def test_the_verdict_opens_the_page_and_every_row_is_in_a_table(self, finished):
        _, out, _, summary = finished
        page = (out / "index.html").read_text()
        places = [page.index(words) for words in (summary["verdict"][0], "The claims of the paper", "Chapters")]
        assert places == sorted(places)
        assert len((out / "tables" / "results.csv").read_text().splitlines()) > len(summary["results"])
        assert (out / "tables" / "claims.csv").is_file()

    def test_failed_notebook_has_a_page_that_says_why(self, finished):
        page = (finished[1] / "02_training.html").read_text()
        assert "This notebook failed.</strong> In [4] ValueError: no &lt;b&gt;luck&lt;/b&gt; &amp; more" in page
        assert "never" in page  # the cells after it are shown, folded, without output
        assert (finished[1] / "notebooks" / "02_training.log").is_file()
        assert not (finished[1] / "notebooks" / "01_data.log").exists()

    def test_index_links_every_page_and_escapes(self, finished):
        page = (finished[1] / "index.html").read_text()
        for name in ("01_data", "02_training", "04_explorer"):
            assert f'<a href="{name}.html">Title of {name}</a>' in page
        assert "03_fusion.html" not in page
        assert "needs 02_training" in page
        assert "&lt;b&gt;other&lt;/b&gt;" in page.lower()
        assert "<b>" not in page
        assert 'alt="a figure"' in page
        assert "no significant difference" in page

    def test_inline_figures_survive_an_inherited_backend(self, finished):
        assert "data:image/png;base64," in (finished[1] / "01_data.html").read_text()


@pytest.mark.notebooks
def test_a_second_run_over_mended_notebooks_ends_well(tmp_path, capsys):
    toy(tmp_path / "notebooks", "01_data", "pass")
    out = tmp_path / "reports" / "one"
    for _ in range(2):
        assert reports.reproduce("smoke", "bazaar", 0, out, {}, tmp_path / "notebooks") == 0
    assert "1/1 01_data  ok" in capsys.readouterr().out
    assert "This run left no results" in (out / "index.html").read_text()


@pytest.mark.notebooks
@pytest.mark.parametrize("name", sorted({*PRESETS} - {"smoke", "quick"}))
def test_every_preset_can_be_reproduced(tmp_path, name):
    toy(tmp_path / "notebooks", "01_data", "pass")
    assert reports.reproduce(name, "bazaar", 0, tmp_path / "out", {}, tmp_path / "notebooks") == 0


@pytest.mark.notebooks
def test_a_cell_that_uses_up_its_time_counts_as_failed(tmp_path, capsys):
    toy(tmp_path / "notebooks", "01_data", "import time; time.sleep(300)")
    began = time.monotonic()
    assert reports.reproduce("smoke", "bazaar", 0, tmp_path / "out", {}, tmp_path / "notebooks", cell_timeout=2) == 1
    assert time.monotonic() - began < 90
    assert "01_data  failed" in (said := capsys.readouterr().out)
    assert "used all of the 0:02 that one cell may take" in said
    assert "This notebook failed" in (tmp_path / "out" / "01_data.html").read_text()


@pytest.mark.notebooks
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_its_kernel_and_writes_what_is_there(tmp_path, how):
    cell = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(300)"
    toy(tmp_path / "notebooks", "01_data", cell)
    toy(tmp_path / "notebooks", "02_training", "pass")
    code = (
        "import sys; from makelib import __main__; from makelib.workbook.reports import run as reports; import functools; "
        f"reports.reproduce = functools.partial(reports.reproduce, notebooks={str(tmp_path / 'notebooks')!r}); "
        f"sys.exit(__main__.main(['reproduce', '--preset', 'smoke', '--out', {str(tmp_path / 'out')!r}]))"
    )
    child = subprocess.Popen(  # a terminal's Ctrl-C, also where these tests run in the background and ignore it
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(how)
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    kernel = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["status"] for entry in summary["notebooks"]] == ["stopped", "skipped"]
    assert "01_data  stopped" in said
    assert "the same command goes on from there" in said
    page = (tmp_path / "out" / "01_data.html").read_text()
    assert "This notebook was stopped." in page
    assert "failed" not in page.split("<main>")[1]
    assert "stopped" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.notebooks
def test_a_notebook_that_never_started_says_why_and_where(tmp_path, monkeypatch, capsys):
    source = toy(tmp_path / "notebooks", "01_data", "pass")
    checked = reports._plan

    def plan(folder):  # somebody breaks the file after it was checked
        found = checked(folder)
        source.write_text("{")
        return found

    monkeypatch.setattr(reports, "_plan", plan)
    assert reports.reproduce("smoke", "bazaar", 0, tmp_path / "out", {}, tmp_path / "notebooks") == 1
    assert re.search(r"01_data  failed .*NotJSONError.*01_data\.log", capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["notebooks"][0]["html"] is None


@pytest.mark.parametrize("text", ["", "{", '{"cells": [{'])
def test_a_notebook_that_is_being_written_is_no_error(tmp_path, text):
    (tmp_path / "half.ipynb").write_text(text)
    assert reports._cells_done(tmp_path / "half.ipynb") == ""
    assert reports._notebook_error(tmp_path / "half.ipynb", 10) == ""


# -- refused before anything is written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "tags", "words"),
    [
        (PARAMETERS + "\nextra: int = 1", ["parameters"], "unknown: extra"),
        (PARAMETERS.replace("seeds", "sedes"), ["parameters"], "sedes"),
        (PARAMETERS.replace("seeds: int = 0", "seeds: str = 'all'"), ["parameters"], "'seeds' must be of type int"),
        (PARAMETERS.replace("seeds: int = 0", "seeds = '0'"), ["parameters"], "'seeds' must be of type int"),
        (PARAMETERS.replace("overrides: dict = {}", "overrides = dict()"), ["parameters"], "an expression"),
        (PARAMETERS, [], "must declare preset, catalog, seeds, run, overrides"),
    ],
)
def test_a_parameter_cell_that_does_not_fit_is_refused(tmp_path, parameters, tags, words):
    toy(tmp_path / "notebooks", "01_data", parameters=parameters, tags=tags)
    with pytest.raises(UserError, match=words):
        reports.reproduce("smoke", "bazaar", 0, tmp_path / "out", {}, tmp_path / "notebooks")
    assert not (tmp_path / "out").exists()


def test_untyped_parameters_are_judged_by_their_default(tmp_path):
    source = toy(tmp_path, "01_data", parameters=PARAMETERS.replace("seeds: int = 0", "seeds = 0"))
    reports._check_parameters(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "huge"}, "Unknown preset 'huge'"),
        ({"seeds": -1}, "seeds must be 0"),
        ({"overrides": {"training.step": 1}}, "There is no setting 'training.step'"),
        ({"catalog": "nowhere"}, "There is no catalogue"),
        ({"notebooks": Path("empty")}, "no notebook such as"),
    ],
)
def test_a_wrong_word_is_refused(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    toy(tmp_path / "notebooks", "01_data")
    given = {"preset": "smoke", "catalog": "bazaar", "seeds": 0, "out": "out", "notebooks": tmp_path / "notebooks"}
    with pytest.raises(UserError, match=words):
        reports.reproduce(**given | changes)
    assert not (tmp_path / "out").exists()


def test_a_need_must_run_before(tmp_path):
    toy(tmp_path, "01_data", needs=["02_training"])
    toy(tmp_path, "02_training")
    with pytest.raises(UserError, match="needs '02_training', which does not run before it"):
        reports._plan(tmp_path)


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    (tmp_path / "01_data.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"01_data\.ipynb is not a notebook"):
        reports._plan(tmp_path)


def test_a_finished_run_of_other_settings_is_left_alone(tmp_path):
    toy(tmp_path / "notebooks", "01_data")
    arm = tmp_path / "out" / "models" / "arm"
    arm.mkdir(parents=True)
    for folder in (arm, tmp_path / "out"):
        write_yaml(preset("smoke"), folder / "settings.yaml")
    (tmp_path / "out" / "index.html").write_text("finished")
    with pytest.raises(UserError, match="stays as it is"):
        reports.reproduce("quick", "bazaar", 0, tmp_path / "out", {}, tmp_path / "notebooks")
    assert (tmp_path / "out" / "index.html").read_text() == "finished"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    toy(tmp_path / "notebooks", "01_data")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, words in (("photos", "holds other files"), ("file", "is a file")):
        with pytest.raises(UserError, match=words):
            reports.reproduce("smoke", "bazaar", 0, tmp_path / name, {}, tmp_path / "notebooks")
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["index.html"]
    assert (tmp_path / "photos" / "index.html").read_text() == (tmp_path / "file").read_text() == "mine"


# -- offline HTML -----------------------------------------------------------------------------------------------------


def converted(tmp_path, *cells, error="") -> str:
    nbformat.write(V4.new_notebook(cells=list(cells)), tmp_path / "toy.ipynb")
    to_html(tmp_path / "toy.ipynb", tmp_path / "toy.html", error)
    return (tmp_path / "toy.html").read_text(encoding="utf-8")


def code(**data) -> nbformat.NotebookNode:
    data = {name.replace("_", "/", 1): value for name, value in data.items()}
    return V4.new_code_cell("a = 1\nb = 2", outputs=[V4.new_output("display_data", data=data)])


def test_formulas_become_mathml(tmp_path):
    text = "Score $q \\cdot p$ and $$\\frac{a}{b}$$ and\n\n\\begin{align}x &= y\\end{align}\n\n`$code$` costs \\$5"
    page = converted(tmp_path, V4.new_markdown_cell(text), code(text_latex="$\\displaystyle z^2$"))
    assert page.count("<math") == 4
    assert page.count('display="block"') >= 3
    assert "<code>$code$</code>" in page
    assert "costs $5" in page
    assert "<mfrac>" in page


@pytest.mark.parametrize("formula", ["\\frac{a", "a}", "\\left("])
def test_a_formula_that_cannot_be_read_is_shown_as_it_stands(formula):
    shown = mathml(formula)
    assert shown.startswith("<math") or formula in shown


WIDGET = {"model_id": "0", "version_major": 2, "version_minor": 0}


def test_the_static_twin_of_a_widget_stays_and_a_bare_widget_goes(tmp_path):
    view = "application/vnd.jupyter.widget-view+json"
    twin, bare = V4.new_code_cell("twin"), V4.new_code_cell("bare")
    twin.outputs = [
        V4.new_output("display_data", {view: WIDGET, "text/html": "<p>static twin</p>", "text/plain": "HTML()"})
    ]
    bare.outputs = [V4.new_output("display_data", {view: WIDGET, "text/plain": "IntSlider(value=0)"})]
    page = converted(tmp_path, twin, bare)
    assert "<p>static twin</p>" in page
    assert "IntSlider" not in page
    assert "widget-view" not in page


def test_nothing_in_a_page_runs_or_asks_for_anything(tmp_path):
    hostile = """<script>alert(1)</script><script src="https://e.example/x.js"></script><img src="https://e.example/a.png">
    <img src="//e.example/b.png" onerror="alert(1)"><iframe src="https://e.example"></iframe><form action="https://e.example">
    <link rel="stylesheet" href="https://e.example/x.css"><a href="javascript:alert(1)">click</a><svg onload="alert(1)">
    <image href="https://e.example/c.png" xlink:href="https://e.example/d.png"/></svg><base href="https://e.example">
    <div style="background: url(https://e.example/e.png)">kept words</div><style>@import url(https://e.example/f.css);</style>
    <meta http-equiv="refresh" content="0;url=https://e.example"><a href="https://arxiv.org/abs/2301.12646">paper</a>
    <img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">"""
    page = converted(tmp_path, code(text_html=hostile), code(application_javascript="alert(2)"))
    assert "kept words" in page
    assert "e.example" not in page
    for word in ("<script", "javascript:", "onerror", "onload", "<iframe", "<link", "alert(2)"):
        assert word not in page
    assert page.count('href="https://arxiv.org/abs/2301.12646"') == 1
    assert page.count("data:image/gif;base64,R0lGODlhAQABAAAAACw=") == 1
    assert "default-src 'none'" in page
    page = converted(tmp_path, V4.new_markdown_cell(f"words <img src=x onerror=alert(1)> {hostile.splitlines()[0]}"))
    assert "<script" not in page
    assert "onerror" not in page


def test_a_page_leads_to_pages_and_nowhere_that_does_not_travel_with_it(tmp_path):
    links = "[next](02_b.ipynb) [part](02_b.ipynb#end) [method](../docs/method.md) [own](tables/a.csv) [here](#top)"
    page = converted(tmp_path, V4.new_markdown_cell(links))
    for kept in (
        '<a href="02_b.html">next',
        '<a href="02_b.html#end">part',
        '<a href="tables/a.csv">own',
        '<a href="#top">here',
    ):
        assert kept in page
    assert "../docs" not in page
    assert "<a>method</a>" in page


def test_code_is_folded_under_its_first_line_and_text_is_escaped(tmp_path):
    page = converted(tmp_path, code(text_plain="<b>not bold</b>"), error="In [1] <b>bad</b>")
    assert "<summary><code>a = 1</code></summary>" in page
    assert "&lt;b&gt;not bold&lt;/b&gt;" in page
    assert "In [1] &lt;b&gt;bad&lt;/b&gt;" in page
    assert '<a href="index.html">' in page


def test_inline_html_in_prose_stays_whole(tmp_path):
    assert "<b>bold</b> <sub>low</sub>" in converted(
        tmp_path, V4.new_markdown_cell("some <b>bold</b> <sub>low</sub> words")
    )


# -- the index page ---------------------------------------------------------------------------------------------------


def row(variant, metric="Rel@10", segment="all", **more):
    return {"study": "modal_adaptation", "variant": variant, "metric": metric, "segment": segment, "mean": 0.5, **more}


def test_headline_takes_all_queries_and_puts_planned_comparisons_first():
    rows = [
        row("joint", reference=None),
        row("adaptive", reference="joint", difference=0.1, p_value_holm=0.01),
        row("adaptive", reference="mean", difference=0.2, p_value_holm=None),
        row("adaptive", metric="MRR@10", reference="joint", difference=0.3),
        row("adaptive", segment="image-led", reference="joint", difference=0.4),
        row("adaptive", metric="HitRate@100"),
    ]
    (study,) = headline(rows)
    assert study["metrics"] == ["Rel@10", "HitRate@100"]
    assert study["variants"] == [("joint", [rows[0], None]), ("adaptive", [rows[1], rows[5]])]
    assert (study["planned"], study["further"]) == ([rows[1]], [rows[2]])
    assert headline([]) == []


def test_studies_stand_in_reading_order():
    names = ["other", "make", "modal_adaptation"]
    studies = headline([row("title") | {"study": name} for name in names])
    assert [study["study"] for study in studies] == ["modal_adaptation", "make", "other"]


def test_headline_falls_back_to_the_metrics_that_there_are():
    assert headline([row("mean", metric=f"M{n}") for n in range(6)])[0]["metrics"] == ["M0", "M1", "M2", "M3"]


def test_settings_that_differ_are_named():
    base = {"seeds": [0], "training": {"steps": 400, "clip": 1.0}}
    assert changed_leaves(base, {"seeds": [0], "training": {"steps": 5, "clip": 1.0}}) == [("training.steps", 400, 5)]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7325, "2:02:05")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_progress_is_one_line_now_and_then_where_output_is_a_log(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    line = reports._Line()
    for second in range(40):
        now[0] = 100.0 + second
        line.show(f"at {second}")
    assert capsys.readouterr().out.split("\n") == ["at 15", "at 30", ""]


def test_memory_counts_descendants_and_no_files_that_are_mapped(tmp_path):
    grandchild = (
        "import mmap, time; block = b'x' * 60_000_000; f = open({file!r}, 'rb'); "
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); m.read(); print('ready', flush=True); time.sleep(60)"
    )
    file = tmp_path / "mapped"
    file.write_bytes(b"x" * 300_000_000)
    grandchild = grandchild.format(file=str(file))
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    child = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"
        assert 60_000_000 < reports._held(child) < (200_000_000 if sys.platform == "linux" else 2**40)
        family = child.children(recursive=True)
    finally:
        reports._stop(child)
    assert family
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert child.returncode is not None


def test_json_knows_no_nan(tmp_path):
    reports._write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5, (2, None)], "c": "NaN"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5, [2, None]], "c": "NaN"}
    assert os.stat(tmp_path / "x.json").st_mode & 0o777 == 0o644
