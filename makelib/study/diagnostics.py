"""What a trained space looks like, beside how well it ranks: its shape, what its scores mean, what wrong negatives cost it.

Q queries, N products, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from makelib.model.keywords import FalseNegatives, WordTables
from makelib.search.retriever import Retriever
from makelib.settings import Settings
from makelib.study.arms import queries_of
from makelib.study.metrics import FULL, positives

#: products and queries whose distances are looked at; ranks whose scores are
SAMPLE, DEPTH = 2000, 50
#: bins of a reliability diagram, of equal size
BINS = 10


def geometry(retrievers: Mapping[str, Retriever], query_rows: np.ndarray) -> pd.DataFrame:
    """Alignment and uniformity (Wang and Isola, 2020) of each variant, both better where lower.

    `alignment` is the mean squared distance of a query and what is fully relevant to it; `uniformity of products`, `of queries` the
    log of the mean of exp(−2 · squared distance) over pairs: near 0 where all lie on one spot, −4 at most where they spread
    over the sphere.
    """
    lines = {}
    for name, retriever in retrievers.items():
        queries = _queries(retriever, query_rows)
        products = retriever.vectors.embedding
        position, product = positives(retriever.catalog, query_rows)
        asked, begin = np.unique(position, return_index=True)
        # query by query: a word that a tenth of a million products meet has more positives than all others together
        met = zip(queries[asked], np.split(product, begin)[1:], strict=True)
        apart = [2 - 2 * np.mean(products[rows].astype(np.float32) @ query) for query, rows in met]
        chosen = np.sort(np.random.default_rng(0).permutation(len(products))[:SAMPLE])
        lines[name] = {
            "alignment": np.mean(apart) if apart else np.nan,
            "uniformity of products": _uniformity(products[chosen].astype(np.float32)),
            "uniformity of queries": _uniformity(queries[:SAMPLE]),
        }
    return pd.DataFrame(lines).T.rename_axis("variant")


def _uniformity(vectors: np.ndarray) -> float:
    squared = 2 - 2 * (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return float(np.log(np.exp(-2 * squared).mean())) if len(squared) else np.nan


def calibration(
    retrievers: Mapping[str, Retriever], settings: Settings, bins: int = BINS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Whether a score means the same for every query: could a shop cut its pages at one threshold?

    A monotone map from score to the chance of full relevance is fitted on the first hits of validation queries (isotonic regression)
    and judged on those of test queries. Returns a line for each variant, `calibration error` (mean distance of promised and
    observed, weighted by bins), `Brier` and `Brier of a constant`; and the diagram, `variant, promised, observed, hits`. Without queries
    of both splits the lines are NaN and the diagram is empty.
    """
    lines, diagrams = {}, [pd.DataFrame(columns=["variant", "promised", "observed", "hits"])]
    for name, retriever in retrievers.items():
        (seen, was), (scores, relevant) = (
            _hits(retriever, queries_of(retriever.catalog, settings, split)) for split in ("validation", "test")
        )
        if not len(seen) or not len(scores):
            lines[name] = dict.fromkeys(("calibration error", "Brier", "Brier of a constant"), np.nan)
            continue
        learned = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(seen, was)
        promised = learned.predict(scores)
        place = np.argsort(np.argsort(promised, kind="stable"), kind="stable") * bins // len(promised)
        table = pd.DataFrame({"promised": promised, "observed": relevant, "hits": 1}).groupby(place)
        diagram = table.agg({"promised": "mean", "observed": "mean", "hits": "sum"})
        lines[name] = {
            "calibration error": np.average(np.abs(diagram["promised"] - diagram["observed"]), weights=diagram["hits"]),
            "Brier": np.mean((promised - relevant) ** 2),
            "Brier of a constant": np.mean((was.mean() - relevant) ** 2),
        }
        diagrams.append(diagram.assign(variant=name))
    return pd.DataFrame(lines).T.rename_axis("variant"), pd.concat(diagrams[1:] or diagrams, ignore_index=True)


def _hits(retriever: Retriever, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the first `DEPTH` hits of queries, and which are fully relevant, flat."""
    rows, scores = retriever.index.search(_queries(retriever, query_rows), min(DEPTH, len(retriever.catalog)))
    relevant = retriever.catalog.relevance(query_rows, np.maximum(rows, 0)) >= FULL
    found = rows >= 0
    return scores[found].astype(np.float64), relevant[found].astype(np.float64)


def cost_of_errors(retriever: Retriever, settings: Settings, batches: int = 20) -> pd.DataFrame:
    """What each error of a rule for false negatives costs, by what a trained model would be pushed with.

    In `query_product` the gradient on a negative is its share of the row's softmax. Of a row's push, mean over rows of random
    training batches: `wrong push` goes against products that truly are relevant and that the rule overlooked; `lost push` is what
    true negatives would have given that the rule kept out (in shares of all true negatives). `overlooked` and `kept out wrongly`
    count them per row.
    """
    catalog, random = retriever.catalog, np.random.default_rng(0)
    judge = FalseNegatives(catalog, WordTables.of(catalog))
    queries, products = catalog.clicks("train")
    B = min(settings.training.batch_size, len(queries))
    scale = retriever.model.scale().item()
    sums = {rule: np.zeros(4) for rule in ("raw", "none", "rule", "oracle")}
    for _ in range(batches):
        chosen = random.choice(len(queries), B, replace=False)
        asked, clicked = queries[chosen], products[chosen]
        vectors = np.asarray(retriever.vectors.embedding[clicked], np.float64)
        pushes = np.exp(scale * (_queries(retriever, asked) @ vectors.T - 1))  # (B, B)
        off = ~np.eye(B, dtype=bool)
        truth = judge.truth(asked, clicked) & off
        right = pushes * (off & ~truth)
        for rule, total in sums.items():
            negatives = getattr(judge, rule)(asked, clicked).negatives & off
            overlooked, lost = truth & negatives, off & ~truth & ~negatives
            total += [
                overlooked.sum(axis=1).mean(),
                ((pushes * overlooked).sum(axis=1) / (pushes * negatives).sum(axis=1).clip(1e-300)).mean(),
                lost.sum(axis=1).mean(),
                ((pushes * lost).sum(axis=1) / right.sum(axis=1).clip(1e-300)).mean(),
            ]
    columns = ["overlooked", "wrong push", "kept out wrongly", "lost push"]
    return pd.DataFrame({rule: total / batches for rule, total in sums.items()}, columns).T.rename_axis("rule")


def _queries(retriever: Retriever, rows: np.ndarray) -> np.ndarray:
    return retriever.model.encode_queries(retriever.catalog.queries["query"].iloc[rows].tolist())
