"""Rankings that stand beside the trained arms (BM25, readers, pretrained encoders): scored once, and kept in the run's folder.

A line's folder `<run>/lines/<key>/` holds `per_query.parquet`, as an arm's does, and `line.json` (name, seed, what it cost).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from makelib.runtime import atomic_folder

#: parameters, of these learned here, operations to encode a product, seconds of scoring and training
COSTS = ("parameters", "learned", "megaflops_per_product", "seconds")


def kept(
    run: Path, key: str, name: str, seed: int | None, make: Callable[[], tuple[pd.DataFrame, dict[str, float]]]
) -> pd.DataFrame:
    """Per-query scores of a line, made by `make` (scores, and some of `COSTS`) where `key` is not kept yet.

    `seed` None: it depends on none. Of a name and seed the line of the latest key counts, see `lines_of`.
    """
    folder = run / "lines" / key
    if not (folder / "line.json").is_file():
        scores, costs = make()
        with atomic_folder(folder) as draft:
            scores.to_parquet(draft / "per_query.parquet", index=False)
            note = {"name": name, "seed": seed, **dict.fromkeys(COSTS, 0.0), **costs}
            (draft / "line.json").write_text(json.dumps(note, indent=2), encoding="utf-8")
    return pd.read_parquet(folder / "per_query.parquet")


def lines_of(run: Path) -> dict[str, dict[int | None, Path]]:
    """The lines that a run keeps: name -> seed (None: of every seed) -> folder, the latest of each, in the order of their making."""
    notes = sorted((run / "lines").glob("*/line.json"), key=lambda note: note.stat().st_mtime)
    found: dict[str, dict[int | None, Path]] = {}
    for note in notes:
        told = note_of(note.parent)
        found.setdefault(told["name"], {})[told["seed"]] = note.parent
    return found


def note_of(folder: Path) -> dict[str, Any]:
    """What a line's folder says of it: `name, seed` and `COSTS`."""
    return json.loads((folder / "line.json").read_text(encoding="utf-8"))
