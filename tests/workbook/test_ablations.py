"""The ablation explorer without a browser: its numbers are those of the report, its words follow them, and callbacks work."""

import dataclasses
import multiprocessing
import re
import time

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from planted import plant, planted_run

from makelib.runtime import UserError
from makelib.search.retriever import Retriever
from makelib.settings import preset
from makelib.study import lines
from makelib.study.statistics import result_rows
from makelib.workbook.ablations import training as training_module
from makelib.workbook.ablations.state import EVERYTHING, State, changed, completions, read_changes, read_values, written
from makelib.workbook.ablations.views import Views
from makelib.workbook.ablations.widget import AblationExplorer


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return planted_run(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def explorer(experiment):
    return AblationExplorer(experiment)


# -- settings in words ------------------------------------------------------------------------------------------------


def test_changes_are_read_as_they_are_written():
    base = preset("smoke")
    changes = {"model.fusion": "gate", "training.learning_rate": 1e-3, "keywords.enrichment": True}
    assert read_changes(written(changes)) == changes
    assert changed(base, base.replace(**changes)) == changes
    assert read_changes("training.learning_rate=1e-3, training.steps = 5") == {
        "training.learning_rate": 1e-3,
        "training.steps": 5,
    }
    assert read_values("60, 1e-3, gate") == (60, 1e-3, "gate")
    for text in ("training.steps", "=3", "a=[1", "training.steps=5}"):
        with pytest.raises(UserError, match=r"no list of settings|There is no setting"):
            base.replace(**read_changes(text))


def test_settings_are_completed_by_name_and_then_by_value():
    base = preset("smoke")
    assert "model.fusion=" in completions(base, "fus")
    assert completions(base, "training.steps=5, model.fusion=")[0] == "training.steps=5, model.fusion=title"
    assert completions(base, "keywords.enrichment=") == ["keywords.enrichment=true", "keywords.enrichment=false"]
    assert completions(base, "no.such=") == []


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_report(experiment):
    """What is chosen here and what `summary.json` keeps come from the same function."""
    views = Views(experiment)
    state = views.check(State(reference="title"))
    report = result_rows(
        "modal_adaptation", experiment.per_query("modal_adaptation", state.variants),
        [("joint", "title"), ("adaptive", "title")], experiment.segments, experiment.settings.evaluation,
    )  # fmt: skip
    for row in views.rows(state):
        same = next(r for r in report if all(r[k] == row[k] for k in ("variant", "metric", "segment", "reference")))
        assert {k: v for k, v in row.items() if k != "p_value_holm"} == same


def test_queries_are_in_the_order_of_their_difference(experiment):
    views = Views(experiment)
    table = views.per_query(views.check(State(against="adaptive", reference="title")))
    assert table["difference"].tolist() == pytest.approx([0.306, 0.303, 0.3])
    assert set(table["query"]) == set(experiment.catalog.queries["query"].iloc[experiment.test_rows])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"study": "nowhere"}, "no study"),
        ({"variants": ("mean", "title")}, "not trained"),
        ({"metric": "Rel@7"}, "no metric"),
        ({"segment": "nobody"}, "no segment"),
        ({"seeds": (9,)}, "No seed"),
        ({"variants": ("title",), "reference": "title"}, "at least one variant"),
    ],
)
def test_a_state_that_names_what_is_not_here_is_refused(experiment, wrong, said):
    with pytest.raises(UserError, match=said):
        Views(experiment).check(State(**wrong))


def test_arms_of_other_queries_stay_out(tmp_path):
    experiment = planted_run(tmp_path, seeds=(0,))
    arm = experiment.arm("modal_adaptation", "joint", 0)
    frame = pd.read_parquet(arm.folder / "per_query.parquet")
    frame.iloc[:2].to_parquet(arm.folder / "per_query.parquet", index=False)
    views = Views(experiment)
    assert views.left_out == 1
    assert list(views.studies[EVERYTHING]) == ["title", "adaptive"]
    assert "1 further arm of the run cannot be compared" in views.board(views.check(State()))


