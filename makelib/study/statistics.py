"""Intervals, tests and the result rows that `summary.json` keeps: what may be claimed from per-query scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from makelib import settings as settings_module
from makelib.runtime import UserError


class Difference(NamedTuple):
    """What `paired_difference` found: `a - b`, its interval, and p values over the mean of the seeds and per seed."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    p_values_per_seed: list[float]


def interval(
    scores: Mapping[int, Sequence[float]] | np.ndarray,
    clusters: Sequence[Any],
    resamples: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> tuple[float, float, float]:
    """Mean and percentile interval (mean, lo, hi) by a bootstrap over seeds and, crossed with them, intents.

    Every resample draws S seeds and C intents with replacement; all queries of an intent come along, and they are the
    same for every seed, because every seed answered the same queries. With few seeds the interval understates how much
    seeds differ; with one it speaks of queries only.

    Args:
        scores: (S, Q), or seed to (Q,). A query that is NaN in any seed is left out.
        clusters: intent of each query, (Q,).

    Returns NaN bounds where fewer than two intents are left: no interval can be given.
    """
    scores = _stack(scores)
    keep = ~np.isnan(scores).any(axis=0)
    if not keep.any():
        return np.nan, np.nan, np.nan
    codes = pd.factorize(np.asarray(clusters, dtype=object)[keep])[0]
    scores = scores[None, :, keep, None]
    low, high = _bootstrap(scores, codes, resamples, seed, alpha)
    return float(scores.mean()), float(low[0, 0]), float(high[0, 0])


def paired_difference(
    a: Mapping[int, Sequence[float]] | np.ndarray,
    b: Mapping[int, Sequence[float]] | np.ndarray,
    clusters: Sequence[Any],
    resamples: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Difference:
    """Mean of `a - b`, (S, Q) each, its interval as in `interval`, and two-sided p values of a paired randomisation.

    If the arms were alike, their labels could be swapped within any intent: the test flips the sign of each intent's
    summed difference (averaged over seeds first) at random, or all 2^C ways where that is no more than `resamples`, and
    asks how often the mean lies as far from 0 as the one observed. The p value speaks of queries, given these seeds;
    those per seed show whether the seeds agree.
    """
    differences = _stack(a) - _stack(b)
    keep = ~np.isnan(differences).any(axis=0)
    if not keep.any():
        return Difference(np.nan, (np.nan, np.nan), np.nan, [np.nan] * len(differences))
    codes = pd.factorize(np.asarray(clusters, dtype=object)[keep])[0]
    differences = differences[None, :, keep, None]
    low, high = _bootstrap(differences, codes, resamples, seed, alpha)
    p_values = _sign_flips(differences, codes, resamples, seed)[0, :, 0]
    return Difference(
        float(differences.mean()), (float(low[0, 0]), float(high[0, 0])), float(p_values[-1]), p_values[:-1].tolist()
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


def _cluster_sums(scores: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(A, S, Q, M) summed over the queries of each cluster: (C, A, S, M)."""
    arms, seeds, queries, metrics = scores.shape
    member = sp.csr_matrix((np.ones(queries), (clusters, np.arange(queries))))  # (C, Q)
    return (member @ np.moveaxis(scores, 2, 0).reshape(queries, arms * seeds * metrics)).reshape(
        member.shape[0], arms, seeds, metrics
    )


def _bootstrap(
    scores: np.ndarray, clusters: np.ndarray, resamples: int, seed: int, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, (A, M) each, of the mean of scores (A, S, Q, M). A resample is a row of counts; means are a product."""
    arms, seeds, _, metrics = scores.shape
    sizes = np.bincount(clusters).astype(np.float64)  # (C,)
    if len(sizes) < 2:
        return np.full((arms, metrics), np.nan), np.full((arms, metrics), np.nan)
    sums = _cluster_sums(scores, clusters).reshape(len(sizes), -1)  # (C, A * S * M)
    rng = np.random.default_rng([seed, 0])
    means = np.empty((resamples, arms, metrics))
    step = max(1, 2**22 // max(len(sizes), sums.shape[1]))
    for start in range(0, resamples, step):
        drawn = min(step, resamples - start)
        picks = rng.integers(len(sizes), size=(drawn, len(sizes))) + len(sizes) * np.arange(drawn)[:, None]
        counts = np.bincount(picks.ravel(), minlength=drawn * len(sizes)).reshape(drawn, -1).astype(np.float64)
        by_seed = (counts @ sums / (counts @ sizes)[:, None]).reshape(drawn, arms, seeds, metrics)
        share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=drawn) / seeds  # (drawn, S)
        means[start : start + drawn] = np.einsum("rasm,rs->ram", by_seed, share)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2], axis=0)
    return low, high


def _sign_flips(differences: np.ndarray, clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """p values (A, S + 1, M) of differences (A, S, Q, M): each seed, then the mean of the seeds."""
    sums = _cluster_sums(differences, clusters)  # (C, A, S, M)
    sums = np.concatenate([sums, sums.mean(axis=2, keepdims=True)], axis=2)
    shape, sums = sums.shape[1:], sums.reshape(len(sums), -1)
    observed = np.abs(sums.sum(axis=0)) - 1e-9 * np.abs(sums).sum(axis=0)  # equal up to rounding counts as equal
    exact = len(sums) < 63 and 2 ** len(sums) <= resamples
    total = 2 ** len(sums) if exact else resamples
    rng = np.random.default_rng([seed, 1])
    as_far = np.zeros(sums.shape[1])
    step = max(1, 2**22 // max(sums.shape))
    for start in range(0, total, step):
        drawn = min(step, total - start)
        if exact:
            flips = (np.arange(start, start + drawn)[:, None] >> np.arange(len(sums))) & 1
        else:
            flips = rng.integers(0, 2, size=(drawn, len(sums)), dtype=np.int8)
        as_far += (np.abs((2.0 * flips - 1) @ sums) >= observed).sum(axis=0)
    p_values = as_far / total if exact else (as_far + 1) / (total + 1)
    return p_values.reshape(shape)


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
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The rows that `summary.json` keeps for a study: one per variant, metric and segment, and per further reference.

    Args:
        per_query: variant to seed to what `evaluate` returned, for the same queries in the same order throughout.
        references: pairs (variant, reference) to compare; a variant's first pair stands in its first row.
        segments: what `segments` returned for these queries.

    Keys: `study, variant, metric, segment, queries, intents, per_seed` (seeds sorted), `mean, interval, reference,
    difference, difference_percent` (of the reference's mean; None where that is 0), `difference_interval, p_value,
    p_values_per_seed`. Values are JSON-able fractions; the last six are None where there is no reference. They
    are those of `interval` and `paired_difference`. A query that is NaN in one arm leaves all of them; a metric that
    a segment's queries define for fewer than two intents could have no interval and is left out.

    Raises `MissingArms` when a variant lacks a seed that another one has, or a reference did not run at all.
    """
    settings = settings or settings_module.Evaluation()
    variants = list(per_query)
    seeds = sorted({number for runs in per_query.values() for number in runs})
    named = dict.fromkeys([*variants, *(name for pair in references for name in pair)])
    missing = [
        (name, f"seed {number}") for name in named for number in seeds if per_query.get(name, {}).get(number) is None
    ]
    if missing or not seeds:
        raise MissingArms(missing or [(study,)])
    first = per_query[variants[0]][seeds[0]]
    metrics = [column for column in first if "@" in column and not column.endswith("ceiling")]
    ids = first["query_id"].to_numpy()
    frames = [[per_query[name][number] for number in seeds] for name in variants]
    if not np.array_equal(ids, segments.index) or not all(
        np.array_equal(ids, frame["query_id"]) for runs in frames for frame in runs
    ):
        raise ValueError(f"{study}: the tables do not hold the same queries in the same order.")
    scores = np.array([[frame[metrics].to_numpy(np.float64) for frame in runs] for runs in frames])  # (A, S, Q, M)
    number_of = {name: number for number, name in enumerate(variants)}
    pairs = [(number_of[variant], number_of[reference]) for variant, reference in references]
    defined = ~np.isnan(scores).any(axis=(0, 1))  # (Q, M)
    intents = pd.factorize(first["intent"])[0]

    table = []
    judged = {
        name: _judge(scores, pairs, defined & segments[[name]].to_numpy(), intents, settings, seed) for name in segments
    }
    for (a, variant), segment, (m, metric) in itertools.product(enumerate(variants), segments, enumerate(metrics)):
        found = judged[segment]
        if found.intents[m] < 2:
            continue
        row = {
            "study": study,
            "variant": variant,
            "metric": metric,
            "segment": segment,
            "queries": int(found.queries[m]),
            "intents": int(found.intents[m]),
            "per_seed": found.means[a, :, m].tolist(),
            "mean": float(found.means[a, :, m].mean()),
            "interval": found.bounds[:, a, m].tolist(),
            **dict.fromkeys(("reference", "difference", "difference_percent", "difference_interval")),
            **dict.fromkeys(("p_value", "p_values_per_seed")),
        }
        own = [p for p, pair in enumerate(pairs) if pair[0] == a]
        for p in own:
            base = float(found.means[pairs[p][1], :, m].mean())
            difference = row["mean"] - base
            table.append(
                row
                | {
                    "reference": references[p][1],
                    "difference": difference,
                    "difference_percent": 100 * difference / base if base else None,
                    "difference_interval": found.bounds[:, len(variants) + p, m].tolist(),
                    "p_value": float(found.p_values[p, -1, m]),
                    "p_values_per_seed": found.p_values[p, :-1, m].tolist(),
                }
            )
        if not own:
            table.append(row)
    return table


class _Judged(NamedTuple):
    """One segment: `means` (A, S, M), `bounds` (2, A + pairs, M), `p_values` (pairs, S + 1, M), counts (M,)."""

    queries: np.ndarray
    intents: np.ndarray
    means: np.ndarray
    bounds: np.ndarray
    p_values: np.ndarray


def _judge(
    scores: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    keep: np.ndarray,
    intents: np.ndarray,
    settings: settings_module.Evaluation,
    seed: int,
) -> _Judged:
    """Statistics of scores (A, S, Q, M) over the queries that `keep` (Q, M) and of the differences of pairs of arms.

    Metrics kept for the same queries share their resamples: a dozen metrics cost little more than one.
    """
    arms, seeds, _, metrics = scores.shape
    found = _Judged(
        np.zeros(metrics, dtype=np.int64),
        np.zeros(metrics, dtype=np.int64),
        np.full((arms, seeds, metrics), np.nan),
        np.full((2, arms + len(pairs), metrics), np.nan),
        np.full((len(pairs), seeds + 1, metrics), np.nan),
    )
    patterns, pattern_of = np.unique(keep, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        chosen = np.flatnonzero(pattern_of == number)
        clusters, names = pd.factorize(intents[pattern])
        found.queries[chosen], found.intents[chosen] = len(clusters), len(names)
        if len(names) < 2:
            continue
        values = scores[:, :, pattern][..., chosen]
        gaps = np.array([values[a] - values[b] for a, b in pairs]).reshape(-1, *values.shape[1:])
        found.means[..., chosen] = values.mean(axis=2)
        found.bounds[..., chosen] = _bootstrap(
            np.concatenate([values, gaps]), clusters, settings.resamples, seed, settings.alpha
        )
        found.p_values[..., chosen] = _sign_flips(gaps, clusters, settings.resamples, seed)
    return found


def adjust(rows: list[dict[str, Any]], planned: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Give each row `p_value_holm`, in place: a number for planned comparisons in segment `all`, None for all others.

    Args:
        planned: triples (study, variant, reference), fixed before the results are seen. Per metric they are one family
            (hit rate and relevance answer different questions). Give all of a report in one call: split over several,
            each family is smaller and the correction weaker.

    Returns the rows. Raises `MissingArms` when a planned comparison has no row.
    """
    family = {
        (row["metric"], row["study"], row["variant"], row["reference"]): row for row in rows if row["segment"] == "all"
    }
    if missing := sorted(set(planned) - {key[1:] for key in family}):
        raise MissingArms(missing)
    for row in rows:
        row["p_value_holm"] = None
    for metric in {key[0] for key in family}:
        chosen = [family[metric, *pair] for pair in planned if (metric, *pair) in family]
        for row, p_value in zip(chosen, holm([row["p_value"] for row in chosen]), strict=True):
            row["p_value_holm"] = float(p_value)
    return rows


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
                "verdict": f"{better} {stars}".strip() if p_value < alpha else "no significant difference",
            }
        lines.append((metrics.index(row["metric"]), line))
    table = pd.DataFrame([line for _, line in sorted(lines, key=lambda item: item[0])])
    table.attrs["legend"] = (
        f"Segment {segment!r}. Mean over seeds and queries with its interval (bootstrap over seeds and intents). "
        "Points: difference in percentage points; relative: in per cent of the reference. p: paired randomisation by "
        "intent; * p < 0.05, ** p < 0.01, *** p < 0.001."
    )
    return table
