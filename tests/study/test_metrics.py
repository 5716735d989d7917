"""How retrieval is judged: hand-worked examples, slow obvious loops and ir-measures as references.

Metrics per query; segments and cells; baselines; TREC files that other tools read back.
"""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import ir_measures
import numpy as np
import pandas as pd
import pytest
from worlds import SHORT, random_run, world

from makelib.runtime import UserError
from makelib.settings import Evaluation
from makelib.study import metrics
from makelib.study.baselines import behaviour_run, bm25_run
from makelib.study.metrics import cells, evaluate, positives, recall_within
from makelib.study.segments import segments
from makelib.study.trec import export_trec

# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_worked_out_by_hand(tiny_catalog):
    rows = np.array([[1, 0, 2, 3, 4], [4, 2, 1, 0, 3], [2, 0, 4, 1, 3], [0, 1, 2, 3, 4]])
    table = evaluate(tiny_catalog, tiny_catalog.query_rows("test"), rows, SHORT)
    assert table["query_id"].tolist() == ["t0", "t1", "t2", "t3"]
    assert table["positives"].tolist() == [1, 1, 3, 0]
    nan = np.nan
    expected = {
        "HitRate@2": [1, 1 / 2, nan, nan],  # t1 was clicked on p3 and p4, of which p4 is found
        "HitRate@3": [1, 1 / 2, nan, nan],
        "Recall@2": [1, 0, 1 / 3, nan],
        "Recall@3": [1, 0, 2 / 3, nan],
        "Rel@2": [3 / 4, 2 / 3, 1 / 2, nan],
        "Rel@2 ceiling": [3 / 4, 5 / 6, 1, nan],
        "Rel@3": [2 / 3, 5 / 9, 2 / 3, nan],
        "Rel@3 ceiling": [2 / 3, 7 / 9, 1, nan],
        "MRR@10": [1 / 2, 1 / 5, 1, nan],
    }
    for metric, values in expected.items():
        np.testing.assert_allclose(table[metric], values, atol=1e-6, err_msg=metric)
    third, fourth = 1 / math.log2(3), 1 / math.log2(4)
    ndcg = (0.5 + third + 0.5 * fourth) / (1 + 0.5 * third + 0.5 * fourth)
    assert table["nDCG@10"][0] == pytest.approx(ndcg)


def slow(catalog, query_row, ranked, cutoffs):
    """The definitions, one query, one product at a time."""
    grade = catalog.relevance(np.array([query_row]))[0]
    table = catalog.interactions
    mine = table[(table["query"] == query_row) & (table["kind"] == "click")]
    clicks = mine[mine["label"] > 0]["product"].tolist()
    relevant = {row for row, value in enumerate(grade) if value == 1}
    best = sorted(grade.tolist(), reverse=True)
    scores = {}
    for k in cutoffs:
        first = [row for row in ranked[:k] if row >= 0]
        scores[f"HitRate@{k}"] = sum(row in first for row in clicks) / len(clicks) if clicks else math.nan
        scores[f"Recall@{k}"] = len(relevant & set(first)) / len(relevant) if relevant else math.nan
        scores[f"Rel@{k}"] = sum(grade[row] for row in first) / k if best[0] > 0 else math.nan
        scores[f"Rel@{k} ceiling"] = sum(best[:k]) / k if best[0] > 0 else math.nan
    for name, step, rest in (("no title", 5, 4), ("no image", 3, 2)):
        lacking = {row for row in relevant if row % step == rest}
        found = len(lacking & set(ranked[: max(cutoffs)].tolist()))
        scores[f"Recall@{max(cutoffs)} {name}"] = found / len(lacking) if lacking else math.nan
    gain = sum(grade[row] / math.log2(rank + 2) for rank, row in enumerate(ranked[:10]) if row >= 0)
    ideal = sum(value / math.log2(rank + 2) for rank, value in enumerate(best[:10]))
    scores["nDCG@10"] = gain / ideal if ideal else math.nan
    ranks = [rank for rank, row in enumerate(ranked[:10], start=1) if row in relevant]
    scores["MRR@10"] = (1 / ranks[0] if ranks else 0) if relevant else math.nan
    return scores


