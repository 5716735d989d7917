"""Catalogues from a folder of files: `products.*` (CSV, TSV, Excel, Parquet, JSON Lines, XML), `images/`, perhaps `queries.*` and `interactions.*`.

Here is decided what a good row is. Broken ones go into quarantine with a line that says so; what is whole is kept as it
came: titles letter by letter, photographs byte by byte (`makelib.data.pictures.rgb` shows odd image modes right). `rows` and
`photos` read, `labels` makes queries for folders without them, `terse` hides words.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from makelib import settings
from makelib.data.catalog import PRODUCTS, Catalog
from makelib.data.sources import fetch as fetching
from makelib.data.sources.files import careless, labels, terse
from makelib.data.sources.files.asked import asked_by_people, generated
from makelib.data.sources.files.cells import is_address
from makelib.data.sources.files.health import duplicate_health, lost, title_health, unfetched, warnings_of
from makelib.data.sources.files.judged import tables_of
from makelib.data.sources.files.options import ImportOptions, read_options, stated
from makelib.data.sources.files.paths import Lost, Places, address, unpack
from makelib.data.sources.files.photos import Photo, Photos
from makelib.data.sources.files.products import ProductRows, image_cells, read_products, split_attributes
from makelib.data.sources.files.rows import Quarantine, find
from makelib.data.tables import check_target, write_catalog
from makelib.runtime import UserError, alone, scratch_folder, uniform


def import_folder(folder: Path, out: Path, files: settings.Files | None = None) -> Catalog:
    """`import_catalog` with `default_options`: what `CATALOG=<folder>` does."""
    return import_catalog(folder, out, default_options(folder, files))


def import_catalog(folder: Path, out: Path, options: ImportOptions | None = None) -> Catalog:
    """Read a folder of products and write it as a catalogue under `out`, whole or not at all; returns it opened.

    Beside the tables lie `quarantine.csv` (`table, row, product_id, file, reason, action`; rows count from 1 after the
    header), `health.json` (see `health_report`), `askers.csv` where users are told (see `asked.known_users`) and
    `truth.parquet`: `terse`, whether the title lost words, `careless`, how the photographs were spoiled ("": they were not),
    `title_names_<column>`, whether the title still names the product's own value; `cold` where clicks are generated.
    Memory grows by about a kilobyte a product, for its row, and not with the photographs.

    Raises `UserError` when a table or column that is needed is missing (with the columns found and how to map them),
    when no product can be kept, with `strict` when anything is broken, and when `out` is a folder without a catalogue.
    """
    folder, out = Path(folder), Path(out)
    options = options or read_options(folder)
    _check_target(folder, out)
    with alone(out), scratch_folder(out) as work:
        listed = work / "quarantine.csv"
        with open(listed, "w", encoding="utf-8", errors="backslashreplace", newline="") as lines:
            quarantine = Quarantine(lines)
            rows, left_out = _drawn(read_products(folder, options, quarantine), options)
            seen = _photographs(folder, out, work, rows, options, quarantine)
            rows = rows.take(seen.whole)
            frame, keep, notes = split_attributes(rows, options)
            titles, truth, hidden = _hide(rows, frame, keep, options, notes)
            groups, placeholders = labels.duplicate_groups(rows.titles, seen.digests)
            truth["careless"], photos = _spoil(rows, frame, seen, groups, options, notes)
            accounts, summary, askers = {}, {}, {}
            if any(tables_of(folder, options.encoding)):
                queries, interactions, accounts, askers = asked_by_people(
                    folder, set(rows.ids), left_out, options, quarantine, notes
                )
                if not (queries["split"] == "train").any():
                    queries, interactions = _with_generated(queries, interactions, rows, frame, groups, options, notes)
            else:
                queries, interactions, truth["cold"], summary = generated(rows, frame, groups, options, notes)
        if options.strict and quarantine.counts:
            raise UserError(f"{folder}: {quarantine} Without strict they are left out and listed in quarantine.csv.")
        truth.insert(0, "product_id", rows.ids)
        health = {
            "products": quarantine.account("products", rows.read, len(rows.ids), len(left_out), rows.merged),
            **accounts,
            **_health(rows, frame, seen, groups, quarantine, options),
            "hidden": {key: value for key, value in hidden.items() if key != "words"},
            "generated": summary,
        }
        health["duplicates"]["placeholder_images"] = placeholders
        health["lost"] = lost(health)
        health["warnings"] = warnings_of(health, options)
        for warning in health["warnings"]:
            print(f"makelib: {warning}", file=sys.stderr)
        told = {"generated_queries": not accounts, "notes": [*health["warnings"], *unfetched(health), *notes]}
        return write_catalog(
            out,
            name=options.name or folder.resolve().name,
            products=_product_tables(rows, titles, frame, groups, photos),
            queries=queries,
            interactions=interactions,
            truth=truth,
            info=told | _info(rows, frame, hidden, summary, options),
            extra_files={
                "quarantine.csv": listed,
                "health.json": json.dumps(health, indent=2, ensure_ascii=False),
                **askers,
            },
        )


def _with_generated(
    queries: pd.DataFrame,
    interactions: pd.DataFrame,
    rows: ProductRows,
    frame: pd.DataFrame,
    groups: np.ndarray,
    options: ImportOptions,
    notes: list[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People's queries for the test, a program's for training and validation, where people's leave nothing to train on."""
    said: list[str] = []
    asked, clicks, *_ = generated(rows, frame, groups, options, said)
    asked = asked[(asked["split"] != "test") & ~asked["query"].isin(queries["query"])]
    asked = asked[(asked["split"] == "train") | ~(queries["split"] == "validation").any()]
    notes.insert(0, f"{said[0]} They are for training only: the test is of people's queries.")
    clicks = clicks[clicks["query_id"].isin(asked["query_id"])]
    asked, clicks = (table.assign(query_id="generated-" + table["query_id"]) for table in (asked, clicks))
    columns = ["query_id", "product_id", "label", "kind"]
    return pd.concat([queries, asked], ignore_index=True), pd.concat([interactions, clicks[columns]], ignore_index=True)


