"""Queries and clicks of a folder: those that people typed, or those generated from label columns."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from makelib.data.catalog import KINDS, SPLITS
from makelib.data.sources.files import labels, log
from makelib.data.sources.files.judged import Ids, Lines, grade, split_of, tables_of
from makelib.data.sources.files.log import number
from makelib.data.sources.files.options import INTERACTION_COLUMNS, QUERY_COLUMNS, ImportOptions
from makelib.data.sources.files.products import ProductRows
from makelib.data.sources.files.readers import Table
from makelib.data.sources.files.rows import Quarantine, Row, masked
from makelib.runtime import UserError, progress


def generated(
    rows: ProductRows, frame: pd.DataFrame, groups: np.ndarray, options: ImportOptions, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, dict[str, Any]]:
    columns = list(options.query_columns) or labels.asked_columns(frame, rows.category)
    asked = labels.ask(
        frame, rows.titles, groups, columns=columns, category=rows.category, queries=options.queries,
        clicks=options.clicks, wrong_clicks=options.wrong_clicks, cold=options.cold, seed=options.seed,
    )  # fmt: skip
    if asked.queries.empty:
        raise UserError(
            f"{rows.path}: no query can be generated, for no label value is shared by 2 products to 5 % of them "
            f"(labels: {', '.join(frame) or 'none'}). Add label columns or rows, or bring interactions.csv."
        )
    notes.insert(0, f"GENERATED QUERIES: a program asked for {', '.join(columns)} and clicked; no person did.")
    interactions = asked.interactions.assign(product_id=np.array(rows.ids, dtype=object)[asked.interactions["product"]])
    return asked.queries, interactions, asked.cold, asked.summary


@dataclass
class _Asked:
    """What people asked, while it is read: `queries` id -> (query, split, intent); `found` the good interactions."""

    options: ImportOptions
    quarantine: Quarantine
    queries: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    found: list[tuple] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    masked: int = 0
    counted: list[str] = field(default_factory=list)
    users_told: bool = False
    words: set[str] = field(default_factory=set)

    def read_queries(self, table: Table | Lines, stated: str) -> None:
        mapping = table.mapping("queries", QUERY_COLUMNS, ("query_id", "query"), self.options.columns)
        for row in progress(table.rows(), description="queries", unit="row"):
            self.read["queries"] += 1
            key, query, split, intent = (
                (row.values[mapping[c]] if row.values and c in mapping else "") for c in QUERY_COLUMNS
            )  # fmt: skip
            split = split_of(split) or split.strip() or stated
            if row.values is None:
                self.quarantine.add("queries", row.number, row.reason, row.detail)
            elif not key.strip():
                self.quarantine.add("queries", row.number, "has no id")
            elif key in self.queries:
                self.quarantine.add("queries", row.number, "repeats an id", key)
            elif not query.strip():
                self.quarantine.add("queries", row.number, "has an empty query", key)
            elif split and split not in SPLITS:
                self.quarantine.add("queries", row.number, "has an unknown split", split)
            else:
                self._keep_query(key, query, split, intent)

    def _keep_query(self, key: str, query: str, split: str = "", intent: str = "") -> None:
        shown = masked(query)
        self.masked += shown != query
        self.queries[key] = (shown, split, intent or " ".join(shown.split()).casefold())

    def _grade(self, label: str) -> float | None:
        self.words.add(label.strip().casefold())
        return grade(label, self.options.grades)

    def read_interactions(
        self, table: Table | Lines, stated: str, own_queries: bool, products: Ids, left_out: set[str]
    ) -> None:
        required = ("product_id", "query_id" if own_queries else "query")
        mapping = table.mapping("interactions", INTERACTION_COLUMNS, required, self.options.columns)
        events = [event for event in log.EVENTS if event in mapping and "label" not in mapping]
        self.counted += [event for event in events if event not in self.counted]
        self.users_told |= "user" in mapping
        query_ids, new = Ids(self.queries), {}
        grades = functools.cache(self._grade)
        for row in progress(table.rows(), description="interactions", unit="row"):
            self.read["interactions"] += 1
            cells = {c: (row.values[mapping[c]] if row.values and c in mapping else "") for c in INTERACTION_COLUMNS}
            key, query = query_ids(cells["query_id"]) if own_queries else "", cells["query"]
            product = products(cells["product_id"])
            value = grades(cells["label"]) if "label" in mapping else 1.0
            counts = [number(cells[event] or "0") for event in events]

            def drop(reason: str, detail: str = "", *, row: Row = row, product: str = product) -> None:
                self.quarantine.add("interactions", row.number, reason, detail, product_id=product)

            if row.values is None:
                drop(row.reason, row.detail)
            elif key not in self.queries if own_queries else not query.strip():
                drop("names an unknown query", key)
            elif product not in products and product not in left_out:
                drop("names an unknown product")
            elif value is None:
                drop("has a label that is neither a number nor a known word", cells["label"])
            elif None in counts:
                drop("has a count that is no number of 0 or more")
            elif cells["kind"] and cells["kind"] not in KINDS:
                drop("has an unknown kind", cells["kind"])
            elif product not in products:
                self.outside += 1
            else:
                if not own_queries:
                    key = new.setdefault(query, f"q{len(new):06d}")
                    if key not in self.queries:
                        self._keep_query(key, query)
                elif stated and not self.queries[key][1]:
                    self.queries[key] = (self.queries[key][0], stated, self.queries[key][2])
                user = cells["user"] or cells["session"]
                self.found.append(
                    (key, product, value, cells["kind"], cells["position"], cells["timestamp"], user, *counts)
                )


def asked_by_people(
    folder: Path, kept: set[str], left_out: set[str], options: ImportOptions, quarantine: Quarantine, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any], dict[str, str]]:
    """The folder's own queries and interactions, what became of the rows, and `askers.csv` where users are told (name -> text; see
    `known_users`). Without a queries table the interactions bring the query strings."""
    query_tables, interaction_tables = tables_of(folder, options.encoding, options.mend_text)
    if not interaction_tables:
        raise UserError(
            f"{folder} has queries but no interactions.csv (query_id, product_id, label) that answers them."
        )
    asked, products = _Asked(options, quarantine), Ids(kept)
    for table, split in query_tables:
        asked.read_queries(table, split)
    for table, split in interaction_tables:
        asked.read_interactions(table, split, bool(query_tables), products, left_out)
    known = asked.words | {*log.EVENTS[1:]}
    if unknown := [word for word in options.grades if word.casefold() not in known]:
        raise UserError(
            f"grades: {unknown[0]!r} is no label of the interactions and none of {', '.join(log.EVENTS[1:])}; correct or remove it."
        )
    notes += [notice for table, _ in (*query_tables, *interaction_tables) for notice in table.notices]
    if not asked.found:
        raise UserError(f"{interaction_tables[0][0].path}: no interaction could be kept. {quarantine}")
    columns = ["query_id", "product_id", "label", "kind", "position", "timestamp", "user", *asked.counted]
    events = pd.DataFrame(asked.found, columns=columns)
    if products.respelled:
        notes.append(
            f"{products.respelled:,} interactions write a product's id otherwise than the products table does."
        )
    if asked.masked:
        notes.append(f"{asked.masked:,} queries held what looks like personal data; it was replaced by [personal].")
    frame = pd.DataFrame(
        [(key, *asked.queries[key]) for key in asked.queries], columns=["query_id", "query", "split", "intent"]
    )  # fmt: skip
    events, rare = _without_rare(events, options, notes)
    askers = events[["query_id", "user"]]
    if asked.counted:
        frame, events, askers = _from_log(frame, events, options, notes)
    graded = not events["label"].isin([0, 1]).all()
    events["kind"] = events["kind"].replace("", "judgment" if graded else "click")
    if (largest := events["label"].max()) > 1:
        events["label"] /= largest
        notes.append(f"Labels were divided by the largest, {largest:g}, so that 1 is fully relevant.")
    frame = frame[frame["query_id"].isin(events["query_id"])].reset_index(drop=True)
    _split_queries(frame, options, notes)
    accounts = {}
    if query_tables:
        held = frame["query_id"].str.removesuffix(" (later)").nunique() if asked.counted else len(frame)
        accounts["queries"] = quarantine.account("queries", asked.read["queries"], held, len(asked.queries) - held)
    accounts["interactions"] = quarantine.account(
        "interactions", asked.read["interactions"], len(asked.found) - rare, asked.outside + rare
    )
    interactions = events[["query_id", "product_id", "label", "kind"]]
    _say_what_clicks_are(interactions, frame, notes)
    told = {"askers.csv": known_users(frame, askers).to_csv()} if asked.users_told else {}
    return frame, interactions, accounts, told


def known_users(queries: pd.DataFrame, askers: pd.DataFrame) -> pd.Series:
    """Share of each query's users that asked in training, too: `known`, float, by `query_id`; without those nobody told of."""
    askers = askers[askers["user"] != ""].drop_duplicates()
    training = askers["query_id"].isin(queries.loc[queries["split"] == "train", "query_id"])
    known = askers["user"].isin(set(askers.loc[training, "user"]))
    return known.groupby(askers["query_id"]).mean().rename("known")


