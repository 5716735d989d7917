"""How retrieval is judged: metrics per query, segments, intervals and tests, lexical and behavioural baselines.

It starts where a ranking of product rows is there, whoever made it, and ends in tables; it knows no model, no figure.
Scores *per query* are what is kept; every mean, interval and test is computed from them.

Q queries, K retrieved products, N products, S seeds, A arms, M metrics, C intents (clusters of queries).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import numpy as np
import pandas as pd
import scipy.sparse as sp

from makelib import settings as settings_module
from makelib.catalog import Catalog
from makelib.runtime import UserError, atomic_file
from makelib.text import UNSPACED, words

#: relevance from which a product counts as fully relevant (1, up to rounding)
FULL = 1 - 1e-6
#: integer grade of a fully relevant product in TREC files; shares of up to six constraints are whole numbers of it
TREC_GRADE = 60

# -- metrics ----------------------------------------------------------------------------------------------------------


def evaluate(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, settings: settings_module.Evaluation | None = None
) -> pd.DataFrame:
    """Scores of a run, one row per query in the order of `query_rows` (Q,).

    Args:
        query_rows: distinct rows of `catalog.queries`, (Q,).
        rows: ranked product rows, (Q, K), best first; -1 where nothing was found. K reaches the largest cutoff or N.

    Returns columns `query_id, query, intent, positives` (number of fully relevant products) and, as fractions:
        - `HitRate@K`: share of the query's clicks whose product is among the first K; with one click, whether it is.
        - `Recall@K`: fully relevant products among the first K / all fully relevant products of the catalogue.
        - `Rel@K`: graded relevance of the first K, summed, / K; `Rel@K ceiling` is what the best ranking would get.
        - `nDCG@10`: on graded relevance, gain = grade, discount 1 / log2(1 + rank) (Järvelin and Kekäläinen, 2002).
        - `MRR@10`: 1 / rank of the first fully relevant product, 0 beyond rank 10.
        - `Recall@K no title`, `Recall@K no image`, K the largest cutoff: `recall_within` the products that lack one, where
          the catalogue has such.
    Where a metric has no meaning it is NaN: HitRate without a click, Recall and MRR without a fully relevant product,
    Rel and nDCG without any relevant product. The paper reports hit rate and relevance; the definitions are ours.

    Raises ValueError for a run that is too short, names a product twice or a row that does not exist.
    """
    settings = settings or settings_module.Evaluation()
    query_rows, rows = np.asarray(query_rows, dtype=np.int64), np.asarray(rows, dtype=np.int64)
    _check_run(catalog, query_rows, rows, depth=max(*settings.cutoffs, 10))
    parts = [_graded(relevance, rows[part], settings.cutoffs) for part, relevance in _relevance(catalog, query_rows)]
    graded = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    position, product = _clicked(catalog, query_rows)
    match = rows[position] == product[:, None]  # (clicks, K)
    clicks = np.bincount(position, minlength=len(query_rows))
    hits = {}
    for cutoff in settings.cutoffs:
        found = np.bincount(position, weights=match[:, :cutoff].any(axis=1), minlength=len(query_rows))
        hits[f"HitRate@{cutoff}"] = _share(found, clicks)
    about = catalog.queries[["query_id", "query", "intent"]].iloc[query_rows].reset_index(drop=True)
    for name, there in zip(("no title", "no image"), catalog.present.T, strict=True):
        if not there.all():
            cutoff = max(settings.cutoffs)
            graded[f"Recall@{cutoff} {name}"] = recall_within(catalog, query_rows, rows, ~there, cutoff)
    return about.assign(positives=graded.pop("positives"), **hits, **graded)


def _graded(relevance: np.ndarray, rows: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """What follows from relevance (Q, N) alone; each value (Q,)."""
    found = np.where(rows >= 0, np.take_along_axis(relevance, np.maximum(rows, 0), axis=1), 0).astype(np.float64)
    depth = min(max(*cutoffs, 10), relevance.shape[1])
    ideal = -np.sort(np.partition(-relevance, depth - 1, axis=1)[:, :depth], axis=1).astype(np.float64)  # (Q, depth)
    full = found >= FULL
    positives = (relevance >= FULL).sum(axis=1)
    judged = ideal[:, 0] > 0
    discount = 1 / np.log2(2 + np.arange(10))

    def dcg(gains: np.ndarray) -> np.ndarray:
        return gains[:, :10] @ discount[: gains[:, :10].shape[1]]

    scores = {"positives": positives}
    for k in cutoffs:
        scores[f"Recall@{k}"] = _share(full[:, :k].sum(axis=1), positives)
        scores[f"Rel@{k}"] = np.where(judged, found[:, :k].sum(axis=1) / k, np.nan)
        scores[f"Rel@{k} ceiling"] = np.where(judged, ideal[:, :k].sum(axis=1) / k, np.nan)
    scores["nDCG@10"] = _share(dcg(found), dcg(ideal))
    first = np.where(full[:, :10].any(axis=1), 1 / (1 + full[:, :10].argmax(axis=1)), 0)
    scores["MRR@10"] = np.where(positives > 0, first, np.nan)
    return scores


def positives(catalog: Catalog, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and a fully relevant product: positions in `query_rows` and product rows, int64 (n,) each."""
    pairs = []
    for part, relevance in _relevance(catalog, query_rows):
        position, product = np.nonzero(relevance >= FULL)
        pairs.append((position + part.start, product))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def recall_within(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, products: np.ndarray, cutoff: int = 100
) -> np.ndarray:
    """Recall@cutoff per query, (Q,), of those fully relevant products that are in `products`, bool (N,); else NaN.

    The ranking stays the one over the whole catalogue, so that parts of the catalogue compete as they do in use.
    """
    position, product = positives(catalog, query_rows)
    wanted = products[product]
    position, product = position[wanted], product[wanted]
    found = (np.asarray(rows)[position, :cutoff] == product[:, None]).any(axis=1)
    return _share(
        np.bincount(position, weights=found, minlength=len(query_rows)),
        np.bincount(position, minlength=len(query_rows)),
    )


