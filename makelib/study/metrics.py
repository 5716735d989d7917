"""How retrieval is judged: metrics per query, segments, intervals and tests, lexical and behavioural baselines.

It starts where a ranking of product rows is there, whoever made it, and ends in tables; it knows no model, no figure.
Scores *per query* are what is kept; every mean, interval and test is computed from them.

Q queries, K retrieved products, N products, S seeds, A arms, M metrics, C intents (clusters of queries).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from makelib import settings as settings_module
from makelib.data.catalog import Catalog

#: relevance from which a product counts as fully relevant (1, up to rounding)
FULL = 1 - 1e-6

# -- metrics ----------------------------------------------------------------------------------------------------------


def evaluate(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, settings: settings_module.Evaluation | None = None
) -> pd.DataFrame:
    """Scores of a run, one row per query in the order of `query_rows` (Q,).

    Args:
        query_rows: distinct rows of `catalog.queries`, (Q,).
        rows: ranked product rows, (Q, K), best first; -1 where nothing was found. K reaches the largest cutoff or N.

    Returns columns `query_id, query, intent, positives` (number of fully relevant products) and, as fractions:
        - `HitRate@K`: share of the query's clicks whose product is among the first K; with one click, whether it is.
        - `Recall@K`: fully relevant products among the first K / all fully relevant products of the catalogue.
        - `Rel@K`: graded relevance of the first K, summed, / K; `Rel@K ceiling` is what the best ranking would get.
        - `nDCG@10`: on graded relevance, gain = grade, discount 1 / log2(1 + rank) (Järvelin and Kekäläinen, 2002).
        - `MRR@10`: 1 / rank of the first fully relevant product, 0 beyond rank 10.
        - `Recall@K no title`, `Recall@K no image`, K the largest cutoff: `recall_within` the products that lack one, where
          the catalogue has such.
    Where a metric has no meaning it is NaN: HitRate without a click, Recall and MRR without a fully relevant product,
    Rel and nDCG without any relevant product. The paper reports hit rate and relevance; the definitions are ours.

    Raises ValueError for a run that is too short, names a product twice or a row that does not exist.
    """
    settings = settings or settings_module.Evaluation()
    query_rows, rows = np.asarray(query_rows, dtype=np.int64), np.asarray(rows, dtype=np.int64)
    check_run(catalog, query_rows, rows, depth=max(*settings.cutoffs, 10))
    cutoff = max(settings.cutoffs)
    lacking = {
        f"Recall@{cutoff} {name}": ~there
        for name, there in zip(("no title", "no image"), catalog.present.T, strict=True)
        if not there.all()
    }
    parts = []
    for part, relevance in relevance_in_parts(catalog, query_rows):  # once: at 10⁶ products it costs most of all this
        within = _within(relevance, rows[part], list(lacking.values()), cutoff)
        parts.append(_graded(relevance, rows[part], settings.cutoffs) | dict(zip(lacking, within, strict=True)))
    graded = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    position, product = clicked_pairs(catalog, query_rows)
    match = rows[position] == product[:, None]  # (clicks, K)
    clicks = np.bincount(position, minlength=len(query_rows))
    hits = {}
    for cutoff in settings.cutoffs:
        found = np.bincount(position, weights=match[:, :cutoff].any(axis=1), minlength=len(query_rows))
        hits[f"HitRate@{cutoff}"] = share(found, clicks)
    about = catalog.queries[["query_id", "query", "intent"]].iloc[query_rows].reset_index(drop=True)
    return about.assign(positives=graded.pop("positives"), **hits, **graded)


def _graded(relevance: np.ndarray, rows: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """What follows from relevance (Q, N) alone; each value (Q,)."""
    found = np.where(rows >= 0, np.take_along_axis(relevance, np.maximum(rows, 0), axis=1), 0).astype(np.float64)
    depth = min(max(*cutoffs, 10), relevance.shape[1])
    ideal = -np.sort(np.partition(-relevance, depth - 1, axis=1)[:, :depth], axis=1).astype(np.float64)  # (Q, depth)
    full = found >= FULL
    positives = (relevance >= FULL).sum(axis=1)
    judged = ideal[:, 0] > 0
    discount = 1 / np.log2(2 + np.arange(10))

    def dcg(gains: np.ndarray) -> np.ndarray:
        return gains[:, :10] @ discount[: gains[:, :10].shape[1]]

    scores = {"positives": positives}
    for k in cutoffs:
        scores[f"Recall@{k}"] = share(full[:, :k].sum(axis=1), positives)
        scores[f"Rel@{k}"] = np.where(judged, found[:, :k].sum(axis=1) / k, np.nan)
        scores[f"Rel@{k} ceiling"] = np.where(judged, ideal[:, :k].sum(axis=1) / k, np.nan)
    scores["nDCG@10"] = share(dcg(found), dcg(ideal))
    first = np.where(full[:, :10].any(axis=1), 1 / (1 + full[:, :10].argmax(axis=1)), 0)
    scores["MRR@10"] = np.where(positives > 0, first, np.nan)
    return scores


def positives(catalog: Catalog, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and a fully relevant product: positions in `query_rows` and product rows, int64 (n,) each."""
    pairs = []
    for part, relevance in relevance_in_parts(catalog, query_rows):
        position, product = np.nonzero(relevance >= FULL)
        pairs.append((position + part.start, product))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def recall_within(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, products: Sequence[np.ndarray], cutoff: int = 100
) -> list[np.ndarray]:
    """Recall@cutoff per query, (Q,), of those fully relevant products that are in each of `products`, bool (N,); else NaN.

    The ranking stays the one over the whole catalogue, so that parts of the catalogue compete as they do in use.
    """
    parts = [
        _within(relevance, np.asarray(rows)[part], products, cutoff)
        for part, relevance in relevance_in_parts(catalog, query_rows)
    ]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _within(relevance: np.ndarray, rows: np.ndarray, products: Sequence[np.ndarray], cutoff: int) -> list[np.ndarray]:
    """`recall_within` from relevance (Q, N) alone."""
    full, first, recalls = relevance >= FULL, rows[:, :cutoff], []
    for among in products:
        wanted = full & among
        found = (np.take_along_axis(wanted, np.maximum(first, 0), axis=1) & (first >= 0)).sum(axis=1)
        recalls.append(share(found, wanted.sum(axis=1)))
    return recalls


