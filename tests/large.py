"""A retriever over a catalogue of any size in a few seconds: few pictures and random vectors, many rows."""

import io

import numpy as np
import pandas as pd
import torch
from PIL import Image

from makelib.data.catalog import Catalog
from makelib.data.text import train_tokenizer
from makelib.model.make import MakeModel, ProductVectors
from makelib.search.index import ProductIndex
from makelib.search.retriever import Retriever
from makelib.settings import Model, Objectives, Text

WORDS = [
    "red",
    "blue",
    "green",
    "dress",
    "shoe",
    "lamp",
    "bag",
    "pot",
    "cotton",
    "wool",
    "iron",
    "glass",
    "summer",
    "winter",
    "large",
    "small",
]


class Pixels:
    """As `Photographs`: few pictures that stand for those of many products."""

    def __init__(self, count: int, few: list[list[bytes]]) -> None:
        self._few, self.present, self.further = few, np.ones(count, bool), np.zeros(count, np.int64)

    def __getitem__(self, row: int) -> list[bytes]:
        return self._few[row % len(self._few)]

    def __iter__(self):
        return (self[row] for row in range(len(self.present)))


def photograph(random: np.random.Generator, size: int) -> bytes:
    """A JPEG with the detail of a photograph: soft noise, as a camera's."""
    coarse = Image.fromarray(random.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def large_retriever(folder, count: int, pictures: int = 64, size: int = 320, dim: int = 64) -> Retriever:
    """`count` products with random titles and vectors, a query for every fourth of them, ten clicks per query.

    The tables are made in memory and the pictures are repeated by reference, so that only searching costs what it would.
    """
    random = np.random.default_rng(0)
    titles = [" ".join(row) for row in np.array(WORDS)[random.integers(0, len(WORDS), (count, 5))]]
    products = pd.DataFrame(
        {
            "product_id": [f"p{row}" for row in range(count)],
            "title": titles,
            "category": np.array(["dresses", "shoes", "lamps"])[random.integers(0, 3, count)],
            "group": None,
        }
    )
    attributes = pd.DataFrame({"colour": [title.split()[0] for title in titles]}, dtype="category")
    asked = count // 4
    queries = pd.DataFrame(
        {
            "query_id": [f"q{row}" for row in range(asked)],
            "query": [f"{' '.join(title.split()[:2])} {row}" for row, title in enumerate(titles[:asked])],
            "split": "train",
            "constraints": [{"colour": title.split()[0]} for title in titles[:asked]],
            "intent": None,
        }
    )
    interactions = pd.DataFrame(
        {
            "query": random.integers(0, asked, 10 * asked),
            "product": random.integers(0, count, 10 * asked),
            "label": np.float32(1),
            "kind": "click",
        }
    )
    pixels = Pixels(count, [[photograph(random, size)] for _ in range(pictures)])
    catalog = Catalog(
        folder, f"{count:,} products", f"{count}", {}, products, attributes, queries, interactions, None, pixels
    )
    torch.manual_seed(0)
    tokenizer = train_tokenizer(titles[:500], 400)
    settings = Model(fusion="adaptive", width=64, dim=dim)
    model = MakeModel.from_settings(settings, Text(), Objectives(), tokenizer).eval()
    parts = random.normal(size=(count, 2, dim)).astype(np.float32)
    lengths = np.linalg.norm(parts.sum(axis=1), axis=1)
    parts /= lengths[:, None, None]
    vectors = ProductVectors(parts.sum(axis=1), random.dirichlet((2, 2), count).astype(np.float32), parts)
    index = ProductIndex.build(
        vectors.embedding, products["product_id"], model_fingerprint="m", catalogue_fingerprint=f"{count}"
    )
    return Retriever("untrained", model, catalog, index, vectors)
