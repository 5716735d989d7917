"""The generated world `bazaar`: goods with titles and photographs, shoppers' queries and clicks, and the truth.

It exists to make every claim of the method checkable (METHOD, "The embedded catalogue"), so it was fixed before any
ablation ran and is not tuned afterwards (`VERSION` counts the worlds that were); each constant says why it has its
value. What words there are stands in `bazaar_words`, how goods look in `bazaar_pictures`; here it is settled who shows,
says, asks for and clicks what. All of it is ours.

    goods --> photographs (what they show, how well)      queries = words for an intent (a set of constraints)
          --> titles (what they name, how truthfully)     clicks  = popular goods that meet it, and some that do not
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar.pictures import COLOURS, PATTERNS, SILHOUETTES, TYPES, corrupt, placeholder, render
from makelib.data.sources.bazaar.words import vocabulary
from makelib.data.tables import write_catalog
from makelib.runtime import UserError
from makelib.settings import Bazaar

__all__ = ["ATTRIBUTE_KINDS", "CATEGORIES", "corrupt", "generate", "render", "stuff", "vocabulary"]


#: which world this is; part of its folder's name and of `catalog.info`. 2: everyday words for kinds of goods, enough
#: one-word queries to judge them apart, reliability of title and image measured alike
VERSION = 2


class Category(NamedTuple):
    """One department. `led`: the modality its shoppers mostly rely on; `stuffed`: share of titles with wrong words;
    `clean`: share of photographs that show the product plainly. Both shares vary within either kind of department, else
    two weights, one a kind, would do."""

    led: str
    types: str
    materials: str
    capacities: str
    stuffed: float
    clean: float


_WEAR, _CHARGE, _VOLUME = "small medium large oversize", "2000mah 5000mah 10000mah 20000mah", "500ml 1l 2l 3l"
_HOURS, _COUNT = "10h 20h 40h 60h", "6pack 12pack 30pack 100pack"
CATEGORIES = {
    "dresses": Category("image", "sundress gown skirt", "cotton linen wool leather", _WEAR, 0.45, 0.85),
    "shirts": Category("image", "tshirt sweater hoodie vest", "cotton linen wool leather", _WEAR, 0.35, 0.75),
    "shoes": Category("image", "sneakers boots sandals heels", "leather linen plastic cotton", _WEAR, 0.55, 0.70),
    "bags": Category("image", "handbag backpack tote", "leather linen cotton plastic", _WEAR, 0.40, 0.80),
    "rugs": Category("image", "rug doormat cushion", "wool cotton bamboo linen", _WEAR, 0.50, 0.65),
    "curtains": Category("image", "curtain blind lampshade", "linen cotton bamboo glass", _WEAR, 0.30, 0.70),
    "chargers": Category("title", "charger powerbank cable", "plastic steel leather glass", _CHARGE, 0.20, 0.35),
    "batteries": Category("title", "battery flashlight lantern", "steel plastic bamboo glass", _CHARGE, 0.08, 0.45),
    "kettles": Category("title", "kettle teapot mug", "steel glass plastic bamboo", _VOLUME, 0.12, 0.40),
    "headphones": Category("title", "headset earbuds speaker", "plastic leather steel bamboo", _HOURS, 0.25, 0.30),
    "vitamins": Category("title", "tablets powder drops", "glass plastic steel bamboo", _COUNT, 0.15, 0.25),
    "pens": Category("title", "pen marker pencil", "plastic bamboo steel leather", _COUNT, 0.10, 0.40),
}

#: where an attribute can be read: in the photograph, in the title, or (what kind of good it is) in both
ATTRIBUTE_KINDS = {
    "category": "type", "type": "type", "colour": "visual", "pattern": "visual", "silhouette": "visual",
    "brand": "textual", "material": "textual", "capacity": "textual",
}  # fmt: skip
VISUAL = tuple(key for key, kind in ATTRIBUTE_KINDS.items() if kind == "visual")
TEXTUAL = tuple(key for key, kind in ATTRIBUTE_KINDS.items() if kind == "textual")
ASKED = ("type", *VISUAL, *TEXTUAL)  #: a category is known from the type

#: what becomes of photographs that do not show the product plainly, by the category's `led`. Image-led sellers take
#: poor photographs of the right thing; title-led ones borrow pictures: `props` shows an image-led good with the product
#: small beside it. From the image alone that cannot be told from an image-led good with an accessory (`ACCESSORY`).
SPOILED = {
    "image": {"blur": 0.35, "watermark": 0.30, "stock": 0.20, "props": 0.15},
    "title": {"blur": 0.12, "watermark": 0.15, "stock": 0.18, "props": 0.55},
}
#: share of clean photographs with a good of the other kind beside the product, so that company proves nothing
ACCESSORY = 0.25
#: generic photographs per type, the same file for every product that uses it, as stock photographs are
STOCK_PICTURES = 3
PLACEHOLDER = 0.01  #: share of products with the shop's "no image" picture: present, yet says nothing
OCCLUDED = 0.15  #: share of clean photographs with a sticker over up to 12 % of the frame
#: how much of each claim a spoiled photograph of strength 1 hides (a blurred dress still has its colour)
HIDDEN = {
    "blur": {"type": 0.6, "colour": 0.1, "pattern": 1.0, "silhouette": 0.8},
    "watermark": {"type": 0.5, "colour": 0.5, "pattern": 0.9, "silhouette": 0.7},
    "occlusion": {"type": 1.0, "colour": 1.0, "pattern": 1.0, "silhouette": 1.0},
}

#: share of sellers who write the everyday word for the kind of goods ("dress", "bag"), and of shoppers who type it
EVERYDAY_SOLD, EVERYDAY_TYPED = 0.25, 0.4
EVERYDAY = ("category", "type")  #: what has an everyday word, see `bazaar_words`

#: share of titles that name a lot; a stuffed title looks like one of these
RICH = 0.35
#: chance that a title names a textual attribute, by `led`: sellers of title-led goods take more care; nothing is sure
NAMES_TEXTUAL = {
    "image": {"brand": 0.80, "material": 0.60, "capacity": 0.55},
    "title": {"brand": 0.95, "material": 0.85, "capacity": 0.90},
}
#: wrong words of a stuffed title, at most (fewer where donor and product agree): with 1 they would not mislead, with 10
#: their number would give them away
STUFFED_WORDS = (2, 6)
#: what the wrong words are about: mostly what shoppers type first
STUFFED_KEYS = {
    "brand": 0.30, "type": 0.20, "colour": 0.15, "pattern": 0.10, "material": 0.10, "capacity": 0.10,
    "silhouette": 0.05,
}  # fmt: skip
#: chance that a stuffed title leaves out a true textual word, so that two brands in a title are no sure sign
STUFFED_DROPS = 0.4

#: share of intents that ask for visual attributes: intent follows the modality that informs, but not always
ASKS_VISUAL = {"image": 0.8, "title": 0.2}
#: fewest and most products that meet an intent; below, nothing to rank, above, nothing to find. Only a type or category
#: on its own may be met by more: one-word queries are broad, and people ask them.
RELEVANT = (3, 80)
TYPICAL_RELEVANT = 20  #: intents are drawn log-normally about this count, where the catalogue has such
#: constraints besides the type or category: short queries, as people ask. 0: a type or category alone is asked first, all
#: of them where this share of the intents has room
EXTRA_CONSTRAINTS = {0: 0.08, 1: 0.52, 2: 0.40}
BY_CATEGORY = 0.25  #: share of intents that want a category ("luggage by oakby"), not one type
IMPLIED = 0.4  #: the word for the type may go where at least this share of what the other words fit is of that type
TERSE = 0.75  #: share of the queries of such an intent that may go without, so that both forms are asked
STRINGS_PER_INTENT = 3  #: on average; paraphrases, kept in one split
FILLER = 0.08  #: share of queries with a word such as "cheap"
SPLIT = {"train": 0.7, "validation": 0.1, "test": 0.2}  #: shares of the intents
#: intents of a type or category alone, of which there are few, are asked so many times as often as others, and
#: shared out so: else too few one-word queries are left to be judged
BRIEF = 4
SPLIT_BRIEF = {"train": 0.35, "validation": 0.2, "test": 0.45}

#: exponents of Zipf popularity; below 1, so that one query does not fill a batch
ZIPF_PRODUCTS, ZIPF_QUERIES = 0.8, 0.7


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

    The languages share everything but the words. `catalog.info["measured"]` holds what METHOD wants printed.

    Raises `UserError` for settings out of range, and where so few products cannot carry so many queries.
    """
    _check(settings)
    # a stream for each step, so that a change in one leaves the others as they were
    streams = [np.random.default_rng([settings.seed, step]) for step in range(6)]
    goods = _products(settings, streams[0])
    titles, title_truth = _titles(settings, goods, streams[1])
    pictures, image_truth = _photographs(settings, goods, streams[2])
    cold = _cold(settings, goods, streams[5])
    intents = _intents(settings, goods, cold, streams[3])
    queries = _queries(settings, goods, intents, streams[4])
    clicks, wrong = _clicks(settings, goods, intents, queries, cold, streams[5])

    spoken = _Spoken(settings.language)
    ids = np.array([f"p{row:05d}" for row in range(settings.products)])
    attributes = [dict(zip(goods.keys, row, strict=True)) for row in zip(*goods.values().values(), strict=True)]
    products = pd.DataFrame(
        {
            "product_id": ids,
            "title": [spoken(words) for words in titles],
            "image": pictures,
            "category": goods.values()["category"],
            "attributes": attributes,
            "group": ids[goods.first],
        }
    )
    truth = pd.DataFrame(
        {
            "product_id": ids,
            "led": np.where(goods.image_led, "image", "title"),
            **image_truth,
            **title_truth,
            "duplicate_of": [None if first == row else ids[first] for row, first in enumerate(goods.first)],
        }
    )
    query_ids = np.array([f"q{row:05d}" for row in range(len(queries.words))])
    constraints = [intents.named(intent, goods) for intent in range(len(intents.wanted))]
    table = pd.DataFrame(
        {
            "query_id": query_ids,
            "query": [spoken(words) for words in queries.words],
            "split": np.array(list(SPLIT))[queries.split],
            "constraints": [constraints[intent] for intent in queries.intent],
            "intent": [
                " ".join(f"{k}={v}" for k, v in sorted(constraints[intent].items())) for intent in queries.intent
            ],
        }
    )
    interactions = pd.DataFrame(
        {"query_id": query_ids[clicks[:, 0]], "product_id": ids[clicks[:, 1]], "label": 1.0, "kind": "click"}
    )
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
        Path(folder), name=name, products=products, queries=table, interactions=interactions, truth=truth, info=info
    )


