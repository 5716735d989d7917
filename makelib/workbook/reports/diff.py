"""What changed between two runs: settings, code, catalogue, numbers; and which of the numbers moved by more than noise."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from makelib.runtime import UserError
from makelib.settings import from_dict, read_yaml
from makelib.study.lines import lines_of
from makelib.study.statistics import Difference, holm, paired_difference
from makelib.study.studies import STUDIES
from makelib.workbook.ablations.state import parts_of
from makelib.workbook.reports.pages import HEADLINE, changed_leaves


@dataclass(frozen=True)
class Diff:
    """Two runs beside one another: `changes` (`what, name, before, after`) and `numbers` (`study, variant, metric, before,
    after, points, from, to, p (Holm), judged, verdict`), and what has to be known to read them."""

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
    """Compare two runs by their summaries and by what each arm scored; models are not needed.

    A number moved by *more than noise* when its change is significant, corrected by Holm over all numbers compared. Where both runs
    kept scores of the same queries of the same catalogue, with seeds in common, the change is judged `by query`, paired, by the model of
    `makelib.study.statistics`; elsewhere from both intervals, as if the runs were independent.
    """
    before, after = read_summary(a), read_summary(b)
    made = before["provenance"], after["provenance"]
    changes = [("setting", *line) for line in changed_leaves(before["settings"], after["settings"])]
    for name in ("git_commit", "dirty", "python", "device", "processor", "threads"):
        changes += [("code", name, *pair)] if (pair := tuple(one.get(name) for one in made))[0] != pair[1] else []
    changes += [("package", *line) for line in changed_leaves(made[0].get("packages", {}), made[1].get("packages", {}))]
    changes += [("catalogue", *line) for line in changed_leaves(made[0]["catalogue"], made[1]["catalogue"])]
    changes += [("seeds", "seeds", before["seeds"], after["seeds"])] if before["seeds"] != after["seeds"] else []
    one_world = made[0]["catalogue"].get("fingerprint") == made[1]["catalogue"].get("fingerprint")
    scores = [_Scores(find_report(run), summary) for run, summary in ((a, before), (b, after))] if one_world else None
    numbers = _numbers(before["results"], after["results"], scores, alpha)
    notes = []
    if not one_world:
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


class _Scores:
    """What the arms and lines of a run scored, query by query: found by what a study changes in the run's own settings."""

    def __init__(self, run: Path, summary: dict[str, Any]) -> None:
        self.base, self.lines = from_dict(summary["settings"], str(run)), lines_of(run)
        self.seeds: list[int] = summary["seeds"]
        self.arms: dict[tuple, dict[int, Path]] = {}
        for note in sorted(run.glob("models/*/arm.json"), key=lambda path: path.stat().st_mtime):
            with contextlib.suppress(UserError, OSError):  # settings of another version of this code
                key = parts_of(read_yaml(note.parent / "settings.yaml"))
                self.arms.setdefault(key, {})[json.loads(note.read_text(encoding="utf-8"))["seed"]] = note.parent

    def of(self, study: str, variant: str) -> dict[int, pd.DataFrame]:
        """Seed -> scores of a variant; empty where they were not kept."""
        if variant in self.lines:
            known = self.lines[variant]
            folders = dict.fromkeys(self.seeds, known[None]) if None in known else known
        elif variant in STUDIES.get(study, {}):
            folders = self.arms.get(parts_of(self.base.replace(**STUDIES[study][variant])), {})
        else:
            folders = {}
        files = {seed: folder / "per_query.parquet" for seed, folder in folders.items() if seed in self.seeds}
        return {seed: pd.read_parquet(file) for seed, file in files.items() if file.is_file()}


def _by_query(scores: list[_Scores], key: tuple[str, str, str], alpha: float) -> Difference | None:
    """The change of one number, after less before, paired by query and seed; None where the scores do not fit together."""
    study, variant, metric = key
    old, new = (each.of(study, variant) for each in scores)
    common = sorted(old.keys() & new.keys())
    frames = [found[seed] for seed in common for found in (old, new)]
    if not frames or any(
        metric not in frame or not frame["query_id"].equals(frames[0]["query_id"]) for frame in frames
    ):
        return None
    ours, theirs = ({seed: found[seed][metric].to_numpy(float) for seed in common} for found in (new, old))
    return paired_difference(ours, theirs, frames[0]["intent"], alpha)


def _numbers(before: list[dict], after: list[dict], scores: list[_Scores] | None, alpha: float) -> pd.DataFrame:
    """Means over all queries, of every variant that stands in both."""
    tables = []
    for rows in (before, after):
        chosen = (
            row for row in rows if row["segment"] == "all" and row["metric"] in HEADLINE and row.get("mean") is not None
        )
        tables.append({(row["study"], row["variant"], row["metric"]): row for row in chosen})
    lines = [
        _line(key, tables[0][key], tables[1][key], scores and _by_query(scores, key, alpha), alpha)
        for key in sorted(tables[0].keys() & tables[1].keys(), key=lambda key: (key[0], key[2], key[1]))
    ]
    columns = ["study", "variant", "metric", "before", "after", "points", "from", "to", "p (Holm)", "judged"]
    table = pd.DataFrame(lines, columns=columns)
    tested = table["p (Holm)"].notna()
    table.loc[tested, "p (Holm)"] = holm(table.loc[tested, "p (Holm)"])
    table["verdict"] = np.select(
        [table["points"] == 0, ~tested, table["p (Holm)"] < alpha],
        ["the same", "no interval", "more than noise"],
        "noise",
    )
    table.attrs["only"] = sorted({" ".join(key[:2]) for key in tables[0].keys() ^ tables[1].keys()})
    return table


def _line(key: tuple[str, str, str], old: dict, new: dict, paired: Difference | None, alpha: float) -> list:
    """One number of both runs, in per cent and points, with its p value, not yet corrected."""
    if paired is not None and math.isfinite(paired.p_value):
        gap, (low, high), p_value = paired.difference, paired.interval, paired.p_value
    else:
        width = 2 * norm.isf(alpha / 2)
        errors = [
            (row["interval"][1] - row["interval"][0]) / width if _known(row["interval"]) else math.nan
            for row in (old, new)
        ]
        gap, error = new["mean"] - old["mean"], math.hypot(*errors)
        low, high = gap - width / 2 * error, gap + width / 2 * error
        p_value = 1.0 if gap == 0 else 2 * norm.sf(abs(gap) / error) if error > 0 else math.nan
    judged = "from intervals" if paired is None else "by query"
    return [*key, *(100 * value for value in (old["mean"], new["mean"], gap, low, high)), p_value, judged]


def _known(interval: list[float | None] | None) -> bool:
    return bool(interval) and all(bound is not None and math.isfinite(bound) for bound in interval)
