"""The ablation explorer: choose what is compared, see the verdict, open a query, train what is missing.

`Views` turns a `State` into HTML; this is the thin shell of widgets around it. It draws through `HTML` values only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML

from makelib.study.arms import Arm
from makelib.study.experiment import Experiment
from makelib.study.studies import STUDIES
from makelib.workbook.ablations import html as draw
from makelib.workbook.ablations.state import (
    EVERYTHING,
    LEVELS,
    State,
    changed,
    completions,
    names,
    parts_of,
    read_changes,
    read_values,
    written,
)
from makelib.workbook.ablations.training import Progress, Training
from makelib.workbook.ablations.views import TILES, K, Views
from makelib.workbook.explorer.html import alert, plain, text
from makelib.workbook.explorer.live import Live, Overtaken
from makelib.workbook.reports.verdict import points

#: settings and queries that are suggested while one is typed
SUGGESTIONS = 12
#: what another study leaves behind, and what another choice of arms or scores does
ANEW = {"variants": (), "reference": "", "against": "", "seeds": (), "place": 0, "rank": 0}
REORDERED = {"place": 0, "rank": 0}


class AblationExplorer(Live):
    """Compare trained variants of a run; one line in a notebook.

    Args:
        source: a run's folder or name, or an `Experiment`.
        changes: attributes of `State` to begin with, such as `metric="HitRate@100"`.

    Example:
        >>> AblationExplorer("quick")                                          # doctest: +SKIP
    """

    def __init__(self, source: Path | str | Experiment, **changes: Any) -> None:
        super().__init__()
        self.views = Views(source)
        self.state = self.views.check(State(**changes))
        self.training: Training | None = None

    # -- for a notebook cell --------------------------------------------------------------------------------------

    def page(self, **changes: Any) -> HTML:
        """What a state shows as static HTML: `explorer.page(metric="HitRate@100", segment="image-led")`."""
        return HTML(self.views.twin(dataclasses.replace(self.state, **changes)))

    def show(self, **changes: Any) -> None:
        """Change what is shown: `explorer.show(reference="mean")`."""
        with self._lock:
            self.state = self.views.check(dataclasses.replace(self.state, **changes))
            if "widget" in self.__dict__:
                self._set_controls()
                self._draw()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The static twin: what headless runs and exported pages show."""
        return {
            "text/plain": f"AblationExplorer({self.views.experiment.run})",
            "text/html": self.views.twin(self.state),
        }

    # -- widgets --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def widget(self) -> widgets.VBox:
        """The widget; made when first shown."""
        self._make_controls()
        self._listen()
        box = self._laid_out()
        settings = self.views.experiment.settings
        self.changes.options, self.setting.options = completions(settings, ""), names(settings)
        self._set_controls()
        self._draw(at_once=True)
        return box

    def _make_controls(self) -> None:
        views, narrow = self.views, {"description_width": "78px"}
        choice = functools.partial(
            widgets.Dropdown, style=narrow, layout=widgets.Layout(flex="1 1 190px", width="auto", max_width="380px")
        )
        wide = functools.partial(
            widgets.Combobox, ensure_option=False, style=narrow, layout=widgets.Layout(flex="1 1 320px", width="auto")
        )
        self.study = choice(description="Study", options=list(views.studies))
        self.metric = choice(description="Metric", options=views.metrics)
        self.segment = choice(
            description="Queries",
            options=[(f"{plain(name)} ({int(views.segments[name].sum())})", name) for name in views.segments],
        )
        self.level = choice(description="Level", options=[(f"{level:.0%}", level) for level in LEVELS])
        self.reference, self.against = choice(description="Reference"), choice(description="Look at")
        self.variants, self.seeds = (
            widgets.HBox(layout=widgets.Layout(flex_flow="row wrap", width="100%")).add_class("mka-checks")
            for _ in range(2)
        )
        self.alert, self.board, self.bars, self.segments, self.beside, self.panel = (widgets.HTML() for _ in range(6))
        self.place = widgets.BoundedIntText(
            description="Query no.", min=0, style=narrow, layout=widgets.Layout(width="160px")
        )
        self.rank = widgets.BoundedIntText(
            description="Explain rank", min=0, max=K, style={"description_width": "initial"},
            layout=widgets.Layout(width="160px"),
        )  # fmt: skip
        self.find = wide(description="Find query", placeholder="words of a query")
        self.tiles = [
            widgets.Button(layout=widgets.Layout(flex="1 1 150px", width="auto", max_width="32%"))
            for _ in range(2 * TILES)
        ]
        self.missing = choice(description="Variant")
        self.changes = wide(
            description="Settings", placeholder="model.fusion=gate, training.steps=100", continuous_update=True
        )
        self.count = widgets.BoundedIntText(
            description="Seeds", value=len(views.experiment.settings.seeds), min=1, max=20, style=narrow,
            layout=widgets.Layout(width="150px"),
        )  # fmt: skip
        self.start, self.stop = widgets.Button(description="Train"), widgets.Button(description="Stop", disabled=True)
        self.estimate, self.progress, self.sweep = (widgets.HTML() for _ in range(3))
        self.setting = wide(description="Setting", placeholder="training.steps", continuous_update=True)
        self.values = widgets.Text(
            description="Values", placeholder="60, 120, 240 (empty: all trained)", continuous_update=False, style=narrow,
            layout=widgets.Layout(flex="1 1 220px", width="auto"),
        )  # fmt: skip
        self.start_sweep = widgets.Button(
            description="Train missing values", layout=widgets.Layout(width="auto"), disabled=True
        )

    def _listen(self) -> None:
        self.study.observe(self._guard(lambda change: self.show(study=change["new"], **ANEW)), "value")
        for name in ("metric", "segment", "level", "reference", "against"):
            self._follow(getattr(self, name), name, **({} if name == "level" else REORDERED))
        self._follow(self.place, "place", rank=0)
        self._follow(self.rank, "rank")
        self.find.observe(self._guard(lambda change: self._found(change["new"])), "value")
        for number, tile in enumerate(self.tiles):
            tile.on_click(self._guard(lambda _, number=number: self._tile(number)))
        self.missing.observe(self._guard(lambda change: self._suggest(change["new"])), "value")
        self.changes.observe(self._guard(lambda change: self._priced(change["new"])), "value")
        self.count.observe(self._guard(lambda _: self._priced(self.changes.value)), "value")
        self.start.on_click(self._guard(lambda _: self._train(self._asked())))
        self.stop.on_click(self._guard(lambda _: self.training and self.training.stop()))
        self.setting.observe(self._guard(lambda change: self._swept(change["new"], self.values.value)), "value")
        self.values.observe(self._guard(lambda change: self._swept(self.setting.value, change["new"])), "value")
        self.start_sweep.on_click(self._guard(lambda _: self._train(self._swept_arms(), sweep=True)))

    def _laid_out(self) -> widgets.VBox:
        def line(*children: widgets.Widget) -> widgets.HBox:
            return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", width="100%"))

        train = widgets.VBox([line(self.missing, self.changes, self.count), self.estimate, line(self.start, self.stop)])
        sweep = widgets.VBox([line(self.setting, self.values, self.start_sweep), self.sweep])
        by_query = widgets.VBox(
            [
                self.bars, line(self.place, self.find), line(*self.tiles[:TILES]).add_class("mka-tiles"),
                line(*self.tiles[TILES:]).add_class("mka-tiles"), self.beside, self.rank, self.panel,
            ]
        )  # fmt: skip
        tools = {
            "Query by query": by_query,
            "Segment by segment": self.segments,
            "Train what is missing": train,
            "Sweep a setting": sweep,
        }
        # buttons, for the keyboard reaches them, and not the headings of an accordion
        self.tool = widgets.ToggleButtons(options=list(tools), style={"button_width": "auto"}).add_class("mka-tools")

        def turn(chosen: str) -> None:
            for name, panel in tools.items():
                panel.layout.display = None if name == chosen else "none"

        turn(self.tool.value)
        self.tool.observe(self._guard(lambda change: turn(change["new"])), "value")
        box = widgets.VBox(
            [
                widgets.HTML(draw.style(), layout=widgets.Layout(display="none")),
                line(self.study, self.metric, self.segment), line(self.reference, self.against, self.level),
                self.variants, self.seeds, self.alert, self.board, self.tool, *tools.values(), self.progress,
            ]
        )  # fmt: skip
        for name in ("mkx", "mkx-panel", "mka-wide"):
            box.add_class(name)
        return box

    def _follow(self, control: widgets.Widget, name: str, **also: Any) -> None:
        """A control that sets one attribute of the state, and `also` these."""
        control.observe(self._guard(lambda change: self.show(**also | {name: change["new"]})), "value")

    def _checks(self, box: widgets.HBox, label: str, offered: Sequence[Any], chosen: Sequence[Any], name: str) -> None:
        """Check boxes, one for each that is offered; made anew only where the offer changed."""
        if tuple(check.meaning for check in box.children[1:]) != tuple(offered):
            checks = [
                widgets.Checkbox(description=plain(it), indent=False, layout=widgets.Layout(width="auto"))
                for it in offered
            ]
            for check, it in zip(checks, offered, strict=True):
                check.meaning = it
                check.observe(self._guard(lambda _: self._checked(box, name)), "value")
            box.children = [widgets.HTML(f"<b>{label}</b>"), *checks]
        for check in box.children[1:]:
            check.value = check.meaning in chosen
            check.disabled = name == "variants" and check.meaning == self.state.reference

    def _checked(self, box: widgets.HBox, name: str) -> None:
        chosen = tuple(check.meaning for check in box.children[1:] if check.value)
        self.show(**({"seeds": ()} if name == "variants" else {}), **{name: chosen}, **REORDERED)

    def _set_controls(self) -> None:
        """Controls show the state; setting them asks for nothing."""
        self._quiet = True
        try:
            state, views = self.state, self.views
            there = list(views.studies[state.study])
            for box, offered in (
                (self.study, list(views.studies)),
                (self.reference, [(plain(name), name) for name in there]),
                (self.against, [(plain(name), name) for name in state.variants if name != state.reference]),
                (self.missing, [("choose, or write settings", ""), *((label, label) for label in self._untrained())]),
            ):
                if list(box.options) != offered:
                    box.options = offered
            for name in ("study", "metric", "segment", "level", "reference", "against"):
                getattr(self, name).value = getattr(state, name)
            self._checks(self.variants, "Variants", there, state.variants, "variants")
            self._checks(self.seeds, "Seeds", views.seeds(state.study, state.variants), state.seeds, "seeds")
            self.rank.value = state.rank
            self.rank.layout.display = None if state.place else "none"
        finally:
            self._quiet = False

    # -- query by query -------------------------------------------------------------------------------------------

    def _found(self, typed: str) -> None:
        """Queries that hold what is typed are offered; one that is written out is opened."""
        table = self.views.per_query(self.state)
        said = table["query"].str.strip().str.lower()
        hold = table["query"][said.str.contains(typed.strip().lower(), regex=False)]
        self.find.options = [plain(query) for query in dict.fromkeys(hold)][:SUGGESTIONS]
        exact = said[said == typed.strip().lower()].index
        if len(exact):
            self.show(place=int(exact[0]) + 1, rank=0)

    def _tile(self, number: int) -> None:
        """The first tiles are the greatest wins, the others the greatest losses, the greatest first."""
        queries = len(self.views.per_query(self.state))
        self.show(place=number + 1 if number < TILES else queries - (number - TILES), rank=0)

    def _offer(self, state: State) -> None:
        """Places and tiles of the queries of a state."""
        table = self.views.per_query(state)
        self._quiet = True
        try:
            self.place.max = len(table)
            self.place.value = state.place
            ends = [*range(TILES), *range(len(table) - 1, len(table) - 1 - TILES, -1)]
            for number, (tile, at) in enumerate(zip(self.tiles, ends, strict=True)):
                gap = table["difference"].iloc[at] if 0 <= at < len(table) else 0.0
                shown = gap > 0 if number < TILES else gap < 0
                tile.layout.display = None if shown else "none"
                tile.description = f"{points(gap)}  {plain(table['query'].iloc[at])}" if shown else ""
                tile.tooltip = f"Open this query, which {'wins' if number < TILES else 'loses'}"
        finally:
            self._quiet = False

    # -- training -------------------------------------------------------------------------------------------------

    def _untrained(self) -> list[str]:
        """Variants of the studies that are not trained."""
        known = self.views.studies[EVERYTHING].values()
        base = self.views.experiment.settings
        found = {}
        for study, variants in STUDIES.items():
            for name, changes in variants.items():
                settings = base.replace(**changes)
                if parts_of(settings) not in known:
                    found.setdefault(parts_of(settings), f"{name} ({study})")
        return list(found.values())

    def _suggest(self, label: str) -> None:
        if label:
            name, _, study = label.removesuffix(")").partition(" (")
            base = self.views.experiment.settings
            self.changes.value = written(changed(base, base.replace(**STUDIES[study][name])))
            self._priced(self.changes.value)

    def _arms(self, changes: dict[str, Any]) -> list[Arm]:
        """Arms of changed settings, one for each seed that is asked for. Raises `UserError` for settings that do not exist."""
        experiment = self.views.experiment
        label = written(changed(experiment.settings, experiment.settings.replace(**changes))) or "as set"
        seeds = [*experiment.settings.seeds, *range(20)]
        return [
            experiment.changed(changes, seed, "own", label) for seed in list(dict.fromkeys(seeds))[: self.count.value]
        ]

    def _asked(self) -> list[Arm]:
        return self._arms(read_changes(self.changes.value))

    def _priced(self, typed: str) -> None:
        """While settings are typed they are completed; once they are whole, their cost is estimated."""
        self.changes.options = completions(self.views.experiment.settings, typed)[: 4 * SUGGESTIONS]
        try:
            arms = self._arms(read_changes(typed))
        except Exception as error:  # not written to its end
            self.estimate.value = f"<p>{text(str(error).splitlines()[0][:200])}</p>" if "=" in typed else ""
        else:
            self.estimate.value = f"<p>{self._cost(arms)}</p>"

    def _cost(self, arms: Sequence[Arm]) -> str:
        todo = [arm for arm in arms if not arm.done]
        if not todo:
            return "Trained already; it stands among the variants of “everything trained”."
        begun = sum((arm.folder / "checkpoint").is_dir() for arm in todo)
        seconds = self.views.estimate(todo)
        goes_on = f" {begun} of them go on from a checkpoint." if begun else ""
        return f"{len(todo)} training{'s' * (len(todo) > 1)}, about {_duration(seconds)}, judged by the arms that ran.{goes_on}"

    def _train(self, arms: Sequence[Arm], sweep: bool = False) -> None:
        todo = [arm for arm in arms if not arm.done]
        self.alert.value = ""
        if not todo:
            self.progress.value = draw.training("Trained already.", 1, 1, Progress(arms).curves())
            return
        if self.training and self.training.thread.is_alive():
            self.alert.value = alert("A training is running; stop it, or wait until it is done.")
            return
        self.start.disabled = self.start_sweep.disabled = True
        self.stop.disabled = False
        self._sweeping = sweep
        self.training = Training(self.views.experiment, todo, self._told)

    def _told(self, progress: Progress) -> None:
        """Called from the training's thread, every half second and at the end."""
        curves, arm = progress.curves(), progress.arm
        steps = int(curves["step"].iloc[-1]) if len(curves) else 0
        of = f"{progress.position + 1} of {len(progress.arms)} · " if len(progress.arms) > 1 else ""
        said = {
            "training": f"training {of}{arm.label}: step {steps} of {progress.steps}" + ("" if steps else ", starting"),
            "stopped": f"stopped at step {steps} of {arm.label}; Train goes on from its last checkpoint",
            "failed": f"{arm.label} failed: {progress.error}",
            "done": f"done: {', '.join(plain(each.label) for each in progress.arms)}",
        }[progress.state]
        with self._lock:
            self.progress.value = draw.training(said, steps, progress.steps, curves)
            if progress.state != "training":
                self.start.disabled, self.stop.disabled = False, True
                self._guard(lambda _: self._trained(progress))(None)

    def _trained(self, progress: Progress) -> None:
        self.start.description = "Go on" if progress.state == "stopped" else "Train"
        self.views.reload()
        if progress.state == "done" and not self._sweeping:
            everything = self.views.studies[EVERYTHING]
            base = self.views.experiment.settings
            name = next(name for name, key in everything.items() if key == parts_of(progress.arm.settings))
            usual = next((n for n, key in everything.items() if key == parts_of(base)), None)
            reference = usual if usual not in (None, name) else next(n for n in everything if n != name)
            self.show(
                study=EVERYTHING, **ANEW | {"variants": (name, reference), "reference": reference, "against": name}
            )
        else:
            self._swept(self.setting.value, self.values.value)
            self._set_controls()

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def _swept(self, setting: str, values: str) -> None:
        """A sweep is drawn once its setting is written out."""
        setting = setting.strip()
        self.setting.options = [name for name in names(self.views.experiment.settings) if setting in name]
        self.sweep.value, self.start_sweep.disabled = "", True
        self.state = dataclasses.replace(self.state, setting="", values=())
        if setting in names(self.views.experiment.settings):
            state = dataclasses.replace(self.state, setting=setting, values=read_values(values))
            missing = self.views.sweep(state)[1]
            self.state = state
            cost = f"<p>{self._cost(self._swept_arms())}</p>" if missing else ""
            self.sweep.value = self.views.curve(state) + cost
            self.start_sweep.disabled = not missing

    def _swept_arms(self) -> list[Arm]:
        changes = changed(self.views.experiment.settings, self.views.base(self.state))
        missing = self.views.sweep(self.state)[1]
        return [arm for value in missing for arm in self._arms(changes | {self.state.setting: value})]

    # -- drawing --------------------------------------------------------------------------------------------------

    async def _show(self, state: State, turn: int, loop: asyncio.AbstractEventLoop | None) -> None:
        """The board first, then what takes longer."""
        try:
            board = await self._ask(turn, loop, self.board, "Comparing …", self.views.board, state)
            with self._at(turn):
                self.alert.value, self.board.value = "", board
                self.bars.value = self.views.queries(state)
                self._offer(state)
            for place, said, question in (
                (self.beside, "Searching with both …", self.views.beside),
                (self.panel, "Asking the models why …", self.views.why),
                (self.segments, "Comparing segment by segment …", self.views.where),
                (self.sweep, "Drawing …", self.views.curve),
            ):
                answer = await self._ask(turn, loop, place, said, question, state)
                with self._at(turn):
                    place.value = answer
        except Exception as error:
            with contextlib.suppress(Overtaken), self._at(turn):
                self._complain(error)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
