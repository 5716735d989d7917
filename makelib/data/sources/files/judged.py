"""Where a folder's queries and interactions stand: `queries.*` and `interactions.*`, BEIR's folders, TREC's topics and qrels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from makelib.data.sources.files.readers import Table
from makelib.data.sources.files.rows import Row, find

#: names of the three splits
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "validate", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation", "holdout", "heldout"), "test"),
}
#: grades in words, in the scales that people judge by: ESCI's (its task's gains), WANDS', Bing's five, yes and no
GRADES = {
    "exact": 1.0, "substitute": 0.1, "complement": 0.01, "irrelevant": 0.0, "e": 1.0, "s": 0.1, "c": 0.01, "i": 0.0,
    "exact match": 1.0, "partial match": 0.5, "partial": 0.5, "no match": 0.0, "match": 1.0,
    "perfect": 1.0, "excellent": 0.75, "good": 0.5, "fair": 0.25, "bad": 0.0, "poor": 0.0,
    "highly relevant": 1.0, "very relevant": 1.0, "relevant": 1.0, "partially relevant": 0.5, "somewhat relevant": 0.5,
    "marginally relevant": 0.25, "not relevant": 0.0, "non relevant": 0.0, "nonrelevant": 0.0,
    "yes": 1.0, "true": 1.0, "y": 1.0, "t": 1.0, "no": 0.0, "false": 0.0, "n": 0.0, "f": 0.0,
}  # fmt: skip


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
        queries = [(Lines(path, ("query_id", "query")), split_of(path.stem)) for path in topics]
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
            interactions.append((Lines(path, columns) if bare else Table(path, encoding, mend), split_of(path.stem)))
    return queries, interactions


def split_of(name: str) -> str:
    """The split that a cell or a file's name states, as `test.tsv`, `qrels.dev`, `Hold-out`, or ""."""
    words = re.split(r"[\W_\d]+", name.casefold().replace("-", ""))
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def grade(label: str, scale: Mapping[str, float]) -> float | None:
    """A label as a number of 0 or more, or None: numbers (below 0 as TREC marks junk: 0), shares in per cent, words by `scale`
    (as written there) and by `GRADES`."""
    told = " ".join(re.sub(r"[_-]+(?=[^\W\d])", " ", label).split()).casefold()
    known = {word.casefold(): value for word, value in scale.items()}
    if label.strip().casefold() in known:
        return known[label.strip().casefold()]
    if told in GRADES:
        return GRADES[told]
    found = re.fullmatch(r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?)\s*(%|/\s*\d+)?", told)
    if found is None:
        return None
    value = float(found[1].replace(",", "."))
    of = 100.0 if found[2] == "%" else float((found[2] or "/1").strip("/ "))
    return max(0.0, value / of) if math.isfinite(value) and of else None


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
