"""Fixtures that several test files share."""

import sys

import pandas as pd
import pytest

from makelib.data import text
from makelib.data.tables import write_catalog

pytest.register_assert_rewrite("explore")  # what the browser tests share


@pytest.fixture(params=["jieba", "pairs"])
def segmenter(request, monkeypatch):
    """With jieba and as if it were not installed."""
    if request.param == "pairs":
        monkeypatch.setitem(sys.modules, "jieba", None)
    else:
        pytest.importorskip("jieba")
    text._segmenter.cache_clear()
    yield request.param
    text._segmenter.cache_clear()


@pytest.fixture(scope="session")
def tiny_catalog(tmp_path_factory):
    """Five products without images and six queries: small enough to work out every number by hand.

    | row | product | category | colour | material | training clicks | stuffed words |
    | --- | --- | --- | --- | --- | --- | --- |
    | 0 | p0 | dress | red | | 3 | 0 |
    | 1 | p1 | dress | blue | | 1 | 0 |
    | 2 | p2 | pot | red | iron | 1 | 2 |
    | 3 | p3 | pot | blue | iron | 1 | 4 |
    | 4 | p4 | pot | blue | steel | 0 (cold) | 4 |

    Training queries 0 `red thing`, 1 `blue thing`; test queries 2 `red dress`, 3 `blue iron pot`, 4 `pot`, and 5 `Red
    Thing`, which has neither constraints nor clicks.
    """
    rows = [
        ("p0", "Acme dress", "dress", {"type": "dress", "colour": "red"}),
        ("p1", "Acme dress summer", "dress", {"type": "dress", "colour": "blue"}),
        ("p2", "iron pot", "pot", {"type": "pot", "colour": "red", "material": "iron"}),
        ("p3", "", "pot", {"type": "pot", "colour": "blue", "material": "iron"}),
        ("p4", "steel pot pot sale", "pot", {"type": "pot", "colour": "blue", "material": "steel"}),
    ]
    products = pd.DataFrame(rows, columns=["product_id", "title", "category", "attributes"])
    queries = pd.DataFrame(
        [
            ("r0", "red thing", "train", {"colour": "red"}),
            ("r1", "blue thing", "train", {"colour": "blue"}),
            ("t0", "red dress", "test", {"type": "dress", "colour": "red"}),
            ("t1", "blue iron pot", "test", {"type": "pot", "colour": "blue", "material": "iron"}),
            ("t2", "pot", "test", {"type": "pot"}),
            ("t3", "Red  Thing", "test", None),
        ],
        columns=["query_id", "query", "split", "constraints"],
    )
    clicks = ["r0 p0", "r0 p0", "r0 p0", "r0 p2", "r1 p1", "r1 p3", "t0 p0", "t1 p3", "t1 p4"]
    interactions = pd.DataFrame([click.split() for click in clicks], columns=["query_id", "product_id"])
    return write_catalog(
        tmp_path_factory.mktemp("tiny") / "catalogue",
        name="tiny",
        products=products,
        queries=queries,
        interactions=interactions.assign(label=1.0, kind="click"),
        truth=pd.DataFrame({"stuffed_words": [0, 0, 2, 4, 4]}),
        info={
            "led": {"dress": "image", "pot": "title"},
            "attribute_kinds": {"type": "type", "colour": "visual", "material": "textual"},
            "generated_queries": True,
        },
    )
