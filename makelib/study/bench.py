"""What each stage costs on this machine: one short run of everything, timed. Keeps nothing, and says only what it leaves out."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from makelib import settings as settings_module
from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar.world import generate
from makelib.data.sources.files.importer import import_folder
from makelib.model.training import train
from makelib.runtime import UserError, peak_memory_bytes, progress, set_threads
from makelib.search.index import ProductIndex
from makelib.search.retriever import Retriever
from makelib.settings import Settings
from makelib.study import ratios
from makelib.study.metrics import evaluate

#: single queries per latency
QUERIES = 200
KINDS = ("exact", "hnsw", "ivf", "ivf-pq")
#: vectors above which `hnsw`, built on one thread, would cost the reader a quarter of an hour
MOST_HNSW = 200_000


def bench(settings: Settings, out: Path) -> pd.DataFrame:
    """Generate, import, train, encode, index and search once; then what `makelib.study.ratios` measures against peers, as JSON
    into `out`.

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
            catalog = generate(settings.bazaar, Path(folder) / "bazaar")
        raw = _as_files(catalog, Path(folder) / "shop")
        with timed("import a folder", len(catalog), "products"):
            import_folder(raw, Path(folder) / "imported", dataclasses.replace(settings.files, limit=0))
        with timed("decode photographs", len(catalog), "images"):
            catalog.images(settings.model.image_size)
        with timed("train", settings.training.steps, "steps"):
            model = train(catalog, settings, 0, Path(folder) / "model")
        with timed("encode products", len(catalog), "products"):
            retriever = Retriever.build("bench", model, catalog)
        rows_asked = catalog.query_rows("test")  # spread over all: broad and narrow ones do not lie mixed
        rows_asked = rows_asked[np.linspace(0, len(rows_asked) - 1, min(QUERIES, len(rows_asked))).astype(int)]
        queries = catalog.queries["query"].iloc[rows_asked].tolist()
        with timed("encode queries, one by one", len(queries), "queries"):
            vectors = [model.encode_queries([query]) for query in queries]
        for kind in KINDS:
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
        rates = {f"{stage} per second": per_second for stage, *_, per_second in rows}
        stored = {
            "vectors, bytes per product": retriever.vectors.embedding[0].nbytes + retriever.vectors.weights[0].nbytes,
            "catalogue, bytes per product": (catalog.folder / "products.parquet").stat().st_size / len(catalog),
        }
        ratios.write(out, "stages", {"ratios": {**rates, **stored}, "rows": rows})
        ratios.write(out, "serving", ratios.serving(model, queries))
        ratios.write(out, "training", ratios.training(catalog, settings))
        embedding, asked = np.asarray(retriever.vectors.embedding), np.concatenate(vectors)
        ratios.write(out, "search", ratios.search(embedding, asked))
        ratios.write(out, "growth", ratios.growth(embedding, asked))
    table = pd.DataFrame(rows, columns=["stage", "seconds", "count", "unit", "per_second"])
    table.attrs["legend"] = f"{threads} threads; largest resident memory {peak_memory_bytes() / 2**30:.2f} GiB"
    return table


def _as_files(catalog: Catalog, folder: Path) -> Path:
    """A catalogue as a seller's folder: products.csv and photographs."""
    (folder / "images").mkdir(parents=True)
    names = np.where(catalog.present[:, 1], "images/" + catalog.products["product_id"] + ".jpg", "")
    for row in np.flatnonzero(catalog.present[:, 1]):
        catalog.image(row).save(folder / names[row])
    table = pd.concat([catalog.products[["product_id", "title"]].assign(image=names), catalog.attributes], axis=1)
    table.to_csv(folder / "products.csv", index=False)
    return folder


def search(retriever: Retriever, sizes: Sequence[int], queries: int = QUERIES, k: int = 10) -> pd.DataFrame:
    """Exact and approximate search as a catalogue grows: `index, products, milliseconds` (median of single queries on one
    thread), `recall` (of the exact first k), `megabytes`, `build seconds`.

    Larger catalogues are the trained model's own vectors, see `makelib.study.ratios.grown`.
    """
    rows = []
    texts = retriever.catalog.queries["query"].iloc[:queries].tolist()
    asked = retriever.model.encode_queries(texts)
    set_threads(1)
    try:
        for size in progress(sizes, description="sizes", unit="size"):
            vectors = ratios.grown(np.asarray(retriever.vectors.embedding), size)
            exact, k = None, min(k, size)
            for kind in KINDS:
                began = time.perf_counter()
                index = _where_enough(vectors, [str(row) for row in range(size)], settings_module.Index(kind=kind))
                if index is None:
                    continue
                built, seconds = time.perf_counter() - began, []
                found = np.empty((len(asked), k), dtype=np.int64)
                for row, query in enumerate(asked):
                    began = time.perf_counter()
                    found[row] = index.search(query[None], k)[0]
                    seconds.append(time.perf_counter() - began)
                exact = found if exact is None else exact
                recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, exact, strict=True)])
                rows.append((kind, size, 1000 * np.median(seconds), recall, index.nbytes / 1e6, built))
    finally:
        set_threads()
    return pd.DataFrame(rows, columns=["index", "products", "milliseconds", "recall", "megabytes", "build seconds"])


def _where_enough(vectors: np.ndarray, ids: Sequence[str], settings: settings_module.Index) -> ProductIndex | None:
    """The index to measure, or None and a line where its kind needs more vectors than there are, or takes too long to build."""
    try:
        if settings.kind == "hnsw" and len(vectors) > MOST_HNSW:
            raise UserError(
                f"one thread would build it from {len(vectors):,} vectors for many minutes; ivf is its rival there."
            )
        return ProductIndex.build(vectors, ids, settings, model_fingerprint="bench", catalogue_fingerprint="bench")
    except UserError as error:
        print(f"{settings.kind} is left out: {error}")
        return None


def quality(retriever: Retriever, query_rows: np.ndarray, settings: Settings) -> pd.DataFrame:
    """Mean scores on test queries with each kind of index, over the retriever's own catalogue."""
    catalog, depth = retriever.catalog, min(max(settings.evaluation.cutoffs), len(retriever.catalog))
    asked = retriever.model.encode_queries(catalog.queries["query"].iloc[query_rows].tolist())
    rows = {}
    for kind in KINDS:
        kind_settings = dataclasses.replace(settings.index, kind=kind)
        index = _where_enough(retriever.vectors.embedding, catalog.products["product_id"], kind_settings)
        if index is None:
            continue
        found, _ = index.search(asked, depth)
        scores = evaluate(catalog, query_rows, found, settings.evaluation)
        rows[kind] = scores[["Rel@10", "Recall@100", "HitRate@100", "nDCG@10"]].mean()
    return pd.DataFrame(rows).T.rename_axis("index")
