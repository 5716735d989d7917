"""Why one product came back for one query, and what would change it: numbers from a `Retriever`, no HTML, no widgets.

Everything is measured by asking the model again: leave a word out, cover a patch, blank the image, edit the title. That
works for every fusion, also those whose score does not split.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from makelib.data.catalog import Catalog
from makelib.data.text import join, pieces, words
from makelib.model.make import MakeModel, ProductVectors
from makelib.search.retriever import Retriever

#: how many words of a long title are left out one by one; the rest is beyond what the encoder reads anyway
MOST_WORDS = 48

#: how many of the nearest other products are shown
NEIGHBOURS = 6

#: what is said of a query about whose words nothing was ever learned
GUESS = "no word of this query stands in a title or in a training query: these are guesses"


def knows(catalog: Catalog, query: str) -> bool:
    """Whether some word of a query stands in a training query or in a title; about others a model can only guess."""
    asked = words(query)
    return any(not _learned(catalog, table).isdisjoint(asked) for table in ("queries", "products"))


@functools.lru_cache(maxsize=16)
def _learned(catalog: Catalog, table: str) -> frozenset[str]:
    """Words of training queries, or of titles: those of a large catalogue take seconds, and are asked for when queries lack them."""
    queries = catalog.queries["query"].iloc[catalog.query_rows("train")]
    texts = queries if table == "queries" else catalog.products["title"].dropna()
    return frozenset(itertools.chain.from_iterable(map(words, texts)))


@dataclass(frozen=True)
class Evidence:
    """What speaks for a product, in units of the score (a cosine).

    Attributes:
        score, rank: of the product in the whole catalogue, rank from 1.
        parts: title and image part of the score, float (2,), sum `score`; NaN where the fusion does not split.
        weights: modal weights of title and image, float (2,); NaN where the fusion has none.
        words: the title's words in order, each with how much the score falls when it is left out.
        heat: float (g, g), how much the score falls when the first image is covered there; None without an image.
        images: where there are several, how much the score falls when each is left out, float (k,); else empty.
        neighbours: rows of the nearest other products, int64 (n,).
    """

    score: float
    rank: int
    parts: np.ndarray
    weights: np.ndarray
    words: list[tuple[str, float]]
    heat: np.ndarray | None
    images: np.ndarray
    neighbours: np.ndarray


@dataclass(frozen=True)
class Variation:
    """A product as it is, or as it would be: `weights` (2,) of title and image, `score`, `rank` in the catalogue."""

    weights: np.ndarray
    score: float
    rank: int


def evidence(retriever: Retriever, query: np.ndarray, row: int, *, grid: int = 8) -> Evidence:
    """Ask why product `row` has its score for the query embedding `query`, float32 (d,).

    Words by leave-one-out, patches by occlusion with grey (Zeiler and Fergus, 2014) in a window of two by two cells of
    a `grid` x `grid`; all variations are encoded in one batch.
    """
    catalog, model = retriever.catalog, retriever.model
    own = catalog.photographs(row, model.config.image_size)  # (k, S, S, 3)
    title = title_of(catalog, row)
    split = pieces(title)
    words = split[:MOST_WORDS]
    titles = [title] + [join(split[:i] + split[i + 1 :]) for i in range(len(words))]
    covered = [np.concatenate([cover[None], own[1:]]) for cover in _covered(own[0], grid)] if len(own) else []
    without = [np.delete(own, place, axis=0) for place in range(len(own))] if len(own) > 1 else []
    texts = titles + [title] * (len(covered) + len(without))
    images, category = [own] * len(titles) + covered + without, catalog.category_numbers[row]
    scores = encode(model, texts, images, category).embedding @ query
    of_words, of_covers, of_images = np.split(scores[0] - scores, [len(titles), len(titles) + len(covered)])

    embedding = retriever.vectors.embedding
    nearest = retriever.index.search(embedding[row][None], NEIGHBOURS + 1)[0][0]
    score = float(embedding[row] @ query)
    return Evidence(
        score=score,
        rank=rank(retriever, query, score, row),
        parts=retriever.hits(query, np.array([row]), np.array([score]))[["score_title", "score_image"]].to_numpy()[0],
        weights=retriever.vectors.weights[row],
        words=[(word, float(fall)) for word, fall in zip(words, of_words[1:], strict=True)],
        heat=of_covers.reshape(grid, grid) if len(own) else None,
        images=of_images,
        neighbours=nearest[nearest != row][:NEIGHBOURS],
    )


def what_if(
    retriever: Retriever, query: np.ndarray, row: int, *, title: str | None = None, blank: bool = False
) -> tuple[Variation, Variation]:
    """Product `row` as it is listed, and with another `title` (None keeps it, "" removes it) or without its images.

    The rank is among all other products as they are.
    """
    catalog, model = retriever.catalog, retriever.model
    own = catalog.photographs(row, model.config.image_size)
    title = title_of(catalog, row) if title is None else title
    vectors = encode(model, [title], [own[:0] if blank else own], catalog.category_numbers[row])
    score = float(vectors.embedding[0].astype(retriever.vectors.embedding.dtype) @ query)  # rounded as the others are
    was = float(retriever.vectors.embedding[row] @ query)
    return (
        Variation(retriever.vectors.weights[row], was, rank(retriever, query, was, row)),
        Variation(vectors.weights[0], score, rank(retriever, query, score, row)),
    )


def encode(model: MakeModel, titles: Sequence[str], images: Sequence[np.ndarray], category: int = 0) -> ProductVectors:
    """Products of one category as they might be: n titles, and for each its photographs, uint8 (k, S, S, 3), k = 0 for none."""
    size = model.config.image_size
    first = np.stack([own[0] if len(own) else np.zeros((size, size, 3), np.uint8) for own in images])
    owner = np.repeat(np.arange(len(images)), [max(0, len(own) - 1) for own in images])
    further = np.concatenate([own[1:] for own in images])
    shown, categories = np.array([len(own) > 0 for own in images]), np.full(len(images), category)
    return model.encode_products(titles, first, shown, (further, owner), categories)


def title_of(catalog: Catalog, row: int) -> str:
    """The product's title, empty where it is missing."""
    title = catalog.products["title"].iloc[row]
    return title if isinstance(title, str) else ""


def rank(retriever: Retriever, query: np.ndarray, score: float, row: int) -> int:
    """The rank, from 1, that product `row` has with this score among all other products."""
    others = retriever.vectors.embedding @ query
    equal = np.abs(others - score) <= 1e-6  # equals are in the order of rows, as in the index
    equal[row:] = False
    better = others > score + 1e-6
    better[row] = False
    return 1 + int((better | equal).sum())


def _covered(picture: np.ndarray, grid: int) -> np.ndarray:
    """`picture` uint8 (S, S, 3) with each of the grid's windows in grey: uint8 (grid * grid, S, S, 3)."""
    size = len(picture)
    middle = (np.arange(grid) + 0.5) * size / grid
    near = np.abs(np.arange(size) + 0.5 - middle[:, None]) <= size / grid  # (g, S)
    window = near[:, None, :, None] & near[None, :, None, :]  # (g, g, S, S)
    return np.where(window.reshape(-1, size, size, 1), np.uint8(128), picture)
