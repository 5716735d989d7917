"""Tokenizer and words: lossless in every script, pairs carry segments, words are what a person would call one."""

import tempfile
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from makelib.data import text
from makelib.data.text import (
    Phrases,
    Tokens,
    fast_tokenizer,
    identity,
    join,
    lacks_segmenter,
    pieces,
    train_tokenizer,
    word_starts,
    words,
)

SAMPLES = [
    "Red Striped Dress",
    "robe d'été à pois",
    "红色条纹连衣裙",
    "赤いドレス",
    "فستان أحمر",
    "dress 👗 new",
    "it's 5000mAh",
    "लाल सूती साड़ी",
    "เสื้อยืดลายทาง",
    "👩‍👩‍👧 gift ❤️ 👗🏽",
    "[SEP] dress [MASK]",
]
#: text without surrogates and characters newer than this Python
STRINGS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SAMPLES * 3, 500)


@pytest.mark.parametrize("sample", [*SAMPLES, "never seen: ƕ 🦄 한국어"])
def test_no_script_is_lost(tokenizer, sample):
    ids = tokenizer(sample)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == sample.lower()


@given(STRINGS)
def test_every_string_round_trips_up_to_the_documented_normalisation(string):
    tokenizer = train_tokenizer(["a b"], 300)
    expected = "".join(map(str.lower, unicodedata.normalize("NFC", string))).strip()
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(string) == (f" {expected}" if expected else "")
    assert tokenizer.decode(tokenizer(string)["input_ids"], skip_special_tokens=True).strip() == expected


def test_a_han_character_is_a_token_and_letters_keep_their_marks(tokenizer):
    def pieces(sample):
        return [
            tokenizer.convert_tokens_to_string([piece]) for piece in tokenizer.backend_tokenizer.encode(sample).tokens
        ][1:]

    assert pieces("红色连衣裙") == ["红", "色", "连", "衣", "裙"]
    assert pieces("红色 dress") == ["红", "色", " dress"]
    assert pieces("लाल साड़ी") == [" लाल", " साड़ी"]
    assert pieces("เสื้อยืดลายทาง") == [" เสื้อยืดลายทาง"]


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(SAMPLES)["input_ids"] == tokenizer(SAMPLES)["input_ids"]


def test_texts_are_padded_cut_and_marked(tokenizer):
    ids, mask = Tokens.of(tokenizer, ["red", "red striped dress red striped dress"], 5).padded(slice(None))
    assert ids.shape == (2, 5)
    assert ids.dtype == np.int64
    assert mask.sum(axis=1).tolist()[1] == 5
    assert (ids[0][mask[0] == 0] == tokenizer.pad_token_id).all()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert Tokens.of(tokenizer, [], 5).padded(slice(None))[0].shape == (0, 1)


def test_an_empty_title_still_has_one_token(tokenizer):
    assert Tokens.of(tokenizer, [""], 5).padded(slice(None))[1].sum() == 1


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("Red-striped DRESS, it's 5000mAh!", ["red-striped", "dress", "it's", "5000mah"]),
        ("it’s co\u00adop a_b", ["it's", "coop", "a", "b"]),  # a typographic apostrophe, a soft hyphen
        ("ＡＢＣ été e\u0301te\u0301 ﬁne ½", ["abc", "été", "été", "fine", "1", "2"]),
        ("STRASSE Straße ΟΔΟΣ οδος", ["strasse", "strasse", "οδοσ", "οδοσ"]),
        ("İSTANBUL istanbul", ["istanbul", "istanbul"]),
        ("लाल सूती साड़ी", ["लाल", "सूती", "साड़ी"]),  # Devanagari vowel signs and nukta
        ("فُسْتَان أحمر", ["فُسْتَان", "أحمر"]),  # Arabic with short vowels
        ("می\u200cخواهم", ["میخواهم"]),  # Persian with a zero-width non-joiner
        ("שִׂמְלָה אדומה", ["שִׂמְלָה", "אדומה"]),
        ("சிவப்பு புடவை", ["சிவப்பு", "புடவை"]),
        ("빨간 원피스", ["빨간", "원피스"]),
        ("ドレス", ["ドレ", "レス"]),
        ("ﾄﾞﾚｽ", ["ドレ", "レス"]),  # half-width kana
        ("เสื้อ", ["เสื้", "สื้อ"]),  # a consonant and its signs are one character
        ("gift🎄 ❤️ ❤ 👗🏽 🇮🇹 ©", ["gift", "🎄", "❤", "❤", "👗", "🇮🇹"]),
        ("!!! … 、。", []),
        ("红", ["红"]),
    ],
)
def test_words(string, expected, segmenter):
    assert words(string) == expected


