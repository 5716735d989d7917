"""The query explorer: type a query, see products, see why. `Views` turns a `State` into HTML, `QueryExplorer` shows it.

Every view is a pure function of a `State`, so the notebook's widget, the exported report and the tests draw the same
thing. The widget draws through `HTML` values only: `Output` blocks stall headless runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML
from ipywidgets.widgets.widget_string import HTMLStyle

from makelib.runtime import UserError, atomic_file
from makelib.search import explain
from makelib.search.retriever import Retriever
from makelib.study.experiment import Experiment
from makelib.workbook.explorer import html as draw
from makelib.workbook.explorer.live import Live, Overtaken, parts
from makelib.workbook.explorer.state import ANEW, SEARCH_BY, SIZES, State
from makelib.workbook.explorer.views import Views, telling_queries

#: seconds without a key until what was typed is searched
DEBOUNCE = 0.08


class QueryExplorer(Live):
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
        super().__init__()
        self.views = Views.of(source)
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
        self._keys = 0
        self._unfinished = False
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
        """Results as static HTML: `explorer.page("green backpack", compare="title")`.

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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The static twin: what headless runs and exported pages show."""
        return {
            "text/plain": f"QueryExplorer({', '.join(self.views.names)})",
            "text/html": self.views.twin(self.queries, self.state),
        }

    def close(self) -> None:
        """End the widget and give back what it holds."""
        if box := self.__dict__.pop("widget", None):
            for part in parts(widgets.VBox([box, *self._cells])):
                part.close()
            self._cells = []

    # -- state ----------------------------------------------------------------------------------------------------

    def show(self, state: State | None = None, **changes: Any) -> None:
        """Go to a state, or change the present one: `explorer.show(query="green backpack", k=24)`."""
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
        self._make_controls()
        self._make_views()
        self._listen()
        box = _column(
            widgets.HTML(draw.style(), layout=widgets.Layout(display="none")),
            _line(self.query, self.explain, self.upload),
            _line(self.variant, self.compare, self.by),
            _line(self.category, self.kind, self.k),
            self.alert, self.line, self.cards, self.beside, self.panel, self._what_if, self.edited, self._tools,
        )  # fmt: skip
        for name in ("mkx", "mkx-panel"):
            box.add_class(name)
        self._set_controls(query=True)
        self._draw(at_once=True)
        return box

    def _make_controls(self) -> None:
        """What is asked, and of whom."""
        views, narrow = self.views, {"description_width": "70px"}
        option = [(draw.plain(name), name) for name in views.names]
        self.query = widgets.Combobox(
            description="Query", placeholder="type what you look for", ensure_option=False, style=narrow,
            options=[draw.plain(known) for known in views.suggest("")],
            layout=widgets.Layout(flex="1 1 320px", width="auto"),
        )  # fmt: skip
        # JupyterLab leaves the arrow keys to number boxes, but not to lists; it follows the query, so that a keyboard is soon there
        self.explain = widgets.BoundedIntText(
            description="Explain rank", min=0, max=self.state.k, style={"description_width": "initial"},
            layout=widgets.Layout(width="160px"),
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

    def _make_views(self) -> None:
        """What is shown, the what-if line, and the drawer with history and state."""
        narrow, auto = {"description_width": "70px"}, {"layout": widgets.Layout(width="auto")}
        self.line, self.alert, self.beside, self.panel, self.edited, self.note = (widgets.HTML() for _ in range(6))
        self.cards = widgets.GridBox(
            layout=widgets.Layout(
                grid_template_columns="repeat(auto-fill, minmax(170px, 1fr))", grid_gap="12px", width="100%"
            )
        ).add_class("mkx-cards")  # fmt: skip
        self._cells: list[widgets.Box] = []
        self._looks = (
            widgets.Layout(), HTMLStyle(), widgets.Layout(flex="1 1 auto", width="auto"), widgets.ButtonStyle(),
        )  # fmt: skip
        self.title = widgets.Text(
            description="What if the title were", continuous_update=False, style={"description_width": "initial"},
            layout=widgets.Layout(flex="1 1 360px", width="auto"),
        )  # fmt: skip
        self.blank = widgets.Checkbox(description="without its image", indent=False, **auto)
        self.back = widgets.Button(description="As listed", **auto)
        self._what_if = _line(self.title, self.blank, self.back)
        self.asked = widgets.Textarea(description="Queries", rows=3, style=narrow, layout=widgets.Layout(width="98%"))
        self.saved = widgets.Textarea(description="State", rows=2, style=narrow, layout=widgets.Layout(width="98%"))
        self.keep, self.restore = (widgets.Button(description=text) for text in ("Save state", "Restore"))
        self._tools = widgets.Accordion(
            [_column(self.asked, self.saved, _line(self.keep, self.restore, self.note))],
            titles=("History and state",), selected_index=None,
        )  # fmt: skip

    def _listen(self) -> None:
        """What each control does."""
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
        self.back.on_click(self._guard(lambda _: self.show(title=None, blank=False)))
        self.keep.on_click(self._guard(lambda _: self._save()))
        self.restore.on_click(self._guard(lambda _: self.show(State.from_json(self.saved.value))))

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

    async def _show(
        self, state: State, turn: int, loop: asyncio.AbstractEventLoop | None, typing: bool = False
    ) -> None:
        """Results first, then the slower why panel."""
        try:
            began = time.perf_counter()
            hits, cards, beside = await self._ask(turn, loop, self.line, "Searching …", self.views.shown, state)
            with self._at(turn):
                self.alert.value = ""
                self._fill(cards, [draw.plain(hit or "a product without a title") for hit in hits["title"]])
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

    def _fill(self, cards: Sequence[str], names: Sequence[str]) -> None:
        """Cards into the grid, their buttons named after their products; cells are made once and used again.

        A kernel's socket drops what stands in its queue behind the thousandth message, and a page whose server is busy then lacks
        tiles: a cell is four messages, made or changed, and two hundred cells are fewer than that.
        """
        for place, (card, name) in enumerate(zip(cards, names, strict=False)):  # no cards beside another ranking
            why, like = f"Why? {place + 1}, {name}", f"More like this: {name}"
            if place == len(self._cells):
                self._cells.append(self._cell(place, card, why, like))
            else:
                picture, *buttons = self._cells[place].children
                picture.value = card
                for button, said in zip(buttons, (why, like), strict=True):
                    button.description = said
        if len(self.cards.children) != len(cards):
            self.cards.children = self._cells[: len(cards)]

    def _cell(self, place: int, card: str, *said: str) -> widgets.Box:
        """A card and its two buttons; what they look like is shared by all cells."""
        layout, style, wide, button_style = self._looks
        told = (f"Explain rank {place + 1}", f"Search by the product of rank {place + 1}")
        why, like = (
            widgets.Button(description=name, tooltip=tip, layout=wide, style=button_style, _dom_classes=(kind,))
            for name, tip, kind in zip(said, told, ("mkx-ask", "mkx-like"), strict=True)
        )
        why.on_click(self._guard(lambda _: self._choose(place + 1)))
        like.on_click(
            self._guard(
                lambda _: self.show(by="product", like=self._ids[place], selected=None, title=None, blank=False)
            )
        )
        picture = widgets.HTML(card, layout=layout, style=style)
        return widgets.Box((picture, why, like), layout=layout, _dom_classes=("mkx-cell",))

    def _offer(self, hits: pd.DataFrame, state: State) -> None:
        """The ranks that can be explained; arrow keys walk through them, 0 is none."""
        self._quiet = True
        try:
            self._ids = hits["product_id"].tolist()
            self.explain.max = len(self._ids)
            self.explain.value = 1 + self._ids.index(state.selected) if state.selected in self._ids else 0
        finally:
            self._quiet = False


def _line(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", width="100%"))


def _column(*children: widgets.Widget) -> widgets.VBox:
    return widgets.VBox(children)
