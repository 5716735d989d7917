"""Text to token ids and text to words: one tokenizer per catalogue, lossless in every script.

Token ids feed the encoders; words (what a person would call one) feed `makelib.model.keywords` and lexical rules.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: texts that are cut into tokens at once
PIECE = 65536

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}

#: what the tokenizer never joins: GPT-2's rule, except that letters keep their marks and a Han character stands alone
_PIECE = (
    r"'(?:s|t|re|ve|m|ll|d)|\p{Han}| ?(?:(?!\p{Han})\p{L}[\p{M}\u200c\u200d]*)+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
_HAN = r"[\p{Han}--\p{S}]"
_UNSPACED = r"[\p{Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}--[\p{P}\p{S}\p{Z}]]"
_SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]"
_EMOJI = r"[\p{Extended_Pictographic}--[©®]]|\p{Regional_Indicator}{2}"
_WORD = regex.compile(
    rf"(?P<han>(?:{_HAN}\p{{M}}*)+)|(?P<run>(?:[{_UNSPACED}--{_HAN}]\p{{M}}*)+)"
    rf"|{_SPACED}+(?:[-']{_SPACED}+)*|{_EMOJI}",
    regex.V1,
)
_HAN_RUN = regex.compile(r"\p{Han}+")
_CHARACTER = regex.compile(r"\X")  # with its marks: a Thai consonant and its vowel are one
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # joiners, variation selectors, soft hyphens

#: a character of a script written without spaces between words: Han, kana, Thai, Lao, Khmer, Burmese
UNSPACED = regex.compile(_UNSPACED, regex.V1)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a catalogue's titles and training queries.

    Normalisation: NFC, lower case (character by character), no outer spaces, nothing else; one space in front makes a first word
    like the others. Bytes are the base alphabet, so no script, accent or emoji is ever unknown. Pieces never join Han characters:
    what stands beside what differs between a title and a query, and a model of joined ones finds less (README, "Languages").
    A single text becomes `[CLS] text`, a pair `[CLS] first [SEP] second` with segment ids 0 and 1.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\A (?=\p{Han})"), "removed"),
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
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
    return fast_tokenizer(tokenizer)


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """What `train_tokenizer` trained, for `transformers`."""
    # split: a title that holds "[SEP]" is text like any other
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True, **SPECIAL)


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, one text after the other: 2 bytes a token, no padding, and memory-mapped where they were kept.

    Attributes:
        ids: uint16 (uint32 for larger vocabularies) (T,).
        starts: int64 (n + 1,); text i has those from `starts[i]` to `starts[i + 1]`.
        written: bool (n,), whether there is anything but spaces.
        pad: the id that fills up shorter rows.
    """

    ids: np.ndarray
    starts: np.ndarray
    written: np.ndarray
    pad: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, *, special: bool = True
    ) -> Tokens:
        """Texts longer than `length` tokens lose their tail; without `special` tokens they are parts of a text."""
        kind, parts = np.uint16 if len(tokenizer) <= 2**16 else np.uint32, []
        counts, written = np.zeros(len(texts) + 1, np.int64), np.zeros(len(texts), bool)
        for start in range(0, len(texts), PIECE):  # few Python lists at a time
            piece = list(texts[start : start + PIECE])
            ids = tokenizer(piece, truncation=True, max_length=length, add_special_tokens=special)["input_ids"]
            counts[start + 1 : start + 1 + len(piece)] = [len(row) for row in ids]
            written[start : start + len(piece)] = [bool(text.strip()) for text in piece]
            parts.append(np.fromiter(itertools.chain.from_iterable(ids), kind))
        ids = np.concatenate(parts) if parts else np.zeros(0, kind)
        return cls(ids, np.cumsum(counts), written, tokenizer.pad_token_id)

    @classmethod
    def joined(cls, rows: Sequence[np.ndarray], pad: int) -> Tokens:
        """Of the ids of each text, all of them written."""
        ends = np.cumsum([0, *map(len, rows)])
        return cls(np.concatenate([np.zeros(0, np.uint16), *rows]), ends, np.ones(len(rows), bool), pad)

    def __len__(self) -> int:
        return len(self.written)

    def __getitem__(self, rows: slice | np.ndarray) -> Tokens:
        """Those of the texts from `rows.start` to `rows.stop`, of which nothing is copied, or of the texts `rows`, int64 (n,)."""
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            return dataclasses.replace(self, starts=self.starts[first : last + 1], written=self.written[first:last])
        return dataclasses.replace(Tokens.joined(self.rows(rows), self.pad), written=self.written[rows])

    def rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The ids of each of the texts `rows`, int64 (n,); none where the row is -1."""
        begin = self.starts[rows]
        end = np.where(rows < 0, begin, self.starts[rows + 1])
        ids = np.asarray(self.ids)  # slices of a memory-mapped array cost ten times as much
        return [ids[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

    def padded(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask (1 at real tokens) of some texts, int64 (B, L) with L the longest one's."""
        starts, ends = self.starts[:-1][rows], self.starts[1:][rows]
        at = starts[:, None] + np.arange(max(1, int((ends - starts).max(initial=1))))
        real = at < ends[:, None]
        ids = np.full(at.shape, self.pad, np.int64)
        ids[real] = self.ids[at[real]]
        return ids, real.astype(np.int64)


