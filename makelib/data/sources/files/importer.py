"""Catalogues from a folder of files: `products.csv|parquet|jsonl`, `images/`, perhaps `queries.*` and `interactions.*`.

Here is decided what a good row is. Broken ones go into quarantine with a line that says so; what is whole is kept as it
came: titles letter by letter, photographs byte by byte (`makelib.catalog.rgb` shows odd image modes right). `rows` and
`photos` read, `labels` makes queries for folders without them, `terse` hides words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from makelib import settings
from makelib.catalog import KINDS, PRODUCTS, SPLITS, Catalog, write_catalog
from makelib.runtime import UserError, progress, scratch_folder
from makelib.sources import labels, terse
from makelib.sources.photos import Photo, Photos, listing
from makelib.sources.rows import Quarantine, Table, find

#: a column with more distinct values is text, not a label
MOST_VALUES = 200

#: makelib's name of a column -> the names it goes by, without case and punctuation, best first
PRODUCT_COLUMNS = {
    "product_id": ("productid", "id", "sku", "itemid", "articleid", "asin", "商品id", "商品编号", "编号"),
    "title": (
        "title", "producttitle", "productdisplayname", "productname", "displayname", "name", "标题", "商品标题", "商品名称", "名称",
    ),
    "image": (
        "image", "imagepath", "imagefile", "imagename", "filename", "photo", "picture", "img", "imageurl", "图片", "主图",
    ),
    "images": (
        "images", "imagepaths", "imagefiles", "furtherimages", "additionalimages", "frames", "photos", "pictures", "图集",
    ),
    "category": (
        "category", "articletype", "producttype", "type", "subcategory", "mastercategory", "department",
        "类目", "品类", "类别", "分类",
    ),
}  # fmt: skip
QUERY_COLUMNS = {
    "query_id": ("queryid", "qid", "id"),
    "query": ("query", "querytext", "searchquery", "text"),
    "split": ("split",),
    "intent": ("intent",),
}
INTERACTION_COLUMNS = {
    "query_id": ("queryid", "qid"),
    "query": ("query", "querytext", "searchquery"),
    "product_id": ("productid", "itemid", "sku", "asin", "id"),
    "label": ("label", "relevance", "score", "grade"),
    "kind": ("kind",),
}


@dataclass(frozen=True)
class ImportOptions:
    """How a folder is read. The same keys may stand in its `catalogue.yaml`; what is given by hand wins."""

    #: what reports call the catalogue; empty: the folder's name
    name: str = ""
    #: makelib's column -> column of the files, such as {"title": "productDisplayName"}
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    #: products drawn at random from the good rows; 0 = all
    limit: int = 0
    seed: int = 0
    #: photographs or video frames kept of a product that has more: its first, and others evenly spread
    images_per_product: int = 8
    #: columns that become attributes; empty: those with few distinct values
    label_columns: tuple[str, ...] = ()
    #: "type", "visual" or "textual" by attribute; others: the category column is the type, and visual is what speaks of
    #: colour, pattern, shape by its name
    attribute_kinds: Mapping[str, str] = field(default_factory=dict)
    #: learn an attribute `brand` from first title words where no column tells it
    learn_brand: bool = True
    #: attributes that generated queries ask for; empty: see `labels.asked_columns`
    query_columns: tuple[str, ...] = ()
    queries: int = 4000
    clicks: int = 60000
    wrong_clicks: float = 0.075
    cold: float = 0.15
    #: terse sellers: a share of the titles loses the words of these attributes and these further words
    hide_columns: tuple[str, ...] = ()
    hide_words: tuple[str, ...] = ()
    hide_share: float = 0.0
    #: anything that has to go into quarantine is an error
    strict: bool = False
    #: what else every report must say about the catalogue
    notes: tuple[str, ...] = ()


def read_options(folder: Path, **given: Any) -> ImportOptions:
    """Options from the folder's `catalogue.yaml`, if there is one, overruled by those `given` (None: not given).

    Raises `UserError` for unknown keys, wrong types and shares outside 0 to 1.
    """
    written = _yaml(folder)
    tree = written | {key: value for key, value in given.items() if value is not None}
    if isinstance(written.get("columns"), dict):
        tree["columns"] = written["columns"] | (given.get("columns") or {})
    config = dacite.Config(strict=True, cast=[tuple], type_hooks={float: lambda x: float(x) if type(x) is int else x})
    try:
        options = dacite.from_dict(ImportOptions, tree, config)
    except dacite.DaciteError as error:
        known = ", ".join(item.name for item in dataclasses.fields(ImportOptions))
        raise UserError(f"Import options of {folder}: {error}. Known: {known}.") from None
    if options.images_per_product < 1:
        raise UserError(f"images_per_product must be at least 1, not {options.images_per_product}.")
    for name in ("hide_share", "wrong_clicks", "cold"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"{name} is a share, 0 to 1, not {getattr(options, name)}.")
    known = {**PRODUCT_COLUMNS, **QUERY_COLUMNS, **INTERACTION_COLUMNS}
    if unknown := [column for column in options.columns if column not in known]:
        raise UserError(f"columns: there is no column {unknown[0]!r} to map; known: {', '.join(known)}.")
    if wrong := [kind for kind in options.attribute_kinds.values() if kind not in ("type", "visual", "textual")]:
        raise UserError(f"attribute_kinds: {wrong[0]!r} is unknown; use type, visual or textual.")
    return options


def default_options(folder: Path, files: settings.Files | None = None) -> ImportOptions:
    """What a raw folder is imported with when nobody gave options: `catalogue.yaml`, the settings, and one decision.

    Where no interactions come with the products and more than half of the titles name the value of a colour column, the
    image tells little that the title does not, so the terse-sellers experiment is made: `files.hide_share` of the
    titles lose their colour and pattern words. The catalogue's `info["notes"]` say so and every report prints them.
    With `hide_share: 0` in `catalogue.yaml` titles stay as they are.
    """
    files = files or settings.Files()
    options, stated = read_options(folder), set(_yaml(folder))
    changes = {key: getattr(files, key) for key in {"limit", "queries", "clicks", "seed"} - stated}
    if (
        files.hide_share
        and not stated & {"hide_share", "hide_columns", "hide_words"}
        and not find(folder, "interactions")
    ):
        sample = _read_products(Path(folder), options, Quarantine(), first=20_000)
        keep = np.zeros(len(sample.titles), dtype=np.int64)
        colours = [column for column in sample.labels if labels.role(column, sample.category) == "colour"]
        if any(terse.names(sample.titles, sample.labels[column], keep).mean() > 0.5 for column in colours):
            words = terse.PATTERN_WORDS + terse.COLOUR_WORDS
            changes |= {"hide_share": files.hide_share, "hide_columns": tuple(colours), "hide_words": words}
    return dataclasses.replace(options, **changes)


def import_folder(folder: Path, out: Path, files: settings.Files | None = None) -> Catalog:
    """`import_catalog` with `default_options`: what `CATALOG=<folder>` does."""
    return import_catalog(folder, out, default_options(folder, files))


def import_catalog(folder: Path, out: Path, options: ImportOptions | None = None) -> Catalog:
    """Read a folder of products and write it as a catalogue under `out`, whole or not at all; returns it opened.

    Beside the tables lie `quarantine.csv` (`table, row, product_id, file, reason, action`; rows count from 1 after the
    header), `health.json` (see `health_report`) and `truth.parquet`: `terse`, whether the title lost words,
    `title_names_<column>`, whether the title still names the product's own value; `cold` where clicks are generated.
    Memory grows by about a kilobyte a product, for its row, and not with the photographs.

    Raises `UserError` when a table or column that is needed is missing (with the columns found and how to map them),
    when no product can be kept, with `strict` when anything is broken, and when `out` is a folder without a catalogue.
    """
    folder, out = Path(folder), Path(out)
    options = options or read_options(folder)
    _check_target(folder, out)
    with scratch_folder(out) as work:
        listed = work / "quarantine.csv"
        with open(listed, "w", encoding="utf-8", errors="backslashreplace", newline="") as lines:
            quarantine = Quarantine(lines)
            rows = _read_products(folder, options, quarantine)
            good, left_out = len(rows.ids), set()
            if 0 < options.limit < good:
                drawn = np.zeros(good, dtype=bool)
                drawn[np.random.default_rng(options.seed).choice(good, options.limit, replace=False)] = True
                left_out = set(itertools.compress(rows.ids, ~drawn))
                rows = rows.take(drawn)

            def broken(cell: int, photo: Photo) -> None:
                row = int(owner[cell])
                quarantine.add(
                    "products", rows.numbers[row], photo.reason, photo.detail,
                    product_id=rows.ids[row], file=cells[cell], action="image dropped",
                )  # fmt: skip

            photos = Photos(work / "photos.arrow")
            cells, owner, too_many = _image_cells(folder, rows, options.images_per_product)
            photos.read(folder, cells, broken)
            counts = np.bincount(owner, minlength=len(rows.ids))
            kept_images = np.bincount(owner, weights=_present(photos.digests), minlength=len(rows.ids)).astype(np.int64)
            digests: list[bytes | None] = [None] * len(rows.ids)  # of each product's first photograph
            for row, digest in zip(owner[::-1].tolist(), reversed(photos.digests), strict=True):
                digests[row] = digest or digests[row]
            whole = np.array([bool(title.strip()) for title in rows.titles]) | (kept_images > 0)
            for row in np.flatnonzero(~whole):
                quarantine.add("products", rows.numbers[row], "has neither title nor image", product_id=rows.ids[row])
            if not whole.any():
                raise UserError(f"{rows.path}: no product could be kept. {quarantine}")
            rows, digests, kept_images = rows.take(whole), list(itertools.compress(digests, whole)), kept_images[whole]

            frame, keep, notes = _attributes(rows, options)
            titles, truth, hidden = _hide(rows, frame, keep, options, notes)
            groups, placeholders = labels.duplicate_groups(rows.titles, digests)
            accounts, summary = {}, {}
            if find(folder, "interactions") or find(folder, "queries"):
                queries, interactions, accounts = _asked_by_people(
                    folder, set(rows.ids), left_out, options, quarantine, notes
                )
            else:
                queries, interactions, truth["cold"], summary = _generated(rows, frame, groups, options, notes)
        if options.strict and quarantine.counts:
            raise UserError(f"{folder}: {quarantine} Without strict they are left out and listed in quarantine.csv.")
        truth.insert(0, "product_id", rows.ids)
        health = {
            "products": quarantine.account("products", rows.read, len(rows.ids), len(left_out)),
            **accounts,
            "images": {
                "present": int((kept_images > 0).sum()),
                "missing": int((kept_images == 0).sum()),
                "further": int((kept_images - 1).clip(min=0).sum()),
                "products_with_several": int((kept_images > 1).sum()),
                f"beyond_{options.images_per_product}_a_product": too_many,
                "dropped": quarantine.reasons("products", "image dropped"),
                **photos.health(),
            },
            "titles": _title_health(rows.titles),
            "duplicates": {
                "repeated_ids": quarantine.reasons("products").get("repeats an id", 0),
                **_duplicate_health(rows.titles, digests, groups),
                "placeholder_images": placeholders,
            },
            "labels": {column: int((frame[column] != "").groupby(frame[column]).any().sum()) for column in frame},
            "hidden": {key: value for key, value in hidden.items() if key != "words"},
            "generated": summary,
        }
        kinds = {"type": "type", "colour": "visual", "look": "visual"}
        info = {
            "source": "files",
            "generated_queries": not accounts,
            "notes": notes,
            "attribute_kinds": {column: kinds.get(labels.role(column, rows.category), "textual") for column in frame}
            | dict(options.attribute_kinds),
            "category_column": rows.category,
            "hidden": hidden,
            "generated": summary,
            "options": dataclasses.asdict(options) | {"columns": rows.mapping},
        }
        return write_catalog(
            out,
            name=options.name or folder.resolve().name,
            products=_product_tables(rows, titles, frame, groups, photos.parts(counts, whole)),
            queries=queries,
            interactions=interactions,
            truth=truth,
            info=info,
            extra_files={"quarantine.csv": listed, "health.json": json.dumps(health, indent=2, ensure_ascii=False)},
        )


def health_report(catalog: Catalog) -> str:
    """The import's health report as Markdown. Raises `UserError` for a catalogue that was not imported."""
    path = catalog.folder / "health.json"
    if not path.is_file():
        raise UserError(f"{catalog.folder} has no health.json: it was not made by `python -m makelib data import`.")
    health = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# Health of {catalog.name}", "", *(f"- {note}" for note in catalog.info["notes"]), ""]
    lines += ["| table | rows read | kept | dropped | left out |", "| --- | ---: | ---: | ---: | ---: |"]
    accounts = {table: health[table] for table in ("products", "queries", "interactions") if table in health}
    for table, account in accounts.items():
        lines.append(
            "| ".join([f"| {table} "] + [f"{account[k]:,} " for k in ("read", "kept", "dropped", "left_out")]) + "|"
        )
    reasons = [(table, reason, n) for table, account in accounts.items() for reason, n in account["reasons"].items()]
    reasons += [("images", reason, count) for reason, count in health["images"]["dropped"].items()]
    lines += (
        ["", "| in quarantine | why | how many |", "| --- | --- | ---: |"]
        if reasons
        else ["", "Nothing in quarantine."]
    )
    lines += [f"| {table} | {reason} | {count:,} |" for table, reason, count in reasons]
    lines += ["", "| what | value |", "| --- | --- |"]
    for section in ("images", "titles", "duplicates", "labels", "hidden", "generated"):
        for key, value in health[section].items():
            if (section, key) != ("images", "dropped") and value not in ({}, []):
                lines.append(f"| {section}: {key.replace('_', ' ')} | {_readable(value)} |")
    return "\n".join(lines) + "\n"


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _yaml(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "catalogue.yaml"
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {error}".replace("\n", " ")) from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping, such as `columns: {{title: name}}`.")
    return tree


