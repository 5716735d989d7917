"""Where a folder's queries and interactions stand: `queries.*` and `interactions.*`, BEIR's folders, TREC's topics and qrels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from makelib.data.sources.files.readers import Table
from makelib.data.sources.files.rows import Row, find

#: other names of the three splits
SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "test", "training": "train"}


class Lines:
    """A file without a header, as TREC keeps them: topics (`number, query`) or qrels (`topic, 0, document, grade`)."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns, self.notices = path, list(columns), []

    def mapping(self, *_: Any) -> dict[str, str]:
        return {column: column for column in self.columns if column != "0"}

    def rows(self) -> Iterator[Row]:
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        if "<top>" in text:
            lines = [self._topic(part) for part in text.split("<top>")[1:]]
        else:
            lines = [line.split(None if len(self.columns) > 2 else "\t", len(self.columns) - 1)
                     for line in text.splitlines() if line.strip()]  # fmt: skip
        for number, cells in enumerate(lines, start=1):
            if len(cells) == len(self.columns):
                yield Row(number, dict(zip(self.columns, map(str.strip, cells), strict=True)))
            else:
                yield Row(number, None, "has a wrong number of cells", f"{len(cells)}, not {len(self.columns)}")

    @staticmethod
    def _topic(part: str) -> list[str]:
        number = re.search(r"<num>\s*(?:Number:)?\s*([^\s<]+)", part)
        title = re.search(r"<title>\s*(?:Topic:)?\s*([^<]+)", part)
        return [number[1], " ".join(title[1].split())] if number and title else []


def tables_of(
    folder: Path, encoding: str, mend: bool = False
) -> tuple[list[tuple[Table | Lines, str]], list[tuple[Table | Lines, str]]]:
    """The tables of queries and those of interactions, each with the split that its name states (or "")."""
    queries: list[tuple[Table | Lines, str]] = [
        (Table(path, encoding, mend), "") for path in [find(folder, "queries")] if path
    ]
    interactions: list[tuple[Table | Lines, str]] = [
        (Table(path, encoding, mend), "") for path in [find(folder, "interactions")] if path
    ]
    if not queries:
        topics = sorted(path for path in folder.iterdir() if re.match(r"topics\b", path.name, re.IGNORECASE))
        queries = [(Lines(path, ("query_id", "query")), _split(path)) for path in topics]
    if not interactions:
        inner = folder / "qrels"
        judged = sorted(inner.iterdir()) if inner.is_dir() else []
        judged += sorted(path for path in folder.iterdir() if re.match(r"qrels\b", path.name) and path.is_file())
        for path in judged:
            if path.name.startswith(".") or not path.is_file():
                continue
            with open(path, encoding="utf-8", errors="replace") as file:
                first = file.readline().split()
            bare = len(first) == 4 and re.fullmatch(r"-?\d+(\.\d+)?", first[3])
            columns = ("query_id", "0", "product_id", "label")
            interactions.append((Lines(path, columns) if bare else Table(path, encoding, mend), _split(path)))
    return queries, interactions


def _split(path: Path) -> str:
    """The split that a file's name states: `test.tsv`, `qrels.dev.txt`."""
    words = re.split(r"[\W_]+", path.stem.casefold())
    return next((SPLIT_NAMES.get(word, word) for word in words if word in SPLIT_NAMES or word in _OWN), "")


_OWN = ("train", "validation", "test")


class Ids:
    """Ids as they stand in their own table, found however another table writes them: with blanks, `12.0` for `12`, or without
    leading zeros, where only one id can be meant. `respelled` counts those found so."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._exact = set(ids)
        self._loose: dict[str, str | None] = {}
        for key in self._exact:
            bare = self._bare(key)
            self._loose[bare] = None if bare in self._loose else key
        self.respelled = 0

    def __call__(self, written: str) -> str:
        """The id that is meant, or the text as written."""
        if written in self._exact:
            return written
        meant = self._loose.get(self._bare(written))
        self.respelled += meant is not None
        return written if meant is None else meant

    def __contains__(self, key: str) -> bool:
        return key in self._exact

    @staticmethod
    def _bare(key: str) -> str:
        return re.sub(r"^0+(?=\d)", "", re.sub(r"^(\d+)\.0+$", r"\1", key.strip()))
