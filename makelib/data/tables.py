"""The three tables as files: their columns, and how a catalogue folder is written. `makelib.data.catalog` reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from makelib.data.catalog import INTERACTIONS, KINDS, PRODUCTS, QUERIES, SPLITS, Catalog, cells_of_column, rows_of
from makelib.data.pictures import quiet
from makelib.runtime import UserError, atomic_folder, fingerprint


def write_catalog(
    folder: Path,
    *,
    name: str,
    products: datasets.Dataset | pd.DataFrame | Iterable[pa.Table],
    queries: pd.DataFrame,
    interactions: pd.DataFrame,
    truth: pd.DataFrame | None = None,
    info: dict[str, Any] | None = None,
    extra_files: dict[str, str | Path] | None = None,
) -> Catalog:
    """Check the three tables and write them as a catalogue folder, whole or not at all; returns it opened.

    Args:
        products: columns of `PRODUCTS`; `image` as {"bytes": encoded file, "path": None} or None, `images` as a list of
            such (further ones). `images` and `group` may be absent.
            A stream of `pyarrow` tables with the schema `PRODUCTS.arrow_schema` is written table by table, so that a
            catalogue of any size needs the memory of one.
        queries: columns of `QUERIES`; `intent` may be absent (then each distinct set of constraints, or string, is one).
        interactions: columns of `INTERACTIONS`.
        truth: one row per product, in the same order.
        info: JSON-able notes kept in `catalogue.json`; say `generated_queries`.
        extra_files: further files to lay beside the tables, name to text or to a file that is copied.

    Raises `UserError` for duplicate ids, an unknown split or kind, or an interaction that names an unknown id.
    """
    folder = Path(folder)
    if isinstance(products, pd.DataFrame):
        products = datasets.Dataset.from_dict(
            {
                column: cells_of_column(products[column]) if column in products else [None] * len(products)
                for column in PRODUCTS
            },
            features=PRODUCTS,
        )
    queries = queries.copy()
    if "constraints" not in queries:
        queries["constraints"] = None
    if "intent" not in queries:
        queries["intent"] = [
            json.dumps(constraints, sort_keys=True) if constraints else text.strip().lower()
            for constraints, text in zip(queries["constraints"], queries["query"], strict=True)
        ]
    for table, column, allowed in ((queries, "split", SPLITS), (interactions, "kind", KINDS)):
        unknown = set(table[column]) - set(allowed)
        if unknown:
            raise UserError(f"{column} {sorted(map(str, unknown))[0]!r} is unknown; use one of {', '.join(allowed)}.")
    with atomic_folder(folder) as draft, quiet():
        if isinstance(products, datasets.Dataset):
            products.to_parquet(draft / "products.parquet")
        else:
            with pq.ParquetWriter(draft / "products.parquet", PRODUCTS.arrow_schema) as writer:
                for part in products:
                    writer.write_table(part)
        product_ids = pd.read_parquet(draft / "products.parquet", columns=["product_id"])["product_id"]
        for ids, key in ((product_ids, "product_id"), (queries["query_id"], "query_id")):
            if ids.duplicated().any():
                raise UserError(
                    f"{key} {ids[ids.duplicated()].iloc[0]!r} stands on more than one row; ids must be unique."
                )
        rows_of(interactions["query_id"], queries["query_id"], Path("interactions"))
        rows_of(interactions["product_id"], product_ids, Path("interactions"))
        datasets.Dataset.from_dict(
            {column: cells_of_column(queries[column]) for column in QUERIES}, features=QUERIES
        ).to_parquet(draft / "queries.parquet")  # fmt: skip
        datasets.Dataset.from_pandas(
            interactions[list(INTERACTIONS)], features=INTERACTIONS, preserve_index=False
        ).to_parquet(draft / "interactions.parquet")  # fmt: skip
        if truth is not None:
            truth.to_parquet(draft / "truth.parquet", index=False)
        digests = []
        for file in ("products", "queries", "interactions"):
            with open(draft / f"{file}.parquet", "rb") as table:
                digests.append(hashlib.file_digest(table, "sha256").hexdigest())
        mark = fingerprint(*digests)
        for file, content in (extra_files or {}).items():
            if isinstance(content, Path):
                shutil.copyfile(content, draft / file)
            else:
                (draft / file).write_text(content, encoding="utf-8")
        (draft / "catalogue.json").write_text(
            json.dumps({"generated_queries": False, **(info or {}), "name": name, "fingerprint": mark}, indent=2),
            encoding="utf-8",
        )
    return Catalog.open(folder)
