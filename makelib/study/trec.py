"""Runs and judgments as TREC files, for other tools."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from makelib.data.catalog import Catalog
from makelib.runtime import UserError, atomic_file
from makelib.study.metrics import FULL, check_run, clicked_pairs, relevance_in_parts

#: integer grade of a fully relevant product in TREC files; shares of up to six constraints are whole numbers of it
TREC_GRADE = 60


def export_trec(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, scores: np.ndarray, folder: Path | str, tag: str
) -> None:
    """Write `run.trec`, `qrels.trec` and `clicks.trec`, which `trec_eval` and `ir_measures` read.

    - Run: scores (Q, K) as float32, lowered by the smallest step where equal, because those tools break ties by id.
    - Judgments: relevance times 60, rounded; 60 is fully relevant. They hold all fully relevant products, all graded
      products of this run and the best 100 of each query: enough for every metric here on *this* run, and a fraction of
      all graded pairs. To compare runs in another tool, join their files.
    - Clicks: 1 per clicked product; recall on this file is the hit rate of queries without repeated clicks.

    Raises `UserError` when an id holds white space, which the format cannot carry.
    """
    query_rows, rows = np.asarray(query_rows, dtype=np.int64), np.asarray(rows, dtype=np.int64)
    check_run(catalog, query_rows, rows, depth=0)
    query_ids = catalog.queries["query_id"].to_numpy(object)[query_rows]
    product_ids = catalog.products["product_id"].to_numpy(object)
    for name in (*query_ids, *product_ids):
        if re.search(r"\s", name):
            raise UserError(
                f"TREC files cannot carry the id {name!r}: it holds white space; rename it in the catalogue."
            )
    folder = Path(folder)

    falling = np.asarray(scores, dtype=np.float32).copy()
    for rank in range(1, falling.shape[1]):
        falling[:, rank] = np.minimum(falling[:, rank], np.nextafter(falling[:, rank - 1], np.float32(-np.inf)))
    with atomic_file(folder / "run.trec") as draft, draft.open("w", encoding="utf-8") as file:
        for query, (found, values) in enumerate(zip(rows, falling, strict=True)):
            for rank, (row, value) in enumerate(zip(found, values, strict=True), start=1):
                if row >= 0:
                    file.write(f"{query_ids[query]} Q0 {product_ids[row]} {rank} {value:.9g} {tag}\n")
    with atomic_file(folder / "qrels.trec") as draft, draft.open("w", encoding="utf-8") as file:
        for part, relevance in relevance_in_parts(catalog, query_rows):
            depth = min(100, len(catalog)) - 1
            for query, grades in enumerate(relevance, start=part.start):
                kept = np.union1d(np.flatnonzero(grades >= FULL), np.argpartition(-grades, depth)[: depth + 1])
                kept = np.union1d(kept, rows[query][rows[query] >= 0])
                file.writelines(
                    f"{query_ids[query]} 0 {product_ids[row]} {round(TREC_GRADE * float(grades[row]))}\n"
                    for row in kept[grades[kept] > 0]
                )
    with atomic_file(folder / "clicks.trec") as draft, draft.open("w", encoding="utf-8") as file:
        pairs = np.unique(np.stack(clicked_pairs(catalog, query_rows), axis=1), axis=0)
        file.writelines(f"{query_ids[query]} 0 {product_ids[row]} 1\n" for query, row in pairs)