def _check_target(folder: Path, out: Path) -> None:
    """Refuse to write where something other than a catalogue would be lost."""
    source, target = folder.resolve(), out.resolve()
    if not source.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if source.is_relative_to(target):
        raise UserError(f"{out} holds the folder to import; write to another place, such as data/{source.name}.")
    if target.exists() and not (target / "catalogue.json").is_file() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{out} exists and is no catalogue; write to another place or remove it.")


# -- products ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Products:
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

    def take(self, rows: np.ndarray) -> _Products:
        """Those `rows` (bool) only."""
        lists = {
            key: list(itertools.compress(getattr(self, key), rows))
            for key in ("numbers", "ids", "titles", "images", "further")
        }
        picked = {column: list(itertools.compress(values, rows)) for column, values in self.labels.items()}
        return dataclasses.replace(self, labels=picked, **lists)


def _read_products(folder: Path, options: ImportOptions, quarantine: Quarantine, first: int | None = None) -> _Products:
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
    return _Products(path, read, mapping, numbers, ids, titles, images, further, values)


def _image_cells(folder: Path, rows: _Products, most: int) -> tuple[list[str], np.ndarray, int]:
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


def _attributes(rows: _Products, options: ImportOptions) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
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


def _hide(
    rows: _Products, frame: pd.DataFrame, keep: np.ndarray, options: ImportOptions, notes: list[str]
) -> tuple[list[str], pd.DataFrame, dict[str, Any]]:
    """Titles as terse sellers write them, the truth about each product, and what was hidden, for `info`."""
    seen = [c for c in frame if c in options.hide_columns or labels.role(c, rows.category) in ("colour", "look")]
    before = {column: terse.names(rows.titles, frame[column], keep) for column in seen}
    if not options.hide_share or not (options.hide_columns or options.hide_words):
        truth = pd.DataFrame({"terse": np.zeros(len(rows.ids), bool)} | {f"title_names_{c}": before[c] for c in seen})
        return rows.titles, truth, {}
    # drawn by a digest of the id, so that a product is terse or not whatever else is imported with it
    digests = (hashlib.sha256(f"{options.seed}:{key}".encode()).digest() for key in rows.ids)
    chosen = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests]) < options.hide_share
    phrases = {phrase for column in options.hide_columns for phrase in terse.vocabulary(set(frame[column]))}
    titles, is_terse = terse.hide(rows.titles, phrases | set(options.hide_words), chosen, keep)
    after = {column: terse.names(titles, frame[column], keep) for column in seen}
    changed = sum(old != new for old, new in zip(rows.titles, titles, strict=True))
    named = "; ".join(f"{c}: {before[c].mean():.0%} before, {after[c].mean():.0%} after" for c in seen)
    notes.insert(
        0,
        f"TERSE SELLERS: {is_terse.mean():.0%} of the titles (drawn with seed {options.seed}) lost the words of "
        f"{', '.join(options.hide_columns) or 'no column'} and {len(options.hide_words)} further words; {changed:,} of "
        f"{len(titles):,} titles changed. Titles that name their product's own value: {named}.",
    )
    hidden = {
        "columns": list(options.hide_columns),
        "words": list(options.hide_words),
        "share": options.hide_share,
        "terse": round(float(is_terse.mean()), 4),
        "titles_changed": changed,
        "named_before": {column: round(float(before[column].mean()), 4) for column in seen},
        "named_after": {column: round(float(after[column].mean()), 4) for column in seen},
    }
    return titles, pd.DataFrame({"terse": is_terse} | {f"title_names_{c}": after[c] for c in seen}), hidden


