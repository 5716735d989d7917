"""The generated world `bazaar`: goods with titles and photographs, shoppers' queries and clicks, and the truth behind both.

It exists to make every claim of the method checkable (docs/method.md, "The generated world"), so it was fixed before any
ablation ran and is not tuned afterwards (`VERSION` counts the worlds that were). What words there are stands in `words`, how
goods look in `pictures`, who sells what in `goods`, who asks for and clicks what in `shoppers`; here the three tables are made.

    goods --> photographs (what they show, how well)      queries = words for an intent (a set of constraints)
          --> titles (what they name, how truthfully)     clicks  = popular goods that meet it, and some that do not
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar import goods as sold
from makelib.data.sources.bazaar import shoppers
from makelib.data.sources.bazaar.goods import (
    ATTRIBUTE_KINDS,
    CATEGORIES,
    PLACEHOLDER,
    TEXTUAL,
    VISUAL,
    Goods,
    Spoken,
    Word,
)
from makelib.data.sources.bazaar.shoppers import SPLIT, STRINGS_PER_INTENT, Intents, Queries
from makelib.data.tables import PART, product_table, write_catalog
from makelib.runtime import UserError
from makelib.settings import Bazaar

#: which world this is; part of its folder's name and of `catalog.info`. 2: everyday words for kinds of goods, enough
#: one-word queries to judge them apart, reliability of title and image measured alike
VERSION = 2


def generate(settings: Bazaar, folder: Path | str) -> Catalog:
    """Make the world and write it as a catalogue folder; the same settings give the same fingerprint.

    The truth behind each product lies in `catalog.truth`, one row per product in the same order:
        `led`: "image" or "title", by category.
        `image_kind`: clean, blur, watermark, stock, props, placeholder or missing.
        `title_kind`: clean, stuffed or missing.
        `image_reliability`, `title_reliability`: how much of what shoppers may ask of the product (`ASKED`) the modality
            tells, times how true that is, mean over the attributes, so that the two can be compared. A picture tells
            what it shows of an attribute if that is the product's own, by the share that is legible (`HIDDEN`); a title
            that names the attribute truthfully tells it by one in the number of values that it names. 0 where missing.
        `stuffed_words`: wrong words in the title. `duplicate_of`: the first listing's product_id, or None.

    The languages share everything but the words. `catalog.info["measured"]` holds what decides whether this world is a fair test.

    Raises `UserError` for settings out of range, and where so few products cannot carry so many queries.
    """
    _check(settings)
    # a stream for each step, so that a change in one leaves the others as they were
    streams = [np.random.default_rng([settings.seed, step]) for step in range(6)]
    goods = sold.draw_products(settings, streams[0])
    titles, title_truth = sold.write_titles(settings, goods, streams[1])
    pictures, image_truth = sold.take_photographs(settings, goods, streams[2])
    cold = sold.choose_cold(settings, goods, streams[5])
    intents = shoppers.draw_intents(settings, goods, cold, streams[3])
    queries = shoppers.ask_queries(settings, goods, intents, streams[4])
    clicks, wrong = shoppers.click_products(settings, goods, intents, queries, cold, streams[5])

    spoken = Spoken(settings.language)
    ids = np.array([f"p{row:05d}" for row in range(len(goods.codes))])
    products = _products(goods, spoken, titles, pictures, ids)
    truth = pd.DataFrame(
        {
            "product_id": ids,
            "led": np.where(goods.image_led, "image", "title"),
            **image_truth,
            **title_truth,
            "duplicate_of": np.where(goods.first == np.arange(len(ids)), None, ids[goods.first]),
        }
    )
    asked, interactions = _query_tables(goods, spoken, intents, queries, clicks, ids)
    info = {
        "generated_queries": True,
        "source": "bazaar",
        "version": VERSION,
        "settings": dataclasses.asdict(settings),
        "attribute_kinds": ATTRIBUTE_KINDS,
        "led": {name: category.led for name, category in CATEGORIES.items()},
        "measured": _measure(settings, goods, titles, truth, intents, queries, clicks, wrong),
    }
    name = "bazaar" if settings.language == "en" else f"bazaar-{settings.language}"
    return write_catalog(
        Path(folder), name=name, products=products, queries=asked, interactions=interactions, truth=truth, info=info
    )


def _products(
    goods: Goods, spoken: Spoken, titles: list[list[Word]], pictures: Iterator[dict | None], ids: np.ndarray
) -> Iterator[pa.Table]:
    """The products, a few at a time."""
    values = goods.values()
    for start in range(0, len(ids), PART):
        part = slice(start, start + PART)
        named = zip(*(values[key][part] for key in goods.keys), strict=True)
        frame = pd.DataFrame(
            {
                "product_id": ids[part],
                "title": [spoken(words) for words in titles[part]],
                "image": list(itertools.islice(pictures, PART)),
                "category": values["category"][part],
                "attributes": [dict(zip(goods.keys, row, strict=True)) for row in named],
                "group": ids[goods.first[part]],
            }
        )
        yield product_table(frame)


def _query_tables(
    goods: Goods, spoken: Spoken, intents: Intents, queries: Queries, clicks: np.ndarray, products: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The queries, and the interactions with `products` (ids)."""
    ids = np.array([f"q{row:05d}" for row in range(len(queries.words))])
    constraints = [intents.named(intent, goods) for intent in range(len(intents.wanted))]
    named = [" ".join(f"{key}={value}" for key, value in sorted(wanted.items())) for wanted in constraints]
    asked = pd.DataFrame(
        {
            "query_id": ids,
            "query": [spoken(words) for words in queries.words],
            "split": np.array(list(SPLIT))[queries.split],
            "constraints": [constraints[intent] for intent in queries.intent],
            "intent": [named[intent] for intent in queries.intent],
        }
    )
    interactions = pd.DataFrame(
        {"query_id": ids[clicks[:, 0]], "product_id": products[clicks[:, 1]], "label": 1.0, "kind": "click"}
    )
    return asked, interactions


