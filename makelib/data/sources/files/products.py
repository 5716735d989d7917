"""The products table of a folder, row by row: columns found, photographs named, attributes told apart."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from makelib.data.sources.files import labels, terse
from makelib.data.sources.files.options import MOST_VALUES, PRODUCT_COLUMNS, ImportOptions
from makelib.data.sources.files.photos import listing
from makelib.data.sources.files.rows import Quarantine, Table, find
from makelib.runtime import UserError, progress

# -- products ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProductRows:
    """The good rows of the products table, a list per column; `numbers` are their row numbers in the file."""

    path: Path
    read: int
    mapping: dict[str, str]
    numbers: list[int]
    ids: list[str]
    titles: list[str]
    images: list[str]
    further: list[str]
    labels: dict[str, list[str]]

    @property
    def category(self) -> str | None:
        return self.mapping.get("category")

    def take(self, rows: np.ndarray) -> ProductRows:
        """Those `rows` (bool) only."""
        lists = {
            key: list(itertools.compress(getattr(self, key), rows))
            for key in ("numbers", "ids", "titles", "images", "further")
        }
        picked = {column: list(itertools.compress(values, rows)) for column, values in self.labels.items()}
        return dataclasses.replace(self, labels=picked, **lists)


def read_products(
    folder: Path, options: ImportOptions, quarantine: Quarantine, first: int | None = None
) -> ProductRows:
    path = find(folder, "products")
    if path is None:
        raise UserError(f"{folder} holds no products.csv, products.parquet or products.jsonl.")
    table = Table(path, options.encoding)
    if embedded := table.embedded & {"image", "images", options.columns.get("image"), options.columns.get("images")}:
        raise UserError(
            f"{path}: the column {embedded.pop()!r} holds the images themselves; write them as files under images/ and "
            "their paths into the column. (A catalogue that makelib wrote needs no import.)"
        )
    mapping = table.mapping(PRODUCT_COLUMNS, ("product_id", "title"), options.columns)
    named = [options.columns[column] for column in PRODUCT_COLUMNS if column in options.columns]
    wanted = {*options.label_columns, *options.hide_columns, *options.query_columns} - {"brand"}
    if missing := [column for column in (*named, *sorted(wanted)) if column not in table.columns]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has the columns {', '.join(table.columns)}.")
    wanted |= {mapping["category"]} if "category" in mapping else set()
    wanted |= {"brand"} & set(table.columns) if "brand" in (*options.hide_columns, *options.query_columns) else set()
    taken = {mapping.get(column) for column in ("product_id", "title", "image", "images")}
    candidates = wanted if options.label_columns else set(table.columns) - taken
    values: dict[str, list[str]] = {column: [] for column in table.columns if column in candidates}
    distinct: dict[str, dict[str, str]] = {column: {} for column in values}
    read, seen = 0, {}
    numbers, ids, titles, images, further = [], [], [], [], []
    for row in itertools.islice(progress(table.rows(), description="products", unit="row"), first):
        read += 1
        if row.values is None:
            quarantine.add("products", row.number, row.reason, row.detail)
            continue
        key = row.values[mapping["product_id"]]
        if not key.strip():
            quarantine.add("products", row.number, "has no id")
            continue
        if key in seen:
            quarantine.add("products", row.number, "repeats an id", f"row {seen[key]} is kept", product_id=key)
            continue
        seen[key] = row.number
        numbers.append(row.number)
        ids.append(key)
        titles.append(row.values[mapping["title"]])
        images.append(row.values[mapping["image"]] if "image" in mapping else "")
        further.append(row.values[mapping["images"]] if "images" in mapping else "")
        for column in list(values):
            value = row.values[column]
            values[column].append(distinct[column].setdefault(value, value))
            if len(distinct[column]) > 5 * MOST_VALUES and column not in wanted:
                del values[column]  # text, prices, addresses: no labels, so no need to hold them
    if not ids:
        raise UserError(f"{path}: no product could be kept. {quarantine if read else 'It has no rows.'}")
    for column in set(values) - wanted:
        found = [value for value in distinct[column] if value]
        if not 2 <= len(found) <= min(MOST_VALUES, max(2, len(ids) // 3)) or max(map(len, found)) > 60:
            del values[column]
    return ProductRows(path, read, mapping, numbers, ids, titles, images, further, values)


def image_cells(folder: Path, rows: ProductRows, most: int) -> tuple[list[str], np.ndarray, int]:
    """What each photograph is called in the table: the cells, the product row of each, int64 (cells,), and how many were
    beyond `most` of their product. A product without any has one empty cell.

    The column `image` names one file, `images` further ones, as a JSON list or between `|`; what names a folder there
    stands for its files in the order of their names. Where the table has neither column, it is the file (or the folder
    of files) under images/ that bears the product's id.
    """
    base = Path(os.path.realpath(folder))
    by_id: dict[str, str] = {}
    if not {"image", "images"} & set(rows.mapping) and (folder / "images").is_dir():
        paths = sorted((folder / "images").iterdir())
        by_id = {path.name if path.is_dir() else path.stem: f"images/{path.name}" for path in paths}
    cells, counts, too_many = [], [], 0
    for key, first, further in zip(rows.ids, rows.images, rows.further, strict=True):
        own = [first] if first.strip() else []
        if further.strip():
            own += [file for cell in _listed(further) for file in listing(base, cell)]
        if key in by_id:
            own += listing(base, by_id[key])
        own = list(dict.fromkeys(own)) or [""]
        if len(own) > most:
            too_many += len(own) - most
            own = [own[place] for place in np.linspace(0, len(own) - 1, most).round().astype(int)]
        cells += own
        counts.append(len(own))
    return cells, np.repeat(np.arange(len(counts)), counts), too_many


def _listed(cell: str) -> list[str]:
    """The paths in a cell of the column `images`."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(cell)
        if isinstance(found, list):
            return [str(path) for path in found]
    return [path.strip() for path in cell.split("|")]


def split_attributes(rows: ProductRows, options: ImportOptions) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Labels by column (empty: none), how many characters of each title are its brand, and the first notes."""
    frame = pd.DataFrame(rows.labels, dtype=object, index=range(len(rows.ids)))
    keep, notes = np.zeros(len(rows.ids), dtype=np.int64), list(options.notes)
    if options.limit and len(rows.ids) < rows.read:
        notes.append(f"{len(rows.ids):,} of {rows.read:,} products, drawn with seed {options.seed}.")
    if options.learn_brand and not any(labels.role(column, None) == "brand" for column in frame):
        stop = {word for column in frame for word in terse.vocabulary(set(frame[column]))} | set(terse.PATTERN_WORDS)
        brands, lengths = labels.learn_brands(rows.titles, stop, max(5, len(rows.ids) // 1000))
        if (lengths > 0).mean() >= 0.1 and len(set(brands)) > 3:
            frame["brand"], keep = np.array(brands, dtype=object), lengths
            count = len(set(brands) - {""})
            notes.append(f"The attribute brand ({count} values) was learned from first title words that recur.")
    if unknown := [column for column in (*options.hide_columns, *options.query_columns) if column not in frame]:
        raise UserError(f"{rows.path}: {unknown[0]!r} is no label; labels are {', '.join(frame)}.")
    return frame, keep, notes
