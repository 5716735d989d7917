"""The generated world: reproducible, honest about its truth, free of leaks, neither trivial nor hopeless."""

from __future__ import annotations

import dataclasses
import itertools
import time

import bm25s
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar import goods, shoppers
from makelib.data.sources.bazaar import world as bazaar
from makelib.data.sources.bazaar.goods import stuff
from makelib.data.sources.bazaar.pictures import PATTERNS, SILHOUETTES, TYPES, corrupt, render
from makelib.data.sources.bazaar.words import vocabulary
from makelib.runtime import UserError
from makelib.settings import Bazaar

WORLD = Bazaar(products=2000, queries=1000, clicks=20000)
SMALL = Bazaar(products=400, queries=150, clicks=2000, seed=3)
SAID = {
    word: (key, value)
    for key, table in vocabulary().items()
    for value, words in table.items()
    for word in words[: 1 + (key in goods.EVERYDAY)]
    if key in goods.ATTRIBUTE_KINDS
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Catalog:
    return bazaar.generate(WORLD, tmp_path_factory.mktemp("world") / "bazaar")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Catalog:
    return bazaar.generate(SMALL, tmp_path_factory.mktemp("small") / "bazaar")


def attributes(catalog: Catalog) -> pd.DataFrame:
    return catalog.attributes.astype(object)


def values_said(title: str) -> set[tuple[str, str]]:
    """The attribute values that an English title names, read word by word."""
    return {SAID[word] for word in title.split() if word in SAID}


# -- the same again, or another one -----------------------------------------------------------------------------------


def test_photographs_are_made_while_they_are_read(monkeypatch):
    """A million of them would not fit into memory; those read so far are what they would be together."""
    made, rendered = [], goods.rendered

    def counted(*arguments, **options):
        for part in rendered(*arguments, **options):
            made.append(len(part))
            yield part

    monkeypatch.setattr(goods, "rendered", counted)
    drawn = goods.draw_products(WORLD, np.random.default_rng(0))
    pictures, truth = goods.take_photographs(WORLD, drawn, np.random.default_rng(1))
    assert (made, len(truth["image_kind"])) == ([], WORLD.products)
    first = list(itertools.islice(pictures, 5))
    assert len(made) == 1
    assert made[0] < WORLD.products / 5
    whole = [*first, *pictures]
    assert [picture is None for picture in whole] == (truth["image_kind"] == "missing").tolist()
    assert len({picture["bytes"] for picture in whole if picture}) > WORLD.products / 2


def test_same_settings_same_world_other_seed_other_world(small, tmp_path):
    again = bazaar.generate(SMALL, tmp_path / "again")
    other = bazaar.generate(dataclasses.replace(SMALL, seed=4), tmp_path / "other")
    assert again.fingerprint == small.fingerprint
    pd.testing.assert_frame_equal(again.truth, small.truth)
    assert other.fingerprint != small.fingerprint
    assert (attributes(other) != attributes(small)).to_numpy().mean() > 0.3


def test_chinese_world_is_the_same_world_in_other_words(small, tmp_path):
    chinese = bazaar.generate(dataclasses.replace(SMALL, language="zh"), tmp_path / "zh")
    pd.testing.assert_frame_equal(attributes(chinese), attributes(small))
    pd.testing.assert_frame_equal(chinese.interactions, small.interactions)
    pd.testing.assert_frame_equal(chinese.truth, small.truth)
    pd.testing.assert_frame_equal(chinese.queries.drop(columns="query"), small.queries.drop(columns="query"))
    np.testing.assert_array_equal(chinese.images(32)[0], small.images(32)[0])
    assert not any(" " in text for text in [*chinese.products["title"], *chinese.queries["query"]])
    assert (chinese.products["title"] != small.products["title"])[small.products["title"] != ""].all()


@pytest.mark.parametrize("size", [16, 64])
def test_image_size(size, tmp_path):
    catalog = bazaar.generate(dataclasses.replace(SMALL, image_size=size), tmp_path / "world")
    row = int(np.flatnonzero(catalog.truth["image_kind"] == "clean")[0])
    assert catalog.image(row).size == (size, size)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_tables(world):
    assert (len(world), len(world.queries), len(world.interactions)) == (2000, 1000, 20000)
    assert world.info["generated_queries"] is True
    assert world.info["settings"] == dataclasses.asdict(WORLD)
    assert world.info["version"] == bazaar.VERSION == 2
    assert list(attributes(world).columns) == list(world.info["attribute_kinds"])
    assert (attributes(world)["category"] == world.products["category"]).all()
    assert set(world.interactions["kind"]) == {"click"}
    assert set(world.interactions["label"]) == {1.0}
    assert (world.truth["product_id"] == world.products["product_id"]).all()
    assert (world.truth["led"] == world.products["category"].map(world.info["led"])).all()
    for category, values in attributes(world).groupby("category"):
        known = goods.CATEGORIES[category]
        assert set(values["type"]) == set(known.types.split())
        assert set(values["material"]) <= set(known.materials.split())
        assert set(values["capacity"]) <= set(known.capacities.split())


def test_constraints_are_met_by_some_products_and_lie_within_one_type_or_category(world):
    full = (world.relevance(np.arange(len(world.queries))) == 1).sum(axis=1)
    assert full.min() >= shoppers.RELEVANT[0]
    broad = world.queries["constraints"].map(len).to_numpy() == 1
    assert full[~broad].max() <= shoppers.RELEVANT[1]
    category = world.products["category"].to_numpy()[world.relevance(np.arange(len(full))).argmax(axis=1)]
    by_intent = pd.Series(category).map(world.info["led"]).groupby(world.queries["intent"]).first()
    assert (by_intent == "image").mean() == pytest.approx(0.5, abs=0.05)
    assert full.mean() == pytest.approx(world.info["measured"]["relevant_per_query"]["mean"])
    for constraints in world.queries["constraints"]:
        assert len({"type", "category"} & set(constraints)) == 1
        assert 1 <= len(constraints) <= 3


def test_queries_are_short_and_distinct_and_say_what_they_mean(world):
    assert not world.queries["query"].duplicated().any()
    lengths = world.queries["query"].str.split().str.len()
    assert lengths.min() == 1
    assert lengths.max() <= 4
    meaning = {
        word: (key, value) for key, table in vocabulary().items() for value, words in table.items() for word in words
    }
    for query, constraints in zip(world.queries["query"], world.queries["constraints"], strict=True):
        said = {meaning[word] for word in query.split()}
        said = {(key, value) for key, value in said if key != "filler"}
        assert said <= set(constraints.items())
        assert {key for key, _ in set(constraints.items()) - said} <= {"type", "category"}


# -- leaks ------------------------------------------------------------------------------------------------------------


def test_no_intent_and_no_bag_of_words_crosses_splits(world):
    assert (world.queries.groupby("intent")["split"].nunique() == 1).all()
    filler = {words[0] for words in vocabulary()["filler"].values()}
    bags = world.queries["query"].map(lambda query: frozenset(query.split()) - filler)
    assert (world.queries.groupby(bags)["intent"].nunique() == 1).all()
    intents = world.queries.drop_duplicates("intent")
    brief = intents["constraints"].map(len) == 1
    for part, shares in ((intents[~brief], shoppers.SPLIT), (intents[brief], shoppers.SPLIT_BRIEF)):
        for split, share in shares.items():
            assert (part["split"] == split).mean() == pytest.approx(share, abs=1 / len(part) + 0.005)


def test_every_kind_of_goods_is_asked_for_on_its_own_and_often_enough_to_judge(tmp_path):
    quick = bazaar.generate(Bazaar(image_size=16), tmp_path / "quick")
    alone = {next(iter(constraints.items())) for constraints in quick.queries["constraints"] if len(constraints) == 1}
    assert alone == {(key, name) for key in goods.EVERYDAY for name in goods.NAMES[key]}
    brief = quick.queries["query"].str.split().str.len() == 1
    assert quick.queries["split"][brief].value_counts().to_dict() == quick.info["measured"]["one_word_queries"]
    assert quick.info["measured"]["one_word_queries"]["test"] >= 60
    assert (quick.queries["split"] == "test").sum() == pytest.approx(600, rel=0.1)


def test_everyday_words_are_typed_and_some_sellers_write_them(world):
    titles, queries = world.products["title"].str.split(), world.queries["query"].str.split()
    for key in goods.EVERYDAY:
        seller, everyday = ({words[which] for words in vocabulary()[key].values()} for which in (0, 1))
        for texts, share in ((titles, goods.EVERYDAY_SOLD), (queries, shoppers.EVERYDAY_TYPED)):
            plain, common = (
                texts.map(lambda text, words=words: bool(words & set(text))).sum() for words in (seller, everyday)
            )
            assert common / (plain + common) == pytest.approx(share, abs=0.1), (key, share)
    dress = {
        constraints.get("category")
        for constraints, text in zip(world.queries["constraints"], queries, strict=True)
        if "dress" in text
    }
    assert dress == {"dresses"}


def test_intent_is_the_set_of_constraints(world):
    sets = world.queries["constraints"].map(lambda constraints: frozenset(constraints.items()))
    assert (sets.groupby(world.queries["intent"]).nunique() == 1).all()
    assert sets.nunique() == world.queries["intent"].nunique()


def test_cold_products_have_no_training_clicks_but_others_may_click_them(world):
    assert (~world.seen).mean() >= WORLD.cold
    _, validation = world.clicks("validation")
    _, test = world.clicks("test")
    assert (~world.seen)[np.concatenate([validation, test])].mean() > 0.5 * WORLD.cold
    for split in shoppers.SPLIT:
        queries, _ = world.clicks(split)
        assert set(queries) == set(world.query_rows(split))


def test_synonyms_other_than_everyday_words_stand_in_no_title(world, tmp_path):
    chinese = bazaar.generate(dataclasses.replace(WORLD, language="zh", image_size=16), tmp_path / "zh")
    english = {word for title in world.products["title"] for word in title.split()}
    for key in goods.ATTRIBUTE_KINDS:
        sold = 1 + (key in goods.EVERYDAY)
        for value, words in vocabulary()[key].items():
            assert not english & set(words[sold:]), value
        for value, words in vocabulary("zh")[key].items():
            for synonym in words[sold:]:
                assert not chinese.products["title"].str.contains(synonym, regex=False).any(), (value, synonym)


def test_vocabulary_is_unambiguous_in_both_languages():
    english, chinese = vocabulary("en"), vocabulary("zh")
    for words in (english, chinese):
        flat = [word for table in words.values() for all_words in table.values() for word in all_words]
        assert len(flat) == len(set(flat))
        assert all(word and "|" not in word for word in flat)
    for key in goods.ATTRIBUTE_KINDS:
        for value in english[key]:
            sold = 1 + (key in goods.EVERYDAY)
            assert sold + 1 <= len(english[key][value]) == len(chinese[key][value]) <= sold + 2, value
            assert all(" " not in word for word in english[key][value])


# -- shares and truth -------------------------------------------------------------------------------------------------


def test_shares(world):
    truth, titles = world.truth, world.products["title"]
    assert (titles == "").mean() == pytest.approx(WORLD.missing_title, abs=1e-3)
    assert (truth["image_kind"] == "missing").mean() == pytest.approx(WORLD.missing_image, abs=1e-3)
    assert (truth["image_kind"] == "placeholder").mean() == pytest.approx(0.01, abs=1e-3)
    assert not ((titles == "") & truth["image_kind"].isin(["missing", "placeholder"])).any()
    _, present = world.images(32)
    np.testing.assert_array_equal(present, truth["image_kind"] != "missing")
    measured = world.info["measured"]
    assert measured["queries_with_synonym"] == pytest.approx(WORLD.synonyms, abs=0.05)
    assert measured["queries_without_category_word"] == pytest.approx(WORLD.no_category, abs=0.05)
    assert measured["wrong_clicks"] == pytest.approx(WORLD.wrong_clicks, abs=0.01)
    for key in ("colour", "pattern", "silhouette"):
        named = [
            (key, a[key]) in values_said(t) for t, a in zip(titles, attributes(world).to_dict("records"), strict=True)
        ]
        assert np.mean(named) == pytest.approx(measured["titles_naming"][key])
        assert np.mean(named) == pytest.approx(WORLD.title_names_visible, abs=0.05)


def test_clicks_are_right_or_within_the_category(world):
    queries, products = world.interactions["query"].to_numpy(), world.interactions["product"].to_numpy()
    relevance = world.relevance(np.arange(len(world.queries)))
    wrong = relevance[queries, products] < 1
    assert wrong.mean() == pytest.approx(world.info["measured"]["wrong_clicks"])
    category = world.products["category"].to_numpy()
    home = category[relevance.argmax(axis=1)]
    assert (category[products] == home[queries]).all()


def test_clicks_follow_popularity(world):
    for column in ("query", "product"):
        counts = world.interactions[column].value_counts().to_numpy()
        assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()  # uniform would give 0.10


def test_duplicates_share_the_product_but_not_the_listing(world):
    products, truth = world.products, world.truth
    copies = truth.index[truth["duplicate_of"].notna()]
    assert len(copies) == round(WORLD.duplicates * len(world))
    first = products.index[products["product_id"].isin(truth["duplicate_of"])]
    row_of = pd.Series(products.index, index=products["product_id"])
    originals = row_of[truth.loc[copies, "duplicate_of"]].to_numpy()
    assert truth["duplicate_of"].iloc[originals].isna().all()
    assert (products["group"].to_numpy()[copies] == products["group"].to_numpy()[originals]).all()
    assert (attributes(world).iloc[copies].to_numpy() == attributes(world).iloc[originals].to_numpy()).all()
    assert (products["title"].to_numpy()[copies] != products["title"].to_numpy()[originals]).mean() > 0.95
    pixels, _ = world.images(32)
    clean = (truth["image_kind"] == "clean").to_numpy()
    both = clean[copies] & clean[originals]
    assert not (pixels[copies[both]] == pixels[originals[both]]).all(axis=(1, 2, 3)).any()
    assert len(first) == len(set(originals))
    assert products["group"].nunique() == len(world) - len(copies)


def test_title_truth_equals_what_a_reader_finds(world):
    stated = attributes(world).to_dict("records")
    for row in range(0, len(world), 3):
        title, own = world.products["title"][row], set(stated[row].items())
        said, truth = values_said(title), world.truth.iloc[row]
        wrong = len(said - own)
        assert truth["stuffed_words"] == wrong
        told = [1 / sum(key == other for other, _ in said) for key, value in said & own if key in goods.ASKED]
        assert truth["title_reliability"] == pytest.approx(sum(told) / len(goods.ASKED))
        assert truth["title_kind"] == ("missing" if not title else "stuffed" if wrong else "clean")


def test_image_truth(world):
    by_kind = world.truth.groupby("image_kind")["image_reliability"]
    seen = 4 / len(goods.ASKED)  # type, colour, pattern, silhouette: no picture tells more
    assert world.truth["image_reliability"].between(0, seen).all()
    assert by_kind.max()[["missing", "placeholder"]].eq(0).all()
    assert by_kind.min()["clean"] >= 0.88 * seen
    mean = by_kind.mean() / seen
    assert mean["clean"] > 0.97 > 0.7 > mean["blur"] > mean["stock"] > mean["props"]


def test_title_and_image_are_measured_alike(world):
    """A title and a picture that tell the same attributes of a product are equally reliable: the best titles tell more than
    any picture, for they can name brand, material and capacity too."""
    truth, stated = world.truth, attributes(world).to_dict("records")
    own = [values_said(title) & set(a.items()) for title, a in zip(world.products["title"], stated, strict=True)]
    like_a_picture = np.array(
        [{key for key, _ in said if key in goods.ASKED} == {"type", *goods.VISUAL} for said in own]
    )
    clean = (truth["title_kind"] == "clean") & like_a_picture
    assert clean.any()
    best = truth["image_reliability"][truth["image_kind"] == "clean"].max()
    assert truth["title_reliability"][clean].to_numpy() == pytest.approx(best)
    assert truth["title_reliability"].max() > best


def test_trust_varies_between_and_within_categories(world):
    truth = world.truth.assign(category=world.products["category"])
    mean = truth.groupby("led")[["image_reliability", "title_reliability"]].mean()
    assert mean.loc["image", "image_reliability"] > mean.loc["title", "image_reliability"] + 0.15
    assert mean.loc["title", "title_reliability"] > mean.loc["image", "title_reliability"] + 0.05
    assert (truth.groupby("category")[["image_reliability", "title_reliability"]].std() > 0.06).all(axis=None)


def test_wrong_words_and_spoiled_photographs_follow_their_factor(small, tmp_path):
    none, twice = (
        bazaar.generate(dataclasses.replace(SMALL, stuffing=factor, image_noise=factor), tmp_path / str(factor)).truth
        for factor in (0.0, 2.0)
    )
    stuffed = [(truth["title_kind"] == "stuffed").mean() for truth in (none, small.truth, twice)]
    unspoiled = ["clean", "missing", "placeholder"]
    spoiled = [(~truth["image_kind"].isin(unspoiled)).mean() for truth in (none, small.truth, twice)]
    for none_of_them, usual, double in (stuffed, spoiled):
        assert none_of_them == 0
        assert 1.5 * usual < double < 2.5 * usual
    same = (none["title_kind"] == "clean") & (small.truth["title_kind"] == "clean")
    assert (none["title_reliability"] == small.truth["title_reliability"])[same].all()


def test_extreme_settings_do_what_they_say(tmp_path):
    plain = dataclasses.replace(
        SMALL, title_names_visible=1.0, synonyms=0.0, no_category=0.0, wrong_clicks=0.0, missing_title=0.0,
        missing_image=0.0, duplicates=0.0, cold=0.0, image_size=16,
    )  # fmt: skip
    catalog = bazaar.generate(plain, tmp_path / "plain")
    assert (catalog.products["title"] != "").all()
    assert set(catalog.truth["image_kind"]).isdisjoint({"missing"})
    assert catalog.truth["duplicate_of"].isna().all()
    for title, own in zip(catalog.products["title"], attributes(catalog).to_dict("records"), strict=True):
        assert {(key, own[key]) for key in goods.VISUAL} <= values_said(title)
    for query, constraints in zip(catalog.queries["query"], catalog.queries["constraints"], strict=True):
        assert values_said(query) == set(constraints.items())
    queries, products = catalog.interactions["query"], catalog.interactions["product"]
    assert (catalog.relevance(np.arange(len(catalog.queries)))[queries, products] == 1).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"products": 0},
        {"queries": 10},
        {"clicks": 0},
        {"clicks": 100, "queries": 101},
        {"wrong_clicks": 1.5},
        {"synonyms": -0.1},
        {"cold": float("nan")},
        {"missing_title": 0.6, "missing_image": 0.6},
        {"duplicates": 0.8},
        {"image_size": 4},
        {"language": "fr"},
        {"seed": -1},
        {"products": 30, "queries": 50},
        {"products": 400, "queries": 20_000, "clicks": 20_000},
    ],
)
def test_settings_that_make_no_sense(changes, tmp_path):
    with pytest.raises(UserError, match="bazaar"):
        bazaar.generate(dataclasses.replace(SMALL, **changes), tmp_path / "world")
    assert not (tmp_path / "world").exists()


