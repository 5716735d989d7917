"""What every other module needs from the process it runs in: errors a user can mend, progress, safe writes, provenance.

Nothing here knows products, queries or models.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import functools
import glob
import hashlib
import html
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil
import tqdm

#: what decides a trained model, and what its scores beside; a change of figures or of an explorer computes nothing again
TRAINING_CODE = ("data/*.py", "model/*.py")
SCORING_CODE = ("search/index.py", "search/faiss_engine.py", "search/retriever.py", "study/metrics.py")
PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "datasets", "accelerate", "faiss-cpu", "ir-measures", "scipy",
    "scikit-learn", "bm25s", "numpy", "pandas", "matplotlib", "jupyterlab", "ipywidgets", "papermill", "nbconvert",
)  # fmt: skip


class OneLine:
    """An exception that a person is told in one line: IPython asks it how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [" ".join(str(self).split())]


class UserError(OneLine, Exception):
    """A mistake the user can mend. Say what is wrong, where, and how to mend it; the command line prints it as one
    line, without a traceback, and exits with code 2. A notebook shows the line, too, and no traceback."""


class Stopped(OneLine, KeyboardInterrupt):
    """The user stopped something; says what is kept and how to go on."""


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a word that is not known: which ones it resembles, or all of them if few."""
    known = list(known)
    close = [name for name in known if name.endswith(f".{word}")] or difflib.get_close_matches(word, known, n=2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there is {', '.join(known)}." if len(known) <= 24 else "makelib/settings.py has them all."


def progress(
    iterable: Iterable | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    disable: bool = False,
) -> tqdm.tqdm:
    """A progress bar: a widget in JupyterLab, a line in a terminal, a rare plain line where output is a log.

    In a headless notebook (`MAKELIB_HEADLESS=1`, set by the report runner) a bar would flood the report, so there is none.
    """
    headless = os.environ.get("MAKELIB_HEADLESS") == "1"
    bar = _notebook_bar() if "ipykernel" in sys.modules else tqdm.tqdm
    mininterval = 0.2 if "ipykernel" in sys.modules or sys.stderr.isatty() else 10.0
    return bar(
        iterable, desc=description, total=total, unit=unit, disable=disable or headless, mininterval=mininterval, leave=False
    )  # fmt: skip


@functools.cache
def _notebook_bar() -> type[tqdm.tqdm]:
    """tqdm's bar for notebooks, in whose place a line of text stays when it is done: a saved notebook has no widgets, and would
    show the bar's first state for ever. While it runs a line for whoever opens the page anew stands behind it: a kernel that is
    busy tells a new page nothing."""
    from IPython.display import display
    from tqdm.notebook import tqdm as notebook_bar

    class Bar(notebook_bar):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, display=False)
            if not self.disable:
                self.place = display(self.container, display_id=True)
                self.began, self.told = time.strftime("%H:%M"), time.monotonic()
                self.reopened = display(self._reopened(), raw=True, display_id=True)

        def _reopened(self) -> dict[str, str]:
            of = f" of {self.total:,}" if self.total else ""
            said = (
                f"{self.desc.rstrip(': ')}: began at {self.began}, {self.n:,}{of} {self.unit}s when this page was saved. The kernel is "
                "at it until the foot of this window calls it Idle; then run the cell again: what is done is kept."
            )
            return {"text/html": f'{_REOPENED}<p class="makelib-reopened">{html.escape(said)}</p>', "text/plain": said}

        def display(self, *arguments: Any, **options: Any) -> None:
            super().display(*arguments, **options)
            if getattr(self, "reopened", None) is not None and time.monotonic() - self.told > 5:
                self.told = time.monotonic()
                self.reopened.update(self._reopened(), raw=True)

        def close(self) -> None:
            open_until_now = not self.disable
            super().close()
            if open_until_now and self.place is not None:
                facts = self.format_dict
                of = f" of {self.total:,}" if self.total and self.n != self.total else ""
                took = self.format_interval(facts["elapsed"])
                line = f"{self.desc.rstrip(': ')}: {self.n:,}{of} {self.unit}{'s' * (self.n != 1)} in {took}"
                self.place.update({"text/plain": line}, raw=True)
                self.reopened.update({"text/plain": ""}, raw=True)

    return Bar


#: of a bar and the line behind it one shows: the bar where its widget lives, else the line
_REOPENED = """<style>
.jp-OutputArea-child:has(.jupyter-widgets) + .jp-OutputArea-child:has(.makelib-reopened),
.jp-OutputArea-child:not(:has(.jupyter-widgets)):has(+ .jp-OutputArea-child .makelib-reopened) { display: none; }
</style>"""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Says that torch is loaded, which takes seconds, before it is: in a notebook, or on the standard error of a terminal."""
    headless = os.environ.get("MAKELIB_HEADLESS") == "1"
    if "torch" in sys.modules or headless or not ("ipykernel" in sys.modules or sys.stderr.isatty()):
        yield
    elif "ipykernel" in sys.modules:
        from IPython.display import display

        place, began = display({"text/plain": "Loading torch …"}, raw=True, display_id=True), time.monotonic()
        yield
        if place is not None:  # there is a notebook, not only its packages
            place.update({"text/plain": f"Loaded torch in {time.monotonic() - began:.0f} s."}, raw=True)
    else:
        print("Loading torch …", file=sys.stderr, flush=True)
        yield


