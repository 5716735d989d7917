"""Shape, calibration and the price of wrong negatives, on spaces whose answers are known."""

import types

import numpy as np
import pytest
import torch

from makelib.data.sources.bazaar.world import generate
from makelib.settings import preset
from makelib.study import diagnostics
from makelib.study.metrics import positives

SETTINGS = preset("smoke").replace(
    **{"bazaar.products": 150, "bazaar.queries": 120, "bazaar.clicks": 1200, "training.batch_size": 64}
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return generate(SETTINGS.bazaar, tmp_path_factory.mktemp("world") / "bazaar")


def knowing(catalog, knows, seed=0):
    """A retriever whose product vectors are random, and whose queries lie by share `knows` where their relevant products are."""
    random = np.random.default_rng(seed)

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    products = unit(random.normal(size=(len(catalog), 64)))
    full = catalog.relevance(np.arange(len(catalog.queries))) >= 1
    middle = unit(full @ products + 1e-6)
    vectors = unit(knows * middle + (1 - knows) * unit(random.normal(size=middle.shape))).astype(np.float32)
    row_of = {query: row for row, query in enumerate(catalog.queries["query"])}

    def search(queries, k):
        scores = queries @ products.T
        rows = np.argsort(-scores, axis=1)[:, :k]
        return rows, np.take_along_axis(scores, rows, axis=1)

    return types.SimpleNamespace(
        catalog=catalog,
        vectors=types.SimpleNamespace(embedding=products),
        index=types.SimpleNamespace(search=search),
        model=types.SimpleNamespace(
            encode_queries=lambda texts: vectors[[row_of[text] for text in texts]], scale=lambda: torch.tensor(20.0)
        ),
    )


def test_alignment_follows_knowledge_and_uniformity_the_spread(catalog):
    rows = catalog.query_rows("test")
    wise, lost = knowing(catalog, 1.0), knowing(catalog, 0.0)
    heap = knowing(catalog, 1.0)
    heap.vectors.embedding = np.ones((len(catalog), 64)) / 8
    table = diagnostics.geometry({"wise": wise, "lost": lost, "heap": heap}, rows)
    assert table.loc["wise", "alignment"] < table.loc["lost", "alignment"] - 0.3
    assert table.loc["lost", "alignment"] == pytest.approx(2, abs=0.15)
    position, product = positives(catalog, rows)
    queries = wise.model.encode_queries(catalog.queries["query"].iloc[rows].tolist())
    pairs = ((queries[position] - wise.vectors.embedding[product]) ** 2).sum(axis=1)
    each = [pairs[position == query].mean() for query in np.unique(position)]
    assert table.loc["wise", "alignment"] == pytest.approx(np.mean(each), abs=1e-5)
    assert table.loc["heap", "uniformity of products"] == pytest.approx(0, abs=1e-9)
    assert table.loc["wise", "uniformity of products"] < -3.5
    slow = [
        np.exp(-2 * ((a - b) ** 2).sum())
        for i, a in enumerate(wise.vectors.embedding)
        for b in wise.vectors.embedding[:i]
    ]
    assert table.loc["wise", "uniformity of products"] == pytest.approx(np.log(np.mean(slow)))


def test_alignment_without_anything_relevant_is_no_number(catalog, monkeypatch):
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(diagnostics, "positives", lambda *_: (nothing, nothing))
    table = diagnostics.geometry({"lost": knowing(catalog, 0.0)}, catalog.query_rows("test"))
    assert np.isnan(table.loc["lost", "alignment"])
    assert np.isfinite(table.loc["lost", "uniformity of products"])


def test_scores_that_know_promise_what_is_observed(catalog):
    table, diagram = diagnostics.calibration({"wise": knowing(catalog, 0.7), "lost": knowing(catalog, 0.0)}, SETTINGS)
    assert table.loc["wise", "Brier"] < 0.8 * table.loc["wise", "Brier of a constant"]
    assert table.loc["lost", "Brier"] > 0.95 * table.loc["lost", "Brier of a constant"]
    wise = diagram[diagram["variant"] == "wise"]
    assert wise["promised"].is_monotonic_increasing
    assert wise["observed"].iloc[-1] > wise["observed"].iloc[0] + 0.2
    assert wise["hits"].sum() == 50 * len(catalog.query_rows("test")[: SETTINGS.evaluation.test_queries])
    assert ((table >= 0) & (table <= 1)).all(axis=None)


def test_errors_of_a_rule_cost_what_the_truth_says(catalog):
    table = diagnostics.cost_of_errors(knowing(catalog, 0.9), SETTINGS, batches=4)
    assert table.loc["oracle"].tolist() == pytest.approx([0, 0, 0, 0], abs=0.02)
    assert table.loc["raw", "kept out wrongly"] == 0
    assert table.loc["raw", "overlooked"] > table.loc["none", "overlooked"] >= table.loc["rule", "overlooked"] > 0
    assert table.loc["raw", "wrong push"] > 0.3  # a model that knows pushes hardest against what is right
    blind = diagnostics.cost_of_errors(knowing(catalog, 0.0), SETTINGS, batches=4)
    assert blind.loc["raw", "wrong push"] < table.loc["raw", "wrong push"]


def test_without_test_queries_nothing_is_promised(catalog, monkeypatch):
    monkeypatch.setattr(diagnostics, "queries_of", lambda *_: np.zeros(0, dtype=np.int64))
    table, diagram = diagnostics.calibration({"wise": knowing(catalog, 0.7)}, SETTINGS)
    assert table.isna().all(axis=None)
    assert diagram.empty
