"""Headless runs: papermill execution of the notebooks, offline HTML, the page that lists them, provenance.

Results reach this module as files that the notebooks wrote through the library (`results/*.json`, `figures/*.png`,
`catalogue.json`); it never looks into a notebook's output for a number. It trains, indexes and measures nothing.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
import psutil
import yaml

from makelib import settings as settings_module
from makelib.runtime import UserError, alone, atomic_file, provenance
from makelib.study.experiment import check_folder, settings_of
from makelib.workbook.reports import verdict
from makelib.workbook.reports.offline import QUIET_LOG, to_html, write_text
from makelib.workbook.reports.pages import Notebook, duration, index_page

ROOT = Path(__file__).resolve().parents[3]
#: the parameters cell of every notebook: name to type
PARAMETERS = {"preset": str, "catalog": str, "seeds": int, "run": str, "overrides": dict}
#: hours that one cell may take before it counts as stalled; 48 with every other preset
CELL_HOURS = {"smoke": 1, "quick": 3}
#: seconds between two lines of progress where the output is a log
LOG_EVERY = 15.0


# -- a run ------------------------------------------------------------------------------------------------------------


def reproduce(
    preset: str,
    catalog: str,
    seeds: int,
    out: Path | str,
    overrides: dict[str, Any] | None = None,
    notebooks: Path | None = None,
    cell_timeout: float | None = None,
) -> int:
    """Execute every notebook in a process of its own and write the report of the run.

    Args:
        preset: name of a preset of `makelib.settings`.
        catalog: `bazaar`, `bazaar-zh`, a catalogue folder or `hub:<name>`.
        seeds: how many seeds, 0 for the preset's own.
        out: folder of the run. Reports in it are written anew, trained models in it are used again.
        overrides: changed settings, such as `{"training.steps": 100}`.
        notebooks: folder of the notebooks; relative paths resolve at its parent.
        cell_timeout: seconds that one cell may take; a cell that used them all counts as failed.

    Returns the exit code: 0 when all notebooks are ok, 1 when one failed or was skipped, 130 when stopped.
    A failed notebook takes those along that need it (`metadata.makelib.needs`); the others still run.
    Raises `UserError`, before anything is written, for a name, a folder or a parameter cell that does not fit.
    """
    notebooks = Path(notebooks or ROOT / "notebooks").resolve()
    root, out, overrides = notebooks.parent, Path(out).resolve(), dict(overrides or {})
    settings = settings_of(preset, catalog, seeds, overrides)
    check_folder(out, settings)
    if catalog != "bazaar":
        catalog = _checked_catalog(catalog, settings, root)
    plan = _plan(notebooks)
    parameters = {
        "preset": preset, "catalog": catalog, "seeds": seeds, "run": _relative(out, root), "overrides": overrides,
    }  # fmt: skip
    cell_timeout = cell_timeout or CELL_HOURS.get(preset, 48) * 3600

    run = _Run(out, root, parameters, cell_timeout, made_by=provenance())
    with alone(out / "index.html"):  # a second report of the same run would clear away what this one has written
        return _report(run, plan, settings)


def _report(run: _Run, plan: list[Notebook], settings: settings_module.Settings) -> int:
    """Execute the notebooks and write the pages; returns the exit code."""
    run.clear(plan)
    preset, catalog, out = run.parameters["preset"], run.parameters["catalog"], run.out
    print(f"preset {preset} · catalogue {catalog} · seeds {list(settings.seeds)} · {_shown(out)}", flush=True)
    code = 0
    try:
        for number, notebook in enumerate(plan, start=1):
            run.execute(notebook, plan, f"{number}/{len(plan)} {notebook.name}")
    except KeyboardInterrupt:
        code = 130
        print("stopped; what is trained is kept, and the same command goes on from there", flush=True)
    summary = _summary(run, plan, settings)
    _write_json(out / "summary.json", summary)
    write_text(out / "index.html", index_page(summary, out, {notebook.name: notebook for notebook in plan}))
    print(f"report: {_shown(out / 'index.html')}", flush=True)
    return code or int(any(notebook.status != "ok" for notebook in plan))


@dataclass
class _Run:
    """What the notebooks of one run share."""

    out: Path
    root: Path
    parameters: dict[str, Any]
    cell_timeout: float
    made_by: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    peak_memory: int = 0

    def clear(self, plan: list[Notebook]) -> None:
        """Remove what an earlier run reported, so that nothing old passes as new; models and caches stay."""
        self.out.mkdir(parents=True, exist_ok=True)
        for folder in ("results", "figures", "tables", "notebooks"):
            shutil.rmtree(self.out / folder, ignore_errors=True)
        for file in ("index", *(notebook.name for notebook in plan)):
            (self.out / f"{file}.html").unlink(missing_ok=True)
        for file in ("summary.json", "catalogue.json"):
            (self.out / file).unlink(missing_ok=True)
        (self.out / "notebooks").mkdir()
        write_text(self.out / ".progress", "\n")

    def execute(self, notebook: Notebook, plan: list[Notebook], label: str) -> None:
        """Run one notebook, convert it whatever came of it, and say how it ended."""
        line = _Line()
        lacking = [other.name for other in plan if other.name in notebook.needs and other.status != "ok"]
        if lacking:
            notebook.error = f"needs {', '.join(lacking)}"
            line.close(f"{label}  skipped: {notebook.error}")
            return
        executed = self.out / "notebooks" / f"{notebook.name}.ipynb"
        (self.out / ".progress").write_text("\n", encoding="utf-8")
        started = time.monotonic()
        try:
            notebook.error = self._papermill(notebook, executed, line, label)
            notebook.status = "failed" if notebook.error else "ok"
        except KeyboardInterrupt:
            notebook.status, notebook.error = "stopped", "by Ctrl-C; the same command goes on from here"
            raise
        finally:
            notebook.seconds = round(time.monotonic() - started, 1)
            if _read_json(executed):
                notebook.html = f"{notebook.name}.html"
                to_html(executed, self.out / notebook.html, notebook.error, notebook.status)
            where = self.out / (notebook.html or f"notebooks/{notebook.name}.log")
            why = f"  {notebook.error}  see {_shown(where)}" if notebook.error else ""
            line.close(f"{label}  {notebook.status}  {duration(notebook.seconds)}{why}")

    def _papermill(self, notebook: Notebook, executed: Path, line: _Line, label: str) -> str:
        """Run papermill as a child and show how far it is; returns the last line of the error, or ""."""
        # A kernel of another installation and a backend without inline figures must not come in from outside.
        environment = {key: value for key, value in os.environ.items() if key not in ("JUPYTER_PATH", "MPLBACKEND")}
        command = [
            sys.executable, "-m", "papermill", _literal(notebook.source), _literal(executed), "--kernel", "python3",
            "--cwd", str(self.root), "--parameters_yaml", yaml.safe_dump(self.parameters, allow_unicode=True),
            "--execution-timeout", str(max(1, round(self.cell_timeout))), "--start-timeout", "120",
            "--no-progress-bar", "--no-log-output",
        ]  # fmt: skip
        log = executed.with_suffix(".log")
        with log.open("w", encoding="utf-8") as output:
            child = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.root, start_new_session=True,
                env={**environment, "MAKELIB_HEADLESS": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            started, cells = time.monotonic(), "starting"
            try:
                while child.poll() is None:
                    self.peak_memory = max(self.peak_memory, _held(child))
                    cells = _cells_done(executed) or cells
                    line.show(f"{label}  {cells}  {duration(time.monotonic() - started)}  {self._last_word()}")
                    with contextlib.suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
                        child.wait(1)
            finally:
                _stop(child)
        error = _notebook_error(executed, self.cell_timeout)
        if child.returncode == 0 and not error:
            log.unlink()
            return ""
        words = [text for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
        return error or (words[-1].strip() if words else f"papermill ended with exit code {child.returncode}")

    def _last_word(self) -> str:
        """The status line that the library writes while a notebook runs."""
        with contextlib.suppress(OSError):
            return (self.out / ".progress").read_text(encoding="utf-8", errors="replace").strip()[:100]
        return ""


def _checked_catalog(catalog: str, settings: settings_module.Settings, root: Path) -> str:
    """Open the catalogue before anything runs, so that a wrong name is one line and not a failed notebook."""
    from makelib.data.sources import open_catalog

    if Path(catalog).is_dir():
        catalog = _relative(Path(catalog).resolve(), root)
    with contextlib.chdir(root):
        open_catalog(catalog, settings)
    return catalog


def _plan(folder: Path) -> list[Notebook]:
    """The numbered notebooks of a folder in reading order, with their parameter cells checked."""
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise UserError(
            f"There is no notebook such as 01_data.ipynb in {folder}; run from a checkout of the repository."
        )
    plan: list[Notebook] = []
    for source in sources:
        try:
            content = json.loads(source.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{source} is not a notebook: {error}") from None
        _check_parameters(source)
        headings = re.findall(
            r"^# +(.+)$", "\n".join(_text(cell) for cell in content["cells"] if cell["cell_type"] == "markdown"), re.M
        )
        needs = content["metadata"].get("makelib", {}).get("needs", [])
        unknown = set(needs) - {notebook.name for notebook in plan}
        if unknown:
            raise UserError(
                f"{source} needs {sorted(unknown)[0]!r}, which does not run before it (metadata.makelib.needs)."
            )
        plan.append(Notebook(source, headings[0] if headings else source.stem, needs))
    return plan


def _check_parameters(source: Path) -> None:
    """papermill only warns about a parameter that a notebook does not have, and runs on with the defaults."""
    try:
        declared = papermill.inspect_notebook(_literal(source))
    except ValueError as error:  # no language in the kernelspec, say
        raise UserError(f"{source}: {error}") from None
    if set(declared) != set(PARAMETERS):
        wrong = sorted(set(declared) ^ set(PARAMETERS))
        raise UserError(
            f"{source}: its parameters cell must declare {', '.join(PARAMETERS)}; "
            f"{'missing' if wrong[0] in PARAMETERS else 'unknown'}: {', '.join(wrong)}."
        )
    for name, kind in PARAMETERS.items():
        stated = declared[name]["inferred_type_name"]
        if stated in (None, "None"):
            try:
                stated = type(ast.literal_eval(declared[name]["default"])).__name__
            except (ValueError, SyntaxError):
                stated = "an expression"
        if stated.split("[")[0] != kind.__name__:
            raise UserError(f"{source}: parameter {name!r} must be of type {kind.__name__}, its cell says {stated}.")


def _literal(path: Path) -> str:
    """papermill takes paths for templates, in which { begins a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _cells_done(executed: Path) -> str:
    """How many code cells have run, read from the notebook that papermill writes after each; "" while it is written."""
    cells = [cell for cell in _read_json(executed).get("cells", ()) if cell["cell_type"] == "code"]
    done = sum(cell["metadata"].get("papermill", {}).get("status") == "completed" for cell in cells)
    return f"{done}/{len(cells)} cells" if cells else ""


def _notebook_error(executed: Path, cell_timeout: float) -> str:
    """Where and why an executed notebook failed, in one line; "" when it holds no error."""
    for cell in _read_json(executed).get("cells", ()):
        if cell["cell_type"] != "code":
            continue
        where = f"In [{cell.get('execution_count') or ' '}]"
        if (cell["metadata"].get("papermill", {}).get("duration") or 0) >= cell_timeout:
            return f"{where} used all of the {duration(cell_timeout)} that one cell may take"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                value = str(output["evalue"]).strip().splitlines()
                return f"{where} {output['ename']}: {value[-1] if value else ''}".rstrip(": ")
    return ""


def _held(child: psutil.Process) -> int:
    """Memory that a process and its descendants hold for themselves, in bytes. Files that they map do not count: the system takes
    that room back when it is short, and a million photographs would look like memory that a run needs."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (child, *child.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)  # which only Linux tells
    return total


def _stop(child: psutil.Popen) -> None:
    """End a child and its descendants; kernels lead sessions of their own, so a signal to the group would miss them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*child.children(recursive=True), child]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


