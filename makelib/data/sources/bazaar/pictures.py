"""The photographs of the generated world `bazaar`: small RGB renderings in NumPy, many at a time, and what spoils them.

Each product type is drawn once, as a map of materials on a unit square. A photograph looks that map up through a camera
(place, size, tilt) and a silhouette (a warp of the plane), and paints it by palette and texture. Nothing here knows
words, files or what is true of a product.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from makelib.runtime import UserError

COLOURS = {
    "red": (208, 40, 44), "orange": (242, 132, 32), "yellow": (246, 208, 52), "green": (62, 150, 66),
    "teal": (26, 160, 162), "blue": (44, 88, 200), "purple": (128, 62, 172), "pink": (244, 138, 178),
    "brown": (124, 78, 46), "black": (40, 40, 46), "white": (244, 242, 236), "grey": (142, 146, 152),
}  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked", "floral", "zigzag", "ombre")
SILHOUETTES = ("slim", "wide", "flared", "tapered", "short")

# -- drawings: one per product type, on a square of 100 x 100, y down -------------------------------------------------

# materials: nothing, cloth (takes colour and pattern), trim (its dark tone), metal, light, and the outline
NOTHING, CLOTH, TRIM, METAL, LIGHT, OUTLINE = range(6)
_TEMPLATE = 160


def _drawings() -> dict[str, list[tuple]]:
    """Strokes of each type: (what, material, coordinates[, line width or corner radius])."""
    b, d, m, w, hole = CLOTH, TRIM, METAL, LIGHT, NOTHING

    def poly(material: int, *points: float) -> tuple:
        return ("polygon", material, points)

    def mirrored(material: int, *points: float) -> list[tuple]:
        """The polygon and its mirror image about the vertical middle."""
        return [poly(material, *points), poly(material, *(100 - v if i % 2 == 0 else v for i, v in enumerate(points)))]

    def oval(material: int, *box: float) -> tuple:
        return ("ellipse", material, box)

    def ring(material: int, *box: float, width: float = 6) -> tuple:
        return ("ring", material, box, width)

    def arch(material: int, *box: float, width: float = 6) -> tuple:
        return ("arch", material, box, width)

    def rect(material: int, *box: float, radius: float = 0) -> tuple:
        return ("rectangle", material, box, radius)

    def line(material: int, *points: float, width: float = 4) -> tuple:
        return ("line", material, points, width)

    long_sleeves = poly(
        b, 36, 14, 64, 14, 80, 22, 94, 76, 82, 80, 72, 46, 71, 88, 29, 88, 28, 46, 18, 80, 6, 76, 20, 22
    )
    cuffs = [*mirrored(d, 6, 72, 17, 76, 16, 83, 4, 79), rect(d, 29, 82, 71, 90)]
    return {
        "sundress": [line(b, 40, 6, 42, 24), line(b, 60, 6, 58, 24),
            poly(b, 35, 20, 65, 20, 59, 46, 88, 92, 12, 92, 41, 46), rect(d, 40, 44, 60, 50)],
        "gown": [*mirrored(b, 37, 8, 20, 40, 28, 44, 42, 22),
            poly(b, 36, 8, 64, 8, 60, 38, 66, 66, 86, 94, 14, 94, 34, 66, 40, 38), oval(hole, 43, 2, 57, 16),
            line(d, 41, 40, 59, 40, width=3)],
        "skirt": [poly(b, 33, 28, 67, 28, 90, 82, 10, 82), rect(d, 32, 20, 68, 30), line(d, 50, 32, 50, 82, width=2),
            line(d, 41, 32, 30, 82, width=2), line(d, 59, 32, 70, 82, width=2)],
        "tshirt": [poly(b, 36, 16, 64, 16, 94, 34, 83, 52, 71, 44, 71, 90, 29, 90, 29, 44, 17, 52, 6, 34),
            oval(d, 39, 8, 61, 26), oval(hole, 42, 6, 58, 22)],
        "sweater": [long_sleeves, *cuffs, oval(d, 38, 8, 62, 22)],
        "hoodie": [long_sleeves, *cuffs, oval(b, 30, 2, 70, 36), oval(d, 38, 8, 62, 32),
            poly(d, 37, 60, 63, 60, 68, 76, 32, 76), line(w, 45, 32, 44, 48, width=3),
            line(w, 55, 32, 56, 48, width=3)],
        "vest": [*mirrored(b, 33, 10, 42, 10, 50, 38, 50, 92, 26, 88, 27, 42), line(d, 50, 38, 50, 92, width=3),
            oval(w, 53, 50, 58, 55), oval(w, 53, 62, 58, 67), oval(w, 53, 74, 58, 79)],
        "sneakers": [poly(b, 8, 34, 30, 30, 40, 40, 62, 52, 84, 56, 94, 68, 92, 74, 8, 74),
            rect(w, 6, 70, 95, 80, radius=4), oval(d, 74, 58, 94, 72), line(w, 36, 46, 46, 38),
            line(w, 45, 52, 54, 44), line(w, 54, 57, 62, 49)],
        "boots": [poly(b, 26, 10, 60, 10, 60, 54, 86, 62, 90, 80, 26, 80), rect(d, 24, 80, 92, 88),
            rect(d, 24, 8, 62, 18)],
        "sandals": [rect(d, 6, 72, 94, 82, radius=5), poly(b, 8, 73, 16, 26, 34, 26, 40, 73, 30, 73, 25, 42, 18, 73),
            poly(b, 50, 73, 56, 48, 74, 46, 90, 73), rect(b, 12, 40, 38, 52)],
        "heels": [poly(b, 8, 26, 24, 30, 44, 54, 70, 68, 94, 76, 92, 84, 62, 84, 38, 70, 18, 54),
            poly(d, 10, 40, 26, 58, 22, 90, 15, 90)],
        "handbag": [arch(d, 28, 8, 72, 70, width=6), poly(b, 20, 42, 80, 42, 92, 80, 86, 88, 14, 88, 8, 80),
            line(d, 17, 56, 83, 56, width=3), rect(m, 44, 50, 56, 63, radius=3)],
        "backpack": [ring(d, 38, 6, 62, 30, width=5), rect(d, 12, 46, 88, 82, radius=8),
            rect(b, 20, 16, 80, 92, radius=22), rect(d, 31, 54, 69, 84, radius=6), rect(b, 34, 57, 66, 81, radius=5),
            line(m, 34, 40, 66, 40, width=3)],
        "tote": [arch(d, 32, 4, 68, 78, width=5), poly(b, 16, 38, 84, 38, 80, 94, 20, 94)],
        "rug": [*[line(w, x, 20, 100 - (100 - x), 82, width=2.5) for x in range(9, 94, 8)], rect(b, 6, 25, 94, 77),
            line(d, 6, 31, 94, 31, width=2.5), line(d, 6, 71, 94, 71, width=2.5)],
        "doormat": [("pieslice", d, (2, 20, 98, 126)), ("pieslice", b, (9, 28, 91, 118))],
        "cushion": [poly(b, 8, 10, 50, 20, 92, 10, 81, 50, 92, 90, 50, 80, 8, 90, 19, 50), oval(d, 46, 46, 54, 54),
            *[oval(d, x - 5, y - 5, x + 5, y + 5) for x, y in ((10, 12), (90, 12), (10, 88), (90, 88))]],
        "curtain": [*mirrored(b, 10, 12, 47, 12, 42, 46, 22, 62, 34, 92, 10, 92),
            *mirrored(w, 9, 58, 26, 54, 27, 60, 9, 65), line(m, 4, 11, 96, 11, width=5), oval(m, 0, 6, 10, 16),
            oval(m, 90, 6, 100, 16)],
        "blind": [rect(d, 10, 8, 90, 18), rect(b, 13, 18, 87, 84),
            *[line(d, 13, y, 87, y, width=2) for y in range(29, 84, 11)], line(m, 93, 14, 93, 70, width=2.5),
            oval(m, 89, 68, 97, 78)],
        "lampshade": [line(m, 50, 56, 50, 88, width=5), poly(b, 34, 8, 66, 8, 90, 60, 10, 60),
            rect(d, 30, 84, 70, 94, radius=5)],
        "charger": [rect(m, 34, 8, 42, 36), rect(m, 58, 8, 66, 36), rect(b, 20, 32, 80, 92, radius=14),
            rect(d, 40, 74, 60, 82, radius=3), poly(w, 54, 42, 42, 58, 49, 58, 45, 70, 58, 53, 51, 53)],
        "powerbank": [rect(b, 26, 6, 74, 94, radius=10), *[oval(w, x, 14, x + 6, 20) for x in (33, 42, 51, 60)],
            rect(m, 40, 86, 60, 94), rect(d, 66, 26, 74, 36)],
        "cable": [ring(b, 12, 22, 88, 88, width=11), ring(b, 27, 36, 73, 76, width=8), rect(m, 44, 2, 56, 14),
            rect(d, 42, 12, 58, 26)],
        "battery": [rect(m, 41, 6, 59, 16), rect(b, 28, 14, 72, 94, radius=6), rect(m, 28, 76, 72, 94, radius=6),
            rect(w, 47, 24, 53, 42), rect(w, 41, 30, 59, 36)],
        "flashlight": [poly(b, 22, 12, 78, 12, 62, 44, 62, 94, 38, 94, 38, 44), oval(w, 22, 5, 78, 19),
            rect(m, 46, 54, 54, 66, radius=3), rect(d, 38, 86, 62, 94), rect(d, 37, 42, 63, 47)],
        "lantern": [arch(m, 28, 2, 72, 60, width=4), poly(b, 38, 18, 62, 18, 74, 32, 26, 32), rect(w, 31, 32, 69, 66),
            line(d, 50, 32, 50, 66, width=4), poly(b, 26, 64, 74, 64, 82, 92, 18, 92)],
        "kettle": [arch(d, 24, 4, 76, 80, width=7), poly(b, 76, 58, 92, 34, 99, 38, 86, 74),
            poly(b, 28, 36, 72, 36, 86, 90, 14, 90), rect(d, 30, 32, 70, 39, radius=3), oval(m, 45, 24, 55, 33)],
        "teapot": [ring(d, 66, 42, 98, 78, width=6), poly(b, 28, 72, 2, 42, 12, 38, 36, 54), oval(b, 18, 34, 80, 90),
            rect(d, 34, 32, 64, 39, radius=3), oval(d, 44, 22, 54, 33)],
        "mug": [ring(d, 54, 34, 92, 74, width=8), rect(b, 16, 22, 70, 90, radius=7), oval(w, 16, 16, 70, 30),
            oval(d, 21, 19, 65, 28)],
        "headset": [arch(d, 14, 8, 86, 108, width=8), oval(b, 4, 46, 34, 92), oval(b, 66, 46, 96, 92),
            rect(m, 30, 54, 37, 84, radius=3), rect(m, 63, 54, 70, 84, radius=3)],
        "earbuds": [rect(b, 28, 34, 41, 90, radius=6), rect(b, 59, 34, 72, 90, radius=6), oval(b, 10, 12, 44, 50),
            oval(b, 56, 12, 90, 50), oval(w, 6, 22, 20, 40), oval(w, 80, 22, 94, 40), rect(m, 29, 82, 40, 90),
            rect(m, 60, 82, 71, 90)],
        "speaker": [rect(b, 18, 6, 82, 94, radius=6), oval(d, 28, 42, 72, 86), oval(m, 38, 52, 62, 76),
            oval(d, 38, 14, 62, 38), oval(m, 44, 20, 56, 32)],
        "tablets": [rect(w, 30, 6, 70, 24, radius=3), rect(d, 36, 22, 64, 30), rect(b, 22, 28, 78, 94, radius=10),
            rect(w, 36, 50, 64, 78, radius=3), rect(d, 47, 54, 53, 74), rect(d, 40, 61, 60, 67)],
        "powder": [rect(b, 12, 32, 88, 92, radius=6), rect(d, 8, 16, 92, 36, radius=4), oval(w, 34, 46, 66, 78),
            oval(m, 42, 54, 58, 70)],
        "drops": [oval(d, 40, 2, 60, 24), rect(w, 42, 18, 58, 26), rect(d, 38, 26, 62, 38),
            poly(b, 40, 38, 60, 38, 78, 54, 78, 94, 22, 94, 22, 54), poly(w, 50, 54, 61, 72, 57, 82, 43, 82, 39, 72)],
        "pen": [poly(b, 70, 4, 90, 20, 42, 78, 22, 62), poly(d, 70, 4, 90, 20, 70, 44, 50, 28),
            poly(m, 22, 62, 42, 78, 10, 94), line(m, 86, 26, 66, 50, width=4)],
        "marker": [poly(d, 42, 8, 58, 14, 60, 32, 40, 32), rect(w, 34, 28, 66, 38), rect(b, 28, 38, 72, 90, radius=5),
            rect(d, 28, 82, 72, 94, radius=5)],
        "pencil": [poly(b, 10, 22, 28, 6, 76, 62, 60, 78), poly(m, 10, 22, 28, 6, 34, 13, 16, 29),
            poly(w, 60, 78, 76, 62, 92, 94), poly(d, 82, 90, 87, 85, 95, 97)],
    }  # fmt: skip


TYPES = tuple(_drawings())


@functools.cache
def _templates() -> np.ndarray:
    """The drawings as maps of materials, uint8 (types, T, T); the frame of each map is empty."""
    scale = (_TEMPLATE - 4) / 100
    maps = []
    for strokes in _drawings().values():
        sheet = Image.new("L", (_TEMPLATE, _TEMPLATE), NOTHING)
        pen = ImageDraw.Draw(sheet)
        for what, material, coordinates, *rest in strokes:
            points = [2 + scale * min(max(value, 0), 130) for value in coordinates]
            size = round(rest[0] * scale) if rest else 0
            if what == "rectangle":
                pen.rounded_rectangle(points, size, fill=material)
            elif what == "line":
                pen.line(points, fill=material, width=size, joint="curve")
            elif what == "ring":
                pen.ellipse(points, outline=material, width=size)
            elif what == "arch":
                pen.arc(points, 180, 360, fill=material, width=size)
            elif what == "pieslice":
                pen.pieslice(points, 180, 360, fill=material)
            else:
                getattr(pen, what)(points, fill=material)
        flat = np.asarray(sheet).copy()
        flat[[0, -1]], flat[:, [0, -1]] = NOTHING, NOTHING
        rim = (flat > 0) & ~ndimage.binary_erosion(flat > 0, iterations=4)
        flat[rim & np.isin(flat, (CLOTH, LIGHT))] = OUTLINE
        maps.append(flat)
    return np.stack(maps)


# -- a photograph -----------------------------------------------------------------------------------------------------


def render(
    types: np.ndarray,
    colours: np.ndarray,
    patterns: np.ndarray,
    silhouettes: np.ndarray,
    size: int = 32,
    seed: int = 0,
    beside: np.ndarray | None = None,
) -> np.ndarray:
    """Photographs of n goods: uint8 (n, size, size, 3).

    Args:
        types, colours, patterns, silhouettes: int (n,), positions in `TYPES`, `COLOURS`, `PATTERNS`, `SILHOUETTES`.
        size: pixels per side; drawn at twice that and averaged, for smooth edges.
        seed: of backgrounds, camera, tones and texture phases. Row i's picture depends on n, i and the seed alone.
        beside: int (n, 4) in the same order: a second, small article in a corner; -1 for none.
    """
    parts = rendered(types, colours, patterns, silhouettes, size, seed, beside)
    return np.concatenate([np.empty((0, size, size, 3), np.uint8), *parts])


def rendered(
    types: np.ndarray,
    colours: np.ndarray,
    patterns: np.ndarray,
    silhouettes: np.ndarray,
    size: int,
    seed: int,
    beside: np.ndarray | None,
) -> Iterator[np.ndarray]:
    """What `render` returns, a few photographs at a time: those of a million goods do not fit into memory."""
    count = len(types)
    rng = np.random.default_rng([seed, 11])
    camera = rng.random((count, 12), dtype=np.float32)
    tones = rng.normal(0, 1, (count, 4, 3)).astype(np.float32)
    corner = rng.random((count, 4), dtype=np.float32)
    for rows in np.array_split(np.arange(count), max(1, count * size * size // 200_000)):
        canvas = _background(camera[rows], tones[rows], 2 * size)
        place = np.stack(
            [
                0.16 * (camera[rows, 0] - 0.5),
                0.16 * (camera[rows, 1] - 0.5),
                0.74 + 0.16 * camera[rows, 2],  # half the width of the drawing, in half frames
                0.36 * (camera[rows, 3] - 0.5),  # tilt, radians
                camera[rows, 4],  # texture phase
                0.85 + 0.3 * camera[rows, 5],  # texture scale
            ]
        )
        goods = np.stack([types[rows], colours[rows], patterns[rows], silhouettes[rows]], axis=1)
        _paint(canvas, goods, place, tones[rows, 0])
        if beside is not None and (second := beside[rows, 0] >= 0).any():
            side, height = np.where(corner[rows, 0] < 0.5, -0.62, 0.62), np.where(corner[rows, 1] < 0.5, -0.6, 0.6)
            place = np.stack([side, height, 0.26 + 0.08 * corner[rows, 2], place[3], corner[rows, 3], place[5]])
            part = canvas[second]
            _paint(part, beside[rows][second], place[:, second].astype(np.float32), tones[rows, 1][second])
            canvas[second] = part
        small = (canvas[:, ::2, ::2] + canvas[:, 1::2, ::2] + canvas[:, ::2, 1::2] + canvas[:, 1::2, 1::2]) / 4
        small += rng.normal(0, 2.5, small.shape[:3]).astype(np.float32)[..., None]  # grain
        yield np.clip(small, 0, 255).astype(np.uint8)


def _background(camera: np.ndarray, tones: np.ndarray, side: int) -> np.ndarray:
    """Walls, floors and vignettes: float32 (n, side, side, 3)."""
    level = np.where(camera[:, 6] < 0.12, 95, 205)[:, None] + 35 * camera[:, 7, None]  # one in eight is dark
    wall = np.clip(level + 13 * tones[:, 2], 20, 250)
    floor = np.clip(wall * (0.82 + 0.2 * camera[:, 8, None]) + 6 * tones[:, 3], 20, 250)
    y = np.linspace(-1, 1, side, dtype=np.float32)[None, :]
    # a third plain, a third fading from wall to floor, a third with a horizon
    kind = camera[:, 9, None]
    share = np.where(kind < 1 / 3, 0, np.where(kind < 2 / 3, (y + 1) / 2, y > 0.35 + 0.4 * camera[:, 10, None]))
    column = wall[:, None] + share[..., None] * (floor - wall)[:, None]  # (n, side, 3)
    return np.repeat(column[:, :, None], side, axis=2).astype(np.float32)


def _paint(canvas: np.ndarray, goods: np.ndarray, place: np.ndarray, tone: np.ndarray) -> None:
    """Put one article on each canvas (n, side, side, 3), in place: `goods` (n, 4), `place` (6, n), `tone` (n, 3)."""
    side = canvas.shape[1]
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    centre_x, centre_y, half, tilt, phase, frequency = (value.astype(np.float32)[:, None, None] for value in place)
    x, y = (axis[None, None, :] - centre_x) / half, (axis[None, :, None] - centre_y) / half
    cos, sin = np.cos(tilt), np.sin(tilt)
    x, y = cos * x + sin * y, cos * y - sin * x  # (n, side, side), -1..1 on the drawing
    body_x, body_y = _warp(x, y, goods[:, 3])
    u, v = (np.clip((value + 1) * (_TEMPLATE / 2), 0, _TEMPLATE - 1).astype(np.intp) for value in (body_x, body_y))
    material = _templates()[goods[:, 0, None, None], v, u]  # (n, side, side); the frame of a drawing is empty

    colour = np.array(list(COLOURS.values()), np.float32)[goods[:, 1]] + 9 * tone
    bright = colour @ np.float32([0.3, 0.59, 0.11])
    contrast = np.where(bright[:, None] > 175, 0.42 * colour, 0.22 * colour + 0.78 * 250)  # second tone of a texture
    palette = np.stack(
        [
            colour,
            colour,
            0.45 * colour + 8,
            np.broadcast_to(np.float32([170, 176, 184]), colour.shape),
            np.broadcast_to(np.float32([248, 246, 240]), colour.shape),
            0.38 * colour,
        ],
        axis=1,
    ).astype(np.float32)  # (n, materials, 3)
    paint = palette[np.arange(len(goods))[:, None, None], material]
    for pattern in np.unique(goods[:, 2]):
        rows = np.flatnonzero(goods[:, 2] == pattern)
        if PATTERNS[pattern] == "plain":
            continue
        cloth = np.nonzero(material[rows] == CLOTH)
        image = rows[cloth[0]]
        at = (image, cloth[1], cloth[2])
        mix, heart = _texture(PATTERNS[pattern], x[at], y[at], phase[image, 0, 0], frequency[image, 0, 0])
        paint[at] += mix[:, None] * (contrast - colour)[image]
        if heart is not None:
            paint[at] += heart[:, None] * (np.float32([252, 196, 40]) - paint[at])
    paint *= (1.05 - 0.1 * (x + y)[..., None]).astype(np.float32)  # light from the upper left
    np.copyto(canvas, paint, where=(material > 0)[..., None])


def _warp(x: np.ndarray, y: np.ndarray, silhouettes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the drawing a point of the article lies, (n, side, side): a silhouette squeezes or spreads it."""
    # at the top, at the bottom: width of the article relative to the drawing; then its height
    form = {"slim": (0.6, 0.6, 1.08), "wide": (1.22, 1.22, 0.86), "flared": (0.5, 1.2, 1.0), "tapered": (1.2, 0.5, 1.0),
            "short": (0.98, 0.98, 0.6)}  # fmt: skip
    top, bottom, height = np.array([form[name] for name in SILHOUETTES], np.float32)[silhouettes].T[..., None, None]
    y = y / height
    return x / np.clip((top + bottom) / 2 + (bottom - top) / 2 * y, 0.3, 1.4), y


