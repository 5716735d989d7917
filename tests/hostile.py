"""A catalogue whose titles, ids and names try to break out of the page, and untrained models that search it."""

import io
import re

import numpy as np
import pandas as pd
import torch
from PIL import Image

from makelib.data.tables import write_catalog
from makelib.data.text import train_tokenizer
from makelib.model.make import MakeModel
from makelib.search.retriever import Retriever
from makelib.settings import Model, Objectives, Text

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "' onmouseover='window.hacked = 1",
    '<a href="javascript:window.hacked=1">free</a>',
    "</style></div></article><style>body { display: none }</style>",
    "\u202egnitset \u2066right to left\u202e",
    "&lt;b&gt; &amp;amp; {{7*7}} ${7*7}",
    "<svg/onload=window.hacked=1>",
]


def picture(random):
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (40, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def hostile_catalog(folder, hostile=True):
    """60 products in two categories; every tenth lacks its image, every fourteenth its title; the last are hostile.

    Not `hostile`: the same catalogue with nothing but letters and digits in it.
    """
    said = (lambda text: text) if hostile else (lambda text: re.sub(r"\W+", " ", text).strip())
    random = np.random.default_rng(0)
    words = ["acme", "bolt", "core", "new", "summer", "gift"]
    titles = [" ".join(random.choice(words, 4)) + f" n{i}" for i in range(60 - len(HOSTILE))] + [
        said(title) for title in HOSTILE
    ]
    colours = random.choice(["red", "blue"], 60)
    products = pd.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(59)] + [said('p<b>"59"</b>')],
            "title": [None if i % 14 == 3 else title for i, title in enumerate(titles)],
            "image": [None if i % 10 == 7 else picture(random) for i in range(60)],
            "category": ["dress" if i % 2 else said("<i>bag</i>") for i in range(60)],
            "attributes": [{"colour": colour, "brand": "acme"} for colour in colours],
        }
    )
    queries = pd.DataFrame(
        {
            "query_id": ["a", "b", "c", "d", "e"],
            "query": ["red acme", "blue acme", "red thing", said("<b>acme</b>"), "red"],
            "split": ["train", "train", "test", "test", "test"],
            "constraints": [
                {"colour": "red", "brand": "acme"},
                {"colour": "blue", "brand": "acme"},
                {"colour": "red", "brand": "bolt"},
                {"brand": "acme"},
                {"colour": "red"},
            ],
        }
    )
    clicks = pd.DataFrame([("a", "p0"), ("a", "p4"), ("b", "p1"), ("c", "p2")], columns=["query_id", "product_id"])
    return write_catalog(
        folder,
        name=said("<u>hostile</u>"),
        products=products,
        queries=queries,
        interactions=clicks.assign(label=1.0, kind="click"),
    )


def untrained_retrievers(catalog):
    """Small models as they are born, but for a gate and word weights that are stirred up."""
    tokenizer = train_tokenizer(catalog.products["title"].fillna(""), 400)
    found = {}
    for fusion in ("adaptive", "title", "joint"):
        torch.manual_seed(0)
        model = MakeModel.from_settings(Model(fusion=fusion, width=32, dim=16), Text(), Objectives(), tokenizer).eval()
        if fusion == "adaptive":
            torch.nn.init.normal_(model.fusion.weigh.mlp[-1].weight)
            torch.nn.init.normal_(model.fusion.words.score.weight)
        found[fusion] = Retriever.build(fusion, model, catalog)
    return found
