"""Intervals, tests and the result rows that `summary.json` keeps: what may be claimed from per-query scores.

Interval and test come from one model. The score of a query, or the difference of two arms on it, is a mean plus the run's
own shift (one training comes out a little better than the next), plus the intent's, plus what is particular to both:
seeds and intents are crossed random effects, so a claim holds for fresh trainings *and* fresh queries.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scipy.stats

from makelib import settings as settings_module
from makelib.runtime import UserError

#: differences within this many are of no account: the margin of the equivalence test (1 point), fixed before any arm ran
MARGIN = 0.01
#: with this chance a true difference of `smallest_difference` would have been called significant
POWER = 0.8


class Estimate(NamedTuple):
    """A mean over seeds and queries, any shape `...`, with its standard error and degrees of freedom."""

    per_seed: np.ndarray  #: (..., S)
    error: np.ndarray  #: (...)
    df: np.ndarray  #: (...)
    error_per_seed: np.ndarray  #: (..., S), of queries alone, given the seed
    df_per_seed: int

    @property
    def mean(self) -> np.ndarray:
        return self.per_seed.mean(axis=-1)

    def interval(self, alpha: float) -> np.ndarray:
        """Bounds (2, ...) of the two-sided t interval."""
        half = scipy.stats.t.isf(alpha / 2, self.df) * self.error
        return np.stack([self.mean - half, self.mean + half])

    @property
    def p_value(self) -> np.ndarray:
        """Two-sided: how often a mean so far from 0 would come without an effect; it agrees with `interval`."""
        return _two_sided(self.mean, self.error, self.df)

    @property
    def p_value_per_seed(self) -> np.ndarray:
        """(..., S): the same, of queries alone, given the seed; they show whether the seeds agree."""
        return _two_sided(self.per_seed, self.error_per_seed, self.df_per_seed)

    @property
    def p_equivalence(self) -> np.ndarray:
        """Two one-sided tests (Schuirmann, 1987) against a difference of `MARGIN` or more, either way: the larger p."""
        return _upper_tail(MARGIN - np.abs(self.mean), self.error, self.df)

    def smallest_difference(self, alpha: float) -> np.ndarray:
        """The smallest true difference that a test at alpha, with this error, would see with chance `POWER`."""
        quantiles = scipy.stats.t.isf(alpha / 2, self.df) + scipy.stats.t.isf(1 - POWER, self.df)
        return quantiles * self.error


def estimate(scores: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Estimate of the mean of scores (..., S, Q), clusters (Q,) codes of the intents from 0 on, at least two.

    The error's square is the sum of two variances of the mean: over seeds, divided by S; and over intents, whose queries
    come along together, as a ratio estimator (the number of queries varies). Both hold what is particular to a seed *and*
    an intent, so it is taken off once, but never so that less than either is left. Degrees of freedom are Satterthwaite's
    (1946). With one seed, or arms that do not vary with it (BM25), only intents are left, and the claim is about queries.
    """
    *_, S, Q = scores.shape
    member = sp.csr_matrix((np.ones(Q), (clusters, np.arange(Q))))  # (C, Q)
    size, C = np.asarray(member.sum(axis=1)).ravel(), member.shape[0]
    per_seed = scores.mean(axis=-1)
    off = (scores - per_seed[..., None]).reshape(-1, Q) @ member.T  # what an intent adds to its seed's sum
    off = off.reshape(*scores.shape[:-1], C) / Q
    assert size.sum() == Q
    by_intent = off.mean(axis=-2)  # (..., C)
    scale = C / (C - 1)
    intents = scale * (by_intent**2).sum(axis=-1)
    seeds = both = np.zeros_like(intents)
    if S > 1:
        seeds = per_seed.var(axis=-1, ddof=1) / S
        both = scale * ((off - by_intent[..., None, :]) ** 2).sum(axis=(-2, -1)) / ((S - 1) * S)
    variance = np.maximum(seeds + intents - both, np.maximum(seeds, intents))
    spread = (seeds**2 + both**2 / (C - 1)) / max(S - 1, 1) + intents**2 / (C - 1)
    df = np.divide(variance**2, spread, out=np.full_like(variance, C - 1), where=spread > 0)
    return Estimate(per_seed, np.sqrt(variance), df, np.sqrt(scale * (off**2).sum(axis=-1)), C - 1)


def _two_sided(mean: np.ndarray, error: np.ndarray, df: np.ndarray | int) -> np.ndarray:
    return np.minimum(1, 2 * _upper_tail(np.abs(mean), error, df))


def _upper_tail(distance: np.ndarray, error: np.ndarray, df: np.ndarray | int) -> np.ndarray:
    """Chance of a t beyond distance / error; of two arms that agree on every query, 1/2 at distance 0."""
    t = np.divide(distance, error, out=np.where(distance == 0, 0.0, np.copysign(np.inf, distance)), where=error > 0)
    return scipy.stats.t.sf(t, df)


