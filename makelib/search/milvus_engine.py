"""Product vectors in Milvus: the kind `milvus`, for shops past one machine (extra `milvus`).

By default the engine is embedded (`milvus-lite`) and keeps its files in the index's folder; with an address
(`index.milvus` or MAKELIB_MILVUS_URI, the token in MAKELIB_MILVUS_TOKEN) the same code speaks to a cluster.
A collection holds a product's id, its row and its vector; the manifest's fingerprints are properties of the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from makelib import settings as settings_module
from makelib.runtime import UserError

try:
    from milvus_lite.server_manager import server_manager_instance as embedded
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError:
    raise UserError("The index kind `milvus` needs pymilvus; install it with `pip install '.[milvus]'`.") from None

for name in ("pymilvus", "milvus_lite"):  # they log tracebacks of what is said here in one line
    logging.getLogger(name).setLevel(logging.CRITICAL)

#: the embedded engine's files within an index folder
DATABASE = "milvus.db"
#: seconds until a server that does not answer counts as away
PATIENCE = 10
#: products sent or read at a time: a message of 2 MB at width 256
BATCH = 2000
#: the most neighbours that Milvus gives for one query
MOST = 16384


class Milvus:
    """Vectors in a Milvus collection, in an HNSW graph of `hnsw_links` and `hnsw_search`; see `makelib.search.index.Engine`.

    What `add` and `delete` returned from is in the server's log and outlives it. Scores are Milvus's own.
    """

    def __init__(self, where: str, manifest: dict[str, Any], settings: settings_module.Index) -> None:
        self.name = f"makelib_{manifest['model']}_{manifest['catalogue']}".replace("-", "_")
        self.dim, self.settings = manifest["dim"], settings
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._open(where)

    def _open(self, where: str) -> None:
        self.where = where
        with _answering(where):
            token = os.environ.get("MAKELIB_MILVUS_TOKEN", "")
            self._client = MilvusClient(where, token=token, timeout=PATIENCE)
            if self._client.has_collection(self.name, timeout=PATIENCE):
                self._client.load_collection(self.name, timeout=60 * PATIENCE)

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray, settings: settings_module.Index, manifest: dict) -> Milvus:
        """A collection named after model and catalogue, in place of one of that name. Raises `UserError` where there is no server."""
        uri = settings.milvus or os.environ.get("MAKELIB_MILVUS_URI", "")
        scratch = None if uri else tempfile.TemporaryDirectory(prefix="makelib-milvus-", ignore_cleanup_errors=True)
        where = uri or str(Path(scratch.name) / DATABASE)
        built = cls(where, manifest, dataclasses.replace(settings, milvus=uri))
        built._scratch = scratch  # lives as long as the engine does
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("product_id", DataType.VARCHAR, is_primary=True, max_length=65535)
        schema.add_field("row", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=built.dim)
        index = MilvusClient.prepare_index_params()
        graph = {"M": settings.hnsw_links, "efConstruction": settings.hnsw_search}
        index.add_index("vector", index_type="HNSW", metric_type="IP", params=graph)
        with _answering(where):
            built._client.drop_collection(built.name, timeout=PATIENCE)
            built._client.create_collection(
                built.name, schema=schema, index_params=index, properties=_properties(manifest),
                consistency_level="Strong", timeout=PATIENCE,
            )  # fmt: skip
        built.add(vectors, ids, np.arange(len(ids)))
        return built

    @classmethod
    def load(cls, folder: Path, settings: settings_module.Index, manifest: dict) -> tuple[Milvus, np.ndarray]:
        """The engine of an index folder, and the ids of its rows as the collection has them: it may know more products than when the
        folder was written. Raises `UserError` where the collection is missing, or belongs to another model or catalogue."""
        where = settings.milvus or str(folder / DATABASE)
        if not settings.milvus and not Path(where).is_dir():
            raise ValueError(f"{DATABASE} is missing")
        engine = cls(where, manifest, settings)
        with _answering(where):
            if not engine._client.has_collection(engine.name, timeout=PATIENCE):
                raise ValueError(f"Milvus at {where} has no collection {engine.name}")
            found = engine._client.describe_collection(engine.name, timeout=PATIENCE)["properties"]
        wanted = _properties(manifest)
        if differ := [key for key in wanted if found.get(key) != wanted[key]]:
            raise ValueError(
                f"its {differ[0]} is {wanted[differ[0]]}, that of Milvus's collection {found.get(differ[0])}"
            )
        held = list(engine._every("", ["row", "product_id"]))
        ids = np.full(max((product["row"] + 1 for product in held), default=0), None, dtype=object)
        for product in held:
            ids[product["row"]] = product["product_id"]
        return engine, ids

    @property
    def nbytes(self) -> int:
        """Vectors alone: Milvus does not say what its graph takes."""
        with _answering(self.where):
            count = self._client.get_collection_stats(self.name, timeout=PATIENCE)["row_count"]
        return 4 * self.dim * int(count)

    def add(self, vectors: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            products = [
                {"product_id": product_id, "row": int(row), "vector": vector}
                for product_id, row, vector in zip(ids[part], rows[part], vectors[part], strict=True)
            ]
            with _answering(self.where):
                self._client.upsert(self.name, products, timeout=6 * PATIENCE)

    def delete(self, rows: np.ndarray) -> None:
        for start in range(0, len(rows), BATCH):
            with _answering(self.where):
                self._client.delete(
                    self.name, filter=f"row in {rows[start : start + BATCH].tolist()}", timeout=PATIENCE
                )

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, count: int, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if k > MOST:
            raise UserError(f"Milvus finds at most {MOST} products for a query, not {k}.")
        rows = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        if k == 0:
            return rows, scores
        among = "" if whole else f"row in {np.flatnonzero(allowed).tolist()}"
        depth = min(k + 32, MOST)  # room for equals, and for what another thread has added since
        how = {"metric_type": "IP", "params": {"ef": max(self.settings.hnsw_search, depth)}}
        for start in range(0, len(queries), 64):
            with _answering(self.where):
                answers = self._client.search(
                    self.name, data=list(queries[start : start + 64]), limit=depth, filter=among, search_params=how,
                    output_fields=["row"], timeout=6 * PATIENCE,
                )  # fmt: skip
            for at, hits in enumerate(answers, start):
                found = np.array([hit["entity"]["row"] for hit in hits], dtype=np.int64)
                score = np.array([hit["distance"] for hit in hits], dtype=np.float32)
                known = (found < len(allowed)) & allowed[np.minimum(found, len(allowed) - 1)]
                found, score = found[known], score[known]
                if len(found) < k:
                    found, score = self._compared(queries[at], among, allowed)
                order = np.lexsort((found, -score))[:k]
                rows[at], scores[at] = found[order], score[order]
        return rows, scores

    def _compared(self, query: np.ndarray, among: str, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Allowed rows and their scores, by comparison with every vector."""
        held = [product for product in self._every(among, ["row", "vector"]) if product["row"] < len(allowed)]
        rows = np.array([product["row"] for product in held], dtype=np.int64)
        return rows, np.array([product["vector"] for product in held], dtype=np.float32) @ query

    def _every(self, among: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """All products that the collection holds, or those that a filter lets through, by row: Milvus's own iterator takes ids
        into its filters as they are, quotes and all."""

        def asked(condition: str, **limit: int) -> list[dict[str, Any]]:
            with _answering(self.where):
                return self._client.query(
                    self.name, filter=condition, output_fields=fields, timeout=6 * PATIENCE, **limit
                )

        start, page = 0, []
        while page or asked(f"row >= {start}", limit=1):
            page = asked(f"row >= {start} and row < {start + BATCH}" + (f" and {among}" if among else ""))
            yield from page
            start += BATCH

    def save(self, draft: Path) -> None:
        """The embedded engine's files are copied; a cluster keeps its own."""
        if self.settings.milvus:
            return
        with _answering(self.where):
            self._client.flush(self.name, timeout=6 * PATIENCE)
            self._client.close()
        embedded.release_server(self.where)  # nothing is written while it is copied
        shutil.copytree(self.where, draft / DATABASE, ignore=shutil.ignore_patterns("LOCK"))

    def saved(self, folder: Path) -> None:
        """From here on what is added is kept in that folder."""
        if not self.settings.milvus:
            self._scratch = None
            self._open(str(folder / DATABASE))


def _properties(manifest: dict[str, Any]) -> dict[str, str]:
    return {f"makelib.{key}": json.dumps(manifest[key]) for key in ("format", "model", "catalogue", "dim")}


@contextlib.contextmanager
def _answering(where: str) -> Iterator[None]:
    """What Milvus cannot do, in one line."""
    try:
        yield
    except MilvusException as error:
        mend = (
            "Is it running, and are the address (index.milvus or MAKELIB_MILVUS_URI) and MAKELIB_MILVUS_TOKEN right?"
            if "://" in where
            else "Only one process at a time can open an embedded index; for several, start a server and set index.milvus."
        )
        raise UserError(f"Milvus at {where} says: {error.message}. {mend}") from None