def test_what_stands_beside_the_arms_is_a_variant_in_every_study(tmp_path):
    experiment = planted_run(tmp_path)
    kept = experiment.untrained["bm25"]
    for seed in experiment.settings.seeds:
        adapted = experiment.per_query("modal_adaptation", ["adaptive"])["adaptive"][seed]
        lines.kept(experiment.run, f"k{seed}", "<i>clip</i> adapted", seed, lambda found=adapted: (found, {}))
    views = Views(experiment)
    assert all({"bm25", "<i>clip</i> adapted"} <= set(variants) for variants in views.studies.values())
    assert "bm25" not in views.check(State()).variants  # only where it is asked for
    asked = State(variants=("adaptive", "bm25", "<i>clip</i> adapted"), reference="bm25", against="adaptive")
    state = views.check(asked)
    means = {row["variant"]: row for row in views.rows(state)}
    assert means["bm25"]["per_seed"] == pytest.approx([kept["Rel@10"].mean()] * 2)
    assert means["<i>clip</i> adapted"]["per_seed"] == means["adaptive"]["per_seed"]
    page = BeautifulSoup(views.twin(state), "html.parser")
    assert "bm25: scores are kept" in page.get_text()
    assert not page.select("i")
    with pytest.raises(UserError, match="bm25 has no settings"):
        views.sweep(dataclasses.replace(state, setting="training.steps"))
    plain = views.check(State())
    (tmp_path / "plain").mkdir()
    assert views.rows(plain) == Views(planted_run(tmp_path / "plain")).rows(plain)  # and changes nothing elsewhere


def test_a_sweep_takes_arms_that_differ_in_one_setting_only(tmp_path):
    experiment = planted_run(tmp_path, seeds=(0,))
    model = Retriever.open(experiment.arm("modal_adaptation", "adaptive", 0).folder, experiment.catalog)
    for steps, gain in ((120, 0.4), (30, 0.1)):
        changes = {"training.steps": steps}
        plant(experiment, experiment.changed(changes, 0, "own", written(changes)), model, gain)
    views = Views(experiment)
    assert "training.steps=120" in views.studies[EVERYTHING]
    state = views.check(State(study=EVERYTHING, reference="adaptive", setting="training.steps"))
    rows, missing = views.sweep(state)
    assert [row["variant"] for row in rows] == ["30", "60", "120"]
    assert missing == []
    assert [row["mean"] for row in rows] == sorted(row["mean"] for row in rows)
    rows, missing = views.sweep(dataclasses.replace(state, values=(60, 90)))
    assert [row["variant"] for row in rows] == ["60"]
    assert missing == [90]
    assert "Not trained: <bdi>90</bdi>" in views.curve(dataclasses.replace(state, values=(60, 90)))
    # an arm of 60 steps took 10 s: one of 120 steps takes twice as long
    twice = experiment.changed({"training.steps": 120, "model.dropout": 0.5}, 0, "own", "x")
    once = dataclasses.replace(twice, settings=twice.settings.replace(**{"training.steps": 60}))
    assert views.estimate([twice]) == pytest.approx(2 * views.estimate([once]))


# -- widgets ----------------------------------------------------------------------------------------------------------


def soup(widget):
    return BeautifulSoup(widget.value, "html.parser")


def test_controls_change_the_board(explorer):
    assert explorer.widget
    assert re.match(r"adaptive is .* title: \+30\.\d \[", soup(explorer.board).get_text())
    explorer.reference.value = "joint"
    assert explorer.state.reference == "joint"
    assert re.match(r"adaptive is .* joint: \+60\.\d \[", soup(explorer.board).get_text())
    explorer.metric.value = "HitRate@100"
    assert "points of HitRate@100" in soup(explorer.board).get_text()
    checks = {check.meaning: check for check in explorer.variants.children[1:]}
    assert checks["joint"].disabled
    assert not checks["title"].disabled
    checks["title"].value = False
    assert explorer.state.variants == ("joint", "adaptive")
    explorer.level.value = 0.99
    assert "99% intervals" in soup(explorer.board).get_text()
    checks = {check.meaning: check for check in explorer.seeds.children[1:]}
    checks[1].value = False
    assert explorer.state.seeds == (0,)
    assert "seed 0 ·" in soup(explorer.board).get_text()
    explorer.study.value = EVERYTHING
    assert explorer.state.study == EVERYTHING
    assert explorer.alert.value == ""


def test_what_goes_wrong_is_a_sentence(explorer):
    assert explorer.widget
    for check in explorer.variants.children[1:]:
        if not check.disabled:
            check.value = False
    assert "at least one variant" in soup(explorer.alert).get_text()
    assert explorer.state.variants[-2:] != ()  # the last choice that made sense stays
    assert [check.meaning for check in explorer.variants.children[1:] if check.value] == list(explorer.state.variants)


