"""What the query explorer computes for a state; no widget, so that a headless run shows the same."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from makelib import settings as settings_module
from makelib.data.pictures import fit
from makelib.data.text import words
from makelib.model.keywords import KeywordTable
from makelib.runtime import UserError, meant
from makelib.search import explain
from makelib.search.index import ProductIndex
from makelib.search.retriever import Retriever
from makelib.study.experiment import Experiment
from makelib.study.metrics import evaluate
from makelib.study.studies import STUDIES
from makelib.workbook.explorer import html as draw
from makelib.workbook.explorer.state import ANEW, MOST, State

#: how many known queries are suggested while one is typed
SUGGESTIONS = 12
Shown = TypeVar("Shown", bound=State)


#: the views of the run that was opened last
_SHARED: dict[Hashable, Views] = {}
_SHARING = threading.Lock()


class Views:
    """Models and their catalogue, asked by `State` and answering in HTML or tables.

    Args:
        source: a run (its folder, or its name under `reports/`) or an `Experiment`: every trained arm, opened when first
            asked for; or a `Retriever`, or a mapping from name to `Retriever`, all of one catalogue.
    """

    @classmethod
    def of(cls, source: Path | str | Experiment | Retriever | Mapping[str, Retriever]) -> Views:
        """The views of a source. Explorers of one run share one: models, index and thumbnails are in memory once."""
        if isinstance(source, (str, Path)):
            source = Experiment.reopen(source)
        if not isinstance(source, Experiment):
            return cls(source)
        arms = tuple((name, folder.name) for name, folder in trained(source).items())
        key = (source.run.resolve(), source.settings, source.catalog.fingerprint, arms)
        with _SHARING:
            if key not in _SHARED:
                _SHARED.clear()  # what was trained since belongs to it, and the old one may go
                _SHARED[key] = cls(source)
            return _SHARED[key]

    def __init__(self, source: Path | str | Experiment | Retriever | Mapping[str, Retriever]) -> None:
        if isinstance(source, (str, Path)):
            source = Experiment.reopen(source)
        self.settings = settings_module.Settings()
        self.folder = Path(".")
        if isinstance(source, Experiment):
            self.settings, self.folder, self.catalog = source.settings, source.run, source.catalog
            self._sources: dict[str, Callable[[], Retriever]] = {
                name: functools.partial(Retriever.open, folder, source.catalog)
                for name, folder in trained(source).items()
            }
            if not self._sources:
                raise UserError(
                    f"Nothing is trained in {source.run} yet; run notebook 02, or `experiment.retriever('full')`."
                )
        else:
            source = {source.name: source} if isinstance(source, Retriever) else dict(source)
            if not source:
                raise UserError("The explorer needs at least one retriever.")
            self._sources = {name: functools.partial(lambda it: it, retriever) for name, retriever in source.items()}
            self.catalog = next(iter(source.values())).catalog
            if {it.catalog.fingerprint for it in source.values()} != {self.catalog.fingerprint}:
                raise UserError("The explorer compares retrievers of one catalogue; these belong to several.")
        self.names = list(self._sources)
        products, queries, table = self.catalog.products, self.catalog.queries, self.catalog.interactions
        self._in_category = products.groupby("category").indices
        self.categories = sorted(self._in_category)
        self._rows = pd.Index(products["product_id"])
        clicks = table[table["kind"] == "click"]
        self._clicks = sp.csr_matrix(
            (np.ones(len(clicks), bool), (clicks["query"], clicks["product"])), shape=(len(queries), len(products))
        )
        self._known = queries.groupby(queries["query"].str.strip().str.lower()).indices
        asked = np.diff(self._clicks.indptr)
        #: known queries in small letters, as they are written, the most clicked first
        self._popular = {
            words: queries["query"].iloc[rows[0]].strip()
            for words, rows in sorted(self._known.items(), key=lambda known: -asked[known[1]].sum())
        }
        self.thumbnail = functools.lru_cache(maxsize=4096)(self._thumbnail)
        self.open = once(lambda name: self._sources[name]())
        self._built = once(self._build)
        self._keywords = once(lambda: KeywordTable.of(self.catalog, self.settings.keywords))

    # -- what is searched -----------------------------------------------------------------------------------------

    def index(self, name: str, kind: str) -> ProductIndex:
        """The variant's own index where it is of this kind, else one that is built when first asked for."""
        own = self.open(name).index
        return own if (own.manifest["kind"] == "exact") == (kind == "exact") else self._built(name, kind)

    def _build(self, name: str, kind: str) -> ProductIndex:
        retriever = self.open(name)
        return ProductIndex.build(
            retriever.vectors.embedding,
            retriever.index.ids,
            settings_module.Index(kind="exact" if kind == "exact" else "hnsw"),
            model_fingerprint=retriever.index.manifest["model"],
            catalogue_fingerprint=retriever.index.manifest["catalogue"],
        )

    def suggest(self, typed: str) -> list[str]:
        """Known queries that go on from what is typed, then those that hold it somewhere; the most clicked first."""
        typed = typed.strip().lower()
        begin = (query for words, query in self._popular.items() if words.startswith(typed))
        hold = (query for words, query in self._popular.items() if typed in words and not words.startswith(typed))
        return list(itertools.islice(itertools.chain(begin, hold), SUGGESTIONS))

    def check(self, state: Shown) -> Shown:
        """The state itself. Raises `UserError` where it names what is not here."""
        for name in filter(None, (state.variant, state.compare)):
            if name not in self._sources:
                raise UserError(f"There is no trained variant {name!r} here; {meant(name, self.names)}")
        if state.category is not None and state.category not in self.categories:
            raise UserError(f"There is no category {state.category!r} in {self.catalog.name}.")
        for product in filter(None, (state.like, state.selected)):
            self.row(product)
        if not 1 <= state.k <= MOST:
            raise UserError(f"The number of results must be at least 1 and at most {MOST}, not {state.k}.")
        if state.by == "picture" and state.picture is None:
            raise UserError("To search by a picture of your own, upload one first.")
        if state.by in ("both", "product", "image") and state.like is None:
            raise UserError("To search by a product, choose one first (“More like this” under its picture).")
        return state if state.variant else dataclasses.replace(state, variant=self.names[0])

    def row(self, product_id: str) -> int:
        """Row of a product id."""
        try:
            return int(self._rows.get_loc(product_id))
        except KeyError:
            raise UserError(f"There is no product {product_id!r} in {self.catalog.name}.") from None

    def vector(self, state: State, variant: str) -> np.ndarray:
        """What is searched with, float32 (d,), unit length: query, product, an image alone, or query and product summed."""
        retriever = self.open(variant)
        if state.by == "query":
            return retriever.embed(state.query)
        if state.by in ("image", "picture"):
            return self._seen(state, retriever)
        row = self.row(state.like)
        product = retriever.vectors.embedding[row]
        if state.by == "product":
            return product
        both = retriever.embed(state.query) + product
        return both / np.linalg.norm(both)

    def _seen(self, state: State, retriever: Retriever) -> np.ndarray:
        """What the model makes of images without a title: the product's, or somebody's own."""
        if not retriever.model.sees_image:
            raise UserError(f"{retriever.name!r} does not look at images; choose another model to search by one.")
        size = retriever.model.config.image_size
        if state.by == "picture":
            images = fit(draw.decoded(state.picture), size)[None]
        else:
            images = self.catalog.photographs(self.row(state.like), size)
            if not len(images):
                raise UserError(f"Product {state.like!r} has no image to search by.")
        return explain.encode(retriever.model, [""], [images]).embedding[0]

    def search(self, state: State, variant: str | None = None) -> pd.DataFrame:
        """`Retriever.hits` of the best products, and what is known about the query; see `marked`."""
        variant = variant or state.variant
        retriever, vector = self.open(variant), self.vector(state, variant)
        among = None if state.category is None else np.zeros(len(self.catalog), bool)
        if among is not None:
            among[self._in_category[state.category]] = True
        rows, scores = (found[0] for found in self.index(variant, state.kind).search(vector[None], state.k, among))
        return self.marked(retriever.hits(vector, rows, scores), state)

    def relevance(self, state: State, rows: np.ndarray) -> np.ndarray:
        """Relevance of products (n,) to the state's query, float32 (n,); NaN where the query is not known."""
        known = self._asked(state)
        return self.catalog.relevance(known[:1], rows)[0] if len(known) else np.full(len(rows), np.nan, np.float32)

    def _asked(self, state: State) -> np.ndarray:
        """Rows of the known queries that are written as the state's."""
        none = np.array([], int)
        return self._known.get(state.query.strip().lower(), none) if state.by == "query" else none

    def marked(self, hits: pd.DataFrame, state: State) -> pd.DataFrame:
        """Hits with `relevance` (NaN where the query is not known), `wishes` in words, `clicked`."""
        rows = hits["row"].to_numpy()
        known, relevance = self._asked(state), self.relevance(state, rows)
        clicked, wishes = np.zeros(len(rows), bool), [""] * len(rows)
        if len(known):
            clicked = np.isin(rows, self._clicks[known].indices)
            asked = self.catalog.queries["constraints"].iloc[known[0]] or {}
            have = self.catalog.attributes.iloc[rows].to_dict("records")
            wishes = [
                ", ".join(f"{key} {value} {'✓' if has.get(key) == value else '✗'}" for key, value in asked.items())
                for has in have
            ]
        hits = hits.assign(relevance=relevance, wishes=wishes, clicked=clicked)
        for column in ("title", "category"):
            hits[column] = hits[column].astype(object).where(hits[column].notna(), None)
        return hits

    # -- views ----------------------------------------------------------------------------------------------------

    def results(self, state: State) -> str:
        """All results: cards, or two variants side by side."""
        return self.versus(state) if state.compare else draw.tiles(self.search(state), self.thumbnail)

    def versus(self, state: State) -> str:
        """Two variants, one query, and the moves between them; the new variant stands on the right."""
        names = (state.compare, state.variant)
        hits = tuple(self.search(state, name) for name in names)
        among = slice(None) if state.category is None else self._in_category[state.category]
        elsewhere = []
        for side, other in ((0, 1), (1, 0)):
            shown = dict(zip(hits[other]["row"], hits[other]["rank"], strict=True))
            scores = np.full(len(self.catalog), -np.inf, np.float32)
            scores[among] = (self.open(names[other]).vectors.embedding @ self.vector(state, names[other]))[among]
            place = np.empty(len(scores), np.int64)
            place[np.lexsort((np.arange(len(scores)), -scores))] = np.arange(1, len(scores) + 1)
            elsewhere.append({row: int(shown.get(row, max(place[row], len(shown) + 1))) for row in hits[side]["row"]})
        return draw.versus(names, hits, tuple(elsewhere), self.thumbnail)

    def why(self, state: State) -> str:
        """The why panel of the selected product, or an invitation to choose one."""
        if state.selected is None:
            return "<p>Choose “Why?” under a product, or a rank here, to see what speaks for it.</p>"
        retriever, row = self.open(state.variant), self.row(state.selected)
        vector = self.vector(state, state.variant)
        found = explain.evidence(retriever, vector, row)
        hit = self.marked(retriever.hits(vector, np.array([row]), np.array([found.score])), state).iloc[0].to_dict()
        near = self.catalog.products.iloc[found.neighbours][["title"]].assign(row=found.neighbours)
        return draw.why(
            hit,
            found,
            self.thumbnail,
            near.astype(object).where(near.notna(), None),
            self._keywords().words(row),
            len(self.catalog),
            (retriever.model.sees_title, retriever.model.sees_image),
            [self.thumbnail(row, place) for place in range(len(found.images))],
        )

    def what_if(self, state: State) -> str:
        """The selected product with another title, or without its image; nothing while neither is asked."""
        if state.selected is None or (state.title is None and not state.blank):
            return ""
        row = self.row(state.selected)
        retriever = self.open(state.variant)
        before, after = explain.what_if(
            retriever, self.vector(state, state.variant), row, title=state.title, blank=state.blank
        )
        said = " and ".join(["with this title"] * (state.title is not None) + ["without its image"] * state.blank)
        return draw.what_if(before, after, said)

    def status(self, state: State, seconds: float | None = None) -> str:
        """What was asked of whom. `seconds`: how long it took, where that is worth saying."""
        title = None if state.like is None else self.catalog.products["title"].iloc[self.row(state.like)]
        like = draw.text(title, f"product {draw.text(state.like)}") if state.like else ""
        asked = {
            "query": "",
            "both": f"with {like} · ",
            "product": f"products like {like} · ",
            "image": f"images like that of {like} · ",
            "picture": f"images like {draw.small_picture(state.picture)} · ",
        }
        where = f"category {draw.text(state.category)} of" if state.category else ""
        took = "" if seconds is None else f" · {1000 * seconds:.0f} ms"
        line = f"{asked[state.by]}{draw.text(state.variant)} · {where} {len(self.catalog):,} products · {state.kind} search{took}"
        asks = state.by in ("query", "both")
        guess = asks and state.query.strip() and not explain.knows(self.catalog, state.query)
        return draw.status(state.query if asks else "—", line, explain.GUESS if guess else "")

    def shown(self, state: State) -> tuple[pd.DataFrame, list[str], str]:
        """What the widget draws first: the hits, and as HTML their cards, or the side-by-side view that stands for them."""
        hits = self.search(state)
        if state.compare:
            return hits, [], self.versus(state)
        cards = [draw.tile(hit, self.thumbnail, hit["product_id"] == state.selected) for hit in hits.to_dict("records")]
        return hits, cards, ""

    def page(self, state: State) -> str:
        """Everything that a state shows, as one static piece of HTML."""
        state = self.check(state)
        parts = [self.status(state), self.results(state)]
        if state.selected:
            parts += [self.why(state), self.what_if(state)]
        return draw.page(draw.style(), *parts)

    def twin(self, queries: Mapping[str, str], state: State) -> str:
        """The static twin: results of fixed queries, each under its caption, and why the very first came first."""
        parts = [draw.style()]
        for number, (caption, query) in enumerate(queries.items()):
            asked = self.check(dataclasses.replace(state, query=query, **ANEW))
            parts.append(f'<h3 class="mkx-query">{draw.text(caption)}</h3>')
            parts += [self.status(asked), self.results(asked)]
            if number == 0:
                best = self.search(asked)["product_id"].iloc[0]
                parts.append(self.why(dataclasses.replace(asked, selected=best)))
        return draw.page(*parts)

    def _thumbnail(self, row: int, place: int = 0) -> str | None:
        image = self.catalog.image(row, place, draw.THUMBNAIL)
        return None if image is None else draw.picture_uri(image)


