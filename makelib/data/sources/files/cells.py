"""Which photographs a cell of a table names: one, or several in any of the ways in which people and programs write a list.

Where they lie, `paths` finds out.
"""

from __future__ import annotations

import ast
import contextlib
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping

from makelib.data.sources.files.rows import IMAGE_NAME, IMAGE_SUFFIXES

#: what programs write where there is no photograph
NOTHING = frozenset(("null", "none", "nan", "n/a", "na", "#n/a", "undefined", "no_selection", "-", "--"))
_ADDRESS = re.compile(r"\s*['\"]?(?!file:)([a-z][a-z0-9+.-]+:)?//[^/\s]", re.IGNORECASE)
#: what a cell that names one photograph, and nothing else, does not hold
_ODD = re.compile(r"[\s|;,<>()\[\]{}`“”«»^~*、，；]|::")
#: the photographs of HTML, Markdown and CSS
_MARKUP = re.compile(
    r"""<[^<>]*?\bsrc\s*=\s*(?:"([^"]+)"|'([^']+)'|([^\s"'<>]+))"""
    r"""|!?\[[^\[\]]*\]\(\s*<?([^<>()"]+?)>?\s*(?:"[^"]*"|'[^']*')?\s*\)|\burl\(\s*["']?([^"'()]+?)["']?\s*\)"""
)
_QUOTED = re.compile(r"""'([^']+)'|"([^"]+)"|[“„]([^“”„]+)[”“]|«([^«»]+)»|`([^`]+)`""")
_ENDS = re.compile(rf"\.(?:{IMAGE_SUFFIXES})(?![\w.])(?:[?#][^\s,;|]*)?", re.IGNORECASE)
#: what may stand between two names, or before the first: list signs, bullets, numbers
_BETWEEN = re.compile(r"(?:[\s^~*:;,|、，；!•·]|-\s|\d+[.)]\s)*")
#: where objects keep the name of a photograph, best first
_KEYS = (
    "src", "url", "path", "link", "href", "file", "filename", "image", "image_url", "full", "original", "large", "hi_res",
    "name",
)  # fmt: skip


def is_address(cell: str) -> bool:
    return _ADDRESS.match(cell) is not None


def names_in(cell: str, exists: Callable[[str], bool]) -> list[str]:
    """The photographs in a cell, in order: one name, or a list as JSON, as Python or NumPy prints one, as HTML or Markdown, or
    between `|`, `;`, `,` or line breaks. What names an existing file (`exists(cell)`) is one name whatever it holds."""
    written, cell = cell, cell.strip()
    if not cell or (cell.casefold() in NOTHING and not exists(cell)):
        return []
    if not _ODD.search(cell) or exists(cell):
        return [written]
    marked = [html.unescape("".join(groups)) for groups in _MARKUP.findall(cell)]
    if marked and all(map(_looks_like_one, marked)):
        return marked
    if cell[0] + cell[-1] in ("[]", "()", "{}", "<>"):
        found = listed(cell)
        return names_in(cell.strip("[](){}<>"), exists) if found is None else found
    if "<" in cell:
        cell = re.sub(r"<br\s*/?>", "\n", cell, flags=re.IGNORECASE)
    ahead = r"(?=(?:https?:)?//)" if is_address(cell) else ""
    for separator in (r"\||\n", rf";\s*{ahead}", rf",\s*{ahead}", *([rf"\s+{ahead}"] if ahead else ())):
        parts = [part.strip() for part in re.split(separator, cell) if part.strip()]
        if len(parts) > 1 and (
            "|" in separator
            or all(_looks_like_one(part) or part.casefold() in NOTHING or exists(part) for part in parts)
        ):
            return [name for part in parts for name in names_in(part, exists)]
    return [name for name in _quoted(cell) if IMAGE_NAME.search(name)] or list(_cut(cell)) or [written]


def _looks_like_one(name: str) -> bool:
    return is_address(name) or IMAGE_NAME.search(name) is not None


def listed(cell: str) -> list[str] | None:
    """The names in a list as JSON, Python or NumPy write it, or None where it is no list."""
    together = re.search(r"['\"]\s+['\"]", cell)  # NumPy puts no comma between: Python would read one word
    for read in (json.loads,) if together else (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return list(_flat(read(cell)))
    return _quoted(cell) or None


def _flat(value: object) -> Iterator[str]:
    """The names in nested lists; of objects, what their usual keys hold, else what looks like a name."""
    if isinstance(value, Mapping):
        told = next((value[key] for key in _KEYS if value.get(key)), None)
        looks = [
            item for item in value.values() if not isinstance(item, str | int | float) or _looks_like_one(str(item))
        ]
        for item in looks if told is None else [told]:
            yield from _flat(item)
    elif isinstance(value, str | int):
        if str(value).strip():
            yield str(value).strip()
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        raise ValueError("not a list of names")


def _quoted(cell: str) -> list[str]:
    return ["".join(groups) for groups in _QUOTED.findall(cell)]


def _cut(cell: str) -> Iterator[str]:
    """The cell cut after each suffix of an image, whatever stands between."""
    begin = 0
    for end in _ENDS.finditer(cell):
        begin = _BETWEEN.match(cell, begin).end()
        if name := cell[begin : end.end()]:
            yield name
        begin = end.end()
