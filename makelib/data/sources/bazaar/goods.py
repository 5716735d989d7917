"""What the generated world sells: products with tastes of their own, what sellers write about them, what photographs show.

Each constant says why it has its value; none is tuned after an ablation has run. All of it is ours.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from makelib.data.sources.bazaar.pictures import (
    COLOURS,
    PATTERNS,
    SILHOUETTES,
    TYPES,
    draws,
    placeholder,
    render,
    rendered,
    spoil,
)
from makelib.data.sources.bazaar.words import vocabulary
from makelib.runtime import UserError
from makelib.settings import Bazaar


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

EVERYDAY_SOLD = 0.25  #: share of sellers who write the everyday word for the kind of goods ("dress", "bag")
EVERYDAY = ("category", "type")  #: what has an everyday word, see `words`

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

ZIPF_PRODUCTS = 0.8  #: exponent of the products' popularity


# -- products ---------------------------------------------------------------------------------------------------------


def _names(key: str) -> list[str]:
    """The values of an attribute in the order of its codes; visual ones as `pictures` counts them."""
    drawn = {"category": CATEGORIES, "type": TYPES, "colour": COLOURS, "pattern": PATTERNS, "silhouette": SILHOUETTES}
    return list(drawn[key] if key in drawn else vocabulary()[key])


NAMES = {key: _names(key) for key in ATTRIBUTE_KINDS}
TYPE_CODES = [[NAMES["type"].index(name) for name in category.types.split()] for category in CATEGORIES.values()]
IMAGE_LED = np.array([category.led == "image" for category in CATEGORIES.values()])


@dataclasses.dataclass(frozen=True)
class Goods:
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


def zipf(rng: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    """Probabilities that fall as rank ** -exponent, ranks in random order, (count,)."""
    weights = (1.0 + rng.permutation(count)) ** -exponent
    return weights / weights.sum()


def draw_products(settings: Bazaar, rng: np.random.Generator) -> Goods:
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
        kinds = rng.choice(TYPE_CODES[number], len(members), p=zipf(rng, len(TYPE_CODES[number]), 0.5))
        codes[members, column["type"]] = kinds
        for kind in TYPE_CODES[number]:
            rows = members[kinds == kind]
            tastes = {
                "colour": zipf(rng, len(COLOURS), 0.7),
                "pattern": zipf(rng, len(PATTERNS), 0.8),
                "silhouette": zipf(rng, len(SILHOUETTES), 0.7),
                "brand": home * zipf(rng, len(home), 0.3),
            }
            if category.led == "title":
                tastes["pattern"] = 0.5 * tastes["pattern"] + 0.5 * (
                    np.arange(len(PATTERNS)) == PATTERNS.index("plain")
                )
            for key, known in (("material", category.materials), ("capacity", category.capacities)):
                tastes[key] = np.zeros(len(NAMES[key]))
                tastes[key][[NAMES[key].index(value) for value in known.split()]] = zipf(rng, 4, 0.6)
            for key, taste in tastes.items():
                codes[rows, column[key]] = rng.choice(len(taste), len(rows), p=taste / taste.sum())
    first = np.arange(count)
    order = rng.permutation(count)
    copies = order[: round(settings.duplicates * count)]
    if len(copies):
        first[copies] = rng.choice(order[len(copies) :], len(copies))
    return Goods(codes[first], first, zipf(rng, count, ZIPF_PRODUCTS))


def choose_cold(settings: Bazaar, goods: Goods, rng: np.random.Generator) -> np.ndarray:
    """Products that training clicks never touch, bool (N,); all listings of one product are cold or none is."""
    originals = np.unique(goods.first)
    chosen = rng.permutation(originals)[: round(settings.cold * len(originals))]
    return np.isin(goods.first, chosen)


# -- titles -----------------------------------------------------------------------------------------------------------

# a word is (key, code of the value, which of its words: 0 = the seller's); people pick words, `Spoken` says them
Word = tuple[str, int, int]


class Spoken:
    """Turns words into a string of a language: English with spaces, Chinese without."""

    def __init__(self, language: str):
        known = vocabulary(language)
        self.words = {key: [known[key][name] for name in NAMES[key]] for key in NAMES}
        self.words |= {key: list(known[key].values()) for key in ("promo", "neutral", "filler")}
        self.space = "" if language == "zh" else " "

    def __call__(self, words: list[Word]) -> str:
        return self.space.join(self.words[key][code][which] for key, code, which in words)


def _missing(settings: Bazaar) -> tuple[np.ndarray, ...]:
    """Products without title, without image, with a placeholder: bool (N,) each, no product in two of them."""
    order = np.random.default_rng([settings.seed, 6]).permutation(settings.products)
    shares = np.cumsum([settings.missing_title, settings.missing_image, PLACEHOLDER])
    ends = np.round(shares * settings.products).astype(int)
    flags = np.zeros((3, settings.products), bool)
    for flag, part in zip(flags, np.split(order, ends), strict=False):
        flag[part] = True
    return tuple(flags)


def _donors(category: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Whose words stuff a title, product rows (N, most): wrong words are those of another listing, half of them from the same
    category, for sellers copy what sells next door."""
    shape = (len(category), most)
    donors = rng.integers(0, len(category), shape)
    order = np.argsort(category, kind="stable")
    sizes = np.bincount(category, minlength=len(CATEGORIES))
    near = order[(np.cumsum(sizes) - sizes)[category, None] + (rng.random(shape) * sizes[category, None]).astype(int)]
    return np.where(rng.random(shape) < 0.5, near, donors)


