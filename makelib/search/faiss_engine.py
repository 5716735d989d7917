"""Product vectors in faiss, in this process: the kinds `exact`, `hnsw`, `ivf` and `ivf-pq`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from makelib import settings as settings_module
from makelib.runtime import UserError

#: faiss's own name of each kind, checked against the file at load
CLASSES = {"exact": "IndexFlatIP", "hnsw": "IndexHNSWFlat", "ivf": "IndexIVFFlat", "ivf-pq": "IndexIVFPQ"}
#: vectors per centre that k-means learns from: more cost time and change little
SAMPLE = 64


def by_rule(settings: settings_module.Index, count: int) -> settings_module.Index:
    """Settings with their zeros filled in for `count` vectors: 4 √count lists of at least 39 vectors each (fewer do not make a
    list's centre), of which a query looks into 2 √lists: at 10⁶ vectors 4,000 and 126, a thirtieth of all."""
    lists = settings.ivf_lists or max(1, min(round(4 * count**0.5), count // 39))
    return dataclasses.replace(
        settings, ivf_lists=lists, ivf_probes=settings.ivf_probes or min(lists, max(1, round(2 * lists**0.5)))
    )


class Faiss:
    """N vectors of width `dim` by row, in a faiss index; see `makelib.search.index.Engine`.

    Attributes: `index`, faiss's own; `settings`, without zeros.
    """

    def __init__(
        self,
        index: faiss.Index,
        settings: settings_module.Index,
        vectors: np.ndarray | None = None,
        file: Path | None = None,
    ) -> None:
        self.index, self.settings = index, settings
        self._vectors, self._file, self._process = vectors, file, os.getpid()
        self._apply()

    @classmethod
    def build(cls, vectors: np.ndarray, settings: settings_module.Index) -> Faiss:
        """`exact` compares with every vector; `hnsw` walks a graph (Malkov and Yashunin, 2016), built on one thread, for with more it
        depends on timing; `ivf` looks into the nearest of `ivf_lists` k-means cells; `ivf-pq` does so in d/2 bytes a vector
        (Jégou, 2011) and scores what it finds again with float16 vectors on disk. Zeros in the settings: see `by_rule`.

        Raises `UserError` for fewer vectors than the kind needs (clamping would silently change what is measured).
        """
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
                # codes only choose what is scored again: as much recall as with faiss's 256 vectors and 25 rounds, in a tenth of the time
                index.pq.cp.max_points_per_centroid, index.pq.cp.niter = SAMPLE, 5
            index.cp.min_points_per_centroid = 1  # small catalogues are allowed; faiss would warn on stderr
            index.cp.max_points_per_centroid = SAMPLE
        with threadpool_limits(1 if settings.kind == "hnsw" else None, "openmp"):
            index.train(vectors)
            index.add(vectors)
        return cls(index, settings, vectors.astype(np.float16) if settings.kind == "ivf-pq" else None)

    @property
    def dim(self) -> int:
        return self.index.d

    @property
    def nbytes(self) -> int:
        """Size of vectors, graph and lists in bytes, as faiss writes them."""
        size = 0

        def counted(data: bytes) -> int:
            nonlocal size
            size += len(data)
            return len(data)

        faiss.write_index(self.index, faiss.PyCallbackIOWriter(counted))
        return size

    def add(self, vectors: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
        """Vectors of the next rows. Lists and graph are not learned anew. `ids` and `rows` are for engines that keep their own."""
        if self._file is not None:  # faiss cannot add to a memory-mapped file, so it is read into memory first
            self.index, self._file = faiss.read_index(str(self._file)), None
            self._apply()
        self.index.add(vectors)
        if self._vectors is not None:
            self._vectors = np.concatenate([self._vectors, vectors.astype(np.float16)])

    def delete(self, rows: np.ndarray) -> None:
        """Nothing: what is gone is never asked for."""

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, count: int, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`. Scores are computed again in float64 from the stored vectors, because faiss adds up in another order for
        large batches than for small ones, which would let a twin listing win or lose by the company that a query keeps."""
        if os.getpid() != self._process:
            # after a fork OpenMP's threads are gone, and faiss would wait for them for ever
            faiss.omp_set_num_threads(1)
        selector = None if count == len(allowed) else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        depth = 4 * k + 32 if self.settings.kind == "ivf-pq" else k + 32  # codes rank roughly: more are scored again
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
            if self.settings.kind == "exact" and depth < count and tied.any():
                again = start + np.flatnonzero(tied)
                rows[again], scores[again] = self._nearest(queries[again], k, 4 * depth, count, selector)
        return rows, scores

    def _fetch(
        self, queries: np.ndarray, depth: int, selector: faiss.IDSelector | None, exhaustive: bool = False
    ) -> np.ndarray:
        """Rows (Q, depth) as faiss finds them; `exhaustive`: by comparison with every vector."""
        kind, index = self.settings.kind, self.index
        if kind.startswith("ivf"):
            probes = index.nlist if exhaustive else self.settings.ivf_probes
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        elif kind == "hnsw" and not exhaustive:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(self.settings.hnsw_search, depth))
        else:
            index = faiss.downcast_index(index.storage) if kind == "hnsw" else index
            parameters = faiss.SearchParameters(sel=selector) if selector is not None else None
        return index.search(queries, depth, params=parameters)[1]

    def _rescored(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, depth) sorted by score, then by row, with their scores."""
        if self._vectors is None:
            vectors = self.index.reconstruct_batch(rows.ravel()).reshape(*rows.shape, self.dim)
        else:
            vectors = self._vectors[rows]
        scores = np.einsum("qkd,qd->qk", vectors, queries, dtype=np.float64).astype(np.float32)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _apply(self) -> None:
        """What faiss does not keep in its file, and what explorers of the index read from it."""
        if self.settings.kind == "hnsw":
            self.index.hnsw.efSearch = self.settings.hnsw_search
        elif self.settings.kind.startswith("ivf"):
            self.index.nprobe = self.settings.ivf_probes
            if self.settings.kind == "ivf":
                self.index.set_direct_map_type(faiss.DirectMap.Array)  # vectors by row, for exact scores

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, draft: Path) -> None:
        """`index.faiss` and, for `ivf-pq`, `vectors.npy`."""
        faiss.write_index(self.index, str(draft / "index.faiss"))
        if self._vectors is not None:
            np.save(draft / "vectors.npy", self._vectors)

    def saved(self, folder: Path) -> None:
        """Nothing: what is in memory stays there."""

    @classmethod
    def load(cls, folder: Path, settings: settings_module.Index) -> Faiss:
        """What `save` wrote, memory-mapped. Raises `ValueError` where it is another kind of index."""
        file = folder / "index.faiss"
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        if type(index).__name__ != CLASSES[settings.kind] or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{file.name} is no {settings.kind} index of inner products, they do not belong together")
        vectors = np.load(folder / "vectors.npy", mmap_mode="r") if settings.kind == "ivf-pq" else None
        return cls(index, settings, vectors, file)
