"""A random catalogue and random rankings for the tests of this room."""

import json
import types
from pathlib import Path

import numpy as np
import pandas as pd

from makelib.data.catalog import Catalog
from makelib.settings import Evaluation

SHORT = Evaluation(cutoffs=(2, 3))

#: what makes `smoke` a matter of seconds
TINY = {
    "bazaar.products": 200, "bazaar.queries": 120, "bazaar.clicks": 1200, "training.steps": 3, "training.batch_size": 32,
    "training.image_warmup": 2, "training.evaluations": 1, "evaluation.test_queries": 20, "evaluation.validation_queries": 10,
    "model.width": 32, "model.dim": 16, "text.vocabulary": 600, "ablation.workers": 1,
    "ablation.fusions": ["title", "adaptive"], "ablation.keywords": ["none", "false_negatives"],
}  # fmt: skip


def world(products=60, queries=25, seed=0):
    """A random catalogue in memory: up to three constraints per query, several clicks on some, judgments for a few."""
    rng = np.random.default_rng(seed)
    keys = ("type", "colour", "brand")
    attributes = [dict(zip(keys, map(str, rng.integers([3, 4, 5])), strict=True)) for _ in range(products)]
    constraints = []
    for _ in range(queries):
        wanted = attributes[rng.integers(products)]
        constraints.append({key: wanted[key] for key in rng.permutation(keys)[: rng.integers(1, 4)]})
    constraints[0] = None
    constraints[1] = {"type": "no product has this"}
    pairs = rng.integers([queries, products], size=(3 * queries, 2))
    judged = pd.DataFrame({"query": 0, "product": np.arange(4), "label": [1, 0.5, 0, 0.1], "kind": "judgment"})
    skipped = pd.DataFrame({"query": [2], "product": [0], "label": [0.0], "kind": "click"})  # shown, not clicked
    return Catalog(
        folder=Path("nowhere"),
        name="world",
        fingerprint=str(seed),
        info={},
        products=pd.DataFrame(
            {
                "product_id": [f"p{row}" for row in range(products)],
                "title": [None if i % 5 == 4 else " ".join(values.values()) for i, values in enumerate(attributes)],
                "category": [values["type"] for values in attributes],
                "group": None,
            }
        ),
        stated=pd.DataFrame(attributes, dtype="category"),
        queries=pd.DataFrame(
            {
                "query_id": [f"q{row}" for row in range(queries)],
                "query": [" ".join((wanted or {}).values()) for wanted in constraints],
                "split": "test",
                "constraints": constraints,
                "intent": [json.dumps(wanted, sort_keys=True) for wanted in constraints],
            }
        ),
        interactions=pd.concat(
            [
                pd.DataFrame(pairs, columns=["query", "product"]).assign(label=1.0, kind="click"),
                judged,
                skipped,
            ]
        )
        .reset_index(drop=True)
        .astype({"label": np.float32}),
        truth=None,
        _pixels=types.SimpleNamespace(present=np.arange(products) % 3 != 2),
    )


def random_run(catalog, seed=0, depth=None):
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(len(catalog)) for _ in range(len(catalog.queries))])
    return rows[:, : depth or len(catalog)]
