"""Rankings that need no training: BM25 on titles, and what shoppers clicked before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import bm25s
import numpy as np
import pandas as pd
import scipy.sparse as sp

from makelib.data.catalog import Catalog
from makelib.data.text import words
from makelib.study.segments import normal


def bm25_run(catalog: Catalog, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """BM25 over titles (Lucene's variant, k1 = 1.5, b = 0.75): rows int64 (Q, k), scores float32 (Q, k).

    Equal scores are in the order of rows; products without a word of the query are not retrieved (-1, score -inf).
    """
    engine = bm25s.BM25()
    titles = [words(title) for title in catalog.products["title"].fillna("")]
    engine.index(titles if any(titles) else [["\0"]] * len(titles), show_progress=False)
    return ranked(
        (engine.get_scores(words(query)) for query in catalog.queries["query"].iloc[query_rows]),
        len(query_rows), len(catalog), k,
    )  # fmt: skip


def behaviour_run(catalog: Catalog, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What shoppers who typed the very same string in training clicked, most clicked first; the form of `bm25_run`.

    A string that nobody typed finds nothing: where behaviour is thin, this is what a system without content has.
    """
    clicked_queries, clicked_products = catalog.clicks("train")
    strings = catalog.queries["query"].map(normal)
    codes, names = pd.factorize(strings)
    clicks = sp.coo_matrix(
        (np.ones(len(clicked_products)), (codes[clicked_queries], clicked_products)), shape=(len(names), len(catalog))
    ).tocsr()
    return ranked((clicks[codes[row]].toarray()[0] for row in query_rows), len(query_rows), len(catalog), k)


def fused_run(runs: Sequence[np.ndarray], products: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Late fusion: rankings (Q, K) of one catalogue combined by reciprocal rank, sum of 1 / (60 + rank) (Cormack, Clarke and
    Büttcher, 2009); the form of `bm25_run`. Nothing is trained, and no ranking sees the other's products."""

    def scores() -> Iterator[np.ndarray]:
        for rankings in zip(*runs, strict=True):
            total = np.zeros(products, dtype=np.float32)
            for rows in rankings:
                np.add.at(total, rows[rows >= 0], 1 / (61 + np.flatnonzero(rows >= 0)))
            yield total

    return ranked(scores(), len(runs[0]), products, k)


def ranked(scores: Iterator[np.ndarray], queries: int, products: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's scores (N,): rows and scores as `bm25_run` has them; what has no score above 0 is not found."""
    rows = np.full((queries, min(k, products)), -1, dtype=np.int64)
    best = np.full(rows.shape, -np.inf, dtype=np.float32)
    for position, values in enumerate(scores):
        floor = np.partition(values, -rows.shape[1])[-rows.shape[1]]  # the k-th best, with all its equals
        found = np.flatnonzero((values > 0) & (values >= floor))
        found = found[np.argsort(-values[found], kind="stable")][:k]
        rows[position, : len(found)], best[position, : len(found)] = found, values[found]
    return rows, best
