"""The products table of a folder, row by row: columns found, rows of one product joined, photographs named, attributes told apart."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from makelib.data.sources.files import labels, terse
from makelib.data.sources.files.cells import listed, names_in
from makelib.data.sources.files.options import IMAGE_COLUMN, MOST_VALUES, PRODUCT_COLUMNS, ImportOptions
from makelib.data.sources.files.paths import Places, fold
from makelib.data.sources.files.readers import Table, plain
from makelib.data.sources.files.rows import IMAGE_NAME, SUFFIXES, Quarantine, find, masked
from makelib.data.sources.files.systems import Item, Reading, leaf, recognise, text_of
from makelib.runtime import UserError, progress


@dataclass
class ProductRows:
    """The good rows of the products table, a list per column; `numbers` are their row numbers in the file.

    `images`: the image cells of each product, in order. `merged`: rows that told more of a product that another row names.
    `notices`: what was guessed, a line each. `words`: of which column how many words of the titles came.
    """

    path: Path
    mapping: dict[str, str]
    read: int = 0
    merged: int = 0
    numbers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    system: str = ""

    @property
    def category(self) -> str | None:
        return self.mapping.get("category")

    def take(self, rows: np.ndarray) -> ProductRows:
        """Those `rows` (bool) only."""
        lists = {
            key: list(itertools.compress(getattr(self, key), rows)) for key in ("numbers", "ids", "titles", "images")
        }
        picked = {column: list(itertools.compress(values, rows)) for column, values in self.labels.items()}
        return dataclasses.replace(self, labels=picked, **lists)


def read_products(
    folder: Path, options: ImportOptions, quarantine: Quarantine, first: int | None = None
) -> ProductRows:
    """The products of a folder, of the `first` rows only if given. Raises `UserError` where there are none."""
    path = find(folder, "products")
    if path is None:
        raise UserError(f"{folder} holds no products.csv (or .{', .'.join(SUFFIXES[1:])}).")
    table = Table(path, options.encoding, options.mend_text)
    reading = _reading(table, options)
    rows = ProductRows(path, reading.mapping, system=reading.system.name if reading.system else "")
    collected = _Collector(rows, reading, _label_columns(table, reading, options), options)
    for row in itertools.islice(progress(table.rows(), description="products", unit="row"), first):
        rows.read += 1
        if row.values is None:
            quarantine.add("products", row.number, row.reason, row.detail)
        else:
            collected.add(row.number, row.values, quarantine)
    collected.close(quarantine)
    if not rows.ids:
        raise UserError(f"{path}: no product could be kept. {quarantine if rows.read else 'It has no rows.'}")
    if reading.system:
        rows.notices.append(f"{path.name} is an export of {rows.system}, by its columns.")
    rows.notices += table.notices
    return rows


def _reading(table: Table, options: ImportOptions) -> Reading:
    """Which column is what: as the options state, else as the system's export has it, else by usual names."""
    named = [column for column in table.columns if column]
    if embedded := [c for c in table.embedded if c in options.columns.values() or IMAGE_COLUMN.fullmatch(plain(c))]:
        raise UserError(
            f"{table.path}: the column {embedded[0]!r} holds the images themselves; write them as files under images/ "
            "and their paths into the column. (A catalogue that makelib wrote needs no import.)"
        )
    system = recognise(named)
    stated = [
        options.columns[column] for column in ("title", "image", "images", "category") if column in options.columns
    ]
    labelled = [] if system else sorted({*options.hide_columns, *options.query_columns} - {"brand"})
    wanted = (*stated, *options.label_columns, *options.text_columns, *labelled)
    if missing := [column for column in wanted if column not in named]:
        raise UserError(f"{table.path} has no column {missing[0]!r}; it has the columns {', '.join(named)}.")
    guesses = {**PRODUCT_COLUMNS, **(system.columns if system else {})}
    if system:
        guesses = {column: guesses.get(column, ()) for column in guesses if column not in ("image", "images")} | {
            "image": (), "images": ()
        }  # fmt: skip
    mapping = table.mapping("products", guesses, ("product_id", "title"), options.columns)
    images = [mapping[column] for column in ("image", "images") if column in mapping]
    if system and not images:
        images = [c for pattern in system.images for c in named if re.fullmatch(pattern, plain(c))]
    elif not system and "image" not in {column.rpartition(".")[2] for column in options.columns}:
        images += [c for c in named if IMAGE_COLUMN.fullmatch(plain(c)) and c not in mapping.values()]
    return Reading(system, mapping, images, named)


