"""The three tables that every other module speaks: products, queries, interactions. Sources write them, models read them.

A catalogue is a folder: `products.parquet` (with the encoded images), `queries.parquet`, `interactions.parquet`,
`catalogue.json` (name, fingerprint, how it was made) and, where the source knows it, `truth.parquet`.
Inside makelib a product or query is its *row* (int64 position in its table); ids are for people and files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import scipy.sparse as sp
from PIL import Image
from pyarrow.dataset import ParquetFragmentScanOptions

from makelib.data.pictures import fit, opened, quiet, rgb
from makelib.runtime import UserError, atomic_file, progress

SPLITS = ("train", "validation", "test")
KINDS = ("click", "judgment")
PRODUCTS = datasets.Features(
    {
        "product_id": datasets.Value("string"),
        "title": datasets.Value("string"),
        "image": datasets.Image(),
        "images": datasets.List(datasets.Image()),
        "category": datasets.Value("string"),
        "attributes": datasets.Json(),
        "group": datasets.Value("string"),
    }
)
QUERIES = datasets.Features(
    {
        "query_id": datasets.Value("string"),
        "query": datasets.Value("string"),
        "split": datasets.Value("string"),
        "constraints": datasets.Json(),
        "intent": datasets.Value("string"),
    }
)
INTERACTIONS = datasets.Features(
    {
        "query_id": datasets.Value("string"),
        "product_id": datasets.Value("string"),
        "label": datasets.Value("float32"),
        "kind": datasets.Value("string"),
    }
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
        attributes: (N rows) what is stated about each product, a categorical column per attribute, NaN where nothing is.
        queries: (Q rows) `query_id, query, split, constraints, intent`; `intent` is what splits keep together.
        interactions: `query, product` (rows), `label`, `kind`.
        truth: what only a generator knows about each product (reliability of image and title, …), or None.
    """

    folder: Path
    name: str
    fingerprint: str
    info: dict[str, Any]
    products: pd.DataFrame
    attributes: pd.DataFrame
    queries: pd.DataFrame
    interactions: pd.DataFrame
    truth: pd.DataFrame | None
    _pixels: datasets.Dataset = field(repr=False)

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
        cache = str(folder / ".cache" / "datasets")
        loaded = {}
        for name, features in (("products", PRODUCTS), ("queries", QUERIES), ("interactions", INTERACTIONS)):
            loaded[name] = _read(tables[name], cache)
            missing = (
                set(features) - set(loaded[name].column_names) - {"images"}
            )  # older catalogues have no further ones
            if missing:
                raise UserError(f"{tables[name]} lacks the column(s) {', '.join(sorted(missing))}.")
        products = loaded["products"].select_columns(["product_id", "title", "category", "group"]).to_pandas()
        queries = loaded["queries"].to_pandas()
        ids = loaded["interactions"].to_pandas()
        interactions = pd.DataFrame(
            {
                "query": rows_of(ids["query_id"], queries["query_id"], tables["interactions"]),
                "product": rows_of(ids["product_id"], products["product_id"], tables["interactions"]),
                "label": ids["label"].astype(np.float32),
                "kind": ids["kind"],
            }
        )
        truth = pd.read_parquet(folder / "truth.parquet") if (folder / "truth.parquet").is_file() else None
        return cls(
            folder, info["name"], info["fingerprint"], info, products, _attributes(loaded["products"]), queries,
            interactions, truth, loaded["products"],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.products)

    # -- pixels ---------------------------------------------------------------------------------------------------

    def image(self, row: int, place: int = 0, size: int | None = None) -> Image.Image | None:
        """The product's photograph as RGB, or None; `place` 1 and more are its further ones.

        At its own size, or, where only `size` pixels a side are needed, perhaps smaller; see `opened`.
        """
        record = self._encoded[int(row)]
        cell = record["image"][0].as_py() if place == 0 else record["images"][0][place - 1].as_py()
        return None if cell is None else rgb(opened(cell["bytes"], size))

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
        encoded = (cell and cell["bytes"] for cell in _cells_of(self._encoded, "image"))
        return self._decoded("images", encoded, len(self), size)

    def further_images(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Photographs after the first: uint8 pixels (M, size, size, 3), memory-mapped, and the product row of each,
        int64 (M,), ascending. M is 0 for a catalogue in which each product has one."""
        if not len(self._further):
            return np.zeros((0, size, size, 3), np.uint8), self._further
        encoded = (cell["bytes"] for further in _cells_of(self._encoded, "images") for cell in further or ())
        return self._decoded("further-images", encoded, len(self._further), size)[0], self._further

    @functools.cached_property
    def _encoded(self) -> datasets.Dataset:
        """The photographs as files, undecoded."""
        return self._pixels.with_format("arrow")

    @functools.cached_property
    def _further(self) -> np.ndarray:
        """Product row of each further photograph, int64 (M,)."""
        if "images" not in self._pixels.column_names:
            return np.zeros(0, np.int64)
        counts = pc.fill_null(pc.list_value_length(self._pixels.data.column("images")), 0).to_numpy()
        return np.repeat(np.arange(len(self), dtype=np.int64), counts)

    def _decoded(
        self, name: str, encoded: Iterable[bytes | None], count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of `count` encoded photographs and where there are some, decoded once into the cache folder."""
        pixels_file = self.folder / ".cache" / f"{name}-{self.fingerprint}-{size}.npy"
        present_file = pixels_file.with_name(f"present-{name}-{self.fingerprint}-{size}.npy")
        if not (pixels_file.is_file() and present_file.is_file()):
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

    # -- queries and judgments ------------------------------------------------------------------------------------

    def query_rows(self, split: str) -> np.ndarray:
        """Rows of the queries of a split, int64 (n,)."""
        return np.flatnonzero(self.queries["split"].to_numpy() == split)

    def clicks(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Clicked pairs of a split: query rows and product rows, int64 (n,) each, one entry per click."""
        table = self.interactions
        wanted = (table["kind"] == "click") & (table["label"] > 0)
        wanted &= (self.queries["split"].to_numpy() == split)[table["query"].to_numpy()]
        return table.loc[wanted, "query"].to_numpy(np.int64), table.loc[wanted, "product"].to_numpy(np.int64)

    def relevance(self, query_rows: np.ndarray, product_rows: np.ndarray | None = None) -> np.ndarray:
        """Graded relevance, float32 (len(query_rows), N or len(product_rows)), 0 to 1; query rows may repeat.

        With constraints: the share of the query's constraints that the product's attributes meet. Without: the labels
        of kind `judgment`; without those either, the clicks. 1 means fully relevant.
        """
        query_rows, back = np.unique(np.asarray(query_rows, dtype=np.int64), return_inverse=True)
        product_rows = np.arange(len(self)) if product_rows is None else np.asarray(product_rows, dtype=np.int64)
        relevance = np.zeros((len(query_rows), len(product_rows)), dtype=np.float32)
        wanted = [value or {} for value in self.queries["constraints"].iloc[query_rows]]
        counts = np.array([len(constraints) for constraints in wanted])
        for key in sorted({key for constraints in wanted for key in constraints}):
            if key in self.attributes:
                have = self.attributes[key].cat
                asked = have.categories.get_indexer([constraints.get(key) for constraints in wanted])
                asked[asked < 0] = -2  # meets nothing; -1 is the code of products that state nothing
                relevance += asked[:, None] == have.codes.to_numpy()[product_rows][None, :]
        relevance /= np.maximum(counts, 1)[:, None]
        if (counts == 0).any():
            relevance[counts == 0] = self._judged[query_rows[counts == 0]][:, product_rows].toarray()
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
    def present(self) -> np.ndarray:
        """Whether each product has a title, an image: bool (N, 2)."""
        has_title = self.products["title"].fillna("").str.strip() != ""
        return np.stack([has_title, self._pixels.data.column("image").is_valid().to_numpy()], axis=1)

    @functools.cached_property
    def seen(self) -> np.ndarray:
        """Whether a training click touches the product or a duplicate listing of it, bool (N,); the rest is cold."""
        _, clicked = self.clicks("train")
        return np.isin(self.groups, self.groups[clicked])

    def __hash__(self) -> int:
        return hash((str(self.folder), self.fingerprint))


def _attributes(products: datasets.Dataset) -> pd.DataFrame:
    """The column `attributes`, a JSON object or nothing per row, as one categorical column per key."""
    values: dict[str, dict[Any, int]] = {}
    codes: dict[str, np.ndarray] = {}
    for row, cell in enumerate(_cells_of(products.with_format("arrow"), "attributes")):
        for key, value in (json.loads(cell or "null") or {}).items():
            if value is not None:
                known = values.setdefault(key, {})
                if not known:
                    codes[key] = np.full(len(products), -1)
                codes[key][row] = known.setdefault(value, len(known))
    columns = {key: pd.Categorical.from_codes(codes[key], pd.Index(values[key], dtype=object)) for key in values}
    return pd.DataFrame(columns, index=range(len(products)))


def _cells_of(table: datasets.Dataset, column: str) -> Iterator[Any]:
    """The cells of a column, few rows in memory at a time: photographs may be of any size."""
    alone = table.select_columns(column)
    for start in range(0, len(alone), 100):
        yield from alone[start : start + 100][column].to_pylist()


def cells_of_column(column: pd.Series) -> list:
    """The cells of a column, None where pandas holds a NaN of its own (a string column would else read "nan")."""
    return column.astype(object).where(column.notna(), None).tolist()


def rows_of(ids: pd.Series, table_ids: pd.Series, where: Path) -> np.ndarray:
    rows = pd.Index(table_ids).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        missing = ids.to_numpy()[rows < 0][0]
        raise UserError(
            f"{where}: {table_ids.name or 'product_id'} {missing!r} is named but stands in no row of its table "
            f"({int((rows < 0).sum())} such rows)."
        )
    return rows.astype(np.int64)


def _read(path: Path, cache: str) -> datasets.Dataset:
    with quiet():
        try:
            # read ahead, Arrow would hold all photographs of the file at once
            scan = ParquetFragmentScanOptions(pre_buffer=False)
            return datasets.Dataset.from_parquet(str(path), cache_dir=cache, fragment_scan_options=scan)
        except Exception as error:
            raise UserError(f"Cannot read {path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
