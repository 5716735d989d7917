"""What keeps a widget alive while it works: one lock, turns that can be overtaken, questions asked in threads, errors as sentences."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import display

from makelib.runtime import UserError
from makelib.workbook.explorer import html as draw

#: seconds until a question that still runs says so
PATIENCE = 0.25


#: the explorer that each cell of the notebook shows
_SHOWN: dict[str, Live] = {}


class Live:
    """Base of the explorers. A subclass has a `state`, an `alert` (`widgets.HTML`), `_set_controls()`, which makes the controls
    show the state, `_show(state, turn, loop, …)`, which draws it and may be
    overtaken at every `await`, a `widget`, and its static twin as `_repr_mimebundle_`."""

    state: Any
    alert: widgets.HTML

    def __init__(self) -> None:
        # JupyterLab hands a widget's messages to a thread of their own, but the first ones to the kernel's: two threads, two
        # loops. Whoever changes anything holds the lock; whoever was overtaken meanwhile sees it by its number.
        self._lock = threading.RLock()
        self._turn = 0
        self._drawing: asyncio.Task | None = None
        self._quiet = False

    def _ipython_display_(self) -> None:
        """The widget, and beside it its twin for whoever opens the saved notebook without its kernel; a page that is never saved,
        Voilà's, has no use for that one."""
        if os.environ.get("MAKELIB_HEADLESS") == "1":
            return display(self._repr_mimebundle_(), raw=True)
        self._succeed()
        display(self.widget)
        if not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            twin = self._repr_mimebundle_()
            display({**twin, "text/html": draw.twin(twin["text/html"])}, raw=True)

    def _succeed(self) -> None:
        """Take the place of the explorer that this cell showed before: ipywidgets would keep it for ever."""
        shell = get_ipython()
        cell = shell.parent_header.get("metadata", {}).get("cellId") if hasattr(shell, "parent_header") else None
        if cell is not None:
            before = _SHOWN.get(cell)
            _SHOWN[cell] = self
            if before is not None and before not in _SHOWN.values():
                before.close()

    def close(self) -> None:
        """End the widget and give back what it holds."""
        if box := self.__dict__.pop("widget", None):
            for part in parts(box):
                part.close()

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

    def _draw(self, at_once: bool = False, **how: Any) -> None:
        """Draw the state; in a kernel that is a task, which ends where it finds that a newer state overtook it."""
        self._turn += 1
        try:
            loop = None if at_once else asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        drawing = self._show(self.state, self._turn, loop, **how)
        if loop is not None:
            self._drawing = loop.create_task(drawing)
        else:
            with contextlib.suppress(StopIteration):
                drawing.send(None)  # without a loop it waits for nothing, and one push takes it to its end

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
        question: Callable[[Any], Any],
        state: Any,
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


class Overtaken(Exception):
    """A newer state is being drawn; whoever raises this draws no more."""


def parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """A widget and all that hangs on it."""
    for name in ("layout", "style"):
        if isinstance(part := getattr(widget, name, None), widgets.Widget):
            yield part
    for child in getattr(widget, "children", ()):
        yield from parts(child)
    yield widget
