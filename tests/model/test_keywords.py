"""Keyword Enhancement: word tables, extractors, enrichment and the false-negative rules, each against an obvious reference.

The catalogue below is small enough to work out every answer in one's head.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makelib.data.sources.bazaar.goods import EVERYDAY
from makelib.data.sources.bazaar.words import vocabulary
from makelib.data.sources.bazaar.world import generate
from makelib.data.tables import write_catalog
from makelib.data.text import words
from makelib.model.keywords import FalseNegatives, KeywordTable, WordTables, _masks, enrich
from makelib.settings import Bazaar, Keywords

PRODUCTS = [  # id, title, category, group
    ("a", "acme red dress cheap", "dress", None),
    ("b", "bolt red dress", "dress", None),
    ("c", "red dress poster", "poster", None),
    ("d", "acme blue dress", "dress", None),
    ("e", "acme red dress again", "dress", "a"),  # a duplicate listing of a
    ("f", "", "dress", None),
]
QUERIES = [
    ("1", "red dress", "train"),
    ("2", "acme", "train"),
    ("3", "scarlet dress", "train"),
    ("4", "Red Dress", "train"),
    ("5", "bolt", "test"),
]
CLICKS = [("1", "a"), ("1", "b"), ("2", "a"), ("2", "d"), ("3", "b"), ("4", "b"), ("1", "a")]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    products = pd.DataFrame(PRODUCTS, columns=["product_id", "title", "category", "group"]).assign(
        image=None, attributes=None
    )
    queries = pd.DataFrame(QUERIES, columns=["query_id", "query", "split"])
    clicks = pd.DataFrame(CLICKS, columns=["query_id", "product_id"]).assign(label=1.0, kind="click")
    folder = tmp_path_factory.mktemp("catalogue") / "words"
    return write_catalog(folder, name="words", products=products, queries=queries, interactions=clicks)


@pytest.fixture(scope="module")
def tables(catalog):
    return WordTables.of(catalog)


def test_word_tables_count_training_data_only(catalog, tables):
    assert "bolt" in tables.vocabulary  # stands in the title of a product that was clicked in training
    assert "poster" not in tables.vocabulary  # its product was never clicked
    assert tables.known.tolist() == [True, True, True, True, True]
    typed = tables.typed[0, tables.vocabulary.index("red")]
    assert typed == 2  # query 1 was clicked twice on a
    assert tables.clicks.tolist() == [3, 3, 0, 1, 0, 0]


def test_tfidf_weighs_by_rarity_and_salience_by_what_shoppers_type(catalog):
    rare = KeywordTable.of(catalog, Keywords(extractor="tfidf")).words(0)
    assert rare[0][0] == "cheap"
    learned = dict(KeywordTable.of(catalog, Keywords(extractor="salience")).words(0))
    assert learned["red"] > learned["cheap"]  # nobody who clicked ever typed "cheap"


def test_salience_equals_the_formula(catalog, tables):
    table = dict(KeywordTable.of(catalog, Keywords(extractor="salience", per_title=9)).words(0))
    v = tables.vocabulary.index("red")
    clicked_with_word = sum(1 for q, p in CLICKS if "red" in words(dict((i, t) for i, t, *_ in PRODUCTS)[p]))
    typed_with_word = sum(
        1 for q, p in CLICKS
        if "red" in words(dict((i, t) for i, t, *_ in PRODUCTS)[p]) and "red" in words(dict((i, t) for i, t, _ in QUERIES)[q])
    )  # fmt: skip
    rate = (typed_with_word + 1) / (clicked_with_word + 20)
    assert table["red"] == pytest.approx(tables.idf[v] * (2 + 4 * rate) / (3 + 4), rel=1e-5)


def test_enrichment_adds_only_new_words_of_the_clicked_title(catalog, tables):
    keywords = KeywordTable.of(catalog, Keywords())
    for seed in range(20):
        random = np.random.default_rng(seed)
        extra = enrich(keywords, tables.queries[[0, 1]], np.array([0, 3]), Keywords(keyword_dropout=0.0), random)
        for row, query, title in zip(extra, ("red dress", "acme"), (PRODUCTS[0][1], PRODUCTS[3][1]), strict=True):
            added = keywords.vocabulary[row[row >= 0]]
            assert set(added) <= set(title.split()) - set(query.split())
            assert 0 < len(added) <= 3
    for product, own in ((5, Keywords()), (0, Keywords(keyword_dropout=1.0))):
        none = enrich(keywords, tables.queries[[0]], np.array([product]), own, np.random.default_rng(0))
        assert (none == -1).all()


def test_heavier_keywords_are_drawn_more_often(catalog, tables):
    keywords = KeywordTable.of(catalog, Keywords(extractor="salience"))
    first, last = keywords.words(3)[0][0], keywords.words(3)[-1][0]
    random = np.random.default_rng(0)
    empty = tables.queries[[0] * 500].copy() * 0
    drawn = enrich(keywords, empty.tocsr(), np.full(500, 3), Keywords(per_query=1, keyword_dropout=0.0), random)
    drawn = keywords.vocabulary[drawn[:, 0]].tolist()
    assert drawn.count(first) > drawn.count(last)


def slow_rules(catalog, queries, products):
    """Rules R0 to R2 in plain loops over names."""
    title = {i: set(words(t)) for i, t, *_ in PRODUCTS}
    category = {i: c for i, _, c, _ in PRODUCTS}
    group = {i: g or i for i, _, _, g in PRODUCTS}
    group["a"] = group["e"] = "a"
    string = {i: t.lower() for i, t, _ in QUERIES}
    split = {i: s for i, _, s in QUERIES}
    known = set().union(*(title[p] for _, p in CLICKS), *(words(t) for i, t, s in QUERIES if s == "train"))
    clicked = {(string[q], group[p]) for q, p in CLICKS if split[q] == "train"}
    size = len(queries)
    positives, masked = np.eye(size, dtype=bool), np.eye(size, dtype=bool)
    for i in range(size):
        q, own = catalog.queries["query_id"][queries[i]], catalog.products["product_id"][products[i]]
        asked = set(words(string[q]))
        evidence = asked <= title[own] and asked <= known
        for j in range(size):
            other_query, p = catalog.queries["query_id"][queries[j]], catalog.products["product_id"][products[j]]
            same_string = string[q] == string[other_query]
            positives[i, j] |= same_string and group[p] == group[own]
            known_click = (string[q], group[p]) in clicked or same_string
            worded = evidence and asked <= title[p] and category[p] == category[own]
            masked[i, j] |= known_click or group[p] == group[own] or worded
    return positives, masked


def test_the_rule_equals_its_definition(catalog, tables):
    judge = FalseNegatives(catalog, tables)
    random = np.random.default_rng(0)
    for _ in range(30):
        size = 12  # wide enough for the cap of half a row to be rare; the reference has no cap
        queries, products = random.integers(0, 4, size), random.integers(0, 5, size)
        positives, masked = slow_rules(catalog, queries, products)
        masks = judge.rule(queries, products)
        assert (masks.positives == positives).all()
        within = masked.sum(axis=1) <= size // 2
        assert (~masks.negatives == masked)[within].all()


def test_stuffed_titles_of_other_categories_stay_hard_negatives(catalog, tables):
    judge = FalseNegatives(catalog, tables)
    rows = {i: n for n, (i, *_) in enumerate(PRODUCTS)}
    queries, products = np.array([0, 1, 1, 1, 1, 1]), np.array([rows[x] for x in "acbddd"])
    worded = judge.worded(queries, products)
    assert not worded[0, 1]  # a poster says "red dress"; its category is another
    assert worded[0, 2]
    synonym = judge.worded(np.array([2, 0]), products[[2, 0]])
    assert not synonym[0].any()  # "scarlet" stands in no title: no evidence, so the rule abstains


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 999))
def test_masks_are_disjoint_and_leave_half_a_row(size, share, certain_share, seed):
    random = np.random.default_rng(seed)
    certain = np.eye(size, dtype=bool) | (random.random((size, size)) < certain_share / 2)
    masked = certain | (random.random((size, size)) < share)
    masks = _masks(np.eye(size, dtype=bool), certain, masked)
    assert not (masks.positives & masks.negatives).any()
    assert not masks.negatives[np.eye(size, dtype=bool)].any()
    kept = ~masks.negatives & ~masks.positives
    assert (kept.sum(axis=1) <= size // 2).all()
    assert not (kept & ~masked).any()


def test_raw_masks_nothing_and_none_only_the_same_product_and_the_same_query(catalog, tables):
    judge = FalseNegatives(catalog, tables)
    # query 0 on a, on b and on a again; query 3, the same string, on b; query 1 on a's twin listing e
    queries, products = np.array([0, 0, 0, 3, 1]), np.array([0, 1, 0, 1, 4])
    raw = judge.raw(queries, products)
    assert (raw.negatives == ~np.eye(5, dtype=bool)).all()
    plain = judge.none(queries, products)
    negatives = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 1, 0]], bool)
    assert (plain.negatives == negatives).all()
    assert plain.positives[0].tolist() == [True, False, True, False, False]
    assert plain.positives[1].tolist() == [False, True, False, True, False]


def test_mined_negatives_are_kept_by_the_same_rules(catalog, tables):
    judge, everything = FalseNegatives(catalog, tables), np.arange(len(PRODUCTS))
    # "red dress" was clicked on a (listed again as e) and b; d and f lack a word, c is of another category
    assert judge.admissible("none", 0, everything).tolist() == [False, False, True, True, False, True]
    # "acme" was clicked on a and d, e is a's twin; "bolt red dress" and the others lack the word
    assert judge.admissible("rule", 1, everything).tolist() == [False, True, True, False, False, True]
    fewer = FalseNegatives(catalog, tables)
    fewer.clicked[fewer.strings[0], fewer.groups[1]] = 0  # nobody clicked b for "red dress", whose words it has
    fewer.clicked.eliminate_zeros()
    assert fewer.admissible("none", 0, everything)[1]
    assert not fewer.admissible("rule", 0, everything)[1]


def test_the_oracle_masks_exactly_the_truth(tmp_path):
    products = pd.DataFrame(
        {"product_id": list("abcd"), "title": ["x", "y", "z", "u"], "category": "k", "image": None,
         "attributes": [{"colour": c} for c in ("red", "red", "blue", "green")]}
    )  # fmt: skip
    colours = ("red", "blue", "green")
    queries = pd.DataFrame(
        {"query_id": list("123"), "query": colours, "split": "train", "constraints": [{"colour": c} for c in colours]}
    )
    clicks = pd.DataFrame({"query_id": list("1123"), "product_id": list("abcd"), "label": 1.0, "kind": "click"})
    catalog = write_catalog(
        tmp_path / "oracle", name="o", products=products, queries=queries, interactions=clicks.drop(index=1)
    )
    judge = FalseNegatives(catalog, WordTables.of(catalog))
    masks = judge.oracle(np.array([0, 1, 2]), np.array([0, 2, 3]))
    assert (masks.negatives == ~np.eye(3, dtype=bool)).all()
    truth = judge.truth(np.array([0, 0]), np.array([0, 1]))
    assert truth.all()


def test_settings_choose_the_extractor(catalog):
    one = KeywordTable.of(catalog, Keywords(extractor="tfidf"))
    two = KeywordTable.of(catalog, dataclasses.replace(Keywords(), extractor="salience"))
    assert not np.array_equal(one.ids, two.ids)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_keywords_of_the_generated_world_are_true_attribute_words(language, segmenter, tmp_path):
    """Salience picks true words over promotion and stuffing, in either language and with either way to cut Chinese."""
    catalog = generate(
        Bazaar(products=600, queries=400, clicks=9000, image_size=16, language=language), tmp_path / "bazaar"
    )
    tables = WordTables.of(catalog)
    keywords, words_of = KeywordTable.of(catalog, Keywords(per_title=3)), vocabulary(language)
    true, chance = [], []
    for row in np.flatnonzero(tables.clicks >= 5):
        attributes = catalog.attributes.iloc[row].dropna()
        said = {
            word
            for key, value in attributes.items()
            for sold in words_of[key][value][: 1 + (key in EVERYDAY)]
            for word in words(sold)
        }
        true += [word in said for word, _ in keywords.words(row)]
        chance += [tables.vocabulary[column] in said for column in tables.titles[row].indices]
    assert np.mean(true) > 0.75
    assert np.mean(true) > np.mean(chance) + 0.25