def cells(catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, cutoff: int = 100) -> pd.DataFrame:
    """Recall@cutoff per query by what was in the training data: `in-domain`, `new query`, `new product`, `both new`.

    A query is known when it belongs to the split `train`, a product when a training click touched it or its twin
    listing (`catalog.seen`). Index `query_id`; a query has values in the two cells of its own side, NaN in the others.
    """
    known = catalog.queries["split"].to_numpy()[query_rows] == "train"
    seen, cold = (recall_within(catalog, query_rows, rows, part, cutoff) for part in (catalog.seen, ~catalog.seen))
    return pd.DataFrame(
        {
            "in-domain": np.where(known, seen, np.nan),
            "new query": np.where(known, np.nan, seen),
            "new product": np.where(known, cold, np.nan),
            "both new": np.where(known, np.nan, cold),
        },
        index=pd.Index(catalog.queries["query_id"].to_numpy()[query_rows], name="query_id"),
    )


def _relevance(catalog: Catalog, query_rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Relevance of all products, a few queries at a time: 64 MB, however large the catalogue."""
    step = max(1, 2**24 // max(len(catalog), 1))
    for start in range(0, max(len(query_rows), 1), step):
        part = slice(start, start + step)
        yield part, catalog.relevance(query_rows[part])


def _clicked(catalog: Catalog, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clicks of these queries: positions in `query_rows` and product rows, one entry per click."""
    table = catalog.interactions
    position = np.full(len(catalog.queries), -1)
    position[query_rows] = np.arange(len(query_rows))
    position = position[table["query"].to_numpy()]
    keep = (position >= 0) & (table["kind"] == "click").to_numpy() & (table["label"] > 0).to_numpy()
    return position[keep], table["product"].to_numpy(np.int64)[keep]


def _check_run(catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, depth: int) -> None:
    if rows.ndim != 2 or len(rows) != len(query_rows):
        raise ValueError(
            f"A run has one row of products per query: {len(query_rows)} queries, rows of shape {rows.shape}."
        )
    if len(np.unique(query_rows)) != len(query_rows):
        raise ValueError("A query stands twice in query_rows.")
    if rows.shape[1] < min(depth, len(catalog)):
        raise ValueError(f"The run holds {rows.shape[1]} products per query, but the metrics look at {depth}.")
    if rows.size and not -1 <= rows.min() <= rows.max() < len(catalog):
        raise ValueError(f"The run names product rows outside 0 to {len(catalog) - 1}.")
    ordered = np.sort(rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("The run names a product twice for one query.")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


# -- segments ---------------------------------------------------------------------------------------------------------


def segments(catalog: Catalog, query_rows: np.ndarray) -> pd.DataFrame:
    """Which query belongs to which segment: bool columns, index `query_id` in the order of `query_rows`.

    - `all`
    - `image-led`, `title-led`: by `catalog.info["led"]` of the category that most fully relevant products have.
    - `1 word`, `2 words`, `3+ words`: words between spaces. A query in a script without spaces counts its constraints,
      and is in none of the three where there are none.
    - `head`, `torso`, `tail`, `unseen`: by training clicks per fully relevant product. Splits keep intents apart, so a
      test query has no clicks of its own and borrows those of what it is after; `unseen` = none, the rest in thirds.
    - `known string`, `new string`: whether the very string was typed and clicked in training.
    - `asked visual`, `asked textual`, `asked mixed`: kinds (`catalog.info["attribute_kinds"]`) of the constraints; the
      product type counts for neither side, so a query for a type alone is in none.
    - `clean titles`, `stuffed titles`: by `catalog.truth["stuffed_words"]` per fully relevant product, up to and above
      its median over the queries.

    - `asks hidden <column>`, `asks told <column>`: queries for a value of a column that terse sellers leave out of titles
      (`catalog.truth["title_names_<column>"]`), by whether less than half of the fully relevant titles tell it.

    A segment that the catalogue cannot define, or that no query is in, is left out.
    """
    query_rows = np.asarray(query_rows, dtype=np.int64)
    queries = catalog.queries.iloc[query_rows]
    texts, constraints = queries["query"].tolist(), [value or {} for value in queries["constraints"]]
    position, product = positives(catalog, query_rows)
    count = np.bincount(position, minlength=len(query_rows))
    columns = {"all": np.ones(len(query_rows), dtype=bool)}

    if led := catalog.info.get("led"):
        code, names = pd.factorize(catalog.products["category"])
        named = code[product] >= 0
        votes = sp.coo_matrix(
            (np.ones(named.sum()), (position[named], code[product][named])), shape=(len(query_rows), max(len(names), 1))
        ).tocsr()
        side = np.array([led.get(name) for name in names] or [None], dtype=object)[
            np.asarray(votes.argmax(axis=1)).ravel()
        ]
        for name in ("image", "title"):
            columns[f"{name}-led"] = (side == name) & (votes.getnnz(axis=1) > 0)

    length = np.array(
        [
            len(wanted) if " " not in text.strip() and UNSPACED.search(text) else len(text.split())
            for text, wanted in zip(texts, constraints, strict=True)
        ]
    )
    columns |= {"1 word": length == 1, "2 words": length == 2, "3+ words": length >= 3}

    clicked_queries, clicked_products = catalog.clicks("train")
    if len(clicked_products):
        clicks = np.bincount(clicked_products, minlength=len(catalog))
        popularity = _share(np.bincount(position, weights=clicks[product], minlength=len(query_rows)), count)
        if (popularity > 0).any():
            low, high = np.quantile(popularity[popularity > 0], [1 / 3, 2 / 3])
            columns["head"] = popularity > high
            columns["torso"] = (popularity > low) & (popularity <= high)
            columns["tail"] = (popularity > 0) & (popularity <= low)
            columns["unseen"] = popularity == 0
        known = set(catalog.queries["query"].iloc[np.unique(clicked_queries)].map(_normal))
        columns["known string"] = np.array([_normal(text) in known for text in texts], dtype=bool)
        columns["new string"] = ~columns["known string"]

    if kinds := catalog.info.get("attribute_kinds"):
        visual, textual = (
            np.array([any(kinds.get(key) == kind for key in wanted) for wanted in constraints], dtype=bool)
            for kind in ("visual", "textual")
        )
        columns |= {
            "asked visual": visual & ~textual,
            "asked textual": textual & ~visual,
            "asked mixed": visual & textual,
        }

    if catalog.truth is not None and "stuffed_words" in catalog.truth and len(position):
        stuffed = catalog.truth["stuffed_words"].to_numpy(np.float64)[product]
        stuffed = _share(np.bincount(position, weights=stuffed, minlength=len(query_rows)), count)
        columns["clean titles"] = stuffed <= np.nanmedian(stuffed)
        columns["stuffed titles"] = stuffed > np.nanmedian(stuffed)

    if catalog.truth is not None and len(position):
        for name in catalog.truth.columns[catalog.truth.columns.str.startswith("title_names_")]:
            column = name.removeprefix("title_names_")
            asks = np.array([column in wanted for wanted in constraints], dtype=bool)
            told = catalog.truth[name].to_numpy(np.float64)[product]
            told = _share(np.bincount(position, weights=told, minlength=len(query_rows)), count)
            columns[f"asks hidden {column}"] = asks & (told < 0.5)
            columns[f"asks told {column}"] = asks & (told >= 0.5)

    table = pd.DataFrame(columns, index=pd.Index(queries["query_id"].to_numpy(), name="query_id"))
    return table.loc[:, table.any() | (table.columns == "all")]


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


# -- statistics -------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """What `paired_difference` found: `a - b`, its interval, and p values over the mean of the seeds and per seed."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    p_values_per_seed: list[float]


def interval(
    scores: Mapping[int, Sequence[float]] | np.ndarray,
    clusters: Sequence[Any],
    resamples: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> tuple[float, float, float]:
    """Mean and percentile interval (mean, lo, hi) by a bootstrap over seeds and, crossed with them, intents.

    Every resample draws S seeds and C intents with replacement; all queries of an intent come along, and they are the
    same for every seed, because every seed answered the same queries. With few seeds the interval understates how much
    seeds differ; with one it speaks of queries only.

    Args:
        scores: (S, Q), or seed to (Q,). A query that is NaN in any seed is left out.
        clusters: intent of each query, (Q,).

    Returns NaN bounds where fewer than two intents are left: no interval can be given.
    """
    scores = _stack(scores)
    keep = ~np.isnan(scores).any(axis=0)
    if not keep.any():
        return np.nan, np.nan, np.nan
    codes = pd.factorize(np.asarray(clusters, dtype=object)[keep])[0]
    scores = scores[None, :, keep, None]
    low, high = _bootstrap(scores, codes, resamples, seed, alpha)
    return float(scores.mean()), float(low[0, 0]), float(high[0, 0])


def paired_difference(
    a: Mapping[int, Sequence[float]] | np.ndarray,
    b: Mapping[int, Sequence[float]] | np.ndarray,
    clusters: Sequence[Any],
    resamples: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Difference:
    """Mean of `a - b`, (S, Q) each, its interval as in `interval`, and two-sided p values of a paired randomisation.

    If the arms were alike, their labels could be swapped within any intent: the test flips the sign of each intent's
    summed difference (averaged over seeds first) at random, or all 2^C ways where that is no more than `resamples`, and
    asks how often the mean lies as far from 0 as the one observed. The p value speaks of queries, given these seeds;
    those per seed show whether the seeds agree.
    """
    differences = _stack(a) - _stack(b)
    keep = ~np.isnan(differences).any(axis=0)
    if not keep.any():
        return Difference(np.nan, (np.nan, np.nan), np.nan, [np.nan] * len(differences))
    codes = pd.factorize(np.asarray(clusters, dtype=object)[keep])[0]
    differences = differences[None, :, keep, None]
    low, high = _bootstrap(differences, codes, resamples, seed, alpha)
    p_values = _sign_flips(differences, codes, resamples, seed)[0, :, 0]
    return Difference(
        float(differences.mean()), (float(low[0, 0]), float(high[0, 0])), float(p_values[-1]), p_values[:-1].tolist()
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p values (1979), in the order given: what keeps a family of claims below alpha."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _stack(scores: Mapping[int, Sequence[float]] | np.ndarray) -> np.ndarray:
    if isinstance(scores, Mapping):
        scores = np.stack([np.asarray(scores[seed], dtype=np.float64) for seed in sorted(scores)])
    return np.atleast_2d(np.asarray(scores, dtype=np.float64))


def _cluster_sums(scores: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(A, S, Q, M) summed over the queries of each cluster: (C, A, S, M)."""
    arms, seeds, queries, metrics = scores.shape
    member = sp.csr_matrix((np.ones(queries), (clusters, np.arange(queries))))  # (C, Q)
    return (member @ np.moveaxis(scores, 2, 0).reshape(queries, arms * seeds * metrics)).reshape(
        member.shape[0], arms, seeds, metrics
    )


def _bootstrap(
    scores: np.ndarray, clusters: np.ndarray, resamples: int, seed: int, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, (A, M) each, of the mean of scores (A, S, Q, M). A resample is a row of counts; means are a product."""
    arms, seeds, _, metrics = scores.shape
    sizes = np.bincount(clusters).astype(np.float64)  # (C,)
    if len(sizes) < 2:
        return np.full((arms, metrics), np.nan), np.full((arms, metrics), np.nan)
    sums = _cluster_sums(scores, clusters).reshape(len(sizes), -1)  # (C, A * S * M)
    rng = np.random.default_rng([seed, 0])
    means = np.empty((resamples, arms, metrics))
    step = max(1, 2**22 // max(len(sizes), sums.shape[1]))
    for start in range(0, resamples, step):
        drawn = min(step, resamples - start)
        picks = rng.integers(len(sizes), size=(drawn, len(sizes))) + len(sizes) * np.arange(drawn)[:, None]
        counts = np.bincount(picks.ravel(), minlength=drawn * len(sizes)).reshape(drawn, -1).astype(np.float64)
        by_seed = (counts @ sums / (counts @ sizes)[:, None]).reshape(drawn, arms, seeds, metrics)
        share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=drawn) / seeds  # (drawn, S)
        means[start : start + drawn] = np.einsum("rasm,rs->ram", by_seed, share)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2], axis=0)
    return low, high


def _sign_flips(differences: np.ndarray, clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """p values (A, S + 1, M) of differences (A, S, Q, M): each seed, then the mean of the seeds."""
    sums = _cluster_sums(differences, clusters)  # (C, A, S, M)
    sums = np.concatenate([sums, sums.mean(axis=2, keepdims=True)], axis=2)
    shape, sums = sums.shape[1:], sums.reshape(len(sums), -1)
    observed = np.abs(sums.sum(axis=0)) - 1e-9 * np.abs(sums).sum(axis=0)  # equal up to rounding counts as equal
    exact = len(sums) < 63 and 2 ** len(sums) <= resamples
    total = 2 ** len(sums) if exact else resamples
    rng = np.random.default_rng([seed, 1])
    as_far = np.zeros(sums.shape[1])
    step = max(1, 2**22 // max(sums.shape))
    for start in range(0, total, step):
        drawn = min(step, total - start)
        if exact:
            flips = (np.arange(start, start + drawn)[:, None] >> np.arange(len(sums))) & 1
        else:
            flips = rng.integers(0, 2, size=(drawn, len(sums)), dtype=np.int8)
        as_far += (np.abs((2.0 * flips - 1) @ sums) >= observed).sum(axis=0)
    p_values = as_far / total if exact else (as_far + 1) / (total + 1)
    return p_values.reshape(shape)


# -- tables of results ------------------------------------------------------------------------------------------------


class MissingArms(UserError):
    """An arm or a comparison that was asked for did not run; `missing` lists them. Nothing is scored in its place."""

    def __init__(self, missing: Sequence[tuple]) -> None:
        self.missing = list(missing)
        super().__init__(
            f"Not run: {', '.join(' '.join(map(str, arm)) for arm in missing)}. "
            "Run what is missing, or leave it out of the comparison; a missing arm is never scored 0."
        )


def result_rows(
    study: str,
    per_query: Mapping[str, Mapping[int, pd.DataFrame]],
    references: Sequence[tuple[str, str]],
    segments: pd.DataFrame,
    settings: settings_module.Evaluation | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The rows that `summary.json` keeps for a study: one per variant, metric and segment, and per further reference.

    Args:
        per_query: variant to seed to what `evaluate` returned, for the same queries in the same order throughout.
        references: pairs (variant, reference) to compare; a variant's first pair stands in its first row.
        segments: what `segments` returned for these queries.

    Keys: `study, variant, metric, segment, queries, intents, per_seed` (seeds sorted), `mean, interval, reference,
    difference, difference_percent` (of the reference's mean; None where that is 0), `difference_interval, p_value,
    p_values_per_seed`. Values are JSON-able fractions; the last six are None where there is no reference. They
    are those of `interval` and `paired_difference`. A query that is NaN in one arm leaves all of them; a metric that
    a segment's queries define for fewer than two intents could have no interval and is left out.

    Raises `MissingArms` when a variant lacks a seed that another one has, or a reference did not run at all.
    """
    settings = settings or settings_module.Evaluation()
    variants = list(per_query)
    seeds = sorted({number for runs in per_query.values() for number in runs})
    named = dict.fromkeys([*variants, *(name for pair in references for name in pair)])
    missing = [
        (name, f"seed {number}") for name in named for number in seeds if per_query.get(name, {}).get(number) is None
    ]
    if missing or not seeds:
        raise MissingArms(missing or [(study,)])
    first = per_query[variants[0]][seeds[0]]
    metrics = [column for column in first if "@" in column and not column.endswith("ceiling")]
    ids = first["query_id"].to_numpy()
    frames = [[per_query[name][number] for number in seeds] for name in variants]
    if not np.array_equal(ids, segments.index) or not all(
        np.array_equal(ids, frame["query_id"]) for runs in frames for frame in runs
    ):
        raise ValueError(f"{study}: the tables do not hold the same queries in the same order.")
    scores = np.array([[frame[metrics].to_numpy(np.float64) for frame in runs] for runs in frames])  # (A, S, Q, M)
    number_of = {name: number for number, name in enumerate(variants)}
    pairs = [(number_of[variant], number_of[reference]) for variant, reference in references]
    defined = ~np.isnan(scores).any(axis=(0, 1))  # (Q, M)
    intents = pd.factorize(first["intent"])[0]

    table = []
    judged = {
        name: _judge(scores, pairs, defined & segments[[name]].to_numpy(), intents, settings, seed) for name in segments
    }
    for (a, variant), segment, (m, metric) in itertools.product(enumerate(variants), segments, enumerate(metrics)):
        found = judged[segment]
        if found.intents[m] < 2:
            continue
        row = {
            "study": study,
            "variant": variant,
            "metric": metric,
            "segment": segment,
            "queries": int(found.queries[m]),
            "intents": int(found.intents[m]),
            "per_seed": found.means[a, :, m].tolist(),
            "mean": float(found.means[a, :, m].mean()),
            "interval": found.bounds[:, a, m].tolist(),
            **dict.fromkeys(("reference", "difference", "difference_percent", "difference_interval")),
            **dict.fromkeys(("p_value", "p_values_per_seed")),
        }
        own = [p for p, pair in enumerate(pairs) if pair[0] == a]
        for p in own:
            base = float(found.means[pairs[p][1], :, m].mean())
            difference = row["mean"] - base
            table.append(
                row
                | {
                    "reference": references[p][1],
                    "difference": difference,
                    "difference_percent": 100 * difference / base if base else None,
                    "difference_interval": found.bounds[:, len(variants) + p, m].tolist(),
                    "p_value": float(found.p_values[p, -1, m]),
                    "p_values_per_seed": found.p_values[p, :-1, m].tolist(),
                }
            )
        if not own:
            table.append(row)
    return table


class _Judged(NamedTuple):
    """One segment: `means` (A, S, M), `bounds` (2, A + pairs, M), `p_values` (pairs, S + 1, M), counts (M,)."""

    queries: np.ndarray
    intents: np.ndarray
    means: np.ndarray
    bounds: np.ndarray
    p_values: np.ndarray


def _judge(
    scores: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    keep: np.ndarray,
    intents: np.ndarray,
    settings: settings_module.Evaluation,
    seed: int,
) -> _Judged:
    """Statistics of scores (A, S, Q, M) over the queries that `keep` (Q, M) and of the differences of pairs of arms.

    Metrics kept for the same queries share their resamples: a dozen metrics cost little more than one.
    """
    arms, seeds, _, metrics = scores.shape
    found = _Judged(
        np.zeros(metrics, dtype=np.int64),
        np.zeros(metrics, dtype=np.int64),
        np.full((arms, seeds, metrics), np.nan),
        np.full((2, arms + len(pairs), metrics), np.nan),
        np.full((len(pairs), seeds + 1, metrics), np.nan),
    )
    patterns, pattern_of = np.unique(keep, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        chosen = np.flatnonzero(pattern_of == number)
        clusters, names = pd.factorize(intents[pattern])
        found.queries[chosen], found.intents[chosen] = len(clusters), len(names)
        if len(names) < 2:
            continue
        values = scores[:, :, pattern][..., chosen]
        gaps = np.array([values[a] - values[b] for a, b in pairs]).reshape(-1, *values.shape[1:])
        found.means[..., chosen] = values.mean(axis=2)
        found.bounds[..., chosen] = _bootstrap(
            np.concatenate([values, gaps]), clusters, settings.resamples, seed, settings.alpha
        )
        found.p_values[..., chosen] = _sign_flips(gaps, clusters, settings.resamples, seed)
    return found


def adjust(rows: list[dict[str, Any]], planned: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Give each row `p_value_holm`, in place: a number for planned comparisons in segment `all`, None for all others.

    Args:
        planned: triples (study, variant, reference), fixed before the results are seen. Per metric they are one family
            (hit rate and relevance answer different questions). Give all of a report in one call: split over several,
            each family is smaller and the correction weaker.

    Returns the rows. Raises `MissingArms` when a planned comparison has no row.
    """
    family = {
        (row["metric"], row["study"], row["variant"], row["reference"]): row for row in rows if row["segment"] == "all"
    }
    if missing := sorted(set(planned) - {key[1:] for key in family}):
        raise MissingArms(missing)
    for row in rows:
        row["p_value_holm"] = None
    for metric in {key[0] for key in family}:
        chosen = [family[metric, *pair] for pair in planned if (metric, *pair) in family]
        for row, p_value in zip(chosen, holm([row["p_value"] for row in chosen]), strict=True):
            row["p_value_holm"] = float(p_value)
    return rows


def significance_table(
    rows: Sequence[Mapping[str, Any]], metrics: str | Sequence[str], segment: str = "all", alpha: float = 0.05
) -> pd.DataFrame:
    """Rows of `result_rows` for a reader: one line per variant, metric and reference, with the verdict spelled out.

    Means in per cent; differences in points and, relative to the reference, in per cent. The verdict takes the
    Holm-adjusted p value where `adjust` gave one. `attrs["legend"]` explains the columns in one sentence.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    lines = []
    for row in rows:
        if row["segment"] != segment or row["metric"] not in metrics:
            continue
        low, high = row["interval"]
        line = {
            "variant": row["variant"],
            "metric": row["metric"],
            "queries": row["queries"],
            "mean": f"{row['mean']:.1%} [{low:.1%}, {high:.1%}]".replace("%", " %"),
            "against": row["reference"] or "–",
            **dict.fromkeys(("points", "relative", "p", "verdict"), "–"),
        }
        if row["reference"] is not None:
            low, high = row["difference_interval"]
            holm_p = row.get("p_value_holm")
            p_value = row["p_value"] if holm_p is None else holm_p
            stars = "*" * sum(p_value < level for level in (0.05, 0.01, 0.001))
            better = "better" if row["difference"] > 0 else "worse"
            percent = row["difference_percent"]
            line |= {
                "points": f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                "relative": "–" if percent is None else f"{percent:+.1f} %",
                "p": ("< 0.001" if p_value < 0.001 else f"{p_value:.3f}") + ("" if holm_p is None else " (Holm)"),
                "verdict": f"{better} {stars}".strip() if p_value < alpha else "no significant difference",
            }
        lines.append((metrics.index(row["metric"]), line))
    table = pd.DataFrame([line for _, line in sorted(lines, key=lambda item: item[0])])
    table.attrs["legend"] = (
        f"Segment {segment!r}. Mean over seeds and queries with its interval (bootstrap over seeds and intents). "
        "Points: difference in percentage points; relative: in per cent of the reference. p: paired randomisation by "
        "intent; * p < 0.05, ** p < 0.01, *** p < 0.001."
    )
    return table


# -- baselines --------------------------------------------------------------------------------------------------------


def bm25_run(catalog: Catalog, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """BM25 over titles (Lucene's variant, k1 = 1.5, b = 0.75): rows int64 (Q, k), scores float32 (Q, k).

    Equal scores are in the order of rows; products without a word of the query are not retrieved (-1, score -inf).
    """
    engine = bm25s.BM25()
    titles = [words(title or "") for title in catalog.products["title"]]
    engine.index(titles if any(titles) else [["\0"]] * len(titles), show_progress=False)
    return _run(
        (engine.get_scores(words(query)) for query in catalog.queries["query"].iloc[query_rows]),
        len(query_rows), len(catalog), k,
    )  # fmt: skip


def behaviour_run(catalog: Catalog, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What shoppers who typed the very same string in training clicked, most clicked first; the form of `bm25_run`.

    A string that nobody typed finds nothing: where behaviour is thin, this is what a system without content has.
    """
    clicked_queries, clicked_products = catalog.clicks("train")
    strings = catalog.queries["query"].map(_normal)
    codes, names = pd.factorize(strings)
    clicks = sp.coo_matrix(
        (np.ones(len(clicked_products)), (codes[clicked_queries], clicked_products)), shape=(len(names), len(catalog))
    ).tocsr()
    return _run((clicks[codes[row]].toarray()[0] for row in query_rows), len(query_rows), len(catalog), k)


def _run(scores: Iterator[np.ndarray], queries: int, products: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full((queries, min(k, products)), -1, dtype=np.int64)
    best = np.full(rows.shape, -np.inf, dtype=np.float32)
    for position, values in enumerate(scores):
        floor = np.partition(values, -rows.shape[1])[-rows.shape[1]]  # the k-th best, with all its equals
        found = np.flatnonzero((values > 0) & (values >= floor))
        found = found[np.argsort(-values[found], kind="stable")][:k]
        rows[position, : len(found)], best[position, : len(found)] = found, values[found]
    return rows, best


# -- files for other tools --------------------------------------------------------------------------------------------


def export_trec(
    catalog: Catalog, query_rows: np.ndarray, rows: np.ndarray, scores: np.ndarray, folder: Path | str, tag: str
) -> None:
    """Write `run.trec`, `qrels.trec` and `clicks.trec`, which `trec_eval` and `ir_measures` read.

    - Run: scores (Q, K) as float32, lowered by the smallest step where equal, because those tools break ties by id.
    - Judgments: relevance times 60, rounded; 60 is fully relevant. They hold all fully relevant products, all graded
      products of this run and the best 100 of each query: enough for every metric here on *this* run, and a fraction of
      all graded pairs. To compare runs in another tool, join their files.
    - Clicks: 1 per clicked product; recall on this file is the hit rate of queries without repeated clicks.

    Raises `UserError` when an id holds white space, which the format cannot carry.
    """
    query_rows, rows = np.asarray(query_rows, dtype=np.int64), np.asarray(rows, dtype=np.int64)
    _check_run(catalog, query_rows, rows, depth=0)
    query_ids = catalog.queries["query_id"].to_numpy(object)[query_rows]
    product_ids = catalog.products["product_id"].to_numpy(object)
    for name in (*query_ids, *product_ids):
        if re.search(r"\s", name):
            raise UserError(
                f"TREC files cannot carry the id {name!r}: it holds white space; rename it in the catalogue."
            )
    folder = Path(folder)

    falling = np.asarray(scores, dtype=np.float32).copy()
    for rank in range(1, falling.shape[1]):
        falling[:, rank] = np.minimum(falling[:, rank], np.nextafter(falling[:, rank - 1], np.float32(-np.inf)))
    with atomic_file(folder / "run.trec") as draft, draft.open("w", encoding="utf-8") as file:
        for query, (found, values) in enumerate(zip(rows, falling, strict=True)):
            for rank, (row, value) in enumerate(zip(found, values, strict=True), start=1):
                if row >= 0:
                    file.write(f"{query_ids[query]} Q0 {product_ids[row]} {rank} {value:.9g} {tag}\n")
    with atomic_file(folder / "qrels.trec") as draft, draft.open("w", encoding="utf-8") as file:
        for part, relevance in _relevance(catalog, query_rows):
            depth = min(100, len(catalog)) - 1
            for query, grades in enumerate(relevance, start=part.start):
                kept = np.union1d(np.flatnonzero(grades >= FULL), np.argpartition(-grades, depth)[: depth + 1])
                kept = np.union1d(kept, rows[query][rows[query] >= 0])
                file.writelines(
                    f"{query_ids[query]} 0 {product_ids[row]} {round(TREC_GRADE * float(grades[row]))}\n"
                    for row in kept[grades[kept] > 0]
                )
    with atomic_file(folder / "clicks.trec") as draft, draft.open("w", encoding="utf-8") as file:
        pairs = np.unique(np.stack(_clicked(catalog, query_rows), axis=1), axis=0)
        file.writelines(f"{query_ids[query]} 0 {product_ids[row]} 1\n" for query, row in pairs)