# -- neither trivial nor impossible -----------------------------------------------------------------------------------


def precision(scores: np.ndarray, relevance: np.ndarray) -> float:
    """Share of fully relevant products among the first ten, ties broken at random."""
    top = np.argsort(-(scores + 1e-6 * np.random.default_rng(0).random(scores.shape)), axis=1)[:, :10]
    return float((np.take_along_axis(relevance, top, axis=1) == 1).mean())


def test_each_modality_helps_and_neither_suffices(world):
    rows = world.query_rows("test")
    relevance, wanted = world.relevance(rows), list(world.queries["constraints"].iloc[rows])
    titles, table = list(world.products["title"]), attributes(world)
    oracle, chance = precision(relevance, relevance), precision(np.zeros_like(relevance), relevance)

    index = bm25s.BM25()
    index.index([title.split() for title in titles], show_progress=False)
    bm25 = precision(
        np.stack([index.get_scores(query.split()) for query in world.queries["query"].iloc[rows]]), relevance
    )

    said = [values_said(title) for title in titles]
    read = precision(np.array([[len(said_ & set(c.items())) for said_ in said] for c in wanted]), relevance)

    # pixels alone: kernel ridge regression from half of the photographs to what they show, judged on the rest
    pixels, present = world.images(32)
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / 255 - 0.5
    learn = np.arange(len(world)) % 2 == 0
    seen_keys = ["type", "category", *goods.VISUAL]
    targets = pd.get_dummies(table[seen_keys], dtype=float)
    model = KernelRidge(kernel="rbf", gamma=0.004, alpha=0.1).fit(flat[learn & present], targets[learn & present])
    guessed = pd.DataFrame(model.predict(flat[~learn]), columns=targets.columns)
    scores = np.array(
        [sum(guessed.get(f"{k}_{v}", 0) for k, v in c.items()) + np.zeros((~learn).sum()) for c in wanted]
    )
    unseen = relevance[:, ~learn]
    looked, ceiling, luck = (
        precision(scores, unseen),
        precision(unseen, unseen),
        precision(np.zeros_like(unseen), unseen),
    )

    print(f"P@10: chance {chance:.3f}, BM25 {bm25:.3f}, titles read {read:.3f}, oracle {oracle:.3f}; "
          f"on unseen photographs: chance {luck:.3f}, pixels {looked:.3f}, oracle {ceiling:.3f}")  # fmt: skip
    assert 10 * chance < bm25 < 0.6 * oracle
    assert bm25 < read < 0.75 * oracle
    assert 5 * luck < looked < 0.75 * ceiling


