"""Two runs compared, and one that travels."""

import copy
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import planted_run

from makelib import __main__ as cli
from makelib.runtime import UserError
from makelib.settings import preset, to_dict
from makelib.study.statistics import result_rows
from makelib.workbook.reports.diff import diff
from makelib.workbook.reports.pack import pack

ROOT = Path(__file__).parents[2]


def summary(name="before", **means):
    rows = [
        {"study": "make", "variant": variant, "metric": "Rel@10", "segment": "all", "mean": mean,
         "interval": [mean - 0.02, mean + 0.02]}
        for variant, mean in means.items()
    ]  # fmt: skip
    return {
        "run": name, "seeds": [0], "settings": to_dict(preset("smoke")), "results": rows,
        "provenance": {
            "git_commit": "abc", "dirty": False, "python": "3.11", "packages": {"torch": "1"},
            "catalogue": {"name": "shop", "fingerprint": "f", "products": 5},
        },
    }  # fmt: skip


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_numbers_that_moved_are_told_from_noise(tmp_path):
    a = write(tmp_path / "a", summary(full=0.5, title=0.4, mean=0.3, gone=0.2))
    b = write(tmp_path / "b", summary("after", full=0.6, title=0.405, mean=0.3, new=0.2))
    found = diff(a, b)
    assert dict(zip(found.numbers["variant"], found.numbers["verdict"], strict=True)) == {
        "full": "more than noise",
        "mean": "the same",
        "title": "noise",
    }
    moved = found.numbers.set_index("variant").loc["full"]
    assert moved["points"] == pytest.approx(10)
    assert moved["from"] == pytest.approx(10 - 2**0.5 * 2)
    assert found.notes == ["In one run only: make gone, make new."]
    assert found.changes.empty


def scored(folder, means, name="before"):
    """A planted run with a summary of its own rows: `joint` as planted, the others moved by as much as `means` says."""
    folder.mkdir()
    experiment = planted_run(folder, gains={"title": 0.0, "joint": 0.1})
    for variant, gain in means.items():
        for seed in experiment.settings.seeds:
            file = experiment.arm("modal_adaptation", variant, seed).folder / "per_query.parquet"
            frame = pd.read_parquet(file)
            frame["Rel@10"] += np.array(gain)
            frame.to_parquet(file, index=False)
    tables = experiment.per_query("modal_adaptation", ["title", "joint"])
    rows = result_rows("modal_adaptation", tables, [], experiment.segments)
    content = summary(name) | {"results": rows, "settings": to_dict(experiment.settings), "seeds": [0, 1]}
    return write(experiment.run, content)


def test_noise_is_told_query_by_query_where_scores_were_kept(tmp_path):
    """Every query moves by nearly as much: no interval of a mean can see it, the paired test must."""
    a = scored(tmp_path / "a", {})
    b = scored(tmp_path / "b", {"title": [0.0100, 0.0101, 0.0099], "joint": [0.2, -0.3, 0.11]}, "after")
    numbers = diff(a, b).numbers
    numbers = numbers[numbers["metric"] == "Rel@10"].set_index("variant")
    assert set(numbers["judged"]) == {"by query"}
    assert numbers["verdict"].to_dict() == {"title": "more than noise", "joint": "noise"}
    assert numbers.loc["title", "points"] == pytest.approx(1.0)
    assert numbers.loc["title", "to"] - numbers.loc["title", "from"] < 0.1
    for file in b.glob("models/*/per_query.parquet"):
        file.unlink()
    numbers = diff(a, b).numbers
    numbers = numbers[numbers["metric"] == "Rel@10"].set_index("variant")
    assert set(numbers["judged"]) == {"from intervals"}
    assert set(numbers["verdict"]) == {"noise"}


def test_settings_code_and_catalogue_that_changed_are_named(tmp_path, capsys):
    one, other = summary(full=0.5), copy.deepcopy(summary("after", full=0.5))
    other["settings"]["training"]["steps"] = 7
    other["provenance"]["git_commit"] = "def"
    other["provenance"]["packages"]["torch"] = "2"
    other["provenance"]["catalogue"]["fingerprint"] = "g"
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", other)
    changes = {tuple(row) for row in diff(a, b).changes.itertuples(index=False)}
    assert changes == {
        ("setting", "training.steps", 60, 7),
        ("code", "git_commit", "abc", "def"),
        ("package", "torch", "1", "2"),
        ("catalogue", "fingerprint", "f", "g"),
    }
    assert cli.main(["report", "diff", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert "training.steps" in said
    assert "two worlds" in said


@pytest.mark.parametrize("content", ["[1]", "{}", "{"])
def test_what_is_no_report_is_named(tmp_path, content, capsys):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match="not the summary of a run"):
        diff(tmp_path, tmp_path)
    assert cli.main(["report", "pack", str(tmp_path / "nowhere")]) == 2
    assert "There is no report in" in capsys.readouterr().err


def test_a_packed_run_holds_pages_and_scores_and_no_models(tmp_path):
    run = write(tmp_path / "my run", summary(full=0.5))
    (tmp_path / "secret.html").write_text("secret")
    for name in (
        "index.html",
        "tables/results.csv",
        "models/k/per_query.parquet",
        "models/k/model.safetensors",
        ".progress",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    os.symlink(tmp_path / "secret.html", run / "secret.html")
    os.symlink(tmp_path, run / "figures")
    out = pack(run)
    assert out == tmp_path / "my run.zip"
    with zipfile.ZipFile(out) as archive:
        assert set(archive.namelist()) == {
            f"my run/{name}"
            for name in ("index.html", "summary.json", "tables/results.csv", "models/k/per_query.parquet")
        }
    first = out.read_bytes()
    assert pack(run, tmp_path / "again.zip").read_bytes() == first
    with pytest.raises(UserError, match="is a folder"):
        pack(run, tmp_path)


def test_a_packed_run_does_not_say_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    monkeypatch.chdir(tmp_path)
    run = write(tmp_path / "someone" / "run", summary(full=0.5))
    told = f"{run.resolve()}/models {run.resolve()}-2 {tmp_path}/notebooks/01.ipynb {tmp_path}x {ROOT}/makelib/a.py"
    (run / "index.html").write_text(told)
    (run / "notebooks").mkdir()
    other = {"cells": [], "metadata": {"papermill": {"input_path": "/elsewhere/checkout/notebooks/01.ipynb"}}}
    (run / "notebooks" / "01.ipynb").write_text(json.dumps(other))
    (run / "figures").mkdir()
    (run / "figures" / "a.png").write_bytes(told.encode())  # no text: stays as it is
    with zipfile.ZipFile(pack(run)) as archive:
        assert archive.read("run/index.html").decode() == (
            f"run/models ~/run-2 ./notebooks/01.ipynb {tmp_path}x ./makelib/a.py"
        )
        assert archive.read("run/figures/a.png").decode() == told
        assert b'"./notebooks/01.ipynb"' in archive.read("run/notebooks/01.ipynb")