def _check(settings: Bazaar) -> None:
    """Raise `UserError` for a setting out of its range."""
    for name, least in (("products", 1), ("queries", 10 * STRINGS_PER_INTENT), ("clicks", 1)):
        if getattr(settings, name) < least:  # ten intents: the fewest that leave something in every split
            raise UserError(f"bazaar.{name} is {getattr(settings, name)}; it must be at least {least}.")
    shares = "title_names_visible synonyms no_category wrong_clicks missing_title missing_image duplicates cold"
    for name in shares.split():
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"bazaar.{name} is {getattr(settings, name)}; it is a share, so choose 0 to 1.")
    if settings.missing_title + settings.missing_image + PLACEHOLDER > 1:
        raise UserError(
            "bazaar.missing_title and bazaar.missing_image together leave products with neither; lower one of them."
        )
    if settings.duplicates > 0.5 or settings.cold > 0.9:
        raise UserError(
            "bazaar.duplicates must not exceed 0.5, nor bazaar.cold 0.9; too few products would be left to learn from."
        )
    if settings.seed < 0:
        raise UserError(f"bazaar.seed is {settings.seed}; it must not be negative.")
    if not 16 <= settings.image_size <= 256:
        raise UserError(f"bazaar.image_size is {settings.image_size}; choose 16 to 256 pixels.")
    if settings.language not in ("en", "zh"):
        raise UserError(f"bazaar.language is {settings.language!r}; use en or zh.")
    if settings.clicks < settings.queries:
        raise UserError(
            f"bazaar.clicks ({settings.clicks}) is below bazaar.queries ({settings.queries}); each query needs a click."
        )


def _measure(
    settings: Bazaar,
    goods: Goods,
    titles: list[list[Word]],
    truth: pd.DataFrame,
    intents: Intents,
    queries: Queries,
    clicks: np.ndarray,
    wrong: np.ndarray,
) -> dict[str, Any]:
    """Facts about this world that decide whether it is a fair test; JSON-able."""
    relevant = np.array([len(rows) for rows in intents.relevant])[queries.intent]
    train = queries.split[clicks[:, 0]] == list(SPLIT).index("train")
    # an anchor has a false negative when another product in its batch meets every constraint of its query
    rng = np.random.default_rng([settings.seed, 7])
    batch = min(256, int(train.sum()))
    anchors = []
    for _ in range(8):
        rows = clicks[train][rng.choice(int(train.sum()), batch, replace=False)]
        wanted = intents.wanted[queries.intent[rows[:, 0]]][:, None]
        meets = ((wanted < 0) | (wanted == goods.codes[rows[:, 1]][None])).all(axis=2)
        group = goods.first[rows[:, 1]]
        anchors.append((meets & (group[:, None] != group[None])).any(axis=1).mean())
    touched = np.isin(goods.first, goods.first[clicks[train, 1]])
    asked = pd.DataFrame(intents.wanted[queries.intent] >= 0, columns=goods.keys)
    image_led = goods.image_led[[rows[0] for rows in intents.relevant]][queries.intent]

    def visual_share(rows: np.ndarray) -> float:
        visual, textual = (asked.loc[rows, list(keys)].to_numpy().sum() for keys in (VISUAL, TEXTUAL))
        return float(visual / max(visual + textual, 1))

    return {
        "relevant_per_query": {name: float(getattr(np, name)(relevant)) for name in ("mean", "median", "min", "max")},
        "intents": len(np.unique(queries.intent)),
        "words_per_query": float(np.mean([len(words) for words in queries.words])),
        "queries_without_category_word": float(queries.terse.mean()),
        "queries_with_synonym": float(queries.synonym.mean()),
        "one_word_queries": {
            name: sum(
                len(words) == 1 for words, part in zip(queries.words, queries.split, strict=True) if part == number
            )
            for number, name in enumerate(SPLIT)
        },
        "visual_constraints": {"image": visual_share(image_led), "title": visual_share(~image_led)},
        "titles_naming": {
            key: float(
                np.mean([(key, code, 0) in words for words, code in zip(titles, goods[key].tolist(), strict=True)])
            )
            for key in (*VISUAL, *TEXTUAL)
        },
        "words_per_title": float(np.mean([len(words) for words in titles if words])),
        "image_kinds": truth["image_kind"].value_counts(normalize=True).to_dict(),
        "title_kinds": truth["title_kind"].value_counts(normalize=True).to_dict(),
        "reliability": truth.groupby("led")[["image_reliability", "title_reliability"]].mean().to_dict("index"),
        "anchors_with_false_negative": {"batch": batch, "share": float(np.mean(anchors))},
        "wrong_clicks": float(wrong.mean()),
        "products_without_training_click": float(1 - touched.mean()),
    }
