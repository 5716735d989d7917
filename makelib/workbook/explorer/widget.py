"""The query explorer: type a query, see products, see why. `Views` turns a `State` into HTML, `QueryExplorer` shows it.

Every view is a pure function of a `State`, so the notebook's widget, the exported report and the tests draw the same
thing. The widget draws through `HTML` values only: `Output` blocks stall headless runs.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dacite
import ipywidgets as widgets
import numpy as np
import pandas as pd
import scipy.sparse as sp
from IPython.display import HTML

from makelib import evaluation, explain
from makelib import explorer_html as draw
from makelib import settings as settings_module
from makelib.ablation import STUDIES, Experiment
from makelib.catalog import fit
from makelib.index import ProductIndex
from makelib.keywords import KeywordTable, WordTables
from makelib.retriever import Retriever
from makelib.runtime import UserError, atomic_file
from makelib.text import words

#: how many results the widget offers to show
SIZES = (6, 12, 24, 48)
#: what is searched by, and how the widget says it
SEARCH_BY = {
    "query": "the query",
    "both": "query + product",
    "product": "the product",
    "image": "its image alone",
    "picture": "my picture",
}
#: how many known queries are suggested while one is typed
SUGGESTIONS = 12
#: seconds without a key until what was typed is searched, and until a search that still runs says so
DEBOUNCE, PATIENCE = 0.08, 0.25
#: what a new query leaves behind
ANEW = {"by": "query", "like": None, "picture": None, "selected": None, "title": None, "blank": False}


@dataclass(frozen=True)
class State:
    """Everything that decides what the explorer shows; small, and JSON when saved.

    Attributes:
        query: free text.
        variant, compare: the model searched with, and the one beside it (None: none).
        k: number of results. category: only this one (None: all).
        kind: exact search, or approximate through HNSW.
        by, like: search by the query, by the product `like` (an id), by its image alone, by query and product, or by
            `picture`.
        picture: somebody's own picture, small and redrawn, as a `data:` URI; see `explorer_html.own_picture`.
        selected: id of the product that is explained.
        title, blank: what if the selected product had this title (None: its own), or no image?
    """

    query: str = ""
    variant: str = ""
    compare: str | None = None
    k: int = 12
    category: str | None = None
    kind: Literal["exact", "approximate"] = "exact"
    by: Literal["query", "both", "product", "image", "picture"] = "query"
    like: str | None = None
    picture: str | None = None
    selected: str | None = None
    title: str | None = None
    blank: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None:
            draw.decoded(self.picture)  # a state comes from a file, and a file from anybody

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> State:
        """The inverse of `to_json`. Raises `UserError` for what is no saved state."""
        try:
            return dacite.from_dict(cls, json.loads(content), dacite.Config(strict=True))
        except (ValueError, TypeError, AttributeError, dacite.DaciteError) as error:
            raise UserError(f"This is not a saved state of the explorer: {str(error).splitlines()[0]}.") from None


class Views:
    """Models and their catalogue, asked by `State` and answering in HTML or tables.

    Args:
        source: a run (its folder, or its name under `reports/`) or an `Experiment`: every trained arm, opened when first
            asked for; or a `Retriever`, or a mapping from name to `Retriever`, all of one catalogue.
    """

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
        self._keywords = once(lambda: KeywordTable(WordTables.of(self.catalog), self.settings.keywords))

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

    def check(self, state: State) -> State:
        """The state itself. Raises `UserError` where it names what is not here."""
        for name in filter(None, (state.variant, state.compare)):
            if name not in self._sources:
                raise UserError(f"There is no trained variant {name!r} here; there is {', '.join(self.names)}.")
        if state.category is not None and state.category not in self.categories:
            raise UserError(f"There is no category {state.category!r} in {self.catalog.name}.")
        for product in filter(None, (state.like, state.selected)):
            self.row(product)
        if state.k < 1:
            raise UserError(f"The number of results must be at least 1, not {state.k}.")
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
        if state.category is None:
            rows, scores = (found[0] for found in self.index(variant, state.kind).search(vector[None], state.k))
        else:  # a filter is searched exactly: approximate indexes cannot look into one category only
            rows = self._in_category[state.category]
            scores = retriever.vectors.embedding[rows] @ vector
            best = np.lexsort((rows, -scores))[: state.k]
            rows, scores = rows[best], scores[best]
        return self.marked(retriever.hits(vector, rows, scores), state)

    def marked(self, hits: pd.DataFrame, state: State) -> pd.DataFrame:
        """Hits with `relevance` (NaN where the query is not known), `wishes` in words, `clicked`."""
        rows = hits["row"].to_numpy()
        known = self._known.get(state.query.strip().lower(), ()) if state.by == "query" else ()
        relevance, clicked, wishes = np.full(len(rows), np.nan), np.zeros(len(rows), bool), [""] * len(rows)
        if len(known):
            clicked = np.isin(rows, self._clicks[known].indices)
            relevance = self.catalog.relevance(known[:1], rows)[0]
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
        how = "exact" if state.category else state.kind
        where = f"category {draw.text(state.category)} of" if state.category else ""
        took = "" if seconds is None else f" · {1000 * seconds:.0f} ms"
        line = (
            f"{asked[state.by]}{draw.text(state.variant)} · {where} {len(self.catalog):,} products · {how} search{took}"
        )
        return draw.status(state.query if state.by in ("query", "both") else "—", line)

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
            parts.append(f'<h4 class="mkx-query">{draw.text(caption)}</h4>')
            parts += [self.status(asked), self.results(asked)]
            if number == 0:
                best = self.search(asked)["product_id"].iloc[0]
                parts.append(self.why(dataclasses.replace(asked, selected=best)))
        return draw.page(*parts)

    def _thumbnail(self, row: int, place: int = 0) -> str | None:
        image = self.catalog.image(row, place, draw.THUMBNAIL)
        return None if image is None else draw.picture_uri(image)


class QueryExplorer:
    """Type a query, see products, see why; one line in a notebook.

    Args:
        source: a run's folder or name, an `Experiment`, a `Retriever`, or a mapping from name to `Retriever`; see `Views`.
        k: number of results.
        queries: queries of the static twin, caption -> query, or a list; default: `telling_queries`.
        state: a saved state to begin with: a `State`, its JSON file.

    Example:
        >>> QueryExplorer("quick")                                             # doctest: +SKIP
    """

    def __init__(
        self,
        source: Path | str | Experiment | Retriever | Mapping[str, Retriever],
        *,
        k: int = 12,
        queries: Mapping[str, str] | Sequence[str] | None = None,
        state: State | Path | str | None = None,
    ) -> None:
        self.views = Views(source)
        if queries is None:
            queries = telling_queries(self.views.open(self.views.names[0]))
        self.queries = (
            dict(queries) if isinstance(queries, Mapping) else {f"Query {i + 1}": q for i, q in enumerate(queries)}
        )
        first = next(iter(self.queries.values()), "")
        if isinstance(state, (str, Path)):
            state = State.from_json(Path(state).read_text(encoding="utf-8"))
        self.state = self.views.check(state or State(query=first, k=k))
        #: queries asked so far, in order
        self.history: list[str] = []
        # JupyterLab hands a widget's messages to a thread of their own, but the first ones to the kernel's: two threads, two
        # loops. Whoever changes anything holds the lock; whoever was overtaken meanwhile sees it by its number.
        self._lock = threading.RLock()
        self._turn = self._keys = 0
        self._drawing: asyncio.Task | None = None
        self._unfinished = False
        self._quiet = False
        self._ids: list[str] = []

    # -- views for a notebook cell --------------------------------------------------------------------------------

    def page(
        self,
        query: str | None = None,
        *,
        rank: int | None = None,
        picture: Path | str | None = None,
        **changes: Any,
    ) -> HTML:
        """Results as static HTML: `explorer.page("red dress", compare="title")`.

        `rank=1` adds why the first product came first; `picture` is a file to search by; `changes` are attributes of
        `State`.
        """
        if picture is not None:
            changes |= {"by": "picture", "picture": draw.own_picture(Path(picture))}
        state = self.views.check(
            dataclasses.replace(self.state, query=self.state.query if query is None else query, **changes)
        )
        if rank is not None:
            hits = self.views.search(state)
            if not 1 <= rank <= len(hits):
                raise UserError(f"There is no rank {rank}; this query shows ranks 1 to {len(hits)}.")
            state = dataclasses.replace(state, selected=hits["product_id"].iloc[rank - 1])
        return HTML(self.views.page(state))

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        bundle = {
            "text/plain": f"QueryExplorer({', '.join(self.views.names)})",
            "text/html": self.views.twin(self.queries, self.state),
        }
        if os.environ.get("MAKELIB_HEADLESS") == "1":
            return bundle
        live = self.widget._repr_mimebundle_()
        return {**bundle, **{kind: value for kind, value in live.items() if kind != "text/plain"}}

    # -- state ----------------------------------------------------------------------------------------------------

    def show(self, state: State | None = None, **changes: Any) -> None:
        """Go to a state, or change the present one: `explorer.show(query="red dress", k=24)`."""
        with self._lock:
            self.state = self.views.check(dataclasses.replace(state or self.state, **changes))
            if "widget" in self.__dict__:
                self._set_controls(query=state is not None or "query" in changes)
                self._draw()

    def save(self, path: Path | str | None = None) -> Path:
        """Keep the state as a small JSON file, which `QueryExplorer(…, state=path)` opens again."""
        path = Path(path) if path else self.views.folder / "explorer.json"
        with atomic_file(path) as draft:
            draft.write_text(self.state.to_json(), encoding="utf-8")
        return path

    # -- widgets --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def widget(self) -> widgets.VBox:
        """The widget; made when first shown."""
        views, narrow = self.views, {"description_width": "70px"}
        option = [(draw.plain(name), name) for name in views.names]
        self.query = widgets.Combobox(
            description="Query", placeholder="type what you look for", ensure_option=False, style=narrow,
            options=[draw.plain(known) for known in views.suggest("")],
            layout=widgets.Layout(flex="1 1 320px", width="auto"),
        )  # fmt: skip
        self.upload = widgets.FileUpload(
            accept="image/*", description="Search by a picture", layout=widgets.Layout(width="auto")
        ).add_class("mkx-upload")
        choice = functools.partial(
            widgets.Dropdown, style=narrow, layout=widgets.Layout(flex="1 1 180px", width="auto", max_width="400px")
        )
        self.variant = choice(description="Model", options=option)
        self.compare = choice(description="Beside it", options=[("nothing", ""), *option])
        self.category = choice(
            description="Category", options=[("all", ""), *((draw.plain(name), name) for name in views.categories)]
        )
        self.kind = choice(description="Search", options=["exact", "approximate"])
        self.k = choice(description="Results", options=sorted({*SIZES, self.state.k}))
        self.by = choice(description="Search by", options=[(SEARCH_BY["query"], "query")])
        self.line, self.alert, self.beside, self.panel, self.edited = (widgets.HTML() for _ in range(5))
        self.cards = widgets.GridBox(
            layout=widgets.Layout(
                grid_template_columns="repeat(auto-fill, minmax(170px, 1fr))", grid_gap="12px", width="100%"
            )
        ).add_class("mkx-cards")  # fmt: skip
        self._cells: list[widgets.VBox] = []
        self.explain = widgets.BoundedIntText(  # JupyterLab leaves the arrow keys to number boxes, but not to lists
            description="Explain rank", min=0, max=self.state.k, style={"description_width": "initial"},
            layout=widgets.Layout(width="160px"),
        )  # fmt: skip
        self.title = widgets.Text(
            description="What if the title were", continuous_update=False, style={"description_width": "initial"},
            layout=widgets.Layout(flex="1 1 360px", width="auto"),
        )  # fmt: skip
        self.blank = widgets.Checkbox(
            description="without its image", indent=False, layout=widgets.Layout(width="auto")
        )
        back = widgets.Button(description="As listed", layout=widgets.Layout(width="auto"))
        self.asked = widgets.Textarea(description="Queries", rows=3, style=narrow, layout=widgets.Layout(width="98%"))
        self.saved = widgets.Textarea(description="State", rows=2, style=narrow, layout=widgets.Layout(width="98%"))
        save, restore = (widgets.Button(description=text) for text in ("Save state", "Restore"))
        self.note = widgets.HTML()

        self.query.observe(self._guard(lambda change: self._typed(change["new"])), "value")
        self.query.on_msg(lambda _, content, __: self._guard(self._entered)(content))
        self.upload.observe(self._guard(lambda change: self._uploaded(change["new"])), "value")
        for name in ("variant", "compare", "category", "kind", "k", "by"):
            getattr(self, name).observe(
                self._guard(lambda change, name=name: self._change(**{name: change["new"] or None})), "value"
            )
        self.explain.observe(self._guard(lambda change: self._choose(change["new"])), "value")
        self.title.observe(self._guard(lambda change: self._edit(title=change["new"])), "value")
        self.blank.observe(self._guard(lambda change: self._edit(blank=change["new"])), "value")
        back.on_click(self._guard(lambda _: self.show(title=None, blank=False)))
        save.on_click(self._guard(lambda _: self._save()))
        restore.on_click(self._guard(lambda _: self.show(State.from_json(self.saved.value))))

        def line(*children: widgets.Widget) -> widgets.HBox:
            return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", width="100%"))

        tools = widgets.Accordion(
            [widgets.VBox([self.asked, self.saved, line(save, restore, self.note)])],
            titles=("History and state",), selected_index=None,
        )  # fmt: skip
        self._what_if = line(self.title, self.blank, back)
        box = widgets.VBox(
            [
                widgets.HTML(draw.style(), layout=widgets.Layout(display="none")),
                line(self.query, self.upload), line(self.variant, self.compare, self.by), line(self.category, self.kind, self.k),
                self.alert, self.line, self.cards, self.beside,
                self.explain, self.panel, self._what_if, self.edited, tools,
            ]
        )  # fmt: skip
        for name in ("mkx", "mkx-panel"):
            box.add_class(name)
        self._set_controls(query=True)
        self._draw(at_once=True)
        return box

    def _guard(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """A callback that shows what goes wrong as a sentence; errors in widget callbacks would otherwise vanish."""

        def guarded(event: Any) -> None:
            with self._lock:
                if not self._quiet:
                    try:
                        action(event)
                    except Exception as error:
                        self._complain(error)

        return guarded

    def _complain(self, error: Exception) -> None:
        known = isinstance(error, UserError)
        self.alert.value = draw.alert(str(error) if known else f"That did not work ({type(error).__name__}: {error}).")
        self._set_controls()

    def _change(self, **changes: Any) -> None:
        self.state = self.views.check(dataclasses.replace(self.state, **changes))
        self._draw()

    def _typed(self, query: str) -> None:
        """While somebody types, known queries are suggested at once; what is typed is searched when no key follows."""
        self.query.options = [draw.plain(known) for known in self.views.suggest(query)]
        self._keys += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel that could wait
            self._search(query)
        else:
            loop.call_later(DEBOUNCE, self._guard(self._paused), (self._keys, query))

    def _paused(self, typed: tuple[int, str]) -> None:
        keys, query = typed
        if keys == self._keys:
            self._search(query)

    def _entered(self, content: Mapping[str, Any]) -> None:
        """Enter searches at once."""
        if content.get("event") == "submit":
            self._search(self.query.value, typing=False)

    def _search(self, query: str, typing: bool = True) -> None:
        """A new query is about itself; only "query + product" keeps its product."""
        self._keys += 1
        if query == draw.plain(self.state.query) and self.state.by in ("query", "both"):
            return self._remember(query, typing)
        keep = {"by": "both", "like": self.state.like} if self.state.by == "both" else {}
        self.state = self.views.check(dataclasses.replace(self.state, query=query, **ANEW | keep))
        self._set_controls()
        self._draw(typing=typing)

    def _remember(self, query: str, typing: bool) -> None:
        """Keep the queries that were asked, in order; one that is still being typed gives way to how it goes on."""
        last = self.history[-1] if self.history else ""
        if not query.strip() or (typing and last.startswith(query)):
            return
        if self._unfinished and query.startswith(last):
            self.history.pop()
        if self.history[-1:] != [query]:
            self.history.append(query)
        self._unfinished = typing
        self.asked.value = json.dumps(self.history, ensure_ascii=False)

    def _uploaded(self, files: Sequence[Mapping[str, Any]]) -> None:
        if files:
            self.show(**ANEW | {"by": "picture", "picture": draw.own_picture(bytes(files[0]["content"]))})

    def _choose(self, rank: int) -> None:
        self.show(selected=self._ids[rank - 1] if rank else None, title=None, blank=False)

    def _edit(self, **changes: Any) -> None:
        if "title" in changes and changes["title"] == self._own_title():
            changes["title"] = None
        self._change(**changes)

    def _save(self) -> None:
        path = self.save()
        self.saved.value = self.state.to_json()
        self.note.value = f"<p>Saved as {draw.text(path)}.</p>"

    def _own_title(self) -> str:
        if self.state.selected is None:
            return ""
        return draw.plain(explain.title_of(self.views.catalog, self.views.row(self.state.selected)))

    def _set_controls(self, query: bool = False) -> None:
        """Controls show the state; setting them asks for nothing. What somebody types stays his, unless `query`."""
        self._quiet = True
        try:
            state = self.state
            if state.k not in self.k.options:
                self.k.options = sorted({*self.k.options, state.k})
            if query:
                self.query.value = draw.plain(state.query)
            there = {
                "query",
                *(("both", "product", "image") if state.like else ()),
                *(("picture",) if state.picture else ()),
            }
            offered = tuple((label, by) for by, label in SEARCH_BY.items() if by in there)
            if self.by.options != offered:
                self.by.options = offered
            self.by.disabled = len(offered) == 1
            self.upload.value = ()
            for name in ("variant", "compare", "category", "kind", "k", "by", "blank"):
                value = getattr(state, name)
                getattr(self, name).value = "" if value is None else value  # a list takes None for "no choice"
            self.title.value = self._own_title() if state.title is None else draw.plain(state.title)
            self._what_if.layout.display = "none" if state.selected is None else None
        finally:
            self._quiet = False

    # -- drawing --------------------------------------------------------------------------------------------------

    def _draw(self, at_once: bool = False, typing: bool = False) -> None:
        """Draw the state; in a kernel that is a task, which ends where it finds that a newer state overtook it."""
        self._turn += 1
        try:
            loop = None if at_once else asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        drawing = self._show(self.state, self._turn, loop, typing)
        if loop is not None:
            self._drawing = loop.create_task(drawing)
        else:
            with contextlib.suppress(StopIteration):
                drawing.send(None)  # without a loop it waits for nothing, and one push takes it to its end

    async def _show(self, state: State, turn: int, loop: asyncio.AbstractEventLoop | None, typing: bool) -> None:
        """Results first, then the slower why panel."""
        try:
            began = time.perf_counter()
            hits, cards, beside = await self._ask(turn, loop, self.line, "Searching …", self.views.shown, state)
            with self._at(turn):
                self.alert.value = ""
                self._fill(cards)
                self.beside.value = beside
                self.line.value = self.views.status(state, time.perf_counter() - began)
                self._offer(hits, state)
                if state.by in ("query", "both"):
                    self._remember(state.query, typing)
            for place, said, question in (
                (self.panel, "Asking the model why …", self.views.why),
                (self.edited, "Asking the model …", self.views.what_if),
            ):
                answer = await self._ask(turn, loop, place, said, question, state)
                with self._at(turn):
                    place.value = answer
        except Exception as error:
            with contextlib.suppress(Overtaken), self._at(turn):
                self._complain(error)

    @contextlib.contextmanager
    def _at(self, turn: int) -> Iterator[None]:
        """Everything in one hand, for whoever is not `Overtaken`."""
        with self._lock:
            if turn != self._turn:
                raise Overtaken
            yield

    async def _ask(
        self,
        turn: int,
        loop: asyncio.AbstractEventLoop | None,
        place: widgets.HTML,
        said: str,
        question: Callable[[State], Any],
        state: State,
    ) -> Any:
        """The answer to a question; a kernel asks in a thread, so that it hears what is typed meanwhile, and after a moment
        says in `place` that it works."""

        def asked() -> Any:
            with self._at(turn):  # not worth asking where it had to queue until a newer one came
                pass
            return question(state)

        if loop is None:
            return asked()
        working = loop.run_in_executor(None, asked)
        if not (await asyncio.wait([working], timeout=PATIENCE))[0]:
            with contextlib.suppress(Overtaken), self._at(turn):
                place.value = draw.working(said)
        return await working

    def _fill(self, cards: Sequence[str]) -> None:
        """Cards into the grid; cells are made once and used again."""
        while len(self._cells) < len(cards):
            place = len(self._cells)
            buttons = [
                widgets.Button(
                    description=text, tooltip=f"{tip} {place + 1}", layout=widgets.Layout(flex="1 1 auto", width="auto")
                )
                for text, tip in (("Why?", "Explain rank"), ("More like this", "Search by the product of rank"))
            ]
            buttons[0].on_click(self._guard(lambda _, place=place: self._choose(place + 1)))
            buttons[1].on_click(
                self._guard(
                    lambda _, place=place: self.show(
                        by="product", like=self._ids[place], selected=None, title=None, blank=False
                    )
                )
            )
            self._cells.append(widgets.VBox([widgets.HTML(), widgets.HBox(buttons)]).add_class("mkx-cell"))
        for cell, card in zip(self._cells, cards, strict=False):
            cell.children[0].value = card
        if len(self.cards.children) != len(cards):
            self.cards.children = self._cells[: len(cards)]

    def _offer(self, hits: pd.DataFrame, state: State) -> None:
        """The ranks that can be explained; arrow keys walk through them, 0 is none."""
        self._quiet = True
        try:
            self._ids = hits["product_id"].tolist()
            self.explain.max = len(self._ids)
            self.explain.value = 1 + self._ids.index(state.selected) if state.selected in self._ids else 0
        finally:
            self._quiet = False


class Overtaken(Exception):
    """A newer state is being drawn; whoever raises this draws no more."""


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
    scores = evaluation.evaluate(catalog, rows, found, settings_module.Evaluation(cutoffs=(10,)))
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
