"""Queries and clicks made from label columns, for catalogues that bring none; every report must call them generated.

A query asks for one to three label values ("navy blue heels"); a product is fully relevant when its own labels meet all
of them. What is ours here: which columns are asked, the strings, the click model. Nothing here reads files.

N products, V distinct values.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from makelib.data.text import UNSPACED, join

#: role of a label column by its name: decides word order and, for the first two, that it is seen rather than read
ROLES = (
    ("colour", r"colou?r|couleur|farbe|颜色|花色|色系|カラー|لون|रंग"),
    ("look", r"pattern|print|silhouette|shape|texture|neck|sleeve|look|花纹|图案|版型|领型|袖长"),
    ("brand", r"brand|maker|manufacturer|marque|marke|品牌|ブランド|ماركة|ब्रांड"),
    ("gender", r"gender|sex|audience|age_?group|性别|人群"),
    ("usage", r"usage|occasion|style|用途|场合|风格"),
    ("material", r"material|fabric|材质|面料|素材"),
)
#: labels that a shopper rarely asks for and neither title nor image shows
UNASKED = re.compile(
    r"season|year|date|price|stock|rating|status|country|size|季|年份|日期|价格|库存|评分|状态|产地|尺码|尺寸|サイズ|価格",
    re.IGNORECASE,
)
#: word order in front of the type, English and Chinese; the type comes last
ORDER = ("brand", "gender", "usage", "other", "look", "colour", "material", "type")
#: which columns are asked first where there are many
PRIORITY = ("type", "colour", "brand", "gender", "usage", "look", "material", "other")
#: how often a query holds one, two, three constraints
LENGTHS = {1: 0.20, 2: 0.45, 3: 0.35}
LONGEST_QUERY = 4


def role(column: str, category: str | None) -> str:
    """What a label column tells, by its name: one of `ORDER`."""
    if column == category:
        return "type"
    return next((name for name, names in ROLES if re.search(names, column, re.IGNORECASE)), "other")


def asked_columns(labels: pd.DataFrame, category: str | None) -> list[str]:
    """Columns worth asking for: not numbers, not `UNASKED`, and not merely a coarser form of the category column.

    Where there are more than six, the first six by `PRIORITY`.
    """

    def coarser(column: str) -> bool:
        if category is None or column == category:
            return False
        pairs = labels.loc[labels[column] != "", [category, column]].value_counts()
        return pairs.groupby(level=0).max().sum() >= 0.99 * pairs.sum()

    wanted = [
        column
        for column in labels
        if not UNASKED.search(column)
        and not all(re.fullmatch(r"[-+.\d]*", value) for value in labels[column].unique())
        and not coarser(column)
    ]
    first = sorted(wanted, key=lambda column: PRIORITY.index(role(column, category)))[:6]
    return [column for column in wanted if column in first]


def learn_brands(titles: Sequence[str], stop: set[str], minimum: int) -> tuple[list[str], np.ndarray]:
    """The brand of each title, learned from first words that recur, and how many characters it takes.

    A first word that starts at least `minimum` titles is a brand unless it is a label word (`stop`: "men", "red"). It
    grows by further words while those that recur cover four in five of its titles ("United Colors of Benetton"), which
    also tells "John Miller" from "John Players"; a label word needs a further word to become one ("Red Tape").
    Returns brands (empty: none) and lengths, int (N,).
    """
    stop = set(map(_stem, stop))
    brands, lengths = [""] * len(titles), np.zeros(len(titles), dtype=np.int64)

    def grow(rows: Sequence[int], words: list[str]) -> None:
        """`rows` begin with the same `words`: name them, or go on with the words that follow."""
        follow: dict[str, list[int]] = {}
        for row in rows:
            parts = titles[row].split(None, len(words) + 1)
            if len(parts) > len(words) + 1:  # a title is more than its brand
                follow.setdefault(_stem(parts[len(words)]), []).append(row)
        follow = {w: found for w, found in follow.items() if len(found) >= minimum and not (words and w in stop)}
        if words and (len(words) == 4 or sum(map(len, follow.values())) < 0.8 * len(rows)):
            if not stop.issuperset(words):
                head = re.compile(rf"\s*\S+(?:\s+\S+){{{len(words) - 1}}}")
                heads = [head.match(titles[row]).group() for row in rows]
                name = Counter(heads).most_common(1)[0][0].strip()
                for row, text in zip(rows, heads, strict=True):
                    brands[row], lengths[row] = name, len(text)
            return
        for word, found in follow.items():
            grow(found, [*words, word])

    grow(range(len(titles)), [])
    return brands, lengths


def _stem(word: str) -> str:
    return re.sub(r"(['’]?s)$", "", word.casefold())


def duplicate_groups(titles: Sequence[str], pixels: Sequence[bytes | None]) -> tuple[np.ndarray, int]:
    """Group number of each product, int64 (N,): rows that share a title or exact pixels, directly or through others.

    Titles are compared without case and spacing; an empty title and a missing image join nothing. Pixels that more than
    20 rows share under mostly different titles are a shop's placeholder and join nothing either; their number is
    returned too. Wider than "the same product" on purpose: what must not leak between seen and unseen is the input.
    """
    titles_code = _codes([" ".join(title.casefold().split()) or None for title in titles])
    pixels_code = _codes(pixels)
    together = pd.DataFrame({"title": titles_code, "pixels": pixels_code})
    shared = together[together["pixels"] >= 0].groupby("pixels")["title"].agg(["size", "nunique"])
    placeholders = shared.index[(shared["size"] > 20) & (shared["nunique"] > shared["size"] / 2)]
    pixels_code = np.where(np.isin(pixels_code, placeholders), -1, pixels_code)
    edges = []
    for code, first in ((titles_code, len(titles)), (pixels_code, len(titles) + titles_code.max(initial=-1) + 1)):
        rows = np.flatnonzero(code >= 0)
        edges.append((rows, code[rows] + first))
    row, node = (np.concatenate(part) for part in zip(*edges, strict=True))
    size = int(max(node.max(initial=-1) + 1, len(titles)))
    _, component = connected_components(
        coo_matrix((np.ones(len(row), bool), (row, node)), shape=(size, size)), directed=False
    )
    return pd.factorize(component[: len(titles)])[0].astype(np.int64), len(placeholders)


@dataclass(frozen=True)
class Asked:
    """Generated `queries` (columns of `QUERIES`), `interactions` (`query_id`, `product` row, `label`, `kind`), which
    products are `cold` (bool (N,): no training click touches them or their group) and a `summary` for reports."""

    queries: pd.DataFrame
    interactions: pd.DataFrame
    cold: np.ndarray
    summary: dict[str, Any]


def ask(
    labels: pd.DataFrame,
    titles: Sequence[str],
    groups: np.ndarray,
    *,
    columns: Sequence[str],
    category: str | None,
    queries: int,
    clicks: int,
    wrong_clicks: float = 0.075,
    cold: float = 0.15,
    seed: int = 0,
) -> Asked:
    """Make queries from the label `columns` and clicks on what they ask for.

    Intents are sets of 1 to 3 constraints that 2 products to 5 % of the catalogue (20 at least, 2,000 at most) meet
    in full and in which each constraint narrows the result. Each gets up to three strings of 1 to 4 words; no string
    serves two intents. 70 / 10 / 20 % of the intents are train / validation / test. Clicks fall on fully relevant
    products with Zipf popularity of products and queries; a share `wrong_clicks` on another product of the category. A
    share `cold` of the products, whole groups, gets no training click.
    """
    random = np.random.default_rng(seed)
    intents = _intents(labels[list(columns)], category)
    speak = _Speaker(labels, titles, columns, category)
    table, members = _spoken(labels, intents, speak, _sample(intents, random, category), queries, random)
    if not table:
        nothing = pd.DataFrame(columns=["query_id", "query", "split", "constraints", "intent"])
        clicks = pd.DataFrame(columns=["query_id", "product", "label", "kind"])
        return Asked(nothing, clicks, np.zeros(len(labels), dtype=bool), {"queries": 0, "intents": 0})
    chosen = pd.factorize(np.array([position for *_, position in table]))[0]
    place = random.permutation(chosen.max() + 1)[chosen] / (chosen.max() + 1)
    split = np.where(place < 0.7, "train", np.where(place < 0.8, "validation", "test"))
    frame = pd.DataFrame(
        {
            "query_id": [f"q{row:06d}" for row in range(len(table))],
            "query": [text for text, *_ in table],
            "split": split,
            "constraints": [constraints for _, constraints, _ in table],
            "intent": [json.dumps(constraints, sort_keys=True, ensure_ascii=False) for _, constraints, _ in table],
        }
    )
    is_cold = _cold(groups, cold, random)
    kinds = labels[category].to_numpy() if category else np.full(len(labels), "")
    clicked, wrong = _click(members, split == "train", is_cold, kinds, clicks, wrong_clicks, random)
    interactions = pd.DataFrame(
        {"query_id": frame["query_id"].to_numpy()[clicked[0]], "product": clicked[1], "label": 1.0, "kind": "click"}
    )
    summary = {
        "columns": list(columns),
        **_counted(frame, np.array([len(rows) for rows in members])),
        "queries_without_type_word": round(float(np.mean([not speak.says_type(*row[:2]) for row in table])), 3),
        "clicks": len(interactions),
        "wrong_clicks": round(float(wrong.mean()), 3) if len(wrong) else 0.0,
        "cold_products": round(float(is_cold.mean()), 3),
    }
    return Asked(frame, interactions, is_cold, summary)


def _counted(queries: pd.DataFrame, relevant: np.ndarray) -> dict[str, Any]:
    """How many queries and intents there are, by what, and how many products are `relevant` to each, int64 (Q,)."""
    splits, lengths = queries["split"], queries["constraints"].map(len)
    return {
        "queries": len(queries),
        "intents": int(queries["intent"].nunique()),
        "queries_by_split": {name: int((splits == name).sum()) for name in ("train", "validation", "test")},
        "queries_by_constraints": {str(n): int((lengths == n).sum()) for n in LENGTHS},
        "relevant_products_per_query": {
            "mean": round(float(relevant.mean()), 1),
            **{f"p{percent}": int(np.percentile(relevant, percent)) for percent in (0, 25, 50, 75, 100)},
        },
    }


# -- intents -----------------------------------------------------------------------------------------------------------


def _codes(values: Sequence[Any]) -> np.ndarray:
    return pd.factorize(pd.Series(list(values), dtype=object))[0].astype(np.int64)


@dataclass(frozen=True)
class _Intents:
    """Sets of 1 to 3 constraints with a useful number of relevant products.

    `codes` int (N,) by column, -1 where nothing is stated. For each of I intents: its `columns`, the `first` product that
    is relevant, how many are (`counts`), and how many would be if the category were not asked for (`broader`, 0 where it
    is not), int64 (I,) each. Products are looked up when an intent is taken: most never are.
    """

    codes: dict[str, np.ndarray]
    columns: list[tuple[str, ...]]
    first: np.ndarray
    counts: np.ndarray
    broader: np.ndarray

    def rows(self, intent: int) -> np.ndarray:
        """The relevant products, int64 (counts[intent],), ascending."""
        codes = (self.codes[column] for column in self.columns[intent])
        return np.flatnonzero(np.logical_and.reduce([code == code[self.first[intent]] for code in codes]))


def _intents(labels: pd.DataFrame, category: str | None) -> _Intents:
    """All sets that 2 products to 5 % (20 at least, 2,000 at most) meet, and in which each constraint narrows the result."""
    most = min(max(20, int(0.05 * len(labels))), 2000)
    codes = {column: _codes([value or None for value in labels[column]]).astype(np.int32) for column in labels}
    met: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}  # by columns: each combination of values, how often

    def combined(columns: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
        key = np.zeros(len(rows), dtype=np.int64)
        for column in columns:
            key = key * (int(codes[column].max()) + 1) + codes[column][rows]
        return key

    found: list[tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]] = []
    for size in LENGTHS:
        for columns in itertools.combinations(labels.columns, size):
            present = np.flatnonzero(np.all([codes[column] >= 0 for column in columns], axis=0))
            keys, first, counts = np.unique(combined(columns, present), return_index=True, return_counts=True)
            if size < len(LENGTHS):
                met[columns] = keys, counts
            first, broader = present[first], np.zeros(len(first), dtype=np.int64)
            useful = (counts > 1) & (counts <= most)
            for column in columns if size > 1 else ():
                rest = tuple(other for other in columns if other != column)
                known, without = met[rest]
                without = without[np.searchsorted(known, combined(rest, first))]
                useful &= without > counts
                if column == category:
                    broader = without
            found.append((columns, first[useful], counts[useful], broader[useful]))
    kinds, *parts = zip(*found, strict=True) if found else ((), (), (), ())
    first, counts, broader = (np.concatenate([np.zeros(0, np.int64), *part]) for part in parts)
    columns = [kind for kind, rows in zip(kinds, parts[0], strict=True) for _ in rows]
    return _Intents(codes, columns, first, counts, broader)


def _sample(intents: _Intents, random: np.random.Generator, category: str | None) -> list[int]:
    """All intents in the order in which they are taken: by `LENGTHS`, more often what is common and names a type."""
    weight = intents.counts**0.5 * np.array([3.0 if category in columns else 1.0 for columns in intents.columns])
    size = np.array([len(columns) for columns in intents.columns])
    key = random.exponential(size=len(size)) / weight  # smallest first = drawn without replacement by weight
    place = np.zeros(len(size))
    for length, share in LENGTHS.items():
        rows = np.flatnonzero(size == length)
        place[rows[np.argsort(key[rows])]] = (np.arange(len(rows)) + 0.5) / share
    return np.argsort(place, kind="stable").tolist()


# -- strings -----------------------------------------------------------------------------------------------------------


class _Speaker:
    """Puts constraints into words, as shoppers would type them: "red dress", 红色连衣裙."""

    def __init__(
        self, labels: pd.DataFrame, titles: Sequence[str], columns: Sequence[str], category: str | None
    ) -> None:
        self.roles = {column: role(column, category) for column in columns}
        self.category = category
        self.singular: dict[str, str] = {}
        if category:
            for value, rows in labels.groupby(category).indices.items():
                if value and (one := _singular(value.casefold())):
                    used = re.compile(rf"(?<!\w){re.escape(one.split()[-1])}(?!\w)")
                    if (
                        np.mean([used.search(titles[row].casefold()) is not None for row in rows]) >= 0.05
                    ):  # titles of the type use the singular, so shoppers may
                        self.singular[value] = one

    def __call__(
        self, constraints: dict[str, str], relevant: int, broader: int, random: np.random.Generator
    ) -> list[str]:
        """Up to three strings for an intent, the plain one first; see `_Intents` for `broader`."""
        ordered = sorted(constraints, key=lambda column: ORDER.index(self.roles[column]))
        spoken = {column: constraints[column].casefold() for column in constraints}
        ways = [[spoken[column] for column in ordered]]
        for last in ("gender", "brand"):
            ways.append([spoken[column] for column in sorted(ordered, key=lambda column: self.roles[column] == last)])
        kind = constraints.get(self.category) if self.category else None
        if kind in self.singular:
            ways += [[self.singular[kind] if word == kind.casefold() else word for word in way] for way in ways]
        if kind and len(constraints) > 1 and relevant >= 0.5 * broader:
            ways.append([spoken[column] for column in ordered if column != self.category])
        plain, *others = {join(way): way for way in ways}.items()
        picked = [others[i] for i in random.permutation(len(others))[: random.integers(1, 3)]]
        return [text for text, way in [plain, *picked] if _sensible(way)]

    def says_type(self, text: str, constraints: dict[str, str]) -> bool:
        """Whether a string names the type that its intent asks for; a string of an intent without one does not."""
        kind = constraints.get(self.category) if self.category else None
        return bool(kind) and (kind.casefold() in text or self.singular.get(kind, kind.casefold()) in text)


def _spoken(
    labels: pd.DataFrame,
    intents: _Intents,
    speak: _Speaker,
    order: Sequence[int],
    queries: int,
    random: np.random.Generator,
) -> tuple[list[tuple[str, dict[str, str], int]], list[np.ndarray]]:
    """At least `queries` strings, where there are so many: each with its constraints and intent, and the rows that it asks for."""
    used: set[str] = set()
    table, members = [], []
    for intent in order:
        first = intents.first[intent]
        constraints = {column: labels[column].iloc[first] for column in intents.columns[intent]}
        strings = speak(constraints, intents.counts[intent], intents.broader[intent], random)
        strings = [text for text in strings if text not in used]
        used.update(strings)
        table += [(text, constraints, intent) for text in strings]
        members += [intents.rows(intent)] * len(strings) if strings else []
        if len(table) >= queries:
            break
    return table, members


def _sensible(way: list[str]) -> bool:
    """At most `LONGEST_QUERY` words, none twice: "formal formal shoes" and 红色红色连衣裙 are nobody's query."""
    said = " ".join(way).split()
    twice = any(UNSPACED.search(one) and one in other for one, other in itertools.permutations(way, 2))
    return 1 <= len(said) <= LONGEST_QUERY and len(set(said)) == len(said) and not twice


