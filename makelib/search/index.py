"""The product index: unit vectors in, the nearest products of a batch of queries out. `ProductIndex` knows no model.

`ProductIndex` is a thin shell around faiss that answers for what faiss leaves open: it says in a sentence what is wrong
with an input, always returns k products, breaks ties by row, and carries a manifest that says which model and which
catalogue its vectors came from.
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

FORMAT = 1
#: how far from 1 the length of a product vector may be (half precision rounds by about this much)
TOLERANCE = 1e-3
#: faiss's own name of each kind, checked against the file at load
CLASSES = {"exact": "IndexFlatIP", "hnsw": "IndexHNSWFlat", "ivf": "IndexIVFFlat"}


class ProductIndex:
    """Inner-product search over N unit vectors of d dimensions; made by `build` or `load`, never changed afterwards.

    Attributes:
        ids: product id of each row, object array of str (N,).
        manifest: JSON-able dict of what was built: `format, kind, metric, count, dim, model, catalogue, settings`.
    """

    def __init__(self, index: faiss.Index, ids: np.ndarray, manifest: dict[str, Any]) -> None:
        self._index = index
        self._process = os.getpid()
        self.ids = ids
        self.manifest = manifest
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
        """Index product vectors, float32 (N, d), of unit length.

        `exact` compares with every vector; `hnsw` walks a graph (Malkov and Yashunin, 2016); `ivf` looks into the
        nearest of `ivf_lists` k-means cells. The approximate kinds are built on one thread: with more, the graph
        depends on timing.

        Raises `UserError` for vectors that are not finite or not of unit length, ids that are not unique or do not
        match in number, and fewer vectors than `ivf_lists` (clamping would silently change what is measured).
        """
        settings = settings or settings_module.Index()
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        ids = np.array([str(product_id) for product_id in product_ids], dtype=object)
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise UserError(
                f"Product vectors must have the shape (N, d) with at least one row; these have {vectors.shape}."
            )
        count, dim = vectors.shape
        if len(ids) != count:
            raise UserError(f"There are {count} product vectors but {len(ids)} product ids; give one id per vector.")
        if pd.unique(ids).size != count:
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
        if settings.kind == "ivf" and count < settings.ivf_lists:
            raise UserError(
                f"{count} vectors cannot fill {settings.ivf_lists} lists; set index.ivf_lists to at most {count}, "
                "or index.kind to exact."
            )

        if settings.kind == "exact":
            index = faiss.IndexFlatIP(dim)
        elif settings.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, settings.ivf_lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.min_points_per_centroid = 1  # small catalogues are allowed; faiss would warn on stderr
        with _threads(1):
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
        return cls(index, ids, manifest)

    def __len__(self) -> int:
        return self._index.ntotal

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

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k products with the largest inner product for each query: rows int64 (Q, k), scores float32 (Q, k).

        Scores fall from left to right (cosines, for queries of unit length); equal scores are in the order of rows.
        k above N is clamped to N. Every answer holds k different products and never faiss's -1: where an approximate
        kind finds fewer than k, that query is searched again exhaustively.

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
            faiss.omp_set_num_threads(
                1
            )  # after a fork OpenMP's threads are gone, and faiss would wait for them for ever
        k = min(k, len(self))
        return self._nearest(queries, k, depth=k + 32)

    def _nearest(self, queries: np.ndarray, k: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Fetch `depth` products per query, score them exactly, keep the first k."""
        depth = min(depth, len(self))
        rows = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        step = max(1, 2**24 // (depth * self.dim))  # 64 MB of vectors at a time
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            _, found = self._index.search(queries[part], depth)  # (step, depth)
            short = (found < 0).any(axis=1)
            if short.any():
                found[short] = self._exhaustive(queries[part][short], depth)
            found, exact = self._rescored(queries[part], found)
            rows[part], scores[part] = found[:, :k], exact[:, :k]
            # Equals of the k-th product may lie beyond what was fetched; look further, or faiss would choose.
            tied = exact[:, k - 1] == exact[:, -1]
            if self.manifest["kind"] == "exact" and depth < len(self) and tied.any():
                again = start + np.flatnonzero(tied)
                rows[again], scores[again] = self._nearest(queries[again], k, 4 * depth)
        return rows, scores

    def _rescored(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, depth) sorted by score, then by row, with their scores."""
        vectors = self._index.reconstruct_batch(rows.ravel()).reshape(*rows.shape, self.dim)
        scores = np.einsum("qkd,qd->qk", vectors, queries, dtype=np.float64).astype(np.float32)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _exhaustive(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Rows (Q, k) of an approximate index, by comparison with every vector."""
        if self.manifest["kind"] == "hnsw":
            return faiss.downcast_index(self._index.storage).search(queries, k)[1]
        return self._index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=self._index.nlist))[1]

    def _apply(self, settings: settings_module.Index) -> None:
        """Search parameters are set here and nowhere else, so that a loaded index searches as the built one did."""
        if settings.kind == "hnsw":
            self._index.hnsw.efSearch = settings.hnsw_search
        elif settings.kind == "ivf":
            self._index.nprobe = settings.ivf_probes
            self._index.set_direct_map_type(faiss.DirectMap.Array)  # vectors by row, for exact scores

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write `index.faiss`, `ids.parquet` and `manifest.json` as one folder, whole or not at all."""
        with atomic_folder(Path(folder)) as draft:
            faiss.write_index(self._index, str(draft / "index.faiss"))
            pd.DataFrame({"product_id": self.ids}).to_parquet(draft / "ids.parquet", index=False)
            (draft / "manifest.json").write_text(json.dumps(self.manifest, indent=2), encoding="utf-8")

    @classmethod
    def load(
        cls, folder: Path | str, *, model_fingerprint: str | None = None, catalogue_fingerprint: str | None = None
    ) -> ProductIndex:
        """Read what `save` wrote. Give the fingerprints of the model and the catalogue that it will be used with.

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
            ids = pd.read_parquet(folder / "ids.parquet")["product_id"].to_numpy(dtype=object)
            index = faiss.read_index(str(folder / "index.faiss"))
            said = (CLASSES[manifest["kind"]], manifest["count"], manifest["dim"], manifest["count"])
            found = (type(index).__name__, index.ntotal, index.d, len(ids))
            if said != found or index.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise UserError(
                    f"The files in {folder} do not belong together: (kind, vectors, width, ids) should be {said}, "
                    f"are {found}. {rebuild}"
                )
            return cls(index, ids, manifest)
        except (OSError, KeyError, ValueError, RuntimeError, dacite.DaciteError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"Cannot read the index in {folder}: {reason}. {rebuild}") from None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
