"""Questions to a model: each table on a small untrained one, and the direction tests on numbers made by hand."""

import copy
import dataclasses
import re
import tracemalloc
import types

import numpy as np
import pandas as pd
import pytest
import torch

from makelib.data.sources.bazaar.words import vocabulary
from makelib.data.sources.bazaar.world import generate
from makelib.data.tables import write_catalog
from makelib.data.tokens import tokenizer_for
from makelib.model.make import MakeModel, ProductVectors
from makelib.search.retriever import Retriever
from makelib.settings import Index, preset
from makelib.study import bounds, probes
from makelib.study.bounds import oracle_run
from makelib.study.metrics import evaluate
from makelib.workbook import notebook, plots

SETTINGS = preset("smoke").replace(
    **{
        "bazaar.products": 200, "bazaar.queries": 120, "bazaar.clicks": 1200, "model.width": 32, "model.dim": 16,
        "training.batch_size": 32, "text.vocabulary": 600,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    catalog = generate(SETTINGS.bazaar, tmp_path_factory.mktemp("world") / "bazaar")
    torch.manual_seed(0)
    model = MakeModel.from_settings(
        SETTINGS.model, SETTINGS.text, SETTINGS.objectives, tokenizer_for(catalog, SETTINGS)
    )
    torch.nn.init.normal_(model.fusion.weigh.mlp[-1].weight)  # an untrained gate says one half to everything
    return Retriever.build("tiny", model, catalog)


def test_weights_carry_the_truth(retriever):
    table = probes.modal_weights(retriever)
    assert len(table) == 200
    assert (table.loc[~table["has_image"] & table["has_title"], "weight_image"] == 0).all()
    assert {"image_reliability", "title_reliability", "led"} <= set(table)


def test_experiments_change_what_they_say(retriever):
    spoiled = probes.spoil_images(retriever, "noise", (0, 1.0), products=20)
    assert spoiled.groupby("strength")["row"].nunique().tolist() == [20, 20]
    before, after = (group["weight_image"].to_numpy() for _, group in spoiled.groupby("strength"))
    assert not np.allclose(before, after)
    rows = spoiled["row"].unique()
    np.testing.assert_allclose(
        before, retriever.vectors.weights[rows, 1], atol=1e-5
    )  # strength 0 is the product itself
    stuffed = probes.stuff_titles(retriever, (0, 5), products=20)
    np.testing.assert_allclose(stuffed.loc[stuffed["words"] == 0, "weight_image"], before, atol=1e-5)


def test_false_negative_rules_are_judged_by_the_truth(retriever):
    table = probes.false_negatives(retriever.catalog, SETTINGS, batches=5)
    assert table.loc["raw", "masked pairs"] == 0
    assert table.loc["none", "masked pairs"] > 0  # its own product and its own query, clicked by another row
    assert table.loc["oracle", "anchors with a false negative"] <= table.loc["rule", "anchors with a false negative"]
    assert table.loc["rule", "anchors with a false negative"] < table.loc["none", "anchors with a false negative"]
    assert table.loc["rule", "precision"] > 0.5
    assert table.loc["oracle", "recall"] > 0.9  # the cap of half a row may cost a pair


def test_the_oracle_finds_weights_that_were_planted(retriever, monkeypatch):
    """Streams of which, by kind of title, one answers and the other is noise: only the right weights rank well."""
    catalog, rng = retriever.catalog, np.random.default_rng(0)
    rows = catalog.query_rows("test")
    queries = np.linalg.norm(v := rng.normal(size=(len(rows), 16)), axis=1, keepdims=True) ** -1 * v
    answer = catalog.relevance(rows).T @ queries + 0.05 * rng.normal(size=(len(catalog), 16))
    by_title = (catalog.truth["title_kind"] == "clean").to_numpy()
    noise = rng.normal(size=answer.shape)
    parts = np.stack([np.where(by_title[:, None], answer, noise), np.where(by_title[:, None], noise, answer)], axis=1)
    parts = (parts / np.linalg.norm(parts, axis=-1, keepdims=True)).astype(np.float32)
    model = types.SimpleNamespace(encode_queries=lambda texts: queries.astype(np.float32))
    planted = types.SimpleNamespace(catalog=catalog, model=model, vectors=types.SimpleNamespace(parts=parts))
    even = parts.sum(axis=1) / np.linalg.norm(parts.sum(axis=1), axis=1, keepdims=True)
    mean = np.argsort(-(queries @ even.T), axis=1)[:, :100]
    best, _ = oracle_run(planted, rows, 100)
    scores = [evaluate(catalog, rows, found)["Rel@10"].mean() for found in (mean, best)]
    assert scores[1] > scores[0] + 0.05
    monkeypatch.setattr(bounds, "SHARD", 7)
    monkeypatch.setattr(bounds, "PAIRS", 1000)
    np.testing.assert_array_equal(
        oracle_run(planted, rows, 100)[0], best
    )  # a larger catalogue is gone through in pieces
    monkeypatch.setattr(bounds, "FITTED", 120)
    part, _ = oracle_run(planted, rows, 100)
    assert evaluate(catalog, rows, part)["Rel@10"].mean() > scores[0] + 0.05


def test_a_frozen_tower_looks_only_at_spoiled_photographs(retriever, monkeypatch):
    """What its catalogue's maps hold is read; a large tower would spend minutes on it."""
    catalog, settings = retriever.catalog, SETTINGS.replace(**{"model.image_frozen": True})
    tokenizer = tokenizer_for(catalog, settings)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer)
    frozen = Retriever.build("frozen", model, catalog)
    seen, maps = [], model.image_encoder.maps
    monkeypatch.setattr(model.image_encoder, "maps", lambda pixels: seen.append(len(pixels)) or maps(pixels))
    probes.without_a_modality(frozen, catalog.query_rows("test")[:5], settings)
    probes.stuff_titles(frozen, (0, 5), products=20)
    assert seen == []
    probes.spoil_images(frozen, "blur", (0, 1.0), products=20)
    assert seen == [20]


def test_leave_one_out_and_enrichment_return_scores(retriever):
    rows = retriever.catalog.query_rows("test")[:20]
    table = probes.without_a_modality(retriever, rows, SETTINGS)
    assert table.index.tolist() == ["title and image", "without images", "without titles"]
    assert table["Rel@10"].between(0, 1).all()
    gap = probes.enriched_gap(retriever, rows, SETTINGS)
    assert gap.index.tolist() == ["raw query", "query and keywords"]


def test_what_a_modality_is_worth_is_judged_in_shards_and_exactly_whatever_the_index(retriever, monkeypatch):
    rows, catalog = retriever.catalog.query_rows("test")[:20], retriever.catalog
    whole = probes.without_a_modality(retriever, rows, SETTINGS)
    queries = retriever.model.encode_queries(catalog.queries["query"].iloc[rows].tolist())
    ranked = np.argsort(-(queries @ retriever.vectors.embedding.T), axis=1, kind="stable")[:, :100]
    expected = evaluate(catalog, rows, ranked, SETTINGS.evaluation).select_dtypes("number").mean()
    assert whole.loc["title and image"].to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)
    monkeypatch.setattr(probes, "SHARD", 97)
    approximate = retriever.indexed(Index(kind="ivf"))
    pd.testing.assert_frame_equal(probes.without_a_modality(approximate, rows, SETTINGS), whole)