def _singular(text: str) -> str | None:
    for ending, short in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", "")):
        if text.endswith(ending) and not text.endswith("ss") and len(text) > len(ending) + 2:
            return text[: -len(ending)] + short
    return None


# -- clicks ------------------------------------------------------------------------------------------------------------


def _zipf(count: int, random: np.random.Generator, exponent: float = 0.8) -> np.ndarray:
    return 1.0 / (1.0 + random.permutation(count)) ** exponent


def _cold(groups: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(groups)
    order = random.permutation(len(sizes))
    return np.isin(groups, order[np.cumsum(sizes[order]) <= share * len(groups)])


def _click(
    members: list[np.ndarray],
    train: np.ndarray,
    cold: np.ndarray,
    kinds: np.ndarray,
    clicks: int,
    wrong_share: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Clicks as int64 (2, n): query row, product row; and bool (n,) where the click is wrong."""
    popularity = _zipf(len(kinds), random)
    warm_popularity = np.where(cold, 0.0, popularity)
    query = np.repeat(np.arange(len(members)), [len(rows) for rows in members])
    product = np.concatenate(members)
    weight = np.where(train[query], warm_popularity[product], popularity[product])
    ends = np.cumsum(weight)
    last = ends[np.cumsum([len(rows) for rows in members]) - 1]
    first = np.r_[0.0, last[:-1]]
    answerable = np.flatnonzero(last > first)  # a training query whose products are all cold gets no click
    asked = _zipf(len(members), random)[answerable]
    drawn = np.r_[answerable, random.choice(answerable, max(0, clicks - len(answerable)), p=asked / asked.sum())]
    at = np.searchsorted(ends, first[drawn] + random.random(len(drawn)) * (last - first)[drawn], side="right")
    clicked = product[np.minimum(at, len(product) - 1)]
    # a wrong click: another product of the clicked one's category, popular ones first, that does not meet the intent
    by_kind = np.argsort(_codes(kinds), kind="stable")
    code = _codes(kinds)[by_kind]
    starts, stops = (
        np.searchsorted(code, np.arange(code.max() + 1)),
        np.searchsorted(code, np.arange(code.max() + 1), "right"),
    )
    totals = np.r_[0.0, np.cumsum(warm_popularity[by_kind])]
    for_kind = np.empty(len(kinds), dtype=np.int64)
    for_kind[by_kind] = code
    low, high = totals[starts[for_kind[clicked]]], totals[stops[for_kind[clicked]]]
    other = np.searchsorted(totals[1:], low + random.random(len(clicked)) * (high - low), side="right")
    other = by_kind[np.minimum(other, len(kinds) - 1)]
    right = pd.MultiIndex.from_arrays([query, product])
    misses = ~pd.MultiIndex.from_arrays([drawn, other]).isin(right) & (high > low) & (kinds[other] == kinds[clicked])
    # draws that meet the intent by chance stay right clicks; draw so many more that the share holds
    rate = min(1.0, wrong_share / max(misses.mean(), 1e-9)) if len(misses) else 0.0
    wrong = misses & (random.random(len(clicked)) < rate)
    return np.stack([drawn, np.where(wrong, other, clicked)]), wrong
