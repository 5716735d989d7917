"""The map of the catalogue: products in the plane that shows most of how they differ, a query and its hits among them.

The plane is spanned by the first two principal components of a model's product vectors. That is a linear map, so a query has
its place in it, too; how much of the spread it shows is said above it, and what looks close there need not be.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML
from sklearn.decomposition import PCA

from makelib.runtime import UserError
from makelib.search.retriever import Retriever
from makelib.study.experiment import Experiment
from makelib.workbook import plots
from makelib.workbook.explorer import html as draw
from makelib.workbook.explorer.live import Live, Overtaken
from makelib.workbook.explorer.state import State
from makelib.workbook.explorer.views import Views, telling_queries

#: products that are drawn at most, a fixed draw; hits are drawn always
POINTS = 3000
#: categories that get a colour of their own, the largest; the others share grey
CATEGORIES = 20
Colour = Literal["category", "weight of the image", "relevance"]


@dataclass(frozen=True)
class MapState(State):
    """What the map shows: `variant`, `query`, `k`, `selected` as in the query explorer, and what `colour` says.

    `relevance` is that of a known query; products nobody judged are grey.
    """

    colour: Colour = "category"


class Plane:
    """Products of one model in the plane.

    Attributes:
        rows: int64 (n,), the products that are drawn. share: float, how much of the spread of all products the plane shows.
    """

    def __init__(self, retriever: Retriever) -> None:
        vectors = np.asarray(retriever.vectors.embedding, np.float32)
        self.rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:POINTS])
        self._fitted = PCA(2, svd_solver="covariance_eigh").fit(vectors)
        self.share = float(self._fitted.explained_variance_ratio_.sum())

    def places(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, d) -> places (n, 2)."""
        return self._fitted.transform(np.asarray(vectors, np.float32))