def write_titles(settings: Bazaar, goods: Goods, rng: np.random.Generator) -> tuple[list[list[Word]], dict[str, Any]]:
    """Titles as words in no order, and the truth about them."""
    count, led = settings.products, goods.image_led
    missing, _, _ = _missing(settings)
    often = settings.stuffing * np.array([category.stuffed for category in CATEGORIES.values()])
    stuffed = rng.random(count) < often[goods["category"]]
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

    wrong = STUFFED_WORDS[1]
    donors = _donors(goods["category"], wrong, rng)
    keys = rng.choice(len(STUFFED_KEYS), (count, wrong), p=list(STUFFED_KEYS.values()))
    amount = np.where(stuffed, rng.integers(STUFFED_WORDS[0], wrong + 1, count), 0)
    promo = rng.permuted(np.tile(np.arange(8), (count, 1)), axis=1)
    neutral = rng.permuted(np.tile(np.arange(10), (count, 1)), axis=1)
    fillers = np.stack([rng.integers(1, 5, count), rng.integers(1, 4, count) + 2 * rich], axis=1)
    shuffle = rng.random((count, 32))
    everyday = rng.random(count) < EVERYDAY_SOLD

    titles, reliability, stuffed_words = [], np.zeros(count), np.zeros(count, np.int64)
    codes = {key: goods[key].tolist() for key in goods.keys}
    shared: dict[Word, Word] = {}  # a word is one object, in however many titles it stands
    for row in range(count):
        if missing[row]:
            titles.append([])
            continue
        words = [
            (key, codes[key][row], int(everyday[row] and key in EVERYDAY)) for key, named in names.items() if named[row]
        ]
        true = len(words)
        for donor, key in zip(donors[row, : amount[row]], keys[row], strict=False):
            name = list(STUFFED_KEYS)[key]
            word = (name, codes[name][donor], 0)
            if word[1] != codes[name][row] and word not in words:
                words.append(word)
        stuffed_words[row] = len(words) - true
        values = Counter(key for key, *_ in words)
        reliability[row] = sum(1 / values[key] for key, *_ in words[:true] if key in ASKED) / len(ASKED)
        words += [("promo", int(code), 0) for code in promo[row, : fillers[row, 0]]]
        words += [("neutral", int(code), 0) for code in neutral[row, : fillers[row, 1]]]
        titles.append([shared.setdefault(words[at], words[at]) for at in np.argsort(shuffle[row, : len(words)])])
    kind = np.where(missing, "missing", np.where(stuffed_words > 0, "stuffed", "clean"))
    return titles, {"title_reliability": reliability, "title_kind": kind, "stuffed_words": stuffed_words}


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


# -- photographs ------------------------------------------------------------------------------------------------------


