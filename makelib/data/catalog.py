"""The three tables that every other module speaks: products, queries, interactions. Sources write them, models read them.

A catalogue is a folder: `products.parquet` (with the encoded images), `queries.parquet`, `interactions.parquet`,
`catalogue.json` (name, fingerprint, how it was made) and, where the source knows it, `truth.parquet`.
Inside makelib a product or query is its *row* (int64 position in its table); ids are for people and files.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from PIL import Image

from makelib.data.pictures import fit, opened, rgb
from makelib.runtime import UserError, alone, atomic_file, atomic_folder, code_version, fingerprint, progress

SPLITS = ("train", "validation", "test")
KINDS = ("click", "judgment")
#: a photograph as its file is, undecoded (the layout that `datasets` knows as an image)
PHOTOGRAPH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
#: columns and types of the three tables; `attributes` and `constraints` are JSON objects or null
PRODUCTS = pa.schema(
    [
        ("product_id", pa.string()),
        ("title", pa.string()),
        ("image", PHOTOGRAPH),
        ("images", pa.list_(PHOTOGRAPH)),
        ("category", pa.string()),
        ("attributes", pa.string()),
        ("group", pa.string()),
    ]
)
QUERIES = pa.schema([(column, pa.string()) for column in ("query_id", "query", "split", "constraints", "intent")])
INTERACTIONS = pa.schema(
    [("query_id", pa.string()), ("product_id", pa.string()), ("label", pa.float32()), ("kind", pa.string())]
)


@dataclass(frozen=True, eq=False)
class Catalog:
    """A catalogue opened for reading.

    Attributes:
        folder: where it lies.
        name: what reports call it.
        fingerprint: identifies the content of the three tables.
        info: how it was made; `generated_queries: bool` says whether people or a program asked the queries.
        products: (N rows) `product_id, title, category, group`; rows of one `group` are listings of one product
            (duplicates). Pixels are read by `image` and `images`, those of further photographs or video frames (the
            column `images`; most products have none) by `further_images`.
        queries: (Q rows) `query_id, query, split, constraints, intent`; `intent` is what splits keep together.
        interactions: `query, product` (rows), `label`, `kind`.
        truth: what only a generator knows about each product (reliability of image and title, …), or None.
        stated: `attributes`, or the file of products from which they are read when they are first asked for: of a million products
            that takes longer than all else together, and searching needs none.
    """

    folder: Path
    name: str
    fingerprint: str
    info: dict[str, Any]
    products: pd.DataFrame
    stated: pd.DataFrame | pa.MemoryMappedFile = field(repr=False)
    queries: pd.DataFrame
    interactions: pd.DataFrame
    truth: pd.DataFrame | None
    _pixels: Photographs = field(repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> Catalog:
        """Open a catalogue folder. Raises `UserError` when a table or a column is missing or ids do not fit together."""
        folder = Path(folder)
        tables = {name: folder / f"{name}.parquet" for name in ("products", "queries", "interactions")}
        for path in (*tables.values(), folder / "catalogue.json"):
            if not path.is_file():
                raise UserError(
                    f"{folder} is not a catalogue: {path.name} is missing. "
                    "Make one with `python -m makelib data bazaar` or `python -m makelib data import <folder>`."
                )
        info = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        held, files = {}, {}
        for name, path in tables.items():
            held[name], files[name] = _opened(path)
        for name, schema in (("products", PRODUCTS), ("queries", QUERIES), ("interactions", INTERACTIONS)):
            missing = set(schema.names) - set(files[name].schema_arrow.names) - {"images"}  # older ones have no further
            if missing:
                raise UserError(f"{tables[name]} lacks the column(s) {', '.join(sorted(missing))}.")
        products = _frame(files["products"], ["product_id", "title", "category", "group"])
        queries = _frame(files["queries"], QUERIES.names)
        queries["constraints"] = [json.loads(cell or "null") for cell in cells_of_column(queries["constraints"])]
        ids = _frame(files["interactions"], INTERACTIONS.names)
        interactions = pd.DataFrame(
            {
                "query": rows_of(ids["query_id"], queries["query_id"], tables["interactions"]),
                "product": rows_of(ids["product_id"], products["product_id"], tables["interactions"]),
                "label": ids["label"].astype(np.float32),
                "kind": ids["kind"],
            }
        )
        known = folder / "truth.parquet"
        truth = _opened(known)[1].read().to_pandas() if known.is_file() else None
        return cls(
            folder, info["name"], info["fingerprint"], info, products, held["products"], queries, interactions, truth,
            Photographs(held["products"], files["products"].metadata),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.products)

    @functools.cached_property
    def attributes(self) -> pd.DataFrame:
        """What is stated about each product, (N rows): a categorical column per attribute, NaN where nothing is."""
        return self.stated if isinstance(self.stated, pd.DataFrame) else _attributes(pq.ParquetFile(self.stated))

    def kept(
        self, name: str, make: Callable[[], Mapping[str, np.ndarray]], depends_on: Any, code: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` returns, memory-mapped: made once, kept in the catalogue's cache folder and shared by all arms
        and processes. `depends_on`, JSON-able, is what decides them beside the catalogue and the modules `code` (as
        `makelib.runtime.code_version` takes them)."""
        folder = self.folder / ".cache" / f"{name}-{fingerprint(self.fingerprint, depends_on, code_version(code))}"
        if not folder.is_dir():
            with alone(folder):
                if not folder.is_dir():  # nor did another process make them meanwhile
                    with atomic_folder(folder) as draft:
                        for key, array in make().items():
                            np.save(draft / f"{key}.npy", array)
        return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}

    # -- pixels ---------------------------------------------------------------------------------------------------

    def image(self, row: int, place: int = 0, size: int | None = None) -> Image.Image | None:
        """The product's photograph as RGB, or None; `place` 1 and more are its further ones.

        At its own size, or, where only `size` pixels a side are needed, perhaps smaller; see `opened`.
        """
        own = self._pixels[int(row)]
        return None if own[place] is None else rgb(opened(own[place], size))

    def photographs(self, row: int, size: int) -> np.ndarray:
        """All photographs of one product at `size` x `size`: uint8 (k, size, size, 3), k = 0 where there is none."""
        (pixels, present), (further, owner) = self.images(size), self.further_images(size)
        own = slice(*np.searchsorted(owner, [row, row + 1]))
        return np.concatenate([pixels[row : row + int(present[row])], further[own]])

    def images(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The first photograph of every product at `size` x `size`: uint8 pixels (N, size, size, 3), memory-mapped, and
        bool (N,) where there is one.

        Each is fitted into the square on white. Computed once per size and kept in the catalogue's cache folder.
        """
        encoded = (own[0] for own in self._pixels)
        return self._decoded("images", encoded, len(self), size)

    def further_images(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Photographs after the first: uint8 pixels (M, size, size, 3), memory-mapped, and the product row of each,
        int64 (M,), ascending. M is 0 for a catalogue in which each product has one."""
        owner = np.repeat(np.arange(len(self), dtype=np.int64), self._pixels.further)
        if not len(owner):
            return np.zeros((0, size, size, 3), np.uint8), owner
        encoded = (photo for own in self._pixels for photo in own[1:])
        return self._decoded("further-images", encoded, len(owner), size)[0], owner

    def _decoded(
        self, name: str, encoded: Iterable[bytes | None], count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of `count` encoded photographs and where there are some, decoded once into the cache folder."""
        pixels_file = self.folder / ".cache" / f"{name}-{self.fingerprint}-{size}.npy"
        present_file = pixels_file.with_name(f"present-{name}-{self.fingerprint}-{size}.npy")
        with contextlib.nullcontext() if present_file.is_file() else alone(pixels_file):
            if not present_file.is_file():  # nor did another process make it meanwhile
                present = np.zeros(count, dtype=bool)
                with atomic_file(pixels_file) as draft:
                    pixels = np.lib.format.open_memmap(draft, "w+", np.uint8, (count, size, size, 3))
                    for place, content in enumerate(progress(encoded, description="images", total=count, unit="img")):
                        if content is not None:
                            pixels[place] = fit(opened(content, size), size)
                            present[place] = True
                    pixels.flush()
                    del pixels
                with atomic_file(present_file) as draft:
                    np.save(draft, present)
        return np.load(pixels_file, mmap_mode="r"), np.load(present_file)

    def contents(self) -> pd.Series:
        """What a model sees of each product, title, category and photographs, as a mark that changes with it, by product id."""
        told = self.products[["title", "category"]].fillna("").itertuples(index=False)
        marks = []
        for (title, category), photographs in progress(
            zip(told, self._pixels, strict=True), description="contents", total=len(self), unit="product"
        ):
            marks.append(fingerprint(title, category, *(photograph or b"" for photograph in photographs)))
        return pd.Series(marks, index=pd.Index(self.products["product_id"]))

    # -- queries and judgments ------------------------------------------------------------------------------------

    def query_rows(self, split: str) -> np.ndarray:
        """Rows of the queries of a split, int64 (n,)."""
        return np.flatnonzero(self.queries["split"].to_numpy() == split)

    def clicks(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Clicked pairs of a split: query rows and product rows, int64 (n,) each, one entry per click.

        Where training queries have judgments but no click, what was judged at least half relevant counts as clicked.
        """
        table = self.interactions
        of_split = (self.queries["split"].to_numpy() == split)[table["query"].to_numpy()]
        wanted = of_split & (table["kind"] == "click") & (table["label"] > 0)
        if split == "train" and not wanted.any():
            wanted = of_split & (table["label"] >= 0.5)
        return table.loc[wanted, "query"].to_numpy(np.int64), table.loc[wanted, "product"].to_numpy(np.int64)

    def relevance(self, query_rows: np.ndarray, product_rows: np.ndarray | None = None) -> np.ndarray:
        """Graded relevance, float32 (len(query_rows), N or len(product_rows)), 0 to 1; query rows may repeat. `product_rows` of the
        shape (len(query_rows), k), such as a page of hits, are each query's own.

        With constraints: the share of the query's constraints that the product's attributes meet. Without: the labels
        of kind `judgment`; without those either, the clicks. 1 means fully relevant.
        """
        query_rows, back = np.asarray(query_rows, dtype=np.int64), slice(None)
        product_rows = np.arange(len(self)) if product_rows is None else np.asarray(product_rows, dtype=np.int64)
        if product_rows.ndim == 1:
            query_rows, back = np.unique(query_rows, return_inverse=True)
        relevance = np.zeros((len(query_rows), product_rows.shape[-1]), dtype=np.float32)
        wanted = [value or {} for value in self.queries["constraints"].iloc[query_rows]]
        counts = np.array([len(constraints) for constraints in wanted])
        for key in sorted({key for constraints in wanted for key in constraints}):
            if key in self.attributes:
                have = self.attributes[key].cat
                asked, codes = have.categories.get_indexer([each.get(key) for each in wanted]), have.codes.to_numpy()
                own = np.flatnonzero(asked >= 0)  # the others do not ask, or for what nobody has
                stated = codes[product_rows if product_rows.ndim == 1 else product_rows[own]]
                relevance[own] += asked[own, None].astype(codes.dtype) == stated  # one byte each, not eight
        relevance /= np.maximum(counts, 1)[:, None]
        if (counts == 0).any():
            judged, own = self._judged[query_rows[counts == 0]], np.flatnonzero(counts == 0)
            relevance[own] = (
                judged[:, product_rows].toarray()
                if product_rows.ndim == 1
                else np.asarray(judged[np.arange(len(own))[:, None], product_rows[own]].todense())
            )
        return relevance[back]

    @functools.cached_property
    def _judged(self) -> sp.csr_matrix:
        kinds = ("judgment",) if (self.interactions["kind"] == "judgment").any() else ("click",)
        judged = self.interactions[self.interactions["kind"].isin(kinds)]
        judged = judged.groupby(["query", "product"], as_index=False)["label"].max()
        return sp.csr_matrix(
            (judged["label"], (judged["query"], judged["product"])), shape=(len(self.queries), len(self))
        )  # fmt: skip

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """Number of the duplicate group of each product, int64 (N,); listings of one product share it."""
        return pd.factorize(self.products["group"].fillna(self.products["product_id"]))[0].astype(np.int64)

    @functools.cached_property
    def category_numbers(self) -> np.ndarray:
        """The place of each product's category among all names in order, counted from 1; 0 without one. int64 (N,)."""
        return self.products["category"].astype("category").cat.codes.to_numpy().astype(np.int64) + 1

    @functools.cached_property
    def present(self) -> np.ndarray:
        """Whether each product has a title, an image: bool (N, 2)."""
        has_title = self.products["title"].fillna("").str.strip() != ""
        return np.stack([has_title, self._pixels.present], axis=1)

    @functools.cached_property
    def seen(self) -> np.ndarray:
        """Whether a training click touches the product or a duplicate listing of it, bool (N,); the rest is cold."""
        _, clicked = self.clicks("train")
        return np.isin(self.groups, self.groups[clicked])

    def __hash__(self) -> int:
        return hash((str(self.folder), self.fingerprint))


class Photographs:
    """The photographs of a products table as files, undecoded, read a few rows at a time: they may be of any size."""

    def __init__(self, held: pa.MemoryMappedFile, metadata: pq.FileMetaData) -> None:
        self._held, self._metadata = held, metadata
        self._starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
        self._columns = [name for name in ("image", "images") if name in metadata.schema.to_arrow_schema().names]
        self._group = functools.lru_cache(maxsize=2)(self._group)

    @property
    def present(self) -> np.ndarray:
        """Whether there is a first one, bool (N,)."""
        return self._told[0]

    @property
    def further(self) -> np.ndarray:
        """How many follow it, int64 (N,)."""
        return self._told[1]

    @functools.cached_property
    def _told(self) -> tuple[np.ndarray, np.ndarray]:
        """The paths beside the bytes tell which are there, so the bytes need not be read; searching needs neither."""
        file = self._file()
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        paths = file.read(
            columns=[leaf for leaf in leaves if leaf.split(".")[0] in self._columns and leaf.endswith(".path")]
        )
        present, further = paths["image"].is_valid().to_numpy(), np.zeros(len(paths), np.int64)
        if "images" in paths.column_names:
            further = pc.fill_null(pc.list_value_length(paths["images"]), 0).to_numpy().astype(np.int64)
        return present, further

    def __getitem__(self, row: int) -> list[bytes | None]:
        """The product's photographs, first the one that stands for it (None where there is none)."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return _bytes_of(self._group(group).slice(row - self._starts[group], 1))[0]

    def __iter__(self) -> Iterator[list[bytes | None]]:
        """`self[0]`, `self[1]`, … in turn."""
        for batch in self._file().iter_batches(batch_size=100, columns=self._columns):
            yield from _bytes_of(batch)

    def _group(self, number: int) -> pa.Table:
        return self._file().read_row_group(number, columns=self._columns)

    def _file(self) -> pq.ParquetFile:
        """Opened anew: a reader is not shared between threads."""
        return pq.ParquetFile(self._held, metadata=self._metadata)


def _bytes_of(rows: pa.Table | pa.RecordBatch) -> list[list[bytes | None]]:
    first = [cell and cell["bytes"] for cell in rows["image"].to_pylist()]
    further = rows["images"].to_pylist() if "images" in rows.schema.names else [None] * len(first)
    return [[one, *(cell["bytes"] for cell in more or ())] for one, more in zip(first, further, strict=True)]


def _attributes(products: pq.ParquetFile) -> pd.DataFrame:
    """The column `attributes`, a JSON object or nothing per row, as one categorical column per key."""
    values: dict[str, dict[Any, int]] = {}
    codes: dict[str, np.ndarray] = {}
    count = products.metadata.num_rows
    for row, cell in enumerate(products.read(columns=["attributes"])["attributes"].to_pylist()):
        for key, value in (json.loads(cell or "null") or {}).items():
            if value is not None:
                known = values.setdefault(key, {})
                if not known:
                    codes[key] = np.full(count, -1)
                codes[key][row] = known.setdefault(value, len(known))
    columns = {key: pd.Categorical.from_codes(codes[key], pd.Index(values[key], dtype=object)) for key in values}
    return pd.DataFrame(columns, index=range(count))


def cells_of_column(column: pd.Series) -> list:
    """The cells of a column, None where pandas holds a NaN of its own (a string column would else read "nan")."""
    return column.astype(object).where(column.notna(), None).tolist()


def rows_of(ids: pd.Series, table_ids: pd.Series, where: Path) -> np.ndarray:
    # Arrow's table of hashes: pandas makes Python strings of a million ids first
    rows = pc.fill_null(pc.index_in(pa.array(ids, pa.large_string()), pa.array(table_ids, pa.large_string())), -1)
    rows = rows.to_numpy(zero_copy_only=False)
    if (rows < 0).any():
        missing = ids.to_numpy()[rows < 0][0]
        raise UserError(
            f"{where}: {table_ids.name or 'product_id'} {missing!r} is named but stands in no row of its table "
            f"({int((rows < 0).sum())} such rows)."
        )
    return rows.astype(np.int64)


def _opened(path: Path) -> tuple[pa.MemoryMappedFile, pq.ParquetFile]:
    """A table's file, held, and its reader: what is read later is of this edition, whatever an import puts in its place meanwhile.

    Paths go to Arrow's own reader, which takes them letter by letter; others read [ ] * $ :: as patterns.
    """
    try:
        held = pa.memory_map(str(path))
        return held, pq.ParquetFile(held)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"Cannot read {path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _frame(file: pq.ParquetFile, columns: list[str]) -> pd.DataFrame:
    table = file.read(columns=columns)
    return pd.DataFrame({name: table[name].to_pandas() for name in columns})