class CatalogueMap(Live):
    """Products in the plane, one line in a notebook: point at one to see its photograph, ask a query to see where it lands.

    Args:
        source: a run's folder or name, an `Experiment`, a `Retriever`, or a mapping from name to `Retriever`.
        changes: attributes of `MapState` to begin with, such as `colour="weight of the image"`.

    Example:
        >>> CatalogueMap("quick")                                              # doctest: +SKIP
    """

    def __init__(self, source: Path | str | Experiment | Retriever | Mapping[str, Retriever], **changes: Any) -> None:
        super().__init__()
        self.views = Views.of(source)
        if "query" not in changes:
            told = telling_queries(self.views.open(self.views.names[0]))
            changes["query"] = next(iter(told.values()), "")
        self.state = self._checked(MapState(**changes))
        self._plane = functools.lru_cache(maxsize=4)(lambda name: Plane(self.views.open(name)))
        #: rows of the hits that are shown, in order
        self._ranks: list[int] = []

    def show(self, **changes: Any) -> None:
        """Change what is shown: `map.show(query="green backpack", colour="relevance")`."""
        with self._lock:
            self.state = self._checked(dataclasses.replace(self.state, **changes))
            if "widget" in self.__dict__:
                self._set_controls()
                self._draw()

    def _checked(self, state: MapState) -> MapState:
        if state.colour not in get_args(Colour):
            raise UserError(f"Products are coloured by one of {', '.join(get_args(Colour))}, not by {state.colour!r}.")
        return self.views.check(state)

    # -- what is shown --------------------------------------------------------------------------------------------

    def table(self, state: MapState) -> tuple[pd.DataFrame, np.ndarray]:
        """Products that are drawn, `row, x, y, title, category, weight, relevance, rank` (0: no hit), and the query's place (2,)."""
        retriever, plane = self.views.open(state.variant), self._plane(state.variant)
        hits = self.views.search(state)
        rows = np.union1d(plane.rows, hits["row"])
        x, y = plane.places(retriever.vectors.embedding[rows]).T
        products = self.views.catalog.products.iloc[rows]
        ranks = dict(zip(hits["row"], hits["rank"], strict=True))
        return pd.DataFrame(
            {
                "row": rows, "x": x, "y": y,
                "title": products["title"].to_numpy(object), "category": products["category"].to_numpy(object),
                "weight": retriever.vectors.weights[rows, 1], "relevance": self.views.relevance(state, rows),
                "rank": [ranks.get(row, 0) for row in rows],
            }
        ), plane.places(retriever.embed(state.query)[None])[0]  # fmt: skip

    def caption(self, state: MapState) -> str:
        """What the plane shows, and what not, as HTML."""
        plane = self._plane(state.variant)
        some = f"{len(plane.rows):,} of " if len(plane.rows) < len(self.views.catalog) else ""
        said = (
            f"{draw.text(state.variant)} · {some}{len(self.views.catalog):,} products · the plane shows {plane.share:.0%} of how "
            "they differ: what is far apart in it is far apart, what is close need not be"
        )
        return draw.status(state.query, said)

    def page(self, **changes: Any) -> HTML:
        """What a state shows as static HTML: `map.page(colour="relevance")`."""
        return HTML(self._twin(self._checked(dataclasses.replace(self.state, **changes))))

    def _twin(self, state: MapState) -> str:
        table, query = self.table(state)
        ax = plots.plane(groups(table, state.colour), table[table["rank"] > 0], query, state.colour)
        with io.BytesIO() as buffer:
            ax.figure.savefig(buffer, format="png")
            drawn = base64.b64encode(buffer.getvalue()).decode()
        plt.close(ax.figure)
        said = draw.attribute(f"Products in the plane, coloured by {state.colour}, and the hits of {state.query}")
        image = f'<img style="max-width:100%" src="data:image/png;base64,{drawn}" alt="{said}">'
        hits = draw.tiles(self.views.search(state), self.views.thumbnail)
        return draw.page(draw.style(), self.caption(state), image, hits)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The static twin: what headless runs and exported pages show."""
        return {"text/plain": f"CatalogueMap({', '.join(self.views.names)})", "text/html": self._twin(self.state)}

    # -- widgets --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def widget(self) -> widgets.VBox:
        """The widget; made when first shown."""
        self._make_controls()
        self.line, self.alert, self.panel = (widgets.HTML() for _ in range(3))
        self.panel.layout = widgets.Layout(flex="0 0 190px", min_height="260px")
        self.figure = go.FigureWidget(
            layout={
                "height": 560, "margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "hovermode": "closest", "uirevision": "stays",
                "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(128,128,128,.06)",
                "xaxis": {"visible": False}, "yaxis": {"visible": False, "scaleanchor": "x"},
                "legend": {"itemsizing": "constant", "orientation": "h", "y": 0, "yanchor": "top"}, "autosize": True,
            }
        )  # fmt: skip
        self.figure._config = {"responsive": True, "displaylogo": False}  # plotly's own way of saying it to a widget
        plot = widgets.Box([self.figure], layout=widgets.Layout(flex="1 1 420px", min_width="0", overflow="hidden"))
        box = widgets.VBox(
            [
                widgets.HTML(draw.style(), layout=widgets.Layout(display="none")),
                _line(self.query, self.rank), _line(self.variant, self.colour), self.alert, self.line, _line(plot, self.panel),
            ]
        )  # fmt: skip
        for name in ("mkx", "mkx-panel", "mkx-map"):
            box.add_class(name)
        self._set_controls()
        self._draw(at_once=True)
        return box

    def _make_controls(self) -> None:
        narrow = {"description_width": "70px"}
        wide = {"style": narrow, "layout": widgets.Layout(flex="1 1 200px", width="auto", max_width="420px")}
        self.query = widgets.Combobox(
            description="Query", ensure_option=False, continuous_update=False, options=self.views.suggest(""), **wide
        )
        # plotly hears no keys: hits are walked through with the arrows
        self.rank = widgets.BoundedIntText(
            description="Show rank", min=0, style=narrow, layout=widgets.Layout(width="160px")
        )
        names = [(draw.plain(name), name) for name in self.views.names]
        self.variant = widgets.Dropdown(description="Model", options=names, **wide)
        self.colour = widgets.Dropdown(description="Colour", options=get_args(Colour), **wide)
        for name in ("variant", "colour"):
            getattr(self, name).observe(
                self._guard(lambda change, name=name: self.show(**{name: change["new"]})), "value"
            )
        self.query.observe(self._guard(lambda change: self.show(query=change["new"], selected=None)), "value")
        self.rank.observe(self._guard(lambda change: self._ranked(change["new"])), "value")

    def _set_controls(self) -> None:
        """Controls show the state; setting them asks for nothing."""
        self._quiet = True
        try:
            self.query.value = draw.plain(self.state.query)
            self.variant.value, self.colour.value = self.state.variant, self.state.colour
            self.rank.max = self.state.k
            if self.state.selected is None:
                self.rank.value = 0
        finally:
            self._quiet = False

    async def _show(self, state: MapState, turn: int, loop: asyncio.AbstractEventLoop | None) -> None:
        try:
            table, query = await self._ask(turn, loop, self.line, "Laying out products …", self.table, state)
            with self._at(turn):
                self.alert.value, self.line.value = "", self.caption(state)
                self._fill(table, query, state)
                hits = table[table["rank"] > 0].sort_values("rank")
                self._ranks = hits["row"].tolist()
                self._look(self.views.row(state.selected) if state.selected else self._ranks[0])
        except Exception as error:
            with contextlib.suppress(Overtaken), self._at(turn):
                self._complain(error)

    def _fill(self, table: pd.DataFrame, query: np.ndarray, state: MapState) -> None:
        """Points into the figure: a trace for each colour, rings around hits, a star where the query is."""
        parts = groups(table, state.colour)
        hits = table[table["rank"] > 0]
        traces = [
            _points(part, name, size=6, opacity=0.85, **_scale(part) if colour is None else {"color": colour})
            for name, colour, part in parts
        ]
        ring = {"color": "rgba(0,0,0,0)", "size": 13, "line": {"color": "#D55E00", "width": 2}}
        traces.append(_points(hits, "hits", **ring))
        star = {"symbol": "star", "size": 16, "color": "#D55E00", "line": {"color": "white", "width": 1}}
        traces.append(
            go.Scatter(x=query[:1], y=query[1:], mode="markers", name="the query", hoverinfo="name", marker=star)
        )
        traces.append(go.Scatter(mode="markers", name="shown", hoverinfo="skip", marker=ring | {"size": 20}))
        with self.figure.batch_update():
            self.figure.data = ()
            self.figure.add_traces(traces)
        drawn = [*(part["row"].to_numpy() for *_, part in parts), hits["row"].to_numpy()]
        for trace, rows in zip(self.figure.data, drawn, strict=False):
            trace.on_hover(self._pointed(rows))
            trace.on_click(self._pointed(rows, keep=True))

    def _pointed(self, rows: np.ndarray, keep: bool = False) -> Any:
        """What pointing at a trace's products does: their photograph is shown; a click keeps it."""

        guarded = self._guard(self._keep if keep else self._look)
        return lambda _, points, __: points.point_inds and guarded(int(rows[points.point_inds[0]]))

    def _keep(self, row: int) -> None:
        self.state = dataclasses.replace(self.state, selected=self.views.catalog.products["product_id"].iloc[row])
        self._look(row)

    def _ranked(self, rank: int) -> None:
        if rank:
            self._keep(self._ranks[rank - 1])

    def _look(self, row: int) -> None:
        """A product beside the map, as the query explorer shows it; marked on the map."""
        retriever = self.views.open(self.state.variant)
        with self.figure.batch_update():
            (self.figure.data[-1].x, self.figure.data[-1].y) = (
                self._plane(self.state.variant).places(retriever.vectors.embedding[[row]]).T
            )
        vector = retriever.embed(self.state.query)
        scores = retriever.vectors.embedding[[row]].astype(np.float32) @ vector
        hit = self.views.marked(retriever.hits(vector, np.array([row]), scores), self.state).iloc[0].to_dict()
        hit["rank"] = self._ranks.index(row) + 1 if row in self._ranks else "–"
        self.panel.value = draw.page(draw.tile(hit, self.views.thumbnail))