def test_queries_follow_the_informative_modality_but_not_only(world):
    visual = world.info["measured"]["visual_constraints"]
    assert visual["image"] > 0.6
    assert 0.1 < visual["title"] < 0.4
    kinds = pd.Series(world.info["attribute_kinds"])
    mixed = [{"visual", "textual"} <= set(kinds[list(c)]) for c in world.queries["constraints"]]
    assert 0.05 < np.mean(mixed) < 0.5


@pytest.mark.slow
def test_ten_thousand_products_take_seconds(tmp_path):
    begin = time.process_time()
    bazaar.generate(Bazaar(products=10_000), tmp_path / "world")
    assert time.process_time() - begin < 40  # 9 s on a quiet core; the bound allows for a crowded machine


# -- pictures and words on their own ----------------------------------------------------------------------------------


def test_every_visible_attribute_changes_the_picture():
    one = np.zeros(1, np.int64)
    for kind, pattern in itertools.product(range(len(TYPES)), range(len(PATTERNS))):
        picture = render(one + kind, one, one + pattern, one, 32, seed=5).astype(int)
        others = [
            render(one + (kind + 1) % len(TYPES), one, one + pattern, one, 32, seed=5),
            render(one + kind, one + 5, one + pattern, one, 32, seed=5),
            render(one + kind, one, one + (pattern + 1) % len(PATTERNS), one, 32, seed=5),
            render(one + kind, one, one + pattern, one + 1, 32, seed=5),
        ]
        for other in others:
            assert (np.abs(picture - other).max(axis=-1) > 40).mean() > 0.01, (TYPES[kind], PATTERNS[pattern])


