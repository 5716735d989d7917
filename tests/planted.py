"""A run whose arms were never trained: models as they are born, and scores that were planted."""

import json

import numpy as np
import pandas as pd
from hostile import hostile_catalog, untrained_retrievers

from makelib.settings import preset, write_yaml
from makelib.study.arms import scoring_key
from makelib.study.experiment import Experiment

#: variant -> what it adds to the chance of a query, against `title`
GAINS = {"title": 0.0, "adaptive": 0.3, "joint": -0.3}


def planted_run(folder, hostile=True, seeds=(0, 1), gains=GAINS):
    """An `Experiment` in `folder`: arms of Modal Adaptation with scores of three test queries, which the gains shift."""
    catalog = hostile_catalog(folder / "catalogue", hostile=hostile)
    settings = preset("smoke").replace(seeds=list(seeds))
    experiment = Experiment(folder / "run", settings, catalog)
    experiment.run.mkdir()
    write_yaml(settings, experiment.run / "settings.yaml")
    (experiment.run / "catalogue.json").write_text(
        json.dumps({"name": catalog.name, "folder": str(catalog.folder), "fingerprint": catalog.fingerprint})
    )
    models = untrained_retrievers(catalog)
    for variant, gain in gains.items():
        for seed in seeds:
            plant(experiment, experiment.arm("modal_adaptation", variant, seed), models[variant], gain)
    return experiment


def plant(experiment, arm, retriever, gain):
    """What a trained arm leaves behind."""
    queries = experiment.catalog.queries.iloc[experiment.test_rows]
    base = np.linspace(0.4, 0.6, len(queries)) + 0.01 * arm.seed + gain * (1 + 0.01 * np.arange(len(queries)))
    scores = {name: base for name in ("Rel@10", "HitRate@100", "Recall@100", "nDCG@10")}
    retriever.save(arm.folder)
    write_yaml(arm.settings, arm.folder / "settings.yaml")
    pd.DataFrame(
        {
            "query_id": queries["query_id"].to_numpy(),
            "query": queries["query"].to_numpy(),
            "intent": range(len(queries)),
        }
    ).assign(**scores).to_parquet(arm.folder / "per_query.parquet", index=False)
    note = {
        "label": arm.label,
        "seed": arm.seed,
        "seconds": 10.0,
        "parameters": 1000,
        "megaflops_per_product": 1.0,
        "scoring": scoring_key(arm.settings),
    }
    note["scoring"] = scoring_key(arm.settings)
    (arm.folder / "arm.json").write_text(json.dumps(note))
