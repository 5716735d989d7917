"""What changed between two runs: settings, code, catalogue, numbers; and which of the numbers moved by more than noise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import norm

from makelib.runtime import UserError
from makelib.study.statistics import holm
from makelib.workbook.reports.pages import HEADLINE, changed_leaves


@dataclass(frozen=True)
class Diff:
    """Two runs beside one another: `changes` (`what, name, before, after`) and `numbers` (`study, variant, metric, before,
    after, points, from, to, verdict`), and what has to be known to read them."""

    names: tuple[str, str]
    changes: pd.DataFrame
    numbers: pd.DataFrame
    notes: list[str]


def find_report(run: Path | str) -> Path:
    """The folder of a run that has a report; `run` is the folder, or its name under `reports/`. Raises `UserError`."""
    for folder in (Path(run), Path("reports") / run):
        if (folder / "summary.json").is_file():
            return folder
    raise UserError(f"There is no report in {run} or reports/{run}; `python -m makelib reproduce` writes one.")


def read_summary(run: Path | str) -> dict[str, Any]:
    """`summary.json` of a run. Raises `UserError` where there is none, or where it is none."""
    file = find_report(run) / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict) or not {"run", "seeds", "results", "settings", "provenance"} <= set(summary):
        raise UserError(f"{file} is not the summary of a run; write the report anew.")
    return summary


def diff(a: Path | str, b: Path | str, alpha: float = 0.05) -> Diff:
    """Compare two runs by their summaries; models are not needed.

    A number moved by *more than noise* when its change is significant given both intervals (corrected by Holm over all numbers
    compared). The runs are taken as independent: where both answered the same queries, that is on the careful side.
    """
    before, after = read_summary(a), read_summary(b)
    made = before["provenance"], after["provenance"]
    changes = [("setting", *line) for line in changed_leaves(before["settings"], after["settings"])]
    for name in ("git_commit", "dirty", "python", "device", "processor", "threads"):
        changes += [("code", name, *pair)] if (pair := tuple(one.get(name) for one in made))[0] != pair[1] else []
    changes += [("package", *line) for line in changed_leaves(made[0].get("packages", {}), made[1].get("packages", {}))]
    changes += [("catalogue", *line) for line in changed_leaves(made[0]["catalogue"], made[1]["catalogue"])]
    changes += [("seeds", "seeds", before["seeds"], after["seeds"])] if before["seeds"] != after["seeds"] else []
    numbers = _numbers(before["results"], after["results"], alpha)
    notes = []
    if made[0]["catalogue"].get("fingerprint") != made[1]["catalogue"].get("fingerprint"):
        notes.append("The catalogues differ: numbers below compare two worlds, not two methods.")
    if any(one.get("dirty") for one in made):
        notes.append("Code that was not committed took part: the commit does not say everything.")
    if numbers.attrs["only"]:
        notes.append(f"In one run only: {', '.join(numbers.attrs['only'])}.")
    return Diff(
        (before["run"], after["run"]),
        pd.DataFrame(changes, columns=["what", "name", "before", "after"]),
        numbers,
        notes,
    )


def _numbers(before: list[dict], after: list[dict], alpha: float) -> pd.DataFrame:
    """Means over all queries, of every variant that stands in both."""
    tables = []
    for rows in (before, after):
        chosen = (
            row for row in rows if row["segment"] == "all" and row["metric"] in HEADLINE and row.get("mean") is not None
        )
        tables.append({(row["study"], row["variant"], row["metric"]): row for row in chosen})
    width = 2 * norm.isf(alpha / 2)
    lines = []
    for key in tables[0].keys() & tables[1].keys():
        old, new = (table[key] for table in tables)
        errors = [
            (row["interval"][1] - row["interval"][0]) / width if _known(row["interval"]) else math.nan
            for row in (old, new)
        ]
        gap, error = new["mean"] - old["mean"], math.hypot(*errors)
        p_value = 1.0 if gap == 0 else 2 * norm.sf(abs(gap) / error) if error > 0 else math.nan
        lines.append([*key, old["mean"], new["mean"], gap, gap - width / 2 * error, gap + width / 2 * error, p_value])
    lines.sort(key=lambda line: (line[0], line[2], line[1]))
    tested = [line for line in lines if math.isfinite(line[-1])]
    for line, p_value in zip(tested, holm([line[-1] for line in tested]), strict=True):
        line[-1] = p_value
    said = [
        "the same"
        if line[5] == 0
        else "no interval"
        if not math.isfinite(line[-1])
        else "more than noise"
        if line[-1] < alpha
        else "noise"
        for line in lines
    ]
    table = pd.DataFrame(
        [[*line[:3], *(100 * value for value in line[3:8])] for line in lines],
        columns=["study", "variant", "metric", "before", "after", "points", "from", "to"],
    ).assign(verdict=said)
    table.attrs["only"] = sorted({" ".join(key[:2]) for key in tables[0].keys() ^ tables[1].keys()})
    return table


def _known(interval: list[float | None] | None) -> bool:
    return bool(interval) and all(bound is not None and math.isfinite(bound) for bound in interval)
