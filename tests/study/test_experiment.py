"""The grid of arms: what is cached is not computed again, what changed is, and an arm that did not run is never scored."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from worlds import TINY

from makelib.data.catalog import Catalog
from makelib.data.sources import open_catalog
from makelib.model import training
from makelib.model.frozen import pictures
from makelib.runtime import UserError
from makelib.settings import preset, read_yaml, to_dict, write_yaml
from makelib.study import experiment as module
from makelib.study.arms import run_arm
from makelib.study.experiment import Experiment, find_model
from makelib.study.readers import READERS
from makelib.study.studies import GAINS, PLANNED, REFERENCES, STUDIES, SWEEPS, Sweep
from makelib.workbook.notebook import where_missing


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Experiment.open(folder / "run", "smoke", "bazaar", 1, TINY)


def test_the_chinese_world_goes_by_its_name(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chinese = Experiment.open("run", "smoke", "bazaar-zh", 1, TINY)
    assert chinese.settings == experiment.settings.replace(**{"bazaar.language": "zh"})
    assert read_yaml(chinese.run / "settings.yaml") == chinese.settings
    assert json.loads((chinese.run / "catalogue.json").read_text())["name"] == chinese.catalog.name == "bazaar-zh"
    assert experiment.catalog.name == "bazaar"
    assert open_catalog("bazaar", chinese.settings).folder == chinese.catalog.folder
    assert open_catalog("bazaar-zh", experiment.settings).folder == chinese.catalog.folder
    pd.testing.assert_frame_equal(chinese.catalog.interactions, experiment.catalog.interactions)


@pytest.fixture(scope="module")
def rows(experiment):
    return experiment.study("modal_adaptation")


def test_an_arm_that_did_not_run_is_named_and_never_scored(experiment):
    with pytest.raises(UserError, match=r"not run.*enrichment, seed 0"):
        experiment.per_query("keyword_enhancement", ["enrichment"])


def test_result_rows_follow_the_contract(experiment, rows):
    wanted = {"study", "variant", "metric", "segment", "per_seed", "mean", "interval", "reference", "difference"}
    assert all(wanted <= set(row) for row in rows)
    assert {row["variant"] for row in rows} == {"title", "adaptive", "bm25", *READERS}
    first = next(r for r in rows if (r["variant"], r["metric"], r["segment"]) == ("adaptive", "Rel@10", "all"))
    assert first["reference"] == "title"
    means = {r["variant"]: r["mean"] for r in rows if r["metric"] == "Rel@10" and r["segment"] == "all"}
    assert first["difference"] == pytest.approx(means["adaptive"] - means["title"])
    kept = json.loads((experiment.run / "results" / "modal_adaptation.json").read_text())
    assert len(kept) == len(rows)


def test_a_second_run_computes_only_what_changed(experiment, rows, monkeypatch):
    began = []
    monkeypatch.setattr(module.concurrent.futures, "ProcessPoolExecutor", lambda *a, **k: began.append(a) or 1 / 0)
    experiment.study("modal_adaptation")  # everything is there: no worker starts
    assert not began
    with pytest.raises(ZeroDivisionError):
        experiment.train(experiment.arms("keyword_enhancement", ["false_negatives"]))


def test_equal_arms_are_one_folder_and_every_change_another(experiment):
    none = experiment.arm("keyword_enhancement", "none", 0)
    assert none.folder == experiment.arm("modal_adaptation", "adaptive", 0).folder
    assert none.done
    folders = {experiment.arm("keyword_enhancement", variant, 0).folder for variant in STUDIES["keyword_enhancement"]}
    assert len(folders) == len(STUDIES["keyword_enhancement"])
    assert experiment.arm("modal_adaptation", "adaptive", 1).folder != none.folder


def test_the_key_covers_the_code(experiment, monkeypatch):
    before = experiment.arm("modal_adaptation", "title", 0).folder
    monkeypatch.setattr(training, "code_version", lambda: "other")
    assert experiment.arm("modal_adaptation", "title", 0).folder != before


def test_what_is_judged_is_no_part_of_a_training(experiment, rows, tmp_path):
    """Another index, other test queries, seeds or arms: scored anew at most, never trained anew."""
    before = experiment.arm("modal_adaptation", "title", 0)
    trained = json.loads((before.folder / "arm.json").read_text())
    model, scores = before.folder / "model" / "model.safetensors", before.folder / "per_query.parquet"
    weights, judged = model.read_bytes(), len(pd.read_parquet(scores))
    asked = {"name": "other", "seeds": [0, 1], "ablation.fusions": ["title"], "evaluation.alpha": 0.01}
    same = dataclasses.replace(experiment, settings=experiment.settings.replace(**asked))
    assert same.arm("modal_adaptation", "title", 0).folder == before.folder
    assert same.arm("modal_adaptation", "title", 0).done
    changes = {"evaluation.test_queries": 12, "index.kind": "hnsw"}
    other = dataclasses.replace(experiment, settings=experiment.settings.replace(**changes))
    again = other.arm("modal_adaptation", "title", 0)
    assert again.folder == before.folder
    assert not again.done
    run_arm(again.label, to_dict(again.settings), str(other.catalog.folder), 0, str(again.folder))
    assert again.done
    assert model.read_bytes() == weights
    assert (len(pd.read_parquet(scores)), judged) == (12, 20)
    assert json.loads((before.folder / "arm.json").read_text())["seconds"] == trained["seconds"]
    run_arm(before.label, to_dict(before.settings), str(experiment.catalog.folder), 0, str(before.folder))
    assert before.done


def test_a_half_done_arm_goes_on_when_seeds_and_arms_are_asked_otherwise(experiment, tmp_path):
    settings = experiment.settings.replace(**{"training.checkpoint_every": 1, "training.steps": 2})
    training.train(experiment.catalog, settings, 0, tmp_path, stop_after=1)
    asked = {"name": "other", "seeds": [0, 1, 2, 3, 4], "ablation.fusions": ["title"], "evaluation.test_queries": 12}
    steps = []
    training.train(
        experiment.catalog, settings.replace(**asked), 0, tmp_path, on_step=lambda stage, step, of: steps.append(step)
    )
    assert steps == [2]
    with pytest.raises(UserError, match="other settings"):
        training.train(experiment.catalog, settings.replace(**{"training.learning_rate": 1e-3}), 0, tmp_path)


def test_an_arm_leaves_what_later_chapters_read(experiment, rows):
    folder = experiment.arm("modal_adaptation", "adaptive", 0).folder
    names = {path.name for path in folder.iterdir()}
    assert {"arm.json", "model", "index", "hits.npz", "per_query.parquet", "curves.parquet"} <= names
    assert "checkpoint" not in names
    table = pd.read_parquet(folder / "per_query.parquet")
    assert len(table) == len(experiment.test_rows)
    assert experiment.catalog.queries["split"].iloc[experiment.test_rows].eq("test").all()


def test_a_failing_arm_does_not_take_the_others_along(experiment, monkeypatch, tmp_path):
    broken = Experiment(tmp_path / "run", experiment.settings, experiment.catalog)
    good, bad = broken.arm("modal_adaptation", "title", 0), broken.arm("modal_adaptation", "mean", 0)
    bad.folder.mkdir(parents=True)
    (bad.folder / "checkpoint").mkdir()
    (bad.folder / "checkpoint" / "state.json").write_text('{"identity": "of another run"}')
    with pytest.raises(UserError, match=r"1 of 2 arms failed.*mean, seed 0.*other settings"):
        broken.train([bad, good])
    assert good.done
    assert not bad.done


def test_find_model(experiment, rows, tmp_path):
    assert find_model(experiment.run, "title") == experiment.arm("modal_adaptation", "title", 0).folder
    assert find_model(experiment.run).is_dir()
    with pytest.raises(UserError, match="no trained variant 'gate'"):
        find_model(experiment.run, "gate")
    with pytest.raises(UserError, match="no trained model"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope", "bazaar"), "Unknown preset"),
        (("smoke", "no-such-folder"), "no catalogue"),
        (("smoke", "bazaar", -1), "seeds"),
        (("smoke", "bazaar", 0, {"training.stepz": 1}), "no setting"),
    ],
)
def test_mistakes_are_one_clear_line_and_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        Experiment.open(tmp_path / "run", *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": "/"}, "^/ holds other files and no run"),
        ({"run": "mine"}, "mine holds other files and no run"),
        ({"run": "afile"}, "afile is a file"),
        ({"run": None}, "run must be"),
        ({"seeds": "two"}, "seeds must be of type int, not 'two'"),
        ({"overrides": ["a"]}, "overrides must be of type dict"),
        ({"overrides": {"training.steps": -5}}, "training.steps must be at least 0, not -5"),
        ({"overrides": {"training.word_dropout": 1.5}}, "training.word_dropout must be between 0 and 1"),
        ({"overrides": {"training.stepz": 1}}, "did you mean training.steps"),
    ],
)
def test_a_run_is_never_a_place_that_holds_something_else(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(UserError, match=message) as error:
        Experiment.open(**{"run": "run", "preset_name": "smoke"} | arguments)
    assert "\n" not in str(error.value)
    assert not Path("/settings.yaml").exists()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "afile",
        "mine",
        "mine/letter.txt",
    ]


def test_a_run_without_a_folder_is_named_by_one_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Experiment.open("", "smoke", "bazaar", 1, TINY).run == Path("reports/smoke")
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["reports"]


def test_a_finished_run_is_sacred(experiment, tmp_path, monkeypatch):
    """Other settings, fewer seeds or another catalogue never change a run that holds models; its own reopen it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(experiment.run.parent / "data", tmp_path / "data")
    first = Experiment.open("run", "smoke", "bazaar", 2, TINY)
    Experiment.open("run", "smoke", "bazaar", 2, TINY | {"training.steps": 4})  # nothing is trained: no harm
    first = Experiment.open("run", "smoke", "bazaar", 2, TINY)
    arm = first.arm("make", "full", 0)
    arm.folder.mkdir(parents=True)
    write_yaml(arm.settings, arm.folder / "settings.yaml")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for arguments, said in (
        (("smoke", "bazaar", 2, TINY | {"training.steps": 4}), "training.steps 4"),
        (("smoke", "bazaar", 1, TINY), "seeds"),
        (("quick", "bazaar", 2, TINY), "name 'quick'"),
        (("smoke", "bazaar-zh", 2, TINY), "bazaar.language 'zh'"),
        (("smoke", str(experiment.catalog.folder.parent / "other"), 2, TINY), "catalogue"),
    ):
        if "other" in arguments[1]:
            shutil.copytree(experiment.catalog.folder, arguments[1])
            facts = json.loads((Path(arguments[1]) / "catalogue.json").read_text())
            (Path(arguments[1]) / "catalogue.json").write_text(json.dumps(facts | {"fingerprint": "other"}))
        with pytest.raises(UserError, match="stays as it is") as error:
            Experiment.open("run", *arguments)
        assert said in str(error.value)
        assert "such as run-2" in str(error.value)
        assert "go back to its own settings" in str(error.value)
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert Experiment.open("run", "smoke", "bazaar", 2, TINY).settings == first.settings
    assert Experiment.reopen("run").settings == first.settings


