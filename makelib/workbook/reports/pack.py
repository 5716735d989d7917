"""A run as one file that opens on another machine, without the models."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from makelib.runtime import UserError, atomic_file
from makelib.workbook.reports.diff import find_report

#: what of a run travels: pages, numbers, pictures, executed notebooks, and what each arm scored
TRAVELS = (
    "*.html", "summary.json", "settings.yaml", "catalogue.json", "results/*.json", "figures/*", "tables/*", "notebooks/*.ipynb",
    "models/*/per_query.parquet", "models/*/arm.json", "models/*/settings.yaml", "models/*/curves.parquet",
    "lines/*/per_query.parquet", "lines/*/line.json",
)  # fmt: skip
#: files that may name folders of this machine
TEXTS = (".html", ".ipynb", ".json", ".yaml", ".csv", ".svg")
#: a moment for every entry, so that the same run gives the same bytes
MOMENT = (1980, 1, 1, 0, 0, 0)


def pack(run: Path | str, out: Path | None = None) -> Path:
    """Write `<run>.zip` beside the run, or to `out`; unpacked, its `index.html` opens offline.

    Nobody learns where it was made: the run's folder goes by its name, the checkout (this one, and that of the executed notebooks) is
    `.`, the home folder `~`. Links are not followed, so nothing from outside the run's folder gets in. Raises `UserError` where there is
    no report.
    """
    folder = find_report(run).resolve()
    out = Path(out) if out else folder.with_suffix(".zip")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, such as {folder.name}.zip.")
    files = sorted(
        file
        for pattern in TRAVELS
        for file in folder.glob(pattern)
        if file.is_file() and not file.is_symlink() and file.resolve().is_relative_to(folder)
    )
    checkouts = {Path.cwd(), Path(__file__).parents[3], *map(_checkout, folder.glob("notebooks/*.ipynb"))} - {None}
    names = {Path.home(): "~"} | dict.fromkeys(checkouts, ".") | {folder: folder.name}
    with atomic_file(out) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", MOMENT)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, _anywhere(file, names))
    return out


def _checkout(executed: Path) -> Path | None:
    """The checkout whose notebook this was, as papermill noted."""
    noted = json.loads(executed.read_text(encoding="utf-8"))["metadata"].get("papermill", {}).get("input_path")
    return Path(noted).parent.parent if noted and Path(noted).is_absolute() else None


def _anywhere(file: Path, names: Mapping[Path, str]) -> bytes:
    """Bytes of a file, in texts with the names of folders instead of the folders, the longest of them first."""
    content = file.read_bytes()
    if file.suffix not in TEXTS:
        return content
    for folder in sorted(names, key=lambda folder: len(str(folder)), reverse=True):
        if len(folder.parts) > 1:  # a home of `/` names nothing
            content = re.sub(
                re.escape(str(folder).encode()) + rb"(?![\w-])", lambda _, n=names[folder]: n.encode(), content
            )
    return content