def test_a_query_is_opened_by_place_by_words_and_by_tile(explorer):
    assert explorer.widget
    explorer.against.value = "adaptive"
    explorer.place.value = 1
    table = explorer.views.per_query(explorer.state)
    assert soup(explorer.beside).select_one(".mkx-status b").get_text() == table["query"][0]
    assert len(soup(explorer.beside).select(".mkx-versus [data-product]")) == 20
    explorer.rank.value = 2
    assert len(soup(explorer.panel).select(".mkx-why")) == 2
    explorer.find.value = table["query"][2]
    assert explorer.state.place == 3
    assert explorer.state.rank == 0
    assert explorer.panel.value == ""
    explorer.tiles[1].click()
    assert explorer.state.place == 2
    assert explorer.tiles[6].layout.display == "none"  # nothing is lost
    explorer.reference.value = "joint"
    assert explorer.state.place == 0
    assert "Choose a query" in explorer.beside.value


def test_names_of_a_shop_cannot_break_out(experiment, monkeypatch):
    monkeypatch.setenv("MAKELIB_HEADLESS", "1")
    explorer = AblationExplorer(experiment)
    pages = [BeautifulSoup(explorer.page(place=place).data, "html.parser") for place in (1, 2, 3)]
    for page in pages:
        assert not page.select("script, iframe, a, [onerror], [onload], [onmouseover]")
    assert any("<b>acme</b>" in page.get_text() for page in pages)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "In JupyterLab" in bundle["text/html"]


def test_a_cost_stands_beside_what_is_missing(explorer):
    assert explorer.widget
    explorer.changes.value = "model.fusion=gate"
    assert "2 trainings, about 20 s" in explorer.estimate.value
    explorer.changes.value = "model.fusion=adaptive"
    assert "Trained already" in explorer.estimate.value
    explorer.changes.value = "model.fusion=nonsense"
    assert "fusion" in explorer.estimate.value
    explorer.missing.value = "gate (modal_adaptation)"
    assert explorer.changes.value == "model.fusion=gate"
    explorer.setting.value = "training.steps"
    explorer.values.value = "60, 90"
    assert "Not trained" in explorer.sweep.value
    assert not explorer.start_sweep.disabled
    explorer.values.value = "[60"
    assert explorer.alert.value == "" or "no list of values" in explorer.alert.value


def test_training_reports_and_its_arm_joins_the_others(tmp_path, monkeypatch):
    """The process is stood in for by what it leaves behind: half of the steps, then the whole arm."""
    experiment = planted_run(tmp_path, seeds=(0,))
    model = Retriever.open(experiment.arm("modal_adaptation", "title", 0).folder, experiment.catalog)
    explorer = AblationExplorer(experiment)
    assert explorer.widget

    class Process:
        exitcode = None

        def __init__(self, target, args, daemon):
            self.arm = experiment.changed({"training.steps": 90}, 0, "own", "training.steps=90")
            assert args[1] == self.arm.label
            assert args[5] == str(self.arm.folder.resolve())

        def start(self):
            self.arm.folder.mkdir(parents=True)
            (self.arm.folder / "live.jsonl").write_text(
                '{"step": 45, "loss": 2.5, "validation Recall@100": 0.25}\n{"st'
            )
            self.until = time.time() + 3 * training_module.POLL

        def is_alive(self):
            if time.time() > self.until and not self.arm.done:
                plant(experiment, self.arm, model, 0.5)
            return not self.arm.done

        def join(self):
            pass

    context = training_module.multiprocessing.get_context("spawn")
    monkeypatch.setattr(training_module, "POLL", 0.05)
    monkeypatch.setattr(type(context), "Process", Process)
    explorer.changes.value = "training.steps=90"
    seen = []
    explorer.progress.observe(lambda change: seen.append(change["new"]), "value")
    explorer.start.click()
    explorer.training.thread.join(30)
    assert any("step 45 of 90" in value and "0.250" in value for value in seen)
    assert "done" in explorer.progress.value
    assert not explorer.start.disabled
    assert explorer.stop.disabled
    assert explorer.state.study == EVERYTHING
    assert explorer.state.against == "training.steps=90"
    assert re.match(r"training.steps=90 is .* adaptive: \+20\.\d \[", soup(explorer.board).get_text())


def test_a_training_that_fails_says_why(experiment, monkeypatch):
    arm = experiment.changed({"training.steps": 77}, 0, "own", "x")
    monkeypatch.setattr(training_module, "run_arm", lambda *_: 1 / 0)
    forked = multiprocessing.get_context("fork")  # so that the child has this very run_arm
    monkeypatch.setattr(training_module.multiprocessing, "get_context", lambda _: forked)
    told = []
    training = training_module.Training(experiment, [arm], told.append)
    training.thread.join(60)
    assert told[-1].state == "failed"
    assert "ZeroDivisionError" in told[-1].error