def test_silhouettes_are_what_their_names_say():
    """Seen against many backgrounds: where the picture depends on the colour, there is the article."""
    count = 60
    zero = np.zeros(count, np.int64)
    shape = {}
    for name, code in zip(SILHOUETTES, range(len(SILHOUETTES)), strict=True):
        red, blue = (
            render(zero + TYPES.index("tote"), zero + c, zero, zero + code, 64, seed=1).astype(int) for c in (0, 5)
        )
        shape[name] = (np.abs(red - blue).max(axis=-1) > 60).mean(axis=0)  # share of pictures with cloth at each pixel
    width = {name: where.max(axis=0).sum() for name, where in shape.items()}
    height = {name: where.max(axis=1).sum() for name, where in shape.items()}
    assert width["slim"] < 0.75 * width["wide"]
    assert height["short"] < 0.85 * height["slim"]
    lower = {name: where[38:].sum() for name, where in shape.items()}
    upper = {name: where[:38].sum() for name, where in shape.items()}
    assert lower["flared"] / upper["flared"] > 1.5 * lower["tapered"] / upper["tapered"]


def test_an_article_beside_stays_in_a_corner():
    drawn = np.zeros((8, 4), np.int64)
    alone = render(*drawn.T, size=32, seed=2).astype(int)
    together = render(*drawn.T, size=32, seed=2, beside=np.tile([20, 5, 0, 0], (8, 1)))
    changed = np.abs(alone - together).max(axis=-1) > 20
    assert changed.any(axis=(1, 2)).all()
    assert not changed[:, 13:19, 13:19].any()
    np.testing.assert_array_equal(alone, render(*drawn.T, size=32, seed=2, beside=np.full((8, 4), -1)))


