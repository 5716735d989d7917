"""The product index: unit vectors in, the nearest products of a batch of queries out. `ProductIndex` knows no model.

`ProductIndex` is the one door to several engines: it says in a sentence what is wrong with an input, always returns k
products, breaks ties by row, takes products in and out by id, and carries a manifest that says which model and which
catalogue its vectors came from. Where the vectors lie is the engine's affair: `faiss_engine`, `milvus_engine`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import dacite
import numpy as np
import pandas as pd

from makelib import settings as settings_module
from makelib.runtime import UserError, atomic_folder
from makelib.search.faiss_engine import Faiss

FORMAT = 2
#: how far from 1 the length of a product vector may be (half precision rounds by about this much)
TOLERANCE = 1e-3


class Engine(Protocol):
    """Vectors of width `dim` by row. `settings` are those it was built with, zeros filled in; `nbytes` its size, ids not counted."""

    settings: settings_module.Index

    @property
    def dim(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def add(self, vectors: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
        """Vectors float32 (n, d) of new rows; one whose id was there takes the place of the row before."""

    def delete(self, rows: np.ndarray) -> None:
        """Rows that are never asked for again."""

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, count: int, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 (Q, k) of the `allowed`, bool (N,), and their scores float32 (Q, k), by falling score, then by row; k is at
        most the `count` of these. `whole`: they are all that were not deleted."""

    def save(self, draft: Path) -> None:
        """Files into an index folder that is being written."""

    def saved(self, folder: Path) -> None:
        """That folder is whole and in its place."""