def once(make: Callable) -> Callable:
    """`functools.cache` for threads: while something is being made, whoever else asks for it waits; others do not."""
    locks: dict[Hashable, threading.Lock] = collections.defaultdict(threading.Lock)
    cached = functools.cache(make)

    def made(*what: Hashable) -> Any:
        with locks[what]:
            return cached(*what)

    return made


def trained(experiment: Experiment) -> dict[str, Path]:
    """Label -> folder of every arm of an experiment that is trained, the whole method first; equal arms stand once."""
    found: dict[str, Path] = {}
    for study in ("make", *(study for study in STUDIES if study != "make")):
        variants = list(STUDIES[study])
        for variant in variants[::-1] if study == "make" else variants:
            for seed in experiment.settings.seeds:
                arm = experiment.arm(study, variant, seed)
                if arm.done and arm.folder not in found.values():
                    found[arm.label if arm.label not in found else f"{arm.label} ({study})"] = arm.folder
    return found


@functools.lru_cache(maxsize=8)
def telling_queries(retriever: Retriever, most: int = 300) -> dict[str, str]:
    """Caption -> query: test queries that show something, chosen by rule, so that it works on any catalogue.

    Of `most` random test queries: the one of one or two words whose results lean most on images; the one whose results
    lean most on titles; one with a word that no title uses; and, so that nobody is flattered, the one with the lowest
    Recall@10.
    """
    catalog = retriever.catalog
    rows = catalog.query_rows("test")
    rows = np.sort(np.random.default_rng(0).permutation(rows if len(rows) else np.arange(len(catalog.queries)))[:most])
    if not len(rows):
        return {}
    queries = catalog.queries["query"].iloc[rows].reset_index(drop=True)
    found, _ = retriever.index.search(retriever.model.encode_queries(queries.tolist()), 10)
    weights = retriever.vectors.weights[found, 1]  # 0 and 1 say that something is missing, not what the model leans on
    table = pd.DataFrame(
        {
            "query": queries,
            "length": [len(words(query)) for query in queries],
            "image": pd.DataFrame(np.where((weights > 0) & (weights < 1), weights, np.nan)).mean(axis=1).fillna(0.5),
        }
    )
    scores = evaluate(catalog, rows, found, settings_module.Evaluation(cutoffs=(10,)))
    table["recall"] = scores["Recall@10"].to_numpy()
    used = {word for title in catalog.products["title"].dropna() for word in words(title)}
    table["strange"] = [any(word not in used for word in words(query)) for query in queries]
    choices = {
        "A short query whose results lean on images": table[table["length"] <= 2].sort_values(
            "image", ascending=False, kind="stable"
        ),
        "A query whose results lean on titles": table.sort_values("image", kind="stable"),
        "A query with a word that no title uses": table[table["strange"]].sort_values(
            "recall", ascending=False, kind="stable"
        ),
        "A failure: the lowest Recall@10": table.dropna(subset="recall").sort_values("recall", kind="stable"),
    }
    chosen: dict[str, str] = {}
    for caption, ranked in choices.items():
        fresh = ranked[~ranked["query"].isin(chosen.values())]
        if len(fresh):
            chosen[caption] = fresh["query"].iloc[0]
    return chosen
