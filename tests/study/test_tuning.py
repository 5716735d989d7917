"""The search for settings: equal trials, validation queries alone, a seed that no report uses."""

import pandas as pd
import pytest
from worlds import TINY

from makelib.runtime import UserError
from makelib.study import tuning
from makelib.study.experiment import Experiment


def test_every_rival_gets_the_same_trials_on_validation_queries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.open(tmp_path / "run", "smoke", "bazaar", 1, TINY)
    judged, evaluate = [], tuning.evaluate
    monkeypatch.setattr(
        tuning, "evaluate", lambda catalog, rows, *rest: judged.append(rows) or evaluate(catalog, rows, *rest)
    )
    trials = ({}, {"model.summary_dropout": 0.5})
    table = tuning.tune(experiment, ("title", "mean"), trials)
    assert table[["fusion", "trial"]].values.tolist() == [
        [fusion, trial] for fusion in ("title", "mean") for trial in ("as it is", "model.summary_dropout 0.5")
    ]
    assert (table.groupby("fusion")["best"].sum() >= 1).all()
    assert all((experiment.catalog.queries["split"].iloc[rows] == "validation").all() for rows in judged)
    assert tuning.SEED not in experiment.settings.seeds
    kept = pd.read_csv(tmp_path / "run" / "tables" / "tuning.csv")
    assert kept["Rel@10"].tolist() == pytest.approx(table["Rel@10"].tolist())
    with pytest.raises(UserError, match="sum"):
        tuning.tune(experiment, ("sum",), trials)
