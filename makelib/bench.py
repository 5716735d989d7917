"""What each stage costs on this machine: one short run of everything, timed. Prints nothing and keeps nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from makelib.index import ProductIndex
from makelib.retriever import Retriever
from makelib.runtime import peak_memory_bytes, set_threads
from makelib.settings import Settings
from makelib.sources import bazaar
from makelib.training import train

#: single queries per latency
QUERIES = 200


def bench(settings: Settings) -> pd.DataFrame:
    """Generate, train, encode, index and search once.

    Returns columns `stage, seconds, count, unit, per_second`: what was counted, and how many of it in a second. A
    training step includes its share of validation; a search is one query at a time, without the encoder.
    """
    threads, rows = set_threads(), []

    @contextlib.contextmanager
    def timed(stage: str, count: int, unit: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        rows.append((stage, seconds, count, unit, count / seconds))

    with tempfile.TemporaryDirectory() as folder:
        with timed("generate bazaar", settings.bazaar.products, "products"):
            catalog = bazaar.generate(settings.bazaar, Path(folder) / "bazaar")
        with timed("decode photographs", len(catalog), "images"):
            catalog.images(settings.model.image_size)
        with timed("train", settings.training.steps, "steps"):
            model = train(catalog, settings, 0, Path(folder) / "model")
        with timed("encode products", len(catalog), "products"):
            retriever = Retriever.build("bench", model, catalog)
        queries = catalog.queries["query"].iloc[:QUERIES].tolist()
        with timed("encode queries, one by one", len(queries), "queries"):
            vectors = [model.encode_queries([query]) for query in queries]
        for kind in ("exact", "hnsw", "ivf"):
            with timed(f"build {kind} index", len(catalog), "products"):
                index = ProductIndex.build(
                    retriever.vectors.embedding,
                    catalog.products["product_id"],
                    dataclasses.replace(settings.index, kind=kind),
                    model_fingerprint=model.fingerprint(),
                    catalogue_fingerprint=catalog.fingerprint,
                )
            with timed(f"search {kind}, best 100", len(vectors), "queries"):
                for vector in vectors:
                    index.search(vector, min(100, len(catalog)))
    table = pd.DataFrame(rows, columns=["stage", "seconds", "count", "unit", "per_second"])
    table.attrs["legend"] = f"{threads} threads; largest resident memory {peak_memory_bytes() / 2**30:.2f} GiB"
    return table
