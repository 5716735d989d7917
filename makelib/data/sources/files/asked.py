"""Queries and clicks of a folder: those that people typed, or those generated from label columns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from makelib.data.catalog import KINDS, SPLITS
from makelib.data.sources.files import labels
from makelib.data.sources.files.options import INTERACTION_COLUMNS, QUERY_COLUMNS, ImportOptions
from makelib.data.sources.files.products import ProductRows
from makelib.data.sources.files.readers import Table
from makelib.data.sources.files.rows import Quarantine, find
from makelib.runtime import UserError, progress


def generated(
    rows: ProductRows, frame: pd.DataFrame, groups: np.ndarray, options: ImportOptions, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, dict[str, Any]]:
    columns = list(options.query_columns) or labels.asked_columns(frame, rows.category)
    asked = labels.ask(
        frame, rows.titles, groups, columns=columns, category=rows.category, queries=options.queries,
        clicks=options.clicks, wrong_clicks=options.wrong_clicks, cold=options.cold, seed=options.seed,
    )  # fmt: skip
    if asked.queries.empty:
        raise UserError(
            f"{rows.path}: no query can be generated, for no label value is shared by 2 products to 5 % of them "
            f"(labels: {', '.join(frame) or 'none'}). Add label columns or rows, or bring interactions.csv."
        )
    notes.insert(0, f"GENERATED QUERIES: a program asked for {', '.join(columns)} and clicked; no person did.")
    interactions = asked.interactions.assign(product_id=np.array(rows.ids, dtype=object)[asked.interactions["product"]])
    return asked.queries, interactions, asked.cold, asked.summary


def asked_by_people(
    folder: Path, kept: set[str], left_out: set[str], options: ImportOptions, quarantine: Quarantine, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The folder's own queries and interactions. Without a queries table the interactions bring the query strings."""
    path = find(folder, "interactions")
    if path is None:
        raise UserError(
            f"{folder} has queries but no interactions.csv (query_id, product_id, label) that answers them."
        )
    queries: dict[str, tuple[str, str, str]] = {}  # id -> query, split, intent
    accounts, read = {}, 0
    if queries_path := find(folder, "queries"):
        table = Table(queries_path, options.encoding)
        mapping = table.mapping("queries", QUERY_COLUMNS, ("query_id", "query"), options.columns)
        for row in progress(table.rows(), description="queries", unit="row"):
            read += 1
            key, query, split, intent = (
                (row.values[mapping[c]] if row.values and c in mapping else "") for c in QUERY_COLUMNS
            )  # fmt: skip
            if row.values is None:
                quarantine.add("queries", row.number, row.reason, row.detail)
            elif not key.strip():
                quarantine.add("queries", row.number, "has no id")
            elif key in queries:
                quarantine.add("queries", row.number, "repeats an id", key)
            elif not query.strip():
                quarantine.add("queries", row.number, "has an empty query", key)
            elif split and split not in SPLITS:
                quarantine.add("queries", row.number, "has an unknown split", split)
            else:
                queries[key] = (query, split, intent or " ".join(query.split()).casefold())
    table = Table(path, options.encoding)
    mapping = table.mapping(
        "interactions", INTERACTION_COLUMNS, ("product_id", "query_id" if queries_path else "query"), options.columns
    )
    ids: dict[str, str] = {}
    found: list[tuple[str, str, float, str]] = []
    interactions_read = outside = 0
    for row in progress(table.rows(), description="interactions", unit="row"):
        interactions_read += 1
        key, query, product, label, kind = (
            (row.values[mapping[c]] if row.values and c in mapping else "") for c in INTERACTION_COLUMNS
        )  # fmt: skip
        value = _number(label if "label" in mapping else "1")
        if row.values is None:
            quarantine.add("interactions", row.number, row.reason, row.detail)
        elif key not in queries if queries_path else not query.strip():
            quarantine.add("interactions", row.number, "names an unknown query", key, product_id=product)
        elif product not in kept and product not in left_out:
            quarantine.add("interactions", row.number, "names an unknown product", product_id=product)
        elif value is None:
            quarantine.add(
                "interactions", row.number, "has a label that is no number of 0 or more", label, product_id=product
            )
        elif kind and kind not in KINDS:
            quarantine.add("interactions", row.number, "has an unknown kind", kind, product_id=product)
        elif product in left_out:
            outside += 1
        else:
            if not queries_path:
                key = ids.setdefault(query, f"q{len(ids):06d}")
                queries.setdefault(key, (query, "", " ".join(query.split()).casefold()))
            found.append((key, product, value, kind))
    if not found:
        raise UserError(f"{path}: no interaction could be kept. {quarantine}")
    interactions = pd.DataFrame(found, columns=["query_id", "product_id", "label", "kind"])
    graded = not interactions["label"].isin([0, 1]).all()
    interactions["kind"] = interactions["kind"].replace("", "judgment" if graded else "click")
    if (largest := interactions["label"].max()) > 1:
        interactions["label"] /= largest
        notes.append(f"Labels were divided by the largest, {largest:g}, so that 1 is fully relevant.")
    frame = pd.DataFrame(
        [(key, *queries[key]) for key in queries], columns=["query_id", "query", "split", "intent"]
    )  # fmt: skip
    frame = frame[frame["query_id"].isin(interactions["query_id"])].reset_index(drop=True)
    if (unsplit := frame["split"] == "").any():
        intents = np.sort(frame.loc[unsplit, "intent"].unique())
        place = np.random.default_rng(options.seed).permutation(len(intents)) / len(intents)
        names = np.where(place < 0.7, "train", np.where(place < 0.8, "validation", "test"))
        frame.loc[unsplit, "split"] = frame.loc[unsplit, "intent"].map(dict(zip(intents, names, strict=True)))
        notes.append(f"Queries were split 70 / 10 / 20 % by intent with seed {options.seed}.")
    if queries_path:
        accounts["queries"] = quarantine.account("queries", read, len(frame), len(queries) - len(frame))
    accounts["interactions"] = quarantine.account("interactions", interactions_read, len(interactions), outside)
    return frame, interactions, accounts


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
