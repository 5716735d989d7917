"""The three tables as files: their columns, and how a catalogue folder is written. `makelib.data.catalog` reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from makelib.data.catalog import INTERACTIONS, KINDS, PRODUCTS, QUERIES, SPLITS, Catalog, cells_of_column, rows_of
from makelib.runtime import UserError, atomic_folder, fingerprint

#: rows of a table that is written at once, so that a reader finds a photograph without reading all of them
PART = 250


def write_catalog(
    folder: Path,
    *,
    name: str,
    products: pd.DataFrame | Iterable[pa.Table],
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
            A stream of `pyarrow` tables with the schema `PRODUCTS` is written table by table, so that a
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
        whole = products
        products = (product_table(whole.iloc[start : start + PART]) for start in range(0, len(whole), PART))
    queries = _with_intents(queries)
    for checked, column, allowed in ((queries, "split", SPLITS), (interactions, "kind", KINDS)):
        unknown = set(checked[column]) - set(allowed)
        if unknown:
            raise UserError(f"{column} {sorted(map(str, unknown))[0]!r} is unknown; use one of {', '.join(allowed)}.")
    with atomic_folder(folder) as draft:
        with open(draft / "products.parquet", "wb") as file, pq.ParquetWriter(file, PRODUCTS) as writer:
            for part in products:
                writer.write_table(part)
        product_ids = pq.ParquetFile(draft / "products.parquet").read(columns=["product_id"])["product_id"].to_pandas()
        for ids, key in ((product_ids, "product_id"), (queries["query_id"], "query_id")):
            _check_ids(ids, key, interactions)
        small = {"queries": _table(queries, QUERIES), "interactions": _table(interactions, INTERACTIONS)}
        if truth is not None:
            small["truth"] = pa.Table.from_pandas(truth, preserve_index=False)
        for file_name, table in small.items():
            with open(draft / f"{file_name}.parquet", "wb") as file:
                pq.write_table(table, file)
        digests = []
        for file_name in ("products", "queries", "interactions"):
            with open(draft / f"{file_name}.parquet", "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        mark = fingerprint(*digests)
        for file_name, content in (extra_files or {}).items():
            if isinstance(content, Path):
                shutil.copyfile(content, draft / file_name)
            else:
                (draft / file_name).write_text(content, encoding="utf-8")
        (draft / "catalogue.json").write_text(
            json.dumps({"generated_queries": False, **(info or {}), "name": name, "fingerprint": mark}, indent=2),
            encoding="utf-8",
        )
    return Catalog.open(folder)


def _with_intents(queries: pd.DataFrame) -> pd.DataFrame:
    """The queries with the columns that may be absent."""
    queries = queries.copy()
    if "constraints" not in queries:
        queries["constraints"] = None
    if "intent" not in queries:
        queries["intent"] = [
            json.dumps(constraints, sort_keys=True) if constraints else text.strip().lower()
            for constraints, text in zip(queries["constraints"], queries["query"], strict=True)
        ]
    return queries


def _check_ids(ids: pd.Series, key: str, interactions: pd.DataFrame) -> None:
    """Raises `UserError` for an id that stands twice, or one that interactions name and nobody has."""
    if ids.duplicated().any():
        raise UserError(f"{key} {ids[ids.duplicated()].iloc[0]!r} stands on more than one row; ids must be unique.")
    rows_of(interactions[key], ids, Path("interactions"))


def check_target(folder: Path) -> None:
    """Raises `UserError` where a catalogue that is written to `folder` would take the place of something else; an empty folder is
    free, but not the working directory."""
    empty = folder.name and folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "catalogue.json").is_file():
        raise UserError(f"{folder} exists and is no catalogue; choose another --out, so that nothing is overwritten.")


def product_table(products: pd.DataFrame) -> pa.Table:
    """Some products as `write_catalog` writes them; columns that they lack are empty."""
    return _table(products.reindex(columns=PRODUCTS.names), PRODUCTS)


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    columns = {}
    for field in schema:
        cells = cells_of_column(frame[field.name])
        if field.name in ("attributes", "constraints"):
            cells = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
        columns[field.name] = pa.array(cells, field.type)
    return pa.table(columns, schema=schema)
