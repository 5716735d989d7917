"""The index page of a run and the words and numbers on it."""

from __future__ import annotations

import base64
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import pandas as pd
import yaml

from makelib import settings as settings_module
from makelib.workbook.ablations import html as draw
from makelib.workbook.reports.offline import TEMPLATES
from makelib.workbook.reports.verdict import STEPS, bounds, p_text, points, step

#: metrics that the index page shows, as many of them as the results hold
HEADLINE = ("Rel@10", "HitRate@100", "Recall@100", "nDCG@10")
#: what the index page calls the studies, in its order; others follow under their own name
TITLES = {
    "modal_adaptation": "Modal Adaptation",
    "keyword_enhancement": "Keyword Enhancement",
    "make": "The whole against its parts",
    "online_simulation": "A simulated shop",
}
#: the two figures of the paper's abstract; whether points or per cent is not stated there
PAPER = "MAKE's abstract reports relevance +1.88 % and recall hit rate +4.59 % for Modal Adaptation"


@dataclass
class Notebook:
    """One notebook of a run: where it is, what it needs, how it ended."""

    source: Path
    title: str
    needs: list[str]
    status: Status = "skipped"
    seconds: float = 0.0
    error: str = ""
    html: str | None = None

    @property
    def name(self) -> str:
        return self.source.stem


def index_page(summary: dict[str, Any], out: Path, notebooks: dict[str, Notebook]) -> str:
    """The page that lists a run, as HTML that asks for nothing outside itself."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "points": points, "duration": duration, "bounds": bounds, "p": p_text}
    base = settings_module.to_dict(settings_module.preset(summary["preset"]))
    return environment.get_template("index.html.j2").render(
        summary=summary,
        style=(TEMPLATES / "report" / "report.css").read_text(encoding="utf-8"),
        paper=PAPER,
        studies=headline(summary["results"]),
        titles=TITLES,
        notebooks=[notebooks[entry["name"]] for entry in summary["notebooks"]],
        worth=worth(summary["results"], summary["settings"]["evaluation"]["alpha"]),
        tables=[f"tables/{file.name}" for file in sorted((out / "tables").glob("*.csv"))],
        figures=[
            (
                file.stem.replace("_", " "),
                base64.b64encode(file.read_bytes()).decode(),
                f"figures/{file.stem}.svg" if file.with_suffix(".svg").is_file() else "",
            )
            for file in sorted((out / "figures").glob("*.png"))
        ],
        changed=changed_leaves(base, summary["settings"]),
        settings=yaml.safe_dump(summary["settings"], sort_keys=False, allow_unicode=True),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def worth(rows: list[dict[str, Any]], alpha: float) -> str:
    """The figure of the first screen; nothing where nothing was compared."""
    steps = [(name, row) for name in STEPS if (row := step(rows, name))]
    return draw.worth(steps, alpha) if steps else ""


def headline(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `summary.json` that concern all queries, one entry per study: variants by metric, and comparisons.

    Returns dicts of `study`, `metrics`, `queries`, `variants` (name and one row or None per metric) and two lists of
    rows on the first two metrics: `planned` comparisons (with `p_value_holm`) and `further` ones.
    """
    table = pd.DataFrame(rows, columns=["study", "variant", "metric", "segment", "reference", "difference"])
    table = table[table["segment"] == "all"]
    studies = []
    for study, part in table.groupby("study", sort=False):
        metrics = [metric for metric in HEADLINE if metric in set(part["metric"])] or list(part["metric"].unique())[
            : len(HEADLINE)
        ]
        first = {(rows[row]["variant"], rows[row]["metric"]): rows[row] for row in reversed(part.index)}
        compared = part[part["metric"].isin(metrics[:2]) & part["reference"].notna() & part["difference"].notna()]
        compared = [rows[row] for row in compared.index]
        studies.append(
            {
                "study": study,
                "metrics": metrics,
                "queries": max((row.get("queries") or 0 for row in first.values()), default=0),
                "variants": [
                    (name, [first.get((name, metric)) for metric in metrics]) for name in part["variant"].unique()
                ],
                "planned": [row for row in compared if row.get("p_value_holm") is not None],
                "further": [row for row in compared if row.get("p_value_holm") is None],
            }
        )
    order = list(TITLES)
    return sorted(studies, key=lambda one: order.index(one["study"]) if one["study"] in order else len(order))


def changed_leaves(before: dict, after: dict, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves of two trees that differ: name, before, after; None where one has no such leaf."""
    changed = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_leaves(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append((f"{prefix}{key}", old, new))
    return changed


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def duration(seconds: float) -> str:
    seconds = round(seconds)
    return (
        f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02}"
    )


Status = Literal["ok", "failed", "stopped", "skipped"]