def cells(catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, cutoff: int = 100) -> pd.DataFrame:
    """Recall@cutoff per query by what was in the training data: `in-domain`, `new query`, `new product`, `both new`.

    A query is known when it belongs to the split `train`, a product when a training click touched it or its twin
    listing (`catalog.seen`). Index `query_id`; a query has values in the two cells of its own side, NaN in the others.
    """
    known = catalog.queries["split"].to_numpy()[query_rows] == "train"
    seen, cold = recall_within(catalog, query_rows, rows, (catalog.seen, ~catalog.seen), cutoff)
    return pd.DataFrame(
        {
            "in-domain": np.where(known, seen, np.nan),
            "new query": np.where(known, np.nan, seen),
            "new product": np.where(known, cold, np.nan),
            "both new": np.where(known, np.nan, cold),
        },
        index=pd.Index(catalog.queries["query_id"].to_numpy()[query_rows], name="query_id"),
    )


def relevance_in_parts(catalog: Catalog, query_rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Relevance of all products, a few queries at a time: 64 MB, however large the catalogue."""
    step = max(1, 2**24 // max(len(catalog), 1))
    for start in range(0, max(len(query_rows), 1), step):
        part = slice(start, start + step)
        yield part, catalog.relevance(query_rows[part])


def clicked_pairs(catalog: Catalog, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clicks of these queries: positions in `query_rows` and product rows, one entry per click."""
    table = catalog.interactions
    position = np.full(len(catalog.queries), -1)
    position[query_rows] = np.arange(len(query_rows))
    position = position[table["query"].to_numpy()]
    keep = (position >= 0) & (table["kind"] == "click").to_numpy() & (table["label"] > 0).to_numpy()
    return position[keep], table["product"].to_numpy(np.int64)[keep]


def check_run(catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, depth: int) -> None:
    if rows.ndim != 2 or len(rows) != len(query_rows):
        raise ValueError(
            f"A run has one row of products per query: {len(query_rows)} queries, rows of shape {rows.shape}."
        )
    if len(np.unique(query_rows)) != len(query_rows):
        raise ValueError("A query stands twice in query_rows.")
    if rows.shape[1] < min(depth, len(catalog)):
        raise ValueError(f"The run holds {rows.shape[1]} products per query, but the metrics look at {depth}.")
    if rows.size and not -1 <= rows.min() <= rows.max() < len(catalog):
        raise ValueError(f"The run names product rows outside 0 to {len(catalog) - 1}.")
    ordered = np.sort(rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("The run names a product twice for one query.")


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