class _Line:
    """The line of one notebook: rewritten in place on a terminal, repeated now and then where the output is a log."""

    def __init__(self) -> None:
        self._written = time.monotonic()

    def show(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif time.monotonic() - self._written >= LOG_EVERY:
            self._written = time.monotonic()
            print(text, flush=True)

    def close(self, text: str) -> None:
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


# -- what a run leaves behind -----------------------------------------------------------------------------------------


def _summary(run: _Run, plan: list[Notebook], settings: settings_module.Settings) -> dict[str, Any]:
    """`summary.json` as a dictionary; its schema is described in reports/README.md."""
    catalogue = dict.fromkeys(("name", "fingerprint", "products", "queries", "interactions", "generated_queries"))
    catalogue["name"] = run.parameters["catalog"]
    written = _read_json(run.out / "catalogue.json")
    catalogue |= {key: value for key, value in written.items() if key in catalogue}
    results = []
    for file in sorted((run.out / "results").glob("*.json")):
        results += json.loads(file.read_text(encoding="utf-8"))
    seconds = {notebook.name: notebook.seconds for notebook in plan}
    alpha = settings.evaluation.alpha
    said = verdict.verdict(results, catalogue["name"], _costs(run.out), alpha)
    claimed = verdict.claims(results, alpha)
    for name, rows in (("results", results), ("claims", claimed)):
        with atomic_file(run.out / "tables" / f"{name}.csv") as draft:
            pd.DataFrame(rows).to_csv(draft, index=False)
    return {
        "run": run.out.name,
        "preset": run.parameters["preset"],
        "settings": settings_module.to_dict(settings),
        "seeds": list(settings.seeds),
        "provenance": {
            **run.made_by,
            "catalogue": catalogue,
            "wall_seconds": {**seconds, "total": round(time.monotonic() - run.started, 1)},
            "peak_memory_bytes": run.peak_memory,
        },
        "results": results,
        "verdict": said,
        "claims": claimed,
        "notebooks": [
            {"name": notebook.name, "status": notebook.status, "seconds": notebook.seconds, "html": notebook.html}
            for notebook in plan
        ],
    }


def _costs(out: Path) -> dict[str, dict[str, float]]:
    """What the arms of the study `make` (else of Modal Adaptation) cost, as chapter 3 or 4 wrote it down."""
    for study in ("make", "modal_adaptation"):
        if (file := out / "tables" / f"costs {study}.csv").is_file():
            return pd.read_csv(file, index_col="variant").to_dict("index")
    return {}


QUIET_LOG.setLevel(logging.ERROR)


# -- small things -----------------------------------------------------------------------------------------------------


def _text(cell: dict[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none, or where its writer is not done or was stopped."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _relative(path: Path, root: Path) -> str:
    """A path as notebooks see it: relative where it lies in the repository, so that reports name no machine."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _shown(path: Path) -> str:
    return _relative(path, Path.cwd())


def _write_json(path: Path, value: Any) -> None:
    """JSON has no NaN: what is not a finite number is written as null."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(value) for key, value in item.items()}
        if isinstance(item, list | tuple):
            return [finite(value) for value in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