def test_a_run_goes_on_with_more_seeds(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(experiment.run.parent / "data", tmp_path / "data")
    arm = Experiment.open("run", "smoke", "bazaar", 1, TINY).arm("make", "full", 0)
    arm.folder.mkdir(parents=True)
    write_yaml(arm.settings, arm.folder / "settings.yaml")
    more = Experiment.open("run", "smoke", "bazaar", 3, TINY)
    assert more.settings.seeds == Experiment.reopen("run").settings.seeds == (0, 1, 2)
    assert more.arm("make", "full", 0).folder == arm.folder


@pytest.fixture
def training_family(experiment, tmp_path):
    """A process that trains five arms, two at a time, and its workers; the first of them has taken a step."""
    shutil.copytree(experiment.run.parent / "data", tmp_path / "data")
    changes = TINY | {"training.steps": 5000, "ablation.workers": 2}
    code = f"""
from makelib import Experiment
if __name__ == "__main__":
    experiment = Experiment.open("run", "smoke", "bazaar", 5, {changes!r})
    try:
        experiment.train(experiment.arms("modal_adaptation", ["title"]))
    except KeyboardInterrupt as stopped:
        print(stopped, flush=True)
"""
    (tmp_path / "script.py").write_text(code)
    child = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    family = []
    try:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "run").glob("models/*/steps")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(child.pid).children(recursive=True)
        yield child, family
    finally:
        for process in (child, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.slow
def test_stop_ends_the_workers_and_starts_no_further_arm(training_family, tmp_path):
    """Ctrl-C, which a terminal and Jupyter send to the whole family: one line, nothing left, what is done is kept."""
    child, family = training_family
    began = time.monotonic()
    os.killpg(child.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=60)  # two seconds on an idle machine; the arms would take minutes
    print(f"stopped after {time.monotonic() - began:.1f} s")
    out, err = child.communicate(timeout=30)
    assert alive == []
    assert out.startswith("Stopped: 0 of 5 models are trained and kept")
    assert "run the cell (or the command) again" in out
    assert "Traceback" not in err
    assert len(list((tmp_path / "run").glob("models/*"))) <= 2


@pytest.mark.slow
def test_workers_do_not_outlive_a_kernel_that_is_killed(training_family):
    child, family = training_family
    child.kill()
    assert len(family) >= 2
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_planned_comparisons_are_among_the_references():
    assert all((variant, reference) in REFERENCES[study] for study, variant, reference in PLANNED)
    for study, pairs in REFERENCES.items():
        assert {variant for pair in pairs for variant in pair} <= {
            *STUDIES[study],
            "bm25",
            "late_fusion",
            "oracle_weights",
            *READERS,
            *GAINS.get(study, {}),
        }


def test_every_variant_of_every_study_is_a_training_of_its_own(experiment):
    for study, variants in STUDIES.items():
        arms = [experiment.arm(study, variant, 0) for variant in variants]
        assert len({arm.folder for arm in arms}) == len(arms)
    for sweep in SWEEPS.values():
        assert set(sweep.variants) <= set(STUDIES[sweep.study])
        assert len({experiment.settings.replace(**{sweep.setting: value}) for value in sweep.values}) == len(
            sweep.values
        )


def test_a_sweep_is_its_study_at_each_value(experiment, rows, monkeypatch):
    kept = {name for name in (experiment.run / "models").iterdir()}
    sweep = Sweep("bazaar.missing_image", (0.03, 0.5), "modal_adaptation", ("title", "adaptive"))
    monkeypatch.setitem(SWEEPS, "no_image", sweep)
    found = experiment.sweep("no_image")
    assert set((experiment.run / "models").iterdir()) == kept  # at .03 the arms were there
    assert len(list((experiment.run / "worlds" / "no_image 0.5" / "models").iterdir())) == 2
    mine = [
        row for row in found if row["segment"] == "all" and row["metric"] == "Rel@10" and row["p_value"] is not None
    ]
    told = {(row["variant"], row["reference"]): row["value"] for row in mine}
    assert told["adaptive (no_image 0.5)", "title (no_image 0.5)"] == 0.5
    own = next(
        row for row in rows if (row["variant"], row["reference"]) == ("adaptive", "title") and row["metric"] == "Rel@10"
    )
    same = next(row for row in mine if row["variant"] == "adaptive (no_image 0.03)" and "title" in row["reference"])
    assert same["difference"] == own["difference"]
    assert json.loads((experiment.run / "results" / "no_image.json").read_text()) == found
    monkeypatch.setitem(SWEEPS, "seeds", Sweep("seeds", ((0,),), "modal_adaptation", ("title", "adaptive")))
    assert {row["value"] for row in experiment.sweep("seeds")} == {1}  # how many, and nothing is trained anew
    assert set((experiment.run / "models").iterdir()) == kept
    own_folder = dataclasses.replace(experiment, catalog=dataclasses.replace(experiment.catalog, info={}))
    with pytest.raises(UserError, match="only the generated world"):
        own_folder.sweep("no_image")


def test_presets_ask_for_known_variants():
    for name in ("smoke", "quick", "full"):
        ablation_settings = preset(name).ablation
        assert set(ablation_settings.fusions) <= set(STUDIES["modal_adaptation"])
        assert set(ablation_settings.keywords) <= set(STUDIES["keyword_enhancement"])


# -- a catalogue with holes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holes(tmp_path_factory):
    """One's own folder of 360 products: a third has no image, a fifth no title, none lacks both; colours only in images."""
    folder = tmp_path_factory.mktemp("holes")
    random, noise = np.random.default_rng(0), np.random.default_rng(1)
    colours = {"red": "#d01010", "blue": "#1020d0", "green": "#10b020", "black": "#101010"}
    combos = list(itertools.product(colours, ("dress", "shoe", "bag"), ("acme", "bolt", "core")))
    lines = ["product_id,title,image,type,colour,brand"]
    (folder / "shop" / "images").mkdir(parents=True)
    for i in range(360):
        colour, kind, brand = combos[random.integers(len(combos))]
        image, title = "", "" if i % 3 == 1 and i % 5 < 3 else f"{brand} {kind} new"
        if i % 3:
            image = f"images/{i}.png"
            grain = Image.fromarray(noise.normal(128, 20, (16, 16)).clip(0, 255).astype(np.uint8)).convert("RGB")
            Image.blend(Image.new("RGB", (16, 16), colours[colour]), grain, 0.2).save(folder / "shop" / image)
        lines.append(f"p{i},{title},{image},{kind},{colour},{brand}")
    (folder / "shop" / "products.csv").write_text("\n".join(lines))
    changes = TINY | {
        "files.limit": 0, "files.queries": 120, "files.clicks": 2000, "training.steps": 150, "training.image_warmup": 30,
        "model.image_size": 16, "ablation.fusions": ["title", "image", "adaptive"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = Experiment.open(folder / "run", "smoke", "shop", 1, changes)
        yield experiment, experiment.study("modal_adaptation")


def test_a_catalogue_with_holes_is_trained_indexed_and_judged(holes):
    experiment, _ = holes
    present = experiment.catalog.present
    assert present.mean(axis=0) == pytest.approx([4 / 5, 2 / 3])
    retriever = experiment.retriever("adaptive", study="modal_adaptation")
    assert len(retriever.index) == 360
    weights = retriever.vectors.weights
    assert (weights[~present[:, 1], 1] == 0).all()
    assert (weights[~present[:, 0], 0] == 0).all()
    assert np.isfinite(retriever.vectors.embedding).all()


def test_the_report_says_what_is_found_of_products_that_lack_something(holes):
    _, rows = holes
    table = where_missing(rows)
    assert [column.split(" (")[0] for column in table] == ["all", "no title", "no image"]
    assert set(table.index) == {"title", "image", "adaptive", "late_fusion", "bm25"}
    found = {column.split(" (")[0]: table[column] for column in table}
    # a variant that looks at one modality only loses what lacks it; Modal Adaptation lives on what is there
    assert found["no title"]["adaptive"] > found["no title"]["title"] + 0.1
    assert found["no image"]["adaptive"] > found["no image"]["image"] + 0.1


def test_what_arms_share_is_made_once_before_the_workers_come(experiment, tmp_path, monkeypatch):
    """Also a frozen tower's maps: one worker would make them on its share of the cores while the others wait."""
    world = experiment.run.parent / experiment.catalog.folder
    catalog = Catalog.open(shutil.copytree(world, tmp_path / "world"))
    shutil.rmtree(catalog.folder / ".cache", ignore_errors=True)
    settings = experiment.settings.replace(**{"model.image_frozen": True})
    fresh = Experiment(tmp_path / "run", settings, catalog)
    (tmp_path / "run").mkdir()
    fresh._share([fresh.arm("make", "title", 0)])
    assert not list((catalog.folder / ".cache").glob("maps-*"))
    fresh._share([fresh.arm("make", "full", 0)])
    assert len(list((catalog.folder / ".cache").glob("maps-*.npy"))) == 1
    assert "once for all arms" in (tmp_path / "run" / ".progress").read_text()
    monkeypatch.setattr("makelib.model.frozen._compute", lambda *_: pytest.fail("made twice"))
    model = training.untrained(catalog, settings)
    assert len(pictures(catalog, model)[0]) == len(catalog)


def test_who_watches_a_training_reads_what_runs_and_about_how_long(experiment, tmp_path, monkeypatch):
    """Not what is done: of forty-five arms that would be all that fits on the line."""
    watched = Experiment(tmp_path / "run", experiment.settings.replace(**{"training.steps": 100}), experiment.catalog)
    arms = [watched.arm("modal_adaptation", variant, 0) for variant in ("title", "mean")]
    jobs, lines = [concurrent.futures.Future() for _ in arms], []

    class Pool:
        def submit(self, job, label, *_):
            place = [arm.label for arm in arms].index(label)
            arms[place].folder.mkdir(parents=True)
            (arms[place].folder / "steps").write_text("0" if place else "1")
            return jobs[place]

    def status(_, line):
        lines.append(line)
        if len(lines) == 1:
            jobs[0].set_result(None)
            (arms[0].folder / "steps").write_text("100")
            (arms[1].folder / "steps").write_text("40")
        elif len(lines) == 2:
            jobs[1].set_result(None)
            (arms[1].folder / "steps").write_text("100")

    monkeypatch.setattr(module, "worker_pool", lambda *_: contextlib.nullcontext(Pool()))
    monkeypatch.setattr(Experiment, "status", status)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(time=itertools.count(0, 150).__next__))
    assert watched._train(arms, 1, 1, "") == {}
    assert lines == [
        "0/2 arms trained, about 498 min to go (title, seed 0 at step 1)",
        "1/2 arms trained, about 3 min to go (mean, seed 0 at step 40)",
        "2/2 arms trained",
    ]


def test_two_that_train_the_same_run_at_once(experiment, tmp_path):
    """One trains; the other says that it waits, trains nothing, and has the same scores."""
    shutil.copytree(experiment.run.parent / "data", tmp_path / "data")
    program = (
        "import sys; from makelib.study.experiment import Experiment; from makelib.study import experiment as module\n"
        "module.Experiment._share = lambda self, todo, share=module.Experiment._share: (print('trains'), share(self, todo))\n"
        f"if __name__ == '__main__':\n"
        f"    opened = Experiment.open('run', 'smoke', 'bazaar', 1, {TINY!r})\n"
        "    opened.train([opened.arm('make', 'title', 0)])\n"
        "    print(opened.arm('make', 'title', 0).done)\n"
    )
    (tmp_path / "train.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "train.py"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted(out for out, _ in told) == ["True\n", "trains\nTrue\n"]
    waiting = next(errors for out, errors in told if "trains" not in out)
    assert "Another process is making run/models; waiting for it." in waiting


def test_a_script_that_trains_as_it_is_imported_is_told_how(tmp_path):
    (tmp_path / "script.py").write_text(
        "from makelib import Experiment\n"
        f"experiment = Experiment.open('reports/one', 'smoke', 'bazaar', 0, {TINY!r})\n"
        "experiment.train(experiment.arms('make', ['title']))\n"
    )
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, text=True, capture_output=True, timeout=240)
    assert ran.returncode != 0
    assert 'under `if __name__ == "__main__":`' in ran.stderr
