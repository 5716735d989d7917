"""Careless photographers: a share of the products gets its photographs spoiled, as a controlled experiment on studio pictures.

On photographs that are all alike good there is nothing for a weight per product to know. Here some are blurred, marked with a sale's
band, covered, or show another product of the type; more of them in some categories and of some brands than in others.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import ImageDraw, ImageFilter, ImageFont

from makelib.data.pictures import opened, rgb
from makelib.runtime import uniform

KINDS = ("blurred", "marked", "covered", "replaced")
BANDS = ("crimson", "gold", "royalblue", "limegreen", "darkorange", "black")


def drawn(ids: Sequence[str], types: Sequence[str], brands: Sequence[str], share: float, seed: int) -> np.ndarray:
    """How each product's photographs are spoiled, one of `KINDS` or "", object (N,).

    `share` is what is expected over all; a category and a brand have from half to one and a half times as many each. Drawn by a digest
    of the id, so that it does not matter what else is imported.
    """
    more = [
        (0.5 + draw(seed, "type", of)) * (0.5 + draw(seed, "brand", by)) for of, by in zip(types, brands, strict=True)
    ]
    spoiled = np.array([draw(seed, "product", key) for key in ids]) < share * np.array(more)
    kinds = [KINDS[int(len(KINDS) * draw(seed, "kind", key))] for key in ids]
    return np.where(spoiled, np.array(kinds, dtype=object), "")


def draw(seed: int, purpose: str, name: str) -> float:
    """Uniform in [0, 1), apart from what other draws of the same seed go by."""
    return uniform(f"{seed}:careless {purpose}:{name}")


def strangers(
    ids: Sequence[str], kinds: np.ndarray, types: Sequence[str], groups: np.ndarray, shown: np.ndarray, seed: int
) -> np.ndarray:
    """Whose photograph a `replaced` product shows, int64 (N,): a row of its type and of another group; -1 where there is none, and
    for all other products. `groups` (N,) of duplicates; `shown` bool (N,), which products have a photograph."""
    alike: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(shown).tolist():
        alike[types[row]].append(row)
    found = np.full(len(kinds), -1)
    for row in np.flatnonzero(kinds == "replaced").tolist():
        rows = alike[types[row]]
        start = int(len(rows) * draw(seed, "stranger", ids[row]))
        found[row] = next((other for other in rows[start:] + rows[:start] if groups[other] != groups[row]), -1)
    return found


def spoiled(
    parts: Iterable[list[list[bytes]]],
    ids: Sequence[str],
    kinds: np.ndarray,
    stranger: Callable[[int], bytes],
) -> Iterator[list[list[bytes]]]:
    """`parts`, the encoded photographs of some products after the others, with those spoiled that `kinds` says. `stranger(row)` is the
    photograph that a `replaced` product shows, its only one."""
    row = 0
    for part in parts:
        found = []
        for own in part:
            if own and kinds[row] == "replaced":
                own = [stranger(row)]
            elif own and kinds[row]:
                own = [_spoil(photo, kinds[row], ids[row]) for photo in own]
            found.append(own)
            row += 1
        yield found


def _spoil(photo: bytes, kind: str, name: str) -> bytes:
    image = rgb(opened(photo))
    width, height = image.size
    if kind == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(max(image.size) / 10))
    else:
        colour = BANDS[int(len(BANDS) * draw(0, "band", name))] if kind == "marked" else "lightgrey"
        reach = 0.22 if kind == "marked" else 0.4
        sides = (0, width) if kind == "marked" else (0.1 * width, 0.9 * width)
        pen = ImageDraw.Draw(image)
        pen.rectangle((sides[0], (0.5 - reach) * height, sides[1], (0.5 + reach) * height), fill=colour)
        if kind == "marked":
            font = ImageFont.load_default(max(6, width / 4))
            pen.text((width / 2, height / 2), "SALE", fill="white", font=font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
