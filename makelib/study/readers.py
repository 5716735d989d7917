"""Readers by rule in the generated world: how far a ranking could come that understands every query and every word.

They are told what a query asks (its constraints) and know the world's vocabulary, so no line of a table is fairer to them
than to a trained model; they say what titles and photographs hold. Only a catalogue whose truth is known has them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar.goods import ATTRIBUTE_KINDS, HIDDEN, VISUAL
from makelib.data.sources.bazaar.words import vocabulary
from makelib.study.baselines import ranked

#: how the lines are named: `reader` counts words of titles, `ideal_reader` knows which of them are true, and sees
READERS = ("reader", "ideal_reader")


def reader_run(catalog: Catalog, query_rows: np.ndarray, k: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The ranking of a reader, in the form of `bm25_run`: by the mean over the query's constraints of how likely the
    product meets them, equals by clicks in training.

    - `reader`: a title that names n values of an attribute gives each of them 1 / n, and any other 0; one that names none
      leaves the share of the catalogue that has the value.
    - `ideal_reader`: what the title names truthfully or the photograph legibly shows is known; else that share.
    """
    beliefs = _beliefs(catalog, ideal=name == "ideal_reader")
    clicks = np.bincount(catalog.clicks("train")[1], minlength=len(catalog))
    equals = 1e-6 * np.log1p(clicks) + 1e-9
    scores = (
        np.mean([beliefs[key][value].to_numpy() for key, value in wanted.items()], axis=0) + equals
        for wanted in catalog.queries["constraints"].iloc[query_rows]
    )
    return ranked(scores, len(query_rows), len(catalog), k)


def can_read(catalog: Catalog) -> bool:
    """Whether the catalogue is the generated world, whose words and truth are known."""
    return catalog.info.get("source") == "bazaar" and catalog.truth is not None


def _beliefs(catalog: Catalog, ideal: bool) -> dict[str, pd.DataFrame]:
    """Attribute -> products by its values: how likely the product has the value, float in [0, 1]."""
    named, table = _named(catalog), {}
    for key, holds in named.items():
        own = (catalog.attributes[key].astype(str).to_numpy()[:, None] == np.array(holds.columns)).astype(float)
        prior = own.mean(axis=0)
        if ideal:
            known = (own * holds.to_numpy()).any(axis=1) | _legible(catalog, key)
            belief = np.where(known[:, None], own, prior)
        else:
            count = holds.to_numpy().sum(axis=1, keepdims=True)
            belief = np.where(count > 0, holds.to_numpy() / np.maximum(count, 1), prior)
        table[key] = pd.DataFrame(belief, columns=holds.columns)
    return table


def _named(catalog: Catalog) -> dict[str, pd.DataFrame]:
    """Attribute -> products by its values: whether the title holds a word for the value, bool. A type names its category."""
    language = catalog.info["settings"]["language"]
    words = vocabulary(language)
    titles = catalog.products["title"].fillna("")
    held = titles if language == "zh" else titles.str.split().map(set)  # a Chinese title has no spaces between words
    named = {
        key: pd.DataFrame({value: [any(word in title for word in known) for title in held] for value, known in words[key].items()})
        for key in ATTRIBUTE_KINDS
    }  # fmt: skip
    for kind, category in catalog.attributes[["type", "category"]].astype(str).drop_duplicates().to_numpy():
        named["category"][category] |= named["type"][kind]
    return named


def _legible(catalog: Catalog, key: str) -> np.ndarray:
    """Whether the photograph shows the product's own value of this attribute, and less than half of it is hidden, bool (N,)."""
    if key not in ("category", "type", *VISUAL):
        return np.zeros(len(catalog), dtype=bool)
    shows = [
        "clean",
        *(kind for kind in ("blur", "watermark") if HIDDEN[kind]["type" if key == "category" else key] < 0.5),
    ]
    return catalog.truth["image_kind"].isin(shows).to_numpy()