def _product_tables(
    rows: _Products, titles: list[str], frame: pd.DataFrame, groups: np.ndarray, photos: Iterator[list[list[bytes]]]
) -> Iterator[pa.Table]:
    """The products table in the order of the rows, a few hundred at a time. A group has the id of its first product."""
    first = pd.Series(rows.ids).groupby(groups).first().to_numpy()[groups]
    cells, schema, start = frame.to_numpy(), PRODUCTS.arrow_schema, 0
    for part in photos:
        at = slice(start, start := start + len(part))
        attributes = [
            json.dumps({key: value for key, value in zip(frame, row, strict=True) if value}, ensure_ascii=False)
            for row in cells[at]
        ]
        columns = {
            "product_id": rows.ids[at],
            "title": titles[at],
            "image": [{"bytes": own[0], "path": None} if own else None for own in part],
            "images": [[{"bytes": photo, "path": None} for photo in own[1:]] for own in part],
            "category": [value or None for value in frame[rows.category][at]] if rows.category else [None] * len(part),
            "group": first[at],
        }
        arrays = {key: pa.array(values, schema.field(key).type) for key, values in columns.items()}
        arrays["attributes"] = pa.ExtensionArray.from_storage(pa.json_(), pa.array(attributes, pa.string()))
        yield pa.table([arrays[name] for name in schema.names], schema=schema)