def _label_columns(table: Table, reading: Reading, options: ImportOptions) -> tuple[list[str], set[str]]:
    """Columns that may become attributes, and which of them must."""
    wanted = {*options.label_columns}
    asked = {*options.hide_columns, *options.query_columns}
    wanted |= {column for column in asked if column in table.columns}
    if reading.mapping.get("category"):
        wanted.add(reading.mapping["category"])
    taken = {reading.mapping.get(column) for column in ("product_id", "title")} | {*reading.images}
    if options.label_columns:
        candidates = wanted
    elif reading.system:  # its many technical columns are nobody's wish
        candidates = {c for c in table.columns if labels.role(c, None) != "other"} | {reading.mapping.get("brand")}
        candidates = {c for c in candidates if c and not re.search(r"option\d|attribute ?\d|description|seo", c, re.I)}
        candidates = (candidates | wanted) - taken
    else:
        candidates = set(table.columns) - taken - {""}
    return [column for column in table.columns if column in candidates], wanted


class _Collector:
    """Takes good rows one by one and joins those of one product."""

    def __init__(
        self, rows: ProductRows, reading: Reading, columns: tuple[list[str], set[str]], options: ImportOptions
    ) -> None:
        self.rows, self.reading, self.options = rows, reading, options
        (self.columns, self.wanted), self.texts = columns, options.text_columns
        self.distinct: dict[str, dict[str, str]] = {column: {} for column in self.columns}
        self.rows.labels = {column: [] for column in self.columns}
        self.stated: list[dict[str, str]] = []
        self.at: dict[str, int] = {}  # id, or another name of a product -> its place
        self.places: list[list[float]] = []
        self.waiting: list[tuple[int, Item, dict[str, str]]] = []  # variants whose parent may stand further below
        self.parents: dict[str, str] = {}
        self.marked_up = self.masked = 0
        self.image_like: Counter[str] = Counter()

    def add(self, number: int, values: dict[str, str], quarantine: Quarantine) -> None:
        item = self.reading.item(values)
        self._look_for_images(number, values)
        self.parents |= dict.fromkeys(item.children, item.key)
        if item.parent:
            self.waiting.append((number, item, values))
        elif not item.key.strip():
            quarantine.add("products", number, "has no id")
        else:
            self._put(number, item, values, quarantine)

    def _put(self, number: int, item: Item, values: dict[str, str], quarantine: Quarantine) -> None:
        at = self.at.get(item.key)
        title = self._masked(self._title(item, values))
        if at is None:
            self.at[item.key] = len(self.rows.ids)
            if item.alias:
                self.at.setdefault(item.alias, len(self.rows.ids))
            self.rows.numbers.append(number)
            self.rows.ids.append(item.key)
            self.rows.titles.append(title)
            self.rows.images.append([cell for cell in item.images if cell.strip()])
            self.places.append([item.place] * len(self.rows.images[-1]))
            self.stated.append(item.stated)
            self._label(values, item)
        elif self._continues(at, item, title):
            self._join(at, item, values, title)
        else:
            quarantine.add(
                "products", number, "repeats an id", f"row {self.rows.numbers[at]} is kept", product_id=item.key
            )

    def _continues(self, at: int, item: Item, title: str) -> bool:
        """Whether a further row with the same id tells more of the product: always in a system's export, else if it has
        another photograph and no other title."""
        known = self.rows.images[at]
        new = any(cell.strip() and cell not in known for cell in item.images)
        return self.reading.system is not None or (new and title.strip() in ("", self.rows.titles[at].strip()))

    def _join(self, at: int, item: Item, values: dict[str, str], title: str) -> None:
        self.rows.merged += 1
        self.rows.titles[at] = self.rows.titles[at] or title
        new = [cell for cell in item.images if cell.strip() and cell not in self.rows.images[at]]
        self.rows.images[at] += new
        self.places[at] += [item.place] * len(new)
        for name, value in item.stated.items():  # a product in several colours states none
            self.stated[at][name] = value if self.stated[at].get(name, value) == value else ""
        for column, of_column in self.rows.labels.items():
            of_column[at] = of_column[at] or self._value(column, values, item)

    def _masked(self, title: str) -> str:
        shown = masked(title) if self.options.mask_titles else title
        self.masked += shown != title
        return shown

    def _title(self, item: Item, values: dict[str, str]) -> str:
        title = text_of(item.title)
        self.marked_up += title != item.title
        if not title.strip() and "text" in self.reading.mapping:  # test collections of texts without titles
            title = " ".join(values[self.reading.mapping["text"]].split()[: self.options.text_words])
        if not self.texts:
            return title
        words, room = [title] if title else [], self.options.text_words
        self.rows.words["title"] += len(title.split())
        for column in self.texts:
            more = text_of(values[column]).split()[:room]
            room -= len(more)
            self.rows.words[column] += len(more)
            words += more
        return " ".join(words)

    def _value(self, column: str, values: dict[str, str], item: Item) -> str:
        value = values[column]
        if column == self.reading.mapping.get("category"):
            if value[:1] == "[" and (steps := listed(value)):  # a path, or several categories, as JSON
                value = steps[-1]
            elif self.reading.system or " > " in value:
                value = item.category if self.reading.system else leaf(value)
        known = self.distinct[column]
        if value not in known:
            known[value] = masked(value)
        return known[value]

    def _label(self, values: dict[str, str], item: Item) -> None:
        for column in list(self.rows.labels):
            self.rows.labels[column].append(self._value(column, values, item))
            if len(self.distinct[column]) > 5 * MOST_VALUES and column not in self.wanted:
                del self.rows.labels[column]  # text, prices, addresses: no labels, so no need to hold them

    def _look_for_images(self, number: int, values: dict[str, str]) -> None:
        """Columns that hold names of images and are read by nobody, by the first thousand rows."""
        if number <= 1000:
            for column, value in values.items():
                if column not in self.reading.images and len(value) < 2000 and IMAGE_NAME.search(value):
                    self.image_like[column] += 1

    def close(self, quarantine: Quarantine) -> None:
        """Variants go to their parents; what became of columns is settled."""
        rows = self.rows
        for number, item, values in self.waiting:
            at = self.at.get(item.parent)
            if at is not None:
                self._join(at, item, values, "")
            elif item.key.strip():
                self._put(number, item, values, quarantine)
            else:
                quarantine.add("products", number, "has no id")
        if self.parents:
            self._to_parents()
        for at, places in enumerate(self.places):
            if any(places):
                order = sorted(range(len(places)), key=lambda one: (places[one] or 1e9, one))
                rows.images[at] = [rows.images[at][one] for one in order]
        for column in set(rows.labels) - self.wanted:
            found = [value for value in set(rows.labels[column]) if value]
            if not 2 <= len(found) <= min(MOST_VALUES, max(2, len(rows.ids) // 3)) or max(map(len, found)) > 60:
                del rows.labels[column]
        self._keep_stated()
        if self.marked_up:
            rows.notices.append(
                f"{self.marked_up:,} titles were HTML or held its entities; they were turned into text."
            )
        if self.masked:
            rows.notices.append(
                f"{self.masked:,} titles held what looks like personal data; it was replaced by [personal]. Where these are article "
                "numbers: `mask_titles: false` in catalogue.yaml."
            )
        if brand := self.reading.mapping.get("brand"):
            rows.labels = {("brand" if name == brand else name): of for name, of in rows.labels.items()}
        for column, count in self.image_like.items():
            if count > 3:
                rows.notices.append(
                    f"The column {column!r} holds names of images and was not read; `--map products.image={column}` reads it."
                )

    def _to_parents(self) -> None:
        """Magento: the variants that a product lists are rows of their own; they become part of it."""
        rows, gone = self.rows, np.ones(len(self.rows.ids), dtype=bool)
        for child, parent in self.parents.items():
            at, above = self.at.get(child), self.at.get(parent)
            if at is not None and above is not None and at != above:
                gone[at] = False
                rows.merged += 1
                new = [cell for cell in rows.images[at] if cell not in rows.images[above]]
                rows.images[above] += new
                self.places[above] += [0.0] * len(new)
                for name, value in self.stated[at].items():
                    self.stated[above][name] = value if self.stated[above].get(name, value) == value else ""
        kept = rows.take(gone)
        self.places = list(itertools.compress(self.places, gone))
        self.stated = list(itertools.compress(self.stated, gone))
        rows.numbers, rows.ids, rows.titles = kept.numbers, kept.ids, kept.titles
        rows.images, rows.labels = kept.images, kept.labels

    def _keep_stated(self) -> None:
        """Attributes that rows state by name and value become columns, as those with few values do."""
        for name in dict.fromkeys(name for stated in self.stated for name in stated):
            values = [masked(stated.get(name, "")) for stated in self.stated]
            if name not in self.rows.labels and 2 <= len(set(values) - {""}) <= MOST_VALUES:
                self.rows.labels[name] = values


def image_cells(places: Places, rows: ProductRows, most: int) -> tuple[list[str], np.ndarray, dict[str, int]]:
    """What each photograph is called in the table: the cells, the product row of each, int64 (cells,), and how many were
    named in all and how many were beyond `most` of their product. A product without any has one empty cell.

    What names a folder stands for its files in the order of their names. Where no cell of the table names anything, a product's
    is the file (or the folder of files) under images/ that bears its id.
    """
    by_id = {} if any(map(any, rows.images)) else places.by_id()
    cells, counts, named, too_many = [], [], 0, 0
    for key, images in zip(rows.ids, rows.images, strict=True):
        own = [file for cell in images for name in names_in(cell, places.exists) for file in places.listing(name)]
        if not own and (bears := by_id.get(key) or by_id.get(fold(key))):
            own = places.listing(bears)
        own = list(dict.fromkeys(own))
        named += len(own)
        if len(own) > most:
            too_many += len(own) - most
            own = [own[place] for place in np.linspace(0, len(own) - 1, most).round().astype(int)]
        cells += own or [""]
        counts.append(len(own) or 1)
    return cells, np.repeat(np.arange(len(counts)), counts), {"named": named, "beyond": too_many}


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