def _drawn(rows: ProductRows, options: ImportOptions) -> tuple[ProductRows, set[str]]:
    """The products that the `limit` leaves, and the ids of the others."""
    good = len(rows.ids)
    if not 0 < options.limit < good:
        return rows, set()
    drawn = np.zeros(good, dtype=bool)
    drawn[np.random.default_rng(options.seed).choice(good, options.limit, replace=False)] = True
    return rows.take(drawn), set(itertools.compress(rows.ids, ~drawn))


@dataclass(frozen=True)
class _Seen:
    """The photographs of an import: `counts` int64, cells of each product, `whole` bool, which products have a title or a
    photograph; of those `digests` of the first photograph's pixels and `kept` int64, how many each has."""

    photos: Photos
    counts: np.ndarray
    whole: np.ndarray
    digests: list[bytes | None]
    kept: np.ndarray
    told: dict[str, int]
    notices: list[str]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return (np.cumsum(self.counts) - self.counts)[self.whole]

    def first(self, product: int) -> bytes:
        """The first photograph of a product that has one; `product` counts those that are `whole`."""
        cells = itertools.count(int(self._starts[product]))
        return self.photos[next(cell for cell in cells if self.photos.digests[cell])]

    def health(self, quarantine: Quarantine, most: int) -> dict[str, Any]:
        """Photographs named = read (present + further) + dropped, each with its reason, + beyond `most` of a product."""
        return {
            "named": self.told["named"],
            "present": int((self.kept > 0).sum()),
            "missing": int((self.kept == 0).sum()),
            "further": int((self.kept - 1).clip(min=0).sum()),
            "products_with_several": int((self.kept > 1).sum()),
            f"beyond_{most}_a_product": self.told["beyond"],
            "dropped": quarantine.reasons("products", "image dropped"),
            **self.photos.health(),
        }


