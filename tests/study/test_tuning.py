"""The search for settings: equal trials, validation queries alone, a seed that no report uses."""

import pandas as pd
import pytest

from makelib.runtime import UserError
from makelib.study import tuning
from makelib.study.experiment import Experiment

TINY = {
    "bazaar.products": 200, "bazaar.queries": 120, "bazaar.clicks": 1200, "training.steps": 3, "training.batch_size": 32,
    "training.image_warmup": 2, "training.evaluations": 1, "evaluation.test_queries": 20, "evaluation.validation_queries": 10,
    "model.width": 32, "model.dim": 16, "text.vocabulary": 600, "ablation.workers": 1,
}  # fmt: skip


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