def test_words_of_unspaced_runs(segmenter):
    found = words("红色连衣裙 ok 长袖ドレス")
    if segmenter == "jieba":
        assert found == ["红色", "连衣裙", "ok", "长袖", "ドレ", "レス"]
    else:
        assert found == ["红色", "色连", "连衣", "衣裙", "ok", "长袖", "ドレ", "レス"]


#: letters that Unicode wants invisible: fillers of Hangul
BLANK = "\u115f\u1160\u3164\uffa0"


@settings(deadline=None)  # the first Chinese word loads jieba's dictionary
@given(string=STRINGS)
def test_no_letter_and_no_digit_is_lost(string):
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", string).casefold())
    said = iter("".join(words(string)))
    assert all(letter in said for letter in folded if letter.isalnum() and letter not in BLANK), "in order"


@settings(deadline=None)
@given(string=STRINGS)
def test_words_stay_words(string):
    """Saying the words of spaced scripts again gives the same words: what is counted can be looked up."""
    assert [again for word in words(string) if not text.UNSPACED.search(word) for again in words(word)] == [
        word for word in words(string) if not text.UNSPACED.search(word)
    ]


def test_jieba_leaves_nothing_behind(monkeypatch, tmp_path, capfd):
    pytest.importorskip("jieba")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text._segmenter.cache_clear()
    assert words("红色连衣裙") == ["红色", "连衣裙"]
    assert not list(tmp_path.iterdir())  # a cache there would be shared by workers and by users
    assert capfd.readouterr() == ("", "")


def test_chinese_catalogues_are_told_to_install_jieba(segmenter):
    chinese = ["红色连衣裙", "蓝色裙子 nike", "dress"]
    assert lacks_segmenter(chinese) == (segmenter == "pairs")
    assert not lacks_segmenter(["赤いドレス", "青いドレス", "red dress"])
    assert not lacks_segmenter([])


@pytest.mark.parametrize("piece", [1, 3, 65536])
def test_tokens_without_padding_are_those_with_it(tokenizer, piece, monkeypatch):
    monkeypatch.setattr(text, "PIECE", piece)
    texts = [*SAMPLES, "", " ", "a " * 50]
    tokens, output = Tokens.of(tokenizer, texts, 9), tokenizer(texts, truncation=True, max_length=9, padding=True)
    wanted = {"ids": np.array(output["input_ids"]), "mask": np.array(output["attention_mask"])}
    assert tokens.ids.dtype == np.uint16
    assert tokens.written.tolist() == [True] * len(SAMPLES) + [False, False, True]
    for rows in (np.array([3, 12, 0, 3]), slice(2, 7), slice(None)):
        (ids, mask), length = tokens.padded(rows), wanted["mask"][rows].sum(axis=1).max()
        np.testing.assert_array_equal(ids, wanted["ids"][rows, :length])
        np.testing.assert_array_equal(mask, wanted["mask"][rows, :length])
    part = tokens[4:9]
    assert len(part) == 5
    np.testing.assert_array_equal(part.padded(slice(1, 4))[0], tokens.padded(slice(5, 8))[0])


