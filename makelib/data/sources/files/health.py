"""The health report: what came in, what was lost, and what a person should look at before training."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from makelib.data.catalog import Catalog
from makelib.runtime import UserError


def health_report(catalog: Catalog) -> str:
    """The import's health report as Markdown. Raises `UserError` for a catalogue that was not imported."""
    path = catalog.folder / "health.json"
    if not path.is_file():
        raise UserError(f"{catalog.folder} has no health.json: it was not made by `python -m makelib data import`.")
    health = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# Health of {catalog.name}", "", *(f"- {note}" for note in catalog.info["notes"]), ""]
    lines += ["| table | rows read | kept | dropped | left out |", "| --- | ---: | ---: | ---: | ---: |"]
    accounts = {table: health[table] for table in ("products", "queries", "interactions") if table in health}
    for table, account in accounts.items():
        lines.append(
            "| ".join([f"| {table} "] + [f"{account[k]:,} " for k in ("read", "kept", "dropped", "left_out")]) + "|"
        )
    reasons = [(table, reason, n) for table, account in accounts.items() for reason, n in account["reasons"].items()]
    reasons += [("images", reason, count) for reason, count in health["images"]["dropped"].items()]
    lines += (
        ["", "| in quarantine | why | how many |", "| --- | --- | ---: |"]
        if reasons
        else ["", "Nothing in quarantine."]
    )
    lines += [f"| {table} | {reason} | {count:,} |" for table, reason, count in reasons]
    lines += ["", "| what | value |", "| --- | --- |"]
    for section in ("images", "titles", "duplicates", "labels", "hidden", "generated"):
        for key, value in health[section].items():
            if (section, key) != ("images", "dropped") and value not in ({}, []):
                lines.append(f"| {section}: {key.replace('_', ' ')} | {_readable(value)} |")
    return "\n".join(lines) + "\n"


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def title_health(titles: list[str]) -> dict[str, Any]:
    return {
        "missing": sum(not title.strip() for title in titles),
        "mean_words": round(float(np.mean([len(title.split()) for title in titles])), 1),
        "longest_characters": max(map(len, titles)),
        "languages_by_script": dict(Counter(map(_script, titles)).most_common()),
    }


def _script(title: str) -> str:
    """The script of most letters, by the first word of their Unicode names: Latin, Cjk, Hiragana, Arabic, …"""
    if title.isascii():
        return "Latin" if any(map(str.isalpha, title)) else "none"
    letters = Counter(unicodedata.name(letter, "other").split()[0] for letter in title[:200] if letter.isalpha())
    return letters.most_common(1)[0][0].capitalize() if letters else "none"


def duplicate_health(titles: list[str], digests: list[bytes | None], groups: np.ndarray) -> dict[str, int]:
    titled = pd.Series([" ".join(title.split()).casefold() or None for title in titles], dtype=object).dropna()
    return {
        "products_that_share_a_title": int(titled.duplicated(keep=False).sum()),
        "products_that_share_pixels": int(pd.Series(digests, dtype=object).dropna().duplicated(keep=False).sum()),
        "groups": int(groups.max()) + 1,
        "largest_group": int(np.bincount(groups).max()),
    }