KINDS = ("blur", "watermark", "occlusion", "noise")


@hypothesis_settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), size=st.integers(4, 40), strength=st.floats(0, 1), seed=st.integers(0, 99))
def test_corrupt_keeps_form_and_input(kind, size, strength, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    before = pixels.copy()
    spoiled = corrupt(pixels, kind, strength, seed)
    assert spoiled.shape == pixels.shape
    assert spoiled.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(spoiled, corrupt(pixels, kind, strength, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_is_further_from_the_truth(kind, world):
    pixels = np.asarray(world.images(32)[0][:100])
    far = [
        np.abs(corrupt(pixels, kind, strength, 1).astype(int) - pixels).mean() for strength in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert far[0] == 0
    assert (np.diff(far) > 0).all()


@pytest.mark.parametrize(
    ("pixels", "kind", "strength"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "rain", 0.5),
        (np.zeros((1, 8, 8, 3), np.uint8), "blur", 1.1),
        (np.zeros((1, 8, 8, 3), np.uint8), "blur", float("nan")),
        (np.zeros((1, 8, 8, 3), np.float32), "blur", 0.5),
        (np.zeros((8, 8, 3), np.uint8), "noise", 0.5),
    ],
)
def test_corrupt_refuses(pixels, kind, strength):
    with pytest.raises(UserError, match="corrupt"):
        corrupt(pixels, kind, strength)


@hypothesis_settings(max_examples=30, deadline=None)
@given(words=st.integers(0, 40), seed=st.integers(0, 99), title=st.sampled_from(["", "red gown norvia", "new mug"]))
def test_stuff_appends_new_attribute_words(words, seed, title):
    stuffed = stuff(title, words, seed)
    assert stuffed == stuff(title, words, seed)
    assert stuffed.startswith(title)
    added = stuffed.split()[len(title.split()) :]
    assert len(added) == len(set(added)) == words
    assert not set(added) & set(title.split())
    assert len(values_said(" ".join(added))) == words


def test_stuff_in_chinese_and_its_errors():
    title = "红色晚礼服诺维"
    stuffed = stuff(title, 3, language="zh")
    assert stuffed.startswith(title)
    assert len(stuffed) >= len(title) + 3
    assert " " not in stuffed
    for wrong in ({"words": -1}, {"words": 10_000}, {"words": 1, "language": "fr"}):
        with pytest.raises(UserError, match="stuff"):
            stuff(title, **wrong)
