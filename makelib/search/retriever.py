"""A trained model, its catalogue and its index in one hand: type a query, get products and see what spoke for each."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from makelib import settings as settings_module
from makelib.data.catalog import Catalog
from makelib.model.frozen import pictures
from makelib.model.make import MakeModel, ProductVectors
from makelib.runtime import UserError, atomic_file
from makelib.search.index import ProductIndex


@dataclass(frozen=True)
class Retriever:
    """Search by text.

    Attributes:
        name: what figures and the explorer call it, such as `adaptive, seed 0`.
        model, catalog, index: they belong together; `open` checks that.
        vectors: embedding, modal weights and score parts of every product, by row.
    """

    name: str
    model: MakeModel
    catalog: Catalog
    index: ProductIndex
    vectors: ProductVectors

    @classmethod
    def build(
        cls,
        name: str,
        model: MakeModel,
        catalog: Catalog,
        settings: settings_module.Index | None = None,
        quiet: bool = True,
    ) -> Retriever:
        """Encode the whole catalogue and index it."""
        titles = catalog.products["title"].fillna("").tolist()
        vectors = model.encode_products(titles, *pictures(catalog, model), catalog.category_numbers, quiet=quiet)
        index = ProductIndex.build(
            vectors.embedding,
            catalog.products["product_id"],
            settings,
            model_fingerprint=model.fingerprint(),
            catalogue_fingerprint=catalog.fingerprint,
        )
        return cls(name, model, catalog, index, vectors)

    def indexed(self, settings: settings_module.Index) -> Retriever:
        """The same products in another index; nothing is encoded again."""
        index = ProductIndex.build(
            self.vectors.embedding,
            self.catalog.products["product_id"],
            settings,
            model_fingerprint=self.model.fingerprint(),
            catalogue_fingerprint=self.catalog.fingerprint,
        )
        return replace(self, index=index)

    def save(self, folder: Path) -> None:
        """Model, index and product vectors into `folder`; the catalogue is named, not copied."""
        folder = Path(folder)
        self.model.save_pretrained(folder / "model")
        self.index.save(folder / "index")
        with atomic_file(folder / "products.npz") as draft:
            np.savez(draft, **vars(self.vectors))
        note = {"name": self.name, "catalogue": str(self.catalog.folder.resolve())}
        with atomic_file(folder / "retriever.json") as draft:
            draft.write_text(json.dumps(note), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path | str, catalog: Catalog | None = None) -> Retriever:
        """Open what `save` wrote. Raises `UserError` when something is missing or belongs to another model or catalogue."""
        folder = Path(folder)
        if not (folder / "retriever.json").is_file():
            raise UserError(
                f"{folder} holds no trained run (retriever.json is missing). Train one with `python -m makelib train`."
            )
        note = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
        catalog = catalog or Catalog.open(note["catalogue"])
        model = MakeModel.from_pretrained(folder / "model")
        index = ProductIndex.load(
            folder / "index", model_fingerprint=model.fingerprint(), catalogue_fingerprint=catalog.fingerprint
        )  # fmt: skip
        with np.load(folder / "products.npz", allow_pickle=False) as arrays:
            vectors = ProductVectors(**arrays)
        return cls(note["name"], model, catalog, index, vectors)

    @functools.lru_cache(maxsize=1024)  # noqa: B019  retrievers live as long as the process
    def embed(self, query: str) -> np.ndarray:
        """Query embedding, float32 (d,)."""
        return self.model.encode_queries([query])[0]

    def search(self, query: str, k: int = 10) -> pd.DataFrame:
        """The k best products for a query; see `hits`."""
        rows, scores = self.index.search(self.embed(query)[None], k)
        return self.hits(self.embed(query), rows[0], scores[0])

    def hits(self, query: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
        """Ranked products as a table: `rank, row, product_id, title, category, score, score_title, score_image,
        weight_title, weight_image`; the two partial scores add up to the score (NaN where a fusion does not split)."""
        table = self.catalog.products.iloc[rows][["product_id", "title", "category"]].reset_index(drop=True)
        split = self.vectors.parts[rows] @ query  # (k, 2)
        table.insert(0, "rank", np.arange(1, len(rows) + 1))
        table.insert(1, "row", rows)
        return table.assign(
            score=scores,
            score_title=split[:, 0],
            score_image=split[:, 1],
            weight_title=self.vectors.weights[rows, 0],
            weight_image=self.vectors.weights[rows, 1],
        )

    def __hash__(self) -> int:
        return id(self)