def test_a_large_catalogue_is_never_scored_against_all_queries_at_once(monkeypatch):
    """Chapters 3 and 4 were killed at a million products: 3,000 queries times all of them, and their order."""
    random, N, Q = np.random.default_rng(0), 30_000, 400
    vectors, queries = random.normal(size=(N, 8)), random.normal(size=(Q, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = pd.DataFrame({"product_id": np.arange(N).astype(str)})
    catalog = type("Shop", (), {"products": products, "fingerprint": "shop", "__len__": lambda shop: N})()
    model = types.SimpleNamespace(fingerprint=lambda: "model")
    retriever = Retriever("large", model, catalog, None, ProductVectors(vectors.astype(np.float16), np.ones((N, 2))))
    monkeypatch.setattr(probes, "evaluate", lambda *given: pd.DataFrame({"found": given[2][:, 0]}))
    tracemalloc.start()
    probes._scores(retriever.indexed(probes.EXACT), np.arange(Q), queries, SETTINGS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < Q * N  # bytes; all scores would be four times as many, their order eight times


def test_correlation_with_the_truth_by_hand():
    advantage = np.linspace(-1, 1, 40)
    weights = pd.DataFrame(
        {
            "category": ["a"] * 40 + ["b"] * 40, "led": ["image"] * 40 + ["title"] * 40, "has_title": True, "has_image": True,
            "weight_image": np.r_[0.6 + 0.2 * advantage, 0.3 - 0.2 * advantage],
            "image_reliability": np.r_[advantage, advantage], "title_reliability": 0.0,
        }
    )  # fmt: skip
    rho = probes.reliability_correlation(weights).set_index("category")["rho"]
    assert rho["a"] == pytest.approx(1)
    assert rho["b"] == pytest.approx(-1)


def planted(retriever, seed, *, spoiled=0.0, stuffed=0.0, led=0.0):
    """A retriever whose gate answers as planted, and otherwise at random, differently for each seed and product."""
    rng, catalog = np.random.default_rng(seed), retriever.catalog
    usual = {title: 0.5 + 0.02 * rng.normal() for title in catalog.products["title"].fillna("")}
    clean = retriever.catalog.images(32)[0].std(axis=(1, 2, 3)).mean()
    shift = 0.05 * rng.normal(size=2)  # what little learning brings: a seed's own whim

    def encode(titles, pixels, has_image):
        harm = np.abs(np.asarray(pixels, float).std(axis=(1, 2, 3)) / clean - 1)
        words = np.array([len(title.split()) for title in titles]) / 10
        own = np.array([usual.get(title, 0.5) for title in titles])
        weight = own + (shift[0] - spoiled) * harm + (shift[1] + stuffed) * words
        return types.SimpleNamespace(weights=np.stack([1 - weight, weight], axis=1))

    has_title, has_image = catalog.present.T
    weight = np.where(catalog.truth["led"] == "image", 0.5 + led, 0.5) + 0.02 * rng.normal(size=len(catalog))
    weight = np.where(has_image, np.where(has_title, weight, 1), 0)
    model = types.SimpleNamespace(config=retriever.model.config, encode_products=encode, sees_image=True)
    vectors = types.SimpleNamespace(weights=np.stack([1 - weight, weight], axis=1))
    return types.SimpleNamespace(catalog=catalog, model=model, vectors=vectors)


def test_directions_hold_where_they_were_planted_and_a_control_fails(retriever):
    good = [planted(retriever, seed, spoiled=0.6, stuffed=0.6, led=0.2) for seed in range(5)]
    wrong = [planted(retriever, seed, spoiled=-0.6, stuffed=-0.6, led=-0.2) for seed in range(5)]
    controls = [planted(retriever, seed) for seed in range(10, 15)]
    table = probes.directions(good, controls).set_index("claim")["holds"]
    claims = [claim for claim in table.index if table[claim] != "–" and "missing" not in claim]
    assert len(claims) == 6
    assert "it rises as wrong words are stuffed into titles" in claims
    assert (
        table["the image weighs more in image-led categories"]
        == table["it rises as wrong words are stuffed into titles"]
        == "yes"
    )
    assert table["it falls as images are spoiled by blur"] == "yes"
    assert table["a missing image has weight exactly 0"] == "yes"
    for several in (wrong, controls):
        assert set(probes.directions(several, controls).set_index("claim")["holds"][claims]) == {"no"}
    # as much as four steps bring is not enough
    assert set(probes.directions(good, good).set_index("claim")["holds"][claims]) == {"no"}
    assert table["within image-led categories it follows true reliability"] == "–"


def test_weights_that_follow_careless_photographers_are_seen_to(retriever):
    rng = np.random.default_rng(0)
    kinds = rng.choice(["", "", "blurred", "replaced"], len(retriever.catalog))
    catalog = copy.copy(retriever.catalog)
    object.__setattr__(catalog, "truth", catalog.truth.assign(careless=kinds))
    found = []
    for seed, less in ((0, 0.1), (10, 0.0), (20, 0.1)):
        model = planted(retriever, seed)
        weights = model.vectors.weights - np.where(kinds != "", less, 0)[:, None] * [-1, 1]
        found.append(
            types.SimpleNamespace(
                **vars(model) | {"catalog": catalog, "vectors": types.SimpleNamespace(weights=weights)}
            )
        )
    claim = "within its category a careless photograph weighs less"
    good, control, alike = found
    rows = [
        probes.directions([one], [other]).set_index("claim").loc[claim]
        for one, other in ((good, control), (alike, good))
    ]
    assert [row["holds"] for row in rows] == ["yes", "no"]
    assert float(rows[0]["effect"].split()[0]) == pytest.approx(-0.1, abs=0.02)
    assert len(probes.spoil_images(good, "blur", (0,), products=10**6)) < (kinds == "").sum() + 1


def test_wrong_words_are_wrong_and_one_seed_speaks_of_products(retriever, monkeypatch):
    asked, encode = [], retriever.model.encode_products
    monkeypatch.setattr(
        retriever.model, "encode_products", lambda titles, *rest: asked.append(titles) or encode(titles, *rest)
    )
    probes.stuff_titles(retriever, (0, 4), products=20)
    known = {word for values in vocabulary("en").values() for word, *_ in values.values()}
    promo = {word for word, *_ in vocabulary("en")["promo"].values()}
    for before, after in zip(*asked, strict=True):
        added = after.removeprefix(before).split()
        assert len(set(added)) == 4
        assert set(added) <= known - promo - set(before.split())
    table = probes.directions([retriever], [retriever])
    assert table.loc[table["holds"] == "yes", "claim"].tolist() == ["a missing image has weight exactly 0"]


def test_a_catalogue_without_images_and_categories_makes_no_claim_about_them(retriever, tmp_path):
    catalog = retriever.catalog
    bare = write_catalog(
        tmp_path / "bare",
        name="bare",
        products=catalog.products[["product_id", "title"]].assign(image=None),
        queries=catalog.queries,
        interactions=pd.DataFrame(
            {
                "query_id": catalog.queries["query_id"].to_numpy()[catalog.interactions["query"]],
                "product_id": catalog.products["product_id"].to_numpy()[catalog.interactions["product"]],
                "label": catalog.interactions["label"],
                "kind": catalog.interactions["kind"],
            }
        ),
    )
    built = Retriever.build("bare", retriever.model, bare)
    weights = probes.modal_weights(built)
    assert weights["category"].unique().tolist() == ["no category"]
    table = probes.directions([built], [built])
    assert table["claim"].tolist() == ["a missing image has weight exactly 0"]
    plots.use_style()
    assert plots.weights_by_category(weights).get_title(loc="left") == "No product has both title and image"


def test_figures_draw_what_they_are_given(retriever):
    plots.use_style()
    weights = probes.modal_weights(retriever)
    for ax in (
        plots.weights_by_category(weights),
        plots.weights_by_reliability(weights, "t"),
        plots.reliabilities(retriever.catalog.truth),
    ):
        assert ax.get_title(loc="left")
        assert ax.get_xlabel()


@pytest.mark.filterwarnings("error")
def test_figures_of_nothing_are_empty_and_warn_of_nothing(retriever):
    plots.use_style()
    weights = probes.modal_weights(retriever).iloc[:0]
    for ax in (
        plots.weights_by_reliability(weights, "t"),
        plots.reliabilities(retriever.catalog.truth.iloc[:0]),
        plots.histogram([], "t", "x"),
        plots.popularity({}),
        plots.response(weights.assign(step=0), "step", "t", "x"),
        plots.tradeoff(pd.DataFrame({"index": [], "x": [], "y": []}), "x", "y", "t", "x", "y"),
    ):
        assert ax.get_legend() is None


def test_chinese_titles_are_stuffed_without_spaces(tmp_path, monkeypatch):
    settings = SETTINGS.replace(**{"bazaar.language": "zh"})
    catalog = generate(settings.bazaar, tmp_path / "bazaar")
    model = MakeModel.from_settings(
        settings.model, settings.text, settings.objectives, tokenizer_for(catalog, settings)
    )
    chinese, asked = Retriever.build("tiny", model, catalog), []
    encode = chinese.model.encode_products
    monkeypatch.setattr(model, "encode_products", lambda titles, *rest: asked.append(titles) or encode(titles, *rest))
    table = probes.stuff_titles(chinese, (0, 5), products=20)
    assert np.isfinite(table["weight_image"]).all()
    (plain, stuffed) = asked
    assert all(
        after.startswith(before) and len(after) > len(before) for before, after in zip(plain, stuffed, strict=True)
    )
    assert not any(re.search(r"[^0-9a-z] | [^0-9a-z]", title, re.IGNORECASE) for title in stuffed)


def test_what_titles_name_does_not_depend_on_their_language(retriever, tmp_path):
    chinese = generate(dataclasses.replace(SETTINGS.bazaar, language="zh"), tmp_path / "bazaar")
    named = notebook.share_named(chinese)
    assert named.min() > 0.1
    pd.testing.assert_series_equal(named, notebook.share_named(retriever.catalog))
    computed = notebook.share_named(dataclasses.replace(retriever.catalog, info={}))
    assert (computed[named.index] - named).abs().max() < 0.1  # the truth, and what words in titles tell of it


def test_a_chinese_catalogue_says_once_that_words_are_pairs(retriever, segmenter):
    catalog = retriever.catalog
    chinese = dataclasses.replace(catalog, products=catalog.products.assign(title="红色连衣裙"))
    assert notebook.describe(chinese).data.count("jieba`") == (2 if segmenter == "pairs" else 0)
    assert "jieba" not in notebook.describe(catalog).data


def test_a_gallery_escapes_titles_and_survives_a_missing_image(retriever):
    catalog = retriever.catalog
    rows = [int(np.flatnonzero(catalog.truth["image_kind"] == kind)[0]) for kind in ("missing", "clean")]
    products = catalog.products.copy()
    products.loc[rows[1], "title"] = "红色 <script>"
    page = notebook.gallery(dataclasses.replace(catalog, products=products), rows, "Goods & more").data
    assert "no image" in page
    assert page.count("<img") == 1
    assert "红色 &lt;script&gt;" in page
    assert "Goods &amp; more" in page
