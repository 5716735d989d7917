"""Draws docs/architecture.svg from the imports of makelib, so that the picture stays true: `python docs/architecture.py`.

A box a room with its modules, an arrow from each room to every other that it imports. A test asks whether the picture is
what this draws; it needs no package.
"""

from __future__ import annotations

import ast
import html
from pathlib import Path

ROOT = Path(__file__).parents[1]
SVG = Path(__file__).with_suffix(".svg")
#: from the ground up; what stands higher may import what stands lower
ROOMS = {
    "data": "the three tables, and where they come from",
    "model": "the method: from tables to trained weights",
    "search": "from a model to ranked products, and why",
    "study": "which arms run, how they are judged",
    "workbook": "what people look at",
}
WIDTH, HEIGHT, GAP, LEFT = 620, 92, 26, 20


def room_of(module: str) -> str:
    """`makelib.model.fusion` -> `model`; what stands in no room stands in the hall."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "hall"


def imports() -> set[tuple[str, str]]:
    """Pairs of rooms (importer, imported)."""
    found = set()
    for path in sorted((ROOT / "makelib").rglob("*.py")):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("makelib"):
                found.add((room, room_of(node.module)))
    return found


def modules(room: str) -> str:
    package = ROOT / "makelib" / room
    names = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    return " · ".join(sorted(names + [path.parent.name for path in package.glob("*/__init__.py")]))


def draw() -> str:
    """The whole picture as SVG."""
    top = {room: 20 + (len(ROOMS) - 1 - place) * (HEIGHT + GAP) for place, room in enumerate(ROOMS)}
    parts = []
    for room, says in ROOMS.items():
        y = top[room]
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>')
        parts.append(f'<text class="room" x="{LEFT + 14}" y="{y + 26}">{room}/</text>')
        parts.append(f'<text x="{LEFT + 110}" y="{y + 26}">{html.escape(says)}</text>')
        words, line, row = modules(room).split(" "), "", 0
        for word in [*words, ""]:
            if len(line) + len(word) > 92 or not word:
                parts.append(
                    f'<text class="modules" x="{LEFT + 14}" y="{y + 52 + 18 * row}">{html.escape(line)}</text>'
                )
                line, row = "", row + 1
            line = f"{line} {word}".strip()
    names = list(ROOMS)
    pairs = [pair for pair in imports() if pair[0] != pair[1] and "hall" not in pair]
    for place, (upper, lower) in enumerate(
        sorted(pairs, key=lambda pair: (names.index(pair[0]), names.index(pair[1])))
    ):
        x = LEFT + WIDTH + 14 + 16 * place
        start, end = top[upper] + HEIGHT / 2, top[lower] + HEIGHT / 2
        edge = LEFT + WIDTH
        parts.append(f'<path d="M{edge},{start:g} H{x} V{end:g} H{edge + 5}" marker-end="url(#tip)"/>')
    height = 20 + len(ROOMS) * (HEIGHT + GAP)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 190} {height}" font-family="sans-serif" font-size="13">
<style>rect {{ fill: #f4f6f8; stroke: #8a98a8 }} path {{ fill: none; stroke: #4a6fa5; stroke-width: 1.5 }} .room {{ font-weight: bold; font-size: 15px }}
.modules {{ fill: #445; font-size: 12px }}</style>
<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto"><path d="M0,0 L6,3 L0,6"/></marker></defs>
<rect x="0" y="0" width="100%" height="100%" style="fill: white; stroke: none"/>
{chr(10).join(parts)}
</svg>
"""


if __name__ == "__main__":
    SVG.write_text(draw(), encoding="utf-8")