def _spoiled(settings: Bazaar, goods: Goods, rng: np.random.Generator) -> np.ndarray:
    """What is wrong with each photograph, or `clean`: str (N,)."""
    _, missing, empty = _missing(settings)
    kind = np.full(settings.products, "clean", dtype="<U11")
    clean = 1 - settings.image_noise * (1 - np.array([category.clean for category in CATEGORIES.values()]))
    unclean = rng.random(settings.products) >= clean[goods["category"]]
    for led in ("image", "title"):
        rows = np.flatnonzero(unclean & (goods.image_led == (led == "image")))
        kind[rows] = rng.choice(list(SPOILED[led]), len(rows), p=list(SPOILED[led].values()))
    kind[missing], kind[empty] = "missing", "placeholder"
    return kind


def _staged(
    own: np.ndarray, kind: np.ndarray, image_led: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Who stands in front and who beside (-1: nobody), int (N, 4) both: the product in front, except where the seller borrowed the
    picture of an image-led good (props)."""
    shown, beside = own.copy(), np.full_like(own, -1)
    lenders = own[image_led] if image_led.any() else own
    props = kind == "props"
    shown[props] = lenders[rng.integers(0, len(lenders), props.sum())]
    beside[props] = own[props]
    accessory = (kind == "clean") & (rng.random(len(own)) < ACCESSORY)
    for led in (image_led, ~image_led):
        if len(others := np.flatnonzero(~led)):
            rows = accessory & led
            beside[rows] = own[rng.choice(others, rows.sum())]
    return shown, beside


def take_photographs(
    settings: Bazaar, goods: Goods, rng: np.random.Generator
) -> tuple[Iterator[dict | None], dict[str, Any]]:
    """Encoded photographs (None where missing), made while they are read, and the truth about them."""
    count, size = settings.products, settings.image_size
    shown_keys = ("type", *VISUAL)
    own = np.stack([goods[key] for key in shown_keys], axis=1)  # (N, 4)
    _, missing, empty = _missing(settings)

    kind = _spoiled(settings, goods, rng)
    shown, beside = _staged(own, kind, goods.image_led, rng)
    fresh = rendered(*shown.copy().T, size=size, seed=settings.seed, beside=beside)

    stock = np.flatnonzero(kind == "stock")
    generic = np.stack(
        [
            np.repeat(np.arange(len(TYPES)), STOCK_PICTURES),
            *(rng.integers(0, len(NAMES[key]), len(TYPES) * STOCK_PICTURES) for key in VISUAL),
        ],
        axis=1,
    )
    chosen = own[stock, 0] * STOCK_PICTURES + rng.integers(0, STOCK_PICTURES, len(stock))
    shelf = render(*generic.T, size=size, seed=settings.seed + 1)
    shown[stock] = generic[chosen]

    legible = np.ones((count, len(shown_keys)))
    strength = np.zeros(count)
    spoiled = np.isin(kind, ("blur", "watermark"))
    strength[spoiled] = rng.choice([0.4, 0.6, 0.8, 1.0], spoiled.sum())
    sticker = (kind == "clean") & (rng.random(count) < OCCLUDED)
    strength[sticker] = rng.choice([0.06, 0.12], sticker.sum())
    harm = np.where(sticker, "occlusion", kind)
    harms = []
    for (name, amount), members in pd.Series(np.arange(count)).groupby([harm, strength]):
        if amount > 0:
            rows = members.to_numpy()
            drawn = draws(name, (len(rows), size, size, 3), settings.seed)
            harms.append((rows, name, 0.5 * amount if name == "blur" else amount, drawn))
            legible[rows] = 1 - amount * np.array([HIDDEN[name][key] for key in shown_keys])
    reliability = ((shown == own) * legible).sum(axis=1) / len(ASKED) * ~(missing | empty)

    def developed() -> Iterator[dict | None]:
        start = 0
        for pixels in fresh:
            ends = (start, start + len(pixels))
            borrowed = slice(*np.searchsorted(stock, ends))
            pixels[stock[borrowed] - start] = shelf[chosen[borrowed]]
            for rows, name, amount, drawn in harms:
                part = slice(*np.searchsorted(rows, ends))
                at = rows[part] - start
                if len(at):
                    pixels[at] = spoil(pixels[at], name, amount, [each[part] for each in drawn])
            pixels[empty[slice(*ends)]] = placeholder(size)
            for picture, gone in zip(pixels, missing[slice(*ends)], strict=True):
                buffer = io.BytesIO()
                if not gone:
                    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
                yield None if gone else {"bytes": buffer.getvalue(), "path": None}
            start += len(pixels)

    return developed(), {"image_reliability": reliability, "image_kind": kind}
