"""One process for all visitors of the explorer's page: it opens the models once, and the kernel of each visitor is forked from it.

A kernel of one's own costs a visitor seconds of imports and hundreds of megabytes; a fork shares what was loaded before it. `serve` opens
what the page's notebook opens, starts Voilà, and forks whenever Voilà starts a kernel. What Voilà starts is
`templates/kernels/python3/stand_in.py`: it asks for a fork and lives as long as that, so whoever ends one ends the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from makelib.runtime import UserError, loading, set_threads

if TYPE_CHECKING:
    from ipykernel.kernelapp import IPKernelApp

    from makelib.workbook.explorer.widget import QueryExplorer

#: where a stand-in finds the address of the process that forks
ADDRESS = "MAKELIB_KERNELS"
#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in bytes, and M_ARENA_MAX: what a search was computed in goes back to the system
_GIVE_BACK = {-3: 1 << 14, -1: 1 << 16, -8: 1}
#: what a kernel imports before it answers; after the training, which would take this terminal for a notebook
KERNEL = (
    "ipykernel.kernelapp", "ipykernel.debugger", "tornado.platform.asyncio", "sqlite3", "IPython.core.completerlib",
    "IPython.core.debugger", "IPython.core.logger", "IPython.core.oinspect", "IPython.extensions.storemagic",
)  # fmt: skip
#: variants that the page opens, and trains where nobody has yet
VARIANTS = ("full", "title")


def serve(notebook: Path, voila: Sequence[str]) -> int:
    """Open the models of a notebook's `parameters`, and run Voilà with these words until it ends; returns its exit code."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # which gives back what it read, see `_GIVE_BACK`
    held = opened(notebook)
    app = _kernel()
    with contextlib.suppress(AttributeError):  # a libc without it gives memory back its own way
        for what, size in _GIVE_BACK.items():
            ctypes.CDLL(None).mallopt(what, size)
    gc.collect()
    _trim()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{folder}/door")
        door.listen()
        door.settimeout(1)
        # elsewhere than on Linux what torch has loaded does not survive a fork
        environment = os.environ | ({ADDRESS: f"{folder}/door"} if sys.platform == "linux" else {})
        server = subprocess.Popen([sys.executable, "-m", "voila", *voila], env=environment)
        for number in (signal.SIGTERM, signal.SIGINT):  # which a shell's background would ignore
            signal.signal(number, signal.default_int_handler)
        kernels: set[int] = set()
        try:
            while server.poll() is None:
                with contextlib.suppress(TimeoutError):
                    connection, _ = door.accept()
                    if (kernel := os.fork()) == 0:
                        _become_kernel(app, connection)
                    kernels.add(kernel)
                    connection.close()
                kernels -= {kernel for kernel in kernels if os.waitpid(kernel, os.WNOHANG)[0]}
        except KeyboardInterrupt:
            server.terminate()  # it ends its kernels; Ctrl-C told it, too
        del held
        return server.wait()


def opened(notebook: Path) -> QueryExplorer:
    """An explorer of what the notebook opens, all that it draws drawn once; with one thread, for whoever has more is not forked safely.

    Where models are missing it trains them, and the process begins anew: this does not return then.
    """
    with loading():
        from makelib.study.experiment import Experiment
        from makelib.workbook import notebook as chapter  # noqa: F401  as the page does
        from makelib.workbook.explorer.widget import QueryExplorer

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    given: dict = {}
    for cell in cells:
        if "parameters" in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]), given)  # as Voilà would; the notebook is of this folder
    _say("Opening the catalogue; the generated one is made on first use …")
    experiment = Experiment.open(*(given[name] for name in ("run", "preset", "catalog", "seeds", "overrides")))
    arms = [experiment.arm("make", variant, experiment.settings.seeds[0]) for variant in VARIANTS]
    if missing := [arm.label for arm in arms if not arm.done]:
        _say(
            f"Nobody has trained {' and '.join(missing)} yet: that comes first, once. About a minute with smoke, four with quick, "
            "on two cores; the bars say how far it is."
        )
        experiment.train(arms)
        # a process that has trained has threads whose locks a fork would keep for ever: begin again, without them
        os.execv(sys.executable, [sys.executable, "-m", "makelib.workbook.visitors", *sys.argv[1:]])
    set_threads(1)
    _say("Opening the models …")
    explorer = QueryExplorer(experiment)
    for name in explorer.views.names:
        explorer.views.open(name)
    explorer._repr_mimebundle_()
    return explorer


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _kernel() -> IPKernelApp:
    """The kernel that each fork begins with, all that it needs imported. What a fork so much as looks at it copies, page by page: so it
    is never told the names of all modules (9 MiB) or of all settings that words could change (another 9), nor has it a debugger, which
    would be told the files of all modules (30)."""
    sys.modules["debugpy"] = None
    for module in KERNEL:
        importlib.import_module(module)
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance(parent_handle=os.getpid())
    app.log.setLevel("ERROR")  # the terminal is Voilà's
    app.parse_command_line = app.init_code = lambda *_: None
    return app


def _trim() -> None:
    """Free pages of the heap back to the system, where the libc does that."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _become_kernel(app: IPKernelApp, connection: socket.socket) -> None:
    """In the fork: be the kernel that a stand-in asks for, in its folder and environment, until either ends."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with connection.makefile("rb") as sent:
        connection_file, folder, *environment = map(os.fsdecode, sent.read(int.from_bytes(sent.read(4))).split(b"\0"))
    os.chdir(folder)
    os.environ.clear()
    os.environ |= dict(line.split("=", 1) for line in environment)

    def leave() -> None:
        connection.recv(1)  # nothing ever comes: the stand-in was ended
        os._exit(0)

    threading.Thread(target=leave, daemon=True).start()
    import ipywidgets
    from ipykernel import ipkernel

    try:
        app.connection_file = connection_file
        ipkernel.sys = types.SimpleNamespace(**vars(sys) | {"modules": {}})  # see `_kernel`
        app.initialize()
        ipkernel.sys = sys
        app.shell.events.register("post_execute", _trim)
        ipywidgets.register_comm_target()  # as it does where a kernel imports it; without it a page asks for its widgets one by one
        app.start()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def main(words: Sequence[str]) -> int:
    """`<notebook> <words for Voilà>`."""
    try:
        return serve(Path(words[0]), words[1:])
    except UserError as error:
        print(f"makelib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # the interpreter's own end takes seconds over what is frozen, and calls it leaked
