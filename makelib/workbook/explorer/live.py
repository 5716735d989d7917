"""What keeps a widget alive while it works: one lock, turns that can be overtaken, questions asked in threads, errors as sentences."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets

from makelib.runtime import UserError
from makelib.workbook.explorer import html as draw

#: seconds until a question that still runs says so
PATIENCE = 0.25


class Live:
    """Base of the explorers. A subclass has a `state`, an `alert` (`widgets.HTML`), `_set_controls()`, which makes the controls
    show the state, and `_show(state, turn, loop, …)`, which draws it and may be overtaken at every `await`."""

    state: Any
    alert: widgets.HTML

    def __init__(self) -> None:
        # JupyterLab hands a widget's messages to a thread of their own, but the first ones to the kernel's: two threads, two
        # loops. Whoever changes anything holds the lock; whoever was overtaken meanwhile sees it by its number.
        self._lock = threading.RLock()
        self._turn = 0
        self._drawing: asyncio.Task | None = None
        self._quiet = False

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
