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
from makelib.model.batches import SHARD, encoded
from makelib.model.make import MakeModel, ProductVectors
from makelib.ranks import decided, place
from makelib.runtime import UserError, atomic_file, fingerprint
from makelib.search.index import ProductIndex

#: what is kept of each product, fields of `ProductVectors` and their type; its parts, twice as large, are made again when it is shown
KEPT = {"embedding": np.float16, "weights": np.float32}


@dataclass(frozen=True, eq=False)
class Retriever:
    """Search by text.

    Attributes:
        name: what figures and the explorer call it, such as `adaptive, seed 0`.
        model, catalog, index: they belong together; `open` checks that.
        vectors: embedding (float16) and modal weights of every product, by row; of a retriever that was opened they lie on
            disk, memory-mapped.
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
        vectors: ProductVectors | None = None,
    ) -> Retriever:
        """Index the whole catalogue, encoded before or now."""
        vectors = vectors or encode_catalogue(model, catalog)
        return cls(name, model, catalog, None, vectors).indexed(settings)

    def indexed(self, settings: settings_module.Index | None) -> Retriever:
        """The same products in another index; nothing is encoded again."""
        index = ProductIndex.build(
            self.vectors.embedding,
            self.catalog.products["product_id"],
            settings,
            model_fingerprint=self.model.fingerprint(),
            catalogue_fingerprint=self.catalog.fingerprint,
        )
        return replace(self, index=index)

    def refreshed(self, catalog: Catalog) -> Retriever:
        """The same model over a newer edition of its catalogue, nothing trained and the index not built again: products that are
        new, or whose title, category or photographs changed, are encoded and put in; those that are gone are not found any more.
        The index goes over to the new retriever; one of the kind `milvus`, which may be serving, stays and is built again.

        Raises `UserError` where no product would stay, and for the fusion `category` where categories are not the same.
        """
        before, after = self.catalog.contents(), catalog.contents()
        place = before.index.get_indexer(after.index)
        if (place < 0).all():
            raise UserError(f"No product of {catalog.name} is one of {self.catalog.name}; train a model of its own.")
        known = [set(one.products["category"].dropna()) for one in (self.catalog, catalog)]
        if self.model.config.fusion == "category" and known[0] != known[1]:
            raise UserError(f"{catalog.name} has other categories than those that have a weight; train again.")
        fresh = np.flatnonzero((place < 0) | (before.to_numpy()[place] != after.to_numpy()))
        kept = {name: np.array(getattr(self.vectors, name)[place]) for name in KEPT}
        for start in range(0, len(fresh), SHARD):
            rows = fresh[start : start + SHARD]
            found = encoded(self.model, catalog, rows)
            for name in KEPT:
                kept[name][rows] = getattr(found, name)
        moved = replace(self, catalog=catalog, vectors=ProductVectors(**kept))
        if self.index.manifest["kind"] == "milvus":
            return moved.indexed(settings_module.Index(**self.index.manifest["settings"]))
        self.index.delete(before.index.difference(after.index))
        if len(fresh):
            self.index.upsert(kept["embedding"][fresh], after.index[fresh])
        self.index.speak_of(after.index, catalog.fingerprint)
        return moved

    def save(self, folder: Path) -> None:
        """Model, index and product vectors into `folder`; the catalogue is named, not copied."""
        folder = Path(folder)
        self.model.save_pretrained(folder / "model")
        self.index.save(folder / "index")
        for name in KEPT:
            with atomic_file(folder / "products" / f"{name}.npy") as draft:
                np.save(draft, getattr(self.vectors, name))
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
        index.speak_of(catalog.products["product_id"], catalog.fingerprint)
        try:
            vectors = [np.load(folder / "products" / f"{name}.npy", mmap_mode="r") for name in KEPT]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} lacks its product vectors ({error}). Train it again.") from None
        return cls(note["name"], model, catalog, index, ProductVectors(*vectors))

    @functools.lru_cache(maxsize=1024)  # noqa: B019  retrievers live as long as the process
    def embed(self, query: str) -> np.ndarray:
        """Query embedding, float32 (d,)."""
        return self.model.encode_queries([query])[0]

    def search(self, query: str, k: int = 10, category: str | None = None) -> pd.DataFrame:
        """The k best products for a query, of one category or of all; see `hits`. Raises `UserError` for an unknown category."""
        among = None if category is None else (self.catalog.products["category"] == category).to_numpy()
        if among is not None and not among.any():
            known = ", ".join(sorted(self.catalog.products["category"].dropna().unique())[:20])
            raise UserError(f"No product is of category {category!r}. There are: {known}.")
        rows, scores = self.index.search(self.embed(query)[None], k, among)
        return self.hits(self.embed(query), rows[0], scores[0])

    def hits(self, query: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
        """Ranked products as a table: `rank, row, product_id, title, category, score, score_title, score_image,
        weight_title, weight_image`; the two partial scores add up to the score (NaN where a fusion does not split): they are
        made anew, by encoding these products again."""
        split = encoded(self.model, self.catalog, rows).parts @ query  # (k, 2)
        # halves are rounded, their sum is not
        w = self.vectors.weights[rows]
        split += (scores - split.sum(axis=1))[:, None] * w
        told = {name: self.catalog.products[name].array[rows] for name in ("product_id", "title", "category")}
        found = {"score": scores, "score_title": split[:, 0], "score_image": split[:, 1]}
        weights = {"weight_title": w[:, 0], "weight_image": w[:, 1]}
        return pd.DataFrame({"rank": np.arange(1, len(rows) + 1), "row": rows} | told | found | weights)


def encode_catalogue(model: MakeModel, catalog: Catalog, folder: Path | None = None) -> ProductVectors:
    """Vectors of all products, see `Retriever.vectors`. With `folder` each shard is kept there as soon as it is made, by
    whichever process's turn it is, and a call that was killed is gone on with."""
    starts, (rank, world), shards = range(0, len(catalog), SHARD), place(), []
    key = fingerprint(model.fingerprint(), catalog.fingerprint)
    files = [Path(folder) / f".encoding-{key}" / f"{start}.npz" for start in starts] if folder else []
    mine = range(len(starts))[rank::world] if folder else range(len(starts))
    for turn in mine:
        if folder and files[turn].is_file():
            continue
        vectors = encoded(model, catalog, slice(starts[turn], min(starts[turn] + SHARD, len(catalog))))
        shards.append({name: getattr(vectors, name).astype(kind) for name, kind in KEPT.items()})
        if folder:
            with atomic_file(files[turn]) as draft:
                np.savez(draft, **shards.pop())
    decided(None)
    shards = [np.load(file) for file in files] or shards
    return ProductVectors(*(np.concatenate([shard[name] for shard in shards]) for name in KEPT))