class Difference(NamedTuple):
    """What `paired_difference` found of `a - b`."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    p_values_per_seed: list[float]
    smallest_difference: float
    p_equivalence: float


def interval(
    scores: Mapping[int, Sequence[float]] | np.ndarray, clusters: Sequence[Any], alpha: float = 0.05
) -> tuple[float, float, float]:
    """Mean and interval (mean, lo, hi) over seeds and intents, as `estimate` has it.

    Args:
        scores: (S, Q), or seed to (Q,). A query that is NaN in any seed is left out.
        clusters: intent of each query, (Q,).

    Returns NaN bounds where fewer than two intents are left: no interval can be given.
    """
    scores = _stack(scores)
    keep = ~np.isnan(scores).any(axis=0)
    if not keep.any():
        return np.nan, np.nan, np.nan
    codes, names = pd.factorize(np.asarray(clusters, dtype=object)[keep])
    if len(names) < 2:
        return float(scores[:, keep].mean()), np.nan, np.nan
    found = estimate(scores[:, keep], codes)
    low, high = found.interval(alpha)
    return float(found.mean), float(low), float(high)


def paired_difference(
    a: Mapping[int, Sequence[float]] | np.ndarray,
    b: Mapping[int, Sequence[float]] | np.ndarray,
    clusters: Sequence[Any],
    alpha: float = 0.05,
) -> Difference:
    """Mean of `a - b`, (S, Q) each, over seeds and intents, with interval and test from `estimate`.

    Seeds are paired, too: what a seed does to both arms alike (the order of clicks) cancels. NaN where fewer than two
    intents are left.
    """
    differences = _stack(a) - _stack(b)
    keep = ~np.isnan(differences).any(axis=0)
    codes, names = pd.factorize(np.asarray(clusters, dtype=object)[keep])
    if len(names) < 2:
        mean = float(differences[:, keep].mean()) if keep.any() else np.nan
        return Difference(mean, (np.nan, np.nan), np.nan, [np.nan] * len(differences), np.nan, np.nan)
    found = estimate(differences[:, keep], codes)
    low, high = found.interval(alpha)
    return Difference(
        float(found.mean),
        (float(low), float(high)),
        float(found.p_value),
        found.p_value_per_seed.tolist(),
        float(found.smallest_difference(alpha)),
        float(found.p_equivalence),
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p values (1979), in the order given: what keeps a family of claims below alpha."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _stack(scores: Mapping[int, Sequence[float]] | np.ndarray) -> np.ndarray:
    if isinstance(scores, Mapping):
        scores = np.stack([np.asarray(scores[seed], dtype=np.float64) for seed in sorted(scores)])
    return np.atleast_2d(np.asarray(scores, dtype=np.float64))


def gain(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """What `evaluate` returned for one arm, its metrics less those of another: to ask whether a gain differs from a gain."""
    metrics = [column for column in table if "@" in column and not column.endswith("ceiling")]
    return table.assign(**(table[metrics] - reference[metrics]))


class MissingArms(UserError):
    """An arm or a comparison that was asked for did not run; `missing` lists them. Nothing is scored in its place."""

    def __init__(self, missing: Sequence[tuple]) -> None:
        self.missing = list(missing)
        super().__init__(
            f"Not run: {', '.join(' '.join(map(str, arm)) for arm in missing)}. "
            "Run what is missing, or leave it out of the comparison; a missing arm is never scored 0."
        )


def result_rows(
    study: str,
    per_query: Mapping[str, Mapping[int, pd.DataFrame]],
    references: Sequence[tuple[str, str]],
    segments: pd.DataFrame,
    settings: settings_module.Evaluation | None = None,
) -> list[dict[str, Any]]:
    """The rows that `summary.json` keeps for a study: one per variant, metric and segment, and per further reference.

    Args:
        per_query: variant to seed to what `evaluate` returned, for the same queries in the same order throughout.
        references: pairs (variant, reference) to compare; a variant's first pair stands in its first row.
        segments: what `segments` returned for these queries.

    Keys: `study, variant, metric, segment, queries, intents, per_seed` (seeds sorted), `mean, interval, reference,
    difference, difference_percent` (of the reference's mean; None where that is 0), `difference_interval, p_value,
    p_values_per_seed, smallest_difference, p_equivalence`. Values are JSON-able fractions; the last eight are None where
    there is no reference. They are those of `interval` and `paired_difference`. A query that is NaN in one arm leaves all of them; a metric that
    a segment's queries define for fewer than two intents could have no interval and is left out.

    Raises `MissingArms` when a variant lacks a seed that another one has, or a reference did not run at all.
    """
    settings = settings or settings_module.Evaluation()
    variants = list(per_query)
    scores, metrics, first = _gathered(study, per_query, references, segments)
    number_of = {name: number for number, name in enumerate(variants)}
    pairs = [(number_of[variant], number_of[reference]) for variant, reference in references]
    defined = ~np.isnan(scores).any(axis=(0, 2))  # (M, Q)
    intents = pd.factorize(first["intent"])[0]
    judged = {
        name: _judge(scores, pairs, defined & segments[name].to_numpy(), intents, settings.alpha) for name in segments
    }
    table = []
    for (a, variant), segment, (m, metric) in itertools.product(enumerate(variants), segments, enumerate(metrics)):
        found = judged[segment]
        if found.intents[m] < 2:
            continue
        row = {"study": study, "variant": variant, "metric": metric, "segment": segment, **found.level(a, m)}
        own = [p for p, pair in enumerate(pairs) if pair[0] == a]
        compared = [{"reference": references[p][1], **found.comparison(p, *pairs[p], m)} for p in own]
        table += [row | each for each in compared or [dict.fromkeys(COMPARISON)]]
    return table


#: what a row says of a comparison; None where there is no reference
COMPARISON = (
    "reference", "difference", "difference_percent", "difference_interval", "p_value", "p_values_per_seed", "smallest_difference",
    "p_equivalence",
)  # fmt: skip


def _gathered(
    study: str,
    per_query: Mapping[str, Mapping[int, pd.DataFrame]],
    references: Sequence[tuple[str, str]],
    segments: pd.DataFrame,
) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Scores (A, M, S, Q) of all arms, the names of the metrics, and the first table. Raises as `result_rows` says."""
    seeds = sorted({number for runs in per_query.values() for number in runs})
    named = dict.fromkeys([*per_query, *(name for pair in references for name in pair)])
    missing = [
        (name, f"seed {number}") for name in named for number in seeds if per_query.get(name, {}).get(number) is None
    ]
    if missing or not seeds:
        raise MissingArms(missing or [(study,)])
    frames = [[runs[number] for number in seeds] for runs in per_query.values()]
    first = frames[0][0]
    metrics = [column for column in first if "@" in column and not column.endswith("ceiling")]
    ids = first["query_id"].to_numpy()
    if not np.array_equal(ids, segments.index) or not all(
        np.array_equal(ids, frame["query_id"]) for runs in frames for frame in runs
    ):
        raise ValueError(f"{study}: the tables do not hold the same queries in the same order.")
    scores = np.array([[frame[metrics].to_numpy(np.float64) for frame in runs] for runs in frames])  # (A, S, Q, M)
    return np.moveaxis(scores, 3, 1), metrics, first


class _Judged(NamedTuple):
    """One segment: A arms, P pairs, M metrics, S seeds; NaN where a metric has fewer than two intents."""

    queries: np.ndarray  # (M,)
    intents: np.ndarray  # (M,)
    means: np.ndarray  # (A, M, S)
    bounds: np.ndarray  # (2, A + P, M)
    p_values: np.ndarray  # (P, M), as the next two but for the seeds
    smallest: np.ndarray
    p_equivalence: np.ndarray
    p_values_per_seed: np.ndarray  # (P, M, S)

    def level(self, a: int, m: int) -> dict[str, Any]:
        """What a row says of an arm's own level, JSON-able."""
        return {
            "queries": int(self.queries[m]),
            "intents": int(self.intents[m]),
            "per_seed": self.means[a, m].tolist(),
            "mean": float(self.means[a, m].mean()),
            "interval": self.bounds[:, a, m].tolist(),
        }

    def comparison(self, p: int, a: int, b: int, m: int) -> dict[str, Any]:
        """What a row says of pair p, arm a against arm b, JSON-able."""
        mean, base = float(self.means[a, m].mean()), float(self.means[b, m].mean())
        return {
            "difference": mean - base,
            "difference_percent": 100 * (mean - base) / base if base else None,
            "difference_interval": self.bounds[:, len(self.means) + p, m].tolist(),
            "p_value": float(self.p_values[p, m]),
            "p_values_per_seed": self.p_values_per_seed[p, m].tolist(),
            "smallest_difference": float(self.smallest[p, m]),
            "p_equivalence": float(self.p_equivalence[p, m]),
        }


def _judge(
    scores: np.ndarray, pairs: Sequence[tuple[int, int]], keep: np.ndarray, intents: np.ndarray, alpha: float
) -> _Judged:
    """Statistics of scores (A, M, S, Q) over the queries that `keep` (M, Q) and of the differences of pairs of arms.

    Metrics kept for the same queries are computed together.
    """
    A, M, S, _ = scores.shape
    P = len(pairs)
    found = _Judged(
        np.zeros(M, dtype=np.int64),
        np.zeros(M, dtype=np.int64),
        *(np.full(shape, np.nan) for shape in ((A, M, S), (2, A + P, M), (P, M), (P, M), (P, M), (P, M, S))),
    )
    patterns, pattern_of = np.unique(keep, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        chosen = np.flatnonzero(pattern_of == number)
        clusters, names = pd.factorize(intents[pattern])
        found.queries[chosen], found.intents[chosen] = len(clusters), len(names)
        if len(names) < 2:
            continue
        values = scores[:, chosen][..., pattern]
        levels = estimate(values, clusters)
        found.means[:, chosen], found.bounds[:, :A, chosen] = levels.per_seed, levels.interval(alpha)
        if pairs:
            ours, theirs = np.array(pairs).T
            gaps = estimate(values[ours] - values[theirs], clusters)
            found.bounds[:, A:, chosen] = gaps.interval(alpha)
            found.p_values[:, chosen], found.p_equivalence[:, chosen] = gaps.p_value, gaps.p_equivalence
            found.p_values_per_seed[:, chosen] = gaps.p_value_per_seed
            found.smallest[:, chosen] = gaps.smallest_difference(alpha)
    return found


def adjust(rows: list[dict[str, Any]], planned: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Give each row `p_value_holm`, in place: a number for planned comparisons in segment `all`, None for all others.

    Args:
        planned: triples (study, variant, reference), fixed before the results are seen. Per metric they are one family
            (hit rate and relevance answer different questions). Give all of a report in one call: split over several,
            each family is smaller and the correction weaker.

    Returns the planned comparisons that have no row. They count as p = 1: what did not run makes no claim, and never a
    claim of another one easier.
    """
    family = {
        (row["metric"], row["study"], row["variant"], row["reference"]): row for row in rows if row["segment"] == "all"
    }
    for row in rows:
        row["p_value_holm"] = None
    for metric in {key[0] for key in family}:
        chosen = [family.get((metric, *comparison)) for comparison in planned]
        adjusted = holm([1.0 if row is None else row["p_value"] for row in chosen])
        for row, p_value in zip(chosen, adjusted, strict=True):
            if row is not None:
                row["p_value_holm"] = float(p_value)
    ran = {key[1:] for key in family}
    return [comparison for comparison in planned if comparison not in ran]


def significance_table(
    rows: Sequence[Mapping[str, Any]], metrics: str | Sequence[str], segment: str = "all", alpha: float = 0.05
) -> pd.DataFrame:
    """Rows of `result_rows` for a reader: one line per variant, metric and reference, with the verdict spelled out.

    Means in per cent; differences in points and, relative to the reference, in per cent. The verdict takes the
    Holm-adjusted p value where `adjust` gave one. `attrs["legend"]` explains the columns in one sentence.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    lines = []
    for row in rows:
        if row["segment"] != segment or row["metric"] not in metrics:
            continue
        low, high = row["interval"]
        line = {
            "variant": row["variant"],
            "metric": row["metric"],
            "queries": row["queries"],
            "mean": f"{row['mean']:.1%} [{low:.1%}, {high:.1%}]".replace("%", " %"),
            "against": row["reference"] or "–",
            **dict.fromkeys(("points", "relative", "p", "verdict"), "–"),
        }
        if row["reference"] is not None:
            low, high = row["difference_interval"]
            holm_p = row.get("p_value_holm")
            p_value = row["p_value"] if holm_p is None else holm_p
            stars = "*" * sum(p_value < level for level in (0.05, 0.01, 0.001))
            better = "better" if row["difference"] > 0 else "worse"
            percent = row["difference_percent"]
            line |= {
                "points": f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                "relative": "–" if percent is None else f"{percent:+.1f} %",
                "p": ("< 0.001" if p_value < 0.001 else f"{p_value:.3f}") + ("" if holm_p is None else " (Holm)"),
                "verdict": f"{better} {stars}".strip() if p_value < alpha else unclear(row, alpha),
            }
        lines.append((metrics.index(row["metric"]), line))
    table = pd.DataFrame([line for _, line in sorted(lines, key=lambda item: item[0])])
    table.attrs["legend"] = (
        f"Segment {segment!r}. Mean over seeds and queries with its interval; seeds and intents are random effects, in "
        "interval and test alike. Points: difference in percentage points; relative: in per cent of the reference. "
        "* p < 0.05, ** p < 0.01, *** p < 0.001; without (Holm) a p value stands alone, so many of them are exploratory."
    )
    return table


def unclear(row: Mapping[str, Any], alpha: float = 0.05) -> str:
    """What may be said of a difference that is not significant: how large it would have had to be, or that it is nothing."""
    if row["p_equivalence"] < alpha:
        return f"equivalent within ±{100 * MARGIN:g}"
    return f"no significant difference (could have seen ±{100 * row['smallest_difference']:.1f})"
