"""Tokenizer and words: lossless in every script, pairs carry segments, words are what a person would call one."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makelib import text
from makelib.text import encode, train_tokenizer, words

SAMPLES = [
    "Red Striped Dress",
    "robe d'été à pois",
    "红色条纹连衣裙",
    "赤いドレス",
    "فستان أحمر",
    "dress 👗 new",
    "it's 5000mAh",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SAMPLES * 3, 500)


@pytest.mark.parametrize("sample", [*SAMPLES, "never seen: ƕ 🦄 한국어"])
def test_no_script_is_lost(tokenizer, sample):
    ids = tokenizer(sample)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == sample.lower()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_every_string_round_trips_up_to_normalisation(string):
    import unicodedata

    tokenizer = train_tokenizer(["a b"], 300)
    expected = tokenizer.backend_tokenizer.normalizer.normalize_str(string)
    assert expected == unicodedata.normalize("NFC", expected)
    assert tokenizer.decode(tokenizer(string)["input_ids"], skip_special_tokens=True).strip(" ") == expected.strip(" ")


def test_encode_pads_cuts_and_marks(tokenizer):
    tokens = encode(tokenizer, ["red", "red striped dress red striped dress"], 5)
    assert tokens["ids"].shape == (2, 5)
    assert tokens["ids"].dtype == np.int64
    assert tokens["mask"].sum(axis=1).tolist()[1] == 5
    assert (tokens["ids"][0][tokens["mask"][0] == 0] == tokenizer.pad_token_id).all()
    assert (tokens["ids"][:, 0] == tokenizer.cls_token_id).all()
    pair = encode(tokenizer, ["red", "dress"], 12, pairs=["striped dress", ""])
    assert pair["segments"][0].sum() > 0
    assert encode(tokenizer, [], 5)["ids"].shape == (0, 1)


def test_an_empty_title_still_has_one_token(tokenizer):
    assert encode(tokenizer, [""], 5)["mask"].sum() == 1


def test_words():
    assert words("Red-striped DRESS, it's 5000mAh!") == ["red-striped", "dress", "it's", "5000mah"]
    assert words("ＡＢＣ été") == ["abc", "été"]
    assert words("!!! …") == []


def test_words_without_a_segmenter_are_pairs_of_characters(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    text._segmenter.cache_clear()
    assert words("红色连衣裙 ok") == ["红色", "色连", "连衣", "衣裙", "ok"]
    assert words("红") == ["红"]
    text._segmenter.cache_clear()
