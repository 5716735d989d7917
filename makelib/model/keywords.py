"""Keyword Enhancement: which words of a title matter, queries enriched with them, and which in-batch negatives are false.

The paper names the aim (richer representations of brief queries, fewer false negatives); the three parts here are ours and
each has its own switch. Word sets are sparse matrices and a batch costs a few sparse products, never a loop over pairs.

N products, Q queries, V words, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from makelib.data.catalog import Catalog
from makelib.data.text import segmenter, words
from makelib.settings import Keywords

#: what decides the tables beside the catalogue, and the arrays that a sparse matrix is made of
CODE, CSR = ("data/text.py", "data/catalog.py", "model/keywords.py"), ("data", "indices", "indptr")


@dataclass(frozen=True)
class WordTables:
    """Which words stand in which title and query, counted once per catalogue.

    Attributes:
        vocabulary: V words, sorted; those of titles of products seen in training and of training queries.
        titles: bool csr (N, V). queries: bool csr (Q, V).
        known: bool (Q,), whether every word of the query is in `vocabulary`.
        typed: float32 csr (N, V), in how many training clicks on the product was the word typed.
        clicks: float32 (N,), training clicks per product.
        idf: float32 (V,), from the titles of seen products.
    """

    vocabulary: list[str]
    titles: sp.csr_matrix
    queries: sp.csr_matrix
    known: np.ndarray
    typed: sp.csr_matrix
    clicks: np.ndarray
    idf: np.ndarray

    @classmethod
    def of(cls, catalog: Catalog) -> WordTables:
        """Counted now, or kept when another arm or process counted. Everything learned comes from training data: titles of seen
        products, training queries and clicks."""
        kept = catalog.kept("words", lambda: _counted(catalog), segmenter(), CODE)
        arrays = {name: kept[name] for name in ("known", "clicks", "idf")}
        for name, rows in (("titles", len(catalog)), ("queries", len(catalog.queries)), ("typed", len(catalog))):
            parts = tuple(kept[f"{name}.{part}"] for part in CSR)
            arrays[name] = sp.csr_matrix(parts, shape=(rows, len(kept["idf"])))
        return cls(vocabulary=kept["vocabulary"].tobytes().decode().split("\n"), **arrays)


def _counted(catalog: Catalog) -> dict[str, np.ndarray]:
    """What `WordTables` holds, as arrays."""
    query_rows, product_rows = catalog.clicks("train")
    N, Q, seen = len(catalog), len(catalog.queries), np.flatnonzero(catalog.seen)
    counter = CountVectorizer(analyzer=words, binary=True, dtype=np.float32)
    counts = counter.fit_transform([*catalog.products["title"].fillna(""), *catalog.queries["query"]])
    learned = np.flatnonzero(counts[np.concatenate([seen, N + catalog.query_rows("train")])].getnnz(axis=0))
    inside = counts[:, learned].tocsr()
    inside.sort_indices()
    titles, queries = inside[:N], inside[N:]
    pairs = sp.csr_matrix((np.ones(len(query_rows), np.float32), (product_rows, query_rows)), shape=(N, Q))
    typed = (pairs @ queries).tocsr()
    tables = {"titles": titles, "queries": queries, "typed": typed}
    return {
        "vocabulary": np.frombuffer("\n".join(counter.get_feature_names_out()[learned]).encode(), np.uint8),
        "known": inside.getnnz(axis=1)[N:] == counts.getnnz(axis=1)[N:],
        "clicks": np.asarray(pairs.sum(axis=1)).ravel(),
        "idf": TfidfTransformer().fit(titles[seen]).idf_.astype(np.float32),
        **{f"{name}.{part}": getattr(table, part) for name, table in tables.items() for part in CSR},
    }


def tfidf(tables: WordTables) -> sp.csr_matrix:
    """Weight of each word of each title, csr (N, V): its idf. Plain, and misled by stuffing: a wrong rare brand weighs most."""
    return tables.titles.multiply(tables.idf[None, :]).tocsr()


def salience(tables: WordTables, prior_clicks: float = 4.0) -> sp.csr_matrix:
    """Weight of each word of each title, csr (N, V), learned from training clicks only (ours).

    `weight(n, v) = idf(v) · (typed(n, v) + m · rate(v)) / (clicks(n) + m)`: how often shoppers who clicked this very product had
    typed the word, drawn towards `rate(v)`, how often those who clicked *any* title with the word had typed it. A word
    stuffed into a title is not typed by those who click it, so its weight falls; a product without clicks falls back to the rate.
    """
    shown = np.asarray(tables.titles.multiply(tables.clicks[:, None]).sum(axis=0)).ravel()
    typed_in_title = tables.titles.multiply(tables.typed).tocsr()
    rate = (np.asarray(typed_in_title.sum(axis=0)).ravel() + 1.0) / (shown + 20.0)  # smoothed towards 1 in 20
    weight = typed_in_title + tables.titles.multiply(prior_clicks * rate[None, :])
    weight = weight.multiply(1.0 / (tables.clicks[:, None] + prior_clicks)).multiply(tables.idf[None, :])
    return weight.tocsr().astype(np.float32)


EXTRACTORS = {"tfidf": tfidf, "salience": salience}


@dataclass(frozen=True)
class KeywordTable:
    """The `per_title` heaviest words of every title.

    Attributes:
        vocabulary: V words, object (V,). ids: int32 (N, k), -1 where there are fewer. weights: float32 (N, k).
    """

    vocabulary: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, catalog: Catalog, settings: Keywords) -> KeywordTable:
        """Weighed now, or kept when another arm or process did."""
        tables = WordTables.of(catalog)
        kept = catalog.kept(
            "keywords",
            lambda: _heaviest(EXTRACTORS[settings.extractor](tables), settings.per_title),
            [settings.extractor, settings.per_title, segmenter()],
            CODE,
        )
        return cls(np.array(tables.vocabulary, dtype=object), kept["ids"], kept["weights"])

    def words(self, product: int) -> list[tuple[str, float]]:
        """Keywords of one product with their weights, heaviest first."""
        there = self.ids[product] >= 0
        found = self.vocabulary[self.ids[product][there]], self.weights[product][there].tolist()
        return list(zip(*found, strict=True))


def _heaviest(weights: sp.csr_matrix, k: int) -> dict[str, np.ndarray]:
    """Columns and values of the k largest entries of each row, int32 and float32 (N, k)."""
    ids = np.full((weights.shape[0], k), -1, dtype=np.int32)
    values = np.zeros((weights.shape[0], k), dtype=np.float32)
    # one sort over all entries: by title, then by falling weight, then by word, so that ties are stable
    entries = weights.tocoo()
    order = np.lexsort((entries.col, -entries.data, entries.row))
    rows = entries.row[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    top = rank < k
    ids[rows[top], rank[top]] = entries.col[order][top]
    values[rows[top], rank[top]] = entries.data[order][top]
    return {"ids": ids, "weights": values}


def enrich(
    keywords: KeywordTable,
    queries: sp.csr_matrix,
    product_rows: np.ndarray,
    settings: Keywords,
    random: np.random.Generator,
) -> np.ndarray:
    """The words behind the query in `q⁺ = query [SEP] keywords` for each row of a batch: up to `per_query` keywords of the clicked
    product, int64 (B, per_query), -1 where there is none.

    Sampled without replacement in proportion to their weight among those not already in the query; each is then dropped
    with probability `keyword_dropout`. `queries`: word sets of the batch's queries, csr (B, V).
    """
    ids, weights = keywords.ids[product_rows], keywords.weights[product_rows].astype(np.float64)  # (B, k)
    said = np.asarray(queries[np.arange(len(ids))[:, None], np.maximum(ids, 0)].todense()) > 0
    weights[said | (ids < 0)] = 0.0
    # Gumbel top-k is sampling without replacement in proportion to the weights
    noise = random.gumbel(size=weights.shape)
    score = np.where(weights > 0, np.log(np.maximum(weights, 1e-12)) + noise, -np.inf)
    chosen = np.argsort(-score, axis=1, kind="stable")[:, : settings.per_query]
    kept = np.isfinite(np.take_along_axis(score, chosen, 1)) & (random.random(chosen.shape) >= settings.keyword_dropout)
    return np.where(kept, np.take_along_axis(ids, chosen, 1), -1)


def keyword_queries(
    keywords: KeywordTable, product_rows: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, sp.csr_matrix]:
    """Queries made of one to three keywords of the clicked products, for a `share` of a batch's rows, int64 (B, k), -1 for none.

    Shoppers' queries are few and soon learned by heart; these are without number. Also returns their words as csr (B, V).
    """
    ids, weights = keywords.ids[product_rows], keywords.weights[product_rows].astype(np.float64)  # (B, k)
    score = np.where(ids >= 0, np.log(np.maximum(weights, 1e-12)) + random.gumbel(size=ids.shape), -np.inf)
    rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)
    wanted = random.integers(1, 4, len(ids)) * (random.random(len(ids)) < share)
    chosen = (rank < wanted[:, None]) & (ids >= 0)
    row, place = np.nonzero(chosen)
    counts = sp.csr_matrix(
        (np.ones(len(row), np.float32), (row, ids[row, place])), (len(ids), len(keywords.vocabulary))
    )
    return np.where(chosen, ids, -1), counts


class Masks(NamedTuple):
    """positives, negatives bool (B, B); a pair that is neither is left out of every loss."""

    positives: np.ndarray
    negatives: np.ndarray


class FalseNegatives:
    """Decides which products of a batch may serve as negatives of which queries (docs/method.md: rules R0 to R2, ours).

    - R0: the same product, or a duplicate listing of it, is no negative.
    - R1: a product that the query was clicked on in training, or the clicked product of the same query string, is no negative.
    - R2: where every word of the query stands in its own positive's title, a product of the same category whose title has them
      all too is no negative. It abstains where the words carry no evidence.
    """

    def __init__(self, catalog: Catalog, tables: WordTables) -> None:
        query_rows, product_rows = catalog.clicks("train")
        self.catalog, self.tables, self.groups = catalog, tables, catalog.groups
        self.category = catalog.category_numbers
        self.strings = catalog.queries["query"].str.strip().str.lower().astype("category").cat.codes.to_numpy()
        self.clicked = sp.csr_matrix(
            (np.ones(len(query_rows), np.float32), (self.strings[query_rows], self.groups[product_rows])),
            shape=(self.strings.max(initial=0) + 1, self.groups.max(initial=0) + 1),
        )
        self.lengths = np.asarray(tables.queries.sum(axis=1)).ravel()

    def rule(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> Masks:
        """Rules R0 to R2 for the batch of clicked pairs (queries[i], products[i]), rows int64 (B,), of which `rows` are asked.

        A positive is the row's own click and the same click seen again. Pairs of R1 are left out rather than pulled together:
        as further positives they cost recall on validation queries, for one click in ten is wrong and popular strings bring most.
        """
        same, positives = self._same(queries, products, rows)
        certain = same | self._clicked(self.strings[queries[rows]], self.groups[products])
        return _masks(positives, certain, certain | self.worded(queries, products, rows))

    def _same(self, queries: np.ndarray, products: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of the same product or the same query string, and those of both (the row's own click among them), bool (b, B)."""
        strings, groups = self.strings[queries], self.groups[products]
        same_string, same_product = strings[rows, None] == strings, groups[rows, None] == groups
        return same_string | same_product, same_string & same_product

    def _clicked(self, strings: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Whether the query was clicked on the product in training, bool (b, B)."""
        asked, row = np.unique(strings, return_inverse=True)  # popular strings have clicks by the thousand
        known, back = np.unique(groups, return_inverse=True)
        clicks = self.clicked[asked]
        place = np.minimum(np.searchsorted(known, clicks.indices), len(known) - 1)
        hit = known[place] == clicks.indices
        found = np.zeros((len(asked), len(known)), dtype=bool)
        found[np.repeat(np.arange(len(asked)), np.diff(clicks.indptr))[hit], place[hit]] = True
        return found[row[:, None], back]

    def worded(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Rule R2, bool (b, B): one sparse product counts how many words of query i stand in title j."""
        asked, titles = self.tables.queries[queries[rows]], self.tables.titles[products]
        lengths, category = self.lengths[queries[rows]], self.category[products]
        own = np.asarray(asked.multiply(titles[rows]).sum(axis=1)).ravel()
        telling = np.flatnonzero((own >= lengths) & self.tables.known[queries[rows]] & (lengths > 0))
        likely = np.zeros((len(lengths), len(products)), dtype=bool)
        likely[telling] = (asked[telling] @ titles.T).toarray() >= lengths[telling, None]
        return likely & (category[rows, None] == category) & (category > 0)

    def oracle(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> Masks:
        """The upper bound: no fully relevant product is ever a negative. Needs the truth, so it serves comparison only."""
        _, positives = self._same(queries, products, rows)
        return _masks(positives, positives, positives | self.truth(queries, products, rows))

    def none(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> Masks:
        """In-batch negatives as public losses have them, without accidental hits: rule R0, and the same query string."""
        same, positives = self._same(queries, products, rows)
        return Masks(positives, ~same)

    def raw(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> Masks:
        """Every other row is a negative, also the row's own click seen again: a named arm, and no baseline."""
        own = _own(queries, rows)
        return Masks(own, ~own)

    def replace(self, masks: Masks, asked: sp.csr_matrix, products: np.ndarray, rows: slice) -> None:
        """Rows of `masks` (b, B) whose query was replaced by the words `asked`, csr (B, V), in place: what they ask for is any
        product whose title has them all, so none of these is a negative."""
        counts = np.asarray(asked[rows].sum(axis=1)).ravel()
        covered = (asked[rows] @ self.tables.titles[products].T).toarray() >= counts[:, None]
        same_product = self.groups[products][rows, None] == self.groups[products]
        at = counts > 0
        masks.positives[at] = _own(products, rows)[at]
        masks.negatives[at] = ~(covered | same_product)[at]

    def admissible(self, kind: str, query: int, products: np.ndarray) -> np.ndarray:
        """Which `products` (C,) may serve as mined negatives of a training query, bool (C,): none that shoppers clicked for it
        (R0, R1) and, where `kind` says so, none that rule R2 or the truth keeps."""
        clicked = self.clicked[self.strings[query]].indices  # groups
        kept = np.isin(self.groups[products], clicked)
        if kind == "rule":
            own = np.flatnonzero(np.isin(self.groups, clicked))
            pairs = np.concatenate([own, products])
            worded = self.worded(np.full(len(pairs), query), pairs, slice(len(own)))
            kept |= worded[:, len(own) :].any(axis=0)
        elif kind == "oracle":
            kept |= self.catalog.relevance(np.array([query]), products)[0] >= 1.0
        return ~kept

    def truth(self, queries: np.ndarray, products: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Fully relevant pairs, bool (b, B)."""
        return self.catalog.relevance(queries[rows], products) >= 1.0


def _own(queries: np.ndarray, rows: slice) -> np.ndarray:
    """The clicks themselves, bool (b, B)."""
    places = np.arange(len(queries))
    return places[rows, None] == places


def _masks(positives: np.ndarray, certain: np.ndarray, masked: np.ndarray) -> Masks:
    """At most half of each row is kept from being a negative: certain pairs before the others, then from left to right."""
    half = masked.shape[1] // 2
    kept = masked.copy()
    full = np.flatnonzero(masked.sum(axis=1) > half)  # few; only their pairs are counted
    sure, likely = certain[full], masked[full] & ~certain[full]
    room = half - np.cumsum(sure, axis=1)
    kept[full] = sure & (room >= 0) | likely & (np.cumsum(likely, axis=1) <= np.maximum(room[:, -1:], 0))
    return Masks(positives, ~kept & ~positives)