# -- queries and interactions -----------------------------------------------------------------------------------------


def _generated(
    rows: _Products, frame: pd.DataFrame, groups: np.ndarray, options: ImportOptions, notes: list[str]
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


def _asked_by_people(
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
        mapping = table.mapping(QUERY_COLUMNS, ("query_id", "query"), options.columns)
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
        INTERACTION_COLUMNS, ("product_id", "query_id" if queries_path else "query"), options.columns
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


# -- health -----------------------------------------------------------------------------------------------------------


def _present(digests: list[bytes | None]) -> np.ndarray:
    return np.array([digest is not None for digest in digests], dtype=bool)


def _title_health(titles: list[str]) -> dict[str, Any]:
    return {
        "missing": sum(not title.strip() for title in titles),
        "mean_words": round(float(np.mean([len(title.split()) for title in titles])), 1),
        "longest_characters": max(map(len, titles)),
        "languages_by_script": dict(Counter(map(_script, titles)).most_common()),
    }


def _script(title: str) -> str:
    """The script of most letters, by the first word of their Unicode names: Latin, Cjk, Hiragana, Arabic, …"""
    if title.isascii():
        return "Latin" if any(map(str.isalpha, title)) else "none"
    letters = Counter(unicodedata.name(letter, "other").split()[0] for letter in title[:200] if letter.isalpha())
    return letters.most_common(1)[0][0].capitalize() if letters else "none"


def _duplicate_health(titles: list[str], digests: list[bytes | None], groups: np.ndarray) -> dict[str, int]:
    titled = pd.Series([" ".join(title.split()).casefold() or None for title in titles], dtype=object).dropna()
    return {
        "products_that_share_a_title": int(titled.duplicated(keep=False).sum()),
        "products_that_share_pixels": int(pd.Series(digests, dtype=object).dropna().duplicated(keep=False).sum()),
        "groups": int(groups.max()) + 1,
        "largest_group": int(np.bincount(groups).max()),
    }