def stuff(title: str, words: int, seed: int = 0, language: str = "en") -> str:
    """The title with `words` attribute words appended that it did not hold: other brands, types, colours, …

    What is true cannot be known from a title, so a word that the seller merely left out may be among them.
    Raises `UserError` for an unknown language or a number of words below 0 or above what the vocabulary has.
    """
    if language not in ("en", "zh"):
        raise UserError(f"stuff: language {language!r} is unknown; use en or zh.")
    known = vocabulary(language)
    held = title if language == "zh" else set(title.split())
    pool = [
        (word, share / len(known[key]))
        for key, share in STUFFED_KEYS.items()
        for word, *_ in known[key].values()
        if word not in held
    ]
    if not 0 <= words <= len(pool):
        raise UserError(f"stuff: {words} words cannot be appended; choose 0 to {len(pool)}.")
    shares = np.array([share for _, share in pool])
    chosen = np.random.default_rng([seed, 12]).choice(len(pool), words, replace=False, p=shares / shares.sum())
    space = "" if language == "zh" else " "
    return space.join(([title] if title else []) + [pool[i][0] for i in chosen])


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


# -- products ---------------------------------------------------------------------------------------------------------


def _names(key: str) -> list[str]:
    """The values of an attribute in the order of its codes; visual ones as `bazaar_pictures` counts them."""
    drawn = {"category": CATEGORIES, "type": TYPES, "colour": COLOURS, "pattern": PATTERNS, "silhouette": SILHOUETTES}
    return list(drawn[key] if key in drawn else vocabulary()[key])


