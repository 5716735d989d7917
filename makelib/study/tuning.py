"""The search for settings: every rival gets the same trials, validation queries alone decide, and the record is kept.

The presets stay as they are because no rival of `quick` gains more than two tenths of a point by it (docs/findings.md); on one's own
catalogue, run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from makelib.runtime import UserError, atomic_file
from makelib.search.retriever import Retriever
from makelib.settings import FUSIONS
from makelib.study.arms import queries_of
from makelib.study.experiment import Experiment
from makelib.study.metrics import evaluate

#: what each rival is tried with, one after the other: the preset as it is, and one setting moved either way
TRIALS: tuple[dict[str, Any], ...] = (
    {},
    {"model.summary_dropout": 0.0},
    {"model.summary_dropout": 0.5},
    {"training.learning_rate": 2e-3},
    {"training.learning_rate": 8e-3},
    {"training.modality_dropout": 0.2},
)
#: a seed that no report uses
SEED = 1000
METRICS = ["Rel@10", "Recall@100", "HitRate@100"]


def tune(experiment: Experiment, fusions: Sequence[str], trials: Sequence[dict[str, Any]] = TRIALS) -> pd.DataFrame:
    """Train every fusion with every trial and judge it on validation queries; trials that are done are kept.

    Returns a row for each, `fusion, trial`, `METRICS` in per cent and `best`, whether it is the fusion's best by Rel@10; also
    written to `<run>/tables/tuning.csv`. Raises `UserError` for a fusion that does not exist.
    """
    if unknown := set(fusions) - set(FUSIONS):
        raise UserError(f"Unknown fusion {', '.join(sorted(unknown))}. Choose among: {', '.join(FUSIONS)}.")
    catalog, rows = experiment.catalog, queries_of(experiment.catalog, experiment.settings, "validation")
    arms = {
        (fusion, place): experiment.changed(
            {"model.fusion": fusion, **trial}, SEED, "tuning", f"{fusion}, trial {place}"
        )
        for fusion in fusions
        for place, trial in enumerate(trials)
    }
    experiment.train(list(arms.values()))
    table = []
    for (fusion, place), arm in arms.items():
        retriever = Retriever.open(arm.folder, catalog)
        queries = retriever.model.encode_queries(catalog.queries["query"].iloc[rows].tolist())
        found, _ = retriever.index.search(queries, max(arm.settings.evaluation.cutoffs))
        scores = 100 * evaluate(catalog, rows, found, arm.settings.evaluation)[METRICS].mean()
        named = ", ".join(f"{key} {value:g}" for key, value in trials[place].items()) or "as it is"
        table.append({"fusion": fusion, "trial": named, **scores})
    table = pd.DataFrame(table)
    table["best"] = table["Rel@10"] == table.groupby("fusion")["Rel@10"].transform("max")
    with atomic_file(experiment.run / "tables" / "tuning.csv") as draft:
        table.to_csv(draft, index=False)
    return table