def _texture(
    pattern: str, x: np.ndarray, y: np.ndarray, phase: np.ndarray, frequency: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Share of the second tone at points of a cloth, float (points,) in 0..1, and the golden hearts of flowers."""
    x, y = x * frequency + phase, y * frequency + phase
    if pattern == "striped":
        return (np.sin(11 * y) > 0).astype(np.float32), None
    if pattern == "checked":
        return 0.5 * ((np.sin(9 * x) > 0).astype(np.float32) + (np.sin(9 * y) > 0)), None
    if pattern == "zigzag":
        tooth = np.abs((2.2 * x) % 1 - 0.5)
        return ((2.1 * y + 1.1 * tooth) % 1 < 0.45).astype(np.float32), None
    if pattern == "ombre":
        return np.clip((y - phase + 0.75) / 1.5, 0, 1), None
    cells = 2.9 if pattern == "dotted" else 1.75
    row = np.floor(cells * y)
    x, y = (cells * x + 0.5 * (row % 2)) % 1 - 0.5, (cells * y) % 1 - 0.5  # staggered rows
    r2 = x * x + y * y
    if pattern == "dotted":
        return (r2 < 0.09).astype(np.float32), None
    petals = np.sqrt(r2) < 0.3 + 0.15 * np.cos(5 * np.arctan2(y, x))
    return petals.astype(np.float32), (r2 < 0.018).astype(np.float32)


def placeholder(size: int) -> np.ndarray:
    """The shop's "no image" picture: uint8 (size, size, 3)."""
    sheet = Image.new("RGB", (4 * size, 4 * size), (226, 226, 228))
    pen = ImageDraw.Draw(sheet)
    unit = size / 25
    pen.rounded_rectangle(
        [v * unit for v in (18, 26, 82, 74)], 6 * unit, outline=(168, 168, 172), width=round(5 * unit)
    )
    pen.polygon([v * unit for v in (24, 68, 44, 44, 54, 56, 62, 48, 76, 68)], fill=(168, 168, 172))
    pen.ellipse([v * unit for v in (58, 34, 68, 44)], fill=(168, 168, 172))
    return np.asarray(sheet.resize((size, size), Image.Resampling.BOX))


# -- what spoils a photograph -----------------------------------------------------------------------------------------


def corrupt(
    pixels: np.ndarray, kind: Literal["blur", "watermark", "occlusion", "noise"], strength: float, seed: int = 0
) -> np.ndarray:
    """Spoil photographs step by step: uint8 (n, S, S, 3) in and out; the input is left alone.

    Args:
        kind: `blur` (Gaussian, up to a sigma of S / 6) · `watermark` (a grid of light marks, up to nearly opaque) ·
            `occlusion` (a flat box over up to the whole frame) · `noise` (coloured, up to nothing else).
        strength: 0 (unchanged) to 1 (next to nothing left).
        seed: of marks' places, box and noise; for a fixed seed, a stronger corruption is never a milder one elsewhere.

    Raises `UserError` for an unknown kind, a strength outside 0..1 or pixels of another form.
    """
    pixels = np.asarray(pixels)
    if kind not in ("blur", "watermark", "occlusion", "noise"):
        raise UserError(f"corrupt: kind {kind!r} is unknown; use blur, watermark, occlusion or noise.")
    if not 0 <= strength <= 1:
        raise UserError(f"corrupt: strength {strength} lies outside 0 to 1.")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise UserError(f"corrupt: pixels must be uint8 (n, S, S, 3), not {pixels.dtype} {pixels.shape}.")
    if strength == 0 or len(pixels) == 0:
        return pixels.copy()
    return spoil(pixels, kind, strength, draws(kind, pixels.shape, seed))


def draws(kind: str, shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """What is random about corrupting photographs of this shape (n, S, S, 3), an array (n, …) each."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    if kind == "noise":
        return [rng.integers(0, 256, shape)]
    if kind == "watermark":
        return [rng.random((shape[0], 2, 1, 1), dtype=np.float32)]
    return [rng.random((shape[0], 2)), rng.integers(60, 230, (shape[0], 1, 1, 3))] if kind == "occlusion" else []


def spoil(pixels: np.ndarray, kind: str, strength: float, drawn: list[np.ndarray]) -> np.ndarray:
    """`corrupt` for photographs whose `draws` are known."""
    _, height, width, _ = pixels.shape
    soft = pixels.astype(np.float32)
    if kind == "blur":
        sigma = strength * height / 6
        soft = ndimage.gaussian_filter(soft, (0, sigma, sigma, 0), mode="nearest", truncate=2.5)
    elif kind == "noise":
        soft += strength * (drawn[0].astype(np.float32) - soft)
    elif kind == "watermark":
        y, x = np.mgrid[:height, :width].astype(np.float32) / height
        along, across = x + y + drawn[0][:, 0], x - y + drawn[0][:, 1]
        marks = ((across * 4) % 1 < 0.5) & ((along * 9) % 1 < 0.8)  # slanted lines of "letters"
        cover = (0.95 * strength * marks)[..., None]
        soft += cover * (np.float32([236, 236, 240]) - soft)
    else:
        side = np.sqrt(strength)
        box_h, box_w = round(side * height), round(side * width)
        # the box grows around a fixed centre, pushed inside the frame
        centre, colour = drawn
        top = np.clip(np.round(centre[:, 0] * height - box_h / 2), 0, height - box_h)[:, None, None]
        left = np.clip(np.round(centre[:, 1] * width - box_w / 2), 0, width - box_w)[:, None, None]
        y, x = np.mgrid[:height, :width]
        inside = (y >= top) & (y < top + box_h) & (x >= left) & (x < left + box_w)
        soft = np.where(inside[..., None], colour, soft)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)