@pytest.mark.parametrize("products", [7, 60])
def test_metrics_equal_the_slow_loop_also_with_holes(products):
    catalog = world(products)
    rows = random_run(catalog, depth=min(50, products))
    rows[np.random.default_rng(1).random(rows.shape) < 0.2] = -1
    cutoffs = (1, 5, 50)
    table = evaluate(catalog, np.arange(25), rows, Evaluation(cutoffs=cutoffs))
    expected = pd.DataFrame([slow(catalog, query, rows[query], cutoffs) for query in range(25)])
    assert expected.notna().any().all()
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_exact=False, atol=1e-6, check_dtype=False)


def test_a_few_queries_at_a_time_make_no_difference(monkeypatch):
    catalog, rows, order = world(), random_run(world()), np.random.default_rng(3).permutation(25)
    whole = evaluate(catalog, order, rows, SHORT)
    pairs = positives(catalog, order)
    monkeypatch.setattr(
        metrics,
        "relevance_in_parts",
        lambda c, q: ((slice(i, i + 4), c.relevance(q[i : i + 4])) for i in range(0, len(q), 4)),
    )
    pd.testing.assert_frame_equal(evaluate(catalog, order, rows, SHORT), whole)
    np.testing.assert_array_equal(positives(catalog, order), pairs)
    assert whole["query_id"].tolist() == [f"q{row}" for row in order]


def test_large_catalogues_are_cut_into_chunks():
    class Wide:
        def __len__(self):
            return 2**24 // 3

        def relevance(self, rows):
            return rows

    parts = [(part.start, rows.tolist()) for part, rows in metrics.relevance_in_parts(Wide(), np.arange(7))]
    assert parts == [(0, [0, 1, 2]), (3, [3, 4, 5]), (6, [6])]


@hypothesis.given(st.integers(0, 10**6), st.integers(4, 40), st.integers(3, 12))
@hypothesis.settings(deadline=None, max_examples=50)
def test_metrics_stay_in_bounds_and_below_the_ceiling(seed, products, queries):
    catalog = world(products, queries, seed)
    table = evaluate(catalog, np.arange(queries), random_run(catalog, seed), Evaluation(cutoffs=(1, 3, 10)))
    metrics = table.filter(like="@")
    assert (metrics.isna() | ((metrics >= 0) & (metrics <= 1 + 1e-6))).all(axis=None)
    for k in (1, 3, 10):
        judged = table[f"Rel@{k}"].notna()
        assert (table[f"Rel@{k}"] <= table[f"Rel@{k} ceiling"] + 1e-6)[judged].all()
    for metric in ("HitRate", "Recall"):
        assert (table[f"{metric}@3"].dropna() <= table[f"{metric}@10"].dropna() + 1e-9).all()


def test_the_ideal_ranking_reaches_the_ceiling():
    catalog = world()
    rows = np.argsort(-catalog.relevance(np.arange(25)), axis=1, kind="stable")
    table = evaluate(catalog, np.arange(25), rows, SHORT)
    np.testing.assert_allclose(table["Rel@3"], table["Rel@3 ceiling"])
    assert set(table["nDCG@10"].dropna().round(6)) == {1.0} == set(table["MRR@10"].dropna())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:, :30], "holds 30 products per query, but the metrics look at 50"),
        (lambda rows: rows[:-1], "one row of products per query"),
        (lambda rows: np.where(rows == 3, 60, rows), "outside 0 to 59"),
        (lambda rows: np.where(rows == 3, -2, rows), "outside 0 to 59"),
        (lambda rows: np.where(rows == 3, 4, rows), "a product twice"),
    ],
)
def test_malformed_runs_are_refused(change, says):
    catalog = world()
    with pytest.raises(ValueError, match=says):
        evaluate(catalog, np.arange(25), change(random_run(catalog)), Evaluation(cutoffs=(50,)))


def test_a_query_twice_is_refused():
    with pytest.raises(ValueError, match="query stands twice"):
        evaluate(world(), np.zeros(25, int), random_run(world()))


# -- segments and cells -----------------------------------------------------------------------------------------------