def _photographs(
    folder: Path, out: Path, work: Path, rows: ProductRows, options: ImportOptions, quarantine: Quarantine
) -> _Seen:
    """Read what the rows name. Raises `UserError` when no product has a title or a photograph."""
    unpacked, notices = unpack(folder, work)
    places, photos = Places(folder, unpacked), Photos(work / "photos.arrow")
    cells, owner, told = image_cells(places, rows, options.images_per_product)
    if options.fetch:
        wanted = [address(cell) for cell in cells if is_address(cell)]
        places.fetched, line = _fetched(wanted, out.parent / ".fetched", options.allow_hosts)
        notices.append(line)

    def broken(cell: int, photo: Photo) -> None:
        row = int(owner[cell])
        quarantine.add(
            "products", rows.numbers[row], photo.reason, photo.detail,
            product_id=rows.ids[row], file=cells[cell], action="image dropped",
        )  # fmt: skip

    photos.read(places, cells, broken)
    for cell, row in zip(cells, owner.tolist(), strict=True):
        if cell in places.respelled:
            why = f"is the file {places.respelled[cell]!r} in another writing"
            quarantine.note(
                "products", rows.numbers[row], why, product_id=rows.ids[row], file=cell, action="image read"
            )
    if places.respelled:
        notices.append(
            f"{len(places.respelled):,} names of photographs are written otherwise than their files; quarantine.csv lists them."
        )
    counts = np.bincount(owner, minlength=len(rows.ids))
    kept = np.bincount(owner, weights=_present(photos.digests), minlength=len(rows.ids)).astype(np.int64)
    digests: list[bytes | None] = [None] * len(rows.ids)  # of each product's first photograph
    for row, digest in zip(owner[::-1].tolist(), reversed(photos.digests), strict=True):
        digests[row] = digest or digests[row]
    whole = np.array([bool(title.strip()) for title in rows.titles]) | (kept > 0)
    for row in np.flatnonzero(~whole):
        quarantine.add("products", rows.numbers[row], "has neither title nor image", product_id=rows.ids[row])
    if not whole.any():
        raise UserError(f"{rows.path}: no product could be kept. {quarantine}")
    if (idle := places.idle_images()) and not places.used_images:
        notices.append(
            f"No product uses any of the {idle:,} files under images/; name them in a column or by product id."
        )
    digests = list(itertools.compress(digests, whole))
    return _Seen(photos, counts, whole, digests, kept[whole], told, notices)


def _fetched(wanted: list[str], folder: Path, allow: tuple[str, ...]) -> tuple[dict[str, Path | Lost], str]:
    """Addresses -> the files that they were fetched to, or why not; and a line for the report. All imports share the folder."""
    store = fetching.Store(folder, folder / "missing.jsonl")
    fetching.fetch({url: url for url in wanted}, store, allow)
    found = {
        url: store.path(url) if store.path(url).is_file() else Lost(f"cannot be fetched ({store.missing.get(url, '')})")
        for url in dict.fromkeys(wanted)
    }
    reasons = Counter(store.missing[url] for url, path in found.items() if isinstance(path, Lost))
    here = len(found) - reasons.total()
    why = (
        f"; the others: {', '.join(f'{count:,} {reason}' for reason, count in reasons.most_common(5))}"
        if reasons
        else ""
    )
    return found, f"{here:,} of {len(found):,} addresses of photographs are fetched{why}."


def _shares(words: Counter[str]) -> dict[str, Any]:
    """Which share of the words of all titles came from which column, where several join it."""
    return {"words_from": {column: round(n / words.total(), 3) for column, n in words.items()}} if words.total() else {}


def _check_target(folder: Path, out: Path) -> None:
    """Refuse to write where something other than a catalogue would be lost."""
    source, target = folder.resolve(), out.resolve()
    if not source.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if source.is_relative_to(target):
        raise UserError(f"{out} holds the folder to import; write to another place, such as data/{source.name}.")
    check_target(out)


def _hide(
    rows: ProductRows, frame: pd.DataFrame, keep: np.ndarray, options: ImportOptions, notes: list[str]
) -> tuple[list[str], pd.DataFrame, dict[str, Any]]:
    """Titles as terse sellers write them, the truth about each product, and what was hidden, for `info`."""
    seen = [c for c in frame if c in options.hide_columns or labels.role(c, rows.category) in ("colour", "look")]
    before = {column: terse.names(rows.titles, frame[column], keep) for column in seen}
    if not options.hide_share or not (options.hide_columns or options.hide_words):
        truth = pd.DataFrame({"terse": np.zeros(len(rows.ids), bool)} | {f"title_names_{c}": before[c] for c in seen})
        return rows.titles, truth, {}
    # drawn by a digest of the id, so that a product is terse or not whatever else is imported with it
    chosen = np.array([uniform(f"{options.seed}:{key}") for key in rows.ids]) < options.hide_share
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


