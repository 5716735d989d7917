"""The health report: what came in, what was lost, and what a person should look at before training."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from makelib.data.catalog import Catalog
from makelib.data.sources.files.options import ImportOptions
from makelib.runtime import UserError


def health_report(catalog: Catalog) -> str:
    """The import's health report as Markdown. Raises `UserError` for a catalogue that was not imported."""
    path = catalog.folder / "health.json"
    if not path.is_file():
        raise UserError(f"{catalog.folder} has no health.json: it was not made by `python -m makelib data import`.")
    health = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# Health of {catalog.name}", "", *(f"- {note}" for note in catalog.info["notes"]), ""]
    lines += [f"- {notice}" for notice in health.get("notices", ())] + [""] * bool(health.get("notices"))
    lines += [
        "| table | rows read | kept | dropped | left out | merged |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    accounts = {table: health[table] for table in ("products", "queries", "interactions") if table in health}
    for table, account in accounts.items():
        lines.append(
            "| ".join(
                [f"| {table} "] + [f"{account.get(k, 0):,} " for k in ("read", "kept", "dropped", "left_out", "merged")]
            )
            + "|"
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


def lost(health: dict[str, Any]) -> dict[str, float]:
    """Share of each table's rows and of the photographs named that could not be kept."""
    shares: dict[str, float] = {
        table: health[table]["dropped"] / max(1, health[table]["read"])
        for table in ("products", "queries", "interactions")
        if table in health
    }
    images = health["images"]
    return {**shares, "photographs": sum(images["dropped"].values()) / max(1, images["named"])}


#: what a person can do about the reason for which photographs or rows were lost
REMEDIES = {
    "is an address": "They are addresses: run again with `--fetch` to fetch them.",
    "does not exist": "Put them under images/, or name the column that holds them: `--map products.image=<column>`.",
    "leaves the folder": "Copy them into the folder, under images/, and write their paths relative to it.",
    "is not valid CSV": "Export again with every cell in quotes, and quotes within it doubled.",
    "is not valid": "State the encoding, such as `--encoding cp1252`.",
    "has a wrong number of cells": "Export again with every cell in quotes.",
    "names an unknown product": "Its ids differ from those of the products: `--map interactions.product_id=<column>`.",
    "names an unknown query": "Its ids differ from those of the queries: `--map interactions.query_id=<column>`.",
    "has a label that": "Say what its words mean: `grades: {<word>: <0 to 1>}` in catalogue.yaml.",
    "has an unknown split": "Call the splits train, validation and test.",
    "is a HEIC photograph": "Convert them to JPEG, by `mogrify -format jpg *.heic` or the like.",
    "is the photograph itself": "Write the photographs as files under images/ and their names into the column.",
    "repeats an id": "Choose the column that is unique: `--map products.product_id=<column>`.",
}


def warnings_of(health: dict[str, Any], options: ImportOptions) -> list[str]:
    """What was lost in number, in words, with the remedy: a sentence per table whose lost share is above `warn_share`."""
    found = []
    for what, share in health["lost"].items():
        if share <= options.warn_share:
            continue
        reasons = health["images"]["dropped"] if what == "photographs" else health[what]["reasons"]
        total = health["images"]["named"] if what == "photographs" else health[what]["read"]
        reason, count = max(reasons.items(), key=lambda pair: pair[1])
        remedy = next((text for start, text in REMEDIES.items() if reason.startswith(start)), "See quarantine.csv.")
        named = what if what == "photographs" else f"rows of {what}"
        found.append(f"LOST: {sum(reasons.values()):,} of {total:,} {named}; {count:,} because each {reason}. {remedy}")
    return found


def unfetched(health: dict[str, Any]) -> list[str]:
    """A line that photographs are addresses, however few, and which flag takes them, unless a warning says so already."""
    count = sum(n for reason, n in health["images"]["dropped"].items() if reason.startswith("is an address"))
    if not count or any("--fetch" in warning for warning in health["warnings"]):
        return []
    return [
        f"{count:,} of {health['images']['named']:,} photographs are addresses: run again with `--fetch` to fetch them."
    ]


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
