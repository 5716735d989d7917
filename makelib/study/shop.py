"""A simulated shop: what the paper measured online, on a catalogue that knows which products are relevant.

Shoppers ask the test queries. Their page is filled by two channels: the retrieval of an arm, and behaviour (what others clicked
who clicked what this shopper clicked before), which takes every second place as far as it finds anything. Three groups of shoppers
differ in their history only: new (none), inactive (one click) and active (eight). They look from the top down, click by relevance,
and leave by chance or with a purchase (a cascade: Craswell et al., 2008; Guo et al., 2009).

It shows what a better ranking would do to shoppers *such as these*. Prices, habits, learning and competition are not in it.
Q queries, K places, S sessions, N products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scipy.stats

from makelib.data.catalog import Catalog
from makelib.runtime import UserError
from makelib.settings import Evaluation
from makelib.study.experiment import Experiment
from makelib.study.metrics import FULL, relevance_in_parts
from makelib.study.statistics import result_rows

#: clicks that a shopper of each group brings along
HISTORY = {"new": 0, "inactive": 1, "active": 8}
#: places of a page
PLACES = 10
STUDY = "online_simulation"


@dataclass(frozen=True)
class Shopper:
    """How shoppers behave: chances, fixed before any arm ran."""

    #: a click on what is not relevant at all, and on what is fully relevant
    click: tuple[float, float] = (0.05, 0.70)
    #: a purchase after a click, likewise
    buy: tuple[float, float] = (0.01, 0.30)
    #: going on to the next place without a click, and after one
    go_on: tuple[float, float] = (0.90, 0.70)


def cannot(catalog: Catalog) -> str:
    """Why shoppers cannot be simulated on a catalogue; "" where they can."""
    wishes = catalog.queries["constraints"].map(bool).any()
    if wishes or (catalog.interactions["kind"] == "judgment").any():
        return ""
    return (
        f"{catalog.name} knows clicks only, no relevance: whether a simulated shopper would click a product that nobody was shown "
        "cannot be said. A log of real sessions, or judged queries, would do."
    )


def simulate(
    experiment: Experiment,
    variants: Sequence[str] = ("full", "title"),
    study: str = "make",
    sessions: int = 40,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Two arms in the shop; the first is compared with the second.

    Returns the result rows of the study `online_simulation`, also written to the run's results: metrics `relevance@10` (mean
    relevance of the page), `clicks@10` and `purchases@10` (per session), `exclusive@10` (products of the page that neither
    the other arm nor behaviour brings), `wins@10` (share of interleaved sessions that an arm's half of a team draft won);
    segments by group of shoppers and, for `relevance@10`, how much more a group gains than active shoppers (`new − active`).
    And the A/B test: two disjoint crowds, as a shop would see it.

    Raises `UserError` where the catalogue knows no relevance, or an arm did not run.
    """
    if why := cannot(experiment.catalog):
        raise UserError(why)
    rng = np.random.default_rng(seed)
    queries, intents, catalog = experiment.test_rows, _intents(experiment), experiment.catalog
    after = _categories_asked(catalog, queries)
    behaviour = {group: _behaviour(catalog, after, clicks, rng) for group, clicks in HISTORY.items()}
    found = {
        (variant, number): _hits(experiment, study, variant, number)
        for variant in variants
        for number in experiment.settings.seeds
    }
    chances = rng.random((sessions, len(queries), PLACES, 3), dtype=np.float32)  # the same shoppers for every arm
    frames: dict[str, dict[int, pd.DataFrame]] = {variant: {} for variant in variants}
    crowds: dict[tuple[str, str], list[np.ndarray]] = {}
    for number in experiment.settings.seeds:
        arms = [found[variant, number] for variant in variants]
        wins = interleave(arms, catalog, queries, sessions // 2, rng)
        for variant, hits, other, won in zip(variants, arms, reversed(arms), wins, strict=True):
            parts = []
            for group, channel in behaviour.items():
                scores, bought = _met(hits, other, channel, (catalog, queries), chances, rng)
                crowds.setdefault((variant, group), []).append(bought)
                ids = [f"{query} {group}" for query in range(len(queries))]
                parts.append(pd.DataFrame({"query_id": ids, "intent": intents, **scores, "wins@10": won}))
            frames[variant][number] = pd.concat(parts, ignore_index=True)
    ids = pd.Index(frames[variants[0]][experiment.settings.seeds[0]]["query_id"], name="query_id")
    group = np.repeat(list(HISTORY), len(queries))
    segments = pd.DataFrame({"all": True, **{name: group == name for name in HISTORY}}, index=ids)
    judged = experiment.settings.evaluation
    rows = result_rows(STUDY, frames, [(variants[0], variants[1])], segments, judged)
    rows += _contrasts(frames, tuple(variants), judged)
    experiment.write(STUDY, rows)
    return rows, ab_test(crowds, variants, judged.alpha)


def _met(
    hits: np.ndarray,
    other: np.ndarray,
    channel: np.ndarray,
    asked: tuple[Catalog, np.ndarray],
    chances: np.ndarray,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What one group of shoppers meets at an arm: scores of each query (Q,), and the purchases of a crowd of its own (S · Q,)."""
    page, own = pages(hits, channel)
    shown = relevance_of(*asked, page)
    clicked, bought = browse(shown, chances)
    crowd = browse(shown, rng.random(chances.shape, dtype=np.float32))[1]
    elsewhere = np.concatenate([other[:, :PLACES], channel], axis=1)
    alone = own & ~(page[:, :, None] == elsewhere[:, None, :]).any(axis=2)
    scores = {
        "relevance@10": shown.mean(axis=1),
        "clicks@10": clicked.sum(axis=2).mean(axis=0),
        "purchases@10": bought.sum(axis=2).mean(axis=0),
        "exclusive@10": alone.sum(axis=1).astype(float),
    }
    return scores, crowd.sum(axis=2).ravel()


def browse(relevance: np.ndarray, chances: np.ndarray, shopper: Shopper | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and purchases, bool (S, Q, K), on pages of `relevance` (Q, K), given `chances` (S, Q, K, 3), uniform in [0, 1)."""
    shopper = shopper or Shopper()
    click, buy = (low + (high - low) * relevance for low, high in (shopper.click, shopper.buy))
    clicked, bought = np.zeros(chances.shape[:3], bool), np.zeros(chances.shape[:3], bool)
    looks = np.ones(chances.shape[:2], bool)
    for place in range(relevance.shape[1]):
        draw = chances[:, :, place]
        clicked[:, :, place] = looks & (draw[..., 0] < click[:, place])
        bought[:, :, place] = clicked[:, :, place] & (draw[..., 1] < buy[:, place])
        stays = draw[..., 2] < np.where(clicked[:, :, place], shopper.go_on[1], shopper.go_on[0])
        looks &= stays & ~bought[:, :, place]
    return clicked, bought


def pages(retrieved: np.ndarray, behaviour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pages (Q, PLACES) of product rows, -1 where nothing is left, and which places the retrieval filled, bool.

    Behaviour (Q, B; -1: none) takes every second place as far as it goes; a product stands once.
    """
    page = np.full((len(retrieved), PLACES), -1, np.int64)
    own = np.zeros(page.shape, bool)
    for query, (first, second) in enumerate(zip(retrieved.tolist(), behaviour.tolist(), strict=True)):
        taken: set[int] = {-1}
        queues = (iter(first), iter(second))
        for place in range(PLACES):
            for turn in (place % 2, 1 - place % 2):
                product = next((row for row in queues[turn] if row not in taken), -1)
                if product >= 0:
                    break
            page[query, place], own[query, place] = product, product >= 0 and turn == 0
            taken.add(product)
    return page, own


def interleave(
    arms: Sequence[np.ndarray], catalog: Catalog, queries: np.ndarray, sessions: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Team draft (Radlinski et al., 2008): the share of sessions, (Q,) each, in which an arm's team got more clicks."""
    wins = np.zeros((2, len(queries)))
    lists = [arm[:, : 2 * PLACES].tolist() for arm in arms]
    for _ in range(sessions):
        page = np.full((len(queries), PLACES), -1, np.int64)
        team = np.zeros(page.shape, np.int64)
        flips = rng.integers(0, 2, (len(queries), PLACES // 2))
        for query in range(len(queries)):
            queues, taken = [iter(each[query]) for each in lists], {-1}
            for place in range(PLACES):
                side = int(flips[query, place // 2]) ^ (place % 2)
                product = next((row for row in queues[side] if row not in taken), -1)
                page[query, place], team[query, place] = product, side
                taken.add(product)
        shown = relevance_of(catalog, queries, page)
        clicked = browse(shown, rng.random((1, *page.shape, 3), dtype=np.float32))[0][0]
        credit = [(clicked & (team == side)).sum(axis=1) for side in (0, 1)]
        wins[0] += credit[0] > credit[1]
        wins[1] += credit[1] > credit[0]
    return wins[0] / sessions, wins[1] / sessions


def relevance_of(catalog: Catalog, queries: np.ndarray, page: np.ndarray) -> np.ndarray:
    """Relevance of pages (Q, K) of product rows, float32; 0 where a place (-1) holds nothing."""
    return catalog.relevance(queries, np.maximum(page, 0)) * (page >= 0)


def ab_test(
    crowds: Mapping[tuple[str, str], Sequence[np.ndarray]], variants: Sequence[str], alpha: float
) -> pd.DataFrame:
    """Purchases per session of two disjoint crowds, by group: what an A/B test of this many sessions would report."""
    lines = []
    for group in (*HISTORY, "all"):
        a, b = (
            np.concatenate(
                [np.concatenate(crowds[variant, name]) for name in HISTORY if group in (name, "all")]
            ).astype(float)
            for variant in variants
        )
        test = scipy.stats.ttest_ind(a, b, equal_var=False)
        bounds = test.confidence_interval(1 - alpha)
        lines.append(
            {
                "shoppers": group, "sessions per arm": len(a), variants[0]: a.mean(), variants[1]: b.mean(),
                "difference": a.mean() - b.mean(), "from": bounds.low, "to": bounds.high, "p": test.pvalue,
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def _contrasts(
    frames: Mapping[str, Mapping[int, pd.DataFrame]], variants: tuple[str, str], judged: Evaluation
) -> list[dict[str, Any]]:
    """How much more relevance a group gains from the first arm than active shoppers do."""
    size = len(next(iter(next(iter(frames.values())).values()))) // len(HISTORY)
    part = {name: slice(i * size, (i + 1) * size) for i, name in enumerate(HISTORY)}
    rows = []
    for group in ("new", "inactive"):
        gaps = {
            variant: {
                number: frame[part[group]].assign(
                    **{
                        "relevance@10": frame["relevance@10"][part[group]].to_numpy()
                        - frame["relevance@10"][part["active"]].to_numpy()
                    }
                )[["query_id", "intent", "relevance@10"]]
                for number, frame in by_seed.items()
            }
            for variant, by_seed in frames.items()
        }
        ids = next(iter(next(iter(gaps.values())).values()))["query_id"]
        segment = pd.DataFrame({f"{group} − active": True}, index=pd.Index(ids, name="query_id"))
        rows += result_rows(STUDY, gaps, [variants], segment, judged)
    return rows


def _categories_asked(catalog: Catalog, queries: np.ndarray) -> np.ndarray:
    """The category (by `_category_of`) that most of what a query is after has, int64 (Q,)."""
    category = _category_of(catalog)
    after = []
    for _, part in relevance_in_parts(catalog, queries):
        for values in part:
            wanted = category[values >= min(FULL, values.max())]
            after.append(np.bincount(wanted[wanted >= 0], minlength=1).argmax())
    return np.array(after, np.int64)


def _category_of(catalog: Catalog) -> np.ndarray:
    return pd.factorize(catalog.products["category"])[0]


def _behaviour(catalog: Catalog, after: np.ndarray, clicks: int, rng: np.random.Generator) -> np.ndarray:
    """What the behaviour channel shows (Q, PLACES // 2): products that others clicked together with a shopper's `clicks` earlier
    ones, which were in the category that the query is `after` (Q,); -1 where it finds nothing."""
    shown = np.full((len(after), PLACES // 2), -1, np.int64)
    asked, products = catalog.clicks("train")
    if not clicks or not len(products):
        return shown
    table = sp.csr_matrix((np.ones(len(asked)), (asked, products)), shape=(len(catalog.queries), len(catalog)))
    together = (table.T @ table).tocsr()  # (N, N)
    popularity = np.bincount(products, minlength=len(catalog)).astype(float)
    clicked = np.flatnonzero(popularity)
    of_category = pd.Series(clicked).groupby(_category_of(catalog)[clicked]).indices
    for query, category in enumerate(after.tolist()):
        if category not in of_category:
            continue
        among = clicked[of_category[category]]
        chosen = rng.choice(among, clicks, p=popularity[among] / popularity[among].sum())
        beside = together[chosen]
        others, place = np.unique(beside.indices, return_inverse=True)
        scores = np.bincount(place, weights=beside.data)
        scores[np.isin(others, chosen)] = 0  # it was bought, or was not wanted
        best = np.argsort(-scores, kind="stable")[: shown.shape[1]]
        shown[query, : len(best)] = np.where(scores[best] > 0, others[best], -1)
    return shown


def _hits(experiment: Experiment, study: str, variant: str, seed: int) -> np.ndarray:
    """What an arm retrieved for the test queries, (Q, depth) product rows."""
    arm = experiment.arm(study, variant, seed)
    if not arm.done:
        raise UserError(f"{arm.label} of {study} did not run; run notebook 04 first.")
    with np.load(arm.folder / "hits.npz") as kept:
        return kept["rows"]


def _intents(experiment: Experiment) -> np.ndarray:
    return experiment.catalog.queries["intent"].to_numpy()[experiment.test_rows]