class ProductIndex:
    """Inner-product search over N unit vectors of d dimensions; made by `build` or `load`.

    Attributes:
        ids: product id of each row, object array of str (N,); None where the product was deleted or replaced.
        manifest: JSON-able dict of what was built: `format, kind, metric, count, dim, model, catalogue, settings`.
    """

    def __init__(self, engine: Engine, ids: np.ndarray, manifest: dict[str, Any]) -> None:
        self._engine, self.manifest = engine, manifest
        self._hold(ids)

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        product_ids: Sequence[str],
        settings: settings_module.Index | None = None,
        *,
        model_fingerprint: str,
        catalogue_fingerprint: str,
    ) -> ProductIndex:
        """Index product vectors, float (N, d), of unit length; what the kinds are, their engines say.

        Raises `UserError` for vectors that are not finite or not of unit length, ids that are not unique or do not
        match in number, fewer vectors than the kind needs, and an engine that is not there.
        """
        settings = settings or settings_module.Index()
        vectors, ids = _checked(vectors, product_ids)
        manifest = {
            "format": FORMAT,
            "kind": settings.kind,
            "metric": "inner_product",
            "count": len(ids),
            "dim": vectors.shape[1],
            "model": model_fingerprint,
            "catalogue": catalogue_fingerprint,
        }
        if settings.kind == "milvus":
            from makelib.search.milvus_engine import Milvus

            engine = Milvus.build(vectors, ids, settings, manifest)
        else:
            engine = Faiss.build(vectors, settings)
        return cls(engine, ids, {**manifest, "settings": dataclasses.asdict(engine.settings)})

    def __len__(self) -> int:
        """How many products can be found."""
        return self._living

    def _hold(self, ids: np.ndarray) -> None:
        self.ids = self._held = ids  # by the engine; where rows are another table's, see `speak_of`, `ids` is of that
        self._places, self._alive = None, ~pd.isna(ids)
        self._living = int(self._alive.sum())  # once, not in every search: a million flags take half a millisecond
        self.manifest = {**self.manifest, "count": len(ids)}

    # -- products come and go -------------------------------------------------------------------------------------

    def upsert(self, vectors: np.ndarray, product_ids: Sequence[str]) -> None:
        """Add products, or replace those whose ids are known: float (n, d), of unit length. New rows come after all others; a
        replaced product's old row is never found again. Of the kind `milvus`, what this returned from is kept; the others keep
        what was saved.

        Raises `UserError` as `build` does.
        """
        vectors, ids = _checked(vectors, product_ids)
        if vectors.shape[1] != self.dim:
            raise UserError(f"The index holds vectors of width {self.dim}; these have {vectors.shape[1]}.")
        self._engine.add(vectors, ids, np.arange(len(self._held), len(self._held) + len(ids)))
        kept = np.where(pd.Series(self._held).isin(ids), None, self._held)
        self._hold(np.concatenate([kept, ids]))

    def delete(self, product_ids: Sequence[str]) -> None:
        """Products that are never found again. Raises `UserError` for an id that is not there."""
        wanted = {str(product_id) for product_id in product_ids}
        gone = pd.Series(self._held).isin(wanted).to_numpy()
        if missing := wanted - set(self._held[gone]):
            raise UserError(f"Product {sorted(missing)[0]!r} is not in the index, so it cannot be deleted.")
        self._engine.delete(np.flatnonzero(gone))
        self._hold(np.where(gone, None, self._held))

    def speak_of(self, product_ids: Sequence[str], catalogue_fingerprint: str) -> None:
        """Rows are, until products come or go again, those of a table with these ids, in whatever order they came into the index.

        Raises `UserError` where the table does not hold the very products that can be found.
        """
        ids, places = pd.Series(product_ids).astype(str).to_numpy(dtype=object), None
        if not np.array_equal(ids, self._held):
            places = pd.Index(ids).get_indexer(self._held)
            if not (len(ids) == len(self) and np.array_equal(np.sort(places[self._alive]), np.arange(len(ids)))):
                raise UserError(f"The index holds {len(self)} products that are not the {len(ids)} of the catalogue.")
        self.manifest["catalogue"], self.ids, self._places = catalogue_fingerprint, ids, places

    @property
    def dim(self) -> int:
        """Width d of the vectors."""
        return self._engine.dim

    @property
    def nbytes(self) -> int:
        """Size of vectors, graph and lists in bytes; ids not counted."""
        return self._engine.nbytes

    # -- search ---------------------------------------------------------------------------------------------------

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k products with the largest inner product for each query: rows int64 (Q, k), scores float32 (Q, k).

        `among`, bool (N,), are the rows that may be found, such as those of one category; None: all. Scores fall from left to
        right (cosines, for queries of unit length); equal scores are in the order of rows. k above what may be found is
        clamped. Every answer holds k different products and never an engine's -1: where an approximate kind finds fewer than
        k, that query is searched again exhaustively.

        Raises `UserError` for queries of the wrong shape, not finite queries, and k below 1.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(
                f"Query vectors must have the shape (Q, {self.dim}), the width of this index; these have "
                f"{queries.shape}. Encode queries with the model that encoded the products."
            )  # fmt: skip
        if not np.isfinite(queries).all():
            raise UserError("A query vector is not finite; did training diverge?")
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}.")
        # one look: another thread may be adding products
        allowed, living, places = self._alive, self._living, self._places
        if among is not None:
            allowed = allowed & (among if places is None else among[places])
        count = living if among is None else int(allowed.sum())
        rows, scores = self._engine.nearest(queries, min(k, count), allowed, count, whole=count == living)
        return rows if places is None else places[rows], scores

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write the engine's files, `ids.parquet` and `manifest.json` as one folder, whole or not at all."""
        folder = Path(folder)
        with atomic_folder(folder) as draft:
            self._engine.save(draft)
            pd.DataFrame({"product_id": self._held}).to_parquet(draft / "ids.parquet", index=False)
            (draft / "manifest.json").write_text(json.dumps(self.manifest, indent=2), encoding="utf-8")
        self._engine.saved(folder)

    @classmethod
    def load(
        cls, folder: Path | str, *, model_fingerprint: str | None = None, catalogue_fingerprint: str | None = None
    ) -> ProductIndex:
        """Open what `save` wrote, memory-mapped. Give the fingerprints of the model and the catalogue that it will be used with.

        Raises `UserError` when a file is missing or unreadable, when the files do not fit the manifest, when the index was
        built with another model or from another catalogue, and when its engine is not there.
        """
        folder = Path(folder)
        rebuild = "Build it again with `python -m makelib index`."
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            version = manifest["format"]
        except FileNotFoundError:
            raise UserError(f"{folder} holds no index: manifest.json is missing. {rebuild}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'manifest.json'} is not the manifest of an index ({error}). {rebuild}"
            ) from None
        if version != FORMAT:
            raise UserError(f"{folder} has index format {version}; this version reads format {FORMAT}. {rebuild}")
        for what, ours in (("model", model_fingerprint), ("catalogue", catalogue_fingerprint)):
            if ours is not None and manifest.get(what) != ours:
                raise UserError(
                    f"The index in {folder} belongs to {what} {manifest.get(what)}, but the {what} in use is {ours}. "
                    f"{rebuild}"
                )
        try:
            ids = pd.read_parquet(folder / "ids.parquet")["product_id"].to_numpy(dtype=object, na_value=None)
            settings = dacite.from_dict(settings_module.Index, manifest["settings"], dacite.Config(strict=True))
            if manifest["kind"] == "milvus":
                from makelib.search.milvus_engine import Milvus

                engine, ids = Milvus.load(folder, settings, manifest)
                return cls(engine, ids, manifest)
            engine = Faiss.load(folder, dataclasses.replace(settings, kind=manifest["kind"]))
            said, found = (
                (manifest["count"], manifest["dim"], manifest["count"]),
                (engine.index.ntotal, engine.dim, len(ids)),
            )
            if said != found:
                raise UserError(
                    f"The files in {folder} do not belong together: (vectors, width, ids) should be {said}, are {found}. "
                    f"{rebuild}"
                )
            return cls(engine, ids, manifest)
        except (OSError, KeyError, ValueError, RuntimeError, dacite.DaciteError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"Cannot read the index in {folder}: {reason}. {rebuild}") from None


def _checked(vectors: np.ndarray, product_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 (n, d) and ids (n,), or a `UserError` that says what is wrong with them."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    ids = np.array([str(product_id) for product_id in product_ids], dtype=object)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"Product vectors must have the shape (N, d) with at least one row; these have {vectors.shape}."
        )
    if len(ids) != len(vectors):
        raise UserError(f"There are {len(vectors)} product vectors but {len(ids)} product ids; give one id per vector.")
    if pd.unique(ids).size != len(ids):
        double = pd.Series(ids)[pd.Series(ids).duplicated()].iloc[0]
        raise UserError(f"Product id {double!r} stands for more than one vector; ids must be unique.")
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise UserError(f"The vector of product {ids[row]!r} (row {row}) is not finite; did training diverge?")
    if np.abs(lengths - 1).max() > TOLERANCE:
        row = int(np.abs(lengths - 1).argmax())
        raise UserError(
            f"The vector of product {ids[row]!r} (row {row}) has length {lengths[row]:.4g}, not 1; divide each "
            "vector by its length before indexing, or inner products will favour long vectors."
        )  # fmt: skip
    return vectors, ids
