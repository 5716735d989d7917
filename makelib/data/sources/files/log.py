"""Logs as shops keep them: counts of clicks, impressions, carts and purchases by query and product, perhaps with position, time
and session, become clicks to learn from, grades to judge by, and a split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

#: columns that say a table is a log of what happened, weakest event first
EVENTS = ("impressions", "clicks", "carts", "purchases")
#: a pair counts at most so often in training, so that one bestseller is not the whole log
MOST_REPEATS = 20
#: a position seen less often than this share of the first would weigh clicks by more than ten
LEAST_PROPENSITY = 0.1


def propensities(
    query: Sequence[str],
    product: Sequence[str],
    position: Sequence[float],
    shown: Sequence[float],
    clicked: Sequence[float],
) -> dict[int, float]:
    """How likely each position is looked at, relative to the first one there is: position -> (0, 1].

    The position-based click model P(click) = looked(position) · attractive(pair), fitted as Joachims et al. (2017, arXiv
    1608.04468) use it, by alternating maximum likelihood over the pairs that were shown at several positions: elsewhere nothing
    tells the position from the product. Empty where no pair was. Arguments: arrays of equal length, a row of the log each.
    """
    pair = pd.factorize(pd.MultiIndex.from_arrays([query, product]))[0]
    frame = pd.DataFrame({"pair": pair, "at": position, "shown": shown, "clicked": clicked})
    frame = frame[frame["at"] > 0].groupby(["pair", "at"], as_index=False).sum()
    frame = frame[frame.groupby("pair")["at"].transform("size") > 1]
    if frame.empty or not frame["clicked"].sum():
        return {}
    at, places = pd.factorize(frame["at"], sort=True)
    pair = pd.factorize(frame["pair"])[0]
    shown, clicked = frame["shown"].to_numpy(float), frame["clicked"].to_numpy(float)
    looked = np.ones(len(places))
    for _ in range(50):
        attractive = np.bincount(pair, clicked) / np.maximum(np.bincount(pair, shown * looked[at]), 1e-9)
        looked = (np.bincount(at, clicked) + 0.5) / (np.bincount(at, shown * attractive[pair]) + 0.5)
        looked /= looked[0]
    return {int(place): float(min(1.0, value)) for place, value in zip(places, looked, strict=True)}


def grades(frame: pd.DataFrame, scale: dict[str, float]) -> np.ndarray:
    """The grade of each row: that of the strongest event that happened, 0 where a product was only shown; float (n,)."""
    grade = np.zeros(len(frame))
    for event in EVENTS[1:]:
        if event in frame:
            grade = np.where(frame[event] > 0, np.maximum(grade, scale[event]), grade)
    return grade


def times(column: pd.Series) -> pd.Series:
    """Timestamps as people keep them: ISO texts, or seconds or milliseconds since 1970; NaT where none can be read."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().mean() > 0.5:
        unit = "ms" if numbers.median() > 1e11 else "s"
        return pd.to_datetime(numbers, unit=unit, errors="coerce", utc=True)
    return pd.to_datetime(column, errors="coerce", utc=True, format="mixed")


def periods(when: pd.Series) -> np.ndarray:
    """`train` for the first 70 % of the rows in time, `validation` for the next 10 %, `test` for the rest."""
    first, second = when.quantile(0.7), when.quantile(0.8)
    return np.where(when <= first, "train", np.where(when <= second, "validation", "test"))


def repeats(clicks: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """How many clicks a row counts for: its clicks over the propensity of its position, 1 to `MOST_REPEATS`, int64 (n,)."""
    weighted = clicks / np.maximum(propensity, LEAST_PROPENSITY)
    return np.clip(np.round(weighted), 1, MOST_REPEATS).astype(np.int64)


def number(text: str) -> float | None:
    """A finite number of 0 or more, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
