"""Who shops in the generated world: what people want, the words they type for it, and what they click.

Each constant says why it has its value; none is tuned after an ablation has run. All of it is ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from makelib.data.sources.bazaar.goods import CATEGORIES, EVERYDAY, NAMES, TEXTUAL, VISUAL, Goods, Spoken, Word, zipf
from makelib.runtime import UserError
from makelib.settings import Bazaar

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
EVERYDAY_TYPED = 0.4  #: share of shoppers who type the everyday word for the kind of goods ("dress", "bag")
ZIPF_QUERIES = 0.7  #: exponent of the queries' popularity; below 1, so that one query does not fill a batch


@dataclasses.dataclass(frozen=True)
class Intents:
    """Sets of constraints: `wanted` int (n, attributes), -1 where anything will do; `implied`: the words for the other
    attributes make the type or category plain, bool (n,); `relevant`: rows of the products that meet all of them."""

    wanted: np.ndarray
    implied: np.ndarray
    relevant: list[np.ndarray]

    def named(self, intent: int, goods: Goods) -> dict[str, str]:
        return {key: NAMES[key][code] for key, code in zip(goods.keys, self.wanted[intent], strict=True) if code >= 0}


def draw_intents(settings: Bazaar, goods: Goods, cold: np.ndarray, rng: np.random.Generator) -> Intents:
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
    columns = goods.codes.T.astype(np.int16)  # a row each, and only those that an intent asks about
    relevant = [
        np.flatnonzero(np.logical_and.reduce([columns[key] == row[key] for key in np.flatnonzero(row >= 0)]))
        for row in wanted
    ]
    return Intents(wanted, implied, relevant)


def _answerable(goods: Goods, cold: np.ndarray) -> tuple[np.ndarray, ...]:
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
class Queries:
    """Query strings as words, the intent (n,) and the split (n,) of each, and what the shopper did with words."""

    words: list[list[Word]]
    intent: np.ndarray
    split: np.ndarray
    terse: np.ndarray  # no word for type or category
    synonym: np.ndarray  # at least one synonym that no title uses


def ask_queries(settings: Bazaar, goods: Goods, intents: Intents, rng: np.random.Generator) -> Queries:
    """Ways of asking for each intent, no two alike. A bag of words belongs to one intent, so none crosses splits."""
    count = len(intents.wanted)
    synonyms = {key: [len(words) - 1 for words in table] for key, table in Spoken("en").words.items()}
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
    return Queries([kept[slot] for slot in order], asks[order], split_of[asks[order]], terse[order], synonym[order])


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


def click_products(
    settings: Bazaar, goods: Goods, intents: Intents, queries: Queries, cold: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Clicked (query, product) rows, int (clicks, 2), and which of them are wrong, bool (clicks,).

    A shopper clicks a product that meets every constraint, by popularity, or, wrongly, another one of the category.
    """
    count = len(queries.words)
    each = 1 + rng.multinomial(settings.clicks - count, zipf(rng, count, ZIPF_QUERIES))
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
