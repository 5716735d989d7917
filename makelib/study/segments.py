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
    - `known users`, `new users`: whether at least half of those who asked had asked in training, too, where a log tells of users
      (the catalogue's `askers.csv`).
    - `asked visual`, `asked textual`, `asked mixed`: kinds (`catalog.info["attribute_kinds"]`) of the constraints; the
      product type counts for neither side, so a query for a type alone is in none.
    - `clean titles`, `stuffed titles`: by `catalog.truth["stuffed_words"]` per fully relevant product, up to and above
      its median over the queries; `careful photographs`, `careless photographs`: the same of products whose photographs the import
      spoiled (`catalog.truth["careless"]`).
    - `asks hidden <column>`, `asks told <column>`: queries for a value of a column that terse sellers leave out of titles
      (`catalog.truth["title_names_<column>"]`), by whether less than half of the fully relevant titles tell it.

    A segment that the catalogue cannot define, or that no query is in, is left out.
    """
    asked = _Asked(catalog, np.asarray(query_rows, dtype=np.int64))
    columns = {"all": np.ones(len(asked.texts), dtype=bool)}
    for kind in (_led, _lengths, _clicked, _users, _constrained, _disturbed, _hidden):
        columns |= kind(asked)
    ids = catalog.queries["query_id"].to_numpy()[query_rows]
    table = pd.DataFrame(columns, index=pd.Index(ids, name="query_id"))
    return table.loc[:, table.any() | (table.columns == "all")]


class _Asked:
    """Queries with what is fully relevant to them: `position` (n,) of a query and `product` (n,) row, pair by pair."""

    def __init__(self, catalog: Catalog, query_rows: np.ndarray) -> None:
        queries = catalog.queries.iloc[query_rows]
        self.catalog, self.texts, self.ids = catalog, queries["query"].tolist(), queries["query_id"]
        self.constraints = [value or {} for value in queries["constraints"]]
        self.position, self.product = positives(catalog, query_rows)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of products' values (N,) over what is fully relevant to each query, (Q,); NaN where nothing is."""
        Q = len(self.texts)
        sums = np.bincount(self.position, weights=values[self.product], minlength=Q)
        return share(sums, np.bincount(self.position, minlength=Q))


def _led(asked: _Asked) -> dict[str, np.ndarray]:
    if not (led := asked.catalog.info.get("led")):
        return {}
    code, names = pd.factorize(asked.catalog.products["category"])
    named = code[asked.product] >= 0
    votes = sp.coo_matrix(
        (np.ones(named.sum()), (asked.position[named], code[asked.product][named])),
        shape=(len(asked.texts), max(len(names), 1)),
    ).tocsr()
    sides = np.array([led.get(name) for name in names] or [None], dtype=object)
    side = sides[np.asarray(votes.argmax(axis=1)).ravel()]
    return {f"{name}-led": (side == name) & (votes.getnnz(axis=1) > 0) for name in ("image", "title")}


def _lengths(asked: _Asked) -> dict[str, np.ndarray]:
    length = np.array(
        [
            len(wanted) if " " not in text.strip() and UNSPACED.search(text) else len(text.split())
            for text, wanted in zip(asked.texts, asked.constraints, strict=True)
        ]
    )
    return {"1 word": length == 1, "2 words": length == 2, "3+ words": length >= 3}


def _clicked(asked: _Asked) -> dict[str, np.ndarray]:
    clicked_queries, clicked_products = asked.catalog.clicks("train")
    if not len(clicked_products):
        return {}
    columns = {}
    popularity = asked.mean(np.bincount(clicked_products, minlength=len(asked.catalog)))
    if (popularity > 0).any():
        low, high = np.quantile(popularity[popularity > 0], [1 / 3, 2 / 3])
        columns = {
            "head": popularity > high,
            "torso": (popularity > low) & (popularity <= high),
            "tail": (popularity > 0) & (popularity <= low),
            "unseen": popularity == 0,
        }
    known = set(asked.catalog.queries["query"].iloc[np.unique(clicked_queries)].map(normal))
    typed = np.array([normal(text) in known for text in asked.texts], dtype=bool)
    return columns | {"known string": typed, "new string": ~typed}


def _users(asked: _Asked) -> dict[str, np.ndarray]:
    file = asked.catalog.folder / "askers.csv"
    if not file.is_file():
        return {}
    known = pd.read_csv(file, dtype={"query_id": str}, keep_default_na=False).set_index("query_id")["known"]
    share_known = asked.ids.map(known).to_numpy(np.float64)
    return {"known users": share_known >= 0.5, "new users": share_known < 0.5}


def _constrained(asked: _Asked) -> dict[str, np.ndarray]:
    if not (kinds := asked.catalog.info.get("attribute_kinds")):
        return {}
    visual, textual = (
        np.array([any(kinds.get(key) == kind for key in wanted) for wanted in asked.constraints], dtype=bool)
        for kind in ("visual", "textual")
    )
    return {"asked visual": visual & ~textual, "asked textual": textual & ~visual, "asked mixed": visual & textual}


def _disturbed(asked: _Asked) -> dict[str, np.ndarray]:
    truth, columns = asked.catalog.truth, {}
    if truth is None or not len(asked.position):
        return {}
    disturbed = {("clean titles", "stuffed titles"): truth.get("stuffed_words")}
    if "careless" in truth and (truth["careless"] != "").any():
        disturbed["careful photographs", "careless photographs"] = truth["careless"] != ""
    for (less, more), values in disturbed.items():
        if values is not None:
            share = asked.mean(values.to_numpy(np.float64))
            columns |= {less: share <= np.nanmedian(share), more: share > np.nanmedian(share)}
    return columns


def _hidden(asked: _Asked) -> dict[str, np.ndarray]:
    truth = asked.catalog.truth
    if truth is None or not len(asked.position):
        return {}
    columns = {}
    for name in truth.columns[truth.columns.str.startswith("title_names_")]:
        column = name.removeprefix("title_names_")
        asks = np.array([column in wanted for wanted in asked.constraints], dtype=bool)
        told = asked.mean(truth[name].to_numpy(np.float64))
        columns[f"asks hidden {column}"] = asks & (told < 0.5)
        columns[f"asks told {column}"] = asks & (told >= 0.5)
    return columns


def normal(text: str) -> str:
    return " ".join(text.casefold().split())
