"""Terse sellers: hide the words of label columns from a share of titles, so that only the photograph still tells them.

The controlled experiment on real photographs (ours, after the paper's premise that users look at the title for some
products and at the image for others). It edits titles and says which; what is asked and what is relevant is not its
business (`makelib.data.sources.files.labels`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import regex

from makelib.data.text import UNSPACED, words

#: pattern words of fashion and home titles that no label column holds
PATTERN_WORDS = (
    "stripe", "stripes", "striped", "striper", "check", "checks", "checked", "checkered", "checkerd", "plaid", "plaids",
    "plaided", "tartan", "gingham", "argyle", "print", "prints", "printed", "solid", "solids", "plain", "floral",
    "florals", "flower", "flowers", "polka", "dot", "dots", "dotted", "graphic", "abstract", "paisley", "camouflage",
    "camo", "textured", "embroidered", "embellished", "geometric", "melange", "tie-dye", "ombre", "leopard", "zebra",
    "条纹", "格子", "格纹", "碎花", "印花", "花卉", "波点", "圆点", "纯色", "渐变", "豹纹", "迷彩", "刺绣",
)  # fmt: skip
#: colour words that sellers use and label columns rarely list
COLOUR_WORDS = (
    "aqua", "cyan", "turquoise", "teal", "violet", "indigo", "wine", "maroon", "burgundy", "crimson", "scarlet",
    "coral", "fuchsia", "ivory", "cream", "beige", "camel", "mustard", "lime", "mint", "emerald", "navy", "charcoal",
    "lemon", "golden", "silvery", "multi", "multicolour", "multicolor", "multicoloured", "multicolored",
    "multi-coloured", "multi-colored", "colour", "color", "coloured", "colored", "colourful", "colorful",
    "红色", "酒红", "橙色", "黄色", "绿色", "墨绿", "青色", "蓝色", "藏青", "紫色", "粉色", "粉红", "棕色", "咖啡色", "卡其色",
    "米色", "杏色", "黑色", "白色", "灰色", "金色", "银色", "彩色", "撞色",
)  # fmt: skip

#: \w of `re` and `regex` alike leaves marks out: in रंगीन, रंग would be a word
_LETTER = r"[\w\p{M}]"
#: what may be left at either end when a word goes: "Shirt - Red", "Shirt, blue and white"
_LOOSE = " /&,+-–"


def vocabulary(values: Iterable[str]) -> list[str]:
    """The words to hide for one label column: each value as a phrase and each of its words, in lower case.

    In scripts without spaces only the phrases between its spaces and strokes: 白 of 米白 would be hidden in 白领 too.
    """
    found: set[str] = set()
    for value in values:
        found |= {value.casefold(), *(word for word in words(value) if not UNSPACED.match(word))}
        found |= {part for part in re.split(r"[\s/、,，]+", value.casefold()) if UNSPACED.search(part)}
    return sorted(found - {"", "and"})


def pattern(phrases: Iterable[str]) -> regex.Pattern[str]:
    """One expression that finds any of the phrases as whole words, joined ones ("black / red", "navy and white") too.

    Scripts without spaces have no word borders, so there a phrase is found anywhere.
    """

    def bounded(phrase: str) -> str:
        body = r"[\s\-]+".join(re.escape(part) for part in re.split(r"[\s\-]+", phrase) if part)
        left = "" if UNSPACED.match(phrase[0]) else rf"(?<!{_LETTER})"
        right = "" if UNSPACED.match(phrase[-1]) else rf"(?!{_LETTER})"
        return f"{left}{body}{right}"

    one = "|".join(
        bounded(phrase) for phrase in sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase)) if phrase
    )
    if not one:
        return regex.compile(r"(?!)")
    return regex.compile(rf"(?:{one})(?:\s*(?:[/&,+\-、和与]|\band\b)\s*(?:{one}))*", regex.IGNORECASE)


def hide(
    titles: Sequence[str], phrases: Iterable[str], chosen: np.ndarray, keep: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Titles without the phrases where `chosen`, all others untouched.

    Args:
        chosen: bool (N,), which sellers are terse.
        keep: int (N,), so many leading characters (the brand: "Red Tape") are never touched.

    Returns the titles and bool (N,) where the seller was terse and so nothing of the phrases is left. A title that
    would become empty stays as it is and is not terse.
    """
    find = pattern(phrases)
    hidden, terse = list(titles), np.array(chosen, dtype=bool)
    for row in np.flatnonzero(terse).tolist():
        head, tail = titles[row][: keep[row]], titles[row][keep[row] :]
        left, found = find.subn(_gap, tail)
        if found:
            left = re.sub(r"\s+", " ", left).strip(_LOOSE)
            hidden[row] = f"{head} {left}".strip() if head else left
        if titles[row] and not hidden[row]:
            hidden[row], terse[row] = titles[row], False
    return hidden, terse


def _gap(found: regex.Match[str]) -> str:
    """What takes the place of a hidden phrase: a space, but not within a script that has none."""
    text, (begin, end) = found.string, found.span()
    return "" if UNSPACED.search(text[max(begin - 1, 0) : begin] + text[end : end + 1]) else " "


def names(titles: Sequence[str], values: Sequence[str], keep: np.ndarray) -> np.ndarray:
    """Whether each title names its own product's value, by any word of it and past `keep` characters: bool (N,)."""
    find = {value: pattern(vocabulary([value])) for value in set(values)}
    named = [
        find[value].search(title, start) for title, value, start in zip(titles, values, keep.tolist(), strict=True)
    ]
    return np.array([match is not None for match in named], dtype=bool)