def test_segments_worked_out_by_hand(tiny_catalog):
    table = segments(tiny_catalog, tiny_catalog.query_rows("test"))
    members = {name: table.index[table[name]].tolist() for name in table}
    # training clicks per relevant product: t0 3 (p0), t1 1 (p3), t2 2/3 (p2, p3, p4); t3 has none
    assert members == {
        "all": ["t0", "t1", "t2", "t3"],
        "image-led": ["t0"],
        "title-led": ["t1", "t2"],
        "1 word": ["t2"],
        "2 words": ["t0", "t3"],
        "3+ words": ["t1"],
        "head": ["t0"],
        "torso": ["t1"],
        "tail": ["t2"],
        "known string": ["t3"],
        "new string": ["t0", "t1", "t2"],
        "asked visual": ["t0"],
        "asked mixed": ["t1"],
        "clean titles": ["t0", "t2"],
        "stuffed titles": ["t1"],
    }
    assert table.dtypes.eq(bool).all()


def test_segments_by_careless_photographs(tiny_catalog):
    rows = tiny_catalog.query_rows("test")
    position, product = positives(tiny_catalog, rows)
    spoiled = np.where(np.isin(np.arange(len(tiny_catalog)), product[position == 1]), "blurred", "")
    catalog = dataclasses.replace(tiny_catalog, truth=tiny_catalog.truth.assign(careless=spoiled))
    table, without = segments(catalog, rows), segments(tiny_catalog, rows)
    assert set(table) - set(without) == {"careful photographs", "careless photographs"}
    share = [np.mean(spoiled[product[position == query]] != "") for query in range(len(rows)) if query in position]
    assert table["careless photographs"].tolist()[: len(share)] == (np.array(share) > np.median(share)).tolist()


def test_unseen_products_and_unspaced_scripts():
    catalog = world()
    catalog.queries["split"] = np.where(np.arange(25) < 5, "train", "test")
    catalog.queries.loc[10, "query"], catalog.queries.loc[0, "query"] = "红色连衣裙", "茶壶"
    rows = np.arange(25)
    table = segments(catalog, rows)
    lengths = table[[name for name in ("1 word", "2 words", "3+ words") if name in table]]
    assert lengths.iloc[10].argmax() + 1 == min(3, len(catalog.queries["constraints"][10]))
    assert not lengths.iloc[0].any()  # neither spaces nor constraints
    position, product = positives(catalog, rows)
    _, clicked = catalog.clicks("train")
    unseen = [
        query for query in rows if query in position and not set(product[position == query]) & set(clicked.tolist())
    ]
    assert unseen
    assert np.flatnonzero(table["unseen"]).tolist() == unseen
    parts = table[["head", "torso", "tail", "unseen"]].sum(axis=1)
    assert (parts == np.isin(rows, position)).all()


def test_a_plain_catalogue_defines_few_segments():
    catalog = world()
    assert not {"image-led", "head", "known string", "asked visual", "clean titles"} & set(
        segments(catalog, np.arange(25))
    )


def test_cells_split_recall_by_what_training_saw(tiny_catalog):
    catalog = tiny_catalog
    query_rows = np.array([1, 4, 5])  # r1 (blue: p1, p3 seen, p4 cold), t2 (pot: p2, p3 seen, p4 cold), t3 (nothing)
    rows = np.array([[1, 0, 2, 3, 4], [4, 2, 0, 1, 3], [0, 1, 2, 3, 4]])
    table = cells(catalog, query_rows, rows, cutoff=2)
    nan = np.nan
    assert table.index.tolist() == ["r1", "t2", "t3"]
    np.testing.assert_array_equal(table["in-domain"], [0.5, nan, nan])
    np.testing.assert_array_equal(table["new product"], [0, nan, nan])
    np.testing.assert_array_equal(table["new query"], [nan, 0.5, nan])
    np.testing.assert_array_equal(table["both new"], [nan, 1, nan])


def test_recall_within_everything_is_recall():
    catalog = world()
    rows = random_run(catalog)
    table = evaluate(catalog, np.arange(25), rows, Evaluation(cutoffs=(20,)))
    (whole,) = recall_within(catalog, np.arange(25), rows, [np.ones(60, dtype=bool)], cutoff=20)
    np.testing.assert_allclose(whole, table["Recall@20"])


# -- baselines --------------------------------------------------------------------------------------------------------


def test_bm25_finds_titles_with_the_words_and_nothing_else(tiny_catalog):
    rows, scores = bm25_run(tiny_catalog, tiny_catalog.query_rows("test"), 3)
    assert rows.tolist() == [
        [0, 1, -1],
        [2, 4, -1],
        [4, 2, -1],
        [-1, -1, -1],
    ]  # shorter titles and repeated words first
    assert (np.isneginf(scores) == (rows < 0)).all()
    assert (np.diff(scores[:2, :2], axis=1) < 0).all()