def bert_like():
    """`[CLS] a [SEP] b [SEP]`, words cut into pieces by WordPiece."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "a", "b", "red", "striped", "dr", "##ess", "##es", "##s"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return fast_tokenizer(made)


def roberta_like():
    """`<s> a </s></s> b </s>`, and a word after a space is another one than at the beginning of a text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["red striped dress"] * 9, trainer)
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("kind", ["own", "bert", "roberta"])
def test_phrases_are_what_the_tokenizer_gives_for_the_whole_text(tokenizer, kind):
    tokenizer = {"own": lambda: tokenizer, "bert": bert_like, "roberta": roberta_like}[kind]()
    vocabulary = ["red", "striped", "dress", "t-shirt", "5000mah", "d'été"]
    phrases, chosen = Phrases(tokenizer, vocabulary), np.array([[0, -1, 2], [-1, -1, -1], [5, 3, 4], [1, 1, -1]])
    texts = [" ".join(vocabulary[word] for word in row if word >= 0) for row in chosen]
    alone = phrases.alone(chosen)
    assert [row.tolist() for row in alone] == tokenizer(texts)["input_ids"]
    none = phrases.alone(chosen[:, :0])  # where a query is given no keyword at all
    assert [row.tolist() for row in none] == tokenizer([""] * 4)["input_ids"]
    first = ["blue dress", "", "red", "a striped dress"]
    pairs = phrases.behind([np.array(ids) for ids in tokenizer(first)["input_ids"]], chosen, 99)
    wanted = tokenizer(first, texts, padding=True, return_token_type_ids=True, return_tensors="np")
    np.testing.assert_array_equal(pairs["ids"], wanted["input_ids"])
    np.testing.assert_array_equal(pairs["mask"], wanted["attention_mask"])
    if kind == "roberta":  # which has no segments
        assert [row.sum() for row in pairs["segments"]] == [len(row) - 1 for row in alone]
    else:
        np.testing.assert_array_equal(pairs["segments"], wanted["token_type_ids"])
    longest = pairs["ids"].shape[1]
    cut = phrases.behind([np.array(ids) for ids in tokenizer(first)["input_ids"]], chosen, longest - 1)
    assert cut["ids"].shape[1] == longest - 1
    np.testing.assert_array_equal(cut["ids"][1], pairs["ids"][1, :-1], "what is short enough stays whole")
    ends = [row[mask > 0][-1] for row, mask in zip(cut["ids"], cut["mask"], strict=True)]
    assert kind == "own" or set(ends) == {2}, "words go, the end stays"


def test_a_tokenizer_is_told_by_what_it_does_and_not_by_what_was_asked_last(tokenizer):
    again = fast_tokenizer(tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    known = identity(again)
    assert again(SAMPLES)["input_ids"] == tokenizer(SAMPLES)["input_ids"]
    again(SAMPLES, truncation=True, max_length=4, padding=True)
    assert identity(again) == known
    assert identity(train_tokenizer(SAMPLES, 400)) != known


def test_word_starts(tokenizer, segmenter):
    samples = ["红色连衣裙 dress", "red 红", ""]
    tokens = Tokens.of(tokenizer, samples, 8)
    first, second, third = np.split(word_starts(tokenizer, samples, 8), tokens.starts[1:-1])
    # [CLS], 红 色, 连 衣 裙, dress
    assert first.tolist() == ([0, 1, 1, 3, 3, 3, 6] if segmenter == "jieba" else list(range(7)))
    assert second.tolist() == list(range(tokens.starts[2] - tokens.starts[1]))
    assert third.tolist() == [0]


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (["red", "dress"], "red dress"),
        (["红色", "连衣裙"], "红色连衣裙"),
        (["nike", "红色", "t恤"], "nike红色t恤"),
        (["", "red"], "red"),
        (["أحمر", "فستان"], "أحمر فستان"),
        ([], ""),
    ],
)
def test_join(parts, joined):
    assert join(parts) == joined


@pytest.mark.parametrize(
    ("title", "cut"),
    [
        ("Red  striped dress", ["Red", "striped", "dress"]),
        ("红色连衣裙 Acme新款T恤", ["红色", "连衣裙", "Acme", "新款", "T", "恤"]),
        ("赤いワンピース", ["赤", "いワンピース"]),
        ("", []),
    ],
)
def test_pieces_can_be_left_out_one_by_one(title, cut):
    pytest.importorskip("jieba")
    assert pieces(title) == cut
    assert "".join(pieces(title)) == "".join(title.split())
    without_second = join(cut[:1] + cut[2:])
    assert without_second.replace(" ", "") == "".join(cut[:1] + cut[2:])


@given(STRINGS)
def test_pieces_lose_nothing_but_spaces(string):
    assert "".join(pieces(string)) == "".join(string.split())
