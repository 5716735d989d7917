"""The product index: unit vectors in, the nearest products of a batch of queries out. `ProductIndex` knows no model.

`ProductIndex` is a thin shell around faiss that answers for what faiss leaves open: it says in a sentence what is wrong
with an input, always returns k products, breaks ties by row, takes products in and out by id, and carries a manifest that
says which model and which catalogue its vectors came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dacite
import faiss
import numpy as np
import pandas as pd

from makelib import settings as settings_module
from makelib.runtime import UserError, atomic_folder

FORMAT = 2
#: how far from 1 the length of a product vector may be (half precision rounds by about this much)
TOLERANCE = 1e-3
#: faiss's own name of each kind, checked against the file at load
CLASSES = {"exact": "IndexFlatIP", "hnsw": "IndexHNSWFlat", "ivf": "IndexIVFFlat", "ivf-pq": "IndexIVFPQ"}
#: vectors per list that k-means learns from: more cost time and change little
SAMPLE = 64


def by_rule(settings: settings_module.Index, count: int) -> settings_module.Index:
    """Settings with their zeros filled in for `count` vectors: 4 √count lists of at least 39 vectors each (fewer do not make a
    list's centre), of which a query looks into 2 √lists: at 10⁶ vectors 4,000 and 126, a thirtieth of all."""
    lists = settings.ivf_lists or max(1, min(round(4 * count**0.5), count // 39))
    return dataclasses.replace(
        settings, ivf_lists=lists, ivf_probes=settings.ivf_probes or min(lists, max(1, round(2 * lists**0.5)))
    )


class ProductIndex:
    """Inner-product search over N unit vectors of d dimensions; made by `build` or `load`.

    Attributes:
        ids: product id of each row, object array of str (N,); None where the product was deleted or replaced.
        manifest: JSON-able dict of what was built: `format, kind, metric, count, dim, model, catalogue, settings`.
    """

    def __init__(
        self,
        index: faiss.Index,
        ids: np.ndarray,
        manifest: dict[str, Any],
        vectors: np.ndarray | None,
        file: Path | None,
    ) -> None:
        self._index, self._vectors, self._file = index, vectors, file
        self._process = os.getpid()
        self.manifest = manifest
        self._hold(ids)
        self._apply(dacite.from_dict(settings_module.Index, manifest["settings"], dacite.Config(strict=True)))

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
        """Index product vectors, float (N, d), of unit length.

        `exact` compares with every vector; `hnsw` walks a graph (Malkov and Yashunin, 2016), built on one thread, for with
        more it depends on timing; `ivf` looks into the nearest of `ivf_lists` k-means cells; `ivf-pq` does so in d/2 bytes a
        vector (Jégou, 2011) and scores what it finds again with float16 vectors on disk. Zeros in the settings: see `by_rule`.

        Raises `UserError` for vectors that are not finite or not of unit length, ids that are not unique or do not
        match in number, and fewer vectors than the kind needs (clamping would silently change what is measured).
        """
        settings = settings or settings_module.Index()
        vectors, ids = _checked(vectors, product_ids)
        count, dim = vectors.shape
        if settings.kind.startswith("ivf") and count < settings.ivf_lists:
            raise UserError(
                f"{count} vectors cannot fill {settings.ivf_lists} lists; set index.ivf_lists to at most {count}, "
                "or index.kind to exact."
            )
        if settings.kind == "ivf-pq" and count < 256:
            raise UserError(f"{count} vectors are too few to learn a product quantizer from; set index.kind to exact.")
        settings = by_rule(settings, count)
        if settings.kind == "exact":
            index = faiss.IndexFlatIP(dim)
        elif settings.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        else:
            cells, lists = faiss.IndexFlatIP(dim), settings.ivf_lists
            if settings.kind == "ivf":
                index = faiss.IndexIVFFlat(cells, dim, lists, faiss.METRIC_INNER_PRODUCT)
            else:
                parts = max(m for m in range(1, max(1, dim // 2) + 1) if dim % m == 0)
                index = faiss.IndexIVFPQ(cells, dim, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
                index.pq.cp.min_points_per_centroid = 1
            index.cp.min_points_per_centroid = 1  # small catalogues are allowed; faiss would warn on stderr
            index.cp.max_points_per_centroid = SAMPLE
        with _threads(1 if settings.kind == "hnsw" else faiss.omp_get_max_threads()):
            index.train(vectors)
            index.add(vectors)
        manifest = {
            "format": FORMAT,
            "kind": settings.kind,
            "metric": "inner_product",
            "count": count,
            "dim": dim,
            "model": model_fingerprint,
            "catalogue": catalogue_fingerprint,
            "settings": dataclasses.asdict(settings),
        }
        return cls(index, ids, manifest, vectors.astype(np.float16) if settings.kind == "ivf-pq" else None, None)

    def __len__(self) -> int:
        """How many products can be found."""
        return int(self._alive.sum())

    def _hold(self, ids: np.ndarray) -> None:
        self.ids, self._alive = ids, ~pd.isna(ids)

    # -- products come and go -------------------------------------------------------------------------------------

    def upsert(self, vectors: np.ndarray, product_ids: Sequence[str]) -> None:
        """Add products, or replace those whose ids are known: float (n, d), of unit length. New rows come after all others; a
        replaced product's old row is never found again. Lists and graph are not learned anew.

        Raises `UserError` as `build` does.
        """
        vectors, ids = _checked(vectors, product_ids)
        if vectors.shape[1] != self.dim:
            raise UserError(f"The index holds vectors of width {self.dim}; these have {vectors.shape[1]}.")
        self._owned()
        kept = np.where(pd.Series(self.ids).isin(ids), None, self.ids)
        self._index.add(vectors)
        if self._vectors is not None:
            self._vectors = np.concatenate([self._vectors, vectors.astype(np.float16)])
        self._hold(np.concatenate([kept, ids]))
        self.manifest = {**self.manifest, "count": len(self.ids)}

    def delete(self, product_ids: Sequence[str]) -> None:
        """Products that are never found again. Raises `UserError` for an id that is not there."""
        wanted = {str(product_id) for product_id in product_ids}
        gone = pd.Series(self.ids).isin(wanted)
        if missing := wanted - set(self.ids[gone]):
            raise UserError(f"Product {sorted(missing)[0]!r} is not in the index, so it cannot be deleted.")
        self._hold(np.where(gone, None, self.ids))

    def _owned(self) -> None:
        """faiss cannot add to a memory-mapped file, so an index that is to change is read into memory first."""
        if self._file is not None:
            self._index, self._file = faiss.read_index(str(self._file)), None
            self._apply(settings_module.Index(**self.manifest["settings"]))

    @property
    def dim(self) -> int:
        """Width d of the vectors."""
        return self._index.d

    @property
    def nbytes(self) -> int:
        """Size of vectors, graph and lists in bytes, as faiss writes them; ids not counted."""
        size = 0

        def count(data: bytes) -> int:
            nonlocal size
            size += len(data)
            return len(data)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return size

    # -- search ---------------------------------------------------------------------------------------------------

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k products with the largest inner product for each query: rows int64 (Q, k), scores float32 (Q, k).

        `among`, bool (N,), are the rows that may be found, such as those of one category; None: all. Scores fall from left to
        right (cosines, for queries of unit length); equal scores are in the order of rows. k above what may be found is
        clamped. Every answer holds k different products and never faiss's -1: where an approximate kind finds fewer than
        k, that query is searched again exhaustively.

        Scores are computed again in float64 from the stored vectors, because faiss adds up in another order for large
        batches than for small ones, which would let a twin listing win or lose by the company that a query keeps.

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
        if os.getpid() != self._process:
            # after a fork OpenMP's threads are gone, and faiss would wait for them for ever
            faiss.omp_set_num_threads(1)
        allowed = self._alive if among is None else self._alive & among
        count = int(allowed.sum())
        selector = None if count == len(allowed) else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        k = min(k, count)
        depth = (
            4 * k + 32 if self.manifest["kind"] == "ivf-pq" else k + 32
        )  # codes rank roughly, so more are scored again
        return self._nearest(queries, k, depth, count, selector)

    def _nearest(
        self, queries: np.ndarray, k: int, depth: int, count: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fetch `depth` products per query of the `count` that the selector allows, score them exactly, keep the first k."""
        depth = min(depth, count)
        rows = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        if k == 0:
            return rows, scores
        step = max(1, 2**24 // (depth * self.dim))  # 64 MB of vectors at a time
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            found = self._fetch(queries[part], depth, selector)  # (step, depth)
            short = (found < 0).any(axis=1)
            if short.any():
                found[short] = self._fetch(queries[part][short], depth, selector, exhaustive=True)
            found, exact = self._rescored(queries[part], found)
            rows[part], scores[part] = found[:, :k], exact[:, :k]
            # Equals of the k-th product may lie beyond what was fetched; look further, or faiss would choose.
            tied = exact[:, k - 1] == exact[:, -1]
            if self.manifest["kind"] == "exact" and depth < count and tied.any():
                again = start + np.flatnonzero(tied)
                rows[again], scores[again] = self._nearest(queries[again], k, 4 * depth, count, selector)
        return rows, scores

    def _fetch(
        self, queries: np.ndarray, depth: int, selector: faiss.IDSelector | None, exhaustive: bool = False
    ) -> np.ndarray:
        """Rows (Q, depth) as faiss finds them; `exhaustive`: by comparison with every vector."""
        kind, index, own = self.manifest["kind"], self._index, self.manifest["settings"]
        if kind.startswith("ivf"):
            probes = index.nlist if exhaustive else own["ivf_probes"]
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        elif kind == "hnsw" and not exhaustive:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(own["hnsw_search"], depth))
        else:
            index = faiss.downcast_index(index.storage) if kind == "hnsw" else index
            parameters = faiss.SearchParameters(sel=selector) if selector is not None else None
        return index.search(queries, depth, params=parameters)[1]

    def _rescored(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, depth) sorted by score, then by row, with their scores."""
        if self._vectors is None:
            vectors = self._index.reconstruct_batch(rows.ravel()).reshape(*rows.shape, self.dim)
        else:
            vectors = self._vectors[rows]
        scores = np.einsum("qkd,qd->qk", vectors, queries, dtype=np.float64).astype(np.float32)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _apply(self, settings: settings_module.Index) -> None:
        """What faiss does not keep in its file, and what explorers of the index read from it."""
        if settings.kind == "hnsw":
            self._index.hnsw.efSearch = settings.hnsw_search
        elif settings.kind.startswith("ivf"):
            self._index.nprobe = settings.ivf_probes
            if settings.kind == "ivf":
                self._index.set_direct_map_type(faiss.DirectMap.Array)  # vectors by row, for exact scores

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write `index.faiss`, `ids.parquet`, `manifest.json` and, for `ivf-pq`, `vectors.npy` as one folder, whole or not at all."""
        with atomic_folder(Path(folder)) as draft:
            faiss.write_index(self._index, str(draft / "index.faiss"))
            if self._vectors is not None:
                np.save(draft / "vectors.npy", self._vectors)
            pd.DataFrame({"product_id": self.ids}).to_parquet(draft / "ids.parquet", index=False)
            (draft / "manifest.json").write_text(json.dumps(self.manifest, indent=2), encoding="utf-8")

    @classmethod
    def load(
        cls, folder: Path | str, *, model_fingerprint: str | None = None, catalogue_fingerprint: str | None = None
    ) -> ProductIndex:
        """Open what `save` wrote, memory-mapped. Give the fingerprints of the model and the catalogue that it will be used with.

        Raises `UserError` when a file is missing or unreadable, when the files do not fit the manifest, and when the
        index was built with another model or from another catalogue.
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
            file = folder / "index.faiss"
            index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
            vectors = np.load(folder / "vectors.npy", mmap_mode="r") if manifest["kind"] == "ivf-pq" else None
            said = (CLASSES[manifest["kind"]], manifest["count"], manifest["dim"], manifest["count"])
            found = (type(index).__name__, index.ntotal, index.d, len(ids))
            if said != found or index.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise UserError(
                    f"The files in {folder} do not belong together: (kind, vectors, width, ids) should be {said}, "
                    f"are {found}. {rebuild}"
                )
            return cls(index, ids, manifest, vectors, file)
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


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
