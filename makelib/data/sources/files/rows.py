"""Tables of unknown quality as rows of text: CSV, Parquet, JSON Lines; what is broken is named, never guessed or lost.

Knows encodings, quotes and column names, nothing about products. `makelib.data.sources.files` decides what a good row is.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from makelib.runtime import UserError

SUFFIXES = ("csv", "parquet", "jsonl")
#: longest CSV field in characters, so that a quote left open cannot swallow a file of any size
LONGEST_FIELD = 1_000_000


class Row(NamedTuple):
    """One row: `number` from 1 (headers and empty lines do not count), `values` by column, or None and why."""

    number: int
    values: dict[str, str] | None
    reason: str = ""
    detail: str = ""


class Quarantine:
    """Writes a line per broken row or image (`table, row, product_id, file, reason, action`) when found, and counts."""

    def __init__(self, lines: io.TextIOBase | None = None) -> None:
        self._writer = csv.writer(lines) if lines else None
        self._first: list[str] = []
        self.counts: Counter[tuple[str, str, str]] = Counter()
        if self._writer:
            self._writer.writerow(("table", "row", "product_id", "file", "reason", "action"))

    def add(
        self,
        table: str,
        row: int,
        reason: str,
        detail: str = "",
        *,
        product_id: str = "",
        file: str = "",
        action: str = "row dropped",
    ) -> None:
        """`reason` is counted; `detail` is true of this row only."""
        why = _printable(f"{reason} ({detail})" if detail else reason)
        if self._writer:
            self._writer.writerow((table, row, _printable(product_id), _printable(file), why, action))
        self.counts[table, reason, action] += 1
        if len(self._first) < 3:
            self._first.append(f"{table} row {row} {why}")

    def reasons(self, table: str, action: str = "row dropped") -> dict[str, int]:
        return {why: count for (name, why, done), count in self.counts.items() if (name, done) == (table, action)}

    def account(self, table: str, read: int, kept: int, left_out: int) -> dict[str, Any]:
        """Rows in = kept + dropped (broken, listed) + left out (whole, but not wanted)."""
        reasons = self.reasons(table)
        return {"read": read, "kept": kept, "dropped": sum(reasons.values()), "left_out": left_out, "reasons": reasons}

    def __str__(self) -> str:
        total = self.counts.total()
        return f"{total} broken rows or images: {'; '.join(self._first)}{'; …' if total > 3 else ''}."


def _printable(text: str) -> str:
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def find(folder: Path, table: str) -> Path | None:
    """The file of a table in a folder, or None. Raises `UserError` when there are two."""
    found = [path for suffix in SUFFIXES if (path := Path(folder) / f"{table}.{suffix}").is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(path.name for path in found)}; keep one of them.")
    return found[0] if found else None


class Table:
    """A table file: `columns`, `rows()`, and `embedded`, the Parquet columns that hold no text (images, lists).

    A row with bytes that are not valid in `encoding`, with NULs, or with another number of cells than the header is
    broken as a whole. A quote left open costs its own line only: the lines it took along are read again.
    Raises `UserError` for an unknown encoding, an empty file, a header that cannot be read or names a column twice.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path = path
        self.embedded: set[str] = set()
        try:
            self.encoding = {"utf-8": "utf-8-sig"}.get(name := codecs.lookup(encoding).name, name)
        except LookupError:
            raise UserError(f"There is no encoding {encoding!r}; try utf-8, latin-1, gb18030 or shift_jis.") from None
        self._read = {"csv": self._csv, "jsonl": self._jsonl, "parquet": self._parquet}[path.suffix[1:]]
        if path.suffix != ".parquet":
            with open(path, "rb") as file:
                if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    self.encoding = "utf-16"
        self.columns: list[str] = getattr(self, f"{self._read.__name__}_columns")()
        if twice := [name for name, count in Counter(self.columns).items() if count > 1]:
            raise UserError(f"{path}: the column {twice[0]!r} stands twice in the header; rename one.")

    def rows(self) -> Iterator[Row]:
        for number, (values, reason, detail) in enumerate(self._read(), start=1):
            if values is not None:
                text = "".join(values.values())
                if "\0" in text:
                    values, reason = None, "holds a NUL byte"
                elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                    values, reason = None, f"is not valid {self.encoding.removesuffix('-sig')} text"
            yield Row(number, values, reason, detail)

    def mapping(
        self, guesses: Mapping[str, tuple[str, ...]], required: tuple[str, ...], stated: Mapping[str, str]
    ) -> dict[str, str]:
        """makelib's column -> this file's: as `stated`, else by `guesses`, the names it usually has (best first).

        Raises `UserError` with the columns found when a `required` one is missing.
        """
        plain = {re.sub(r"[\W_]", "", column).casefold(): column for column in reversed(self.columns)}
        found: dict[str, str] = {}
        for column, names in guesses.items():
            usual = (plain[name] for name in names if name in plain and plain[name] not in stated.values())
            guess = stated[column] if stated.get(column) in self.columns else next(usual, None)
            if guess is not None and guess not in found.values():
                found[column] = guess
        if missing := [column for column in required if column not in found]:
            raise UserError(
                f"{self.path} lacks {' and '.join(missing)}; it has the columns {', '.join(self.columns)}. Say "
                f"which is which in catalogue.yaml (`columns: {{{missing[0]}: <your column>}}`) or by "
                f"--map {missing[0]}=<your column>."
            )
        return found

    # Each reader yields (values or None, reason, detail).

    def _lines(self) -> Iterator[str]:
        with open(self.path, encoding=self.encoding, errors="surrogateescape", newline="") as file:
            yield from file

    def _csv_columns(self) -> list[str]:
        with contextlib.closing(self._lines()) as lines:
            header = next(lines, "")
        if not header.strip():
            raise UserError(f"{self.path} is empty; its first line must name the columns.")
        if any("\ud800" <= character <= "\udfff" for character in header):
            raise UserError(f"{self.path}: the header is not {self.encoding} text; say `encoding:` in catalogue.yaml.")
        self._delimiter = max(",;\t|", key=header.count)
        return [name.strip() for name in next(csv.reader([header], delimiter=self._delimiter))]

    def _csv(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        lines = _Rewindable(self._lines())
        next(lines)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            lines.seen.clear()
            try:
                with field_limit(LONGEST_FIELD):
                    cells = next(reader, None)
            except csv.Error as error:
                lines.rewind(keep=1)
                reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
                yield None, "is not valid CSV", str(error)
                continue
            if cells is None:
                return
            if cells and len(cells) != len(self.columns):
                yield None, "has a wrong number of cells", f"{len(cells)}, the header {len(self.columns)}"
            elif cells:  # an empty line is no row
                yield dict(zip(self.columns, cells, strict=True)), "", ""

    def _objects(self) -> Iterator[dict[str, Any] | None]:
        with open(self.path, encoding=self.encoding, errors="surrogateescape", newline="\n") as file:
            for line in file:
                if line.strip():
                    try:
                        item = json.loads(line)
                    except (ValueError, RecursionError):
                        item = None
                    yield item if isinstance(item, dict) else None

    def _jsonl_columns(self) -> list[str]:
        columns = list(dict.fromkeys(key for item in self._objects() for key in item or ()))
        if not columns:
            raise UserError(f"{self.path} holds no JSON object; each line must be one.")
        return columns

    def _jsonl(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        for item in self._objects():
            if item is None:
                yield None, "is not a JSON object", ""
            else:
                yield {key: _text(item.get(key)) for key in self.columns}, "", ""

    def _open_parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"Cannot read {self.path}: {str(error).splitlines()[0]}") from None

    def _parquet_columns(self) -> list[str]:
        with self._open_parquet() as file:
            for item in file.schema_arrow:
                inner = (
                    item.type.value_type if pa.types.is_list(item.type) else item.type
                )  # a list of texts is read as JSON
                if pa.types.is_nested(inner) or pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
                    self.embedded.add(item.name)
            return [name for name in file.schema_arrow.names if name not in self.embedded]

    def _parquet(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        with self._open_parquet() as file:
            for batch in file.iter_batches(batch_size=1000, columns=self.columns):
                columns = {name: _cells(batch.column(name)) for name in self.columns}
                for cells in zip(*columns.values(), strict=True):
                    yield dict(zip(columns, cells, strict=True)), "", ""


class _Rewindable:
    """Lines that can be read again: `seen` holds those since it was last cleared."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._again = lines, collections.deque()
        self.seen: list[str] = []

    def __iter__(self) -> _Rewindable:
        return self

    def __next__(self) -> str:
        self.seen.append(self._again.popleft() if self._again else next(self._lines))
        return self.seen[-1]

    def rewind(self, keep: int) -> None:
        self._again.extendleft(reversed(self.seen[keep:]))


@contextlib.contextmanager
def field_limit(limit: int) -> Iterator[None]:
    """The csv module's limit is one for the process: set it and put it back."""
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _cells(column: pa.Array) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Arrow does not check UTF-8: decode here, so that bad bytes cost a row and not the file
        raw = column.cast(pa.large_binary()).to_pylist()
        return ["" if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    return [_text(cell) for cell in column.to_pylist()]


def _text(cell: Any) -> str:
    """A JSON or Parquet value as text: nothing for null and NaN, whole numbers without a point."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, bool | dict | list) else str(cell)
