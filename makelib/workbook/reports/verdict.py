"""What result rows say, in words: of one comparison, of a run, of the paper's claims. Every number comes out of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from makelib.study.statistics import holm


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


# -- a run ------------------------------------------------------------------------------------------------------------

#: what a verdict is about, and the comparisons that speak of it: study, variant, reference; the first that ran counts
STEPS = {
    "images": (
        ("make", "adaptive", "title"),
        ("modal_adaptation", "adaptive", "title"),
        ("modal_adaptation", "mean", "title"),
    ),
    "modal adaptation": (("modal_adaptation", "adaptive", "mean"),),
    "keyword enhancement": (("make", "full", "adaptive"), ("keyword_enhancement", "both", "none")),
    "all of it": (("make", "full", "title"),),
}
#: what costs are counted in, and how it is said
COSTS = {
    "parameters": "the parameters",
    "megaflops_per_product": "the operations per product",
    "seconds": "the training time",
}


def find(
    rows: Sequence[Mapping[str, Any]], pair: tuple[str, str, str], metric: str, segment: str = "all"
) -> Mapping[str, Any] | None:
    """The row of a comparison (study, variant, reference); None where it did not run."""
    wanted = (*pair, metric, segment)
    keys = ("study", "variant", "reference", "metric", "segment")
    found = (row for row in rows if tuple(row.get(key) for key in keys) == wanted)
    return next((row for row in found if row.get("difference") is not None), None)


def step(rows: Sequence[Mapping[str, Any]], name: str, metric: str = "Rel@10") -> Mapping[str, Any] | None:
    """The row that speaks of one of `STEPS`."""
    return next((row for pair in STEPS[name] if (row := find(rows, pair, metric))), None)


def verdict(
    rows: Sequence[Mapping[str, Any]],
    catalogue: str,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    alpha: float = 0.05,
    metric: str = "Rel@10",
) -> list[str]:
    """A run in three sentences: what images are worth, what MAKE's two parts add, what it costs and whom it hurts.

    Args:
        rows: those of `summary.json`. costs: variant -> `parameters, megaflops_per_product, seconds`.
    """
    images = step(rows, "images", metric)
    parts = [
        _adds(f"{name} adds", step(rows, key, metric), alpha)
        for name, key in (("Modal Adaptation", "modal adaptation"), ("Keyword Enhancement", "keyword enhancement"))
    ]
    return [
        _images(images, catalogue, alpha),
        f"{'; '.join(parts)}.",
        f"{_price(costs or {})}; {_hurts(rows, alpha, metric)}.",
    ]


def _images(row: Mapping[str, Any] | None, catalogue: str, alpha: float) -> str:
    if row is None:
        return f"On {catalogue}, this run did not compare search with and without images."
    said = {
        "better": "looking at the images makes search better",
        "worse": "looking at the images makes search worse",
        "unclear": "looking at the images makes no difference that counts"
        if alike(row, alpha)
        else "this run cannot tell whether looking at the images makes search better",
        "not tested": "looking at the images was not tested",
    }[judgement(row, alpha)]
    return f"On {catalogue}, {said}: {_size(row, alpha)}, {row['variant']} against {row['reference']}."


def _adds(subject: str, row: Mapping[str, Any] | None, alpha: float) -> str:
    if row is None:
        return f"{subject.removesuffix(' adds')} was compared with nothing else"
    said = {
        "better": subject,
        "worse": f"{subject.removesuffix(' adds')} takes away",
        "unclear": f"{subject} nothing that counts:"
        if alike(row, alpha)
        else f"{subject} nothing that this run could tell from chance:",
        "not tested": f"{subject}, untested,",
    }[judgement(row, alpha)]
    return f"{said} {_size(row, alpha)}, {row['variant']} against {row['reference']}"


def _size(row: Mapping[str, Any], alpha: float) -> str:
    seen = row.get("smallest_difference") if judgement(row, alpha) == "unclear" else None
    missed = f"; it could have seen ±{100 * seen:.1f}" if seen and math.isfinite(seen) else ""
    return f"{points(row['difference'])} {bounds(row.get('difference_interval'))} points of {row['metric']} ({p_text(p_of(row))}{missed})"


def alike(row: Mapping[str, Any], alpha: float) -> bool:
    """Whether two arms were shown to be equivalent, which is more than no significant difference."""
    p_value = row.get("p_equivalence")
    return p_value is not None and math.isfinite(p_value) and p_value < alpha


def _price(costs: Mapping[str, Mapping[str, float]]) -> str:
    whole = next((name for name in ("full", "adaptive") if name in costs), None)
    if whole is None or "title" not in costs:
        return "What it costs was not measured"
    times = [
        f"{costs[whole][key] / costs['title'][key]:.1f} times {name}"
        for key, name in COSTS.items()
        if costs["title"].get(key)
    ]
    return f"{'All of it' if whole == 'full' else 'It'} costs {', '.join(times[:-1])} and {times[-1]} of titles alone"


def hurt(rows: Sequence[Mapping[str, Any]], alpha: float, metric: str = "Rel@10") -> list[Mapping[str, Any]]:
    """Segments in which looking at images (with all that belongs to it) is worse than titles alone, p corrected over segments."""
    whole = step(rows, "all of it", metric) or step(rows, "images", metric)
    if whole is None:
        return []
    pair = (whole["study"], whole["variant"], whole["reference"])
    segments = [
        row
        for name in dict.fromkeys(row["segment"] for row in rows)
        if name != "all" and (row := find(rows, pair, metric, name)) and p_of(row) is not None
    ]
    corrected = holm([row["p_value"] for row in segments])
    return [
        {**row, "p_value_holm": p}
        for row, p in zip(segments, corrected, strict=True)
        if row["difference"] < 0 and p < alpha
    ]


def _hurts(rows: Sequence[Mapping[str, Any]], alpha: float, metric: str) -> str:
    found = hurt(rows, alpha, metric)
    if found:
        named = ", ".join(
            f"{row['segment']} ({points(row['difference'])} {bounds(row['difference_interval'])})" for row in found
        )
        return f"it hurts these queries: {named}"
    if all(row["segment"] == "all" for row in rows):
        return "whom it hurts was not looked at"
    return "no kind of query is significantly hurt"


# -- the paper's claims -----------------------------------------------------------------------------------------------

#: claim, the paper's figure (relative or in points: not stated there), the comparison that speaks of it, metric, segment
CLAIMS = (
    ("Looking at images beside titles makes search better", "the premise, no figure", ("make", "full", "title"), "Rel@10", "all"),
    ("Modal Adaptation finds more relevant products", "+1.88 %", ("modal_adaptation", "adaptive", "joint"), "Rel@10", "all"),
    ("Modal Adaptation finds the clicked product more often", "+4.59 %", ("modal_adaptation", "adaptive", "joint"), "HitRate@100", "all"),
    ("Weights per product beat one weight for all", "implied, no figure", ("modal_adaptation", "adaptive", "global"), "Rel@10", "all"),
    ("Keyword Enhancement adds to Modal Adaptation", "a gain, no figure", ("make", "full", "adaptive"), "Rel@10", "all"),
    ("Online, results become more relevant", "+2.20 %", ("online_simulation", "full", "title"), "relevance@10", "all"),
    ("New users gain more than active ones", "more, no figure", ("online_simulation", "full", "title"), "relevance@10", "new − active"),
    ("Inactive users gain more than active ones", "more, no figure", ("online_simulation", "full", "title"), "relevance@10", "inactive − active"),
)  # fmt: skip


def claims(rows: Sequence[Mapping[str, Any]], alpha: float = 0.05) -> list[dict[str, Any]]:
    """The paper's claims, each beside what this run found: `claim, paper, study, comparison, ours, interval, p_value, verdict, change`.

    `ours` is a difference in fractions. `verdict` is `supported` (significant, in the claimed direction), `not supported`
    (anything else that was tested) or `cannot be tested here`; `change` says what would change it.
    """
    table = []
    for claim, paper, pair, metric, segment in CLAIMS:
        row = find(rows, pair, metric, segment)
        said = "not tested" if row is None else judgement(row, alpha)
        table.append(
            {
                "claim": claim,
                "paper": paper,
                "study": pair[0],
                "comparison": f"{pair[1]} − {pair[2]}, {metric}" + ("" if segment == "all" else f", {segment}"),
                "ours": row["difference"] if row else None,
                "interval": row.get("difference_interval") if row else None,
                "p_value": p_of(row) if row else None,
                "verdict": {"better": "supported", "not tested": "cannot be tested here"}.get(said, "not supported"),
                "change": _change(row, said, pair, alpha),
            }
        )
    return table


def _change(row: Mapping[str, Any] | None, said: str, pair: tuple[str, str, str], alpha: float) -> str:
    """What would change a verdict."""
    if row is None and pair[0] == "online_simulation":
        return "notebook 07, on a catalogue that knows which products are relevant; in truth, real shoppers"
    if row is None:
        return f"the study {pair[0]} with {pair[1]} and {pair[2]}"
    if said == "not tested":
        return "more queries"
    if said == "unclear" and alike(row, alpha):
        return "nothing that this world holds: shown to be alike"
    if said == "unclear":
        seen = row.get("smallest_difference")
        least = f" (it could have seen ±{100 * seen:.1f} points)" if seen and math.isfinite(seen) else ""
        return f"more seeds and more queries{least}"
    return "another catalogue" if said == "better" else "another catalogue, or a better training of the method"