def test_bm25_breaks_ties_by_row_and_survives_a_catalogue_without_titles():
    catalog = world()
    catalog.products["title"] = "pot"
    catalog.queries["query"] = "pot"
    rows, _ = bm25_run(catalog, np.arange(2), 100)
    assert rows.tolist() == [list(range(60))] * 2
    assert bm25_run(catalog, np.arange(2), 7)[0].tolist() == [list(range(7))] * 2
    catalog.products["title"] = None
    assert (bm25_run(catalog, np.arange(2), 5)[0] == -1).all()


def test_behaviour_repeats_the_clicks_of_the_very_string(tiny_catalog):
    rows, scores = behaviour_run(tiny_catalog, np.array([0, 1, 2, 5]), 3)
    assert rows.tolist() == [[0, 2, -1], [1, 3, -1], [-1, -1, -1], [0, 2, -1]]  # t3 `Red  Thing` is r0's string
    assert scores[0, :2].tolist() == [3, 1]
    table = evaluate(tiny_catalog, np.array([0]), behaviour_run(tiny_catalog, np.array([0]), 10)[0], SHORT)
    assert table["Recall@2"].tolist() == [1]


# -- files for other tools --------------------------------------------------------------------------------------------


def test_ir_measures_reads_the_files_and_agrees(tmp_path):
    catalog = world(200, 40)
    rows = random_run(catalog, depth=100)
    rows[3, 60:] = -1
    scores = -np.sort(-np.random.default_rng(0).random(rows.shape).astype(np.float32), axis=1)
    scores[:, 2:9] = scores[:, [2]]  # ties, which other tools would break by id
    table = evaluate(catalog, np.arange(40), rows).set_index("query_id")
    export_trec(catalog, np.arange(40), rows, scores, tmp_path / "trec", tag="random")
    qrels, clicks = (
        list(ir_measures.read_trec_qrels(str(tmp_path / "trec" / f"{name}.trec"))) for name in ("qrels", "clicks")
    )
    run = list(ir_measures.read_trec_run(str(tmp_path / "trec" / "run.trec")))
    assert len(run) == (rows >= 0).sum()
    named = {
        "nDCG@10": ir_measures.nDCG @ 10,
        "MRR@10": ir_measures.RR(rel=60) @ 10,
        "Recall@10": ir_measures.R(rel=60) @ 10,
        "Recall@100": ir_measures.R(rel=60) @ 100,
    }
    names = {str(measure): name for name, measure in named.items()}
    seen = 0
    for value in ir_measures.iter_calc(named.values(), qrels, run):
        ours = table[names[str(value.measure)]][value.query_id]
        seen += not np.isnan(ours)
        assert value.value == pytest.approx(0 if np.isnan(ours) else ours, abs=1e-4)
    assert seen > 100
    once = (
        catalog.interactions[catalog.interactions["kind"] == "click"]
        .groupby("query")["product"]
        .agg(lambda p: p.is_unique)
    )
    for value in ir_measures.iter_calc([ir_measures.R @ 50], clicks, run):
        if once[int(value.query_id[1:])]:
            assert value.value == pytest.approx(table["HitRate@50"][value.query_id])


def test_trec_scores_fall_strictly_in_single_precision(tiny_catalog, tmp_path):
    rows = np.array([[1, 0, 2], [2, 3, 4]])
    export_trec(tiny_catalog, np.array([2, 3]), rows, np.ones((2, 3)), tmp_path, "t")
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [line[:4] for line in lines[:3]] == [["t0", "Q0", f"p{row}", str(n)] for n, row in enumerate([1, 0, 2], 1)]
    falling = np.array([line[4] for line in lines], dtype=np.float32).reshape(2, 3)
    assert (np.diff(falling, axis=1) < 0).all()
    assert (tmp_path / "qrels.trec").read_text().splitlines()[:3] == ["t0 0 p0 60", "t0 0 p1 30", "t0 0 p2 30"]


def test_ids_with_spaces_do_not_fit_trec(tmp_path):
    catalog = world()
    catalog.products.loc[3, "product_id"] = "p 3"
    with pytest.raises(UserError, match="'p 3'"):
        export_trec(catalog, np.arange(25), random_run(catalog), np.zeros((25, 60)), tmp_path, "t")
