"""A run as one file that opens on another machine, without the models."""

from __future__ import annotations

import zipfile
from pathlib import Path

from makelib.runtime import UserError, atomic_file
from makelib.workbook.reports.diff import find_report

#: what of a run travels: pages, numbers, pictures, executed notebooks, and what each arm scored
TRAVELS = (
    "*.html", "summary.json", "settings.yaml", "catalogue.json", "results/*.json", "figures/*", "tables/*", "notebooks/*.ipynb",
    "models/*/per_query.parquet", "models/*/arm.json", "models/*/settings.yaml", "models/*/curves.parquet",
    "lines/*/per_query.parquet", "lines/*/line.json",
)  # fmt: skip
#: a moment for every entry, so that the same run gives the same bytes
MOMENT = (1980, 1, 1, 0, 0, 0)


def pack(run: Path | str, out: Path | None = None) -> Path:
    """Write `<run>.zip` beside the run, or to `out`; unpacked, its `index.html` opens offline.

    Links are not followed, so nothing from outside the run's folder gets in. Raises `UserError` where there is no report.
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
    with atomic_file(out) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", MOMENT)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return out
