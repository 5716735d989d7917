"""Segments of queries: by length, by what is asked, by what is missing, by how often it was typed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from makelib.data.catalog import Catalog
from makelib.data.text import UNSPACED
from makelib.study.metrics import positives, share


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
        popularity = share(np.bincount(position, weights=clicks[product], minlength=len(query_rows)), count)
        if (popularity > 0).any():
            low, high = np.quantile(popularity[popularity > 0], [1 / 3, 2 / 3])
            columns["head"] = popularity > high
            columns["torso"] = (popularity > low) & (popularity <= high)
            columns["tail"] = (popularity > 0) & (popularity <= low)
            columns["unseen"] = popularity == 0
        known = set(catalog.queries["query"].iloc[np.unique(clicked_queries)].map(normal))
        columns["known string"] = np.array([normal(text) in known for text in texts], dtype=bool)
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
        stuffed = share(np.bincount(position, weights=stuffed, minlength=len(query_rows)), count)
        columns["clean titles"] = stuffed <= np.nanmedian(stuffed)
        columns["stuffed titles"] = stuffed > np.nanmedian(stuffed)

    if catalog.truth is not None and len(position):
        for name in catalog.truth.columns[catalog.truth.columns.str.startswith("title_names_")]:
            column = name.removeprefix("title_names_")
            asks = np.array([column in wanted for wanted in constraints], dtype=bool)
            told = catalog.truth[name].to_numpy(np.float64)[product]
            told = share(np.bincount(position, weights=told, minlength=len(query_rows)), count)
            columns[f"asks hidden {column}"] = asks & (told < 0.5)
            columns[f"asks told {column}"] = asks & (told >= 0.5)

    table = pd.DataFrame(columns, index=pd.Index(queries["query_id"].to_numpy(), name="query_id"))
    return table.loc[:, table.any() | (table.columns == "all")]


def normal(text: str) -> str:
    return " ".join(text.casefold().split())
