"""Text to token ids and text to words: one tokenizer per catalogue, lossless in every script.

Token ids feed the encoders; words (what a person would call one) feed `makelib.keywords` and lexical rules.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}

#: scripts written without spaces between words: Han, Hiragana, Katakana
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+(?:[-'][^\W_{_UNSPACED}]+)*")
_UNSPACED_RUN = re.compile(rf"[{_UNSPACED}]+")


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a catalogue's titles and training queries.

    Normalisation: NFC and lower case, nothing else. Bytes are the base alphabet, so no script, accent or emoji is ever
    unknown. A single text becomes `[CLS] text`, a pair `[CLS] first [SEP] second` with segment ids 0 and 1.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    length: int,
    pairs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Token ids of many texts: `ids`, `mask`, `segments`, each int64 (n, L) with L <= `length` the longest one's.

    Texts longer than `length` tokens lose their tail.
    """
    if len(texts) == 0:
        return {name: np.zeros((0, 1), np.int64) for name in ("ids", "mask", "segments")}
    output = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        padding=True,
        truncation=True,
        max_length=length,
        return_tensors="np",
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    names = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
    return {name: np.asarray(output[key], dtype=np.int64) for name, key in names.items()}


def words(text: str) -> list[str]:
    """The words of a text in order, normalised by NFKC and case folding.

    Runs of Han or kana are segmented by `jieba` where the extra `chinese` is installed, else into overlapping pairs of
    characters (the usual n-gram fallback of search engines).
    """
    found: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match.group()
        if not _UNSPACED_RUN.fullmatch(run):
            found.append(run)
        elif (cut := _segmenter()) is not None:
            found.extend(cut(run))
        else:
            found.extend(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return found


@functools.cache
def _segmenter():
    try:
        import jieba
    except ImportError:
        return None
    jieba.setLogLevel(60)
    return functools.partial(jieba.lcut, HMM=False)
