"""Table files as rows of text: CSV, TSV, Excel, Parquet, JSON, JSON Lines, XML feeds; what is broken is named, never guessed or lost.

Knows encodings, quotes and column names, nothing about products.
"""

from __future__ import annotations

import bz2
import codecs
import collections
import contextlib
import csv
import datetime
import gzip
import io
import itertools
import json
import lzma
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import charset_normalizer
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.utils.exceptions import InvalidFileException

from makelib.data.sources.files.mojibake import mended
from makelib.data.sources.files.rows import IMAGE_NAME, Row, kind_of, masked
from makelib.runtime import UserError

#: longest CSV field in characters, so that a quote left open cannot swallow a file of any size
LONGEST_FIELD = 1_000_000
#: elements that are a row each in the feeds of shops: RSS, Atom, and plain lists
FEED_ROWS = ("item", "entry", "product", "offer")
#: text may be packed, one file in each
_PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Table:
    """A table file: `columns`, `rows()`, and `embedded`, the Parquet columns that hold bytes (images).

    A row with bytes that are not valid in `encoding`, with NULs, or with another number of cells than the header is
    broken as a whole. A quote left open costs its own line only: the lines it took along are read again.
    Text that was encoded twice ("CafÃ©") is counted, and read right where `mend` says so, but for names of image files: a file
    may bear such a name.
    A column that stands twice in the header gets a number; empty cells at the end of rows or header cost nothing.
    Raises `UserError` for an unknown encoding, an empty file, a header that cannot be read.
    """

    def __init__(self, path: Path, encoding: str = "utf-8", mend: bool = False) -> None:
        self.path, self._mend = path, mend
        self.embedded: set[str] = set()
        #: what was guessed about the file, a line each
        self.notices: list[str] = []
        self._badly = self._twice = 0
        self._quotes: dict[str, Any] = {}
        try:
            self.encoding = {"utf-8": "utf-8-sig"}.get(name := codecs.lookup(encoding).name, name)
        except LookupError:
            raise UserError(f"There is no encoding {encoding!r}; try utf-8, latin-1, gb18030 or shift_jis.") from None
        kind = kind_of(path)
        self._read = {"csv": self._csv, "tsv": self._csv, "txt": self._csv, "json": self._json, "jsonl": self._json, "ndjson": self._json,
                      "xlsx": self._xlsx, "parquet": self._parquet, "xml": self._xml}[kind]  # fmt: skip
        if kind not in ("parquet", "xlsx", "xml"):
            with self._bytes() as file:
                if wide := _wide(file.read(4)):
                    self.encoding = wide
                    self.notices.append(f"{path.name} is {wide.upper()}, as its first bytes say.")
        self.columns: list[str] = getattr(self, f"{self._read.__name__}_columns")()
        self._twice_named: set[str] = set()
        for at, name in enumerate(self.columns):  # pandas and joins write a name twice
            if name and (same := self.columns[:at].count(name)):
                self._twice_named.add(name)
                self.columns[at] = f"{name} {same + 1}"

    @contextlib.contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        """The file's content, unpacked."""
        try:
            with _PACKED.get(self.path.suffix.casefold(), open)(self.path, "rb") as file:
                yield file
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"Cannot read {self.path}: {error}") from None

    def rows(self) -> Iterator[Row]:
        unnamed = Counter()
        for number, (values, reason, detail) in enumerate(self._read(), start=1):
            if values is not None:
                if beyond := values.pop("", None):
                    unnamed[""] += 1
                text = "".join(values.values())
                if "\0" in text or (beyond and "\0" in beyond):
                    values, reason = None, "holds a NUL byte"
                elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                    self._badly += 1
                    values, reason = None, f"is not valid {self.encoding.removesuffix('-sig')} text"
                elif not text.isascii() and mended(text) != text:
                    values = self._encoded_twice(values)
            yield Row(number, values, reason, detail)
        if unnamed[""]:
            self.notices.append(
                f"{self.path.name}: {unnamed['']:,} rows have text in a column without a name; not read."
            )
        if self._badly and (other := self.proposed()):
            self.notices.append(f"{self.path.name} reads best as {other}: run again with `--encoding {other}`.")
        if self._twice:
            done = (
                "were read right"
                if self._mend
                else "stay so: export them as UTF-8, or read them right by `--mend-text`"
            )
            self.notices.append(
                f"{self.path.name}: {self._twice:,} rows hold letters that were encoded twice, such as {self._example}; they {done}."
            )

    def _encoded_twice(self, values: dict[str, str]) -> dict[str, str]:
        """The row read right, or as it came where that is not asked for; counted."""
        right = {column: text if IMAGE_NAME.search(text) else mended(text) for column, text in values.items()}
        if right == values:
            return values
        self._twice += 1
        if self._twice == 1:
            column = next(column for column in values if right[column] != values[column])
            self._example = " for ".join(f"{masked(side[column])[:40]!r}" for side in (values, right))
        return right if self._mend else values

    def proposed(self) -> str | None:
        """The encoding that fits the file's lines beyond ASCII best, where it is another one."""
        sample, size = [], 0
        with self._bytes() as file:
            for line in itertools.islice(file, 200_000):
                if not line.isascii():
                    sample.append(line)
                    size += len(line)
                if size > 2**16:
                    break
        raw = b"".join(sample)
        best = charset_normalizer.from_bytes(raw).best()
        if best is None or codecs.lookup(best.encoding) == codecs.lookup(self.encoding.removesuffix("-sig")):
            return None
        common = raw.decode("cp1252", "replace") == str(best)  # of those that read the same, the one people know
        return "cp1252" if common else best.encoding

    def mapping(
        self, table: str, guesses: Mapping[str, tuple[str, ...]], required: tuple[str, ...], stated: Mapping[str, str]
    ) -> dict[str, str]:
        """makelib's column -> this file's: as `stated` (`column`, or `table.column` where tables differ), else by `guesses`,
        the names it usually has (best first).

        Raises `UserError` with the columns found when a `required` or a stated one is missing.
        """
        own = {column: stated[f"{table}.{column}"] for column in guesses if f"{table}.{column}" in stated}
        for column, name in own.items():
            if name not in self.columns:
                raise UserError(f"{self.path} has no column {name!r} ({column}); it has {', '.join(self._named)}.")
        own = {column: stated[column] for column in guesses if stated.get(column) in self.columns} | own
        plain_names = {plain(column): column for column in reversed(self._named)}
        found: dict[str, str] = {}
        for column, names in guesses.items():
            usual = (plain_names[name] for name in names if name in plain_names)
            free = (name for name in usual if name not in own.values() and name not in found.values())
            guess = own.get(column) or next(free, None)
            if guess is not None and guess not in found.values():
                found[column] = guess
        if twice := [found[column] for column in required if found.get(column) in self._twice_named]:
            raise UserError(f"{self.path}: the column {twice[0]!r} stands twice in the header; rename one.")
        if missing := [column for column in required if column not in found]:
            raise UserError(
                f"{self.path} lacks {' and '.join(missing)}; it has the columns {', '.join(self._named)}. Say "
                f"which is which in catalogue.yaml (`columns: {{{table}.{missing[0]}: <your column>}}`) or by "
                f"--map {table}.{missing[0]}=<your column>."
            )
        return found

    @property
    def _named(self) -> list[str]:
        return [column for column in self.columns if column]

    # Each reader yields (values or None, reason, detail).

    def _lines(self) -> Generator[str, None, None]:
        with self._bytes() as file, io.TextIOWrapper(file, self.encoding, "surrogateescape", newline="") as text:
            yield from text

    def _csv_columns(self) -> list[str]:
        with contextlib.closing(self._lines()) as lines:
            self._before = 0  # lines above the header
            for header in lines:
                stated = re.fullmatch(r"\s*\"?sep=(.)\"?\s*", header)  # Excel's own first line
                if header.strip(' ,;|\t\r\n"') and not stated and not header.startswith("#"):
                    break
                self._before += 1
            else:
                raise UserError(f"{self.path} is empty; its first line must name the columns.")
            if _filled(header) == 1:  # a heading above the table, or a table of one column
                for further, line in enumerate(itertools.islice(lines, 5), start=1):
                    if _filled(line) > 2:
                        header, self._before = line, self._before + further
                        break
        if self._before:
            self.notices.append(
                f"{self.path.name}: the header is line {self._before + 1}; what stands above is not read."
            )
        if any("\ud800" <= character <= "\udfff" for character in header):
            better = self.proposed()
            hint = f"; it reads best as {better}: --encoding {better}" if better else ""
            raise UserError(
                f"{self.path}: the header is not {self.encoding} text{hint}; say `encoding:` in catalogue.yaml."
            )
        bare = re.sub(r'"[^"]*"', "", header)
        self._delimiter = max(",;\t|~^¦\x01\x1f", key=bare.count)
        if self._delimiter != ("\t" if kind_of(self.path) == "tsv" else ","):
            name = {"\t": "tabs", ";": "semicolons", "|": "strokes", ",": "commas"}.get(
                self._delimiter, repr(self._delimiter)
            )
            self.notices.append(f"{self.path.name}: {name} part the cells, as the header suggests.")
        if self._escaped():
            self._quotes = {"doublequote": False, "escapechar": "\\"}
            self.notices.append(f'{self.path.name}: quotes within cells are written \\", as its first lines show.')
        columns = [name.strip() for name in next(csv.reader([header], delimiter=self._delimiter))]
        return columns + [""] * max(0, self._narrowest(10) - len(columns))

    def _narrowest(self, count: int) -> int:
        """The fewest cells of the first `count` rows: where all have more than the header, it leaves out columns at its end."""
        with contextlib.closing(self._lines()) as lines, contextlib.suppress(csv.Error):
            rows = csv.reader(
                itertools.islice(lines, self._before + 1, None), delimiter=self._delimiter, **self._quotes
            )
            return min(map(len, itertools.islice(filter(None, rows), count)), default=0)
        return 0

    def _escaped(self) -> bool:
        """Whether quotes within cells stand behind a backslash, as databases write them: some do, and none is doubled."""
        with contextlib.closing(self._lines()) as lines:
            sample = "".join(itertools.islice(lines, 1000))
        within = rf'[^\s"\\{re.escape(self._delimiter)}]'
        return bool(re.search(rf'\\"\s*{within}', sample)) and not re.search(rf'{within}""\s*{within}', sample)

    def _csv(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        lines = _Rewindable(self._lines())
        for _ in range(self._before + 1):
            next(lines)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True, **self._quotes)
        width, least = len(self.columns), max(at for at, name in enumerate(self.columns, start=1) if name)
        while True:
            lines.seen.clear()
            try:
                with field_limit(LONGEST_FIELD):
                    cells = next(reader, None)
            except csv.Error as error:
                lines.rewind(keep=1)
                reader = csv.reader(lines, delimiter=self._delimiter, strict=True, **self._quotes)
                yield None, "is not valid CSV", str(error)
                continue
            if cells is None:
                return
            if least <= len(cells) < width:  # columns without a name, which the header alone has
                cells += [""] * (width - len(cells))
            if cells and len(cells) != width:
                yield None, "has a wrong number of cells", f"{len(cells)}, the header {width}"
            elif cells:  # an empty line is no row
                yield self._together(cells), "", ""

    def _together(self, cells: list[str]) -> dict[str, str]:
        """Cells by column; those of columns without a name under "", if they hold anything."""
        if "" not in self.columns:
            return dict(zip(self.columns, cells, strict=True))
        values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if name}
        beyond = "".join(cell.strip() for name, cell in zip(self.columns, cells, strict=True) if not name)
        return values | ({"": beyond} if beyond else {})

    def _sheet(self) -> Generator[list[str], None, None]:
        try:
            book = openpyxl.load_workbook(self.path, read_only=True, data_only=True)
        except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError, OSError) as error:
            raise UserError(f"Cannot read {self.path}: {error}. Save it as .xlsx or .csv.") from None
        with contextlib.closing(book):
            sheet = book.worksheets[0]
            self._sheets = [sheet.title for sheet in book.worksheets]
            sheet.reset_dimensions()
            for cells in sheet.iter_rows(values_only=True):
                yield [_text(cell) for cell in cells]

    def _xlsx_columns(self) -> list[str]:
        self._before = 0
        with contextlib.closing(self._sheet()) as rows:
            for cells in rows:
                if any(map(str.strip, cells)):
                    break
                self._before += 1
            else:
                raise UserError(f"{self.path} is empty; its first line must name the columns.")
        if len(self._sheets) > 1:
            self.notices.append(
                f"{self.path.name}: only its first sheet {self._sheets[0]!r} of {len(self._sheets)} is read."
            )
        return [name.strip() for name in cells]

    def _xlsx(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        width = len(self.columns)
        for cells in itertools.islice(self._sheet(), self._before + 1, None):
            if any(cells):
                surplus = "".join(cells[width:]).strip()
                values = self._together([*cells[:width], *[""] * (width - len(cells))])
                yield (values | {"": surplus} if surplus else values), "", ""

    def _elements(self) -> Iterator[tuple[str, ElementTree.Element]]:
        with self._bytes() as file:
            yield from ElementTree.iterparse(file, ("start", "end"))

    def _items(self) -> Iterator[dict[str, str]]:
        """The rows of an XML feed: elements by name, those that stand several times as a JSON list."""
        with self._bytes() as file:
            if b"<!ENTITY" in file.read(2**20):
                raise UserError(f"{self.path} defines entities of its own, which no feed needs; it is not read.")
        try:
            root = None
            for event, item in self._elements():
                root = item if root is None else root
                if event == "end" and _local(item.tag) in FEED_ROWS and len(item):
                    found: dict[str, list[str]] = {}
                    for child in item:
                        text = " ".join("".join(child.itertext()).split()) or child.get("href", "")
                        found.setdefault(_local(child.tag), []).append(text)
                    yield {
                        key: texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
                        for key, texts in found.items()
                    }
                    root.clear()
        except ElementTree.ParseError as error:
            raise UserError(f"Cannot read {self.path}: it is not whole XML ({error}).") from None

    def _xml_columns(self) -> list[str]:
        columns = list(dict.fromkeys(key for item in self._items() for key in item))
        if not columns:
            raise UserError(f"{self.path} holds none of the elements {', '.join(FEED_ROWS)}, a product each.")
        return columns

    def _xml(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        for item in self._items():
            yield {key: item.get(key, "") for key in self.columns}, "", ""

    def _objects(self) -> Iterator[Any]:
        """The values of JSON Lines one by one, None for a line that is none; or the objects of a whole JSON document."""
        with self._bytes() as file, io.TextIOWrapper(file, self.encoding, "surrogateescape", newline="\n") as text:
            lines: Iterable[str] = text
            if kind_of(self.path) == "json":
                whole = text.read()
                try:
                    return (yield from _objects_of(json.loads(whole)))
                except (ValueError, RecursionError) as error:
                    if not isinstance(_value(whole.lstrip().split("\n", 1)[0]), dict):  # else they are lines after all
                        raise UserError(f"Cannot read {self.path}: it is not whole JSON ({error}).") from None
                lines = whole.split("\n")
            yield from (_value(line) for line in lines if line.strip())

    def _json_columns(self) -> list[str]:
        columns = list(dict.fromkeys(key for item in self._objects() if isinstance(item, dict) for key in item))
        if not columns:
            raise UserError(f"{self.path} holds no JSON object; each line, or each item of one list, must be one.")
        return columns

    def _json(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        for item in self._objects():
            if isinstance(item, dict):
                yield {key: _text(item.get(key)) for key in self.columns}, "", ""
            else:
                yield None, "is not a JSON object", ""

    def _open_parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"Cannot read {self.path}: {str(error).splitlines()[0]}") from None

    def _parquet_columns(self) -> list[str]:
        with self._open_parquet() as file:
            self.embedded = {item.name for item in file.schema_arrow if _holds_bytes(item.type)}
            return [name for name in file.schema_arrow.names if name not in self.embedded]

    def _parquet(self) -> Iterator[tuple[dict[str, str] | None, str, str]]:
        with self._open_parquet() as file:
            for batch in file.iter_batches(batch_size=1000, columns=self.columns):
                columns = {name: _cells(batch.column(name)) for name in self.columns}
                for cells in zip(*columns.values(), strict=True):
                    yield dict(zip(columns, cells, strict=True)), "", ""


def _value(text: str) -> Any:
    """The value of a JSON text, None where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)


def _objects_of(document: Any) -> list[Any]:
    """The rows of a JSON document: a list, the longest list that an object holds (`{"products": [...]}`), or pandas' columns, each
    an object of row number -> value."""
    if isinstance(document, list):
        return document
    values = list(document.values()) if isinstance(document, dict) else []
    if lists := [value for value in values if isinstance(value, list)]:
        return max(lists, key=len)
    if len(values) == 1 and isinstance(values[0], dict) and any(isinstance(of, list) for of in values[0].values()):
        return _objects_of(values[0])  # `{"data": {"products": [...]}}`
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        if all(map(str.isdecimal, values[0])):
            return [{column: of[row] for column, of in document.items()} for row in values[0]]
        return values
    return [document]


def _filled(line: str) -> int:
    """How many cells of a line of CSV hold something."""
    return sum(bool(cell.strip(' "\r\n')) for cell in re.split(r"[,;\t|]", line))


def _wide(first: bytes) -> str:
    """The encoding of two or four bytes a letter that a file's first four bytes show, or ""."""
    if first in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    places = "".join("0" if byte == 0 else "x" for byte in first)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(places, "")


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


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of Arrow holds bytes, in lists and structures too (which are read as JSON)."""
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _cells(column: pa.Array) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Arrow does not check UTF-8: decode here, so that bad bytes cost a row and not the file
        raw = column.cast(pa.large_binary()).to_pylist()
        return ["" if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    return [_text(cell) for cell in column.to_pylist()]


def plain(column: str) -> str:
    """A column's name without case, punctuation and a language at its end: `name(en-gb)`, `Name-en_US`."""
    column = re.sub(r"(?<=\w)[\s(\[:_.-]+[a-z]{2}[-_][A-Za-z]{2}[)\]]?$", "", column)
    return re.sub(r"[\W_]", "", column).casefold()


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _text(cell: Any) -> str:
    """A JSON, Parquet or Excel value as text: nothing for null and NaN, whole numbers without a point."""
    if isinstance(cell, datetime.datetime | datetime.date):
        return cell.isoformat()
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, bool | dict | list) else str(cell)
