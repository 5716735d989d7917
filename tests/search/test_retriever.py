"""The retriever: vectors in half precision on disk, encoding that is gone on with, search within a category."""

import numpy as np
import pytest

from makelib.data.text import train_tokenizer
from makelib.model.make import MakeModel
from makelib.runtime import UserError
from makelib.search import retriever as module
from makelib.search.retriever import Retriever, encode_catalogue
from makelib.settings import Model, Objectives, Text


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


def test_search_within_a_category(model, tiny_catalog):
    retriever = Retriever.build("tiny", model, tiny_catalog)
    assert sorted(retriever.search("red dress", 5, "pot")["product_id"]) == ["p2", "p3", "p4"]
    with pytest.raises(UserError, match=r"No product is of category 'shoe'. There are: dress, pot"):
        retriever.search("red dress", 5, "shoe")