#: what goes wrong with a disk that a person can mend: full, over quota, over a limit, read-only, not allowed
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def _room_for(target: Path) -> Iterator[None]:
    """A disk that takes no more is told in one line, which names what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise UserError(
            f"{os.strerror(error.errno)}: {target}. Nothing half-written was kept; make room or choose another folder."
        ) from None


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target`, removed at the end; those that killed processes left behind are removed first."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}-*-*"):
        owner = left.name.removeprefix(f".{target.name}-").split("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-{os.getpid()}-", dir=target.parent))
    scratch.chmod(0o755)
    try:
        with _room_for(target):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Write a folder so that other readers see either the old one or the new one, never half of one.

    Yields a temporary sibling; on success it takes the place of `target`, on an exception it is removed.
    """
    with scratch_folder(target) as draft:
        yield draft
        if not os.path.lexists(target):
            os.replace(draft, target)
        elif not _exchanged(draft, Path(target)):
            with scratch_folder(target) as retired:
                os.replace(target, retired / "old")
                os.replace(draft, target)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that a kill between two renames cannot leave neither; False where that cannot be done."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux; elsewhere two renames have to do
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Like `atomic_folder`, for one file: yields a temporary path that replaces `target` on success."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    draft = Path(name)
    try:
        with _room_for(target):
            yield draft
        draft.chmod(0o644)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """One process at a time makes `target`; others of this machine that ask for it wait, and say so. Look again whether it is
    there once inside. The lock goes with its process, however that ends, and lies in the temporary folder, not in the data.

    Raises `UserError` where a worker would wait for ever: one that still imports the script which began it, and which holds the lock.
    """
    locks = Path(tempfile.gettempdir()) / f"makelib-locks-{os.getuid() if hasattr(os, 'getuid') else ''}"
    locks.mkdir(mode=0o700, exist_ok=True)
    lock = filelock.FileLock(locks / fingerprint(os.path.realpath(target)), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UserError(
                "Each worker imports the script that began it, and this one works as it is imported: put what it does "
                'under `if __name__ == "__main__":`.'
            ) from None
        named = "/".join(Path(target).parts[-2:])
        print(f"Another process is making {named}; waiting for it.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fingerprint(*parts: Any) -> str:
    """12 hexadecimal digits that identify JSON-able values (keys sorted) and byte strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


@functools.cache  # what runs is what was imported, not what was saved since
def code_version(patterns: tuple[str, ...] = TRAINING_CODE) -> str:
    """Fingerprint of the source of the modules that decide a trained model, or its scores."""
    package = Path(__file__).parent
    files = (file for pattern in patterns for file in sorted(package.glob(pattern)))
    return fingerprint(*(file.read_bytes() for file in files))


def uniform(name: str) -> float:
    """A number in [0, 1) that goes by the name alone, so that a draw does not depend on what else is drawn."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def set_threads(threads: int | None = None) -> int:
    """Fix the thread count of torch and faiss in one place (both bring OpenMP); `None` takes `MAKELIB_THREADS` or all cores."""
    import faiss
    import torch

    threads = threads or int(os.environ.get("MAKELIB_THREADS", 0)) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    return threads


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance() -> dict[str, Any]:
    """Which code, packages and machine produced a result."""

    def git(*arguments: str) -> str | None:
        try:
            call = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return call.stdout.strip() if call.returncode == 0 else None

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    import torch

    status = git("status", "--porcelain")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """Name and generation. Another one adds up in another order, and a training ends elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):  # not Linux, or not x86
        return platform.processor() or platform.machine()