NAMES = {key: _names(key) for key in ATTRIBUTE_KINDS}
TYPE_CODES = [[NAMES["type"].index(name) for name in category.types.split()] for category in CATEGORIES.values()]
IMAGE_LED = np.array([category.led == "image" for category in CATEGORIES.values()])


@dataclasses.dataclass(frozen=True)
class _Goods:
    """The products as codes: `codes` int (N, attributes) in the order of `keys`; `first` listing of each, int (N,)."""

    codes: np.ndarray
    first: np.ndarray
    popularity: np.ndarray
    keys: tuple[str, ...] = tuple(ATTRIBUTE_KINDS)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.codes[:, self.keys.index(key)]

    @property
    def image_led(self) -> np.ndarray:
        return IMAGE_LED[self["category"]]

    def values(self) -> dict[str, np.ndarray]:
        return {key: np.array(NAMES[key], dtype=object)[self[key]] for key in self.keys}


def _zipf(rng: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    """Probabilities that fall as rank ** -exponent, ranks in random order, (count,)."""
    weights = (1.0 + rng.permutation(count)) ** -exponent
    return weights / weights.sum()


def _products(settings: Bazaar, rng: np.random.Generator) -> _Goods:
    """Attributes with tastes: each type has its own frequent colours, patterns, cuts and brands, as goods do.

    Without tastes two constraints would leave a handful of products in a catalogue of this size, and no word would
    imply a type. Title-led goods are mostly plain. A brand is at home in one category, where it is ten times as
    frequent as elsewhere.
    """
    count = settings.products
    codes = np.zeros((count, len(ATTRIBUTE_KINDS)), dtype=np.int64)
    column = {key: position for position, key in enumerate(ATTRIBUTE_KINDS)}
    codes[:, 0] = rng.permutation(np.arange(count) % len(CATEGORIES))
    for number, category in enumerate(CATEGORIES.values()):
        home = np.full(len(NAMES["brand"]), 0.1)
        home[[2 * number, 2 * number + 1]] = 1.0
        members = np.flatnonzero(codes[:, 0] == number)
        kinds = rng.choice(TYPE_CODES[number], len(members), p=_zipf(rng, len(TYPE_CODES[number]), 0.5))
        codes[members, column["type"]] = kinds
        for kind in TYPE_CODES[number]:
            rows = members[kinds == kind]
            tastes = {
                "colour": _zipf(rng, len(COLOURS), 0.7),
                "pattern": _zipf(rng, len(PATTERNS), 0.8),
                "silhouette": _zipf(rng, len(SILHOUETTES), 0.7),
                "brand": home * _zipf(rng, len(home), 0.3),
            }
            if category.led == "title":
                tastes["pattern"] = 0.5 * tastes["pattern"] + 0.5 * (
                    np.arange(len(PATTERNS)) == PATTERNS.index("plain")
                )
            for key, known in (("material", category.materials), ("capacity", category.capacities)):
                tastes[key] = np.zeros(len(NAMES[key]))
                tastes[key][[NAMES[key].index(value) for value in known.split()]] = _zipf(rng, 4, 0.6)
            for key, taste in tastes.items():
                codes[rows, column[key]] = rng.choice(len(taste), len(rows), p=taste / taste.sum())
    first = np.arange(count)
    order = rng.permutation(count)
    copies = order[: round(settings.duplicates * count)]
    if len(copies):
        first[copies] = rng.choice(order[len(copies) :], len(copies))
    return _Goods(codes[first], first, _zipf(rng, count, ZIPF_PRODUCTS))


def _cold(settings: Bazaar, goods: _Goods, rng: np.random.Generator) -> np.ndarray:
    """Products that training clicks never touch, bool (N,); all listings of one product are cold or none is."""
    originals = np.unique(goods.first)
    chosen = rng.permutation(originals)[: round(settings.cold * len(originals))]
    return np.isin(goods.first, chosen)


# -- titles -----------------------------------------------------------------------------------------------------------

# a word is (key, code of the value, which of its words: 0 = the seller's); people pick words, `_Spoken` says them
Word = tuple[str, int, int]


class _Spoken:
    """Turns words into a string of a language: English with spaces, Chinese without."""

    def __init__(self, language: str):
        known = vocabulary(language)
        self.words = {key: [known[key][name] for name in NAMES[key]] for key in NAMES}
        self.words |= {key: list(known[key].values()) for key in ("promo", "neutral", "filler")}
        self.space = "" if language == "zh" else " "

    def __call__(self, words: list[Word]) -> str:
        return self.space.join(self.words[key][code][which] for key, code, which in words)


def _missing(settings: Bazaar) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products without title, without image, with a placeholder: bool (N,) each, no product in two of them."""
    order = np.random.default_rng([settings.seed, 6]).permutation(settings.products)
    shares = np.cumsum([settings.missing_title, settings.missing_image, PLACEHOLDER])
    ends = np.round(shares * settings.products).astype(int)
    flags = np.zeros((3, settings.products), bool)
    for flag, part in zip(flags, np.split(order, ends), strict=False):
        flag[part] = True
    return tuple(flags)


def _titles(settings: Bazaar, goods: _Goods, rng: np.random.Generator) -> tuple[list[list[Word]], dict[str, Any]]:
    """Titles as words in no order, and the truth about them."""
    count, led = settings.products, goods.image_led
    missing, _, _ = _missing(settings)
    stuffed = rng.random(count) < np.array([category.stuffed for category in CATEGORIES.values()])[goods["category"]]
    # categories differ in how often titles name what the image shows: at 0.25, from 0.15 to 0.35 (0 and 1 stay 0 and 1)
    exponent = np.linspace(0.76, 1.37, len(CATEGORIES) // 2)[np.arange(len(CATEGORIES)) % (len(CATEGORIES) // 2)]
    visible = settings.title_names_visible ** exponent[goods["category"]]
    rich = rng.random(count) < RICH
    often = np.minimum(1, 2 * visible)
    visible = np.where(rich, often, (visible - RICH * often) / (1 - RICH))
    names = {"type": rng.random(count) < 0.92, "category": rng.random(count) < 0.25}
    names["category"] |= ~names["type"]
    for key in VISUAL:
        names[key] = rng.random(count) < visible
    for key in TEXTUAL:
        chance = np.where(led, NAMES_TEXTUAL["image"][key], NAMES_TEXTUAL["title"][key]) * np.where(rich, 1, 0.9)
        names[key] = (rng.random(count) < chance) & ~(stuffed & (rng.random(count) < STUFFED_DROPS))

    # wrong words are those of another listing, half of them from the same category: sellers copy what sells next door
    wrong = STUFFED_WORDS[1]
    donors = rng.integers(0, count, (count, wrong))
    order = np.argsort(goods["category"], kind="stable")
    sizes = np.bincount(goods["category"], minlength=len(CATEGORIES))
    near = order[
        (np.cumsum(sizes) - sizes)[goods["category"], None]
        + (rng.random((count, wrong)) * sizes[goods["category"], None]).astype(int)
    ]
    donors = np.where(rng.random((count, wrong)) < 0.5, near, donors)
    keys = rng.choice(len(STUFFED_KEYS), (count, wrong), p=list(STUFFED_KEYS.values()))
    amount = np.where(stuffed, rng.integers(STUFFED_WORDS[0], wrong + 1, count), 0)
    promo = rng.permuted(np.tile(np.arange(8), (count, 1)), axis=1)
    neutral = rng.permuted(np.tile(np.arange(10), (count, 1)), axis=1)
    fillers = np.stack([rng.integers(1, 5, count), rng.integers(1, 4, count) + 2 * rich], axis=1)
    shuffle = rng.random((count, 32))
    everyday = rng.random(count) < EVERYDAY_SOLD

    titles, reliability, stuffed_words = [], np.zeros(count), np.zeros(count, np.int64)
    for row in range(count):
        if missing[row]:
            titles.append([])
            continue
        words = [
            (key, int(goods[key][row]), int(everyday[row] and key in EVERYDAY))
            for key, named in names.items()
            if named[row]
        ]
        true = len(words)
        for donor, key in zip(donors[row, : amount[row]], keys[row], strict=False):
            name = list(STUFFED_KEYS)[key]
            word = (name, int(goods[name][donor]), 0)
            if word[1] != goods[name][row] and word not in words:
                words.append(word)
        stuffed_words[row] = len(words) - true
        values = Counter(key for key, *_ in words)
        reliability[row] = sum(1 / values[key] for key, *_ in words[:true] if key in ASKED) / len(ASKED)
        words += [("promo", int(code), 0) for code in promo[row, : fillers[row, 0]]]
        words += [("neutral", int(code), 0) for code in neutral[row, : fillers[row, 1]]]
        titles.append([words[position] for position in np.argsort(shuffle[row, : len(words)])])
    kind = np.where(missing, "missing", np.where(stuffed_words > 0, "stuffed", "clean"))
    return titles, {"title_reliability": reliability, "title_kind": kind, "stuffed_words": stuffed_words}


# -- photographs ------------------------------------------------------------------------------------------------------


def _photographs(settings: Bazaar, goods: _Goods, rng: np.random.Generator) -> tuple[list[dict | None], dict[str, Any]]:
    """Encoded photographs (None where missing) and the truth about them."""
    count, size = settings.products, settings.image_size
    shown_keys = ("type", *VISUAL)
    own = np.stack([goods[key] for key in shown_keys], axis=1)  # (N, 4)
    _, missing, empty = _missing(settings)

    kind = np.full(count, "clean", dtype="<U11")
    unclean = rng.random(count) >= np.array([category.clean for category in CATEGORIES.values()])[goods["category"]]
    for led in ("image", "title"):
        rows = np.flatnonzero(unclean & (goods.image_led == (led == "image")))
        kind[rows] = rng.choice(list(SPOILED[led]), len(rows), p=list(SPOILED[led].values()))
    kind[missing], kind[empty] = "missing", "placeholder"

    # who stands in front: the product, except where the seller borrowed the picture of an image-led good (props)
    shown, beside = own.copy(), np.full_like(own, -1)
    image_led, title_led = np.flatnonzero(goods.image_led), np.flatnonzero(~goods.image_led)
    lenders = own[image_led] if len(image_led) else own
    props = kind == "props"
    shown[props] = lenders[rng.integers(0, len(lenders), props.sum())]
    beside[props] = own[props]
    accessory = (kind == "clean") & (rng.random(count) < ACCESSORY)
    for rows, other in ((accessory & goods.image_led, title_led), (accessory & ~goods.image_led, image_led)):
        if len(other):
            beside[rows] = own[rng.choice(other, rows.sum())]
    pixels = render(*shown.T, size=size, seed=settings.seed, beside=beside)

    stock = np.flatnonzero(kind == "stock")
    generic = np.stack(
        [
            np.repeat(np.arange(len(TYPES)), STOCK_PICTURES),
            *(rng.integers(0, len(NAMES[key]), len(TYPES) * STOCK_PICTURES) for key in VISUAL),
        ],
        axis=1,
    )
    chosen = own[stock, 0] * STOCK_PICTURES + rng.integers(0, STOCK_PICTURES, len(stock))
    pixels[stock], shown[stock] = render(*generic.T, size=size, seed=settings.seed + 1)[chosen], generic[chosen]

    legible = np.ones((count, len(shown_keys)))
    strength = np.zeros(count)
    spoiled = np.isin(kind, ("blur", "watermark"))
    strength[spoiled] = rng.choice([0.4, 0.6, 0.8, 1.0], spoiled.sum())
    sticker = (kind == "clean") & (rng.random(count) < OCCLUDED)
    strength[sticker] = rng.choice([0.06, 0.12], sticker.sum())
    harm = np.where(sticker, "occlusion", kind)
    for (name, amount), rows in pd.Series(np.arange(count)).groupby([harm, strength]):
        if amount > 0:
            rows = rows.to_numpy()
            pixels[rows] = corrupt(pixels[rows], name, 0.5 * amount if name == "blur" else amount, seed=settings.seed)
            legible[rows] = 1 - amount * np.array([HIDDEN[name][key] for key in shown_keys])
    pixels[empty] = placeholder(size)
    reliability = ((shown == own) * legible).sum(axis=1) / len(ASKED) * ~(missing | empty)

    encoded: list[dict | None] = []
    for row in range(count):
        buffer = io.BytesIO()
        if not missing[row]:
            Image.fromarray(pixels[row]).save(buffer, "PNG", compress_level=3)
        encoded.append(None if missing[row] else {"bytes": buffer.getvalue(), "path": None})
    return encoded, {"image_reliability": reliability, "image_kind": kind}


# -- intents, queries, clicks -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Intents:
    """Sets of constraints: `wanted` int (n, attributes), -1 where anything will do; `implied`: the words for the other
    attributes make the type or category plain, bool (n,); `relevant`: rows of the products that meet all of them."""

    wanted: np.ndarray
    implied: np.ndarray
    relevant: list[np.ndarray]

    def named(self, intent: int, goods: _Goods) -> dict[str, str]:
        return {key: NAMES[key][code] for key, code in zip(goods.keys, self.wanted[intent], strict=True) if code >= 0}


def _intents(settings: Bazaar, goods: _Goods, cold: np.ndarray, rng: np.random.Generator) -> _Intents:
    """Draw intents from all that the catalogue can answer, half for image-led and half for title-led goods.

    Halves, so that neither kind rules the averages.
    """
    wanted, weight, implied, image_led = _answerable(goods, cold)
    # a weighted order without replacement (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir")
    keys = -np.log(rng.random(len(weight))) / weight
    needed = math.ceil(settings.queries / STRINGS_PER_INTENT)
    brief = np.flatnonzero((wanted >= 0).sum(axis=1) == 1)
    brief = brief[np.argsort(keys[brief])]
    first = round(EXTRA_CONSTRAINTS[0] * needed)
    keys[brief[:first]], keys[brief[first:]] = 0.0, np.inf
    order = np.argsort(keys, kind="stable")
    wanted, implied, image_led = wanted[order], implied[order], image_led[order]
    # words without the type can stand for one intent only: the first drawn
    bare = np.where(np.isin(goods.keys, ("type", "category")), -1, wanted)
    first = np.flatnonzero(implied)[np.unique(bare[implied], axis=0, return_index=True)[1]]
    implied = np.isin(np.arange(len(implied)), first)

    # queries without a word for the type need enough intents that can do without it, from either kind as it has them
    terse = needed * min(1.0, settings.no_category / TERSE)
    chosen = []
    for kind, share in ((image_led, needed // 2), (~image_led, needed - needed // 2)):
        drawn, able = np.flatnonzero(kind)[:share], np.flatnonzero(kind & implied)
        least = min(share, math.ceil(terse * len(able) / max(implied.sum(), 1)))
        if implied[drawn].sum() < least:
            drawn = np.concatenate([able[:least], np.flatnonzero(kind & ~implied)])[:share]
        chosen.append(drawn)
    chosen = np.concatenate(chosen)
    if len(chosen) < needed:
        raise UserError(
            f"bazaar: {settings.products} products can answer {len(chosen)} different intents, but bazaar.queries = "
            f"{settings.queries} needs {needed}; raise bazaar.products or lower bazaar.queries."
        )
    wanted, implied = wanted[chosen], implied[chosen]
    relevant = [np.flatnonzero(((row < 0) | (goods.codes == row)).all(axis=1)) for row in wanted]
    return _Intents(wanted, implied, relevant)


def _answerable(goods: _Goods, cold: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All combinations of values that 3 to 80 products share, and each type and category: constraints int (n, attributes),
    how often shoppers want them (n,), whether the other words imply the type or category, bool (n,), whether the goods
    are image-led (n,)."""

    def combinations(keys: list[int]) -> np.ndarray:
        """A number for each product's combination of values, int (N,)."""
        if not keys:
            return np.zeros(len(goods.codes), np.int64)
        return np.ravel_multi_index(goods.codes[:, keys].T, [len(NAMES[goods.keys[key]]) for key in keys])

    found = [(np.empty((0, len(goods.keys)), np.int64), np.empty(0), np.empty(0, bool), np.empty(0, bool))]
    extras = itertools.chain.from_iterable(itertools.combinations((*VISUAL, *TEXTUAL), n) for n in EXTRA_CONSTRAINTS)
    for scope, extra in itertools.product(("type", "category"), list(extras)):
        others = [goods.keys.index(key) for key in extra]
        keys = [goods.keys.index(scope), *others]
        _, example, label, met = np.unique(
            combinations(keys), return_index=True, return_inverse=True, return_counts=True
        )
        _, other, total = np.unique(combinations(others), return_inverse=True, return_counts=True)
        warm = np.bincount(label, weights=~cold)  # a training click needs somewhere to go
        good = (met >= RELEVANT[0]) & ((met <= RELEVANT[1]) | (not extra)) & (warm >= 2)
        for led in ("image", "title"):
            part = good & (goods.image_led[example] == (led == "image"))
            wanted = np.full((part.sum(), len(goods.keys)), -1)
            wanted[:, keys] = goods.codes[example[part]][:, keys]
            # how often shoppers ask for this family of attributes, shared out among its members by their size
            pick = {True: ASKS_VISUAL[led] / len(VISUAL), False: (1 - ASKS_VISUAL[led]) / len(TEXTUAL)}
            family = EXTRA_CONSTRAINTS[len(extra)] * math.factorial(len(extra))
            family *= BY_CATEGORY if scope == "category" else 1 - BY_CATEGORY
            for key in extra:
                family *= pick[key in VISUAL]
            near = np.exp(-0.5 * (np.log(met[part] / TYPICAL_RELEVANT) / 0.7) ** 2)
            implied = (met / total[other[example]])[part] >= IMPLIED
            found.append((wanted, family * near / max(near.sum(), 1e-12), implied, np.full(len(near), led == "image")))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@dataclasses.dataclass(frozen=True)
class _Queries:
    """Query strings as words, the intent (n,) and the split (n,) of each, and what the shopper did with words."""

    words: list[list[Word]]
    intent: np.ndarray
    split: np.ndarray
    terse: np.ndarray  # no word for type or category
    synonym: np.ndarray  # at least one synonym that no title uses


def _queries(settings: Bazaar, goods: _Goods, intents: _Intents, rng: np.random.Generator) -> _Queries:
    """Ways of asking for each intent, no two alike. A bag of words belongs to one intent, so none crosses splits."""
    count = len(intents.wanted)
    synonyms = {key: [len(words) - 1 for words in table] for key, table in _Spoken("en").words.items()}
    # how each string is to be asked is settled before its words, so that rejected repetitions do not shift the shares
    brief = (intents.wanted >= 0).sum(axis=1) == 1
    often = np.where(brief, BRIEF, 1) / np.where(brief, BRIEF, 1).sum()
    asks = np.concatenate([np.arange(count), rng.choice(count, settings.queries - count, p=often)])
    synonym = rng.random(settings.queries) < settings.synonyms
    filler = rng.random(settings.queries) < FILLER
    able = intents.implied[asks]
    terse = able & (rng.random(settings.queries) < settings.no_category / max(able.mean(), 1e-9))
    owner: dict[frozenset[Word], int] = {}
    taken: set[tuple[Word, ...]] = set()
    kept: list[list[Word]] = []
    for slot in range(settings.queries):
        for attempt in range(400):
            if attempt == 200:
                terse[slot] = False  # all terse ways are taken
            if attempt and attempt % 4 == 0:  # this intent has been asked in every such way: ask for another
                asks[slot] = rng.choice(np.flatnonzero(intents.implied) if terse[slot] else count)
            words = _ask(
                goods.keys, intents.wanted[asks[slot]], synonyms, terse[slot], synonym[slot], filler[slot], rng
            )
            bag = frozenset(word for word in words if word[0] != "filler")
            if tuple(words) not in taken and owner.setdefault(bag, asks[slot]) == asks[slot]:
                break
        else:
            raise UserError(
                f"bazaar: {settings.products} products give {slot} different queries, not {settings.queries}; "
                "raise bazaar.products or lower bazaar.queries."
            )
        taken.add(tuple(words))
        kept.append(words)
    order = np.argsort(asks, kind="stable")  # paraphrases side by side
    used = np.unique(asks)
    split_of = np.zeros(count, np.int64)
    for members, shares in ((used[~brief[used]], SPLIT), (used[brief[used]], SPLIT_BRIEF)):
        ends = np.round(np.cumsum(list(shares.values())) * len(members)).astype(int)[:-1]
        for number, part in enumerate(np.split(rng.permutation(members), ends)):
            split_of[part] = number
    return _Queries([kept[slot] for slot in order], asks[order], split_of[asks[order]], terse[order], synonym[order])


def _ask(
    keys: tuple[str, ...],
    wanted: np.ndarray,
    synonyms: dict[str, list[int]],
    terse: bool,
    synonym: bool,
    filler: bool,
    rng: np.random.Generator,
) -> list[Word]:
    """One way of asking: attributes, then the type or category unless `terse`; seven in ten in that order."""
    words = [(key, int(code), 0) for key, code in zip(keys, wanted, strict=True) if code >= 0]
    words = words[1:] if terse and len(words) > 1 else words[1:] + words[:1]
    if synonym:
        picked = rng.random(len(words)) < 0.5
        picked[rng.integers(0, len(words))] = True
        words = [
            (key, code, int(rng.integers(1 + (key in EVERYDAY), synonyms[key][code] + 1))) if other else (key, code, 0)
            for other, (key, code, _) in zip(picked, words, strict=True)
        ]
    everyday = rng.random() < EVERYDAY_TYPED
    words = [(key, code, int(not which and key in EVERYDAY and everyday) or which) for key, code, which in words]
    if filler:
        words = [("filler", int(rng.integers(0, 3)), 0), *words]
    if rng.random() < 0.3:
        words = [words[position] for position in rng.permutation(len(words))]
    return words


def _clicks(
    settings: Bazaar, goods: _Goods, intents: _Intents, queries: _Queries, cold: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Clicked (query, product) rows, int (clicks, 2), and which of them are wrong, bool (clicks,).

    A shopper clicks a product that meets every constraint, by popularity, or, wrongly, another one of the category.
    """
    count = len(queries.words)
    each = 1 + rng.multinomial(settings.clicks - count, _zipf(rng, count, ZIPF_QUERIES))
    category_of = np.array([goods["category"][rows[0]] for rows in intents.relevant])
    members = [np.flatnonzero(goods["category"] == number) for number in range(len(CATEGORIES))]
    train = list(SPLIT).index("train")
    pairs, wrong = [], []
    for query, clicks in enumerate(each):
        intent = queries.intent[query]
        allowed = ~cold if queries.split[query] == train else np.ones(len(cold), bool)
        right = intents.relevant[intent]
        near = members[category_of[intent]]
        slips = near[allowed[near] & ~np.isin(near, right)]
        right = right[allowed[right]]
        erring = (rng.random(clicks) < settings.wrong_clicks) & (len(slips) > 0)
        products = np.empty(clicks, np.int64)
        for rows, pool in ((erring, slips), (~erring, right)):
            if rows.any():
                share = np.cumsum(goods.popularity[pool])
                products[rows] = pool[np.searchsorted(share, rng.random(rows.sum()) * share[-1], side="right")]
        pairs.append(np.stack([np.full(clicks, query), products], axis=1))
        wrong.append(erring)
    return np.concatenate(pairs), np.concatenate(wrong)


# -- what came out ----------------------------------------------------------------------------------------------------


def _measure(
    settings: Bazaar,
    goods: _Goods,
    titles: list[list[Word]],
    truth: pd.DataFrame,
    intents: _Intents,
    queries: _Queries,
    clicks: np.ndarray,
    wrong: np.ndarray,
) -> dict[str, Any]:
    """Facts about this world that decide whether it is a fair test; JSON-able."""
    relevant = np.array([len(rows) for rows in intents.relevant])[queries.intent]
    said = [set(words) for words in titles]
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
                np.mean([(key, code, 0) in words for words, code in zip(said, goods[key].tolist(), strict=True)])
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
