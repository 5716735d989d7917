"""The retriever: vectors in half precision on disk, encoding that is gone on with, search within a category."""

import numpy as np
import pandas as pd
import pytest

from makelib.data.sources.bazaar.world import generate
from makelib.data.tables import write_catalog
from makelib.data.text import train_tokenizer
from makelib.model.make import MakeModel
from makelib.runtime import UserError
from makelib.search import retriever as module
from makelib.search.retriever import Retriever, encode_catalogue
from makelib.settings import Index, Model, Objectives, Text, preset


@pytest.fixture(scope="module")
def model(tiny_catalog):
    tokenizer = train_tokenizer(tiny_catalog.products["title"].fillna(""), 300)
    return MakeModel.from_settings(Model(width=32, dim=16), Text(), Objectives(), tokenizer).eval()


def test_a_killed_encoding_goes_on_where_it_stopped(model, tiny_catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    encode, seen = model.encode_products, []

    def killed(titles, *others):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(titles))
        return encode(titles, *others)

    monkeypatch.setattr(model, "encode_products", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_catalogue(model, tiny_catalog, tmp_path)
    monkeypatch.setattr(
        model, "encode_products", lambda titles, *others: seen.append(len(titles)) or encode(titles, *others)
    )
    vectors = encode_catalogue(model, tiny_catalog, tmp_path)
    assert seen == [2, 2, 1], "only the last product was left"
    whole = encode_catalogue(model, tiny_catalog)
    for name in ("embedding", "weights"):
        np.testing.assert_allclose(getattr(vectors, name), getattr(whole, name), atol=1e-3)


def test_opened_vectors_stay_on_disk_and_search_as_before(model, tiny_catalog, tmp_path):
    built = Retriever.build("tiny", model, tiny_catalog)
    built.save(tmp_path)
    opened = Retriever.open(tmp_path, tiny_catalog)
    assert opened.vectors.parts is None
    for name in ("embedding", "weights"):
        array = getattr(opened.vectors, name)
        assert isinstance(array, np.memmap)
        assert array.dtype == (np.float32 if name == "weights" else np.float16)
        np.testing.assert_array_equal(array, getattr(built.vectors, name))
    hits = opened.search("red dress", 5)
    np.testing.assert_allclose(hits["score"], built.search("red dress", 5)["score"], atol=1e-6)
    assert (hits["score_image"] == 0)[hits["weight_image"] == 0].all()
    np.testing.assert_allclose(hits["score_title"] + hits["score_image"], hits["score"], atol=1e-6)


def test_a_further_search_opens_no_file(model, tiny_catalog, monkeypatch):
    """Of a million products the flags that say where a photograph is alone take longer than the search."""
    retriever = Retriever.build("tiny", model, tiny_catalog)
    before = retriever.search("red dress", 3)
    for name in ("load", "memmap"):
        monkeypatch.setattr(np, name, lambda *_, **__: pytest.fail("opened a file"))
    monkeypatch.setattr("makelib.model.frozen.alone", lambda *_: pytest.fail("took a lock"))
    pd.testing.assert_frame_equal(retriever.search("red dress", 3), before)
    assert len(retriever.search("blue", 3)) == 3


def test_search_within_a_category(model, tiny_catalog):
    retriever = Retriever.build("tiny", model, tiny_catalog)
    assert sorted(retriever.search("red dress", 5, "pot")["product_id"]) == ["p2", "p3", "p4"]
    with pytest.raises(UserError, match=r"No product is of category 'shoe'. There are: dress, pot"):
        retriever.search("red dress", 5, "shoe")


def newer(catalog, folder):
    """Another edition: every fifth product is gone, two are new, one has another title, one another photograph, all in
    reverse order."""
    tables = {
        name: pd.read_parquet(catalog.folder / f"{name}.parquet") for name in ("products", "queries", "interactions")
    }
    products = tables["products"].iloc[[row for row in range(len(catalog)) if row % 5]].copy()
    new = products.iloc[[3, 8]].assign(
        product_id=["new 1", "new 2"], title=["blue cup", "green wool dress"], group=None
    )
    products.loc[products.index[1], "title"] = "yellow hat"
    pictures = [place for place, cell in enumerate(products["image"]) if cell is not None]
    images, changed = products["image"].tolist(), pictures[0]
    images[changed] = images[pictures[-1]]
    products["image"] = images
    tables["products"] = pd.concat([products, new]).iloc[::-1].reset_index(drop=True)
    tables["interactions"] = tables["interactions"][tables["interactions"]["product_id"].isin(products["product_id"])]
    fresh = {"new 1", "new 2", products["product_id"].iloc[1], products["product_id"].iloc[changed]}
    return write_catalog(folder, name="newer", **tables), fresh


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    settings = preset("smoke").replace(**{"bazaar.products": 400, "bazaar.queries": 60, "bazaar.clicks": 300})
    return generate(settings.bazaar, tmp_path_factory.mktemp("shop") / "shop")


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivf-pq"])
def test_a_newer_edition_of_the_catalogue_encodes_what_is_new_and_builds_nothing(
    model, shop, tmp_path, monkeypatch, kind
):
    edition, fresh = newer(shop, tmp_path / "newer")
    settings = Index(kind=kind, ivf_lists=4, ivf_probes=4)
    Retriever.build("shop", model, shop, settings).save(tmp_path / "run")
    opened, encode, seen = Retriever.open(tmp_path / "run", shop), module.encoded, []
    with monkeypatch.context() as patch:
        patch.setattr(module.ProductIndex, "build", None)
        patch.setattr(module, "encoded", lambda *given: seen.extend(given[2]) or encode(*given))
        moved = opened.refreshed(edition)
    assert set(edition.products["product_id"].iloc[seen]) == fresh
    moved.save(tmp_path / "moved")
    whole = Retriever.build("shop", model, edition, settings)
    for found in (moved, Retriever.open(tmp_path / "moved", edition)):
        assert len(found.index) == len(edition)
        assert found.index.ids.tolist() == edition.products["product_id"].tolist()
        np.testing.assert_allclose(found.vectors.weights, whole.vectors.weights, atol=1e-3)
        for query in ("red dress", "blue cup", "sneakers"):
            expected, hits = (one.search(query, len(edition)) for one in (whole, found))
            np.testing.assert_allclose(hits["score"], expected["score"], atol=2e-3)
            by_id = expected.set_index("product_id")["score"]
            np.testing.assert_allclose(by_id[hits["product_id"]], hits["score"], atol=2e-3)
            category = edition.products["category"].iloc[0]
            among = found.search(query, 5, category)
            assert (among["category"] == category).all()
            np.testing.assert_allclose(among["score"], whole.search(query, 5, category)["score"], atol=2e-3)


def test_of_milvus_the_vectors_are_kept_and_the_collection_is_its_own(model, shop, tmp_path):
    pytest.importorskip("pymilvus")
    edition, _ = newer(shop, tmp_path / "newer")
    before = Retriever.build("shop", model, shop, Index(kind="milvus", milvus=str(tmp_path / "a.db")))
    moved = before.refreshed(edition)
    assert len(before.index) == len(shop)
    expected = Retriever.build("shop", model, edition).search("red dress", 10)
    np.testing.assert_allclose(moved.search("red dress", 10)["score"], expected["score"], atol=2e-3)


def test_a_catalogue_that_is_no_newer_edition_is_refused(model, tiny_catalog, shop):
    with pytest.raises(UserError, match="No product of tiny is one of bazaar; train a model of its own"):
        Retriever.build("shop", model, shop).refreshed(tiny_catalog)
    index = Retriever.build("shop", model, shop).index
    with pytest.raises(UserError, match="holds 400 products that are not the 2 of the catalogue"):
        index.speak_of(["a", "b"], "other")


def test_weights_per_category_know_their_categories(shop, tmp_path):
    tokenizer = train_tokenizer(shop.products["title"].fillna(""), 300)
    names = shop.products["category"].nunique()
    model = MakeModel.from_settings(Model(width=32, dim=16, fusion="category"), Text(), Objectives(), tokenizer, names)
    edition, _ = newer(shop, tmp_path / "newer")
    edition.products.loc[0, "category"] = "of today"
    with pytest.raises(UserError, match="has other categories than those that have a weight"):
        Retriever.build("shop", model.eval(), shop).refreshed(edition)
