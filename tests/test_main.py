"""The command line: what it lists, what it refuses in one line, what each command hands to the library."""

import dataclasses
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from makelib import __main__ as cli
from makelib.data.sources.files.options import ImportOptions
from makelib.data.tables import write_catalog
from makelib.runtime import Stopped, UserError

COMMANDS = ("data", "train", "index", "search", "evaluate", "ablate", "reproduce", "bench")


def test_help_lists_every_command_and_imports_no_model():
    code = (
        "import sys; from makelib.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('heavy:', sorted({'torch', 'pandas', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "heavy: []" in shown.stdout
    for command in COMMANDS:
        assert f"\n    {command}" in shown.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "data bazaar", "data import", "data hub"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_flag_of_an_import_is_an_option_of_that_name():
    flags = vars(cli.parser().parse_args(["data", "import", "shop"])).keys() - {"command", "folder", "out", "map"}
    assert len(flags) > 20
    assert flags <= {option.name for option in dataclasses.fields(ImportOptions)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["sell"], "invalid choice: 'sell'"),
        (["train", "--sed", "1"], "unrecognized arguments: --sed"),
        (["train", "--seed", "one"], "invalid int value: 'one'"),
        (["train", "--preset", "huge"], "Unknown preset 'huge'"),
        (["train", "--variant", "best"], "There is no variant 'best'"),
        (["train", "--set", "training.step=1"], "There is no setting 'training.step'"),
        (["train", "--set", "training.steps"], "lacks a name or an `=`"),
        (["train", "--set", "training.steps=many"], "training.steps"),
        (["train", "--set", "training.steps=[1"], "is not a value"),
        (["train", "--catalog", "nowhere"], "There is no catalogue 'nowhere'"),
        (["ablate", "--seeds", "-1"], "seeds must be 0"),
        (["reproduce", "--preset", "huge"], "Unknown preset 'huge'"),
        (["reproduce", "--catalog", "nowhere"], "There is no catalogue 'nowhere'"),
        (["search", "dress", "--run", "nowhere"], "There is no trained model under nowhere"),
        (["search", "  ", "--run", "nowhere"], "The query is empty"),
        (["evaluate", "--run", "nowhere"], "There is no trained model under nowhere"),
        (["index", "--run", "nowhere", "--kind", "best"], "invalid choice: 'best'"),
        (["data", "import", "nowhere"], "There is no folder nowhere"),
        (["data", "import", ".", "--hide-share", "2"], "hide_share is a share"),
        (["data", "import", ".", "--map", "title"], "lacks a name or an `=`"),
        (["data", "bazaar", "--out", "."], "choose another --out"),
        (["data", "hub", "shoes"], "known: hub:fashion-product-images-small, hub:marqo-gs-10m, hub:esci+sqid"),
        (["data", "hub", "hub:marqo-gs-10m", "--limit", "-1"], "limit is a number of products"),
        (["data", "hub", "marqo-gs-10m", "--out", "."], "choose another --out"),
        (["reproduce", "--catalog", "hub:shoes"], "There is no public data set 'shoes'"),
        (["bench", "--set", "bazaar.product=1"], "There is no setting"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("makelib: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100", 100),
        ("2e-3", 0.002),
        ("0.5", 0.5),
        ("true", True),
        ("[title, mean]", ["title", "mean"]),
        ("mean", "mean"),
        ("", None),
    ],
)
def test_values_of_settings_are_read_as_yaml(text, value):
    (read,) = cli.overrides([f"a.b={text}"]).values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("preset", "catalog", "run", "folder"),
    [
        ("quick", "bazaar", None, "reports/quick"),
        ("full", "/some/where/shoes/", None, "reports/full-shoes"),
        ("smoke", "hub:esci+sqid", None, "reports/smoke-esci+sqid"),
        ("quick", "bazaar-zh", None, "reports/quick-bazaar-zh"),
        ("smoke", "bazaar", "elsewhere", "elsewhere"),
    ],
)
def test_a_run_is_named_after_preset_and_catalogue(preset, catalog, run, folder):
    assert str(cli._run(Namespace(preset=preset, catalog=catalog, run=run))) == folder


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`… | head -1`: the pipe breaks while there is more to say."""
    code = (
        "import sys; from makelib import __main__ as cli\n"
        "cli.search = lambda given: print('a line\\n' * 100_000)\n"
        "sys.exit(cli.main(['search', 'dress', '--run', 'quick']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "a line\n"
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 0


def test_stopped_says_what_is_kept(monkeypatch, capsys):
    def stopped(given):
        raise Stopped("Stopped: 2 of 5 models are kept.")

    monkeypatch.setattr(cli, "search", stopped)
    assert cli.main(["search", "x", "--run", "quick"]) == 130
    assert capsys.readouterr().err == "makelib: Stopped: 2 of 5 models are kept.\n"


@pytest.mark.parametrize("query", ["dress zzzq", "zzzzqqq xxyx", "\udce7\udcba\udca2\udce8\udc89\udcb2"])
def test_a_query_of_unknown_words_is_called_a_guess(query, tiny_catalog, monkeypatch, capsys):
    """Also one that a locale without UTF-8 handed over as bytes (红色)."""
    from makelib.search import retriever
    from makelib.study import experiment

    asked = []

    class Fake:
        catalog = tiny_catalog

        def search(self, query, k, category):
            asked.append(query)
            return pd.DataFrame({"rank": [1], "row": [0], "product_id": ["p0"], "score": [0.5]})

    monkeypatch.setattr(experiment, "find_model", lambda run, variant: run)
    monkeypatch.setattr(retriever.Retriever, "open", lambda folder: Fake())
    assert cli.main(["search", query, "--run", "quick", "--json"]) == 0
    out, err = capsys.readouterr()
    guess = query != "dress zzzq"
    assert json.loads(out)[0].get("guess", False) is guess
    assert ("no word of this query" in err) is guess
    assert asked == ["红色" if "\udce7" in query else query]


def test_search_prints_json_without_nan(tiny_catalog, monkeypatch, capsys):
    from makelib.search import retriever
    from makelib.study import experiment

    class Fake:
        catalog = tiny_catalog

        def search(self, query, k, category):
            table = pd.DataFrame({"rank": np.arange(1, k + 1), "row": 0, "product_id": "p0", "title": f'"{query}" été'})
            return table.assign(score=0.5, score_title=np.nan)

    monkeypatch.setattr(experiment, "find_model", lambda run, variant: (run, variant))
    monkeypatch.setattr(retriever.Retriever, "open", lambda folder: Fake() if folder == ("quick", "mean") else None)
    assert cli.main(["search", "red dress", "--run", "quick", "--variant", "mean", "-k", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0] == {"rank": 1, "product_id": "p0", "title": '"red dress" été', "score": 0.5, "score_title": None}
    assert cli.main(["search", "red dress", "--run", "quick", "--variant", "mean", "-k", "2"]) == 0
    assert '"red dress" été' in capsys.readouterr().out


def test_reproduce_hands_its_words_on_and_returns_the_exit_code(monkeypatch):
    from makelib.workbook.reports import run

    given = []
    monkeypatch.setattr(run, "reproduce", lambda *words: given.append(words) or 1)
    assert cli.main(["reproduce", "--preset", "smoke", "--seeds", "2", "--set", "training.steps=9"]) == 1
    ((preset, catalog, seeds, out, overrides),) = given
    assert (preset, catalog, seeds, str(out), overrides) == (
        "smoke",
        "bazaar",
        2,
        "reports/smoke",
        {"training.steps": 9},
    )


def test_an_interruption_has_its_own_exit_code(monkeypatch, capsys):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "search", interrupted)
    assert cli.main(["search", "x", "--run", "quick"]) == 130
    assert capsys.readouterr().err == "makelib: interrupted\n"


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch):
    def broken(given):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "search", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["search", "x", "--run", "quick"])


def test_import_maps_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    colours, kinds = ("red", "blue", "green", "black", "white"), ("cup", "pan", "rug", "hat")
    titles = [(f"{colour} {kind}", colour, kind) for colour in colours for kind in kinds] * 20
    lines = [
        "sku,label,colour,type",
        *(f"{row},{title},{colour},{kind}" for row, (title, colour, kind) in enumerate(titles)),
    ]
    (tmp_path / "shop" / "products.csv").write_text("\n".join(lines))
    assert cli.main(["data", "import", "shop", "--map", "title=label", "--map", "category=type"]) == 0
    assert "data/shop: 400 products" in capsys.readouterr().out
    from makelib.data.catalog import Catalog

    assert Catalog.open("data/shop").products["title"].tolist()[:2] == ["red cup", "red pan"]
    options = ["--map", "title=label", "--seed", "3", "--limit", "300", "--label-columns", "type", "colour"]
    options += ["--query-columns", "colour", "type", "--queries", "7", "--clicks", "90", "--images-per-product", "2"]
    assert cli.main(["data", "import", "shop", "--out", "data/few", *options]) == 0
    few = Catalog.open("data/few")
    said = few.info["options"]
    assert (said["seed"], said["images_per_product"], said["label_columns"]) == (3, 2, ["type", "colour"])
    assert len(few) == 300
    assert {key for wanted in few.queries["constraints"] for key in wanted} == {"colour", "type"}
    assert len(few.interactions) == 90


def test_strict_import_of_a_broken_row_is_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    lines = [
        "sku,name,colour,type",
        *(f"{row},{row} cup,{('red', 'blue', 'green')[row % 3]},{('cup', 'mug')[row % 2]}" for row in range(60)),
        "7,again,red,cup",
    ]
    (tmp_path / "shop" / "products.csv").write_text("\n".join(lines))
    assert cli.main(["data", "import", "shop", "--strict"]) == 2
    err = capsys.readouterr().err
    assert "products row 61 repeats an id" in err
    assert not (tmp_path / "data" / "shop").exists()
    assert cli.main(["data", "import", "shop"]) == 0
    assert "61 | 60 | 1 | 0" in capsys.readouterr().out


def test_hub_hands_its_words_on_and_prints_the_health_report(tiny_catalog, monkeypatch, capsys):
    from makelib.data.sources import hub
    from makelib.data.sources.files import health

    given = []
    monkeypatch.setattr(hub, "open_set", lambda *words, **named: given.append((words, named)) or tiny_catalog)
    monkeypatch.setattr(health, "health_report", lambda catalog: f"health of {catalog.name}")
    words = ["data", "hub", "hub:esci+sqid", "--preset", "smoke", "--seed", "3", "--set", "files.clicks=9"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--limit", "0", "--out", "nowhere"]) == 0
    ((name, options), named), ((_, all_of_it), elsewhere) = given
    assert (name, options.limit, options.seed, options.clicks, named["out"]) == ("esci+sqid", 600, 3, 9, None)
    assert (all_of_it.limit, str(elsewhere["out"])) == (0, "nowhere")
    assert "5 products, 6 queries\n\nhealth of tiny" in capsys.readouterr().out


@pytest.mark.slow
def test_train_search_index_evaluate(tmp_path, monkeypatch, capsys):
    """The commands one after the other, on a world that trains in seconds."""
    monkeypatch.chdir(tmp_path)
    world = [
        "bazaar.products=300",
        "bazaar.queries=250",
        "bazaar.clicks=2000",
        "training.steps=2",
        "training.batch_size=32",
    ]
    changes = [word for setting in world for word in ("--set", setting)]
    assert cli.main(["train", "--preset", "smoke", "--variant", "mean", "--run", "reports/try", *changes]) == 0
    folder = capsys.readouterr().out.strip()
    assert cli.main(["search", "red dress", "--run", "try", "-k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert all(hit["weight_title"] + hit["weight_image"] == pytest.approx(1) for hit in hits)
    assert cli.main(["index", "--run", "try", "--kind", "ivf"]) == 0
    assert f"{folder}-ivf: 300 products" in capsys.readouterr().out
    tables = {
        name: pd.read_parquet(
            Path(json.loads((Path(folder) / "retriever.json").read_text())["catalogue"]) / f"{name}.parquet"
        )
        for name in ("products", "queries", "interactions")
    }
    tables["products"].loc[0, "product_id"] = "of today"
    tables["interactions"] = tables["interactions"][tables["interactions"]["product_id"] != "p00000"]
    write_catalog(tmp_path / "data" / "today", name="today", **tables)
    assert cli.main(["index", "--run", folder, "--catalog", "data/today"]) == 0
    assert f"{folder}-today: 300 products, 256 dimensions, exact" in capsys.readouterr().out
    assert cli.main(["search", "red dress", "--run", f"{folder}-today", "-k", "300", "--json"]) == 0
    found = {hit["product_id"] for hit in json.loads(capsys.readouterr().out)}
    assert len(found) == 300
    assert "of today" in found
    assert "p00000" not in found
    assert cli.main(["evaluate", "--run", f"{folder}-ivf", "--trec", "trec"]) == 0
    assert "Recall@100" in capsys.readouterr().out
    assert (tmp_path / "trec" / "run.trec").is_file()
    assert cli.main(["search", "x", "--run", "try", "--variant", "adaptive"]) == 2


def test_user_errors_of_several_lines_become_one(monkeypatch, capsys):
    def mistaken(given):
        raise UserError("first\n  second")

    monkeypatch.setattr(cli, "search", mistaken)
    assert cli.main(["search", "x", "--run", "quick"]) == 2
    assert capsys.readouterr().err == "makelib: first second\n"
