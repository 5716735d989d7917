"""What result rows say, in words: of one comparison, of a run, of the paper's claims. Every number comes out of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def p_of(row: Mapping[str, Any]) -> float | None:
    """The p value to go by: the corrected one where there is one; None where nothing was tested."""
    found = row.get("p_value_holm") if row.get("p_value_holm") is not None else row.get("p_value")
    return None if found is None or not math.isfinite(found) else found


def judgement(row: Mapping[str, Any], alpha: float = 0.05) -> str:
    """`better`, `worse`, `unclear` or `not tested`: the only four things that are said of a comparison."""
    p_value = p_of(row)
    if p_value is None or row.get("difference") is None:
        return "not tested"
    if p_value >= alpha:
        return "unclear"
    return "better" if row["difference"] > 0 else "worse"


def points(value: float | None) -> str:
    """A difference in points, signed; “–” where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:+.1f}".replace("-", "−")


def bounds(interval: tuple[float, float] | None) -> str:
    """An interval in points, `[+1.0, +2.0]`."""
    return f"[{points(interval[0])}, {points(interval[1])}]" if interval else "[–]"


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return "not tested"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def sentence(row: Mapping[str, Any], alpha: float = 0.05) -> str:
    """One comparison in one sentence, in points of its metric."""
    said = {
        "better": "is better than",
        "worse": "is worse than",
        "unclear": "is not significantly different from",
        "not tested": "was not tested against",
    }[judgement(row, alpha)]
    seen = row.get("smallest_difference") if judgement(row, alpha) == "unclear" else None
    missed = f"; it could have seen ±{100 * seen:.1f}" if seen and math.isfinite(seen) else ""
    size = f"{points(row['difference'])} {bounds(row['difference_interval'])} points of {row['metric']}"
    return f"{row['variant']} {said} {row['reference']}: {size}, {p_text(p_of(row))}{missed}."