def groups(table: pd.DataFrame, colour: Colour) -> list[tuple[str, str | None, pd.DataFrame]]:
    """Parts of a table, each with its name and one colour; None: coloured point by point, by `weight`."""
    if colour == "weight of the image":
        return [("products", None, table)] if table["weight"].notna().any() else [("no weights", "#999999", table)]
    if colour == "relevance":
        kind = np.select([table["relevance"] >= 1, table["relevance"] > 0, table["relevance"] == 0], [2, 1, 0], -1)
        named = (
            ("not judged", "#BBBBBB", -1),
            ("not relevant", "#999999", 0),
            ("partly", "#56B4E9", 1),
            ("relevant", "#009E73", 2),
        )
        return [(name, shade, table[kind == number]) for name, shade, number in named if (kind == number).any()]
    largest = table["category"].value_counts().index[:CATEGORIES]
    parts = [
        (str(name), plots.PALETTE[number % len(plots.PALETTE)], table[table["category"] == name])
        for number, name in enumerate(largest)
    ]
    others = table[~table["category"].isin(largest)]
    return ([("others", "#BBBBBB", others)] if len(others) else []) + parts


def _points(part: pd.DataFrame, name: str, **marker: Any) -> go.Scatter:
    """Products as points; titles and categories are untrusted, and plotly reads tags."""
    said = [html.escape(draw.plain(title))[:80] if isinstance(title, str) else "no title" for title in part["title"]]
    return go.Scatter(
        x=part["x"], y=part["y"], mode="markers", name=html.escape(draw.plain(name)), text=said, hoverinfo="text", marker=marker
    )  # fmt: skip


def _scale(part: pd.DataFrame) -> dict[str, Any]:
    return {
        "color": part["weight"], "colorscale": "Cividis", "cmin": 0, "cmax": 1,
        "colorbar": {"title": {"text": "weight of the image"}, "thickness": 12},
    }  # fmt: skip


def _line(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", width="100%"))
