"""What becomes of rows: each is kept, dropped with a line in the quarantine, merged or left out; and which file a table is in."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from makelib.runtime import UserError

SUFFIXES = ("csv", "tsv", "txt", "xlsx", "parquet", "json", "jsonl", "ndjson", "xml")
#: text of such a suffix is unpacked as it is read
PACKED = (".gz", ".bz2", ".xz")
#: what ends as names of image files do
IMAGE_SUFFIXES = "jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|heic|heif|svg"
IMAGE_NAME = re.compile(rf"\.({IMAGE_SUFFIXES})\W*([?#].*)?$", re.IGNORECASE)
#: what looks like an e-mail address or a telephone number is never printed; ten-digit runs and codes of 8, 12 to 14 digits
#: (EAN, UPC) without blanks or a leading + or 00 are article numbers
PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|(?<![\w.])(?:\+|00)\d(?:[\s().\/-]?\d){6,14}(?!\w)"
    r"|(?<![\w.])\(?0\d{1,4}\)?[\s.\/-]+\d{2,4}(?:[\s.\/-]?\d{2,5}){1,3}(?![\w.])"
    r"|(?<![\w.])\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}(?![\w.])"
)


def masked(text: str) -> str:
    """The text with `[personal]` where it looks like an e-mail address or a telephone number."""
    return PERSONAL.sub("[personal]", text) if "@" in text or any(map(str.isdigit, text)) else text


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
        why = f"{reason} ({detail})" if detail else reason
        self.note(table, row, why, product_id=product_id, file=file, action=action)
        self.counts[table, reason, action] += 1
        if len(self._first) < 3:
            self._first.append(f"{table} row {row} {_printable(masked(why))}")

    def note(self, table: str, row: int, why: str, *, product_id: str = "", file: str = "", action: str) -> None:
        """A line of what was not lost, but not read as it was written either."""
        if self._writer:
            cells = (_printable(product_id), _printable(file), _printable(masked(why)), action)
            self._writer.writerow((table, row, *cells))

    def reasons(self, table: str, action: str = "row dropped") -> dict[str, int]:
        return {why: count for (name, why, done), count in self.counts.items() if (name, done) == (table, action)}

    def account(self, table: str, read: int, kept: int, left_out: int, merged: int = 0) -> dict[str, Any]:
        """Rows in = kept + dropped (broken, listed) + merged (told more of a kept thing) + left out (whole, but not wanted)."""
        reasons = self.reasons(table)
        account = {
            "read": read,
            "kept": kept,
            "dropped": sum(reasons.values()),
            "left_out": left_out,
            "reasons": reasons,
        }
        return account | ({"merged": merged} if merged else {})

    def __str__(self) -> str:
        total = self.counts.total()
        return f"{total} broken rows or images: {'; '.join(self._first)}{'; …' if total > 3 else ''}."


def _printable(text: str) -> str:
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def kind_of(path: Path) -> str:
    """What kind of table a file is, by its suffix, one of `SUFFIXES`, or ""; text may be packed (`.csv.gz`)."""
    unpacked = path.with_suffix("") if path.suffix.casefold() in PACKED else path
    kind = unpacked.suffix[1:].casefold()
    return kind if kind in SUFFIXES and (unpacked == path or kind not in ("xlsx", "parquet")) else ""


def _stem(path: Path) -> str:
    """A table file's name without its suffixes, in lower case."""
    return (path.with_suffix("") if path.suffix.casefold() in PACKED else path).stem.casefold()


def find(folder: Path, table: str) -> Path | None:
    """The file of a table in a folder, or None; a lone table file of any name is the products. Raises `UserError` when there
    are two of a name."""
    tables = sorted(path for path in Path(folder).iterdir() if kind_of(path) and path.is_file())
    tables = [path for path in tables if not path.name.startswith((".", "~$"))]
    found = [path for path in tables if _stem(path) == table]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(path.name for path in found)}; keep one of them.")
    if found or table != "products":
        return found[0] if found else None
    others = [path for path in tables if not re.match(r"(queries|interactions|topics|qrels)\b", _stem(path))]
    # notes and settings lie beside a table, too
    others = [path for path in others if kind_of(path) not in ("txt", "json", "xml")] or others
    if len(others) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(path.name for path in others)}; call that of the products products{others[0].suffix}."
        )
    return others[0] if others else None