class Phrases:
    """Texts that nobody wrote, made of words that were cut into tokens once: what the tokenizer would give for the whole text,
    where a space parts its words. A step of training needs hundreds of them.
    """

    #: tokens of a word, at most
    LENGTH = 16

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
        # with the space that stands before a word within a text, which many tokenizers keep
        self.words = Tokens.of(tokenizer, [f" {word}" for word in words], self.LENGTH, special=False)
        one, two = tokenizer("a"), tokenizer("a", "b")
        first, second = ([at for at, of in enumerate(two.sequence_ids()) if of == text] for text in (0, 1))
        ids, end = np.array(two["input_ids"], self.words.ids.dtype), len(one["input_ids"])
        self.before, self.after = ids[: first[0]], np.array(one["input_ids"][first[-1] + 1 :], ids.dtype)
        self.between, self.last = ids[end : second[0]], ids[second[-1] + 1 :]

    def _parts(self, words: np.ndarray) -> list[np.ndarray]:
        """Tokens of some words for each text, int64 (n, k), -1 for none."""
        each = iter(self.words.rows(words.ravel()))
        return [np.concatenate([self.before[:0], *itertools.islice(each, words.shape[1])]) for _ in words]

    def alone(self, words: np.ndarray) -> list[np.ndarray]:
        """The tokens of texts of some words each, int64 (n, k), -1 for none."""
        return [np.concatenate([self.before, part, self.after]) for part in self._parts(words)]

    def behind(self, texts: Sequence[np.ndarray], words: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Pairs of a text, whose tokens are given, and some words, int64 (n, k), -1 for none, which lose their tail where there are
        more than `length` tokens: `ids`, `mask`, `segments`, each int64 (n, L)."""
        ends = [len(self.between), len(self.last)]
        rows = [
            np.concatenate([text, self.between, part[: max(0, length - len(text) - sum(ends))], self.last])
            for text, part in zip(texts, self._parts(words), strict=True)
        ]
        ids, mask = Tokens.joined(rows, self.words.pad).padded(slice(None))
        second = np.arange(ids.shape[1]) >= np.array([[len(text) + ends[0]] for text in texts])
        return {"ids": ids, "mask": mask, "segments": second * mask}


def word_starts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> np.ndarray:
    """For each token of `Tokens.of(tokenizer, texts, length)` the place of the first token of its word, int16 (T,).

    Only Han characters share a word with others, as `jieba` cuts it; every other token, and all without `jieba`, stands alone.
    """
    cut, found = _segmenter() or list, [np.zeros(0, np.int16)]
    for start in range(0, len(texts), PIECE):
        piece = list(texts[start : start + PIECE])
        output = tokenizer(piece, truncation=True, max_length=length, return_offsets_mapping=True)
        for text, offsets in zip(piece, output["offset_mapping"], strict=True):
            word: dict[int, int] = {}  # character -> the first of its word
            for run in _HAN_RUN.finditer(text):
                begin = run.start()
                for part in cut(run.group()):
                    word |= dict.fromkeys(range(begin, begin + len(part)), begin)
                    begin += len(part)
            first: dict[int, int] = {}
            starts = np.arange(len(offsets), dtype=np.int16)
            for place, (begin, end) in enumerate(offsets):
                if begin < end and begin in word:
                    starts[place] = first.setdefault(word[begin], place)
            found.append(starts)
    return np.concatenate(found)


def identity(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What a tokenizer's token ids depend on, JSON-able."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in tree.items() if name not in ("truncation", "padding")}  # set by the last call


def segmenter() -> str:
    """What `words` cuts Chinese with, for those who keep words."""
    return "pairs" if _segmenter() is None else f"jieba {importlib.metadata.version('jieba')}"


def join(parts: Iterable[str]) -> str:
    """One text of several words: a space between two, unless one side is of a script without spaces ("red dress", "红色t恤")."""
    text = ""
    for part in parts:
        space = text and part and not (UNSPACED.match(text[-1]) or UNSPACED.match(part))
        text += f" {part}" if space else part
    return text


def words(text: str) -> list[str]:
    """The words of a text in order, normalised by Unicode's NFKC_Casefold (width, ligatures, case, invisible characters).

    Letters keep their marks, hyphens and apostrophes join ("t-shirt", "it's"), an emoji is a word. Scripts without spaces:
    runs of Han are segmented by `jieba` where the extra `chinese` is installed; else, and in the others, words are overlapping
    pairs of characters (the usual fallback of search engines), so that those of a part are among those of the whole.
    """
    found: list[str] = []
    for match in _WORD.finditer(_folded(text)):
        run = match.group()
        if match.lastgroup is None:
            found.append(run)
        elif match.lastgroup == "han" and (cut := _segmenter()) is not None:
            found.extend(cut(run))
        else:
            characters = _CHARACTER.findall(run)
            found.extend("".join(characters[i : i + 2]) for i in range(max(1, len(characters) - 1)))
    return found


def pieces(text: str) -> list[str]:
    """A text cut between its words, nothing normalised, so that `join` puts it together again: at spaces, and within runs of
    Han as `jieba` cuts them, or character by character without it."""
    cut, found = _segmenter() or list, []
    for chunk in text.split():
        end = 0
        for run in _HAN_RUN.finditer(chunk):
            found += [chunk[end : run.start()], *cut(run.group())]
            end = run.end()
        found.append(chunk[end:])
    return [piece for piece in found if piece]


def lacks_segmenter(texts: Sequence[str]) -> bool:
    """Whether most of the texts are Chinese (Han without kana) while `jieba` is not installed, so that words are pairs."""
    chinese = [bool(regex.search(r"\p{Han}", text)) and not regex.search(r"[\u3040-\u30ff]", text) for text in texts]
    return _segmenter() is None and sum(chinese) > len(chinese) / 2


def _folded(text: str) -> str:
    folded = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())
    # two deviations: İ folds to an i whose dot nobody types, and ’ is what word processors make of an apostrophe
    return unicodedata.normalize("NFKC", folded).replace("i\u0307", "i").replace("’", "'")


@functools.cache
def _segmenter() -> Callable[[str], list[str]] | None:
    """jieba's cut by dictionary alone (guessed words would differ with what stands beside them), or None without jieba."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports setuptools' deprecated pkg_resources
            import jieba
    except ImportError:
        return None
    segmenter = jieba.Tokenizer()
    # as its `initialize` does, without the log lines and without a cache file in the shared temporary folder
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return functools.partial(segmenter.lcut, HMM=False)