def _without_rare(events: pd.DataFrame, options: ImportOptions, notes: list[str]) -> tuple[pd.DataFrame, int]:
    """Without queries that fewer than `rare_queries` users or sessions asked, and how many interactions they had."""
    if not options.rare_queries:
        return events, 0
    if not (events["user"] != "").any():
        raise UserError("rare_queries needs a column `user` or `session` in the interactions, to count who asked.")
    askers = events[events["user"] != ""].groupby("query_id")["user"].nunique()
    common = events["query_id"].map(askers).fillna(0) >= options.rare_queries
    lost = events.loc[~common, "query_id"].nunique()
    notes.append(
        f"{lost:,} queries that fewer than {options.rare_queries} users or sessions asked were left out everywhere."
    )
    if not common.any():
        raise UserError(f"No query was asked by {options.rare_queries} users or sessions; lower rare_queries.")
    return events[common].reset_index(drop=True), int((~common).sum())


def _from_log(
    frame: pd.DataFrame, events: pd.DataFrame, options: ImportOptions, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Clicks and grades from counts, and who asked; with `split_by: time` the queries of each period are rows of their own."""
    scale = {"clicks": 0.3, "carts": 0.6, "purchases": 1.0} | dict(options.grades)
    place = pd.to_numeric(events["position"], errors="coerce").fillna(0).astype(int)
    clicked = events["clicks"] if "clicks" in events else (log.grades(events, scale) > 0).astype(float)
    shown = np.maximum(events.get("impressions", 1), clicked)
    propensity = np.ones(len(events))
    if options.debias:
        looked = log.propensities(events["query_id"], events["product_id"], place, shown, clicked)
        if looked:
            propensity = place.map(looked).fillna(1.0).to_numpy()
            told = ", ".join(f"{at}: {value:.2f}" for at, value in list(looked.items())[:5])
            notes.append(
                f"Position bias was taken out: clicks weigh by inverse propensity (looked at by position {told})."
            )
        else:
            notes.append("Position bias could not be taken out: no product was shown at two positions for one query.")
    if options.split_by == "time":
        when = log.times(events["timestamp"])
        if when.isna().all():
            raise UserError("split_by: time needs a column `timestamp` that can be read, such as 2024-11-26T10:00:00.")
        period = log.periods(when.fillna(when.min()))
        before = set(events.loc[period == "train", "query_id"])
        known = set(events.loc[period == "train", "user"]) - {""}
        later = events.loc[period == "test"]
        told = f" {later['query_id'].isin(before).mean():.0%} of the test rows are of queries asked in training too"
        told += f", {later['user'].isin(known).mean():.0%} of users seen there." if known else "."
        notes.append(
            "Queries were split by time, the first 70 % of the log for training, the last 20 % for the test." + told
        )
        names = {"train": "", "validation": " (validation)", "test": " (later)"}
        events = events.assign(query_id=events["query_id"] + pd.Series(period, events.index).map(names))
        parts = []
        for split, name in names.items():
            own = frame.assign(query_id=frame["query_id"] + name, split=split)
            parts.append(own[own["query_id"].isin(events["query_id"])])
        frame = pd.concat(parts, ignore_index=True)
    events = events.assign(label=log.grades(events, scale), weight=log.repeats(np.asarray(clicked, float), propensity))
    judged = events.groupby(["query_id", "product_id"], as_index=False)["label"].max().assign(kind="judgment")
    clicks = events[events["label"] > 0].groupby(["query_id", "product_id"], as_index=False)["weight"].sum()
    times = np.minimum(clicks["weight"], log.MOST_REPEATS)
    clicks = clicks.loc[clicks.index.repeat(times), ["query_id", "product_id"]].assign(label=1.0, kind="click")
    told = ", ".join(f"{event} {scale[event]:g}" for event in log.EVENTS[1:] if event in events)
    notes.append(
        f"A LOG: grades are those of the strongest event ({told or 'none'}; only shown 0); clicks count for training."
    )
    return frame, pd.concat([judged, clicks], ignore_index=True), events[["query_id", "user"]]


def _split_queries(frame: pd.DataFrame, options: ImportOptions, notes: list[str]) -> None:
    """Give a split to queries that state none; without validation queries, a tenth of the training ones become some."""
    random = np.random.default_rng(options.seed)
    if (unsplit := frame["split"] == "").any():
        intents = np.sort(frame.loc[unsplit, "intent"].unique())
        place = random.permutation(len(intents)) / len(intents)
        names = np.where(place < 0.7, "train", np.where(place < 0.8, "validation", "test"))
        frame.loc[unsplit, "split"] = frame.loc[unsplit, "intent"].map(dict(zip(intents, names, strict=True)))
        notes.append(f"Queries were split 70 / 10 / 20 % by intent with seed {options.seed}.")
    for lacking, share in (("validation", 0.1), ("test", 0.2)):
        intents = np.sort(frame.loc[frame["split"] == "train", "intent"].unique())
        if (frame["split"] == lacking).any() or len(intents) < 2:
            continue
        held = intents[random.permutation(len(intents))[: max(1, round(share * len(intents)))]]
        frame.loc[(frame["split"] == "train") & frame["intent"].isin(held), "split"] = lacking
        notes.append(
            f"No query was for {lacking}: {share:.0%} of the training queries, drawn with seed {options.seed}, are now."
        )
    for split in SPLITS:
        if not (frame["split"] == split).any():
            notes.append(f"There is no query for {split}; what needs one is left out.")


def _say_what_clicks_are(interactions: pd.DataFrame, frame: pd.DataFrame, notes: list[str]) -> None:
    """Without clicks, training learns from judgments (`Catalog.clicks`): say so."""
    train = interactions["query_id"].isin(frame.loc[frame["split"] == "train", "query_id"])
    clicked = (interactions["kind"] == "click") & (interactions["label"] > 0)
    if not (train & clicked).any() and (train & (interactions["label"] >= 0.5)).any():
        notes.append(
            "CLICKS ARE MADE OF JUDGMENTS: training has no clicks, so what was judged at least half relevant counts as clicked."
        )