def _spoil(
    rows: ProductRows, frame: pd.DataFrame, seen: _Seen, groups: np.ndarray, options: ImportOptions, notes: list[str]
) -> tuple[np.ndarray, Iterator[list[list[bytes]]]]:
    """How careless photographers spoiled each product's photographs, and all photographs as they then are."""
    parts = seen.photos.parts(seen.counts, seen.whole)
    if not options.careless:
        return np.full(len(rows.ids), "", dtype=object), parts
    types, brands = (
        frame[name].tolist() if name in frame else [""] * len(rows.ids) for name in (rows.category, "brand")
    )
    kinds = careless.drawn(rows.ids, types, brands, options.careless, options.seed)
    kinds[seen.kept == 0] = ""
    others = careless.strangers(rows.ids, kinds, types, groups, seen.kept > 0, options.seed)
    kinds[(kinds == "replaced") & (others < 0)] = "covered"
    shares = (
        pd.Series(kinds != "")[seen.kept > 0]
        .groupby(np.array(types, dtype=object)[seen.kept > 0])
        .agg(["mean", "size"])
    )
    shares = shares["mean"][shares["size"] >= 50]
    uneven = f", by category from {shares.min():.0%} to {shares.max():.0%}" if len(shares) > 1 else ""
    counts = ", ".join(f"{(kinds == kind).sum():,} {kind}" for kind in careless.KINDS)
    notes.insert(
        0,
        f"CARELESS PHOTOGRAPHERS: {(kinds != '').sum():,} of {(seen.kept > 0).sum():,} products with photographs (drawn with seed "
        f"{options.seed}) had them spoiled by this program: {counts} (by one of another product of the type){uneven}.",
    )
    return kinds, careless.spoiled(parts, rows.ids, kinds, lambda row: seen.first(int(others[row])))


def _product_tables(
    rows: ProductRows, titles: list[str], frame: pd.DataFrame, groups: np.ndarray, photos: Iterator[list[list[bytes]]]
) -> Iterator[pa.Table]:
    """The products table in the order of the rows, a few hundred at a time. A group has the id of its first product."""
    first = pd.Series(rows.ids).groupby(groups).first().to_numpy()[groups]
    cells, schema, start = frame.to_numpy(), PRODUCTS, 0
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
            "attributes": attributes,
            "group": first[at],
        }
        yield pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


# -- what is said of it -----------------------------------------------------------------------------------------------


def _health(
    rows: ProductRows,
    frame: pd.DataFrame,
    seen: _Seen,
    groups: np.ndarray,
    quarantine: Quarantine,
    options: ImportOptions,
) -> dict[str, Any]:
    """How good photographs, titles and labels are, for `health.json`."""
    return {
        "notices": [*rows.notices, *seen.notices],
        "images": seen.health(quarantine, options.images_per_product),
        "titles": title_health(rows.titles) | _shares(rows.words),
        "duplicates": {
            "repeated_ids": quarantine.reasons("products").get("repeats an id", 0),
            **duplicate_health(rows.titles, seen.digests, groups),
        },
        "labels": {column: int((frame[column] != "").groupby(frame[column]).any().sum()) for column in frame},
    }


def _info(
    rows: ProductRows, frame: pd.DataFrame, hidden: dict[str, Any], summary: dict[str, Any], options: ImportOptions
) -> dict[str, Any]:
    """How the catalogue was made, for `catalogue.json`; what an attribute speaks of, its name says where nobody does."""
    kinds = {"type": "type", "colour": "visual", "look": "visual"}
    named = {column: kinds.get(labels.role(column, rows.category), "textual") for column in frame}
    return {
        "source": "files",
        "attribute_kinds": named | dict(options.attribute_kinds),
        "category_column": rows.category,
        "hidden": hidden,
        "generated": summary,
        "options": dataclasses.asdict(options) | {"columns": rows.mapping},
    }


def _present(digests: list[bytes | None]) -> np.ndarray:
    return np.array([digest is not None for digest in digests], dtype=bool)


def default_options(folder: Path, files: settings.Files | None = None) -> ImportOptions:
    """What a raw folder is imported with when nobody gave options: `catalogue.yaml`, the settings, and one decision.

    Where no interactions come with the products and more than half of the titles name the value of a colour column, the
    image tells little that the title does not, so the terse-sellers experiment is made: `files.hide_share` of the
    titles lose their colour and pattern words. The catalogue's `info["notes"]` say so and every report prints them.
    With `hide_share: 0` in `catalogue.yaml` titles stay as they are.
    """
    files = files or settings.Files()
    options, said = read_options(folder), set(stated(folder))
    changes = {key: getattr(files, key) for key in {"limit", "queries", "clicks", "seed", "careless"} - said}
    if (
        files.hide_share
        and not said & {"hide_share", "hide_columns", "hide_words"}
        and not find(folder, "interactions")
    ):
        sample = read_products(Path(folder), options, Quarantine(), first=20_000)
        keep = np.zeros(len(sample.titles), dtype=np.int64)
        colours = [column for column in sample.labels if labels.role(column, sample.category) == "colour"]
        if any(terse.names(sample.titles, sample.labels[column], keep).mean() > 0.5 for column in colours):
            words = terse.PATTERN_WORDS + terse.COLOUR_WORDS
            changes |= {"hide_share": files.hide_share, "hide_columns": tuple(colours), "hide_words": words}
    return dataclasses.replace(options, **changes)
